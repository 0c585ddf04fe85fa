"""Where the processes of a run meet, and what each of them says when not all of them come."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from megatv.log import AloneError
from megatv.parallel.environment import ALONE
from megatv.untrusted import printable

WAIT = timedelta(minutes=10)
"""From the first process to the last: imports from a slow shared disk, a node that boots late."""
QUIET = timedelta(seconds=15)
"""After so long, whoever waits says for whom."""


def meet() -> tuple[dist.Store, int, int]:
    """The store of a run that all processes have joined, this one's rank and the world's size.

    Raises AloneError on every process that is there when one is missing after `WAIT`, came twice, or believes
    in another world. torch's own rendezvous would wait longer and name nobody.
    """
    env = os.environ
    rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
    address = f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}"
    if not 0 <= rank < world:
        raise AloneError(
            f"RANK is {rank} and WORLD_SIZE {world}: ranks are 0 to {world - 1}; correct the launcher"
        )
    told = threading.Timer(QUIET.total_seconds(), _tell, (f"rank {rank} waits for rank 0 at {address}",))
    hosted = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun keeps the store in its own process
    try:
        told.start()
        store = _store(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=rank == 0 and not hosted)
        store = dist.PrefixStore(f"megatv/{env.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        if (first := int(store.compare_set("world", "", str(world)))) != world:
            raise AloneError(
                f"rank {rank}: WORLD_SIZE is {world} here, {first} in another process; correct the launcher"
            )
        told.cancel()
        if store.add(f"rank {rank}", 1) > 1:
            raise AloneError(f"rank {rank}: two processes at {address} have this RANK; correct the launcher")
        _wait_for_all(store, rank, world, address)
    except (dist.DistError, OSError) as error:
        raise AloneError(_unreachable(rank, address, error)) from None
    finally:
        told.cancel()
    return store, rank, world


def _tell(what: str) -> None:
    """One line from a process of any rank, once: a variable that was left over looks like a slow start."""
    seconds = f"{WAIT.total_seconds():.0f} s"
    line = f"{what}, for {seconds} at most; if no launcher was meant to start others, end this and {ALONE}"
    print(printable(line, keep=""), flush=True)


def _store(host: str, port: int, is_master: bool) -> dist.Store:
    """The store at an address. It does not authenticate, so its master listens on 127.0.0.1 alone when all
    processes are on one machine; by default it would listen on all interfaces.
    """
    listener = None
    if is_master and host in ("127.0.0.1", "localhost"):
        with socket.create_server(("127.0.0.1", port), backlog=2048) as server:
            port, listener = server.getsockname()[1], server.detach()
    return dist.TCPStore(
        host, port, is_master=is_master, timeout=WAIT, wait_for_workers=False, master_listen_fd=listener
    )


def _wait_for_all(store: dist.Store, rank: int, world: int, address: str) -> None:
    keys = [f"rank {other}" for other in range(world)]
    try:
        with suppress(dist.DistStoreError):
            store.wait(keys, min(QUIET, WAIT))
            return
        if rank == 0:
            missing, shown = _missing(store, keys)
            _tell(f"rank 0 waits at {address} for {len(missing)} of {world} processes: {shown}")
        store.wait(keys, max(WAIT - QUIET, timedelta(seconds=1)))
    except dist.DistStoreError:
        missing, shown = _missing(store, keys)
        raise AloneError(
            f"rank {rank}: {len(missing)} of {world} processes did not come to {address} within "
            f"{WAIT.total_seconds():.0f} s: {shown}; see why they did not start, or correct WORLD_SIZE"
        ) from None


def _missing(store: dist.Store, keys: list[str]) -> tuple[list[str], str]:
    """Who has not come, and the first of them as a text."""
    missing = [key for key in keys if not store.check([key])]
    return missing, ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")


def _unreachable(rank: int, address: str, error: Exception) -> str:
    why = str(error).partition("\n")[0]
    if rank == 0:
        return f"rank 0: cannot listen at {address} ({why}); choose another MASTER_PORT, or end who has it"
    return f"rank {rank}: rank 0 cannot be reached at {address} ({why}); see why it did not start, or left"
