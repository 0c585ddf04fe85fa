"""Crops of stored clips: what is equally likely, which words come with them, and what they depend on."""

import collections
import copy
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatv.config import CodecConfig, config_from_dict
from megatv.data import video_frames
from megatv.data.crop import (
    crop_words,
    cut_clips,
    draw_window,
    longest_clip,
    overlap_of,
    wordiest_crop,
)
from megatv.data.format import stores_whole_clips
from megatv.data.loader import Loader, window_of
from megatv.data.noise import Draws
from megatv.data.shards import DatasetInfo, Shards, ShardWriter
from megatv.data.split import split
from megatv.data.stats import LatentStats
from megatv.data.tokenizer import load_tokenizer
from megatv.data.video import encode_video, whole_latents
from megatv.model.codec import clip_encoder, load_codec
from megatv.types import Caption, Example

LENGTH = 49
TREE = yaml.safe_load("""
run: {dir: unused, steps: 10, seed: 3}
video: {width: 16, height: 16, groups: 1}
codec: {kind: dct}
tokenizer: {path: toy_world}
data: {train: unused, crop: starts}
sequence: {mode: tv2tv, context_tokens: 252, examples_per_row: 2, text_dropout: 0.3, clean_flip: 0.5}
model: {layers: 1, width: 8, ffn: 8, heads: 1, kv_heads: 1, vocab: 512, tied_embeddings: false}
batch: {examples: 8}
checkpoint: {every: 1}
""")
FRAMES = [131, 96, 49, 30, 230, 140, 75]
TOKENIZER = load_tokenizer("toy_world")
STATS = LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32))


def make_config(**sections):
    tree = copy.deepcopy(TREE)
    for section, values in sections.items():
        tree[section] |= values
    return config_from_dict(tree)


def pictures(frames, seed=0):
    """Frames [F, 16, 16, 3], each with a colour of its own."""
    rng = np.random.default_rng(seed)
    return np.broadcast_to(rng.integers(0, 256, (frames, 1, 1, 3), dtype=np.uint8), (frames, 16, 16, 3))


