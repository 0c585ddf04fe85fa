"""What one GPU sends in an optimizer step, by kind, under ring algorithms.

The message is what the collective is called with (of an all-gather: its result). In a ring of g ranks, a GPU
sends 2 (g - 1) / g of an all-reduce and (g - 1) / g of an all-gather or a reduce-scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatv.config import Config
from megatv.model.memory import boundary_bytes, hidden_bytes, number_bytes
from megatv.plan.shapes import StageShape


@dataclass(frozen=True)
class Traffic:
    """Of one kind: bytes of the messages of one step, and bytes that leave this GPU for them.

    per_row   whether it happens in every micro-batch, else once a step
    """

    kind: str
    message: int
    sent: int
    per_row: bool


def tensor_bytes(config: Config, shape: StageShape) -> int:
    """All-reduced over tp for one row: twice a block each way, and the vocabulary's ends.

    A recomputed block stops before its last all-reduce, that of the video tower (torch's early stop).
    """
    model, text = config.model, config.text_rows
    hidden, text_hidden = hidden_bytes(config), number_bytes(config) * text * model.width
    recomputed = hidden + text_hidden if config.parallel.activation_checkpointing else 0
    total = shape.blocks * (4 * hidden + recomputed)
    total += text_hidden if shape.first else 0
    return total + (text_hidden + 3 * 4 * text if shape.last else 0)


def traffic(config: Config, shape: StageShape, dp: int) -> list[Traffic]:
    """Everything of one GPU of this stage and step; kinds that send nothing are left out."""
    par, rows, size = config.parallel, config.accumulation(dp), number_bytes(config)
    weights = size * shape.parameters
    found = [Traffic("tp all-reduce", *_ring(2, rows * tensor_bytes(config, shape), par.tp), True)]
    ends = (not shape.first) + (not shape.last)
    crossing = rows * ends * boundary_bytes(config)
    found.append(Traffic("pp send", crossing, crossing, True))
    if par.zero <= 1:
        found.append(Traffic("dp gradient all-reduce", *_ring(2, weights, dp), False))
    elif par.zero == 2:
        # below stage 3 DeepSpeed all-reduces every micro-batch's gradients and keeps its own share
        found.append(Traffic("dp gradient all-reduce", *_ring(2, rows * weights, dp), True))
    else:
        found.append(Traffic("dp gradient reduce-scatter", *_ring(1, rows * weights, dp), True))
        found.append(Traffic("dp weight all-gather", *_ring(1, 2 * rows * weights, dp), True))
    if par.zero in (1, 2):
        found.append(Traffic("dp weight all-gather", *_ring(1, weights, dp), False))
    return [one for one in found if one.sent]


def _ring(passes: int, message: int, ranks: int) -> tuple[int, int]:
    return message, passes * message * (ranks - 1) // ranks
