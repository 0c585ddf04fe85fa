"""The network of Cosmos-Tokenize1-CV4x8x8-360p as a module, so that its weights need no TorchScript.

A video, [B, 3, 1 + 4k, H, W] in [-1, 1], becomes latents [B, 16, 1 + k, H / 8, W / 8] in three halvings: a
Haar wavelet halves time, rows and columns, the first level of the encoder does so again, the second level
halves rows and columns only. The decoder mirrors this. Everything is causal: convolutions in time are
padded with copies of the first frame, norms and spatial attention see one frame, attention in time is masked.
So a prefix of a video gives the same prefix of its latents, and the other way round.

Structure and names of the state dict are those of NVIDIA's cosmos-predict1 (`cosmos_predict1/tokenizer`,
entry CV4x8x8-360p of its configs: 128 channels times 2, 4 and 4, two residual blocks a level, attention in
the middle only, an autoencoder without a KL term); the values of both networks were compared.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatv.config import LATENT_CHANNELS

CHANNELS = 128
MULTIPLES = (2, 4, 4)
"""Width of each level, in CHANNELS."""
BLOCKS = 2
"""Residual blocks in a level of the encoder; the decoder has one more."""


class CosmosNetwork(nn.Module):
    """Encoder and decoder; `channels` is 128 in the published weights."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.encoder = Encoder(channels)
        self.quant_conv = CausalConv(LATENT_CHANNELS, LATENT_CHANNELS)
        self.post_quant_conv = CausalConv(LATENT_CHANNELS, LATENT_CHANNELS)
        self.decoder = Decoder(channels)

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, 1 + 4k, H, W] in [-1, 1] to latents [B, 16, 1 + k, H / 8, W / 8]."""
        return self.quant_conv(self.encoder(video))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, 16, 1 + k, h, w] to [B, 3, 1 + 4k, 8h, 8w]."""
        return self.decoder(self.post_quant_conv(latents))


