"""Every check that needs a GPU, in one call of a few minutes, as JSON.

    python tools/gpu_check.py --out gpu_check.json             # on a GPU, at the 8B shapes
    python tools/gpu_check.py --small --out gpu_check.json     # anywhere: tiny shapes, proves that it runs

Sections: `attention_error` (every backend against fp64, beside a plain SDPA in the working dtype),
`attention_time` (milliseconds and TFLOP/s over the live area, beside causal SDPA as the speed of light),
`training` (one step of as many 8B layers as fit; MFU from the live mask against a measured matmul) and
`sampling` (text steps and chunk passes a second against a full cache). A section that fails reports its error
and the others go on; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from megatv_kernels import AttentionRecord, Document, attention, build_record
from megatv_kernels.attention import BACKENDS
from torch import Tensor

from megatv.config import Config, load_config
from megatv.model import cost
from megatv.model.init import initialize
from megatv.model.mot import MoT
from megatv.objective.pretrain import pretrain_loss, weighted
from megatv.parallel.layers import Layers
from megatv.sample.cache import KVCache
from megatv.types import IGNORE, Batch

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the sections, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes, for a machine without a GPU")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    arguments = parser.parse_args()
    config, device, dtype = check_setting(arguments.small)
    sections: dict[str, Callable[[], Any]] = {
        "attention_error": lambda: attention_error(device, dtype),
        "attention_time": lambda: attention_time(config, device, dtype),
        "training": lambda: training(config, device, dtype),
        "sampling": lambda: sampling(config, device, dtype),
    }
    report: dict[str, Any] = {"machine": machine(device), "seconds": {}}
    for name, section in sections.items():
        started = time.perf_counter()
        try:
            report[name] = section()
        except Exception as error:  # one broken kernel must not hide the other figures
            report[name] = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        report["seconds"][name] = round(time.perf_counter() - started, 1)
        print(name, json.dumps(report[name], indent=1), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(any("error" in report[name] for name in sections))


def check_setting(small: bool) -> tuple[Config, torch.device, torch.dtype]:
    """The 8B configuration in bf16 on the GPU, or the toy one in fp32 on the CPU."""
    if small:
        return load_config(ROOT / "configs/toy_world.yaml"), torch.device("cpu"), torch.float32
    if not torch.cuda.is_available():
        raise SystemExit("error: no CUDA GPU is visible; use --small to try the checks on a CPU")
    overrides = ["model.init_text=null", "model.init_video=random", "parallel.tp=1", "parallel.pp=1"]
    return load_config(ROOT / "configs/8b_sports.yaml", overrides), torch.device("cuda"), torch.bfloat16


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "none"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": gpu,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    }


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Median wall time of `work` in ms after two warm-up calls, the device synchronised around each."""
    times = []
    for turn in range(repeats + 2):
        _synchronize(device)
        started = time.perf_counter()
        work()
        _synchronize(device)
        if turn >= 2:
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def one_document(config: Config) -> AttentionRecord:
    """A row filled by one document per example slot, the text spread evenly before the chunks."""
    text = config.text_rows_per_example
    chunk = np.arange(config.latents)
    sees_text = (chunk + 1) * text // config.latents
    sees_chunks = np.searchsorted(sees_text, np.arange(text), side="right")
    document = Document(text_sees_chunks=sees_chunks, chunk_sees_text=sees_text)
    return build_record(
        [document] * config.sequence.examples_per_row,
        text_rows=config.text_rows,
        chunk_rows=config.tokens_per_chunk,
        chunks=config.chunks_per_row,
    )


