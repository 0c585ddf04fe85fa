"""Slurm as the launcher: one task of `srun` is one rank.

Only tasks of a step that `srun` started are ranks. A batch script and an interactive shell carry many of the
same variables (SLURM_PROCID=0, SLURM_NTASKS=16), and `python launch/train.py` there is a run of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, MutableMapping

FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Ids from here on are the batch script, an interactive shell or the like (slurm.h: SLURM_BATCH_SCRIPT)."""
REMEDY = "if srun did not start this process, they are left over: `unset SLURM_STEP_ID`"
LAUNCHERS_OWN = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"),
)
"""What the `deepspeed` launcher sets and ranks of srun must not inherit."""


def in_step(env: Mapping[str, str]) -> bool:
    """Whether `srun` started this process as one of several tasks; ValueError for a part of its variables."""
    return _in_any_step(env) and _number(env, "SLURM_STEP_NUM_TASKS") > 1


def set_ranks(env: MutableMapping[str, str]) -> None:
    """RANK & co. from the step's variables; its first node is the meeting point unless MASTER_ADDR is set."""
    tasks, node = expand_counts(_text(env, "SLURM_STEP_TASKS_PER_NODE")), _number(env, "SLURM_NODEID")
    if node >= len(tasks):
        raise ValueError(f"SLURM_NODEID is {node} in a step of {len(tasks)} node(s); {REMEDY}")
    ranks = {"RANK": "PROCID", "WORLD_SIZE": "STEP_NUM_TASKS", "LOCAL_RANK": "LOCALID"}
    found = {ours: str(_number(env, f"SLURM_{theirs}")) for ours, theirs in ranks.items()}
    if "MASTER_ADDR" not in env:
        hosts = _scontrol("hostnames", _text(env, "SLURM_STEP_NODELIST")).split()
        found["MASTER_ADDR"] = _address(hosts[0] if hosts else "")
    if "MASTER_PORT" not in env:
        # the same port for every task of a job, another one for a neighbour's; below the ephemeral ports
        found["MASTER_PORT"] = str(20000 + _number(env, "SLURM_JOB_ID") % 12000)
    env.update(found, LOCAL_WORLD_SIZE=str(tasks[node]))


def expand_counts(text: str) -> list[int]:
    """Slurm's counts by node: "8(x2),4" is [8, 8, 4]."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in parts for _ in range(int(times or 1))]


def give_way_to_srun() -> None:
    """In an allocation, let srun start the ranks that the `deepspeed` launcher was asked for, on every node.

    The launcher reads nothing of Slurm: it starts processes on the node where it is and no other. Nor does
    a preemption reach those, as Slurm signals steps, or if it does, the launcher dies of it and leaves its
    ranks behind. So its first process becomes srun, with as many tasks a node, and the others leave. On one
    node, GPUs that --include chose stay with the launcher. ValueError where srun is needed and cannot be had.
    """
    env = os.environ
    if env.get("CROSS_SIZE") != "1" or "SLURM_JOB_NUM_NODES" not in env or _in_any_step(env):
        return
    nodes, here = _number(env, "SLURM_JOB_NUM_NODES"), _number(env, "LOCAL_SIZE")
    devices = env.get("CUDA_VISIBLE_DEVICES", "")
    chosen = devices not in ("", ",".join(map(str, range(here))), env.get("SLURM_JOB_GPUS"))
    if chosen or shutil.which("srun") is None:
        if nodes == 1:
            return
        why = f"--include chose GPUs {devices}" if chosen else "srun is not on PATH here"
        raise ValueError(
            f"this allocation has {nodes} nodes, of which the deepspeed launcher knows one, and {why}: start "
            "one task a GPU with srun --kill-on-bad-exit=1 python launch/train.py, or allocate one node"
        )
    if _number(env, "LOCAL_RANK") > 0:
        sys.exit(0)
    print(f"[slurm] srun starts {here} process(es) on each of {nodes} node(s)", flush=True)
    cpus = max(1, _number({"SLURM_CPUS_ON_NODE": "1", **env}, "SLURM_CPUS_ON_NODE") // here)
    command = [
        *("srun", "--kill-on-bad-exit=1", f"--nodes={nodes}", f"--ntasks={nodes * here}"),
        *(f"--ntasks-per-node={here}", f"--cpus-per-task={cpus}", "--distribution=block"),
        *(sys.executable, *(word for word in sys.argv if not word.startswith("--local_rank"))),
    ]
    os.execvpe("srun", command, {k: v for k, v in env.items() if k not in LAUNCHERS_OWN})


def _in_any_step(env: Mapping[str, str]) -> bool:
    return bool(env.get("SLURM_STEP_ID")) and _number(env, "SLURM_STEP_ID") < FIRST_SPECIAL_STEP


def _text(env: Mapping[str, str], name: str) -> str:
    if not (text := env.get(name, "")):
        raise ValueError(f"{name} is not set, which Slurm sets beside the others of a step; {REMEDY}")
    return text


def _number(env: Mapping[str, str], name: str) -> int:
    text = _text(env, name)
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise ValueError(f"{name} is {text[:40]!r}, and Slurm sets a whole number; {REMEDY}")
    return int(text)


def _address(node: str) -> str:
    """The node's name where it resolves, else the address by which Slurm itself reaches the node."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        match = re.search(r"NodeAddr=(\S+)", _scontrol("node", node))
        return match[1] if match else node
    return node


def _scontrol(*words: str) -> str:
    command = ["scontrol", "show", *words]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(
            f"`{' '.join(command)}` does not say where the step's nodes are ({error}): set MASTER_ADDR to "
            f"the first of them; {REMEDY}"
        ) from None
