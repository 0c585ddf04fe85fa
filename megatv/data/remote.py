"""Shards in an object store: fetched when they are read, into a bounded cache that a node's ranks share.

    CACHE/<hash of the index>/index.json ..    what describes the set, fetched when it is opened
    CACHE/<hash of the index>/shard.00000.mds  appears by renaming, after its hash was compared with the index
    CACHE/<hash of the index>/locks/           one lock (flock) a shard; the kernel frees a dead rank's

A reader holds its shard's lock shared, a download or an eviction holds it alone; so two ranks never fetch the
same shard, and a shard in use is never removed. The bytes come through streaming's own download layer, which
takes credentials and endpoint from the environment (AWS_*, S3_ENDPOINT_URL).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from megatv.config import DataConfig
from megatv.data.format import Record, file_digest
from megatv.data.shards import LENGTHS, Encode, Shards

ATTEMPTS = 3
BACKOFF_SECONDS = 0.5
TIMEOUT_SECONDS = 60.0
FULL_SECONDS = 120.0
"""How long a download waits for room while every cached shard is in use or on its way."""
REFUSED = {"403", "404", "NoSuchKey", "NoSuchBucket", "AccessDenied"}
"""Answers that asking again does not change."""


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
        wanted = self.index.file(self.index.place(index)[0])
        try:
            with self._cache.hold(*wanted):
                return super().record(index)
        except ValueError:
            if not self._cache.drop_if_bad(*wanted):
                raise
        with self._cache.hold(*wanted):
            return super().record(index)


class ShardCache:
    """Files of `url` in `directory`, together at most `capacity_bytes`; safe among processes and threads."""

    def __init__(self, url: str, directory: Path, capacity_bytes: int) -> None:
        self.url, self.directory, self.capacity_bytes = url, directory, capacity_bytes
        self._locks = directory / "locks"
        self._locks.mkdir(exist_ok=True)
        self._lost: dict[str, str] = {}

    @contextlib.contextmanager
    def hold(self, name: str, size: int, digest: str) -> Iterator[Path]:
        """The file, fetched if need be, and not evicted inside the block.

        Raises ValueError when it cannot be had with these bytes; for the life of this process then.
        """
        if name in self._lost:
            raise ValueError(self._lost[name])
        path = self.directory / name
        with self._lock(name) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            while not path.exists():
                fcntl.flock(lock, fcntl.LOCK_EX)  # not an atomic step up: another may have been faster
                if not path.exists():
                    self._fetch(name, size, digest)
                fcntl.flock(lock, fcntl.LOCK_SH)
            now = time.time_ns()  # the kernel's own stamps come in ticks of milliseconds
            os.utime(path, ns=(now, now))
            yield path

    def drop_if_bad(self, name: str, size: int, digest: str) -> bool:
        """Remove a cached file whose bytes are not the index's (its disk failed); True when it was."""
        with self._lock(name) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.directory / name
            if not path.exists() or _matches(path, size, digest):
                return False
            path.unlink()
            return True

    def _fetch(self, name: str, size: int, digest: str) -> None:
        path, arriving = self.directory / name, self.directory / f"{name}.arriving"
        room = self.directory / f"{name}.room"
        self._reserve(room, size)
        try:
            reason = ""
            for attempt in range(ATTEMPTS):
                time.sleep(BACKOFF_SECONDS * (2**attempt - 1))
                reason, final = _download(f"{self.url}/{name}", arriving)
                if not reason and _matches(arriving, size, digest):
                    os.replace(arriving, path)
                    return
                reason = reason or "its bytes are not those of the index"
                if final:
                    break
            self._lost[name] = (
                f"{self.url}/{name}: cannot be fetched ({reason}); put the shard right and try again"
            )
            raise ValueError(self._lost[name])
        finally:
            _remove_all(self.directory.glob(f"{name}.arriving*"))
            room.unlink(missing_ok=True)

    def _reserve(self, room: Path, size: int) -> None:
        """Evict until `size` bytes fit, and claim them with a sparse file of that size."""
        until = time.monotonic() + FULL_SECONDS
        while True:
            with self._lock("room") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                room.unlink(missing_ok=True)  # of a process that died while fetching this very shard
                if self._evict(self.capacity_bytes - size):
                    with room.open("wb") as file:
                        file.truncate(size)
                    return
            if time.monotonic() > until:
                raise ValueError(
                    f"{self.directory}: no room for {size} bytes within {FULL_SECONDS} s, all shards are in "
                    "use; raise data.cache_bytes"
                )
            time.sleep(0.05)

    def _evict(self, target_bytes: int) -> bool:
        """Remove the files not read for longest until `target_bytes` are left; those in use stay."""
        files = []
        for path in self.directory.iterdir():
            if path.suffix in (".mds", ".room"):
                with contextlib.suppress(FileNotFoundError):  # a download that ended meanwhile
                    stat = path.stat()
                    files.append((path.suffix == ".mds", stat.st_mtime_ns, stat.st_size, path))
        used = sum(size for _, _, size, _ in files)
        for whole, _, size, path in sorted(files):  # rooms first: where nobody holds the lock, its owner died
            if used <= target_bytes and whole:
                break
            name = path.name.removesuffix(".room")
            with self._lock(name) as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not whole:
                    _remove_all(self.directory.glob(f"{name}.arriving*"))
                path.unlink(missing_ok=True)
                used -= size
        return used <= target_bytes

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[int]:
        lock = os.open(self._locks / name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield lock
        finally:
            os.close(lock)


def _fetch_description(url: str, cache_dir: Path) -> Path:
    """Fetch what describes the set; its directory is named by the index: another set finds no old shards."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".opening-") as temporary:
        for name in ("index.json", "dataset.json", "latent_stats.json", LENGTHS):
            for attempt in range(ATTEMPTS):
                time.sleep(BACKOFF_SECONDS * (2**attempt - 1))
                reason, final = _download(f"{url}/{name}", Path(temporary) / name)
                if not reason or final:
                    break
            if reason and not (name == LENGTHS and final):
                raise ValueError(
                    f"{url}/{name}: cannot be fetched ({reason}); check data.train and data.val, AWS_* and "
                    "S3_ENDPOINT_URL"
                )
        directory = cache_dir / file_digest(Path(temporary) / "index.json")
        directory.mkdir(exist_ok=True)
        for file in Path(temporary).iterdir():
            os.replace(file, directory / file.name)
    return directory


def _download(url: str, local: Path) -> tuple[str, bool]:
    """Fetch one object; returns why it failed ("" when it did not) and whether trying again is pointless."""
    from streaming.base.storage import CloudDownloader

    local.unlink(missing_ok=True)
    try:
        CloudDownloader.direct_download(url, str(local), TIMEOUT_SECONDS)
    except ImportError as error:
        raise ValueError(f"{url}: needs {error.name}: pip install boto3") from None
    except Exception as error:  # every store and its SDK has its own errors; the reason goes on
        answer = getattr(error, "response", {}).get("Error", {}).get("Code")
        return " ".join(str(error).split()) or type(error).__name__, str(answer) in REFUSED
    return "", False


def _matches(path: Path, size: int, digest: str) -> bool:
    return path.stat().st_size == size and file_digest(path) == digest


def _remove_all(paths: Iterator[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
