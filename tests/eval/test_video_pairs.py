from fractions import Fraction

import av
import numpy as np
import pytest

from megatv.data.video import write_video
from megatv.eval.video_pairs import find_videos, match, read_frames, read_pair


def test_names_come_from_files_and_from_the_folders_of_samples(tmp_path):
    of_a = ("a/video.mp4", "a/with_your_words.mp4", "a/transcript.json", "a/.hidden.mp4")
    for file in ("flat.mp4", "b.MOV", *of_a, "notes.txt", ".a.partial-x/video.mp4", "deep/er/x.mp4"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found = find_videos(tmp_path, "--videos")
    assert list(found) == ["a", "a/with_your_words", "b", "flat"]
    assert found["a"] == tmp_path / "a/video.mp4"


def test_folders_that_hold_nothing_usable_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--videos .*none: is no folder; give one with NAME.mp4"):
        find_videos(tmp_path / "none", "--videos")
    with pytest.raises(ValueError, match=r"--references .*: has no video; put NAME.mp4"):
        find_videos(tmp_path, "--references")
    for name in ("a.mp4", "a.mkv"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"a.mp4: has the same name as .*a.mkv; keep one"):
        find_videos(tmp_path, "--videos")


def test_every_video_needs_its_reference(tmp_path):
    videos = {name: tmp_path / f"{name}.mp4" for name in ("a", "b", "c")}
    assert list(match({"a": videos["a"]}, videos)) == ["a"]
    with pytest.raises(ValueError, match=r"2 of 3 videos have no reference of their name, the first is 'b'"):
        match(videos, {"a": videos["a"]})


def test_a_reference_is_brought_to_its_video(film, tmp_path):
    """Twice the size, twice the rate and longer: the same pictures at the same times."""
    pixels = film(tmp_path / "video.mp4", frames=12)
    film(tmp_path / "long.mp4", frames=16)
    frames, truth = read_pair(tmp_path / "video.mp4", tmp_path / "long.mp4")
    assert frames.shape == truth.shape == (12, 48, 64, 3) and abs(frames.astype(int) - pixels).mean() < 12
    coarse = pixels[:, ::8, ::8].repeat(2, 0)
    write_video(tmp_path / "double.mp4", coarse.repeat(16, 1).repeat(16, 2), 32.0)
    frames, truth = read_pair(tmp_path / "video.mp4", tmp_path / "double.mp4")
    assert truth.shape == (12, 48, 64, 3) and abs(frames.astype(int) - truth).mean() < 12
    assert abs(frames[1:].astype(int) - truth[:-1]).mean() > 40  # one frame off would be noticed


def test_a_video_keeps_its_own_rate(film, tmp_path):
    film(tmp_path / "slow.mp4", frames=10, fps=10.0)
    frames, rate = read_frames(tmp_path / "slow.mp4")
    assert len(frames) == 10 and rate == pytest.approx(10)


@pytest.mark.parametrize(("between", "refused"), [(300_000, False), (60, True)])
def test_the_rate_is_that_of_the_pictures_not_the_headers(tmp_path, between, refused):
    """The header says 30,000 frames a second; two pictures ten seconds apart have not 300,000 in between."""
    path = tmp_path / "fast.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=30_000)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for count in range(2 if between > 60 else 40):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = count * between, Fraction(1, 30_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if refused:  # a picture each 2 ms
        with pytest.raises(ValueError, match=r"fast\.mkv: has \d+ frames a second; at most 240 are compared"):
            read_frames(path)
    else:
        frames, rate = read_frames(path)
        assert rate < 1 and 2 <= len(frames) <= 3


@pytest.mark.parametrize(("limit", "most"), [("MAX_FRAMES", 11), ("MAX_DECODED_BYTES", 11 * 3 * 48 * 64)])
def test_more_frames_than_are_held_are_refused(film, tmp_path, monkeypatch, limit, most):
    film(tmp_path / "video.mp4", frames=12)
    monkeypatch.setattr(f"megatv.eval.video_pairs.{limit}", most)
    with pytest.raises(ValueError, match=r"video\.mp4: has more than 11 frames of 64x48 at 16 fps"):
        read_pair(tmp_path / "video.mp4", tmp_path / "video.mp4")
    monkeypatch.setattr(f"megatv.eval.video_pairs.{limit}", 2 * most)
    assert len(read_pair(tmp_path / "video.mp4", tmp_path / "video.mp4")[1]) == 12


def test_a_short_reference_is_told_the_rule(film, tmp_path):
    film(tmp_path / "video.mp4", frames=12)
    film(tmp_path / "short.mp4", frames=8)
    with pytest.raises(
        ValueError, match=r"short.mp4: has 8 frames at 16 fps, its video .* has 12; a reference is"
    ):
        read_pair(tmp_path / "video.mp4", tmp_path / "short.mp4")


def test_an_unreadable_video_is_named(film, tmp_path):
    film(tmp_path / "video.mp4")
    (tmp_path / "broken.mp4").write_bytes(np.random.default_rng(0).bytes(2000))
    for pair in (("broken.mp4", "video.mp4"), ("video.mp4", "broken.mp4")):
        with pytest.raises(ValueError, match=r"broken.mp4: "):
            read_pair(*(tmp_path / name for name in pair))
