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
import os
from pathlib import Path

from megatv.log import main_guard

METRICS = ("psnr", "ssim", "lpips", "fvd", "vlm", "vbench")


def main() -> None:
    """Parse, and score by each chosen metric."""
    args = _arguments()
    _check_out(args.out)
    from megatv.eval.video_report import score  # imports torch, which takes seconds

    score(args, [metric for metric in METRICS if metric in args.metrics])


def _check_out(out: Path) -> None:
    """Before hours of scoring: that the file can be written."""
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out {out}: cannot be written; name a file in a folder that exists and is yours")


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
    add("--device", choices=["cpu", "cuda"], help="default: a GPU, or the CPU where there is none")
    args = parser.parse_args()
    if args.frames < 1:
        raise ValueError(f"--frames {args.frames}: must be at least 1")
    return args


if __name__ == "__main__":
    main_guard(main)
