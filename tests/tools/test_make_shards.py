"""The tool end to end; bad input ends in one sentence and leaves nothing behind."""

import json
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatv.config import CodecConfig, load_config
from megatv.data.crop import crop_words
from megatv.data.loader import Loader, window_of
from megatv.data.shards import Shards
from megatv.data.tokenizer import load_tokenizer
from megatv.data.toy_world import META_PROMPT
from megatv.data.video import cut, decode_video, whole_latents, write_video
from megatv.model.codec import clip_encoder, load_codec
from megatv.model.codec.learned import ChunkAutoencoder, LearnedCodec
from megatv.types import Caption

ROOT = Path(__file__).parents[2]
CLIPS = ROOT / "../shared/clips"

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


@pytest.fixture
def run(tmp_path, monkeypatch, load_tool):
    """Call the tool's main with arguments; the config is a toy one of 13 latents and 300 text rows."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["make_shards.py", "--config", str(config), *map(str, args)])
        return load_tool("make_shards").main()

    return call


@pytest.fixture
def folder(tmp_path):
    """Videos of 130 frames (two clips and 32 frames more), 20 frames, and one that is no video."""
    path = tmp_path / "videos"
    path.mkdir()
    for name, frames in (("long", 130), ("short", 20)):
        brightness = (np.arange(frames) % 50 * 5).astype(np.uint8)
        write_video(
            path / f"{name}.mp4", np.broadcast_to(brightness[:, None, None, None], (frames, 32, 32, 3))
        )
    (path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "private.mp4").write_bytes((path / "short.mp4").read_bytes())
    (path / "link.mp4").symlink_to(tmp_path / "private.mp4")
    (path / "up").symlink_to(tmp_path)
    return path


def describe(path, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    return path


def line_of(video, *captions, **more):
    words = [{"start": start, "text": text} for start, text in captions]
    return {"video": video, "meta_caption": "Light.", "captions": words, **more}


def test_videos_become_padded_clips_with_their_words(run, folder, tmp_path, capsys):
    captions = describe(
        tmp_path / "c.jsonl",
        line_of("long.mp4", (0.0, "a"), (3.0, "b"), (4.0, "c"), detailed_caption="More light."),
        line_of("short.mp4", (0.0, "d")),
    )
    run("--videos", folder, "--captions", captions, "--out", tmp_path / "set")
    shards = Shards(tmp_path / "set")
    examples = {e.id: e for e in (shards[i] for i in range(len(shards)))}
    assert list(examples) == ["long.mp4@0.0000", "long.mp4@3.0625", "short.mp4@0.0000"]
    first, second, short = examples.values()
    assert first.captions == (Caption(0.0, "a"), Caption(3.0, "b"))
    assert second.captions == (Caption(0.0, "b"), Caption(0.9375, "c"))
    assert (first.meta_caption, first.detailed_caption, short.detailed_caption) == (
        "Light.",
        "More light.",
        "",
    )
    # 32 frames remain of the long video: less than a group, so they are dropped and no clip ends it
    assert [e.valid_latents for e in examples.values()] == [13, 13, 5]
    assert [e.ends_clip for e in examples.values()] == [False, False, True]

    frames = decode_video(folder / "short.mp4", width=32, height=32)
    padded = np.concatenate([frames, np.repeat(frames[-1:], 29, 0)])
    raw = load_codec(CodecConfig("dct")).encode(torch.from_numpy(padded)[None])[0].numpy()
    expected = shards.stats.normalize(raw.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(short.latents, expected, rtol=1e-5, atol=1e-5)
    valid = [e.latents[: e.valid_latents] for e in examples.values()]
    first_of_group = np.stack([v[0] for v in valid])
    assert abs(first_of_group.mean()) < 0.02 and abs(np.concatenate([v[1:] for v in valid]).mean()) < 0.02
    assert "3 examples of 13 latents, 7.2 s of video" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "c.jsonl",
        "config.yaml",
        "private.mp4",
        "set",
        "videos",
    ]


def test_the_rest_of_a_video_becomes_a_padded_clip_when_it_holds_a_group(run, folder, tmp_path):
    captions = describe(tmp_path / "c.jsonl", line_of("long.mp4", (0.0, "a"), start=1.0))
    run("--videos", folder, "--captions", captions, "--out", tmp_path / "set",
        "video.groups=2", "sequence.context_tokens=600")  # fmt: skip
    (only,) = [Shards(tmp_path / "set")[i] for i in range(1)]
    assert len(Shards(tmp_path / "set")) == 1 and only.ends_clip is False  # 98 of 114 frames; 16 are too few
    run("--videos", folder, "--captions", describe(tmp_path / "d.jsonl", line_of("long.mp4", start=3.0)),
        "--out", tmp_path / "two", "video.groups=2", "sequence.context_tokens=600")  # fmt: skip
    (rest,) = [Shards(tmp_path / "two")[i] for i in range(1)]
    assert rest.ends_clip and rest.valid_latents == whole_latents(82) == 13 + 9


@given(frames=st.integers(1, 400), groups=st.integers(1, 3))
def test_cutting_loses_less_than_a_group(frames, groups):
    length = 49 * groups
    pictures = (np.full((1, 1, 3), i, np.int64) for i in range(frames))
    pieces = list(cut(pictures, length))
    numbers = [int(i) for piece, _ in pieces for i in piece[:, 0, 0, 0]]
    assert numbers == list(range(len(numbers))) and frames - len(numbers) < 49
    assert all(len(piece) == length for piece, _ in pieces[:-1])
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [len(numbers) == frames]


def test_whole_latents_counts_what_the_codec_fills():
    starts = [0, *range(1, 49, 4), 49, *range(50, 98, 4), 98]  # of latents 0..25, and the end
    for frames in range(1, 99):
        assert whole_latents(frames) == sum(end <= frames for _, end in pairwise(starts))


def test_toy_splits_share_no_episode_and_feed_the_loader(run, tmp_path):
    run("--toy", 6, "--out", tmp_path / "train")
    run("--toy", 4, "--split", "val", "--stats", tmp_path / "train", "--out", tmp_path / "val")
    train, val = Shards(tmp_path / "train"), Shards(tmp_path / "val")
    assert (len(train), len(val)) == (6, 4)
    assert np.array_equal(train.stats.mean, val.stats.mean) and np.array_equal(train.stats.std, val.stats.std)
    seen = {train[i].latents.tobytes() for i in range(6)}
    assert len(seen) == 6 and not seen & {val[i].latents.tobytes() for i in range(4)}
    example = train[0]
    assert example.meta_caption == META_PROMPT and len(example.captions) == 13
    assert example.valid_latents == 13 and not example.ends_clip
    config = load_config(tmp_path / "config.yaml")
    batches = Loader(train, load_tokenizer("toy_world"), config, dp_rank=0, dp_size=1).step(0)
    assert len(batches) == 2 and batches[0].clean.shape == (13, 16, 4, 4)


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(run, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run("--toy", 3, "--seed", seed, "--out", tmp_path / name)
    a, b, c = ((tmp_path / name / "shard.00000.mds").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (line_of("none.mp4"), "video 'none.mp4' is not in .*videos; copy it there"),
        (line_of("../private.mp4"), "'../private.mp4' does not name a file within .*videos"),
        (line_of("a/../../private.mp4"), "does not name a file within .*videos"),
        (line_of("/etc/passwd"), "'/etc/passwd' does not name a file within .*videos"),
        (line_of("link.mp4"), "'link.mp4' is a link that leads out of .*videos"),
        (line_of("up/private.mp4"), "'up/private.mp4' is a link that leads out of .*videos"),
        (line_of("x" * 300 + ".mp4"), "does not name a file within .*videos"),
        (line_of("a\0.mp4"), "has control characters; rename the file"),
        (
            line_of("short.mp4", (1.0, "a"), (0.5, "b")),
            r"captions\[1\] starts at 0.5 s, before the one above",
        ),
        (line_of("short.mp4", (1.25, "a")), r"captions\[0\] starts at 1.25 s, beyond the end of the video"),
        (line_of("short.mp4", (-1.0, "a")), "must be a number of seconds from 0 to 86400"),
        (line_of("short.mp4", start=9), "start 9 lies beyond the end of 'short.mp4'"),
        (
            line_of("short.mp4", meta_caption="zx " * 400),
            "the text up to its first chunk takes .* rows, but it may have 300: shorten the text or raise",
        ),
        (line_of("short.mp4", (0.0, "zx " * 400)), "the text up to its first chunk takes .* rows"),
        (line_of("long.mp4"), "was described before"),
        (line_of("long.mp4", start=0.05), "less than a frame; give another `start`"),
        ('{"video"', "is not valid JSON"),
        (line_of("short.mp4", quality={"motion": "high"}), "quality: 'motion' must be a number within"),
        (line_of("short.mp4", quality=[1]), "quality must be an object of numbers"),
        (line_of("short.mp4", source={"video": "x"}), "source: 'video' is written by the tool"),
        (line_of("short.mp4", source="web"), "source must be an object"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, folder, tmp_path, line, message):
    captions = describe(tmp_path / "c.jsonl", line_of("long.mp4", (0.0, "a")), line)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=rf"c\.jsonl line 2: .*{message}") as caught:
        run("--videos", folder, "--captions", captions, "--out", tmp_path / "set")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_words_beyond_the_budget_are_warned_of(run, folder, tmp_path, capsys):
    lines = describe(tmp_path / "c.jsonl", line_of("short.mp4", (0.0, "a"), (0.8, "zx " * 400)))
    run("--videos", folder, "--captions", lines, "--out", tmp_path / "set")
    warning = capsys.readouterr().err
    assert warning.startswith("warning: 1 of 1 examples (100.00%), short.mp4@0.0000 the first, have words")
    assert "leaves out 1 of 5 chunks (20.00%), trailing ones and whole" in warning
    assert len(Shards(tmp_path / "set")) == 1


def test_what_cannot_work_is_refused_before_the_work(run, tmp_path):
    run("--toy", 1, "--out", tmp_path / "set")
    with pytest.raises(ValueError, match="set: is not an empty directory"):
        run("--toy", 1, "--out", tmp_path / "set")
    with pytest.raises(ValueError, match="pictures are 32x32"):
        run("--toy", 1, "--out", tmp_path / "b", "video.width=64", "sequence.context_tokens=600")
    with pytest.raises(ValueError, match=r"--stats was made with codec .*'dct'.* says .*'wan'"):
        run(
            "--toy", 1, "--stats", tmp_path / "set", "--out", tmp_path / "b", "codec.kind=wan", "codec.path=x"
        )
    for wrong in (["--toy", 0, "--out", "b"], ["--toy", 1], ["--videos", tmp_path, "--out", "b"]):
        with pytest.raises(SystemExit) as caught:
            run(*wrong)
        assert caught.value.code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "set"]


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not beside this checkout")
def test_the_real_clips_with_the_shipped_captions(run, tmp_path, capsys):
    captions = ROOT / "configs/data/clips_captions.jsonl"
    own = yaml.safe_load((ROOT / "configs/own_videos.yaml").read_text())
    config = tmp_path / "config.yaml"
    run("--videos", CLIPS, "--captions", captions, "--out", tmp_path / "set")
    capsys.readouterr()
    config.write_text(yaml.safe_dump(own))
    run("--videos", CLIPS, "--captions", captions, "--out", tmp_path / "paper", "data.crop=none")
    shards = Shards(tmp_path / "paper")
    assert shards.info.latent_shape == (26, 16, 24, 40)
    found = {shards[i].id: (shards[i].valid_latents, shards[i].ends_clip) for i in range(len(shards))}
    assert found == {
        "basketball.mp4@0.0000": (26, False),
        "basketball.mp4@6.1250": (17, True),
        "arm_wrestling.mp4@0.0000": (26, False),
        "arm_wrestling.mp4@6.1250": (17, True),
        "still_face.mp4@0.0000": (17, True),
    }
    assert "warning" not in capsys.readouterr().err
    assert len(Shards(tmp_path / "set")) == 3 + 3 + 1


def test_stored_clips_feed_the_loader_as_stored_latents_do(run, tmp_path, capsys):
    for store in ("latents", "clips"):
        run("--toy", 4, "--store", store, "--out", tmp_path / store)
        assert "4 examples of 13 latents, 12.2 s of video" in capsys.readouterr().out
    config, tokenizer = load_config(tmp_path / "config.yaml"), load_tokenizer("toy_world")
    encoder = clip_encoder(load_codec(config.codec))
    steps = {}
    for store in ("latents", "clips"):
        shards = Shards(tmp_path / store, lambda: encoder)
        ahead = Loader(shards, tokenizer, config, dp_rank=0, dp_size=1).iterate(0)
        steps[store] = [batch for _ in range(3) for batch in next(ahead)]
        ahead.close()
    for a, b in zip(*steps.values(), strict=True):
        assert a.ids == b.ids and torch.equal(a.text_ids, b.text_ids) and torch.equal(a.noisy_t, b.noisy_t)
        noise = [batch.clean[batch.chunk_loss] - batch.velocity[batch.chunk_loss] for batch in (a, b)]
        torch.testing.assert_close(*noise, atol=1e-5, rtol=0)
        error = (a.clean - b.clean).square().mean().sqrt() / a.clean.std()
        assert 0 < error < 0.15  # hard edges of a 32x32 picture, which 4:2:0 colour blurs


def test_statistics_of_a_retrained_codec_are_refused(run, tmp_path):
    codec = [f"codec.path={tmp_path}/codec.safetensors", "codec.kind=learned"]
    torch.manual_seed(0)
    LearnedCodec(ChunkAutoencoder(8)).save(tmp_path / "codec.safetensors")
    run("--toy", 1, "--out", tmp_path / "train", *codec)
    run("--toy", 1, "--split", "val", "--stats", tmp_path / "train", "--out", tmp_path / "val", *codec)
    LearnedCodec(ChunkAutoencoder(8)).save(tmp_path / "codec.safetensors")
    with pytest.raises(ValueError, match=r"--stats was made with codec .*statistics hold for one codec only"):
        run("--toy", 1, "--split", "val", "--stats", tmp_path / "train", "--out", tmp_path / "new", *codec)
    config = load_config(tmp_path / "config.yaml", codec)
    with pytest.raises(ValueError, match="train: its latents were made with other weights"):
        Loader(Shards(tmp_path / "train"), load_tokenizer("toy_world"), config, dp_rank=0, dp_size=1)


def test_scores_and_provenance_of_a_video_stay_with_its_clips(run, folder, tmp_path):
    more = {"quality": {"motion": 1, "faces": 0.5}, "source": {"licence": "CC0"}}
    lines = describe(tmp_path / "c.jsonl", line_of("long.mp4", (0.0, "a"), **more), line_of("short.mp4"))
    run("--videos", folder, "--captions", lines, "--out", tmp_path / "set")
    records = [Shards(tmp_path / "set").record(index) for index in range(3)]
    assert [r.quality for r in records] == [{"motion": 1.0, "faces": 0.5}] * 2 + [{}]
    assert records[1].source == {"video": "long.mp4", "start": 3.0625, "frames": 49, "licence": "CC0"}
    assert records[2].source == {"video": "short.mp4", "start": 0.0, "frames": 20}


CROP = ["data.crop=starts"]


def test_whole_clips_are_kept_for_the_loader_to_crop(run, folder, tmp_path):
    """No frame is lost, the words are the whole clip's, and a batch has crops with theirs."""
    lines = describe(
        tmp_path / "c.jsonl",
        line_of("long.mp4", (0.0, "(w). 0, 0, 0, 0."), (3.0, "(a). 0, 0, 0, 0.")),
        line_of("short.mp4", (0.0, "(s). 0, 0, 0, 0.")),
    )
    run("--videos", folder, "--captions", lines, "--out", tmp_path / "set", "--store", "clips", *CROP)
    config, codec = load_config(tmp_path / "config.yaml", CROP), load_codec(CodecConfig("dct"))
    shards = Shards(tmp_path / "set", lambda: clip_encoder(codec))
    long, short = (shards.record(index) for index in range(2))
    assert (long.id, long.frames, long.ends_clip) == ("long.mp4@0.0000", 130, True)
    assert (short.id, short.frames, short.valid_latents) == ("short.mp4@0.0000", 20, whole_latents(20))
    assert [c.start_seconds for c in long.captions] == [0.0, 3.0]
    shown = shards.frames(long).float().mean((1, 2, 3))  # brightness counts the frames
    np.testing.assert_allclose(shown, np.arange(130) % 50 * 5, atol=3)
    loader = Loader(shards, load_tokenizer("toy_world"), config, dp_rank=0, dp_size=1)
    assert {i for step in range(2) for batch in loader.step(step) for i in batch.ids} == {long.id, short.id}
    with pytest.raises(ValueError, match=r"set data\.crop to starts"):
        plain = load_config(tmp_path / "config.yaml")
        Loader(shards, load_tokenizer("toy_world"), plain, dp_rank=0, dp_size=1)


