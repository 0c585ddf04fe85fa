"""Where a run's time goes: data wait, steps, the arithmetic they hold, and how long the rest will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from megatv.config import Config
from megatv.model.cost import dense_training_flops, training_flops
from megatv.types import Batch

PEAK_FLOPS = {
    "NVL": 835.5e12,
    "H100 PCIe": 756.5e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "A100": 312e12,
    "GB200": 2500e12,
    "B200": 2250e12,
}
"""Part of a device's name, and its bf16 FLOP/s without sparsity; the first that fits counts. From
NVIDIA's data sheets of A100, H100 (SXM, PCIe, NVL), H200, GB200 and B200; they print all but A100's with
sparsity: twice."""


def peak_flops(device: str) -> float | None:
    """bf16 FLOP/s of a device by its name; None where it is unknown, or a slice (MIG) of a device."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device and "MIG" not in device), None)


@dataclass(frozen=True)
class Step:
    """One step: seconds in all and for data, FLOPs of this process, whether it is the first of a start."""

    seconds: float
    waited: float
    flops: float
    first: bool


class Clock:
    """Times the steps of one process; `flops` are its own, `gpus` all processes of the run.

    The first step after a start compiles and warms up: it is told apart and counts in no mean and no median.
    """

    def __init__(
        self, config: Config, done: int, examples_per_step: float, gpus: int, device: torch.device
    ) -> None:
        self._config, self._done, self._examples, self._gpus = config, done, examples_per_step, gpus
        self._tokens = config.rows_per_step * config.sequence.context_tokens
        self._dense = config.rows_per_step * dense_training_flops(config) / gpus
        self._peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._recent: deque[Step] = deque(maxlen=100)
        self._window: list[Step] = []
        self.start()

    def start(self) -> None:
        """The next step begins (validation, saving and previews are not part of a step)."""
        self._begun = time.perf_counter()

    def finish_step(self, batches: list[Batch], waited_seconds: float) -> dict[str, float | None]:
        """The figures of the step that trained on `batches`, which are this process's and on the host.

        seconds                      wall-clock time, waiting for data included
        first_step_seconds           the same, only in the first step after a start
        sequences_per_second, tokens_per_second   of the whole run; tokens are rows of the packed rows
        tokens_per_second_per_gpu    the same for each process
        tflops_per_gpu               of the rows that are live and the pairs that see each other, see `cost`
        mfu                          the same over the device's bf16 peak; null where that is unknown
        mfu_dense                    as others count: padding and invisible pairs included
        data_wait                    share of the time that went by waiting for the loader
        """
        seconds = time.perf_counter() - self._begun
        par = self._config.parallel
        shared_by = par.tp * par.pp * par.cp
        flops = sum(sum(training_flops(self._config, batch.record).values()) for batch in batches) / shared_by
        step = Step(seconds, waited_seconds, flops, first=not self._recent)
        self._done += 1
        self._recent.append(step)
        self._window.append(step)
        first = {"first_step_seconds": seconds} if step.first else {}
        return {"seconds": seconds, **first, **self._speed([step])}

    def window(self) -> dict[str, float | None]:
        """The same means over the steps since the last call."""
        steps, self._window = self._window, []
        return self._speed(_warm(steps))

    def seconds_left(self) -> float:
        """Steps left times the median of the last 100 steps."""
        recent = sorted(step.seconds for step in _warm(self._recent))
        return recent[len(recent) // 2] * (self._config.run.steps - self._done)

    def _speed(self, steps: list[Step]) -> dict[str, float | None]:
        seconds, count = sum(step.seconds for step in steps), len(steps)
        flops = sum(step.flops for step in steps) / seconds
        return {
            "sequences_per_second": count * self._examples / seconds,
            "tokens_per_second": count * self._tokens / seconds,
            "tokens_per_second_per_gpu": count * self._tokens / seconds / self._gpus,
            "tflops_per_gpu": flops / 1e12,
            "mfu": flops / self._peak if self._peak else None,
            "mfu_dense": count * self._dense / seconds / self._peak if self._peak else None,
            "data_wait": sum(step.waited for step in steps) / seconds,
        }


def _warm(steps: Iterable[Step]) -> list[Step]:
    """Without the first step of a start, unless there is no other."""
    return [step for step in steps if not step.first] or list(steps)
