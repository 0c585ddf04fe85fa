"""Score real videos: how like their references they are, and whether they do what they were told.

    python tools/score_videos.py --videos DIR --references DIR --out scores.json
    python tools/score_videos.py --videos DIR --metrics vlm --out orders.json --dry-run \\
        --endpoint http://localhost:8000/v1 --model NAME

DIR has NAME.mp4 or NAME/video.mp4, as `python -m megatv.sample --batch` writes it; references have the same
names, and are scaled to their video's size, resampled to its rate and cut to its length. Every frame counts,
a given first one too.

    psnr ssim   per frame (Wang et al. 2004)             no weights
    lpips       per frame (Zhang et al. 2018)            --lpips FILE
    fvd         of the set (Unterthiner et al. 2018)     --i3d FILE
    vlm         were the interventions followed?         --endpoint URL --model NAME, transcript.json beside
    vbench      scores that VBench's own package wrote   --vbench FILE

Weights are local files: nothing is downloaded. Means have 95 % bootstrap intervals over videos. Replies of
the endpoint are kept in OUT.replies, so a second start pays only for what is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatv.curate.address import read_key
from megatv.curate.recipe import EndpointSettings
from megatv.eval.fvd import load_i3d
from megatv.eval.instructions import Orders, ask_all, find_orders, pictures_in, question
from megatv.eval.local_weights import sha256
from megatv.eval.lpips import load_lpips
from megatv.eval.vbench import read_vbench
from megatv.eval.video_pairs import find_videos, match
from megatv.eval.video_scores import PLAIN, compare, judged, mean_over_videos
from megatv.log import main_guard, progress, say
from megatv.regular_file import write_file

import torch

METRICS = ("psnr", "ssim", "lpips", "fvd", "vlm", "vbench")
COMPARED = ("psnr", "ssim", "lpips", "fvd")
"""Those that need references."""


def main() -> None:
    """Check everything that is cheap to check, score, print a table, write one file."""
    args = _arguments()
    chosen = [metric for metric in METRICS if metric in args.metrics]
    _check_out(args.out)
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


def _check_out(out: Path) -> None:
    """Before hours of scoring: that the file can be written."""
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out {out}: cannot be written; name a file in a folder that exists and is yours")


def _write(out: Path, record: dict[str, Any]) -> None:
    try:
        write_file(out, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}); name another one") from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--videos", type=Path, required=True, help="folder of the videos to score")
    add("--references", type=Path, help="folder of what they should look like, by the same names")
    add("--metrics", nargs="+", choices=METRICS, default=["psnr", "ssim"])
    add("--out", type=Path, required=True, help="JSON file of all scores")
    add("--lpips", type=Path, metavar="FILE", help="state dict of the AlexNet or VGG variant, or TorchScript")
    add("--i3d", type=Path, metavar="FILE", help="TorchScript of an I3D")
    add("--vbench", type=Path, metavar="FILE", help="*_eval_results.json of VBench on the same videos")
    add("--endpoint", metavar="URL", help="OpenAI-compatible server, up to and with /v1: https, or local")
    add("--model", help="name that the server knows")
    add("--api-key-env", metavar="NAME", help="environment variable that holds the key: *_API_KEY")
    add("--concurrency", type=int, default=4, help="requests at once")
    add("--max-tokens", type=int, default=2048, help="of a reply, a model's thoughts among them")
    add(
        "--response-format",
        choices=["json_object", "text"],
        default="json_object",
        help="`text` for a server that does not know json_object",
    )
    add("--retries", type=int, default=5, help="of a request that fails")
    add("--frames", type=int, default=4, help="shown of each video, besides 4 around each intervention")
    add(
        "--dry-run",
        action="store_true",
        help="check all inputs, say what would be asked, send and write nothing",
    )
    add("--trust-weights", action="store_true", help="run any TorchScript given; it can run any code")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.frames < 1:
        raise ValueError(f"--frames {args.frames}: must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: there is no CUDA device here; leave it out")
    return args


if __name__ == "__main__":
    main_guard(main)
