"""A real Slurm on this one machine: controller, three nodes and munge from Debian's packages, no systemd.

Nothing outside one temporary folder is written. The daemons are children of pytest and die with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NODES = ("n1", "n2", "n3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "setpriv")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,defer_batch
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
SlurmdTimeout=6
MessageTimeout=60
UnkillableStepTimeout=60
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class Cluster:
    """The daemons, and Slurm's commands as a person at this cluster types them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Bring everything up and wait until all nodes are idle."""
        folder = self.folder
        for name in ("state", "log", *(f"spool/{node}" for node in NODES)):
            (folder / name).mkdir(parents=True)
        port = _free_ports(len(NODES) + 1)
        (folder / "slurm.conf").write_text(
            CONF.format(
                folder=folder,
                host=socket.gethostname().partition(".")[0],
                port=port,
                nodes=f"n[1-{len(NODES)}]",
                first=port + 1,
                last=port + len(NODES),
            )
        )
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        self._daemon(
            "munged",
            *("--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock"),
            *(f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed"),
            f"--log-file={folder}/log/munged.log",
        )
        self.wait(lambda: (folder / "munge.sock").exists(), "munged's socket")
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self.wait(lambda: self.states() == {node: "idle" for node in NODES}, "idle nodes")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._daemon(node, "-D", "-N", node, program="slurmd")

    def kill_node(self, node: str) -> None:
        """kill -9 the daemon of a node; what runs there goes on."""
        self.daemons[node].kill()
        self.daemons[node].wait()

    def stop(self) -> None:
        """End all jobs, then all daemons, then what a lost node left running."""
        self("scancel", "--user=root", "--full", "--signal=KILL", check=False)
        self("scancel", "--user=root", check=False)
        deadline = time.monotonic() + 20
        while self.queue() and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def __call__(self, *words: object, check: bool = True) -> str:
        """Run a command against the cluster from the repository's root; returns what it printed."""
        line = [str(word) for word in words]
        done = subprocess.run(
            line, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300
        )
        if check:
            assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout + done.stderr

    def states(self) -> dict[str, str]:
        """State of each node."""
        lines = self("sinfo", "--Node", "--noheader", "--format=%N %t", check=False).splitlines()
        return dict(line.split() for line in lines if len(line.split()) == 2)

    def queue(self) -> list[str]:
        """Jobs that are not over, one line each."""
        return self("squeue", "--noheader", check=False).splitlines()

    def processes(self) -> list[int]:
        """Everything that runs in this cluster's name: daemons, steps and ranks."""
        mark, found = f"SLURM_CONF={self.folder}/".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes() and int(path.parent.name) != os.getpid():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
        """Until `condition()`, or fail with the daemons' last words."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = [f"{p.name}: {p.read_text()[-1500:]}" for p in (self.folder / "log").iterdir()]
                pytest.fail(f"waited {seconds} s for {what}\n" + "\n".join(logs))
            time.sleep(0.1)

    def _daemon(self, name: str, *arguments: str, program: str | None = None) -> None:
        with (self.folder / "log" / f"{name}.log").open("a") as log:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", program or name, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def _free_ports(count: int) -> int:
    """First of `count` neighbouring ports that nobody uses."""
    for port in range(17000 + os.getpid() % 500 * 20, 32000, 20):
        try:
            for number in range(port, port + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The running cluster; its nodes are n1, n2 and n3, of two CPUs each."""
    if os.geteuid() != 0:
        pytest.skip("slurmd wants to be root")
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        pytest.skip(f"no {', '.join(absent)}; on Debian: bash .ci/debian.sh")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps on two nodes that nothing happens to, started by plain srun."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    cluster(
        *("srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "python", "launch/train.py"),
        *("--config", config_file, f"run.dir={run_dir}", "run.steps=40", "checkpoint.every=10"),
    )
    return run_dir
