"""One decoded frame to one upright 8-bit RGB picture, whatever it was stored as.

Interlaced frames lose their combs (bwdif), alpha is laid over black as players do, HDR is tone-mapped, and
pictures without a named YUV matrix get the one that players assume: BT.709 for HD, BT.601 below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation

from megatv.data.video_hdr import HLG, PQ, tone_map

UNSPECIFIED, BT709, BT2020 = 2, 1, 9
"""FFmpeg's numbers of YUV matrices (ISO/IEC 23091-2)."""


def assumed_colorspace(colorspace: int, width: int, height: int) -> int:
    """The named YUV matrix, or where none is named BT.709 for HD; UNSPECIFIED means BT.601."""
    hd = width >= 1280 or height > 576
    return BT709 if colorspace == UNSPECIFIED and hd else colorspace


def needs_care(frame: VideoFrame) -> str:
    """Why only `picture` shows this frame rightly, or "" when a decoder's own conversion to RGB does too."""
    if frame.color_trc in (PQ, HLG):
        return "HDR"
    if frame.interlaced_frame:
        return "interlaced frames"
    if mirrored(frame):
        return "a mirror image"
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        return f"{frame.format.name} frames"
    if frame.width % 2 or frame.height % 2:
        return "an odd size"
    return ""


def mirrored(frame: VideoFrame) -> bool:
    """Whether the frame's display matrix, besides turning it, flips it (which `frame.rotation` hides)."""
    try:  # not frame.side_data: the frame would keep it, it the frame, until garbage collection
        matrix: Any = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    except ValueError:  # beside data of a kind that PyAV has no name for
        return False
    if matrix is None:
        return False
    a, b, _, c, d = (float(v) for v in np.frombuffer(matrix, np.int32)[:5])
    return a * d < b * c


def picture(frame: VideoFrame, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3] of one decoded frame, upright.

    It is scaled without letterboxing, by area when it shrinks and bicubic when it grows; so the shape of its
    pixels plays no part.
    """
    turns = round(frame.rotation / 90) % 4
    if turns % 2:
        width, height = height, width
    if frame.color_trc in (PQ, HLG):
        coded = _scaled(frame, width, height, "rgb48le").to_ndarray()
        pixels = tone_map(coded.astype(np.uint16, copy=False), frame.color_trc)
    elif any(component.is_alpha for component in frame.format.components):
        pixels = _scaled(_over_black(frame), width, height, "rgb24").to_ndarray()
    else:
        pixels = _scaled(frame, width, height, "rgb24").to_ndarray()
    if mirrored(frame):  # flip sideways, then turn: the angle of a mirror image is half a turn off
        pixels, turns = pixels[:, ::-1], turns + 2
    return np.ascontiguousarray(np.rot90(pixels, turns))


def progressive(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """The same frames at the same times, those marked as interlaced rebuilt from their fields."""
    graph: Graph | None = None
    made_for: tuple[int, int, str] | None = None
    for frame in frames:
        kind = (frame.width, frame.height, frame.format.name)
        if graph is not None and kind != made_for:
            yield from _drain(graph)
            graph = None
        if graph is None and frame.interlaced_frame:
            graph, made_for = _deinterlacer(frame), kind
        if graph is None:
            yield frame
        else:
            graph.push(frame)
            yield from _ready(graph)
    if graph is not None:
        yield from _drain(graph)


def _scaled(frame: VideoFrame, width: int, height: int, format: str) -> VideoFrame:
    shrinks = width * height < frame.width * frame.height
    colorspace = assumed_colorspace(frame.colorspace, frame.width, frame.height)
    if frame.color_trc in (PQ, HLG) and frame.colorspace == UNSPECIFIED:
        colorspace = BT2020
    return frame.reformat(
        width,
        height,
        format,
        src_colorspace=Colorspace(colorspace) if colorspace != frame.colorspace else None,
        interpolation=Interpolation.AREA if shrinks else Interpolation.BICUBIC,
    )


def _over_black(frame: VideoFrame) -> VideoFrame:
    """Colours weighed by alpha, before any scaling: hidden colours must not bleed into their surroundings."""
    rgba = _scaled(frame, frame.width, frame.height, "rgba").to_ndarray()
    weighed = rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127
    return VideoFrame.from_ndarray((weighed // 255).astype(np.uint8), format="rgb24")


def _deinterlacer(frame: VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    weave = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    graph.link_nodes(source, weave, graph.add("buffersink")).configure()
    return graph


def _ready(graph: Graph) -> Iterator[VideoFrame]:
    """What the filter can give now: it looks one frame ahead."""
    while True:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return


def _drain(graph: Graph) -> Iterator[VideoFrame]:
    graph.push(None)
    yield from _ready(graph)