def captions_of(frames):
    return tuple(Caption(float(second), f"(w). {second}, 0, 0, 0.") for second in range(frames // 16))


def write_clips(path, counts=FRAMES, captions=captions_of, rule="starts"):
    info = DatasetInfo(16, 16, 1, {"kind": "dct"}, stores="clips", longest_clip=longest_clip(LENGTH, rule))
    with ShardWriter(path, info) as writer:
        for index, frames in enumerate(counts):
            writer.write(
                f"clip-{index}",
                encode_video(pictures(frames, index), crf=12, key_frame_every=32),
                captions=captions(frames),
                meta_caption="m",
                detailed_caption="",
                valid_latents=whole_latents(min(frames, LENGTH)),
                ends_clip=True,
                source={"video": f"clip-{index}"},
                frames=frames,
            )
        writer.finish(STATS)
    return path


def open_clips(path):
    return Shards(path, lambda: clip_encoder(load_codec(CodecConfig("dct"))))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return open_clips(write_clips(tmp_path_factory.mktemp("crop") / "set"))


def make(shards, dp_rank=0, dp_size=1, train=True, **sections):
    return Loader(shards, TOKENIZER, make_config(**sections), dp_rank=dp_rank, dp_size=dp_size, train=train)


def fingerprint(batches):
    rows = []
    for batch in batches:
        tensors = {**vars(batch), **vars(batch.record)}
        parts = [v.numpy().tobytes() for v in tensors.values() if isinstance(v, torch.Tensor)]
        rows.append((batch.ids, tuple(parts)))
    return rows


class At:
    """Draws that always give one place, and note how many there were."""

    def __init__(self, place):
        self.at, self.count = place, 0

    def place(self, count):
        self.count = count
        return self.at


def all_windows(frames, length, rule):
    first = At(0)
    draw_window(frames, length, rule, first)
    return [draw_window(frames, length, rule, At(place)) for place in range(max(1, first.count))]


def coverage(frames, windows):
    """In how many of the windows each frame is."""
    return np.array([sum(frame in window for window in windows) for frame in range(frames)])


class TestWhatIsEquallyLikely:
    @pytest.mark.parametrize("frames", [99, 131, 196, 260])
    def test_starts_are_and_frames_as_the_formula_says(self, frames):
        windows = all_windows(frames, 98, "starts")
        assert windows == [range(start, start + 98) for start in range(frames - 97)]
        counted = coverage(frames, windows)
        assert counted.tolist() == [min(f + 1, frames - f, 98, frames - 97) for f in range(frames)]

    @pytest.mark.parametrize("frames", [99, 131, 196, 260])
    def test_frames_are_but_for_what_fills_no_latent_near_an_end(self, frames):
        windows = all_windows(frames, 98, "frames")
        assert len(windows) == frames + 97
        counted = coverage(frames, windows)
        ends = np.array([(f < 98) + (f >= frames - 98) for f in range(frames)])
        assert (counted >= 98 - 3 * ends).all() and counted.max() == 98
        assert (counted[98 : frames - 98] == 98).all()
        for window in windows:
            assert 0 <= window.start < window.stop <= frames and window.step == 1
            assert whole_latents(len(window)) > whole_latents(len(window) - 1)  # no frame is left over

    @pytest.mark.parametrize("rule", ["starts", "frames"])
    def test_over_a_long_clip_by_chi_squared(self, rule):
        """60 s in 10,000 epochs: places by chi-squared, and every frame by its own binomial bounds."""
        frames, epochs = 960, 10_000
        windows = all_windows(frames, 98, rule)
        drawn = [draw_window(frames, 98, rule, Draws(0, epoch, "clip")) for epoch in range(epochs)]
        times, kinds = collections.Counter(drawn), collections.Counter(windows)
        observed = np.array([times[window] for window in kinds])
        expected = epochs * np.array(list(kinds.values())) / len(windows)
        freedom = len(kinds) - 1
        statistic = ((observed - expected) ** 2 / expected).sum()
        assert abs(normal_of_chi_squared(statistic, freedom)) < 5  # one in two million by chance
        seen = np.zeros(frames)
        for window in drawn:
            seen[window.start : window.stop] += 1
        share = coverage(frames, windows) / len(windows)
        deviation = (seen - epochs * share) / np.sqrt(epochs * share * (1 - share))
        assert np.abs(deviation).max() < 5.5
        if rule == "starts":  # the paper's rule is unequal at the ends, and only there
            assert (share[97:-97] == 98 / 863).all() and share[0] == 1 / 863
        else:
            assert share.min() > 0.96 * share.max()

    def test_a_short_clip_is_whole(self):
        for rule, frames in itertools.product(("starts", "frames"), (1, 40, 97, 98)):
            assert draw_window(frames, 98, rule, Draws(0, 0, "a")) == range(frames)

    def test_another_seed_epoch_or_sample_is_another_draw(self):
        def drawn(**changes):
            fields = {"seed": 0, "epoch": 0, "id": "a"} | changes
            return draw_window(10_000, 98, "starts", Draws(**fields))

        assert drawn() == drawn()
        assert len({drawn(), drawn(seed=1), drawn(epoch=1), drawn(id="b")}) == 4


def normal_of_chi_squared(statistic, freedom):
    """About standard normal where `statistic` is chi-squared (Wilson and Hilferty, 1931)."""
    part = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - part)) / math.sqrt(part)


class TestClipsOfAVideo:
    @settings(deadline=None)
    @given(frames=st.integers(1, 2000), off=st.integers(-30, 30), rule=st.sampled_from(["starts", "frames"]))
    def test_every_start_or_frame_lies_in_one_clip(self, frames, off, rule):
        """With a wrong number of frames in the header, too."""
        numbers = (np.full((1, 1, 3), k) for k in range(frames))
        pieces = list(cut_clips(numbers, max(0, frames + off), 98, rule))
        assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
        found = [piece[:, 0, 0, 0].tolist() for piece, _ in pieces]
        first = 0
        for piece in found:
            assert piece == list(range(first, first + len(piece))) and len(piece) <= longest_clip(98, rule)
            assert len(piece) >= 49 or len(found) == 1
            first += len(piece) - overlap_of(98, rule)
        assert found[-1][-1] == frames - 1
        if rule == "starts" and frames >= 98:
            starts = [start for piece in found for start in range(piece[0], piece[-1] - 96)]
            assert starts == list(range(frames - 97))

    @pytest.mark.parametrize("frames", [960, 1600, 9600])
    @pytest.mark.parametrize("rule", ["starts", "frames"])
    def test_a_long_video_gives_clips_with_equally_many_places(self, frames, rule):
        numbers = (np.full((1, 1, 3), k) for k in range(frames))
        clips = [len(clip) for clip, _ in cut_clips(numbers, frames, 98, rule)]
        places = [frames - overlap_of(98, rule) for frames in clips]
        assert len(clips) > 3 and max(places) - min(places) <= 1

    def test_no_frames_are_refused(self):
        with pytest.raises(ValueError, match="no frames from the start on"):
            list(cut_clips(iter(()), 100, 98, "starts"))

    def test_a_header_that_lies_makes_no_more_clips_than_fit(self):
        numbers = (np.full((1, 1, 3), k) for k in range(5000))
        clips = [len(clip) for clip, _ in cut_clips(numbers, 1, 98, "starts")]
        assert len(clips) < 2 * 5000 / 159 + 1


