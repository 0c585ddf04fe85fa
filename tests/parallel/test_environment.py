"""One environment under every launcher."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from megatv.log import rank
from megatv.parallel.environment import prepare
from megatv.parallel.slurm import expand_counts

TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = (
    *("PROCID", "NTASKS", "LOCALID", "NODEID", "JOB_ID"),
    *("STEP_ID", "STEP_NUM_TASKS", "STEP_TASKS_PER_NODE", "STEP_NODELIST"),
)
NAMES = [*TORCH, *(f"SLURM_{name}" for name in SLURM), "LOCAL_SIZE", "OMP_NUM_THREADS", "DS_ACCELERATOR"]


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment that nobody has prepared; put back afterwards."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # remembers the value to put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return os.environ  # type: ignore[return-value]


def test_no_launcher_is_a_world_of_one(env: dict[str, str]) -> None:
    prepare()
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"]) == (
        "0",
        "1",
        "0",
        "1",
    )


def test_deepspeed_launcher_sets_only_local_size(env: dict[str, str]) -> None:
    env.update(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_SIZE="4", MASTER_PORT="1")
    prepare()
    assert env["LOCAL_WORLD_SIZE"] == "4"


def task(number: int, **changed: str) -> dict[str, str]:
    """What srun tells one of 7 tasks on two nodes of four and three."""
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "7",
        "SLURM_STEP_TASKS_PER_NODE": "4,3",
        "SLURM_STEP_NODELIST": "node-[a-b]",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number % 4),
        "SLURM_NODEID": str(number // 4),
    } | changed


def test_slurm_tasks_are_ranks(env: dict[str, str]) -> None:
    env.update(task(5), MASTER_ADDR="node-a")
    prepare()
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"]) == (
        "5",
        "7",
        "1",
        "3",
    )
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("node-a", "20077")


@pytest.mark.parametrize("step", [None, "4294967291", "4294967290"])
def test_a_batch_script_is_no_rank(env: dict[str, str], step: str | None) -> None:
    """It and an interactive shell carry SLURM_PROCID=0 and the allocation's number of tasks."""
    env.update(SLURM_PROCID="0", SLURM_NTASKS="8", SLURM_LOCALID="0", SLURM_JOB_ID="77")
    if step is not None:
        env["SLURM_STEP_ID"] = step
    prepare()
    assert (env["RANK"], env["WORLD_SIZE"]) == ("0", "1")


def test_counts_by_node() -> None:
    assert expand_counts("8(x2),4") == [8, 8, 4]
    assert expand_counts("1") == [1]


@pytest.fixture
def gpus(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """gpus(n): torch sees n GPUs."""

    def show(count: int) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.setattr("torch.cuda.set_device", lambda device: None)

    return show


@pytest.mark.parametrize(("visible", "index"), [(4, 2), (1, 0)])
def test_each_task_takes_its_gpu(
    env: dict[str, str], gpus: Callable[[int], None], visible: int, index: int
) -> None:
    """Slurm shows a task all GPUs of its node, or with --gpus-per-task=1 its own one only."""
    env.update(task(2), MASTER_ADDR="node-a")
    gpus(visible)
    assert prepare() == torch.device("cuda", index)


def test_more_processes_than_gpus_are_refused(env: dict[str, str], gpus: Callable[[int], None]) -> None:
    env.update(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", LOCAL_SIZE="2", MASTER_PORT="1")
    gpus(1)
    with pytest.raises(ValueError, match=r"has 1 GPU\(s\) for 2 processes"):
        prepare()


def test_what_is_set_to_nothing_is_not_set(env: dict[str, str]) -> None:
    """As `RANK= python launch/train.py` has it."""
    env.update(RANK="", WORLD_SIZE="", LOCAL_RANK="", MASTER_ADDR="", MASTER_PORT="", LOCAL_WORLD_SIZE="")
    prepare()
    assert (env["RANK"], env["WORLD_SIZE"], env["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")


def test_what_another_launcher_left_is_ignored_and_told(
    env: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    env.update(LOCAL_RANK="3", LOCAL_SIZE="8", MASTER_ADDR="node-17", MASTER_PORT="29500")
    prepare()
    assert (env["LOCAL_RANK"], env["LOCAL_SIZE"], env["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
    told = capsys.readouterr().out
    assert "LOCAL_RANK=3, LOCAL_SIZE=8, MASTER_ADDR=node-17, MASTER_PORT=29500 of another are ignored" in told


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4 and RANK is not set, so no launcher started this process"),
        ({"RANK": "zero"}, "RANK is 'zero': a launcher sets a whole number from 0"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1': a launcher sets"),
        ({"RANK": "\u0663", "WORLD_SIZE": "8"}, "a launcher sets a whole number"),  # an Arabic three
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is '0': a launcher sets a whole number from 1"),
        ({"RANK": "0", "WORLD_SIZE": "1e3"}, "WORLD_SIZE is '1e3'"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "70000"},
            "MASTER_PORT is '70000': .* from 0 to 65535",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2"}, "LOCAL_RANK is 2 and LOCAL_WORLD_SIZE 2"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2: ranks are 0 to 1"),
        ({"SLURM_STEP_ID": "0"}, "SLURM_STEP_NUM_TASKS is not set.*unset SLURM_STEP_ID"),
        ({"SLURM_STEP_ID": "x"}, "SLURM_STEP_ID is 'x', and Slurm sets a whole number"),
        (task(5, SLURM_PROCID="five", MASTER_ADDR="a"), "SLURM_PROCID is 'five'"),
        (task(5, SLURM_NODEID="2", MASTER_ADDR="a"), "SLURM_NODEID is 2 in a step of 2 node"),
        (
            task(5, PATH="/nowhere"),
            "`scontrol show hostnames node-.a-b.` does not say where .*: set MASTER_ADDR",
        ),
    ],
)
def test_what_no_launcher_says_is_refused_at_once(
    env: dict[str, str], said: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=sentence):
        prepare()


@pytest.mark.parametrize("said", ["", "x", "-1", "1e3"])
def test_who_says_no_number_speaks(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the sentence about it would be a traceback, or nobody's."""
    monkeypatch.setenv("RANK", said)
    assert rank() == 0
