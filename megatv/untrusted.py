"""Reading what a stranger may have written: JSON texts, and the names of files in them."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any


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


def plain_name(name: Any) -> str:
    """`name`, when it names one file or folder: no slash, backslash or NUL in it, and not `.` or `..`.

    Raises ValueError with a sentence that begins with the name.
    """
    if isinstance(name, str) and name not in ("", ".", "..") and not any(c in name for c in "/\\\0"):
        return name
    raise ValueError(f"{_short(name)} is not a plain file name")


def inside(folder: Path, name: Any, *, links: bool = False) -> Path:
    """The path `folder / name` of a relative name such as `clips/a.mp4`, when it stays below `folder`.

    links  whether a symbolic link below `folder` may lead out of it, as in the cache of Hugging Face
    Raises ValueError with a sentence that begins with the name.
    """
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or name.startswith("/") or ".." in parts or any(c in name for c in "\\\0"):
        raise ValueError(f"{_short(name)} does not name a file within {folder}")
    path = folder.joinpath(*parts)
    if not links and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{_short(name)} is a link that leads out of {folder}")
    return path


def _short(name: Any) -> str:
    return repr(name)[:80]
