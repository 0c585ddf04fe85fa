"""index.json of a shard directory as arrays: 24 bytes a shard, however many examples.

    {"shards": [{"raw_data": {"basename": "shard.00000.mds", "bytes": 67085062, "hashes": {"xxh64": "22.."}},
                 "samples": 80, "column_names": [..], .., "version": 2, "format": "mds"}, ..], "version": 2}

Ten million examples are 125,000 shards, whose entries take 50 MB as text and 400 MB as objects, in every rank
of a node. So the text is read in pieces, an entry at a time, and only numbers are kept: names of files and
columns are known beforehand, and an index that says anything else is refused.
"""

from __future__ import annotations

import io
import json
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np

from megatv.data.files import REMEDY, open_file
from megatv.data.format import DatasetInfo
from megatv.data.mds import MAX_FILE_BYTES, Column, row_bytes
from megatv.untrusted import parse_json, read_object

HASH = "xxh64"
FORMAT = {"version": 2, "format": "mds", "compression": None}
PIECE = 1 << 18
"""Characters of the text that are read at a time."""
MAX_TEXT_BYTES = 1 << 30
"""Of index.json: some two million shards."""
MAX_EXAMPLES = 1 << 30
"""Of one directory: their order takes five bytes each, in numbers below 2^32."""
MAX_PENDING = 1 << 20
"""Characters of one entry, or outside of entries, that are held. MDSWriter's entries have some 400."""
_OPENING, _EDGE = re.compile(r'"shards"\s*:\s*\['), re.compile(r"[{\]]")
_DIGEST = re.compile("[0-9a-f]{16}")
_NAME = re.compile(r"shard\.([0-9]{5}|[1-9][0-9]{5,})\.mds")


@dataclass(frozen=True)
class Index:
    """The shards of one directory, numbered as in its index and in the names of their files.

    bytes    int64 [shards]: size of every file
    starts   int64 [shards + 1]: number of every shard's first example; the last is how many there are
    digests  uint64 [shards]: xxh64 of every file
    """

    bytes: np.ndarray
    starts: np.ndarray
    digests: np.ndarray

    def place(self, example: int) -> tuple[int, int]:
        """(shard, row in it) of an example, 0 <= example < starts[-1]."""
        shard = int(self.starts.searchsorted(example, side="right")) - 1
        return shard, int(example - self.starts[shard])

    def file(self, shard: int) -> tuple[str, int, str]:
        """(name, bytes, xxh64 in hexadecimal) of a shard's file."""
        return shard_name(shard), int(self.bytes[shard]), f"{self.digests[shard]:016x}"

    def sizes_found(self, directory: Path) -> np.ndarray:
        """int64 [shards]: bytes of the files in a directory, -1 where there is none.

        Asked for in the directory's own order: network file systems send sizes along with a listing, and
        answer one by one otherwise.
        """
        found = np.full(len(self.bytes), -1)
        with os.scandir(directory) as entries:
            for entry in entries:
                name = _NAME.fullmatch(entry.name)
                if name and int(name[1]) < len(found) and entry.is_file():
                    found[int(name[1])] = entry.stat().st_size
        return found


def shard_name(shard: int) -> str:
    """The name that MDSWriter gives to a shard's file."""
    return f"shard.{shard:05}.mds"


