"""Clips are read as what was put in; old shards stay readable; other weights and statistics are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatv.config import CodecConfig
from megatv.data.format import DatasetInfo, check_codec, codec_fingerprint
from megatv.data.shards import Shards, ShardWriter
from megatv.data.stats import LatentStats
from megatv.data.video import encode_video
from megatv.model.codec import clip_encoder, load_codec
from megatv.types import Caption

STATS = LatentStats(np.full((2, 16), 0.1, np.float32), np.full((2, 16), 0.5, np.float32))
WORDS = {
    "captions": (Caption(0.0, "it begins"), Caption(1.5, "es geht weiter \u4e8c")),
    "meta_caption": "All of it.",
    "detailed_caption": "In detail.",
    "valid_latents": 9,
    "ends_clip": True,
    "source": {"video": "a.mp4", "start": 3.0625, "licence": "CC0"},
    "quality": {"motion": 0.75},
}


def smooth_frames(seed: int) -> np.ndarray:
    """49 frames of drifting colours, 32x48."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(*(np.arange(n) for n in (49, 32, 48)), indexing="ij")
    phase = rng.uniform(0, 6, 3)
    waves = [np.sin(x / 9 + t / 12 + p) + np.cos(y / 7 - t / 20 + p) for p in phase]
    return (127 + 60 * np.stack(waves, -1)).clip(0, 255).astype(np.uint8)


def write(path, stores, contents, **info):
    with ShardWriter(path, DatasetInfo(48, 32, 1, {"kind": "dct"}, stores=stores, **info)) as writer:
        for index, content in enumerate(contents):
            writer.write(f"clip-{index}", content, **WORDS)
        writer.finish(STATS)
    return path


@pytest.fixture(scope="module")
def codec():
    return load_codec(CodecConfig("dct"))


@pytest.fixture
def clips(tmp_path):
    return write(tmp_path / "clips", "clips", [encode_video(smooth_frames(i), crf=12) for i in range(3)])


def test_examples_from_clips_equal_those_from_latents(clips, tmp_path, codec):
    coded = [codec.encode(torch.from_numpy(smooth_frames(i))[None])[0].numpy() for i in range(3)]
    stored = Shards(write(tmp_path / "latents", "latents", coded))
    read = Shards(clips, lambda: clip_encoder(codec))
    assert len(read) == len(stored) == 3
    for index in range(3):
        a, b = read[index], stored[index]
        assert replace(a, latents=None) == replace(b, latents=None)  # all words, in the same order
        assert a.latents.dtype == np.float32
        error = np.sqrt(np.mean((a.latents - b.latents) ** 2)) / b.latents.std()
        assert 0 < error < 0.03
    assert read.record(1).source == WORDS["source"] and read.record(1).quality == {"motion": 0.75}


def test_clips_need_a_codec_only_where_latents_are_wanted(clips):
    shards = Shards(clips)
    frames = shards.frames(shards.record(2)).numpy().astype(int)
    assert np.abs(frames - smooth_frames(2)).mean() < 4  # of 255; colour has a quarter of the samples
    with pytest.raises(ValueError, match=r"clips: holds clips, .* give a config"):
        shards[2]
    calls = []
    Shards(clips, lambda: calls.append(1))
    assert calls == [1]  # when opened, so that a missing codec is no surprise of the first step


def test_a_codec_is_not_loaded_for_stored_latents(tmp_path):
    latents = np.zeros((13, 16, 4, 6), np.float32)
    path = write(tmp_path / "set", "latents", [latents])
    assert Shards(path, lambda: pytest.fail("loaded"))[0].latents.shape == latents.shape


