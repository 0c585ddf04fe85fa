"""What becomes of the `deepspeed` command in an allocation, without a Slurm (tests/slurm has one)."""

from __future__ import annotations

import os
import sys

import pytest

from megatv.parallel.slurm import give_way_to_srun

BATCH = {  # of a job on two nodes, as a process of `deepspeed --num_gpus 4` finds it
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_ON_NODE": "64",
    "SLURM_JOB_GPUS": "4,5,6,7",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    "RANK": "0",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "0",
    "LOCAL_SIZE": "4",
    "CROSS_RANK": "0",
    "CROSS_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


class Replaced(Exception):
    """The process has become another program."""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch):
    """start(KEY=value or None): the (command, environment) that the process becomes, or None."""

    def run(srun: str | None = "/usr/bin/srun", **changed: str | None):
        def become(file: str, words: list[str], env: dict[str, str]) -> None:
            raise Replaced(words, env)

        environment = {k: v for k, v in (BATCH | changed).items() if v is not None}
        monkeypatch.setattr(os, "environ", environment)
        monkeypatch.setattr(os, "execvpe", become)
        monkeypatch.setattr("shutil.which", lambda name: srun)
        monkeypatch.setattr(sys, "argv", ["launch/train.py", "--local_rank=0", "--config", "run.yaml"])
        try:
            give_way_to_srun()
        except Replaced as replaced:
            return replaced.args
        return None

    return run


def test_srun_starts_as_many_tasks_on_every_node(start) -> None:
    words, env = start()
    assert words[0] == "srun"
    assert {"--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=16"} <= set(words)
    assert words[-4:] == [sys.executable, "launch/train.py", "--config", "run.yaml"]
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES"} & env.keys()


def test_the_launchers_other_processes_leave(start) -> None:
    with pytest.raises(SystemExit) as left:
        start(LOCAL_RANK="1", RANK="1")
    assert left.value.code == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"SLURM_JOB_NUM_NODES": None},  # no allocation
        {"CROSS_SIZE": None},  # torchrun, srun or nothing
        {"CROSS_SIZE": "2"},  # the launcher with a hostfile
        {"SLURM_STEP_ID": "0"},  # srun deepspeed
        {"SLURM_JOB_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "2,3,6,7"},  # --include on one node
        {"SLURM_JOB_NUM_NODES": "1", "srun": None},
    ],
)
def test_else_it_stays_as_it_is(start, changed: dict[str, str | None]) -> None:
    assert start(**changed) is None


def test_gpus_that_slurm_itself_chose_are_no_choice(start) -> None:
    assert start(CUDA_VISIBLE_DEVICES="4,5,6,7") is not None


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"CUDA_VISIBLE_DEVICES": "2,3,6,7"}, "--include chose GPUs 2,3,6,7"), ({"srun": None}, "not on PATH")],
)
def test_other_nodes_out_of_reach_are_told_of(start, changed: dict[str, str | None], why: str) -> None:
    with pytest.raises(ValueError, match=f"has 2 nodes.*{why}"):
        start(**changed)