@pytest.mark.parametrize("rule", ["starts", "frames"])
def test_stored_crops_are_those_that_the_loader_would_draw(run, folder, tmp_path, rule):
    crop = f"data.crop={rule}"
    words = [line_of("long.mp4", *((second / 2, str(second)) for second in range(16))), line_of("short.mp4")]
    lines = describe(tmp_path / "c.jsonl", *words)
    run("--videos", folder, "--captions", lines, "--out", tmp_path / "clips", "--store", "clips", crop)
    run("--videos", folder, "--captions", lines, "--out", tmp_path / "set", "--crops", 5, crop)
    config = load_config(tmp_path / "config.yaml", [crop])
    clips, stored = Shards(tmp_path / "clips"), Shards(tmp_path / "set")
    records = [stored.record(index) for index in range(len(stored))]
    long = [record for record in records if record.id.startswith("long")]
    assert [r.id for r in records] == [
        *(f"long.mp4@0.0000#{k}" for k in range(len(long))),
        "short.mp4@0.0000#0",
    ]
    windows = dict.fromkeys(window_of(clips, clips.record(0), config, epoch) for epoch in range(5))
    assert [(r.source["start"] * 16, r.source["frames"]) for r in long] == [
        (w.start, len(w)) for w in windows
    ]
    for record, window in zip(long, windows, strict=True):
        words = crop_words(clips.record(0).example(np.empty(0)), 130, window)
        assert record.captions == words.captions and record.ends_clip == words.ends_clip
        assert record.valid_latents == words.valid_latents
    Loader(stored, load_tokenizer("toy_world"), config, dp_rank=0, dp_size=1)


