"""The backends of packed attention: who there is, who can serve, and whom `auto` takes.

A backend is a module of this package with `available(device) -> str | None` (None when it can serve, else one
sentence that says why not) and one of two forms:

    attend(q, k, v, record, *, return_lse, deterministic) -> (out, lse or None)     differentiable by torch
    forward(q, k, v, record) -> (out, lse) and
    backward(dout, q, k, v, out, lse, record, deterministic) -> (dq, dk, dv)        a pair of kernels

A pair becomes one operator with autograd in `operator.py`.
"""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch

log = logging.getLogger(__name__)

MODULES = {  # the fastest first
    "cuda": "cuda_attention",
    "fa4": "fa4",
    "triton": "triton_attention",
    "flex": "flex",
    "sdpa": "sdpa",
    "reference": "reference",
}
BACKENDS = tuple(MODULES)
LOADED: dict[str, ModuleType] = {}
TUNED = ("cuda", "fa4", "triton")
"""These are written for half precision and the head dims of Llama."""
UNPROVEN = ("cuda", "fa4")
"""`auto` leaves these alone until `tests/kernels` has passed with them on a GPU. On an H100 `cuda` has the
errors of dense SDPA against fp64 (docs/measured), but its tests have not passed there as a whole."""
HALF, HEAD_DIMS = (torch.bfloat16, torch.float16), (64, 128)


def load(name: str) -> ModuleType:
    """The backend's module. Raises ImportError when a library that it is made of is missing."""
    if name not in LOADED:
        LOADED[name] = importlib.import_module(f"{__package__}.{MODULES[name]}")
    return LOADED[name]


def why_not(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int, deterministic: bool = False
) -> str | None:
    """None when the backend can serve such inputs, else one sentence that says why not."""
    try:
        reason = load(name).available(device)
    except ImportError as error:
        return f"it cannot be imported ({error})"
    if reason is None and name in TUNED:
        interpreted = device.type == "cpu"  # Triton's interpreter computes in fp32 too
        if dtype not in HALF and not (interpreted and dtype == torch.float32):
            reason = f"it computes in bfloat16 and float16, not in {_name(dtype)}"
        elif head_dim not in HEAD_DIMS:
            reason = f"it knows head dims 64 and 128, not {head_dim}"
    if reason is None and name == "fa4" and deterministic:
        reason = "its backward pass adds up in no fixed order"
    return reason


@torch.compiler.assume_constant_result
def choose(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, deterministic: bool) -> str:
    """The backend to use for such inputs; for `auto` the fastest that serves, named once in the log.

    Raises ValueError for a name that nobody has, and for a backend asked for that cannot serve.
    """
    return _choose(backend, device, dtype, head_dim, deterministic)


@functools.cache  # apart, because torch.compile looks through a cache but not into a constant result
def _choose(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, deterministic: bool
) -> str:
    if backend != "auto":
        if backend not in MODULES:
            raise ValueError(f"attention backend '{backend}' is unknown: choose auto, {', '.join(BACKENDS)}")
        reason = why_not(backend, device, dtype, head_dim, deterministic)
        if reason:
            raise ValueError(f"attention backend '{backend}' cannot serve here: {reason}")
        return backend
    # On a CPU the kernels run in an interpreter at best, and FlexAttention has no backward pass.
    candidates = ("sdpa",) if device.type == "cpu" else BACKENDS
    passed: list[str] = []
    for name in candidates:
        reason = why_not(name, device, dtype, head_dim, deterministic)
        if reason is None and name in UNPROVEN:
            reason = f"it has not been proven on a GPU yet, ask for it with `attention: {name}`"
        if reason is None:
            because = "; ".join(passed) or "the fastest there is for this device"
            log.info("attention: auto takes '%s' on %s (%s)", name, device, because)
            return name
        passed.append(f"not '{name}': {reason}")
    raise AssertionError("sdpa serves everywhere")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
