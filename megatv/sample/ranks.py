"""The processes that sample together: tp siblings hold one model, and such teams share the videos."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist

from megatv.config import ParallelConfig
from megatv.parallel.mesh import Mesh, initialize_distributed

T = TypeVar("T")


class Ranks:
    """This process among those of the launcher's environment, after `megatv.parallel.environment.prepare`.

    teams, team   how many models there are, and which of them this process holds, or holds a share of
    mesh          the grid of a model that is shared; None where every process is a team of its own, which
                  never waits for another

    All of a team do the same with the same requests. Raises ValueError for a world that has no whole teams.
    """

    def __init__(self, tp: int, device: torch.device) -> None:
        world = int(os.environ.get("WORLD_SIZE", 1))
        if tp < 1:
            raise ValueError(f"--tp {tp}: must be at least 1")
        if world % tp:
            raise ValueError(
                f"--tp {tp}: {world} processes are no multiple of it; start them as in "
                f"torchrun --nproc_per_node {tp} -m megatv.sample --tp {tp} ..."
            )
        self.teams, self.team, self.mesh = world, int(os.environ.get("RANK", 0)), None
        if tp > 1:
            initialize_distributed(device)
            self.mesh = Mesh(ParallelConfig(tp=tp))
            self.teams, self.team = self.mesh.dp, self.mesh.dp_rank

    @property
    def speaks(self) -> bool:
        """Whether this process writes what its team has made."""
        return self.mesh is None or self.mesh.tp_rank == 0

    def agree(self, value: T) -> T:
        """The `value` of the one that writes, on all of a team."""
        if self.mesh is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, self.mesh.tp_ranks[0], self.mesh.tp_group)
        return box[0]


def leave() -> None:
    """Part from the others, where there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
