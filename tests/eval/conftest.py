"""Small videos on disk, and modules that stand where trained networks stand."""

import numpy as np
import pytest
import torch

from megatv.data.video import write_video


@pytest.fixture(scope="session")
def film():
    """(path, seed, frames, size, fps) -> writes coarse colours, new ones in each frame; returns them."""

    def write(path, seed=0, frames=16, size=(48, 64), fps=16.0):
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(seed).integers(0, 256, (frames, 6, 8, 3), dtype=np.uint8)
        pixels = coarse.repeat(size[0] // 6, 1).repeat(size[1] // 8, 2)
        write_video(path, pixels, fps)
        return pixels

    return write


class MeanAbsolute(torch.nn.Module):
    """Stands for LPIPS: [n, 3, H, W] twice to [n, 1, 1, 1]."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)


class MeanColours(torch.nn.Module):
    """Stands for an I3D with the switches of the widespread file: [1, 3, F, 224, 224] to [1, 3]."""

    def forward(
        self, video: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        assert not rescale and not resize and return_features and video.shape[2] >= 4
        assert video.shape[3] == 224 and video.shape[4] == 224
        return video.mean(dim=(2, 3, 4))


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """{"lpips", "i3d", "state"}: files of TorchScript, and one of tensors that no metric knows."""
    folder = tmp_path_factory.mktemp("networks")
    files = {name: folder / f"{name}.pt" for name in ("lpips", "i3d", "state")}
    torch.jit.script(MeanAbsolute()).save(str(files["lpips"]))
    torch.jit.script(MeanColours()).save(str(files["i3d"]))
    torch.save({"weight": torch.zeros(3)}, files["state"])
    return files
