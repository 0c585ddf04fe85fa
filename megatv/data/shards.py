"""Shards on disk: latents or clips and their words as MDS, written atomically, checked when opened and read.

    DIR/index.json            MDS index: every shard file with its size and hash
    DIR/shard.00000.mds ..    the examples; `megatv.data.format` describes them
    DIR/dataset.json          what they are: size, groups, rate, codec, latents or clips (`DatasetInfo`)
    DIR/latent_stats.json     mean and std that `Shards` normalises with (`LatentStats`)
    DIR/lengths.npy           int32 [n, 2]: valid latents and bytes of text of every example, to fill rows by

The only module that knows MosaicML streaming. It uses streaming's file format with plain random access: no
shared memory, no background download, so nothing is left behind by a killed process, and a damaged shard is
an error where streaming itself would end the epoch early or wait for ever.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatv.data.format import REMEDY, DatasetInfo, Record, file_digest, sample_hash
from megatv.data.index import HASH, Index, read_index, shard_name
from megatv.data.stats import LatentStats
from megatv.data.video import decode_frames
from megatv.types import Caption, Example

Encode = Callable[[torch.Tensor], np.ndarray]
"""Frames uint8 [F, H, W, 3], on any device, to raw latents float32 [N, C, h, w]: the data layer's codec."""
SHARD_BYTES = 1 << 26
LENGTHS = "lengths.npy"


