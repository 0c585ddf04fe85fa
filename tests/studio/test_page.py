"""The studio's page in a real browser, with a stream that needs no model: what it shows, to eyes and fingers.

SCREENSHOTS=DIR keeps the pictures that the tests take.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatv.data.csgo_actions import meaning
from megatv.studio.app import STATIC

CSS = (STATIC / "studio.css").read_text()
GROUNDS = ("ground", "panel", "raised", "field")
LINES = "[...document.querySelectorAll('#lines li')]"
DOWN = "[...document.querySelectorAll('.composer .down')].map(cap => cap.title).join()"
SAYS = "document.querySelector('.says').textContent"
MADE = "document.querySelectorAll('.lane.active .cell.made').length"


@pytest.fixture
def page(browser, served, tmp_path) -> Iterator[Any]:
    """The browser, before a studio whose model is a fake. page.shoot(name) keeps a picture."""
    kept = Path(os.environ.get("SCREENSHOTS", tmp_path))
    browser.shoot = lambda name: browser.screenshot(kept / f"{name}.png")
    still = {"name": "prefers-reduced-motion", "value": "reduce"}  # no colour on its way to another
    browser.call("Emulation.setEmulatedMedia", features=[still])
    browser.goto(served)
    browser.wait_for("document.querySelector('#prompt')?.value.startsWith('A player')")
    yield browser
    assert browser.errors == []


def make(page) -> None:
    page.click("#make")
    page.wait_for("document.querySelector('.pill.finished')")
    page.evaluate("document.querySelector('.cell:nth-child(4) .look').click()")
    page.wait_for("document.querySelector('.still .cell.now:nth-child(4)')")


def edit(page, chunk: int) -> None:
    """Open a line of the plan, with its words selected."""
    page.click(f"#lines li:nth-child({chunk + 1}) .line")
    page.wait_for("document.activeElement.tagName == 'TEXTAREA'")


def test_colours_can_be_told_apart(audit):
    colours = audit.variables(CSS)
    for ground in GROUNDS:
        for text in ("ink", "dim", "faint", "accent", "model", "good", "warn", "bad"):
            ratio = audit.contrast(colours[text], colours[ground])
            assert ratio >= 4.5, f"--{text} on --{ground}: {ratio:.2f}"
        ratio = audit.contrast(colours["edge"], colours[ground])
        assert ratio >= 3, f"--edge on --{ground}: {ratio:.2f}"
    assert audit.contrast(colours["accent-ink"], colours["accent"]) >= 4.5
    assert audit.contrast("#000000", "#ffffff") == pytest.approx(21)


def test_texts_take_their_colours_from_the_variables():
    for sheet in STATIC.glob("*.css"):
        texts = re.findall(r"(?<![\w-])color: ([^;}]+)", sheet.read_text())
        assert texts and [text for text in texts if not re.match(r"var\(|inherit", text)] == []


@pytest.mark.slow
def test_the_keys_show_what_the_words_say(page):
    make(page)
    edit(page, 5)
    page.type("(w, space). -2, 0, 1, 0.")
    assert page.evaluate(DOWN) == "forward,turn,jump,shoot"
    assert page.evaluate(SAYS) == "forward, turn left, jump, shoot"
    for foreign in (
        " or so",
        "",
        "jump",
        "(w, s). 0, 0, 0, 0.",
        "(w). 3, 0, 0, 0.",
        "(space, w). 0, 0, 0, 0.",
    ):
        page.evaluate("document.activeElement.select()")
        page.type(foreign) if foreign else page.evaluate("document.execCommand('delete')")
        assert page.evaluate(DOWN) == "", foreign
        warning = "This is not an action line; try (w). 0, 0, 0, 0." if foreign else ""
        assert page.evaluate(SAYS) == warning, foreign
    page.click(".composer .cap:nth-child(4)")
    assert page.evaluate("document.querySelector('.editor textarea').value") == "(.). 2, 0, 0, 0."
    assert page.evaluate(DOWN) == "turn" and page.evaluate(SAYS) == "turn right"
    page.click(".composer .cap:nth-child(3)")  # the other way
    page.click(".composer .cap:nth-child(1)")
    page.click(".composer .cap:nth-child(2)")
    assert page.evaluate("document.querySelector('.editor textarea').value") == "(s). -2, 0, 0, 0."
    page.evaluate("document.activeElement.select()")
    page.type("jump over it")
    page.shoot("studio_warning")
    page.press("Enter")  # it is said all the same
    page.wait_for(
        "document.querySelectorAll('.lane').length == 2 && document.querySelector('.pill.finished')"
    )
    assert page.evaluate(f"{LINES}[5].querySelector('.words').textContent") == "jump over it"


@pytest.mark.slow
def test_readable_words_come_first(page):
    make(page)
    assert page.evaluate("document.querySelectorAll('#line-hint:not([hidden])').length") == 1
    said = page.evaluate(
        f"{LINES}.map(line => [...line.querySelectorAll('.gloss, .words')].map(e => e.textContent))"
    )
    assert all(words.startswith("(") and meaning.strip() and "(" not in meaning for meaning, words in said)
    tops = "[...line.querySelectorAll('.gloss, .words')].map(e => e.getBoundingClientRect().top)"
    assert page.evaluate(f"{LINES}.every(line => {{ const [a, b] = {tops}; return a < b; }})")
    assert page.evaluate("document.querySelector('figcaption span').textContent[0] != '('")
    assert page.evaluate("document.querySelector('figcaption small').textContent[0] == '('")
    edit(page, 4)
    first = "document.querySelector('.says').getBoundingClientRect().bottom"
    assert page.evaluate(f"{first} <= document.querySelector('.editor textarea').getBoundingClientRect().top")
    assert page.evaluate(SAYS) == said[4][0]


@pytest.mark.slow
def test_nothing_is_too_faint(page, audit):
    assert audit.faults(page) == []
    page.shoot("studio_start")
    make(page)
    assert audit.faults(page) == []
    edit(page, 3)
    page.shoot("studio_edit")
    assert audit.faults(page) == []
    page.press("Escape")
    edit(page, 5)
    page.type("(space). 0, 0, 0, 0.")
    page.press("Enter")
    page.wait_for(
        "document.querySelectorAll('.lane').length == 2 && document.querySelector('.pill.finished')"
    )
    page.shoot("studio_branch")
    assert audit.faults(page) == []
    page.click("#play-game")
    page.wait_for("document.body.classList.contains('playing')")
    page.press("w", held_seconds=0.5)
    page.shoot("studio_game")
    assert audit.faults(page) == []
    page.click("#stop")
    page.wait_for("document.querySelector('.pill.stopped')")
    assert audit.faults(page) == []


@pytest.mark.slow
def test_a_phone_keeps_the_video_in_view(page, audit):
    audit.as_phone(page)
    wide = "document.documentElement.scrollWidth"
    page.shoot("phone_start")
    assert audit.small_targets(page) == [] and page.evaluate(wide) == 360
    page.evaluate("document.querySelector('details').open = true")
    assert audit.small_targets(page) == []
    make(page)
    page.evaluate("window.scrollTo(0, 0)")
    page.shoot("phone_top")
    assert audit.small_targets(page) == [] and page.evaluate(wide) == 360
    canvas = "document.querySelector('#screens canvas').getBoundingClientRect()"
    for chunk in (0, 6, 12):
        edit(page, chunk)
        seen = f"(() => {{ const b = {canvas}; return b.top >= 0 && b.bottom < innerHeight / 2; }})()"
        assert page.evaluate(seen), chunk
        page.shoot(f"phone_edit_{chunk}")
        boxes = "['#stage', '.editor'].map(part => document.querySelector(part).getBoundingClientRect())"
        assert page.evaluate(f"(([a, b]) => a.bottom <= b.top && b.bottom <= innerHeight)({boxes})"), chunk
        assert audit.small_targets(page) == [] and audit.faults(page) == [] and page.evaluate(wide) == 360
        page.press("Escape")
    page.evaluate("window.scrollTo(0, 0)")
    page.click("#play-game")
    page.wait_for("document.body.classList.contains('playing')")
    page.shoot("phone_game")
    assert audit.small_targets(page) == [] and page.evaluate(wide) == 360
    keys = "[...document.querySelectorAll('#caps .cap')].map(cap => cap.getBoundingClientRect())"
    stage = "document.querySelector('#stage').getBoundingClientRect().bottom"
    assert page.evaluate(f"{keys}.every(b => b.top >= {stage} && b.bottom <= innerHeight)")  # both at once


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "(.). 0, 0, 0, 0.",
        "(w, d, shift). 10, 0, 0, 0.",
        "(a, 1, r). -60, -4, 1, 1.",
        "(w). 0, 0, 0, 0.\n(w). 0, 0, 0, 0.\n(w, space). 0, 2, 0, 0.",
        "(w). 0, 0, 0, 0.\njump",
        "(d, w). 0, 0, 0, 0.",
        "(w). 3, 0, 0, 0.",
        "",
    ],
)
def test_lines_of_csgo_mean_what_the_sampler_says(page, words):
    said = f"import('/static/actions.js').then(module => module.meaning({json.dumps(words)}, 'csgo'))"
    assert page.evaluate(said) == meaning(words)


@pytest.mark.slow
def test_a_model_of_csgo_has_readable_words_and_warnings(page):
    page.evaluate("import('/static/store.js').then(({ state }) => { state.info.actions = 'csgo'; })")
    page.evaluate("import('/static/store.js').then(({ state }) => { state.info.game = false; })")
    make(page)
    line = f"[...{LINES}[4].querySelectorAll('.gloss, .words')].map(e => e.textContent)"
    readable, raw = page.evaluate(line)
    assert raw.startswith("(") and readable == meaning(raw)
    edit(page, 4)
    assert page.evaluate(SAYS) == readable and page.evaluate("!document.querySelector('.composer')")
    page.evaluate("document.activeElement.select()")
    page.type("jump over it")
    assert page.evaluate(SAYS) == "This is not an action line; try (w). 0, 0, 0, 0."
