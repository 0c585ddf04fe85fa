"""What lies in a checkpoint, a Hugging Face directory or a safetensors file, read from the headers alone."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatv.checkpoint.meta import META, read_meta, require_there
from megatv.checkpoint.store import CHECKPOINTS, latest
from megatv.regular_file import open_regular
from megatv.untrusted import parse_json, printable
from megatv.weights import MAX_HEADER_BYTES

MAX_DIMENSIONS, MAX_TENSORS = 8, 100_000
BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "BOOL": 8, "U8": 8},
    **{"I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64},
    **{"I64": 64, "U64": 64, "C64": 64},
}
"""Bits of one number, by the name that the format gives its type."""


@dataclass(frozen=True)
class Entry:
    """One tensor of one file."""

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def describe(path: Path) -> str:
    """A table of tensors with totals, and the meta record where there is one.

    path: a run (its newest whole checkpoint), a directory with safetensors files, or one such file.
    Raises ValueError when there is nothing to read.
    """
    path, files = tensor_files(path)
    lines = [str(path), *_meta(path)]
    for file in files:
        lines += ["", *_table(list(read_header(file)))]
    return "\n".join(lines)


def tensor_files(path: Path) -> tuple[Path, list[Path]]:
    """What `path` stands for (of a run, its newest whole checkpoint) and the safetensors files there.

    Of a checkpoint, these are the files that its meta.json lists.
    """
    require_there(path)
    if (path / CHECKPOINTS).is_dir():
        newest, _ = latest(path)
        if newest is None:
            raise ValueError(f"{path}: no whole checkpoint in {CHECKPOINTS}/; train first")
        path = newest
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if (path / META).exists():
        listed = read_meta(path)["files"]
        files = [file for file in files if file.name in listed]
    if not files:
        raise ValueError(f"{path}: no safetensors file there; give a run, a checkpoint or a model directory")
    return path, files


def read_header(file: Path) -> Iterator[Entry]:
    """The tensors of a safetensors file, in the order of their bytes; ValueError when it is damaged."""
    try:
        with open_regular(file, links=True) as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = parse_json(stream.read(size) if size <= MAX_HEADER_BYTES else b"")
            whole = stream.seek(0, 2)
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise ValueError("more tensors than a model has")
        entries = sorted(
            (_entry(file.name, name, info) for name, info in header.items()), key=lambda pair: pair[0]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise ValueError(
            f"{file}: is not a safetensors file, or damaged; write or download it again"
        ) from None
    end = 8 + size + max((stop for (_, stop), _ in entries), default=0)
    if whole != end:
        raise ValueError(f"{file}: {whole} bytes instead of {end}; it is cut short")
    yield from (entry for _, entry in entries)


def _entry(file: str, name: str, info: dict[str, Any]) -> tuple[tuple[int, int], Entry]:
    """(begin, end) of a tensor's bytes, and what it is. KeyError, TypeError or ValueError for damage."""
    (begin, end), shape, dtype = info["data_offsets"], info["shape"], info["dtype"]
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS:
        raise ValueError("a shape has more than 8 dimensions")
    if not all(type(n) is int and 0 <= n < 2**63 for n in (begin, end, *shape)):
        raise ValueError("a size is not a whole number")
    if math.prod(shape) * BITS[dtype] != 8 * (end - begin):
        raise ValueError("a tensor's shape is not that of its bytes")
    return (begin, end), Entry(file, name, tuple(shape), dtype, end - begin)


def human(count: int, unit: str = "") -> str:
    """12 -> `12`, 1536 -> `1.54 K`; powers of 1000, three digits."""
    for factor, prefix in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "K")):
        if count >= factor:
            return f"{count / factor:.3g} {prefix}{unit}"
    return f"{count} {unit}".rstrip()


def _table(entries: list[Entry]) -> list[str]:
    rows = [
        (_shown(e.name), " x ".join(map(str, e.shape)), _shown(e.dtype), human(e.values), human(e.bytes, "B"))
        for e in entries
    ]
    values, size = sum(e.values for e in entries), sum(e.bytes for e in entries)
    rows.append((f"{len(entries)} tensors", "", "", human(values), human(size, "B")))
    heads = (entries[0].file if entries else "", "shape", "dtype", "params", "size")
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(5)]
    rule = "  ".join("-" * width for width in widths)
    return [
        _line(heads, widths),
        rule,
        *(_line(row, widths) for row in rows[:-1]),
        rule,
        _line(rows[-1], widths),
    ]


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    left = "  ".join(cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True))
    right = "  ".join(cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True))
    return f"{left}  {right}"


def _meta(path: Path) -> list[str]:
    if not (path / META).exists():
        return []
    plain = {key: v for key, v in read_meta(path).items() if not isinstance(v, (dict, list))}
    return [f"{_shown(key)}: {_shown(value)}" for key, value in plain.items()]


def _shown(value: Any) -> str:
    """A value or a name for a terminal, to which a stranger's control characters must not get."""
    return printable(str(value), keep="")[:200]
