"""The door to cached attention: what it returns beside the values, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from megatv_kernels import FP8, cached_attention


def inputs(batch=3, queries=2, slots=70, heads=4, kv_heads=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    return {
        "q": draw(batch, queries, heads, 16),
        "k_cache": draw(batch, slots, kv_heads, 16),
        "v_cache": draw(batch, slots, kv_heads, 16),
        "lengths": torch.tensor([0, 40, 3])[:batch],
    }


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_lse_is_the_logarithm_of_the_sum(causal, kv_heads):
    given = inputs(kv_heads=kv_heads, dtype=torch.float64)
    out, lse = cached_attention(**given, causal=causal, return_lse=True)
    assert torch.equal(out, cached_attention(**given, causal=causal))
    for b, length in enumerate(given["lengths"].tolist()):
        for i in range(2):
            seen = length + (i + 1 if causal else 2)
            keys = given["k_cache"][b, :seen].repeat_interleave(4 // kv_heads, 1)
            scores = torch.einsum("he,khe->hk", given["q"][b, i], keys) / 4
            torch.testing.assert_close(lse[b, i], scores.logsumexp(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("longest", [10, 31, 40, 66, 68])
def test_slots_nobody_sees_change_nothing(causal, longest):
    """Unseen slots are left out, and what is left gives what the whole cache gave."""
    given = inputs() | {"lengths": torch.tensor([0, longest, 3])}
    limit = given["lengths"][:, None] + (torch.tensor([1, 2]) if causal else 2)
    mask = (torch.arange(70) < limit[..., None])[:, None].expand(-1, 1, 2, -1)
    q, k, v = (given[name].transpose(1, 2) for name in ("q", "k_cache", "v_cache"))
    whole = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(cached_attention(**given, causal=causal), whole, rtol=1e-6, atol=1e-6)


def test_a_neighbour_that_is_longer_changes_nothing():
    given = inputs()
    short = cached_attention(**given, causal=True)
    longer = cached_attention(**given | {"lengths": torch.tensor([0, 68, 3])}, causal=True)
    torch.testing.assert_close(longer[[0, 2]], short[[0, 2]], rtol=1e-6, atol=1e-6)


def test_a_cache_in_fp8_is_read_as_the_numbers_that_it_holds():
    given = inputs()
    small = {name: given[name].to(FP8) for name in ("k_cache", "v_cache")}
    widened = {name: cache.float() for name, cache in small.items()}
    for causal in (True, False):
        found = cached_attention(**given | small, causal=causal)
        assert torch.equal(found, cached_attention(**given | widened, causal=causal))


def test_any_strides():
    given = inputs()
    expected = cached_attention(**given, causal=True)
    given["k_cache"] = given["k_cache"].transpose(1, 2).contiguous().transpose(1, 2)  # [B, K, L, E] in memory
    given["v_cache"] = torch.stack([given["v_cache"]] * 2, -1)[..., 1]
    torch.testing.assert_close(cached_attention(**given, causal=True), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 4, 16)}, r"takes q \[B, Q, H, E\]"),
        ({"v_cache": torch.zeros(3, 69, 2, 16)}, "two caches"),
        ({"q": torch.zeros(2, 2, 4, 16)}, "same batch"),
        ({"q": torch.zeros(3, 2, 4, 8)}, "same batch and head size"),
        ({"q": torch.zeros(3, 0, 4, 16)}, "at least one"),
        ({"q": torch.zeros(3, 2, 5, 16)}, "no multiple"),
        ({"lengths": torch.zeros(3, dtype=torch.int32)}, r"int64 \[3\], got torch.int32"),
        ({"lengths": torch.zeros(2, dtype=torch.int64)}, r"int64 \[3\], got torch.int64 \(2,\)"),
        ({"q": torch.zeros(3, 2, 4, 16, dtype=torch.float16)}, "one floating dtype"),
        ({"k_cache": torch.zeros(3, 70, 2, 16).to(FP8)}, "or the caches torch.float8_e4m3fn"),
        ({"lengths": torch.zeros(3, dtype=torch.int64, device="meta")}, "one device"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        cached_attention(**inputs() | change, causal=True)