class TestWords:
    CLIP = Example(
        "a",
        np.empty(0),
        (Caption(0.0, "one"), Caption(2.5, "two"), Caption(7.0, "three")),
        "m",
        "d",
        13,
        True,
    )

    @pytest.mark.parametrize(
        ("window", "captions", "ends"),
        [
            (range(0, 98), [(0.0, "one"), (2.5, "two")], False),
            (range(32, 130), [(0.0, "one"), (0.5, "two"), (5.0, "three")], False),
            (range(33, 131), [(0.0, "one"), (0.4375, "two"), (4.9375, "three")], True),
            (range(40, 131), [(0.0, "two"), (4.5, "three")], True),
            (range(113, 131), [(0.0, "three")], True),
        ],
    )
    def test_the_caption_in_force_is_carried_and_only_the_true_end_ends(self, window, captions, ends):
        crop = crop_words(self.CLIP, 131, window)
        assert [(c.start_seconds, c.text) for c in crop.captions] == captions and crop.ends_clip == ends
        assert crop.valid_latents == whole_latents(len(window))
        assert (crop.meta_caption, crop.detailed_caption, crop.id) == ("m", "d", "a")
        assert not crop_words(dataclasses.replace(self.CLIP, ends_clip=False), 131, window).ends_clip

    @given(
        times=st.lists(st.integers(0, 270), max_size=6).map(sorted),
        lengths=st.lists(st.integers(1, 40), min_size=6, max_size=6),
        rule=st.sampled_from(["starts", "frames"]),
    )
    def test_no_crop_has_more_words_than_rows_are_filled_by(self, times, lengths, rule):
        texts = zip(times, lengths, strict=False)
        words = tuple(Caption(half / 32, "x" * length) for half, length in texts)
        clip = dataclasses.replace(self.CLIP, captions=words)

        def size(crop):
            return sum(len(caption.text) for caption in crop.captions)

        for frames in (131, 60):
            most = size(wordiest_crop(clip, frames, 98))
            sizes = [size(crop_words(clip, frames, window)) for window in all_windows(frames, 98, rule)]
            assert max(sizes) <= most and (rule == "frames" or max(sizes) == most)


