"""The KV cache of the sampling path: static shapes, every batch row with its own length."""

from __future__ import annotations

import torch
from megatv_kernels import rotate_and_store
from torch import Tensor

from megatv.config import ModelConfig


class KVCache:
    """Keys and values of B sequences in L slots each; nothing is ever reallocated.

    keys, values  [layers, B, L + 1, K, E]; the last slot takes the padding of ragged rows and is never seen
    lengths       int64 [B]: slots filled. `update` writes after them and leaves them alone: whoever runs the
                  model advances them, so that a noisy pass is overwritten by the next one.
    """

    def __init__(self, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
        self.keys, self.values, self.lengths = keys, values, lengths

    @classmethod
    def empty(
        cls,
        model: ModelConfig,
        rows: int,
        slots: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        shares: int = 1,
    ) -> KVCache:
        """A cache of `rows` empty sequences with room for `slots` tokens each; `dtype` may be fp8.

        shares   tensor-parallel siblings, each of which keeps its share of the key heads
        """
        shape = (model.layers, rows, slots + 1, model.kv_heads // shares, model.head_dim)
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(keys, values, torch.zeros(rows, dtype=torch.int64, device=device))

    @property
    def slots(self) -> int:
        """L, tokens that one sequence may hold."""
        return self.keys.shape[2] - 1

    def rows(self, rows: slice) -> KVCache:
        """Some of the sequences, sharing their memory with this cache."""
        return KVCache(self.keys[:, rows], self.values[:, rows], self.lengths[rows])

    def update(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, rope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate q and k, write k, v [B, Q, K, E] after each row's length.

        Returns the rotated q and that layer's [B, L, K, E] views. Rows shorter than Q are padded at the end
        by the caller: what they write there lies beyond their length and is overwritten later, or lands in
        the spare slot when the row is full.
        """
        keys, values = self.keys[layer], self.values[layer]
        q = rotate_and_store(q, k, v, rope, keys, values, self.lengths)
        return q, keys[:, :-1], values[:, :-1]
