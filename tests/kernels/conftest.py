"""Triton kernels without a GPU: run them in the interpreter, compile them for Hopper ahead of time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from megatv_kernels.triton_compile import Resources, compile_for


@pytest.fixture(scope="session")
def run_interpreted() -> Callable[[str], None]:
    """Run a test file in a process of its own under Triton's interpreter.

    The interpreter must be chosen before triton is imported, and changes it for good.
    """

    def run(file: str) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file]
        done = subprocess.run(
            command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr

    return run


@pytest.fixture
def compiled_launches(monkeypatch) -> Callable[..., list[Resources]]:
    """compiled_launches(module, names, call): what `call` launches, compiled for Hopper instead of run."""

    def launches(module: ModuleType, names: list[str], call: Callable[[], object]) -> list[Resources]:
        found: list[Resources] = []
        for name in names:
            monkeypatch.setattr(module, name, _Recorder(getattr(module, name), found))
        call()
        monkeypatch.undo()
        return found

    return launches


class _Recorder:
    """Stands in for a kernel; a launch compiles it for exactly these arguments."""

    def __init__(self, kernel: Any, found: list[Resources]) -> None:
        self.kernel, self.found = kernel, found

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int, num_stages: int = 3, **constants: Any) -> None:
            arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
            resources = compile_for(self.kernel, arguments, warps=num_warps, stages=num_stages, capability=90)
            self.found.append(resources)

        return launch
