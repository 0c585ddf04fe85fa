import numpy as np
import pytest
import torch
from torch import nn

from megatv.eval.lpips import load_lpips


class AlexNet(nn.Module):
    """LPIPS written as modules whose state dict has the authors' names; `lin` layers behind a dropout."""

    def __init__(self):
        super().__init__()
        layers = [
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        ]  # fmt: skip
        self.net = nn.Module()
        for k, (begin, end) in enumerate([(0, 2), (2, 5), (5, 8), (8, 10), (10, 12)], 1):
            piece = nn.Sequential()
            for index in range(begin, end):
                piece.add_module(str(index), layers[index])
            self.net.add_module(f"slice{k}", piece)
        for k, channels in enumerate((64, 192, 384, 256, 256)):
            lin = nn.Module()
            lin.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))
            nn.init.uniform_(lin.model[1].weight)
            self.add_module(f"lin{k}", lin)

    def forward(self, a, b):
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        a, b = ((x - shift[:, None, None]) / scale[:, None, None] for x in (a, b))
        total = 0
        for k in range(5):
            a, b = (getattr(self.net, f"slice{k + 1}")(x) for x in (a, b))
            apart = (nn.functional.normalize(a, dim=1) - nn.functional.normalize(b, dim=1)) ** 2
            total = total + getattr(self, f"lin{k}").model(apart).mean((2, 3))[:, 0]
        return total


@pytest.fixture(scope="module")
def alexnet():
    torch.manual_seed(0)
    return AlexNet().eval()


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (2, 18, 64, 80, 3), dtype=np.uint8)


def test_a_state_dict_is_the_authors_network(alexnet, frames, tmp_path):
    torch.save(alexnet.state_dict(), tmp_path / "alex.pth")
    distance = load_lpips(tmp_path / "alex.pth")
    with torch.no_grad():
        expected = alexnet(*(torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1 for x in frames)).numpy()
    found = distance(*frames)  # 18 pictures are two batches
    assert found.shape == (18,) and found == pytest.approx(expected, rel=1e-4) and found.min() > 0.01
    assert distance(frames[0], frames[0]) == pytest.approx(np.zeros(18))


def test_a_torchscript_gets_pictures_from_minus_one_to_one(networks, frames):
    distance = load_lpips(networks["lpips"])
    black, white = np.zeros((17, 8, 8, 3), np.uint8), np.full((17, 8, 8, 3), 255, np.uint8)
    assert distance(black, white) == pytest.approx(np.full(17, 2.0))
    expected = abs(frames[0].astype(float) - frames[1]).mean((1, 2, 3)) / 127.5
    assert distance(*frames) == pytest.approx(expected, rel=1e-5)


def test_wrong_files_are_told_what_is_right(networks, alexnet, frames, tmp_path):
    with pytest.raises(ValueError, match=r"lpips needs weights and nothing is downloaded: give --lpips FILE"):
        load_lpips(None)
    with pytest.raises(ValueError, match=r"--lpips .*gone.pt: is no file; nothing is downloaded"):
        load_lpips(tmp_path / "gone.pt")
    (tmp_path / "noise.pt").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"noise.pt: is neither a TorchScript nor a state dict"):
        load_lpips(tmp_path / "noise.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt: is neither"):
        load_lpips(tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"'net.slice1.0.weight' is missing instead of \(64, 3, 11, 11\)"):
        load_lpips(networks["state"])
    torch.save({**alexnet.state_dict(), "lin2.model.1.weight": torch.zeros(1, 5, 1, 1)}, tmp_path / "odd.pth")
    with pytest.raises(
        ValueError, match=r"'lin2.model.1.weight' is \(1, 5, 1, 1\) instead of \(1, 384, 1, 1\)"
    ):
        load_lpips(tmp_path / "odd.pth")
    with pytest.raises(
        ValueError, match=r"i3d.pt: gives no distance for each pair of pictures \(16, 3, 64, 80\)"
    ):
        load_lpips(networks["i3d"])(*frames)


def test_distances_that_are_not_finite_are_refused(alexnet, frames, tmp_path):
    state = alexnet.state_dict()
    torch.save(
        {**state, "lin0.model.1.weight": state["lin0.model.1.weight"] * torch.nan}, tmp_path / "nan.pth"
    )
    with pytest.raises(ValueError, match=r"nan.pth: gives distances that are not finite"):
        load_lpips(tmp_path / "nan.pth")(*frames)


def test_pictures_too_small_for_the_network_are_refused_in_one_line(alexnet, tmp_path):
    torch.save(alexnet.state_dict(), tmp_path / "alex.pth")
    tiny = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"give another file, or larger videos") as error:
        load_lpips(tmp_path / "alex.pth")(tiny, tiny)
    assert "\n" not in str(error.value)
