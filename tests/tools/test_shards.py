"""Check, show, measure and split: on shards of the toy world, by the tool's own main."""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from megatv.config import CodecConfig, load_config
from megatv.data.loader import window_of
from megatv.data.shards import DatasetInfo, Shards, ShardWriter
from megatv.data.split import held_out_sources
from megatv.data.stats import LatentStats, StatsAccumulator
from megatv.data.video import encode_video, whole_latents
from megatv.model.codec import clip_encoder, load_codec
from megatv.types import Caption

ROOT = Path(__file__).parents[2]
CONFIG = """
run: {dir: unused, steps: 1}
video: {width: 32, height: 32, groups: 1}
codec: {kind: dct}
tokenizer: {path: toy_world}
data: {train: unused}
sequence: {mode: tv2tv, context_tokens: 404}
model: {layers: 1, width: 8, ffn: 8, heads: 1, kv_heads: 1, vocab: 512, tied_embeddings: false}
batch: {examples: 2}
checkpoint: {every: 1}
"""
WRONG = LatentStats(np.full((2, 16), 9.0, np.float32), np.ones((2, 16), np.float32))


@pytest.fixture
def run(monkeypatch):
    """Call the tool's main with arguments; its exit code."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("shards_tool", ROOT / "tools/shards.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["shards.py", *map(str, args)])
        return tool.main()

    return call


def frames_of(index):
    frames = np.full((49, 32, 32, 3), 20 * index, np.uint8)
    for k, frame in enumerate(frames):
        frame[:, k % 28 : k % 28 + 4] = 255
    return frames


def write(path, stores="clips", broken=()):
    """Two clips of each of four videos; the clips in `broken` were cut short before they were written."""
    with ShardWriter(path, DatasetInfo(32, 32, 1, {"kind": "dct"}, stores=stores)) as writer:
        for index in range(8):
            content = np.full((13, 16, 4, 4), index, np.float32)
            if stores == "clips":
                content = encode_video(frames_of(index)[: 20 if index in broken else 49], crf=12)
            writer.write(
                f"clip-{index}",
                content,
                captions=(Caption(0.0, "(w). 1, 0, 0, 0."), Caption(1.0, "(s). 0, 0, 0, 0.")),
                meta_caption="A bar moves.",
                detailed_caption="",
                valid_latents=13 - index % 2,
                ends_clip=False,
                source={"video": f"video-{index // 2}", "start": 3.0 * (index % 2)},
                quality={"motion": index / 8},
            )
        writer.finish(WRONG)
    return path


def write_whole(path):
    """A clip of 120 frames, of which an example holds 49 by `data.crop`, with a caption a second."""
    info = DatasetInfo(32, 32, 1, {"kind": "dct"}, stores="clips", longest_clip=150)
    with ShardWriter(path, info) as writer:
        writer.write(
            "whole",
            encode_video(np.concatenate([frames_of(i) for i in range(3)])[:120], crf=12),
            captions=tuple(Caption(float(k), f"(w). {k}, 0, 0, 0.") for k in range(7)),
            meta_caption="A bar moves.",
            detailed_caption="",
            valid_latents=13,
            ends_clip=True,
            source={"video": "whole.mp4"},
            frames=120,
        )
        writer.finish(WRONG)
    return path


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("stores", ["latents", "clips"])
def test_verify_names_every_damage(run, tmp_path, capsys, stores):
    path = write(tmp_path / "set", stores)
    assert run("verify", path) == 0
    assert "8 examples, every shard and example is as it was written" in capsys.readouterr().out
    file = path / "shard.00000.mds"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    assert run("verify", path) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
    assert "has changed since it was written" in errors[0] and "is damaged" in errors[1]
    os.truncate(file, 100)
    with pytest.raises(ValueError, match="has 100 bytes where the index says"):
        run("verify", path)


def test_verify_decodes_the_clips(run, tmp_path, capsys):
    assert run("verify", write(tmp_path / "set", broken=(2, 5))) == 2
    errors = capsys.readouterr().err.splitlines()
    assert ["clip-2" in errors[0], "clip-5" in errors[1], len(errors)] == [True, True, 2]


@pytest.mark.parametrize("stores", ["latents", "clips"])
def test_inspect_shows_pictures_words_and_the_sequence(run, tmp_path, capsys, config, stores):
    path, out = write(tmp_path / "set", stores), tmp_path / "sheet.png"
    assert run("inspect", path, "--config", config, "--index", 3, "--out", out) == 0
    said = capsys.readouterr().out
    assert "clip-3  source {'video': 'video-1', 'start': 3.0}  quality {'motion': 0.375}" in said
    assert "tokens] A bar moves." in said and "1.0000 s  [" in said
    assert "sample clip-3, tv2tv: 12 of 13 chunks" in said and "<|bos|>A bar moves." in said
    assert np.asarray(Image.open(out)).std() > 10
    with pytest.raises(ValueError, match=r"--index 8: .* holds examples 0 to 7"):
        run("inspect", path, "--config", config, "--index", 8)


def test_stats_are_drawn_and_told(run, tmp_path, capsys):
    out = tmp_path / "stats.png"
    assert run("stats", write(tmp_path / "set"), "--out", out) == 0
    said = capsys.readouterr().out
    assert "captions an example 2, words a caption 5" in said and "quality: motion 0.4375" in said
    assert min(Image.open(out).size) > 500 and sorted(p.name for p in tmp_path.iterdir()) == [
        "set",
        "stats.png",
    ]


@pytest.mark.parametrize("stores", ["latents", "clips"])
def test_recomputed_statistics_normalise(run, tmp_path, config, stores):
    path = write(tmp_path / "set", stores)
    if stores == "clips":
        with pytest.raises(ValueError, match="set: holds clips; give --config"):
            run("stats", path, "--recompute")
    assert run("stats", path, "--recompute", "--config", config) == 0
    shards = Shards(path)
    assert shards.info.stats_fingerprint == shards.stats.fingerprint() != WRONG.fingerprint()
    if stores == "latents":
        valid = np.concatenate([shards[i].latents[: 13 - i % 2][1:] for i in range(8)])
        assert abs(valid.mean()) < 1e-4 and abs(valid.std() - 1) < 1e-3
    assert not list(path.glob(".*"))


def test_a_split_keeps_every_source_on_one_side(run, tmp_path):
    path = write(tmp_path / "set")
    assert run("split", path, "--out", tmp_path / "two", "--share", 0.25) == 0
    train, val = (Shards(tmp_path / "two" / name) for name in ("train", "val"))
    records = [[side.record(i) for i in range(len(side))] for side in (train, val)]
    videos = [{record.source["video"] for record in side} for side in records]
    assert (len(train), len(val)) == (6, 2) and not videos[0] & videos[1]
    original = {r.id: r for r in (Shards(path).record(i) for i in range(8))}
    assert {r.id: r for side in records for r in side} == original
    assert train.stats.fingerprint() == val.stats.fingerprint() == WRONG.fingerprint()
    with pytest.raises(ValueError, match="two: exists already"):
        run("split", path, "--out", tmp_path / "two")


def test_what_cannot_be_split_leaves_nothing(run, tmp_path):
    path = write(tmp_path / "set")
    with pytest.raises(ValueError, match=r"'clip-0' has no `match` in its source; --by .* video, start"):
        run("split", path, "--out", tmp_path / "two", "--by", "match")
    data = bytearray((path / "shard.00000.mds").read_bytes())
    data[-100] ^= 1
    (path / "shard.00000.mds").write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        run("split", path, "--out", tmp_path / "two")
    with pytest.raises(ValueError, match="all examples come from one source, 'a'"):
        held_out_sources({"a"}, 0.5, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@given(st.sets(st.text(), min_size=2, max_size=40), st.floats(0.01, 0.99), st.integers(0, 99))
def test_the_held_out_sources_are_the_same_in_any_order(names, share, seed):
    held_out = held_out_sources(names, share, seed)
    assert held_out == held_out_sources(set(sorted(names, reverse=True)), share, seed)
    assert 1 <= len(held_out) < len(names) and abs(len(held_out) - share * len(names)) <= 1
    more = held_out_sources(names | {"one more source"}, share, seed)
    assert len(held_out ^ (more - {"one more source"})) <= 2


def test_old_shards_become_new_ones_in_a_split(run, tmp_path):
    path = write(tmp_path / "set", "latents")
    tree = json.loads((path / "dataset.json").read_text())
    old = {k: tree[k] for k in ("width", "height", "groups", "codec", "fps")} | {"version": 1}
    (path / "dataset.json").write_text(json.dumps(old))
    run("split", path, "--out", tmp_path / "two")
    assert Shards(tmp_path / "two" / "val").info.version == 3


def test_stats_tell_what_does_not_fit_the_text_rows(run, tmp_path, capsys, config):
    path, out = write(tmp_path / "set"), tmp_path / "stats.png"
    assert run("stats", path, "--config", config, "--out", out) == 0
    assert "the words of all 8 examples fit the 300 text rows" in capsys.readouterr().out
    run("stats", path, "--config", config, "--out", out, "sequence.context_tokens=148")
    said = capsys.readouterr().out
    assert "8 of 8 examples (100.00%), clip-0 the first, have words for more than the 44 text rows" in said
    assert re.search(r"training leaves out \d+ of 100 chunks", said)
    plan = ["sequence.mode=think2v", "sequence.think2v=detailed_caption"]
    run("stats", path, "--config", config, "--out", out, *plan)
    said = capsys.readouterr().out
    assert "8 of 8 examples cannot be used, the first: sample clip-0 has no detailed" in said


def test_no_verb_runs_what_a_column_says(run, tmp_path, config):
    """Every verb refuses an index that calls a column a pickle; see tests/data/test_strange_shards.py."""
    path = write(tmp_path / "set")
    tree = json.loads((path / "index.json").read_text())
    tree["shards"][0]["column_encodings"][3] = "pkl"
    (path / "index.json").write_text(json.dumps(tree))
    before = sorted(tmp_path.iterdir())
    for args in (
        ("verify", path),
        ("inspect", path, "--config", config),
        ("stats", path),
        ("stats", path, "--recompute", "--config", config),
        ("stats", path, "--like", tmp_path),
        ("split", path, "--out", tmp_path / "two"),
    ):
        with pytest.raises(ValueError, match=r"index\.json: shard 0 has column_encodings .*'pkl'"):
            run(*args)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["learned", "cosmos", "wan"])
def test_a_codec_that_the_shards_name_is_not_opened(run, tmp_path, monkeypatch, kind):
    path = write(tmp_path / "set", "latents")
    tree = json.loads((path / "dataset.json").read_text())
    os.mkfifo(tmp_path / "codec")  # whoever opens it waits for ever
    stranger = {**tree, "codec": {"kind": kind, "path": str(tmp_path / "codec")}}
    (path / "dataset.json").write_text(json.dumps(stranger))
    monkeypatch.chdir(tmp_path)
    assert run("verify", path) == 0
    for args in (("stats", path), ("stats", path, "--recompute"), ("split", path, "--out", "two")):
        assert run(*args) == 0
    assert Shards(tmp_path / "two" / "val").info.codec["path"] == str(tmp_path / "codec")


def test_new_statistics_are_not_written_through_links(run, tmp_path):
    path, target = write(tmp_path / "set", "latents"), tmp_path / "target"
    target.write_text("kept")
    for name in ("dataset.json", "latent_stats.json"):
        (path / f".{name}.tmp").symlink_to(target)
        (path / name).rename(tmp_path / name)
        (path / name).symlink_to(tmp_path / name)
    originals = [(tmp_path / name).read_text() for name in ("dataset.json", "latent_stats.json")]
    assert run("stats", path, "--recompute") == 0
    assert target.read_text() == "kept"
    assert [(tmp_path / name).read_text() for name in ("dataset.json", "latent_stats.json")] == originals
    assert Shards(path).stats.fingerprint() != WRONG.fingerprint()


def test_verify_names_a_bounded_number_of_faults(run, tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "set", "latents")
    file = path / "shard.00000.mds"
    data = bytearray(file.read_bytes())
    data[4:40] = bytes(36)
    file.write_bytes(data)
    monkeypatch.setattr(importlib.import_module("examine_shards"), "MAX_NAMED", 3)
    assert run("verify", path) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and errors[-1] == f"error: {path}: 6 more examples are damaged"


def test_scores_without_number_are_not_drawn(run, tmp_path):
    with ShardWriter(tmp_path / "set", DatasetInfo(32, 32, 1, {"kind": "dct"})) as writer:
        words = {"captions": (), "meta_caption": "m", "detailed_caption": "", "source": {}}
        quality = {f"$\\frac{{{index}": 1e9 for index in range(31)}
        content = np.zeros((13, 16, 4, 4), np.float32)
        writer.write("a", content, **words, valid_latents=13, ends_clip=True, quality=quality)
        writer.finish(WRONG)
    with pytest.raises(ValueError, match="has 31 kinds of quality scores, and 30 can be drawn"):
        run("stats", tmp_path / "set", "--out", tmp_path / "stats.png")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_names_of_scores_are_drawn_as_they_are(run, tmp_path):
    with ShardWriter(tmp_path / "set", DatasetInfo(32, 32, 1, {"kind": "dct"})) as writer:
        words = {"captions": (), "meta_caption": "m", "detailed_caption": "", "source": {}}
        content = np.zeros((13, 16, 4, 4), np.float32)
        quality = {"$\\frac{$": 1e9, "a": -1e9}
        writer.write("a", content, **words, valid_latents=13, ends_clip=True, quality=quality)
        writer.finish(WRONG)
    assert run("stats", tmp_path / "set", "--out", tmp_path / "stats.png") == 0


def test_a_transcript_does_not_command_the_terminal(run, tmp_path, capsys, config):
    with ShardWriter(tmp_path / "set", DatasetInfo(32, 32, 1, {"kind": "dct"})) as writer:
        writer.write(
            "a", np.zeros((13, 16, 4, 4), np.float32), captions=(Caption(0.0, "x\x1b[2J\x9b31m"),),
            meta_caption="\x1b]0;title\x07", detailed_caption="\r", valid_latents=13, ends_clip=True,
            source={"video\x1b": "\x1b"},
        )  # fmt: skip
        writer.finish(WRONG)
    assert run("inspect", tmp_path / "set", "--config", config, "--out", tmp_path / "sheet.png") == 0
    said = capsys.readouterr().out
    assert "\\x1b[2J" in said and said.replace("\n", "").isprintable()


def test_the_verbs_read_clips_that_are_cropped(run, tmp_path, config, capsys):
    path, out = write_whole(tmp_path / "set"), tmp_path / "out.png"
    assert run("verify", path) == 0
    with pytest.raises(ValueError, match=r"set data\.crop to starts"):
        run("inspect", path, "--config", config, "--out", out)
    crop = "data.crop=starts"
    assert run("inspect", path, "--config", config, "--out", out, crop) == 0
    said = capsys.readouterr().out
    run_config = load_config(config, [crop])
    window = window_of(Shards(path), Shards(path).record(0), run_config, epoch=0)
    inside = [k for k in range(7) if window.start < 16 * k < window.stop]
    assert f"{inside[0] - window.start / 16:7.4f} s  [" in said
    assert all(f"] (w). {k}, 0, 0, 0." in said for k in inside)
    assert run("stats", path, "--out", out, "--config", config, crop) == 0
    assert "seconds of real frames 7.5" in capsys.readouterr().out
    assert run("stats", path, "--recompute", "--config", config, crop) == 0
    codec = load_codec(CodecConfig("dct"))
    shards, expected = Shards(path, lambda: clip_encoder(codec)), StatsAccumulator()
    for start, valid in ((0, 13), (49, 13), (98, whole_latents(22))):
        found = shards.latents(shards.record(0), range(start, min(120, start + 49)))
        expected.add(found[:valid])
    assert shards.stats.fingerprint() == expected.finish().fingerprint() != WRONG.fingerprint()
