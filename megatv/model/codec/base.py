"""What every video codec shares: groups of frames, the range of pixels, and the checks.

Geometry of Cosmos-Tokenize1-CV4x8x8 as TV2TV section 2.1 uses it: video is cut into independent groups of 49
frames; a group becomes 13 latents, the first of one frame, the others of four; a latent is 8 times smaller
than the picture each way and has 16 channels. A shorter last group has 1 + 4k frames and gives 1 + k latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from megatv.config import GROUP_FRAMES, GROUP_LATENTS, LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR


class Codec(ABC):
    """Frames to latents and back. A subclass codes one group; this class cuts, converts and checks.

    Latents are raw: `megatv.data.stats` brings them to zero mean and unit variance.
    """

    reach: int | None = None
    """How many latents of its group before it a latent's frames depend on; None: on all of them."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    @abstractmethod
    def encode_group(self, video: Tensor) -> Tensor:
        """One group, float32 [B, 3, 1 + 4k, H, W] in [-1, 1], to latents [B, C, 1 + k, h, w]."""

    @abstractmethod
    def decode_group(self, latents: Tensor) -> Tensor:
        """Latents float32 [B, C, 1 + k, h, w] of one group to [B, 3, 1 + 4k, H, W], nominally in [-1, 1]."""

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Code uint8 frames [B, F, H, W, 3] into raw float32 latents [B, N, C, h, w] on the codec's device.

        Raises ValueError when the shape, the type or the number of frames does not fit.
        """
        _check_frames(frames)
        groups = []
        for group in frames.split(GROUP_FRAMES, dim=1):
            video = group.to(self.device).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
            groups.append(self.encode_group(video).float().transpose(1, 2))
        return torch.cat(groups, dim=1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode raw latents [B, N, C, h, w] into uint8 frames [B, F, H, W, 3] on the codec's device.

        A prefix of a video's latents decodes to the same prefix of its frames, so a group may be decoded
        while it is still being written. Raises ValueError when the shape does not fit.
        """
        if latents.ndim != 5 or latents.shape[2] != LATENT_CHANNELS or latents.shape[1] == 0:
            raise ValueError(
                f"latents have shape {list(latents.shape)}: give [batch, n, {LATENT_CHANNELS}, height, width]"
            )
        groups = []
        for group in latents.split(GROUP_LATENTS, dim=1):
            video = self.decode_group(group.to(self.device).float().transpose(1, 2)).float()
            pixels = (
                ((video + 1) * 127.5 + 0.5).clamp_(0, 255).to(torch.uint8)
            )  # + 0.5 and truncation: rounding
            groups.append(pixels.permute(0, 2, 3, 4, 1))
        return torch.cat(groups, dim=1).contiguous()


class Decoder:
    """Decodes a video while its latents still come in, one at a time, to the frames of `Codec.decode`.

    It keeps those latents of the open group that the next frames depend on (`Codec.reach`), and decodes them
    again with every new one.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._kept: list[Tensor] = []
        self._place = 0

    def push(self, latents: Tensor) -> Tensor:
        """The next raw latent of each video, [B, C, h, w] -> its frames, uint8 [B, 1 or 4, H, W, 3]."""
        frames = self._codec.decode(torch.stack([*self._kept, latents], 1))
        frames = frames[:, -TEMPORAL_FACTOR if self._place else 0 :]
        self._place = (self._place + 1) % GROUP_LATENTS
        self._kept = [*self._kept, latents] if self._place else []
        if self._codec.reach is not None:  # one more than it reaches: the first is decoded as a single frame
            self._kept = self._kept[-(self._codec.reach + 1) :]
        return frames


def frames_to_latents(frames: int) -> int:
    """Number of latents of a video. Raises ValueError when its last group is not 1 + 4k frames long."""
    whole, rest = divmod(frames, GROUP_FRAMES)
    if frames < 1 or (rest and rest % TEMPORAL_FACTOR != 1):
        raise ValueError(
            f"{frames} frames do not fill whole latents: give groups of {GROUP_FRAMES} frames, "
            f"the last one 1 + {TEMPORAL_FACTOR}k long"
        )
    return whole * GROUP_LATENTS + (rest + TEMPORAL_FACTOR - 1) // TEMPORAL_FACTOR


def latents_to_frames(latents: int) -> int:
    """Number of frames that so many latents decode to."""
    whole, rest = divmod(latents, GROUP_LATENTS)
    return whole * GROUP_FRAMES + (1 + TEMPORAL_FACTOR * (rest - 1) if rest else 0)


def _check_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3 or frames.shape[0] == 0:
        raise ValueError(
            f"frames are {frames.dtype} {list(frames.shape)}: give uint8 [batch, frames, height, width, 3]"
        )
    height, width = frames.shape[2:4]
    if not height or not width or height % SPATIAL_FACTOR or width % SPATIAL_FACTOR:
        raise ValueError(
            f"a video of {width}x{height} pixels cannot be coded: scale it to multiples of {SPATIAL_FACTOR}"
        )
    frames_to_latents(frames.shape[1])
