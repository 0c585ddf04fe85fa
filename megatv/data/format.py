"""The example format: what one example holds on disk, whatever road it came by.

A row of an MDS shard is one example, a clip of video.groups x 49 frames at 16 fps, in four columns:

    id       unique in the directory
    latents  raw, float16 [N, C, h, w] (`stores: latents`: the codec ran once, when the shards were made)
    clip     or the bytes of a video file: exactly groups x 49 frames, H.264 in mp4, of the size that
             dataset.json says (`stores: clips`: decoded and coded when read, by `Shards`)
    meta     JSON, see below
    hash     xxh64 of the other columns, so that no damaged example is ever trained on

    {"captions": [[seconds, "text"], ...],   in order of time, seconds from the clip's first frame
     "meta_caption": "...",                  the whole clip in a sentence; opens the sequence
     "detailed_caption": "...",              one long prompt for Think2V, or ""
     "valid_latents": 26,                    latents of real frames; the rest repeats the last frame
     "ends_clip": true,                      the source ends with the last valid latent
     "source": {"video": "match.mp4", ...},  provenance: where the clip came from
     "quality": {"motion": 0.7, ...}}        scores by name, higher is better; {} when none were given

`source` is free but for `video`: the file or episode that the clip was cut from, all clips of which must
stay on one side of a split. dataset.json (`DatasetInfo`) says the same about all examples at once.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from megatv.config import FPS, GROUP_FRAMES, GROUP_LATENTS, LATENT_CHANNELS, SPATIAL_FACTOR, CodecConfig
from megatv.types import Caption, Example

VERSION = 2
STORES = ("latents", "clips")
COLUMN = {"latents": "latents", "clips": "clip"}
"""Name of the column that holds an example's picture, by what the directory stores."""
ADDED = {"stores": "latents", "codec_fingerprint": None, "stats_fingerprint": None}
"""What version 2 added to dataset.json, and what these mean for shards of version 1."""
REMEDY = "copy the directory again or make the shards anew (tools/shards.py verify DIR checks them all)"
WEIGHTS = (".jit", ".safetensors", ".pt", ".bin", ".json")
"""Files of a codec's folder that decide what it computes."""


@dataclass(frozen=True)
class DatasetInfo:
    """What the examples were made of: frame size in pixels, 49-frame groups, codec section, rate.

    codec              of the stored latents, or for clips of the latent statistics
    stores             `latents` or `clips`
    codec_fingerprint  of the codec's weights (see the function); None for a codec without any, or unknown
    stats_fingerprint  of latent_stats.json's numbers, set when they are written; None in older shards
    """

    width: int
    height: int
    groups: int
    codec: dict[str, Any]
    fps: int = FPS
    version: int = VERSION
    stores: Literal["latents", "clips"] = "latents"
    codec_fingerprint: str | None = None
    stats_fingerprint: str | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(N, C, h, w) of every example."""
        height, width = self.height // SPATIAL_FACTOR, self.width // SPATIAL_FACTOR
        return self.groups * GROUP_LATENTS, LATENT_CHANNELS, height, width

    @property
    def frames(self) -> int:
        """Frames of every example, padding included."""
        return self.groups * GROUP_FRAMES

    @property
    def column(self) -> str:
        """The column that holds an example's picture."""
        return COLUMN[self.stores]

    @staticmethod
    def load(path: Path) -> DatasetInfo:
        """Read dataset.json, version 1 too; ValueError when it is missing, damaged or of a later version."""
        tree = read_json(path)
        version = tree.get("version") if isinstance(tree, dict) else None
        if isinstance(version, int) and version > VERSION:
            raise ValueError(
                f"{path}: is of version {version} and this program reads up to version {VERSION}; update "
                "megatv or make the shards again"
            )
        if version == 1:
            tree = {**ADDED, **tree}
        names = [f.name for f in dataclasses.fields(DatasetInfo)]
        if not isinstance(tree, dict) or sorted(tree) != sorted(names) or tree["stores"] not in STORES:
            raise ValueError(f"{path}: must hold exactly {', '.join(names)}; make the shards again")
        return DatasetInfo(**tree)

    def save(self, path: Path) -> None:
        """Write dataset.json, in the present version."""
        tree = {**dataclasses.asdict(self), "version": VERSION}
        path.write_text(json.dumps(tree, indent=2) + "\n")


