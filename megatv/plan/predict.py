"""How long a step takes: a prediction from the FLOPs, the bytes and the rates of `megatv.plan.hardware`.

A row's time on a stage is its products, at the assumed shares of the peak; its pointwise kernels, at the
memory's rate; and what it sends, none of it overlapped with computing but ZeRO-3's. With m rows a pipeline of
p stages takes m + p - 1 times its slowest stage's row. What happens once a step comes on top.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from megatv.config import Config
from megatv.model import memory
from megatv.model.cost import packed_row, patcher_flops, training_flops
from megatv.plan import hardware as assumed
from megatv.plan.hardware import Gpu
from megatv.plan.shapes import StageShape, unsplit
from megatv.plan.traffic import Traffic, traffic


@dataclass(frozen=True)
class Prediction:
    """Seconds of one step and of its parts (slowest stage's), model FLOPs utilisation, the run's cost."""

    step_seconds: float
    parts: dict[str, float]
    mfu: float
    days: float
    gpu_hours: float


@functools.lru_cache(maxsize=8)
def row_flops(config: Config) -> dict[str, int]:
    """`training_flops` of a row without padding."""
    return training_flops(config, packed_row(config, config.sequence.examples_per_row))


def predict(config: Config, shapes: list[StageShape], gpu: Gpu, gpus: int) -> Prediction:
    """The config's whole run on `gpus` of these."""
    par = config.parallel
    pp = par.pp
    dp = gpus // (par.tp * pp * par.cp)
    rows = config.accumulation(dp)
    flops = row_flops(unsplit(config))
    stages = [_row_seconds(config, shape, flops, gpu, dp) for shape in shapes]
    row = max(stages, key=lambda parts: sum(parts.values()))
    once = max(_step_seconds(config, shape, gpu, dp) for shape in shapes)
    parts = {name: rows * seconds for name, seconds in row.items()}
    parts["pipeline bubble"] = (pp - 1) * sum(row.values())
    parts["reduce and update"] = once
    seconds = sum(parts.values())
    return Prediction(
        step_seconds=seconds,
        parts=parts,
        mfu=config.rows_per_step * sum(flops.values()) / (seconds * gpus * gpu.flops),
        days=config.run.steps * seconds / 86_400,
        gpu_hours=config.run.steps * seconds * gpus / 3_600,
    )


def _row_seconds(
    config: Config, shape: StageShape, flops: dict[str, int], gpu: Gpu, dp: int
) -> dict[str, float]:
    """One row, forward and backward, on one stage. Recomputation adds to the blocks' share."""
    par, chunks = config.parallel, memory.local_chunks(config)
    again, attention_again = _recomputed(config)
    share = shape.blocks / config.model.layers / (par.tp * par.cp)
    down, up = patcher_flops(unsplit(config))
    patcher = 3 * chunks * (2 * down * shape.first + up * shape.last)
    products = (flops["text_tower"] + flops["video_tower"]) * share * again
    products += flops["head"] / (par.tp * par.cp) if shape.last else 0
    saved = shape.blocks * memory.block_bytes(config) * again
    for owned, copies, size in zip(
        (shape.first, shape.last), (2, 1), memory.patcher_bytes(unsplit(config)), strict=True
    ):
        saved += owned * copies * chunks * size
    seconds = {
        "products": products / (gpu.flops * assumed.MATMUL.value),
        "attention": flops["attention"] * share * attention_again / (gpu.flops * assumed.ATTENTION.value),
        "U-Net": patcher / (gpu.flops * assumed.CONVOLUTION.value),
        "pointwise": saved * assumed.POINTWISE_PASSES.value / (gpu.bandwidth * assumed.HBM_SHARE.value),
    }
    computing, rows = sum(seconds.values()), config.accumulation(dp)
    for one in traffic(config, shape, dp):
        if one.per_row:
            wire = _seconds(config, one, gpu, dp) / rows
            overlaps = config.parallel.zero == 3 and one.kind.startswith("dp")
            seconds[one.kind] = max(0.0, wire - computing * assumed.OVERLAP.value * overlaps)
    return seconds


def _recomputed(config: Config) -> tuple[float, float]:
    """How often the blocks' products and attention are computed, over once forward and twice backward.

    `selective` computes gate and up again, two of the feed-forward's three matrices.
    """
    model = config.model
    match config.parallel.activation_checkpointing:
        case "none":
            return 1, 1
        case "selective":
            rest = 2 * (model.width + model.kv_heads * model.head_dim)
            return 1 + 2 * model.ffn / (rest + 3 * model.ffn) / 3, 1
        case _:
            return 4 / 3, 4 / 3


def _step_seconds(config: Config, shape: StageShape, gpu: Gpu, dp: int) -> float:
    wire = sum(_seconds(config, one, gpu, dp) for one in traffic(config, shape, dp) if not one.per_row)
    held = shape.parameters / (dp * config.parallel.cp if config.parallel.zero >= 2 else 1)
    update = 4 * held * assumed.OPTIMIZER_PASSES.value / (gpu.bandwidth * assumed.HBM_SHARE.value)
    return wire + update


def _seconds(config: Config, one: Traffic, gpu: Gpu, dp: int) -> float:
    """A ring is as fast as its slowest link; siblings on one node share its network ports."""
    par, node = config.parallel, int(assumed.NODE_GPUS.value)
    if one.kind == "host copies":
        return one.sent / gpu.host
    inside = gpu.nvlink * assumed.NVLINK_SHARE.value
    network = gpu.network * assumed.NETWORK_SHARE.value
    replicas = dp * par.cp
    places = {"tp": (par.tp, 1), "cp": (par.cp, par.tp), "dp": (replicas, par.tp)}
    group, apart = {**places, "pp": (par.pp, replicas * par.tp)}[one.kind[:2]]
    if group * apart <= node:
        return one.sent / inside
    siblings = max(1, node // apart) if one.kind[:2] != "pp" else 1
    return one.sent / min(inside, network * siblings)
