"""The process grid: one tensor of ranks, from which every group of the run is cut.

Ranks are laid out as [pp, dp, cp, tp], tensor-parallel siblings next to each other. Megatron's and
DeepSpeed's own ideas of the grid are derived from it and checked against it, never the other way round.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from megatv.config import ParallelConfig
from megatv.parallel.context import Context
from megatv.parallel.layers import Layers, megatron_layers
from megatv.parallel.meeting import meet

REPLICATED = "ds_pipe_replicated"
"""DeepSpeed's mark of a weight that is another stage's copy: its gradient counts once in the norm."""


def grid(world: int, parallel: ParallelConfig) -> Tensor:
    """Ranks 0..world-1 as an int64 tensor [pp, dp, cp, tp]; ValueError when they do not fill such a grid."""
    tp, pp, cp = parallel.tp, parallel.pp, parallel.cp
    replica = tp * pp * cp
    shape = f"parallel.tp {tp} x parallel.pp {pp}" + (f" x parallel.cp {cp}" if cp > 1 else "")
    if world % replica:
        raise ValueError(
            f"{world} processes cannot form a grid of {shape}: start a multiple of {replica} processes"
        )
    dp = world // replica
    if parallel.dp not in (None, dp):
        raise ValueError(
            f"parallel.dp is {parallel.dp}, but {world} processes on a grid of {shape} make dp {dp}: start "
            f"{replica * parallel.dp} processes or set parallel.dp to null"
        )
    return torch.arange(world).view(pp, dp, cp, tp)


class Mesh:
    """This process's place in the grid that `parallel` asks for, and its groups.

    tp, pp, dp, cp             sizes; tp_rank, pp_rank, dp_rank, cp_rank: this process's coordinates
    tp_group, cp_group         tensor- and context-parallel siblings
    replicas = dp x cp         ranks that hold the same weights (replica_group, replica_rank): their gradients
                               are added up, and ZeRO shares out its states among them
    model_group                all ranks that hold parts of the same weights (tp x pp)
    """

    def __init__(self, parallel: ParallelConfig) -> None:
        """Build the groups; torch.distributed must be initialised. ValueError when the world does not fit."""
        self.parallel = parallel
        ranks = grid(dist.get_world_size(), parallel)
        self.pp, self.dp, self.cp, self.tp = ranks.shape
        self.world, self.replicas = ranks.numel(), self.dp * self.cp
        self.rank = dist.get_rank()
        self.pp_rank, self.dp_rank, self.cp_rank, self.tp_rank = (ranks == self.rank).nonzero()[0].tolist()
        self.replica_rank = self.dp_rank * self.cp + self.cp_rank
        self.tp_ranks, self.tp_group = _group(ranks.reshape(-1, self.tp))
        self.cp_ranks, self.cp_group = _group(ranks.transpose(2, 3).reshape(-1, self.cp))
        copies = ranks.flatten(1, 2)
        self.replica_ranks, self.replica_group = _group(copies.transpose(1, 2).reshape(-1, self.replicas))
        _, self.model_group = _group(copies.transpose(0, 1).reshape(self.replicas, -1))

    @property
    def is_last_stage(self) -> bool:
        """Whether this process computes the loss."""
        return self.pp_rank == self.pp - 1

    @property
    def reports(self) -> bool:
        """Whether this process's loss sums count: one of the tp siblings of the last stage."""
        return self.is_last_stage and self.tp_rank == 0

    def layers(self) -> Layers:
        """The factory of the model's matrices for this grid; builds Megatron's groups when tp > 1."""
        context = Context(self.parallel, self.cp_rank, self.cp_group)
        if self.tp == 1:
            return Layers(context)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Megatron tells every rank about each optional package
            from megatron.core import parallel_state

        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(
                self.tp, self.pp, context_parallel_size=self.cp, create_gloo_process_groups=False
            )
        theirs = {
            "tensor": parallel_state.get_tensor_model_parallel_group(),
            "context": parallel_state.get_context_parallel_group(),
            "replicas": parallel_state.get_data_parallel_group(with_context_parallel=True),
        }
        ours = {"tensor": self.tp_ranks, "context": self.cp_ranks, "replicas": self.replica_ranks}
        for name, group in theirs.items():
            found = dist.get_process_group_ranks(group)
            assert found == ours[name], f"Megatron's {name} group {found} is not the mesh's {ours[name]}"
        return megatron_layers(self.tp, context, self.parallel.sequence_parallel)

    def ends_group(self) -> dist.ProcessGroup | None:
        """This process and its counterpart at the pipeline's other end, if it is at one; collective."""
        ends = grid(self.world, self.parallel)[[0, -1]].flatten(1).T
        groups = {tuple(pair): dist.new_group(pair) for pair in ends.tolist()}
        return next((group for pair, group in groups.items() if self.rank in pair), None)

    @contextmanager
    def agreement(self) -> Iterator[None]:
        """Run a check that may fail on one rank only: every rank then raises the first rank's ValueError."""
        error = None
        try:
            yield
        except ValueError as caught:
            error = str(caught)
        errors: list[str | None] = [None] * self.world
        dist.all_gather_object(errors, error)
        first = next((e for e in errors if e is not None), None)
        if first is not None:
            raise ValueError(first) from None


class Mpu:
    """The grid in the words of `deepspeed.initialize(mpu=...)`: replicas are its data parallelism."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def get_data_parallel_rank(self) -> int:
        return self._mesh.replica_rank

    def get_data_parallel_world_size(self) -> int:
        return self._mesh.replicas

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._mesh.replica_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return self._mesh.replica_ranks

    def get_model_parallel_rank(self) -> int:
        return self._mesh.tp_rank

    def get_model_parallel_world_size(self) -> int:
        return self._mesh.tp

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._mesh.model_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group


def reduce_world(x: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """`x`, reduced in place over all ranks. One rank alone wakes nobody up."""
    if dist.get_world_size() > 1:
        dist.all_reduce(x, op)
    return x


def initialize_distributed(device: torch.device) -> None:
    """Join the other processes as the launcher's environment says: nccl on GPUs, gloo on CPUs.

    Raises AloneError when one of them does not come.
    """
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, rank, world = meet()
    patience = timedelta(minutes=30)
    store.set_timeout(patience)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)


@contextmanager
def rehearsal(world: int, rank: int) -> Iterator[None]:
    """Be process `rank` of `world` that do not exist: groups are made as always, collectives do nothing.

    For counting what a rank of a large grid holds (torch's fake process group). ValueError inside a real run.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise ValueError("a grid cannot be rehearsed inside a process group: use a process of its own")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        if "megatron.core.parallel_state" in sys.modules:
            from megatron.core import parallel_state

            parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _group(rows: Tensor) -> tuple[list[int], dist.ProcessGroup]:
    """Make a process group of every row (all ranks must take part) and return the row of this rank."""
    mine = None
    for row in rows.tolist():
        group = dist.new_group(row)
        if dist.get_rank() in row:
            mine = (row, group)
    assert mine is not None
    return mine
