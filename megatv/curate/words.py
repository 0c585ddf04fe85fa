"""What is asked of a vision-language model about a clip, and what counts as an answer; or a person's words.

The prompts are those of `prompt_files`. Caption times count from the clip's start. TV2TV section 4.1 and
appendix B give the method: a score, one sentence for all, some for what each segment brings that is new.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from megatv.config import FPS
from megatv.curate.answers import LIKE_AN_OBJECT, TAG, quality_score, segment_captions
from megatv.curate.endpoint import Endpoint, Part, quoted
from megatv.curate.manifest import Item
from megatv.curate.prompt_files import Prompts, fill
from megatv.curate.recipe import MAX_WORDS, Recipe
from megatv.data.captions import clip_captions, read_captions
from megatv.data.video import decode_video
from megatv.untrusted import inside

TOPIC = "sports and other physical action"
CHARACTERS_PER_WORD = 12
"""A text with more for each word that was asked for is refused: an English word and its space have about six,
so that is twice what was asked for, and models that repeat themselves go far beyond."""


def score_quality(
    item: Item, videos: Path, cache: Path, recipe: Recipe, prompts: Prompts
) -> tuple[float, dict[str, Any]]:
    """The model's score, 1 to 10, and facts (score, usage). ValueError when it gives none."""
    assert recipe.judge is not None and recipe.quality is not None
    endpoint, shown = Endpoint(recipe.judge, cache, prompts.repair), recipe.quality
    run = (shown.frames - 1) * shown.frame_seconds
    last = item["end"] - shown.frame_seconds - run
    centre = (item["start"] + last) / 2
    times = [
        begin + k * shown.frame_seconds
        for begin in (item["start"], centre, max(last, item["start"]))
        for k in range(shown.frames)
    ]
    pictures = _pictures(item, times, videos, recipe.judge.image_width_pixels)
    score = endpoint.ask([fill(prompts.quality, topic=TOPIC), *pictures], _score, quality_score)
    return score, {"quality_score": score, **asdict(endpoint.usage)}


def model_words(
    item: Item, videos: Path, cache: Path, recipe: Recipe, prompts: Prompts
) -> tuple[Item, dict[str, Any]]:
    """meta_caption, detailed_caption and captions of a clip with `segments`, and the usage."""
    assert recipe.endpoint is not None
    endpoint, asked, segments = (
        Endpoint(recipe.endpoint, cache, prompts.repair),
        recipe.captions,
        item["segments"],
    )
    width = recipe.endpoint.image_width_pixels

    def frames(start: float, end: float, count: int) -> list[Part]:
        return _pictures(item, _spread(start, end, count), videos, width)

    clip = (item["start"], item["end"])
    meta = endpoint.ask(
        [fill(prompts.meta, words=asked.meta_words), *frames(*clip, asked.frames_per_clip)],
        lambda answer: _caption(answer, asked.meta_words),
    )
    parts: list[Part] = [fill(prompts.segments, count=len(segments), words=asked.segment_words)]
    for number, (start, end) in enumerate(segments, 1):
        parts.append(f"Segment {number}, {start - item['start']:.2f} s to {end - item['start']:.2f} s:")
        parts += frames(start, end, asked.frames_per_segment)
    texts = endpoint.ask(
        parts, lambda answer: _texts(answer, len(segments), asked.segment_words), segment_captions
    )
    detailed = ""
    if asked.detailed:
        prompt = fill(prompts.detailed, meta=quoted(meta), words=asked.detailed_words)
        detailed = endpoint.ask(
            [prompt, *frames(*clip, asked.detailed_frames)],
            lambda answer: _caption(answer, asked.detailed_words),
        )
    captions = [
        {"start": start - item["start"], "text": text}
        for (start, _), text in zip(segments, texts, strict=True)
        if text
    ]
    words = {"meta_caption": meta, "detailed_caption": detailed, "captions": captions}
    return words, asdict(endpoint.usage)