class Encoder(nn.Module):
    """[B, 3, 1 + 4k, H, W] to [B, 16, 1 + k, H / 8, W / 8]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels * multiple for multiple in (1, *MULTIPLES)]
        self.conv_in = factorized(3 * 8, channels)
        self.down = nn.Sequential()
        for inputs, outputs in itertools.pairwise(widths):
            level = nn.Sequential(OrderedDict(block=residuals(inputs, outputs, BLOCKS)))
            if len(self.down) < len(MULTIPLES) - 1:
                level.add_module("downsample", Downsample(outputs, time=len(self.down) == 0))
            self.down.append(level)
        self.mid = middle(widths[-1])
        self.norm_out = FrameNorm(widths[-1])
        self.conv_out = factorized(widths[-1], LATENT_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = repeat_first(x, 1)  # the wavelet takes frames in pairs: the first one with itself
        x = self.mid(self.down(self.conv_in(haar(x))))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """[B, 16, 1 + k, h, w] to [B, 3, 1 + 4k, 8h, 8w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels * multiple for multiple in (*MULTIPLES, MULTIPLES[-1])]
        self.conv_in = factorized(LATENT_CHANNELS, widths[-1])
        self.mid = middle(widths[-1])
        self.up = nn.ModuleList()  # from the level of the picture to that of the latents, as the encoder's
        for outputs, inputs in itertools.pairwise(widths):
            level = nn.Sequential(OrderedDict(block=residuals(inputs, outputs, BLOCKS + 1)))
            if len(self.up) > 0:
                level.add_module("upsample", Upsample(outputs, time=len(self.up) == 1))
            self.up.append(level)
        self.norm_out = FrameNorm(widths[0])
        self.conv_out = factorized(widths[0], 3 * 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return unhaar(self.conv_out(F.silu(self.norm_out(x))))[:, :, 1:]


class CausalConv(nn.Module):
    """A convolution over (time, rows, columns) that sees no later frame.

    Rows and columns are padded with zeros, time with copies of the first frame before it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int] = (1, 1, 1),
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.before = kernel[0] - stride[0]
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, (0, padding, padding))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(repeat_first(x, self.before) if self.before else x)


def factorized(inputs: int, outputs: int) -> nn.Sequential:
    """A 3 x 3 convolution of each frame, then one over three frames."""
    return nn.Sequential(
        CausalConv(inputs, outputs, (1, 3, 3), padding=1), CausalConv(outputs, outputs, (3, 1, 1))
    )


class FrameNorm(nn.Module):
    """Each frame to zero mean and unit variance over channels, rows and columns; a scale a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        return self.norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


class Residual(nn.Module):
    """Two factorized convolutions, each behind a norm, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = FrameNorm(inputs)
        self.conv1 = factorized(inputs, outputs)
        self.norm2 = FrameNorm(outputs)
        self.conv2 = factorized(outputs, outputs)
        self.nin_shortcut = CausalConv(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    """One head over the pixels of each frame, or, `over_time`, over each pixel's frames so far."""

    def __init__(self, channels: int, over_time: bool) -> None:
        super().__init__()
        self.over_time = over_time
        self.norm = FrameNorm(channels)
        self.q = CausalConv(channels, channels)
        self.k = CausalConv(channels, channels)
        self.v = CausalConv(channels, channels)
        self.proj_out = CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (self._rows(project(normed)) for project in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.over_time)  # [B, n, length, C]
        video = mixed.permute(0, 3, 2, 1) if self.over_time else mixed.permute(0, 3, 1, 2)
        return x + self.proj_out(video.unflatten(3, x.shape[3:]))

    def _rows(self, x: Tensor) -> Tensor:
        """[B, C, T, h, w] as sequences [B, T, h * w, C] of pixels, or [B, h * w, T, C] of frames."""
        pixels = x.flatten(3)
        return pixels.permute(0, 3, 2, 1) if self.over_time else pixels.permute(0, 2, 3, 1)


def residuals(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """`count` residual blocks, of which the first changes the width."""
    return nn.Sequential(*[Residual(outputs if k else inputs, outputs) for k in range(count)])


def middle(channels: int) -> nn.Sequential:
    """The residual blocks and the attention at latent resolution."""
    attention = nn.Sequential(Attention(channels, over_time=False), Attention(channels, over_time=True))
    return nn.Sequential(
        OrderedDict(
            block_1=Residual(channels, channels), attn_1=attention, block_2=Residual(channels, channels)
        )
    )


class Downsample(nn.Module):
    """Halve rows and columns, and with `time` frames: 1 + 2k become 1 + k. Strided convolution plus mean."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.conv1 = CausalConv(channels, channels, (1, 3, 3), (1, 2, 2))
        self.conv2 = CausalConv(channels, channels, (3, 1, 1), (2, 1, 1)) if time else None
        self.conv3 = CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x.flatten(1, 2), 2).unflatten(1, x.shape[1:3])
        x = self.conv1(F.pad(x, (0, 1, 0, 1))) + mean
        if self.conv2 is not None:
            x = repeat_first(x, 1)
            x = self.conv2(x) + F.avg_pool2d(x.flatten(3), (2, 1)).unflatten(3, x.shape[3:])
        return self.conv3(x)


class Upsample(nn.Module):
    """Double rows and columns, and with `time` frames: 1 + k become 1 + 2k. Copies, then convolutions."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.conv1 = CausalConv(channels, channels, (3, 1, 1)) if time else None
        self.conv2 = CausalConv(channels, channels, (1, 3, 3), padding=1)
        self.conv3 = CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv1 is not None:
            x = x.repeat_interleave(2, 2)[:, :, 1:]
            x = self.conv1(x) + x
        x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
        return self.conv3(self.conv2(x) + x)


def repeat_first(x: Tensor, copies: int) -> Tensor:
    """`copies` more of the first frame before [B, C, T, h, w]."""
    return torch.cat([x[:, :, :1].expand(-1, -1, copies, -1, -1), x], 2)


def haar(x: Tensor) -> Tensor:
    """Sums and differences of 2 x 2 x 2 blocks: [B, C, 2t, 2h, 2w] to [B, 8 * C, t, h, w].

    The eight kinds come one after the other, each with its C channels; they are divided by 8, so that the
    first kind is the block's mean.
    """
    blocks = F.conv3d(x.flatten(0, 1)[:, None], _signs(x) / 8, stride=2)
    return blocks.unflatten(0, x.shape[:2]).transpose(1, 2).flatten(1, 2)


def unhaar(x: Tensor) -> Tensor:
    """The inverse of `haar`."""
    kinds = x.unflatten(1, (8, -1)).transpose(1, 2)
    pixels = F.conv_transpose3d(kinds.flatten(0, 1), _signs(x), stride=2)
    return pixels.unflatten(0, kinds.shape[:2])[:, :, 0]


def _signs(x: Tensor) -> Tensor:
    """The kernels [8, 1, 2, 2, 2] of the transform: products of (1, 1) or (1, -1) along each axis."""
    pair = x.new_tensor([[1, 1], [1, -1]])
    return torch.einsum("at,bh,cw->abcthw", pair, pair, pair).reshape(8, 1, 2, 2, 2)
