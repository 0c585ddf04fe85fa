"""Cached sampling equals the uncached forward of the training code, token by token and chunk by chunk.

What the sampler made is turned into an Example; `build_sequence` and `pack` lay it out as in training, with
the solver's own x in place of the drawn noisy copies; one plain forward must then give the logits that every
word was drawn from and the velocity that every Euler step used.
"""

import dataclasses

import numpy as np
import pytest
import torch

from megatv.data.packing import pack
from megatv.data.sequence import build_sequence, chunk_start_seconds
from megatv.data.tokenizer import load_tokenizer
from megatv.sample.context import Context
from megatv.sample.request import Intervention, Request
from megatv.types import Caption, Example


class Recording:
    """Every text pass and every velocity of a run, in order."""

    def __init__(self, monkeypatch) -> None:
        self.text: list[tuple[list[list[int]], torch.Tensor]] = []
        self.solver: list[tuple[torch.Tensor, float, torch.Tensor]] = []
        text, velocity = Context.text, Context.velocity

        def record_text(context, ids):
            logits = text(context, ids)
            self.text.append(([list(row) for row in ids], logits))
            return logits

        def record_velocity(context, x, t, positions):
            v = velocity(context, x, t, positions)
            if t < 1:
                self.solver.append((x.clone(), t, v))
            return v

        monkeypatch.setattr(Context, "text", record_text)
        monkeypatch.setattr(Context, "velocity", record_velocity)

    def logits(self, row: int) -> dict[int, torch.Tensor]:
        """Index of a text row of the sequence -> the logits after it."""
        found, rows = {}, 0
        for ids, logits in self.text:
            if row < len(ids) and ids[row]:
                rows += len(ids[row])
                found[rows - 1] = logits[row]
        return found

    def steps(self, row: int, steps: int, step: int) -> tuple[torch.Tensor, float, torch.Tensor]:
        """x [chunks, ...], t and velocity of one Euler step of every solved chunk."""
        chosen = self.solver[step::steps]
        return (
            torch.stack([x[row] for x, _, _ in chosen]),
            chosen[0][1],
            torch.stack([v[row] for *_, v in chosen]),
        )


def uncached(sampler, example, x, t):
    """Logits of every text row and velocity of every chunk, x [N, C, h, w] standing as the noisy copies."""
    config = sampler.config
    sequence = build_sequence(example, sampler.tokenizer, config, seed=0, epoch=0, train=False)
    noisy_t = np.full(len(x), t, np.float32)
    sequence = dataclasses.replace(sequence, noisy=x.numpy().astype(np.float32), noisy_t=noisy_t)
    output = sampler.model(pack([sequence], config))
    return output.text_logits[: len(sequence.text_ids)], output.velocity[: len(x)]


def as_example(prompt, result, config, words=None):
    """A finished video as a training example; the words of its captions are `words` or the transcript's."""
    captions = [Caption(w.start_seconds, w.text) for w in result.transcript if w.text]
    if result.plan:
        captions = [Caption(0.0, line) for line in result.plan.split("\n")]
    if words is not None:
        captions = words
    latents = np.zeros((config.latents, *result.latents.shape[1:]), np.float32)
    latents[: len(result.latents)] = result.latents
    return Example("made", latents, tuple(captions), prompt, "", len(result.latents), False)


SEQUENCES = [
    ({"mode": "tv2tv"}, 1.0),
    ({"mode": "tv2tv"}, 2.5),
    ({"mode": "t2v"}, 2.5),
    ({"mode": "think2v", "bof_bias": -1.0}, 2.5),
    ({"mode": "tv2tv", "noisy_pos": "sequential"}, 1.0),
    ({"mode": "tv2tv", "chunk_pos": "single"}, 1.0),
    ({"mode": "tv2tv", "groups": 2}, 2.5),
]


@pytest.mark.parametrize(("sequence", "cfg"), SEQUENCES, ids=str)
def test_ragged_batch_equals_training_forward(make_sampler, monkeypatch, sequence, cfg):
    sampler = make_sampler(**sequence)
    config = sampler.config
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 32, 3), np.uint8)
    latents = rng.standard_normal((3, 16, 2, 4), np.float32)
    spoken = () if sequence["mode"] == "t2v" else (Intervention(0.8125, "abba."),)
    requests = [
        Request("abc"),
        Request("ab cd efg.", first_image=image, seed=1, interventions=spoken),
        Request("", first_latents=latents, seed=2),
    ]
    given = (0, 1, 3)
    recording = Recording(monkeypatch)
    settings = dataclasses.replace(config.sample, cfg=cfg, steps=3)
    results = sampler.generate(requests, settings)
    assert sequence["mode"] == "t2v" or sum(r.text_tokens for r in results) > 20
    for row, (request, result) in enumerate(zip(requests, results, strict=True)):
        example = as_example(request.prompt, result, config)
        for step in (0, 2):
            x, t, velocity = recording.steps(row, settings.steps, step)
            logits, expected = uncached(sampler, example, x, t)
            assert_same(velocity[given[row] :], expected[given[row] :])
            if cfg != 1:  # the recorded passes hold the conditional rows, then their text-free twins
                x_free, _, free = recording.steps(len(requests) + row, settings.steps, step)
                assert torch.equal(x, x_free)
                _, expected = uncached(sampler, as_example("", result, config, words=()), x, t)
                assert_same(free[given[row] :], expected[given[row] :])
        if not (spoken and row == 1 and sequence["mode"] == "think2v"):  # there an edited plan starts over
            drawn_from = recording.logits(row)
            assert len(drawn_from) >= config.latents
            for index, found in drawn_from.items():
                assert_same(found, logits[index])


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_guided_velocity_is_what_moves_the_chunk(make_sampler, monkeypatch):
    sampler = make_sampler()
    recording = Recording(monkeypatch)
    settings = dataclasses.replace(sampler.config.sample, cfg=3.0, steps=1)
    (result,) = sampler.generate([Request("abc")], settings)
    noise, _, conditional = recording.steps(0, 1, 0)
    _, _, free = recording.steps(1, 1, 0)
    expected = noise + free + 3.0 * (conditional - free)
    assert_same(torch.from_numpy(result.latents), expected)


