"""The browser that tests of pages use does what a person does."""

import pytest


@pytest.mark.slow
def test_a_page_is_clicked_typed_into_and_seen(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<button onclick=\"document.title = 'pressed'\">press</button><input id=words>"
        "<script>addEventListener('keydown', e => document.body.dataset.key = e.key)</script>"
    )
    browser.goto(page.as_uri())
    browser.click("button")
    browser.wait_for("document.title == 'pressed'")
    browser.click("#words")
    browser.type("hello")
    browser.press("ArrowLeft")
    browser.press("s")
    assert browser.evaluate("document.querySelector('#words').value") == "hellso"
    assert browser.evaluate("document.body.dataset.key") == "s" and not browser.errors
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"
    browser.evaluate("setTimeout(() => { throw new Error('lost') })")
    with pytest.raises(AssertionError, match=r"waited 0\.5 s"):
        browser.wait_for("false", seconds=0.5)
    assert "lost" in str(browser.errors)
