"""R3: a run goes on on another grid: weights and moments exactly, the same samples, noise and losses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatv.checkpoint.store import Tensors, checkpoint_dir

ROOT = Path(__file__).parents[2]
SAVED, STEPS = 2, 4
GRIDS = {
    "tp2-zero3": (2, ["parallel.tp=2", "parallel.zero=3"]),
    "cp2-zero2": (2, ["parallel.cp=2", "parallel.zero=2"]),
    "pp2-tp2": (4, ["parallel.pp=2", "parallel.tp=2", "parallel.sequence_parallel=true"]),
    "one": (1, ["parallel.zero=0"]),
}
# what the engine holds before its first step, whole and by name
WITNESS = """
import runpy, torch
from megatv.engine import Engine
whole = Engine.step
def step(self, *arguments):
    for kind in self.kinds:
        tensors = {{n: t.clone() for n, t in zip(self.shapes, self.full(kind))}}
        if self.mesh.replica_rank == self.mesh.tp_rank == 0:
            torch.save(tensors, f"{folder}/{{kind}}-{{self.mesh.pp_rank}}.pt")
    Engine.step = whole
    return whole(self, *arguments)
Engine.step = step
runpy.run_path({script!r}, run_name="__main__")
"""


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_goes_on_on_any_grid(train: Callable, tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    train(2, straight, f"checkpoint.every={SAVED}", "parallel.zero=1")
    shutil.rmtree(checkpoint_dir(straight, STEPS))
    saved = checkpoint_dir(straight, SAVED)
    for grid, (processes, overrides) in GRIDS.items():
        moved, found = tmp_path / grid, tmp_path / f"{grid}-state"
        shutil.copytree(straight, moved)
        found.mkdir()
        script = tmp_path / "witness.py"
        script.write_text(WITNESS.format(folder=str(found), script=str(ROOT / "launch/train.py")))
        output = train(processes, moved, f"checkpoint.every={STEPS}", *overrides, script=script)
        assert f"resumed from {checkpoint_dir(moved, SAVED)}" in output
        for kind in ("model", "exp_avg", "exp_avg_sq"):
            held: dict[str, torch.Tensor] = {}
            for stage in found.glob(f"{kind}-*.pt"):
                held |= torch.load(stage)
            expected = Tensors(saved, kind)
            assert held.keys() == expected.names()
            differ = [name for name in sorted(held) if not torch.equal(held[name], expected[name])]
            assert not differ, f"{grid}: {kind} differs in {differ}"
        for one, other in zip(records(straight), records(moved), strict=True):
            for key in ("step", "text_loss", "video_loss", "grad_norm", "lr"):
                assert one[key] == pytest.approx(other[key], rel=1e-5), (grid, key)
