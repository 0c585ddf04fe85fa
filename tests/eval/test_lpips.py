from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from megatv.eval.lpips import load_lpips


def alex_layers():
    return [
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    ]  # fmt: skip


def vgg_layers():
    layers, inputs = [], 3
    for k, channels in enumerate([64, 64, 128, 128, *[256] * 3, *[512] * 6]):
        layers += [nn.MaxPool2d(2)] * (k in (2, 4, 7, 10))
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
        inputs = channels
    return layers


class Lpips(nn.Module):
    """LPIPS written as modules whose state dict has the authors' names; `lin` layers behind a dropout."""

    def __init__(self, layers, ends, widths):
        super().__init__()
        self.net = nn.Module()
        for k, (begin, end) in enumerate(pairwise([0, *ends]), 1):
            piece = nn.Sequential()
            for index in range(begin, end):
                piece.add_module(str(index), layers[index])
            self.net.add_module(f"slice{k}", piece)
        for k, channels in enumerate(widths):
            lin = nn.Module()
            lin.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))
            nn.init.uniform_(lin.model[1].weight)
            self.add_module(f"lin{k}", lin)
        self.lins = nn.ModuleList([getattr(self, f"lin{k}") for k in range(5)])  # the authors' second names

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
    return Lpips(alex_layers(), (2, 5, 8, 10, 12), (64, 192, 384, 256, 256)).eval()


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


def test_a_state_dict_of_the_vgg_variant_is_known_by_its_names(frames, tmp_path):
    torch.manual_seed(0)
    vgg = Lpips(vgg_layers(), (4, 9, 16, 23, 30), (64, 128, 256, 512, 512)).eval()
    torch.save(vgg.state_dict(), tmp_path / "vgg.pth")
    few = frames[:, :2]
    with torch.no_grad():
        expected = vgg(*(torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1 for x in few)).numpy()
    assert load_lpips(tmp_path / "vgg.pth")(*few) == pytest.approx(expected, rel=1e-3)


def test_safetensors_give_the_same_distance(alexnet, frames, tmp_path):
    torch.save(alexnet.state_dict(), tmp_path / "alex.pth")
    save_file({k: v.clone() for k, v in alexnet.state_dict().items()}, tmp_path / "alex.safetensors")
    found = [load_lpips(tmp_path / f"alex.{kind}")(*frames[:, :2]) for kind in ("pth", "safetensors")]
    assert (found[0] == found[1]).all()


def test_torchscript_without_trust_is_refused(networks):
    sentence = r"lpips.pt: TorchScript can run any code, and no SHA-256 is known .* or --trust-weights if"
    with pytest.raises(ValueError, match=sentence):
        load_lpips(networks["lpips"])


def test_a_torchscript_gets_pictures_from_minus_one_to_one(networks, frames):
    distance = load_lpips(networks["lpips"], trust=True)
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
    with pytest.raises(ValueError, match=r"noise.pt: neither safetensors .* nor a zip of torch.save"):
        load_lpips(tmp_path / "noise.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt: 'net.slice1.0.weight' is missing"):
        load_lpips(tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"'net.slice1.0.weight' is missing instead of \[64, 3, 11, 11\]"):
        load_lpips(networks["state"])
    torch.save({**alexnet.state_dict(), "lin2.model.1.weight": torch.zeros(1, 5, 1, 1)}, tmp_path / "odd.pth")
    with pytest.raises(
        ValueError,
        match=r"'lin2.model.1.weight' is torch.float32 \[1, 5, 1, 1\] instead of floats \[1, 384, 1, 1\]",
    ):
        load_lpips(tmp_path / "odd.pth")
    with pytest.raises(
        ValueError, match=r"i3d.pt: gives no distance for each pair of pictures \(16, 3, 64, 80\)"
    ):
        load_lpips(networks["i3d"], trust=True)(*frames)


def test_distances_that_are_not_finite_are_refused(alexnet, frames, tmp_path):
    state = alexnet.state_dict()
    torch.save(
        {**state, "lin0.model.1.weight": state["lin0.model.1.weight"] * torch.nan}, tmp_path / "nan.pth"
    )
    with pytest.raises(ValueError, match=r"nan.pth: 'lin0.model.1.weight' has numbers that are not finite"):
        load_lpips(tmp_path / "nan.pth")
    torch.save({**state, "lin0.model.1.weight": torch.full((1, 64, 1, 1), 3e38)}, tmp_path / "large.pth")
    with pytest.raises(ValueError, match=r"large.pth: gives distances that are not finite"):
        load_lpips(tmp_path / "large.pth")(*frames)


def test_pictures_too_small_for_the_network_are_refused_in_one_line(alexnet, tmp_path):
    torch.save(alexnet.state_dict(), tmp_path / "alex.pth")
    tiny = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"give another file, or larger videos") as error:
        load_lpips(tmp_path / "alex.pth")(tiny, tiny)
    assert "\n" not in str(error.value)
