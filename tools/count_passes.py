"""Passes of the text tower that action lines take, with and without `sample.grammar: actions`.

    python tools/count_passes.py                                  # the toy world's tokenizer
    python tools/count_passes.py --tokenizer llama3/tokenizer.model   # any tiktoken file

Counts what a sampler asks a model for before a chunk, BOF included, over the lines of 100 episodes of the toy
world, for chunks of one line and of as many as a CS:GO chunk has frames. Needs no model; prints JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from megatv.log import main_guard
from megatv.regular_file import require_place

if TYPE_CHECKING:
    from megatv.data.tokenizer import Tokenizer

EPISODES = 100
ENOUGH = 10**6
"""Room that no words fill."""


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokenizer", default="toy_world", help="as tokenizer.path of a config")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args()
    require_place(args.out)
    # these import torch, which takes seconds
    from megatv.data.tokenizer import load_tokenizer
    from megatv.sample.grammar import LINES

    tokenizer = load_tokenizer(args.tokenizer)
    figures = {f"{lines} a chunk": count(tokenizer, lines) for lines in (1, LINES)}
    text = json.dumps(figures, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def count(tokenizer: Tokenizer, lines: int) -> dict[str, float]:
    """Means: tokens of a chunk with `lines` lines, and the passes that pick them and BOF."""
    from megatv.data.toy_world import simulate
    from megatv.sample.grammar import LINES, Walk, action_grammar

    said = [caption.text for seed in range(EPISODES) for caption in simulate(seed).captions()]
    chunks = ["\n".join(said[at : at + lines]) for at in range(0, len(said) - lines + 1, lines)]
    tokens = picks = 0
    for ids in map(tokenizer.encode, chunks):
        way = Walk(action_grammar(tokenizer), LINES, ENOUGH, may_end=True)
        for token in ids:
            picks += len(way.choices()) > 1
            way.follow(token)
        picks += len(way.choices()) > 1
        tokens += len(ids)
    return {
        "chunks": len(chunks),
        "tokens": tokens / len(chunks),
        "passes": tokens / len(chunks) + 1,
        "passes_with_grammar": picks / len(chunks),
    }


if __name__ == "__main__":
    main_guard(main)
