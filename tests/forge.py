"""A launcher of runs that start at once: it has imported the trainer, and forks every rank from itself.

Reads lines of JSON from its standard input: `out` (a folder, for what comes back), `words` (a script, or `-m`
and a module, and its arguments), `environment`, `world` and `ranks` (which of the world to start, perhaps not
all, perhaps one twice), `alone` (a process that no launcher started). Into `out` go `log`, `errors` (the
standard error of one that is alone), `pids` (the ranks' at the start, JSON) and `codes` (their exit codes at
the end). Like other launchers it ends all ranks when one has failed. Imports take a rank some seconds of CPU
time, more than its training; forked ranks are processes as real as others.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
for module in (  # which every run would import on its way
    "megatv.train",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "megatron.core.tensor_parallel.layers",
    "megatv_kernels.sdpa",
    "torch.utils.flop_counter",
):
    importlib.import_module(module)

import deepspeed.ops  # noqa: E402

from megatv import train  # noqa: E402


def die_with_parent() -> None:
    """Whoever kills the tests leaves no ranks behind (prctl's PR_SET_PDEATHSIG, number 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    """Begin the runs asked for until the input ends."""
    _ = deepspeed.ops.__compatible_ops__  # every engine asks for it, and finding it out runs a compiler
    train.plot_losses = lambda folder: folder / "losses.png"  # which takes as long as all the steps
    gc.freeze()  # else a rank's first collection copies every page of what was imported
    print("ready", flush=True)
    for line in sys.stdin:
        if os.fork() == 0:
            launch(**json.loads(line))
            os._exit(0)


def launch(
    out: str,
    words: list[str],
    environment: dict[str, str],
    world: int,
    ranks: list[int],
    alone: bool = False,
) -> None:
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
            die_with_parent()
            if alone:
                run(folder / "log", folder / "errors", environment, words)
            mine = job | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            run(folder / "log", folder / "log", mine, words)
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


def run(log: Path, errors: Path, environment: dict[str, str], words: list[str]) -> None:
    """Run the script or module in this process, which ends here."""
    for number, path in ((1, log), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # which TMPDIR decides anew
    code = 0
    try:
        if words[0] == "-m":
            sys.argv, sys.path[0] = words[1:], os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
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
