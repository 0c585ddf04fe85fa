"""Sampling measured: text tokens, chunk passes, the codec and a whole video, beside the floor of the device.

    python tools/bench_sample.py --config configs/toy_world.yaml "codec={kind: dct}"   # random weights
    python tools/bench_sample.py --checkpoint runs/toy_world                          # a trained model
    python tools/bench_sample.py --config configs/8b_sports.yaml "codec={kind: dct}" model.init_text=null
    python tools/bench_sample.py --words toy_world       # counts passes over action lines; or a tiktoken file

Passes are timed against a nearly full cache, batch 1, captured as CUDA graphs where there is a GPU. Their
floor is what the device would take if it did nothing but read every weight and cached key once, at the rate
of a copy, or nothing but the products, at the rate of a large one: the slower of the two. The uncached peer
brings everything before the new token or chunk through the model again, as a sampler without a cache must.
The whole video is made by `Stream`: words, solver and codec.

`--words` counts passes of the text tower over action lines of the toy world, as a sampler with and without
`sample.grammar: actions` makes them, for chunks of one line and of four; it needs no model.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import torch
from bench_attention import matmul_tflops, milliseconds  # the tool beside this one

from megatv.config import FPS, Config, load_config
from megatv.data.stats import LatentStats
from megatv.data.tokenizer import Tokenizer, load_tokenizer
from megatv.data.toy_world import simulate
from megatv.log import main_guard
from megatv.model.codec import Decoder, load_codec
from megatv.model.mot import MoT
from megatv.sample import FramesDecoded, Request, Sampler, Stream
from megatv.sample.cache import KVCache
from megatv.sample.grammar import LINES, Walk, action_grammar
from megatv.sample.graphs import Captured
from megatv.sample.sampler import usable_device

ENOUGH = 10**6
"""Room that no words fill."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", help="a checkpoint directory, or a run")
    parser.add_argument("--config", help="YAML of a model to be measured with random weights")
    parser.add_argument("--words", metavar="TOKENIZER", help="count passes over action lines instead")
    parser.add_argument("--prompt", default="", help="of the video")
    parser.add_argument("--steps", type=int, help="solver steps a chunk (default: sample.steps)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of --config")
    args = parser.parse_intermixed_args()
    if [args.checkpoint, args.config, args.words].count(None) != 2:
        raise ValueError("give one of --checkpoint, --config and --words")
    if args.words:
        return report({f"{n}_lines": words(load_tokenizer(args.words), n) for n in (1, LINES)}, args.out)
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps {args.steps}: must be at least 1")
    device = usable_device(args.device)
    sampler = (
        Sampler.from_checkpoint(args.checkpoint, device)
        if args.checkpoint
        else random_sampler(load_config(args.config, args.overrides), device)
    )
    steps = args.steps or sampler.config.sample.steps
    figures = {**passes(sampler.model, sampler.config), "video": video(sampler, args.prompt, steps)}
    report(figures, args.out)


