"""The launcher's environment, made the same under `deepspeed`, `torchrun`, `srun` and none at all."""

from __future__ import annotations

import os
import subprocess

import torch


def prepare() -> torch.device:
    """Complete RANK & co., choose this process's device and its share of the CPU's threads.

    Call it before DeepSpeed is imported, which reads the accelerator from the environment.
    """
    env = os.environ
    if "RANK" not in env and "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", 1)) > 1:
        _from_slurm()
    env.setdefault("RANK", "0")
    env.setdefault("WORLD_SIZE", "1")
    env.setdefault("LOCAL_RANK", "0")
    # the deepspeed launcher says LOCAL_SIZE; everyone else reads LOCAL_WORLD_SIZE
    env.setdefault("LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE", env["WORLD_SIZE"]))
    env.setdefault("LOCAL_SIZE", env["LOCAL_WORLD_SIZE"])
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in env:
        env["MASTER_PORT"] = "29500" if int(env["WORLD_SIZE"]) > 1 else "0"
    if torch.cuda.is_available():
        device = torch.device("cuda", int(env["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        return device
    env.setdefault("DS_ACCELERATOR", "cpu")
    if "OMP_NUM_THREADS" not in env:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(env["LOCAL_WORLD_SIZE"])))
    return torch.device("cpu")


def _from_slurm() -> None:
    """One task is one rank (`srun python launch/train.py`); the first node is the meeting point."""
    env = os.environ
    env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_NTASKS"]
    env["LOCAL_RANK"] = env["SLURM_LOCALID"]
    env["LOCAL_WORLD_SIZE"] = str(int(env["SLURM_NTASKS"]) // int(env["SLURM_NNODES"]))
    if "MASTER_ADDR" not in env:
        hosts = ["scontrol", "show", "hostnames", env["SLURM_JOB_NODELIST"]]
        names = subprocess.run(hosts, check=True, capture_output=True, text=True).stdout
        env["MASTER_ADDR"] = names.split()[0]
    # the same port for every task of a job, another one for a neighbour's
    env.setdefault("MASTER_PORT", str(20000 + int(env["SLURM_JOB_ID"]) % 20000))