def _import_streaming() -> tuple[Any, Any, Any]:
    """FileInfo, MDSReader and MDSWriter, without running streaming's package files.

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
    from streaming.base.format import FileInfo
    from streaming.base.format.mds import MDSReader, MDSWriter

    return FileInfo, MDSReader, MDSWriter


FileInfo, MDSReader, MDSWriter = _import_streaming()


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
        content = f"ndarray:float16:{shape}" if info.stores == "latents" else "bytes"
        columns = {"id": "str", info.column: content, "meta": "str", "hash": "str"}
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
        content: np.ndarray | bytes,
        *,
        captions: tuple[Caption, ...],
        meta_caption: str,
        detailed_caption: str,
        valid_latents: int,
        ends_clip: bool,
        source: dict[str, Any],
        quality: dict[str, float] | None = None,
    ) -> None:
        """Add one example: raw latents [N, C, h, w] or a clip's bytes, as `info.stores` says, and its words.

        `source` says where it came from (`video`: the file or episode), `quality` holds scores by name; see
        `megatv.data.format`. Raises ValueError when the id was used before or latents do not fit float16.
        """
        assert 1 <= valid_latents <= self.info.latent_shape[0]
        if id in self._ids:
            raise ValueError(f"{self.out}: the id '{id}' comes twice; give every clip its own")
        if isinstance(content, np.ndarray):
            content = self._as_stored(id, content)
        assert isinstance(content, bytes) == (self.info.stores == "clips")
        record = Record(
            id,
            content,
            captions,
            meta_caption,
            detailed_caption,
            valid_latents,
            ends_clip,
            source,
            quality or {},
        )
        self._writer.write(record.to_sample(self.info.column))
        self._ids.add(id)
        words = sum(len(text.encode()) for text in (meta_caption, *(c.text for c in captions)))
        self._lengths.append((valid_latents, words))

    def finish(self, stats: LatentStats) -> None:
        """Write the index, dataset.json and latent_stats.json, and give the directory its name."""
        if not self._ids:
            raise ValueError(f"{self.out}: no example was written, so there is nothing to train on")
        self._writer.finish()
        self.info = dataclasses.replace(self.info, stats_fingerprint=stats.fingerprint())
        self.info.save(self._partial / "dataset.json")
        stats.save(self._partial / "latent_stats.json")
        np.save(self._partial / LENGTHS, np.array(self._lengths, np.int32))
        try:
            os.rename(self._partial, self.out)
        except OSError as error:
            raise ValueError(
                f"{self.out}: cannot be created ({error.strerror}); name another --out"
            ) from error

    def _as_stored(self, id: str, latents: np.ndarray) -> np.ndarray:
        assert latents.shape == self.info.latent_shape
        with np.errstate(over="ignore"):
            stored = latents.astype(np.float16)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"{self.out}: latents of '{id}' do not fit float16 (largest {np.abs(latents).max():g}), "
                "so the codec's weights do not suit the video"
            )
        return stored


class Shards:
    """Random access to the examples of a shard directory, latents normalised with its own statistics.

    Opening compares the files with the index by size (`verify`), reading compares each example with its hash;
    both raise ValueError with the file, so damage never becomes training data. Holds no open files.
    lengths: int32 [n, 2] of valid latents and bytes of text, mapped from the file; None in shards without it.

    load_encoder gives the codec that turns clips into latents. It is called once, when a directory of clips
    is opened; then whoever reads an example decodes and codes it, in a run the loader's thread. Without it,
    clips can be read as records only. They are decoded on `device`: on a GPU by NVDEC where that works.
    """

    def __init__(
        self,
        path: str | Path,
        load_encoder: Callable[[], Encode] | None = None,
        *,
        device: torch.device | str = "cpu",
        complete: bool = True,
    ) -> None:
        """complete: False where shard files arrive later (`megatv.data.remote`): they are not compared."""
        self.path, self.device = Path(path), device
        self.index = verify(self.path, hashes=False) if complete else read_index(self.path)
        self.info = DatasetInfo.load(self.path / "dataset.json")
        self.stats = LatentStats.load(self.path / "latent_stats.json")
        if self.info.stats_fingerprint not in (None, self.stats.fingerprint()):
            raise ValueError(
                f"{self.path / 'latent_stats.json'}: does not hold the statistics that were stored with "
                f"these shards; {REMEDY}"
            )
        if self.info.column not in self.index.columns["column_names"]:
            raise ValueError(
                f"{self.path}: dataset.json says that it stores {self.info.stores}, and its shards have no "
                f"column '{self.info.column}'; {REMEDY}"
            )
        self._encode = load_encoder() if load_encoder and self.info.stores == "clips" else None
        self.lengths = _read_lengths(self.path / LENGTHS, len(self))

    def __len__(self) -> int:
        return int(self.index.starts[-1])

    @property
    def shard_sizes(self) -> np.ndarray:
        """int64 [shards]: examples of every shard; they are numbered shard by shard."""
        return np.diff(self.index.starts)

    def __getitem__(self, index: int) -> Example:
        """Example `index`, 0 <= index < len. Raises ValueError when its bytes are not those written."""
        record = self.record(index)
        return record.example(self.stats.normalize(self.latents(record)))

    def latents(self, record: Record) -> np.ndarray:
        """Raw latents of a record, float32 [N, C, h, w]; those of a clip come from the codec, on the fly."""
        if isinstance(record.content, np.ndarray):
            return record.content.astype(np.float32)
        if self._encode is None:
            raise ValueError(
                f"{self.path}: holds clips, which only a codec turns into latents; give a config"
            )
        latents = self._encode(self.frames(record))
        assert latents.shape == self.info.latent_shape
        return latents

    def frames(self, record: Record) -> torch.Tensor:
        """All frames of a stored clip, uint8 [F, H, W, 3] on the device; ValueError when it lacks any."""
        assert isinstance(record.content, bytes)
        info = self.info
        seconds = [frame / info.fps for frame in range(info.frames)]
        try:
            return decode_frames(
                record.content, seconds, width=info.width, height=info.height, device=self.device
            )
        except ValueError as error:
            raise ValueError(f"{self.path}: clip '{record.id}': {error}") from error

    def record(self, index: int) -> Record:
        """Example `index` as it is stored. Raises ValueError when its bytes are not those written."""
        assert 0 <= index < len(self)
        shard, row = self.index.place(index)
        try:
            sample = self._reader(shard)[row]
            if sample_hash(sample, self.info.column) == sample["hash"]:
                return Record.of_sample(sample, self.info.column)
            reason = "its hash differs from the one written"
        except Exception as error:  # damaged bytes fail in any way; the reason goes into the sentence
            reason = str(error) or type(error).__name__
        file = self.path / shard_name(shard)
        raise ValueError(f"{file}: example {row} is damaged ({reason}); {REMEDY}")

    def _reader(self, shard: int) -> Any:
        """Streaming's reader of one shard. Made for each example: to keep one a shard takes 3 KB each."""
        name, size, _ = self.index.file(shard)
        return MDSReader(
            str(self.path),
            split=None,
            **self.index.columns,
            compression=None,
            hashes=[],
            raw_data=FileInfo(name, size, {}),
            samples=int(self.index.starts[shard + 1] - self.index.starts[shard]),
            size_limit=None,
            zip_data=None,
        )


def verify(path: str | Path, *, hashes: bool = True) -> Index:
    """Compare every shard of a directory with the index: present, of the right size and, by option, hash.

    Returns the index. Raises ValueError with the first file that differs and how many do.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: is not a directory of shards; make one with tools/make_shards.py")
    index = read_index(path)
    found = index.sizes_found(path)
    differ = found != index.bytes
    if hashes:
        for shard in np.flatnonzero(~differ):
            name, _, digest = index.file(shard)
            differ[shard] = file_digest(path / name) != digest
    if not differ.any():
        return index
    first, faults = int(differ.argmax()), int(differ.sum())
    name, size, _ = index.file(first)
    fault = "has changed since it was written (its hash differs from the index)"
    if found[first] < 0:
        fault = "is missing"
    elif found[first] != size:
        fault = f"has {found[first]} bytes where the index says {size}"
    others = f" ({faults} of {len(differ)} shards are damaged)" if faults > 1 else ""
    raise ValueError(f"{path / name}: {fault}{others}; {REMEDY}")


def _read_lengths(path: Path, n: int) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        lengths = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is damaged ({error}); {REMEDY}") from None
    if lengths.shape != (n, 2) or lengths.dtype != np.int32:
        raise ValueError(f"{path}: does not hold two numbers for each of {n} examples; {REMEDY}")
    return lengths
