"""Reads JSON and file names that a stranger may have written, and makes text safe to print."""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from megatv.regular_file import open_regular

MAX_LINE_BYTES, MAX_LINES_BYTES = 1 << 20, 1 << 30
"""Most bytes of one line of a JSONL file, and of the file when nothing less is asked for."""
MAX_FAULTS = 100
"""Lines that may be wrong in a file whose other lines are used."""
MAX_LEVELS = 32
"""Lists and objects within each other in a record: later walks over it stay far below Python's limit."""
MAX_NAME_BYTES, MAX_PART_BYTES = 1024, 255
"""Most bytes of a relative name, and of one file's or folder's name, as file systems have it."""


def parse_json(text: str | bytes) -> Any:
    """Plain data of a JSON text.

    Raises json.JSONDecodeError, a ValueError, for every fault: Python's own reader answers a thousand open
    brackets with RecursionError, bytes that are no text with UnicodeDecodeError, and a number of 5,000 digits
    with a bare ValueError; of a key that is given twice it would keep the last value without a word.
    """
    with _one_kind_of_error():
        return json.loads(text, object_pairs_hook=_no_key_twice)


def read_object(text: str, begin: int) -> tuple[Any, int]:
    """The JSON object that begins at `text[begin]`, and where it ends; what comes after it is not looked at.

    Raises json.JSONDecodeError as `parse_json` does, and when an object has a key twice.
    """
    with _one_kind_of_error():
        return json.JSONDecoder(object_pairs_hook=_no_key_twice).raw_decode(text, begin)


@contextmanager
def _one_kind_of_error() -> Iterator[None]:
    """Within: every fault of JSON is a json.JSONDecodeError."""
    try:
        yield
        return
    except json.JSONDecodeError:
        raise
    except RecursionError:
        reason = "nested too deeply"
    except _KeyTwice as error:
        reason = str(error)
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    except ValueError:
        reason = "a number with too many digits"
    raise json.JSONDecodeError(reason, "", 0)


class _KeyTwice(ValueError):
    """An object of which Python's reader would keep the last value, and another reader the first."""


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree:
            raise _KeyTwice(f"the key {_short(key)} is given twice")
        tree[key] = value
    return tree


def is_deeper(tree: Any, levels: int) -> bool:
    """Whether plain data has more than `levels` levels of objects and lists."""
    if not isinstance(tree, (dict, list)):
        return False
    inner = tree.values() if isinstance(tree, dict) else tree
    return levels == 0 or any(is_deeper(value, levels - 1) for value in inner)


def _is_finite(tree: Any) -> bool:
    """Whether plain data has no NaN and no infinite number, which Python's reader makes of 1e999 too."""
    if isinstance(tree, (dict, list)):
        return all(map(_is_finite, tree.values() if isinstance(tree, dict) else tree))
    return not isinstance(tree, float) or math.isfinite(tree)


def json_lines(
    path: Path, most: int | None = None, faults: list[str] | None = None
) -> Iterator[tuple[str, Any]]:
    """(`FILE line N`, plain data) of every line of a JSONL file that is not blank.

    Lines end with \n or \r\n and nowhere else; a mark of byte order at the file's beginning is skipped.

    most    bytes of the whole file (MAX_LINES_BYTES): as objects of Python, lines take several times as much
    faults  where sentences of lines that are not valid go, so that these do not cost the others anything;
            with MAX_FAULTS of them the file is no such file, and the next one is raised
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
                if size > (most or MAX_LINES_BYTES):
                    raise ValueError(
                        f"{path}: is longer than {(most or MAX_LINES_BYTES) >> 20:,} MiB; cut it into several"
                    )
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    continue
                try:
                    tree = _json_line(line, where)
                except ValueError as error:
                    if faults is None or len(faults) >= MAX_FAULTS:
                        raise
                    faults.append(str(error))
                else:
                    yield where, tree
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a JSONL file") from None


def _json_line(line: bytes, where: str) -> Any:
    try:
        tree = parse_json(line.decode().rstrip("\r\n"))
        if is_deeper(tree, MAX_LEVELS):
            raise ValueError(
                f"{where}: is nested too deeply, more than {MAX_LEVELS} levels; write it flatter"
            )
        json.dumps(tree, ensure_ascii=False).encode()
        if not _is_finite(tree):
            raise ValueError(f"{where}: has NaN or an infinite number; write a number of ordinary size")
    except (UnicodeDecodeError, UnicodeEncodeError):
        raise ValueError(f"{where}: is not UTF-8, or has half a character (a lone \\ud800) in it") from None
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, column {error.colno}" if error.doc else error.msg
        raise ValueError(f"{where}: is not valid JSON ({reason}); write one object on one line") from None
    return tree


def text_lines(text: str) -> list[str]:
    """The lines of a text, which end with \\n or \\r\\n only: `str.splitlines` also ends them at U+2028.

    A mark of byte order, which editors leave at the beginning of a file, is skipped.
    """
    return [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]


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
