"""Shared by metrics that use networks which others trained. Nothing is ever downloaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from megatv.regular_file import open_regular

REFUSALS = (RuntimeError, torch.jit.Error, TypeError, AttributeError)
"""What calling another's network on what it does not know may raise."""
TRUST = "--trust-weights"
"""The option that lets TorchScript run whose SHA-256 is not published."""


def last_line(error: Exception) -> str:
    """The last line of PyTorch's message, where a failing TorchScript says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def sha256(file: Path) -> str:
    """Of a file, so that a score can name the weights that it was taken with."""
    with open_regular(file, links=True) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
