"""The sampler's benchmark reaches its end, and its floor counts what a pass must read and multiply."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from megatv.config import load_config
from megatv.model.precision import PRECISIONS
from megatv.sample.cache import KVCache

ROOT = Path(__file__).parents[2]

MODEL = ["model.layers=1", "model.width=32", "model.ffn=48", "model.unet_channels=[16, 16]"]


@pytest.mark.slow
def test_passes_and_a_video_are_measured(python, tmp_path):
    out = tmp_path / "sample.json"
    words = ["--config", "configs/toy_world.yaml", "codec={kind: dct}", *MODEL, "--steps", 2, "--out", out]
    python("tools/bench_sample.py", *words)
    found = json.loads(out.read_text())
    for name in ("text", "chunk"):
        row = found[name]
        assert row["graph_ms"] is None and 0 < row["floor_ms"] < row["eager_ms"] < row["uncached_ms"]
        assert row["share_of_floor"] == pytest.approx(row["floor_ms"] / row["eager_ms"])
    m = 2 * (2 * 32 * 32 + 3 * 32 * 48)  # a tower's matrices at two bytes for every four that are read
    assert found["text"]["floor_ms"] * found["copy_gb_per_s"] * 1e6 > 2 * m
    video = found["video"]
    assert video["frames_per_s"] == pytest.approx(video["chunks_per_s"] * 49 / 13)
    assert video["times_real_time"] == pytest.approx(video["frames_per_s"] / 16)


def test_one_model_must_be_named(python):
    done = python("tools/bench_sample.py", check=False)
    assert done.returncode == 2 and "either --checkpoint or --config" in done.stderr


@pytest.mark.parametrize(("name", "of_matrix", "of_key"), [("fp32", 4, 4), ("bf16", 2, 2), ("fp8", 1, 1)])
def test_the_floor_reads_what_each_precision_keeps(monkeypatch, name, of_matrix, of_key):
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool, precision = importlib.import_module("time_sample"), PRECISIONS[name]
    config = load_config(ROOT / "configs/toy_world.yaml", ["codec={kind: dct}", *MODEL])
    cpu = torch.device("cpu")
    model = tool.random_model(config, cpu, precision)
    cache = KVCache.empty(config.model, 1, 200, device=cpu, dtype=precision.stored)
    speeds = dict.fromkeys((precision.dtype, precision.stored), 1e9)
    read = 1e6 * tool.floor_ms(model, cache, "text", 100, speeds, 1.0)  # bytes, at 1 GB a second
    matrices = 4 * 32 * 32 + 3 * 32 * 48
    scales = 4 * (5 * 32 + 2 * 48) if name == "fp8" else 0
    others = precision.dtype.itemsize * (2 * 32 + 32 * 328)  # two norms and the head
    assert tool.sizes(model, cache)["cache_bytes_per_token"] == 2 * 32 * of_key
    assert read == pytest.approx(of_matrix * matrices + scales + others + 100 * 2 * 32 * of_key)
    speeds = dict.fromkeys(speeds, 1e-9)
    flop = tool.floor_ms(model, cache, "text", 100, speeds, 1.0)  # at one in a millisecond
    assert flop == pytest.approx(2 * matrices + 2 * (2 * 32 + 32 * 328) + 4 * 100 * 32)
