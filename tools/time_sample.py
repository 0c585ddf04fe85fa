"""Times and sizes of sampling, for `bench_sample.py` and others beside it."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from typing import Any

from megatv.checkpoint.trust import Trust
from megatv.config import FPS, Config, load_config
from megatv.data.stats import LatentStats
from megatv.data.tokenizer import load_tokenizer
from megatv.model.codec import Decoder, load_codec
from megatv.model.mot import MoT
from megatv.model.precision import Precision, choose_precision, convert, set_weight
from megatv.sample import FramesDecoded, Request, Sampler, Stream
from megatv.sample.cache import KVCache
from megatv.sample.graphs import Captured
from megatv.sample.sampler import some_device, usable_device
from time_attention import matmul_tflops, milliseconds  # the tool beside this one

import torch
from megatv_kernels import FP8, quantize_rows
from megatv_kernels.fp8 import scaled_product


def named_model(args: argparse.Namespace, precision: str) -> Sampler:
    """The sampler that `add_model`'s options name. ValueError when they name none, or two."""
    if (args.checkpoint is None) == (args.config is None):
        raise ValueError("give either --checkpoint or --config")
    device = usable_device(args.device or some_device())
    if args.checkpoint:
        return Sampler.from_checkpoint(args.checkpoint, device, precision=precision, trust=Trust.given(args))
    config = load_config(args.config, args.overrides)
    return random_sampler(config, device, choose_precision(precision, device), args.trust_codec)


def random_model(config: Config, device: torch.device, precision: Precision | None = None) -> MoT:
    """A model of plain random weights, alike in every precision: speed does not depend on their law."""
    with torch.device("meta"):
        model = MoT(config)
    convert(model, precision or choose_precision("auto", device))
    model = model.to_empty(device=device)
    model.tie_embeddings()
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        set_weight(model, name, 0.02 * torch.randn(parameter.shape, generator=generator, device=device))
    return model


def random_sampler(
    config: Config, device: torch.device, precision: Precision, trust_codec: bool = False
) -> Sampler:
    """A sampler of random weights, which never ends a video by itself."""
    model = random_model(config, device, precision).eval().requires_grad_(False)
    plain = {row: {"mean": [0.0] * 16, "std": [1.0] * 16} for row in ("first", "rest")}
    tokenizer = load_tokenizer(config.tokenizer.path, config.model.vocab)
    codec = load_codec(config.codec, device, trust=trust_codec)
    sampler = Sampler(model, config, tokenizer, codec, LatentStats.from_dict(plain), precision)
    sampler.unsayable[tokenizer.eos] = True
    return sampler


@torch.inference_mode()
def passes(model: MoT, config: Config, precision: Precision) -> dict[str, Any]:
    """A text token and a chunk against a nearly full cache: ms eager and captured, floor, uncached peer."""
    device, dtype, p = model.embed.position.device, precision.dtype, config.tokens_per_chunk
    slots = config.text_rows_per_example + config.latents * p
    cache = KVCache.empty(config.model, 1, slots, device=device, dtype=precision.stored)
    full = slots - 2 * p
    cache.lengths += full
    at = cache.lengths[:, None].clone()
    latent = torch.randn(1, 16, config.latent_height, config.latent_width, device=device, dtype=dtype)
    inputs = {
        "text": (torch.zeros(1, 1, dtype=torch.int64, device=device), at),
        "chunk": (latent, torch.full((1,), 0.5, device=device), at + torch.arange(p, device=device)),
    }
    tflops, copy = {dtype: matmul_tflops(device, dtype)}, copy_gb_per_s(device)
    if precision.stored == FP8:
        tflops[FP8] = fp8_tflops(device)
    found: dict[str, Any] = {
        "precision": precision.name,
        **sizes(model, cache),
        "cached_rows": full,
        "matmul_tflops": tflops[dtype],
        "fp8_tflops": tflops.get(FP8),
        "copy_gb_per_s": copy,
    }
    for name, step in (("text", model.text_step), ("chunk", model.chunk_step)):
        cached = functools.partial(step, cache=cache)
        ms = eager = milliseconds(functools.partial(cached, *inputs[name]), device)["ms"]
        if device.type == "cuda":
            ms = milliseconds(functools.partial(Captured(cached, *inputs[name]), *inputs[name]), device)["ms"]
        floor = floor_ms(model, cache, name, full, tflops, copy)
        again = milliseconds(functools.partial(uncached, model, config, name, full, precision), device)["ms"]
        found[name] = {
            "eager_ms": eager,
            "graph_ms": ms if device.type == "cuda" else None,
            "passes_per_s": 1e3 / ms,
            "floor_ms": floor,
            "share_of_floor": floor / ms,
            "uncached_ms": again,
            "times_faster_than_uncached": again / ms,
        }
    return found


