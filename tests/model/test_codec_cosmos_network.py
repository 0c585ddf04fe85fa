"""The Cosmos network: shapes, names, causality, and the numbers of NVIDIA's own code on the same weights."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from megatv.model.codec.cosmos_network import CosmosNetwork, haar, unhaar

NAMES = "f0e1728b6f5f094bd26fe428b85346da0e145dae723273a6750d1bcae80f68f8"
"""SHA-256 of the sorted lines `name shape` of the state dict of NVIDIA's module for CV4x8x8-360p."""
LATENTS = [0.67501, 0.67661, 0.43025, 0.21499, -0.2656, -0.61064, -0.6735, -0.54244, -0.36614, 0.09736]
PIXELS = [1.06516, 2.2272, -7.28711, 1.0912, 1.70648, 2.07152, 3.76842, 1.02719, -0.27807, -8.65362, 2.31696]
"""Every 29th number of the latents and every 997th of the pixels that cosmos-predict1's
`CausalContinuousVideoTokenizer` (configs: CV4x8x8-360p with channels=4; commit 4ed35fa) makes of `picture`
with the weights of `fill`, in float32 on a CPU."""


def fill(network: torch.nn.Module) -> None:
    """Weights that need no random generator: waves over the state dict, smaller for more inputs."""
    place = 0
    for name, value in sorted(network.state_dict().items()):
        if "patcher" in name:  # constants of the wavelet in NVIDIA's module
            continue
        wave = torch.sin(0.37 * torch.arange(place, place + value.numel(), dtype=torch.float64))
        norm = name.endswith("norm.weight")
        scale = 0.3 if value.ndim == 1 else 1.5 / value[0].numel() ** 0.5
        value.copy_((scale * wave + norm).reshape(value.shape))
        place += value.numel()


def picture(frames: int, height: int, width: int) -> Tensor:
    """A moving pattern [1, 3, F, H, W] in [-1, 1]."""
    t, y, x = torch.meshgrid(*map(torch.arange, (frames, height, width)), indexing="ij")
    return torch.stack([torch.sin(0.5 * t + 0.2 * y + 0.1 * (c + 1) * x) for c in range(3)])[None]


@pytest.fixture(scope="module")
def network() -> CosmosNetwork:
    network = CosmosNetwork(channels=4).eval()
    with torch.no_grad():
        fill(network)
    return network.requires_grad_(False)


def test_names_and_shapes_are_those_of_the_published_weights() -> None:
    with torch.device("meta"):
        state = CosmosNetwork().state_dict()
    lines = [f"{name} {tuple(value.shape)}" for name, value in sorted(state.items())]
    assert len(lines) == 318 and sum(value.numel() for value in state.values()) == 110_208_816
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == NAMES


def test_numbers_are_those_of_nvidias_code(network: CosmosNetwork) -> None:
    latents = network.encode(picture(9, 16, 24))
    assert latents.flatten()[::29].tolist() == pytest.approx(LATENTS, abs=2e-5)
    pixels = network.decode(latents)
    assert pixels.flatten()[::997].tolist() == pytest.approx(PIXELS, abs=2e-4)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (5, 16, 8), (49, 8, 16)])
def test_geometry(network: CosmosNetwork, frames: int, height: int, width: int) -> None:
    latents = network.encode(picture(frames, height, width))
    assert latents.shape == (1, 16, 1 + (frames - 1) // 4, height // 8, width // 8)
    assert network.decode(latents).shape == (1, 3, frames, height, width)


def test_a_prefix_gives_the_same_prefix(network: CosmosNetwork) -> None:
    video = picture(17, 16, 16)
    latents = network.encode(video)
    pixels = network.decode(latents)
    for chunks in (1, 2, 4):
        frames = 1 + 4 * (chunks - 1)
        torch.testing.assert_close(network.encode(video[:, :, :frames]), latents[:, :, :chunks])
        found = network.decode(latents[:, :, :chunks])
        torch.testing.assert_close(found, pixels[:, :, :frames], rtol=1e-5, atol=1e-4)


def test_later_frames_do_matter_and_examples_do_not_mix(network: CosmosNetwork) -> None:
    video = picture(9, 16, 16)
    changed = video.clone()
    changed[:, :, 8] = 0
    both = network.encode(torch.cat([video, changed]))
    torch.testing.assert_close(both[:1], network.encode(video))
    assert not torch.allclose(both[0, :, 2], both[1, :, 2])


def test_the_wavelet_is_inverted_and_begins_with_means() -> None:
    video = torch.randn(2, 3, 4, 6, 8)
    coefficients = haar(video)
    assert coefficients.shape == (2, 24, 2, 3, 4)
    means = torch.nn.functional.avg_pool3d(video, 2)
    torch.testing.assert_close(coefficients[:, :3], means)
    torch.testing.assert_close(unhaar(coefficients), video)


def test_bf16_is_close(network: CosmosNetwork) -> None:
    exact = network.encode(picture(5, 16, 16))
    half = CosmosNetwork(channels=4)
    half.load_state_dict(network.state_dict())
    found = half.bfloat16().encode(picture(5, 16, 16).bfloat16()).float()
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05)
