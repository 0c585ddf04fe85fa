"""The CUDA kernels themselves, run on a host by an emulated multiprocessor, against dense attention in fp64.

The emulator (cuda_emulator/) knows what the manuals say of TMA, mbarriers, wgmma and swizzles, runs threads
in random orders and lets everything asynchronous happen as late or as early as it may. It tries index
arithmetic, masks and synchronisation; that the hardware does what the manuals say only a GPU can show.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from megatv_kernels import Document, attention, build_record, cuda_attention, cuda_build
from megatv_kernels.cuda_driver import Driver, Module

EMULATOR = Path(__file__).parent / "cuda_emulator"
CUDA = Path(cuda_build.find_nvcc() or "/none").resolve().parent.parent
COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(
    COMPILER is None or not (CUDA / "include/cuda.h").exists(), reason="needs g++ and the headers of CUDA"
)

ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
CAPTIONED = ["t" * 150 + "c" + "ttt" + "c", "ct"], {"text_rows": 160, "chunk_rows": 60, "chunks": 4}
"""A text longer than a key tile, chunks longer than a query tile, two documents, padding of both kinds."""
WIDE_CHUNKS = ["tcc"], {"text_rows": 1, "chunk_rows": 136, "chunks": 2}
"""Key tiles of 128 and 8 rows, all of them full."""
CROWDED = ["tct", "c", "ttc", "tt", "tctc"], {"text_rows": 11, "chunk_rows": 5, "chunks": 6}
"""Documents much smaller than any tile."""


def compile_emulator(folder, element, head_dim, sources=cuda_build.SOURCES):
    output = folder / f"{element}-{head_dim}.so"
    macros = [f"-DMEGATV_ELEMENT={cuda_build.ELEMENTS[element]}", f"-DMEGATV_HEAD_DIM={head_dim}"]
    includes = [f"-I{EMULATOR}", f"-I{sources}", f"-isystem{CUDA / 'include'}"]
    flags = [
        "-std=c++17",
        "-O2",
        "-fPIC",
        "-shared",
        "-Wall",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-Wno-psabi",
    ]
    command = [COMPILER, *flags, *includes, *macros, str(EMULATOR / "emulator.cpp"), "-o", str(output)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return Driver(str(output))


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """The emulated driver for an element type and a head dimension, compiled once."""
    drivers = {}

    def get(dtype, head_dim):
        key = str(dtype).removeprefix("torch."), head_dim
        if key not in drivers:
            drivers[key] = compile_emulator(tmp_path_factory.mktemp("emulator"), *key)
        return drivers[key]

    return get


@pytest.fixture
def poison():
    """Fresh tensors hold NaN, so what a kernel does not write shows."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(was)


def visibility(word):
    return Document(
        np.array([word[:i].count("c") for i, x in enumerate(word) if x == "t"], np.int32),
        np.array([word[:i].count("t") for i, x in enumerate(word) if x == "c"], np.int32),
    )


