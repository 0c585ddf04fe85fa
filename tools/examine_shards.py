"""What `tools/shards.py` does with a directory of shards, verb by verb."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from draw_shards import draw_stats  # the tool beside this one
from megatv.checkpoint.meta import read_meta
from megatv.config import Config, config_to_dict
from megatv.data.budget import TextBudget
from megatv.data.crop import consecutive_windows, wordiest_crop
from megatv.data.describe import describe, transcript
from megatv.data.format import DatasetInfo, codec_fingerprint
from megatv.data.loader import check_shards, window_of
from megatv.data.sequence import build_sequence, chunk_start_seconds, texts_by_chunk
from megatv.data.shards import Shards, verify
from megatv.data.split import split
from megatv.data.stats import LatentStats, StatsAccumulator
from megatv.data.tokenizer import load_tokenizer
from megatv.data.video import whole_latents
from megatv.log import progress, say
from megatv.model.codec import clip_encoder, latents_to_frames, load_codec
from megatv.sample.render import Strip, contact_sheet
from megatv.sample.request import ChunkWords
from megatv.untrusted import printable

import numpy as np
import torch

MAX_NAMED = 1000
"""Faults that `verify` names one by one."""
MAX_SCORES = 30
"""Kinds of quality scores that `stats` draws, a panel each."""


def verify_all(path: Path) -> int:
    """Name what differs from what was written, on stderr; 0 when nothing does, else 2.

    The files are compared with their hashes before the first row is read. Rows of damaged files are read
    nevertheless, which is safe, so that the examples are named; the first MAX_NAMED faults are.
    """
    shards, faults, named = Shards(path), 0, []
    try:
        verify(path)
    except ValueError as error:
        faults, named = 1, [str(error)]
    for index in progress(range(len(shards)), total=len(shards), desc="examples"):
        try:
            record = shards.record(index)
            if shards.info.stores == "clips":
                shards.frames(record)
            elif not np.isfinite(np.asarray(record.content)).all():
                raise ValueError(f"{path}: latents of '{record.id}' are not finite; make the shards again")
        except ValueError as error:
            faults += 1
            if len(named) < MAX_NAMED:
                named.append(str(error))
    for fault in named:
        print(f"error: {printable(fault)}", file=sys.stderr)
    if faults > len(named):
        print(f"error: {path}: {faults - len(named)} more examples are damaged", file=sys.stderr)
    if not faults:
        decoded = " and every clip decodes" if shards.info.stores == "clips" else ""
        say(f"{path}: {len(shards)} examples, every shard and example is as it was written{decoded}")
    return 2 if faults else 0


def inspect(path: Path, config: Config, index: int, out: Path, trust: bool) -> None:
    """Print one example as it is stored and as it is trained on, and save its contact sheet."""
    codec = load_codec(config.codec, trust=trust)
    shards = Shards(path, lambda: clip_encoder(codec))
    check_shards(shards, config)
    if not 0 <= index < len(shards):
        raise ValueError(f"--index {index}: {path} holds examples 0 to {len(shards) - 1}")
    record = shards.record(index)
    window = window_of(shards, record, config, epoch=0)
    example = shards.example(record, window)
    tokenizer = load_tokenizer(config.tokenizer.path)
    say(f"{record.id}  source {record.source}  quality {record.quality or 'not scored'}")
    for line in transcript(example, tokenizer):
        say(line)
    say("")
    sequence = build_sequence(example, tokenizer, config, seed=config.run.seed, epoch=0, train=False)
    for line in describe(example, sequence, tokenizer, config):
        say(line)
    if shards.info.stores == "clips":
        frames = shards.frames(record, window).numpy()
    else:
        frames = codec.decode(torch.from_numpy(shards.latents(record, window))[None])[0].cpu().numpy()
    words = tuple(
        ChunkWords(chunk_start_seconds(chunk), "\n".join(texts), "own")
        for chunk, texts in enumerate(texts_by_chunk(example))
    )
    strip = Strip(record.id, frames[: latents_to_frames(example.valid_latents)], words)
    cropped = f", frames {window.start} to {window.stop - 1} of {record.frames}" if record.frames else ""
    note = f"{path} example {index}: {record.id}, stored as {shards.info.stores}{cropped}"
    sheet = contact_sheet([strip], example.meta_caption, note)
    _save(out, lambda temporary: sheet.save(temporary, format="png"))
    say(f"contact sheet: {out}")


def show_stats(path: Path, config: Config | None, out: Path) -> None:
    """Draw the histograms, tell their medians and, with a config, what does not fit its text rows."""
    shards = Shards(path)
    indices = progress(range(len(shards)), total=len(shards), desc="examples")
    records = [dataclasses.replace(shards.record(index), content=b"") for index in indices]
    scores = {name for record in records for name in record.quality}
    if len(scores) > MAX_SCORES:
        raise ValueError(f"{path}: has {len(scores)} kinds of quality scores, and {MAX_SCORES} can be drawn")
    _save(out, lambda temporary: say(draw_stats(records, shards, temporary)))
    say(f"histograms: {out}")
    if config:
        budget, unusable = TextBudget(config), []
        for record in records:
            try:
                words = record.example(np.empty(0))
                frames, length = record.frames, shards.info.frames
                budget.count(words if frames is None else wordiest_crop(words, frames, length))
            except ValueError as error:
                unusable.append(str(error))
        if unusable:
            say(f"{len(unusable)} of {len(records)} examples cannot be used, the first: {unusable[0]}")
        if budget.examples:
            say(budget.report())


def split_in_two(path: Path, out: Path, share: float, seed: int, by: str) -> None:
    """Write OUT/train and OUT/val, no value of `source[by]` in both."""
    train, val = split(Shards(path), out, share=share, seed=seed, by=by)
    say(f"{out}: {train} examples in train, {val} in val, no `{by}` in both")


def recompute(path: Path, config: Config | None, device: str, trust: bool) -> None:
    """Compute the latent statistics over all valid latents and store them with the codec's fingerprint."""
    info = Shards(path).info
    if info.stores == "clips" and config is None:
        raise ValueError(f"{path}: holds clips; give --config, whose codec makes latents of them")
    clips = info.stores == "clips"
    codec = load_codec(config.codec, device, trust=trust) if config and clips else None
    shards = Shards(path, (lambda: clip_encoder(codec)) if codec else None)
    found = StatsAccumulator()
    for index in progress(range(len(shards)), total=len(shards), desc="examples"):
        record = shards.record(index)
        for window in consecutive_windows(record.frames or info.frames, info.frames):
            valid = record.valid_latents if record.frames is None else whole_latents(len(window))
            found.add(shards.latents(record, window)[:valid])
    if config and codec:
        fingerprint = codec_fingerprint(config.codec)
        info = dataclasses.replace(info, codec=config_to_dict(config.codec), codec_fingerprint=fingerprint)
    _store(path, info, found.finish())
    say(
        f"{path}: latent statistics of {len(shards)} examples stored; a run that was trained with the old "
        f"ones goes on only after `stats {path} --like CHECKPOINT`"
    )


