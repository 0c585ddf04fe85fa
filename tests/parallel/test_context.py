"""Who holds which rows under context parallelism, without any process; that it trains alike: test_parity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatv_kernels import Document, build_record

from megatv.config import ParallelConfig
from megatv.parallel.context import Context, Shares
from megatv.types import IGNORE, Batch

CPU = torch.device("cpu")


def shares(text_rows: int, chunks: int, chunk_rows: int, cp: int, unit: int = 1) -> list[Shares]:
    return [
        Shares(text_rows, chunks, chunk_rows, CPU, context=Context(ParallelConfig(cp=cp), rank), unit=unit)
        for rank in range(cp)
    ]


@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 5), st.integers(1, 8), st.integers(1, 4))
def test_every_row_has_one_holder(units: int, chunks: int, chunk_rows: int, cp: int, unit: int) -> None:
    everyone = shares(units * unit, chunks, chunk_rows, cp, unit)
    rows = units * unit + 2 * chunks * chunk_rows
    assert sorted(torch.cat([one.mine for one in everyone]).tolist()) == list(range(rows))
    for one in everyone:
        own_chunks = one.chunks.stop - one.chunks.start
        assert len(one.mine) == one.text.stop - one.text.start + 2 * own_chunks * chunk_rows
        assert one.mine.tolist() == sorted(one.mine.tolist())  # text, clean, noisy, as in the whole row
        assert (one.text.stop - one.text.start) % unit == 0
        assert abs(own_chunks - chunks / cp) < 1


@pytest.fixture
def batch() -> Batch:
    """12 text rows and 3 chunks of 2 rows, every value another."""
    record = build_record([Document(np.zeros(12, int), np.full(3, 12))], text_rows=12, chunk_rows=2, chunks=3)
    latents = torch.arange(3 * 4.0).view(3, 1, 2, 2)
    text = torch.arange(12)
    return Batch(
        text_ids=text,
        text_targets=text.where(text % 2 == 0, IGNORE),
        positions=torch.arange(24, dtype=torch.int32),
        clean=latents,
        noisy=latents + 100,
        velocity=latents + 200,
        clean_t=torch.arange(3.0),
        noisy_t=torch.arange(3.0) + 10,
        chunk_loss=torch.tensor([True, False, True]),
        record=record,
        ids=("a",),
    )


def test_siblings_together_have_the_whole_batch(batch: Batch) -> None:
    siblings = [Context(ParallelConfig(cp=2), rank) for rank in range(2)]
    parts = [sibling.share(batch) for sibling in siblings]
    for name in (
        "text_ids",
        "text_targets",
        "clean",
        "noisy",
        "velocity",
        "clean_t",
        "noisy_t",
        "chunk_loss",
    ):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(batch, name)), name
    assert torch.equal(sum(part.counts() for part in parts), batch.counts())
    assert [len(part.noisy) for part in parts] == [1, 2]
    # six words, then the clean rows of the chunk, then its noisy rows
    assert parts[0].positions.tolist() == [0, 1, 2, 3, 4, 5, 12, 13, 18, 19]
    assert all(part.record is batch.record for part in parts)
    assert [sibling.text_rows(batch.record) for sibling in siblings] == [6, 6]


def test_one_rank_has_all_of_it(batch: Batch) -> None:
    context = Context()
    assert context.share(batch) is batch and context.text_rows(batch.record) == 12
