"""Shards on disk: latents and their words as MDS, written atomically, checked when opened and when read.

    DIR/index.json            MDS index: every shard file with its size and hash
    DIR/shard.00000.mds ..    columns id, latents (raw, float16 [N, C, h, w]), meta (the words), hash
    DIR/dataset.json          what the latents are: size, groups, rate, codec (`DatasetInfo`)
    DIR/latent_stats.json     mean and std that `Shards` normalises with (`LatentStats`)
    DIR/lengths.npy           int32 [n, 2]: valid latents and bytes of text of every example, to balance with

The only module that knows MosaicML streaming. It uses streaming's file format with plain random access: no
shared memory, no background download, so nothing is left behind by a killed process, and a damaged shard is
an error where streaming itself would end the epoch early or wait for ever.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megatv.config import FPS, GROUP_LATENTS, LATENT_CHANNELS, SPATIAL_FACTOR
from megatv.data.stats import LatentStats
from megatv.types import Caption, Example

VERSION = 1
HASH = "xxh64"
SHARD_BYTES = 1 << 26
LENGTHS = "lengths.npy"


def _import_streaming() -> tuple[Any, Any]:
    """LocalDataset and MDSWriter, without running streaming's package files.

    `import streaming` imports torchvision, which dies beside a CPU-only torch where the installed one was
    built for CUDA; empty packages in its place leave the modules that are used here, and save two seconds.
    """
    for name in ("streaming", "streaming.base"):
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.submodule_search_locations is None:
                raise ValueError(
                    "mosaicml-streaming is not installed: `source launch/setup.sh`, or "
                    "`pip install --no-deps mosaicml-streaming`"
                )
            package = types.ModuleType(name)
            package.__path__ = list(spec.submodule_search_locations)
            sys.modules[name] = package
    from streaming.base.format.mds import MDSWriter
    from streaming.base.local import LocalDataset

    return LocalDataset, MDSWriter


LocalDataset, MDSWriter = _import_streaming()


@dataclass(frozen=True)
class DatasetInfo:
    """What the latents were made of: frame size in pixels, 49-frame groups, codec section, rate."""

    width: int
    height: int
    groups: int
    codec: dict[str, Any]
    fps: int = FPS
    version: int = VERSION

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(N, C, h, w) of every example."""
        height, width = self.height // SPATIAL_FACTOR, self.width // SPATIAL_FACTOR
        return self.groups * GROUP_LATENTS, LATENT_CHANNELS, height, width

    @staticmethod
    def load(path: Path) -> DatasetInfo:
        """Read dataset.json; ValueError when it is missing, damaged or of another version."""
        tree = _read_json(path)
        names = [f.name for f in dataclasses.fields(DatasetInfo)]
        if not isinstance(tree, dict) or sorted(tree) != sorted(names):
            raise ValueError(f"{path}: must hold exactly {', '.join(names)}; make the shards again")
        info = DatasetInfo(**tree)
        if info.version != VERSION:
            raise ValueError(
                f"{path}: is of version {info.version} and this program reads version {VERSION}; "
                "make the shards again"
            )
        return info


class ShardWriter:
    """Writes one shard directory. It appears at `out` in one piece when `finish` is called, or not at all.

    Use it in a `with` block, so that an error on the way removes what was written. Raises ValueError when
    `out` exists and is not an empty directory.
    """

    def __init__(self, out: str | Path, info: DatasetInfo) -> None:
        self.out, self.info = Path(out), info
        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise ValueError(f"{self.out}: is not an empty directory; name another one or remove it first")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._partial = Path(tempfile.mkdtemp(dir=self.out.parent, prefix=f".{self.out.name}.partial-"))
        self._partial.chmod(0o755)
        shape = ",".join(map(str, info.latent_shape))
        columns = {"id": "str", "latents": f"ndarray:float16:{shape}", "meta": "str", "hash": "str"}
        self._writer = MDSWriter(
            columns=columns, out=str(self._partial), hashes=[HASH], size_limit=SHARD_BYTES, max_workers=1
        )
        self._ids: set[str] = set()
        self._lengths: list[tuple[int, int]] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._partial.exists():
            self._writer.cancel_future_jobs()
            shutil.rmtree(self._partial)

    def write(
        self,
        id: str,
        latents: np.ndarray,
        *,
        captions: tuple[Caption, ...],
        meta_caption: str,
        detailed_caption: str,
        valid_latents: int,
        ends_clip: bool,
        source: dict[str, Any],
    ) -> None:
        """Add one example: raw latents [N, C, h, w] and its words; `source` says where it came from.

        Raises ValueError when the id was used before or the latents do not fit float16.
        """
        assert latents.shape == self.info.latent_shape and 1 <= valid_latents <= len(latents)
        if id in self._ids:
            raise ValueError(f"{self.out}: the id '{id}' comes twice; give every clip its own")
        with np.errstate(over="ignore"):
            stored = latents.astype(np.float16)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"{self.out}: latents of '{id}' do not fit float16 (largest {np.abs(latents).max():g}), "
                "so the codec's weights do not suit the video"
            )
        meta = json.dumps(
            {
                "captions": [[caption.start_seconds, caption.text] for caption in captions],
                "meta_caption": meta_caption,
                "detailed_caption": detailed_caption,
                "valid_latents": valid_latents,
                "ends_clip": ends_clip,
                "source": source,
            }
        )
        sample = {"id": id, "latents": stored, "meta": meta}
        self._writer.write({**sample, "hash": _sample_hash(sample)})
        self._ids.add(id)
        words = sum(len(text.encode()) for text in (meta_caption, *(c.text for c in captions)))
        self._lengths.append((valid_latents, words))

    def finish(self, stats: LatentStats) -> None:
        """Write the index, dataset.json and latent_stats.json, and give the directory its name."""
        if not self._ids:
            raise ValueError(f"{self.out}: no example was written, so there is nothing to train on")
        self._writer.finish()
        (self._partial / "dataset.json").write_text(
            json.dumps(dataclasses.asdict(self.info), indent=2) + "\n"
        )
        stats.save(self._partial / "latent_stats.json")
        np.save(self._partial / LENGTHS, np.array(self._lengths, np.int32))
        try:
            os.rename(self._partial, self.out)
        except OSError as error:
            raise ValueError(
                f"{self.out}: cannot be created ({error.strerror}); name another --out"
            ) from error


