"""What a user can get wrong: one sentence from rank 0, exit code 2, nothing left running or half-written."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def refused(process: subprocess.Popen) -> str:
    """The one error sentence of a run that was refused."""
    output, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert "Traceback (most recent call last)" not in output.partition("error: ")[0]
    return errors[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config_file: Path) -> Path:
    """The directory of a run of two steps."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    script = Path(__file__).parents[2] / "launch/train.py"
    command = [sys.executable, str(script), "--config", str(config_file), f"run.dir={run_dir}", "run.steps=2"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["parallel.tp=2", "parallel.pp=2"], "start a multiple of 4 processes"),
        (["parallel.tp=4"], "model.kv_heads 2 must be a multiple of parallel.tp 4"),
        (["batch.examples=2"], "2 data-parallel ranks cannot share"),
        (["data.train=/nowhere/shards"], "/nowhere/shards"),
        (["parallel.tp=2", "log.preview_every=1"], "previews need the whole model on one process"),
        (["parallel.dp=3"], "parallel.dp is 3"),
        (["log.val_every=1", "log.val_rows=3"], "log.val_rows 3"),
        (["precision=bf16", "parallel.zero=0"], "parallel.zero 0"),
        (["--resume", "/nowhere/step_00000001"], "no checkpoint"),
    ],
)
def test_refused_at_start_on_two_processes(
    arguments: list[str], words: str, forge: Callable, config_file: Path, tmp_path: Path
) -> None:
    run_dir, script = tmp_path / "run", Path(__file__).parents[2] / "launch/train.py"
    run = forge(tmp_path, [script, "--config", config_file, f"run.dir={run_dir}", *arguments], {}, 2)
    codes = run.end()
    assert 2 in codes and set(codes) <= {2, -15}, (
        run.log
    )  # the first that goes ends the other, as launchers do
    errors = [line for line in run.log.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0], run.log
    assert "Traceback (most recent call last)" not in run.log
    assert not (run_dir / "metrics.jsonl").exists()


@pytest.mark.slow
def test_refused_under_a_launcher(launch: Callable, tmp_path: Path) -> None:
    assert "parallel.dp is 3" in refused(launch(2, tmp_path / "run", "parallel.dp=3"))


@pytest.mark.slow
def test_exit_code_2(launch: Callable, tmp_path: Path) -> None:
    process = launch(1, tmp_path / "run", "parallel.tp=2")
    assert "start a multiple of 2 processes" in refused(process)
    assert process.returncode == 2


@pytest.mark.slow
def test_a_run_is_not_overwritten(launch: Callable, finished: Path) -> None:
    assert "holds a run already" in refused(launch(1, finished, "run.steps=2", "--resume", "none"))


@pytest.mark.slow
def test_resume_with_another_config_names_the_key(launch: Callable, finished: Path) -> None:
    assert "optim.lr is 0.01 there and 0.02 now" in refused(
        launch(1, finished, "run.steps=2", "optim.lr=0.02")
    )
    wider = refused(launch(1, finished, "run.steps=2", "model.width=64"))
    assert "model.width is 32 there and 64 now" in wider


@pytest.mark.slow
def test_two_runs_on_one_directory(launch: Callable, finished: Path) -> None:
    with (finished / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run is using it" in refused(launch(1, finished, "run.steps=2"))


@pytest.mark.slow
def test_unwritable_run_dir(launch: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(launch(2, tmp_path / "file" / "run"))


@pytest.mark.slow
def test_shard_damaged_during_the_run(
    launch: Callable, shards: Path, tmp_path: Path, config_file: Path
) -> None:
    """Damage that opening does not see: one sentence says which file, and all ranks end together."""
    broken = tmp_path / "train"
    broken.mkdir()
    for file in (shards / "train").iterdir():
        content = bytearray(file.read_bytes())
        if file.suffix == ".mds":
            content[len(content) // 2] ^= 0xFF
        (broken / file.name).write_bytes(content)
    limit = "data.max_bad_samples=0"
    process = launch(2, tmp_path / "run", f"data.train={broken}", "run.steps=10", limit)
    output, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "shard.00000.mds" in output and "damaged" in output
