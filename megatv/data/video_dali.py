"""DALI's decoder behind one function: bytes and frame numbers in, pictures on the device out.

On a GPU it is NVDEC; on a CPU DALI decodes VP8, VP9 and MJPEG only. DALI's dynamic mode has no pipeline and
no prefetch, so nothing runs ahead of the loader's cursor, and DALI never sees a list of files. What DALI
leaves undone is done here: it converts every video by BT.601's matrix, ignores rotation and answers frames
past the end with black, so the frame numbers come from `video_source.read_timeline`.

DALI trusts what it decodes: damaged files crashed the process (segmentation faults of its CPU decoder) within
3,000 inputs of `tools/fuzz_video.py --backend dali`. Give it only bytes that are known to be whole, as the
clips of shards are, which are compared with their hash; PyAV is for everything else.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from megatv.data.video_picture import BT709, assumed_colorspace

if TYPE_CHECKING:
    import torch

    from megatv.data.video_source import Timeline

INSTALL = "pip install nvidia-dali-cuda130==2.4.0"
CODECS = {
    "cpu": {"vp8", "vp9", "mjpeg"},
    "cuda": {"vp8", "vp9", "mjpeg", "av1", "mpeg4", "h264", "hevc"},
}
"""What DALI 2.4 decodes, by FFmpeg's names."""
KNOWN_MATRICES = {BT709, 2, 5, 6}
"""BT.709, none named, and the two numbers of BT.601."""

_started_in: int | None = None
"""The process that used DALI first: in its forks DALI would wait for threads that do not exist there."""


def obstacle(timeline: Timeline, device: torch.device) -> str:
    """Why DALI cannot show this video on this device, with the way out where there is one; "" when it can."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return f"it is not installed: {INSTALL}"
    codecs = CODECS[device.type]
    if timeline.codec not in codecs:
        return f"on {device.type} it decodes {', '.join(sorted(codecs))} and this is {timeline.codec}"
    if timeline.care:
        return f"it cannot show {timeline.care}"
    if timeline.colorspace not in KNOWN_MATRICES:
        return f"it does not know the YUV matrix number {timeline.colorspace}"
    return ""


def decode(
    data: bytes, indices: np.ndarray, timeline: Timeline, width: int, height: int, device: torch.device
) -> torch.Tensor:
    """uint8 [F, height, width, 3] on `device`: frames number `indices` (int32 [F]) of the video in `data`.

    Raises ValueError when DALI refuses the bytes or the process was forked after DALI had been used.
    """
    import torch

    ndd = _dali()
    place = "cpu" if device.type == "cpu" else f"gpu:{device.index or 0}"
    try:
        video = ndd.decoders.video(
            ndd.as_batch([np.frombuffer(data, np.uint8)]), device=place, frames=ndd.as_batch([indices])
        )
        frames = video.torch()[0]  # dynamic mode is lazy: errors come here
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"video bytes: DALI does not decode them ({reason}); take 'pyav'") from error
    if len(frames) != len(indices):
        raise ValueError(f"video bytes: DALI gave {len(frames)} of {len(indices)} frames; take 'pyav'")
    stored_height, stored_width = frames.shape[1:3]
    colours = None
    if assumed_colorspace(timeline.colorspace, stored_width, stored_height) == BT709:
        colours = torch.from_numpy(_bt601_to_bt709()).to(device)
    turns = round(timeline.rotation / 90) % 4
    size = (width, height) if turns % 2 else (height, width)
    shown = [torch.rot90(_fit(frame, size, colours), turns, (0, 1)) for frame in frames]
    return torch.stack(shown)


def _fit(frame: torch.Tensor, size: tuple[int, int], colours: torch.Tensor | None) -> torch.Tensor:
    """uint8 [h, w, 3] of `size` from one uint8 [H, W, 3], scaled as `video_picture` does it."""
    import torch
    from torch.nn.functional import interpolate

    pixels = frame.float()
    if colours is not None:
        pixels = pixels @ colours.T
    height, width = frame.shape[:2]
    if size[0] * size[1] < height * width:
        pairs = ((size[0], height), (size[1], width))
        rows, columns = (torch.from_numpy(_shares(*pair)).to(frame.device) for pair in pairs)
        pixels = torch.einsum("yh,hwc,xw->yxc", rows, pixels, columns)
    elif size != (height, width):
        pixels = interpolate(pixels.permute(2, 0, 1)[None], size, mode="bicubic")[0].permute(1, 2, 0)
    return pixels.round().clamp(0, 255).to(torch.uint8)


@cache
def _shares(shown: int, stored: int) -> np.ndarray:
    """float32 [shown, stored]: how much of each shown pixel comes from each stored one (area)."""
    edges = np.arange(shown + 1) * (stored / shown)
    begin = np.maximum(edges[:-1, None], np.arange(stored))
    end = np.minimum(edges[1:, None], np.arange(1, stored + 1))
    return (np.maximum(end - begin, 0) * (shown / stored)).astype(np.float32)


@cache
def _bt601_to_bt709() -> np.ndarray:
    """float32 [3, 3]: RGB made with BT.601's matrix from YUV that is BT.709's, to the RGB that was meant."""
    return (_rgb_of_yuv(0.2126, 0.0722) @ np.linalg.inv(_rgb_of_yuv(0.299, 0.114))).astype(np.float32)


def _rgb_of_yuv(red: float, blue: float) -> np.ndarray:
    """The matrix that the weights of red and blue in luma imply (ITU-R BT.601, BT.709)."""
    green = 1 - red - blue
    return np.array(
        [
            [1, 0, 2 - 2 * red],
            [1, -(2 - 2 * blue) * blue / green, -(2 - 2 * red) * red / green],
            [1, 2 - 2 * blue, 0],
        ]
    )


def _dali() -> Any:
    """DALI's dynamic mode, refused in a fork of a process that used it: there it would hang for ever."""
    global _started_in
    if _started_in not in (None, os.getpid()):
        raise ValueError(
            "DALI was used before this process was forked and would hang here; use it first in the worker "
            "processes, or start them with multiprocessing_context='spawn'"
        )
    import nvidia.dali.experimental.dynamic as ndd

    if _started_in is None:
        ndd.set_num_threads(1)  # the loader has workers already
    _started_in = os.getpid()
    return ndd
