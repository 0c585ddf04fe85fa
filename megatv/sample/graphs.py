"""The two steps of sampling as CUDA graphs: one launch for all kernels of a pass.

A pass over one token or one chunk is hundreds of small kernels, which the host starts more slowly than an
H100 runs them (docs/measured). Shapes never change while a sequence grows, since the cache is static and
lengths are read on the device, so a pass is captured once and replayed from then on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[..., Tensor]


class Captured:
    """`step` for inputs of these shapes; calls copy theirs into its own and replay it.

    The output is the same tensor every time: use it up before the next call.
    """

    def __init__(self, step: Step, *inputs: Tensor) -> None:
        self._inputs = [x.clone() for x in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # what compiles or allocates on a first call must not do so in the graph
            step(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that decodes pictures meanwhile may allocate
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = step(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The step's output for `inputs`."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output


def capturable(x: Tensor) -> bool:
    """Whether what is computed from `x` can be captured."""
    return x.is_cuda


class Graphs:
    """Captured steps by the shapes of their inputs, over one KV cache. On a CPU steps run as they are."""

    def __init__(self) -> None:
        self._captured: dict[tuple, Captured] = {}

    def run(self, step: Step, *inputs: Tensor) -> Tensor:
        """step(*inputs); captured when inputs of these shapes come a first time.

        The run before a capture counts as well: a step may write to the cache beyond its lengths only.
        """
        if not capturable(inputs[0]):
            return step(*inputs)
        key = tuple(tuple(x.shape) for x in inputs)
        if key not in self._captured:
            self._captured[key] = Captured(step, *inputs)
        return self._captured[key](*inputs)
