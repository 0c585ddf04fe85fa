"""From Sequences to one packed row of fixed shape, ordered `[text | clean | noisy]`."""

from __future__ import annotations

from collections.abc import Sequence as List

import numpy as np
import torch
from megatv_kernels import Document, build_record

from megatv.config import LATENT_CHANNELS, Config
from megatv.types import IGNORE, Batch, Sequence


def pack(sequences: List[Sequence], config: Config) -> Batch:
    """Lay sequences one after the other into a packed row of S = `context_tokens`.

    What they leave free is padding: token 0 and latents 0 at t = 1, without loss, seen by nobody but
    themselves. Raises ValueError when the sequences do not fit the config's capacities.
    """
    text_rows, chunks, tokens = config.text_rows, config.chunks_per_row, config.tokens_per_chunk
    record = build_record(
        [Document(s.text_sees_chunks, s.chunk_sees_text) for s in sequences],
        text_rows=text_rows,
        chunk_rows=tokens,
        chunks=chunks,
    )

    def fill(name: str, capacity: int, shape: tuple[int, ...], dtype: type, padding: float) -> np.ndarray:
        out: np.ndarray = np.full((capacity, *shape), padding, dtype)
        parts = [getattr(s, name) for s in sequences]
        np.concatenate(parts, out=out[: sum(map(len, parts))])
        return out

    latent = (LATENT_CHANNELS, config.latent_height, config.latent_width)
    positions = np.concatenate(
        [
            fill("text_positions", text_rows, (), np.int32, 0),
            fill("clean_positions", chunks, (tokens,), np.int32, 0).ravel(),
            fill("noisy_positions", chunks, (tokens,), np.int32, 0).ravel(),
        ]
    )
    return Batch(
        text_ids=torch.from_numpy(fill("text_ids", text_rows, (), np.int64, 0)),
        text_targets=torch.from_numpy(fill("text_targets", text_rows, (), np.int64, IGNORE)),
        positions=torch.from_numpy(positions),
        clean=torch.from_numpy(fill("clean", chunks, latent, np.float32, 0)),
        noisy=torch.from_numpy(fill("noisy", chunks, latent, np.float32, 0)),
        velocity=torch.from_numpy(fill("velocity", chunks, latent, np.float32, 0)),
        clean_t=torch.from_numpy(fill("clean_t", chunks, (), np.float32, 1)),
        noisy_t=torch.from_numpy(fill("noisy_t", chunks, (), np.float32, 1)),
        chunk_loss=torch.from_numpy(fill("chunk_loss", chunks, (), np.bool_, False)),
        record=record,
        ids=tuple(s.id for s in sequences),
    )
