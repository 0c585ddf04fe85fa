"""What a run does about what happens to it: stop signals, steps that must not count, rubbish.

A signal only sets a flag; the engine lets all ranks agree on it once a step, so that all of them stop after
the same one. SIGUSR1 is "save and leave" (Slurm's `--signal=USR1@60`), SIGTERM means the same.
"""

from __future__ import annotations

import gc
import math
import signal
from collections import deque
from collections.abc import Mapping
from statistics import median
from types import FrameType, TracebackType
from typing import Any

from megatv.config import HealthConfig


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
    """Which steps must not count, how many there were, and when there are too many of them.

    A step is skipped when a gradient or loss is not finite, or when the gradient's norm is a spike: above
    `health.spike_factor` times the median of the last `health.spike_window` steps that counted (none is
    before there are so many). A median, because no single step moves it. One bad batch is survivable;
    `health.max_skipped_in_a_row` mean that the weights or the data are broken.
    """

    def __init__(self, health: HealthConfig, meta: Mapping[str, Any]) -> None:
        """meta: of the checkpoint that the run goes on from, to judge as if it had never stopped."""
        self._health = health
        self.total: int = meta["skipped"]
        self._in_a_row: int = meta.get("skipped_in_a_row", 0)
        self._norms: deque[float] = deque(meta.get("grad_norms", ()), maxlen=health.spike_window)

    def state(self) -> dict[str, Any]:
        """For the meta record of a checkpoint."""
        return {
            "skipped": self.total,
            "skipped_in_a_row": self._in_a_row,
            "grad_norms": list(self._norms),
        }

    @property
    def limit(self) -> float:
        """The norm above which the next step is a spike."""
        if self._health.spike_factor == 0 or len(self._norms) < self._health.spike_window:
            return math.inf
        return self._health.spike_factor * median(self._norms)

    def count(self, step: int, norm: float, applied: bool, ids: list[str]) -> str | None:
        """Record a step; a message when it was skipped. Raises ValueError after too many in a row."""
        if applied:
            self._in_a_row = 0
            self._norms.append(norm)
            return None
        self.total += 1
        self._in_a_row += 1
        if self._in_a_row >= self._health.max_skipped_in_a_row:
            raise ValueError(
                f"step {step}: {self._in_a_row} steps in a row were skipped, the last as {self._why(norm)} "
                f"(its samples: {', '.join(ids[:8])}); lower optim.lr or inspect these samples, then resume"
            )
        return (
            f"step {step}: skipped on every rank, {self._why(norm)}; samples {', '.join(ids)} "
            f"({self.total} skipped so far)"
        )

    def _why(self, norm: float) -> str:
        if not math.isfinite(norm):
            return "the gradient or a loss is not finite"
        return (
            f"the gradient's norm {norm:.3g} is a spike (above {self.limit:.3g}, "
            f"{self._health.spike_factor:g} times the median of the {self._health.spike_window} steps before)"
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
