"""Checkpoints on disk: atomic, verified, plain safetensors of full named tensors.

RUN/checkpoints/step_00000200/
    model, exp_avg, exp_avg_sq and (with EMA) ema .safetensors   full float32 tensors by global name
    meta.json                                                    written last: step, config, file hashes

A file may be split as NAME-00001-of-0000K.safetensors with NAME.safetensors.index.json (one part for each
pipeline stage), as Hugging Face does. Everything is written into a temporary sibling, synced and renamed:
a directory without the suffix `.tmp` is whole, or was damaged later, which `verify` finds by its hashes.
This module knows no ranks: callers decide who writes which part.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from megatv.checkpoint.meta import CHECKPOINTS, FORMAT, META, OtherFormat, read_json, read_meta
from megatv.regular_file import open_regular
from megatv.weights import is_finite, open_safetensors

TEMPORARY = ".tmp"
SAFETENSORS_NAME = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies in a run directory."""
    return run_dir / CHECKPOINTS / f"step_{step:08d}"


def begin(final: Path) -> Path:
    """Make the temporary sibling that will be renamed to `final`, clearing what a killed save left behind.

    Raises ValueError where a link leads to another folder, in which nothing may be cleared.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    leftovers = list(final.parent.glob(f"*{TEMPORARY}"))
    _refuse_links(final.parent, *leftovers)
    for leftover in leftovers:
        shutil.rmtree(leftover)
    temporary = final.with_name(final.name + TEMPORARY)
    temporary.mkdir()
    return temporary


def write_tensors(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterable[Tensor],
    dtype: torch.dtype = torch.float32,
) -> dict[str, int | str]:
    """Stream `tensors` of one dtype (in the order of `shapes`) into one safetensors file and sync it.

    Only one tensor is in memory at a time. Returns the file's `bytes` and `sha256` for the meta record.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = dtype.itemsize * int(torch.Size(shape).numel())
        place = [offset, offset + size]
        header[name] = {"dtype": SAFETENSORS_NAME[dtype], "shape": list(shape), "data_offsets": place}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces(struct.pack("<Q", len(text)) + text, shapes, tensors, dtype):
            digest.update(piece)
            file.write(piece)
        written = file.tell()
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": written, "sha256": digest.hexdigest()}


def _pieces(
    head: bytes, shapes: Mapping[str, Sequence[int]], tensors: Iterable[Tensor], dtype: torch.dtype
) -> Iterator[bytes | memoryview]:
    yield head
    for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
        assert tuple(tensor.shape) == tuple(shape) and tensor.dtype == dtype, name
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def part_name(kind: str, part: int, parts: int) -> str:
    """File name of part 0..parts-1 of `kind` (`model`, `exp_avg`, ...)."""
    return f"{kind}.safetensors" if parts == 1 else f"{kind}-{part + 1:05d}-of-{parts:05d}.safetensors"


def kind_of(file: str) -> str:
    """The kind of tensor in a file of this name: `part_name` the other way round."""
    return re.sub(r"(-\d{5}-of-\d{5})?\.safetensors$", "", file)


