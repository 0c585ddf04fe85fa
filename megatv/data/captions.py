"""Captions of videos as a JSONL file, read and checked line by line, and cut to the clips of a video.

One line is one video, or its part from `start` to the next line's `start`; times are seconds from there, and
`start` counts from the video's first picture:
    {"video": "match.mp4", "start": 0.0, "meta_caption": "A point is played.", "detailed_caption": "...",
     "captions": [{"start": 0.0, "text": "She serves."}, {"start": 2.5, "text": "He returns."}]}
`start` (0) and `detailed_caption` (empty) may be left out, and `captions` may be an empty list. Two more keys
may be given and are stored with every clip: `"quality": {"motion": 0.7}`, scores by name, higher is better,
and `"source": {"licence": "CC0"}`, provenance in any words.
"""

from __future__ import annotations

import difflib
import json
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any

from megatv.config import FPS
from megatv.data.record import CONTROL, MAX_SCORE, MAX_SECONDS
from megatv.types import Caption
from megatv.untrusted import json_lines, parse_json

MAX_BYTES = 256 << 20
"""Of a captions file, all of which is in memory."""

_start_seconds = attrgetter("start_seconds")


@dataclass(frozen=True)
class CaptionedVideo:
    """One line of the file.

    where          `FILE line N`, for messages
    start_seconds  from the video's first picture; caption times count from there
    end_seconds    likewise: where the part of another line begins; None: the video's end
    provenance     `source` as JSON: objects of Python would take many times as much memory
    """

    where: str
    video: str
    start_seconds: float
    meta_caption: str
    captions: tuple[Caption, ...]
    detailed_caption: str
    quality: dict[str, float] = field(default_factory=dict)
    provenance: str = "{}"
    end_seconds: float | None = None

    @property
    def source(self) -> dict[str, Any]:
        """Where the video comes from, in any words."""
        return parse_json(self.provenance)


def read_captions(path: str | Path) -> list[CaptionedVideo]:
    """All lines of a captions file, in its order; blank lines are skipped.

    Raises ValueError with file, line and remedy: malformed JSON, unknown or missing keys, values of another
    kind, times that are negative or out of order, empty texts, the same video and start twice, captions
    within another line's part of the video.
    """
    path = Path(path)
    videos: list[CaptionedVideo] = []
    seen: dict[tuple[str, float], str] = {}
    for where, tree in json_lines(path, MAX_BYTES):
        video = _parse(tree, where)
        key = (video.video, video.start_seconds)
        if key in seen:
            raise ValueError(
                f"{video.where}: {video.video!r} from {video.start_seconds:g} s on was described before "
                f"({seen[key]}); merge the two lines or give another `start`"
            )
        seen[key] = video.where
        videos.append(video)
    if not videos:
        raise ValueError(f"{path}: holds no lines; write one JSON object a line for every video")
    return _parts(videos)


def _parts(videos: list[CaptionedVideo]) -> list[CaptionedVideo]:
    """The same lines, each with the end of its part; ValueError where parts do not suit each other."""
    lines = sorted(range(len(videos)), key=lambda i: (videos[i].video, videos[i].start_seconds))
    parts = list(videos)
    for index, following in pairwise(lines):
        video, after = videos[index], videos[following]
        if video.video != after.video:
            continue
        seconds = after.start_seconds - video.start_seconds
        if seconds < 1 / FPS:
            raise ValueError(
                f"{after.where}: begins {seconds:g} s after the part of {video.where}, less than a frame; "
                "give another `start` or merge the two lines"
            )
        for place, caption in enumerate(video.captions):
            if caption.start_seconds >= seconds:
                raise ValueError(
                    f"{video.where}: captions[{place}] starts at {caption.start_seconds:g} s, where the part "
                    f"of {after.where} has begun ({seconds:g} s); move it to that line or remove it"
                )
        parts[index] = replace(video, end_seconds=after.start_seconds)
    return parts


def check_duration(video: CaptionedVideo, seconds: float) -> None:
    """Refuse captions (and a start) beyond the end of the video, which lasts `seconds`."""
    if video.start_seconds >= seconds:
        raise ValueError(
            f"{video.where}: start {video.start_seconds:g} lies beyond the end of {video.video!r} "
            f"({seconds:.2f} s); start earlier"
        )
    left = seconds - video.start_seconds
    for index, caption in enumerate(video.captions):
        if caption.start_seconds >= left:
            raise ValueError(
                f"{video.where}: captions[{index}] starts at {caption.start_seconds:g} s, beyond the end of "
                f"the video ({left:.2f} s); correct its time or remove it"
            )


