"""Reads JSON and file names that a stranger may have written, and makes text safe to print."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from megatv.regular_file import open_regular

MAX_LINE_BYTES, MAX_LINES_BYTES = 1 << 20, 1 << 30
"""Most bytes of one line of a JSONL file, and of the file."""
MAX_LEVELS = 32
"""Lists and objects within each other in a record: later walks over it stay far below Python's limit."""
MAX_NAME_BYTES, MAX_PART_BYTES = 1024, 255
"""Most bytes of a relative name, and of one file's or folder's name, as file systems have it."""


def parse_json(text: str | bytes) -> Any:
    """Plain data of a JSON text.

    Raises json.JSONDecodeError, a ValueError, for every fault: Python's own reader answers a thousand open
    brackets with RecursionError, bytes that are no text with UnicodeDecodeError, and a number of 5,000 digits
    with a bare ValueError.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        reason = "nested too deeply"
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    except ValueError:
        reason = "a number with too many digits"
    raise json.JSONDecodeError(reason, "", 0)


def is_deeper(tree: Any, levels: int) -> bool:
    """Whether plain data has more than `levels` levels of objects and lists."""
    if not isinstance(tree, (dict, list)):
        return False
    inner = tree.values() if isinstance(tree, dict) else tree
    return levels == 0 or any(is_deeper(value, levels - 1) for value in inner)


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(`FILE line N`, plain data) of every line of a JSONL file that is not blank.

    Raises ValueError that begins with the file, or with file and line.
    """
    number = size = 0
    try:
        with open_regular(path, links=True) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number, size = number + 1, size + len(line)
                where = f"{path} line {number}"
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"{where}: is longer than {MAX_LINE_BYTES >> 20} MiB; shorten it")
                if size > MAX_LINES_BYTES:
                    raise ValueError(
                        f"{path}: is longer than {MAX_LINES_BYTES >> 30} GiB; cut it into several"
                    )
                if line.strip():
                    yield where, _json_line(line, where)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a JSONL file") from None


def _json_line(line: bytes, where: str) -> Any:
    try:
        tree = parse_json(line.decode())
        if b"\\ud" in line.lower():
            json.dumps(tree, ensure_ascii=False).encode()
    except (UnicodeDecodeError, UnicodeEncodeError):
        raise ValueError(f"{where}: is not UTF-8, or has half a character (a lone \\ud800) in it") from None
    except ValueError as error:
        raise ValueError(f"{where}: is not valid JSON ({error}); write one object on one line") from None
    if is_deeper(tree, MAX_LEVELS):
        raise ValueError(f"{where}: is nested too deeply, more than {MAX_LEVELS} levels; write it flatter")
    return tree


def plain_name(name: Any) -> str:
    """`name`, when it names one file or folder: no slash, backslash or NUL in it, and not `.` or `..`.

    Raises ValueError with a sentence that begins with the name.
    """
    if (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(c in name for c in "/\\\0")
        and _bytes(name) <= MAX_PART_BYTES
    ):
        return name
    raise ValueError(f"{_short(name)} is not a plain file name")


def inside(folder: Path, name: Any, *, links: bool = False) -> Path:
    """The path `folder / name` of a relative name such as `clips/a.mp4`, when it stays below `folder`.

    links  whether a symbolic link below `folder` may lead out of it, as in the cache of Hugging Face
    Raises ValueError with a sentence that begins with the name.
    """
    parts = PurePosixPath(name).parts if isinstance(name, str) and _bytes(name) <= MAX_NAME_BYTES else ()
    if (
        not parts
        or name.startswith("/")
        or ".." in parts
        or any(c in name for c in "\\\0")
        or max(map(_bytes, parts)) > MAX_PART_BYTES
    ):
        raise ValueError(f"{_short(name)} does not name a file within {folder}")
    path = folder.joinpath(*parts)
    if not links and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{_short(name)} is a link that leads out of {folder}")
    return path


def foreign(folder: Path, home: Path, but: Collection[Path] = ()) -> Iterator[tuple[Path, str]]:
    """What must not lie in a folder below `home`, and what it is: a link out of `home`, a pipe, a device.

    but  folders that are not looked into
    """
    root = os.path.realpath(home)
    for place, folders, files in os.walk(folder):
        paths = [Path(place, name) for name in (*folders, *files)]
        folders[:] = [name for name in folders if Path(place, name) not in but]
        for path in paths:
            if path.is_symlink():
                if not Path(os.path.realpath(path)).is_relative_to(root):
                    yield path, f"is a link that leads out of {home}"
            elif not (path.is_file() or path.is_dir()):
                yield path, "is neither a file nor a folder"


def printable(text: str, keep: str = "\n\t") -> str:
    """`text` with control characters and halves of characters escaped: a terminal would obey the first.

    keep  those that stay: line breaks and tabs
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def _bytes(name: str) -> int:
    """How long the file system would find a name; too long, when it cannot be one."""
    try:
        return len(os.fsencode(name))
    except UnicodeEncodeError:
        return MAX_NAME_BYTES + 1


def _short(name: Any) -> str:
    return repr(name)[:80]