def write_index(directory: Path, kind: str, weight_map: Mapping[str, str]) -> dict[str, int | str]:
    """Write NAME.safetensors.index.json of a split file; `weight_map` gives the part that holds a tensor."""
    total = sum((directory / part).stat().st_size for part in set(weight_map.values()))
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(weight_map)}, indent=1)
    _write_synced(directory / f"{kind}.safetensors.index.json", text)
    return {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def commit(temporary: Path, final: Path, meta: Mapping[str, Any], files: Mapping[str, Mapping]) -> None:
    """Write meta.json, sync and rename: the checkpoint exists from here on, whole or not at all."""
    record = {"format": FORMAT, **meta, "files": {name: dict(files[name]) for name in sorted(files)}}
    _write_synced(temporary / META, json.dumps(record, indent=1))
    _sync_directory(temporary)
    if final.exists():  # the same step saved again after a resume from an older checkpoint
        shutil.rmtree(final)
    temporary.rename(final)
    _sync_directory(final.parent)


def steps(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first, damaged ones included.

    Raises ValueError where one of them, or the folder of all, is a link: old ones are deleted, and what a
    link leads to is not this run's.
    """
    folder = run_dir / CHECKPOINTS
    found = sorted(p for p in folder.glob("step_*") if p.suffix != TEMPORARY and p.is_dir())
    _refuse_links(folder, *found)
    return found


def prune(run_dir: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints."""
    for old in steps(run_dir)[:-keep]:
        shutil.rmtree(old)


def verify(path: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its recorded size and sha256 and return the meta record.

    Raises ValueError naming the file that is missing, truncated, changed or a link.
    """
    meta = read_meta(path)
    for name, record in meta["files"].items():
        if (fault := damage(path / name, record)) is not None:
            raise ValueError(f"{fault}; use an earlier checkpoint")
    return meta


def damage(file: Path, record: Mapping[str, int | str]) -> str | None:
    """What is wrong with a file that was written with this `bytes` and `sha256`, or None."""
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != record["bytes"]:
                return f"{file}: {size} bytes instead of {record['bytes']}"
            if hashlib.file_digest(stream, "sha256").hexdigest() != record["sha256"]:
                return f"{file}: content does not match its sha256"
    except FileNotFoundError:
        return f"{file}: missing"
    except OSError as error:
        return f"{file}: cannot be read ({error.strerror})"
    except ValueError as error:
        return str(error)
    return None


def latest(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that verifies (or None), and why each newer one was passed over.

    Raises OtherFormat when a newer version of megatv has gone on with the run.
    """
    skipped = []
    for path in reversed(steps(run_dir)):
        try:
            verify(path)
        except OtherFormat:
            raise
        except ValueError as error:
            skipped.append(str(error))
        else:
            return path, skipped
    return None, skipped


class Tensors:
    """Named tensors of one kind (`model`, `ema`, `exp_avg`, `exp_avg_sq`), read one at a time.

    Only files that meta.json lists are read, of their recorded size; `verify` compares what they hold. A
    tensor is a view of its file, mapped for it alone: the pages of a mapping that outlived it would stay in
    the process's memory, until that had grown to the size of the file.
    """

    def __init__(self, directory: Path, kind: str) -> None:
        """Raises ValueError when there are none, or their files are not whole or hold other dtypes."""
        self.directory = directory
        listed, index = read_meta(directory)["files"], f"{kind}.safetensors.index.json"
        places = _read_places(directory / index) if index in listed else None
        parts = [part_name(kind, 0, 1)] if places is None else sorted(set(places.values()))
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for part in parts:
            if places is not None and part not in listed:
                raise ValueError(f"{directory / index}: names {part[:200]!r}, which {META} does not list")
            file = directory / part
            if part not in listed or not file.exists():
                raise ValueError(f"{file}: missing; the checkpoint holds no `{kind}` tensors")
            if file.is_symlink() or file.stat().st_size != listed[part]["bytes"]:
                raise ValueError(f"{file}: is not the file that {META} lists; use an earlier checkpoint")
            for name, shape in _shapes(file).items():
                if places is None or places.get(name) == part:
                    self._files[name], self._shapes[name] = file, shape
        for name in places or ():
            if name not in self._files:
                raise ValueError(f"{directory / index}: places {name[:200]!r} in a file that lacks it")

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        try:
            with open_safetensors(self._files[name]) as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self._files[name]}: cannot read {name} ({error})") from None

    def require(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise ValueError unless there are tensors of these names and shapes."""
        remedy = "the checkpoint is of another model: use the config beside it"
        missing = sorted(shapes.keys() - self._files.keys())
        if missing:
            raise ValueError(
                f"{self.directory}: lacks {missing[0]} and {len(missing) - 1} more tensors; {remedy}"
            )
        for name, shape in shapes.items():
            if (found := self._shapes[name]) != tuple(shape):
                raise ValueError(
                    f"{self.directory}: {name} is {list(found)}, the model needs {list(shape)}; {remedy}"
                )


def finite(weight: Tensor, name: str, directory: Path) -> Tensor:
    """`weight` of a checkpoint, or the part of it that is used; ValueError for NaN and infinity."""
    if not is_finite(weight):
        raise ValueError(
            f"{directory}: {name} has numbers that are not finite, so nothing can be computed with it; "
            "use an earlier checkpoint"
        )
    return weight


def _read_places(index: Path) -> dict[str, str]:
    """File by tensor name, as an index file has it; ValueError when it has no such table."""
    try:
        tree = read_json(index)
    except OSError as error:
        raise ValueError(f"{index}: cannot be read ({error.strerror}); use an earlier checkpoint") from None
    places = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(places, dict) or not all(isinstance(part, str) for part in places.values()):
        raise ValueError(f"{index}: has no `weight_map` of names; use an earlier checkpoint")
    return places


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's tensors by name; ValueError for damage, and for dtypes that weights never have."""
    try:
        with open_safetensors(file) as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (no dictionary)
            for name, part in slices.items():
                if part.get_dtype() not in SAFETENSORS_NAME.values():
                    raise ValueError(
                        f"{file}: {name[:200]!r} is {part.get_dtype()}, and weights are "
                        f"{', '.join(SAFETENSORS_NAME.values())}; use an earlier checkpoint"
                    )
            return {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); use an earlier checkpoint") from None


def _refuse_links(*paths: Path) -> None:
    for path in paths:
        if path.is_symlink():
            raise ValueError(
                f"{path}: is a link, and a run's checkpoints are its own; move what it leads to here, or let "
                "run.dir itself be the link"
            )


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
