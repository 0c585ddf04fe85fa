"""Bytes on one GPU by part, as DeepSpeed 0.19 holds them under the settings of `megatv.engine`.

    zero  weights   gradients                                 masters, moments, average
    0     whole     whole                                     none; whole, fp32
    1     whole     whole in fp32, and in bf16 those of the   1 / n of each, fp32
                    backward pass (fp32 runs: whole, once)
    2     whole     1 / n in fp32, and a bucket               1 / n
    3     1 / n     1 / n in fp32, and a bucket; gathered     1 / n
                    weights up to a billion

with n = dp x cp replicas of the weights.

There are two peaks: the backward pass (activations and gradients) and, when activations are gone, the
reduction of the gradients, for which a bf16 ZeRO-1 run copies a whole optimizer group.
"""

from __future__ import annotations

from megatv.config import Config
from megatv.model import memory
from megatv.plan.hardware import FRAGMENTS, RESERVED
from megatv.plan.shapes import StageShape, unsplit

BUCKET = 500_000_000
"""Numbers in a bucket of gradients: `deepspeed_config`, and DeepSpeed's own constant for ZeRO 0 and 1."""
GATHERED = 1_000_000_000
"""Most weights that ZeRO-3 keeps gathered (DeepSpeed's default of stage3_max_live_parameters)."""


def state(config: Config, shape: StageShape, replicas: int) -> dict[str, int]:
    """What stays from step to step: weights, masters, moments, average; of a rank that owns a full shard."""
    size, zero = memory.number_bytes(config), config.parallel.zero
    whole, shard = _padded(shape, replicas)
    if zero == 0:
        whole = shard = shape.parameters
    return {
        "weights": size * (shard if zero == 3 else whole),
        "fp32 masters": 0 if zero == 0 else 4 * shard,
        "moments": 8 * shard,
        "average": 4 * shard if config.optim.ema is not None else 0,
    }


def gradients(config: Config, shape: StageShape, replicas: int) -> dict[str, int]:
    """What is there between the backward pass and the update, reduction not counted."""
    size, zero = memory.number_bytes(config), config.parallel.zero
    whole, shard = _padded(shape, replicas)
    if zero <= 1:
        accumulated = 4 * whole if zero == 1 and size == 2 else 0
        return {"gradients": accumulated + size * shape.parameters, "bucket": 0}
    gathered = min(shape.parameters, GATHERED) * size if zero == 3 else 0
    return {"gradients": 4 * shard, "bucket": size * min(shape.parameters, BUCKET) + gathered}


def reduction(config: Config, shape: StageShape) -> int:
    """Copies made while gradients are reduced: of a bucket, which may hold a whole optimizer group."""
    size, zero = memory.number_bytes(config), config.parallel.zero
    if zero >= 2:
        return 0  # its bucket is there all the time
    if zero == 1 and size == 4:
        return 4 * min(shape.parameters, BUCKET)
    if zero == 0:
        return 4 * min(shape.parameters, BUCKET + shape.largest)
    largest, bucket = 0, []
    for i, numbers in enumerate(shape.groups):
        bucket.append(numbers)
        if sum(bucket) > BUCKET or i == len(shape.groups) - 1:
            joined = 4 * sum(bucket) if len(bucket) > 1 else 0  # one alone is not copied, only rounded
            largest, bucket = max(largest, joined + 2 * sum(bucket)), []
    return largest


def activations(config: Config, shape: StageShape, micro_batches: int) -> dict[str, int]:
    """Kept for the backward pass of all rows under way, and what that pass needs beside."""
    mode = config.parallel.activation_checkpointing
    in_flight = min(micro_batches, shape.stages - shape.index)
    down, up = memory.patcher_bytes(unsplit(config))
    block, chunks = memory.block_bytes(config, mode), memory.local_chunks(config)
    saved = shape.blocks * block
    saved += 2 * chunks * down if shape.first else 0
    saved += chunks * up + memory.head_bytes(config) if shape.last else 0
    ends = (not shape.first) + (not shape.last)
    return {
        "activations": in_flight * saved,
        "recomputed block": memory.block_bytes(config) - block if shape.blocks else 0,
        "backward's gradients": memory.working_bytes(config),
        "attention's buffers": memory.kernel_bytes(config),
        "pipeline buffers": (in_flight + 1) * ends * memory.boundary_bytes(config),
        "batches": micro_batches * memory.batch_bytes(config),
    }


def footprint(config: Config, shape: StageShape, dp: int) -> dict[str, int]:
    """All parts, and `peak`: their largest sum, with what is reserved and what fragments take."""
    replicas = dp * config.parallel.cp
    held, grads = state(config, shape, replicas), gradients(config, shape, replicas)
    active, copies = activations(config, shape, config.accumulation(dp)), reduction(config, shape)
    moving = max(sum(active.values()), copies + active["batches"])
    margin = int(RESERVED.value + FRAGMENTS.value * (moving + grads["bucket"]))
    parts = {**held, **grads, **active, "reduction's copies": copies, "reserved": margin}
    return {**parts, "peak": sum(held.values()) + sum(grads.values()) + moving + margin}


def _padded(shape: StageShape, replicas: int) -> tuple[int, int]:
    """Numbers of all groups, each padded to a multiple of twice the replicas, and of one rank's share."""
    shards = [-(-numbers // (2 * replicas)) * 2 for numbers in shape.groups]
    return replicas * sum(shards), sum(shards)
