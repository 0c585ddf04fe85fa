"""LPIPS (Zhang et al. 2018): how far apart two pictures are in the features of a trained network.

The network is a file of the user's: a TorchScript that takes two batches of pictures, or the state dict of
the authors' AlexNet variant, trunk and linear layers (with their package:
`torch.save(lpips.LPIPS(net="alex").state_dict(), FILE)`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megatv.eval.local_weights import REFUSALS, last_line, load_state, load_torchscript

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(frames, truth), uint8 [F, H, W, 3] each, to float64 [F]; 0 for equal pictures."""
BATCH = 16
LAYERS = (("slice1.0", 4, 2), ("slice2.3", 1, 2), ("slice3.6", 1, 1), ("slice4.8", 1, 1), ("slice5.10", 1, 1))
"""AlexNet's convolutions: name in the state dict, stride, padding; pools of 3 by 2 before 2nd and 3rd."""
CHANNELS = (64, 192, 384, 256, 256)
KERNELS = (11, 5, 3, 3, 3)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation of pictures in [-1, 1]."""


def load_lpips(file: Path | None, device: str = "cpu") -> Distance:
    """The distance that a file of weights defines. ValueError when it is absent or of another kind."""
    if file is None:
        raise ValueError(
            "lpips needs weights and nothing is downloaded: give --lpips FILE, a TorchScript of two batches "
            "of pictures, or what torch.save(lpips.LPIPS(net='alex').state_dict(), FILE) wrote elsewhere"
        )
    network: Callable[[Tensor, Tensor], Tensor] | None = load_torchscript(file, "--lpips", device)
    if network is None:
        network = _alexnet(file, device)

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


def _alexnet(file: Path, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS of the state dict in `file`: squared differences of unit features, weighted by channel."""
    state = load_state(file)
    if state is None:
        raise ValueError(
            f"--lpips {file}: is neither a TorchScript nor a state dict; give a file of torch.jit.save or of "
            "torch.save(module.state_dict(), FILE)"
        )
    trunk, heads = [], []
    inputs = (3, *CHANNELS)
    for k, (name, _, _) in enumerate(LAYERS):
        shape = (CHANNELS[k], inputs[k], KERNELS[k], KERNELS[k])
        weight, bias = (_take(state, f"net.{name}.weight", shape, file), f"net.{name}.bias")
        trunk.append((weight.to(device), _take(state, bias, shape[:1], file).to(device)))
        heads.append(_take(state, f"lin{k}.model.1.weight", (1, CHANNELS[k], 1, 1), file).to(device))
    shift, scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))

    def features(x: Tensor) -> list[Tensor]:
        x, found = (x - shift) / scale, []
        for k, ((weight, bias), (_, stride, padding)) in enumerate(zip(trunk, LAYERS, strict=True)):
            x = F.max_pool2d(x, 3, 2) if k in (1, 2) else x
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def distance(a: Tensor, b: Tensor) -> Tensor:
        apart = zip(features(a), features(b), heads, strict=True)
        return torch.stack([F.conv2d((x - y).square(), head).mean((1, 2, 3)) for x, y, head in apart]).sum(0)

    return distance


def _take(state: dict[str, Tensor], name: str, shape: tuple[int, ...], file: Path) -> Tensor:
    if name not in state or tuple(state[name].shape) != shape:
        found = f"is {tuple(state[name].shape)}" if name in state else "is missing"
        raise ValueError(
            f"--lpips {file}: '{name}' {found} instead of {shape}; give the whole state dict of the authors' "
            "AlexNet variant, trunk and linear layers, or a TorchScript"
        )
    return state[name].float()
