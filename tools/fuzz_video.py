"""Feed the video decoder hostile inputs, made from real clips by seeded damage, and count what it does.

    python tools/fuzz_video.py CLIP [CLIP ...] [--count 10000] [--seed 0] [--workers 2] [--out fuzz.json]
        [--limit-seconds 20] [--memory-mb 1024] [--budget-seconds S] [--backend pyav|dali] [--keep DIR]

Every input is a function of (clips, seed, number). It is decoded in a worker process under a limit of time
and of memory. Only a decode of the right shape and a ValueError of one line are right; crashes, hangs and
other exceptions are failures, listed by their input's number; `--keep` writes those inputs. A worker's
memory, open files and threads are looked at every SAMPLE_EVERY inputs (`memory_curves`); memory that still
grows in the second half is a leak. `--backend dali` damages only what DALI decodes on a CPU (VP8, VP9 and
MJPEG). Exit code 1 says that there were failures or leaks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from megatv.log import main_guard
from megatv.regular_file import require_place


def main() -> int:
    """Make the inputs, run them, print and write the report; 1 when anything failed."""
    args = _arguments()
    # these import torch, which takes seconds
    from megatv.data import video_dali
    from megatv.data.video_source import read_timeline
    from video_damage import make_input, variants
    from video_fuzzer import fuzz

    import torch

    clips = [data for clip in args.clips for data in variants(clip)]
    if args.backend == "dali":
        cpu = torch.device("cpu")
        clips = [data for data in clips if not (reason := video_dali.obstacle(read_timeline(data), cpu))]
        if not clips:
            raise ValueError(f"DALI can show none of the clips: {reason}")
    report = fuzz(clips, args)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        for failure in report["failures"]:
            data = make_input(clips, args.seed, failure["number"])[1]
            (args.keep / f"{failure['number']:06d}.{failure['kind']}").write_bytes(data)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 1 if report["failures"] or report["leaks"] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP", help="real videos to damage")
    parser.add_argument("--count", type=int, default=10_000, help="inputs (10000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs (0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--limit-seconds", type=float, default=20, help="of one input; longer is a hang (20)")
    parser.add_argument("--memory-mb", type=int, default=1024, help="that one worker may take (1024)")
    parser.add_argument(
        "--budget-seconds", type=float, default=float("inf"), help="begin no input after this"
    )
    parser.add_argument("--backend", choices=("pyav", "dali"), default="pyav", help="decoder (pyav)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report here, too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write inputs that failed here")
    args = parser.parse_args()
    require_place(args.out)
    if min(args.count, args.workers, args.memory_mb) < 1 or args.limit_seconds <= 0:
        parser.error("--count, --workers, --memory-mb and --limit-seconds must be positive")
    for clip in args.clips:
        if not clip.is_file():
            parser.error(f"{clip}: no such file")
    return args


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("error: limits of memory and the look at /proc need Linux")
    main_guard(main)
