"""Sample one video from a checkpoint: `python -m megatv.sample --checkpoint RUN --example 0 --out DIR`.

DIR gets video.mp4, contact_sheet.png (the plan as subtitles) and transcript.json (the words, and all that is
needed to make the same video again). It appears when everything is written, or not at all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image, ImageOps

import megatv
from megatv.config import SampleConfig
from megatv.data.format import check_codec
from megatv.data.remote import open_shards
from megatv.data.sequence import texts_by_chunk
from megatv.data.video import write_video
from megatv.log import main_guard, say
from megatv.model.codec import clip_encoder
from megatv.sample.render import Strip, contact_sheet, enlarge
from megatv.sample.request import Intervention, Request, Result
from megatv.sample.sampler import Sampler

ALONE, CHANGED = "left alone", "with your words"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, sample, write. Raises ValueError with one sentence for any bad input."""
    args = _parser().parse_args(argv)
    interventions = tuple(_intervention(text) for text in args.intervene)
    if args.compare and not interventions:
        raise ValueError("--compare shows what an intervention changes: give at least one --intervene")
    if args.prompt is None and args.example is None:
        raise ValueError("nothing to start from: give --prompt, or --example to take a held-out example's")
    out = Path(args.out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"--out {out}: is not an empty directory; name another one or remove it first")
    sampler = Sampler.from_checkpoint(args.checkpoint, _device(args.device), args.weights)
    request = _request(args, interventions, sampler)
    requests = {CHANGED if interventions else ALONE: request}
    if args.compare:
        requests = {ALONE: dataclasses.replace(request, interventions=()), CHANGED: request}
    settings = _settings(args, sampler.config.sample)
    results = sampler.generate(list(requests.values()), settings, desc="sample")
    named = dict(zip(requests, results, strict=True))
    for name, result in named.items():
        if not len(result.frames):
            raise ValueError(f"the model ended the video {name} before its first chunk; try another --seed")
    _write(out, request, named, {**_record(args, sampler), "settings": dataclasses.asdict(settings)})
    say(f"{', '.join(sorted(path.name for path in out.iterdir()))} in {out}")


def command() -> NoReturn:
    """`main` with errors as one sentence: the console script `megatv-sample`."""
    main_guard(main)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m megatv.sample", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--checkpoint", required=True, help="a checkpoint directory, or a run (its newest checkpoint)")
    add("--out", required=True, help="directory for the video, the contact sheet and the transcript")
    add("--prompt", help="the meta-caption")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--image", help="first frame: any picture, resized to the model's size")
    start.add_argument(
        "--example", type=int, help="first frame, its words and prompt of a held-out example (data.val)"
    )
    add("--image-words", metavar="TEXT", help="words of the first frame, where the training data has some")
    add(
        "--intervene", action="append", default=[], metavar="SECONDS:TEXT", help="your words; may be repeated"
    )
    add("--compare", action="store_true", help="also make the video without your words, and show both")
    add("--seconds", type=float, help="length of the video (default: that of a training example)")
    add("--mode", choices=["tv2tv", "t2v", "think2v"], help="default: as the model was trained")
    add("--cfg", type=float, help="guidance scale, 1 for none (default: sample.cfg of the config)")
    add("--steps", type=int, help="Euler steps a chunk (default: sample.steps)")
    add("--temperature", type=float, help="of the text, 0 for the likeliest (default: sample.temperature)")
    add("--seed", type=int, default=0)
    add("--weights", choices=["auto", "ema", "model"], default="auto", help="auto: averaged ones if saved")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: cannot be used here ({reason}); try cpu") from None
    return device


def _intervention(text: str) -> Intervention:
    time, colon, words = text.partition(":")
    try:
        seconds = float(time)
    except ValueError:
        seconds = math.nan
    if not colon or not math.isfinite(seconds):
        raise ValueError(f"--intervene '{text}': write SECONDS:TEXT, such as \"1.56:He kicks the ball\"")
    return Intervention(seconds, words)


