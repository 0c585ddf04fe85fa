"""All grids of so many GPUs: which fit, how fast they are predicted to be, and why the others do not fit.

Nothing is judged here that the run itself would not refuse: the sentences are those of `megatv.checks`, of
the mesh and of the batch. Memory alone is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatv.config import Config, ParallelConfig
from megatv.parallel.mesh import grid
from megatv.plan.footprint import footprint
from megatv.plan.hardware import NODE_GPUS, Gpu
from megatv.plan.predict import Prediction, predict
from megatv.plan.shapes import StageShape, stage_shapes
from megatv.plan.traffic import Traffic, traffic


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
    """tp x pp x dp, ZeRO stage and checkpointing in few words."""
    keeps = "recomputes" if par.activation_checkpointing else "keeps all"
    return f"tp {par.tp:>2}  pp {par.pp:>2}  dp {dp if dp else '-':>3}  zero {par.zero}  {keeps}"


def plan(config: Config, parallel: ParallelConfig, gpu: Gpu, gpus: int) -> Plan | Refusal:
    """The run on this grid, or why not."""
    dp = None
    try:
        dp = grid(gpus, parallel.tp, parallel.pp).shape[1]
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
    """Powers of two of tp, within a node, and of pp; every ZeRO stage, with and without recomputation."""
    node = min(gpus, int(NODE_GPUS.value))
    for tp in _powers(node):
        for pp in _powers(gpus // tp):
            for zero in (0, 1, 2, 3):
                for recompute in (False, True):
                    yield ParallelConfig(tp, pp, zero, recompute)  # type: ignore[arg-type]


def search(config: Config, gpu: Gpu, gpus: int) -> tuple[list[Plan], list[Refusal]]:
    """Plans, the fastest first, and refusals in the order of the grids. ValueError for no GPU."""
    if gpus < 1:
        raise ValueError(f"--gpus is {gpus}: it must be at least 1")
    found = [plan(config, parallel, gpu, gpus) for parallel in grids(gpus)]
    plans = [one for one in found if isinstance(one, Plan)]
    plans.sort(key=lambda one: one.prediction.step_seconds)
    return plans, [one for one in found if isinstance(one, Refusal)]


def _powers(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length())]
