"""The page in a real browser: a person judges everything with the keyboard, leaves and comes back.

SCREENSHOTS=DIR keeps the pictures that the tests take; docs/study.png is one of them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatv.eval.human.desk import Desk
from megatv.eval.human.run import _listen, server_of
from megatv.guard import own_names

WELCOME = "!document.querySelector('#welcome').hidden"
VIDEOS = "[...document.querySelectorAll('video')]"
GREETED = "document.querySelector('.primary')?.textContent == 'Go on as Ada'"
PLAYING = f"{VIDEOS}.length && {VIDEOS}.every(v => v.currentTime > 0.2 && !v.paused)"
DRIFT = f"Math.abs({VIDEOS}[0].currentTime - {VIDEOS}[1].currentTime)"


SCREEN = {"width": 1280, "height": 720, "deviceScaleFactor": 1, "mobile": False}


@contextmanager
def served(desk: Desk) -> Iterator[str]:
    """The address at which a thread serves a desk."""
    door = _listen("127.0.0.1", 0)
    server = server_of(desk, own_names("127.0.0.1"))
    thread = threading.Thread(target=server.run, args=([door],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{door.getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)
    door.close()


def ada(desk):
    """The one rater."""
    (rater,) = desk.answers.raters()
    return rater


@pytest.mark.slow
def test_a_pairwise_study_from_begin_to_thanks(browser, desk: Callable[..., Desk], tmp_path):
    one = desk(raters_per_item=1, items_per_rater=2, title="Which player is better?")
    with served(one) as address:
        browser.goto(address)
        browser.wait_for(WELCOME)
        browser.click("input")
        browser.type("Ada")
        browser.click(".primary")
        browser.wait_for(PLAYING)
        browser.press(" ")
        browser.wait_for(f"{VIDEOS}.every(v => v.paused)")
        assert browser.evaluate(DRIFT) < 0.15
        browser.press(" ")
        browser.wait_for(f"{VIDEOS}[0].currentTime > 2.5")
        browser.wait_for(f"{VIDEOS}[0].currentTime < 1")  # it begins again
        browser.wait_for(PLAYING)
        time.sleep(0.5)
        assert browser.evaluate(DRIFT) < 0.15
        assert browser.evaluate("document.querySelector('.next').disabled")
        browser.press("1")
        browser.press("3")
        assert "Ada" not in browser.evaluate("location.href")
        browser.goto(address)  # the tab was closed and opened again: the same task, with what was answered
        browser.wait_for(WELCOME)
        browser.click(".primary")
        browser.wait_for("document.querySelectorAll('[aria-checked=true]').length == 2")
        browser.call("Emulation.setDeviceMetricsOverride", **SCREEN)
        browser.wait_for(PLAYING)
        browser.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / "study.png")
        browser.press("4")
        browser.press("5")
        item = one.answers.tasks()[0].item
        browser.evaluate(
            "{ window.kept = fetch; window.fetch = () => Promise.reject(new TypeError('down')) }"
        )
        browser.press("Enter")
        browser.wait_for("document.querySelector('#trouble').textContent.includes('sent again')")
        assert not one.answers.tasks()[0].answered
        browser.evaluate("{ window.fetch = window.kept }")
        browser.wait_for("document.querySelector('.count').textContent.startsWith('1 of 3')")
        assert browser.evaluate("document.querySelector('#trouble').hidden")
        assert list(one.answers.task(ada(one), item).answers.values()) == [
            "left_much",
            "tie",
            "right_little",
            "right_much",
        ]
        browser.press("b")  # back, and a second thought
        browser.wait_for("document.querySelectorAll('[aria-checked=true]').length == 4")
        browser.click(".question .tie")
        browser.click(".next")
        browser.wait_for("document.querySelectorAll('[aria-checked=true]').length == 0")
        assert one.answers.task(ada(one), item).answers["alignment"] == "tie"
        for done in (2, 3):
            for _ in range(4):
                browser.press("2")
            browser.press("Enter")
            browser.wait_for(f"document.querySelector('.count').textContent.startsWith('{done} of 3')")
        browser.wait_for("!document.querySelector('#end').hidden")
        assert "Thank you, Ada" in browser.evaluate("document.querySelector('#end').innerText")
    assert not browser.errors


@pytest.mark.slow
def test_a_pointwise_study_marks_start_and_stop(browser, desk: Callable[..., Desk], tmp_path):
    one = desk("pointwise", checks=0, title="Did it happen?", joins="invited")
    _, token = one.answers.invite("Ada")
    with served(one) as address:
        browser.goto(address)
        browser.wait_for(WELCOME)
        assert "open the link that you were given" in browser.evaluate("document.body.innerText")
        assert browser.evaluate("document.querySelector('.primary').hidden")
        browser.evaluate(f"void (location.hash = '{token}')")  # pasted over it, which loads nothing by itself
        browser.wait_for(f"document.readyState == 'complete' && {GREETED}")
        assert browser.evaluate("location.href") == address  # neither in the history nor on a picture of it
        browser.goto(address)
        browser.wait_for(GREETED)
        browser.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / "study_welcome.png")
        browser.click(".primary")
        browser.wait_for("document.querySelector('.badge')?.textContent == 'START'")
        browser.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / "study_pointwise.png")
        browser.wait_for("document.querySelector('.badge').textContent == 'STOP'")
        browser.press("r")
        browser.wait_for("document.querySelector('video').currentTime < 0.8")
        browser.press("1")
        browser.press("2")
        browser.press("Enter")
        browser.wait_for("document.querySelector('.count').textContent.startsWith('1 of 4')")
    assert list(one.answers.tasks()[0].answers.values()) == ["yes", "moderate"]
    assert not browser.errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_eyes_and_fingers(browser, audit, desk: Callable[..., Desk], tmp_path, kind):
    """Nothing is too faint, and on a phone nothing is too small or too wide."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with served(desk(kind, checks=0)) as address:
        for phone in (False, True):
            if phone:
                audit.as_phone(browser)
            browser.evaluate("try { localStorage.clear() } catch {}")
            browser.goto(address)
            browser.wait_for(WELCOME)
            found = audit.faults(browser)
            browser.click("input")
            browser.type("Ada")
            small = audit.small_targets(browser)
            browser.click(".primary")
            browser.wait_for(PLAYING)
            found += audit.faults(browser)
            browser.evaluate("document.querySelector('.question button').click()")
            found += audit.faults(browser)
            small += audit.small_targets(browser)
            browser.screenshot(folder / f"{'phone_' * phone}study_{kind}.png")
            assert found == [] and (small == [] or not phone)
    assert browser.evaluate("document.documentElement.scrollWidth") == 360
    assert browser.evaluate("document.querySelector('.line').getBoundingClientRect().height") >= 44
    assert not browser.errors


@pytest.mark.slow
def test_somebody_else_at_the_same_browser(browser, desk: Callable[..., Desk], tmp_path):
    one = desk(checks=0, title="<img src=x onerror=alert(1)>")
    with served(one) as address:
        for name in ("Ada", "<b>Ben</b>"):
            browser.goto(address)
            browser.wait_for(WELCOME)
            if name != "Ada":
                browser.wait_for(GREETED)
                browser.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / "study_again.png")
                browser.click(".other")
                assert browser.evaluate("Object.values(localStorage).length") == 0  # the token is gone
            browser.click("input")
            browser.type(name)
            browser.click(".primary")
            browser.wait_for(PLAYING)
            assert browser.evaluate("document.querySelector('.who').textContent") == name
        assert browser.evaluate("document.querySelectorAll('img, .who b').length") == 0
    assert [rater.name for rater in one.answers.raters()] == ["Ada", "<b>Ben</b>"]
    assert not browser.errors
