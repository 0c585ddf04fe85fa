"""What every pipeline stage of a grid holds, counted on the real model: its layers, on the meta device.

The model is built with the tensor-parallel layers of `megatv.parallel`, as one rank of a process group that
is only rehearsed. Ranks of the same stage hold equal shapes, so one of each stage stands for all of its.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
from contextlib import redirect_stdout
from dataclasses import dataclass, replace

import torch
from torch import nn

from megatv.config import Config, ParallelConfig
from megatv.engine import join_deepspeed
from megatv.model.cost import layer_flops
from megatv.model.mot import MoT
from megatv.optim import parameter_groups
from megatv.parallel.mesh import Mesh, rehearsal
from megatv.parallel.pipeline import Stage, pipeline_layers, rename_tied_head, stage_bounds


@dataclass(frozen=True)
class StageShape:
    """One pipeline stage on one of its GPUs.

    index, stages   place in the pipeline        blocks   how many of the model's blocks it computes
    groups          weights of each optimizer group on this GPU, in the optimizer's order
    largest         weights of its largest tensor
    """

    index: int
    stages: int
    blocks: int
    groups: tuple[int, ...]
    largest: int

    @property
    def first(self) -> bool:
        """Whether it embeds."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """Whether it has the head and the loss."""
        return self.index == self.stages - 1

    @property
    def parameters(self) -> int:
        """Weights on this GPU."""
        return sum(self.groups)


def unsplit(config: Config) -> Config:
    """The same run on one process: what depends on the model alone is remembered under this key."""
    return replace(config, parallel=ParallelConfig())


@functools.lru_cache(maxsize=8)
def split_model(config: Config, tp: int) -> MoT:
    """One tensor-parallel rank's model; `config` is `unsplit`. ValueError for what does not split so."""
    config = replace(config, parallel=ParallelConfig(tp=tp))
    with rehearsal(tp, 0):
        return _model(config, Mesh(config.parallel))


def stage_shapes(config: Config) -> list[StageShape]:
    """All stages of the config's grid, cut as the engine cuts them; data parallelism does not change them."""
    model, pp = split_model(unsplit(config), config.parallel.tp), config.parallel.pp
    if pp == 1:
        return [_shape(config, dict(model.named_parameters()), 0)]
    layers, bounds = pipeline_layers(model), stage_bounds(layer_flops(unsplit(config)), pp)
    stages: list[dict[str, nn.Parameter]] = [
        {f"{name}.{n}": p for name, layer in layers[lo:hi] for n, p in layer.named_parameters()}
        for lo, hi in itertools.pairwise(bounds)
    ]
    if config.model.tied_embeddings:
        rename_tied_head(stages[-1])
    return [_shape(config, named, index) for index, named in enumerate(stages)]


def built_stage(config: Config, world: int, index: int) -> StageShape:
    """The same of stage `index` alone, by being its first rank and building what the engine would build."""
    with rehearsal(world, index * (world // config.parallel.pp)):
        mesh = Mesh(config.parallel)
        model = _model(config, mesh)
        if mesh.pp == 1:
            return _shape(config, dict(model.named_parameters()), index)
        return _shape(config, rehearsed_stage(model, config, mesh).global_names, mesh.pp_rank)


def rehearsed_stage(model: MoT, config: Config, mesh: Mesh) -> Stage:
    """This rank's stage of `model` inside a rehearsal. Its weights have addresses that nobody writes to."""
    join_deepspeed()
    costs = layer_flops(unsplit(config))
    with redirect_stdout(io.StringIO()):
        return Stage(model, config, mesh, torch.device("cpu"), _no_objective, costs)


def _no_objective(output: object, batch: object) -> torch.Tensor:
    raise AssertionError("a rehearsed stage computes nothing")


def _model(config: Config, mesh: Mesh) -> MoT:
    layers = mesh.layers()
    with torch.device("meta"):
        return MoT(config, layers)


def _shape(config: Config, named: dict[str, nn.Parameter], index: int) -> StageShape:
    groups = parameter_groups(named.items(), config.optim)
    sizes = tuple(sum(p.numel() for p in group["params"]) for group in groups)
    blocks = {name.split(".")[1] for name in named if name.startswith("blocks.")}
    largest = max(math.prod(p.shape) for p in named.values())
    return StageShape(index, config.parallel.pp, len(blocks), sizes, largest)
