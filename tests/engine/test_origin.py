"""A checkpoint is used with the codec and the latent statistics that it was trained with, or not at all."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from megatv.checkpoint import store
from megatv.checkpoint.meta import read_meta
from megatv.checkpoint.origin import require_codec, require_origin
from megatv.config import CodecConfig
from megatv.data import format
from megatv.data.format import codec_fingerprint
from megatv.data.shards import DatasetInfo, Shards, ShardWriter
from megatv.data.stats import LatentStats
from megatv.model.codec.learned import ChunkAutoencoder, LearnedCodec
from megatv.sample.sampler import Sampler

ONES = LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32))


def save_codec(path, seed):
    torch.manual_seed(seed)
    LearnedCodec(ChunkAutoencoder(8)).save(path)
    return CodecConfig("learned", str(path))


def write_shards(out, codec):
    """Four examples without words, coded by nobody, that say they came from `codec`."""
    made_by = {"codec": {"kind": codec.kind}, "codec_fingerprint": codec_fingerprint(codec)}
    with ShardWriter(out, DatasetInfo(width=32, height=32, groups=1, **made_by)) as writer:
        for i in range(4):
            latents = np.random.default_rng(i).normal(3.0, 2.0, (13, 16, 4, 4)).astype(np.float32)
            words = {"captions": (), "meta_caption": "a clip", "detailed_caption": ""}
            writer.write(f"clip-{i}", latents, **words, valid_latents=13, ends_clip=True, source={})
        writer.finish(ONES)


def test_records_of_older_checkpoints_and_unreadable_codecs_are_accepted(tmp_path):
    codec = save_codec(tmp_path / "codec.safetensors", 0)
    now = {"codec_fingerprint": codec_fingerprint(codec), "latent_stats": ONES.to_dict()}
    old = {"latent_stats": ONES.to_dict()}
    converted = {"latent_stats": None}
    for meta in (old, converted, now, {}):
        require_codec(meta, codec, "run")
        require_origin(meta, now, "set", tmp_path)
    other = {**now, "codec_fingerprint": "0"}
    require_codec(other, CodecConfig("learned", str(tmp_path / "gone")), "run")
    with pytest.raises(ValueError, match=r"run: was trained with other codec .* put the old ones back"):
        require_codec(other, codec, "run")


@pytest.mark.slow
def test_a_run_goes_on_only_with_its_own_codec_and_statistics(tmp_path, train, refused, python):
    data, run_dir = tmp_path / "train", tmp_path / "run"
    codec = save_codec(tmp_path / "codec.safetensors", 0)
    write_shards(data, codec)
    config = [f"codec={{kind: learned, path: {codec.path}}}", f"data.train={data}", "data.val=null"]
    config += ["checkpoint.every=2"]
    train(1, run_dir, *config)
    first = store.checkpoint_dir(run_dir, 2)
    assert read_meta(first)["codec_fingerprint"] == codec_fingerprint(codec)
    shutil.rmtree(store.checkpoint_dir(run_dir, 4))
    Sampler.from_checkpoint(run_dir)

    python("tools/shards.py", "stats", data, "--recompute")
    assert Shards(data).stats.fingerprint() != ONES.fingerprint()
    message = refused(1, run_dir, *config)
    assert f"{first}: was trained with other latent statistics than {data} holds now" in message
    assert f"stats {data} --like {first}" in message
    python("tools/shards.py", "stats", data, "--like", first)
    assert Shards(data).stats.fingerprint() == ONES.fingerprint()

    kept = data.rename(tmp_path / "kept"), shutil.copy(codec.path, tmp_path / "kept.safetensors")
    write_shards(data, save_codec(tmp_path / "codec.safetensors", 1))
    assert "was trained on latents of other codec weights" in refused(1, run_dir, *config)
    with pytest.raises(ValueError, match=r"run: was trained with other codec weights than those in "):
        Sampler.from_checkpoint(run_dir)

    shutil.rmtree(data)
    kept[0].rename(data)
    shutil.copy(kept[1], codec.path)
    assert f"resumed from {first}" in train(1, run_dir, *config)
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_a_file_that_is_too_long_for_weights_is_not_hashed(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(bytes(100))
    config = CodecConfig("learned", str(tmp_path / "a.safetensors"))
    assert codec_fingerprint(config)
    monkeypatch.setattr(format, "MAX_WEIGHTS_BYTES", 99)
    with pytest.raises(ValueError, match=r"a\.safetensors: is longer than .*; give a codec's weights"):
        codec_fingerprint(config)


@pytest.mark.parametrize("kind", ["link to nothing", "link to itself", "folder", "no folder"])
def test_what_cannot_be_read_as_weights_is_one_sentence(tmp_path, kind):
    folder = tmp_path / "codec"
    folder.mkdir()
    match kind:
        case "link to nothing":
            (folder / "config.json").symlink_to("gone")
        case "link to itself":
            (folder / "config.json").symlink_to("config.json")
        case "folder":
            (folder / "config.json").mkdir()
        case "no folder":
            folder.rmdir()
            os.mkfifo(folder)
    with pytest.raises(ValueError, match=r"codec[^ ]*: cannot be read \(.*\); give a codec's weights"):
        codec_fingerprint(CodecConfig("wan", str(folder)))
