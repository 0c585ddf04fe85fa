"""A file of `--out` that cannot be written is found before any work."""

import sys

import pytest

CALLS = {
    "codec_report": ["--toy", "1"],
    "compare_precisions": ["--checkpoint", "nowhere"],
    "compare_solvers": ["--checkpoint", "nowhere"],
    "count_passes": [],
    "fuzz_video": ["nowhere.mp4"],
    "gpu_check": ["--small"],
    "score_toy_world": ["--checkpoint", "nowhere"],
    "sweep_guidance": ["--checkpoint", "nowhere"],
}


@pytest.mark.parametrize("name", CALLS)
def test_it_is_refused_before_any_work(load_tool, tmp_path, monkeypatch, name):
    tool = load_tool(name)
    for out, message in (
        (tmp_path / "none/a.json", "there is no folder .*none"),
        (tmp_path, "cannot be written"),
    ):
        monkeypatch.setattr(sys, "argv", [name, *CALLS[name], "--out", str(out)])
        with pytest.raises(ValueError, match=f"--out {out}: {message}"):
            tool.main()
