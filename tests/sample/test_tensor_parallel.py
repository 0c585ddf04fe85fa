"""R10 on two ranks: a model that they share says and draws what the whole one does."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatv.data.video import decode_video
from megatv.sample import Sampler
from megatv.sample.cli import main

HERE = Path(__file__).parent


def test_two_ranks_say_and_draw_what_one_does(run_dir: Path, forge: Callable, tmp_path: Path) -> None:
    script = HERE / "tensor_parallel.py"
    run = forge(tmp_path, [script, run_dir, tmp_path / "made"], {}, 2)
    assert run.end() == [0, 0], run.log[-4000:]
    spec = importlib.util.spec_from_file_location("tensor_parallel", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    expected = module.videos(Sampler.from_checkpoint(run_dir))
    for rank in range(2):
        said, *latents = np.load(tmp_path / f"made_{rank}.npz").values()
        for i, result in enumerate(expected):
            words = "\n".join(w.text for w in result.transcript) + result.plan
            assert said[i] == words, f"rank {rank}, video {i}"
            np.testing.assert_allclose(latents[i], result.latents, rtol=1e-4, atol=1e-4)


def test_teams_of_two_share_a_batch(run_dir: Path, forge: Callable, tmp_path: Path) -> None:
    batch = tmp_path / "batch.jsonl"
    lines = [{"name": f"v{i}", "prompt": "A player jumps.", "seed": 2 * i, "seconds": 1} for i in range(3)]
    batch.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--checkpoint", run_dir, "--batch", batch, "--steps", 1, "--rows", 1]
    program = HERE.parents[1] / "megatv/sample/__main__.py"
    run = forge(tmp_path, [program, *words, "--tp", 2, "--out", tmp_path / "teams"], {}, 4)
    assert run.end() == [0] * 4, run.log[-4000:]
    main([str(word) for word in (*words, "--out", tmp_path / "alone")])
    assert sorted(p.name for p in (tmp_path / "teams").iterdir()) == ["v0", "v1", "v2"]
    for name in ("v0", "v1", "v2"):
        trees, frames = [], []
        for way in ("teams", "alone"):
            folder = tmp_path / way / name
            trees.append(json.loads((folder / "transcript.json").read_text()))
            frames.append(decode_video(folder / "video.mp4", width=64, height=32).astype(int))
        assert (trees[0]["tp"], trees[1]["tp"]) == (2, 1)
        assert trees[0]["runs"] == trees[1]["runs"]
        assert np.abs(frames[0] - frames[1]).mean() < 1


@pytest.mark.parametrize(
    ("world", "arguments", "message"),
    [
        (1, ["--tp", 0], "--tp 0: must be at least 1"),
        (1, ["--tp", 2], "--tp 2: 1 processes are no multiple of it; start them as in torchrun"),
        (3, ["--tp", 3], "must be a multiple of parallel.tp 3"),
        (2, ["--tp", 2, "--precision", "fp8"], "--precision fp8 does not go with --tp"),
        (2, [], "2 processes for one video of --tp 1: start 1, or"),
    ],
)
def test_worlds_that_cannot_be_are_refused(
    run_dir: Path, forge: Callable, tmp_path: Path, world: int, arguments: list, message: str
) -> None:
    program = HERE.parents[1] / "megatv/sample/__main__.py"
    words = ["--checkpoint", run_dir, "--prompt", "a", "--out", tmp_path / "video", *arguments]
    run = forge(tmp_path, [program, *words], {}, world)
    assert 2 in run.end(), run.log[-4000:]  # the launcher ends the others
    (error,) = run.errors()
    assert message in error and not (tmp_path / "video").exists()
