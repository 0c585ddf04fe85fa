"""The batches of every step, agreed upon by all ranks: none goes on alone with a bad sample or an error.

A sample may be unreadable to one process only (a damaged cache, a file system that lags on one node). Ranks
that must build equal batches (tp and pp siblings) would then train on different ones without a sign of it. So
whenever a rank met a bad sample in a step, all exchange what they know, and build the step again until
siblings agree. Costs one reduction of one number a step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from megatv.data.bad import BadSample, BadSamples
from megatv.data.loader import Loader
from megatv.log import say
from megatv.parallel.mesh import Mesh, reduce_world
from megatv.types import Batch

FINE, BAD, FAILED = 0, 1, 2


class Feed:
    """Steps of a loader from `start` on.

    bad             the samples left out so far, the same on every rank
    waited_seconds  how long this rank waited for the loader in the last step, not for other ranks
    """

    def __init__(self, loader: Loader, mesh: Mesh, device: torch.device, start: int) -> None:
        self.bad = BadSamples(loader.config.data.max_bad_samples)
        self._loader, self._mesh, self._device, self._step = loader, mesh, device, start
        self._ahead: Iterator[list[Batch]] = loader.iterate(start)
        self.waited_seconds = 0.0

    def next(self) -> list[Batch]:
        """This rank's micro-batches of the next step; all ranks must call it together.

        Raises the same ValueError on every rank when one cannot go on or too many samples were left out.
        """
        self.waited_seconds = 0.0
        batches, error = self._attempt(lambda: next(self._ahead))
        while True:
            met = self._loader.met(self._step)
            state = FAILED if error else BAD if met else FINE
            if (worst := self._worst(state)) == FINE:
                break
            ids = tuple(i for batch in batches for i in batch.ids)
            everyone = self._gather((self._mesh.dp_rank, error, met, ids))
            if worst == FAILED:
                rank, message = next((r, e) for r, (_, e, _, _) in enumerate(everyone) if e)
                raise ValueError(f"rank {rank}: {message}" if self._mesh.world > 1 else message)
            self._note({bad for _, _, found, _ in everyone for bad in found})
            if len({(dp_rank, ids) for dp_rank, _, _, ids in everyone}) == self._mesh.dp:
                break
            batches, error = self._attempt(lambda: self._loader.step(self._step))
        self._step += 1
        return batches

    def _attempt(self, build: Any) -> tuple[list[Batch], str | None]:
        begun = time.perf_counter()
        try:
            return build(), None
        except ValueError as error:
            notes = "; ".join(getattr(error, "__notes__", ()))
            return [], f"{error}" + (f" ({notes})" if notes else "")
        finally:
            self.waited_seconds += time.perf_counter() - begun

    def _note(self, found: set[BadSample]) -> None:
        """Leave out here what any rank found, say so once, and stop when it is too much."""
        for bad in sorted(found):
            self._loader.bad.learn(bad)
            if bad.index not in self.bad:
                say(f"step {self._step + 1}  left out {bad}")
            self.bad.add(bad)

    def _worst(self, state: int) -> int:
        return int(reduce_world(torch.tensor(state, device=self._device), dist.ReduceOp.MAX))

    def _gather(self, mine: Any) -> list[Any]:
        everyone: list[Any] = [None] * self._mesh.world
        dist.all_gather_object(everyone, mine)
        return everyone
