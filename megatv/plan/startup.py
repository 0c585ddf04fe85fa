"""The start of every rank of a grid that does not exist: its process groups, its model, its stage.

All ranks make process groups together. One that makes them in another order, or counts another rank to a
group that does not know of it, waits for ever at its first collective, on a cluster that is paid for. A
rehearsal waits for nobody: every rank starts in turn in one process, and what they say is compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from megatv.config import Config
from megatv.model.mot import MoT
from megatv.parallel.mesh import Mesh, rehearsal
from megatv.plan.shapes import rehearsed_stage

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Start:
    """What one rank says when it has started.

    stage     its pipeline stage
    groups    the ranks of each of its groups, by the mesh's name for it
    made      how many groups it helped to make, its own or not, and a hash of their ranks in that order
    weights   how many it holds
    seconds   of its start by part; what waits for other ranks or the network takes none here
    """

    stage: int
    groups: dict[str, Ranks]
    made: tuple[int, int]
    weights: int
    seconds: dict[str, float]


def start(config: Config, world: int, rank: int, model: bool = True) -> Start:
    """Be process `rank` of `world` up to the point where its weights get their values.

    model: False makes the mesh only. ValueError for a grid that does not fit the world.
    """
    seconds: dict[str, float] = {}
    with rehearsal(world, rank), _recorded_groups() as made:
        with _timed(seconds, "groups"):
            mesh = Mesh(config.parallel)
        weights = _build(config, mesh, seconds) if model else 0
        groups = {
            name: tuple(dist.get_process_group_ranks(group))
            for name, group in vars(mesh).items()
            if isinstance(group, dist.ProcessGroup)
        }
    return Start(mesh.pp_rank, groups, (len(made), hash(tuple(made))), weights, seconds)


def disagreements(starts: Sequence[Start]) -> Iterator[str]:
    """One sentence for each thing that two ranks see differently; `starts` are all ranks' in their order."""
    for rank, one in enumerate(starts):
        if one.made != starts[0].made:
            yield f"rank {rank} makes other process groups than rank 0, or the same in another order"
        for name, ranks in one.groups.items():
            for other in {rank, *ranks}:
                theirs = starts[other].groups[name]
                if rank not in theirs or theirs != ranks:
                    yield f"rank {rank} has ranks {ranks} in its {name}, rank {other} has {theirs}"


def _build(config: Config, mesh: Mesh, seconds: dict[str, float]) -> int:
    """Weights that this rank holds, on the meta device; a stage's have addresses that nobody writes to."""
    with _timed(seconds, "Megatron's groups"):
        layers = mesh.layers()
    with _timed(seconds, "model"), torch.device("meta"):
        module: Any = MoT(config, layers)
    if mesh.pp > 1:
        with _timed(seconds, "DeepSpeed's groups and stage"):
            module = rehearsed_stage(module, config, mesh)
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def _recorded_groups() -> Iterator[list[Ranks]]:
    """Within: the ranks of every `torch.distributed.new_group`, whoever calls it."""
    made: list[Ranks] = []
    make = dist.new_group

    def new_group(ranks: Sequence[int] | None = None, *rest: Any, **options: Any) -> Any:
        made.append(tuple(ranks or ()))
        return make(ranks, *rest, **options)

    with mock.patch.object(dist, "new_group", new_group):
        yield made


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - begun
