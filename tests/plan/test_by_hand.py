"""What grids of the 8B model send, hold and take, counted by hand from the tables of `megatv.plan`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatv.config import ParallelConfig, load_config
from megatv.model import memory
from megatv.model.cost import patcher_flops
from megatv.plan.footprint import activations, footprint, state
from megatv.plan.hardware import ATTENTION, GPUS
from megatv.plan.predict import predict, row_flops
from megatv.plan.search import Plan, Refusal, nearest_counts, plan, search
from megatv.plan.shapes import StageShape, stage_shapes, unsplit
from megatv.plan.traffic import context_bytes, tensor_bytes, traffic

CONFIGS = Path(__file__).parents[2] / "configs"
SPORTS = load_config(CONFIGS / "8b_sports.yaml")
H100 = GPUS["h100-80gb"]
SMALL = StageShape(0, 1, 1, (1000,), 1000)
INSIDE, NETWORK, HBM = 0.75 * 450e9, 0.8 * 50e9, 0.8 * 3.35e12


def on(mode="full", **parallel):
    return replace(SPORTS, parallel=ParallelConfig(activation_checkpointing=mode, **parallel))


@pytest.mark.parametrize(
    ("zero", "wanted"),
    [  # (message, sent, in every micro-batch) of 8 replicas, 64 rows each and 1,000 weights of 2 bytes
        (1, {"gradient all-reduce": (2000, 3500, False), "weight all-gather": (2000, 1750, False)}),
        (2, {"gradient all-reduce": (128_000, 224_000, True), "weight all-gather": (2000, 1750, False)}),
        (
            3,
            {
                "gradient reduce-scatter": (128_000, 112_000, True),
                "weight all-gather": (256_000, 224_000, True),
            },
        ),
    ],
)
def test_what_replicas_send_by_zero_stage(zero, wanted):
    found = traffic(on(zero=zero), SMALL, 8)
    assert {one.kind: (one.message, one.sent, one.per_row) for one in found} == {
        f"dp {kind}": numbers for kind, numbers in wanted.items()
    }


def test_only_the_ends_of_a_pipeline_sum_the_vocabularys_rows():
    config, text = on(tp=2, pp=3), 2 * 576 * 4096
    first, middle, last = (tensor_bytes(config, StageShape(i, 3, 10, (1,), 1)) for i in range(3))
    assert (first - middle, last - middle) == (text, text + 12 * 576)


def test_recomputing_exchanges_rows_of_context_once_more():
    once = 16 * 2 * 6528 * (2 * 32 + 2 * 8) * 128
    for mode, times in (("none", 2), ("selective", 2), ("full", 3), ("offloaded", 3)):
        assert context_bytes(on(mode, cp=2), StageShape(0, 1, 16, (1,), 1)) == times * once


def test_states_are_padded_to_twice_the_replicas():
    """1,001 weights on 4 replicas are 252 each, and groups are padded one by one."""
    shape = StageShape(0, 1, 1, (1001, 7), 1001)
    assert state(on(zero=1), shape, 4) == {
        "weights": 2 * (1008 + 8),
        "fp32 masters": 4 * 254,
        "moments": 8 * 254,
        "average": 0,
    }
    assert state(on(zero=3), shape, 4)["weights"] == 2 * 254


def test_a_stage_keeps_the_rows_that_are_under_way():
    """Stage i of 4 has 4 - i rows in flight, no more than there are; the first one keeps its way down."""
    config = on("none", pp=4)
    block, (down, _) = memory.block_bytes(config), memory.patcher_bytes(unsplit(config))
    found = [activations(config, StageShape(i, 4, 8, (1,), 1), 64)["activations"] for i in range(3)]
    assert found == [4 * (8 * block + 2 * 26 * down), 3 * 8 * block, 2 * 8 * block]
    few = activations(config, StageShape(1, 4, 8, (1,), 1), 2)["activations"]
    assert few == 2 * 8 * block


def test_the_peak_is_the_sum_of_what_is_there_at_once():
    config = on(tp=8)
    parts = footprint(config, stage_shapes(config)[0], 8)
    held = ("weights", "fp32 masters", "moments", "average", "gradients", "bucket", "reserved")
    moving = ("activations", "recomputed block", "backward's gradients", "attention's buffers")
    moving = sum(parts[key] for key in (*moving, "pipeline buffers", "batches"))
    at_reduction = parts["reduction's copies"] + parts["batches"]
    assert parts["peak"] == sum(parts[key] for key in held) + max(moving, at_reduction)
    assert parts["reserved"] == int(3e9 + 0.05 * (max(moving, at_reduction) + parts["bucket"]))


def test_a_gpu_that_is_just_large_enough():
    parallel = ParallelConfig(tp=8, activation_checkpointing="full")
    fits = plan(SPORTS, parallel, H100, 64)
    assert isinstance(fits, Plan)
    peak = fits.memory["peak"]
    assert isinstance(plan(SPORTS, parallel, replace(H100, memory=peak), 64), Plan)
    assert isinstance(plan(SPORTS, parallel, replace(H100, memory=peak - 1), 64), Refusal)


def test_a_step_of_eight_tensor_parallel_gpus():
    """All inside a node: products, attention, U-Net and sums at their rates; then what happens once."""
    config = on(tp=8, zero=1)
    shape = stage_shapes(config)[0]
    found = predict(config, [shape], H100, 8)
    flops, (down, up) = row_flops(unsplit(config)), patcher_flops(unsplit(config))
    peak, rows = 989.4e12, 512
    towers = (flops["text_tower"] + flops["video_tower"]) / 8 * 4 / 3 + flops["head"] / 8
    assert found.parts["products"] == pytest.approx(rows * towers / (0.65 * peak))
    assert found.parts["attention"] == pytest.approx(rows * flops["attention"] / 8 * 4 / 3 / (0.286 * peak))
    assert found.parts["U-Net"] == pytest.approx(rows * 3 * 26 * (2 * down + up) / (0.4 * peak))
    (sums,) = traffic(config, shape, 1)
    assert found.parts["tp all-reduce"] == pytest.approx(sums.sent / INSIDE)
    assert found.parts["reduce and update"] == pytest.approx(4 * shape.parameters * 10 / HBM)
    assert found.parts["pipeline bubble"] == 0
    assert found.step_seconds == pytest.approx(sum(found.parts.values()))
    assert found.mfu == pytest.approx(rows * sum(flops.values()) / (found.step_seconds * 8 * peak))
    assert found.days * 24 * 8 == pytest.approx(found.gpu_hours)
    assert found.gpu_hours * 3600 == pytest.approx(SPORTS.run.steps * found.step_seconds * 8)


@pytest.mark.parametrize(("tp", "rate"), [(1, 8 * NETWORK), (2, 4 * NETWORK), (8, NETWORK)])
def test_siblings_of_a_node_share_its_ports(tp, rate):
    """Gradients of 32 nodes: a ring has one port of every node for each of its members there."""
    assert rate < INSIDE
    for zero in (1, 2):
        config = on(tp=tp, zero=zero)
        shape, dp = StageShape(0, 1, 32, (8_000_000_000 // tp,), 1), 256 // tp
        found = predict(config, [shape], H100, 256).parts
        once = sum(one.sent for one in traffic(config, shape, dp) if not one.per_row) / rate
        held = shape.parameters / (dp if zero == 2 else 1)
        assert found["reduce and update"] == pytest.approx(once + 4 * held * 10 / HBM)


def test_a_pipeline_waits_for_one_row_less_than_it_has_stages():
    config = on(pp=4, zero=1)
    found = predict(config, stage_shapes(config), H100, 32).parts
    rows = config.accumulation(8)
    busy = sum(
        seconds for name, seconds in found.items() if name not in ("pipeline bubble", "reduce and update")
    )
    assert found["pipeline bubble"] == pytest.approx(3 * busy / rows)


def test_zero_3_hides_its_messages_but_gains_nothing_by_them():
    config = on(zero=3)
    found = predict(config, [replace(SMALL, blocks=32)], H100, 64).parts
    assert found["dp weight all-gather"] == found["dp gradient reduce-scatter"] == 0


def test_the_fastest_plan_comes_first():
    toy = load_config(CONFIGS / "toy_world.yaml", ["log.preview_every=0"])
    plans, refused = search(toy, H100, 2)
    seconds = [one.prediction.step_seconds for one in plans]
    assert len(plans) > 5 and refused and seconds == sorted(seconds) and len(set(seconds)) > 3


MEASURED = json.loads((CONFIGS.parent / "docs/measured/h100.json").read_text())


def test_attentions_rate_is_that_of_the_measurement():
    (case,) = (one for one in MEASURED["attention"]["cases"] if one["name"] == "8b_sports, 1 document")
    ways = [case["results"]["cuda"][way] for way in ("forward", "backward")]
    rate = sum(way["tflops"] * way["ms"] for way in ways) / sum(way["ms"] for way in ways)
    assert ATTENTION.value == pytest.approx(rate / 989.4, abs=5e-4)
    assert H100.name == ATTENTION.measured_on


def test_the_measured_step_is_predicted():
    """One H100, one row, 8 of the 32 layers: `training` of tools/gpu_check.py."""
    measured = MEASURED["training"]["cuda"]
    model = replace(SPORTS.model, layers=measured["layers"])
    config = replace(unsplit(SPORTS), model=model, batch=replace(SPORTS.batch, examples=1))
    (shape,) = stage_shapes(config)
    assert shape.parameters == measured["parameters"]
    predicted = predict(config, [shape], H100, 1).step_seconds
    assert predicted * 1e3 == pytest.approx(measured["step_ms"], rel=0.03)


def test_the_nearest_numbers_of_gpus_fit():
    toy = load_config(CONFIGS / "toy_world.yaml", ["log.preview_every=0"])
    assert toy.rows_per_step == 2  # shared by one or two replicas, each of 1, 2 or 4 GPUs
    found = {gpus: nearest_counts(toy, H100, gpus) for gpus in (1, 3, 7, 1_000_000)}
    assert found == {1: [2], 3: [2, 4], 7: [4, 8], 1_000_000: [8]}
    for gpus in (3, 7):
        assert search(toy, H100, gpus)[0] == []
    assert nearest_counts(toy, replace(H100, memory=1), 7) == []
