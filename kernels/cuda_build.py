"""From cuda/*.cu to a cubin for sm_90a: once per machine, or ahead of time by setup.py.

A cubin holds machine code and nothing else, and the CUDA driver loads it: no C++ extension, no headers or ABI
of torch, no linking against a CUDA runtime, so one file serves every Python and every torch. Standard library
only, because setup.py loads this file before anything is installed.
"""

from __future__ import annotations

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


def image(element: str, head_dim: int) -> bytes:
    """The compiled kernels: installed with the package, else of the cache, else built into the cache now.

    `cache.py` says where the cache is and what is read from it. Its files are named by a digest of sources,
    flags and compiler. Raises RuntimeError when nvcc is missing or fails, ValueError when the cache cannot be
    used.
    """
    installed = SOURCES / _file_name(element, head_dim)
    if installed.exists():
        return installed.read_bytes()
    from .cache import kept  # not above: setup.py loads this file outside of its package

    nvcc = _need_nvcc()
    compiler = subprocess.run([nvcc, "--version"], capture_output=True, check=False).stdout
    name = f"{installed.stem}-{hashlib.sha256(compiler).hexdigest()[:16]}.sealed"
    return kept(name, lambda: _compile(nvcc, element, head_dim))


def is_installed() -> bool:
    """Whether all kernels were built ahead of time from these very sources."""
    return all((SOURCES / _file_name(e, d)).exists() for e in ELEMENTS for d in HEAD_DIMS)


def build(element: str, head_dim: int, folder: Path) -> Path:
    """Compile into `folder`; the file appears whole or not at all."""
    content = _compile(_need_nvcc(), element, head_dim)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / _file_name(element, head_dim)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / target.name
        output.write_bytes(content)
        os.replace(output, target)
    return target


def _need_nvcc() -> str:
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError(
            "compiling the CUDA kernels needs nvcc: install the CUDA toolkit (12.4 or newer) or set CUDA_HOME"
        )
    return nvcc


def _compile(nvcc: str, element: str, head_dim: int) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "attention.cubin"
        made = subprocess.run(
            command(nvcc, element, head_dim, output), capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise RuntimeError(f"nvcc could not compile the CUDA kernels:\n{made.stdout}{made.stderr}")
        return output.read_bytes()


def _file_name(element: str, head_dim: int) -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sorted(SOURCES.glob("*.[ch]*")):
        if source.suffix in (".cu", ".cuh", ".h"):
            digest.update(source.name.encode() + source.read_bytes())
    return f"attention-{element}-{head_dim}-{digest.hexdigest()[:16]}.cubin"
