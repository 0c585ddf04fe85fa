"""Train the toy world's BPE and write it as a tiktoken file.

    python tools/train_tokenizer.py --out megatv/assets/toy_world.tiktoken

The result is a function of this file and the toy world's words alone: it reproduces the shipped file byte for
byte. Needs the `tokenizers` package (extra `dev`).
"""

from __future__ import annotations

import argparse
import base64
import os
from pathlib import Path

from megatv.choices import TOY_WORLD_FILE
from megatv.log import main_guard
from megatv.untrusted import parse_json

RANKS = 322
"""256 bytes and all merges that the corpus holds: every word of it, and every set of keys, is one token."""


def corpus() -> list[str]:
    """Every action line, and the meta-prompt."""
    from megatv.data.toy_world import ACTIONS, META_PROMPT, words  # imports torch, which takes seconds

    return [*map(words, ACTIONS), META_PROMPT]


def train(texts: list[str], ranks: int) -> list[bytes]:
    """Tokens in order of rank: the 256 bytes, then merges learned from `texts`."""
    from megatv.data.tokenizer import TOY_PATTERN

    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise ValueError("training needs the package `tokenizers`: pip install 'megatv[dev]'") from None
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TOY_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=ranks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    byte_of = byte_alphabet()
    tokens = [bytes([value]) for value in range(256)]
    for left, right in parse_json(bpe.to_str())["model"]["merges"]:
        tokens.append(bytes(byte_of[c] for c in left + right))
    if len(tokens) != ranks or len(set(tokens)) != ranks:
        raise ValueError(f"the texts gave {len(set(tokens))} tokens instead of {ranks}: ask for fewer ranks")
    return tokens


def byte_alphabet() -> dict[str, int]:
    """The byte behind each printable stand-in (openai/gpt-2 `src/encoder.py`, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [value for value in range(256) if value not in printable]
    return {chr(v): v for v in printable} | {chr(256 + i): v for i, v in enumerate(rest)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the toy world's BPE; write it as a tiktoken file.")
    parser.add_argument("--out", type=Path, default=TOY_WORLD_FILE, help="tiktoken file to write")
    out = parser.parse_args().out
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    tokens = train(corpus(), RANKS)
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_bytes(b"".join(lines))
    os.replace(temporary, out)
    print(f"wrote {len(tokens)} ranks to {out}")


if __name__ == "__main__":
    main_guard(main)
