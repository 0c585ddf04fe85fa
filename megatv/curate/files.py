"""Files written whole or not at all, never through a link that somebody put in their place."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_file(path: Path, text: str, *, private: bool = False) -> None:
    """Write UTF-8 atomically, by way of a new file beside `path`. Raises OSError.

    private  only the owner may read it
    A file's name may be no Unicode: what cannot be encoded is written as JSON does, such as \\udcff.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    mode = 0o600 if private else 0o666
    try:
        with open(
            partial, "x", encoding="utf-8", errors="backslashreplace", opener=lambda p, f: os.open(p, f, mode)
        ) as file:
            file.write(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