class Shards:
    """Random access to the examples of a shard directory, latents normalised with its own statistics.

    Opening compares the files with the index by size (`verify`), reading compares each example with its hash;
    both raise ValueError with the file, so damage never becomes training data. Holds no open files.
    lengths: int32 [n, 2] of valid latents and bytes of text, mapped from the file; None in shards without it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        verify(self.path, hashes=False)
        self.info = DatasetInfo.load(self.path / "dataset.json")
        self.stats = LatentStats.load(self.path / "latent_stats.json")
        self._dataset = LocalDataset(str(self.path))
        self.lengths = _read_lengths(self.path / LENGTHS, len(self))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example:
        """Example `index`, 0 <= index < len. Raises ValueError when its bytes are not those written."""
        sample = self._read(index)
        meta = json.loads(sample["meta"])
        return Example(
            id=sample["id"],
            latents=self.stats.normalize(sample["latents"].astype(np.float32)),
            captions=tuple(Caption(start, text) for start, text in meta["captions"]),
            meta_caption=meta["meta_caption"],
            detailed_caption=meta["detailed_caption"],
            valid_latents=meta["valid_latents"],
            ends_clip=meta["ends_clip"],
        )

    def _read(self, index: int) -> dict[str, Any]:
        assert 0 <= index < len(self)
        shard, row = self._dataset.spanner[index]
        try:
            sample = self._dataset[index]
            if _sample_hash(sample) == sample["hash"]:
                return sample
            reason = "its hash differs from the one written"
        except Exception as error:  # damaged bytes fail in any way; the reason goes into the sentence
            reason = str(error) or type(error).__name__
        file = self.path / self._dataset.shards[shard].raw_data.basename
        raise ValueError(f"{file}: example {row} is damaged ({reason}); {_REMEDY}")


_REMEDY = (
    "copy the directory again or make the shards anew (tools/make_shards.py --verify DIR checks them all)"
)


def verify(path: str | Path, *, hashes: bool = True) -> None:
    """Compare every shard of a directory with the index: present, of the right size and, by option, hash.

    Raises ValueError with the first file that differs and how many do.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: is not a directory of shards; make one with tools/make_shards.py")
    index = _read_json(path / "index.json")
    try:
        shards = [(path / info["basename"], info) for info in (s["raw_data"] for s in index["shards"])]
        faults = [(file, fault) for file, info in shards if (fault := _fault(file, info, hashes))]
    except (KeyError, TypeError):
        raise ValueError(f"{path / 'index.json'}: is not an MDS index; {_REMEDY}") from None
    if not shards:
        raise ValueError(f"{path}: its index lists no shards; make them with tools/make_shards.py")
    if faults:
        others = f" ({len(faults)} of {len(shards)} shards are damaged)" if len(faults) > 1 else ""
        file, fault = faults[0]
        raise ValueError(f"{file}: {fault}{others}; {_REMEDY}")


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """int64 [n]: the examples' order in this epoch, a permutation that depends on (seed, epoch, n) alone.

    The ranks of Philox's raw output: a bit stream that numpy promises not to change, unlike `permutation`.
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")
    order.flags.writeable = False
    return order


def _fault(file: Path, info: dict[str, Any], hashes: bool) -> str | None:
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != info["bytes"]:
        return f"has {size} bytes where the index says {info['bytes']}"
    if hashes:
        digest = xxhash.xxh64()
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        if digest.hexdigest() != info["hashes"][HASH]:
            return "has changed since it was written (its hash differs from the index)"
    return None


def _read_lengths(path: Path, n: int) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        lengths = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is damaged ({error}); {_REMEDY}") from None
    if lengths.shape != (n, 2) or lengths.dtype != np.int32:
        raise ValueError(f"{path}: does not hold two numbers for each of {n} examples; {_REMEDY}")
    return lengths


def _sample_hash(sample: dict[str, Any]) -> str:
    digest = xxhash.xxh64(sample["latents"].tobytes())
    digest.update(sample["id"].encode() + b"\0" + sample["meta"].encode())
    return digest.hexdigest()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); {_REMEDY}") from None
