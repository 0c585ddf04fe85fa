"""Validation by timestep: what is counted where, and what is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatv.model.mot import Output
from megatv.objective.validation import BINS, ValidationSums
from megatv.types import LossSum


def test_bins_hold_the_chunks_of_their_times_and_no_padding() -> None:
    """Six chunks of 2 values, the last two of them without a loss: padding stands at t = 1."""
    times = torch.tensor([0.0, 0.124, 0.125, 0.999, 0.5, 1.0])
    error = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0, 100.0])
    counts = torch.tensor([True, True, True, True, False, False])
    batch = SimpleNamespace(noisy_t=times, chunk_loss=counts, velocity=torch.zeros(6, 2, 1, 1))
    output = Output(torch.empty(0), error[:, None, None, None].expand(6, 2, 1, 1))
    loss = LossSum(*(torch.tensor(x, dtype=torch.float64) for x in (6.0, 60.0, 3.0, 8.0)))
    sums = ValidationSums(torch.device("cpu"))
    for _ in range(2):
        sums.add(output, batch, loss)  # type: ignore[arg-type]
    found = sums.means()
    assert found.pop("text_loss") == 2 and found.pop("video_loss") == 7.5
    wanted = {0: (1 + 4) / 2, 1: 9, 7: 16}
    assert found == {
        f"video_loss_t{i}": pytest.approx(wanted[i]) if i in wanted else None for i in range(BINS)
    }


def test_a_time_of_one_belongs_to_the_last_bin() -> None:
    one = torch.ones(1)
    batch = SimpleNamespace(noisy_t=one, chunk_loss=one.bool(), velocity=torch.zeros(1, 2, 1, 1))
    loss = LossSum(*(torch.ones((), dtype=torch.float64) for _ in range(4)))
    sums = ValidationSums(torch.device("cpu"))
    sums.add(Output(torch.empty(0), torch.full((1, 2, 1, 1), 3.0)), batch, loss)  # type: ignore[arg-type]
    assert sums.means()[f"video_loss_t{BINS - 1}"] == 9
