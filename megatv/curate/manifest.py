"""What a stage did with every item, as lines of a JSONL file that survives any crash.

A line is appended and synced when an item is finished and never changed afterwards; the newest line of a key
counts. A process killed while it writes leaves a line without an end, which the next start cuts off.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from megatv.untrusted import MAX_LINE_BYTES, MAX_LINES_BYTES, parse_json, plain_name

MAX_NUMBER = 1e15
"""Most of any quantity: seconds, pixels, tokens."""
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

    makes  keys that every output has
    Raises ValueError when a finished line is damaged (the file was edited or the disk failed), when a value
    in it has the wrong type, and when the file is a link: another file would be cut off and written.
    """

    def __init__(self, path: Path, makes: Sequence[str] = ()) -> None:
        self.path, self._makes = path, makes
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ValueError(f"{path}: is a link or no file; remove it, or name another folder")
        self._file = path.open("a+b")
        try:
            self.records = self._read()
        except BaseException:
            self._file.close()
            raise

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
        lines = iter(lambda: self._file.readline(MAX_LINE_BYTES + 1), b"")
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{self.path} line {number}: is longer than {MAX_LINE_BYTES >> 20} MiB")
            if not line.endswith(b"\n"):
                self._file.truncate(size)
                break
            size += len(line)
            if size > MAX_LINES_BYTES:
                raise ValueError(f"{self.path}: is longer than {MAX_LINES_BYTES >> 30} GiB")
            record = _parse(line, f"{self.path} line {number}", self._makes)
            records[record.key] = record
        return records


def _parse(line: bytes, where: str, makes: Sequence[str]) -> Record:
    try:
        tree = parse_json(line)
        if not isinstance(tree, dict) or set(tree) != {f.name for f in fields(Record)}:
            raise ValueError("not the keys of a record")
        for name, is_right in _RECORD.items():
            if not is_right(tree[name]):
                raise ValueError(f"its {name} has the wrong type")
        for item in tree["outputs"]:
            _check_item(item, makes)
        return Record(**tree)
    except ValueError as error:
        raise ValueError(
            f"{where}: is damaged ({error}); delete that line, and its item will be done again"
        ) from None


def _check_item(item: Any, makes: Sequence[str]) -> None:
    needs = ("id", *makes)
    if (
        not isinstance(item, dict)
        or any(key not in item for key in needs)
        or ("start" in item) != ("end" in item)
    ):
        raise ValueError(f"an output lacks one of {', '.join(needs)}")
    for name in item.keys() & _ITEM.keys():
        if not _ITEM[name](item[name]):
            raise ValueError(f"an output's {name} has the wrong type")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_NUMBER


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _is_span(value: Any) -> bool:
    return _are_numbers(value) and len(value) == 2


def _is_info(value: Any) -> bool:
    """Of a video's header; see `VideoInfo`."""
    if not isinstance(value, dict) or set(value) != {"width", "height", "rate", "seconds"}:
        return False
    return all(map(_is_number, value.values())) and value["width"] > 0 and value["height"] > 0


def _are_captions(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, dict) and set(v) == {"start", "text"} and _is_number(v["start"]) and _is_text(v["text"])
        for v in values
    )


def _is_plain_name(value: Any) -> bool:
    try:
        return bool(plain_name(value))
    except ValueError:
        return False


_RECORD: dict[str, Callable[[Any], bool]] = {
    "key": _is_text,
    "id": _is_text,
    "status": lambda value: value in ("kept", "dropped", "failed"),
    "outputs": lambda value: isinstance(value, list),
    "reason": _is_text,
    "facts": lambda value: (
        isinstance(value, dict)
        and all(_is_number(fact) or (name == "stage" and _is_text(fact)) for name, fact in value.items())
    ),
    "seconds": _is_number,
}
_ITEM: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("id", "video", "meta_caption", "detailed_caption"), _is_text),
    **dict.fromkeys(("start", "end", "shot_start", "quality"), _is_number),
    "info": _is_info,
    "key_frames": _are_numbers,
    "segments": lambda value: isinstance(value, list) and all(map(_is_span, value)),
    "captions": _are_captions,
    "file": _is_plain_name,
}
