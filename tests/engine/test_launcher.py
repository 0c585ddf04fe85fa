"""The real `deepspeed` launcher: two processes, a validation, an average, and its way with errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHER = Path(sys.executable).with_name("deepspeed")


def start(config_file: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [str(LAUNCHER), "--num_gpus", "2", str(ROOT / "launch/train.py"), "--config", str(config_file)]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    path = f"{LAUNCHER.parent}:{os.environ['PATH']}"
    return subprocess.run(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        env={**environment, "PATH": path},
    )


@pytest.mark.slow
@pytest.mark.skipif(not LAUNCHER.exists(), reason="the deepspeed launcher is not installed")
def test_two_processes_train_validate_and_save(config_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    buffers = set(Path("/dev/shm").glob("deepspeed_*"))
    extra = ["parallel.zero=1", "optim.ema=0.9", "log.val_every=2", "log.val_rows=4", "log.wandb=false"]
    done = start(config_file, f"run.dir={run_dir}", *extra)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "dp 2" in done.stdout
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if "loss" in r]
    validations = [r for r in records if "val_text_loss" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    assert [r["step"] for r in validations] == [2, 4]
    assert steps[-1]["loss"] < steps[0]["loss"]
    last = validations[-1]
    assert last["val_text_loss"] != last["val_ema_text_loss"]
    assert sum(f"val_video_loss_t{i}" in last for i in range(8)) == 8
    assert (run_dir / "losses.png").stat().st_size > 1000
    assert (run_dir / "checkpoints/step_00000004/ema.safetensors").exists()
    assert set(Path("/dev/shm").glob("deepspeed_*")) == buffers


@pytest.mark.slow
@pytest.mark.skipif(not LAUNCHER.exists(), reason="the deepspeed launcher is not installed")
def test_error_through_the_launcher(config_file: Path, tmp_path: Path) -> None:
    done = start(config_file, f"run.dir={tmp_path / 'run'}", "data.train=/nowhere")
    assert done.returncode != 0
    assert sum(line.startswith("error: ") for line in done.stdout.splitlines()) == 1
    shutil.rmtree(tmp_path)
