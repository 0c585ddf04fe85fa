"""Which examples are held out: whole sources, chosen by a hash, so that the choice is the same everywhere."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from megatv.data.record import Record
from megatv.data.shards import Shards, ShardWriter
from megatv.regular_file import partial_folder


def held_out_sources(sources: set[str], share: float, seed: int) -> set[str]:
    """The nearest number of sources to `share`, at least one, left in and out; a pure function.

    Sources are ranked by a hash of (seed, name), so one more source moves at most one other over the border.
    Raises ValueError where there are not two sources.
    """
    if len(sources) < 2:
        raise ValueError(
            f"all examples come from one source, '{next(iter(sources), '')}', which cannot lie on both sides "
            "of a split: add videos, or split by another key (--by)"
        )
    assert 0 < share < 1
    ranked = sorted(sources, key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode()).digest())
    return set(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])


def split(shards: Shards, out: Path, *, share: float, seed: int, by: str) -> tuple[int, int]:
    """Copy the examples into `out`/train and `out`/val by the value of `source[by]`; how many went to each.

    Both appear in one piece or not at all, with the latent statistics of the original (its held-out sources
    counted in), so that both are normalised alike, as `megatv.train` demands. Raises ValueError when an
    example has no such key, or damage is met.
    """
    names = [_source(shards.record(index), by) for index in range(len(shards))]
    held_out = held_out_sources(set(names), share, seed)
    if out.exists():
        raise ValueError(f"{out}: exists already; name another --out or remove it first")
    partial = partial_folder(out)
    try:
        with (
            ShardWriter(partial / "train", shards.info) as train,
            ShardWriter(partial / "val", shards.info) as val,
        ):
            for index, name in enumerate(names):
                (val if name in held_out else train).write(**vars(shards.record(index)))
            train.finish(shards.stats)
            val.finish(shards.stats)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    left_out = sum(name in held_out for name in names)
    return len(names) - left_out, left_out


def _source(record: Record, by: str) -> str:
    if by not in record.source:
        keys = ", ".join(record.source) or "none"
        raise ValueError(f"example '{record.id}' has no `{by}` in its source; --by one of its keys: {keys}")
    return str(record.source[by])
