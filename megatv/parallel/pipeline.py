"""The model as a list of layers, cut into pipeline stages for DeepSpeed's schedule.

    embed -> blocks.0 -> ... -> blocks.L-1 -> head

Between stages travels one flat vector: hidden states [S, D] and the noisy copies' skips [M, X], whose width
never changes, so that one message and one backward do for both. What is known without computing (positions,
who sees whom, targets) does not travel: every stage reads the batch itself, as batches are a pure function of
the step.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.runtime.utils import partition_balanced
from torch import Tensor, nn

from megatv.config import Config
from megatv.parallel.mesh import Mesh
from megatv.types import Batch


def pipeline_layers(model: Any) -> list[tuple[str, nn.Module]]:
    """The layers of a model with `embed`, `blocks` and `head`, by name, in the order of the data."""
    blocks = [(f"blocks.{i}", block) for i, block in enumerate(model.blocks)]
    return [("embed", model.embed), *blocks, ("head", model.head)]


def stage_bounds(model: Any, stages: int) -> list[int]:
    """Stage i holds layers [bounds[i], bounds[i + 1]): the cut whose heaviest stage has fewest weights."""
    costs = [sum(p.numel() for p in layer.parameters()) for _, layer in pipeline_layers(model)]
    return list(partition_balanced(costs, stages))


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
    ) -> None:
        """`model` lies on the meta device; only this stage's layers are given memory (and no values yet)."""
        assert not config.model.tied_embeddings
        names, layers = zip(*pipeline_layers(model), strict=True)
        bounds = stage_bounds(model, mesh.pp)
        mine = slice(bounds[mesh.pp_rank], bounds[mesh.pp_rank + 1])
        for layer in layers[mine]:
            layer.to_empty(device=device)
        topology = PipeModelDataParallelTopology(num_pp=mesh.pp, num_dp=mesh.dp, num_mp=mesh.tp)
        place = topology.get_coord(mesh.rank)
        assert (place.pipe, place.data, place.model) == (mesh.pp_rank, mesh.dp_rank, mesh.tp_rank)
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints the whole topology
            super().__init__(layers=list(layers), topology=topology, partition_method="parameters")
        assert list(self.parts) == bounds
        self.global_names = {
            f"{names[i]}.{name}": parameter
            for i in range(mine.start, mine.stop)
            for name, parameter in layers[i].named_parameters()
        }
        self._rope, self._run_block, self._objective = model.rope, model.run_block, objective
        self._first, self._last, self._width = mesh.pp_rank == 0, mesh.is_last_stage, config.model.width

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
        rows, chunks = len(batch.positions), len(batch.noisy)
        hidden, skips = boundary.tensor_split([rows * self._width])
        return hidden.view(rows, self._width), skips.view(chunks, -1)
