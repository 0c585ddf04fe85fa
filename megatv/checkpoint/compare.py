"""Is a checkpoint sound, and how far are two of them apart: `convert_ckpt.py verify` and `diff`.

Files are hashed as a stream and tensors read one at a time (`diff`: one of each side).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from megatv.checkpoint import store
from megatv.checkpoint.convert import model_shapes
from megatv.checkpoint.describe import Entry, read_header, tensor_files
from megatv.checkpoint.meta import config_of, read_meta, require_there
from megatv.log import progress
from megatv.weights import open_safetensors

STATE = ("exp_avg", "exp_avg_sq")
CHUNK = 1 << 22
"""Values that are compared at once, in float64."""


def faults(path: Path) -> Iterator[str]:
    """Everything that is wrong with a checkpoint, or with each checkpoint of a run: one line a fault.

    Every file is held against its recorded size and sha256, every kind of tensor (weights, moments, average)
    against the names and shapes of the config's model. Raises ValueError for a run without checkpoints.
    """
    require_there(path)
    if not (path / store.CHECKPOINTS).is_dir():
        yield from _faults_of_one(path)
        return
    checkpoints = store.steps(path)
    if not checkpoints:
        raise ValueError(f"{path}: no checkpoint in {store.CHECKPOINTS}/; train first")
    for checkpoint in checkpoints:
        yield from _faults_of_one(checkpoint)


def _faults_of_one(path: Path) -> Iterator[str]:
    try:
        meta = read_meta(path)
        config = config_of(meta, path)
    except ValueError as error:
        yield str(error)
        return
    kinds: dict[str, dict[str, Entry]] = {"model": {}}
    unread = set()  # kinds of which a file cannot be read: what else they lack is no news
    for name, record in progress(meta["files"].items(), total=len(meta["files"]), desc=path.name):
        fault = store.damage(path / name, record)
        if fault:
            yield fault
        if name.endswith(".safetensors"):
            kind = store.kind_of(name)
            try:
                kinds.setdefault(kind, {}).update({e.name: e for e in read_header(path / name)})
            except ValueError as error:
                unread.add(kind)
                if not fault:
                    yield str(error)
    if kinds.keys() & {*STATE, "ema"}:  # training goes on from here, for which it needs the whole state
        for kind in (*STATE, *(("ema",) if config.optim.ema is not None else ())):
            kinds.setdefault(kind, {})
    shapes = model_shapes(config)
    for kind, found in kinds.items():
        if kind not in unread:
            lacking = [name for name in shapes if name not in found]
            yield from (f"{path}: {kind} lacks {name}" for name in lacking if found)
            if not found:
                yield f"{path}: holds no `{kind}` tensors"
        for name, entry in found.items():
            if name not in shapes:
                yield f"{path / entry.file}: holds {name}, which the model does not have"
            elif entry.dtype not in store.SAFETENSORS_NAME.values():
                yield f"{path / entry.file}: {name} is {entry.dtype}, which weights never are"
            elif entry.shape != shapes[name]:
                have, want = list(entry.shape), list(shapes[name])
                yield f"{path / entry.file}: {name} is {have}, the model needs {want}"


def diff(a: Path, b: Path) -> tuple[list[str], bool]:
    """Lines that say where two checkpoints, runs (their newest) or files differ, and whether they do.

    Tensors of equal shape and dtype come last, the most different first, with the largest absolute
    difference and that over the largest magnitude in both: 1e-7 is rounding, 1 another tensor.
    """
    (one, left), (other, right) = (_index(path) for path in (a, b))
    lines = _only(left, right, one) + _only(right, left, other)
    gaps = []
    shared = [label for label in left if label in right]
    for label in progress(shared, total=len(shared), desc="diff"):
        (file_a, entry_a), (file_b, entry_b) = left[label], right[label]
        if (entry_a.shape, entry_a.dtype) != (entry_b.shape, entry_b.dtype):
            lines.append(f"{label}: {_looks(entry_a)} in {one}, {_looks(entry_b)} in {other}")
        elif (gap := difference(_read(file_a, entry_a), _read(file_b, entry_b))) is not None:
            gaps.append((*gap, label))
    gaps.sort(key=lambda gap: (-math.inf if math.isnan(gap[0]) else -gap[0], gap[2]))
    if gaps:
        lines.append(f"{'relative':>10}  {'absolute':>10}  tensor")
        lines += [f"{relative:10.3e}  {absolute:10.3e}  {label}" for relative, absolute, label in gaps]
    differ = bool(lines)
    lines.append(f"{len(shared)} tensors in both, {len(gaps)} of them with other values")
    return lines, differ


def difference(a: Tensor, b: Tensor) -> tuple[float, float] | None:
    """(relative, absolute) difference of two tensors as in `diff`, nan where only one is; None: same bits."""
    a, b = a.flatten(), b.flatten()
    if torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
        return None
    absolute = scale = torch.zeros((), dtype=torch.float64)
    for x, y in zip(a.split(CHUNK), b.split(CHUNK), strict=True):
        x, y = x.double(), y.double()
        gap = (x - y).abs()
        gap[(x == y) | (x.isnan() & y.isnan())] = 0  # equal infinities too
        absolute = torch.maximum(absolute, gap.max())
        scale = torch.maximum(scale, torch.maximum(x.abs(), y.abs()).nan_to_num(0.0).max())
    relative = absolute / scale if scale > 0 else absolute
    return float(relative), float(absolute)


Place = tuple[Path, Entry]


def _index(path: Path) -> tuple[Path, dict[str, Place]]:
    """What `path` stands for, and its tensors as `kind/name` (as plain `name` when it is one file)."""
    where, files = tensor_files(path)
    found: dict[str, Place] = {}
    for file in files:
        kind = "" if where.is_file() else f"{store.kind_of(file.name)}/"
        found |= {f"{kind}{entry.name}": (file, entry) for entry in read_header(file)}
    return where, found


def _only(these: dict[str, Place], those: dict[str, Place], where: Path) -> list[str]:
    """A line for each tensor that only `these` have; one line for a kind that the others lack altogether."""
    others = {label.rpartition("/")[0] for label in those}
    lines, whole = [], dict[str, int]()
    for label in these.keys() - those.keys():
        kind = label.rpartition("/")[0]
        if kind in others:
            lines.append(f"only in {where}: {label}")
        else:
            whole[kind] = whole.get(kind, 0) + 1
    return sorted(lines + [f"only in {where}: {kind} ({n} tensors)" for kind, n in whole.items()])


def _looks(entry: Entry) -> str:
    return f"{entry.dtype} {list(entry.shape)}"


def _read(file: Path, entry: Entry) -> Tensor:
    try:
        with open_safetensors(file) as tensors:
            return tensors.get_tensor(entry.name)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{file}: cannot read {entry.name!r} ({error}); write or download it again"
        ) from None
