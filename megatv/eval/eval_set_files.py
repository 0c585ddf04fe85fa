"""The files of the evaluation sets, as `tools/make_eval_set.py` describes them."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from megatv.data.captions import read_captions
from megatv.data.video import decode_video, probe, write_video
from megatv.eval.eval_set import (
    ARMS,
    PROMPTS,
    SETS_OF,
    Item,
    batch_line,
    csgo_items,
    csgo_studies,
    manifest_line,
    manifest_of,
    sports_items,
    sports_studies,
    start_names,
)
from megatv.eval.eval_starts import different_frames, first_frame, save_picture
from megatv.eval.human.study import Study, System, read_study
from megatv.eval.human.tasks import draw
from megatv.eval.human.videos import Video, find_videos
from megatv.log import progress, say
from megatv.regular_file import partial_folder
from megatv.sample.request import Mode
from megatv.schema import plain
from megatv.untrusted import inside, printable
from megatv.yaml_tree import dump

RUNS = {"csgo": "runs/3b_csgo", "sports": "runs/8b_sports"}
"""Runs of the shipped configs; those of the baselines end in _t2v and _think2v."""
SAME_SHAPE = 0.02
"""Two shapes, width over height, count as one within this share."""


def make(args: argparse.Namespace) -> int:
    """Do what the verb says; the exit code."""
    if args.verb == "normalise":
        return normalise(args.study, args.out, args.width, args.height)
    runs = _runs(args.run, RUNS[args.verb])
    with _new_folder(args.out) as made:
        (made / "frames").mkdir()
        if args.verb == "csgo":
            make_csgo(args.csgo, made, args.out, args.seed)
        else:
            make_sports(args.videos, args.captions, made, args.out, args.seed)
    say(f"{args.out} written; sample with (or start python by srun instead of torchrun):")
    for batch in sorted(args.out.glob("*/*.jsonl")):
        arm, name = batch.parent.name, batch.stem
        if batch != manifest_of(cast(Mode, arm), args.out):
            words = ["--checkpoint", runs[arm], "--batch", batch, "--out", batch.with_name(name)]
            say(f"torchrun --nproc_per_node 8 -m megatv.sample {shlex.join(map(str, words))}")
    return 0


def make_csgo(recordings: list[Path], made: Path, out: Path, seed: int) -> None:
    """The CS:GO set into the folder `made`, which will be called `out`."""
    sets = csgo_items(seed)
    starts = list(dict.fromkeys(item.start for items in sets.values() for item in items))
    found = list(zip(starts, different_frames(recordings, seed), strict=False))
    if len(found) < len(starts):
        raise ValueError(
            f"--csgo: has {len(found)} different frames, and each of {len(starts)} starts needs its own; "
            "name more recordings"
        )
    for start, (_, _, pixels) in found:
        save_picture(made / "frames" / f"{start}.png", pixels)
    origins = ({"start": start, "episode": name, "frame": frame} for start, (name, frame, _) in found)
    _write_lines(made / "starts.jsonl", origins)
    for arm, names in SETS_OF.items():
        for name in names:
            _write_batch(made, out, arm, name, sets[name])
        if "steered" in names:
            lines = (manifest_line(item, "steered") for item in sets["steered"])
            _write_lines(manifest_of(arm, made), lines)
    _write_studies(made, csgo_studies(out))


def make_sports(videos: Path, captions: Path, made: Path, out: Path, seed: int) -> None:
    """The sports set into the folder `made`, which will be called `out`."""
    listed = read_captions(captions)
    listed.sort(key=lambda video: draw(seed, video.video, video.start_seconds))
    prompts: list[str] = []
    origins: list[dict[str, Any]] = []
    for video in listed:
        if len(prompts) == PROMPTS:
            break
        start = start_names(PROMPTS)[len(prompts)]
        try:
            path = inside(videos, video.video)
            pixels = first_frame(path, video.start_seconds)
        except ValueError as error:
            say(printable(f"left out: {error}", keep=""))
            continue
        save_picture(made / "frames" / f"{start}.png", pixels)
        prompts.append(video.meta_caption)
        origins.append({"start": start, "video": video.video, "seconds": video.start_seconds})
    if len(prompts) < PROMPTS:
        raise ValueError(
            f"{captions}: has {len(prompts)} videos that can be used, and the set has {PROMPTS}; add others"
        )
    _write_lines(made / "starts.jsonl", origins)
    for arm in ARMS:
        _write_batch(made, out, arm, "videos", sports_items(prompts, seed))
    _write_studies(made, sports_studies(out))


def normalise(path: Path, out: Path, width: int, height: int) -> int:
    """Copies of a study's videos, alike in size, rate and, by name, in length; the exit code.

    A video that cannot be read costs its name alone, in all systems.
    """
    if width < 2 or height < 2 or width % 2 or height % 2:
        raise ValueError(f"--width {width} --height {height}: H.264 needs even numbers of at least 2")
    study = read_study(path)
    found = find_videos(study)
    lines: list[list[dict[str, Any]]] = [[] for _ in found]
    failed, cut = 0, 0
    with _new_folder(out) as made:
        for number, (system, videos) in enumerate(zip(study.systems, found, strict=True), 1):
            _say_shapes(system.name, videos.values(), width / height)
            (made / f"system-{number}").mkdir()
        names = sorted({name for videos in found for name in videos})
        for place, name in enumerate(progress(names, desc="videos")):
            having = [number for number, videos in enumerate(found) if name in videos]
            try:
                shown = [decode_video(found[n][name].video, width=width, height=height) for n in having]
            except ValueError as error:
                say(printable(f"left out: {name}: {error}", keep=""))
                failed += 1
                continue
            length = min(map(len, shown))
            cut += any(len(frames) > length for frames in shown)
            for n, frames in zip(having, shown, strict=True):
                file = f"system-{n + 1}/{place:05}.mp4"  # names may be none of a file
                write_video(made / file, frames[:length])
                lines[n].append({**plain(found[n][name]), "video": file})
        for number, system_lines in enumerate(lines, 1):
            _write_lines(made / f"system-{number}.jsonl", system_lines)
        systems = tuple(
            System(system.name, str(out / f"system-{number}.jsonl"))
            for number, system in enumerate(study.systems, 1)
        )
        copied = replace(study, systems=systems, database=str(out / "answers.sqlite"))
        (made / "study.yaml").write_text(dump(plain(copied)), encoding="utf-8")
    say(f"{out}/study.yaml written; of {cut} names one video was cut to the length of the other")
    if failed:
        say(f"{failed} names are left out")
    return 2 if failed else 0


def _say_shapes(system: str, videos: Iterable[Video], shape: float) -> None:
    """Which pictures will look narrower or wider, once for each size."""
    sizes = set()
    for video in videos:
        try:
            info = probe(video.video)
        except ValueError:  # said when it is read
            continue
        sizes.add((info.width, info.height))
    for width, height in sorted(sizes):
        if abs(width / height / shape - 1) > SAME_SHAPE:
            how = "narrower" if width / height > shape else "wider"
            say(printable(f"{system}: pictures of {width}x{height} become {how}", keep=""))


def _write_batch(made: Path, out: Path, arm: Mode, name: str, items: list[Item]) -> None:
    _write_lines(made / arm / f"{name}.jsonl", (batch_line(item, arm, out / "frames") for item in items))


def _write_lines(path: Path, trees: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(tree) + "\n" for tree in trees), encoding="utf-8")


def _write_studies(made: Path, studies: dict[str, Study]) -> None:
    (made / "study").mkdir()
    (made / "answers").mkdir()
    for name, study in studies.items():
        (made / "study" / f"{name}.yaml").write_text(dump(plain(study)), encoding="utf-8")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when all went well, and is gone otherwise."""
    if out.exists():
        raise ValueError(f"--out {out}: exists already; name another one or remove it first")
    partial = None
    try:
        partial = partial_folder(out)
        yield partial
        partial.rename(out)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}); name another one") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _runs(given: list[str], base: str) -> dict[str, str]:
    """The run or checkpoint of every arm: that of its config, where `--run ARM=RUN` names no other."""
    runs: dict[str, str] = {arm: base if arm == "tv2tv" else f"{base}_{arm}" for arm in ARMS}
    for text in given:
        arm, equals, run = text.partition("=")
        if arm not in runs or not equals or not run:
            raise ValueError(f"--run {text}: write ARM=RUN, where ARM is one of {', '.join(ARMS)}")
        runs[arm] = run
    return runs
