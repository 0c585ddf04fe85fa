"""Compile Triton kernels for a GPU that is not here, and read from the machine code what they take of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cache import isolate_compilers


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    registers      32-bit registers of a thread (255 at most)
    local          bytes of local memory of a thread: what the registers do not hold, spilled to memory
    shared         bytes of shared memory of a block
    instructions   how often each SASS instruction occurs, by its name up to the first dot
    """

    registers: int
    local: int
    shared: int
    instructions: Counter[str]


def compile_for(
    kernel: Any, arguments: dict[str, Any], *, warps: int, stages: int, capability: int
) -> Resources:
    """Compile `kernel` as a launch with these arguments would, for a GPU of `capability` (90: Hopper).

    Tensors may lie on the meta device; they count as aligned to 16 bytes, as torch allocates them, and whole
    numbers that are 1 or multiples of 16 are specialised as in a launch (strides of 16 let loads be wide).
    Triton brings its own assembler: no GPU, driver or CUDA toolkit is needed.
    """
    isolate_compilers()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import mangle_type

    whole = {p.name for p in kernel.params if type(arguments[p.name]) is int and not p.do_not_specialize}
    constants = {
        p.name: arguments[p.name]
        for p in kernel.params
        if p.is_constexpr or (p.name in whole and arguments[p.name] == 1)
    }
    signature = {
        name: "constexpr" if name in constants else mangle_type(arguments[name]) for name in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or (kind != "constexpr" and name in whole and arguments[name] % 16 == 0)
    }
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    return _read(compiled.asm["cubin"], compiled.metadata.shared)


def _read(cubin: bytes, shared: int) -> Resources:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, code = (
            subprocess.run([*command, str(path)], capture_output=True, text=True, check=True).stdout
            for command in ([knobs.nvidia.cuobjdump.path, "-res-usage"], [knobs.nvidia.nvdisasm.path, "-c"])
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()  # type: ignore[union-attr]
    names = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]+)", code, re.MULTILINE)
    return Resources(int(registers), int(stack), shared, Counter(names))
