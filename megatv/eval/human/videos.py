"""The videos of a study's systems: found, matched by name, and looked at before anyone is asked about them.

A folder holds `NAME.mp4` (with `NAME.txt`, its prompt, if there is one) or what `python -m megatv.sample
--out FOLDER/NAME` left: `NAME/video.mp4` with `NAME/transcript.json`. A manifest is a JSONL file with a line
for each video, paths relative to it:

    {"name": "duel-1", "video": "tv2tv/duel-1.mp4", "prompt": "A player jumps.", "caption": "He jumps.",
     "start": 0.8125, "stop": 1.0625, "action": "jump", "control": false}

The last five are for pointwise studies: what was asked for, when (seconds), which group of the report it
belongs to, and whether nobody intervened (then "no" is the right answer, TV2TV section 3.3). All files lie
within the folder, or the manifest's: neither names nor links lead out of it, since strangers see them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from megatv.config import FPS, TEMPORAL_FACTOR
from megatv.data.video import VideoInfo, iterate_video, probe
from megatv.data.video_source import open_video
from megatv.eval.human.study import MAX_LABEL, Study, is_label
from megatv.regular_file import read_bytes
from megatv.schema import build
from megatv.untrusted import inside, parse_json, text_lines

SUFFIXES = (".mp4", ".webm", ".m4v")
CODECS = ("h264", "vp8", "vp9", "av1")
PIXELS = ("yuv420p", "yuvj420p")
"""Kinds, codecs and, of H.264, pixels that browsers play."""
CHUNK_SECONDS = TEMPORAL_FACTOR / FPS
"""STOP comes so long after START where nothing else is said: the chunk that the words were for."""
MAX_TEXT_BYTES = 20_000
"""Of a prompt or caption: what a person can be asked to read, many times over."""
MAX_FILE_BYTES = 20_000_000
"""Of a manifest or transcript."""
MAX_VIDEOS = 10_000


@dataclass(frozen=True)
class Video:
    """One video of a system; a manifest's line has the same keys. `start`, `stop` in seconds."""

    name: str
    video: str
    prompt: str = ""
    caption: str = ""
    start: float | None = None
    stop: float | None = None
    action: str = ""
    control: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name is empty: videos are matched by it")
        for key, label in (("name", self.name), ("action", self.action)):
            if not is_label(label):
                raise ValueError(f"{key} is {label[:40]!r}: give at most {MAX_LABEL} visible letters")
        for key, text in (("prompt", self.prompt), ("caption", self.caption)):
            if len(text) > MAX_TEXT_BYTES:
                raise ValueError(f"{key} has {len(text)} letters: give at most {MAX_TEXT_BYTES}")
        if self.start is not None and self.stop is None:
            object.__setattr__(self, "stop", self.start + CHUNK_SECONDS)
        if self.start is not None and self.stop is not None and not 0 <= self.start < self.stop:
            raise ValueError(f"start {self.start:g} and stop {self.stop:g}: they must be in order, from 0 on")


Videos = dict[str, Video]
"""A system's videos by name."""


def find_videos(study: Study) -> list[Videos]:
    """Every system's videos, matched by name in a pairwise study.

    Raises ValueError when a folder, a name or what the study's questions need is missing.
    """
    found = [_videos_of(Path(system.videos)) for system in study.systems]
    if study.kind == "pointwise":
        for system, videos in zip(study.systems, found, strict=True):
            for video in videos.values():
                if not video.caption or video.start is None:
                    raise ValueError(
                        f"{system.videos}: {video.name} has no caption or no start: a pointwise study asks "
                        "whether the caption was done from START to STOP; give both in a manifest"
                    )
        return found
    (one, left), (other, right) = zip(study.systems, found, strict=True)
    for mine, theirs, there in ((left, right, other), (right, left, one)):
        if missing := sorted(mine.keys() - theirs.keys()):
            raise ValueError(
                f"{there.videos}: has no video named {_some(missing)}, which the other system has: pairs are "
                "matched by name; add or remove them"
            )
    for name in left:
        prompts = {video.prompt for video in (left[name], right[name])} - {""}
        if len(prompts) > 1:
            raise ValueError(f"{name}: the two systems' prompts differ; a pair answers one prompt")
        if not prompts and "alignment" in study.criteria:
            raise ValueError(
                f"{name}: has no prompt, which the question of alignment needs: add {name}.txt or a "
                "manifest, or leave alignment out of criteria"
            )
    return found


