"""Video codecs behind one interface: uint8 frames to raw latents and back (4 x 8 x 8, 16 channels)."""

from __future__ import annotations

import torch

from megatv.config import CodecConfig
from megatv.model.codec.base import Codec, frames_to_latents, latents_to_frames
from megatv.model.codec.cosmos import CosmosCodec
from megatv.model.codec.dct import DCTCodec
from megatv.model.codec.learned import LearnedCodec
from megatv.model.codec.wan import WanCodec

__all__ = ["Codec", "frames_to_latents", "latents_to_frames", "load_codec"]


def load_codec(config: CodecConfig, device: torch.device | str = "cpu") -> Codec:
    """The codec that the config names, its weights on `device`.

    Raises ValueError when its files are missing or are not what the kind needs.
    """
    if config.kind == "dct":
        return DCTCodec(device)
    if config.path is None:
        raise ValueError(
            f"codec.kind {config.kind} needs codec.path: the local file or folder of its weights"
        )
    if config.kind == "learned":
        return LearnedCodec.load(config.path, device)
    return (CosmosCodec if config.kind == "cosmos" else WanCodec)(config.path, device)
