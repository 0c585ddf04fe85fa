"""What a run does about what happens to it: stop signals, steps that must not count, rubbish.

A signal only sets a flag; the engine lets all ranks agree on it once a step, so that all of them stop after
the same one. SIGUSR1 is "save and leave" (Slurm's `--signal=USR1@60`), SIGTERM means the same.
"""

from __future__ import annotations

import gc
import signal
from types import FrameType, TracebackType


class StopSignal:
    """Context manager: `requested` becomes True on SIGUSR1 or SIGTERM instead of the process dying."""

    SIGNALS = (signal.SIGUSR1, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignal:
        self._before = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class SkippedSteps:
    """Counts steps that were skipped for a non-finite gradient and gives up when they do not end.

    A single bad batch is survivable; `limit` bad steps in a row mean that the weights or the data are broken.
    """

    def __init__(self, total: int = 0, limit: int = 20) -> None:
        self.total, self._in_a_row, self._limit = total, 0, limit

    def count(self, step: int, applied: bool, ids: list[str]) -> str | None:
        """Record a step; a message when it was skipped. Raises ValueError after `limit` skips in a row."""
        if applied:
            self._in_a_row = 0
            return None
        self.total += 1
        self._in_a_row += 1
        if self._in_a_row >= self._limit:
            raise ValueError(
                f"step {step}: {self._in_a_row} steps in a row had non-finite gradients (last samples: "
                f"{', '.join(ids[:8])}); lower optim.lr or inspect these samples, then resume"
            )
        return (
            f"step {step}: skipped on every rank, the gradient is not finite; samples {', '.join(ids)} "
            f"({self.total} skipped so far)"
        )


class GarbageTogether:
    """Context manager: Python's cyclic garbage is collected at the same steps on all ranks, never else.

    Left alone, each process collects when its own count of objects says so. A pause of one rank is a pause of
    all, at the next collective, so the pauses of many ranks add up; taken at the same step they are one, as
    in torchtitan (`GarbageCollection`). What is there at the start, the model and its libraries, is
    frozen: it lives as long as the run and need not be searched.
    """

    EVERY = 50

    def __enter__(self) -> GarbageTogether:
        gc.collect()
        gc.freeze()
        gc.disable()
        return self

    def after(self, step: int) -> None:
        """`step` has ended."""
        if step % self.EVERY == 0:
            gc.collect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.enable()
        gc.unfreeze()