def attention_error(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Relative error of outputs and gradients against fp64, per backend; `plain` is dense SDPA in `dtype`."""
    from megatv_kernels.reference import dense_mask

    generator = torch.Generator().manual_seed(0)
    sees = np.array([3, 5, 5, 9])
    document = Document(np.searchsorted(sees, np.arange(10), side="right"), sees)
    record = build_record([document, document], text_rows=24, chunk_rows=48, chunks=9).to(device)
    heads, kv_heads, size = 8, 2, 128

    def draw(n: int) -> Tensor:
        return torch.randn(record.rows, n, size, generator=generator, dtype=torch.float64).to(device)

    q, k, v, gradient = draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(record), enable_gqa=True)
        return out[0].transpose(0, 1)

    def run(call: Callable[..., Tensor], to: torch.dtype) -> list[Tensor]:
        leaves = [x.to(to).requires_grad_() for x in (q, k, v)]
        out = call(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(to))]

    exact = run(partial(attention, record=record, backend="reference"), torch.float64)
    calls: dict[str, Callable[..., Tensor]] = {"plain": plain}
    for name in BACKENDS:
        calls[name] = partial(attention, record=record, backend=name)
    errors = {}
    for name, call in calls.items():
        got = run(call, dtype)
        errors[name] = {
            part: float((a.double() - b).norm() / b.norm())
            for part, a, b in zip(("out", "dq", "dk", "dv"), got, exact, strict=True)
        }
    return errors


def _there_and_back(call: Callable[..., Tensor], *inputs: Tensor) -> None:
    call(*inputs).sum().backward()


def attention_time(config: Config, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Forward and forward+backward time of one layer's attention, and TFLOP/s over the live pairs."""
    record = one_document(config).to(device)
    model = config.model
    q = torch.randn(record.rows, model.heads, model.head_dim, device=device, dtype=dtype, requires_grad=True)
    k, v = (
        torch.randn(record.rows, model.kv_heads, model.head_dim, device=device, dtype=dtype).requires_grad_()
        for _ in range(2)
    )
    forward_flop = 4 * record.live_pairs() * model.heads * model.head_dim

    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    calls: dict[str, tuple[Callable[..., Tensor], float]] = {
        "causal_sdpa": (causal, 2 * record.rows * (record.rows + 1) * model.heads * model.head_dim)
    }
    for name in BACKENDS:
        if name != "reference":  # dense: would need heads x S x S scores
            calls[name] = (partial(attention, record=record, backend=name), forward_flop)
    rows = {}
    for name, (call, flop) in calls.items():
        ahead = milliseconds(partial(call, q, k, v), device)
        both = milliseconds(partial(_there_and_back, call, q, k, v), device)
        rows[name] = {
            "forward_ms": ahead,
            "forward_backward_ms": both,
            "forward_tflops": flop / ahead / 1e9,
            "forward_backward_tflops": 3.5 * flop / both / 1e9,  # backward: 5 matmuls for the forward's 2
        }
    return {"rows": record.rows, "live_pairs": record.live_pairs(), "backends": rows}


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """What a plain square matrix product reaches here on random data."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / milliseconds(lambda: a @ b, device) / 1e9


def random_batch(config: Config, device: torch.device) -> Batch:
    """A full row of random tokens and latents."""
    m, p, t = config.chunks_per_row, config.tokens_per_chunk, config.text_rows
    shape = (m, 16, config.latent_height, config.latent_width)
    ids = torch.randint(0, config.model.vocab, (t,))
    targets = ids.clone()
    targets[::8] = IGNORE
    clean, noise, time_ = torch.randn(shape), torch.randn(shape), torch.rand(m)
    return Batch(
        text_ids=ids,
        text_targets=targets,
        positions=torch.arange(t + 2 * m * p, dtype=torch.int32),
        clean=clean,
        noisy=torch.lerp(noise, clean, time_[:, None, None, None]),
        velocity=clean - noise,
        clean_t=torch.ones(m),
        noisy_t=time_,
        chunk_loss=torch.ones(m, dtype=torch.bool),
        record=one_document(config),
        ids=("random",),
    ).to(device)


def build(config: Config, device: torch.device, dtype: torch.dtype) -> MoT:
    """A model with plain random weights, made on the device: the figures do not depend on their law."""
    with torch.device("meta"):
        model = MoT(config)
    model = model.to_empty(device=device).to(dtype)
    model.tie_embeddings()
    if device.type == "cpu":
        initialize(model.named_parameters(), config)
    else:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def training(config: Config, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """One optimizer step of one packed row; `layers` says how many of the model's layers were used."""
    layers = min(config.model.layers, 8)  # 8 of 32: weights, gradients and moments of 15 B would not fit
    config = replace(config, model=replace(config.model, layers=layers))
    model, batch = build(config, device, dtype), random_batch(config, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    counts = batch.counts()

    def step() -> None:
        loss = weighted(pretrain_loss(model(batch), batch, Layers()), counts, config.objective)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ms = milliseconds(step, device, repeats=5)
    flop = sum(cost.training_flops(config, batch.record).values())
    peak = matmul_tflops(device, dtype)
    return {
        "layers": layers,
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_ms": ms,
        "tokens_per_s": config.sequence.context_tokens / ms * 1e3,
        "tflops": flop / ms / 1e9,
        "matmul_tflops": peak,
        "share_of_matmul": flop / ms / 1e9 / peak,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }


def sampling(config: Config, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Text steps and chunk passes a second of the whole model against a nearly full cache, batch 1."""
    model = build(config, device, dtype).eval()
    p, slots = (
        config.tokens_per_chunk,
        config.text_rows_per_example + config.latents * config.tokens_per_chunk,
    )
    cache = KVCache.empty(config.model, 1, slots, device=device, dtype=dtype)
    cache.lengths += slots - 2 * p
    ids, at = torch.zeros(1, 1, dtype=torch.int64, device=device), cache.lengths[:, None]
    x = torch.randn(1, 16, config.latent_height, config.latent_width, device=device, dtype=dtype)
    t, positions = torch.full((1,), 0.5, device=device), at + torch.arange(p, device=device)
    with torch.inference_mode():
        text_ms = milliseconds(lambda: model.text_step(ids, at, cache), device)
        chunk_ms = milliseconds(lambda: model.chunk_step(x, t, positions, cache), device)
    return {
        "cache_rows": slots - 2 * p,
        "text_steps_per_s": 1e3 / text_ms,
        "chunk_passes_per_s": 1e3 / chunk_ms,
        "chunks_per_s_at_config_steps": 1e3 / (chunk_ms * (config.sample.steps + 1)),
    }


if __name__ == "__main__":
    raise SystemExit(main())
