"""Attention's errors and times, every backend and peer, for `bench_attention.py` and others beside it."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attention_report import PARTS  # the tool beside this one
from megatv.config import Config, load_config
from megatv.model.cost import packed_row

import numpy as np
import torch
import torch.nn.functional as F
from megatv_kernels import AttentionRecord, Document, attention, build_record, cached_attention
from megatv_kernels.backends import BACKENDS, why_not
from megatv_kernels.blocks import block_lists
from megatv_kernels.flex import BLOCK, OPTIONS, kernel
from megatv_kernels.reference import dense_mask
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask

ROOT = Path(__file__).resolve().parents[1]


def measure(small: bool) -> dict[str, Any]:
    """All figures as plain data: machine, errors, metadata, cases, decode."""
    device, dtype = (torch.device("cpu"), torch.float32) if small else (torch.device("cuda"), torch.bfloat16)
    names = ("toy_world",) if small else ("8b_sports", "3b_csgo")
    configs = {name: load_config(ROOT / f"configs/{name}.yaml") for name in names}
    first = configs[names[0]]
    return {
        "machine": {
            "date": time.strftime("%Y-%m-%d"),
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else "none",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "dtype": str(dtype).removeprefix("torch."),
            "matmul_tflops": matmul_tflops(device, dtype),
        },
        "errors": errors(device, dtype),
        "metadata": metadata(first, device),
        "cases": [
            case(name, config, documents, device, dtype)
            for name, config in configs.items()
            for documents in (1, 4)
        ],
        "decode": [
            decode(first, batch, queries, device, dtype)
            for batch in (1, 2)
            for queries in (first.tokens_per_chunk, 1)
        ],
    }


def milliseconds(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Median, 10th and 90th percentile of the time of `work` on its device, after calls to warm it up."""
    warm, repeats = (3, 20) if device.type == "cuda" else (1, 3)  # a CPU's figures are of no interest
    times = []
    for turn in range(warm + repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            elapsed = start.elapsed_time(end)
        else:
            started = time.perf_counter()
            work()
            elapsed = (time.perf_counter() - started) * 1e3
        if turn >= warm:
            times.append(elapsed)
    low, median, high = np.percentile(times, [10, 50, 90]).tolist()
    return {"ms": median, "low": low, "high": high}


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """What a plain square matrix product reaches here on random data."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / milliseconds(lambda: a @ b, device)["ms"] / 1e9


def errors(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Relative error of output and gradients against fp64; `plain` is dense SDPA in the same dtype."""
    generator = torch.Generator().manual_seed(0)
    sees = np.array([3, 5, 5, 9])
    document = Document(np.searchsorted(sees, np.arange(10), side="right"), sees)
    record = build_record([document, document], text_rows=24, chunk_rows=48, chunks=9).to(device)

    def draw(heads: int) -> Tensor:
        return torch.randn(record.rows, heads, 128, generator=generator, dtype=torch.float64).to(device)

    q, k, v, gradient = draw(8), draw(2), draw(2), draw(8)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(record), enable_gqa=True)
        return out[0].transpose(0, 1)

    def run(call: Callable[..., Tensor], to: torch.dtype) -> list[Tensor]:
        leaves = [x.to(to).requires_grad_() for x in (q, k, v)]
        out = call(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(to))]

    exact = run(partial(attention, record=record, backend="reference"), torch.float64)
    found: dict[str, Any] = {}
    for name in ("plain", *BACKENDS):
        try:
            got = run(plain if name == "plain" else partial(attention, record=record, backend=name), dtype)
        except Exception as error:  # one that cannot run must not hide the others
            found[name] = {"skipped": _sentence(error)}
            continue
        pairs = zip(PARTS, got, exact, strict=True)
        found[name] = {part: float((a.double() - b).norm() / b.norm()) for part, a, b in pairs}
        if name != "plain":
            found[name]["worst_to_plain"] = max(found[name][p] / found["plain"][p] for p in PARTS)
    return found


def metadata(config: Config, device: torch.device) -> dict[str, Any]:
    """What a packed row's record costs on the host, and its copy to the device."""
    cpu = torch.device("cpu")

    def record() -> AttentionRecord:
        return packed_row(config, 1)

    steps: dict[str, Callable[[], object]] = {
        "record": record,
        "record and work lists (48 x 80)": lambda: record().work(48, 80),
        "record and block lists": lambda: block_lists(record(), BLOCK, BLOCK),
    }
    found: dict[str, Any] = {name: milliseconds(step, cpu) for name, step in steps.items()}
    made = record()
    work = made.work(48, 80)
    if device.type == "cuda":
        found["to device, one copy"] = milliseconds(lambda: made.to(device), device)
    return {**found, "kib": (made.intervals.numel() + work.table.numel()) * 4 / 1024}