def restore(path: Path, checkpoint: Path) -> None:
    """Store the latent statistics that a checkpoint was trained with; ValueError for another codec's."""
    info, meta = Shards(path).info, read_meta(checkpoint)
    trained = meta.get("codec_fingerprint")
    if trained and info.codec_fingerprint and trained != info.codec_fingerprint:
        raise ValueError(
            f"{checkpoint}: was trained with codec weights {trained}, {path} was made with "
            f"{info.codec_fingerprint}: statistics hold for one codec only; give a checkpoint of its own"
        )
    _store(path, info, LatentStats.from_dict(meta.get("latent_stats"), f"{checkpoint}: latent_stats"))
    say(f"{path}: latent statistics of {checkpoint} stored")


def _store(path: Path, info: DatasetInfo, stats: LatentStats) -> None:
    """Killed in between, this leaves statistics that are not bound to the shards, never wrong ones."""
    unbound = dataclasses.replace(info, stats_fingerprint=None)
    _save(path / "dataset.json", unbound.save)
    _save(path / "latent_stats.json", stats.save)
    bound = dataclasses.replace(info, stats_fingerprint=stats.fingerprint())
    _save(path / "dataset.json", bound.save)


def _save(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file beside `path`, in a folder that nobody else could prepare, and move it."""
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--out {path}: give the name of a file in a folder that exists")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        os.replace(temporary, path)
