"""Norm, rotation and cache write: plain torch everywhere, the kernel in the interpreter or on a GPU."""

import os
from importlib.util import find_spec

import pytest
import torch
from megatv_kernels import FP8, rope_cache, rotate, rotate_and_store, rotate_qk
from torch.utils.checkpoint import checkpoint

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if GPU else "cpu"
HALF_PRECISION = torch.bfloat16 if GPU else torch.float16  # the interpreter knows no bf16
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
kernel = pytest.mark.skipif(not (INTERPRETED or GPU), reason="needs a GPU or the interpreter")
needs_triton = pytest.mark.skipif(
    INTERPRETED or not find_spec("triton"), reason="needs triton, not interpreted"
)


@needs_triton
@pytest.mark.slow
def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.fixture
def always_fused(monkeypatch):
    """The interpreter's tensors are on the CPU, where the door would choose plain torch."""
    monkeypatch.setattr(rope_cache, "_fused", lambda q, table: True)


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def table_of(*shape, head_dim, dtype=torch.float32):
    angle = draw(*shape, head_dim // 2) * 3
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]).to(dtype)


def by_hand(x, table, weight, eps):
    """fp64: the norm from its formula, the rotation as a complex product."""
    x, table = x.double(), table.double()
    half = x.shape[-1] // 2
    if weight is not None:
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    turn = torch.complex(table[0, ..., :half], table[1, ..., half:])[..., None, :]
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1)


def agree(found, expected, dtype):
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def check_with_gradients(dtype, rows, heads, kv_heads, head_dim, normed, call=rotate_qk):
    table_dtype = torch.promote_types(dtype, torch.float32)
    table = table_of(*rows, head_dim=head_dim, dtype=table_dtype)
    inputs = [draw(*rows, heads, head_dim, dtype=dtype), draw(*rows, kv_heads, head_dim, dtype=dtype, seed=9)]
    if normed:
        inputs += [draw(head_dim, dtype=dtype), draw(head_dim, dtype=dtype, seed=1)]
    weights = [draw(*rows, n, head_dim, dtype=dtype, seed=5) for n in (heads, kv_heads)]
    inputs = [x.requires_grad_() for x in inputs]
    q, k, *norms = inputs
    found = call(q, k, table, **dict(zip(("q_weight", "k_weight"), norms, strict=False)), eps=1e-5)
    assert all(x.dtype == dtype for x in found)
    gradients = torch.autograd.grad(found, inputs, weights)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    pairs = zip(exact[:2], exact[2:] or (None, None), strict=True)
    expected = [by_hand(x, table, weight, 1e-5) for x, weight in pairs]
    for a, b in zip(found, expected, strict=True):
        agree(a, b, dtype)
    for a, b in zip(
        gradients, torch.autograd.grad(expected, exact, [w.double() for w in weights]), strict=True
    ):
        agree(a, b, dtype)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, HALF_PRECISION])
def test_door_with_gradients(dtype, normed):
    check_with_gradients(dtype, (2, 5), 4, 2, 32, normed)


@kernel
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "rows", "kv_heads", "head_dim"),
    [
        (torch.float32, (70,), 2, 64),
        (HALF_PRECISION, (33,), 3, 128),
        (torch.float32, (1,), 1, 32),
        (torch.float32, (2, 20), 2, 64),
    ],
)
def test_kernel_with_gradients(always_fused, dtype, rows, kv_heads, head_dim, normed):
    check_with_gradients(dtype, rows, 6, kv_heads, head_dim, normed)


@kernel
def test_kernel_takes_views(always_fused):
    """Heads that are a slice of a wider projection."""
    wide, table = draw(40, 6, 64, dtype=torch.float32), table_of(40, head_dim=64)
    q, k = rotate_qk(wide[:, :4], wide[:, 4:], table)
    agree(torch.cat([q, k], 1), by_hand(wide, table, None, 0), torch.float32)


@kernel
@pytest.mark.parametrize("normed", [False, True])
def test_operator_goes_through_compile_and_checkpointing(always_fused, normed):
    def under_checkpoint(q, k, table, **options):
        return checkpoint(rotate_qk, q, k, table, use_reentrant=False, **options)

    compiled = torch.compile(rotate_qk, backend="aot_eager", fullgraph=True)
    for call in (under_checkpoint, compiled):
        check_with_gradients(torch.float32, (9,), 4, 2, 32, normed, call)


@kernel
def test_weights_gradient_is_the_same_every_time(always_fused):
    q, k = draw(200, 4, 64, dtype=torch.float32), draw(200, 2, 64, dtype=torch.float32)
    weight, table = draw(64, dtype=torch.float32).requires_grad_(), table_of(200, head_dim=64)
    first, again = (
        torch.autograd.grad(rotate_qk(q, k, table, q_weight=weight, k_weight=weight)[0].sum(), weight)[0]
        for _ in range(2)
    )
    assert torch.equal(first, again)


