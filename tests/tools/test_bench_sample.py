"""The sampler's benchmark reaches its end, and its floor counts what a pass must read and multiply."""

import json

import pytest

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
