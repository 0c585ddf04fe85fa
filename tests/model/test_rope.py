"""Rotary positions against complex numbers and against transformers' Llama-3 rule."""

import dataclasses

import pytest
import torch
from megatv_kernels import rotate
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatv.config import ModelConfig, RopeScaling
from megatv.model.rope import inverse_frequencies, rope_table

MODEL = ModelConfig(layers=1, width=256, ffn=8, heads=2, kv_heads=2, vocab=8, tied_embeddings=False)


def test_rotation_is_a_complex_product():
    x = torch.randn(5, 2, 128, dtype=torch.float64)
    positions = torch.tensor([0, 1, 7, 100, 9000])
    turned = rotate(x, rope_table(positions, MODEL, torch.float64))
    pairs = torch.complex(x[..., :64], x[..., 64:])
    angle = positions[:, None, None] * 500000.0 ** (-torch.arange(64, dtype=torch.float64) / 64)
    expected = pairs * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1), rtol=0, atol=1e-10)


def test_only_distances_matter():
    q, k = torch.randn(2, 1, 1, 128, dtype=torch.float64)
    turn = lambda x, p: rotate(x, rope_table(torch.tensor([p]), MODEL, torch.float64))  # noqa: E731
    near = (turn(q, 12) * turn(k, 5)).sum()
    far = (turn(q, 9012) * turn(k, 9005)).sum()
    torch.testing.assert_close(near, far, rtol=1e-9, atol=0)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_equals_transformers(factor):
    model = dataclasses.replace(MODEL, rope_scaling=RopeScaling(factor=factor))
    theirs = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    expected, scale = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    assert scale == 1
    torch.testing.assert_close(inverse_frequencies(model).float(), expected, rtol=1e-6, atol=0)


def test_table_is_precise_far_out_and_keeps_the_input_dtype():
    table = rope_table(torch.tensor([100_003], dtype=torch.int32), MODEL)
    exact = rope_table(torch.tensor([100_003]), MODEL, torch.float64)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table.double(), exact, rtol=0, atol=1e-7)
    assert rotate(torch.randn(1, 2, 128, dtype=torch.bfloat16), table).dtype == torch.bfloat16
