"""A process that has imported everything and forks ranks on request, which then start in a moment.

    stdin    a line of JSON a run: {"processes": n, "argv": [script, ...], "output": file}
    stdout   a line of JSON for it: the exit codes of its ranks

Importing torch, DeepSpeed and Megatron takes a rank some seconds of CPU time; a grid of eight takes a minute
to start on two cores, and its training a second. Forked ranks are processes as real as others.
"""

import gc
import json
import os
import runpy
import socket
import sys
import traceback

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

import megatron.core.parallel_state
import megatron.core.tensor_parallel  # noqa: F401

import megatv.train  # noqa: F401


def main() -> None:
    """Serve until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    gc.collect()
    gc.freeze()  # ranks need not search the libraries for garbage
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        children = [spawn(job, rank, port) for rank in range(job["processes"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), file=replies, flush=True)


def spawn(job: dict, rank: int, port: int) -> int:
    """Fork one rank; returns its process id, and in the child never."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(job["output"], "ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        world = str(job["processes"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world}
        os.environ |= {"LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.argv = job["argv"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
