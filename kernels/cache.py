"""Compiled code kept between runs, in a folder that nobody else can write: whatever lies there is run.

The folder is MEGATV_KERNELS_CACHE or ~/.cache/megatv_kernels, made with mode 0700. It is refused when it is a
link, another user's, open to others, or lies where others could put another in its place: then somebody else
may have chosen the code. A file begins with the SHA-256 of the rest, so that one cut short or damaged is made
again. No link is followed inside the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .parents import fault_above

DIGEST_BYTES = 32
LARGEST_BYTES = 256 << 20
"""Larger files are not read; compiled kernels are far smaller."""


def kept(name: str, make: Callable[[], bytes]) -> bytes:
    """The content cached as `name`, or else made now and cached.

    Processes that want the same name at the same time make it once. Raises ValueError when the folder cannot
    be used, in one sentence that says why.
    """
    with _private_folder() as (path, folder):
        try:
            with _locked(folder, name):
                content = _read(folder, name)
                if content is None:
                    content = make()
                    _write(folder, name, content)
                return content
        except OSError as error:
            raise ValueError(
                f"compiled kernels cannot be kept in {path}: {error.strerror} ({error.filename or name}); "
                "make room, remove it, or name another folder in MEGATV_KERNELS_CACHE"
            ) from None


@contextlib.contextmanager
def _private_folder() -> Iterator[tuple[Path, int]]:
    """The folder, made if need be, and a descriptor by which its files are opened.

    Raises ValueError when it is a link, or others own it, may write it or may put another in its place.
    """
    path = _path().absolute()
    try:
        _make(path.parent)
        if fault := fault_above(path):
            raise _refusal(path, fault)
        path = path.parent.resolve() / path.name
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError:
        raise _refusal(path, "it is a link or a file") from None
    except OSError as error:
        raise _refusal(path, f"{error.strerror} ({error.filename})") from None
    try:
        found = os.fstat(folder)
        if found.st_uid != os.geteuid():
            raise _refusal(path, f"it belongs to user {found.st_uid}, not to you ({os.geteuid()})")
        if found.st_mode & 0o022:
            raise _refusal(path, f"others may write it (mode {stat.S_IMODE(found.st_mode):o})")
        os.fchmod(folder, 0o700)  # others could read it: an older version made it
        yield path, folder
    finally:
        os.close(folder)


def _make(folder: Path) -> None:
    """A folder and those above it, for their owner alone whatever the umask."""
    if not folder.exists():
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


@functools.cache
def isolate_compilers() -> None:
    """Have torch.compile and Triton keep what they compile here too, unless their own variables say where.

    Left alone torch.compile runs what it finds in /tmp/torchinductor_USER, which anybody can make first.
    Torch writes that into its variable when its compiler is imported.
    """
    for name, variable in (("inductor", "TORCHINDUCTOR_CACHE_DIR"), ("triton", "TRITON_CACHE_DIR")):
        chosen = os.environ.get(variable, "")
        if not chosen or chosen.startswith(f"{tempfile.gettempdir()}/torchinductor_"):
            with _private_folder() as (path, _):
                os.environ[variable] = str(path / name)


def _path() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatv_kernels"
    return Path(os.environ.get("MEGATV_KERNELS_CACHE") or default)


def _refusal(path: Path, why: str) -> ValueError:
    return ValueError(
        f"compiled kernels are not kept in {path}: {why}; remove it or name another folder in "
        "MEGATV_KERNELS_CACHE, below folders that only you may write, such as /tmp/kernels-"
        f"{os.geteuid()}"
    )


@contextlib.contextmanager
def _locked(folder: int, name: str) -> Iterator[None]:
    lock = os.open(f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _read(folder: int, name: str) -> bytes | None:
    """The content of a file that is ours, regular and whole; None when there is none."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:  # none, or a link
        return None
    with open(file, "rb") as opened:
        found = os.fstat(file)
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        if not ours or found.st_size > LARGEST_BYTES:
            return None
        text = opened.read()
    digest, content = text[:DIGEST_BYTES], text[DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def _write(folder: int, name: str, content: bytes) -> None:
    """Put the whole file in the place of whatever has its name: a link is replaced, not followed."""
    scratch = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(scratch, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(scratch, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(scratch, dir_fd=folder)
        raise
