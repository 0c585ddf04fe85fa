"""Every road of the data ends in shards that the one loader trains from, command by command.

The toy world and captioned videos are in test_end_to_end.py; here are CS:GO's recordings, raw videos, and
shards in an object store.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatv.data import shards as shard_files
from megatv.data.csgo_actions import MOUSE_X, GameAction, encode_action
from megatv.data.shards import DatasetInfo, ShardWriter
from megatv.data.stats import LatentStats
from megatv.data.video import write_video
from megatv.types import Caption

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
TRAIN = ("launch/train.py", "--config")
ACTION = re.compile(r"\((\.|\w+(, \w+)*)\)\. -?\d+, -?\d+, [01], [01]\.")
TINY = [
    "codec={kind: dct}",
    "tokenizer.path=toy_world",
    "model={layers: 1, width: 32, ffn: 48, heads: 2, kv_heads: 1, vocab: 328, tied_embeddings: false,"
    " unet_channels: [16, 16], init_video: random}",
    "optim={lr: 1.0e-2, min_lr: 1.0e-3, warmup_steps: 1}",
    "precision=fp32",
    "parallel={zero: 1}",
]

CSGO = ROOT / "configs/3b_csgo.yaml"
SMALL_CSGO = [
    *TINY,
    "video={width: 80, height: 48, groups: 2}",  # a quarter of the paper's: 15 tokens a chunk
    "sequence.context_tokens=2380",  # 2 copies x 26 chunks x 15 tokens + 1600 text rows
    "batch.examples=2",
    "run.steps=4",
    "checkpoint={every: 2}",
    "log={every: 1, val_every: 4, val_rows: 1}",
]


@pytest.fixture(scope="module")
def csgo(write_episode, python, examine, tmp_path_factory):
    """Shards `train` (two episodes) and `val` (one) of a bright bar that moves with the mouse."""
    folder = tmp_path_factory.mktemp("csgo")
    for number in range(3):
        steps = np.arange(98)
        mouse = [MOUSE_X[(frame // 7 + number) % 23] for frame in steps]
        pictures = np.full((98, 150, 280, 3), 40 * number, np.uint8)
        for frame, left in enumerate((np.cumsum(mouse) // 10) % 240):
            pictures[frame, :, left : left + 40] = 200
        keys = [("w",), ("w", "shift"), ()]
        actions = [encode_action(GameAction(keys[frame % 3], mouse_x=mouse[frame])) for frame in steps]
        write_episode(folder / f"recordings/episode_{number}.hdf5", pictures, np.array(actions))
    (folder / "held_out.txt").write_text("episode_2.hdf5\n")
    make = ["tools/make_shards.py", "--config", CSGO, *SMALL_CSGO]
    make += ["--csgo", folder / "recordings", "--held-out", folder / "held_out.txt"]
    done = python(*make, "--out", folder / "train")
    assert "the words of all 2 examples fit the 1600 text rows" in done.stdout
    python(*make, "--split", "val", "--stats", folder / "train", "--out", folder / "val")
    assert "2 examples, every shard and example is as" in examine(folder / "train", CSGO, *SMALL_CSGO)
    return folder


@pytest.mark.parametrize("mode", ["tv2tv", "think2v", "t2v"])
def test_recordings_of_csgo_train_resume_and_sample(mode, csgo, python, on_ranks, losses, tmp_path):
    data = [f"data={{train: {csgo}/train, val: {csgo}/val}}", f"sequence.mode={mode}"]
    run = [1, *TRAIN, CSGO, *SMALL_CSGO, *data]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    on_ranks(*run, f"run.dir={straight}")
    found = losses(straight)
    assert sorted(found) == [1, 2, 3, 4] and all(map(math.isfinite, itertools.chain(*found.values())))
    assert found[4][0] < found[1][0] and found[4][1] < found[1][1]

    half_way = straight / "checkpoints/step_00000002"
    on_ranks(*run, f"run.dir={resumed}", "--resume", half_way)
    assert losses(resumed) == {step: found[step] for step in (3, 4)}

    if mode == "think2v":
        return  # after four steps its own plan may be that the video is over; tests/sample has Think2V
    out = tmp_path / "sample"
    steer = [] if mode == "t2v" else ["--intervene", "1:(w). 10, 0, 0, 0.", "--start-words", "given"]
    python("-m", "megatv.sample", "--checkpoint", straight, "--example", 0, *steer,
           "--seconds", 1.5, "--steps", 1, "--out", out)  # fmt: skip
    assert (out / "video.mp4").stat().st_size > 0
    (sampled,) = json.loads((out / "transcript.json").read_text())["runs"]
    spoken = [chunk["text"] for chunk in sampled["chunks"]]
    if mode == "tv2tv":
        assert sampled["chunks"][0]["source"] == "given" and ACTION.fullmatch(spoken[0])
    else:
        assert not any(spoken) and sampled["plan"] == ""


@pytest.mark.usefixtures("ray_alone")
def test_raw_videos_train_from_a_split_by_source(python, on_ranks, losses, examine, tmp_path):
    for library in ("ray", "cv2", "scenedetect"):
        pytest.importorskip(library, reason=f"the pipeline needs {library}")
    (tmp_path / "videos").mkdir()
    lines = []
    for number in range(3):
        write_moving_shapes(tmp_path / f"videos/shapes_{number}.mp4", number)
        captions = [{"start": 0.0, "text": "The shapes fly apart."}, {"start": 2.0, "text": "They return."}]
        line = {"video": f"shapes_{number}.mp4", "meta_caption": "Shapes move.", "captions": captions}
        lines.append(json.dumps(line))
    (tmp_path / "words.jsonl").write_text("\n".join(lines))
    config = tmp_path / "run.yaml"
    tree = yaml.safe_load((ROOT / "configs/own_videos.yaml").read_text())
    tree["video"] = {"width": 80, "height": 48, "groups": 1}
    tree["sequence"]["context_tokens"] = 2 * 13 * 15 + 300
    config.write_text(yaml.safe_dump(tree))

    out = tmp_path / "out"
    build = ["tools/build_dataset.py", "--videos", tmp_path / "videos", "--out", out, "--config"]
    python(*build, ROOT / "configs/data/sports.yaml", "quality=null",
           f"captions.words_from={tmp_path}/words.jsonl", f"shards.config={config}",
           "source={min_seconds: 3, min_width_pixels: 80, min_height_pixels: 48}",
           "shots.method=pyscenedetect", "clips={min_seconds: 3.5, min_peaks: 0}",
           "export={width: 80, height: 48}")  # fmt: skip
    told = examine(out / "shards", config)
    assert "They return." in told and "examples fit the 300 text rows" in told
    split = ["tools/shards.py", "split", out / "shards", "--out", out / "two", "--share", 0.3]
    python(*split, "--by", "from_video")
    run_dir = tmp_path / "run"
    on_ranks(1, *TRAIN, config, *TINY, f"run.dir={run_dir}", "run.steps=3",
             f"data={{train: {out}/two/train, val: {out}/two/val, crop: starts}}",
             "log={every: 1, val_every: 3, val_rows: 1}")  # fmt: skip
    found = losses(run_dir)
    assert sorted(found) == [1, 2, 3] and all(map(math.isfinite, itertools.chain(*found.values())))
    assert found[3][0] < found[1][0]
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert math.isfinite(last["val_text_loss"]) and math.isfinite(last["val_video_loss"])


def write_moving_shapes(path, seed):
    """Seven seconds of 160x96: twelve coloured squares that cross a grey field and turn at its borders."""
    rng = np.random.default_rng(seed)
    place, speed = rng.uniform(0, (144, 80), (12, 2)), rng.uniform(-4, 4, (12, 2))
    colours = rng.integers(0, 255, (12, 3))
    frames = np.full((112, 96, 160, 3), 128, np.uint8)
    for frame in frames:
        place += speed
        speed = np.where((place < 0) | (place > (144, 80)), -speed, speed)
        place = place.clip(0, (144, 80))
        for (x, y), colour in zip(place.astype(int), colours, strict=True):
            frame[y : y + 16, x : x + 16] = colour
    write_video(path, frames)


TOY = ROOT / "configs/toy_world.yaml"
SMALL_TOY = [
    *TINY,
    "sequence.examples_per_row=2",
    "sequence.context_tokens=464",
    "batch.examples=4",
    "run.steps=6",
    "checkpoint={every: 3}",
    "log={every: 1, val_every: 3, val_rows: 2}",
]


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory):
    """`train`, six shards of two examples, and `val`, one: random latents that say so."""
    folder = tmp_path_factory.mktemp("shard_set")
    info = DatasetInfo(width=32, height=32, groups=1, codec={"kind": "dct"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_files, "SHARD_BYTES", 16_000)
        for name, examples in (("train", 12), ("val", 2)):
            with ShardWriter(folder / name, info) as writer:
                for i in range(examples):
                    latents = np.random.default_rng(i).standard_normal(info.latent_shape, np.float32)
                    words = {"captions": (Caption(0.5, f"(w). {i}, 0, 0, 0."),), "meta_caption": "Noise."}
                    more = {"detailed_caption": "", "valid_latents": 13, "ends_clip": False, "source": {}}
                    writer.write(f"{name}-{i}", latents, **words, **more)
                writer.finish(LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32)))
    assert len(list((folder / "train").glob("*.mds"))) == 6
    return folder


def test_two_ranks_train_from_an_object_store_through_a_small_cache(
    shard_set, python, on_ranks, losses, tmp_path, monkeypatch
):
    boto3 = pytest.importorskip("boto3", reason="the object store needs boto3")
    moto = pytest.importorskip("moto.server", reason="the test server needs moto[server]")
    run = [2, *TRAIN, TOY, *SMALL_TOY, "--resume", "auto"]
    local, remote, cache = (tmp_path / name for name in ("local", "remote", "cache"))
    on_ranks(
        *run,
        f"run.dir={local}",
        f"data={{train: {shard_set}/train, val: {shard_set}/val, shuffle_shards: 1}}",
    )

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        for key, value in {
            "ACCESS_KEY_ID": "x",
            "SECRET_ACCESS_KEY": "x",
            "DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(f"AWS_{key}", value)
        monkeypatch.setenv("S3_ENDPOINT_URL", url)
        bucket = boto3.resource("s3", endpoint_url=url).create_bucket(Bucket="sets")
        for file in shard_set.rglob("*.*"):
            bucket.upload_file(str(file), f"toy/{file.relative_to(shard_set)}")
        capacity = 3 * max(file.stat().st_size for file in shard_set.glob("train/*.mds"))
        data = "data={train: 's3://sets/toy/train', val: 's3://sets/toy/val', shuffle_shards: 1, "
        data += f"cache_dir: {cache}, cache_bytes: {capacity}}}"
        on_ranks(*run, f"run.dir={remote}", data)
        assert losses(remote) == losses(local)
        shutil.rmtree(remote / "checkpoints/step_00000006")  # as if killed in the last step
        assert "step_00000003" in on_ranks(*run, f"run.dir={remote}", data)
        assert losses(remote) == losses(local) and sorted(losses(local)) == [1, 2, 3, 4, 5, 6]
        kept = sum(file.stat().st_size for file in cache.glob("*/*.mds"))
        assert 0 < kept <= capacity + (shard_set / "val/shard.00000.mds").stat().st_size
        python("-m", "megatv.sample", "--checkpoint", remote, "--example", 1,
               "--steps", 1, "--out", tmp_path / "sample")  # fmt: skip
    finally:
        server.stop()
    assert json.loads((tmp_path / "sample/transcript.json").read_text())["prompt"] == "Noise."
