"""The README's road in small, command by command as a person would type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatv.checkpoint import store

ROOT = Path(__file__).parents[1]
CLIPS = ROOT.parent / "shared/clips"


def run(*command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One command from the repository's root, on CPU, with this Python's console scripts on PATH."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    if check:
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def losses(run_dir: Path) -> dict[int, tuple[float, float]]:
    """step -> (text, video) training losses of a run's metrics.jsonl."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {m["step"]: (m["text_loss"], m["video_loss"]) for m in lines if "text_loss" in m}


@pytest.mark.slow
def test_the_toy_world_from_episodes_to_a_steered_video(tmp_path):
    config, run_dir = ROOT / "configs/toy_world.yaml", tmp_path / "run"
    overrides = [
        f"codec.path={tmp_path}/codec.safetensors",
        f"data.train={tmp_path}/train",
        f"data.val={tmp_path}/val",
        f"run.dir={run_dir}",
        "model.layers=2",
        "model.width=64",
        "model.ffn=128",
        "model.unet_channels=[16, 16]",
        "sequence.examples_per_row=2",
        "sequence.context_tokens=464",
        "batch.examples=8",
        "optim.warmup_steps=5",
        "checkpoint.every=15",
        "log={every: 1, val_every: 15, val_rows: 2, preview_every: 15}",
    ]
    make = [sys.executable, "tools/make_shards.py", "--config", config, *overrides]
    train = [
        "deepspeed",
        "--num_gpus",
        2,
        "launch/train.py",
        "--config",
        config,
        "--resume",
        "auto",
        *overrides,
    ]

    codec = ["--toy", 40, "--steps", 60, "--width", 48, "--out", tmp_path / "codec.safetensors"]
    run(sys.executable, "tools/train_codec.py", *codec)
    run(*make, "--toy", 48, "--split", "train", "--out", tmp_path / "train")
    run(*make, "--toy", 8, "--split", "val", "--stats", tmp_path / "train", "--out", tmp_path / "val")
    run(*train, "run.steps=30")

    found = losses(run_dir)
    assert sorted(found) == list(range(1, 31))
    assert found[30][0] < 0.7 * found[1][0]  # words of a small language are learned at once
    assert found[30][1] < 0.95 * found[1][1]
    newest = max((run_dir / "checkpoints").iterdir())
    assert newest.name == "step_00000030" and store.read_meta(newest)["step"] == 30
    assert list(run_dir.glob("**/*.png"))  # previews and loss curves

    out = tmp_path / "sample"
    steer = ["--intervene", "0.8125:(space). 0, 0, 0, 0.", "--compare", "--steps", 2]
    run(sys.executable, "-m", "megatv.sample", "--checkpoint", run_dir, "--example", 0, *steer, "--out", out)
    for name in ("left_alone.mp4", "with_your_words.mp4", "contact_sheet.png", "transcript.json"):
        assert (out / name).stat().st_size > 0

    # the codec of this test is far too coarse to be read, and the scores say so instead of making some up
    score = [sys.executable, "tools/score_toy_world.py", "--checkpoint", run_dir]
    refused = run(*score, "--out", tmp_path / "scores.json", check=False)
    assert refused.returncode == 2 and refused.stderr.count("error:") == 1
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"needs the real videos in {CLIPS}")
def test_real_videos_train_at_the_papers_geometry(tmp_path):
    overrides = [f"data.train={tmp_path}/shards", f"run.dir={tmp_path}/run"]
    config = ROOT / "configs/own_videos.yaml"
    captions = ROOT / "configs/data/clips_captions.jsonl"
    make = [sys.executable, "tools/make_shards.py", "--config", config, *overrides]
    run(*make, "--videos", CLIPS, "--captions", captions, "--out", tmp_path / "shards")
    small = ["run.steps=8", "batch.examples=1", "optim.warmup_steps=1", "model.layers=1"]
    run(sys.executable, "launch/train.py", "--config", config, *overrides, *small)
    found = losses(tmp_path / "run")
    for first, last in zip(found[1], found[8], strict=True):  # text and video
        assert last < first
