"""What a user can get wrong: one sentence from rank 0, exit code 2, nothing left running or half-written."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TRAIN = Path(__file__).parents[2] / "launch/train.py"

LATE = """
import os, time
from megatv.log import main_guard

def main():
    time.sleep(1 if os.environ["RANK"] == "0" else 0)
    raise ValueError("nobody can do this")

main_guard(main)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, on_ranks: Callable, config_file: Path) -> Path:
    """The directory of a run of two steps."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    on_ranks(1, TRAIN, "--config", config_file, f"run.dir={run_dir}", "run.steps=2")
    return run_dir


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["parallel.tp=2", "parallel.pp=2"], "start a multiple of 4 processes"),
        (["parallel.tp=4"], "model.kv_heads 2 must be a multiple of parallel.tp 4"),
        (["model.vocab=320"], "model.vocab is 320, and tokenizer.path toy_world has 326 tokens"),
        (["batch.examples=2"], "2 data-parallel ranks cannot share"),
        (["data.train=/nowhere/shards"], "/nowhere/shards"),
        (["parallel.tp=2", "log.preview_every=1"], "previews need the whole model on one process"),
        (["parallel.dp=3"], "parallel.dp is 3"),
        (["log.val_every=1", "log.val_rows=3"], "log.val_rows 3"),
        (["precision=bf16", "parallel.zero=0"], "parallel.zero 0"),
        (["--resume", "/nowhere/step_00000001"], "/nowhere/step_00000001: does not exist"),
    ],
)
def test_refused_at_start_on_two_processes(
    arguments: list[str], words: str, refused: Callable, tmp_path: Path
) -> None:
    assert words in refused(2, tmp_path / "run", *arguments)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_others_wait_until_rank_0_has_spoken(forge: Callable, tmp_path: Path) -> None:
    """Launchers end all ranks with the first: one that is quicker than rank 0 must not silence it."""
    script = tmp_path / "late.py"
    script.write_text(LATE)
    run = forge(tmp_path, [script], world=2)
    assert run.end()[0] == 2, run.log
    assert run.errors() == ["error: nobody can do this"]


def test_refused_under_a_launcher(config_file: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = ["--config", str(config_file), f"run.dir={tmp_path / 'run'}", "parallel.dp=3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(TRAIN), *words], capture_output=True, text=True, timeout=400, env=environment
    )
    output = done.stdout + done.stderr
    assert done.returncode != 0
    (error,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert "parallel.dp is 3" in error
    assert "Traceback (most recent call last)" not in output.partition("error: ")[0]


def test_a_run_is_not_overwritten(refused: Callable, finished: Path) -> None:
    assert "holds a run already" in refused(1, finished, "run.steps=2", "--resume", "none")


def test_resume_with_another_config_names_the_key(refused: Callable, finished: Path) -> None:
    assert "optim.lr is 0.01 there and 0.02 now" in refused(1, finished, "run.steps=2", "optim.lr=0.02")
    wider = refused(1, finished, "run.steps=2", "model.width=64")
    assert "model.width is 32 there and 64 now" in wider


def test_two_runs_on_one_directory(refused: Callable, finished: Path) -> None:
    with (finished / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run is using it" in refused(1, finished, "run.steps=2")


def test_unwritable_run_dir(refused: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(2, tmp_path / "file" / "run")


def test_shard_damaged_during_the_run(refused: Callable, shards: Path, tmp_path: Path) -> None:
    """Damage that opening does not see: one sentence says which file, and all ranks end together."""
    broken = tmp_path / "train"
    broken.mkdir()
    for file in (shards / "train").iterdir():
        content = bytearray(file.read_bytes())
        if file.suffix == ".mds":
            content[len(content) // 2] ^= 0xFF
        (broken / file.name).write_bytes(content)
    limit = "data.max_bad_samples=0"
    error = refused(2, tmp_path / "run", f"data.train={broken}", "run.steps=10", limit)
    assert "shard.00000.mds" in error and "damaged" in error
