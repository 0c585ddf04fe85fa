"""The example format: what one example holds on disk, whatever road it came by.

A row of an MDS shard is one example, a clip of video.groups x 49 frames at 16 fps, in four columns:

    id       unique in the directory
    latents  raw, float16 [N, C, h, w] (`stores: latents`: the codec ran once, when the shards were made)
    clip     or the bytes of a video file: exactly groups x 49 frames, H.264 in mp4, of the size that
             dataset.json says (`stores: clips`: decoded and coded when read, by `Shards`). Where dataset.json
             has a `longest_clip`, all frames of a clip, 1 to so many: an example is cropped from it when read
    meta     JSON, see below
    hash     xxh64 of the other columns, so that no damaged example is ever trained on

    {"captions": [[seconds, "text"], ...],   in order of time, seconds from the clip's first frame
     "meta_caption": "...",                  the whole clip in a sentence; opens the sequence
     "detailed_caption": "...",              one long prompt for Think2V, or ""
     "valid_latents": 26,                    latents of real frames; the rest repeats the last frame
     "ends_clip": true,                      the source ends with the last valid latent, or with the clip
     "frames": 131,                          of the stored clip, only where examples are cropped from it
     "source": {"video": "match.mp4", ...},  provenance: where the clip came from
     "quality": {"motion": 0.7, ...}}        scores by name, higher is better; {} when none were given

`source` is free but for `video`: the file or episode that the clip was cut from, all clips of which must
stay on one side of a split. dataset.json (`DatasetInfo`) says the same about all examples at once, and which
columns the shards may have: no others are read, in no other encoding (`megatv.data.record` checks the rows).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import xxhash

from megatv.config import FPS, GROUP_FRAMES, GROUP_LATENTS, LATENT_CHANNELS, SPATIAL_FACTOR, CodecConfig
from megatv.data.files import REMEDY, hash_file, read_json
from megatv.data.mds import Column
from megatv.regular_file import open_regular
from megatv.schema import build

VERSION = 3
STORES = ("latents", "clips")
MAX_CROPS = 1000
"""Stored crops of one clip; a clip of 16 s has 159 different ones of 98 frames."""
Rule = Literal["none", "starts", "frames"]
"""Of `data.crop`; see `megatv.data.crop`."""
COLUMN = {"latents": "latents", "clips": "clip"}
"""Name of the column that holds an example's picture, by what the directory stores."""
ADDED: dict[int, dict[str, Any]] = {
    2: {"stores": "latents", "codec_fingerprint": None, "stats_fingerprint": None},
    3: {"longest_clip": None, "crops": None},
}
"""What each version added to dataset.json, and what these mean for shards of versions before it."""
MAX_VIDEO_BYTES = 1 << 31
"""Most of an example's frames, three bytes a pixel: as many as `megatv.data.video` decodes in one call."""
MAX_ID_BYTES, MAX_META_BYTES = 1 << 12, 1 << 22
WEIGHTS = (".jit", ".safetensors", ".pt", ".bin", ".json")
"""Files of a codec's folder that decide what it computes."""
MAX_WEIGHTS_BYTES = 8 << 30
"""Of one of these files, which is read whole to be hashed: as much as `megatv.weights` reads."""


def stores_whole_clips(rule: Rule, stores: str, crops: int | None) -> bool:
    """Whether shards for `data.crop` hold whole clips, not examples; `stores` as `DatasetInfo` says it.

    crops: how many of each clip are stored. Raises ValueError unless the three agree.
    """
    if crops is not None and (rule == "none" or stores == "clips"):
        raise ValueError(
            f"{crops} stored crops of a clip are for latents of videos, with data.crop starts or frames: "
            "leave --crops out, or set these"
        )
    if rule != "none" and stores == "latents" and crops is None:
        raise ValueError(
            f"data.crop {rule} needs clips that can be cropped: keep them whole (--store clips), or say how "
            "many crops of each are stored as latents (--crops K)"
        )
    return rule != "none" and stores == "clips"


