"""Shards in an object store: fetched when they are read, into a bounded cache that a node's ranks share.

    CACHE/<hash of the index>/index.json ..    what describes the set, fetched anew when it is opened
    CACHE/<hash of the index>/shard.00000.mds  a shard, fetched when it is first read (`megatv.data.cache`)

Everything is checked as in a local directory (`megatv.data.shards`). The index says how many bytes an object
may have, and no object is asked for under a name that it chose.
"""

from __future__ import annotations

import io
import os
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from megatv.config import DataConfig
from megatv.data import bucket, cache
from megatv.data.cache import ShardCache, make_private
from megatv.data.files import MAX_TEXT_BYTES, file_digest, open_file
from megatv.data.index import MAX_TEXT_BYTES as MAX_INDEX_BYTES
from megatv.data.record import Record
from megatv.data.shards import LENGTHS, Encode, Shards

DESCRIPTION = {
    "index.json": MAX_INDEX_BYTES,
    "dataset.json": MAX_TEXT_BYTES,
    "latent_stats.json": MAX_TEXT_BYTES,
    LENGTHS: 1 << 32,
}
"""Files that describe a set, and the most bytes that are fetched of each."""


def open_shards(
    location: str,
    config: DataConfig,
    load_encoder: Callable[[], Encode] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Shards:
    """The shards of a directory or, for `s3://bucket/prefix`, of an object store.

    load_encoder gives the codec for shards that hold clips, which are decoded on `device`; see `Shards`.
    Raises ValueError when they cannot be opened, or the cache is too small for the order they are read in.
    """
    if "://" not in location:
        return Shards(location, load_encoder, device=device)
    shards = RemoteShards(location, Path(config.cache_dir), config.cache_bytes, load_encoder, device=device)
    windows = 2 * config.shuffle_shards * shards.largest_bytes
    if shards.total_bytes > config.cache_bytes and not 0 < windows <= config.cache_bytes:
        raise ValueError(
            f"{location}: its shards take {shards.total_bytes} bytes and data.cache_bytes is "
            f"{config.cache_bytes}, so nearly every example would be fetched with its whole shard: raise "
            f"data.cache_bytes, or set data.shuffle_shards to at most "
            f"{config.cache_bytes // (2 * shards.largest_bytes)}"
        )
    return shards


class RemoteShards(Shards):
    """`Shards` whose files are fetched one by one; a cached file that went bad is fetched again once."""

    def __init__(
        self,
        url: str,
        cache_dir: Path,
        cache_bytes: int,
        load_encoder: Callable[[], Encode] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        bucket.parse_location(url)
        self.url = url.rstrip("/")
        directory = _fetch_description(self.url, cache_dir)
        super().__init__(directory, load_encoder, device=device, complete=False)
        self.largest_bytes = int(self.index.bytes.max())
        self.total_bytes = int(self.index.bytes.sum())
        if self.largest_bytes > cache_bytes:
            raise ValueError(
                f"{url}: a shard has {self.largest_bytes} bytes, data.cache_bytes is {cache_bytes}; "
                f"make it at least {self.largest_bytes}, better many times that"
            )
        self._cache = ShardCache(self.url, directory, cache_bytes)

    def record(self, index: int) -> Record:
        """Example `index` as it is stored, its shard fetched first where need be; ValueError as `Shards`."""
        try:
            return super().record(index)
        except ValueError:
            if not self._cache.drop_if_bad(*self.index.file(self.index.place(index)[0])):
                raise
        return super().record(index)

    def _open(self, shard: int) -> AbstractContextManager[io.BufferedReader]:
        return self._cache.hold(*self.index.file(shard))


def _fetch_description(url: str, cache_dir: Path) -> Path:
    """Fetch what describes the set; its directory is named by the index: another set finds no old shards."""
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".opening-") as temporary:
            return _fetch_into(url, cache_dir, Path(temporary))
    except OSError as error:
        raise ValueError(
            f"{cache_dir}: cannot hold fetched shards ({error.strerror}); name another data.cache_dir"
        ) from None


def _fetch_into(url: str, cache_dir: Path, temporary: Path) -> Path:
    if cache_dir.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
        raise ValueError(
            f"{cache_dir}: anybody may change it, so it cannot hold fetched shards; `chmod o-w` it or name "
            "another data.cache_dir"
        )
    for name, most in DESCRIPTION.items():
        for attempt in range(cache.ATTEMPTS):
            time.sleep(cache.BACKOFF_SECONDS * (2**attempt - 1))
            reason, final = bucket.download(url, name, temporary / name, most)
            if not reason or final:
                break
        missing = final and not (temporary / name).exists()
        if reason and not (name == LENGTHS and missing):
            raise ValueError(
                f"{url}/{name}: cannot be fetched ({reason}); check data.train and data.val, AWS_* and "
                "S3_ENDPOINT_URL"
            )
    with open_file(temporary / "index.json", MAX_INDEX_BYTES) as index:
        directory = cache_dir / file_digest(index)
    make_private(directory, temporary.stat().st_uid)
    for name in DESCRIPTION:
        if (temporary / name).exists():
            os.replace(temporary / name, directory / name)
        else:
            (directory / name).unlink(missing_ok=True)
    return directory