@dataclass(frozen=True)
class Record:
    """One example as it lies in the shards; content: raw float16 latents [N, C, h, w], or a clip's bytes."""

    id: str
    content: np.ndarray | bytes
    captions: tuple[Caption, ...]
    meta_caption: str
    detailed_caption: str
    valid_latents: int
    ends_clip: bool
    source: dict[str, Any]
    quality: dict[str, float]

    def to_sample(self, column: str) -> dict[str, Any]:
        """The row of an MDS shard, with its hash."""
        meta = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[2:]}
        meta["captions"] = [[caption.start_seconds, caption.text] for caption in self.captions]
        sample = {"id": self.id, column: self.content, "meta": json.dumps(meta)}
        return {**sample, "hash": sample_hash(sample, column)}

    @staticmethod
    def of_sample(sample: dict[str, Any], column: str) -> Record:
        """What `to_sample` made; rows of version 1, which had no quality scores, too."""
        meta = {"quality": {}, **json.loads(sample["meta"])}
        meta["captions"] = tuple(Caption(start, text) for start, text in meta["captions"])
        return Record(sample["id"], sample[column], **meta)

    def example(self, latents: np.ndarray) -> Example:
        """The record's words with `latents`, normalised float32 [N, C, h, w]; empty where words will do."""
        return Example(
            id=self.id,
            latents=latents,
            captions=self.captions,
            meta_caption=self.meta_caption,
            detailed_caption=self.detailed_caption,
            valid_latents=self.valid_latents,
            ends_clip=self.ends_clip,
        )


def sample_hash(sample: dict[str, Any], column: str) -> str:
    """xxh64 of a row's picture, id and meta, in hexadecimal."""
    content = sample[column]
    digest = xxhash.xxh64(content if isinstance(content, bytes) else content.tobytes())
    digest.update(sample["id"].encode() + b"\0" + sample["meta"].encode())
    return digest.hexdigest()


def codec_fingerprint(codec: CodecConfig) -> str | None:
    """xxh64 of the weights at `codec.path`, names and bytes of its files; None where there are none to read.

    Not of the path: the same weights elsewhere are the same codec, others in the same place are not.
    """
    path = Path(codec.path) if codec.path is not None and codec.kind != "dct" else None
    if path is None or not path.exists():
        return None
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in WEIGHTS)
    digest = xxhash.xxh64()
    for file in files:
        digest.update(b"" if file == path else file.name.encode() + b"\0")
        hash_file(file, digest)
    return digest.hexdigest()


def check_codec(info: DatasetInfo, codec: CodecConfig, where: Path) -> None:
    """Refuse a codec whose weights are not those that the shards (or their statistics) were made with.

    Raises ValueError. Weights that are not on this machine cannot be compared, nor can shards of version 1.
    """
    found = codec_fingerprint(codec)
    if found is None or info.codec_fingerprint in (None, found):
        return
    what, remedy = {
        "latents": ("latents", "make the shards again (tools/make_shards.py)"),
        "clips": ("latent statistics", "compute them anew (tools/shards.py stats DIR --recompute)"),
    }[info.stores]
    raise ValueError(
        f"{where}: its {what} were made with other weights than those in {codec.path} (fingerprint "
        f"{info.codec_fingerprint}, here {found}): put the old weights back, or {remedy}"
    )


def hash_file(file: Path, digest: xxhash.xxh64) -> None:
    """Feed a file's bytes to `digest`, a few MiB at a time."""
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)


def file_digest(file: Path) -> str:
    """xxh64 of a file's bytes, in hexadecimal."""
    digest = xxhash.xxh64()
    hash_file(file, digest)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Plain data of a JSON file of a shard directory; ValueError with file and remedy."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); {REMEDY}") from None