@dataclass(frozen=True)
class DatasetInfo:
    """What the examples were made of: frame size in pixels, 49-frame groups, codec section, rate.

    codec              of the stored latents, or for clips of the latent statistics
    stores             `latents` or `clips`
    codec_fingerprint  of the codec's weights (see the function); None for a codec without any, or unknown
    stats_fingerprint  of latent_stats.json's numbers, set when they are written; None in older shards
    longest_clip       the most frames of a stored clip, where an example is cropped from it when it is read;
                       None: an example is what is stored
    crops              stored crops of every clip, at random (`megatv.data.crop`); None: pieces in a row
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
    longest_clip: int | None = None
    crops: int | None = None

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

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of a row, in order of their names. A clip takes no more bytes than its bare frames."""
        if self.stores == "latents":
            shape = ",".join(map(str, self.latent_shape))
            size = 2 * math.prod(self.latent_shape)
            picture = Column(self.column, f"ndarray:float16:{shape}", size, size, fixed=True)
        else:
            frames = self.longest_clip or self.frames
            picture = Column(self.column, "bytes", 1, frames * self.width * self.height * 3 + (1 << 20))
        words = [
            Column("hash", "str", 16, 16),
            Column("id", "str", 1, MAX_ID_BYTES),
            Column("meta", "str", 2, MAX_META_BYTES),
        ]
        return tuple(sorted([picture, *words], key=lambda column: column.name))

    @staticmethod
    def load(path: Path) -> DatasetInfo:
        """Read dataset.json, of older versions too.

        Raises ValueError when it is missing, damaged or of a later version.
        """
        tree = read_json(path)
        version = tree.get("version") if isinstance(tree, dict) else None
        if type(version) is int and VERSION < version < 1000:
            raise ValueError(
                f"{path}: is of version {version} and this program reads up to version {VERSION}; update "
                "megatv or make the shards again"
            )
        if type(version) is int:
            for later in (fields for number, fields in ADDED.items() if number > version):
                tree = {**later, **tree}
        names = [f.name for f in dataclasses.fields(DatasetInfo)]
        if not isinstance(tree, dict) or sorted(tree) != sorted(names):
            raise ValueError(f"{path}: must hold exactly {', '.join(names)}; make the shards again")
        info = DatasetInfo(**tree)
        if fault := _fault(info):
            raise ValueError(f"{path}: {fault}; {REMEDY}")
        return info

    def save(self, path: Path) -> None:
        """Write dataset.json, in the present version."""
        tree = {**dataclasses.asdict(self), "version": VERSION}
        path.write_text(json.dumps(tree, indent=2) + "\n")


def _fault(info: DatasetInfo) -> str:
    """What dataset.json says wrongly, as it came from JSON; "" for nothing."""
    sizes = (info.width, info.height, info.groups)
    if not all(type(size) is int and 1 <= size <= MAX_VIDEO_BYTES for size in sizes):
        return "`width`, `height` and `groups` must be whole numbers, 1 or more"
    if info.width % SPATIAL_FACTOR or info.height % SPATIAL_FACTOR:
        return f"`width` and `height` must be multiples of {SPATIAL_FACTOR}"
    if info.stores not in STORES:
        return f"`stores` must be one of {', '.join(STORES)}"
    longest, crops = info.longest_clip, info.crops
    if longest is not None and not (
        info.stores == "clips" and type(longest) is int and info.frames <= longest <= MAX_VIDEO_BYTES
    ):
        return f"`longest_clip` must be null or, where clips are stored, a whole number from {info.frames} on"
    if crops is not None and not (
        info.stores == "latents" and type(crops) is int and 1 <= crops <= MAX_VIDEO_BYTES
    ):
        return "`crops` must be null or, where latents are stored, a whole number, 1 or more"
    if (longest or info.frames) * info.width * info.height * 3 > MAX_VIDEO_BYTES:
        return f"an example's frames would take more than {MAX_VIDEO_BYTES >> 30} GiB"
    if type(info.fps) is not int or info.fps != FPS:
        return f"`fps` must be {FPS}"
    if type(info.version) is not int or not 1 <= info.version <= VERSION:
        return f"`version` must be a whole number from 1 to {VERSION}"
    for key in ("codec_fingerprint", "stats_fingerprint"):
        value = getattr(info, key)
        if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value)):
            return f"`{key}` must be null or 16 hexadecimal digits"
    try:
        build(CodecConfig, info.codec)
    except ValueError as error:
        return f"`codec`: {str(error)[:200]}"
    return ""


def codec_fingerprint(codec: CodecConfig) -> str | None:
    """xxh64 of the weights at `codec.path`, names and bytes of its files; None where there are none to read.

    Not of the path: the same weights elsewhere are the same codec, others in the same place are not. Raises
    ValueError for a file that is too long to be one, and for what cannot be read, such as a link to nothing.
    """
    path = Path(codec.path) if codec.path is not None and codec.kind != "dct" else None
    if path is None or not path.exists():
        return None
    digest = xxhash.xxh64()
    try:
        files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in WEIGHTS)
        for file in files:
            digest.update(b"" if file == path else os.fsencode(file.name) + b"\0")
            with open_regular(file, links=True) as stream:
                if os.fstat(stream.fileno()).st_size > MAX_WEIGHTS_BYTES:
                    raise ValueError(
                        f"{file}: is longer than {MAX_WEIGHTS_BYTES >> 30} GiB; give a codec's weights"
                    )
                hash_file(stream, digest)
    except OSError as error:
        raise ValueError(
            f"{error.filename or path}: cannot be read ({error.strerror}); give a codec's weights"
        ) from None
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