def _settings(args: argparse.Namespace, defaults: SampleConfig) -> SampleConfig:
    given = {key: getattr(args, key) for key in ("steps", "temperature", "cfg")}
    settings = dataclasses.replace(defaults, **{k: v for k, v in given.items() if v is not None})
    for key, least in {"steps": 1, "temperature": 0, "cfg": 0}.items():
        value = getattr(settings, key)
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"--{key} {value:g}: must be a number of at least {least}")
    return settings


def _request(args: argparse.Namespace, interventions: tuple[Intervention, ...], sampler: Sampler) -> Request:
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: must be 0 or more")
    request = Request(
        args.prompt or "",
        interventions=interventions,
        seconds=args.seconds,
        seed=args.seed,
        mode=args.mode,
    )
    if args.image is not None:
        video = sampler.config.video
        image = _read_image(args.image, video.width, video.height)
        given = () if args.image_words is None else (args.image_words,)
        return dataclasses.replace(request, first_image=image, given_words=given)
    if args.example is not None:
        caption, words, latent = _example(sampler, args.example)
        prompt = caption if args.prompt is None else args.prompt
        return dataclasses.replace(request, prompt=prompt, first_latents=latent, given_words=(words,))
    return request


def _read_image(path: str, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3], scaled without letterboxing as training videos are."""
    try:
        with Image.open(path) as image:
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"--image {path}: cannot be read as a picture ({error}); give a PNG or JPEG"
        ) from None
    if picture.size != (width, height):
        say(f"{path}: resized from {picture.width}x{picture.height} to the model's {width}x{height}")
    return np.array(picture.resize((width, height), Image.Resampling.BICUBIC))


def _example(sampler: Sampler, index: int) -> tuple[str, str, np.ndarray]:
    """Meta-caption, first words and first latent [1, C, h, w], normalised for the model, of an example."""
    config = sampler.config
    if config.data.val is None:
        raise ValueError("--example needs held-out shards, but data.val of the checkpoint's config is null")
    shards = open_shards(config.data.val, config.data, lambda: clip_encoder(sampler.codec))
    check_codec(shards.info, config.codec, shards.path)
    if not 0 <= index < len(shards):
        raise ValueError(f"--example {index}: {shards.path} has examples 0 to {len(shards) - 1}")
    example = shards[index]
    latent = sampler.stats.normalize(shards.stats.denormalize(example.latents[:1]))
    return example.meta_caption, "\n".join(texts_by_chunk(example)[0]), latent


def _record(args: argparse.Namespace, sampler: Sampler) -> dict[str, Any]:
    keys = ("checkpoint", "weights", "image", "example", "seconds", "seed", "device")
    return {
        "megatv": megatv.__version__,
        **{key: getattr(args, key) for key in keys},
        "step": sampler.step,
        "mode": args.mode or sampler.config.sequence.mode,
    }


def _write(out: Path, request: Request, results: dict[str, Result], record: dict[str, Any]) -> None:
    """Write everything into a temporary sibling and give it its name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
    try:
        partial.chmod(0o755)
        runs = []
        for name, result in results.items():
            file = "video.mp4" if len(results) == 1 else f"{name.replace(' ', '_')}.mp4"
            write_video(partial / file, enlarge(result.frames))
            runs.append({"name": name, "video": file, **_run_record(result)})
        spoken = [dataclasses.asdict(intervention) for intervention in request.interventions]
        tree = {"prompt": request.prompt, "interventions": spoken, **record, "runs": runs}
        (partial / "transcript.json").write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
        settings = record["settings"]
        note = (
            f"seed {request.seed}, {settings['steps']} Euler steps, temperature {settings['temperature']:g}"
        )
        note += f", guidance {settings['cfg']:g}" if settings["cfg"] != 1 else ""
        strips = [Strip.of(name, result) for name, result in results.items()]
        contact_sheet(strips, request.prompt, note).save(partial / "contact_sheet.png")
        partial.rename(out)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}); name another one") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run_record(result: Result) -> dict[str, Any]:
    return {
        "chunks": [dataclasses.asdict(words) for words in result.transcript],
        "plan": result.plan,
        "ended": result.ended,
        "tokens": {
            "prompt": result.prompt_tokens,
            "text": result.text_tokens,
            "video": result.video_tokens,
        },
    }
