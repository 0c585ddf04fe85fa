import numpy as np
import pytest

from megatv.eval.similarity import C1, C2
from megatv.eval.video_scores import PLAIN, compare, judged, mean_over_videos


def test_ssim_is_wang_s_formula_window_by_window():
    a, b = np.random.default_rng(0).integers(0, 256, (2, 1, 13, 14, 3)).astype(np.uint8)
    ramp = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(ramp, ramp) / np.outer(ramp, ramp).sum()
    found = []
    for top, left, colour in np.ndindex(3, 4, 3):
        x, y = (v[0, top : top + 11, left : left + 11, colour].astype(float) for v in (a, b))
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        found.append((2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2)))
    assert PLAIN["ssim"](a, b) == pytest.approx([np.mean(found)])


def test_every_frame_and_video_is_scored_and_the_set(film, tmp_path):
    def colours(frames):
        return frames.mean((0, 1, 2), dtype=np.float64)

    pairs = {}
    for seed, name in enumerate("abc"):
        pairs[name] = (tmp_path / f"v/{name}.mp4", tmp_path / f"r/{name}.mp4")
        for path in pairs[name]:
            film(path, seed=seed, frames=6)
    film(pairs["c"][0], seed=9, frames=5)  # another video than its reference
    per_video, distance = compare(pairs.items(), PLAIN, colours)
    assert [len(scores["psnr"]["frames"]) for scores in per_video.values()] == [6, 6, 5]
    assert per_video["a"]["psnr"]["mean"] == pytest.approx(58.92, abs=0.01)
    assert per_video["b"]["ssim"] == {"mean": pytest.approx(1), "frames": pytest.approx([1] * 6)}
    assert per_video["c"]["psnr"]["mean"] < 15 and per_video["c"]["ssim"]["mean"] < 0.5
    assert distance["value"] > 0 and compare(pairs.items(), PLAIN)[1] is None
    mean = mean_over_videos(per_video, "ssim")
    assert mean["videos"] == 3 and mean["value"] == pytest.approx((2 + per_video["c"]["ssim"]["mean"]) / 3)
    assert mean["low"] < mean["value"] < mean["high"] == pytest.approx(1)


def test_one_video_has_no_interval():
    found = mean_over_videos({"a": {"psnr": {"mean": 30.0}}, "b": {}}, "psnr")
    assert found == {"value": 30.0, "low": None, "high": None, "videos": 1}


def test_pictures_smaller_than_the_window_are_refused(film, tmp_path):
    film(tmp_path / "a.mp4", size=(12, 8), frames=2)
    pairs = {"a": (tmp_path / "a.mp4", tmp_path / "a.mp4")}
    with pytest.raises(ValueError, match=r"a.mp4: is 8x12, and ssim needs 11 pixels or more each way"):
        compare(pairs.items(), PLAIN)
    assert compare(pairs.items(), {"psnr": PLAIN["psnr"]})[0]["a"]["psnr"]["mean"] > 50


def test_answers_become_points():
    class One:
        spoken = ((0.5, "Jump."), (1.0, "Turn."), (2.0, "Sit."))

    found = judged({"a": One()}, {"a": ["yes", "partly", "no"]})["a"]["vlm"]
    assert found["mean"] == 0.5
    assert found["orders"][1] == {"seconds": 1.0, "text": "Turn.", "answer": "partly"}
