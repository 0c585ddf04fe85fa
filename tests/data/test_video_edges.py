"""What real files do to a decoder at the edges: early ends leave no memory behind."""

import ctypes
import gc

import numpy as np
import pytest

from megatv.data.video import decode_frames, encode_video

H, W = 64, 96


def numbered(count: int) -> list[np.ndarray]:
    """Frames whose brightness is their number times 8."""
    return [np.full((H, W, 3), 8 * index, np.uint8) for index in range(count)]


class Heap(ctypes.Structure):
    """glibc's mallinfo2: `uordblks` and `hblkhd` are the bytes in use, free ones not counted."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    )  # fmt: skip


def test_a_decode_that_ends_early_leaves_no_memory():
    """Bytes in use, which unlike the process's size do not depend on what malloc keeps."""
    try:
        mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        pytest.skip("needs glibc 2.33")
    mallinfo2.restype = Heap
    data = encode_video(np.stack(numbered(32)), crf=20)

    def in_use_after(count: int) -> int:
        for _ in range(count):
            decode_frames(data, [0.0, 0.1], width=16, height=16)
            decode_frames(data, [1.25], width=16, height=16)
        gc.collect()
        heap = mallinfo2()
        return heap.uordblks + heap.hblkhd

    before = in_use_after(20)
    assert in_use_after(200) - before < 200 * 100
