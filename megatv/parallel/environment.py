"""The launcher's environment, made the same under `deepspeed`, `torchrun`, `srun` and none at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import torch

from megatv.parallel import slurm


def prepare() -> torch.device:
    """Complete RANK & co., choose this process's device and its share of the CPU's threads.

    Call it before DeepSpeed is imported, which reads the accelerator from the environment.
    """
    env = os.environ
    if "RANK" not in env and slurm.in_step(env):
        slurm.set_ranks(env)
    env.setdefault("RANK", "0")
    env.setdefault("WORLD_SIZE", "1")
    env.setdefault("LOCAL_RANK", "0")
    # the deepspeed launcher says LOCAL_SIZE; everyone else reads LOCAL_WORLD_SIZE
    env.setdefault("LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE", env["WORLD_SIZE"]))
    env.setdefault("LOCAL_SIZE", env["LOCAL_WORLD_SIZE"])
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in env:
        env["MASTER_PORT"] = "29500" if int(env["WORLD_SIZE"]) > 1 else "0"
    if env["LOCAL_WORLD_SIZE"] == env["WORLD_SIZE"]:  # all on this machine: gloo need not listen to others
        for loopback in {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}:
            env.setdefault("GLOO_SOCKET_IFNAME", loopback)
    if torch.cuda.is_available():
        device = _gpu(env)
        torch.cuda.set_device(device)
        return device
    env.setdefault("DS_ACCELERATOR", "cpu")
    if "OMP_NUM_THREADS" not in env:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(env["LOCAL_WORLD_SIZE"])))
    return torch.device("cpu")


def _gpu(env: Mapping[str, str]) -> torch.device:
    """This rank's GPU: the LOCAL_RANK-th, or the only one that Slurm lets a task see (--gpus-per-task=1)."""
    visible, rank = torch.cuda.device_count(), int(env["LOCAL_RANK"])
    if visible == 1 and slurm.in_step(env):
        rank = 0
    if rank >= visible:
        raise ValueError(
            f"{socket.gethostname()} has {visible} GPU(s) for {env['LOCAL_WORLD_SIZE']} processes: "
            "start one a GPU"
        )
    return torch.device("cuda", rank)
