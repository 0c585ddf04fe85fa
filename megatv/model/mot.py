"""Mixture-of-Transformers: two equal Llama towers that share nothing but attention (TV2TV section 2.2).

Rows [0, T) of a packed row go through the text tower, rows [T, S) (clean, then noisy chunks) through the
video tower; one global attention joins them. The model knows no ranks: `layers` makes its matrices, split or
whole. Weights are named by the global layer index and are left uninitialised; see `megatv.model.init`.

Where a grid shares rows (`megatv.parallel.context`, and `scatter` of `megatv.parallel.layers`), S, T and M
stand for those of this process.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import torch
from megatv_kernels import AttentionRecord, attention, cached_attention, rotate_qk, swiglu
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from megatv.config import Config
from megatv.model.rope import rope_table
from megatv.model.unet import LinearDown, LinearUp, UNetDown, UNetUp
from megatv.parallel.layers import Layers
from megatv.types import Batch


@dataclass
class Output:
    """text_logits [T, V/tp] of every text row; velocity [M, C, h, w] of every noisy chunk."""

    text_logits: Tensor
    velocity: Tensor


class Cache(Protocol):
    """Keys and values of the rows generated so far, one row per sampled sequence."""

    lengths: Tensor
    """int64 [B]: rows that already count. The caller of the model advances it."""

    def update(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, rope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate q and k by `rope` and write k, v [B, Q, K, E] at `lengths` of `layer`.

        Returns the rotated q [B, Q, H, E] and the layer's whole keys and values [B, L, K, E].
        """


