"""What a model costs: parameters by part, and the FLOPs of training on a packed row.

FLOPs are those the model needs, not those a kernel spends: rows that are padding and pairs of rows that do
not see each other count nothing, recomputation counts nothing. Divided by time and by the hardware's peak
they are the model FLOPs utilisation (PaLM, Chowdhery et al. 2022, appendix B).

    part         forward FLOPs                      because
    tower        2 x matrix entries x rows          one multiply and one add an entry
    attention    4 x layers x D x visible pairs     q k and the weighted v, D of them over all heads
    head         2 x D x vocab x text rows
    patcher      down for both copies of a chunk, up for the noisy one; counted by torch

Training takes three times the forward: the backward makes two gradients where the forward made one product.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from megatv_kernels import AttentionRecord, Document, build_record
from torch.utils.flop_counter import FlopCounterMode

from megatv.config import LATENT_CHANNELS, Config
from megatv.model.mot import MoT


@functools.lru_cache(maxsize=8)
def meta_model(config: Config) -> MoT:
    """The whole, unsplit model without memory."""
    with torch.device("meta"):
        return MoT(config)


def parameter_counts(config: Config) -> dict[str, int]:
    """Parameters of each part; a tied table counts once. Their sum is the model's size."""
    counts = dict.fromkeys(("text_tower", "video_tower", "vocabulary", "patcher", "norms_and_positions"), 0)
    for name, parameter in meta_model(config).named_parameters():
        if name.startswith("blocks."):
            part = "text_tower" if ".text." in name else "video_tower"
        elif name.startswith(("embed.text.", "head.text.")):
            part = "vocabulary"
        elif name.startswith(("embed.down.", "head.up.")):
            part = "patcher"
        else:
            part = "norms_and_positions"
        counts[part] += parameter.numel()
    return counts


@functools.lru_cache(maxsize=8)
def patcher_flops(config: Config) -> tuple[int, int]:
    """Forward FLOPs of one copy of one chunk: (down, up)."""
    model = meta_model(config)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x = torch.empty(1, LATENT_CHANNELS, config.latent_height, config.latent_width)
        tokens, skips = model.embed.video(x, torch.empty(1))
        down = counter.get_total_flops()
        model.head.velocity(tokens, skips)
    return down, counter.get_total_flops() - down


def packed_row(config: Config, documents: int) -> AttentionRecord:
    """A row of the config's shape shared by equal documents, their text spread evenly before the chunks."""
    text, chunks = config.text_rows // documents, config.chunks_per_row // documents
    sees_text = (np.arange(chunks) + 1) * text // max(chunks, 1)
    sees_chunks = np.searchsorted(sees_text, np.arange(text), side="right")
    return build_record(
        [Document(sees_chunks, sees_text)] * documents,
        text_rows=config.text_rows,
        chunk_rows=config.tokens_per_chunk,
        chunks=config.chunks_per_row,
    )


def training_flops(config: Config, record: AttentionRecord) -> dict[str, int]:
    """FLOPs by part of the forward and backward of one packed row, over the whole process grid."""
    documents = record.documents.long()
    text_rows, clean_rows, _ = (documents[..., 1] - documents[..., 0]).sum(0).tolist()
    return _training(config, text_rows, clean_rows // record.chunk_rows, record.live_pairs())


@functools.lru_cache(maxsize=8)
def dense_training_flops(config: Config) -> int:
    """FLOPs of one packed row as others count them: no row is padding and every row sees every other.

    6 N + 12 l h q t a token, N being the weights that it meets but for the embedding: PaLM's appendix B and
    torchtitan's `num_flops_per_token`; Megatron-LM's the same (Narayanan et al. 2021, appendix), though later
    versions halve causal attention. A row meets one tower, as a mixture of experts' token its active ones.
    """
    return sum(
        _training(config, config.text_rows, config.chunks_per_row, config.sequence.context_tokens**2).values()
    )


@functools.lru_cache(maxsize=8)
def layer_flops(config: Config) -> list[int]:
    """Of a full row: what the embedding, every block and the head compute, by which a pipeline is cut."""
    flops = training_flops(config, packed_row(config, config.sequence.examples_per_row))
    down, up = (3 * config.chunks_per_row * part for part in patcher_flops(config))
    blocks = flops["text_tower"] + flops["video_tower"] + flops["attention"]
    return [2 * down, *[blocks // config.model.layers] * config.model.layers, flops["head"] + up]


def _training(config: Config, text_rows: int, chunks: int, pairs: int) -> dict[str, int]:
    model = config.model
    query, key_value = model.heads * model.head_dim, model.kv_heads * model.head_dim
    block = 2 * model.width * (query + key_value) + 3 * model.width * model.ffn
    down, up = patcher_flops(config)
    forward = {
        "text_tower": 2 * model.layers * block * text_rows,
        "video_tower": 2 * model.layers * block * 2 * chunks * config.tokens_per_chunk,
        "attention": 4 * model.layers * query * pairs,
        "head": 2 * model.width * model.vocab * text_rows,
        "patcher": chunks * (2 * down + up),
    }
    return {part: 3 * flops for part, flops in forward.items()}
