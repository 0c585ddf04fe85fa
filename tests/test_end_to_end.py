"""The README's road in small, command by command as a person would type it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatv.checkpoint.meta import read_meta

ROOT = Path(__file__).parents[1]
CLIPS = ROOT.parent / "shared/clips"


@pytest.mark.slow
def test_the_toy_world_from_episodes_to_a_steered_video(
    tmp_path, command, python, deepspeed, losses, examine
):
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
        *deepspeed(2),
        "launch/train.py",
        "--config",
        config,
        "--resume",
        "auto",
        *overrides,
    ]

    codec = ["--toy", 40, "--steps", 60, "--width", 48, "--out", tmp_path / "codec.safetensors"]
    command(sys.executable, "tools/train_codec.py", *codec)
    command(*make, "--toy", 48, "--split", "train", "--out", tmp_path / "train")
    command(*make, "--toy", 8, "--split", "val", "--stats", tmp_path / "train", "--out", tmp_path / "val")
    assert "48 examples, every shard" in examine(tmp_path / "train", config, *overrides)
    command(*train, "run.steps=30")

    found = losses(run_dir)
    assert sorted(found) == list(range(1, 31))
    assert found[30][0] < 0.7 * found[1][0]  # words of a small language are learned at once
    assert found[30][1] < 0.95 * found[1][1]
    newest = max((run_dir / "checkpoints").iterdir())
    assert newest.name == "step_00000030" and read_meta(newest)["step"] == 30
    assert list(run_dir.glob("**/*.png"))  # previews and loss curves

    out = tmp_path / "sample"
    steer = ["--intervene", "0.8125:(space). 0, 0, 0, 0.", "--compare", "--steps", 2]
    command(
        sys.executable, "-m", "megatv.sample", "--checkpoint", run_dir, "--example", 0, *steer, "--out", out
    )
    for name in ("left_alone.mp4", "with_your_words.mp4", "contact_sheet.png", "transcript.json"):
        assert (out / name).stat().st_size > 0

    draw = ["tools/draw_reconstruction.py", "--checkpoint", run_dir, "--steps", 2]
    drawn = command(sys.executable, *draw, "--index", 3, "--out", tmp_path / "reconstruction.png")
    assert " dB; repeating the last true frame: " in drawn.stdout
    assert (tmp_path / "reconstruction.png").stat().st_size > 0
    refused = python(*draw, "--index", 48, "--out", tmp_path / "no.png", check=False)
    assert refused.returncode == 2 and "holds examples 0 to 47" in refused.stderr

    # the codec of this test is far too coarse to be read, and the scores say so instead of making some up
    score = ["tools/score_toy_world.py", "--checkpoint", run_dir]
    refused = python(*score, "--out", tmp_path / "scores.json", check=False)
    assert refused.returncode == 2 and refused.stderr.count("error:") == 1
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"needs the real videos in {CLIPS}")
def test_real_videos_train_at_the_papers_geometry(tmp_path, command, losses, examine):
    overrides = [f"data.train={tmp_path}/shards", f"run.dir={tmp_path}/run"]
    config = ROOT / "configs/own_videos.yaml"
    captions = ROOT / "configs/data/clips_captions.jsonl"
    make = [sys.executable, "tools/make_shards.py", "--config", config, *overrides]
    sources = ["--videos", CLIPS, "--captions", captions, "--store", "clips"]
    command(*make, *sources, "--out", tmp_path / "shards")
    told = examine(tmp_path / "shards", config)
    assert "3 examples, every shard" in told and "words of all 3 examples fit the 1216 text rows" in told
    small = ["run.steps=8", "batch.examples=1", "optim.warmup_steps=1", "model.layers=1"]
    command(sys.executable, "launch/train.py", "--config", config, *overrides, *small)
    found = losses(tmp_path / "run")
    for first, last in zip(found[1], found[8], strict=True):  # text and video
        assert last < first
