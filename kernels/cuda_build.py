"""From cuda/*.cu to a cubin for sm_90a: once per machine, or ahead of time by setup.py.

A cubin holds machine code and nothing else, and the CUDA driver loads it: no C++ extension, no headers or ABI
of torch, no linking against a CUDA runtime, so one file serves every Python and every torch. Standard library
only, because setup.py loads this file before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "cuda"
FLAGS = ("-std=c++17", "-O3", "-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-Werror=all-warnings")
ELEMENTS = {"bfloat16": "__nv_bfloat16", "float16": "__half"}
HEAD_DIMS = (64, 128)


def find_nvcc() -> str | None:
    """The CUDA compiler: of CUDA_HOME, on the PATH, or where its installer puts it."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")


def command(nvcc: str, element: str, head_dim: int, output: Path) -> list[str]:
    """The command line that compiles all kernels for one element type and head dimension."""
    macros = [f"-DMEGATV_ELEMENT={ELEMENTS[element]}", f"-DMEGATV_HEAD_DIM={head_dim}"]
    return [nvcc, *FLAGS, f"-I{SOURCES}", *macros, str(SOURCES / "attention.cu"), "-o", str(output)]


def cubin(element: str, head_dim: int) -> Path:
    """The compiled kernels: installed with the package, else of the cache, else built into the cache now.

    The cache is MEGATV_KERNELS_CACHE or ~/.cache/megatv_kernels. Its files are named by a digest of sources
    and flags; processes that need the same file at the same time build it once. Raises RuntimeError when nvcc
    is missing or fails.
    """
    name = _file_name(element, head_dim)
    installed = SOURCES / name
    if installed.exists():
        return installed
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "megatv_kernels"
    cache = Path(os.environ.get("MEGATV_KERNELS_CACHE", default))
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / name).exists():
            build(element, head_dim, cache)
    return cache / name


def is_installed() -> bool:
    """Whether all kernels were built ahead of time from these very sources."""
    return all((SOURCES / _file_name(e, d)).exists() for e in ELEMENTS for d in HEAD_DIMS)


def build(element: str, head_dim: int, folder: Path) -> Path:
    """Compile into `folder`; the file appears whole or not at all."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError(
            "compiling the CUDA kernels needs nvcc: install the CUDA toolkit (12.4 or newer) or set CUDA_HOME"
        )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / _file_name(element, head_dim)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / target.name
        made = subprocess.run(
            command(nvcc, element, head_dim, output), capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise RuntimeError(f"nvcc could not compile the CUDA kernels:\n{made.stdout}{made.stderr}")
        os.replace(output, target)
    return target


def _file_name(element: str, head_dim: int) -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sorted(SOURCES.glob("*.[ch]*")):
        if source.suffix in (".cu", ".cuh", ".h"):
            digest.update(source.name.encode() + source.read_bytes())
    return f"attention-{element}-{head_dim}-{digest.hexdigest()[:16]}.cubin"