class Tower(nn.Module):
    """One modality's half of a block: norms, Q, K, V, O and SwiGLU (TV2TV eq. 5-10)."""

    def __init__(self, config: Config, layers: Layers) -> None:
        super().__init__()
        model = config.model
        width, head = model.width, model.head_dim
        self.head_dim = head
        self.layers = layers
        self.selective = config.parallel.activation_checkpointing == "selective"
        self.attention_norm = layers.norm(width, model.norm_eps)
        self.wq = layers.column_linear(width, model.heads * head)
        self.wk = layers.column_linear(width, model.kv_heads * head)
        self.wv = layers.column_linear(width, model.kv_heads * head)
        self.wo = layers.row_linear(model.heads * head, width)
        self.ffn_norm = layers.norm(width, model.norm_eps)
        self.gate = layers.column_linear(width, model.ffn)
        self.up = layers.column_linear(width, model.ffn)
        self.down = layers.row_linear(model.ffn, width)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., D] -> q [..., H/tp, E], k and v [..., K/tp, E], not rotated."""
        x = self.layers.fan_out(self.attention_norm(x))
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output from its input x [..., D] and attended values [..., H/tp, E]."""
        x = x + self.wo(attended.flatten(-2))
        if self.selective and torch.is_grad_enabled():
            return x + checkpoint(self.feed_forward, x, use_reentrant=False)
        return x + self.feed_forward(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """SwiGLU of the normed rows, [..., D] -> [..., D]; its inside is the widest of the block."""
        h = self.layers.fan_out(self.ffn_norm(x))
        return self.down(swiglu(self.gate(h), self.up(h)))

    def cached(self, x: Tensor, rope: Tensor, cache: Cache, layer: int, *, causal: bool) -> Tensor:
        """New rows x [B, Q, D] of this modality against the keys and values of both."""
        q, keys, values = cache.update(layer, *self.qkv(x), rope)
        return self.finish(x, cached_attention(q, keys, values, cache.lengths, causal=causal))


class Block(nn.Module):
    """One layer of both towers around one global attention."""

    def __init__(self, config: Config, layers: Layers) -> None:
        super().__init__()
        self.layers = layers
        self.attention = functools.partial(attention, backend=config.attention)
        self.text = Tower(config, layers)
        self.video = Tower(config, layers)

    def forward(self, hidden: Tensor, rope: Tensor, record: AttentionRecord) -> Tensor:
        """hidden [S, D], rope [2, S, E] from `rope_table`, -> hidden [S, D]."""
        text_rows = self.layers.text_rows(record)
        text, video = hidden.split([text_rows, len(hidden) - text_rows])
        ours, theirs = self.text.qkv(text), self.video.qkv(video)
        q, k, v = (torch.cat(pair) for pair in zip(ours, theirs, strict=True))
        q, k = rotate_qk(q, k, rope)
        attended = self.layers.context.attend(self.attention, q, k, v, record)
        attended_text, attended_video = attended.split([len(ours[0]), len(theirs[0])])
        return torch.cat([self.text.finish(text, attended_text), self.video.finish(video, attended_video)])


class Embed(nn.Module):
    """Tokens and latents to hidden states (TV2TV eq. 3 and 4)."""

    def __init__(self, config: Config, layers: Layers) -> None:
        super().__init__()
        self.layers = layers
        self.text = layers.vocab_embedding(config.model.vocab, config.model.width)
        self.down = UNetDown(config) if config.model.patch == "unet" else LinearDown(config)
        self.position = nn.Parameter(torch.empty(config.tokens_per_chunk, config.model.width))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states [S, D] in packed order, and the noisy copies' skips [M, X]."""
        latents, times = torch.cat([batch.clean, batch.noisy]), torch.cat([batch.clean_t, batch.noisy_t])
        tokens, skips = self.video(latents, times, clean=len(batch.clean))
        parts = self.text(batch.text_ids), tokens.flatten(0, 1)
        return torch.cat([self.layers.scatter(part) for part in parts]), skips

    def video(self, x: Tensor, t: Tensor, clean: int = 0) -> tuple[Tensor, Tensor]:
        """Latents x [B, C, h, w] at times t [B] -> tokens [B, P, D], skips [B - clean, X] of the last."""
        tokens, skips = self.down(x.to(self.position.dtype), t, clean)
        return tokens + self.position, skips


class Head(nn.Module):
    """Hidden states to logits and velocities (TV2TV eq. 12 and 13)."""

    def __init__(self, config: Config, layers: Layers) -> None:
        super().__init__()
        model = config.model
        self.tokens_per_chunk = config.tokens_per_chunk
        self.layers = layers
        self.text_norm = layers.norm(model.width, model.norm_eps)
        self.text = layers.column_linear(model.width, model.vocab)
        self.video_norm = nn.RMSNorm(model.width, model.norm_eps)
        self.up = UNetUp(config) if model.patch == "unet" else LinearUp(config)

    def forward(self, hidden: Tensor, skips: Tensor) -> Output:
        """Only text rows get logits, only noisy rows go up; clean rows end here."""
        video_rows = 2 * len(skips) * self.tokens_per_chunk // self.layers.row_shares
        text, video = hidden.split([len(hidden) - video_rows, video_rows])
        _, noisy = self.layers.gather(video).unflatten(0, (2, len(skips), self.tokens_per_chunk))
        return Output(self.logits(text), self.velocity(noisy, skips))

    def logits(self, text: Tensor) -> Tensor:
        """[..., D] -> [..., V/tp]."""
        return self.text(self.layers.fan_out(self.text_norm(text)))

    def velocity(self, tokens: Tensor, skips: Tensor) -> Tensor:
        """Tokens [B, P, D] and skips [B, X] of noisy chunks -> [B, C, h, w]."""
        return self.up(self.video_norm(tokens), skips)


class MoT(nn.Module):
    """The model: `embed`, `blocks`, `head`, which pipeline stages may hold apart."""

    def __init__(self, config: Config, layers: Layers | None = None) -> None:
        super().__init__()
        layers = layers or Layers()
        self.config, self.layers = config, layers
        self.embed = Embed(config, layers)
        self.blocks = nn.ModuleList([Block(config, layers) for _ in range(config.model.layers)])
        self.head = Head(config, layers)
        self.tie_embeddings()

    def tie_embeddings(self) -> None:
        """Make the head's matrix the embedding's (one Parameter) where the config ties them.

        Done at construction; to be done again after `to_empty`, which gives every module its own.
        """
        if self.config.model.tied_embeddings:
            self.head.text.weight = self.embed.text.weight

    def forward(self, batch: Batch) -> Output:
        """One packed row through the whole model."""
        hidden, skips = self.embed(batch)
        rope = self.rope(batch.positions, hidden.dtype)
        for block in self.blocks:
            hidden = self.run_block(block, hidden, rope, batch.record)
        return self.head(hidden, skips)

    def run_block(self, block: nn.Module, hidden: Tensor, rope: Tensor, record: AttentionRecord) -> Tensor:
        """One block, which keeps for its backward pass what `parallel.activation_checkpointing` says."""
        mode = self.config.parallel.activation_checkpointing if torch.is_grad_enabled() else "none"
        if mode == "full":
            return checkpoint(block, hidden, rope, record, use_reentrant=False)
        if mode == "offloaded":
            # only the reentrant kind hands its input to the hooks that copy it
            with save_on_cpu(pin_memory=hidden.is_cuda):
                return checkpoint(block, hidden, rope, record, use_reentrant=True)
        return block(hidden, rope, record)

    def rope(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """The rotation of every row, made once a forward: [2, ..., E], at least fp32."""
        return rope_table(positions, self.config.model, torch.promote_types(dtype, torch.float32))

    def text_step(self, ids: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Q >= 1 tokens a sequence against the cache: ids, positions [B, Q] -> logits [B, Q, V/tp]."""
        hidden = self.embed.text(ids)
        return self.head.logits(self._cached("text", hidden, positions, cache))

    def chunk_step(self, x: Tensor, t: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """One chunk a sequence against the cache: x [B, C, h, w], t [B], positions [B, P] -> velocity."""
        hidden, skips = self.embed.video(x, t)
        return self.head.velocity(self._cached("video", hidden, positions, cache), skips)

    def _cached(self, modality: str, hidden: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """[B, Q, D] -> [B, Q, D]; text is causal, a chunk sees all of itself."""
        rope = self.rope(positions, hidden.dtype)
        for layer, block in enumerate(self.blocks):
            tower = block.get_submodule(modality)
            assert isinstance(tower, Tower)
            hidden = tower.cached(hidden, rope, cache, layer, causal=modality == "text")
        return hidden
