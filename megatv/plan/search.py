"""All grids of so many GPUs: which fit, how fast they are predicted to be, and why the others do not fit.

Nothing is judged here that the run itself would not refuse: the sentences are those of `megatv.checks`, of
the mesh and of the batch. Memory alone is ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints

from megatv.config import Config, ParallelConfig
from megatv.parallel.mesh import grid
from megatv.plan.footprint import footprint
from megatv.plan.hardware import NODE_GPUS, Gpu
from megatv.plan.predict import Prediction, predict
from megatv.plan.shapes import StageShape, stage_shapes
from megatv.plan.traffic import Traffic, traffic

ZERO: tuple[Any, ...] = get_args(get_type_hints(ParallelConfig)["zero"])
MODES: tuple[Any, ...] = get_args(get_type_hints(ParallelConfig)["activation_checkpointing"])


@dataclass(frozen=True)
class Plan:
    """One grid that the run accepts. `memory` is that of its fullest stage, `traffic` of its busiest."""

    config: Config
    dp: int
    shapes: list[StageShape]
    memory: dict[str, int]
    fullest: int
    traffic: list[Traffic]
    prediction: Prediction

    @property
    def name(self) -> str:
        """As a config writes it."""
        par = self.config.parallel
        return grid_name(par, self.dp)


@dataclass(frozen=True)
class Refusal:
    """One grid that does not go, and the sentence that says why."""

    name: str
    reason: str


def grid_name(par: ParallelConfig, dp: int | None) -> str:
    """tp (sp: with sequence parallelism) x pp x dp x cp, ZeRO stage and checkpointing in few words."""
    tp = f"tp {par.tp} {'sp' if par.sequence_parallel else '  '}"
    rest = f"pp {par.pp:<2} dp {dp if dp else '-':<3} cp {par.cp} zero {par.zero}"
    return f"{tp} {rest} {par.activation_checkpointing}"


def plan(config: Config, parallel: ParallelConfig, gpu: Gpu, gpus: int) -> Plan | Refusal:
    """The run on this grid, or why not."""
    dp = None
    try:
        dp = grid(gpus, parallel).shape[1]
        config = replace(config, parallel=parallel)
        rows = config.accumulation(dp)
        if rows < parallel.pp:
            raise ValueError(
                f"{rows} rows a pipeline cannot fill parallel.pp {parallel.pp} stages: lower parallel.pp or "
                "raise batch.examples"
            )
        found = stage_shapes(config)
    except ValueError as error:
        return Refusal(grid_name(parallel, dp), str(error))
    footprints = [footprint(config, shape, dp) for shape in found]
    fullest = max(range(len(found)), key=lambda i: footprints[i]["peak"])
    peak = footprints[fullest]["peak"]
    if peak > gpu.memory:
        needs = f"needs {peak / 1e9:.1f} GB on stage {fullest}, a {gpu.name} has {gpu.memory / 1e9:.0f}"
        return Refusal(grid_name(parallel, dp), f"memory: {needs}")
    sent = max((traffic(config, shape, dp) for shape in found), key=lambda t: sum(one.sent for one in t))
    guess = predict(config, found, gpu, gpus)
    return Plan(config, dp, found, footprints[fullest], fullest, sent, guess)


def grids(gpus: int) -> Iterator[ParallelConfig]:
    """Powers of two of tp and cp, together within a node, and of pp; every ZeRO stage, every checkpointing.

    Sequence parallelism comes with every tp: it sends the same bytes and keeps fewer.
    """
    node = min(gpus, int(NODE_GPUS.value))
    for tp in _powers(node):
        for cp, pp, zero, mode in itertools.product(_powers(node // tp), _powers(gpus // tp), ZERO, MODES):
            yield ParallelConfig(
                tp=tp, pp=pp, cp=cp, zero=zero, sequence_parallel=tp > 1, activation_checkpointing=mode
            )


def search(config: Config, gpu: Gpu, gpus: int) -> tuple[list[Plan], list[Refusal]]:
    """Plans, the fastest first, and refusals in the order of the grids."""
    found = [plan(config, parallel, gpu, gpus) for parallel in grids(gpus)]
    plans = [one for one in found if isinstance(one, Plan)]
    plans.sort(key=lambda one: one.prediction.step_seconds)
    return plans, [one for one in found if isinstance(one, Refusal)]


def nearest_counts(config: Config, gpu: Gpu, gpus: int) -> list[int]:
    """The largest number of GPUs below `gpus` on which a grid fits, and the smallest above, where there are.

    A number must be a data-parallel size that divides the batch, times powers of two.
    """
    rows = config.rows_per_step
    widths = _powers(int(NODE_GPUS.value) * config.model.layers)
    counts = sorted({dp * width for dp in range(1, rows + 1) if rows % dp == 0 for width in widths})
    below = [count for count in reversed(counts) if count < gpus]
    above = [count for count in counts if count > gpus]
    found = (next((n for n in side if _fits(config, gpu, n)), None) for side in (below, above))
    return [count for count in found if count]


def _fits(config: Config, gpu: Gpu, gpus: int) -> bool:
    return any(isinstance(plan(config, parallel, gpu, gpus), Plan) for parallel in grids(gpus))


def _powers(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length())]
