"""Costs against torch's own counter and against arithmetic on the paper's sizes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from megatv_kernels import Document, build_record
from torch.utils.flop_counter import FlopCounterMode

from megatv.config import load_config
from megatv.model.cost import dense_training_flops, parameter_counts, patcher_flops, training_flops
from megatv.model.mot import MoT
from megatv.types import IGNORE, Batch

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")


def paper_config(**changes):
    """CS:GO: 26 chunks of 240 tokens in a context of 15,360 (TV2TV table 6)."""
    model = {"layers": 28, "width": 3072, "ffn": 8192, "heads": 24, "kv_heads": 8, "vocab": 128_256}
    return dataclasses.replace(
        TOY,
        video=dataclasses.replace(TOY.video, width=320, height=192, groups=2),
        sequence=dataclasses.replace(TOY.sequence, context_tokens=15_360, examples_per_row=1),
        model=dataclasses.replace(
            TOY.model, tied_embeddings=True, unet_channels=(512, 1280), **{**model, **changes}
        ),
    )


def document(chunks, words):
    """`words` tokens before each chunk and one after the last."""
    sees = np.repeat(np.arange(chunks + 1), [words] * chunks + [1])
    return Document(sees, np.arange(1, chunks + 1) * words)


def record_of(config, *documents):
    return build_record(
        documents,
        text_rows=config.text_rows,
        chunk_rows=config.tokens_per_chunk,
        chunks=config.chunks_per_row,
    )


def test_parts_add_up_to_the_model():
    for tied in (False, True):
        config = dataclasses.replace(TOY, model=dataclasses.replace(TOY.model, tied_embeddings=tied))
        counts = parameter_counts(config)
        assert sum(counts.values()) == sum(p.numel() for p in MoT(config).parameters())
        assert counts["text_tower"] == counts["video_tower"] == 4 * (4 * 128**2 + 3 * 128 * 384 + 2 * 128)
        assert counts["vocabulary"] == (1 if tied else 2) * config.model.vocab * 128
    assert parameter_counts(paper_config())["patcher"] == 249_464_080


def test_patcher_flops_at_the_papers_size():
    """Two FLOPs an entry of a convolution and an output pixel; linear layers once an image."""
    down, up = patcher_flops(paper_config())
    full, half, time = 24 * 40, 12 * 20, 1024
    macs = full * 9 * (16 * 512 + 4 * 512**2) + half * (9 * (512 * 1280 + 4 * 1280**2) + 1280 * 3072)
    macs += 256 * time + time**2 + 2 * time * (512 + 1280)
    assert down == 2 * macs
    macs = half * (3072 * 1280 + 3 * 9 * (2560 + 1280) * 1280 + 4 * 1280 * 512)
    macs += full * 9 * (3 * (1024 + 512) * 512 + 512 * 16) + 3 * time * (512 + 1280)
    assert up == 2 * macs


@pytest.mark.parametrize("patch", ["unet", "linear"])
def test_a_full_row_costs_what_torch_counts(patch):
    """With all rows live and the mask not used, torch's counter sees the same products, but for attention."""
    config = dataclasses.replace(
        TOY,
        attention="reference",
        sequence=dataclasses.replace(TOY.sequence, examples_per_row=1, context_tokens=13 * 4 * 2 + 40),
        model=dataclasses.replace(TOY.model, patch=patch, kv_heads=2),
    )
    record = record_of(config, document(13, 3))
    assert record.documents[0, 0].tolist() == [0, 40]
    size, chunks = config.sequence.context_tokens, config.chunks_per_row
    latents = torch.zeros(chunks, 16, 4, 4)
    batch = Batch(
        *(torch.zeros(40, dtype=torch.int64), torch.full((40,), IGNORE)),
        torch.zeros(size, dtype=torch.int32),
        *(latents, latents, latents, torch.ones(chunks), torch.ones(chunks)),
        torch.ones(chunks, dtype=torch.bool),
        record,
        ("one",),
    )
    with FlopCounterMode(display=False) as counter:
        MoT(config)(batch)
    found = training_flops(config, record)
    dense_attention = 4 * config.model.layers * config.model.width * size**2
    assert counter.get_total_flops() == (sum(found.values()) - found["attention"]) // 3 + dense_attention


def test_only_what_is_live_and_visible_counts():
    config = dataclasses.replace(TOY)
    one = training_flops(config, record_of(config, document(13, 3)))
    two = training_flops(config, record_of(config, document(13, 3), document(13, 3)))
    assert two == {part: 2 * flops for part, flops in one.items()}
    text, chunks, tokens = 40, 13, 4
    pairs = text * (text + 1) // 2 + tokens * 3 * sum(range(1, 13)) + tokens * 13  # of text rows
    pairs += 2 * sum(tokens * (3 * (i + 1) + tokens * i + tokens) for i in range(chunks))  # of both copies
    assert one["attention"] == 3 * 4 * 4 * 128 * pairs


def test_a_3b_run_costs_about_what_was_estimated():
    """50,000 steps of 128 sequences come to about 2.1e21 FLOPs; attention sees about 30 % of its matrix."""
    config = paper_config()
    record = record_of(config, document(26, 110))
    assert record.live_pairs() / config.sequence.context_tokens**2 == pytest.approx(0.30, abs=0.02)
    assert 50_000 * 128 * sum(training_flops(config, record).values()) == pytest.approx(2.1e21, rel=0.15)


def test_the_dense_convention_is_torchtitans():
    """6 N + 12 l h q t a row of either tower, N being its weights; then the head and the patcher."""
    config = paper_config()
    model, rows = config.model, config.sequence.context_tokens
    norms = model.layers * 2 * model.width
    tower = parameter_counts(config)["text_tower"] - norms
    down, up = patcher_flops(config)
    beside = 6 * model.vocab * model.width * config.text_rows + 3 * config.chunks_per_row * (2 * down + up)
    a_row = 6 * tower + 12 * model.layers * model.heads * model.head_dim * rows
    assert dense_training_flops(config) == rows * a_row + beside
    full = record_of(config, document(26, (config.text_rows - 1) // 26))
    assert sum(training_flops(config, full).values()) < dense_training_flops(config)
