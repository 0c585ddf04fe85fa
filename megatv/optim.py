"""The optimizer: which weights learn how fast (groups and schedule), AdamW, and the average of the weights.

Everything is a function of the step, so there is no scheduler state to save; the optimizer's state is
`exp_avg`, `exp_avg_sq`, the number of updates made, and `ema` with `optim.ema`. The average is kept as an
optimizer state because DeepSpeed then shards it with the moments: it costs 4 bytes a weight over dp ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatv.config import OptimConfig
from megatv.parallel.mesh import REPLICATED

MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """Learning rate of 0-based `step`: linear warm-up, then a cosine from lr to min_lr at the last step."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    span = max(steps - 1 - optim.warmup_steps, 1)
    cosine = math.cos(math.pi * min((step - optim.warmup_steps) / span, 1.0))
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + cosine)


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], optim: OptimConfig) -> list[dict[str, Any]]:
    """Optimizer groups of (global name, parameter) pairs; `lr_scale` multiplies the schedule.

    Weight decay acts on matrices and convolutions only: not on norms and biases, whose size is not
    complexity, nor on the tables of token and position vectors, whose rare rows would only ever shrink.
    The text tower (blocks.*.text, embed.text, head.text*) learns at `text_lr_scale` times the rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        scale = optim.text_lr_scale if any(p.startswith("text") for p in name.split(".")) else 1.0
        table = name in ("embed.text.weight", "embed.position")
        decay = 0.0 if table or parameter.ndim < 2 else optim.weight_decay
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW that also keeps the average of the weights as the state `ema`.

    It is the one place that every ZeRO stage and every pipeline passes with the gradient's norm known and no
    weight changed yet, so here the step is judged. DeepSpeed calls `step` once for each of its groups.
    """

    def __init__(self, groups: list[dict[str, Any]], optim: OptimConfig) -> None:
        super().__init__(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
        self.ema = optim.ema
        self._judge: Callable[[], bool] | None = None
        self.applied = True

    def set_lr(self, lr: float) -> None:
        """Set the rate of the next update, group by group."""
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def judge_next(self, judge: Callable[[], bool]) -> None:
        """Update only if `judge()` says so, which is asked once, before the first weight changes.

        `applied` then says whether it did; DeepSpeed does not come here when the gradient is not finite.
        """
        self._judge, self.applied = judge, False

    def allocate(self, parameters: Iterable[Tensor], updates: int = 0) -> None:
        """Make the state of `parameters` (the shards that DeepSpeed gives us) before the first update.

        torch makes it lazily; a resumed run must have it before, to be filled. The average starts at the
        present weights. updates: optimizer steps already made (Adam's bias correction).
        """
        for parameter in parameters:
            state = self.state[parameter]
            state["step"] = torch.tensor(float(updates), device=parameter.device)
            for key in MOMENTS:
                state[key] = torch.zeros_like(parameter, requires_grad=False)
            if self.ema is not None:
                state["ema"] = parameter.detach().clone()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of the parameters in `param_groups`, and of their average; nothing if judged bad."""
        if self._judge is not None:
            self.applied, self._judge = self._judge(), None
        if not self.applied:
            return
        super().step(closure)
        if self.ema is None:
            return
        parameters = [p for group in self.param_groups for p in group["params"]]
        torch._foreach_lerp_([self.state[p]["ema"] for p in parameters], parameters, 1 - self.ema)


class ClippedAdamW(AdamW):
    """AdamW that clips by the global norm and refuses non-finite gradients, for ZeRO stage 0.

    DeepSpeed's ZeRO optimizers do both; without them it steps the bare optimizer, whose clipping miscounts
    weights that are whole on every tp rank and which has no guard. Same attributes as theirs.
    """

    def __init__(
        self, groups: list[dict[str, Any]], optim: OptimConfig, model_group: dist.ProcessGroup, tp_rank: int
    ) -> None:
        super().__init__(groups, optim)
        self._clip, self._model_group, self._tp_rank = optim.clip, model_group, tp_rank
        self.overflow = False
        self._global_grad_norm = 0.0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Clip and update, or set `overflow` and leave everything as it is."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        counted = [
            p.grad
            for p in parameters
            if (self._tp_rank == 0 or getattr(p, "tensor_model_parallel", False))
            and not getattr(p, REPLICATED, False)
        ]
        square = torch.stack(torch._foreach_norm(counted)).square().sum()
        dist.all_reduce(square, group=self._model_group)
        self._global_grad_norm = square.sqrt().item()
        self.overflow = not math.isfinite(self._global_grad_norm)
        if self.overflow:
            return
        if self._global_grad_norm > self._clip:
            torch._foreach_mul_([p.grad for p in parameters], self._clip / (self._global_grad_norm + 1e-6))
        super().step(closure)
