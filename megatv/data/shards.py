"""Shards on disk: latents or clips and their words as MDS, written atomically, checked when opened and read.

    DIR/index.json            MDS index: every shard file with its size and hash
    DIR/shard.00000.mds ..    the examples; `megatv.data.format` describes them
    DIR/dataset.json          what they are: size, groups, rate, codec, latents or clips (`DatasetInfo`)
    DIR/latent_stats.json     mean and std that `Shards` normalises with (`LatentStats`)
    DIR/lengths.npy           int32 [n, 2]: valid latents and bytes of text of every example, to fill rows by

The only module that knows MosaicML streaming, which writes the files; any reader of MDS can read them. Here
`megatv.data.mds` reads them, at random, without shared memory or background download: nothing is left behind
by a killed process, and a damaged shard is an error where streaming itself would end the epoch early or wait
for ever.

Shards may come from a stranger. Nothing in them is run, unpickled or followed as a path: the index and
dataset.json may only say what this format allows, a row's place and lengths must fit its file, and its
values must have their types and ranges, all before they are used. A row is compared with its hash before it
is decoded, a whole file when somebody asks (`verify`) or when it comes out of a cache. Hashes (xxh64) find
damage, not malice.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import os
import shutil
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatv.data.crop import crop_words, wordiest_crop
from megatv.data.files import REMEDY, file_digest, open_file
from megatv.data.format import DatasetInfo
from megatv.data.index import HASH, Index, read_index
from megatv.data.mds import read_row
from megatv.data.record import Record
from megatv.data.stats import LatentStats
from megatv.data.video import decode_frames
from megatv.regular_file import partial_folder
from megatv.types import Caption, Example

Encode = Callable[[torch.Tensor], np.ndarray]
"""Frames uint8 [F, H, W, 3], on any device, to raw latents float32 [N, C, h, w]: the data layer's codec."""
SHARD_BYTES = 1 << 26
LENGTHS = "lengths.npy"
MAX_HEADER_BYTES = 1 << 14
"""Most of the header of lengths.npy; NumPy would read as many bytes as it claims to have."""