def test_words_said_ahead_by_the_grammar_equal_training_forward(make_sampler, monkeypatch):
    """What is certain shares a pass with the word before it, and leaves the same cache."""
    sampler = make_sampler(tokenizer=load_tokenizer("toy_world"), text_rows=1500, bof_bias=0.0)
    recording = Recording(monkeypatch)
    settings = dataclasses.replace(sampler.config.sample, grammar="actions")
    requests = [Request("abc", seed=seed) for seed in (0, 1)]
    results = sampler.generate(requests, settings)
    for row, result in enumerate(results):
        assert any(2 <= len(ids[row]) < 5 for ids, _ in recording.text)
        x, t, velocity = recording.steps(row, settings.steps, 0)
        logits, expected = uncached(sampler, as_example("abc", result, sampler.config), x, t)
        assert_same(velocity, expected)
        for index, found in recording.logits(row).items():
            assert_same(found, logits[index])


PLAN = {"mode": "think2v", "bof_bias": -20.0, "newline_bias": 2.5}


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ({"groups": 2}, {}),
        ({"groups": 2}, {"keep_first_frame": True, "cfg": 2.5}),
        ({"groups": 1, "noisy_pos": "sequential"}, {"keep_first_frame": True, "keep_prompt": False}),
        ({"groups": 2, **PLAN}, {"keep_first_frame": True}),
    ],
    ids=str,
)
def test_next_window_equals_training_forward_on_its_half(make_sampler, monkeypatch, model, settings):
    """The second window of a video is its second half, with its words, as a new beginning.

    Where it is anchored the first chunk stands before that half, as a chunk of its own with its words.
    """
    sampler = make_sampler(text_rows=300, **model)
    config = sampler.config
    recording = Recording(monkeypatch)
    settings = dataclasses.replace(config.sample, **settings)
    image = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
    request = Request("abc", first_image=image, given_words=("fed.",) * ("mode" not in model))
    request = dataclasses.replace(request, seconds=8.0 if model["groups"] == 2 else 5.0)
    (result,) = sampler.generate([request], settings)
    # what the window begins with: the second group, or the last frame of the first, coded anew
    opening, kept = (13, 13) if model["groups"] == 2 else (12, 1)
    shown = [0] * settings.keep_first_frame + list(range(opening, len(result.latents)))
    solved = len(result.latents) - opening - kept
    latents = result.latents[shown]
    if kept == 1:
        latents[-solved - 1] = sampler.encode(result.frames[48][None, None])[0, 0].numpy()
    lines = result.plan.split("\n")
    transcript = [result.transcript[i] for i in shown]
    window = dataclasses.replace(
        result,
        latents=latents,
        transcript=[
            dataclasses.replace(words, start_seconds=chunk_start_seconds(i))
            for i, words in enumerate(transcript)
        ],
        plan="\n".join(lines[:1] * settings.keep_first_frame + lines[opening:]) if result.plan else "",
    )
    recording.solver = recording.solver[-solved * settings.steps :]
    begun = [i for i, (ids, _) in enumerate(recording.text) if ids[0][:1] == [sampler.tokenizer.bos]]
    assert len(begun) == 2
    recording.text = recording.text[begun[-1] :]
    prompt = "abc" if settings.keep_prompt else ""
    x, t, velocity = recording.steps(0, settings.steps, 0)
    assert len(x) == solved
    padded = torch.cat([torch.zeros(len(shown) - solved, *x.shape[1:]), x])
    logits, expected = uncached(sampler, as_example(prompt, window, config), padded, t)
    assert_same(velocity, expected[-solved:])
    for index, found in recording.logits(0).items():
        assert_same(found, logits[index])
    if settings.cfg != 1:
        *_, free = recording.steps(1, settings.steps, 0)
        _, expected = uncached(sampler, as_example("", window, config, words=()), padded, t)
        assert_same(free, expected[-solved:])
