"""index.json of a shard directory as arrays: 24 bytes a shard, however many examples.

    {"shards": [{"raw_data": {"basename": "shard.00000.mds", "bytes": 67085062, "hashes": {"xxh64": "22.."}},
                 "samples": 80, "column_names": [..], .., "version": 2, "format": "mds"}, ..], "version": 2}

Ten million examples are 125,000 shards, whose entries take 50 MB as text and 400 MB as objects, in every rank
of a node. So the text is read in pieces, an entry at a time; what is alike in all of them is kept once.
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
from typing import Any

import numpy as np

from megatv.data.format import REMEDY

HASH = "xxh64"
COLUMNS = ("column_names", "column_encodings", "column_sizes")
FORMAT = {"version": 2, "format": "mds", "compression": None}
PIECE = 1 << 18
"""Characters of the text that are read at a time."""
_OPENING, _EDGE = re.compile(r'"shards"\s*:\s*\['), re.compile(r"[{\]]")
_NAME = re.compile(r"shard\.([0-9]{5}|[1-9][0-9]{5,})\.mds")


@dataclass(frozen=True)
class Index:
    """The shards of one directory, numbered as in its index and in the names of their files.

    bytes    int64 [shards]: size of every file
    starts   int64 [shards + 1]: number of every shard's first example; the last is how many there are
    digests  uint64 [shards]: xxh64 of every file
    columns  names, encodings and sizes of the columns, the same in every shard: arguments of `MDSReader`
    """

    bytes: np.ndarray
    starts: np.ndarray
    digests: np.ndarray
    columns: dict[str, list[Any]]

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


def read_index(directory: Path) -> Index:
    """Read index.json. Raises ValueError when it is damaged, lists no shards, or shards of several kinds."""
    path = directory / "index.json"
    sizes, samples, digests = array("q"), array("q"), array("Q")
    common: dict[str, Any] = {}
    for shard, entry in enumerate(_entries(path)):
        try:
            file, found = entry["raw_data"], {key: entry[key] for key in (*FORMAT, *COLUMNS)}
            name, digest = file["basename"], file["hashes"][HASH]
            sizes.append(file["bytes"])
            samples.append(entry["samples"])
            digests.append(int(digest, 16))
            known = sizes[-1] >= 0 and samples[-1] >= 0 and digest == f"{digests[-1]:016x}"
        except (KeyError, TypeError, ValueError, OverflowError):
            known = False
        if not known:
            raise ValueError(f"{path}: is not an MDS index with {HASH} hashes (shard {shard}); {REMEDY}")
        if name != shard_name(shard):
            raise ValueError(
                f"{path}: shard {shard} is called '{name}' where '{shard_name(shard)}' is expected; rename "
                "it, in the index too, or copy the directory again"
            )
        common = common or {**found, **FORMAT}
        if differing := [key for key, value in found.items() if value != common[key]]:
            raise ValueError(
                f"{path}: shard {shard} has {differing[0]} {found[differing[0]]} where "
                f"{common[differing[0]]} is expected: all shards of a directory hold the same columns, "
                f"uncompressed; {REMEDY}"
            )
    if not sizes:
        raise ValueError(f"{directory}: its index lists no shards; make them with tools/make_shards.py")
    starts = np.concatenate([[0], np.cumsum(samples, dtype=np.int64)])
    return Index(np.array(sizes), starts, np.array(digests), {key: common[key] for key in COLUMNS})


def _entries(path: Path) -> Iterator[Any]:
    """The elements of the array "shards", cut out of the text one by one as it comes.

    What is left, `{"shards": [null, null, ..], "version": 2}`, is read when all are through, so that JSON's
    own reader judges all of the text. Raises ValueError when that is damaged or lists anything else.
    """
    decode = json.JSONDecoder().raw_decode
    text, rest, count, edge = "", io.StringIO(), 0, _OPENING
    try:
        with path.open(encoding="utf-8") as file:
            while piece := file.read(PIECE):
                text, at = text + piece, 0
                while (found := edge.search(text, at)) and found[0] != "]":
                    start, end, left = found.start(), found.end(), found[0]
                    if left == "{":
                        try:
                            element, end = decode(text, start)
                        except json.JSONDecodeError:
                            break  # the piece ends within the element, or it is damaged and stays in the text
                        yield element
                        count, left = count + 1, "null"
                    rest.write(text[at:start] + left)
                    at, edge = end, _EDGE
                text = text[at:]
        tree = json.loads(rest.getvalue() + text)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is damaged ({error.msg}, behind {count} shards); {REMEDY}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is damaged ({error}); {REMEDY}") from None
    if not isinstance(tree, dict) or tree.get("version") != 2 or tree.get("shards") != [None] * count:
        raise ValueError(f"{path}: is not an MDS index of version 2; {REMEDY}")