def _import_writer() -> Any:
    """MDSWriter, without running streaming's package files.

    `import streaming` imports torchvision, which dies beside a CPU-only torch where the installed one was
    built for CUDA; empty packages in its place leave the module that is used here, and save two seconds.
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

    return MDSWriter


MDSWriter = _import_writer()


class ShardWriter:
    """Writes one shard directory. It appears at `out` in one piece when `finish` is called, or not at all.

    Use it in a `with` block, so that an error on the way removes what was written. Raises ValueError when
    `out` exists and is not an empty directory, and at the end of the block when the disk is full.
    """

    def __init__(self, out: str | Path, info: DatasetInfo) -> None:
        self.out, self.info = Path(out), info
        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise ValueError(f"{self.out}: is not an empty directory; name another one or remove it first")
        self._partial = partial_folder(self.out)
        columns = {column.name: column.encoding for column in info.columns}
        self._writer = MDSWriter(
            columns=columns, out=str(self._partial), hashes=[HASH], size_limit=SHARD_BYTES, max_workers=1
        )
        self._ids: set[str] = set()
        self._lengths: list[tuple[int, int]] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._partial.exists():
            self._writer.cancel_future_jobs()
            shutil.rmtree(self._partial)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise ValueError(
                f"{self.out}: cannot be written ({error.strerror or error}), and nothing of it is left; make "
                "room on the disk or name another one"
            ) from None

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
        frames: int | None = None,
    ) -> None:
        """Add one example: raw latents [N, C, h, w] or a clip's bytes, as `info.stores` says, and its words.

        `source` says where it came from (`video`: the file or episode), `quality` holds scores by name, and
        `frames` are those of a clip that examples are cropped from (`info.longest_clip`); see
        `megatv.data.format`. Raises ValueError when the id was used before, latents do not fit float16, or
        the words would not be read.
        """
        assert 1 <= valid_latents <= self.info.latent_shape[0]
        if id in self._ids:
            raise ValueError(f"{self.out}: the id '{id}' comes twice; give every clip its own")
        if isinstance(content, np.ndarray):
            content = self._as_stored(id, content)
        assert isinstance(content, bytes) == (self.info.stores == "clips")
        assert (frames is None) == (self.info.longest_clip is None)
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
            frames,
        )
        self._writer.write(record.to_sample(self.info))
        self._ids.add(id)
        if frames is not None:
            captions = wordiest_crop(record.example(np.empty(0)), frames, self.info.frames).captions
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
    both raise ValueError with the file, so damage never becomes training data. Whole files are not hashed
    for it: 64 MB for one example would be read. Holds no open files.
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
        self.info = _load_info(self.path)
        self.index = read_index(self.path, self.info)
        if complete:
            _compare(self.path, self.index, hashes=False)
        self.stats = LatentStats.load(self.path / "latent_stats.json")
        if self.info.stats_fingerprint not in (None, self.stats.fingerprint()):
            raise ValueError(
                f"{self.path / 'latent_stats.json'}: does not hold the statistics that were stored with "
                f"these shards; {REMEDY}"
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
        """Example `index`, 0 <= index < len, of a clip to crop its beginning.

        Raises ValueError when its bytes are not those written.
        """
        record = self.record(index)
        return self.example(record, self.beginning(record))

    def example(self, record: Record, window: range) -> Example:
        """The record's latents and words; of a clip that examples are cropped from, those of its `window`."""
        words = record.example(self.stats.normalize(self.latents(record, window)))
        return words if record.frames is None else crop_words(words, record.frames, window)

    def beginning(self, record: Record) -> range:
        """The first frames of a clip to crop, as many as an example has; of any other record all frames."""
        return range(min(record.frames or self.info.frames, self.info.frames))

    def latents(self, record: Record, window: range) -> np.ndarray:
        """Raw latents of a record, float32 [N, C, h, w]; those of a clip come from the codec, on the fly.

        window: its frames, at most an example's; the last one is repeated. Stored latents are taken whole.
        """
        if isinstance(record.content, np.ndarray):
            return record.content.astype(np.float32)
        if self._encode is None:
            raise ValueError(
                f"{self.path}: holds clips, which only a codec turns into latents; give a config"
            )
        frames = self.frames(record, window)
        padding = frames[-1:].expand(self.info.frames - len(frames), -1, -1, -1)
        latents = self._encode(torch.cat([frames, padding]))
        assert latents.shape == self.info.latent_shape
        return latents

    def frames(self, record: Record, window: range | None = None) -> torch.Tensor:
        """All frames of a stored clip, or those of `window` alone: uint8 [F, H, W, 3] on the device.

        Raises ValueError when it lacks any.
        """
        assert isinstance(record.content, bytes)
        info = self.info
        window = range(record.frames or info.frames) if window is None else window
        seconds = [frame / info.fps for frame in window]
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
        rows = int(self.index.starts[shard + 1] - self.index.starts[shard])
        with self._open(shard) as file:
            try:
                return Record.of_row(read_row(file, rows, row, self.info.columns), self.info)
            except (ValueError, OSError) as error:
                name = self.path / self.index.file(shard)[0]
                raise ValueError(f"{name}: example {row} is damaged ({error}); {REMEDY}") from None

    def _open(self, shard: int) -> AbstractContextManager[io.BufferedReader]:
        """A shard's file. Opened for each example: to keep them open takes a descriptor each."""
        name, size, _ = self.index.file(shard)
        return open_file(os.path.join(self.path, name), size)


def verify(path: str | Path) -> Index:
    """Compare every shard of a directory with the index: present, of the right size and hash.

    Returns the index. Raises ValueError with the first file that differs and how many do. No row is read.
    """
    path = Path(path)
    index = read_index(path, _load_info(path))
    _compare(path, index, hashes=True)
    return index


def _load_info(path: Path) -> DatasetInfo:
    if not path.is_dir():
        raise ValueError(f"{path}: is not a directory of shards; make one with tools/make_shards.py")
    return DatasetInfo.load(path / "dataset.json")


def _compare(path: Path, index: Index, *, hashes: bool) -> None:
    """ValueError for files that are missing, of other sizes than the index says or, by option, hashes."""
    found = index.sizes_found(path)
    differ = found != index.bytes
    if hashes:
        for shard in np.flatnonzero(~differ):
            name, size, digest = index.file(shard)
            with open_file(path / name, size) as file:
                differ[shard] = file_digest(file) != digest
    if not differ.any():
        return
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
    with open_file(path, 8 * n + MAX_HEADER_BYTES) as file:
        start = file.read(12)  # magic, version and the header's length, which NumPy would read whole
    if int.from_bytes(start[8 : 10 if start[6:7] == b"\1" else 12], "little") > MAX_HEADER_BYTES:
        raise ValueError(f"{path}: is damaged (its header is too long); {REMEDY}")
    try:
        with np.errstate(over="ignore"):  # of a shape that the file has no room for
            lengths = np.lib.format.open_memmap(path, mode="r")
    except (
        Exception
    ) as error:  # a damaged header fails in any way; none is run, and pickled objects are refused
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: is damaged ({reason}); {REMEDY}") from None
    if lengths.shape != (n, 2) or lengths.dtype != np.int32:
        raise ValueError(f"{path}: does not hold two numbers for each of {n} examples; {REMEDY}")
    return lengths
