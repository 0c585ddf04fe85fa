"""One environment under every launcher."""

from __future__ import annotations

import os

import pytest

from megatv.parallel.environment import prepare

TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("PROCID", "NTASKS", "LOCALID", "NNODES", "JOB_ID", "JOB_NODELIST")
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


def test_slurm_tasks_are_ranks(env: dict[str, str]) -> None:
    env.update(SLURM_PROCID="5", SLURM_NTASKS="8", SLURM_LOCALID="1", SLURM_NNODES="2", SLURM_JOB_ID="77")
    env["MASTER_ADDR"] = "node-a"
    prepare()
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"]) == (
        "5",
        "8",
        "1",
        "4",
    )
    assert env["MASTER_PORT"] == "20077"
