"""A run on stored clips: decoded and coded by the loader's thread; its codec must be there at the start."""

import math

import numpy as np
import pytest

from megatv.data.shards import DatasetInfo, ShardWriter
from megatv.data.stats import LatentStats
from megatv.data.video import encode_video
from megatv.log import read_metrics
from megatv.types import Caption

pytestmark = pytest.mark.slow


def write_clips(out, std=1.0):
    """Eight clips of one colour each that a bar crosses."""
    info = DatasetInfo(width=32, height=32, groups=1, codec={"kind": "dct"}, stores="clips")
    with ShardWriter(out, info) as writer:
        for index in range(8):
            frames = np.full((49, 32, 32, 3), 30 * index, np.uint8)
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
