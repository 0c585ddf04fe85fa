"""What lies in a checkpoint, a Hugging Face directory or a safetensors file, read from the headers alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatv.checkpoint.store import CHECKPOINTS, META, latest


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
        count = 1
        for size in self.shape:
            count *= size
        return count


def describe(path: Path) -> str:
    """A table of tensors with totals, and the meta record where there is one.

    path: a run (its newest whole checkpoint), a directory with safetensors files, or one such file.
    Raises ValueError when there is nothing to read.
    """
    path, files = tensor_files(path)
    lines = [str(path), *_meta(path / META)]
    for file in files:
        lines += ["", *_table(list(read_header(file)))]
    return "\n".join(lines)


def tensor_files(path: Path) -> tuple[Path, list[Path]]:
    """What `path` stands for (of a run, its newest whole checkpoint) and the safetensors files there."""
    if (path / CHECKPOINTS).is_dir():
        newest, _ = latest(path)
        if newest is None:
            raise ValueError(f"{path}: no whole checkpoint in {CHECKPOINTS}/; train first")
        path = newest
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{path}: no safetensors file there; give a run, a checkpoint or a model directory")
    return path, files


def read_header(file: Path) -> Iterator[Entry]:
    """The tensors of a safetensors file, in the order of their bytes; ValueError when it is damaged."""
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        end = max((info["data_offsets"][1] for _, info in entries), default=0)
    except (
        OSError,
        OverflowError,
        MemoryError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        struct.error,
    ):
        raise ValueError(
            f"{file}: is not a safetensors file, or damaged; write or download it again"
        ) from None
    if file.stat().st_size != 8 + size + end:
        raise ValueError(f"{file}: {file.stat().st_size} bytes instead of {8 + size + end}; it is cut short")
    for name, info in entries:
        begin, stop = info["data_offsets"]
        yield Entry(file.name, name, tuple(info["shape"]), info["dtype"], stop - begin)


def human(count: int, unit: str = "") -> str:
    """12 -> `12`, 1536 -> `1.54 K`; powers of 1000, three digits."""
    for factor, prefix in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "K")):
        if count >= factor:
            return f"{count / factor:.3g} {prefix}{unit}"
    return f"{count} {unit}".rstrip()


def _table(entries: list[Entry]) -> list[str]:
    rows = [
        (e.name, " x ".join(map(str, e.shape)), e.dtype, human(e.values), human(e.bytes, "B"))
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


def _meta(file: Path) -> list[str]:
    if not file.is_file():
        return []
    try:
        meta = json.loads(file.read_text())
    except ValueError:
        raise ValueError(f"{file}: is not valid JSON; use an earlier checkpoint") from None
    plain = {key: value for key, value in meta.items() if not isinstance(value, (dict, list))}
    return [f"{key}: {value}" for key, value in plain.items()]