def clip_captions(captions: tuple[Caption, ...], start: float, seconds: float) -> tuple[Caption, ...]:
    """The captions of the clip [start, start + seconds), with times from its beginning.

    The caption in force when the clip begins (the latest before it, or all that share its time) is carried to
    time 0, so that no clip begins without knowing what goes on. TV2TV trains on 98-frame crops of longer
    captioned clips (section 4.1) and does not say what becomes of a caption that the crop cuts.

    captions  in order of time: those of a long video are searched, not walked through, for each of its clips
    """
    begun = bisect_right(captions, start, key=_start_seconds)
    in_force = captions[begun - 1].start_seconds if begun else start
    first = bisect_left(captions, in_force, key=_start_seconds)
    end = bisect_left(captions, start + seconds, key=_start_seconds)
    return tuple(Caption(max(0.0, c.start_seconds - start), c.text) for c in captions[first:end])


_KEYS = ("video", "start", "meta_caption", "captions", "detailed_caption", "quality", "source")


def _parse(tree: Any, where: str) -> CaptionedVideo:
    _check_keys(tree, _KEYS, ("video", "meta_caption", "captions"), where)
    if not isinstance(tree["captions"], list):
        raise ValueError(f'{where}: `captions` must be a list of {{"start": seconds, "text": words}}')
    captions: list[Caption] = []
    for index, item in enumerate(tree["captions"]):
        place = f"{where}: captions[{index}]"
        _check_keys(item, ("start", "text"), ("start", "text"), place)
        caption = Caption(_seconds(item["start"], f"{place}.start"), _text(item["text"], f"{place}.text"))
        if captions and caption.start_seconds < captions[-1].start_seconds:
            raise ValueError(
                f"{place} starts at {caption.start_seconds:g} s, before the one above it "
                f"({captions[-1].start_seconds:g} s); put captions in order of time"
            )
        captions.append(caption)
    detailed = tree.get("detailed_caption", "")
    return CaptionedVideo(
        where=where,
        video=_name(tree["video"], f"{where}: video"),
        start_seconds=_seconds(tree.get("start", 0.0), f"{where}: start"),
        meta_caption=_text(tree["meta_caption"], f"{where}: meta_caption"),
        captions=tuple(captions),
        detailed_caption=_text(detailed, f"{where}: detailed_caption") if detailed != "" else "",
        quality=_scores(tree.get("quality", {}), f"{where}: quality"),
        provenance=_provenance(tree.get("source", {}), f"{where}: source"),
    )


def _scores(tree: Any, where: str) -> dict[str, float]:
    if not isinstance(tree, dict):
        raise ValueError(f'{where} must be an object of numbers such as {{"motion": 0.7}}')
    for name, score in tree.items():
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not number or not -MAX_SCORE <= score <= MAX_SCORE:
            raise ValueError(
                f"{where}: {name[:80]!r} must be a number within {MAX_SCORE:g}, got {_short(score)}"
            )
    return {name: float(score) for name, score in tree.items()}


def _provenance(tree: Any, where: str) -> str:
    if not isinstance(tree, dict):
        raise ValueError(f'{where} must be an object such as {{"licence": "CC0"}}')
    taken = [key for key in ("video", "start", "frames") if key in tree]
    if taken:
        raise ValueError(f"{where}: '{taken[0]}' is written by the tool; give it another name")
    return json.dumps(tree)


def _check_keys(tree: Any, known: tuple[str, ...], needed: tuple[str, ...], where: str) -> None:
    if not isinstance(tree, dict):
        raise ValueError(f"{where}: must be an object with the keys {', '.join(needed)}")
    for key in tree:
        if key not in known:
            close = difflib.get_close_matches(key[:80], known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
            raise ValueError(f"{where}: unknown key {key[:80]!r}; {hint}")
    for key in needed:
        if key not in tree:
            raise ValueError(f"{where}: key '{key}' is missing; add it")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} must be text that is not empty, got {_short(value)}")
    return value.strip()


def _name(value: Any, where: str) -> str:
    """The name as it is: a space at its edge belongs to it. Of one file there is one name."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} must be text that is not empty, got {_short(value)}")
    if CONTROL.search(value):
        raise ValueError(f"{where} {_short(value)} has control characters; rename the file")
    plain = PurePosixPath(value).as_posix()
    if plain != value:
        raise ValueError(f"{where} {_short(value)} must be written as {_short(plain)}: a file has one name")
    return value


def _seconds(value: Any, where: str) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= MAX_SECONDS:
        raise ValueError(
            f"{where} must be a number of seconds from 0 to {MAX_SECONDS:g}, got {_short(value)}"
        )
    return float(value)


def _short(value: Any) -> str:
    return json.dumps(value)[:80]
