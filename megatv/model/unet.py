"""The patcher between latents and tokens: a 2 x 2 U-Net split into its way down and its way up.

Transfusion's U-Net blocks (time embedding added, plain GroupNorm) in two levels: the down path makes one
token of 2 x 2 latent pixels, the up path makes velocities of the trunk's output, of the skips of the *noisy*
copy, and of its time (TV2TV eq. 4 and 13). Skips carry x_t around the trunk, so that the trunk need not
transmit noise. The time MLP is shared: its output travels to the up path with the skips.

Skips enter a block's branch only, and a transposed convolution opens every token into its own four pixels:
what the trunk knows about the next chunk has a straight way to the velocity, which noise from the skips
cannot drown.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatv.config import LATENT_CHANNELS, PATCH, Config

TIME_FEATURES = 256


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of 1000 t at TIME_FEATURES / 2 wavelengths: t [B] -> [B, TIME_FEATURES], >= fp32."""
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    half = TIME_FEATURES // 2
    rates = torch.exp(torch.arange(half, device=t.device, dtype=t.dtype) * (-math.log(10_000) / half))
    angles = 1000 * t[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, none narrower than 16 channels (4 groups at the toy width 64)."""
    return nn.GroupNorm(math.gcd(channels, max(1, min(32, channels // 16))), channels)


class ResBlock(nn.Module):
    """The input plus GroupNorm-SiLU-conv, plus the time, GroupNorm-SiLU-conv of the input and its skip."""

    def __init__(self, width: int, skip: int, time: int) -> None:
        super().__init__()
        self.norm1 = group_norm(width + skip)
        self.conv1 = nn.Conv2d(width + skip, width, 3, padding=1)
        self.time = nn.Linear(time, width)
        self.norm2 = group_norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, skip: Tensor | None = None) -> Tensor:
        """x [B, width, h, w], time [B, time] (after its SiLU), skip [B, skip, h, w] -> like x."""
        h = x if skip is None else torch.cat([x, skip], 1)
        h = self.conv1(F.silu(self.norm1(h))) + self.time(time)[:, :, None, None]
        return x + self.conv2(F.silu(self.norm2(h)))


class UNetDown(nn.Module):
    """Latents and their times to tokens: [B, C, h, w], [B] -> [B, P, D] and skips [B - clean, X].

    A row of skips is the concatenation of the time embedding and of every block's output, flattened; see
    `skip_shapes`. The first `clean` chunks have none: they do not go up.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        full, half = config.model.unet_channels
        time = 2 * full
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, time), nn.SiLU(), nn.Linear(time, time))
        self.stem = nn.Conv2d(LATENT_CHANNELS, full, 3, padding=1)
        self.full_blocks = nn.ModuleList([ResBlock(full, 0, time) for _ in range(2)])
        self.downsample = nn.Conv2d(full, half, 3, stride=PATCH, padding=1)
        self.half_blocks = nn.ModuleList([ResBlock(half, 0, time) for _ in range(2)])
        self.to_tokens = nn.Conv2d(half, config.model.width, 1)

    def forward(self, x: Tensor, t: Tensor, clean: int = 0) -> tuple[Tensor, Tensor]:
        time = F.silu(self.time(time_features(t).to(x.dtype)))
        x = self.stem(x)
        skips = [time, x]
        for block in self.full_blocks:
            x = block(x, time)
            skips.append(x)
        x = self.downsample(x)
        skips.append(x)
        for block in self.half_blocks:
            x = block(x, time)
            skips.append(x)
        tokens = self.to_tokens(x).flatten(2).transpose(1, 2)
        return tokens, torch.cat([s[clean:].flatten(1) for s in skips], 1)


class UNetUp(nn.Module):
    """Tokens and skips to velocities: [B, P, D], [B, X] -> [B, C, h, w]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        full, half = config.model.unet_channels
        time = 2 * full
        self.skip_shapes = skip_shapes(config)
        self.from_tokens = nn.Conv2d(config.model.width, half, 1)
        self.half_blocks = nn.ModuleList([ResBlock(half, half, time) for _ in range(3)])
        self.upsample = nn.ConvTranspose2d(half, full, PATCH, stride=PATCH)
        self.full_blocks = nn.ModuleList([ResBlock(full, full, time) for _ in range(3)])
        self.norm = group_norm(full)
        self.to_velocity = nn.Conv2d(full, LATENT_CHANNELS, 3, padding=1)

    def unflatten(self, skips: Tensor) -> list[Tensor]:
        """[B, X] -> the time embedding and the feature maps that `UNetDown` flattened, in its order."""
        pieces = skips.split([math.prod(shape) for shape in self.skip_shapes], 1)
        return [piece.unflatten(1, shape) for piece, shape in zip(pieces, self.skip_shapes, strict=True)]

    def forward(self, tokens: Tensor, skips: Tensor) -> Tensor:
        time, *maps = self.unflatten(skips)
        x = self.from_tokens(tokens.transpose(1, 2).unflatten(2, maps[-1].shape[2:]))
        for block in self.half_blocks:
            x = block(x, time, maps.pop())
        x = self.upsample(x)
        for block in self.full_blocks:
            x = block(x, time, maps.pop())
        return self.to_velocity(F.silu(self.norm(x)))


def skip_shapes(config: Config) -> list[tuple[int, ...]]:
    """Shapes of the time embedding and of the down path's feature maps, for one chunk."""
    full, half = config.model.unet_channels
    h, w = config.latent_height, config.latent_width
    return [(2 * full,), *[(full, h, w)] * 3, *[(half, h // PATCH, w // PATCH)] * 3]


class LinearDown(nn.Module):
    """One matrix from a 2 x 2 patch and its time features to a token; no skips. Same shapes as `UNetDown`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.to_tokens = nn.Linear(LATENT_CHANNELS * PATCH**2 + TIME_FEATURES, config.model.width)

    def forward(self, x: Tensor, t: Tensor, clean: int = 0) -> tuple[Tensor, Tensor]:
        patches = F.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)
        time = time_features(t).to(x.dtype)[:, None].expand(-1, patches.shape[1], -1)
        return self.to_tokens(torch.cat([patches, time], -1)), x.new_empty(len(x) - clean, 0)


class LinearUp(nn.Module):
    """One matrix from a token to its 2 x 2 patch of velocities. Same shapes as `UNetUp`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.size = config.latent_height // PATCH, config.latent_width // PATCH
        self.to_velocity = nn.Linear(config.model.width, LATENT_CHANNELS * PATCH**2)

    def forward(self, tokens: Tensor, skips: Tensor) -> Tensor:
        return F.pixel_shuffle(self.to_velocity(tokens).transpose(1, 2).unflatten(2, self.size), PATCH)
