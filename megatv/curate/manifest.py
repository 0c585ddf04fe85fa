"""What a stage did with every item, as lines of a JSONL file that survives any crash.

A line is appended and synced when an item is finished and never changed afterwards; the newest line of a key
counts. A process killed while it writes leaves a line without an end, which the next start cuts off.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

Item = dict[str, Any]
"""Plain JSON data with an `id` that is unique in its stage."""


@dataclass(frozen=True)
class Record:
    """One finished item.

    key      says for which input, code and settings this holds, see `key_of`
    id       of the input item
    status   `kept`: passed on; `dropped`: judged and left out; `failed`: could not be judged
    outputs  the items that the next stage gets (none unless kept)
    reason   of a drop or a failure, in words
    facts    measured on the way (scores, tokens), for the report
    seconds  that a worker spent on it
    """

    key: str
    id: str
    status: Literal["kept", "dropped", "failed"]
    outputs: list[Item] = field(default_factory=list)
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def key_of(item: Item, stage: str, version: int, settings: Any) -> str:
    """Hash of all that decides a result: item (its id and what earlier stages said), stage, settings."""
    plain = json.dumps([item, stage, version, settings], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:24]


def seconds_of(item: Item) -> float:
    """Length of the video that an item stands for; 0 before a header was read."""
    if "start" in item:
        return float(item["end"] - item["start"])
    return float(item["info"]["seconds"]) if "info" in item else 0.0


class Manifest:
    """The records of one stage in a file; one process writes it. Use as a context manager.

    Raises ValueError when a finished line is damaged (the file was edited or the disk failed).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self.records = self._read()

    def append(self, record: Record) -> None:
        """Write one record; it is on the disk when this returns."""
        self._file.write(json.dumps(asdict(record)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records[record.key] = record

    def close(self) -> None:
        """Close the file; `records` stay readable."""
        self._file.close()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> dict[str, Record]:
        self._file.seek(0)
        records: dict[str, Record] = {}
        size = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                self._file.truncate(size)
                break
            size += len(line)
            record = _parse(line, f"{self.path} line {number}")
            records[record.key] = record
        return records


def _parse(line: bytes, where: str) -> Record:
    try:
        tree = json.loads(line)
        if not isinstance(tree, Mapping) or set(tree) != {f.name for f in fields(Record)}:
            raise ValueError("not the keys of a record")
        return Record(**tree)
    except ValueError as error:
        raise ValueError(
            f"{where}: is damaged ({error}); delete that line, and its item will be done again"
        ) from None
