"""A launcher of runs that start at once: it has imported the trainer, and forks every rank from itself.

Reads lines of JSON from its standard input: `out` (a folder, for what comes back), `words` (a script and its
arguments), `environment`, `world` and `ranks` (which of the world to start, perhaps not all, perhaps one
twice). Into `out` go `log`, `pids` (the ranks' at the start, JSON) and `codes` (their exit codes at the end).
Like other launchers it ends all ranks when one has failed. Imports take a rank some seconds of CPU time, more
than its training; forked ranks are processes as real as others.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
for module in (  # which every run would import on its way
    "megatv.train",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "matplotlib.pyplot",
    "megatron.core.tensor_parallel.layers",
    "torch.utils.flop_counter",
):
    importlib.import_module(module)


def die_with_parent() -> None:
    """Whoever kills the tests leaves no ranks behind (prctl's PR_SET_PDEATHSIG, number 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    """Begin the runs asked for until the input ends."""
    gc.freeze()  # else a rank's first collection copies every page of what was imported
    print("ready", flush=True)
    for line in sys.stdin:
        if os.fork() == 0:
            launch(**json.loads(line))
            os._exit(0)


def launch(out: str, words: list[str], environment: dict[str, str], world: int, ranks: list[int]) -> None:
    """Start the ranks, end them when one fails, and tell how they ended."""
    die_with_parent()
    os.setsid()
    folder = Path(out)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    job = environment | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    pids = []
    for rank in ranks:
        pids.append(os.fork())
        if pids[-1] == 0:
            be_rank(folder / "log", job | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, words)
    _write(folder / "pids", pids)
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
            if codes[pid] and deadline == float("inf"):
                _kill(pids, codes, signal.SIGTERM)
                deadline = time.monotonic() + 10
        elif time.monotonic() > deadline:
            _kill(pids, codes, signal.SIGKILL)
        time.sleep(0.01)
    _write(folder / "codes", [codes[pid] for pid in pids])


def be_rank(log: Path, environment: dict[str, str], words: list[str]) -> None:
    """Run the script in this process, which ends here."""
    die_with_parent()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(environment)
    sys.argv = words
    code = 0
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _kill(pids: list[int], ended: dict[int, int], number: int) -> None:
    for pid in pids:
        if pid not in ended:
            os.kill(pid, number)


def _write(path: Path, content: list[int]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.rename(path)


if __name__ == "__main__":
    main()
