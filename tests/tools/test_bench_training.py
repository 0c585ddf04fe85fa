"""The benchmarks of a run's own cost and of its scaling reach their end and leave nothing behind."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    "codec={kind: dct}",
    "model.layers=1",
    "model.width=32",
    "model.ffn=32",
    "model.unet_channels=[16, 16]",
]


@pytest.fixture(scope="module")
def toy(python: Callable, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that make the toy world's config a run of a small model on a few shards."""
    shards = tmp_path_factory.mktemp("toy") / "train"
    words = ("--config", "configs/toy_world.yaml", "--toy", 16, "--out", shards)
    python("tools/make_shards.py", *words, SMALL[0])
    return ["--config", "configs/toy_world.yaml", f"data.train={shards}", *SMALL]


@pytest.mark.slow
def test_overhead(python: Callable, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    out = tmp_path / "figures.json"
    python("tools/bench_overhead.py", *toy, "--steps", 2, "--rounds", 3, "--out", out)
    figures = json.loads(out.read_text())
    assert figures["steps"] == 6 and figures["bare_seconds_per_step"] > 0
    low, high = figures["ratio_quartiles"]
    assert 0 < low <= figures["ratio"] <= high
    assert 0 < figures["watching_share"] < 1 and figures["watching_microseconds_per_step"] > 0
    assert not list(tmp_path.glob("bench_overhead_*"))


@pytest.mark.slow
def test_scaling(python: Callable, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    out = tmp_path / "figures.json"
    words = ("--processes", 2, "--steps", 2, "--rounds", 1, "--examples", 4, "--out", out)
    python("tools/bench_scaling.py", *toy, *words)
    (run,) = json.loads(out.read_text())["runs"]
    assert run["processes"] == 2 and run["steps"] == 2 and run["efficiency"] == 1
    assert run["sequences_per_second"] == pytest.approx(8 / run["seconds_per_step"])
    assert not list(tmp_path.glob("bench_scaling_*"))


def test_the_ideal_ends_at_the_cores() -> None:
    """Four processes on two cores can do no better than two."""
    spec = importlib.util.spec_from_file_location("bench_scaling", ROOT / "tools/bench_scaling.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    one, two, four = bench.table({1: [1.0, 1.0], 2: [1.25, 1.25], 4: [2.5, 2.5]}, 8, processors=2)
    assert [row["ideal"] for row in (one, two, four)] == [1, 2, 2]
    assert [row["times_first"] for row in (one, two, four)] == pytest.approx([1, 1.6, 1.6])
    assert [row["efficiency"] for row in (one, two, four)] == pytest.approx([1, 0.8, 0.8])


def test_an_impossible_batch_is_refused_before_anything_starts(python: Callable) -> None:
    words = ("--config", "configs/toy_world.yaml", "--processes", 1, "--examples", 3)
    done = python("tools/bench_scaling.py", *words, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "batch.examples 3 must be a multiple of sequence.examples_per_row 4" in done.stderr
