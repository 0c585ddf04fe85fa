import numpy as np
import pytest

from megatv.eval.fvd import fvd, load_i3d
from megatv.eval.local_weights import sha256
from megatv.weights import Published


def test_features_are_those_of_the_scaled_video(networks):
    frames = np.zeros((6, 30, 40, 3), np.uint8)
    frames[..., 0], frames[3:, ..., 1] = 255, 255
    assert load_i3d(networks["i3d"], trust=True)(frames) == pytest.approx([1, 0, -1], abs=1e-5)


def test_distance_of_sets_has_the_gaussians_closed_form():
    """One feature: (m - n)^2 + (s - t)^2."""
    theirs = np.random.default_rng(0).normal(size=(60, 1))
    theirs = (theirs - theirs.mean()) / theirs.std(ddof=1)
    found = fvd(3 * theirs + 2, theirs)
    assert found["value"] == pytest.approx(2**2 + (3 - 1) ** 2)
    assert found["low"] < found["value"] < found["high"] < 16
    assert fvd(theirs, theirs)["value"] == pytest.approx(0, abs=1e-9)


def test_one_video_is_no_set():
    with pytest.raises(ValueError, match="give at least 2 videos"):
        fvd(np.zeros((1, 3)), np.zeros((1, 3)))


def test_wrong_files_are_told_what_is_right(networks, tmp_path):
    with pytest.raises(ValueError, match=r"fvd needs weights and nothing is downloaded: give --i3d FILE"):
        load_i3d(None)
    with pytest.raises(ValueError, match=r"--i3d .*gone.pt: is no file"):
        load_i3d(tmp_path / "gone.pt")
    with pytest.raises(
        ValueError, match=r"state.pt: is no TorchScript; give a file that torch.jit.save wrote"
    ):
        load_i3d(networks["state"])
    with pytest.raises(ValueError, match=r"lpips.pt: cannot read a video \(1, 3, 6, 224, 224\)"):
        load_i3d(networks["lpips"], trust=True)(np.zeros((6, 30, 40, 3), np.uint8))
    with pytest.raises(ValueError, match=r"i3d.pt: cannot read a video .* or longer videos") as error:
        load_i3d(networks["i3d"], trust=True)(np.zeros((2, 30, 40, 3), np.uint8))
    assert "\n" not in str(error.value)


def test_only_the_published_torchscript_runs_without_trust(networks, monkeypatch):
    with pytest.raises(
        ValueError,
        match=r"i3d.pt: TorchScript can run any code, and its SHA-256 is not .* or --trust-weights if",
    ):
        load_i3d(networks["i3d"])
    monkeypatch.setattr("megatv.eval.fvd.I3D", Published(sha256=sha256(networks["i3d"])))
    assert load_i3d(networks["i3d"])(np.zeros((6, 30, 40, 3), np.uint8)).shape == (3,)
