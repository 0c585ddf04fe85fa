"""The stages of the pipeline in their order, each from one item to an Outcome; see TV2TV section 4.1.

An item is a video, then a shot, then a clip, and carries what earlier stages said of it: `video` (path below
the folder), `start` and `end` in seconds, `key_frames`, `segments`, words. The paper's filters for motion and
faces come before the choice of clips here: they look at few frames, embedding looks at many. Stages run on
workers: everything they read is under `Places`, on a file system that all nodes see.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from megatv.config import FPS
from megatv.curate.embed import Embedder, embed_span, load_embedder
from megatv.curate.engine import Outcome, Stage
from megatv.curate.filters import (
    Verdict,
    face_frame_size,
    judge_faces,
    judge_motion,
    kept_spans,
    reasons_to_drop,
    stretches,
)
from megatv.curate.manifest import Item
from megatv.curate.peaks import choose_clips, find_key_frames
from megatv.curate.prompt_files import Prompts, load_prompts
from megatv.curate.recipe import EndpointSettings, Recipe
from megatv.curate.segments import choose_segments
from megatv.curate.settings import EmbedSettings
from megatv.curate.shots import find_shots
from megatv.curate.words import human_words, model_words, score_quality
from megatv.data.captions import read_captions
from megatv.data.video import decode_video, iterate_video, probe, write_video
from megatv.untrusted import inside, json_lines, parse_json

VIDEO_ENDINGS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts", ".mpg")

WORDS = ("meta_caption", "detailed_caption", "captions")
"""Keys of a captioned clip's words: other words export no clip again."""
EXPORTED = ("video", "start", "end", "key_frames", "segments", "file")
"""Keys of every exported clip, beside the words."""


@dataclass(frozen=True)
class Places:
    """Folders: the raw videos, and everything that the pipeline writes."""

    videos: Path
    out: Path


def list_videos(places: Places, recipe: Recipe) -> list[Item]:
    """The items of the first stage: every video of the folder, or those that the metadata name.

    Raises ValueError when there are none, or a line of the metadata is no object with `video`.
    """
    if recipe.source.metadata is None:
        found = sorted(p for p in places.videos.rglob("*") if p.suffix.lower() in VIDEO_ENDINGS)
        rows: list[dict[str, Any]] = [{"video": p.relative_to(places.videos).as_posix()} for p in found]
    else:
        rows = list(_metadata(Path(recipe.source.metadata)))
    if not rows:
        raise ValueError(
            f"{places.videos}: holds no videos ({', '.join(VIDEO_ENDINGS)}); give --videos a folder"
        )
    items, seen = [], set()
    for row in rows:
        name = PurePosixPath(row["video"]).as_posix()
        if name in seen:
            raise ValueError(f"{recipe.source.metadata}: names '{name}' twice; keep one line")
        if name != row["video"]:
            raise ValueError(f"{recipe.source.metadata}: write '{row['video'][:80]}' as '{name[:80]}'")
        seen.add(name)
        stamp = _stamp(places.videos, row["video"])
        items.append({"id": row["video"], "video": row["video"], "stamp": stamp, "metadata": row})
    return items


def stages(places: Places, recipe: Recipe) -> list[Stage]:
    """All stages but the shards, in order. Raises ValueError when prompts or people's words are faulty.

    A stage's settings are all that decides what it finds and nothing else: other settings do its items again.
    So another judge or judge's prompt asks for scores alone, and the scores pass by the stages after it.
    """

    def stage(name: str, work: Any, settings: Any, version: int = 1, **options: Any) -> Stage:
        plain = parse_json(json.dumps(settings, default=asdict))
        options = {"makes": ("video",), **options}
        return Stage(name, version, partial(work, places=places, recipe=recipe), plain, **options)

    prompts = load_prompts(recipe.captions.prompts)  # now, and once: workers get the texts
    chain = [
        stage("source", _source, [recipe.source.keywords, recipe.source.exclude]),
        stage("probe", _probe, recipe.source, version=2),
        stage("shots", _shots, recipe.shots),
        stage("filters", _filters, [recipe.motion, recipe.faces, recipe.clips.window_seconds]),
        stage("clips", _clips, [recipe.embed, recipe.clips]),
    ]
    if recipe.quality and recipe.judge:
        shown = replace(recipe.quality, endpoint=None)
        asked = _asked(recipe.judge, prompts.quality, prompts.repair)
        work = partial(_quality, prompts=prompts)
        chain.append(stage("quality", work, [shown, asked], **_waiting(recipe.judge)))
    passes: dict[str, Any] = {"passes": ("quality",)}
    captioned = {**passes, "makes": ("video", *WORDS)}
    chain.append(stage("segments", _segments, [recipe.embed, recipe.segments], **passes))
    if recipe.captions.words_from:
        read_captions(recipe.captions.words_from)  # refuse a faulty file now, not clip by clip
        text = Path(recipe.captions.words_from).read_text(encoding="utf-8")
        chain.append(stage("captions", _human_captions, {"captions": text}, version=2, **captioned))
    else:
        assert recipe.endpoint is not None
        texts = [prompts.meta, prompts.segments, prompts.repair]
        texts += [prompts.detailed] if recipe.captions.detailed else []
        settings = [replace(recipe.captions, prompts=None), _asked(recipe.endpoint, *texts)]
        work = partial(_model_captions, prompts=prompts)
        chain.append(stage("captions", work, settings, **captioned, **_waiting(recipe.endpoint)))
    chain.append(stage("export", _export, [recipe.export], makes=EXPORTED, passes=("quality", *WORDS)))
    return chain


