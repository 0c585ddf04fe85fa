"""Text to tokens: byte-pair encoding from a local tiktoken file, with four markers after its ranks.

Special tokens follow the n ranks of the file: `<|bos|>` n, `<|eos|>` n+1, `<|bof|>` n+2, `<|eof|>` n+3.
For Llama-3 (n = 128000) these are its begin_of_text, end_of_text and first two reserved tokens, which have
the same ids in Meta's and in Hugging Face's vocabulary (llama-models `llama3/tokenizer.py`).
"""

from __future__ import annotations

import base64
import binascii
import functools
from pathlib import Path

import tiktoken

from megatv.choices import TOY_WORLD, TOY_WORLD_FILE
from megatv.regular_file import read_bytes

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is split before merging (llama-models `llama3/tokenizer.py`, `pat_str`)."""
LLAMA3_SPECIALS = 256

TOY_PATTERN = r"\([^()\s]*(?: [^()\s]+)*\)\.?| ?\S+|\s+"
"""What stands in brackets, or a word, with its punctuation: the keys and every number of an action line are
one token each, so all lines are equally long and the last chunk is always equally far away."""

MAX_CHARACTERS = 1 << 19
"""Of one text, more than a sequence takes. Where a million blanks follow each other, tiktoken panics, with an
error that is no Exception."""

MAX_TOKEN_BYTES = 512
"""Of one token, several times Llama-3's longest (128 blanks): the text of a few tokens stays small."""

TYPICAL = "The player in white shoots, and the ball drops through the net.", "(w, shift). -30, 0, 0, 1."
"""The two kinds of text that are trained on: captions and actions."""

SPECIALS = ("<|bos|>", "<|eos|>", "<|bof|>", "<|eof|>")


class Tokenizer:
    """BPE over UTF-8 bytes of texts of at most MAX_CHARACTERS; what looks like a special token is plain text.

    vocab_size   ranks plus special tokens       bos, eos   open and close a sequence
    bof, eof     delimit a frame chunk (TV2TV section 2.1)
    """

    def __init__(self, ranks: dict[bytes, int], pattern: str, specials: int = len(SPECIALS)):
        self.bos, self.eos, self.bof, self.eof = range(len(ranks), len(ranks) + len(SPECIALS))
        self.vocab_size = len(ranks) + specials
        names = [*SPECIALS, *(f"<|reserved_{i}|>" for i in range(len(SPECIALS), specials))]
        self._encoding = tiktoken.Encoding(
            "megatv",
            pat_str=pattern,
            mergeable_ranks=ranks,
            special_tokens={name: len(ranks) + i for i, name in enumerate(names)},
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without any special token. Raises ValueError when it is longer than a book."""
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"a text of {len(text):,} characters; give at most {MAX_CHARACTERS:,}: cut it")
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; special tokens show as `<|bof|>` and the like, broken UTF-8 as U+FFFD."""
        return self._encoding.decode(ids)

    @functools.cached_property
    def bytes_per_token(self) -> float:
        """Bytes of text that a token covers, in the kind of text where it covers fewest."""
        return min(len(text.encode()) / len(self.encode(text)) for text in TYPICAL)


def load_tokenizer(path: str, vocab: int | None = None) -> Tokenizer:
    """The shipped small BPE for `toy_world`, else a tiktoken file laid out as Llama-3's tokenizer.model.

    vocab  `model.vocab`, the rows of the model's embedding, where the tokens go into a model
    Raises ValueError, with the file and the line, when the file is missing or damaged, and when the model has
    fewer rows than there are tokens.
    """
    if path == TOY_WORLD:
        found = Tokenizer(read_ranks(TOY_WORLD_FILE), TOY_PATTERN)
    else:
        found = Tokenizer(read_ranks(Path(path)), LLAMA3_PATTERN, LLAMA3_SPECIALS)
    if vocab is not None and vocab < found.vocab_size:
        raise ValueError(
            f"model.vocab is {vocab}, and tokenizer.path {path} has {found.vocab_size} tokens: the model has "
            f"no row for some; make it at least {found.vocab_size}, or give the tokenizer of this model"
        )
    return found


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read `base64(token) rank` lines, ranks 0, 1, 2, .. in any order; see `load_tokenizer` for errors.

    tiktoken's own reader is not used: it caches files by their path, so it answers with an old file's ranks.
    """
    try:
        lines = read_bytes(path, links=True).splitlines()
    except OSError as error:
        raise ValueError(
            f"tokenizer.path {path}: cannot be read ({error.strerror}); give a tiktoken file such as "
            f"Llama-3's tokenizer.model, or `{TOY_WORLD}` for the shipped one"
        ) from None
    ranks: dict[bytes, int] = {}
    taken: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            token64, rank_text = line.split()
            token, rank = base64.b64decode(token64, validate=True), int(rank_text)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}, line {number}: expected `base64(token) rank`, got {line[:60]!r}; the file is "
                "damaged or not a tiktoken file: fetch it again"
            ) from None
        if len(token) > MAX_TOKEN_BYTES:
            raise ValueError(
                f"{path}, line {number}: a token has {len(token):,} bytes, and {MAX_TOKEN_BYTES} are the "
                "most; give another tokenizer"
            )
        if token in ranks or rank in taken:
            what, first = (
                (f"rank {rank}", taken[rank]) if rank in taken else ("this token", taken[ranks[token]])
            )
            raise ValueError(
                f"{path}, line {number}: {what} was given on line {first} already; fetch the file again"
            )
        ranks[token], taken[rank] = rank, number
    absent = next((rank for rank in range(len(ranks)) if rank not in taken), None)
    if absent is not None:
        raise ValueError(
            f"{path}, after line {len(lines)}: rank {absent} is absent, but {len(ranks)} lines must "
            f"give the ranks 0 to {len(ranks) - 1}; fetch the file again"
        )
    byte = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if byte is not None:
        raise ValueError(
            f"{path}, after line {len(lines)}: no token for the single byte {byte:#04x}, without which "
            "some texts cannot be encoded; fetch the file again"
        )
    return ranks