def look_at(videos: Mapping[str, Video]) -> Iterator[VideoInfo]:
    """The header of every video once all of it has been decoded.

    Raises ValueError at the first that does not decode, that browsers do not play, or that ends before STOP.
    """
    for video in videos.values():
        info = probe(video.video)
        with open_video(video.video) as (_, stream):
            codec, pixels = stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt
        if codec not in CODECS or (codec == "h264" and pixels not in PIXELS):
            raise ValueError(
                f"{video.video}: not every browser plays {codec} in {pixels}: make it "
                "`ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4`"
            )
        for _ in iterate_video(video.video, width=32, height=32):
            pass
        if video.stop is not None and video.stop > info.seconds + CHUNK_SECONDS:
            raise ValueError(f"{video.name}: STOP at {video.stop:g} s, but it ends at {info.seconds:.2f} s")
        yield info


def tell_apart(left: list[VideoInfo], right: list[VideoInfo]) -> str:
    """What gives two systems away besides their pictures, as a sentence; "" when nothing does.

    The paper brings all systems to one size and rate before people see them (section 4.2.2).
    """
    differences = []
    for mine, theirs in zip(left, right, strict=True):
        for what, a, b in (
            ("size", f"{mine.width}x{mine.height}", f"{theirs.width}x{theirs.height}"),
            ("frames a second", round(mine.rate), round(theirs.rate)),
            ("seconds", round(mine.seconds, 1), round(theirs.seconds, 1)),
        ):
            if a != b:
                differences.append(f"{what} ({a} and {b})")
    if not differences:
        return ""
    return (
        f"people may tell the systems apart by {', '.join(dict.fromkeys(differences[:3]))}: make them alike"
    )


def _videos_of(place: Path) -> Videos:
    if not place.is_dir() and not place.is_file():
        raise ValueError(f"{place}: is neither a folder of videos nor a manifest; check systems' videos")
    found: Videos = {}
    try:
        for video in _folder(place) if place.is_dir() else _manifest(place):
            if video.name in found:
                raise ValueError(f"{place}: two videos are named {video.name}; names must be unique")
            if not Path(video.video).is_file():
                raise ValueError(f"{place}: {video.video} does not exist")
            if len(found) == MAX_VIDEOS:
                raise ValueError(f"{place}: holds more than {MAX_VIDEOS} videos; name a part of them")
            found[video.name] = video
    except OSError as error:
        raise ValueError(f"{place}: cannot be read ({error.strerror})") from None
    if not found:
        raise ValueError(f"{place}: holds no videos ({', '.join(SUFFIXES)}, or NAME/video.mp4)")
    return dict(sorted(found.items()))


def _folder(folder: Path) -> Iterator[Video]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue  # what the sampler has not finished
        if path.suffix.lower() in SUFFIXES:
            words = _within(folder, f"{path.stem}.txt")
            prompt = _text(words, MAX_TEXT_BYTES).strip() if words.is_file() else ""
            yield _video(path, path.stem, str(_within(folder, path.name)), prompt)
        elif (path / "video.mp4").is_file():
            yield _sampled(folder, path.name)


def _sampled(folder: Path, name: str) -> Video:
    """A video with its prompt and first intervention, where the sampler let it begin (at a chunk's start)."""
    video, transcript = (_within(folder, f"{name}/{file}") for file in ("video.mp4", "transcript.json"))
    if not transcript.is_file():
        return _video(video, name, str(video))
    text = _text(transcript, MAX_FILE_BYTES)
    try:
        told = parse_json(text)
        first = (told.get("interventions") or [{}])[0]
        chunks = told["runs"][0]["chunks"]
        forced = [chunk["start_seconds"] for chunk in chunks if chunk["source"] == "forced"]
        start = (forced or [first["seconds"]])[0] if first else None
        prompt, caption = told.get("prompt", ""), first.get("text", "")
        fields = {"name": name, "video": str(video), "prompt": prompt, "caption": caption, "start": start}
        return build(Video, fields)
    except (AttributeError, LookupError, TypeError):
        raise ValueError(f"{transcript}: is not a transcript of megatv.sample; remove it") from None
    except ValueError as error:
        raise ValueError(
            f"{transcript}: is not a transcript of megatv.sample ({str(error)[:300]}); remove it"
        ) from None


def _manifest(path: Path) -> Iterator[Video]:
    for number, line in enumerate(text_lines(_text(path, MAX_FILE_BYTES)), 1):
        if not line.strip():
            continue
        try:
            video: Video = build(Video, parse_json(line))
            if not video.video.isprintable():
                raise ValueError(f"video is {video.video[:40]!r}: give a name of visible letters")
            yield replace(video, video=str(inside(path.parent, video.video)))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error.msg})") from None
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {str(error)[:500]}") from None


def _video(path: Path, name: str, video: str, prompt: str = "") -> Video:
    try:
        return Video(name, video, prompt)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None


def _within(folder: Path, name: str) -> Path:
    try:
        return inside(folder, name)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _text(path: Path, most: int) -> str:
    """A file of at most so many bytes."""
    try:
        return read_bytes(path, most, links=True).decode()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text") from None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
