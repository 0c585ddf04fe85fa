"""Sample videos from a checkpoint: `python -m megatv.sample --checkpoint RUN --example 0 --out DIR`.

DIR gets video.mp4, contact_sheet.png (the plan as subtitles) and transcript.json (the words, and all that is
needed to make the same video again). It appears when everything is written, or not at all. With --batch it
gets such a folder for every line of a file; started by srun, torchrun or deepspeed the ranks share the lines,
and a second start makes what is missing. With --tp so many of them hold one model together.

A line that cannot be made is named and costs the others nothing; the exit code is then 2 of one process, and
0 of several, since a launcher would end the others before they are done.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn, get_args

from megatv.checkpoint.trust import Trust
from megatv.choices import PRECISION_CHOICES, Solver
from megatv.log import main_guard
from megatv.sample.request import Speaker

OF_ONE_VIDEO = (
    *("prompt", "image", "video", "example", "start_words", "image_words", "video_words"),
    *("intervene", "timeline", "compare", "seconds", "mode", "seed"),
)
"""Options that a line of --batch says for itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, sample, write; the exit code. Raises ValueError with one sentence for any bad input."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.batch is not None:
        for key in OF_ONE_VIDEO:
            if getattr(args, key) != parser.get_default(key):
                raise ValueError(
                    f"--{key.replace('_', '-')} is one video's: write it into the lines of --batch"
                )
        if args.rows < 1:
            raise ValueError(f"--rows {args.rows}: must be at least 1")

    from megatv.sample import run  # imports torch, which takes seconds

    return run.run(args)


def command() -> NoReturn:
    """`main` with errors as one sentence: the console script `megatv-sample`."""
    main_guard(main)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m megatv.sample", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--checkpoint", required=True, help="a checkpoint directory, or a run (its newest checkpoint)")
    add("--out", required=True, help="directory for the video, the contact sheet and the transcript")
    add("--overwrite", action="store_true", help="replace videos of an earlier call in --out")
    add("--prompt", help="the meta-caption")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--image", help="first frame: a PNG, JPEG, WebP or AVIF, resized to the model's size")
    start.add_argument("--video", help="its first frames: whole chunks, half a training example at most")
    start.add_argument("--example", type=int, help="first frame and prompt of a held-out example (data.val)")
    who = "before what is given: the model's (default), none, or yours or the example's own"
    add("--start-words", choices=get_args(Speaker), help=f"words {who}")
    add("--image-words", metavar="TEXT", help="yours for t = 0, before --image or --example")
    add("--video-words", metavar="FILE", help="yours before --video's chunks, a line SECONDS:TEXT each")
    add(
        "--intervene", action="append", default=[], metavar="SECONDS:TEXT", help="your words; may be repeated"
    )
    add("--timeline", metavar="FILE", help="your words, a line SECONDS:TEXT each")
    add("--compare", action="store_true", help="also make the video without your words, and show both")
    add("--seconds", type=float, help="length of the video (default: that of a training example)")
    add("--mode", choices=["tv2tv", "t2v", "think2v"], help="default: as the model was trained")
    add("--cfg", type=float, help="guidance scale, 1 for none (default: sample.cfg of the config)")
    add("--steps", type=int, help="solver steps a chunk (default: sample.steps)")
    add("--solver", choices=get_args(Solver), help="of the flow (default: sample.solver)")
    add("--temperature", type=float, help="of the text, 0 for the likeliest (default: sample.temperature)")
    add("--top-p", type=float, help="of the text, the likeliest words only (default: sample.top_p)")
    add("--grammar", choices=["none", "actions"], help="of the text (default: sample.grammar)")
    add("--when-full", choices=["bof", "end"], help="words fill the context (default: sample.when_full)")
    windows = "at the start of a long video's later windows (default: sample."
    yes_or_no = argparse.BooleanOptionalAction
    add("--keep-prompt", action=yes_or_no, help=f"the prompt {windows}keep_prompt)")
    add("--keep-first-frame", action=yes_or_no, help=f"the first chunk {windows}keep_first_frame)")
    add("--seed", type=int, default=0)
    add("--batch", metavar="FILE.jsonl", help='many videos, a line {"name": ..., "prompt": ...} each')
    add("--rows", type=int, default=16, help="videos of a batch that are made side by side")
    add("--weights", choices=["auto", "ema", "model"], default="auto", help="auto: averaged ones if saved")
    add("--precision", choices=PRECISION_CHOICES, default="auto", help="auto: bf16 on a GPU, fp32 on a CPU")
    add("--device", help="default: this process's GPU, or the CPU where there is none")
    add("--tp", type=int, default=1, help="processes that hold one model together; it may exceed a GPU then")
    Trust.add_options(parser)
    return parser
