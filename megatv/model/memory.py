"""What one packed row leaves in memory between its forward and its backward pass, in bytes by part.

Counted for a GPU, of the tensors that autograd saves; whoever holds a share of `tp` keeps 1 / tp of what is
split over heads, the feed-forward width and the vocabulary, and all of the rest (there is no sequence
parallelism). One row of a block keeps, with b bytes a number,

    width D      4 b D          inputs of both norms and of the matrices behind them
    heads        b (2 H + 2 K) E / tp   rotated q and k, v, and what was attended (which `wo` keeps as well)
    feed-forward 3 b F / tp     gate, up (the compiled SwiGLU keeps no more) and their product
    statistics   4 H / tp + 8   fp32: log-sum-exp of attention, one number of each norm

A checkpointed block keeps its input alone, b D a row. The U-Net is counted by torch on the meta device.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from megatv.config import LATENT_CHANNELS, Config
from megatv.model.cost import meta_model
from megatv.model.unet import skip_shapes


def number_bytes(config: Config) -> int:
    """b: bytes of a weight or an activation in the run's precision."""
    return 2 if config.precision == "bf16" else 4


def hidden_bytes(config: Config) -> int:
    """The hidden states of a packed row, [S, D]: what a checkpointed block keeps."""
    return number_bytes(config) * config.sequence.context_tokens * config.model.width


def block_bytes(config: Config, tp: int = 1) -> int:
    """Saved by one block that is not checkpointed, both towers together; see the module's table."""
    model, size = config.model, number_bytes(config)
    heads = (2 * model.heads + 2 * model.kv_heads) * model.head_dim
    split = size * (heads + 3 * model.ffn) + 4 * model.heads
    return config.sequence.context_tokens * (size * 4 * model.width + split // tp + 8)


def head_bytes(config: Config, tp: int = 1) -> int:
    """Saved by the head and the cross-entropy; the U-Net's counts have the normed noisy rows."""
    text = number_bytes(config) * config.text_rows * config.model.width
    return hidden_bytes(config) + text + logits_bytes(config, tp)


def logits_bytes(config: Config, tp: int = 1) -> int:
    """One fp32 table over the vocabulary, [T, V / tp]."""
    return 4 * config.text_rows * config.model.vocab // tp


def working_bytes(config: Config, tp: int = 1) -> int:
    """The largest set of gradients alive at once in the backward pass: of one block, or of the logits.

    A block: of its output and its input [S, D], of gate, up and their product [S, F / tp]. The logits: in
    fp32, and rounded for the matrix behind them.
    """
    size = number_bytes(config)
    ffn = 3 * size * config.sequence.context_tokens * config.model.ffn // tp
    logits = logits_bytes(config, tp)
    return max(2 * hidden_bytes(config) + ffn, logits + logits * size // 4)


def kernel_bytes(config: Config, tp: int = 1) -> int:
    """Of attention's backward pass: dQ summed in fp32 [S, H / tp, E], and two numbers a row and head."""
    model = config.model
    return config.sequence.context_tokens * (4 * model.width + 8 * model.heads) // tp


def boundary_bytes(config: Config) -> int:
    """What travels between pipeline stages: hidden states [S, D] and the noisy copies' skips [M, X]."""
    skips = 0
    if config.model.patch == "unet":
        skips = sum(torch.Size(shape).numel() for shape in skip_shapes(config))
    return hidden_bytes(config) + number_bytes(config) * config.chunks_per_row * skips


def batch_bytes(config: Config) -> int:
    """One row's inputs: three fp32 latents a chunk, int64 ids and targets, int32 positions and intervals."""
    latents = 3 * 4 * LATENT_CHANNELS * config.latent_height * config.latent_width
    return config.chunks_per_row * latents + 16 * config.text_rows + 28 * config.sequence.context_tokens


@functools.lru_cache(maxsize=8)
def patcher_bytes(config: Config) -> tuple[int, int]:
    """Saved for one chunk on the way down (one copy) and on the way up."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = copy.deepcopy(meta_model(config)).to(dtype)
    with torch.device("meta"):
        x = torch.empty(1, LATENT_CHANNELS, config.latent_height, config.latent_width, dtype=dtype)
        with saved_bytes(model) as down:
            tokens, skips = model.embed.video(x, torch.empty(1))
        with saved_bytes(model) as up:
            model.head.up(tokens, skips)
    return down[0], up[0]


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Within: [bytes] of all that autograd saves; the model's weights and second looks are not counted."""
    total = [0]
    # holds the tensors, so that no address is used twice
    seen = {p.untyped_storage()._cdata: p.detach() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            total[0] += storage.nbytes()
            seen[storage._cdata] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield total
