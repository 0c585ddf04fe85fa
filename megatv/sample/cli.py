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
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch

import megatv
from megatv.checkpoint.trust import Trust
from megatv.config import Config, SampleConfig
from megatv.log import main_guard, say
from megatv.model.precision import CHOICES
from megatv.parallel.environment import prepare
from megatv.sample.batch import foreign_words, make_all, too_short
from megatv.sample.batch_file import read_batch
from megatv.sample.inputs import Asked, read_intervention, read_timeline
from megatv.sample.outputs import require_folder, require_out, write_results
from megatv.sample.ranks import Ranks, leave
from megatv.sample.request import Speaker
from megatv.sample.sampler import Sampler, usable_device
from megatv.sample.solver import SOLVERS
from megatv.untrusted import printable

ALONE, CHANGED = "left alone", "with your words"
OF_ONE_VIDEO = (
    *("prompt", "image", "video", "example", "start_words", "image_words", "video_words"),
    *("intervene", "timeline", "compare", "seconds", "mode", "seed"),
)
"""Options that a line of --batch says for itself."""
OF_SAMPLING = (
    *("steps", "solver", "temperature", "top_p", "cfg", "grammar", "when_full"),
    *("keep_prompt", "keep_first_frame"),
)
"""Options whose defaults are the config's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, sample, write; the exit code. Raises ValueError with one sentence for any bad input."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        return _batch(args, parser) if args.batch is not None else _one(args)
    finally:
        leave()


def _one(args: argparse.Namespace) -> int:
    spoken = tuple(read_intervention(text) for text in args.intervene)
    if args.timeline is not None:
        spoken += read_timeline(args.timeline)
    if args.compare and not spoken:
        raise ValueError("--compare shows what an intervention changes: give at least one --intervene")
    before = None if args.video_words is None else read_timeline(args.video_words, "--video-words")
    keys = ("prompt", "image", "video", "example", "start_words", "image_words", "seconds", "seed", "mode")
    values = {key: getattr(args, key) for key in keys}
    asked = Asked(interventions=spoken, video_words=before, **values)
    asked.check()
    device, ranks = _ranks(args)
    if ranks.teams > 1:
        raise ValueError(
            f"{ranks.teams * args.tp} processes for one video of --tp {args.tp}: start {args.tp}, or make "
            "many videos with --batch"
        )
    out = Path(args.out)
    require_out(out, overwrite=args.overwrite)
    sampler = _sampler(args, device, ranks)
    request = asked.request(sampler)
    requests = {CHANGED if spoken else ALONE: request}
    if args.compare:
        requests = {ALONE: dataclasses.replace(request, interventions=()), CHANGED: request}
    settings = _settings(args, sampler.config)
    results = sampler.generate(list(requests.values()), settings, desc="sample")
    named = dict(zip(requests, results, strict=True))
    for name, result in named.items():
        if sentence := too_short(result):
            raise ValueError(f"{name}: {sentence}")
    for result in results:
        for sentence in foreign_words(result):
            say(sentence)
    if ranks.speaks:
        write_results(out, request, named, _record(args, sampler, asked, settings), args.overwrite)
        say(f"{', '.join(sorted(path.name for path in out.iterdir()))} in {out}")
    return 0


def _batch(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    for key in OF_ONE_VIDEO:
        if getattr(args, key) != parser.get_default(key):
            raise ValueError(f"--{key.replace('_', '-')} is one video's: write it into the lines of --batch")
    if args.rows < 1:
        raise ValueError(f"--rows {args.rows}: must be at least 1")
    asked, faults = read_batch(args.batch)
    out = Path(args.out)
    require_folder(out)
    for name in asked if args.overwrite else ():
        require_out(out / name, overwrite=True)
    device, ranks = _ranks(args)
    sampler = _sampler(args, device, ranks)
    settings = _settings(args, sampler.config)

    def describe(one: Asked, settings: SampleConfig) -> dict[str, Any]:
        return _record(args, sampler, one, settings)

    failed = faults if ranks.team == 0 else []
    failed += make_all(asked, out, sampler, settings, args.rows, ranks, describe, args.overwrite)
    for sentence in failed if ranks.speaks else ():
        print(printable(f"not made: {sentence}", keep=""), flush=True)
    # a launcher ends all ranks when one fails, and the others still have videos to make
    return 2 if failed and int(os.environ.get("WORLD_SIZE", 1)) == 1 else 0


def _ranks(args: argparse.Namespace) -> tuple[torch.device, Ranks]:
    """This process's device, and its place among the others."""
    device = prepare()
    if args.device not in (None, device.type):
        device = usable_device(args.device)
    return device, Ranks(args.tp, device)


def _sampler(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> Sampler:
    words = args.checkpoint, device, args.weights, args.precision, ranks.mesh, Trust.given(args)
    return Sampler.from_checkpoint(*words)


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
    add("--solver", choices=list(SOLVERS), help="of the flow (default: sample.solver)")
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
    add("--precision", choices=CHOICES, default="auto", help="auto: bf16 on a GPU, fp32 on a CPU")
    add("--device", help="default: this process's GPU, or the CPU where there is none")
    add("--tp", type=int, default=1, help="processes that hold one model together; it may exceed a GPU then")
    Trust.add_options(parser)
    return parser


def _settings(args: argparse.Namespace, config: Config) -> SampleConfig:
    given = {key: getattr(args, key) for key in OF_SAMPLING}
    settings = dataclasses.replace(config.sample, **{k: v for k, v in given.items() if v is not None})
    for key, least in {"steps": 1, "temperature": 0, "cfg": 0}.items():
        value = getattr(settings, key)
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"--{key} {value:g}: must be a number of at least {least}")
    if not 0 < settings.top_p <= 1:
        raise ValueError(f"--top-p {settings.top_p:g}: must be above 0 and at most 1")
    if settings.cfg != 1 and config.sequence.text_dropout == 0:
        say(
            f"guidance {settings.cfg:g}: this model was trained with sequence.text_dropout 0, so it has "
            "never seen a sequence without words, and what guidance does to its videos is not known"
        )
    return settings


def _record(
    args: argparse.Namespace, sampler: Sampler, asked: Asked, settings: SampleConfig
) -> dict[str, Any]:
    """What it takes to make the video again, for its transcript."""
    keys = ("image", "video", "example", "image_words", "seconds", "seed")
    return {
        "megatv": megatv.__version__,
        **{key: getattr(args, key) for key in ("checkpoint", "codec", "tokenizer", "data", "weights", "tp")},
        "device": str(sampler.device),
        **{key: getattr(asked, key) for key in keys},
        "start_words": asked.speaker,
        "video_words": [dataclasses.asdict(said) for said in asked.video_words or ()],
        "precision": sampler.precision.name,
        "step": sampler.step,
        "mode": asked.mode or sampler.config.sequence.mode,
        "settings": dataclasses.asdict(settings),
    }
