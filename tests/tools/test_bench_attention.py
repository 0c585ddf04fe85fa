"""The attention benchmark on a CPU: it runs, counts right, and reports who could not take part."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from megatv_kernels import attention
from megatv_kernels.backends import BACKENDS

from megatv.config import load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")  # tools import the one beside them
    return importlib.import_module("time_attention")


@pytest.mark.slow
def test_small_benchmark_writes_everything(python, tmp_path):
    out, plot = tmp_path / "a.json", tmp_path / "a.png"
    done = python("tools/bench_attention.py", "--small", "--out", out, "--plot", plot)
    report = json.loads(out.read_text())
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert set(report["errors"]) == {"plain", *BACKENDS}
    assert report["errors"]["sdpa"]["worst_to_plain"] < 1.5
    assert [case["name"] for case in report["cases"]] == ["toy_world, 1 document", "toy_world, 4 documents"]
    for case in report["cases"]:
        assert set(case["results"]) == {*BACKENDS, "flex interleaved", "causal SDPA"}
        assert case["results"]["cuda"]["skipped"]  # the reason
        flop = 4 * case["live_pairs"] * case["heads"][0] * case["heads"][2]
        for way, factor in (("forward", 1), ("backward", 2.5)):
            time = case["results"]["sdpa"][way]
            assert time["tflops"] == pytest.approx(factor * flop / time["ms"] / 1e9)
            assert time["low"] <= time["ms"] <= time["high"]
    assert "| sdpa |" in done.stdout and "- cuda: " in done.stdout


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_interleaved_attention_is_the_same_attention(bench):
    """Rows shuffled into order of time, attended there, and compared row by row."""
    record = bench.packed_row(load_config(ROOT / "configs/toy_world.yaml"), 4)
    call, order = bench.interleaved(record)
    assert sorted(order.tolist()) == list(range(record.rows))
    q, k, v = (torch.randn(record.rows, heads, 16, dtype=torch.float64) for heads in (2, 1, 1))
    out = call(q[order], k[order], v[order])
    expected = attention(q, k, v, record, backend="reference")
    torch.testing.assert_close(out, expected[order], rtol=1e-6, atol=1e-6)
    # in order of time: noisy right before clean, and text where it was said
    first = record.documents[0].tolist()
    chunk = np.flatnonzero(order.numpy() == first[1][0])[0]
    assert order[chunk - record.chunk_rows] == first[2][0]


@pytest.mark.parametrize(("name", "rows", "documents"), [("8b_sports", 13056, 1), ("3b_csgo", 15360, 4)])
def test_the_rows_are_the_papers(bench, name, rows, documents):
    record = bench.packed_row(load_config(ROOT / f"configs/{name}.yaml"), documents)
    assert record.rows == rows and len(record.documents) == documents
    assert (record.documents[:, 0, 1] - record.documents[:, 0, 0] == record.text_rows // documents).all()
