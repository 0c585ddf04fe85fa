"""The meta record of a checkpoint, which a stranger may have written: bounded, and every type checked.

    {"format": 1, "step": 200, "updates": 199, "skipped": 1, "config": {...}, "latent_stats": {...} or null,
     "files": {"model.safetensors": {"bytes": 8123456, "sha256": "5f7c.."}, ..}, ..}

Only files listed here are ever read from a checkpoint. They are regular files of its own folder: a link would
let a checkpoint choose among its reader's files. A folder that somebody else can write to while it is read is
not safe to open: what was hashed is read again when the tensors are loaded.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatv.config import Config, config_from_dict
from megatv.regular_file import read_bytes
from megatv.schema import short
from megatv.untrusted import parse_json, plain_name

FORMAT = 1
META = "meta.json"
CHECKPOINTS = "checkpoints"
"""The folder of a run in which they lie."""
ABSENT = {"updates": None, "skipped": 0, "latent_stats": None}
"""Values of keys that a record may lack: every step was an update, no latents were seen."""


class OtherFormat(ValueError):
    """A checkpoint that is not damaged, but not for this version: never passed over for an older one."""


def read_meta(path: Path) -> dict[str, Any]:
    """The meta record of a checkpoint directory.

    Raises ValueError when there is none, it cannot be read or it is not such a record, OtherFormat when
    another megatv wrote it.
    """
    require_there(path)
    file = path / META
    try:
        meta = read_json(file)
    except FileNotFoundError:
        raise ValueError(f"{path}: no checkpoint ({META} is missing); give a step_* directory") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error}); use an earlier checkpoint") from None
    if not isinstance(meta, dict):
        raise ValueError(
            f"{file}: is {short(meta)} instead of a section with keys; use an earlier checkpoint"
        )
    version = meta.get("format")
    if type(version) is not int or version != FORMAT:
        writer = short(meta.get("megatv", "unknown")).strip("'")
        raise OtherFormat(
            f"{path}: checkpoint format {short(version)} is not {FORMAT}, which this megatv reads; use the "
            f"megatv that wrote it (version {writer})"
        )
    for key, (is_right, what) in FIELDS.items():
        if not is_right(meta.get(key)) and (key in meta or key in REQUIRED):
            found = short(meta[key]) if key in meta else "missing"
            raise ValueError(f"{file}: `{key}` is {found} instead of {what}; use an earlier checkpoint")
    for name, record in meta["files"].items():
        _check_file(file, name, record)
    return {**ABSENT, "updates": meta["step"], **meta}


def require_there(path: Path) -> None:
    """Refuse (ValueError) the path of a checkpoint where there is nothing, or that no file can have."""
    if not os.path.exists(path):
        raise ValueError(
            f"{str(path)[:300]}: does not exist; give a run or a checkpoint of one (a step_* directory)"
        )


def config_of(meta: dict[str, Any], path: Path) -> Config:
    """The config in the meta record of the checkpoint `path`; ValueError on any fault."""
    try:
        return config_from_dict(meta.get("config", {}))
    except ValueError as error:
        raise ValueError(f"{path / META}: config: {error}") from None


def read_json(file: Path) -> Any:
    """Plain data of a JSON file of a checkpoint. Raises OSError, and ValueError for other faults."""
    text = read_bytes(file)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read ({error}); use an earlier checkpoint") from None


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is(*kinds: type | None) -> Callable[[Any], bool]:
    return lambda value: any(value is None if kind is None else type(value) is kind for kind in kinds)


def _norms(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(norm) in (int, float) and 0 <= norm < math.inf for norm in value
    )


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("step", "updates", "skipped", "skipped_in_a_row"), (_count, "a whole number")),
    "grad_norms": (_norms, "a list of numbers"),
    "config": (_is(dict), "a section with keys"),
    "latent_stats": (_is(dict, None), "a section with keys, or null"),
    "codec_fingerprint": (_is(str, None), "text, or null"),
    "files": (_is(dict), "a section with a record for every file"),
}
REQUIRED = {"step", "files"}


def _check_file(meta: Path, name: str, record: Any) -> None:
    """Refuse (ValueError) what is not the name and the record of one file beside meta.json."""
    try:
        plain_name(name)
    except ValueError as error:
        raise ValueError(f"{meta}: files: {error}; use an earlier checkpoint") from None
    if not (
        isinstance(record, dict)
        and _count(record.get("bytes"))
        and isinstance(record.get("sha256"), str)
        and re.fullmatch("[0-9a-f]{64}", record["sha256"])
    ):
        raise ValueError(
            f"{meta}: files: {short(name)} is {short(record)} instead of its `bytes` and `sha256`; use an "
            "earlier checkpoint"
        )
