"""The benchmark of checkpoints runs to its end on a small model and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_it_prints_its_figures_and_cleans_up(python: Callable, tmp_path: Path) -> None:
    words = ("--config", "configs/toy_world.yaml", "--small", "--rounds", 2, "--dir", tmp_path)
    done = python("tools/bench_checkpoint.py", *words)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["gigabytes"] > 0
    assert figures["blocking_over_held"] == pytest.approx(
        figures["blocking_seconds_per_gb"] / figures["held_seconds_per_gb"], rel=0.05
    )
    assert not list(tmp_path.iterdir())
