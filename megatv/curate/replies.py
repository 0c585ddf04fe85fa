"""Replies kept on disk, a file each, that only their owner may read.

A folder of replies may come from a stranger: a file there is read within bounds, and only if it is a regular
one. Whether its reply is of the right form is for the caller to check.
"""

from __future__ import annotations

import json
from pathlib import Path

from megatv.curate.post import MAX_ANSWER_BYTES
from megatv.regular_file import read_bytes, write_file
from megatv.untrusted import parse_json

MAX_FILE_BYTES = 6 * MAX_ANSWER_BYTES + 64
"""A reply in JSON, where a character may take six bytes."""


def read_reply(file: Path) -> str | None:
    """The reply in `file`; None when there is none that can be read."""
    try:
        tree = parse_json(read_bytes(file, MAX_FILE_BYTES))
    except (OSError, ValueError):
        return None
    reply = tree.get("reply") if isinstance(tree, dict) else None
    return reply if isinstance(reply, str) else None


def write_reply(file: Path, reply: str) -> None:
    """Write atomically; folders that are missing are made. Raises OSError."""
    for folder in (file.parent.parent, file.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(file, json.dumps({"reply": reply}), private=True)