def report(figures: dict[str, Any], out: Path | None) -> None:
    """Print, and write where that is asked for."""
    text = json.dumps(figures, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")


def words(tokenizer: Tokenizer, lines: int, episodes: int = 100) -> dict[str, float]:
    """Means: tokens of a chunk with `lines` lines of the toy world, passes that pick them and BOF."""
    said = [c.text for seed in range(episodes) for c in simulate(seed).captions()]
    chunks = ["\n".join(said[at : at + lines]) for at in range(0, len(said) - lines + 1, lines)]
    tokens = picks = 0
    for ids in map(tokenizer.encode, chunks):
        way = Walk(action_grammar(tokenizer), LINES, ENOUGH, may_end=True)
        for token in ids:
            picks += len(way.choices()) > 1
            way.follow(token)
        picks += len(way.choices()) > 1
        tokens += len(ids)
    return {
        "chunks": len(chunks),
        "tokens": tokens / len(chunks),
        "passes": tokens / len(chunks) + 1,
        "passes_with_grammar": picks / len(chunks),
    }


def random_model(config: Config, device: torch.device) -> MoT:
    """A model of plain random weights, bf16 on a GPU, fp32 on a CPU: speed does not depend on their law."""
    with torch.device("meta"):
        model = MoT(config)
    model = model.to_empty(device=device).to(torch.bfloat16 if device.type == "cuda" else torch.float32)
    model.tie_embeddings()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def random_sampler(config: Config, device: torch.device) -> Sampler:
    """A sampler of random weights, which never ends a video by itself."""
    model = random_model(config, device).eval().requires_grad_(False)
    plain = {row: {"mean": [0.0] * 16, "std": [1.0] * 16} for row in ("first", "rest")}
    tokenizer, codec = load_tokenizer(config.tokenizer.path), load_codec(config.codec, device)
    sampler = Sampler(model, config, tokenizer, codec, LatentStats.from_dict(plain))
    sampler.unsayable[tokenizer.eos] = True
    return sampler


@torch.inference_mode()
def passes(model: MoT, config: Config) -> dict[str, Any]:
    """A text token and a chunk against a nearly full cache: ms eager and captured, floor, uncached peer."""
    weight = model.embed.position
    device, dtype, p = weight.device, weight.dtype, config.tokens_per_chunk
    slots = config.text_rows_per_example + config.latents * p
    cache = KVCache.empty(config.model, 1, slots, device=device, dtype=dtype)
    full = slots - 2 * p
    cache.lengths += full
    at = cache.lengths[:, None].clone()
    latent = torch.randn(1, 16, config.latent_height, config.latent_width, device=device, dtype=dtype)
    inputs = {
        "text": (torch.zeros(1, 1, dtype=torch.int64, device=device), at),
        "chunk": (latent, torch.full((1,), 0.5, device=device), at + torch.arange(p, device=device)),
    }
    matmul, copy = matmul_tflops(device, dtype), copy_gb_per_s(device)
    found: dict[str, Any] = {"cached_rows": full, "matmul_tflops": matmul, "copy_gb_per_s": copy}
    for name, step in (("text", model.text_step), ("chunk", model.chunk_step)):
        cached = functools.partial(step, cache=cache)
        ms = eager = milliseconds(functools.partial(cached, *inputs[name]), device)["ms"]
        if device.type == "cuda":
            ms = milliseconds(functools.partial(Captured(cached, *inputs[name]), *inputs[name]), device)["ms"]
        floor = floor_ms(model, config, name, full, matmul, copy)
        again = milliseconds(functools.partial(uncached, model, config, name, full), device)["ms"]
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


def uncached(model: MoT, config: Config, name: str, rows: int) -> None:
    """The work of one pass without a cache: all rows before it through the model, and its own."""
    p, weight, text = config.tokens_per_chunk, model.embed.position, config.text_rows_per_example
    chunks = (rows - text) // p + (name == "chunk")
    cache = KVCache.empty(config.model, 1, rows + 2 * p, device=weight.device, dtype=weight.dtype)
    at = torch.arange(rows + 2 * p, device=weight.device)[None]
    model.text_step(torch.zeros_like(at[:, :text]), at[:, :text], cache)
    cache.lengths += text
    # all chunks in one pass, as one long chunk: who sees whom would be masked, which changes no cost
    latents = torch.zeros(chunks, 16, config.latent_height, config.latent_width, device=weight.device)
    tokens, skips = model.embed.video(latents, torch.ones(chunks, device=weight.device))
    hidden = model._cached("video", tokens.flatten(0, 1)[None], at[:, text : text + chunks * p], cache)
    model.head.velocity(hidden[:, -p:], skips[-1:])


def floor_ms(
    model: MoT, config: Config, name: str, rows: int, matmul_tflops: float, copy_gb_per_s: float
) -> float:
    """The slower of reading weights and cache once and of multiplying, for one pass of `name`."""
    queries = 1 if name == "text" else config.tokens_per_chunk
    towers = [block.get_submodule("text" if name == "text" else "video") for block in model.blocks]
    ends = [model.head.text] if name == "text" else [model.embed.down, model.head.up]
    weights = sum(x.numel() for module in (*towers, *ends) for x in module.parameters())
    m, size = config.model, model.embed.position.element_size()
    cached = 2 * m.layers * rows * m.kv_heads * m.head_dim
    # convolutions use a weight at every place; the patcher's are counted as if at every token
    flop = 2 * queries * weights + 4 * queries * rows * m.heads * m.head_dim * m.layers
    read = (weights + cached) * size
    # a copy reads and writes: bytes that are only read come at the same rate of bytes a second
    return 1e3 * max(flop / (matmul_tflops * 1e12), read / (copy_gb_per_s * 1e9))


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


if __name__ == "__main__":
    main_guard(main)  # type: ignore[arg-type]
