"""Errors and times of the pointwise operators, every contestant, for `bench_fused.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatv.config import load_config
from megatv.model.rope import rope_table
from time_attention import milliseconds  # the tool beside this one

import torch
import torch.nn.functional as F
from megatv_kernels import rotate, rotate_qk, swiglu
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
EPS = 1e-5
Call = Callable[..., tuple[Tensor, ...]]


def measure(small: bool) -> dict[str, Any]:
    """All cases as plain data."""
    config = load_config(ROOT / f"configs/{'toy_world' if small else '8b_sports'}.yaml")
    device, dtype = (torch.device("cpu"), torch.float32) if small else (torch.device("cuda"), torch.bfloat16)
    model = config.model
    rows = 64 if small else config.sequence.context_tokens
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    table = rope_table(torch.arange(rows, device=device), model)
    exact_table = rope_table(torch.arange(rows, device=device), model, torch.float64)

    def turn(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        used = exact_table if q.dtype == torch.float64 else table
        return rotate(q, used), rotate(k, used)

    norm = [draw(rows, model.width), draw(model.width)]
    cases: dict[str, tuple[Call, Call, list[Tensor]]] = {
        "rms_norm": (rms_norm, rms_norm, norm),
        "residual_rms_norm": (residual_rms_norm, residual_rms_norm, [draw(rows, model.width), *norm]),
        "swiglu": (plain_swiglu, lambda g, u: (swiglu(g, u),), [draw(rows, model.ffn) for _ in range(2)]),
        "rotate_qk": (
            turn,
            lambda q, k: rotate_qk(q, k, table),
            [draw(rows, heads, model.head_dim) for heads in (model.heads, model.kv_heads)],
        ),
    }
    liger = _liger()
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else "none",
        "torch": torch.__version__,
        "rows": rows,
        "copy_gb_per_s": _copy_rate(device, 1 << (20 if small else 30)),
    }
    for name, (eager, ours, inputs) in cases.items():
        contestants: dict[str, Call | None] = {
            "eager": eager,
            "compile": torch.compile(eager),
            "liger": liger.get(name) if device.type == "cuda" else None,
            "ours": ours,
        }
        report[name] = _case(contestants, eager, inputs, device, report["copy_gb_per_s"])
    return report


def rms_norm(x: Tensor, weight: Tensor) -> tuple[Tensor]:
    """As nn.RMSNorm in a tower."""
    return (F.rms_norm(x, weight.shape, weight, EPS),)


def residual_rms_norm(branch: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of a block's input and a branch, and its norm: what `Tower.finish` does between its halves."""
    total = x + branch
    return total, F.rms_norm(total, weight.shape, weight, EPS)


def plain_swiglu(gate: Tensor, up: Tensor) -> tuple[Tensor]:
    """As two kernels of torch."""
    return (F.silu(gate) * up,)


def _liger() -> dict[str, Call]:
    """liger-kernel's own operators under our names; empty without it."""
    if not find_spec("liger_kernel"):
        return {}
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    def fused_add(branch: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        normed, total = LigerFusedAddRMSNormFunction.apply(branch, x, weight, EPS, 0.0, "llama", False)
        return total, normed

    return {
        "rms_norm": lambda x, w: (LigerRMSNormFunction.apply(x, w, EPS, 0.0, "llama", False),),
        "residual_rms_norm": fused_add,
        "swiglu": lambda gate, up: (LigerSiLUMulFunction.apply(gate, up),),
    }


def _copy_rate(device: torch.device, size: int) -> float:
    """GB/s, read and written, of a plain copy of `size` bytes."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / milliseconds(lambda: target.copy_(source), device)["ms"] / 1e6


def _case(
    contestants: dict[str, Call | None], exact: Call, inputs: list[Tensor], device: torch.device, rate: float
) -> dict[str, Any]:
    """Errors and times of all contestants on one set of inputs."""
    leaves = [x.requires_grad_() for x in inputs]
    with torch.no_grad():
        weights = [torch.randn_like(out) for out in exact(*leaves)]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    outputs = exact(*doubles)
    gradients = torch.autograd.grad(outputs, doubles, [w.double() for w in weights])
    truth = [x.detach() for x in (*outputs, *gradients)]
    del outputs, gradients, doubles
    forward_bytes = sum(x.nbytes for x in (*inputs, *weights))
    backward_bytes = 2 * sum(x.nbytes for x in inputs) + sum(x.nbytes for x in weights)
    found: dict[str, Any] = {
        "shapes": [list(x.shape) for x in inputs],
        "floor_ms": {
            "forward": forward_bytes / rate / 1e6,
            "both": (forward_bytes + backward_bytes) / rate / 1e6,
        },
    }
    for name, call in contestants.items():
        if call is None:
            found[name] = {
                "skipped": "liger-kernel has no such operator here: pip install liger-kernel, on a GPU"
            }
            continue

        def both(call: Call = call) -> list[Tensor]:
            out = call(*leaves)
            return [*out, *torch.autograd.grad(out, leaves, weights)]

        try:
            got = both()
            errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, truth, strict=True)]
            del got
            with torch.no_grad():
                forward = milliseconds(lambda call=call: call(*leaves), device)  # type: ignore[misc]
            found[name] = {"error": max(errors), "forward": forward, "both": milliseconds(both, device)}
        except Exception as error:  # one that cannot run must not hide the others
            found[name] = {"skipped": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return found
