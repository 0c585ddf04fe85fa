"""R8: bad files are refused and the checkpoint before them used; a full disk loses nothing that was saved."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatv.checkpoint.store import META, checkpoint_dir, steps

pytestmark = pytest.mark.slow


def truncate(checkpoint: Path) -> Path:
    victim = checkpoint / "model.safetensors"
    os.truncate(victim, victim.stat().st_size // 2)
    return victim


def flip_a_bit(checkpoint: Path) -> Path:
    victim = checkpoint / "exp_avg.safetensors"
    content = bytearray(victim.read_bytes())
    content[-100] ^= 1
    victim.write_bytes(content)
    return victim


def listing(folder: Path) -> dict[str, bytes]:
    """Every file of a run and what is in it, but for the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def copy(undisturbed: Path, tmp_path: Path) -> Path:
    """The undisturbed run, to be damaged."""
    return shutil.copytree(undisturbed, tmp_path / "run")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
def test_the_one_before_is_used(damage: Callable, copy: Path, comes_back: Callable) -> None:
    victim = damage(checkpoint_dir(copy, 5))
    log = comes_back(copy, kept=4)
    assert f"checkpoint passed over: {victim}" in log


def test_none_is_whole(start: Callable, copy: Path) -> None:
    for checkpoint in steps(copy):
        truncate(checkpoint)
    before = listing(copy)
    run = start(copy)
    assert run.end() == [2, 2]
    (error,) = run.errors()
    assert "none of its checkpoints is whole" in error and "model.safetensors" in error
    assert listing(copy) == before


def test_a_newer_format_is_not_passed_over(start: Callable, copy: Path) -> None:
    meta = checkpoint_dir(copy, 5) / META
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format": 2, "megatv": "9.0"}))
    before = listing(copy)
    run = start(copy)
    assert run.end() == [2, 2]
    (error,) = run.errors()
    assert "step_00000005: checkpoint format 2 is not 1" in error and "version 9.0" in error
    assert listing(copy) == before


def test_a_checkpoint_of_another_model(start: Callable, undisturbed: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "new", "model.layers=1", "--resume", str(checkpoint_dir(undisturbed, 5)))
    assert run.end() == [2, 2]
    (error,) = run.errors()
    assert "model.layers is 2 there and 1 now" in error
    assert not (tmp_path / "new/metrics.jsonl").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5 MB, of which a checkpoint takes 1.8."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk(start: Callable, small_disk: Path, comes_back: Callable) -> None:
    run = start(small_disk / "run")
    assert run.end() == [2, 2], run.log
    (error,) = run.errors()
    assert "step_00000003: the checkpoint could not be written ([Errno 28] No space left" in error
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    comes_back(run.directory, kept=2)


def test_no_space_for_one_rank_only(start: Callable, tmp_path: Path, comes_back: Callable) -> None:
    """Rank 1 writes the moments of rank 0's weights; both stop, and rank 0 says why."""
    run = start(tmp_path / "run", faults="disk_full_in_write(rank=1, step=3)")
    assert run.end() == [2, 2], run.log
    (error,) = run.errors()
    assert "step_00000003: the checkpoint could not be written ([Errno 28] No space left" in error
    comes_back(run.directory, kept=2)
