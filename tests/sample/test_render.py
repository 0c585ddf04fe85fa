"""Sheets and enlarged videos."""

import numpy as np
import pytest

from megatv.sample import render
from megatv.sample.preview import preview
from megatv.sample.render import ACCENT, COLUMNS, GAP, HEAD, MARGIN, TILE, Strip, contact_sheet, enlarge
from megatv.sample.request import ChunkWords
from megatv.sample.sampler import Sampler
from megatv.sample.timeline import chunk_starts, frames_of, plan_windows
from megatv.types import Caption, Example


def strip(chunks=13, size=(16, 32), forced=None):
    """Frame f is of grey level f."""
    frames = np.zeros((frames_of(chunks, 2), *size, 3), np.uint8) + np.arange(
        frames_of(chunks, 2), dtype=np.uint8
    ).reshape(-1, 1, 1, 1)
    words = tuple(
        ChunkWords(start, "(w, space). 2, 0, 1, 0.", "forced" if i == forced else "own")
        for i, start in enumerate(chunk_starts(plan_windows(chunks, 2)))
    )
    return Strip("strip", frames, words)


def test_tiles_show_the_second_frame_of_their_chunk():
    shown = [int(strip(15).picture(i)[0, 0, 0]) for i in range(15)]
    assert shown == [0, *range(2, 49, 4), 49, 51]


def has(sheet, colour, box):
    part = np.asarray(sheet.crop(box))
    return (part == np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])).all(-1).any()


@pytest.mark.parametrize("size", [(16, 32), (192, 320), (64, 32)])
def test_the_users_words_stand_out(size):
    plain, marked = contact_sheet([strip(size=size)], "title"), contact_sheet([strip(13, size, 1)], "title")
    assert plain.size == marked.size
    assert plain.width <= 2 * MARGIN + COLUMNS * (TILE + GAP)
    step = (plain.width - 2 * MARGIN + GAP) // COLUMNS
    second = (MARGIN + step - 4, 0, MARGIN + 2 * step - 5, plain.height // 2)
    assert has(marked, ACCENT, second) and not has(plain, ACCENT, second)
    assert np.array_equal(np.asarray(plain)[:HEAD], np.asarray(marked)[:HEAD])


def test_short_and_uneven_strips_fit():
    one = contact_sheet([strip(1)], "a very long title " * 20, "note")
    two = contact_sheet([strip(9), strip(20)], "title")
    assert one.width < two.width and one.height < two.height


@pytest.mark.parametrize(
    ("size", "expected"),
    [((32, 32), (256, 256)), ((16, 32), (256, 512)), ((192, 320), (384, 640)), ((256, 320), (256, 320))],
)
def test_small_videos_are_enlarged_by_whole_factors(size, expected):
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    large = enlarge(frames)
    assert large.shape[1:3] == expected
    factor = expected[0] // size[0]
    assert np.array_equal(large[:, ::factor, ::factor], frames)


def test_preview_writes_one_picture_of_what_the_model_says_by_itself(make_sampler, tmp_path, monkeypatch):
    sampler, asked, generate = make_sampler(), [], Sampler.generate
    monkeypatch.setattr(
        Sampler,
        "generate",
        lambda self, requests, *more: asked.extend(requests) or generate(self, requests, *more),
    )
    latents = np.random.default_rng(0).standard_normal((13, 16, 2, 4)).astype(np.float32)
    true = (Caption(0.0, "jj."),)
    examples = [Example(str(i), latents, true, "abc", "", 13, False) for i in range(4)]
    out = tmp_path / "preview.png"
    preview(sampler.model, sampler.config, sampler.tokenizer, sampler.stats, examples, out, 20)
    assert out.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [out]
    assert len(asked) == 3 and not any(request.given_words or request.interventions for request in asked)


def test_what_action_lines_mean_stands_above_them():
    said = [ChunkWords(0.0, text, "own") for text in ("(w). 10, 0, 0, 0.", "A boy runs.")]
    assert render._lines(said[0]) == ["forward, turn right 10", "(w). 10, 0, 0, 0."]
    assert render._lines(said[1]) == ["A boy runs."]
