"""Action lines by grammar: every line can be said, nothing else can, and what is certain costs no pass."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from megatv.data.csgo_actions import KEYS, MOUSE_X, MOUSE_Y, GameAction, chunk_words
from megatv.data.tokenizer import load_tokenizer
from megatv.data.toy_world import ACTIONS, words
from megatv.sample import ChunkStarted, Finished, Intervention, Request, Stream, TextToken
from megatv.sample.context import Context
from megatv.sample.grammar import HELD, LINES, Walk, action_grammar
from megatv.sample.timeline import plan_windows

LLAMA3 = Path(__file__).parents[3] / "shared/llama3/tokenizer.model"
LINE = re.compile(r"\((.*)\)\. (-?\d+), (-?\d+), ([01]), ([01])\.")


@pytest.fixture(scope="module", params=["toy_world", "llama3"])
def tokenizer(request):
    if request.param == "toy_world":
        return load_tokenizer("toy_world")
    if not LLAMA3.is_file():
        pytest.skip("the Llama-3 tokenizer is not here")
    return load_tokenizer(str(LLAMA3))


def parses(line):
    """Whether this is a line as `GameAction.words` writes it."""
    if not (match := LINE.fullmatch(line)):
        return False
    held = () if match[1] == "." else tuple(match[1].split(", "))
    x, y, left, right = map(int, match.groups()[1:])
    action = GameAction(held, x, y, left, right)
    return held in HELD and x in MOUSE_X and y in MOUSE_Y and action.words() == line


def walk(tokenizer, room=10**6, lines=LINES, may_end=False):
    return Walk(action_grammar(tokenizer), lines, room, may_end=may_end)


def sayable(tokenizer, text):
    """Whether the grammar lets a model say this text and BOF."""
    way = walk(tokenizer, may_end=True)
    for token in tokenizer.encode(text):
        if token not in way.choices():
            return False
        way.follow(token)
    return tokenizer.bof in way.choices() and tokenizer.eos not in way.choices()


def test_every_line_can_be_said_in_the_tokens_of_training(tokenizer):
    rng = np.random.default_rng(0)
    lines = [
        GameAction(held, int(rng.choice(MOUSE_X)), int(rng.choice(MOUSE_Y)), *map(int, rng.integers(0, 2, 2)))
        for held in HELD
    ]
    lines += [GameAction((), x, y) for x in MOUSE_X for y in MOUSE_Y]
    assert len(HELD) == 2 ** len(KEYS)
    order = iter(rng.permutation(len(lines)))
    texts = [words(action) for action in ACTIONS]
    while chosen := [lines[i] for _, i in zip(range(rng.integers(1, LINES + 1)), order, strict=False)]:
        texts.append(chunk_words(chosen))
    for text in texts:
        assert sayable(tokenizer, text), text
    assert max(text.count("\n") for text in texts) == LINES - 1
    for text in (
        "\n".join(LINES * [texts[0]] + texts[:1]),
        "",
        texts[0] + "\n",
        texts[0][:-1],
        "(d, w)" + texts[0][3:],
    ):
        assert not sayable(tokenizer, text), text


@pytest.mark.parametrize("room", [None, 5, 16, 17, 23, 40, 60])
def test_whatever_is_said_parses_and_fits(tokenizer, room):
    rng = np.random.default_rng(1)
    shortest = min(len(tokenizer.encode(words(action))) for action in ACTIONS)
    ended = set()
    for _ in range(100):
        way, said = walk(tokenizer, room or 10**6, may_end=True), []
        while choices := way.choices():
            token = int(rng.choice(choices))
            if token in (tokenizer.bof, tokenizer.eos):
                break
            said.append(token)
            way.follow(token)
        text = tokenizer.decode(said)
        ended.add(text.count("\n") + 1 if said else 0)
        assert tokenizer.encode(text) == said and len(said) <= (room or len(said))
        assert all(map(parses, text.split("\n"))) if said else not choices or token == tokenizer.eos
        assert choices or (not said and room < shortest)
    if room is None:
        assert ended == set(range(LINES + 1))


def count_passes(monkeypatch):
    passes, text = [], Context.text

    def count(context, ids):
        passes.append(max(map(len, ids)))
        return text(context, ids)

    monkeypatch.setattr(Context, "text", count)
    return passes


def make(sampler, request, settings):
    """Draft of a finished video."""
    draft = sampler.draft(request, settings)
    list(sampler.events([draft], settings))
    return draft


def grammatical(sampler, **settings):
    return dataclasses.replace(sampler.config.sample, grammar="actions", steps=1, **settings)


def test_a_random_model_plays_by_the_rules(make_sampler, tokenizer, monkeypatch):
    sampler = make_sampler(tokenizer=tokenizer, text_rows=1500, bof_bias=0.0)
    passes = count_passes(monkeypatch)
    draft = make(sampler, Request("abc", seconds=2.5), grammatical(sampler))
    texts = [words.text for words in draft.script.transcript]
    assert len(texts) == 11 and all(map(parses, "\n".join(texts).split("\n")))
    assert draft.script.said == [tuple(tokenizer.encode(text)) for text in texts]
    spoken = sum(map(len, draft.script.said))
    assert not any(words.cut for words in draft.script.transcript)
    needed = (
        spoken + 11
    )  # a pass before every token, and one before the chunk, whose BOF is no pass of its own
    silent = 13 - 11
    if tokenizer.vocab_size > 10_000:  # the toy world's tokens are whole fields: nothing there is certain
        assert len(passes) - silent < 0.8 * needed


def test_words_end_within_the_budget(make_sampler, tokenizer):
    sampler = make_sampler(tokenizer=tokenizer, text_rows=110, bof_bias=0.0)
    draft = make(sampler, Request("abc"), grammatical(sampler))
    texts = [words.text for words in draft.script.transcript]
    assert all(not text or all(map(parses, text.split("\n"))) for text in texts)
    assert sum(map(len, draft.script.said)) <= 110 - 2 * 13 - 1 - len(tokenizer.encode("abc\n"))
    silent = [not words.text for words in draft.script.transcript]
    assert any(silent) and silent == [words.cut for words in draft.script.transcript]


def test_a_plan_is_lines_and_other_words_are_refused_or_left_alone(make_sampler):
    toy = load_tokenizer("toy_world")
    sampler = make_sampler("think2v", tokenizer=toy, text_rows=900, bof_bias=-3.0, groups=2)
    asked = Request("abc", seconds=7.0, interventions=(Intervention(0.3, "(w). 2, 0, 1, 0."),))
    (planned,) = sampler.generate([asked], grammatical(sampler))
    assert len(planned.plan.split("\n")) > 5 and all(map(parses, planned.plan.split("\n")))
    detailed = make_sampler("think2v", think2v="detailed_caption")
    with pytest.raises(ValueError, match="plans in a detailed caption: set it to none"):
        detailed.generate([Request("abc")], grammatical(detailed))
    silent = make_sampler("t2v")
    (a, b) = (silent.generate([Request("abc")], s)[0] for s in (grammatical(silent, cfg=1.0), None))
    assert a.transcript == b.transcript


def test_words_of_a_person_replace_a_line_that_is_half_said(make_sampler, tokenizer):
    sampler = make_sampler(tokenizer=tokenizer, text_rows=1500, bof_bias=-20.0)
    settings, line = grammatical(sampler), "(w, space). 2, 0, 1, 0."
    request = Request("abc", seconds=0.6, seed=1)
    asked = dataclasses.replace(request, interventions=(Intervention(0.3, line),))
    (wanted,) = sampler.generate([asked], settings)
    stream = Stream(sampler, request, settings)
    spoken = ""
    for event in stream:
        if isinstance(event, TextToken):
            spoken += event.text
            if event.chunk == 2:
                stream.intervene(2, line)
        if isinstance(event, ChunkStarted) and event.chunk == 1:
            assert spoken == "".join(words.text for words in wanted.transcript[:2])
        if isinstance(event, Finished):
            assert event.result.transcript == wanted.transcript
            np.testing.assert_allclose(event.result.latents, wanted.latents, rtol=0, atol=1e-4)


def test_a_video_may_end_after_a_chunk_but_not_before_the_first(make_sampler):
    sampler = make_sampler(tokenizer=load_tokenizer("toy_world"), text_rows=1500)
    draft = sampler.draft(Request("abc"), grammatical(sampler))
    draft.open(plan_windows(draft.script.chunks, 1)[0], None)
    choices = []
    for chunk in range(3):
        choices.append(draft.script.speech(chunk, []).choices)
        draft.script.say(chunk, (), cut=False)
    assert [sampler.tokenizer.eos in tokens for tokens in choices] == [False, True, True]
    assert sampler.tokenizer.bof not in choices[0]
