"""Weights of metrics that others trained: files that a person gives. Nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REFUSALS = (RuntimeError, torch.jit.Error, TypeError, AttributeError)
"""What calling another's network on what it does not know may raise."""


def load_torchscript(file: Path, option: str, device: str) -> Any | None:
    """The TorchScript module in a file, for inference; None when the file is something else.

    Raises ValueError, naming the command's `option`, when there is no such file.
    """
    if not file.is_file():
        raise ValueError(f"{option} {file}: is no file; nothing is downloaded, so give a local one")
    try:
        return torch.jit.load(str(file), map_location=device).eval()
    except RuntimeError:
        return None


def load_state(file: Path) -> dict[str, Tensor] | None:
    """The tensors by name in a file of `torch.save`; None when it is something else. Runs no code of it."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError):
        return None
    named = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    return dict(state) if named else None


def last_line(error: Exception) -> str:
    """The last line of PyTorch's message, where a failing TorchScript says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def sha256(file: Path) -> str:
    """Of a file, so that a score can name the weights that it was taken with."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