def human_words(item: Item, file: str) -> Item:
    """The same three from a captions file; ValueError when it says nothing of the clip's start.

    A clip may span parts of a video, each a line of the file: it then has the captions of each, and their
    meta-captions, and detailed ones, one after another. A part of which it has no frame says nothing.
    """
    start, end = item["start"], item["end"]
    lines = [line for line in read_captions(file) if line.video == item["video"]]
    begun = [line for line in lines if line.start_seconds <= start]
    if not begun:
        raise ValueError(f"{file}: has no line for '{item['video']}' at {start:.2f} s; write one")
    later = [line for line in lines if start < line.start_seconds <= end - 1 / FPS]
    by_start = attrgetter("start_seconds")
    parts = [max(begun, key=by_start), *sorted(later, key=by_start)]
    captions = []
    for part in parts:
        first = max(start, part.start_seconds)  # of the clip in this part
        for caption in clip_captions(part.captions, first - part.start_seconds, end - first):
            captions.append({"start": first - start + caption.start_seconds, "text": caption.text})
    return {
        "meta_caption": " ".join(part.meta_caption for part in parts),
        "detailed_caption": " ".join(part.detailed_caption for part in parts if part.detailed_caption),
        "captions": captions,
    }


def _spread(start: float, end: float, count: int) -> list[float]:
    """Times in the middles of `count` equal parts."""
    return [start + (end - start) * (k + 0.5) / count for k in range(count)]


def _pictures(item: Item, times: list[float], videos: Path, width: int) -> list[Part]:
    """Each frame, `width` pixels wide, after its time in the clip in words."""
    parts: list[Part] = []
    for time in times:
        parts += [f"{time - item['start']:.2f} s:", picture(item, time, videos, width)]
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


def _caption(answer: Any, words: int = MAX_WORDS) -> str:
    text = _line(_only(answer, "caption"), "caption", words)
    if not text:
        raise ValueError("caption must be text that is not empty")
    return text


def _texts(answer: Any, count: int, words: int = MAX_WORDS) -> list[str]:
    texts = _only(answer, "captions")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("captions must be a list of texts")
    if len(texts) != count:
        raise ValueError(f"captions has {len(texts)} texts, it needs exactly {count}")
    texts = [_line(text, f"captions[{index}]", words) for index, text in enumerate(texts)]
    if not any(texts):
        raise ValueError("captions are all empty; at least one must say what is seen")
    return texts


def _line(text: Any, name: str, words: int) -> str:
    """Text on one line, which may be empty; ValueError for what is no description of at most `words` words.

    That is: one far too long, control characters, U+FFFD (a character that the server broke), marks such as
    <|eot_id|>, JSON within the text or the end of it, a code fence, a label such as "Segment 1:", text
    without a letter or digit, and the example of a prompt said back: "your sentence".
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} must be text")
    text = " ".join(text.split())
    if len(text) > words * CHARACTERS_PER_WORD:
        raise ValueError(f"{name} has {len(text)} characters and must have at most {words} words")
    if bad := next((c for c in text if c == "\ufffd" or unicodedata.category(c) == "Cc"), None):
        raise ValueError(f"{name} has the character U+{ord(bad):04X} in it, which is no text")
    if mark := TAG.search(text) or LIKE_AN_OBJECT.search(text) or _NO_WORDS.search(text):
        raise ValueError(f"{name} has {mark[0][:40]!r} in it; it must be plain words")
    if text.count("{") != text.count("}"):
        raise ValueError(f"{name} has a brace without its other half in it; it must be plain words")
    if text and (not any(map(str.isalnum, text)) or _EXAMPLE.fullmatch(text)):
        raise ValueError(f"{name} is {text[:40]!r}, not a description")
    return text


_NO_WORDS = re.compile(r"```|^\W*(?:description of )?(?:segment|caption) [0-9]+\W*:", re.I)
_EXAMPLE = re.compile(
    r"\W*your (?:\w+ )?(?:sentences?|paragraph|description|caption|text)(?: here)?\W*", re.I
)
"""What stands in a prompt in the place of an answer."""


def _only(answer: Any, key: str) -> Any:
    if not isinstance(answer, dict) or set(answer) != {key}:
        keys = sorted(answer) if isinstance(answer, dict) else type(answer).__name__
        raise ValueError(f"it must have exactly the key '{key}', not {keys}")
    return answer[key]