def uncached(model: MoT, config: Config, name: str, rows: int, precision: Precision) -> None:
    """The work of one pass without a cache: all rows before it through the model, and its own."""
    p, weight, text = config.tokens_per_chunk, model.embed.position, config.text_rows_per_example
    chunks = (rows - text) // p + (name == "chunk")
    cache = KVCache.empty(config.model, 1, rows + 2 * p, device=weight.device, dtype=precision.stored)
    at = torch.arange(rows + 2 * p, device=weight.device)[None]
    model.text_step(torch.zeros_like(at[:, :text]), at[:, :text], cache)
    cache.lengths += text
    # all chunks in one pass, as one long chunk: who sees whom would be masked, which changes no cost
    latents = torch.zeros(chunks, 16, config.latent_height, config.latent_width, device=weight.device)
    tokens, skips = model.embed.video(latents, torch.ones(chunks, device=weight.device))
    hidden = model._cached("video", tokens.flatten(0, 1)[None], at[:, text : text + chunks * p], cache)
    model.head.velocity(hidden[:, -p:], skips[-1:])


def floor_ms(
    model: MoT, cache: KVCache, name: str, rows: int, tflops: dict[torch.dtype, float], copy_gb_per_s: float
) -> float:
    """The slower of reading weights and cache once and of multiplying, for one pass of `name`.

    Weights and cache are read in what they are stored in, and multiplied at the rate of that: `tflops`.
    """
    m = model.config.model
    queries = 1 if name == "text" else model.config.tokens_per_chunk
    towers = [block.get_submodule("text" if name == "text" else "video") for block in model.blocks]
    ends = [model.head.text] if name == "text" else [model.embed.down, model.head.up]
    weights = [x for module in (*towers, *ends) for x in module.parameters()]
    scales = [x for tower in towers for x in tower.buffers()]
    # convolutions use a weight at every place; the patcher's are counted as if at every token
    products = sum(2 * queries * x.numel() / tflops[x.dtype] for x in weights)
    attention = 4 * queries * rows * m.heads * m.head_dim * m.layers / tflops[model.embed.position.dtype]
    read = sum(x.nbytes for x in weights + scales) + rows * sizes(model, cache)["cache_bytes_per_token"]
    # a copy reads and writes: bytes that are only read come at the same rate of bytes a second
    return 1e3 * max((products + attention) / 1e12, read / (copy_gb_per_s * 1e9))


def sizes(model: MoT, cache: KVCache) -> dict[str, int]:
    """Bytes of the whole model, and of one token's keys and values in all layers."""
    return {
        "weight_bytes": sum(x.nbytes for x in (*model.parameters(), *model.buffers())),
        "cache_bytes_per_token": sum(x[:, 0, 0].nbytes for x in (cache.keys, cache.values)),
    }


def fp8_tflops(device: torch.device) -> float:
    """What a large product of fp8 matrices with row scales reaches here; a CPU multiplies in fp32."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (quantize_rows(torch.randn(size, size, device=device)) for _ in range(2))
    return 2 * size**3 / milliseconds(lambda: scaled_product(*a, *b, torch.bfloat16), device)["ms"] / 1e9


def copy_gb_per_s(device: torch.device) -> float:
    """Bytes read and written a second by a large copy."""
    size = 2**30 if device.type == "cuda" else 2**26
    a, b = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    a.zero_(), b.zero_()
    return 2 * size / milliseconds(lambda: b.copy_(a), device)["ms"] / 1e6


def video(sampler: Sampler, prompt: str, steps: int) -> dict[str, Any]:
    """One training example's length of video: seconds in all, and of the codec alone."""
    settings = dataclasses.replace(sampler.config.sample, steps=steps)
    request = Request(prompt)
    list(Stream(sampler, request, settings))  # what compiles or allocates once
    began = time.perf_counter()
    frames, chunks = 0, 0
    for event in Stream(sampler, request, settings):
        if isinstance(event, FramesDecoded):
            frames, chunks = frames + len(event.frames), chunks + 1
    seconds = time.perf_counter() - began
    decoder = Decoder(sampler.codec)
    shape = 1, 16, sampler.config.latent_height, sampler.config.latent_width
    latent = torch.zeros(shape, device=sampler.device)
    decoder.push(latent)
    codec_ms = milliseconds(lambda: decoder.push(latent), sampler.device)["ms"]
    return {
        "solver_steps": steps,
        "chunks_per_s": chunks / seconds,
        "frames_per_s": frames / seconds,
        "times_real_time": frames / seconds / FPS,
        "codec_ms_per_chunk": codec_ms,
        "codec_share": codec_ms * chunks / 1e3 / seconds,
    }
