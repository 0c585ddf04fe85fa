"""What is asked of a vision-language model about a clip, and what counts as an answer; or a person's words.

The prompts are the files in `prompts/`. Caption times count from the clip's start. TV2TV section 4.1 and
appendix B give the method: a score, one sentence for all, one for what each segment brings that is new.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from megatv.curate.answers import TAG, segment_captions
from megatv.curate.endpoint import PROMPTS, Endpoint, Part, quoted
from megatv.curate.manifest import Item
from megatv.curate.recipe import Recipe
from megatv.data.captions import clip_captions, read_captions
from megatv.data.video import decode_video
from megatv.untrusted import inside

TOPIC = "sports and other physical action"


def score_quality(item: Item, videos: Path, cache: Path, recipe: Recipe) -> tuple[float, dict[str, Any]]:
    """The model's score, 1 to 10, and facts (score, usage). ValueError when it gives none."""
    assert recipe.endpoint is not None and recipe.quality is not None
    endpoint, shown = Endpoint(recipe.endpoint, cache), recipe.quality
    run = (shown.frames - 1) * shown.frame_seconds
    last = item["end"] - shown.frame_seconds - run
    centre = (item["start"] + last) / 2
    times = [
        begin + k * shown.frame_seconds
        for begin in (item["start"], centre, max(last, item["start"]))
        for k in range(shown.frames)
    ]
    parts = [_prompt("quality", topic=TOPIC), *_pictures(item, times, videos, recipe)]
    score = endpoint.ask(parts, _score)
    return score, {"quality_score": score, **asdict(endpoint.usage)}


def model_words(item: Item, videos: Path, cache: Path, recipe: Recipe) -> tuple[Item, dict[str, Any]]:
    """meta_caption, detailed_caption and captions of a clip with `segments`, and the usage."""
    assert recipe.endpoint is not None
    endpoint, segments = Endpoint(recipe.endpoint, cache), item["segments"]
    overview = _pictures(
        item, _spread(item["start"], item["end"], recipe.captions.frames_per_clip), videos, recipe
    )
    meta = endpoint.ask([_prompt("meta"), *overview], _caption)
    parts: list[Part] = [_prompt("segments", count=len(segments))]
    for number, (start, end) in enumerate(segments, 1):
        from_start, to = start - item["start"], end - item["start"]
        parts.append(f"Piece {number}, {from_start:.2f} s to {to:.2f} s:")
        parts += _pictures(item, _spread(start, end, recipe.captions.frames_per_segment), videos, recipe)
    texts = endpoint.ask(parts, lambda answer: _texts(answer, len(segments)), segment_captions)
    detailed = ""
    if recipe.captions.detailed:
        detailed = endpoint.ask([_prompt("detailed", meta=quoted(meta)), *overview], _caption)
    captions = [
        {"start": start - item["start"], "text": text}
        for (start, _), text in zip(segments, texts, strict=True)
        if text
    ]
    words = {"meta_caption": meta, "detailed_caption": detailed, "captions": captions}
    return words, asdict(endpoint.usage)


def human_words(item: Item, file: str) -> Item:
    """The same three from a captions file; ValueError when it says nothing of the clip's time."""
    lines = [v for v in read_captions(file) if v.video == item["video"] and v.start_seconds <= item["start"]]
    if not lines:
        raise ValueError(f"{file}: has no line for '{item['video']}' at {item['start']:.2f} s; write one")
    line = max(lines, key=lambda v: v.start_seconds)
    captions = clip_captions(line.captions, item["start"] - line.start_seconds, item["end"] - item["start"])
    return {
        "meta_caption": line.meta_caption,
        "detailed_caption": line.detailed_caption,
        "captions": [{"start": c.start_seconds, "text": c.text} for c in captions],
    }


def _prompt(name: str, **values: object) -> str:
    return Template((PROMPTS / f"{name}.txt").read_text(encoding="utf-8")).substitute(values)


def _spread(start: float, end: float, count: int) -> list[float]:
    """Times in the middles of `count` equal parts."""
    return [start + (end - start) * (k + 0.5) / count for k in range(count)]


def _pictures(item: Item, times: list[float], videos: Path, recipe: Recipe) -> list[Part]:
    """Each frame after its time in the clip, in words."""
    assert recipe.endpoint is not None
    parts: list[Part] = []
    for time in times:
        parts += [
            f"{time - item['start']:.2f} s:",
            picture(item, time, videos, recipe.endpoint.image_width_pixels),
        ]
    return parts


def picture(item: Item, time: float, videos: Path, width: int) -> np.ndarray:
    """uint8 [H, width, 3]: what is on screen at `time` of the item's video, at its aspect ratio."""
    info = item["info"]
    height = max(1, round(width * info["height"] / info["width"]))
    file = inside(videos, item["video"])
    return decode_video(file, width=width, height=height, start_seconds=time, frames=1)[0]


def _score(answer: Any) -> float:
    score = _only(answer, "quality_score")
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not 1 <= score <= 10:
        raise ValueError(f"quality_score must be a number from 1 to 10, not {score!r}")
    return float(score)


def _caption(answer: Any) -> str:
    text = _line(_only(answer, "caption"), "caption")
    if not text:
        raise ValueError("caption must be text that is not empty")
    return text


def _texts(answer: Any, count: int) -> list[str]:
    texts = _only(answer, "captions")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("captions must be a list of texts")
    if len(texts) != count:
        raise ValueError(f"captions has {len(texts)} texts, it needs exactly {count}")
    texts = [_line(text, f"captions[{index}]") for index, text in enumerate(texts)]
    if not any(texts):
        raise ValueError("captions are all empty; at least one must say what is seen")
    return texts


def _line(text: Any, name: str) -> str:
    """Words on one line, which may be empty; ValueError for what is no description of a picture.

    That is: control characters, U+FFFD (a character that the server broke), marks such as <|eot_id|>, text
    without a letter or digit, and the example of a prompt said back, such as "your sentence".
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} must be text")
    text = " ".join(text.split())
    if bad := next((c for c in text if c == "\ufffd" or unicodedata.category(c) == "Cc"), None):
        raise ValueError(f"{name} has the character U+{ord(bad):04X} in it, which is no text")
    if mark := TAG.search(text):
        raise ValueError(f"{name} has {mark[0][:40]!r} in it; it must be plain words")
    if text and (not any(map(str.isalnum, text)) or _EXAMPLE.fullmatch(text)):
        raise ValueError(f"{name} is {text[:40]!r}, not a description")
    return text


_EXAMPLE = re.compile(
    r"\W*your (?:\w+ )?(?:sentences?|paragraph|description|caption|text)(?: here)?\W*", re.I
)
"""What stands in a prompt in the place of an answer."""


def _only(answer: Any, key: str) -> Any:
    if not isinstance(answer, dict) or set(answer) != {key}:
        keys = sorted(answer) if isinstance(answer, dict) else type(answer).__name__
        raise ValueError(f"it must have exactly the key '{key}', not {keys}")
    return answer[key]
