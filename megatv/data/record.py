"""One example as it lies in a shard: the bytes of a row, compared with their hash, then read and checked.

Every value of a row may come from a stranger, with a hash that fits. So each has its type and its range, and
`meta` holds exactly the keys that are written here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from megatv.data.format import DatasetInfo
from megatv.types import Caption, Example
from megatv.untrusted import MAX_LEVELS, is_deeper, parse_json

MAX_SECONDS = 24 * 3600.0
"""Latest time of a caption."""
MAX_SCORE = 1e9
"""Most of a quality score, either sign."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
"""Characters that no id has."""
"""Characters that no id has."""


@dataclass(frozen=True)
class Record:
    """One example as it lies in the shards; content: raw float16 latents [N, C, h, w], or a clip's bytes.

    frames: of a clip that examples are cropped from, else None. The words are then those of the whole clip,
    and `valid_latents` those of its longest crop.
    """

    id: str
    content: np.ndarray | bytes
    captions: tuple[Caption, ...]
    meta_caption: str
    detailed_caption: str
    valid_latents: int
    ends_clip: bool
    source: dict[str, Any]
    quality: dict[str, float]
    frames: int | None = None

    def to_sample(self, info: DatasetInfo) -> dict[str, Any]:
        """The row of an MDS shard, with its hash. Raises ValueError where `of_row` would not read it."""
        meta = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[2:]}
        if self.frames is None:
            del meta["frames"]
        meta["captions"] = [[caption.start_seconds, caption.text] for caption in self.captions]
        text = json.dumps(meta)
        content = self.content if isinstance(self.content, bytes) else self.content.tobytes()
        row = {info.column: content, "id": self.id.encode(), "meta": text.encode()}
        row["hash"] = _hash(row, info).encode()
        for column in info.columns:
            if not column.least <= len(row[column.name]) <= column.most:
                raise ValueError(
                    f"sample '{self.id}': its {column.name} has {len(row[column.name])} bytes, and shards "
                    f"hold {column.least} to {column.most}; shorten it"
                )
        Record.of_row(row, info)
        return {info.column: self.content, "id": self.id, "meta": text, "hash": row["hash"].decode()}

    @staticmethod
    def of_row(row: dict[str, bytes], info: DatasetInfo) -> Record:
        """What `to_sample` made, from the columns' bytes; rows of version 1, without quality scores, too.

        Raises ValueError when the hash is not that of the other columns, and for any value that is not what
        `megatv.data.format` says.
        """
        if row["hash"] != _hash(row, info).encode():
            raise ValueError("its hash differs from the one written")
        id = row["id"].decode()
        if CONTROL.search(id):
            raise ValueError(f"its id {id[:80]!r} has control characters")
        try:
            meta = _read_meta(row["meta"].decode(), info)
        except ValueError as error:
            raise ValueError(f"sample '{id}': its meta: {error}") from None
        content: np.ndarray | bytes = row[info.column]
        if info.stores == "latents":
            content = np.frombuffer(content, "<f2").reshape(info.latent_shape)
        return Record(id, content, **meta)

    def example(self, latents: np.ndarray) -> Example:
        """The record's words with `latents`, normalised float32 [N, C, h, w], or empty."""
        return Example(
            id=self.id,
            latents=latents,
            captions=self.captions,
            meta_caption=self.meta_caption,
            detailed_caption=self.detailed_caption,
            valid_latents=self.valid_latents,
            ends_clip=self.ends_clip,
        )


META = {field.name for field in dataclasses.fields(Record)[2:]}
"""Keys of `meta`."""


def _hash(row: dict[str, bytes], info: DatasetInfo) -> str:
    """xxh64 of a row's picture, id and meta, in hexadecimal."""
    digest = xxhash.xxh64(row[info.column])
    digest.update(row["id"] + b"\0" + row["meta"])
    return digest.hexdigest()


def _read_meta(text: str, info: DatasetInfo) -> dict[str, Any]:
    """The fields of a `Record` that its `meta` holds. Raises ValueError with the key."""
    tree, latents = parse_json(text), info.latent_shape[0]
    expected = META if info.longest_clip else META - {"frames"}
    if not isinstance(tree, dict) or {"quality", *tree} != expected:
        raise ValueError(f"must hold exactly {', '.join(sorted(expected))}")
    meta = {"quality": {}, **tree}
    for key in ("meta_caption", "detailed_caption"):
        if not isinstance(meta[key], str):
            raise ValueError(f"`{key}` must be text")
    if type(meta["valid_latents"]) is not int or not 1 <= meta["valid_latents"] <= latents:
        raise ValueError(f"`valid_latents` must be a whole number from 1 to {latents}")
    if info.longest_clip and not (type(meta["frames"]) is int and 1 <= meta["frames"] <= info.longest_clip):
        raise ValueError(f"`frames` must be a whole number from 1 to {info.longest_clip}")
    if type(meta["ends_clip"]) is not bool:
        raise ValueError("`ends_clip` must be true or false")
    if not isinstance(meta["source"], dict) or is_deeper(meta["source"], MAX_LEVELS):
        raise ValueError(f"`source` must be an object of at most {MAX_LEVELS} levels")
    quality = meta["quality"]
    if not isinstance(quality, dict) or not all(
        type(score) in (int, float) and -MAX_SCORE <= score <= MAX_SCORE for score in quality.values()
    ):
        raise ValueError(f"`quality` must be an object of numbers within {MAX_SCORE:g}")
    captions = _captions(meta["captions"])
    if "\\u" in text:  # only so can JSON name halves of characters, which nothing can write
        try:
            json.dumps(tree, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it has text with half of a character (a lone surrogate)") from None
    return {**meta, "captions": captions}


def _captions(tree: Any) -> tuple[Caption, ...]:
    captions: list[Caption] = []
    after = 0.0
    try:
        if not isinstance(tree, list):
            raise ValueError
        for seconds, text in tree:
            if (
                type(seconds) not in (int, float)
                or not after <= seconds <= MAX_SECONDS
                or type(text) is not str
            ):
                raise ValueError
            captions.append(Caption(seconds, text))
            after = seconds
    except (TypeError, ValueError):
        raise ValueError(
            f"`captions` must be a list of [seconds, text] in order of time, up to {MAX_SECONDS:g} s (the "
            f"fault is at {len(captions)})"
        ) from None
    return tuple(captions)
