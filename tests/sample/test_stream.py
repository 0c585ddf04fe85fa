"""One video as it is made: its events, words put in while it is made, branches."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch

from megatv.model.codec import Decoder
from megatv.sample import (
    ChunkStarted,
    Finished,
    FramesDecoded,
    Intervention,
    Request,
    Stream,
    TextToken,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)


def ending(stream):
    return next(e.result for e in stream if isinstance(e, Finished))


def texts(transcript):
    return [words.text for words in transcript]


@pytest.mark.parametrize(
    ("mode", "groups", "seconds", "anchored"),
    [
        ("tv2tv", 1, None, False),
        ("tv2tv", 1, 5.0, True),
        ("tv2tv", 2, 8.0, False),
        ("tv2tv", 2, 8.0, True),
        ("t2v", 1, None, False),
        ("think2v", 1, None, False),
    ],
)
@pytest.mark.parametrize("overlap", [True, False])
def test_events_are_those_of_the_video_that_generate_makes(
    make_sampler, mode, groups, seconds, anchored, overlap
):
    sampler = make_sampler(mode, groups=groups, bof_bias=0.0)
    settings = dataclasses.replace(sampler.config.sample, keep_first_frame=anchored)
    request = Request("abc", first_image=IMAGE, seed=3, seconds=seconds)
    (whole,) = sampler.generate([request], settings)
    stream = Stream(sampler, request, settings, overlap=overlap)
    events = list(stream)
    (result,) = [e.result for e in events if isinstance(e, Finished)]
    assert isinstance(events[-1], Finished) and stream.chunks == len(whole.latents)
    assert result.transcript == whole.transcript and result.plan == whole.plan
    np.testing.assert_array_equal(result.latents, whole.latents)
    np.testing.assert_array_equal(result.frames, whole.frames)
    started = [e for e in events if isinstance(e, ChunkStarted)]
    assert [e.chunk for e in started] == list(range(stream.chunks))
    assert [e.start_seconds for e in started] == stream.starts == [w.start_seconds for w in whole.transcript]
    assert tuple(e.words for e in started) == whole.transcript
    decoded = [e for e in events if isinstance(e, FramesDecoded)]
    assert [e.chunk for e in decoded] == list(range(stream.chunks))
    np.testing.assert_array_equal(np.concatenate([e.frames for e in decoded]), whole.frames)
    spoken = "".join(e.text for e in events if isinstance(e, TextToken))
    own = "".join(words.text for words in whole.transcript if words.source == "own")
    assert spoken == (whole.plan if mode == "think2v" else own) and bool(spoken) == (mode != "t2v")
    order = [(type(e), e.chunk) for e in events if not isinstance(e, TextToken | Finished)]
    for chunk in range(stream.chunks):
        shown = order.index((FramesDecoded, chunk))
        assert order.index((ChunkStarted, chunk)) < shown
        late = 2 if overlap else 1  # pictures come before anything of the next chunk, or of the one after
        assert (ChunkStarted, chunk + late) not in order[:shown]


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_words_that_come_while_the_model_speaks_replace_what_it_said(make_sampler, tokens):
    """The video is the one whose request had the words from the start: nothing said is left in the cache."""
    sampler = make_sampler(bof_bias=-20.0)
    expected = Request("abc", seed=1, interventions=(Intervention(0.3, "jj."),))
    (wanted,) = sampler.generate([expected])
    stream = Stream(sampler, Request("abc", seed=1))
    heard = (e for e in stream if isinstance(e, TextToken) and e.chunk == 2)
    for _ in range(tokens):
        next(heard)
    stream.intervene(2, "jj.")
    result = ending(stream)
    assert result.transcript == wanted.transcript and result.transcript[2].source == "forced"
    np.testing.assert_allclose(result.latents, wanted.latents, rtol=0, atol=1e-4)


def test_several_words_and_silence_in_later_windows(make_sampler):
    sampler = make_sampler(groups=2, bof_bias=-20.0)
    stream = Stream(sampler, Request("a", seconds=9.0))
    for event in stream:
        if isinstance(event, ChunkStarted) and event.chunk in (3, 28):
            stream.intervene(event.chunk + 2, "")
            stream.intervene(event.chunk + 1, "jj")
            stream.intervene(event.chunk + 1, "j")  # the last word counts
        if isinstance(event, Finished):
            said = event.result.transcript
            assert [i for i, w in enumerate(said) if w.source == "forced"] == [4, 5, 29, 30]
            assert [said[i].text for i in (4, 5, 29, 30)] == ["j", "", "j", ""]


def test_words_that_cannot_be_said_are_refused_and_change_nothing(make_sampler):
    sampler = make_sampler()
    stream = Stream(sampler, Request("abc", first_image=IMAGE, seed=2))
    (alone,) = sampler.generate([stream.request])
    next(e for e in stream if isinstance(e, ChunkStarted) and e.chunk == 3)
    for chunk, text, message in [
        (3, "j", "too late, it is drawn already"),
        (0, "j", "too late, it is drawn already"),
        (-1, "j", "choose one of the chunks 0 to 12"),
        (13, "j", "choose one of the chunks 0 to 12"),
        (5, "j" * 200, "take 201 tokens, and 90 are left"),
    ]:
        with pytest.raises(ValueError, match=message):
            stream.intervene(chunk, text)
    result = ending(stream)
    assert result.transcript == alone.transcript
    with pytest.raises(ValueError, match="no words to change"):
        Stream(make_sampler("t2v"), Request("a")).intervene(3, "j")
    planned = Stream(make_sampler("think2v"), Request("a"))
    planned.intervene(3, "jj")
    next(e for e in planned if isinstance(e, ChunkStarted))
    with pytest.raises(ValueError, match="whole plan is said already"):
        planned.intervene(5, "j")
    result = ending(planned)
    assert texts(result.transcript)[3] == "jj" and "jj" in result.plan.split("\n")


@pytest.mark.parametrize(("groups", "chunk"), [(1, 5), (1, 15), (2, 20)])
def test_a_branch_repeats_what_was_and_goes_its_own_way(make_sampler, groups, chunk):
    sampler = make_sampler(groups=groups, bof_bias=0.0)
    request = Request("abc", first_image=IMAGE, seed=4, seconds=7.0)
    settings = dataclasses.replace(sampler.config.sample, keep_first_frame=groups == 2)
    stream = Stream(sampler, request, settings)
    stream.intervene(3, "ab.")
    first = ending(stream)
    for text, seed in ((None, None), ("jj.", None), (None, 99)):
        branch = stream.branch(chunk, text, seed)
        events = list(branch)
        result = events[-1].result
        assert result.transcript[:chunk] == first.transcript[:chunk]
        np.testing.assert_array_equal(result.latents[:chunk], first.latents[:chunk])
        cut = sum(len(e.frames) for e in events if isinstance(e, FramesDecoded) and e.chunk < chunk)
        np.testing.assert_array_equal(result.frames[:cut], first.frames[:cut])
        if text is None and seed is None:
            assert result.transcript == first.transcript
            np.testing.assert_allclose(result.latents, first.latents, rtol=0, atol=1e-4)
        else:
            assert np.abs(result.latents[chunk:] - first.latents[chunk:]).max() > 1e-3
        if text is not None:
            assert (result.transcript[chunk].text, result.transcript[chunk].source) == (text, "forced")
    with pytest.raises(ValueError, match="choose one from 0 to"):
        stream.branch(-1)
    fresh = Stream(sampler, request)
    with pytest.raises(ValueError, match="cannot branch at chunk 5: choose one from 0 to 0"):
        fresh.branch(5)


def test_recalled_chunks_are_not_solved_again(make_sampler, monkeypatch):
    sampler = make_sampler()
    stream = Stream(sampler, Request("abc"))
    list(itertools.takewhile(lambda e: not (isinstance(e, FramesDecoded) and e.chunk == 6), stream))
    times, solve = [], sampler.model.chunk_step

    def chunk_step(x, t, positions, cache):
        times.append(t.item())
        return solve(x, t, positions, cache)

    monkeypatch.setattr(sampler.model, "chunk_step", chunk_step)
    branch = stream.branch(6, "jj")
    next(e for e in branch if isinstance(e, ChunkStarted) and e.chunk == 6)
    assert times == [1.0] * 6  # clean passes only


def test_closing_stops_the_work(make_sampler):
    stream = Stream(make_sampler(), Request("abc"))
    next(stream)
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize("reach", [0, 1, None])
def test_decoding_one_by_one_equals_decoding_the_whole(make_sampler, reach, monkeypatch):
    codec = make_sampler().codec
    monkeypatch.setattr(type(codec), "reach", reach)
    latents = torch.randn(2, 30, 16, 2, 4, generator=torch.Generator().manual_seed(0))
    decoder = Decoder(codec)
    pieces = [decoder.push(latents[:, i]) for i in range(30)]
    assert [p.shape[1] for p in pieces] == [4 if i % 13 else 1 for i in range(30)]
    torch.testing.assert_close(torch.cat(pieces, 1), codec.decode(latents), rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [3, 6])
def test_a_branch_at_forced_words_speaks_its_own(make_sampler, chunk):
    """Words that were put in before the branch stay; those of its own chunk are what it is to do without."""
    sampler = make_sampler(bof_bias=-20.0)
    stream = Stream(sampler, Request("abc", seed=4, interventions=(Intervention(0.5, "jj."),)))
    stream.intervene(6, "ii.")
    first = ending(stream)
    forced = [i for i, words in enumerate(first.transcript) if words.source == "forced"]
    assert forced == [3, 6]
    branch = ending(stream.branch(chunk))
    assert branch.transcript[:chunk] == first.transcript[:chunk]
    own = branch.transcript[chunk]
    assert own.source == "own" and own.text not in ("", first.transcript[chunk].text)
    assert [i for i, words in enumerate(branch.transcript) if words.source == "forced"] == [
        i for i in forced if i < chunk
    ]


def test_words_put_in_share_one_budget_to_the_last_token(make_sampler):
    """90 tokens, and each text takes its letters and one more."""
    stream = Stream(make_sampler(text_rows=90), Request("abc"))
    with pytest.raises(ValueError, match="take 91 tokens, and 90 are left"):
        stream.intervene(2, "j" * 90)
    stream.intervene(2, "j" * 49)
    with pytest.raises(ValueError, match="take 41 tokens, and 40 are left"):
        stream.intervene(3, "j" * 40)
    stream.intervene(3, "j" * 39)
    with pytest.raises(ValueError, match="take 2 tokens, and 0 are left"):
        stream.intervene(4, "j")


@pytest.mark.parametrize("seconds", [3.0, 9.0])
def test_words_of_a_branch_that_are_too_long_are_told_how_long_they_may_be(make_sampler, seconds):
    stream = Stream(make_sampler(groups=2 if seconds > 6 else 1), Request("abc", seconds=seconds))
    next(e for e in stream if isinstance(e, ChunkStarted) and e.chunk == 6)
    with pytest.raises(ValueError, match="words for chunk 5: they take 201 tokens") as error:
        stream.branch(5, "j" * 200)
    left = int(re.search(r"and (\d+) are left for yours; shorten them", str(error.value))[1])
    with pytest.raises(ValueError, match=f"they take {left + 1} tokens, and {left} are left"):
        stream.branch(5, "j" * left)
    stream.branch(5, "j" * (left - 1))
