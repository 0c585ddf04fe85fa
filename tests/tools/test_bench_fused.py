"""The benchmark of the pointwise kernels on a CPU: it runs and its contestants agree."""

import json

import pytest
import torch


@pytest.mark.slow
def test_small_benchmark_measures_every_contestant(python, tmp_path):
    out = tmp_path / "fused.json"
    done = python("tools/bench_fused.py", "--small", "--out", out)
    report = json.loads(out.read_text())
    assert report == json.loads(done.stdout) and report["gpu"] == "none"
    for case in ("rms_norm", "residual_rms_norm", "swiglu", "rotate_qk"):
        for name in ("eager", "compile", "ours"):
            found = report[case][name]
            assert found["error"] < 1e-6
            for part in ("forward", "both"):
                assert 0 < found[part]["low"] <= found[part]["ms"] <= found[part]["high"]
        assert "pip install liger-kernel" in report[case]["liger"]["skipped"]
        assert 0 < report[case]["floor_ms"]["forward"] < report[case]["floor_ms"]["both"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(python):
    done = python("tools/bench_fused.py", check=False)
    assert done.returncode == 1 and "use --small" in done.stderr