def read_index(directory: Path, info: DatasetInfo) -> Index:
    """Read index.json of shards that hold what `info` says.

    Raises ValueError when it is damaged, lists no examples, or lists a shard with other columns, encodings or
    sizes than `info.columns`, of another format, under another name, or of a size that no file can have.
    """
    path = directory / "index.json"
    sizes, samples, digests = array("q"), array("q"), array("Q")
    expected = FORMAT | {
        "column_names": [column.name for column in info.columns],
        "column_encodings": [column.encoding for column in info.columns],
        "column_sizes": [column.size for column in info.columns],
    }
    for shard, entry in enumerate(_entries(path)):
        try:
            found = {key: entry[key] for key in expected}
            file, rows = entry["raw_data"], entry["samples"]
            name, size, digest = file["basename"], file["bytes"], file["hashes"][HASH]
            known = _DIGEST.fullmatch(digest) and type(size) is int and type(rows) is int
        except (KeyError, TypeError):
            known = False
        if not known:
            raise ValueError(f"{path}: is not an MDS index with {HASH} hashes (shard {shard}); {REMEDY}")
        if name != shard_name(shard):
            raise ValueError(
                f"{path}: shard {shard} is called {_short(name)} where '{shard_name(shard)}' is expected; "
                "rename it, in the index too, or copy the directory again"
            )
        if differing := [key for key in expected if found[key] != expected[key]]:
            raise ValueError(
                f"{path}: shard {shard} has {differing[0]} {_short(found[differing[0]])} where "
                f"{_short(expected[differing[0]])} is expected: all shards of a directory hold the columns "
                f"that dataset.json stands for, uncompressed; {REMEDY}"
            )
        if not _fits(size, rows, info.columns):
            raise ValueError(
                f"{path}: shard {shard} is said to hold {_short(rows)} examples in {_short(size)} bytes, "
                f"which no file can; {REMEDY}"
            )
        sizes.append(size)
        samples.append(rows)
        digests.append(int(digest, 16))
    if not any(samples):
        raise ValueError(
            f"{directory}: its index lists no shards with examples; make them with tools/make_shards.py"
        )
    if sum(samples) > MAX_EXAMPLES:
        raise ValueError(
            f"{path}: lists {sum(samples):,} examples, and a directory may have {MAX_EXAMPLES:,}: split it"
        )
    starts = np.concatenate([[0], np.cumsum(samples, dtype=np.int64)])
    return Index(np.array(sizes), starts, np.array(digests))


def _fits(size: int, rows: int, columns: tuple[Column, ...]) -> bool:
    """Whether a file of so many bytes can hold so many rows; MDSWriter may make an empty file first."""
    return rows >= 0 and 4 * (rows + 2) + rows * row_bytes(columns)[0] <= size <= MAX_FILE_BYTES


_REPR = Repr()
_REPR.maxstring = 60


def _short(value: Any) -> str:
    """A value of the index in a message, however long or deep it is."""
    return _REPR.repr(value)


def _entries(path: Path) -> Iterator[Any]:
    """The elements of the array "shards", cut out of the text one by one as it comes.

    What is left, `{"shards": [null, null, ..], "version": 2}`, is read when all are through, so that JSON's
    own reader judges all of the text. Raises ValueError when that is damaged or lists anything else.
    """
    text, rest, count, edge = "", io.StringIO(), 0, _OPENING
    try:
        with (
            open_file(path, MAX_TEXT_BYTES) as raw,
            io.TextIOWrapper(raw, "utf-8") as file,
        ):
            while piece := file.read(PIECE):
                text, at = text + piece, 0
                while (found := edge.search(text, at)) and found[0] != "]":
                    start, end, left = found.start(), found.end(), found[0]
                    if left == "{":
                        try:
                            element, end = read_object(text, start)
                        except json.JSONDecodeError as error:
                            if not error.doc:  # a fault that no more text mends
                                raise
                            break  # the piece ends within the element, or it is damaged and stays in the text
                        yield element
                        count, left = count + 1, "null"
                    rest.write(text[at:start].strip(" \t\r\n") + left)
                    at, edge = end, _EDGE
                text = text[at:]
                if len(text) + rest.tell() > MAX_PENDING + len("null,") * count:
                    raise json.JSONDecodeError("too much beside the shards' entries", "", 0)
        tree = parse_json(rest.getvalue() + text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is damaged ({error.msg}, behind {count} shards); {REMEDY}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is damaged ({error}); {REMEDY}") from None
    if not isinstance(tree, dict) or tree.get("version") != 2 or tree.get("shards") != [None] * count:
        raise ValueError(f"{path}: is not an MDS index of version 2; {REMEDY}")
