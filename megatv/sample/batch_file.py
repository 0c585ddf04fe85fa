"""A batch file: the videos that are asked for, a JSON line each, checked one by one."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, get_args

from megatv.sample.inputs import Asked
from megatv.sample.request import Intervention, Mode, Speaker
from megatv.schema import short
from megatv.untrusted import MAX_FAULTS, json_lines, plain_name

MAX_NAME_BYTES = 200
"""Of a video's name, to which `outputs` adds some for a moment."""
MAX_BATCH_BYTES = 64 << 20
"""Of the file, all of which is in memory."""
KINDS: dict[str, tuple[type, ...]] = {"example": (int,), "seed": (int,), "seconds": (int, float)}
KNOWN = {field.name for field in dataclasses.fields(Asked)}


def read_batch(path: str) -> tuple[dict[str, Asked], list[str]]:
    """Videos by name of a JSONL file, a line each: {"name": "a", "prompt": "...", ...}, see `Asked`.

    "interventions" and "video_words" are lists of [seconds, text]. A line that cannot be used costs the
    others nothing: beside the videos a sentence is returned for each, with file and line. A line without a
    seed has `seed_of` its name. Raises ValueError for a file that cannot be read or asks for nothing, and
    when more than MAX_FAULTS lines cannot be used.
    """
    found: dict[str, Asked] = {}
    faults: list[str] = []
    for where, tree in json_lines(Path(path), MAX_BATCH_BYTES, faults):
        try:
            name, asked = _line(tree)
            if name in found:
                raise ValueError(f"the name '{name}' is another line's already")
            found[name] = asked
        except ValueError as error:
            faults.append(f"{where}: {error}")
        if len(faults) > MAX_FAULTS:
            raise ValueError(f"{faults[0]}; and {MAX_FAULTS} more lines cannot be used")
    if not found:
        raise ValueError(faults[0] if faults else f"{path}: asks for no video")
    return found, faults


def seed_of(name: str) -> int:
    """A seed below 2^31 that follows from a video's name alone.

    With one seed for all, videos of different prompts would start from the same noise and draw their words
    alike.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 1


def _line(tree: Any) -> tuple[str, Asked]:
    if not isinstance(tree, dict) or not isinstance(tree.get("name"), str):
        raise ValueError('write an object with a "name", which becomes the name of its folder')
    name = tree.pop("name")
    if not _names_folder(name):
        raise ValueError(
            f"the name {repr(name)[:80]} cannot be that of a folder; give at most {MAX_NAME_BYTES} bytes of "
            "UTF-8 without slashes, that do not begin with a dot"
        )
    if unknown := sorted(set(tree) - KNOWN):
        raise ValueError(f"'{unknown[0][:80]}' is unknown: use {', '.join(sorted(KNOWN))}")
    timed = [key for key in ("interventions", "video_words") if key in tree]
    spoken: dict[str, Any] = {key: _pairs(tree.pop(key), key) for key in timed}
    for key, value in tree.items():
        if isinstance(value, bool) or not isinstance(value, KINDS.get(key, (str,))):
            raise ValueError(f"{key} is {short(value)}: write {KINDS.get(key, (str,))[-1].__name__}")
        if isinstance(value, (int, float)) and not abs(value) < 2**63:  # or no number at all
            raise ValueError(f"{key} is {short(value)}: it must be below 2^63")
    for key, choices in (("mode", get_args(Mode)), ("start_words", get_args(Speaker))):
        if tree.get(key, choices[0]) not in choices:
            words = f"{', '.join(choices[:-1])} or {choices[-1]}"
            raise ValueError(f"{key} '{tree[key]}' is unknown: use {words}")
    asked = Asked(**{"seed": seed_of(name), **tree, **spoken})
    asked.check()
    return name, asked


def _pairs(listed: Any, key: str) -> tuple[Intervention, ...]:
    """Timed words: nothing but lists of a number and a text, so that no null becomes the word "None"."""
    pairs = []
    for pair in listed if isinstance(listed, list) else [listed]:
        is_pair = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], str)
        if not is_pair or type(pair[0]) not in (int, float) or not abs(pair[0]) < 2**63:
            raise ValueError(f"{key} are a list of [seconds, text], got {short(pair)}")
        pairs.append(Intervention(float(pair[0]), pair[1]))
    return tuple(pairs)


def _names_folder(name: str) -> bool:
    """Whether a folder may have this name, and the longer one that it has until it is whole."""
    try:
        return not plain_name(name).startswith(".") and len(name.encode()) <= MAX_NAME_BYTES
    except ValueError:
        return False
