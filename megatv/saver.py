"""Checkpoints written beside training: the loop waits for a copy in host memory, a thread does the rest.

A save is a copy and two jobs for a thread of each process: every writing rank writes its files; once all
ranks agree that theirs are written, rank 0 commits (index, meta.json, rename, prune). They agree in `poll`,
on the main thread between two steps: a collective from another thread could meet one of training's in another
order on another rank, and both would wait for ever. So a checkpoint counts a step or two after its last byte,
and until then the one before is the newest. A process that dies loses the save that it was writing, no more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatv.checkpoint import store
from megatv.config import Config
from megatv.engine import Engine
from megatv.log import say
from megatv.parallel.mesh import Mesh, reduce_world

WRITTEN, WRITING, FAILED = 0, 1, 2


class Saver:
    """At most one checkpoint on its way to the disk; every method but the constructor is collective.

    As a context manager it waits for the last save at the end, and when training ends in a ValueError.
    The kinds of tensor (weights, moments, average) are shared out among the replicas of each stage, which
    keep a copy of theirs: together, the hosts hold one checkpoint in memory from the first save on.
    """

    def __init__(self, config: Config, mesh: Mesh, engine: Engine) -> None:
        self._run_dir, self._keep = Path(config.run.dir), config.checkpoint.keep
        self._mesh, self._engine = mesh, engine
        self._mine = [
            kind
            for number, kind in enumerate(engine.kinds)
            if mesh.tp_rank == 0 and mesh.replica_rank == number % mesh.replicas
        ]
        self._copies: dict[str, list[Tensor]] = {}
        self._job: Job | None = None
        self._step = 0

    def save(self, step: int, meta: dict[str, Any]) -> None:
        """Copy the state and begin to write it as the checkpoint of `step`; waits for a save before it.

        Raises the same ValueError on every rank when that one failed or this one cannot begin.
        """
        if self._job is not None:
            begun = time.perf_counter()
            before = self._step
            self.finish()
            seconds = time.perf_counter() - begun
            if seconds >= 1:
                say(f"step {step}  waited {seconds:.1f} s until the checkpoint of step {before} was written")
        self._step, self._meta = step, meta
        self._final = store.checkpoint_dir(self._run_dir, step)
        self._temporary = self._final.with_name(self._final.name + store.TEMPORARY)
        with self._mesh.agreement():  # the others write into the directory that rank 0 makes
            if self._mesh.rank == 0:
                try:
                    store.begin(self._final)
                except OSError as error:
                    raise ValueError(self._sentence(error)) from None
        for kind in self._engine.kinds:
            self._copy(kind)
        self._committing = False
        self._job = Job(self._write)

    def poll(self) -> None:
        """Between two steps: take the save on when every rank is ready; the first error of a job is raised.

        Costs nothing while no save is on its way, and a reduction of one number while there is one.
        """
        if self._job is None:
            return
        state = WRITING if self._job.is_alive() else FAILED if self._job.error else WRITTEN
        worst = torch.tensor(state, device=self._engine.device)
        reduce_world(worst, dist.ReduceOp.MAX)
        if worst == WRITING:
            return
        job, self._job = self._job, None
        with self._mesh.agreement():
            if state == FAILED:
                raise ValueError(self._sentence(job.error))
        if self._committing:
            return
        everyone: list[Any] = [None] * self._mesh.world
        dist.all_gather_object(everyone, (self._mesh.pp_rank, self._files, list(self._engine.shapes)))
        self._committing = True
        self._job = Job(lambda: self._commit(everyone) if self._mesh.rank == 0 else None)

    def finish(self) -> None:
        """Wait until no save is on its way; raises as `poll` does."""
        while self._job is not None:
            self._job.join()
            self.poll()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # a ValueError is raised by all ranks together; after anything else nobody may answer any more
        if kind is None or issubclass(kind, ValueError):
            self.finish()

    def _copy(self, kind: str) -> None:
        """All ranks gather the whole tensors of their stage, one of them keeps them."""
        if kind not in self._mine:
            for _ in self._engine.full(kind):
                pass
            return
        if kind not in self._copies:
            self._copies[kind] = [torch.empty(shape) for shape in self._engine.shapes.values()]
        for copy, tensor in zip(self._copies[kind], self._engine.full(kind), strict=True):
            copy.copy_(tensor)

    def _write(self) -> None:
        shapes = self._engine.shapes
        self._files = {}
        for kind in self._mine:
            name = store.part_name(kind, self._mesh.pp_rank, self._mesh.pp)
            self._files[name] = store.write_tensors(self._temporary / name, shapes, self._copies[kind])

    def _commit(self, parts: list[tuple[int, dict, list[str]]]) -> None:
        files = {name: entry for _, written, _ in parts for name, entry in written.items()}
        if self._mesh.pp > 1:
            stage_of = {name: stage for stage, _, names in parts for name in names}
            for kind in self._engine.kinds:
                places = {n: store.part_name(kind, s, self._mesh.pp) for n, s in stage_of.items()}
                files[f"{kind}.safetensors.index.json"] = store.write_index(self._temporary, kind, places)
        store.commit(self._temporary, self._final, self._meta, files)
        store.prune(self._run_dir, self._keep)

    def _sentence(self, error: BaseException | None) -> str:
        return (
            f"{self._final}: the checkpoint could not be written ({error}); put that right, then "
            "--resume auto goes on from the one before"
        )


class Job(threading.Thread):
    """Work on a thread of its own, begun at once. error: what it raised, read when it has ended.

    A daemon: a process that fails does not stay for the end of a save that cannot be committed any more.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name="megatv-saver", daemon=True)
        self.error: BaseException | None = None
        self._work = work
        self.start()

    def run(self) -> None:
        """The work, with its error kept for the main thread."""
        try:
            self._work()
        except BaseException as error:
            self.error = error
