"""The few calls of the CUDA driver that launch kernels of a cubin, through ctypes.

The driver is there wherever a GPU is, as libcuda.so.1; torch's streams and contexts are its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

# Values of the enumerations in cuda.h.
FLOAT16, FLOAT32, BFLOAT16 = 6, 7, 9
SWIZZLE_NONE, SWIZZLE_128B = 0, 3
INTERLEAVE_NONE, L2_PROMOTION_256B, OUTSIDE_IS_ZERO = 0, 3, 0
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
TENSOR_MAP_BYTES, TENSOR_MAP_ALIGNMENT = 128, 64


class Driver:
    """libcuda, or a library that offers the same calls."""

    def __init__(self, library: str = "libcuda.so.1") -> None:
        self.library = ctypes.CDLL(library)

    def call(self, name: str, *arguments: Any) -> None:
        """Raises RuntimeError with the driver's own words when a call fails."""
        code = getattr(self.library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(code, byref(text))
            raise RuntimeError(f"CUDA driver: {name} failed: {(text.value or b'unknown').decode()} ({code})")


class Shape(NamedTuple):
    """What a kernel says of itself: threads and bytes of shared memory a block, rows and keys a tile."""

    threads: int
    shared_bytes: int
    rows: int
    keys: int


class TensorMap:
    """What TMA must know of a [z, y, x] tensor to copy boxes of it (PTX ISA, "tensor-map").

    sizes, box  (x, y, z) in elements; strides  (y, z) in bytes, multiples of 16; x is contiguous
    """

    def __init__(
        self,
        driver: Driver,
        address: int,
        kind: int,
        sizes: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        swizzle: int,
    ) -> None:
        self._memory = ctypes.create_string_buffer(TENSOR_MAP_BYTES + TENSOR_MAP_ALIGNMENT)
        start = ctypes.addressof(self._memory)
        self.address = -(-start // TENSOR_MAP_ALIGNMENT) * TENSOR_MAP_ALIGNMENT
        driver.call(
            "cuTensorMapEncodeTiled",
            c_void_p(self.address),
            kind,
            c_uint32(3),
            c_void_p(address),
            (c_uint64 * 3)(*sizes),
            (c_uint64 * 2)(*strides),
            (c_uint32 * 3)(*box),
            (c_uint32 * 3)(1, 1, 1),
            INTERLEAVE_NONE,
            swizzle,
            L2_PROMOTION_256B,
            OUTSIDE_IS_ZERO,
        )


class Module:
    """The kernels of one cubin on one device."""

    def __init__(self, driver: Driver, device: int, image: bytes) -> None:
        self.driver = driver
        handle, self._context, self._module = c_int(), c_void_p(), c_void_p()
        driver.call("cuDeviceGet", byref(handle), device)
        driver.call("cuDevicePrimaryCtxRetain", byref(self._context), handle)  # torch's own
        driver.call("cuCtxSetCurrent", self._context)
        driver.call("cuModuleLoadData", byref(self._module), image)
        self._kernels: dict[str, tuple[c_void_p, Shape]] = {}

    def shape(self, kernel: str) -> Shape:
        """The constants that the kernel was compiled with."""
        return self._load(kernel)[1]

    def launch(self, kernel: str, grid: tuple[int, int], stream: int, *arguments: Any) -> None:
        """Start a kernel; `arguments` are ctypes values or tensor maps, in the order of its parameters."""
        function, shape = self._load(kernel)
        at = [a.address if isinstance(a, TensorMap) else ctypes.addressof(a) for a in arguments]
        self.driver.call("cuCtxSetCurrent", self._context)  # an autograd thread may have none yet
        self.driver.call(
            "cuLaunchKernel",
            function,
            *(c_uint32(n) for n in (*grid, 1, shape.threads, 1, 1, shape.shared_bytes)),
            c_void_p(stream),
            (c_void_p * len(at))(*at),
            None,
        )

    def _load(self, kernel: str) -> tuple[c_void_p, Shape]:
        if kernel not in self._kernels:
            function, address, size = c_void_p(), c_uint64(), c_size_t()
            constants = (c_int * len(Shape._fields))()
            call = self.driver.call
            call("cuModuleGetFunction", byref(function), self._module, kernel.encode())
            call(
                "cuModuleGetGlobal_v2", byref(address), byref(size), self._module, f"{kernel}_shape".encode()
            )
            call("cuMemcpyDtoH_v2", constants, address, c_size_t(ctypes.sizeof(constants)))
            shape = Shape(*constants)
            call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shape.shared_bytes)
            self._kernels[kernel] = function, shape
        return self._kernels[kernel]