def check_store(lengths, queries, slots, heads, kv_heads, head_dim, dtype, normed=False):
    batch = len(lengths)
    table = table_of(batch, queries, head_dim=head_dim)
    q, k, v = (draw(batch, queries, n, head_dim, dtype=dtype, seed=n) for n in (heads, kv_heads, kv_heads))
    k = k + 1  # k and v have one shape: keep them apart
    norms = {f"{x}_weight": draw(head_dim, dtype=dtype, seed=i) for i, x in enumerate("qk")} if normed else {}
    caches = torch.full((2, 2, batch, slots, kv_heads, head_dim), torch.nan, dtype=dtype, device=DEVICE)[:, 1]
    at = torch.tensor(lengths, device=DEVICE)
    with torch.inference_mode():
        turned = rotate_and_store(q, k, v, table, *caches, at, **norms, eps=1e-5)
    agree(turned, by_hand(q, table, norms.get("q_weight"), 1e-5), dtype)
    keys = by_hand(k, table, norms.get("k_weight"), 1e-5)
    for b, length in enumerate(lengths):
        fit = min(queries, slots - 1 - length)  # the last slot is the spare one
        filled = slice(length, length + fit)
        agree(caches[0, b, filled], keys[b, :fit], dtype)
        assert torch.equal(caches[1, b, filled], v[b, :fit])
        assert caches[:, b, :length].isnan().all() and caches[:, b, length + fit : -1].isnan().all()
        assert bool(caches[:, b, -1].isnan().all()) == (fit == queries)
    assert at.tolist() == list(lengths)


@pytest.mark.parametrize("normed", [False, True])
def test_door_stores(normed):
    check_store([0, 7, 9, 4], 3, 10, 4, 2, 32, torch.float32, normed)


@kernel
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("queries", [1, 3, 40])
def test_kernel_stores(always_fused, queries, normed):
    check_store([0, 57, 59, 4], queries, 60, 6, 2, 64, HALF_PRECISION, normed)


@kernel
def test_kernel_casts_to_the_caches_dtype(always_fused):
    table = table_of(1, 2, head_dim=64)
    q, k, v = (draw(1, 2, n, 64, dtype=torch.float32) for n in (4, 2, 2))
    caches = torch.zeros(2, 1, 4, 2, 64, dtype=torch.float16, device=DEVICE)
    rotate_and_store(q, k, v, table, *caches, torch.tensor([1], device=DEVICE))
    assert torch.equal(caches[1, :, 1:3], v.half())
    torch.testing.assert_close(caches[0, :, 1:3], rotate(k, table).half(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", ["door", pytest.param("kernel", marks=kernel)])
def test_a_cache_in_fp8_keeps_what_it_can_hold_and_saturates(way, request):
    """Without a rotation, and with numbers of e4m3, which the interpreter does not have to round."""
    if way == "kernel":
        request.getfixturevalue("always_fused")
    still = torch.stack([torch.ones(1, 2, 64), torch.zeros(1, 2, 64)]).to(DEVICE)
    q, k, v = (draw(1, 2, n, 64, dtype=torch.float32).to(FP8).float() for n in (4, 2, 2))
    k[0, 0, 0, 0], v[0, 0, 0, 0] = 3e3, -3e3
    caches = torch.zeros(2, 1, 4, 2, 64, device=DEVICE).to(FP8)
    assert torch.equal(rotate_and_store(q, k, v, still, *caches, torch.tensor([1], device=DEVICE)), q)
    for cache, exact in zip(caches, (k, v), strict=True):
        assert torch.equal(cache[:, 1:3].float(), exact.clamp(-448, 448))
        assert not cache[:, [0, 3]].float().any()


GOOD = {"q": (2, 3, 4, 8), "k": (2, 3, 2, 8), "v": (2, 3, 2, 8), "table": (2, 2, 3, 8)}
CACHES = {"k_cache": (2, 9, 2, 8), "v_cache": (2, 9, 2, 8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 4, 2, 8)}, "must agree but for their heads"),
        ({"table": torch.zeros(2, 3, 8)}, r"must be \(2, 2, 3, 8\)"),
        ({"k": torch.zeros(2, 3, 2, 8).double()}, "share a device, q and k their dtype"),
        ({"q_weight": torch.ones(8)}, "both q and k"),
        ({"q_weight": torch.ones(4), "k_weight": torch.ones(4)}, r"must be \[8\]"),
        ({"v": torch.zeros(2, 3, 1, 8)}, "takes k, v"),
        (
            {"k_cache": torch.zeros(1, 9, 2, 8), "v_cache": torch.zeros(1, 9, 2, 8)},
            "do not fit into the cache",
        ),
        ({"lengths": torch.zeros(2)}, r"int64 \[2\], got torch.float32"),
        ({"lengths": torch.zeros(2, dtype=torch.int64, device="meta")}, "on one device"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {name: torch.zeros(shape) for name, shape in (GOOD | CACHES).items()}
    given["lengths"] = torch.zeros(2, dtype=torch.int64)
    rotate_and_store(**given)
    with pytest.raises(ValueError, match=message):
        rotate_and_store(**given | change)


@needs_triton
@pytest.mark.slow
def test_compiled_for_hopper_nothing_spills(compiled_launches):
    from megatv_kernels import rope_triton

    def meta(*shape, dtype=torch.bfloat16):
        return torch.empty(*shape, dtype=dtype, device="meta")

    q, k, table = meta(2, 240, 32, 128), meta(2, 240, 8, 128), meta(2, 2, 240, 128, dtype=torch.float32)
    cache, lengths, weight = meta(2, 6817, 8, 128), meta(2, dtype=torch.int64), meta(128)
    small = meta(2, 6817, 8, 128, dtype=FP8)

    def launch_all():
        rope_triton.forward(q, k, table, None, None, 0.0)
        rope_triton.store(q, k, k, table, cache, cache, lengths, weight, weight, 1e-5)
        rope_triton.store(q, k, k, table, small, small, lengths, None, None, 0.0)
        rope_triton.backward(q, k, q, k, table, weight, weight, 1e-5)

    launches = compiled_launches(rope_triton, ["_rotate", "_norm_backward"], launch_all)
    assert len(launches) == 4
    assert all(x.local == 0 for x in launches)