def _asked(endpoint: EndpointSettings, *prompts: str) -> dict[str, Any]:
    """What decides a model's answers: not where it runs, nor how long it may take."""
    keys = ("model", "temperature", "image_width_pixels", "jpeg_quality")
    return {**{key: getattr(endpoint, key) for key in keys}, "prompts": prompts}


def _waiting(endpoint: EndpointSettings) -> dict[str, Any]:
    """How a stage runs that waits for a server."""
    threads = min(8, endpoint.concurrency)
    return {"threads": threads, "tasks": max(1, endpoint.concurrency // threads), "cpus": 0.5}


def _source(item: Item, places: Places, recipe: Recipe) -> Outcome:
    inside(places.videos, item["video"])
    try:
        item["video"].encode()
    except UnicodeEncodeError:
        raise ValueError(
            "its name is not UTF-8, as captions and shards write names; rename it, with convmv for example"
        ) from None
    if item["stamp"] is None:
        raise ValueError(f"{places.videos / item['video']}: is not there; copy it or correct the metadata")
    texts = " ".join(str(value) for value in item["metadata"].values()).lower()

    def has(word: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", texts) is not None

    if recipe.source.keywords and not any(map(has, recipe.source.keywords)):
        return Outcome(reason="none of source.keywords is in its metadata")
    if found := [word for word in recipe.source.exclude if has(word)]:
        return Outcome(reason=f"'{found[0]}' of source.exclude is in its metadata")
    return Outcome([item])


def _probe(item: Item, places: Places, recipe: Recipe) -> Outcome:
    info = probe(inside(places.videos, item["video"]))
    least = recipe.source
    for what, value, limit in (
        ("seconds", info.seconds, least.min_seconds),
        ("width_pixels", info.width, least.min_width_pixels),
        ("height_pixels", info.height, least.min_height_pixels),
        ("frames_per_second", info.rate, least.min_frames_per_second),
    ):
        if value < limit:
            return Outcome(reason=f"{what} {value:.4g} below source.min_{what} {limit:g}", facts=asdict(info))
    return Outcome([{**item, "info": asdict(info)}], facts=asdict(info))


def _shots(item: Item, places: Places, recipe: Recipe) -> Outcome:
    shots = find_shots(inside(places.videos, item["video"]), recipe.shots)
    outputs = [
        {**item, "id": f"{item['video']}#{index:04d}", "start": start, "end": end}
        for index, (start, end) in enumerate(shots)
    ]
    return Outcome(outputs, "" if outputs else "no shot is long enough", {"shots": len(shots)})


def _filters(item: Item, places: Places, recipe: Recipe) -> Outcome:
    shot = (item["start"], item["end"])
    judged = [
        (span, _verdicts({**item, "start": span[0], "end": span[1]}, places, recipe))
        for span in stretches(shot, recipe.clips.window_seconds)
    ]
    kept = kept_spans(judged)
    measured = [{k: v for verdict in verdicts for k, v in verdict.measures.items()} for _, verdicts in judged]
    facts = {name: float(np.mean([m[name] for m in measured])) for name in measured[0]}
    if kept == [shot]:
        return Outcome([item], facts=facts)
    outputs = [
        {**item, "id": f"{item['id']}.{index}", "start": start, "end": end}
        for index, (start, end) in enumerate(kept)
    ]
    # Of a shot that is kept in part, the reason tells what the rest was.
    return Outcome(outputs, reasons_to_drop(judged), facts)


def _verdicts(item: Item, places: Places, recipe: Recipe) -> list[Verdict]:
    """All filters' verdicts, so that the report can name each reason."""
    motion, faces, info = recipe.motion, recipe.faces, item["info"]
    size = (motion.width_pixels, motion.height_pixels)
    face_size = face_frame_size(info["width"], info["height"], faces)
    return [
        judge_motion(_frames(item, places, size, motion.frames_per_second), motion),
        judge_faces(_frames(item, places, face_size, faces.frames_per_second), faces),
    ]


def _clips(item: Item, places: Places, recipe: Recipe) -> Outcome:
    span, settings = (item["start"], item["end"]), recipe.clips
    seconds = span[1] - span[0]
    facts = {"seconds": seconds}
    if seconds < settings.min_seconds:
        return Outcome(
            reason=f"shot of {seconds:.2f} s, below clips.min_seconds {settings.min_seconds:g}", facts=facts
        )
    times, vectors = embed_span(
        inside(places.videos, item["video"]), span, _embedder(recipe.embed), recipe.embed
    )
    key_frames = find_key_frames(vectors, times, settings)
    clips = choose_clips(span, key_frames, settings)
    outputs = [
        {
            **item,
            "id": f"{item['video']}@{start:.3f}-{end:.3f}",
            "start": start,
            "end": end,
            "shot_start": span[0],
            "key_frames": [time for time in key_frames if start <= time < end],
        }
        for start, end in clips
    ]
    reason = f"{len(key_frames)} key frames, no clip with clips.min_peaks {settings.min_peaks}"
    return Outcome(outputs, "" if outputs else reason, {**facts, "key_frames": len(key_frames)})


def _quality(item: Item, places: Places, recipe: Recipe, prompts: Prompts) -> Outcome:
    assert recipe.quality is not None
    score, facts = score_quality(item, places.videos, places.out / "cache", recipe, prompts)
    if score < recipe.quality.min_score:
        return Outcome(
            reason=f"quality {score:g} below quality.min_score {recipe.quality.min_score:g}", facts=facts
        )
    return Outcome([{**item, "quality": score}], facts=facts)


def _segments(item: Item, places: Places, recipe: Recipe) -> Outcome:
    # On the grid of the shot's frames, to which the key frames belong.
    fps, shot_start = recipe.embed.frames_per_second, item["shot_start"]
    skipped = int((item["start"] - shot_start) * fps)
    span = (shot_start + skipped / fps, item["end"])
    _, vectors = embed_span(inside(places.videos, item["video"]), span, _embedder(recipe.embed), recipe.embed)
    times = shot_start + np.arange(skipped, skipped + len(vectors)) / fps
    clip = (item["start"], item["end"])
    found = choose_segments(clip, vectors, times, item["key_frames"], recipe.segments)
    return Outcome([{**item, "segments": found}], facts={"segments": len(found)})


def _human_captions(item: Item, places: Places, recipe: Recipe) -> Outcome:
    assert recipe.captions.words_from is not None
    return Outcome([{**item, **human_words(item, recipe.captions.words_from)}])


def _model_captions(item: Item, places: Places, recipe: Recipe, prompts: Prompts) -> Outcome:
    words, facts = model_words(item, places.videos, places.out / "cache", recipe, prompts)
    return Outcome([{**item, **words}], facts=facts)


def _export(item: Item, places: Places, recipe: Recipe) -> Outcome:
    count = int((item["end"] - item["start"]) * FPS + 1e-6)
    frames = decode_video(
        inside(places.videos, item["video"]),
        width=recipe.export.width,
        height=recipe.export.height,
        start_seconds=item["start"],
        frames=count,
    )
    (places.out / "clips").mkdir(parents=True, exist_ok=True)
    name = _file_name(item["id"])
    write_video(places.out / "clips" / name, frames)
    return Outcome([{**item, "file": name}], facts={"frames": count})


def _file_name(id: str) -> str:
    """A plain name for a clip, another one for every id: `a b` and `a_b` are two."""
    digest = hashlib.sha256(id.encode(errors="backslashreplace")).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', id)[:100].lstrip('.')}-{digest}.mp4"


@lru_cache(maxsize=1)
def _embedder(settings: EmbedSettings) -> Embedder:
    """One a worker process."""
    return load_embedder(settings)


def _frames(item: Item, places: Places, size: tuple[int, int], fps: float) -> Iterator[np.ndarray]:
    """The stretch's frames at a size and rate."""
    frames = iterate_video(
        inside(places.videos, item["video"]),
        width=size[0],
        height=size[1],
        start_seconds=item["start"],
        fps=fps,
    )
    return islice(frames, max(1, int((item["end"] - item["start"]) * fps)))


def _stamp(videos: Path, name: str) -> list[int] | None:
    """Size and time of change of a video; None when the folder has no such file."""
    try:
        file = inside(videos, name)
        return [file.stat().st_size, file.stat().st_mtime_ns] if file.is_file() else None
    except (OSError, ValueError):
        return None


def _metadata(path: Path) -> Iterator[dict[str, Any]]:
    for where, row in json_lines(path):
        if not isinstance(row, dict) or not isinstance(row.get("video"), str):
            raise ValueError(f"{where}: must be an object with `video`, a path")
        yield row