def case(
    name: str, config: Config, documents: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Every backend and peer on one packed row."""
    record = packed_row(config, documents).to(device)
    heads, kv_heads, size = config.model.heads, config.model.kv_heads, config.model.head_dim
    generator = torch.Generator(device).manual_seed(0)

    def draw(n: int) -> Tensor:
        return torch.randn(record.rows, n, size, generator=generator, device=device, dtype=dtype)

    q, k, v, gradient = draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)
    pairs = record.live_pairs()
    calls: dict[str, tuple[Callable[..., Tensor], int]] = {}
    skipped: dict[str, Any] = {}
    for backend in BACKENDS:
        reason = why_not(backend, device, dtype, size)
        if backend == "reference" and device.type == "cuda":
            reason = "it is dense: its scores alone would take tens of GB"
        if reason:
            skipped[backend] = {"skipped": reason}
        else:
            calls[backend] = partial(attention, record=record, backend=backend), pairs
    calls["flex interleaved"] = interleaved(record)[0], pairs
    triangle = record.rows * (record.rows + 1) // 2
    peers = {"causal cuDNN": SDPBackend.CUDNN_ATTENTION, "causal flash": SDPBackend.FLASH_ATTENTION}
    for peer, kind in peers.items() if device.type == "cuda" else [("causal SDPA", None)]:
        calls[peer] = partial(_causal, kind), triangle
    results = {}
    for label, (call, count) in calls.items():
        started = time.perf_counter()
        results[label] = _timed(call, (q, k, v), gradient, 4 * count * heads * size, device)
        taken = f"{time.perf_counter() - started:.0f} s with its compilation"
        print(f"{name}, {documents} documents, {label}: {results[label]} ({taken})", file=sys.stderr)
    return {
        "name": f"{name}, {documents} document{'s' if documents > 1 else ''}",
        "rows": record.rows,
        "heads": [heads, kv_heads, size],
        "live_pairs": pairs,
        "results": {**results, **skipped},
    }


def _timed(
    call: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    gradient: Tensor,
    flop: int,
    device: torch.device,
) -> dict[str, Any]:
    """Forward and backward of one backend; memory is the peak beyond inputs and gradients, on a GPU."""
    found: dict[str, Any] = {}
    try:
        with torch.no_grad():
            found["forward"] = milliseconds(partial(call, *inputs), device)
        found["forward"]["tflops"] = flop / found["forward"]["ms"] / 1e9
        leaves = [x.detach().requires_grad_() for x in inputs]
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        out = call(*leaves)
        back = partial(torch.autograd.grad, out, leaves, gradient, retain_graph=True)
        found["backward"] = milliseconds(back, device)
        found["backward"]["tflops"] = 2.5 * flop / found["backward"]["ms"] / 1e9
        found["both_ms"] = found["forward"]["ms"] + found["backward"]["ms"]
        if device.type == "cuda":
            found["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    except Exception as error:  # one that cannot run must not hide the others
        found["skipped"] = _sentence(error)
    return found


def _causal(kind: SDPBackend | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    with sdpa_kernel([kind] if kind else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


def interleaved(record: AttentionRecord) -> tuple[Callable[..., Tensor], Tensor]:
    """FlexAttention on rows in order of time, and that order: place i holds packed row order[i].

    Intervals do not stay whole in that order, so a pair is looked up in the packed one.
    """
    spans = record.intervals.cpu()
    chunks_before = (spans[:, 1, 1] - spans[:, 1, 0]) // record.chunk_rows
    document = torch.full((record.rows,), len(record.documents))
    kind = torch.zeros(record.rows, dtype=torch.int64)
    for index, extents in enumerate(record.documents.tolist()):
        for part, (lo, hi) in zip((0, 2, 1), extents, strict=True):  # text, then noisy before clean
            document[lo:hi], kind[lo:hi] = index, part
    order = torch.from_numpy(np.lexsort((kind.numpy(), chunks_before.numpy(), document.numpy())))
    place = order.to(record.intervals.device)
    bounds = record.intervals.permute(1, 2, 0).contiguous()

    def sees(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        q, k = place[row], place[key]
        text, clean, own = ((k >= bounds[i, 0, q]) & (k < bounds[i, 1, q]) for i in range(3))
        return text | clean | own

    mask = create_block_mask(sees, None, None, record.rows, record.rows, device=str(place.device))
    call = partial(kernel(place.device.type), block_mask=mask, enable_gqa=True, kernel_options=OPTIONS)
    return lambda q, k, v: call(*(x.transpose(0, 1)[None] for x in (q, k, v)))[0].transpose(0, 1), order


def decode(
    config: Config, batch: int, queries: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """New rows against a nearly full cache, the second batch row half as long as the first."""
    slots = config.text_rows_per_example + config.latents * config.tokens_per_chunk
    heads, kv_heads, size = config.model.heads, config.model.kv_heads, config.model.head_dim
    q = torch.randn(batch, queries, heads, size, device=device, dtype=dtype)
    k, v = (torch.randn(batch, slots, kv_heads, size, device=device, dtype=dtype) for _ in range(2))
    filled = [slots - queries, slots // 2][:batch]
    lengths = torch.tensor(filled, device=device)
    found = milliseconds(lambda: cached_attention(q, k, v, lengths, causal=queries == 1), device)
    seen = sum(n + queries for n in filled)
    found["tflops"] = 4 * seen * queries * heads * size / found["ms"] / 1e9
    found["gb_per_s"] = 2 * seen * kv_heads * size * k.element_size() / found["ms"] / 1e6
    return {"batch": batch, "queries": queries, "keys": filled, **found}


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
