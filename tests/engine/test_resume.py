"""R1, R2, R3, R8: a run that was killed, however, ends like one that never was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatv.checkpoint.store import Tensors, checkpoint_dir, verify

STEPS = 4
GRIDS = {
    "zero0": (1, ["parallel.zero=0", "optim.ema=0.9"]),
    "dp2-zero1-ema": (2, ["parallel.zero=1", "optim.ema=0.9"]),
    "dp2-zero2-bf16": (2, ["parallel.zero=2", "precision=bf16", "optim.ema=0.9"]),
    "dp2-zero1-bf16": (2, ["parallel.zero=1", "precision=bf16"]),
    "dp2-zero3": (2, ["parallel.zero=3"]),
    "tp2": (2, ["parallel.tp=2", "parallel.zero=1"]),
    "pp2": (2, ["parallel.pp=2", "parallel.zero=1"]),
}


def steps_of(run_dir: Path) -> list[dict]:
    """What a step computed, without what it took."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    timing = ("second", "tflops", "mfu", "data_wait", "memory", "goodput", "run_started")
    records = map(json.loads, lines)
    return [{k: v for k, v in r.items() if not any(word in k for word in timing)} for r in records]


def assert_same_end(one: Path, other: Path) -> None:
    """Bitwise the same losses, weights, moments and average."""
    assert steps_of(one) == steps_of(other)
    ends = [checkpoint_dir(path, STEPS) for path in (one, other)]
    metas = [verify(end) for end in ends]
    assert metas[0]["updates"] == metas[1]["updates"] == STEPS
    kinds = {name.partition(".")[0].partition("-")[0] for name in metas[0]["files"]}
    assert {"model", "exp_avg", "exp_avg_sq"} <= kinds
    for kind in kinds:
        a, b = (Tensors(end, kind) for end in ends)
        differ = [name for name in sorted(a.names()) if not torch.equal(a[name], b[name])]
        assert not differ, f"{kind} differs in {differ}"


def forget_after(run_dir: Path, step: int) -> None:
    """Put a finished run back to what a kill after its checkpoint of `step` leaves: metrics run ahead."""
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(checkpoint_dir(run_dir, later))


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_resumed_run_is_bitwise_the_uninterrupted_one(
    grid: str, launch: Callable, finish: Callable, tmp_path: Path
) -> None:
    processes, overrides = GRIDS[grid]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    finish(launch(processes, straight, "checkpoint.every=1", *overrides))
    shutil.copytree(straight, resumed)
    forget_after(resumed, 2)
    output = finish(launch(processes, resumed, "checkpoint.every=1", *overrides))
    assert "resumed from" in output and "step_00000002" in output
    assert_same_end(straight, resumed)


@pytest.mark.slow
def test_kill_9_in_the_middle(launch: Callable, finish: Callable, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(launch(1, straight))
    process = launch(1, killed, "checkpoint.every=1")
    while not checkpoint_dir(killed, 2).exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.communicate()
    finish(launch(1, killed))
    assert_same_end(straight, killed)


DYING = """
import os, runpy, signal, time
from megatv.checkpoint import store
write = store.write_tensors
def dying(path, shapes, tensors):
    if {victim!r} in str(path):
        path.write_bytes(b"half a file")
        metrics = path.parents[2] / "metrics.jsonl"
        while '"step": {trained}' not in metrics.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, shapes, tensors)
store.write_tensors = dying
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "trained"), [(4, 4), (2, 3)])
def test_kill_9_inside_a_save(
    saved: int, trained: int, launch: Callable, finish: Callable, tmp_path: Path
) -> None:
    """In the last save, which the run waits for, and in one that training has gone on beside."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(launch(1, straight))
    script = tmp_path / "dying.py"
    victim = f"step_{saved:08d}.tmp/exp_avg_sq"
    train = str(Path(__file__).parents[2] / "launch/train.py")
    script.write_text(DYING.format(victim=victim, trained=trained, script=train))
    process = launch(1, killed, "checkpoint.every=1", script=script)
    process.communicate(timeout=400)
    assert process.returncode == -signal.SIGKILL
    leftovers = list((killed / "checkpoints").glob("*.tmp"))
    assert [p.name for p in leftovers] == [f"step_{saved:08d}.tmp"]
    output = finish(launch(1, killed))
    assert f"resumed from {checkpoint_dir(killed, saved - 1)}" in output
    assert_same_end(straight, killed)
    assert not list((killed / "checkpoints").glob("*.tmp"))


@pytest.mark.slow
def test_damaged_checkpoint_is_passed_over(launch: Callable, finish: Callable, tmp_path: Path) -> None:
    straight, damaged = tmp_path / "straight", tmp_path / "damaged"
    finish(launch(1, straight, "checkpoint.every=1"))
    shutil.copytree(straight, damaged)
    forget_after(damaged, 3)
    victim = checkpoint_dir(damaged, 3) / "exp_avg.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    output = finish(launch(1, damaged, "checkpoint.every=1"))
    assert "passed over" in output and str(victim) in output and "step_00000002" in output
    assert_same_end(straight, damaged)


@pytest.mark.slow
def test_resume_on_another_grid(launch: Callable, finish: Callable, tmp_path: Path) -> None:
    """R3: dp 2 with ZeRO-1 goes on as tp 2 with ZeRO-3: same samples and noise, losses within 1e-5."""
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    finish(launch(2, straight, "checkpoint.every=1", "parallel.zero=1"))
    shutil.copytree(straight, moved)
    forget_after(moved, 2)
    finish(launch(2, moved, "checkpoint.every=1", "parallel.zero=3", "parallel.tp=2"))
    for one, other in zip(steps_of(straight), steps_of(moved), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_stop_signal_saves_and_leaves_at_once(
    number: signal.Signals, launch: Callable, finish: Callable, tmp_path: Path
) -> None:
    """R5: one rank is told, all of them stop after the same step with exit code 0."""
    run_dir = tmp_path / "run"
    process = launch(2, run_dir, "run.steps=1000", "parallel.zero=1", "checkpoint.every=1000")
    while len(steps := steps_of(run_dir) if (run_dir / "metrics.jsonl").exists() else []) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    rank_1 = next(p for p in children(process.pid) if environment(p).get("RANK") == "1")
    os.kill(rank_1, number)
    output = finish(process)
    assert "stopped by a signal" in output
    last = steps_of(run_dir)[-1]["step"]
    assert last <= steps[-1]["step"] + 20
    assert verify(checkpoint_dir(run_dir, last))["step"] == last


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)
