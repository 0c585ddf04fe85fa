"""LPIPS (Zhang et al. 2018): how far apart two pictures are in the features of a trained network.

The network is a file of the user's: the state dict of the authors' AlexNet or VGG variant, trunk and linear
layers (with their package: `torch.save(lpips.LPIPS(net="alex").state_dict(), FILE)`), or a TorchScript that
takes two batches of pictures, which can run any code and so needs the user's trust.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megatv.eval.local_weights import REFUSALS, TRUST, last_line
from megatv.weights import Published, is_torchscript, load_torchscript, read_tensors, take

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(frames, truth), uint8 [F, H, W, 3] each, to float64 [F]; 0 for equal pictures."""
BATCH = 16
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation of pictures in [-1, 1]."""


class Conv(NamedTuple):
    """A convolution of the trunk, with a ReLU behind it; `name` is its number in the state dict."""

    name: int
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Trunk(NamedTuple):
    """Five slices, each of which gives features; those in `pooled` begin with a max pool.

    pool  kernel size of the max pool, whose stride is 2
    """

    slices: tuple[tuple[Conv, ...], ...]
    pool: int
    pooled: tuple[int, ...]


ALEX = Trunk(
    ((Conv(0, 64, 11, 4, 2),), (Conv(3, 192, 5, 1, 2),), (Conv(6, 384),), (Conv(8, 256),), (Conv(10, 256),)),
    pool=3,
    pooled=(1, 2),
)
VGG = Trunk(
    (
        (Conv(0, 64), Conv(2, 64)),
        (Conv(5, 128), Conv(7, 128)),
        (Conv(10, 256), Conv(12, 256), Conv(14, 256)),
        (Conv(17, 512), Conv(19, 512), Conv(21, 512)),
        (Conv(24, 512), Conv(26, 512), Conv(28, 512)),
    ),
    pool=2,
    pooled=(1, 2, 3, 4),
)


def load_lpips(file: Path | None, device: str = "cpu", *, trust: bool = False) -> Distance:
    """The distance that a file of weights defines. ValueError when it is absent or of another kind.

    trust  run a TorchScript file (`--trust-weights`)
    """
    if file is None:
        raise ValueError(
            "lpips needs weights and nothing is downloaded: give --lpips FILE, what "
            "torch.save(lpips.LPIPS(net='alex').state_dict(), FILE) wrote elsewhere, or a TorchScript of two "
            "batches of pictures"
        )
    if not file.is_file():
        raise ValueError(f"--lpips {file}: is no file; nothing is downloaded, so give a local one")
    network: Callable[[Tensor, Tensor], Tensor]
    if is_torchscript(file):
        network = load_torchscript(file, device, Published(), trust=trust, option=TRUST)
    else:
        network = _network(file, device)

    @torch.inference_mode()
    def distance(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
        found = []
        for at in range(0, len(frames), BATCH):
            a, b = (pictures(x[at : at + BATCH], device) for x in (frames, truth))
            try:
                found.append(network(a, b).double().reshape(len(a)).cpu().numpy())
            except REFUSALS as error:
                raise ValueError(
                    f"--lpips {file}: gives no distance for each pair of pictures {tuple(a.shape)}, float32 "
                    f"in [-1, 1] ({last_line(error)}); give another file, or larger videos"
                ) from None
        if not np.isfinite(distances := np.concatenate(found)).all():
            raise ValueError(f"--lpips {file}: gives distances that are not finite; give another file")
        return distances

    return distance


def pictures(frames: np.ndarray, device: str) -> Tensor:
    """float32 [F, 3, H, W] in [-1, 1] of uint8 [F, H, W, 3]."""
    return torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _network(file: Path, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS of the state dict in `file`: squared differences of unit features, weighted by channel."""
    state = read_tensors(file)
    trunk = VGG if isinstance(state, dict) and "net.slice1.2.weight" in state else ALEX
    found = take(state, _shapes(trunk), file)
    weights = {name: value.float().to(device) for name, value in found.items()}
    shift, scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))

    def features(x: Tensor) -> list[Tensor]:
        x, found = (x - shift) / scale, []
        for k, convolutions in enumerate(trunk.slices):
            x = F.max_pool2d(x, trunk.pool, 2) if k in trunk.pooled else x
            for conv in convolutions:
                name = f"net.slice{k + 1}.{conv.name}"
                weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
                x = F.relu(F.conv2d(x, weight, bias, conv.stride, conv.padding))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def distance(a: Tensor, b: Tensor) -> Tensor:
        heads = [weights[f"lin{k}.model.1.weight"] for k in range(len(trunk.slices))]
        apart = zip(features(a), features(b), heads, strict=True)
        return torch.stack([F.conv2d((x - y).square(), head).mean((1, 2, 3)) for x, y, head in apart]).sum(0)

    return distance


def _shapes(trunk: Trunk) -> dict[str, Tensor]:
    """The tensors of a trunk and its linear layers, on the meta device."""
    found: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for k, convolutions in enumerate(trunk.slices):
        for conv in convolutions:
            name = f"net.slice{k + 1}.{conv.name}"
            found[f"{name}.weight"] = (conv.channels, inputs, conv.kernel, conv.kernel)
            found[f"{name}.bias"] = (conv.channels,)
            inputs = conv.channels
        found[f"lin{k}.model.1.weight"] = (1, inputs, 1, 1)
    return {name: torch.empty(shape, device="meta") for name, shape in found.items()}
