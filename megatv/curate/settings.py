"""What the analysis of raw video may be told: one frozen dataclass for each step, units in the names.

Defaults follow TV2TV section 4.1 where it gives a value (8-second window, clips of 6 to 16 s, segments of at
least 1 s, 2 to 10 of them); it gives no thresholds, so those are ours, measured on real clips (see the tests
of each step). Impossible values are refused when a dataclass is made, with the key and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatv.schema import Place

Span = tuple[float, float]
"""(start, end) in seconds of a video: a shot, a clip or a segment."""


def _require(ok: bool, sentence: str) -> None:
    if not ok:
        raise ValueError(sentence)


MOST = {"pixels": 1 << 14, "second": 1000, "frames": 1 << 12}
"""Of a setting whose name ends so (`frames_per_second`); all others are at most a million."""


def _bounded(section: str, settings: object, *above_zero: str) -> None:
    """All numbers of a section have an end and are not negative, and those of `above_zero` are not 0."""
    for key, value in vars(settings).items():
        if type(value) in (int, float):
            most = MOST.get(key.rpartition("_")[2], 10**6)
            _require(value <= most, f"{section}.{key} is {value:g}: it must be at most {most}")
            _require(value >= 0, f"{section}.{key} is {value}: it must not be negative")
    for key in above_zero:
        value = getattr(settings, key)
        _require(value > 0, f"{section}.{key} is {value}: it must be above 0")


@dataclass(frozen=True)
class ShotSettings:
    """Where one camera take ends and the next begins.

    method                     `transnetv2` (a 3D convolutional network, finds fades too) or `pyscenedetect`
                               (colour differences, far faster, hard cuts only)
    frames_per_second          rate at which a video is looked at; both methods were made for 24 to 30
    transnetv2_probability     a frame is the end of a shot above this (the authors use 0.5)
    pyscenedetect_ratio        a cut's colour difference over the mean of its two neighbours on each side
    pyscenedetect_difference   and at least this much in itself, 0 to 255
    min_seconds                shorter shots are left out
    device                     torch device of transnetv2
    """

    method: Literal["transnetv2", "pyscenedetect"] = "transnetv2"
    frames_per_second: float = 25.0
    transnetv2_probability: float = 0.5
    pyscenedetect_ratio: float = 3.0
    pyscenedetect_difference: float = 15.0
    min_seconds: float = 0.5
    device: str = "cpu"

    def __post_init__(self) -> None:
        _bounded("shots", self, "frames_per_second", "pyscenedetect_ratio")
        p = self.transnetv2_probability
        _require(0 < p < 1, f"shots.transnetv2_probability is {p}: it must lie between 0 and 1")


@dataclass(frozen=True)
class EmbedSettings:
    """Frames to vectors.

    model                `colour-gradient-histogram` (needs no weights) or a local model directory
    frames_per_second    embeddings a second of video; also the grain of clips and segments
    width_pixels, height_pixels   of the frames that are embedded; a model resizes them to what it wants
    batch_frames         frames that go through a model at once
    device               torch device of a model
    """

    model: Place = "colour-gradient-histogram"
    frames_per_second: float = 4.0
    width_pixels: int = 320
    height_pixels: int = 192
    batch_frames: int = 32
    device: str = "cpu"

    def __post_init__(self) -> None:
        _require(bool(self.model), "embed.model is empty: name `colour-gradient-histogram` or a directory")
        _bounded("embed", self, "frames_per_second", "width_pixels", "height_pixels", "batch_frames")


@dataclass(frozen=True)
class ClipSettings:
    """Peaks of semantic change, and the clips that hold most of them.

    window_seconds       length of the sliding window (TV2TV: 8), and least length of the stretches in which
                         the motion and face filters judge a longer shot
    stride_seconds       from one window to the next
    min_seconds, max_seconds   length of a clip (TV2TV: 6 and 16)
    min_peaks            a clip with fewer is not made
    margin_seconds       kept clear at both ends of a shot, so that no frame of its neighbour slips in
    peak_prominence      least prominence of a peak, a cosine distance
    peak_mads            and in median absolute deviations of the shot's own series
    peak_gap_seconds     of two peaks nearer than this, the higher one stays
    """

    window_seconds: float = 8.0
    stride_seconds: float = 0.5
    min_seconds: float = 6.0
    max_seconds: float = 16.0
    min_peaks: int = 1
    margin_seconds: float = 0.1
    peak_prominence: float = 0.005
    peak_mads: float = 2.0
    peak_gap_seconds: float = 1.0

    def __post_init__(self) -> None:
        _bounded("clips", self, "window_seconds", "stride_seconds", "min_seconds")
        _require(
            self.min_seconds <= self.window_seconds <= self.max_seconds,
            f"clips.window_seconds {self.window_seconds:g} must lie between clips.min_seconds "
            f"{self.min_seconds:g} and clips.max_seconds {self.max_seconds:g}",
        )


@dataclass(frozen=True)
class SegmentSettings:
    """A clip's pieces, each of which gets a caption of its own.

    min_seconds                 length of the shortest (TV2TV: 1)
    min_segments, max_segments  pieces of a clip (TV2TV: 2 and 10)
    quiet_seconds               a clip without key frames still gets a piece for every so many seconds
    key_frame_weight            how many times more a boundary at a key frame is worth than elsewhere
    """

    min_seconds: float = 1.0
    min_segments: int = 2
    max_segments: int = 10
    quiet_seconds: float = 3.0
    key_frame_weight: float = 2.0

    def __post_init__(self) -> None:
        _bounded("segments", self, "min_seconds", "quiet_seconds")
        _require(
            1 <= self.min_segments <= self.max_segments,
            f"segments.min_segments is {self.min_segments}: it must lie between 1 and "
            f"segments.max_segments {self.max_segments}",
        )
        weight = self.key_frame_weight
        _require(weight >= 1, f"segments.key_frame_weight is {weight}: it must be at least 1")


@dataclass(frozen=True)
class MotionSettings:
    """Stretches of a shot in which little moves are dropped, by the mean length of their optical flow.

    method               `dis` (Dense Inverse Search) or `farneback` (Farnebäck 2003, TV2TV's, slower)
    frames_per_second    rate at which neighbouring frames are compared
    width_pixels, height_pixels   every frame is scaled to this, so that one threshold fits all videos
    min_widths_per_second   least speed, in frame widths a second, mean over all pixels and pairs of frames:
                         at 320 pixels and 8 pairs a second 0.02 is 0.8 pixels from one frame to the next.
                         Both methods find a known displacement of a textured picture; where it is smooth
                         Farnebäck's is shorter, on real clips 0.6 of DIS's, so a threshold that you
                         tuned for one is not right for the other. TV2TV gives none.
    """

    method: Literal["dis", "farneback"] = "dis"
    frames_per_second: float = 8.0
    width_pixels: int = 320
    height_pixels: int = 192
    min_widths_per_second: float = 0.02

    def __post_init__(self) -> None:
        _bounded("motion", self, "frames_per_second", "width_pixels", "height_pixels")


@dataclass(frozen=True)
class FaceSettings:
    """Stretches of somebody who talks into the camera are dropped: one large face that stays where it is.

    frames_per_second   rate at which faces are looked for
    long_side_pixels    of the frames searched, which keep the video's aspect ratio
    smallest_face       least height of a face to look for, as a part of the frame's height: most of the time
                        goes into small ones, and those cover too little to drop anything
    neighbours          overlapping detections that make a face; more: fewer false faces, more missed
    max_coverage        largest face's part of the frame's area, mean over the frames
    max_stability       overlap (IoU) of the largest faces of neighbouring frames, mean over the pairs
    A stretch is dropped when it reaches both.
    """

    frames_per_second: float = 1.0
    long_side_pixels: int = 320
    smallest_face: float = 0.2
    neighbours: int = 6
    max_coverage: float = 0.05
    max_stability: float = 0.5

    def __post_init__(self) -> None:
        _bounded("faces", self, "frames_per_second", "long_side_pixels", "neighbours")
        for key in ("smallest_face", "max_coverage", "max_stability"):
            value = getattr(self, key)
            _require(0 < value <= 1, f"faces.{key} is {value}: it must be above 0 and at most 1")
