"""Reads one row of an MDS file as bytes; every offset and length is checked before it is used.

    uint32          n, the rows of the file
    uint32 [n + 1]  where every row begins and the last one ends, in bytes from the file's start
    text            the columns once more, for other readers
    n rows          uint32 lengths of the columns without a fixed one, then all columns in order of names

Numbers are little-endian. Such files are written by MosaicML's streaming. Its own reader decodes a column by
whatever the index calls it, Python's pickle included, so that an index from a stranger runs code. Here a
column is bytes, and what they mean is known beforehand (`megatv.data.format`).
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass

MAX_FILE_BYTES = (1 << 32) - 1
"""Offsets in a file are 32-bit numbers."""


@dataclass(frozen=True)
class Column:
    """What every row holds under one name.

    encoding     what MDS calls it, such as `str`
    least, most  bytes of a row's value
    fixed        its length is always `most`, and rows do not repeat it
    """

    name: str
    encoding: str
    least: int
    most: int
    fixed: bool = False

    @property
    def size(self) -> int | None:
        """The length as the index gives it: None where rows say it."""
        return self.most if self.fixed else None


def row_bytes(columns: tuple[Column, ...]) -> tuple[int, int]:
    """The fewest and the most bytes that a row of these columns takes."""
    lengths = 4 * sum(not column.fixed for column in columns)
    return lengths + sum(column.least for column in columns), lengths + sum(column.most for column in columns)


def read_row(file: io.BufferedReader, rows: int, row: int, columns: tuple[Column, ...]) -> dict[str, bytes]:
    """The columns of row 0 <= `row` < `rows`, by name. Raises ValueError when the file cannot hold them so.

    Reads no more than the longest row that `columns` allow; asks for no memory before the row's place fits
    the file.
    """
    handle = file.fileno()
    size = os.fstat(handle).st_size
    begin, end = struct.unpack("<II", _read(handle, 4 + 4 * row, 8))
    if not 4 * (rows + 2) <= begin <= end <= size:
        raise ValueError(f"it is said to lie at bytes {begin} to {end} of a file of {size}")
    least, most = row_bytes(columns)
    if not least <= end - begin <= most:
        raise ValueError(f"it has {end - begin} bytes where {least} to {most} are expected")
    data = _read(handle, begin, end - begin)
    varying = sum(not column.fixed for column in columns)
    lengths = iter(struct.unpack_from(f"<{varying}I", data))
    found, at = {}, 4 * varying
    for column in columns:
        length = column.most if column.fixed else next(lengths)
        if not column.least <= length <= min(column.most, len(data) - at):
            raise ValueError(f"its {column.name} is said to have {length} bytes")
        found[column.name] = data[at : at + length]
        at += length
    if at != len(data):
        raise ValueError(f"it has {len(data) - at} bytes behind its last column")
    return found


def _read(handle: int, at: int, count: int) -> bytes:
    data = os.pread(handle, count, at)
    if len(data) != count:
        raise ValueError(f"the file ends {count - len(data)} bytes early")
    return data
