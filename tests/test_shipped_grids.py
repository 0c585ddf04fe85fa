"""What is shipped beside the paper's two runs: grids for clusters, and the baselines. Each fits its GPUs."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from megatv.config import ParallelConfig, load_config
from megatv.plan.hardware import GPUS
from megatv.plan.search import Plan, plan

CONFIGS = Path(__file__).parents[1] / "configs"
SPORTS = load_config(CONFIGS / "8b_sports.yaml")
SHIPPED = {f"8b_sports_{gpus}gpu.yaml": gpus for gpus in (64, 256, 512)}
BASELINES = {
    f"{base}_{mode}.yaml": (base, mode) for base in ("3b_csgo", "8b_sports") for mode in ("t2v", "think2v")
}
FASTEST = {**SHIPPED, "8b_sports.yaml": 8, "3b_csgo.yaml": 8}


def test_all_that_is_shipped_is_looked_at():
    found = {path.name for path in CONFIGS.glob("*gpu.yaml")}
    assert found == set(SHIPPED)


@pytest.mark.parametrize("file", SHIPPED)
def test_it_is_the_papers_run(file):
    config = load_config(CONFIGS / file)
    assert replace(config, parallel=SPORTS.parallel) == SPORTS


def test_all_baselines_are_looked_at():
    found = {path.name for mode in ("t2v", "think2v") for path in CONFIGS.glob(f"*_{mode}*.yaml")}
    assert found == set(BASELINES)


@pytest.mark.parametrize("file", BASELINES)
def test_a_baseline_is_its_run_in_all_but_the_mode_and_its_folder(file):
    """Sections 3.1 and 4.2.2: the same settings, "but varying the data representation"."""
    base, mode = BASELINES[file]
    config, ours = load_config(CONFIGS / file), load_config(CONFIGS / f"{base}.yaml")
    assert (config.sequence.mode, config.run.dir) == (mode, f"runs/{base}_{mode}")
    back = replace(config, run=replace(config.run, dir=ours.run.dir))
    assert replace(back, sequence=replace(back.sequence, mode="tv2tv")) == ours


@pytest.mark.parametrize(
    ("file", "gpus"), [*FASTEST.items(), ("8b_sports.yaml", 256), *((file, 8) for file in BASELINES)]
)
def test_it_shares_its_batch_and_fits_80_gb(file, gpus):
    config = load_config(CONFIGS / file)
    found = plan(config, config.parallel, GPUS["h100-80gb"], gpus)
    assert isinstance(found, Plan), found.reason
    assert found.memory["peak"] <= 80e9
    assert found.dp * config.accumulation(found.dp) == config.rows_per_step


@pytest.mark.parametrize(("file", "gpus"), FASTEST.items())
def test_no_other_grid_of_its_kind_with_room_to_spare_is_predicted_to_be_faster(file, gpus):
    """Beside more and less tensor and context parallelism, two stages, and other checkpointing."""
    config = load_config(CONFIGS / file)
    own = replace(config.parallel, dp=None)
    kinds = itertools.product((1, 2), (1, 2, 4, 8), ((1, 2), (1, 3), (2, 1)), ("none", "selective", "full"))
    grids = [
        ParallelConfig(
            tp=tp, cp=cp, pp=pp, zero=zero, sequence_parallel=tp > 1, activation_checkpointing=mode
        )
        for tp, cp, (pp, zero), mode in kinds
    ]
    plans = [plan(config, grid, GPUS["h100-80gb"], gpus) for grid in grids]
    roomy = [one for one in plans if isinstance(one, Plan) and one.memory["peak"] <= 60e9]
    assert min(roomy, key=lambda one: one.prediction.step_seconds).config.parallel == own