class TestStored:
    @pytest.mark.parametrize("rule", ["starts", "frames"])
    def test_a_crop_is_the_frames_and_words_of_its_window(self, clips, rule):
        """The same pixels as of the whole clip, though decoding starts in the middle; the last one padded."""
        config, encode, met = make_config(data={"crop": rule}), load_codec(CodecConfig("dct")).encode, set()
        whole = [clips.frames(clips.record(index)) for index in range(len(FRAMES))]
        for index, epoch in itertools.product(range(len(FRAMES)), range(6)):
            record = clips.record(index)
            window = window_of(clips, record, config, epoch)
            assert len(window) <= LENGTH and (rule == "frames" or len(window) == min(LENGTH, FRAMES[index]))
            example = clips.example(record, window)
            frames = whole[index][window.start : window.stop]
            assert torch.equal(clips.frames(record, window), frames) and len(frames) == len(window)
            padded = torch.cat([frames, frames[-1:].expand(LENGTH - len(frames), -1, -1, -1)])
            expected = clips.stats.normalize(encode(padded[None])[0].numpy())
            np.testing.assert_array_equal(example.latents, expected)
            assert example.ends_clip == (window.stop == FRAMES[index])
            assert example.valid_latents == whole_latents(len(window))
            met.add((index, window))
        assert len(met) > 20

    def test_only_frames_near_the_crop_are_decoded(self, tmp_path, monkeypatch):
        shards = open_clips(write_clips(tmp_path / "set", [240]))
        decoded, decode = [], video_frames.decoded

        def counted(*args):
            for frame in decode(*args):
                decoded.append(frame.pts)
                yield frame

        monkeypatch.setattr(video_frames, "decoded", counted)
        shards.frames(shards.record(0), range(180, 229))
        assert len(decoded) <= 49 + 16 + 32 + 3  # the crop, the margin of a second, a key frame's distance

    def test_lengths_are_those_of_the_largest_crop(self, clips):
        assert clips.lengths[:, 0].tolist() == [whole_latents(min(LENGTH, n)) for n in FRAMES]
        config = make_config()
        for index in range(len(FRAMES)):
            record = clips.record(index)
            for epoch in range(20):
                window = window_of(clips, record, config, epoch)
                crop = crop_words(record.example(np.empty(0)), record.frames, window)
                words = sum(len(c.text.encode()) for c in crop.captions) + len("m")
                assert words <= clips.lengths[index, 1]

    def test_the_beginning_is_what_tools_show(self, clips):
        example = clips[0]
        assert [c.start_seconds for c in example.captions] == [0, 1, 2, 3] and not example.ends_clip
        assert clips[3].valid_latents == whole_latents(30) and clips[3].ends_clip

    def test_a_split_keeps_what_can_be_cropped(self, clips, tmp_path):
        split(clips, tmp_path / "out", share=0.3, seed=0, by="video")
        found = [Shards(tmp_path / "out" / side) for side in ("train", "val")]
        records = [shards.record(index) for shards in found for index in range(len(shards))]
        assert sorted((r.id, r.frames) for r in records) == [(f"clip-{i}", n) for i, n in enumerate(FRAMES)]
        assert {shards.info.longest_clip for shards in found} == {longest_clip(LENGTH, "starts")}

    @pytest.mark.parametrize("frames", [0, -1, 10**6, True, 5.0, "5", None])
    def test_frames_that_cannot_be_are_refused(self, tmp_path, frames):
        info = DatasetInfo(16, 16, 1, {"kind": "dct"}, stores="clips", longest_clip=300)
        record = Shards(write_clips(tmp_path / "set", [60])).record(0)
        row = {key: value.encode() if isinstance(value, str) else value for key, value in
               record.to_sample(info).items()}  # fmt: skip
        meta = json.loads(row["meta"]) | {"frames": frames}
        row["meta"] = json.dumps(meta).encode()
        row["hash"] = record_hash(row, info)
        with pytest.raises(ValueError, match="`frames` must be a whole number from 1 to 300"):
            type(record).of_row(row, info)


def record_hash(row, info):
    from megatv.data import record

    return record._hash(row, info).encode()


class TestLoader:
    @pytest.mark.parametrize("rule", ["starts", "frames"])
    def test_ranks_workers_and_restarts_see_the_same_crops(self, clips, rule):
        sections = {"data": {"crop": rule}}
        whole = [fingerprint(make(clips, **sections).step(step)) for step in range(6)]
        threads = make(clips, data={"crop": rule, "workers": 3})
        assert [fingerprint(threads.step(step)) for step in range(6)] == whole
        for dp_size in (2, 4):
            for step in (0, 5):
                shares = [make(clips, rank, dp_size, **sections).step(step) for rank in range(dp_size)]
                rows = sorted(row for share in shares for row in fingerprint(share))
                assert rows == sorted(whole[step])
        for start in (1, 4):
            resumed = make(clips, **sections).iterate(start)
            assert [fingerprint(step) for step in itertools.islice(resumed, 6 - start)] == whole[start:]
            resumed.close()

    def test_epochs_crop_anew(self, clips):
        loader = make(clips, sequence={"text_dropout": 0, "clean_flip": 0})
        seen = {}
        for step in range(8):
            for batch in loader.step(step):
                words = TOKENIZER.decode([i for i in batch.text_ids.tolist() if i < TOKENIZER.bos])
                seen.setdefault(batch.ids, set()).add(words)
        assert max(map(len, seen.values())) > 1

    def test_a_crop_without_room_for_its_words_is_bad_in_its_epoch_only(self, tmp_path):
        """So a resumed run, which has not met it, goes on as the run that has."""

        def captions(frames):
            return (Caption(0.0, "a"), Caption(2.0, "(w). 0, 0, 0, 0. " * 20), Caption(3.0, "b"))

        shards = open_clips(write_clips(tmp_path / "set", [120, 49, 49, 49, 120, 49, 49, 49], captions))
        sections = {"data": {"crop": "starts", "max_bad_samples": 2}}
        through, met = make(shards, **sections), []
        steps = []
        for step in range(12):
            steps.append(fingerprint(through.step(step)))
            met += through.met(step)
        ids = [batch_ids for step in steps for batch_ids, _ in step]
        epochs = {bad.epoch for bad in met if bad.index == 0}
        assert 0 < len(epochs) < 12 and any("clip-0" in i for i in ids) and len(through.bad) <= 2
        for start in (2, 5, 8, 11):
            assert fingerprint(make(shards, **sections).step(start)) == steps[start]

    def test_held_out_rows_are_the_same_whenever_asked(self, clips):
        rows = fingerprint(make(clips, train=False).validation(4))
        assert rows == fingerprint(make(clips, train=False, run={"steps": 99}).validation(4))
        shares = [make(clips, rank, 2, train=False).validation(4) for rank in (0, 1)]
        assert sorted(row for share in shares for row in fingerprint(share)) == sorted(rows)


