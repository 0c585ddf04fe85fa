"""The Triton backend: its cases in a process of their own, whom it serves, how much it computes in vain."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from megatv_kernels import Document, build_record
from megatv_kernels import triton_attention as backend

pytest.importorskip("triton", reason="Triton is not installed (Linux x86_64 only): pip install -e .[dev]")
CASES = Path(__file__).with_name("triton_attention_cases.py")


@pytest.mark.slow
def test_cases_in_the_interpreter(run_interpreted):
    run_interpreted(str(CASES))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the same cases on a GPU: there is none here")
def test_cases_on_the_gpu():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_serves_no_cpu_outside_the_interpreter():
    assert "needs an NVIDIA GPU, not cpu" in backend.available(torch.device("cpu"))


def test_missing_triton_is_explained(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert "pip install triton" in backend.available(torch.device("cuda"))


def test_older_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0 (Ampere) or later, not 7.5" in backend.available(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert backend.available(torch.device("cuda")) is None


@pytest.mark.parametrize(("documents", "bound"), [(1, 1.11), (4, 1.23)])
def test_little_is_computed_in_vain(documents, bound):
    """Tiles of the 8B row, counted as the kernels visit them, against the visible pairs."""
    chunks = [26 // documents + (i < 26 % documents) for i in range(documents)]
    record = build_record(
        [Document(np.repeat(np.arange(n), 22), 22 * np.arange(1, n + 1)) for n in chunks],
        text_rows=576,
        chunk_rows=240,
        chunks=26,
    )
    config = backend.CONFIGS["hopper", 128]
    work = record.work(config.forward.queries, config.key_gradient.keys)
    visible = record.live_pairs()
    for items, tile, whole_first in (
        (work.forward, config.forward, True),
        (work.forward, config.query_gradient, True),
        (work.backward, config.key_gradient, False),
    ):
        start, cut, end = items[:, 2:].reshape(-1, 3, 3).permute(2, 0, 1)
        size = tile.keys if whole_first else tile.queries
        whole = (cut - start if whole_first else end - cut) // size
        tiles = int((whole + -(-(end - start - whole * size) // size)).sum())
        assert 1 < tiles * tile.queries * tile.keys / visible < bound
