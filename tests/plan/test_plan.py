"""The planner's shapes, bytes and predictions on the paper's models, without any GPU."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatv.config import ParallelConfig, load_config
from megatv.model.cost import parameter_counts
from megatv.plan.footprint import footprint, reduction, state
from megatv.plan.hardware import GPUS
from megatv.plan.search import Plan, Refusal, grids, plan
from megatv.plan.shapes import StageShape, built_stage, stage_shapes
from megatv.plan.traffic import tensor_bytes, traffic

CONFIGS = Path(__file__).parents[2] / "configs"
SPORTS = load_config(CONFIGS / "8b_sports.yaml")
H100 = GPUS["h100-80gb"]


def on(tp=1, pp=1, zero=1, recompute=True):
    return replace(SPORTS, parallel=ParallelConfig(tp, pp, zero, recompute))


def planned(gpus, *grid):
    return plan(SPORTS, ParallelConfig(*grid), H100, gpus)


@pytest.mark.parametrize(("file", "billions"), [("8b_sports.yaml", 15.26), ("3b_csgo.yaml", 6.28)])
def test_one_gpu_holds_the_papers_parameters(file, billions):
    config = load_config(CONFIGS / file, ["parallel.tp=1"])
    (shape,) = stage_shapes(config)
    assert shape.parameters == sum(parameter_counts(config).values())
    assert shape.parameters == pytest.approx(billions * 1e9, rel=3e-3)


def test_more_tensor_parallel_ranks_hold_fewer_weights():
    sizes = [stage_shapes(on(tp))[0].parameters for tp in (1, 2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    patcher, table = 252_086_544, 240 * 4096  # every rank has these, and the norms, whole
    norms = (32 * 4 + 2) * 4096
    assert sizes[3] == (sizes[0] - patcher - table - norms) // 8 + patcher + table + norms


def test_stages_are_those_that_the_engine_builds(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = on(tp=2, pp=4)
    shapes = stage_shapes(config)
    assert sum(shape.blocks for shape in shapes) == 32
    for index in (0, 1, 3):
        assert built_stage(config, 64, index) == shapes[index]


def test_what_the_run_refuses_is_refused_with_its_sentence():
    refused = {
        (3, 1, 1, True): "processes cannot form a grid of parallel.tp 3",
        (16, 1, 1, True): "model.kv_heads 8 must be a multiple of parallel.tp 16",
        (1, 64, 1, True): "parallel.pp 64 stages need at least as many layers",
        (1, 2, 2, True): "parallel.zero 2 does not go with parallel.pp 2",
        (1, 1, 0, True): "parallel.zero 0 keeps no fp32 masters for precision bf16",
        (1, 1, 3, True): None,
    }
    for grid, sentence in refused.items():
        found = planned(256, *grid)
        if sentence is not None:
            assert isinstance(found, Refusal) and sentence in found.reason, found
    found = planned(1024, 1, 1, 1, True)
    assert isinstance(found, Refusal) and "which 1024 data-parallel ranks cannot share" in found.reason


def test_memory_refuses_what_does_not_fit():
    found = planned(8, 1, 1, 1, True)
    assert isinstance(found, Refusal) and found.reason.startswith("memory: needs")


def test_recomputing_trades_time_for_memory():
    keeps, recomputes = planned(256, 8, 1, 1, False), planned(256, 8, 1, 1, True)
    assert isinstance(keeps, Plan) and isinstance(recomputes, Plan)
    assert keeps.memory["peak"] > recomputes.memory["peak"]
    assert keeps.prediction.step_seconds < recomputes.prediction.step_seconds
    assert 0 < recomputes.prediction.mfu < 0.65


def test_the_parts_add_up_to_the_peak():
    config = on(tp=8)
    shape = stage_shapes(config)[0]
    parts = footprint(config, shape, 8)
    peak = parts.pop("peak")
    held = sum(parts[k] for k in ("weights", "fp32 masters", "moments", "average", "gradients", "bucket"))
    assert held < peak <= sum(parts.values())


def test_the_average_costs_four_bytes_a_weight_over_dp():
    shape = StageShape(0, 1, 1, (1000,), 1000)
    averaged = replace(on(), optim=replace(SPORTS.optim, ema=0.999))
    assert state(averaged, shape, 4)["average"] == 4 * 250
    assert state(on(), shape, 4)["average"] == 0


def test_a_zero_1_run_copies_what_shares_a_bucket():
    """One group alone is only rounded to bf16; two that share a bucket are joined in fp32 first."""
    alone = StageShape(0, 1, 1, (600_000_000, 600_000_000), 1)
    assert reduction(on(), alone) == 2 * 600_000_000
    joined = StageShape(0, 1, 1, (100, 600_000_000), 1)
    assert reduction(on(), joined) == 6 * 600_000_100


def test_traffic_of_a_step_by_hand():
    """Two tensor-parallel ranks of the 8B model: blocks' all-reduces, one gradient, one weight."""
    config = on(tp=2)
    shape = stage_shapes(config)[0]
    hidden, text = 2 * 13056 * 4096, 2 * 576 * 4096
    assert tensor_bytes(config, shape) == 32 * (5 * hidden + text) + 2 * text + 12 * 576
    kinds = {one.kind: one for one in traffic(config, shape, 8)}
    assert set(kinds) == {"tp all-reduce", "dp gradient all-reduce", "dp weight all-gather"}
    assert kinds["tp all-reduce"].sent == 64 * tensor_bytes(config, shape)  # 2 (2 - 1) / 2 of 64 rows
    assert kinds["dp gradient all-reduce"].sent == 2 * 2 * shape.parameters * 7 // 8


def test_every_grid_is_looked_at_once():
    found = list(grids(64))
    assert len(found) == len(set(found)) == 8 * sum(7 - i for i in range(4))
