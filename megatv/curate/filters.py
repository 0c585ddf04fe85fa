"""What teaches nothing: pictures in which little moves, people who talk into the camera (TV2TV section 4.1).

Every filter first measures, then judges: a `Verdict` keeps the numbers and says in words why. TV2TV measures
motion with Farnebäck's optical flow and faces with RetinaFace; here DIS flow is the default and faces are
found by the Haar cascades that come with OpenCV, from the front and from the sides.

Shots are judged, before their frames are embedded: what is dropped early costs nothing later. A long shot is
judged in stretches as long as a clip, so that neither ten lively seconds of an hour of talk are lost nor the
talk is taken along with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from megatv.curate.settings import FaceSettings, MotionSettings, Span

FLOWS = {"dis": "DIS flow", "farneback": "Farnebäck flow"}
"""Names of `motion.method` for people."""
Box = tuple[int, int, int, int]
"""x, y, width and height in pixels."""


@dataclass(frozen=True)
class Verdict:
    """Whether a stretch is kept, the reason in words, and what was measured."""

    kept: bool
    reason: str
    measures: dict[str, float]


def stretches(shot: Span, seconds: float) -> list[Span]:
    """Equal parts of a shot in order, of `seconds` to less than twice that; or the whole of a shorter one."""
    count = max(1, int((shot[1] - shot[0]) / seconds + 1e-6))
    return list(itertools.pairwise(np.linspace(*shot, count + 1).tolist()))


def kept_spans(judged: Sequence[tuple[Span, Sequence[Verdict]]]) -> list[Span]:
    """What is left of a shot: neighbouring stretches that every filter keeps, joined."""
    spans: list[Span] = []
    for (start, end), verdicts in judged:
        if not all(verdict.kept for verdict in verdicts):
            continue
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, end))
    return spans


def reasons_to_drop(judged: Sequence[tuple[Span, Sequence[Verdict]]]) -> str:
    """Every filter that drops a stretch, with what it says of the first one, and of how many it says so."""
    per_filter = zip(*(verdicts for _, verdicts in judged), strict=True)
    found = []
    for verdicts in per_filter:
        if dropped := [verdict for verdict in verdicts if not verdict.kept]:
            share = f" ({len(dropped)} of {len(judged)} stretches)" if len(judged) > 1 else ""
            found.append(dropped[0].reason + share)
    return "; ".join(found)


def judge_motion(frames: Iterable[np.ndarray], settings: MotionSettings) -> Verdict:
    """Drop what hardly moves. frames: uint8 [H, W, 3] (RGB) at `settings.frames_per_second`, of any size.

    Measures: widths_per_second, the score; see `motion_speeds`. Fewer than two frames do not move.
    """
    speeds = motion_speeds(frames, settings)
    score = float(np.mean(speeds)) if len(speeds) else 0.0
    least = settings.min_widths_per_second
    kept = score >= least
    reason = (
        f"motion filter: {score:.4f} frame widths/s by {FLOWS[settings.method]}, "
        f"{'at least' if kept else 'below'} motion.min_widths_per_second {least:g}"
    )
    return Verdict(kept, reason, {"widths_per_second": score})


def motion_speeds(frames: Iterable[np.ndarray], settings: MotionSettings) -> np.ndarray:
    """float64 [F - 1]: mean length of the optical flow between neighbouring frames, in frame widths a second.

    Frames are scaled to the settings' size first, so that the figure does not depend on the video's own.
    """
    size = (settings.width_pixels, settings.height_pixels)
    flow_between = _dis() if settings.method == "dis" else _farneback
    speeds = []
    for before, after in itertools.pairwise(_grey(frame, size) for frame in frames):
        flow = flow_between(before, after)
        pixels = float(np.linalg.norm(flow, axis=2).mean(dtype=np.float64))
        speeds.append(pixels / settings.width_pixels * settings.frames_per_second)
    return np.array(speeds)


def judge_faces(frames: Iterable[np.ndarray], settings: FaceSettings) -> Verdict:
    """Drop a large face that stays in place. frames: uint8 [H, W, 3] (RGB) at `settings.frames_per_second`.

    Of the video's own aspect ratio, such as `face_frame_size` gives: squashed faces are not found.
    Measures: face_coverage, face_stability (see `face_measures`).
    """
    coverage, stability = face_measures(frames, settings)
    dropped = coverage >= settings.max_coverage and stability >= settings.max_stability
    reason = (
        f"face filter: {'a' if dropped else 'no'} large stable face, coverage {coverage:.3f} "
        f"(faces.max_coverage {settings.max_coverage:g}) and stability {stability:.2f} "
        f"(faces.max_stability {settings.max_stability:g})"
    )
    return Verdict(not dropped, reason, {"face_coverage": coverage, "face_stability": stability})


def face_measures(frames: Iterable[np.ndarray], settings: FaceSettings) -> tuple[float, float]:
    """(coverage, stability) of the largest face of each frame.

    Coverage is its part of the frame's area, mean over all frames. Stability is the intersection over union
    of the boxes of neighbouring frames, mean over all pairs; a single frame's face is stable. No face is 0.
    """
    boxes: list[Box | None] = []
    areas = []
    for frame in frames:
        box = max(find_faces(frame, settings), key=lambda box: box[2] * box[3], default=None)
        boxes.append(box)
        areas.append(box[2] * box[3] / (frame.shape[0] * frame.shape[1]) if box else 0.0)
    if not boxes:
        return 0.0, 0.0
    overlaps = [_overlap(a, b) for a, b in itertools.pairwise(boxes)] or [1.0 if boxes[0] else 0.0]
    return float(np.mean(areas)), float(np.mean(overlaps))


def find_faces(frame: np.ndarray, settings: FaceSettings) -> list[Box]:
    """Boxes of the faces of one frame, uint8 [H, W, 3] (RGB), seen from the front or from either side.

    One face may have several boxes, one from each view.
    """
    least = max(1, round(settings.smallest_face * frame.shape[0]))
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    mirrored = np.ascontiguousarray(grey[:, ::-1])  # the profile cascade knows faces that look to one side
    boxes: list[Box] = []
    for view, picture in (("frontalface_default", grey), ("profileface", grey), ("profileface", mirrored)):
        found = _cascade(view).detectMultiScale(
            picture, scaleFactor=1.1, minNeighbors=settings.neighbours, minSize=(least, least)
        )
        for x, y, w, h in np.asarray(found, dtype=int).reshape(-1, 4).tolist():
            boxes.append((grey.shape[1] - x - w if picture is mirrored else x, y, w, h))
    return boxes


def face_frame_size(width: int, height: int, settings: FaceSettings) -> tuple[int, int]:
    """(width, height) in pixels at which to decode a video of that (upright) size for `judge_faces`."""
    scale = settings.long_side_pixels / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


@lru_cache
def _cascade(view: str) -> cv2.CascadeClassifier:
    if not hasattr(cv2, "CascadeClassifier"):
        raise ValueError(
            f"OpenCV {cv2.__version__} has no Haar cascades: `pip install 'opencv-python-headless<5'`"
        )
    path = Path(cv2.__file__).parent / "data" / f"haarcascade_{view}.xml"
    cascade = cv2.CascadeClassifier(str(path))
    assert not cascade.empty(), path
    return cascade


def _dis() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Dense Inverse Search (Kroeger et al., arXiv:1603.03590). A new one for each clip: it keeps buffers."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return lambda before, after: np.asarray(search.calc(before, after, None))  # type: ignore[call-overload]


def _farneback(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Farnebäck (SCIA 2003) with the parameters of OpenCV's own example."""
    return np.asarray(
        cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
    )


def _grey(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return (
        grey
        if (grey.shape[1], grey.shape[0]) == size
        else cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    )


def _overlap(a: Box | None, b: Box | None) -> float:
    """Intersection over union of two boxes, 0 where one is missing."""
    if a is None or b is None:
        return 0.0
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)
