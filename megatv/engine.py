"""One optimizer step of the whole grid, on DeepSpeed; weights and moments in and out by global name.

DeepSpeed owns ZeRO, bf16 with fp32 masters and the pipeline schedule. Ours is what makes the result
independent of the grid: losses are normalised by the global counts of the step, and DeepSpeed's averaging
over ranks and micro-batches is multiplied away, so that every gradient is the single process's.
"""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from megatv.checkpoint.store import Tensors, finite
from megatv.config import Config
from megatv.model.cost import layer_flops
from megatv.model.init import initialize, tp_slice, tp_slice_dim
from megatv.model.mot import MoT, Output
from megatv.objective.pretrain import pretrain_loss, weighted
from megatv.objective.validation import ValidationSums
from megatv.optim import MOMENTS, AdamW, ClippedAdamW, parameter_groups
from megatv.parallel.layers import Layers
from megatv.parallel.mesh import REPLICATED, Mesh, Mpu, reduce_world
from megatv.parallel.pipeline import Stage
from megatv.types import Batch, LossSum

MODEL = "model"
"""Kind of tensor beside the optimizer's: the (master) weights."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, alike on every rank.

    sums, counts   text and video: summed losses and what bore them, over the whole step
    grad_norm      before clipping; inf when it or a loss is not finite
    applied        False: not finite or above the limit, no rank changed its weights
    stop           some rank was asked to stop
    """

    sums: tuple[float, float]
    counts: tuple[float, float]
    grad_norm: float
    applied: bool
    stop: bool

    @property
    def skip_reason(self) -> str:
        """`spike` or `not finite`, of a step that was not applied."""
        return "spike" if math.isfinite(self.grad_norm) else "not finite"


class Objective:
    """The loss of a micro-batch as DeepSpeed wants it (a scalar), keeping the sums for the record."""

    def __init__(self, config: Config, layers: Layers) -> None:
        self._config, self._layers = config.objective, layers
        self.validation: ValidationSums | None = None

    def begin(self, counts: Tensor, scale: float) -> None:
        """Start a step: global counts float64 [2]; `scale` undoes DeepSpeed's averaging."""
        self._counts, self._scale = counts, scale
        self.losses: list[LossSum] = []
        self.ids: list[tuple[str, ...]] = []

    def __call__(self, output: Output, batch: Batch) -> Tensor:
        """The scalar to differentiate; in validation, a zero beside the sums."""
        loss = pretrain_loss(output, batch, self._layers)
        if self.validation is not None:
            self.validation.add(output, batch, loss)
            return loss.video_sum * 0
        self.losses.append(LossSum(*(x.detach() for x in vars(loss).values())))
        self.ids.append(batch.ids)
        return weighted(loss, self._counts, self._config) * self._scale

    def sums(self, device: torch.device) -> Tensor:
        """float64 [2]: text and video loss summed over this rank's micro-batches."""
        parts = [torch.stack([loss.text_sum, loss.video_sum]).double() for loss in self.losses]
        return torch.stack(parts).sum(0) if parts else torch.zeros(2, dtype=torch.float64, device=device)

    def is_finite(self, device: torch.device) -> Tensor:
        """bool scalar: whether all losses of this rank are; a loss may be infinite and its gradient not."""
        return self.sums(device).isfinite().all()

    def suspects(self) -> list[str]:
        """Samples of the micro-batches whose loss is not finite."""
        bad = [not torch.isfinite(loss.text_sum + loss.video_sum) for loss in self.losses]
        return [i for ids, is_bad in zip(self.ids, bad, strict=True) if is_bad for i in ids]


class WithObjective(nn.Module):
    """The whole model and its loss as one module: what DeepSpeed runs when there is no pipeline."""

    def __init__(self, model: MoT, objective: Objective) -> None:
        super().__init__()
        self.model, self._objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        """One micro-batch -> its scalar loss."""
        return self._objective(self.model(batch), batch)


