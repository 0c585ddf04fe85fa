"""The scripts of launch/slurm on a real Slurm: a run preempted, killed, and still the same; job arrays.

In one file, so that one worker of pytest-xdist brings up one cluster.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

LONG = ("run.steps=40", "checkpoint.every=10")
EVALUATE = "launch/slurm/evaluate.sbatch"
pytestmark = pytest.mark.slow


class Job:
    """One sbatch of the tiny run, one rank on each of two nodes."""

    def __init__(
        self,
        cluster,
        config_file: Path,
        run_dir: Path,
        *options: str,
        launcher: str = "",
        overrides: Sequence[str] = (),
    ) -> None:
        self.cluster, self.run_dir, self.log = cluster, run_dir, run_dir.with_suffix(".log")
        environment = ["env", f"MEGATV_LAUNCHER={launcher}"] if launcher else []
        self.id = cluster(
            *(*environment, "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0"),
            *(f"--output={self.log}", *options, "launch/slurm/train.sbatch", "--config", config_file),
            *(f"run.dir={run_dir}", *LONG, "log.every=10", *overrides),
        ).strip()

    def reaches(self, step: int) -> None:
        """Wait until the run has done `step`."""
        metrics = self.run_dir / "metrics.jsonl"
        done = lambda: metrics.exists() and f'"step": {step},' in metrics.read_text()  # noqa: E731
        self.cluster.wait(lambda: done() or self.is_over(), f"step {step}")
        assert not self.is_over(), self.log.read_text()

    def field(self, name: str) -> str:
        """What `scontrol show job` says of the job."""
        text = self.cluster("scontrol", "show", "job", "--oneliner", self.id)
        return text.partition(f" {name}=")[2].split()[0]

    def is_over(self) -> bool:
        """Not in the queue any more."""
        return self.field("JobState") not in ("PENDING", "RUNNING", "REQUEUED", "COMPLETING", "CONFIGURING")

    def comes_back(self, restarts: int) -> None:
        """Wait until the job is started again; Slurm itself waits two minutes after a requeue, we do not."""
        self.cluster.wait(lambda: self.field("Restarts") == str(restarts), f"restart {restarts}")
        self.cluster.wait(lambda: self.field("JobState") == "PENDING", "the end of the start before")
        self.cluster("scontrol", "update", f"JobId={self.id}", "StartTime=now+2")
        self.cluster.wait(lambda: self.field("JobState") == "RUNNING", "the next start")

    def finishes(self) -> str:
        """Wait for the end, which must be a good one; returns the job's log."""
        self.cluster.wait(self.is_over, "the job's end")
        assert (self.field("JobState"), self.field("ExitCode")) == ("COMPLETED", "0:0"), self.log.read_text()
        return self.log.read_text()

    def rank(self, number: int) -> int:
        """Process id of a rank."""
        mine = {f"SLURM_JOB_ID={self.id}", f"SLURM_PROCID={number}", "SLURM_STEP_NUM_TASKS=2"}
        for pid in self.cluster.processes():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                environment = set(Path(f"/proc/{pid}/environ").read_text().split("\0"))
                if mine <= environment and "launch/train.py" in Path(f"/proc/{pid}/cmdline").read_text():
                    return pid
        raise AssertionError(f"rank {number} is not there")


@pytest.fixture
def job(cluster, config_file: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """job(*options of sbatch): submit the tiny run; what is left of it ends with the test."""
    yield lambda *options, **more: Job(cluster, config_file, tmp_path / "run", *options, **more)
    cluster("scancel", "--user=root")
    cluster.wait(lambda: not cluster.queue(), "an empty queue")


def test_preempted_by_slurm_it_comes_back_and_finishes(job, cluster, undisturbed, losses) -> None:
    run = job()
    run.reaches(12)
    cluster("scancel", "--signal=USR1", run.id)  # what --signal=USR1@300 and a preemption send
    run.comes_back(1)
    log = run.finishes()
    assert "stopped by a signal after step" in log and "the run stopped and goes back into the queue" in log
    assert "start 2 on 2 node(s)" in log and "step 40 of 40 is saved; the run is finished" in log
    assert losses(run.run_dir) == losses(undisturbed)


def test_a_killed_rank_and_a_lost_node_cost_nothing(job, cluster, undisturbed, losses) -> None:
    run = job()
    run.reaches(12)
    os.kill(run.rank(1), signal.SIGKILL)
    run.comes_back(1)
    run.reaches(25)
    cluster.kill_node("n1")  # the node of the batch script and of rank 0, which go on without it
    os.kill(run.rank(1), signal.SIGSTOP)  # so that the run does not end before Slurm misses the node
    left_behind = run.rank(0)
    run.comes_back(2)
    log = run.finishes()
    assert "the run died" in log and log.count("start 3 on 2 node(s): n[2-3]") == 1
    assert losses(run.run_dir) == losses(undisturbed)
    cluster.wait(lambda: not Path(f"/proc/{left_behind}").exists(), "the end of the rank on the lost node")
    cluster.start_node("n1")
    cluster.wait(lambda: cluster.states()["n1"] == "idle", "the node's return")


def test_the_deepspeed_command_trains_on_all_nodes_and_comes_back(job, cluster, undisturbed, losses) -> None:
    run = job("--signal=B:USR1@300", launcher="deepspeed --num_gpus 1")
    run.reaches(12)
    cluster("scancel", "--full", "--signal=USR1", run.id)  # the script and the launcher get it too
    run.comes_back(1)
    log = run.finishes()
    assert log.count("srun starts 1 process(es) on each of 2 node(s)") == 2
    assert losses(run.run_dir) == losses(undisturbed)


def test_a_cancelled_job_stays_away(job, cluster) -> None:
    run = job()
    run.reaches(2)
    cluster("scancel", run.id)
    cluster.wait(run.is_over, "the job's end")
    assert (run.field("JobState"), run.field("Restarts")) == ("CANCELLED", "0")
    assert not cluster.queue()


def test_an_error_that_would_come_again_fails_the_job(job) -> None:
    run = job(overrides=["data.train=/nowhere"])
    run.cluster.wait(run.is_over, "the job's end")
    log = run.log.read_text()
    assert (run.field("JobState"), run.field("Restarts")) == ("FAILED", "0"), log
    assert log.count("error: /nowhere") == 1 and "the error above comes again until it is put right" in log


def test_an_unfit_node_fails_the_job_by_name(job, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif os.environ.get('SLURMD_NODENAME') == 'n2': sys.modules['torch'] = None\n"
    )
    run = job(f"--export=ALL,PYTHONPATH={tmp_path}")
    run.cluster.wait(run.is_over, "the job's end")
    log = run.log.read_text()
    assert (run.field("JobState"), run.field("Restarts")) == ("FAILED", "0"), log
    assert "n2: torch:" in log and "error: preflight: n2 cannot train" in log
    assert not run.run_dir.exists()


def submit(cluster, *words: object) -> str:
    """sbatch, and wait for its end; the job's id."""
    options = ("sbatch", "--wait", "--parsable", "--gpus-per-node=0", "--cpus-per-task=1")
    return cluster(*options, *words, check=False).split()[0]


def test_each_task_looks_at_its_own_checkpoint(cluster, undisturbed: Path, tmp_path: Path) -> None:
    job = submit(
        cluster,
        *("--array=10-30:20", f"--output={tmp_path}/%a.out", EVALUATE, "python", "tools/convert_ckpt.py"),
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
    submit(cluster, *options, f"--output={log}", EVALUATE, "python", "-m", "megatv.sample", "--seed", 3)
    assert f"error: {why}" in log.read_text()