def test_a_long_video_becomes_clips_that_overlap_by_all_but_a_frame_of_an_example(run, tmp_path):
    (tmp_path / "videos").mkdir()
    brightness = (np.arange(700) % 50 * 5).astype(np.uint8)
    frames = np.broadcast_to(brightness[:, None, None, None], (700, 32, 32, 3))
    write_video(tmp_path / "videos" / "a.mp4", frames)
    lines = describe(tmp_path / "c.jsonl", line_of("a.mp4", *((float(t), str(t)) for t in range(0, 40, 10))))
    run(
        "--videos",
        tmp_path / "videos",
        "--captions",
        lines,
        "--out",
        tmp_path / "set",
        "--store",
        "clips",
        *CROP,
    )
    shards = Shards(tmp_path / "set")
    records = [shards.record(index) for index in range(len(shards))]
    starts = [round(record.source["start"] * 16) for record in records]
    assert len(records) == 3 and starts[0] == 0
    for start, following, record in zip(starts, [*starts[1:], 700 - 48], records, strict=True):
        assert record.frames == following + 48 - start and record.ends_clip == (record is records[-1])
        assert record.captions[0].start_seconds == 0
        assert record.captions[0].text == str(int(start / 160) * 10)  # the one in force


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--toy", 2, "--crops", 2], "2 stored crops of a clip are for latents of videos"),
        (["--toy", 2, *CROP], "data.crop starts is for --videos"),
        (["--videos", "x", "--captions", "y", *CROP], "data.crop starts needs clips that can be cropped"),
        (["--videos", "x", "--captions", "y", "--crops", 2], "2 stored crops of a clip are for latents"),
        (["--videos", "x", "--captions", "y", "--crops", 2, "--store", "clips", *CROP], "leave --crops out"),
    ],
)
def test_options_about_crops_that_do_not_agree_are_refused_first(run, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments, "--out", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def names_of(path):
    shards = Shards(path)
    return [shards.record(index).id for index in range(len(shards))]


def damaged_from(path, seconds):
    """Overwrite a video's coded pictures from a time on."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size and p.pts * p.time_base >= seconds]
    for packet in packets:
        data[packet.pos + 8 : packet.pos + packet.size] = bytes(packet.size - 8)
    path.write_bytes(data)


def test_a_damaged_video_costs_the_others_nothing(run, folder, tmp_path, capsys):
    """One cannot be opened, one is damaged in its second clip: its first one and the others are kept."""
    (folder / "later.mp4").write_bytes((folder / "long.mp4").read_bytes())
    damaged_from(folder / "later.mp4", 4.0)
    lines = [
        {"video": f"{name}.mp4", "meta_caption": "M.", "captions": []}
        for name in ("broken", "later", "long", "short")
    ]
    captions = describe(tmp_path / "c.jsonl", *lines)
    assert run("--videos", folder, "--captions", captions, "--out", tmp_path / "out") == 2
    assert names_of(tmp_path / "out") == [
        *("later.mp4@0.0000", "long.mp4@0.0000", "long.mp4@3.0625", "short.mp4@0.0000")
    ]
    left = capsys.readouterr().err
    assert "left out from there on" in left and "line 1:" in left and "broken.mp4" in left
    assert "line 2:" in left and "later.mp4: does not decode" in left and left.count("left out") == 2


def test_where_all_is_damaged_nothing_is_made(run, folder, tmp_path, capsys):
    captions = describe(tmp_path / "c.jsonl", {"video": "broken.mp4", "meta_caption": "M.", "captions": []})
    with pytest.raises(ValueError, match="no clip could be read"):
        run("--videos", folder, "--captions", captions, "--out", tmp_path / "out")
    assert "broken.mp4" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("begin", [2.0, 3.0625])
def test_of_two_parts_of_a_video_each_second_is_trained_once(run, folder, tmp_path, begin):
    """Part 1 ends where part 2 begins, and there nothing ends: the video goes on."""
    part = {"video": "long.mp4", "meta_caption": "Part 1.", "captions": [{"start": 0, "text": "Early."}]}
    later = {**part, "start": begin, "meta_caption": "Part 2.", "captions": [{"start": 0, "text": "Late."}]}
    captions = describe(tmp_path / "c.jsonl", later, part)
    assert not run("--videos", folder, "--captions", captions, "--out", tmp_path / "out", "--store", "clips")
    shards = Shards(tmp_path / "out")
    records = {record.id: record for record in map(shards.record, range(len(shards)))}
    first = records.pop("long.mp4@0.0000")
    assert first.source["frames"] == begin * 16 and not first.ends_clip and first.meta_caption == "Part 1."
    spans = [(r.source["start"], r.source["start"] + r.source["frames"] / 16) for r in records.values()]
    assert min(start for start, _ in spans) == begin and {r.meta_caption for r in records.values()} == {
        "Part 2."
    }
    assert all(c.text == "Late." for r in records.values() for c in r.captions)


def test_sound_before_the_first_picture_is_told(run, folder, tmp_path, capsys):
    with av.open(str(folder / "late.mkv"), "w") as out:
        video, sound = out.add_stream("libx264", 16), out.add_stream("pcm_s16le", 8000, layout="mono")
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 24000), np.int16), format="s16", layout="mono")
        noise.sample_rate = 8000
        out.mux(sound.encode(noise))
        for index in range(20):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = index + 8, Fraction(1, 16)
            out.mux(video.encode(frame))
        out.mux(video.encode())
    line = {"video": "late.mkv", "meta_caption": "M.", "captions": [{"start": 1.2, "text": "T."}]}
    run("--videos", folder, "--captions", describe(tmp_path / "c.jsonl", line), "--out", tmp_path / "a")
    assert "'late.mkv' comes 0.50 s after its sound; times count from the picture" in capsys.readouterr().out
    line["captions"][0]["start"] = 1.3  # the sound lasts 3 s, the pictures 1.25 s
    with pytest.raises(ValueError, match=r"starts at 1.3 s, beyond the end of the video \(1.25 s\)"):
        run("--videos", folder, "--captions", describe(tmp_path / "c.jsonl", line), "--out", tmp_path / "b")


@pytest.mark.parametrize(
    "name",
    [
        "-day 1.mp4",
        "day_1.mp4",
        "M: 50%.mp4",
        "🎾.mp4",
        "e\u0301.mp4",
        "\xe9.mp4",
        " a.mp4",
        "A.mp4",
        "a.mp4",
    ],
)
def test_any_name_is_one_of_its_own(run, folder, tmp_path, name):
    (folder / name).write_bytes((folder / "short.mp4").read_bytes())
    line = {"video": name, "meta_caption": "M.", "captions": []}
    run("--videos", folder, "--captions", describe(tmp_path / "c.jsonl", line), "--out", tmp_path / "out")
    assert names_of(tmp_path / "out") == [f"{name}@0.0000"]
    assert Shards(tmp_path / "out").record(0).source["video"] == name


@pytest.mark.parametrize(
    "there, asked", [("e\u0301.mp4", "\xe9.mp4"), ("\xe9.mp4", "e\u0301.mp4"), ("A.mp4", "a.mp4")]
)
def test_a_name_that_only_looks_the_same_is_pointed_out(run, folder, tmp_path, there, asked):
    (folder / there).write_bytes((folder / "short.mp4").read_bytes())
    captions = describe(tmp_path / "c.jsonl", {"video": asked, "meta_caption": "M.", "captions": []})
    with pytest.raises(ValueError, match="under just this name") as caught:
        run("--videos", folder, "--captions", captions, "--out", tmp_path / "out")
    assert ascii(there) in str(caught.value) and ascii(asked) in str(caught.value)


FULL_DISK = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit is an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
del sys.argv[0]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])  # as Python does when it starts a script
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("most", [100, 3000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(folder, tmp_path, most):
    """The limit on a file's size stands for the disk's: met in the shard, in its index or beside it."""
    captions = describe(tmp_path / "c.jsonl", {"video": "long.mp4", "meta_caption": "M.", "captions": []})
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "to").mkdir()
    tool = str(ROOT / "tools/make_shards.py")
    command = [sys.executable, "-c", FULL_DISK, str(most), tool, "--config", tmp_path / "config.yaml"]
    command += ["--videos", folder, "--captions", captions, "--out", tmp_path / "to" / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 2 and not list((tmp_path / "to").iterdir()), done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "out: cannot be written (File too large)" in line
