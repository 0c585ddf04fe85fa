"""Where a run of one machine listens: torch's store and gloo ask nobody who they are."""

import os
import re
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from megatv.log import AloneError
from megatv.parallel import meeting

RANK = """
import os
from pathlib import Path
from megatv.parallel.environment import prepare
from megatv.parallel.mesh import initialize_distributed
initialize_distributed(prepare())
import torch.distributed as dist
dist.barrier()
mine = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
for table in ("/proc/net/tcp", "/proc/net/tcp6"):
    for line in Path(table).read_text().splitlines()[1:]:
        _, address, _, state, *_, inode = line.split()[:10]
        if state == "0A" and f"socket:[{inode}]" in mine:
            print(address.partition(":")[0])
dist.barrier()
"""
LOOPBACK = "0100007F"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc/net/tcp")
@pytest.mark.parametrize(("world", "host"), [(1, None), (2, "127.0.0.1"), (2, "localhost")])
def test_a_run_of_one_machine_listens_on_loopback_alone(world, host):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GLOO_", "MASTER_"))}
    env |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "CUDA_VISIBLE_DEVICES": ""}
    if host:
        env |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    listening = [rank.communicate(timeout=120)[0].split() for rank in ranks]
    assert [rank.returncode for rank in ranks] == world * [0]
    assert len(listening[0]) >= 1 + (world > 1)  # the store, and gloo
    assert {address for some in listening for address in some} == {LOOPBACK}


def test_gloo_of_several_machines_is_left_alone(monkeypatch):
    from megatv.parallel import environment

    monkeypatch.setattr(
        os, "environ", {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_SIZE": "1", "MASTER_ADDR": "a"}
    )
    environment.prepare()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


@pytest.mark.parametrize(
    ("rank", "sentence"),
    [
        ("0", r"rank 0 waits at 127\.0\.0\.1:\d+ for 2 of 3 processes: rank 1, rank 2, for 2 s at most"),
        ("1", r"rank 1 waits for rank 0 at 127\.0\.0\.1:\d+, for 2 s at most"),
    ],
)
def test_whoever_waits_says_for_whom(rank, sentence, monkeypatch, capfd):
    """Variables of a launcher that were left over make one process wait for others that nobody starts."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    said = {"RANK": rank, "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(meeting, "QUIET", timedelta(seconds=0.5))
    monkeypatch.setattr(meeting, "WAIT", timedelta(seconds=2))
    with pytest.raises(AloneError, match=f"rank {rank}: .*(did not come|cannot be reached)"):
        meeting.meet()
    told = capfd.readouterr().out
    assert len(re.findall(sentence, told)) == 1 and "`unset RANK WORLD_SIZE` to run one process alone" in told
