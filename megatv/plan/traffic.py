"""What one GPU sends in an optimizer step, by kind, under ring algorithms.

The message is what the collective is called with (of an all-gather: its result). In a ring of g ranks, a GPU
sends 2 (g - 1) / g of an all-reduce and (g - 1) / g of an all-gather or a reduce-scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatv.config import Config
from megatv.model.memory import (
    attending_kv_heads,
    boundary_bytes,
    hidden_bytes,
    local_rows,
    local_text_rows,
    number_bytes,
)
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
    """Summed over tp for one row: twice a block each way, and the vocabulary's ends.

    With sequence parallelism a sum is a reduce-scatter there and an all-gather back, the same bytes. A block
    that is computed again stops before its last sum, that of the video tower (torch's early stop, which
    `offloaded` has not).
    """
    text = number_bytes(config) * local_text_rows(config) * config.model.width
    hidden = number_bytes(config) * local_rows(config) * config.model.width
    again = {"full": hidden + text, "offloaded": 2 * hidden}
    total = shape.blocks * (4 * hidden + again.get(config.parallel.activation_checkpointing, 0))
    total += text if shape.first else 0
    return total + (text + 3 * 4 * local_text_rows(config) if shape.last else 0)


def context_bytes(config: Config, shape: StageShape) -> int:
    """Exchanged over cp for one row: q, k, v and the attended rows, and their gradients."""
    model, par = config.model, config.parallel
    heads = 2 * model.heads + 2 * attending_kv_heads(config)
    once = number_bytes(config) * local_rows(config) * heads * model.head_dim // par.tp
    return shape.blocks * once * (3 if par.activation_checkpointing in ("full", "offloaded") else 2)


def traffic(config: Config, shape: StageShape, dp: int) -> list[Traffic]:
    """Everything of one GPU of this stage and step; kinds that send nothing are left out."""
    par, rows, size = config.parallel, config.accumulation(dp), number_bytes(config)
    weights, replicas = size * shape.parameters, dp * par.cp
    kind = "tp reduce-scatter, all-gather" if par.sequence_parallel else "tp all-reduce"
    found = [Traffic(kind, *_ring(2, rows * tensor_bytes(config, shape), par.tp), True)]
    found.append(Traffic("cp all-to-all", *_ring(1, rows * context_bytes(config, shape), par.cp), True))
    ends = (not shape.first) + (not shape.last)
    crossing = rows * ends * boundary_bytes(config)
    found.append(Traffic("pp send", crossing, crossing, True))
    if par.activation_checkpointing == "offloaded":
        copied = 2 * rows * shape.blocks * hidden_bytes(config)
        found.append(Traffic("host copies", copied, copied, True))
    if par.zero <= 1:
        found.append(Traffic("dp gradient all-reduce", *_ring(2, weights, replicas), False))
    elif par.zero == 2:
        # below stage 3 DeepSpeed all-reduces every micro-batch's gradients and keeps its own share
        found.append(Traffic("dp gradient all-reduce", *_ring(2, rows * weights, replicas), True))
    else:
        found.append(Traffic("dp gradient reduce-scatter", *_ring(1, rows * weights, replicas), True))
        found.append(Traffic("dp weight all-gather", *_ring(1, 2 * rows * weights, replicas), True))
    if par.zero in (1, 2):
        found.append(Traffic("dp weight all-gather", *_ring(1, weights, replicas), False))
    return [one for one in found if one.sent]


def _ring(passes: int, message: int, ranks: int) -> tuple[int, int]:
    return message, passes * message * (ranks - 1) // ranks