def make_inputs(packing, dtype, head_dim, heads, kv_heads):
    words, layout = packing
    record = build_record([visibility(word) for word in words], **layout)
    rng = torch.Generator().manual_seed(0)
    shapes = [(record.rows, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    return record, [torch.randn(shape, generator=rng).to(dtype) for shape in shapes]


def run(monkeypatch, driver, record, inputs, seed, deterministic):
    """(out, lse, dq, dk, dv) of the kernels, threads and copies in an order drawn from `seed`."""
    driver.library.emulator_seed(seed)
    module = Module(driver, 0, b"")
    monkeypatch.setattr(cuda_attention, "_module", lambda *_: module)
    monkeypatch.setattr(cuda_attention, "_stream", lambda _: 0)
    q, k, v, dout = inputs
    out, lse = cuda_attention.forward(q, k, v, record)
    return out, lse, *cuda_attention.backward(dout, q, k, v, out, lse, record, deterministic)


def dense(record, inputs):
    *qkv, dout = (x.double() for x in inputs)
    qkv = [x.requires_grad_() for x in qkv]
    out, lse = attention(*qkv, record, backend="reference", return_lse=True)
    return out.detach(), lse, *torch.autograd.grad(out, qkv, dout)


def check(got, expected, dtype):
    """Each row is right to a few roundings; P and dS are rounded as well as the results."""
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), got, expected, strict=True):
        size = b.flatten(1).norm(dim=1)
        errors = (a.double() - b).flatten(1).norm(dim=1) / size.clamp(min=size.mean())
        limit = 1e-5 if name == "lse" else 4 * ROUNDING[dtype]
        assert errors.max() < limit, f"{name}: row {errors.argmax()} is off by {errors.max():.1e}"


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("packing", [CAPTIONED, CROWDED], ids=["captioned", "crowded"])
def test_kernels_equal_dense_attention(packing, deterministic, emulator, monkeypatch, poison):
    record, inputs = make_inputs(packing, torch.bfloat16, 128, heads=2, kv_heads=1)
    got = run(monkeypatch, emulator(torch.bfloat16, 128), record, inputs, 1, deterministic)
    check(got, dense(record, inputs), torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "head_dim"), [(torch.float16, 128), (torch.bfloat16, 64), (torch.float16, 64)]
)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (3, 1), (5, 1), (8, 2)])
def test_every_variant_and_group(dtype, head_dim, heads, kv_heads, emulator, monkeypatch, poison):
    record, inputs = make_inputs(CROWDED, dtype, head_dim, heads, kv_heads)
    expected = dense(record, inputs)
    for deterministic in (False, True):
        got = run(monkeypatch, emulator(dtype, head_dim), record, inputs, heads, deterministic)
        check(got, expected, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
def test_no_order_of_threads_and_copies_matters(head_dim, emulator, monkeypatch, poison):
    record, inputs = make_inputs(WIDE_CHUNKS, torch.bfloat16, head_dim, heads=4, kv_heads=1)
    driver = emulator(torch.bfloat16, head_dim)
    first = run(monkeypatch, driver, record, inputs, 0, True)
    check(first, dense(record, inputs), torch.bfloat16)
    for seed in range(1, 4):
        again = run(monkeypatch, driver, record, inputs, seed, True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_large_scores_neither_overflow_nor_vanish(emulator, monkeypatch, poison):
    """Row maxima that grow from key tile to key tile, by more than fp16's range and by less than 2^8."""
    record, inputs = make_inputs(CAPTIONED, torch.bfloat16, 128, heads=1, kv_heads=1)
    inputs[1] *= torch.linspace(0.1, 32, record.rows)[:, None, None]
    expected = dense(record, inputs)
    assert expected[1].max() > 80 and expected[1].min() < 5
    got = run(monkeypatch, emulator(torch.bfloat16, 128), record, inputs, 2, True)
    assert (got[1] - expected[1]).abs().max() < 1e-3
    for a, b in zip(got, expected, strict=True):
        assert (a.double() - b).norm() < 8 * ROUNDING[torch.bfloat16] * b.norm()


LONG_TEXT = ["t" * 500], {"text_rows": 500, "chunk_rows": 1, "chunks": 0}
"""More tiles than the rings have buffers."""
READY, RELEASE, PACK = (
    "    wgmma_wait<0>(o);\n",
    "    release(barriers.v_empty(v_ring.index));\n",
    "    if (grown) softmax.apply(o);\n    pack(p, s);\n",
)
MUTATIONS = {
    "scores read too early": ("forward.cuh", "    wgmma_wait<1>(s);\n", ""),
    "values released too early": ("forward.cuh", READY + RELEASE, RELEASE + READY),
    "probabilities replaced too early": ("forward.cuh", READY + RELEASE + PACK, PACK + READY + RELEASE),
    "dS not fenced": ("backward.cuh", "      fence_async();\n", ""),
    "dS without its second buffer": (
        "backward.cuh",
        "smem + kScores + buffer * kScoresTile",
        "smem + kScores",
    ),
    "sums replaced too early": ("backward.cuh", "  if (leader) tma_wait_read();", ""),
    "a phase too few": ("tiles.cuh", "      phase ^= 1;\n", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_emulator_notices_missing_synchronisation(name, tmp_path, monkeypatch, poison):
    """The test of the tests: each of these mistakes would be a race or a hang on a GPU."""
    file, old, new = MUTATIONS[name]
    sources = tmp_path / "cuda"
    shutil.copytree(cuda_build.SOURCES, sources)
    text = (sources / file).read_text()
    assert text.count(old) == 1
    (sources / file).write_text(text.replace(old, new))
    driver = compile_emulator(tmp_path, "bfloat16", 128, sources)
    record, inputs = make_inputs(LONG_TEXT, torch.bfloat16, 128, heads=1, kv_heads=1)
    with pytest.raises((AssertionError, RuntimeError)):
        for seed in range(3):
            got = run(monkeypatch, driver, record, inputs, seed, False)
            check(got, dense(record, inputs), torch.bfloat16)
