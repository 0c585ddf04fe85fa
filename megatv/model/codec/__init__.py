"""Video codecs behind one interface: uint8 frames to raw latents and back (4 x 8 x 8, 16 channels)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch

from megatv.config import CodecConfig
from megatv.model.codec.base import Codec, Decoder, frames_to_latents, latents_to_frames
from megatv.model.codec.cosmos import CosmosCodec
from megatv.model.codec.dct import DCTCodec
from megatv.model.codec.learned import LearnedCodec
from megatv.model.codec.wan import WanCodec

__all__ = ["Codec", "Decoder", "clip_encoder", "frames_to_latents", "latents_to_frames", "load_codec"]


def load_codec(config: CodecConfig, device: torch.device | str = "cpu", *, trust: bool = False) -> Codec:
    """The codec that the config names, its weights on `device`.

    trust  load TorchScript, which can run any code; only the option `--trust-codec` sets it, never a file
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
    if config.kind == "cosmos":
        return CosmosCodec(config.path, device, trust=trust)
    return WanCodec(config.path, device)


def clip_encoder(codec: Codec) -> Callable[[torch.Tensor], np.ndarray]:
    """The codec as the data layer takes it: frames uint8 [F, H, W, 3] to raw latents float32 [N, C, h, w].

    On a GPU it works in a stream of its own, so that a loader's thread codes beside the training step instead
    of queueing behind it.
    """
    stream = torch.cuda.Stream(codec.device) if codec.device.type == "cuda" else None

    def encode(frames: torch.Tensor) -> np.ndarray:
        with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
            return codec.encode(frames[None])[0].cpu().numpy()

    return encode
