"""A run on stored clips: decoded and coded by the loader's thread; its codec must be there at the start."""

import math
import shutil

import numpy as np
import pytest

from megatv.checkpoint.store import checkpoint_dir
from megatv.data.shards import DatasetInfo, ShardWriter
from megatv.data.stats import LatentStats
from megatv.data.video import encode_video
from megatv.log import read_metrics
from megatv.types import Caption

pytestmark = pytest.mark.slow


def write_clips(out, std=1.0, seconds=None):
    """Eight clips of one colour each that a bar crosses: examples, or longer ones to crop."""
    count = 49 if seconds is None else 16 * seconds
    longest = None if seconds is None else count
    info = DatasetInfo(32, 32, 1, codec={"kind": "dct"}, stores="clips", longest_clip=longest)
    with ShardWriter(out, info) as writer:
        for index in range(8):
            frames = np.full((count, 32, 32, 3), 30 * index, np.uint8)
            for k, frame in enumerate(frames):
                frame[:, k % 28 : k % 28 + 4] = 255
            writer.write(
                f"bar-{index}",
                encode_video(frames, crf=12),
                captions=(Caption(0.0, "the bar moves"),),
                meta_caption="a bar",
                detailed_caption="",
                valid_latents=13,
                ends_clip=False,
                source={"video": f"bar-{index}"},
                frames=longest,
            )
        writer.finish(LatentStats(np.zeros((2, 16), np.float32), np.full((2, 16), std, np.float32)))


def test_training_from_clips_steps_and_validates(tmp_path, train):
    write_clips(tmp_path / "train")
    write_clips(tmp_path / "val")
    data = [f"data.train={tmp_path}/train", f"data.val={tmp_path}/val"]
    train(1, tmp_path / "run", *data, "run.steps=6", "log={every: 1, val_every: 6, val_rows: 2}")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [r["video_loss"] for r in records if "video_loss" in r]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert math.isfinite(records[-1]["val_video_loss"])


def test_a_run_on_crops_resumes_bit_for_bit(tmp_path, train):
    """From a step within an epoch; and on two ranks, which share the same crops."""
    write_clips(tmp_path / "train", seconds=8)
    data = [f"data={{train: {tmp_path}/train, crop: starts}}", "run.steps=4", "checkpoint.every=3"]
    straight = tmp_path / "straight"
    train(1, straight, *data)
    last = checkpoint_dir(straight, 4)
    for name, processes, tolerance in (("resumed", 1, 0), ("two ranks", 2, 1e-5)):
        shutil.copytree(straight, tmp_path / name)
        shutil.rmtree(tmp_path / name / last.relative_to(straight))
        assert "resumed from" in train(processes, tmp_path / name, *data)
        runs = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("straight", name)]
        losses = [[r["video_loss"] for r in run if r.get("step") == 4][-1] for run in runs]
        assert losses[0] == pytest.approx(losses[1], rel=tolerance, abs=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["codec.kind=learned", "codec.path=none.safetensors"],
            "its codec is dct, the config's is learned|no such codec",
        ),
        (["log={val_every: 6, val_rows: 2}"], "is normalised with other latent statistics"),
    ],
    ids=["codec", "statistics"],
)
def test_what_does_not_fit_is_refused_at_the_start(tmp_path, refused, change, message):
    write_clips(tmp_path / "train")
    write_clips(tmp_path / "val", std=2.0)
    data = [f"data.train={tmp_path}/train", f"data.val={tmp_path}/val"]
    error = refused(1, tmp_path / "run", *data, *change)
    assert any(part in error for part in message.split("|")), error