def test_clips_that_do_not_decode_are_named(tmp_path, codec):
    short, whole = encode_video(smooth_frames(0)[:40], crf=12), encode_video(smooth_frames(0), crf=12)
    damaged = whole[: len(whole) // 2]
    path = write(tmp_path / "set", "clips", [short, damaged])
    shards = Shards(path, lambda: clip_encoder(codec))
    with pytest.raises(ValueError, match=r"set: clip 'clip-0': .* it has ended at 2\.5 s"):
        shards[0]
    with pytest.raises(ValueError, match=r"set: clip 'clip-1': .*does not decode"):
        shards[1]


def test_a_flipped_bit_of_a_clip_is_damage(clips):
    file = clips / "shard.00000.mds"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 8
    file.write_bytes(data)
    shards, damaged = Shards(clips), []
    for index in range(3):
        try:
            shards.record(index)
        except ValueError as error:
            damaged.append(str(error))
    assert len(damaged) == 1 and "shard.00000.mds: example" in damaged[0]


def test_shards_of_version_1_are_read_as_latents(tmp_path):
    path = write(tmp_path / "set", "latents", [np.ones((13, 16, 4, 6), np.float32)])
    tree = json.loads((path / "dataset.json").read_text())
    old = {k: tree[k] for k in ("width", "height", "groups", "codec", "fps")} | {"version": 1}
    (path / "dataset.json").write_text(json.dumps(old))
    shards = Shards(path)
    assert (shards.info.stores, shards.info.codec_fingerprint) == ("latents", None)
    np.testing.assert_allclose(shards[0].latents, 1.8, rtol=1e-6)
    check_codec(shards.info, CodecConfig("learned", "anything"), path)
    (path / "dataset.json").write_text(json.dumps({**tree, "stores": "pictures"}))
    with pytest.raises(ValueError, match="`stores` must be one of latents, clips"):
        Shards(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *((key, value, "whole numbers, 1 or more") for key in ("width", "height", "groups") for value in
          (0, -8, True, 8.0, "48", None, [48], 10**40)),
        ("width", 44, "multiples of 8"),
        ("width", 8 * 10**6, "more than 2 GiB"),
        ("groups", 10**6, "more than 2 GiB"),
        ("fps", 0, "`fps` must be 16"),
        ("fps", 16.0, "`fps` must be 16"),
        ("fps", 30, "`fps` must be 16"),
        ("version", 0, "`version` must be"),
        ("version", True, "`version` must be"),
        ("version", "2", "`version` must be"),
        ("version", 10**400, "`version` must be"),
        ("stores", ["latents"], "`stores` must be one of"),
        ("stores", {}, "`stores` must be one of"),
        ("codec", {}, "`codec`: key 'kind' is missing"),
        ("codec", [], "`codec`: "),
        ("codec", None, "`codec`: "),
        ("codec", {"kind": "pickle"}, "`codec`: kind is 'pickle'"),
        ("codec", {"kind": "x" * 10_000}, "`codec`: kind is"),
        ("codec", {"kind": "dct", "path": 5}, "`codec`: path must be text"),
        ("codec", {"kind": "dct", "run": "x"}, "`codec`: unknown key 'run'"),
        ("codec_fingerprint", 5, "`codec_fingerprint` must be null or 16"),
        ("codec_fingerprint", "x" * 16, "`codec_fingerprint` must be null or 16"),
        ("stats_fingerprint", "0" * 17, "`stats_fingerprint` must be null or 16"),
        ("stats_fingerprint", [[]], "`stats_fingerprint` must be null or 16"),
    ],
)  # fmt: skip
def test_a_description_of_another_kind_is_refused(tmp_path, key, value, message):
    path = tmp_path / "dataset.json"
    DatasetInfo(48, 32, 1, {"kind": "dct"}).save(path)
    DatasetInfo.load(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=rf"dataset\.json: .*{message}") as error:
        DatasetInfo.load(path)
    assert len(str(error.value)) < 500


def test_the_columns_are_those_of_the_format():
    latents, clips = (
        DatasetInfo(48, 32, 2, {"kind": "dct"}, stores=stores) for stores in ("latents", "clips")
    )
    assert [(c.name, c.encoding, c.size) for c in latents.columns] == [
        ("hash", "str", None), ("id", "str", None),
        ("latents", "ndarray:float16:26,16,4,6", 26 * 16 * 4 * 6 * 2), ("meta", "str", None),
    ]  # fmt: skip
    assert [(c.name, c.encoding, c.size) for c in clips.columns] == [
        ("clip", "bytes", None), ("hash", "str", None), ("id", "str", None), ("meta", "str", None),
    ]  # fmt: skip
    assert clips.columns[0].most == 98 * 48 * 32 * 3 + (1 << 20)


def test_statistics_of_other_shards_are_refused(tmp_path):
    path = write(tmp_path / "set", "latents", [np.ones((13, 16, 4, 6), np.float32)])
    replace(STATS, std=STATS.std * 2).save(path / "latent_stats.json")
    with pytest.raises(ValueError, match=r"latent_stats\.json: does not hold the statistics"):
        Shards(path)


def test_the_fingerprint_is_of_the_weights_and_not_of_the_path(tmp_path):
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(weights)
        (tmp_path / f"{name}.folder").mkdir()
        (tmp_path / f"{name}.folder" / "encoder.jit").write_bytes(weights)
    for kind, suffix in (("learned", ""), ("cosmos", ".folder")):
        a, b, c = (codec_fingerprint(CodecConfig(kind, str(tmp_path / (n + suffix)))) for n in "abc")
        assert a == b != c and a is not None
    before = codec_fingerprint(CodecConfig("cosmos", str(tmp_path / "a.folder")))
    (tmp_path / "a.folder" / "README.md").write_text("no weights")
    assert codec_fingerprint(CodecConfig("cosmos", str(tmp_path / "a.folder"))) == before
    (tmp_path / "a.folder" / "encoder.jit").rename(tmp_path / "a.folder" / "decoder.jit")
    assert codec_fingerprint(CodecConfig("cosmos", str(tmp_path / "a.folder"))) != before
    assert codec_fingerprint(CodecConfig("dct")) is None
    assert codec_fingerprint(CodecConfig("learned", str(tmp_path / "none"))) is None


@pytest.mark.parametrize(
    ("stores", "message"),
    [
        ("latents", "its latents were made with other weights than those in .*make the shards again"),
        ("clips", "its latent statistics were made with other weights .*stats DIR --recompute"),
    ],
)
def test_a_retrained_codec_is_refused(tmp_path, stores, message):
    file = tmp_path / "codec.safetensors"
    file.write_bytes(b"first training")
    codec = CodecConfig("learned", str(file))
    info = DatasetInfo(48, 32, 1, {}, stores=stores, codec_fingerprint=codec_fingerprint(codec))
    check_codec(info, codec, tmp_path)
    file.write_bytes(b"second training")
    with pytest.raises(ValueError, match=message):
        check_codec(info, codec, tmp_path)
    file.unlink()  # a machine that trains on stored latents needs no codec
    check_codec(info, codec, tmp_path)
