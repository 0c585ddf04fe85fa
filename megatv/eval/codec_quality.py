"""What codecs lose: PSNR on videos and on the toy world, and what its reader still reads right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatv.config import GROUP_FRAMES
from megatv.data.toy_world import State, simulate
from megatv.data.video import decode_video
from megatv.eval.toy_world import read_states, reader_accuracy
from megatv.model.codec import Codec

HELD_OUT_SEED = 1 << 48
"""Toy-world episodes from here on are nobody's training data."""


def quality(frames: Tensor, decoded: Tensor) -> dict[str, float]:
    """PSNR in dB of uint8 [B, F, H, W, 3]: of all frames, of first frames of groups, of the rest."""
    errors = (frames.float() - decoded.float()).square().mean((0, 2, 3, 4))
    first = torch.arange(len(errors)) % GROUP_FRAMES == 0
    parts = {"psnr": errors, "psnr_first": errors[first], "psnr_rest": errors[~first]}
    return {name: round(float(10 * torch.log10(255**2 / part.mean())), 2) for name, part in parts.items()}


def report_video(codec: Codec, path: Path, width: int, height: int) -> dict[str, Any]:
    """The row of one video. Raises ValueError when it holds no whole group."""
    frames = torch.from_numpy(decode_video(path, width=width, height=height))
    whole = len(frames) // GROUP_FRAMES * GROUP_FRAMES
    if not whole:
        raise ValueError(f"{path}: {len(frames)} frames at 16 fps; the report needs {GROUP_FRAMES} or more")
    groups = frames[:whole].unflatten(0, (-1, GROUP_FRAMES))
    decoded = torch.cat([codec.decode(codec.encode(group[None])) for group in groups])
    return {"video": path.name, "frames": whole, **quality(groups, decoded)}


def report_toy_world(codec: Codec, episodes: int) -> dict[str, Any]:
    """The row of the toy world: held-out episodes, with the reader's accuracy on what the codec shows."""
    truth = [simulate(HELD_OUT_SEED + i) for i in range(episodes)]
    frames = torch.from_numpy(np.stack([episode.frames for episode in truth]))
    decoded = torch.cat([codec.decode(codec.encode(part)) for part in frames.split(32)])
    states = State(*np.stack([episode.states for episode in truth], axis=1))
    accuracy = reader_accuracy(read_states(decoded.numpy()), states)
    ordered = dict(sorted(accuracy.items(), key=lambda item: item[1]))
    return {
        "video": "toy world",
        "frames": frames.shape[0] * frames.shape[1],
        **quality(frames, decoded),
        "read": ordered,
    }
