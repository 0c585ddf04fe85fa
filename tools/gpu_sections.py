"""The sections of `gpu_check.py`, and what they are measured on."""

from __future__ import annotations

import gc
import platform
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatv.config import Config, load_config
from megatv.model import cost
from megatv.model.codec import load_codec
from megatv.model.precision import PRECISIONS, choose_precision
from megatv.objective.pretrain import pretrain_loss, weighted
from megatv.parallel.layers import Layers
from megatv.sample import Finished, FramesDecoded, Intervention, Request, Sampler, Stream
from megatv.types import IGNORE, Batch
from time_attention import matmul_tflops, milliseconds  # the tools beside this one
from time_sample import passes, random_model, random_sampler

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]


def check_setting(small: bool) -> tuple[Config, torch.device]:
    """The 8B configuration on the GPU, or the toy one on the CPU."""
    if small:
        return load_config(ROOT / "configs/toy_world.yaml"), torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("error: no CUDA GPU is visible; use --small to try the checks on a CPU")
    overrides = ["model.init_text=null", "model.init_video=random", "parallel={}"]
    return load_config(ROOT / "configs/8b_sports.yaml", overrides), torch.device("cuda")


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


def free_memory(device: torch.device) -> None:
    """Give the next backend the whole GPU, and a peak of its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


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
        record=cost.packed_row(config, config.sequence.examples_per_row),
        ids=("random",),
    ).to(device)


def training(config: Config, device: torch.device) -> dict[str, Any]:
    """The optimizer step with every attention backend of our own that serves here."""
    found: dict[str, Any] = {}
    for backend in ("cuda", "triton") if device.type == "cuda" else ("sdpa",):
        try:
            found[backend] = training_step(replace(config, attention=backend), device)
        except Exception as error:  # one that cannot run must not hide the other
            found[backend] = {"skipped": f"{type(error).__name__}: {error}"}
        free_memory(device)
    return found


def training_step(config: Config, device: torch.device) -> dict[str, Any]:
    """One optimizer step of one packed row; `layers` says how many of the model's layers were used."""
    layers = min(config.model.layers, 8)  # 8 of 32: weights, gradients and moments of 15 B would not fit
    config = replace(config, model=replace(config.model, layers=layers))
    model, batch = random_model(config, device), random_batch(config, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    counts = batch.counts()

    def step() -> None:
        loss = weighted(pretrain_loss(model(batch), batch, Layers()), counts, config.objective)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ms = milliseconds(step, device)["ms"]
    flop = sum(cost.training_flops(config, batch.record).values())
    peak = matmul_tflops(device, model.embed.position.dtype)
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


def sampling(config: Config, device: torch.device) -> dict[str, Any]:
    """What tools/bench_sample.py measures of the whole model's passes, random weights; `fp8` beside it."""
    precision = choose_precision("auto", device)
    found = passes(random_model(config, device, precision).eval(), config, precision)
    free_memory(device)
    try:
        fp8 = choose_precision("fp8", device)
        found["fp8"] = passes(random_model(config, device, fp8).eval(), config, fp8)
    except Exception as error:  # where it cannot run, the other precision must not be lost
        found["fp8"] = {"skipped": f"{type(error).__name__}: {error}"}
    return found


def stream(device: torch.device) -> dict[str, Any]:
    """A random toy model in fp32: captured passes and the decoding thread on `device`, beside the plain CPU.

    Raises AssertionError when the words differ; chunks are as far apart as rounding drives them.
    """
    cpu, fp32 = torch.device("cpu"), PRECISIONS["fp32"]
    config = load_config(ROOT / "configs/toy_world.yaml", ["codec={kind: dct}"])
    plain = random_sampler(config, cpu, fp32)
    model = deepcopy(plain.model).to(device)
    sampler = Sampler(model, config, plain.tokenizer, load_codec(config.codec, device), plain.stats, fp32)
    sampler.unsayable[plain.tokenizer.eos] = True
    settings = replace(config.sample, steps=4, cfg=2.0)
    request = Request("a game", seconds=4.0, interventions=(Intervention(1.0, "(w). 2, 0, 0, 0."),))
    (expected,) = plain.generate([request], settings)
    *events, last = Stream(sampler, request, settings)
    assert isinstance(last, Finished), "the stream did not finish"
    found = last.result
    shown = np.concatenate([event.frames for event in events if isinstance(event, FramesDecoded)])
    assert found.transcript == expected.transcript, "the words differ from those on the CPU"
    assert np.array_equal(shown, found.frames), "the decoded chunks are not the whole video"
    return {
        "chunks": len(found.latents),
        "tokens": found.text_tokens,
        "largest_difference": float(np.abs(found.latents - expected.latents).max()),
        "captured": device.type == "cuda",
    }
