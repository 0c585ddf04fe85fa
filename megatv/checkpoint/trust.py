"""Which places of a checkpoint's config are followed: those that its user has named before.

A checkpoint carries the config of its training, which names files, folders and URLs: of the codec, the
tokenizer and shards. Whoever made the checkpoint chose them, so they are opened only when they are

    named by this user before    in the config of a training started on this machine, see `remember`
    inside the run itself        links resolved; no file in such a folder may be a link out of the run
    names of what megatv ships   the `dct` codec, the `toy_world` tokenizer

Everything else needs an option: the place itself (--codec, --tokenizer, --data), or --trust-checkpoint.
Relative paths are relative to the working directory, as in training.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatv.checkpoint.meta import CHECKPOINTS
from megatv.choices import TOY_WORLD
from megatv.config import Config, DataConfig
from megatv.log import say
from megatv.untrusted import foreign

FLAGS = {
    "codec.path": "--codec",
    "tokenizer.path": "--tokenizer",
    "data.train": "--data",
    "data.val": "--data",
}
"""The keys of a checkpoint's config that are followed, and the options that name another place."""
NAMED = "named_paths"


@dataclasses.dataclass(frozen=True)
class Trust:
    """What the user allows a checkpoint that is to be opened.

    checkpoint   follow all places that its config names
    codec        run TorchScript files of a codec whose SHA-256 is not a published one
    codec_path, tokenizer_path, data   places of the user's, instead of codec.path, tokenizer.path, and of
                 data.val (or data.train, where a tool reads that)
    """

    checkpoint: bool = False
    codec: bool = False
    codec_path: str | None = None
    tokenizer_path: str | None = None
    data: str | None = None

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the command-line options that `given` reads."""
        add = parser.add_argument
        add("--codec", metavar="PATH", help="weights of the codec, instead of the checkpoint's codec.path")
        add("--tokenizer", metavar="FILE", help="instead of the checkpoint's tokenizer.path")
        add("--data", metavar="DIR_OR_URL", help="shards of the examples, instead of those of the checkpoint")
        add("--trust-checkpoint", action="store_true", help="open whatever files and URLs its config names")
        add("--trust-codec", action="store_true", help="run TorchScript codec files that are not known")

    @staticmethod
    def given(args: argparse.Namespace) -> Trust:
        """What the user has said with the options of `add_options`."""
        return Trust(args.trust_checkpoint, args.trust_codec, args.codec, args.tokenizer, args.data)

    def options(self) -> list[str]:
        """The command-line options that give another command the same trust."""
        named = {"codec": self.codec_path, "tokenizer": self.tokenizer_path, "data": self.data}
        said = {"trust-checkpoint": self.checkpoint, "trust-codec": self.codec}
        return [f"--{key}={place}" for key, place in named.items() if place is not None] + [
            f"--{key}" for key, yes in said.items() if yes
        ]


STRANGER = Trust()
"""Nothing is known of who made the checkpoint."""


def admit(config: Config, checkpoint: str | Path, trust: Trust) -> tuple[Config, dict[str, str]]:
    """The config of `checkpoint` with the user's places in it, and why its shards must not be opened, by key.

    Where data.cache_dir is not to be followed, the default takes its place, which is in the working
    directory. Raises ValueError for a codec or a tokenizer that must not be followed.
    """
    named, run = _named(), _run_of(Path(checkpoint))

    def distrust(place: str) -> str | None:
        """Why a place is not followed, or None."""
        if trust.checkpoint or _absolute(place) in named:
            return None
        if not _inside(place, run):
            return "a place that you have not named on this machine"
        return next((f"in which {path} {fault}" for path, fault in foreign(Path(place), Path(run))), None)

    def refusal(key: str, place: str | None) -> str | None:
        if place is None or not (why := distrust(place)):
            return None
        return (
            f"{checkpoint}: its config names {key} {place[:200]!r}, {why}, so it is not followed: name it "
            f"with {FLAGS[key]}, or follow all that this checkpoint names with --trust-checkpoint"
        )

    codec, tokenizer, data = config.codec, config.tokenizer, config.data
    if trust.codec_path is not None:
        codec = dataclasses.replace(codec, path=trust.codec_path)
    elif codec.kind != "dct" and (why := refusal("codec.path", codec.path)):
        raise ValueError(why)
    if trust.tokenizer_path is not None:
        tokenizer = dataclasses.replace(tokenizer, path=trust.tokenizer_path)
    elif tokenizer.path != TOY_WORLD and (why := refusal("tokenizer.path", tokenizer.path)):
        raise ValueError(why)
    refused = {}
    if trust.data is not None:
        data = dataclasses.replace(data, train=trust.data, val=trust.data)
    else:
        places = {"data.train": data.train, "data.val": data.val}
        refused = {key: why for key, place in places.items() if (why := refusal(key, place))}
    if distrust(data.cache_dir):
        default = DataConfig(data.train)
        data = dataclasses.replace(data, cache_dir=default.cache_dir, cache_bytes=default.cache_bytes)
    return dataclasses.replace(config, codec=codec, tokenizer=tokenizer, data=data), refused


def remember(config: Config) -> None:
    """Note the places of a config that the user wrote, so that checkpoints trained with it may name them.

    They go into `named_paths` of the user's state folder, a line each. Where that file cannot be written, is
    another user's or a link, one line says so: sampling then needs --trust-checkpoint.
    """
    data, codec, tokenizer = config.data, config.codec, config.tokenizer
    places = [codec.path, tokenizer.path, data.train, data.val, data.cache_dir]
    wanted = {_absolute(place) for place in places if place not in (None, TOY_WORLD)}
    try:
        with _open_named(create=True) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = _read(file)
            lines = sorted(place for place in wanted - set(text.split("\n")) if "\n" not in place)
            if lines:
                start = "" if not text or text.endswith("\n") else "\n"
                os.write(file, os.fsencode(start + "".join(f"{line}\n" for line in lines)))
    except (OSError, ValueError) as error:
        say(f"what this config names is not remembered ({error}): sampling will ask for --trust-checkpoint")


def _named() -> set[str]:
    """The places that this user has named, absolute; none without the file, or when it is another user's."""
    try:
        with _open_named(create=False) as file:
            return set(_read(file).split("\n")) - {""}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        say(f"what you have named before is not known ({error})")
        return set()