class Engine:
    """The model on this process's place of the grid, and its optimizer."""

    def __init__(
        self, config: Config, mesh: Mesh, device: torch.device, checkpoint: Path | None, updates: int = 0
    ) -> None:
        """Build the model with the initial weights, or with those and the moments of `checkpoint`.

        updates: optimizer steps already applied. The checkpoint must be verified and fit the model.
        """
        self.config, self.mesh, self.device = config, mesh, device
        join_deepspeed()
        self._layers = layers = mesh.layers()
        self.objective = Objective(config, layers)
        with torch.device("meta"):
            model = MoT(config, layers)
        if config.precision == "bf16":
            model.bfloat16()  # DeepSpeed would, and until then hold twice the bytes of every weight
        self.stage: Stage | None = None
        if mesh.pp > 1:
            self.stage = Stage(model, config, mesh, device, self.objective, layer_flops(config))
            module: nn.Module = self.stage
            self.parameters: dict[str, nn.Parameter] = self.stage.global_names
        else:
            model.to_empty(device=device).tie_embeddings()
            module = WithObjective(model, self.objective)
            self.parameters = dict(model.named_parameters())
        self.model = model
        self.shapes = {
            name: self._full_shape(name, p.shape)
            for name, p in self.parameters.items()
            if not getattr(p, REPLICATED, False)  # the first stage's copy of a tied matrix counts
        }
        for name, parameter in self.parameters.items():
            # what DeepSpeed asks when it adds up the gradient's norm over tp ranks
            split = mesh.tp > 1 and tp_slice_dim(name) is not None
            parameter.tensor_model_parallel = split  # type: ignore[attr-defined]
        self._fill(checkpoint)
        groups = parameter_groups(self.parameters.items(), config.optim)
        self.optimizer = (
            ClippedAdamW(groups, config.optim, mesh.model_group, mesh.tp_rank)
            if config.parallel.zero == 0
            else AdamW(groups, config.optim)
        )
        self._deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            config=deepspeed_config(config, mesh, sum(p.numel() for p in self.parameters.values())),
            mpu=Mpu(mesh) if mesh.tp > 1 and mesh.pp == 1 else None,
            dist_init_required=False,
        )
        self._allocate_state(updates)
        if checkpoint is not None:
            self._restore_state(checkpoint, self.kinds if updates else (MODEL,))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of tensor that make up the state."""
        return (MODEL, *MOMENTS, *(("ema",) if self.config.optim.ema is not None else ()))

    def step(
        self, batches: list[Batch], lr: float, stop: Callable[[], bool], limit: float = math.inf
    ) -> StepResult:
        """One optimizer step over this rank's micro-batches; all ranks must call it together.

        stop: whether this rank was asked to stop, read at the step's end. limit: a gradient norm (alike on
        every rank) above which the step is left out.
        """
        mesh = self.mesh
        batches = self._on_device(batches)
        counts = torch.stack([batch.counts() for batch in batches]).sum(0)
        dist.all_reduce(counts, group=mesh.replica_group)
        self.optimizer.set_lr(lr)
        norm = math.inf  # where DeepSpeed finds a gradient that is not finite, nobody asks for it

        def accept() -> bool:
            nonlocal norm
            norm = self._agreed_norm()
            return math.isfinite(norm) and norm <= limit

        self.optimizer.judge_next(accept)
        self.objective.begin(counts, mesh.replicas * len(batches))
        if self.stage is not None:
            self.stage.batches = iter(batches)
            self._deepspeed.train_batch(data_iter=_nothing())
        else:
            for batch in batches:
                self._deepspeed.backward(self._deepspeed(batch))
                self._deepspeed.step()
        report = torch.zeros(3, dtype=torch.float64, device=self.device)
        if mesh.reports:
            report[:2] = self.objective.sums(self.device)
        report[2] = stop()
        text, video, stops = reduce_world(report).tolist()
        text_count, video_count = counts.tolist()
        return StepResult(
            sums=(text, video),
            counts=(text_count, video_count),
            grad_norm=norm,
            applied=self.optimizer.applied,
            stop=stops > 0,
        )

    def _agreed_norm(self) -> float:
        """The gradient's norm before a weight changes, inf if a loss is not finite; alike on every rank."""
        norm = torch.tensor(float(self._deepspeed.optimizer._global_grad_norm), device=self.device)
        norm = norm.masked_fill(~self.objective.is_finite(self.device), math.inf)
        return reduce_world(norm, dist.ReduceOp.MAX).item()

    def suspects(self, batches: list[Batch]) -> list[str]:
        """After a skipped step: the samples whose loss was not finite, else all samples of the step."""
        mine = (self.objective.suspects(), [i for batch in batches for i in batch.ids])
        everyone: list[Any] = [None] * self.mesh.world
        dist.all_gather_object(everyone, mine)
        bad, all_ids = ({i for part in everyone for i in part[k]} for k in (0, 1))
        return sorted(bad or all_ids)

    @torch.no_grad()
    def evaluate(self, batches: list[Batch]) -> dict[str, float | None]:
        """Mean losses by modality and timestep over every dp rank's `batches` (alike in number)."""
        self.objective.validation = ValidationSums(self.device)
        batches = self._on_device(batches)
        if self.stage is not None:
            self.stage.batches = iter(batches)
            self._deepspeed.eval_batch(
                _nothing(), reduce_output=None, bcast_loss=False, num_micro_batches=len(batches)
            )
        else:
            self._deepspeed.eval()
            for batch in batches:
                self._deepspeed.module(batch)
        self._deepspeed.train()
        sums, self.objective.validation = self.objective.validation, None
        if not self.mesh.reports:
            sums.table.zero_()
        reduce_world(sums.table)
        return sums.means()

    def full(self, kind: str) -> Iterator[Tensor]:
        """Whole fp32 tensors of this stage in the order of `shapes`, perhaps the engine's own; collective."""
        for name in self.shapes:
            piece = self._whole_over_dp(self.parameters[name], kind)
            dim = tp_slice_dim(name)
            if self.mesh.tp > 1 and dim is not None:
                pieces = [torch.empty_like(piece) for _ in range(self.mesh.tp)]
                dist.all_gather(pieces, piece.contiguous(), group=self.mesh.tp_group)
                piece = torch.cat(pieces, dim)
            yield piece.detach().float()

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Run the body with the averaged weights in the model (ZeRO <= 2, needs `optim.ema`)."""
        trained = [p.detach().clone() for p in self.parameters.values()]
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.copy_(self._whole_over_dp(parameter, "ema"))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters.values(), trained, strict=True):
                    parameter.copy_(value)

    def _on_device(self, batches: list[Batch]) -> list[Batch]:
        """This rank's rows of every micro-batch."""
        return [self._layers.context.share(batch).to(self.device) for batch in batches]

    def _full_shape(self, name: str, shape: torch.Size) -> tuple[int, ...]:
        dim = tp_slice_dim(name)
        return tuple(n * self.mesh.tp if d == dim else n for d, n in enumerate(shape))

    def _fill(self, checkpoint: Path | None) -> None:
        mesh = self.mesh
        if checkpoint is None:
            initialize(self.parameters.items(), self.config, tp=mesh.tp, tp_rank=mesh.tp_rank)
            return
        tensors = Tensors(checkpoint, MODEL)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                weight = tp_slice(tensors[name], name, mesh.tp, mesh.tp_rank)
                parameter.copy_(finite(weight, name, checkpoint))

    def _allocate_state(self, updates: int) -> None:
        wrapper = self._deepspeed.optimizer
        if self.config.parallel.zero == 3:
            self.optimizer.allocate(wrapper.fp32_partitioned_groups_flat, updates)
            return
        self.optimizer.allocate((p for g in self.optimizer.param_groups for p in g["params"]), updates)
        if wrapper is not self.optimizer:
            wrapper._lazy_init_hp_params_optimizer_state()  # lets safe_get_full_optimizer_state see it

    def _restore_state(self, checkpoint: Path, kinds: Iterable[str]) -> None:
        """Moments, average and (lost in bf16) the last digits of the masters.

        Before the first update there are no moments: a converted Llama's checkpoint has its weights only.
        """
        for kind in kinds:
            tensors = Tensors(checkpoint, kind)
            tensors.require(self.shapes)
            for name, parameter in self.parameters.items():
                value = tp_slice(tensors[name], name, self.mesh.tp, self.mesh.tp_rank).to(self.device)
                self._set(parameter, kind, value)

    def _whole_over_dp(self, parameter: nn.Parameter, kind: str) -> Tensor:
        if self.config.parallel.zero == 0:
            return parameter.detach() if kind == MODEL else self.optimizer.state[parameter][kind]
        if kind == MODEL:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def _set(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        match self.config.parallel.zero:
            case 0 if kind != MODEL:
                self.optimizer.state[parameter][kind].copy_(value)
            case 1 | 2 if kind == MODEL:
                safe_set_full_fp32_param(parameter, value)
            case 1 | 2:
                safe_set_full_optimizer_state(parameter, value, kind)
            case 3:
                # DeepSpeed's setter for whole tensors does not pad the last rank's shard
                length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
                flat = torch.zeros(length * self.mesh.replicas, device=value.device)
                flat[: value.numel()] = value.flatten()
                shard = flat[length * self.mesh.replica_rank :][:length]
                if kind == MODEL:
                    safe_set_local_fp32_param(parameter, shard)
                else:
                    safe_set_local_optimizer_state(parameter, shard, kind)


def deepspeed_config(config: Config, mesh: Mesh, parameters: int) -> dict[str, Any]:
    """The settings of `deepspeed.initialize`; `parameters`: how many weights this process holds."""
    accumulation = config.accumulation(mesh.dp)
    bf16 = config.precision == "bf16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": accumulation * mesh.replicas,
        "gradient_clipping": config.optim.clip if config.parallel.zero else 0.0,  # see ClippedAdamW
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": config.parallel.zero,
            # the default allocates buffers of 5e8 elements however small the model
            "reduce_bucket_size": min(parameters, 500_000_000),
            "allgather_bucket_size": min(parameters, 500_000_000),
            # below stage 3 "reduce_scatter" all-reduces just the same, with two more copies of every gradient
            "reduce_scatter": config.parallel.zero == 3,
        },
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
    }


def _nothing() -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels for DeepSpeed's schedule; the stages read their batches themselves."""
    return itertools.repeat((torch.zeros(1), torch.zeros(1)))


def join_deepspeed() -> None:
    """Let DeepSpeed use the process group that is there.

    Its own CPU all-reduce is switched off first: it takes 45 s to compile and leaves files of 69 MB in
    /dev/shm when a run is killed. Its remarks on our choices (an optimizer of our own) are silenced.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.init_distributed(dist.get_backend(), verbose=False)
