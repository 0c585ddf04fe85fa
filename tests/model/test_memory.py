"""What autograd saves: the formulas against the tensors that the real model saves."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from megatv_kernels import Document, attention, build_record

from megatv.config import LATENT_CHANNELS, load_config
from megatv.model import memory
from megatv.model.mot import MoT
from megatv.objective.pretrain import pretrain_loss
from megatv.parallel.layers import Layers
from megatv.types import Batch

ROOT = Path(__file__).parents[2]
TOY = load_config(ROOT / "configs/toy_world.yaml")


def random_batch(config):
    """A full row: every chunk and every text row is live."""
    chunks, text = config.chunks_per_row, config.text_rows
    sees = np.arange(1, chunks + 1) * text // chunks
    record = build_record(
        [Document(np.searchsorted(sees, np.arange(text), side="right"), sees)],
        text_rows=text,
        chunk_rows=config.tokens_per_chunk,
        chunks=chunks,
    )
    latents = torch.randn(chunks, LATENT_CHANNELS, config.latent_height, config.latent_width)
    ids, times = torch.randint(0, config.model.vocab, (text,)), torch.rand(chunks)
    positions = torch.arange(config.sequence.context_tokens, dtype=torch.int32)
    loss = torch.ones(chunks, dtype=torch.bool)
    return Batch(ids, ids, positions, latents, latents, latents, times, times, loss, record, ("one",))


def small(patch, layers, checkpointing="none"):
    """One row of 13 chunks of 4 tokens and 96 words, all live."""
    return dataclasses.replace(
        TOY,
        attention="reference",
        parallel=dataclasses.replace(TOY.parallel, activation_checkpointing=checkpointing),
        sequence=dataclasses.replace(TOY.sequence, examples_per_row=1, context_tokens=2 * 13 * 4 + 96),
        model=dataclasses.replace(TOY.model, patch=patch, layers=layers, kv_heads=2),
    )


def measured(config, batch):
    """Bytes that one forward pass and its loss save on this CPU."""
    model = MoT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    with memory.saved_bytes(model) as saved:
        pretrain_loss(model(batch), batch, Layers())
    return saved[0]


def of_a_cpu(config):
    """What a CPU saves beside the formula's tensors, a block: torch's plain kernels keep more.

    SwiGLU its silu [S, F]; each RMSNorm the normed rows [S, D] before their weight.
    """
    model, rows = config.model, config.sequence.context_tokens
    return 4 * rows * (model.ffn + 2 * model.width)


@pytest.mark.parametrize(("patch", "layers"), [("unet", 2), ("linear", 3)])
def test_a_block_saves_what_the_formula_says(patch, layers):
    """Two models that differ by blocks only; attention apart, whose kernel on a GPU is another one."""
    config, longer = small(patch, layers), small(patch, layers + 2)
    batch = random_batch(config)
    block = (measured(longer, batch) - measured(config, batch)) / 2
    with memory.saved_bytes(torch.nn.Module()) as dense:
        _attend(config, batch)
    # q, k, v and what was attended are in the formula; the rest of the dense attention is not
    extra = dense[0] - 4 * config.sequence.context_tokens * _heads(config)
    lse = 4 * config.model.heads * config.sequence.context_tokens
    assert block - extra - of_a_cpu(config) == pytest.approx(memory.block_bytes(config) - lse, rel=0.05)


def _heads(config):
    model = config.model
    return (2 * model.heads + 2 * model.kv_heads) * model.head_dim


def _attend(config, batch):
    model, rows = config.model, config.sequence.context_tokens
    q, k, v = (
        torch.randn(rows, heads, model.head_dim, requires_grad=True)
        for heads in (model.heads, model.kv_heads, model.kv_heads)
    )
    out = attention(q * 1, k * 1, v * 1, batch.record, backend="reference")
    return out.flatten(1) @ torch.ones(model.width, 1, requires_grad=True)


@pytest.mark.parametrize("patch", ["unet", "linear"])
def test_a_checkpointed_block_keeps_its_input_alone(patch):
    config, longer = small(patch, 2, "full"), small(patch, 4, "full")
    batch = random_batch(config)
    block = (measured(longer, batch) - measured(config, batch)) / 2
    assert block == memory.block_bytes(config, "full") == memory.hidden_bytes(config)


def test_a_selective_block_keeps_all_but_the_feed_forward():
    found, predicted = {}, {}
    for mode in ("none", "selective"):
        config, longer = small("linear", 2, mode), small("linear", 4, mode)
        batch = random_batch(config)
        found[mode] = (measured(longer, batch) - measured(config, batch)) / 2
        predicted[mode] = memory.block_bytes(config, mode)
    rows, model = config.sequence.context_tokens, config.model
    of_cpu = 4 * rows * (model.ffn + model.width)  # see `of_a_cpu`: silu, and one norm's rows
    saved = predicted["none"] - predicted["selective"]
    assert found["none"] - found["selective"] - of_cpu == pytest.approx(saved, rel=0.05)


@pytest.mark.parametrize("patch", ["unet", "linear"])
def test_both_ends_save_what_is_predicted(patch):
    """The rest of a checkpointed model: the U-Net counted by torch, the head by the formula."""
    config = small(patch, 2, "full")
    batch = random_batch(config)
    whole = measured(config, batch)
    down, up = memory.patcher_bytes(config)
    chunks, model = config.chunks_per_row, config.model
    predicted = chunks * (2 * down + up) + memory.head_bytes(config) + 2 * memory.hidden_bytes(config)
    # beside it a CPU keeps the head's normed rows once more; the rotation table is nobody's part
    normed = 4 * (config.text_rows + chunks * config.tokens_per_chunk) * model.width
    table = 2 * 4 * config.sequence.context_tokens * model.head_dim
    assert whole - normed - table == pytest.approx(predicted, rel=0.05)


def test_tensor_parallel_ranks_share_the_wide_parts_only():
    config = load_config(ROOT / "configs/8b_sports.yaml")

    def on(tp):
        return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, tp=tp))

    one, two, eight = (memory.block_bytes(on(tp)) for tp in (1, 2, 8))
    assert one > two > eight > 4 * memory.hidden_bytes(config)  # the width is nobody's share
    assert memory.logits_bytes(on(8)) * 8 == memory.logits_bytes(on(1))


def test_the_boundary_carries_the_skips():
    config = load_config(ROOT / "configs/8b_sports.yaml", ["parallel={}"])
    skips = 1024 + 3 * 512 * 24 * 40 + 3 * 1280 * 12 * 20
    assert memory.boundary_bytes(config) == 2 * (13056 * 4096 + 26 * skips)


def test_context_parallel_ranks_keep_what_the_table_says():
    """Half of 26 chunks and of 576 text rows; a third copy of the heads; keys repeated where cp asks."""
    config = load_config(ROOT / "configs/8b_sports.yaml")

    def on(tp, cp):
        return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, tp=tp, cp=cp))

    grids = [(1, 1), (2, 2), (4, 4), (1, 16), (8, 1)]
    assert [memory.attending_kv_heads(on(*grid)) for grid in grids] == [8, 8, 16, 16, 8]
    for tp, cp, rows, heads in ((2, 1, 13056, 2 * 32 + 2 * 8), (2, 2, 6528, 3 * 32 + 2 * 8)):
        shared = rows * (2 * heads * 128 + 2 * 3 * 14336 + 4 * 32) // tp
        assert memory.block_bytes(on(tp, cp)) == 4 * 2 * 4096 * rows + shared + 8 * rows
