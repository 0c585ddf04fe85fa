"""Motion is measured in frame widths a second whatever the size; a large face is dropped only if it stays."""

import itertools
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")

from megatv.curate import filters  # noqa: E402
from megatv.curate.settings import FaceSettings, MotionSettings  # noqa: E402
from megatv.data.video import decode_video, probe  # noqa: E402

CLIPS = Path(__file__).parents[2] / "../shared/clips"
REAL = pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not beside this checkout")


def pan(pixels_per_frame, width, height, frames=5):
    """uint8 [F, H, W, 3]: a smooth random texture that moves to the left."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 40, 3), dtype=np.uint8)
    texture = cv2.resize(coarse, (width * 2, height), interpolation=cv2.INTER_CUBIC)
    shifts = [k * pixels_per_frame for k in range(frames)]
    return np.stack([texture[:, shift : shift + width] for shift in shifts])


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize(("width", "height", "pixels"), [(320, 192, 4), (640, 384, 8)])
def test_the_speed_is_that_of_the_picture_at_any_size(method, width, height, pixels):
    settings = MotionSettings(method=method)
    speeds = filters.motion_speeds(pan(pixels, width, height), settings)
    assert speeds.shape == (4,)
    true = pixels / width * settings.frames_per_second  # 0.1 widths a second
    assert np.allclose(speeds, true, rtol=0.2)  # Farneback sees less at the borders


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 2), (3, 4), (-2, 2)])
def test_the_flow_has_the_length_and_direction_of_the_motion(method, right, down):
    """Of a picture moved by known pixels; the threshold's 0.02 widths a second are 0.8 pixels a frame."""
    coarse = np.random.default_rng(1).integers(0, 256, (28, 44, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (360, 232), interpolation=cv2.INTER_CUBIC)
    frames = [picture[20 - k * down :, 20 - k * right :][:192, :320] for k in range(3)]
    settings = MotionSettings(method=method, width_pixels=320, height_pixels=192)
    true = np.hypot(right, down) / 320 * settings.frames_per_second
    assert np.allclose(filters.motion_speeds(frames, settings), true, rtol=0.1)
    find = filters._dis() if method == "dis" else filters._farneback
    flow = find(*(cv2.cvtColor(np.ascontiguousarray(f), cv2.COLOR_RGB2GRAY) for f in frames[:2]))
    assert np.abs(np.median(flow, axis=(0, 1)) - (right, down)).max() < 0.1


def test_the_reason_names_the_flow():
    for method, name in (("dis", "DIS flow"), ("farneback", "Farnebäck flow")):
        reason = filters.judge_motion(pan(0, 64, 48), MotionSettings(method=method)).reason
        assert f"frame widths/s by {name}, below motion.min_widths_per_second" in reason


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_a_still_picture_is_dropped_and_a_moving_one_kept(method):
    settings = MotionSettings(method=method)
    still = filters.judge_motion(pan(0, 320, 192), settings)
    assert not still.kept
    assert still.measures["widths_per_second"] < 1e-3
    assert "motion filter" in still.reason and "below motion.min_widths_per_second 0.02" in still.reason
    moving = filters.judge_motion(pan(4, 320, 192), settings)
    assert moving.kept
    assert "at least motion.min_widths_per_second 0.02" in moving.reason


@pytest.mark.parametrize(("end", "count"), [(3.0, 1), (15.9, 1), (16.0, 2), (31.0, 3)])
def test_stretches_cover_a_shot(end, count):
    parts = filters.stretches((2.0, 2.0 + end), 8.0)
    assert len(parts) == count and parts[0][0] == 2.0 and parts[-1][1] == 2.0 + end
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert count == 1 or all(8.0 <= b - a < 16.0 for a, b in parts)


def test_what_is_left_of_a_shot_and_why_the_rest_is_not():
    def judged(*fates):
        """One stretch of a second for each: a filter's letter where it drops."""
        verdicts = [[filters.Verdict(f not in fate, f"{f}: bad", {}) for f in "mf"] for fate in fates]
        return [((k, k + 1), verdict) for k, verdict in enumerate(verdicts)]

    mixed = judged("", "", "mf", "", "f", "")
    assert filters.kept_spans(mixed) == [(0, 2), (3, 4), (5, 6)]
    assert filters.reasons_to_drop(mixed) == "m: bad (1 of 6 stretches); f: bad (2 of 6 stretches)"
    assert filters.kept_spans(judged("mf")) == []
    assert filters.reasons_to_drop(judged("mf")) == "m: bad; f: bad"


def test_one_frame_does_not_move():
    assert not filters.judge_motion(pan(0, 64, 48, frames=1), MotionSettings()).kept


def boxes_of(monkeypatch, boxes):
    """Faces as told, one list of boxes a frame of 100 x 100 pixels."""
    told = iter(boxes)
    monkeypatch.setattr(filters, "find_faces", lambda frame, settings: next(told))
    return np.zeros((len(boxes), 100, 100, 3), np.uint8)


def test_coverage_and_stability_by_hand(monkeypatch):
    large, small = (0, 0, 40, 40), (50, 50, 10, 10)
    frames = boxes_of(monkeypatch, [[small, large], [(20, 0, 40, 40)], [], [small]])
    coverage, stability = filters.face_measures(frames, FaceSettings())
    assert coverage == pytest.approx((0.16 + 0.16 + 0 + 0.01) / 4)
    assert stability == pytest.approx((800 / 2400 + 0 + 0) / 3)


@pytest.mark.parametrize(
    ("boxes", "kept"),
    [
        ([[(10, 10, 40, 40)]] * 4, False),
        ([[(10, 10, 40, 40)]], False),
        ([[(10, 10, 10, 10)]] * 4, True),  # stable, but small: a face in a corner is fine
        ([[(0, 0, 40, 40)], [(60, 60, 40, 40)]] * 2, True),  # large, but elsewhere each time
        ([[], [], []], True),
        ([], True),
    ],
)
def test_only_large_and_stable_faces_are_dropped(monkeypatch, boxes, kept):
    frames = boxes_of(monkeypatch, boxes)
    verdict = filters.judge_faces(frames, FaceSettings())
    assert verdict.kept == kept
    assert verdict.reason.startswith(f"face filter: {'no' if kept else 'a'} large stable face")


def test_blank_frames_hold_no_faces():
    assert filters.find_faces(np.full((120, 160, 3), 127, np.uint8), FaceSettings()) == []


@pytest.mark.parametrize("size", [(1280, 720), (720, 1280), (100, 100)])
def test_faces_are_looked_for_in_the_true_proportions(size):
    width, height = filters.face_frame_size(*size, FaceSettings())
    assert max(width, height) == 320
    assert width / height == pytest.approx(size[0] / size[1], rel=0.01)


def test_opencv_without_cascades_is_named_with_the_way_out(monkeypatch):
    filters._cascade.cache_clear()
    monkeypatch.delattr(cv2, "CascadeClassifier")
    with pytest.raises(ValueError, match=r"no Haar cascades.*opencv-python-headless<5"):
        filters.find_faces(np.zeros((50, 50, 3), np.uint8), FaceSettings())


@REAL
@pytest.mark.parametrize(
    ("clip", "kept"), [("basketball", True), ("arm_wrestling", True), ("still_face", False)]
)
def test_motion_of_real_clips(clip, kept):
    """Measured with DIS and Farneback: 0.138, 0.081; 0.207, 0.122; 0.009, 0.006 frame widths a second."""
    for method in ("dis", "farneback"):
        s = MotionSettings(method=method)
        size = {"width": s.width_pixels, "height": s.height_pixels, "fps": s.frames_per_second}
        verdict = filters.judge_motion(decode_video(CLIPS / f"{clip}.mp4", **size), s)
        score = verdict.measures["widths_per_second"]
        assert verdict.kept == kept
        assert score > 2 * s.min_widths_per_second if kept else score < s.min_widths_per_second / 2


@REAL
@pytest.mark.parametrize(
    ("clip", "kept"), [("basketball", True), ("arm_wrestling", True), ("still_face", False)]
)
def test_faces_of_real_clips(clip, kept):
    """Measured coverage and stability: 0.000 and 0.00, 0.000 and 0.00, 0.230 and 0.96."""
    s = FaceSettings()
    info = probe(CLIPS / f"{clip}.mp4")
    width, height = filters.face_frame_size(info.width, info.height, s)
    frames = decode_video(CLIPS / f"{clip}.mp4", width=width, height=height, fps=s.frames_per_second)
    verdict = filters.judge_faces(frames, s)
    coverage, stability = verdict.measures.values()
    assert verdict.kept == kept
    if kept:
        assert coverage < s.max_coverage / 2 and stability < s.max_stability / 2
    else:
        assert coverage > 2 * s.max_coverage and stability > 0.8
