"""launch/slurm/evaluate.sbatch on a real Slurm: one command for each number of a job array."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = "launch/slurm/evaluate.sbatch"


def submit(cluster, *words: object) -> str:
    """sbatch, and wait for its end; the job's id."""
    options = ("sbatch", "--wait", "--parsable", "--gpus-per-node=0", "--cpus-per-task=1")
    return cluster(*options, *words, check=False).split()[0]


def test_each_task_looks_at_its_own_checkpoint(cluster, undisturbed: Path, tmp_path: Path) -> None:
    job = submit(
        cluster,
        *("--array=10-30:20", f"--output={tmp_path}/%a.out", SCRIPT, "python", "tools/convert_ckpt.py"),
        *("inspect", undisturbed / "checkpoints/step_%8a"),
    )
    assert f"ArrayJobId={job}" in cluster("scontrol", "show", "job", job)
    for step in (10, 30):
        assert f"step: {step}\n" in (tmp_path / f"{step}.out").read_text()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "this is a job array's script: sbatch --array=0-63"),
        (("--array=0-1",), "no %a in 'python -m megatv.sample --seed 3': every task"),
    ],
)
def test_what_makes_no_sense_is_refused(cluster, tmp_path: Path, options: tuple[str, ...], why: str) -> None:
    log = tmp_path / "log"
    submit(cluster, *options, f"--output={log}", SCRIPT, "python", "-m", "megatv.sample", "--seed", 3)
    assert f"error: {why}" in log.read_text()
