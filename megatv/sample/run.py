"""What `python -m megatv.sample` does once its options are read: one video, or those of a batch file."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import torch

import megatv
from megatv.checkpoint.trust import Trust
from megatv.config import Config, SampleConfig
from megatv.log import say
from megatv.parallel.environment import prepare
from megatv.sample.batch import foreign_words, make_all, too_short
from megatv.sample.batch_file import read_batch
from megatv.sample.grammar import says_actions
from megatv.sample.inputs import Asked, read_intervention, read_timeline
from megatv.sample.outputs import require_folder, require_out, write_results
from megatv.sample.ranks import Ranks, leave
from megatv.sample.sampler import Sampler, usable_device
from megatv.untrusted import printable

ALONE, CHANGED = "left alone", "with your words"
OF_SAMPLING = (
    *("steps", "solver", "temperature", "top_p", "cfg", "grammar", "when_full"),
    *("keep_prompt", "keep_first_frame"),
)
"""Options whose defaults are the config's."""


def run(args: argparse.Namespace) -> int:
    """Make what the options of `megatv.sample.cli` ask for; the exit code. ValueError for any bad input."""
    try:
        return make_one(args) if args.batch is None else make_batch(args)
    finally:
        leave()


def make_one(args: argparse.Namespace) -> int:
    """One video into --out, or two of it with --compare; 0."""
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
        for sentence in foreign_words(result, says_actions(sampler.config)):
            say(sentence)
    if ranks.speaks:
        write_results(out, request, named, _record(args, sampler, asked, settings), args.overwrite)
        say(f"{', '.join(sorted(path.name for path in out.iterdir()))} in {out}")
    return 0


def make_batch(args: argparse.Namespace) -> int:
    """A folder below --out for every line of --batch; 2 of one process when a line could not be made."""
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
