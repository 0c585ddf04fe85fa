"""What the sampler promises a caller: independence of the batch, forced words, given chunks, long videos."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from megatv.sample import Intervention, Request
from megatv.sample.context import Context
from megatv.sample.timeline import chunk_starts, plan_windows

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (16, 32, 3), np.uint8)
LATENTS = RNG.standard_normal((3, 16, 2, 4), np.float32)


def said(result):
    return [words.text for words in result.transcript]


def test_a_request_does_not_depend_on_its_batch(make_sampler):
    sampler = make_sampler(groups=2)
    requests = [
        Request("abc", seed=5, seconds=7.0),
        Request("", first_image=IMAGE, seed=6),
        Request("abc. def", first_latents=LATENTS, seed=7, interventions=(Intervention(1.0, "jj"),)),
    ]
    for request, together in zip(requests, sampler.generate(requests), strict=True):
        (alone,) = sampler.generate([request])
        assert together.transcript == alone.transcript
        np.testing.assert_allclose(together.latents, alone.latents, rtol=0, atol=1e-4)
        assert together.frames.shape == alone.frames.shape


def test_seed_decides_and_repeats(make_sampler):
    sampler = make_sampler()
    first, again, other = (sampler.generate([Request("abc", seed=seed)])[0] for seed in (1, 1, 2))
    assert np.array_equal(first.latents, again.latents) and first.transcript == again.transcript
    assert np.abs(first.latents - other.latents).max() > 0.1


def test_forced_words_equal_the_same_words_sampled(make_sampler):
    """Forcing what the model said anyway, prefilled in one pass, gives the same video."""
    sampler = make_sampler()
    (own,) = sampler.generate([Request("abc")])
    assert sum(map(bool, said(own))) >= 3
    spoken = tuple(Intervention(words.start_seconds, words.text) for words in own.transcript)
    (forced,) = sampler.generate([Request("abc", interventions=spoken)])
    assert said(forced) == said(own)
    assert {words.source for words in forced.transcript} == {"forced"}
    np.testing.assert_allclose(forced.latents, own.latents, rtol=0, atol=1e-4)


def test_intervention_changes_its_chunk_and_nothing_before(make_sampler):
    sampler = make_sampler()
    changed, alone = sampler.generate(
        [Request("abc", interventions=(Intervention(0.8125, "abba."),)), Request("abc")]
    )
    assert [w.source for w in changed.transcript[:6]] == ["own"] * 4 + ["forced", "own"]
    assert said(changed)[4] == "abba." and said(changed)[:4] == said(alone)[:4]
    np.testing.assert_allclose(changed.latents[:4], alone.latents[:4], rtol=0, atol=1e-5)
    assert np.abs(changed.latents[4] - alone.latents[4]).max() > 1e-3


@pytest.mark.parametrize(
    ("seconds", "chunk"), [(0.0, 1), (0.0625, 1), (0.07, 1), (0.1, 2), (0.8125, 4), (0.81, 4), (0.85, 5)]
)
def test_intervention_falls_on_the_first_chunk_from_its_time_on(make_sampler, seconds, chunk):
    request = Request("abc", first_image=IMAGE, interventions=(Intervention(seconds, "jj"),))
    (result,) = make_sampler().generate([request])
    assert [i for i, w in enumerate(result.transcript) if w.source == "forced"] == [chunk]


def test_empty_intervention_silences_a_chunk(make_sampler):
    sampler = make_sampler(bof_bias=-2.0)
    (result,) = sampler.generate([Request("abc", interventions=(Intervention(0.5625, ""),))])
    assert next(w.source for w in result.transcript if not w.text) == "forced"


def test_given_chunks_stay_and_the_model_says_their_words(make_sampler):
    sampler = make_sampler()
    image, latents = sampler.generate([Request("a", first_image=IMAGE), Request("a", first_latents=LATENTS)])
    assert [w.given for w in image.transcript[:2]] == [True, False]
    assert [w.given for w in latents.transcript[:4]] == [True] * 3 + [False]
    assert {w.source for w in image.transcript + latents.transcript} == {"own"}
    assert any(said(latents)[:3])
    assert np.array_equal(latents.latents[:3], LATENTS)
    expected = sampler.codec.decode(sampler.codec.encode(torch.from_numpy(IMAGE)[None, None]))[0, 0]
    np.testing.assert_allclose(image.frames[0].astype(int), expected.numpy().astype(int), atol=1)


def test_t2v_says_nothing_and_think2v_thinks_first(make_sampler):
    (silent,) = make_sampler("t2v", bof_bias=-5.0).generate([Request("abc")])
    assert said(silent) == [""] * 13 and silent.text_tokens == 0
    sampler = make_sampler("think2v", bof_bias=-0.5)
    (plan,) = sampler.generate([Request("abc", seed=3)])
    assert plan.text_tokens == len(plan.plan) > 0
    lines = plan.plan.split("\n")
    assert said(plan) == (lines + [""] * 13)[:13]


def test_think2v_intervention_replaces_its_line_of_the_plan(make_sampler):
    sampler = make_sampler("think2v", bof_bias=-2.0)
    request = Request("abc", seed=4)
    (own,) = sampler.generate([request])
    lines = own.plan.split("\n")
    assert len(lines) >= 4
    (changed,) = sampler.generate([dataclasses.replace(request, interventions=(Intervention(0.3, "jj"),))])
    assert changed.transcript[2].source == "forced"
    assert changed.plan.split("\n")[2] == "jj"
    assert changed.plan.split("\n")[:2] == lines[:2]


def test_think2v_keeps_its_lines_in_the_next_window(make_sampler):
    sampler = make_sampler("think2v", groups=2, text_rows=200, bof_bias=-20.0, newline_bias=2.5)
    request = Request("abc", seconds=9.0, interventions=(Intervention(4.2, "jj"), Intervention(7.0, "jjj")))
    (result,) = sampler.generate([request])
    plan = result.plan.split("\n")
    assert len(plan) > len(said(result)) > 26
    assert said(result) == plan[: len(said(result))]
    assert [words for words, w in zip(plan, result.transcript, strict=False) if w.source == "forced"] == [
        "jj",
        "jjj",
    ]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_plan_of_frames_has_as_many_lines_for_a_chunk_as_it_has_frames(make_sampler, groups):
    """Chunks 2 and 30: in the first window, and in a later one."""
    sampler = make_sampler(
        "think2v", groups, text_rows=700, bof_bias=-20.0, newline_bias=2.5, think2v="frame_actions"
    )
    request = Request("abc", seconds=8.0, seed=1)
    (own,) = sampler.generate([request])
    starts = [round(words.start_seconds * 16) for words in own.transcript]
    chosen = (Intervention(starts[2] / 16, "jj"), Intervention(starts[30] / 16, "a\nb\nc\nd"))
    (changed,) = sampler.generate([dataclasses.replace(request, interventions=chosen)])
    frames = [*starts, starts[-1] + 4]
    for result in (own, changed):
        lines = result.plan.split("\n")
        assert said(result) == ["\n".join(lines[start:end]) for start, end in pairwise(frames)]
    assert said(changed)[:2] == said(own)[:2]
    assert said(changed)[2] == "jj\njj\njj\njj" and said(changed)[30] == "a\nb\nc\nd"
    two = dataclasses.replace(request, interventions=(Intervention(starts[2] / 16, "a\nb"),))
    with pytest.raises(ValueError, match="chunk 2: 2 lines, but this model plans 4"):
        sampler.generate([two])


def test_text_budget_ends_a_model_that_never_stops(make_sampler):
    sampler = make_sampler(bof_bias=-20.0, groups=2, text_rows=150)
    (result,) = sampler.generate([Request("abc", seconds=14.0, interventions=(Intervention(7.0, "j" * 30),))])
    assert result.transcript[0].cut and len(said(result)[0]) > len(said(result)[1]) > 0
    assert all(words.cut or words.source == "forced" or not words.text for words in result.transcript)
    for window in plan_windows(len(result.transcript), 2):
        first = window.first - window.kept
        own = [w.text for w in result.transcript[first : first + window.end] if w.source == "own"]
        rows = len("".join(own)) + 2 * window.end + 1 + len("abc\n")
        assert rows <= sampler.config.text_rows_per_example


def test_end_of_sequence_ends_one_video_only(make_sampler):
    sampler = make_sampler(eos=True)
    results = sampler.generate([Request("abc", seed=seed) for seed in range(32)])
    ended = [result for result in results if result.ended]
    assert ended and len(ended) < 32
    for result in results:
        assert len(result.latents) == len(result.transcript)
        assert result.ended == (len(result.latents) < 13)
    seed = min(range(32), key=lambda seed: len(results[seed].latents))
    (alone,) = sampler.generate([Request("abc", seed=seed)])
    assert alone.transcript == results[seed].transcript
    assert alone.frames.shape == results[seed].frames.shape


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_longer_video_begins_like_the_shorter_one(make_sampler, groups):
    sampler = make_sampler(groups=groups, text_rows=200)
    long, short = (sampler.generate([Request("abc", seconds=s)])[0] for s in (groups * 3 + 4.0, 2.0))
    count = len(short.latents)
    assert long.transcript[:count] == short.transcript
    np.testing.assert_allclose(long.latents[:count], short.latents, rtol=0, atol=1e-4)
    assert len(long.frames) >= (groups * 3 + 4) * 16
    starts = chunk_starts(plan_windows(len(long.latents), groups))
    assert [w.start_seconds for w in long.transcript] == starts


def test_one_group_goes_on_from_its_last_frame(make_sampler):
    """The second window of a one-group model is conditioned on the first one's last frame alone."""
    sampler = make_sampler()
    (long,) = sampler.generate([Request("abc", seconds=5.0, seed=3)])
    assert len(long.latents) == 13 + 8 and len(long.frames) == 49 + 32
    (again,) = sampler.generate([Request("abc", first_image=long.frames[48], seed=3)])
    assert again.transcript[1].start_seconds == long.transcript[13].start_seconds - 3.0
    recoded = sampler.stats.normalize(sampler.codec.encode(torch.from_numpy(long.frames[48])[None, None]))
    np.testing.assert_allclose(again.latents[0], recoded[0, 0].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mode", "groups"), [("tv2tv", 2), ("think2v", 1)])
def test_what_later_windows_begin_with_changes_only_them(make_sampler, monkeypatch, groups, mode):
    """Also where a model that never stops and its user take all the room that there is for words."""
    sampler = make_sampler(mode, groups=groups, text_rows=200, bof_bias=-20.0, newline_bias=2.5)
    first, contexts, empty = 13 * groups, [], Context.empty

    def remember(*args):
        contexts.append(empty(*args))
        return contexts[-1]

    monkeypatch.setattr(Context, "empty", remember)
    late = tuple(Intervention(3.1 * groups + 0.3 * i, "j" * 12) for i in range(3))
    request = Request("abc", first_image=IMAGE, seconds=3.1 * groups + 1, interventions=late)
    base = sampler.config.sample
    plain, anchored, bare = (
        sampler.generate([request], settings)[0]
        for settings in (
            base,
            dataclasses.replace(base, keep_first_frame=True),
            dataclasses.replace(base, keep_prompt=False),
        )
    )
    assert all(int(context.cache.lengths.max()) <= context.cache.slots for context in contexts)
    for changed in (anchored, bare):
        np.testing.assert_array_equal(changed.latents[:first], plain.latents[:first])
        assert np.abs(changed.latents[first:] - plain.latents[first:]).max() > 1e-3
        assert changed.transcript[:first] == plain.transcript[:first]
        assert [w.source for w in changed.transcript] == [w.source for w in plain.transcript]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("abc", seconds=0.0), "longer than 0"),
        (Request("abc", seconds=float("nan")), "longer than 0"),
        (Request("a" * 200), "shorten the prompt"),
        (Request("abc", interventions=(Intervention(3.5, "jj"),)), "outside the video"),
        (Request("abc", interventions=(Intervention(-1.0, "jj"),)), "outside the video"),
        (Request("abc", interventions=(Intervention(1.0, "j" * 80),)), "shorten them"),
        (Request("abc", interventions=(Intervention(1.0, "a"), Intervention(1.05, "b"))), "both fall"),
        (Request("abc", interventions=(Intervention(1.0, "jj"),), mode="t2v"), "no words to change"),
        (Request("abc", first_image=np.zeros((8, 8, 3), np.uint8)), "resize"),
        (Request("abc", first_latents=np.zeros((14, 16, 2, 4), np.float32)), "1 to 13"),
    ],
)
def test_refusals(make_sampler, request_, message):
    with pytest.raises(ValueError, match=message):
        make_sampler().generate([Request("abc"), request_])


