"""What this machine has for megatv, what it lacks, what that costs, and the line that installs it.

    python tools/doctor.py [--json]
    python tools/doctor.py --node [--gpus 8]     in a cluster: is this node fit to train? One line a fault

Needs nothing but Python, so that it runs before anything is installed. Libraries are really imported, which
finds the broken ones too. Exit code 0 when a run on CPU can start (with --node: on this node, with that many
GPUs), 1 when something it needs is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETUP = "source launch/setup.sh"
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report. state: `ok`, `missing` (a run on CPU needs it) or `absent` (it does not)."""

    group: str
    name: str
    state: str
    found: str
    cost: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Library:
    """A library by its distribution name, the module whose import proves it, and what its absence costs."""

    name: str
    module: str
    cost: str
    fix: str = SETUP


NEEDED = [
    Library("torch", "torch", "nothing runs"),
    Library("numpy", "numpy", "nothing runs"),
    Library("pyyaml", "yaml", "no config can be read"),
    Library("deepspeed", "deepspeed", "no training: it is the launcher and the optimizer's sharding"),
    Library("megatron-core", "megatron.core", "no tensor parallelism"),
    Library("mosaicml-streaming", "megatv.data.shards", "shards can be neither written nor read"),
    Library("tiktoken", "tiktoken", "no text"),
    Library("av", "av", "no video can be read or written"),
    Library("safetensors", "safetensors", "no weights can be read or written"),
    Library("transformers", "transformers", "mosaicml-streaming does not import"),
    Library("pillow", "PIL", "no pictures"),
    Library("matplotlib", "matplotlib", "no loss curves, no contact sheets"),
    Library("fastapi", "fastapi", "no studio, no studies with people"),
    Library("uvicorn", "uvicorn", "no studio, no studies with people"),
    Library("websockets", "websockets", "no studio"),
    Library("tqdm", "tqdm", "no progress bars, which every tool imports"),
    Library("megatv", "megatv_kernels", "the package itself is not installed"),
]
LOCKED = "pip install --no-deps --require-hashes --only-binary :all: -r launch/lock/"
DATA = f"{LOCKED}data.txt"
OPTIONAL = [
    Library("wandb", "wandb", "log.wandb cannot be set"),
    Library(
        "diffusers",
        "diffusers",
        "codec.kind `wan` cannot be used",
        DATA,
    ),
    Library("h5py", "h5py", "recordings of CS:GO cannot be read", DATA),
    Library("boto3", "boto3", "data.train cannot be an object store", DATA),
    Library("nvidia-dali-cuda130", "nvidia.dali", "videos are decoded by PyAV on a GPU too", DATA),
    Library("pytest", "pytest", "the tests cannot run", "source launch/setup.sh dev"),
]
GPU_ONLY = [
    Library("triton", "triton", "no fused kernels on a GPU", f"{LOCKED}gpu.txt"),
    Library(
        "flash-attn-4",
        "flash_attn.cute",
        "no attention backend 'fa4', a peer of our own kernels on Hopper",
        "pip install --pre flash-attn-4==4.0.0b36",
    ),
    Library(
        "transformer-engine",
        "transformer_engine.pytorch",
        "no fp8, no fused layer norms in Megatron-core",
        "pip install --no-build-isolation 'transformer-engine[pytorch]'",
    ),
    Library(
        "apex",
        "apex",
        "gradient clipping over many tensors launches more kernels",
        "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation git+https://github.com/NVIDIA/apex",
    ),
]


def diagnose() -> list[Finding]:
    """Look at everything; takes some seconds, most of them for imports."""
    tested = tested_versions()
    return [
        *machine(),
        *(probe(library, "needed", tested) for library in NEEDED),
        *(probe(library, "optional", tested) for library in OPTIONAL),
        *gpu(),
        *(probe(library, "for a GPU", tested) for library in GPU_ONLY),
    ]


