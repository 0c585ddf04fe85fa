"""All scores of a folder of videos, as `tools/score_videos.py` describes them, and their table."""

from __future__ import annotations

import argparse
import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megatv.curate.address import read_key
from megatv.curate.recipe import EndpointSettings
from megatv.eval.fvd import load_i3d
from megatv.eval.instructions import Orders, ask_all, find_orders, pictures_in, question
from megatv.eval.local_weights import sha256
from megatv.eval.lpips import load_lpips
from megatv.eval.vbench import read_vbench
from megatv.eval.video_pairs import find_videos, match
from megatv.eval.video_scores import PLAIN, compare, judged, mean_over_videos
from megatv.log import progress, say
from megatv.regular_file import write_file
from megatv.sample.sampler import some_device

COMPARED = ("psnr", "ssim", "lpips", "fvd")
"""Those that need references."""


def score(args: argparse.Namespace, chosen: list[str]) -> None:
    """Check everything that is cheap to check, score by `chosen` metrics, print a table, write one file."""
    args.device = args.device or some_device()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: there is no CUDA device here; leave it out")
    videos = find_videos(args.videos, "--videos")
    pairs = {}
    if needs := [metric for metric in chosen if metric in COMPARED]:
        if args.references is None:
            raise ValueError(f"{', '.join(needs)} compare with references: give --references DIR")
        pairs = match(videos, find_videos(args.references, "--references"))
    metrics = {metric: PLAIN[metric] for metric in chosen if metric in PLAIN}
    if "lpips" in chosen:
        metrics["lpips"] = load_lpips(args.lpips, args.device, trust=args.trust_weights)
    features = load_i3d(args.i3d, args.device, trust=args.trust_weights) if "fvd" in chosen else None
    if features is not None and len(pairs) < 2:
        raise ValueError("fvd compares sets: give at least 2 videos, better hundreds")
    settings = _endpoint(args) if "vlm" in chosen else None
    orders = find_orders(videos) if settings else {}
    theirs = read_vbench(args.vbench, videos) if "vbench" in chosen else {}
    if args.dry_run:
        say(_plan(videos, chosen, orders, settings, args.frames))
        return

    per_video: dict[str, dict[str, Any]] = {name: {} for name in videos}
    record: dict[str, Any] = {"videos": str(args.videos), "metrics": {}}
    failed: dict[str, str] = {}
    if settings:  # first, since it may fail from outside
        bar = iter(progress(range(len(orders)), total=len(orders), desc="vlm"))
        replies = args.out.with_name(f"{args.out.name}.replies")
        answers, failed, usage = ask_all(orders, settings, replies, args.frames, lambda: next(bar))
        _merge(per_video, judged(orders, answers))
        record["vlm"] = {"url": settings.url, "model": settings.model, "frames": args.frames, **asdict(usage)}
        record["vlm"]["failed"] = failed
    distance = None
    if pairs:
        record["references"] = str(args.references)
        scores, distance = compare(progress(pairs.items(), total=len(pairs), desc="score"), metrics, features)
        _merge(per_video, scores)
    for dimension, by_name in theirs.items():
        _merge(per_video, {name: {f"vbench {dimension}": {"mean": s}} for name, s in by_name.items()})
    for metric in dict.fromkeys(metric for scores in per_video.values() for metric in scores):
        record["metrics"][metric] = mean_over_videos(per_video, metric)
    if distance is not None:
        record["metrics"]["fvd"] = {**distance, "videos": len(pairs)}
    files = {"lpips": args.lpips, "fvd": args.i3d, "vbench": args.vbench}
    record["files"] = {m: {"file": str(f), "sha256": sha256(f)} for m, f in files.items() if m in chosen}
    say(table(record))
    _write(args.out, {**record, "per_video": per_video})
    if failed:
        name, reason = next(iter(failed.items()))
        raise ValueError(
            f"vlm: {len(failed)} of {len(orders)} videos were not judged, all else is in {args.out}; {name}: "
            f"{reason}; start again to ask for what is missing"
        )


def table(record: dict[str, Any]) -> str:
    """The set's scores for people."""
    lines = []
    for metric, found in record["metrics"].items():
        value, low, high = found["value"], found["low"], found["high"]
        interval = "" if low is None else f"({low:.4f} to {high:.4f})"
        shown = "-" if value is None else f"{value:.4f}"
        lines.append(f"{metric:<28} {shown:>9}  {interval:<22} {found['videos']} videos")
    return "\n".join(lines)


def _plan(
    videos: dict[str, Path],
    chosen: list[str],
    orders: dict[str, Orders],
    settings: EndpointSettings | None,
    frames: int,
) -> str:
    """What a run would do and ask, and the words of the first question; nobody is asked."""
    lines = [f"dry run: {', '.join(chosen)} of {len(videos)} videos; nothing is sent or written"]
    if settings:
        asked = [question(one, settings, frames) for one in progress(orders.values(), total=len(orders))]
        said = sum(len(one.spoken) for one in orders.values())
        lines += [
            f"vlm: {len(asked)} requests to {settings.url} for {said} interventions, "
            f"{sum(map(pictures_in, asked))} pictures up to {settings.image_width_pixels} pixels wide",
            "the first one's words:",
            str(asked[0][0]),
        ]
    return "\n".join(lines)


def _endpoint(args: argparse.Namespace) -> EndpointSettings:
    if not args.endpoint or not args.model:
        raise ValueError(
            "vlm asks a vision-language model behind an OpenAI-compatible server: give --endpoint URL and "
            "--model NAME, such as of `vllm serve`"
        )
    if importlib.util.find_spec("httpx") is None:
        raise ValueError("vlm asks through httpx, which is not installed: pip install httpx")
    if args.api_key_env is not None:
        read_key(args.api_key_env, "--api-key-env")  # refuse now what would fail at the first question
    return EndpointSettings(
        args.endpoint,
        args.model,
        api_key_env=args.api_key_env,
        concurrency=args.concurrency,
        retries=args.retries,
        max_tokens=args.max_tokens,
        response_format=args.response_format,
        temperature=0.0,
    )


def _merge(into: dict[str, dict[str, Any]], scores: dict[str, dict[str, Any]]) -> None:
    for name, found in scores.items():
        into[name].update(found)


def _write(out: Path, record: dict[str, Any]) -> None:
    try:
        write_file(out, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}); name another one") from None