def test_a_given_chunk_brings_its_words(make_sampler):
    """Making a chunk under forced words, then giving that chunk and those words, goes on the same way."""
    sampler = make_sampler()
    (made,) = sampler.generate([Request("abc", interventions=(Intervention(0.0, "abba."),), mode="tv2tv")])
    (given,) = sampler.generate([Request("abc", first_latents=made.latents[:1], given_words=("abba.",))])
    bare = Request("abc", first_latents=made.latents[:1], given_words=("",))
    (silent,) = sampler.generate([bare])
    assert said(given) == said(made) != said(silent)
    assert [w.source for w in given.transcript[:2]] == ["given", "own"] and silent.transcript[0].text == ""
    np.testing.assert_allclose(given.latents, made.latents, rtol=0, atol=1e-4)


def test_words_of_more_chunks_than_are_given_are_refused(make_sampler):
    with pytest.raises(ValueError, match="words of 2 chunks are given, but only 1 chunks"):
        make_sampler().generate([Request("abc", first_image=IMAGE, given_words=("a.", "b."))])


@pytest.mark.parametrize(("groups", "seconds"), [(1, 31.0), (2, 62.0)])
@pytest.mark.slow
def test_ten_times_the_trained_length(make_sampler, groups, seconds):
    """Windows slide for as long as is asked; every chunk has its words, its time and its frames."""
    sampler = make_sampler(groups=groups, bof_bias=1.5)
    late = Intervention(seconds - 2, "jj.")
    (long,) = sampler.generate([Request("abc", first_image=IMAGE, seconds=seconds, interventions=(late,))])
    assert len(long.frames) >= 16 * seconds > len(long.frames) - 5
    assert len(long.latents) == len(long.transcript) >= 10 * 12 * groups
    windows = plan_windows(len(long.latents), groups)
    assert [words.start_seconds for words in long.transcript] == chunk_starts(windows)
    assert next(w.start_seconds for w in long.transcript if w.source == "forced") >= late.seconds
    assert np.isfinite(long.latents).all()