def machine() -> Iterator[Finding]:
    """Python, processor, memory, disk, compiler."""
    version = platform.python_version()
    new_enough = sys.version_info >= (3, 11)
    yield Finding(
        "machine",
        "Python",
        "ok" if new_enough else "missing",
        f"{version} in {sys.prefix}",
        "" if new_enough else "nothing runs: megatv needs 3.11 or newer",
        "" if new_enough else "apt install python3.11-venv",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield enough("CPU", cores, 2, "cores", "the two-process demo takes twice as long", "")
    yield enough("memory", memory_gib(), 6, "GiB", "the demo may be killed for memory", "")
    disk = shutil.disk_usage(ROOT).free / GIB
    yield enough("free disk", disk, 5, "GiB", "the environment takes 2 GiB, the demo 1 GiB", f"df -h {ROOT}")
    shm = shutil.disk_usage("/dev/shm").total / GIB if os.path.isdir("/dev/shm") else 0.0
    remedy = "mount -o remount,size=8G /dev/shm, or docker run --shm-size=8g"
    yield enough("/dev/shm", shm, 1, "GiB", "NCCL between the GPUs of a node fails or is slow", remedy)
    compiler = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    yield Finding(
        "machine",
        "C++ compiler",
        "ok" if compiler else "absent",
        compiler or "none",
        "" if compiler else "triton and torch.compile cannot build kernels",
        "" if compiler else "apt install g++",
    )


def enough(name: str, have: float, least: float, unit: str, cost: str, fix: str) -> Finding:
    """A size that should not be below `least`."""
    found = f"{have:.0f} {unit}" if have >= 10 or have == int(have) else f"{have:.1f} {unit}"
    if have >= least:
        return Finding("machine", name, "ok", found)
    return Finding("machine", name, "absent", f"{found}, below {least}", cost, fix)


def memory_gib() -> float:
    """Physical memory, or the container's limit where it is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total / GIB


def gpu() -> Iterator[Finding]:
    """Driver, devices, toolkit, and whether torch can use them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    devices = output(query).splitlines()
    cost, fix = "the 3B and 8B configurations need GPUs; small ones train on CPU", ""
    if not devices:
        yield Finding("for a GPU", "NVIDIA GPU", "absent", "none", cost, fix)
    else:
        name, memory, driver = (part.strip() for part in devices[0].split(","))
        yield Finding("for a GPU", "NVIDIA GPU", "ok", f"{len(devices)} x {name}, {memory}, driver {driver}")
        with quiet():
            usable, reason = cuda_of_torch()
        remedy = f"rm -r .venv && {SETUP}"
        yield Finding(
            "for a GPU",
            "CUDA in torch",
            "ok" if usable else "absent",
            reason,
            "" if usable else "torch does not see the GPU and would train on CPU",
            "" if usable else remedy,
        )
    release = re.search(r"release ([\d.]+)", output(["nvcc", "--version"]))
    yield Finding(
        "for a GPU",
        "CUDA toolkit",
        "ok" if release else "absent",
        f"nvcc {release[1]}" if release else "no nvcc",
        "" if release else "the attention backend 'cuda', apex and transformer-engine cannot be built",
        "" if release else "https://developer.nvidia.com/cuda-downloads",
    )


def cuda_of_torch() -> tuple[bool, str]:
    """Whether torch can use a GPU, and its CUDA version or the reason."""
    try:
        import torch
    except Exception as error:
        return False, first_line(error)
    if torch.version.cuda is None:
        return False, f"torch {torch.__version__} is a CPU build"
    return torch.cuda.is_available(), f"CUDA {torch.version.cuda}"


def probe(library: Library, group: str, tested: dict[str, str]) -> Finding:
    """Import one library and compare its version with the tested one."""
    try:
        version = metadata.version(library.name)
    except metadata.PackageNotFoundError:
        version = ""
    try:
        with quiet():
            importlib.import_module(library.module)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and not version
        found = "not installed" if absent else f"{version} does not import: {first_line(error)}"
    else:
        pinned = tested.get(library.name, "")
        plain = version.partition("+")[0]
        found = version if not pinned or plain == pinned else f"{version} (tested with {pinned})"
        if library.name != "torch" or at_least(plain, (2, 11)):
            return Finding(group, library.name, "ok", found)
        found = f"{version} is older than 2.11"
    state = "missing" if group == "needed" else "absent"
    return Finding(group, library.name, state, found, library.cost, library.fix)


def node_faults(gpus: int) -> Iterator[str]:
    """What keeps this node from training with `gpus` GPUs, a sentence each; takes a few seconds.

    Of the libraries only torch and megatv are imported: nodes differ in hardware and mounts, and a library
    that is broken on all of them stops the run with its own error.
    """
    yield from (f"{f.name} is missing ({f.cost}): {f.found}" for f in machine() if f.state == "missing")
    if shutil.disk_usage(tempfile.gettempdir()).free < GIB:
        yield f"less than 1 GiB is free in {tempfile.gettempdir()}, where kernels are compiled"
    for name in ("torch", "megatv"):
        finding = probe(Library(name, name, "nothing runs"), "needed", {})
        if finding.state != "ok":
            yield f"{name}: {finding.found}; {SETUP} on this node, or mount there what the others see"
            return
    if gpus:
        yield from gpu_faults(gpus)


def gpu_faults(gpus: int) -> Iterator[str]:
    """GPUs that are not there, do not compute, or are taken by what an earlier job left behind."""
    import torch

    visible = torch.cuda.device_count()
    if visible < gpus:
        yield f"{visible} of {gpus} GPUs are usable ({cuda_of_torch()[1]}); see nvidia-smi and dmesg there"
    for index in range(min(visible, gpus)):
        try:
            free, total = torch.cuda.mem_get_info(index)
            ones = torch.ones(256, 256, device=f"cuda:{index}")
            right = bool(((ones @ ones) == 256).all())
        except Exception as error:
            yield f"GPU {index} does not compute ({first_line(error)}); see nvidia-smi and dmesg there"
            continue
        if not right:
            yield f"GPU {index} computes wrong numbers: take the node out of service"
        if free < 0.9 * total:
            taken = (total - free) / GIB
            yield f"GPU {index} has {taken:.0f} GiB taken by other processes; nvidia-smi names them"


def at_least(version: str, least: tuple[int, ...]) -> bool:
    """Compare the leading numbers of a version."""
    return tuple(int(n) for n in re.findall(r"\d+", version)[: len(least)]) >= least


def tested_versions() -> dict[str, str]:
    """Versions that launch/lock/ names, by distribution name."""
    files = ("source", "torch", "core", "gpu", "data", "dev")
    text = "".join((ROOT / "launch" / "lock" / f"{file}.txt").read_text() for file in files)
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def output(command: list[str]) -> str:
    """What a program prints; nothing when it is absent, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def first_line(error: Exception) -> str:
    """The error in one short line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:100]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what imports print, from C too."""
    sys.stdout.flush()
    saved, null = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1), os.dup2(null, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout.flush()
        for descriptor, copy in enumerate(saved, 1):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(null)


def report(findings: list[Finding]) -> str:
    """The findings as a table, group by group, with cost and remedy below what is not there."""
    marks = {"ok": "✓", "missing": "✗", "absent": "-"}
    width = max(len(f.name) for f in findings)
    lines = []
    for group in dict.fromkeys(f.group for f in findings):
        lines += ["", group]
        for f in sorted((f for f in findings if f.group == group), key=lambda f: f.state != "ok"):
            lines.append(f"  {marks[f.state]} {f.name:<{width}}  {f.found}")
            lines += [f"    {'':<{width}}  {text}" for text in (f.cost, f.fix and f"> {f.fix}") if text]
    missing = [f.name for f in findings if f.state == "missing"]
    verdict = f"A run on CPU lacks {', '.join(missing)}." if missing else "A run on CPU can start."
    if missing and (ROOT / ".venv").is_dir() and Path(sys.prefix) != ROOT / ".venv":
        verdict += "\nThis was not the Python of .venv; to use it: source .venv/bin/activate"
    return "\n".join([*lines[1:], "", verdict])


def main() -> int:
    """Print the report and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--node", action="store_true", help="only what keeps this node from training")
    parser.add_argument("--gpus", type=int, default=0, help="with --node: how many it must have")
    args = parser.parse_args()
    if args.node:
        name = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        faults = list(node_faults(args.gpus))
        print("\n".join(f"{name}: {fault}" for fault in faults) or f"{name}: fit")
        return 1 if faults else 0
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for one, at length
    findings = diagnose()
    can_run = not any(f.state == "missing" for f in findings)
    if args.json:
        print(json.dumps({"can_run_on_cpu": can_run, "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        print(report(findings))
    return 0 if can_run else 1


if __name__ == "__main__":
    sys.exit(main())
