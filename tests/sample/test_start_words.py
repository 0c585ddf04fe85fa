"""Words before given chunks: the model says all of them (TV2TV figure 3); full contexts."""

import dataclasses

import numpy as np
import pytest
import torch

from megatv.data.tokenizer import load_tokenizer
from megatv.sample import ChunkStarted, Finished, Intervention, Request, Stream, TextToken

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (16, 32, 3), np.uint8)
LATENTS = RNG.standard_normal((3, 16, 2, 4), np.float32)
WORDS_OF_3 = Request("abc", first_latents=LATENTS)


def said(result):
    return [words.text for words in result.transcript]


def sources(result, chunks):
    return [words.source for words in result.transcript[:chunks]]


def ending(stream):
    return next(e.result for e in stream if isinstance(e, Finished))


@pytest.mark.parametrize("cfg", [1.0, 2.5])
@pytest.mark.parametrize("given", [1, 5])
def test_given_chunks_change_nothing_that_the_model_says_or_draws(make_sampler, given, cfg):
    """A video's first chunks, given back with its seed, get its words; the rest is the same video."""
    sampler = make_sampler(bof_bias=-1.0)
    settings = dataclasses.replace(sampler.config.sample, cfg=cfg)
    (made,) = sampler.generate([Request("abc", seed=3)], settings)
    assert all(said(made)[:given])
    (again,) = sampler.generate([Request("abc", first_latents=made.latents[:given], seed=3)], settings)
    assert said(again) == said(made)
    assert [words.given for words in again.transcript] == [True] * given + [False] * (13 - given)
    assert set(sources(again, 13)) == {"own"}
    np.testing.assert_allclose(again.latents, made.latents, rtol=0, atol=1e-4)


def test_the_words_of_a_picture_are_said_from_the_prompt_alone(make_sampler):
    """text_0 stands before the picture: another picture has the same, another prompt or seed another."""
    sampler = make_sampler(bof_bias=-2.0)
    requests = [
        Request("abc", first_image=IMAGE, seed=1),
        Request("abc", first_image=255 - IMAGE, seed=1),
        Request("cba", first_image=IMAGE, seed=1),
        Request("abc", first_image=IMAGE, seed=2),
    ]
    first, other_picture, *others = sampler.generate(requests)
    assert said(first)[0] == said(other_picture)[0] != "" and said(first) != said(other_picture)
    assert said(first)[0] not in {said(other)[0] for other in others}


