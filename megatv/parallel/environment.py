"""The launcher's environment, made the same under `deepspeed`, `torchrun`, `srun` and none at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING

from megatv.log import AloneError, say
from megatv.parallel import slurm

if TYPE_CHECKING:
    import torch

NUMBERS = {
    **dict.fromkeys(("RANK", "LOCAL_RANK"), (0, 10**6)),
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"), (1, 10**6)),
    "MASTER_PORT": (0, 65535),
}
"""What a launcher says in numbers: least and most of each."""
ALONE = "`unset RANK WORLD_SIZE` to run one process alone"
"""What to do where no launcher was meant."""


def complete(env: MutableMapping[str, str]) -> None:
    """Complete RANK & co. of `env`, without torch: whoever knows its rank can tell of a bad config at once.

    Raises ValueError for what no launcher says, such as numbers that do not go together.
    """
    for name in (*NUMBERS, "MASTER_ADDR"):
        if env.get(name) == "":  # `RANK= python ...` says nothing
            del env[name]
    if "RANK" not in env and slurm.in_step(env):
        slurm.set_ranks(env)
    if "RANK" not in env:
        _forget_launcher(env)
    env.setdefault("RANK", "0")
    env.setdefault("WORLD_SIZE", "1")
    env.setdefault("LOCAL_RANK", "0")
    # the deepspeed launcher says LOCAL_SIZE; everyone else reads LOCAL_WORLD_SIZE
    env.setdefault("LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE", env["WORLD_SIZE"]))
    env.setdefault("LOCAL_SIZE", env["LOCAL_WORLD_SIZE"])
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    env.setdefault("MASTER_PORT", "29500" if env["WORLD_SIZE"] != "1" else "0")
    _check(env)
    if env["LOCAL_WORLD_SIZE"] == env["WORLD_SIZE"]:  # all on this machine: gloo need not listen to others
        for loopback in {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}:
            env.setdefault("GLOO_SOCKET_IFNAME", loopback)


def prepare() -> torch.device:
    """`complete` the environment, choose this process's device and its share of the CPU's threads.

    Call it before DeepSpeed is imported, which reads the accelerator from the environment. Raises ValueError
    as `complete` does.
    """
    env = os.environ
    complete(env)
    import torch  # which takes seconds

    if torch.cuda.is_available():
        device = _gpu(env)
        torch.cuda.set_device(device)
        return device
    env.setdefault("DS_ACCELERATOR", "cpu")
    if "OMP_NUM_THREADS" not in env:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(env["LOCAL_WORLD_SIZE"])))
    return torch.device("cpu")


def _forget_launcher(env: MutableMapping[str, str]) -> None:
    """Where nobody says RANK, no launcher started this process: what else is set of one was left over."""
    if env.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"WORLD_SIZE is {env['WORLD_SIZE'][:40]} and RANK is not set, so no launcher started this "
            "process: `unset WORLD_SIZE` to run it alone, or start all with torchrun, deepspeed or srun"
        )
    names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if left := [f"{name}={env.pop(name)[:40]}" for name in names if name in env]:
        say(f"no launcher started this process, as RANK is not set: {', '.join(left)} of another are ignored")


def _check(env: Mapping[str, str]) -> None:
    """Raise AloneError for what no launcher says: rank 0 may not know of it."""
    numbers = {}
    for name, (least, most) in NUMBERS.items():
        text = env[name]
        if not (text.isascii() and text.isdecimal() and least <= int(text[:20]) <= most):
            raise AloneError(
                f"{name} is {text[:40]!r}: a launcher sets a whole number from {least} to {most}; correct "
                f"it, or {ALONE}"
            )
        numbers[name] = int(text)
    for one, of in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if numbers[one] >= numbers[of]:
            raise AloneError(
                f"{one} is {numbers[one]} and {of} {numbers[of]}: ranks are 0 to {numbers[of] - 1}; correct "
                f"the launcher, or {ALONE}"
            )


def _gpu(env: Mapping[str, str]) -> torch.device:
    """This rank's GPU: the LOCAL_RANK-th, or the only one that Slurm lets a task see (--gpus-per-task=1)."""
    import torch

    visible, rank = torch.cuda.device_count(), int(env["LOCAL_RANK"])
    if visible == 1 and slurm.in_step(env):
        rank = 0
    if rank >= visible:
        raise ValueError(
            f"{socket.gethostname()} has {visible} GPU(s) for {env['LOCAL_WORLD_SIZE']} processes: "
            "start one a GPU"
        )
    return torch.device("cuda", rank)
