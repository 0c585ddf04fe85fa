"""Reads files of weights, which may come from a stranger: tensors as data, TorchScript by its hash.

Tensors come from safetensors or from `torch.save`; neither runs code here. TorchScript is a program and can
write any file as soon as it is loaded or called: only bytes of a published SHA-256 are loaded, or those
that the user trusts by an option of the command line.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatv.free_memory import require_memory
from megatv.regular_file import open_regular, read_bytes
from megatv.state_dict import is_program, open_zip, read_state_dict

MAX_BYTES = 8 << 30
"""Of one file: a network's weights and a training state beside them."""

MAX_HEADER_BYTES = 32 << 20
"""Of a safetensors file, which the library would read up to 100 MB of: some 200,000 tensors."""

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


@contextmanager
def open_safetensors(file: Path) -> Iterator[Any]:
    """A regular safetensors file, or a link to one, opened by the library when its header is not too long.

    Raises OSError, SafetensorError for damage and a header beyond MAX_HEADER_BYTES, and ValueError for what
    is no file, such as a pipe, for which the library would wait.
    """
    with open_regular(file, links=True) as stream:
        start = stream.read(8)
    if len(start) == 8 and struct.unpack("<Q", start)[0] > MAX_HEADER_BYTES:
        raise SafetensorError(f"its header is longer than {MAX_HEADER_BYTES >> 20} MiB")
    with safe_open(file, framework="pt") as tensors:
        yield tensors


def is_finite(weight: Tensor) -> bool:
    """Whether a weight, of any floating-point type and perhaps empty, holds no NaN and no infinity."""
    return not weight.numel() or all(bool(end.isfinite()) for end in weight.aminmax())


def read_tensors(file: Path, most: int = MAX_BYTES) -> Any:
    """What a file of safetensors or of `torch.save` holds, tensors on the CPU.

    most  bytes of the file
    The tensors take as much memory as the file is long. Raises ValueError when the file is missing, too large
    for that or something else, such as TorchScript.
    """
    zipped = _starts_as_zip(file)
    _check_memory(file, most, copies=1)
    try:
        if zipped:
            with open_regular(file, most, links=True) as stream:
                return read_state_dict(stream)
        with open_safetensors(file) as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a dict)
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
        if not _fits_float32(value):
            raise ValueError(f"{file}: '{name}' has numbers that are not finite; copy the weights again")
        found[name] = value
    return found


def check_size(file: Path, most: int) -> None:
    """Refuse (ValueError) a file of weights that is longer than `most` bytes, holes included."""
    if (size := file.stat().st_size) > most:
        raise ValueError(f"{file}: has {size:,} bytes and may have {most:,}; give the weights of one network")


def _check_memory(file: Path, most: int, copies: int) -> None:
    """Refuse (ValueError) a file of more than `most` bytes, or of which `copies` do not fit into memory."""
    check_size(file, most)
    need = copies * file.stat().st_size
    require_memory(need, torch.device("cpu"), f"{file}: its weights", "free some, or take a larger machine")


def _fits_float32(value: Tensor) -> bool:
    """Whether all numbers are finite as float32, piece by piece: a whole copy may not fit into memory."""
    return all(bool(piece.float().isfinite().all()) for piece in value.flatten().split(1 << 22))


def is_torchscript(file: Path) -> bool:
    """Whether a file is a zip with the entries that `torch.jit.save` writes; only its directory is read."""
    with _refusing(file):
        stream = open_regular(file, MAX_BYTES, links=True)
    try:
        with stream, open_zip(stream) as archive:
            return is_program(archive)
    except Exception:  # whatever damage makes of zipfile
        return False


def load_torchscript(
    file: Path, device: torch.device | str, published: Published, *, trust: bool, option: str
) -> torch.jit.ScriptModule:
    """The TorchScript module in a file whose bytes have the published SHA-256, or that the user trusts.

    option  of the command line by which the user says so, for the message
    The hash is that of the very bytes that are loaded. They are in memory four times meanwhile: as read, in
    two copies of PyTorch's and as tensors. Raises ValueError when they are refused, are no TorchScript, or do
    not fit into memory so.
    """
    if not is_torchscript(file):
        raise ValueError(f"{file}: not a TorchScript file; give what torch.jit.save wrote")
    _check_memory(file, MAX_BYTES, copies=4)
    with _refusing(file):
        data = read_bytes(file, MAX_BYTES, links=True)
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
