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


def on(tp=1, pp=1, zero=1, mode="full", **parallel):
    parallel = ParallelConfig(tp=tp, pp=pp, zero=zero, activation_checkpointing=mode, **parallel)
    return replace(SPORTS, parallel=parallel)


def planned(gpus, **parallel):
    parallel = {"activation_checkpointing": "full", **parallel}
    return plan(SPORTS, ParallelConfig(**parallel), H100, gpus)


@pytest.mark.parametrize(("file", "billions"), [("8b_sports.yaml", 15.26), ("3b_csgo.yaml", 6.28)])
def test_one_gpu_holds_the_papers_parameters(file, billions):
    config = load_config(CONFIGS / file, ["parallel={}"])
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


def test_both_ends_of_a_pipeline_hold_a_tied_matrix(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = load_config(CONFIGS / "3b_csgo.yaml", ["parallel={pp: 2, zero: 1}", "log.preview_every=0"])
    assert config.model.tied_embeddings
    shapes = stage_shapes(config)
    assert [built_stage(config, 8, index) for index in (0, 1)] == shapes
    table = config.model.vocab * config.model.width
    whole = sum(parameter_counts(config).values())
    assert sum(shape.parameters for shape in shapes) == whole + table


def test_what_the_run_refuses_is_refused_with_its_sentence():
    refused = [
        ({"tp": 3}, "processes cannot form a grid of parallel.tp 3"),
        ({"tp": 16}, "model.kv_heads 8 must be a multiple of parallel.tp 16"),
        ({"tp": 8, "cp": 8}, "model.heads 32 must be a multiple of parallel.tp 8 x parallel.cp 8"),
        ({"pp": 64}, "parallel.pp 64 stages need at least as many layers"),
        ({"pp": 2, "zero": 2}, "parallel.zero 2 does not go with parallel.pp 2"),
        ({"zero": 0}, "parallel.zero 0 keeps no fp32 masters for precision bf16"),
        ({"tp": 2, "dp": 64}, "parallel.dp is 64, but 256 processes on a grid of"),
    ]
    for grid, sentence in refused:
        found = planned(256, **grid)
        assert isinstance(found, Refusal) and sentence in found.reason, found
    assert isinstance(planned(256, zero=3, dp=256), Plan)
    found = planned(1024)
    assert isinstance(found, Refusal) and "which 1024 data-parallel ranks cannot share" in found.reason


def test_memory_refuses_what_does_not_fit():
    found = planned(8)
    assert isinstance(found, Refusal) and found.reason.startswith("memory: needs")


def test_recomputing_trades_time_for_memory():
    modes = ("none", "selective", "full", "offloaded")
    plans = [planned(256, tp=8, activation_checkpointing=mode) for mode in modes]
    assert all(isinstance(one, Plan) for one in plans)
    peaks = [one.memory["peak"] for one in plans]
    seconds = [one.prediction.step_seconds for one in plans]
    kept = [one.memory["activations"] for one in plans]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > peaks[-1]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4
    assert seconds == sorted(seconds) and len(set(seconds)) == 4
    assert 0 < plans[-1].prediction.mfu < plans[0].prediction.mfu < 0.65


def test_context_and_sequence_parallelism_keep_fewer_rows():
    """A row on two siblings: half of what a block keeps, and one attended copy more."""
    whole, shared = planned(256, tp=2, zero=3), planned(256, tp=2, cp=2, zero=3)
    spread = planned(256, tp=2, sequence_parallel=True, zero=3)
    assert shared.memory["activations"] == pytest.approx(whole.memory["activations"] / 2, rel=0.01)
    assert spread.memory["activations"] < 0.75 * whole.memory["activations"]
    assert shared.memory["moments"] == whole.memory["moments"]  # ZeRO shares over dp x cp
    kinds = {one.kind: one.sent for one in shared.traffic}
    config = shared.config
    heads = 2 * 13056 // 2 * (2 * 32 + 2 * 8) * 128 // 2  # bytes of q, k, v and the attended rows
    assert kinds["cp all-to-all"] == config.accumulation(64) * 32 * 3 * heads // 2


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
    assert len(found) == len(set(found)) == 4 * 4 * sum((4 - i) * (7 - i) for i in range(4))