@pytest.mark.parametrize("interventions", [0, 1, 3])
def test_words_may_take_the_whole_budget_and_no_token_more(make_sampler, interventions):
    """90 text rows: BOS, BOF and EOF of 13 chunks, EOS, a token a letter, and the prompt's newline."""
    sampler = make_sampler(text_rows=90)
    room = 90 - 1 - 2 * 13 - 1

    def request(letters):
        if not interventions:
            return Request("a" * (letters - 1))
        lengths = [letters // interventions] * (interventions - 1)
        lengths.append(letters - sum(lengths))
        return Request(
            "", interventions=tuple(Intervention(1.0 + i * 0.5, "j" * n) for i, n in enumerate(lengths))
        )

    sampler.draft(request(room), sampler.config.sample)
    message = "take 1 tokens more" if interventions else f"takes {room + 1} tokens, .* have room for {room}"
    with pytest.raises(ValueError, match=message):
        sampler.draft(request(room + 1), sampler.config.sample)


@pytest.mark.parametrize("seconds", [0.01, 0.4])
def test_a_video_is_no_shorter_than_what_is_given(make_sampler, seconds):
    """Three chunks are 9 frames, whatever less was asked for."""
    (result,) = make_sampler().generate([Request("abc", first_latents=LATENTS, seconds=seconds)])
    np.testing.assert_array_equal(result.latents, LATENTS)
    assert len(result.transcript) == 3 and result.frames.shape[0] == 9


def test_a_model_that_never_stops_fills_the_budget_to_its_last_row(make_sampler):
    """Each chunk gets half of what is left and the last one all of it: 62 letters in 90 text rows."""
    (result,) = make_sampler(bof_bias=-20.0, text_rows=90).generate([Request("")])
    assert [len(words.text) for words in result.transcript] == [31, 15, 8, 4, 2, 1, 0, 0, 0, 0, 0, 0, 1]
