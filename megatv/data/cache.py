"""Shard files of an object store on the local disk: bounded, and safe among processes and threads.

    DIR/shard.00000.mds  appears by renaming, after its hash was compared with the index
    DIR/locks/           one lock (flock) a shard; the kernel frees a dead rank's

A reader holds its shard's lock shared, a download or an eviction holds it alone; so two ranks never fetch the
same shard, and a shard in use is never removed. The time of a file's last use is its access time, set here;
its time of change says whether it is still the file that was hashed.

Files in DIR are not trusted. A process hashes every file that it has not fetched itself when it first uses it
and when it has changed since; a file with another hash, a link or anything else that is no regular file is
removed and fetched again. Nothing is opened or written through a link, and DIR is the user's alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

from megatv.data import bucket
from megatv.data.files import file_digest, open_file
from megatv.regular_file import create_file

ATTEMPTS = 3
BACKOFF_SECONDS = 0.5
FULL_SECONDS = 120.0
"""How long a download waits for room while every cached shard is in use or on its way."""
MAX_REMEMBERED = 1 << 15
"""Hashed files that a process remembers; then it forgets all and hashes again."""


class ShardCache:
    """Files below `location` in `directory`, together at most `capacity_bytes`."""

    def __init__(self, location: str, directory: Path, capacity_bytes: int) -> None:
        self.location, self.directory, self.capacity_bytes = location, directory, capacity_bytes
        self._locks = directory / "locks"
        make_private(self._locks, directory.stat().st_uid)
        self._lost: dict[str, str] = {}
        self._hashed: dict[str, tuple[int, ...]] = {}

    @contextlib.contextmanager
    def hold(self, name: str, size: int, digest: str) -> Iterator[io.BufferedReader]:
        """The file, opened, with the bytes of the index; fetched if need be, and not evicted in the block.

        Raises ValueError when it cannot be had with these bytes; for the life of this process then.
        """
        if name in self._lost:
            raise ValueError(self._lost[name])
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(self._lock(name))
                file = stack.enter_context(self._get(lock, name, size, digest))
                now = time.time_ns()  # the kernel's own stamps come in ticks of milliseconds
                os.utime(file.fileno(), ns=(now, os.fstat(file.fileno()).st_mtime_ns))
            except OSError as error:
                raise ValueError(
                    f"{self.directory / name}: cannot be kept there ({error.strerror}); remove the directory "
                    "or name another data.cache_dir"
                ) from None
            yield file

    def drop_if_bad(self, name: str, size: int, digest: str) -> bool:
        """Remove a cached file whose bytes are not the index's (its disk failed); True when it was."""
        with contextlib.suppress(OSError), self._lock(name) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._hashed.pop(name, None)
            if file := self._open(name, size, digest):
                file.close()
            else:
                (self.directory / name).unlink()
                return True
        return False

    def _get(self, lock: int, name: str, size: int, digest: str) -> io.BufferedReader:
        """The open file. The lock is shared at the end."""
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if file := self._open(name, size, digest):
                return file
            fcntl.flock(lock, fcntl.LOCK_EX)  # not an atomic step up: another may have been faster
            if file := self._open(name, size, digest):
                file.close()
            else:
                (self.directory / name).unlink(missing_ok=True)
                self._fetch(name, size, digest)

    def _open(self, name: str, size: int, digest: str) -> io.BufferedReader | None:
        """The cached file, when it is one and its bytes are the index's."""
        try:
            file = open_file(self.directory / name, size, links=False)
        except ValueError:
            return None
        found = os.fstat(file.fileno())
        mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._hashed.get(name) != mark:
            if found.st_size != size or file_digest(file) != digest:
                file.close()
                return None
            if len(self._hashed) >= MAX_REMEMBERED:
                self._hashed.clear()
            self._hashed[name] = mark
        return file

    def _fetch(self, name: str, size: int, digest: str) -> None:
        path, arriving = self.directory / name, self.directory / f"{name}.arriving"
        room = self.directory / f"{name}.room"
        self._reserve(room, size)
        try:
            reason = ""
            for attempt in range(ATTEMPTS):
                time.sleep(BACKOFF_SECONDS * (2**attempt - 1))
                reason, final = bucket.download(self.location, name, arriving, size)
                if not reason and (file := self._open(arriving.name, size, digest)):
                    file.close()
                    os.replace(arriving, path)
                    self._hashed[name] = self._hashed.pop(arriving.name)
                    return
                reason = reason or "its bytes are not those of the index"
                if final:
                    break
            self._lost[name] = (
                f"{self.location}/{name}: cannot be fetched ({reason}); put the shard right and try again"
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
                    with create_file(room) as file:
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
                    found = path.lstat()
                    files.append((path.suffix == ".mds", found.st_atime_ns, found.st_size, path))
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
        lock = os.open(self._locks / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            yield lock
        finally:
            os.close(lock)


def make_private(directory: Path, owner: int) -> None:
    """Make a directory, or take one that is there, for this user alone.

    owner  user id of this user's files on that file system, which may differ from the process's (NFS)
    Raises ValueError where it is a link, a file or somebody else's.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(handle).st_uid != owner:
                raise PermissionError(0, "it belongs to another user")
            os.fchmod(handle, 0o700)
        finally:
            os.close(handle)
    except OSError as error:
        raise ValueError(
            f"{directory}: cannot hold fetched shards ({error.strerror}); remove it or name another "
            "data.cache_dir"
        ) from None


def _remove_all(paths: Iterator[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
