"""What is asked of a vision-language model about a clip, and what counts as an answer; or a person's words.

The prompts are the files in `prompts/`. Caption times count from the clip's start. TV2TV section 4.1 and
appendix B give the method: a score, one sentence for all, one for what each segment brings that is new.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

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
    texts = endpoint.ask(parts, lambda answer: _texts(answer, len(segments)))
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
    text = _only(answer, "caption")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("caption must be text that is not empty")
    return " ".join(text.split())


def _texts(answer: Any, count: int) -> list[str]:
    texts = _only(answer, "captions")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("captions must be a list of texts")
    if len(texts) != count:
        raise ValueError(f"captions has {len(texts)} texts, it needs exactly {count}")
    return [" ".join(text.split()) for text in texts]


def _only(answer: Any, key: str) -> Any:
    if not isinstance(answer, dict) or set(answer) != {key}:
        keys = sorted(answer) if isinstance(answer, dict) else type(answer).__name__
        raise ValueError(f"it must have exactly the key '{key}', not {keys}")
    return answer[key]