@contextmanager
def _open_named(*, create: bool) -> Iterator[int]:
    """The file of named places, open for reading or for appending too. ValueError if it isn't the user's."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # as the XDG base directory specification wants it
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    folder = Path(state, "megatv")
    if not folder.is_absolute():
        raise ValueError("no home directory: set XDG_STATE_HOME")
    if create:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    # no link is followed, and a pipe does not hold the reader up
    careful = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | careful)
    try:
        _require_own(within, folder)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT if create else os.O_RDONLY
        file = os.open(NAMED, flags | careful, 0o600, dir_fd=within)
        try:
            _require_own(file, folder / NAMED)
            yield file
        finally:
            os.close(file)
    finally:
        os.close(within)


def _require_own(descriptor: int, path: Path) -> None:
    """Refuse (ValueError) what others than this user could have written."""
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"{path}: others can write it; make it your own, writable by you alone")
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise ValueError(f"{path}: is no file; remove it")


def _read(file: int) -> str:
    os.lseek(file, 0, os.SEEK_SET)
    with os.fdopen(os.dup(file), "rb") as stream:
        return os.fsdecode(stream.read())


def _run_of(checkpoint: Path) -> str:
    """The folder whose files are the checkpoint's own: its run's, where it lies in one."""
    path = Path(os.path.realpath(checkpoint))
    run = path.parent.parent
    return str(run if path.parent.name == CHECKPOINTS and (run / "config.yaml").is_file() else path)


def _inside(place: str, run: str) -> bool:
    return "://" not in place and Path(_absolute(place)).is_relative_to(run)


def _absolute(place: str) -> str:
    """One spelling of a place: the real path of a file or folder, a URL as it is; "" for what is neither."""
    try:
        return place.rstrip("/") if "://" in place else os.path.realpath(place)
    except ValueError:  # a NUL, or half of a character
        return ""
