"""A training sequence as text, and the tokens of an example's words, for people who check their data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from megatv.config import Config
from megatv.data.sequence import chunk_start_seconds, interleave
from megatv.data.tokenizer import Tokenizer
from megatv.types import IGNORE, Example, Sequence
from megatv.untrusted import printable


def runs(sequence: Sequence) -> list[range]:
    """Text rows before chunk 0, between the chunks, and after the last one."""
    bounds = [0, *sequence.chunk_sees_text.tolist(), len(sequence.text_ids)]
    return [range(lo, hi) for lo, hi in pairwise(bounds)]


def describe(example: Example, sequence: Sequence, tokenizer: Tokenizer, config: Config) -> Iterator[str]:
    """The sequence line by line; a star marks what bears a loss."""
    chunks, tokens = len(sequence.chunk_loss), config.tokens_per_chunk
    text_losses = int((sequence.text_targets != IGNORE).sum())
    yield (
        f"sample {sequence.id}, {config.sequence.mode}: {chunks} of {config.latents} chunks, {tokens} tokens "
        f"each; {len(sequence.text_ids)} of {config.text_rows_per_example} text rows"
    )
    yield (
        f"losses (*): {text_losses} text targets, {int(sequence.chunk_loss.sum())} chunks; "
        f"clean copies flipped: {int((sequence.clean_t != 1).sum())}"
    )
    said = interleave(example, tokenizer, config.sequence)
    markers = [tokenizer.bos, tokenizer.eos, tokenizer.bof, tokenizer.eof]
    for index, rows in enumerate(runs(sequence)):
        ids, learned = sequence.text_ids[rows], sequence.text_targets[rows] != IGNORE
        shown = printable(tokenizer.decode(ids.tolist()).replace("\n", "\u21b5"), keep="")
        time = f"{chunk_start_seconds(index):7.4f} s" if index < chunks else " " * 9
        first, last = sequence.text_positions[rows[0]], sequence.text_positions[rows[-1]]
        line = f"{time}  {first:>5}-{last:<5} {shown}  *{learned.sum()}/{len(ids)}"
        words = (said.prompt if index == 0 else ()) + said.before[index : index + 1]
        dropped = sum(map(len, filter(None, words))) - np.isin(ids, markers, invert=True).sum()
        yield line + (f"  ({dropped} tokens dropped)" if dropped and index < chunks else "")
        if index < chunks:
            star = "*" if sequence.chunk_loss[index] else ""
            clean_t = sequence.clean_t[index]
            clean = "clean" if clean_t == 1 else f"clean flipped to noisy, t={clean_t:.2f}"
            noisy_at, clean_at = (
                f"{p[index, 0]}-{p[index, -1]}" for p in (sequence.noisy_positions, sequence.clean_positions)
            )
            where = noisy_at if noisy_at == clean_at else f"{noisy_at}, {clean_at}"
            yield f"{'':11}{where:^11} [noisy t={sequence.noisy_t[index]:.2f}{star} | {clean}]"


def transcript(example: Example, tokenizer: Tokenizer) -> Iterator[str]:
    """The example's words line by line, each with its time in the clip and its number of tokens."""
    for label, text in (("meta", example.meta_caption), ("detailed", example.detailed_caption)):
        if text:
            yield f"{label:>9}  [{len(tokenizer.encode(text))} tokens] {printable(text, keep='')}"
    for caption in example.captions:
        tokens = len(tokenizer.encode(caption.text))
        yield f"{caption.start_seconds:7.4f} s  [{tokens} tokens] {printable(caption.text, keep='')}"
