"""Reads files of weights, which may come from a stranger: tensors as data, TorchScript by its hash.

Tensors come from safetensors or from `torch.save`; neither runs code here. TorchScript is a program and can
write any file as soon as it is loaded or called: only bytes of a published SHA-256 are loaded, or those
that the user trusts by an option of the command line.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megatv.regular_file import open_regular, read_bytes
from megatv.state_dict import read_state_dict

MAX_BYTES = 8 << 30
"""Of one file: a network's weights and a training state beside them."""

FLOATS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
}
"""Types of weights that float32 can hold."""


@dataclass(frozen=True)
class Published:
    """Hashes that the makers of a TorchScript file published; MD5 can be forged, so it is only reported."""

    sha256: str | None = None
    md5: str | None = None


def read_tensors(file: Path) -> Any:
    """What a file of safetensors or of `torch.save` holds, tensors on the CPU.

    Raises ValueError when the file is missing, too large or something else, such as TorchScript.
    """
    zipped = _starts_as_zip(file)
    data = _read(file) if zipped else b""
    try:
        if zipped:
            return read_state_dict(data)
        check_size(file, MAX_BYTES)
        return load_file(file)
    except SafetensorError as error:
        reason = f"neither safetensors ({str(error)[:200]}) nor a zip of torch.save"
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{file}: {reason}; give tensors by name, as safetensors or torch.save write them")


def take(state: Any, like: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors of `state` with the names and shapes of `like`, floats where it has floats, all contiguous.

    like  may lie on the meta device
    Floats come in the file's own type and are finite as float32. Raises ValueError on the first tensor that
    does not fit; keeps no copy.
    """
    found = {}
    for name, wanted in like.items():
        value, shape = state.get(name) if isinstance(state, dict) else None, list(wanted.shape)
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{file}: '{name}' is missing instead of {shape}; give all weights of the network"
            )
        same_kind = value.dtype in (FLOATS if wanted.is_floating_point() else (wanted.dtype,))
        if list(value.shape) != shape or not same_kind or not value.is_contiguous():
            kind = "floats" if wanted.is_floating_point() else wanted.dtype
            given = str(list(value.shape))[:80]
            raise ValueError(
                f"{file}: '{name}' is {value.dtype} {given} instead of {kind} {shape}; give "
                "the weights of this network"
            )
        if not _is_finite(value):
            raise ValueError(f"{file}: '{name}' has numbers that are not finite; copy the weights again")
        found[name] = value
    return found


def check_size(file: Path, most: int) -> None:
    """Refuse (ValueError) a file of weights that is longer than `most` bytes, holes included."""
    if (size := file.stat().st_size) > most:
        raise ValueError(f"{file}: has {size:,} bytes and may have {most:,}; give the weights of one network")


def _is_finite(value: Tensor) -> bool:
    """Whether all numbers are finite as float32, piece by piece: a whole copy may not fit into memory."""
    return all(bool(piece.float().isfinite().all()) for piece in value.flatten().split(1 << 22))


def is_torchscript(file: Path) -> bool:
    """Whether a file is a zip with the entry `constants.pkl`, as `torch.jit.save` writes beside the code."""
    return _starts_as_zip(file) and b"/constants.pkl" in _read(file)


def load_torchscript(
    file: Path, device: torch.device | str, published: Published, *, trust: bool, option: str
) -> torch.jit.ScriptModule:
    """The TorchScript module in a file whose bytes have the published SHA-256, or that the user trusts.

    option  of the command line by which the user says so, for the message
    The hash is that of the very bytes that are loaded. Raises ValueError when they are refused, or are no
    TorchScript.
    """
    data = _read(file)
    if not trust and hashlib.sha256(data).hexdigest() != published.sha256:
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if published.sha256:
            known = f"its SHA-256 is not the published {published.sha256}"
        elif published.md5:
            known = (
                f"no SHA-256 is published (its MD5 is {'' if md5 == published.md5 else 'not '}the published)"
            )
        else:
            known = "no SHA-256 is known of such a file"
        raise ValueError(
            f"{file}: TorchScript can run any code, and {known}; give weights without code, or {option} if "
            "you know who made the file"
        )
    try:
        return torch.jit.load(io.BytesIO(data), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{file}: not a TorchScript file ({str(error).splitlines()[0]})") from None


def _starts_as_zip(file: Path) -> bool:
    with _refusing(file), open_regular(file, links=True) as stream:
        return stream.read(4) == b"PK\3\4"


def _read(file: Path) -> bytes:
    with _refusing(file):
        return read_bytes(file, MAX_BYTES, links=True)


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """Say what is wrong with the file, and what to give instead."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file; give a file of weights") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); give a file of weights") from None
    except ValueError as error:
        raise ValueError(f"{error}; give a file of weights") from None
