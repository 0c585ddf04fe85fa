"""Steps, rows and ranks without any text loss, or without any video loss, train as one process says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GRIDS = {
    "dp4": (4, ["parallel.zero=2"]),
    "tp2-cp2": (4, ["parallel.tp=2", "parallel.cp=2", "parallel.sequence_parallel=true"]),
    "pp2": (2, ["parallel.pp=2", "parallel.zero=1"]),
}
# by sample, so that it does not depend on the grid; with dp 4, a rank's step is one row of one kind
SILENCE = """
import runpy
from megatv.data.loader import Loader
from megatv.types import IGNORE
whole = Loader.step
def step(self, number):
    batches = whole(self, number)
    for batch in batches:
        if {without_video}:
            batch.chunk_loss[:] = False
        if {without_text}:
            batch.text_targets[:] = IGNORE
    return batches
Loader.step = step
runpy.run_path({script!r}, run_name="__main__")
"""
ODD = "int(batch.ids[0].rpartition('-')[2]) % 2"
CASES = {"text": ("True", "False"), "video": ("False", "True"), "each-row-one": (ODD, f"not {ODD}")}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_empty_modality_counts_nothing(case: str, train: Callable, tmp_path: Path) -> None:
    without_video, without_text = CASES[case]
    script = tmp_path / "silence.py"
    script.write_text(
        SILENCE.format(
            without_video=without_video, without_text=without_text, script=str(ROOT / "launch/train.py")
        )
    )

    def curve(name: str, processes: int, overrides: list[str]) -> list[tuple[float, ...]]:
        run = tmp_path / name
        train(processes, run, "run.steps=2", *overrides, script=script)
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [tuple(line[key] for key in ("text_loss", "video_loss", "grad_norm")) for line in lines]

    expected = curve("one", 1, [])
    text, video, norms = zip(*expected, strict=True)
    assert all(norms)
    assert any(text) == (case != "video") and any(video) == (case != "text")
    for grid, (processes, overrides) in GRIDS.items():
        found = curve(grid, processes, overrides)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-4), grid
