"""Matrices in fp8: what quantisation loses, and products against torch's own row-wise kernel."""

import pytest
import torch
from megatv_kernels import FP8, fp8_linear, quantize_rows
from megatv_kernels.fp8 import compiled, saturate, scaled_product

HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


def test_rows_keep_four_bits_whatever_their_size():
    x = torch.randn(6, 40) * torch.logspace(-8, 20, 6)[:, None]
    x[2] = 0
    small, scale = quantize_rows(x)
    assert small.dtype == FP8 and scale.shape == (6, 1) and scale.dtype == torch.float32
    back = small.float() * scale
    # half a unit of the fourth bit, or of the smallest number of e4m3
    allowed = torch.maximum(x.abs() * 2**-4, scale * 2**-10)
    assert ((back - x).abs() <= allowed * 1.001).all()
    assert small.float().abs().amax(1).tolist() == [448, 448, 0, 448, 448, 448]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_casts_saturate_and_keep_nan(dtype):
    x = torch.tensor([449.0, 464.0, 465.0, 1e30, -torch.inf, torch.nan], dtype=dtype)
    expected = torch.tensor([448.0, 448.0, 448.0, 448.0, -448.0, torch.nan])
    torch.testing.assert_close(saturate(x, FP8).float(), expected, rtol=0, atol=0, equal_nan=True)


def matrices(inputs=48, outputs=32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, inputs, generator=generator).to(device, torch.bfloat16)
    return x, *quantize_rows(torch.randn(outputs, inputs, generator=generator).to(device))


@pytest.mark.parametrize("rows", [10, 1])
def test_the_plain_product_is_torchs_row_wise_one(rows):
    x, weight, scale = matrices()
    small, row_scale = quantize_rows(x.flatten(0, 1)[:rows])
    found = scaled_product(small, row_scale, weight, scale, torch.float32)
    exact = (small.double() * row_scale) @ (weight.double() * scale).t()
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)
    theirs = torch._scaled_mm(
        small, weight.t(), scale_a=row_scale, scale_b=scale.t(), out_dtype=torch.float32
    )
    torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-5)


def test_linear_of_any_leading_shape():
    x, weight, scale = matrices()
    out = fp8_linear(x, weight, scale)
    assert out.shape == (2, 5, 32) and out.dtype == x.dtype
    exact = x.double() @ (weight.double() * scale).t()
    assert (out - exact).norm() < 0.04 * exact.norm()
    assert torch.equal(fp8_linear(x[0, 0], weight, scale), out[0, 0])


@pytest.mark.slow  # the compiler
def test_compiled_rows_are_the_same_bits():
    for rows in (1, 7):
        x = torch.randn(rows, 48, generator=torch.Generator().manual_seed(rows)).bfloat16()
        for found, expected in zip(compiled()(x), quantize_rows(x), strict=True):
            assert torch.equal(found.float(), expected.float())


@pytest.mark.skipif(not HAS_FP8, reason="needs a GPU of compute capability 8.9")
@pytest.mark.parametrize("rows", [1, 240])
def test_a_gpus_product_is_the_plain_one(rows):
    x, weight, scale = matrices(4096, 1024, "cuda")
    x = x.flatten(0, 1).repeat(24, 1)[:rows]
    expected = fp8_linear(x.cpu(), weight.cpu(), scale.cpu())
    torch.testing.assert_close(fp8_linear(x, weight, scale).cpu(), expected, rtol=2e-2, atol=2e-1)
