"""The model as a list of layers, cut into pipeline stages for DeepSpeed's schedule.

    embed -> blocks.0 -> ... -> blocks.L-1 -> head

Between stages travels one flat vector: hidden states [S, D] and the noisy copies' skips [M, X], whose width
never changes, so that one message and one backward do for both. What is known without computing (positions,
who sees whom, targets) does not travel: every stage reads the batch itself, as batches are a pure function of
the step.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn

from megatv.config import Config
from megatv.parallel.mesh import REPLICATED, Mesh
from megatv.types import Batch

TIED = "embed.text.weight"
"""Name of the matrix that head and embedding share where the config ties them."""


def pipeline_layers(model: Any) -> list[tuple[str, nn.Module]]:
    """The layers of a model with `embed`, `blocks` and `head`, by name, in the order of the data."""
    blocks = [(f"blocks.{i}", block) for i, block in enumerate(model.blocks)]
    return [("embed", model.embed), *blocks, ("head", model.head)]


def rename_tied_head(named: dict[str, Any]) -> None:
    """Call the last stage's copy of a tied matrix by the embedding's name, by which it is trained."""
    named[TIED] = named.pop("head.text.weight")


def stage_bounds(costs: Sequence[int], stages: int) -> list[int]:
    """Stage i holds layers [bounds[i], bounds[i + 1]), at least one: the cut whose heaviest costs least."""
    done = [0, *itertools.accumulate(costs)]

    @functools.cache
    def cut(first: int, stages: int) -> tuple[int, list[int]]:
        """Cost of the heaviest stage and the bounds after `first`, for `stages` of at least a layer each."""
        if stages == 1:
            return done[-1] - done[first], [len(costs)]
        ways = []
        for end in range(first + 1, len(costs) - stages + 2):
            heaviest, bounds = cut(end, stages - 1)
            ways.append((max(heaviest, done[end] - done[first]), [end, *bounds]))
        return min(ways)

    return [0, *cut(0, stages)[1]]


class Stage(PipelineModule):
    """This process's consecutive layers of a model with `embed`, `blocks`, `head`, `rope` and `run_block`.

    `batches` must be set to an iterator over the step's micro-batches before DeepSpeed runs its schedule:
    every forward pass takes the next one. The last stage returns `objective(output, batch)`, a scalar.
    """

    batches: Iterator[Batch]

    def __init__(
        self,
        model: Any,
        config: Config,
        mesh: Mesh,
        device: torch.device,
        objective: Callable[..., Tensor],
        costs: Sequence[int],
    ) -> None:
        """`model` lies on the meta device; only this stage's layers are given memory (and no values yet).

        costs: of every layer, by which the stages are cut.
        """
        names, layers = zip(*pipeline_layers(model), strict=True)
        self._bounds, self._index = stage_bounds(costs, mesh.pp), mesh.pp_rank
        mine = slice(*self._bounds[mesh.pp_rank : mesh.pp_rank + 2])
        for layer in layers[mine]:
            layer.to_empty(device=device)
        topology = PipeModelDataParallelTopology(num_pp=mesh.pp, num_dp=mesh.replicas, num_mp=mesh.tp)
        place = topology.get_coord(mesh.rank)
        assert (place.pipe, place.data, place.model) == (mesh.pp_rank, mesh.replica_rank, mesh.tp_rank)
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints the whole topology
            super().__init__(layers=list(layers), topology=topology)
        self.global_names = {
            f"{names[i]}.{name}": parameter
            for i in range(mine.start, mine.stop)
            for name, parameter in layers[i].named_parameters()
        }
        self._rope, self._run_block, self._objective = model.rope, model.run_block, objective
        self._first, self._last, self._width = mesh.pp_rank == 0, mesh.is_last_stage, config.model.width
        self._row_shares = model.layers.row_shares
        self._tied = self._tie(mesh) if config.model.tied_embeddings else []

    def _partition_layers(self, method: str) -> None:  # type: ignore[override]
        """DeepSpeed's own cuts count layers or weights."""
        self.parts = self._bounds
        self._set_bounds(*self._bounds[self._index : self._index + 2])

    def _tie(self, mesh: Mesh) -> list[tuple[nn.Parameter, dist.ProcessGroup]]:
        """The first and the last stage hold a copy each of the tied matrix, which start and stay alike."""
        group = mesh.ends_group()
        if group is None:
            return []
        if self._last:
            rename_tied_head(self.global_names)
            setattr(self.global_names[TIED], REPLICATED, True)
        return [(self.global_names[TIED], group)]

    def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, dist.ProcessGroup]]:
        """DeepSpeed's question before the update: whose gradients are to be added up over which ranks."""
        return self._tied

    def forward(self, boundary: Tensor) -> Tensor:
        """One micro-batch: the flat boundary of the stage before (unused by the first) to the next one's."""
        batch = next(self.batches)
        layers: list[Any] = list(self.forward_funcs)
        if self._first:
            hidden, skips = layers.pop(0)(batch)
        else:
            hidden, skips = self._unpack(boundary, batch)
        head = layers.pop() if self._last else None
        rope = self._rope(batch.positions, hidden.dtype)
        for block in layers:
            hidden = self._run_block(block, hidden, rope, batch.record)
        if head is None:
            return torch.cat([hidden.flatten(), skips.flatten()])
        return self._objective(head(hidden, skips), batch)

    def _unpack(self, boundary: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        rows, chunks = len(batch.positions) // self._row_shares, len(batch.noisy)
        hidden, skips = boundary.tensor_split([rows * self._width])
        return hidden.view(rows, self._width), skips.view(chunks, -1)
