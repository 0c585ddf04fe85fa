"""What one packed row leaves in memory between its forward and its backward pass, in bytes by part.

Counted for a GPU, of the tensors that autograd saves, on the sibling with the largest share. Context
parallelism leaves it R of the S rows; tensor parallelism splits heads, the feed-forward width and the
vocabulary, and with sequence parallelism r = R / tp rows of the rest (without it, r = R). One block keeps,
with b bytes a number,

    width D      2 b D r + 2 b D R    inputs of both norms, and of the matrices behind them
    heads        b (2 H + 2 K) E R / tp   rotated q and k, v, and what was attended (`wo` keeps it as well;
                 under context parallelism its own, b H E R / tp more, and K counts repeated heads)
    feed-forward 3 b F R / tp         gate, up (the compiled SwiGLU keeps no more) and their product
    statistics   4 H R / tp + 8 r     fp32: log-sum-exp of attention, one number of each norm

and of these, by `activation_checkpointing`: `selective` all but the feed-forward and the input of its
matrices, `full` its input alone, b D r, `offloaded` nothing. The U-Net is counted by torch on the meta
device.
"""

from __future__ import annotations

import copy
import functools
import math
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


def local_chunks(config: Config) -> int:
    """Chunks of a row on the context-parallel sibling that has most."""
    return -(-config.chunks_per_row // config.parallel.cp)


def local_text_rows(config: Config) -> int:
    """Text rows of a row on the context-parallel sibling that has most."""
    return -(-config.text_rows // config.parallel.cp)


def local_rows(config: Config) -> int:
    """R: rows of a packed row on the context-parallel sibling that has most."""
    return local_text_rows(config) + 2 * local_chunks(config) * config.tokens_per_chunk


def hidden_bytes(config: Config) -> int:
    """The hidden states between matrices, [r, D]: what a checkpointed block keeps."""
    return number_bytes(config) * local_rows(config) * config.model.width // _row_shares(config)


def _row_shares(config: Config) -> int:
    return config.parallel.tp if config.parallel.sequence_parallel else 1


def block_bytes(config: Config, mode: str = "none") -> int:
    """Saved by one block, both towers together, under a mode of checkpointing; see the module's table."""
    model, par, size, rows = config.model, config.parallel, number_bytes(config), local_rows(config)
    kept, whole = hidden_bytes(config), size * rows * model.width
    if mode in ("full", "offloaded"):
        return kept if mode == "full" else 0
    copies = 3 if par.cp > 1 else 2
    heads = (copies * model.heads + 2 * attending_kv_heads(config)) * model.head_dim
    wide = 0 if mode == "selective" else 3 * model.ffn
    split = rows * (size * (heads + wide) + 4 * model.heads) // par.tp
    return 2 * kept + (1 if mode == "selective" else 2) * whole + split + 8 * rows // _row_shares(config)


def attending_kv_heads(config: Config) -> int:
    """K over all of tp, counting those that are repeated for context parallelism (`Context.attend`)."""
    par = config.parallel
    return par.tp * math.lcm(config.model.kv_heads // par.tp, par.cp)


def head_bytes(config: Config) -> int:
    """Saved by the head and the cross-entropy; the U-Net's counts have the normed noisy rows."""
    text = number_bytes(config) * local_text_rows(config) * config.model.width
    whole = number_bytes(config) * local_rows(config) * config.model.width
    return whole + text + logits_bytes(config)


def logits_bytes(config: Config) -> int:
    """One fp32 table over the vocabulary, [T / cp, V / tp]."""
    return 4 * local_text_rows(config) * config.model.vocab // config.parallel.tp


def working_bytes(config: Config) -> int:
    """The largest set of gradients alive at once in the backward pass: of one block, or of the logits.

    A block: of its output and its input [r, D], of gate, up and their product [R, F / tp]. The logits: in
    fp32, and rounded for the matrix behind them.
    """
    size = number_bytes(config)
    ffn = 3 * size * local_rows(config) * config.model.ffn // config.parallel.tp
    logits = logits_bytes(config)
    return max(2 * hidden_bytes(config) + ffn, logits + logits * size // 4)


def kernel_bytes(config: Config) -> int:
    """Of attention's backward pass: dQ summed in fp32 [S, H / tp / cp, E], and two numbers a row and head."""
    model, par = config.model, config.parallel
    return config.sequence.context_tokens * (4 * model.head_dim + 8) * model.heads // (par.tp * par.cp)


def boundary_bytes(config: Config) -> int:
    """What travels between pipeline stages: hidden states [r, D] and the noisy copies' skips [M / cp, X]."""
    skips = 0
    if config.model.patch == "unet":
        skips = sum(torch.Size(shape).numel() for shape in skip_shapes(config))
    return hidden_bytes(config) + number_bytes(config) * local_chunks(config) * skips


def batch_bytes(config: Config) -> int:
    """One row's inputs: three fp32 latents a chunk, int64 ids and targets; int32 positions and intervals."""
    latents = 3 * 4 * LATENT_CHANNELS * config.latent_height * config.latent_width
    own = local_chunks(config) * latents + 16 * local_text_rows(config) + 4 * local_rows(config)
    return own + 24 * config.sequence.context_tokens


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