class TestRefusals:
    def test_whole_clips_without_a_rule(self, clips):
        with pytest.raises(
            ValueError, match=r"set: holds clips of up to \d+ frames.*set data\.crop to starts"
        ):
            make(clips, data={"crop": "none"})

    def test_a_rule_for_fixed_pieces(self, tmp_path):
        fixed = write_latents(tmp_path / "fixed", crops=None)
        with pytest.raises(ValueError, match=r"fixed: holds fixed pieces .* set data\.crop to none"):
            make(fixed)
        make(fixed, data={"crop": "none"})
        make(fixed, train=False)  # held-out examples may be fixed ones
        make(write_latents(tmp_path / "crops", crops=4))

    def test_options_that_do_not_agree(self):
        assert stores_whole_clips("starts", "clips", None) and not stores_whole_clips("none", "clips", None)
        assert not stores_whole_clips("frames", "latents", 3)
        for rule, stores, crops in (
            ("starts", "latents", None),
            ("none", "latents", 3),
            ("starts", "clips", 3),
        ):
            with pytest.raises(ValueError, match="--crops"):
                stores_whole_clips(rule, stores, crops)

    def test_lines_for_every_frame(self):
        with pytest.raises(
            ValueError, match=r"data\.crop starts moves words between chunks.*data\.crop to none"
        ):
            make_config(sequence={"mode": "think2v", "think2v": "frame_actions"})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"longest_clip": 48}, "`longest_clip` must be null or"),
            ({"longest_clip": True}, "`longest_clip` must be null or"),
            ({"longest_clip": 10**10}, "`longest_clip` must be null or"),
            ({"longest_clip": 10**8}, "more than 2 GiB"),
            ({"longest_clip": 100, "stores": "latents"}, "`longest_clip` must be null or"),
            ({"crops": 2}, "`crops` must be null or"),
            ({"crops": 0, "stores": "latents"}, "`crops` must be null or"),
        ],
    )
    def test_a_description_of_no_such_shards(self, tmp_path, change, message):
        path = tmp_path / "dataset.json"
        DatasetInfo(48, 32, 1, {"kind": "dct"}, stores="clips").save(path)
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(ValueError, match=message):
            DatasetInfo.load(path)


def write_latents(path, crops):
    info = DatasetInfo(16, 16, 1, {"kind": "dct"}, crops=crops)
    with ShardWriter(path, info) as writer:
        for index in range(4):
            latents = np.ones(info.latent_shape, np.float32)
            words = {"captions": (), "meta_caption": "m", "detailed_caption": "", "source": {}}
            writer.write(f"c{index}", latents, **words, valid_latents=13, ends_clip=True)
        writer.finish(STATS)
    return Shards(path)


def test_shards_of_version_2_hold_examples_as_before(tmp_path):
    path = write_latents(tmp_path / "set", crops=None).path
    tree = json.loads((path / "dataset.json").read_text())
    old = {key: value for key, value in tree.items() if key not in ("longest_clip", "crops")} | {"version": 2}
    (path / "dataset.json").write_text(json.dumps(old))
    info = Shards(path).info
    assert (info.longest_clip, info.crops, info.version) == (None, None, 2)