def test_words_are_yours_the_models_or_nobodys_chunk_by_chunk(make_sampler):
    sampler = make_sampler(bof_bias=-1.0)
    mixed = dataclasses.replace(WORDS_OF_3, given_words=("ab.", None, ""), seed=2)
    silent = dataclasses.replace(WORDS_OF_3, given_words=("", "", ""))
    own, mine, none = sampler.generate([WORDS_OF_3, mixed, silent])
    assert all(said(own)[:3]) and sources(own, 4) == ["own"] * 4
    assert said(mine)[0] == "ab." and said(mine)[1] and said(mine)[2] == ""
    assert sources(mine, 4) == ["given", "own", "given", "own"]
    assert said(none)[:3] == [""] * 3 and sources(none, 4) == ["given"] * 3 + ["own"] and said(none)[3]
    for request, together in ((WORDS_OF_3, own), (mixed, mine), (silent, none)):
        (alone,) = sampler.generate([request])
        assert alone.transcript == together.transcript
        np.testing.assert_allclose(alone.latents, together.latents, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(alone.latents[:3], LATENTS)


@pytest.mark.parametrize("grammar", ["none", "actions"])
def test_no_video_ends_before_a_chunk_that_is_given(make_sampler, grammar):
    tokenizer = load_tokenizer("toy_world") if grammar == "actions" else None
    sampler = make_sampler(eos=True, bof_bias=-20.0, tokenizer=tokenizer, text_rows=300)
    settings = dataclasses.replace(sampler.config.sample, grammar=grammar, steps=1)
    seeds = range(12)
    given = sampler.generate([dataclasses.replace(WORDS_OF_3, seed=seed) for seed in seeds], settings)
    assert all(len(result.transcript) >= 3 for result in given)
    assert any(len(result.transcript) == 3 and result.ended for result in given)
    free = sampler.generate([Request("abc", seed=seed) for seed in seeds], settings)
    assert min(len(result.transcript) for result in free) < 3


def test_a_plan_has_its_line_of_the_given_frame_and_a_silent_model_stays_silent(make_sampler):
    sampler = make_sampler("think2v", bof_bias=-20.0, newline_bias=2.5)
    request = Request("abc", first_image=IMAGE, seed=1)
    own, mine, none = sampler.generate(
        [request, *(dataclasses.replace(request, given_words=(text,)) for text in ("jj.", ""))]
    )
    lines = own.plan.split("\n")
    assert own.transcript[0].text == lines[0] and own.transcript[0].given and sources(own, 1) == ["own"]
    assert mine.plan.split("\n") == ["jj.", *lines[1:]] and sources(mine, 2) == ["given", "own"]
    assert none.plan.split("\n") == ["", *lines[1:]]
    silent = make_sampler("t2v")
    for words in ((), ("",)):
        (result,) = silent.generate([dataclasses.replace(request, given_words=words)])
        assert said(result) == [""] * 13
    with pytest.raises(ValueError, match="words for chunk 0, 'jj': a t2v model has no words to change"):
        silent.generate([dataclasses.replace(request, given_words=("jj",))])


def test_words_join_a_detailed_caption_and_replace_none_of_it(make_sampler):
    sampler = make_sampler("think2v", think2v="detailed_caption", bof_bias=-1.0)
    request = Request("abc", first_image=IMAGE, seed=1)
    told = dataclasses.replace(request, given_words=("jj.",), interventions=(Intervention(1.0, "ii."),))
    own, changed, silent = sampler.generate([request, told, dataclasses.replace(request, given_words=("",))])
    assert own.plan and changed.plan == f"{own.plan}\njj.\nii." and silent.plan == own.plan


@pytest.mark.parametrize("tokens", [0, 2])
def test_words_of_a_given_chunk_may_be_changed_while_they_are_said(make_sampler, tokens):
    sampler = make_sampler(bof_bias=-20.0)
    request = Request("abc", first_image=IMAGE, seed=1)
    (wanted,) = sampler.generate([dataclasses.replace(request, given_words=("jj.",))])
    stream = Stream(sampler, request)
    heard = (e for e in stream if isinstance(e, TextToken) and e.chunk == 0)
    for _ in range(tokens):
        next(heard)
    stream.intervene(0, "jj.")
    result = ending(stream)
    assert said(result) == said(wanted) and sources(result, 2) == ["forced", "own"]
    assert sources(wanted, 1) == ["given"]
    np.testing.assert_allclose(result.latents, wanted.latents, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["tv2tv", "think2v"])
def test_a_branch_may_begin_at_a_given_chunk(make_sampler, mode):
    sampler = make_sampler(mode, bof_bias=-1.0, newline_bias=1.0)
    stream = Stream(sampler, dataclasses.replace(WORDS_OF_3, given_words=("ab.", "ba."), seed=4))
    first = ending(stream)
    branch = ending(stream.branch(1, "jj."))
    assert said(branch)[:2] == ["ab.", "jj."] and sources(branch, 2) == ["given", "forced"]
    np.testing.assert_array_equal(branch.latents[:3], LATENTS)
    assert np.abs(branch.latents[3:] - first.latents[3:]).max() > 1e-3
    own = ending(stream.branch(1))
    assert said(own)[0] == "ab." and said(own)[1] != "ba." and sources(own, 2) == ["given", "own"]
    again = stream.branch(1, "jj.").branch(0, "j")
    started = next(e for e in again if isinstance(e, ChunkStarted))
    assert (started.words.text, started.words.source, started.words.given) == ("j", "forced", True)


def test_words_before_a_frame_share_the_budget_with_all_others(make_sampler):
    """62 letters in 90 text rows, half of what is left each time: those of the frame are the first half."""
    sampler = make_sampler(bof_bias=-20.0, text_rows=90)
    (result,) = sampler.generate([Request("", first_image=IMAGE)])
    assert [len(text) for text in said(result)] == [31, 15, 8, 4, 2, 1, 0, 0, 0, 0, 0, 0, 1]
    given = Request("", first_image=IMAGE, given_words=("j" * 62,))
    sampler.draft(given, sampler.config.sample)
    with pytest.raises(ValueError, match="your words from 0 s on take 1 tokens more"):
        sampler.draft(dataclasses.replace(given, given_words=("j" * 63,)), sampler.config.sample)


def full(sampler, **settings):
    return dataclasses.replace(sampler.config.sample, when_full="end", **settings)


def test_a_full_context_ends_the_video_where_that_is_asked_for(make_sampler):
    """TV2TV section 2.3: "EOS or context length exceeded". Half a budget stays before a given chunk."""
    sampler = make_sampler(bof_bias=-20.0, text_rows=90)
    alone, given = sampler.generate([Request(""), Request("", first_image=IMAGE)], full(sampler))
    assert alone.ended and not alone.transcript and len(alone.frames) == 0
    assert given.ended and [len(text) for text in said(given)] == [31] and given.transcript[0].cut
    events = list(Stream(sampler, Request("", first_image=IMAGE), full(sampler)))
    assert events[-1].result.transcript == given.transcript and events[-1].result.ended
    spoken = "".join(e.text for e in events if isinstance(e, TextToken) and e.chunk == 1)
    assert len(spoken) == 31  # all that was left, and not the word too many


def test_a_context_that_is_full_to_its_last_row_is_not_exceeded(make_sampler):
    """Words may take every row as long as BOF comes next."""
    exact = Request("", first_image=IMAGE, given_words=("j" * 62,))
    silent = make_sampler(bof_bias=20.0, text_rows=90)
    (result,) = silent.generate([exact], full(silent))
    assert not result.ended and len(result.transcript) == 13
    talker = make_sampler(bof_bias=-20.0, text_rows=90)
    (result,) = talker.generate([exact], full(talker))
    assert result.ended and len(result.transcript) == 1


def test_nothing_changes_while_there_is_room(make_sampler):
    sampler = make_sampler(bof_bias=1.2, text_rows=400)
    for request in (Request("abc", seed=1), Request("abc", first_image=IMAGE, seed=2)):
        (a,), (b,) = (sampler.generate([request], settings) for settings in (None, full(sampler)))
        assert a.transcript == b.transcript and not b.ended
        assert np.array_equal(a.latents, b.latents)


def test_a_line_that_does_not_fit_exceeds_the_context_too(make_sampler):
    tokenizer = load_tokenizer("toy_world")
    sampler = make_sampler(tokenizer=tokenizer, text_rows=60, bof_bias=0.0)
    request = Request("abc", first_image=IMAGE, seed=1)
    (drawn,) = sampler.generate([request], dataclasses.replace(sampler.config.sample, grammar="actions"))
    (ended,) = sampler.generate([request], full(sampler, grammar="actions"))
    assert any(words.cut for words in drawn.transcript[1:]) and not drawn.ended
    assert ended.ended and 1 <= len(ended.transcript) < 13
    assert not any(words.cut for words in ended.transcript[1:])


def test_without_a_row_there_is_no_line(make_sampler):
    """The frame's words take every row, and a model of a game says a line before every chunk."""
    tokenizer, line = load_tokenizer("toy_world"), "(w). 2, 0, 0, 0."
    rows = 1 + 2 * 13 + 1 + len(tokenizer.encode(line))
    sampler = make_sampler(tokenizer=tokenizer, text_rows=rows, bof_bias=20.0)
    request = Request("", first_image=IMAGE, given_words=(line,))
    (ended,) = sampler.generate([request], full(sampler, grammar="actions"))
    assert ended.ended and said(ended) == [line]
    (drawn,) = sampler.generate([request], dataclasses.replace(sampler.config.sample, grammar="actions"))
    assert not drawn.ended and said(drawn) == [line] + [""] * 12


def test_think2v_with_too_long_a_plan(make_sampler):
    sampler = make_sampler("think2v", bof_bias=-20.0, text_rows=90)
    (free,) = sampler.generate([Request("abc")], full(sampler))
    assert free.ended and not free.transcript
    (given,) = sampler.generate([Request("abc", first_image=IMAGE)], full(sampler))
    assert (
        not given.ended and len(given.transcript) == 13
    )  # its chunk is there, and the plan stands before it
    assert torch.isfinite(torch.from_numpy(given.latents)).all()
