"""What a step spends its time on: torch's profiler over a few steps, written as a trace for Perfetto."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch

from megatv.config import ProfileConfig
from megatv.log import say, spare
from megatv.parallel.mesh import Mesh


class Profiler:
    """Context manager around the run's loop: RUN/profile/rank_N.json of the steps that `profile` names.

    One rank of each pipeline stage is traced: replicas and tensor-parallel siblings do the same work, and how
    long they are waited for shows in the one's collectives. A run that ends inside the window writes what
    there is; one that is resumed inside it traces the rest.
    """

    def __init__(self, config: ProfileConfig, run_dir: Path, mesh: Mesh) -> None:
        self._first, self._last = config.start, config.start + config.steps - 1
        self._traced = mesh.replica_rank == 0 and mesh.tp_rank == 0
        self._out = run_dir / "profile" / f"rank_{mesh.rank}.json"
        self._trace: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        """`step` is about to begin."""
        if self._traced and self._trace is None and self._first <= step <= self._last:
            self._trace = torch.profiler.profile()  # of every activity that this machine can trace
            self._trace.start()

    def after(self, step: int) -> None:
        """`step` has ended."""
        if step >= self._last:
            self._write()

    def __enter__(self) -> Profiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()

    def _write(self) -> None:
        if self._trace is None:
            return
        trace, self._trace = self._trace, None
        with spare("no trace"):
            trace.stop()
            self._out.parent.mkdir(exist_ok=True)
            trace.export_chrome_trace(str(self._out))
            say(f"trace in {self._out}: open it in https://ui.perfetto.dev")
