"""`python -m megatv.studio` with a real sampler, in a real browser."""

import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from megatv.config import load_config
from megatv.data.toy_world import ACTIONS, words
from megatv.sample import FramesDecoded, Request, Stream
from megatv.studio.app import describe
from megatv.studio.cli import main
from megatv.studio.serve import server_of
from megatv.studio.session import Model

JUMP = "(space). 0, 0, 0, 0."
WATCH_WRITING = """new MutationObserver((changes) => {
    if (changes.some(({ oldValue }) => oldValue?.startsWith('writing'))) window.written = true;
}).observe(document.querySelector('#lines'),
    { subtree: true, attributeFilter: ['class'], attributeOldValue: true })"""
"""Sets window.written once a line was shown while it was being said, however short that was."""


@pytest.fixture(scope="module")
def address(run_dir):
    """Where a studio listens that somebody started in another terminal."""
    command = [sys.executable, "-m", "megatv.studio", "--checkpoint", str(run_dir), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = iter(process.stdout.readline, "")
        yield next(found[0] for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130)
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_newcomer_makes_steers_branches_and_plays(address, browser, tmp_path):
    page = browser
    count = "document.querySelectorAll('{}').length".format
    page.goto(address + "/")
    page.wait_for("document.querySelector('#prompt')?.value.startsWith('A player')")
    page.wait_for(f"location.href != '{address}/'")
    session = page.evaluate("location.pathname").rpartition("/")[2]

    page.evaluate("document.querySelector('#steps').value = 30")  # slow enough to be held on its way
    page.evaluate(WATCH_WRITING)
    page.click("#make")
    page.wait_for("window.written")  # words as they are said
    page.wait_for(f"{count('.cell.made')} >= 3")
    page.click("#hold")
    page.wait_for("document.querySelector('.pill.paused')")
    page.click(".cell:nth-child(2) .look")
    page.wait_for("document.querySelector('.still .cell.now:nth-child(2)')")
    page.click("#lines li:last-child .line")
    page.evaluate("document.querySelector('.editor textarea').value = ''")
    page.type(JUMP)
    page.press("Enter")
    page.wait_for(f"document.querySelector('li.planned .words')?.textContent == '{JUMP}'")
    page.click("#hold")
    page.wait_for("document.querySelector('.pill.finished')", 120)
    assert page.evaluate("document.querySelector('#lines li:last-child').className").startswith("made forced")
    assert page.evaluate(count(".cell.made")) == page.evaluate(count("#lines li")) == 13
    assert page.evaluate(count(".still .cell.now:nth-child(2)")) == 1  # what was looked at stays marked

    page.click(".cell:nth-child(6) .look")
    page.click(".still .cell.now:nth-child(6) .branch")
    page.wait_for("document.activeElement.tagName == 'TEXTAREA'")
    page.click(".composer .cap:nth-child(5)")  # the space bar
    page.evaluate(f"document.querySelector('.editor textarea').value = '{JUMP}'")
    page.click(".editor .primary")
    page.wait_for(f"{count('#screens canvas')} == 2")  # both side by side
    page.wait_for(f"{count('.lane')} == 2")
    page.wait_for("document.querySelector('.pill.finished')", 120)
    assert page.evaluate(count(".cell.shared")) == 5

    # words that are too long are refused with how long they may be, and stay in the editor
    page.click("#lines li:nth-child(6) .line")
    page.evaluate("document.querySelector('.editor textarea').value = 'j'.repeat(3000)")
    page.click(".editor .primary")
    toasts = "document.querySelector('#toasts').textContent"
    page.wait_for(rf"/they take \d+ tokens, and \d+ are left/.test({toasts})")
    page.wait_for("!document.querySelector('.editor .primary').disabled")
    assert page.evaluate("document.querySelector('.editor textarea').value.length") == 3000
    page.press("Escape")

    links = "[...document.querySelectorAll('#video, #transcript')].map(a => a.href)"
    sizes = page.evaluate(f"Promise.all({links}.map(u => fetch(u).then(r => r.blob()).then(b => b.size)))")
    assert min(sizes) > 1000

    page.evaluate("document.querySelector('#steps').value = 2")
    page.click("#play-game")
    page.wait_for("document.body.classList.contains('playing')")
    page.press("w", held_seconds=1.5)
    said = "[...document.querySelectorAll('li.forced .words')].map(line => line.textContent)"
    page.wait_for(f"{said}.includes('(w). 0, 0, 0, 0.')")
    page.click("#stop")
    page.wait_for("document.querySelector('.pill.stopped')")
    page.screenshot(tmp_path / "studio.png")

    # the page writes the same lines as the toy world
    hands = json.dumps([{**action._asdict(), "turn": action.turn // 2} for action in ACTIONS])
    lines = page.evaluate(f"import('/static/actions.js').then(game => {hands}.map(game.lineOf))")
    assert lines == [words(action) for action in ACTIONS]

    # a plan has a line for every chunk, or for every frame
    take = {"plan": "a\nb\nc\nd\ne\nf", "firsts": [0, 1, 5], "ends": [1, 5, 9]}
    for kind, line in (("chunk", "b"), ("frame", "b\nc\nd\ne")):
        asked = f"(store.state.info.plan_lines = '{kind}', store.lineOfPlan({json.dumps(take)}, 1))"
        said = page.evaluate(f"import('/static/store.js').then(store => {asked})")
        assert said == line

    with connect(f"{address.replace('http', 'ws')}/ws/{session}") as other:  # a second viewer
        assert json.loads(other.recv(timeout=10))[0]["type"] in ("viewers", "hello")
        page.wait_for("document.querySelector('#viewers').textContent == '2 watching'")
    page.goto(address + "/s/nobody")
    page.wait_for("!document.querySelector('#over').hidden")
    assert page.errors == []


@pytest.mark.slow
def test_strangers_and_giants_are_shown_the_door(address):
    target = address.replace("http", "ws") + "/ws/nobody"
    with pytest.raises(InvalidStatus, match="403"), connect(target, origin="http://evil.example"):
        pass
    with connect(target) as line:
        assert json.loads(line.recv(timeout=10))[0]["type"] == "gone"
    with pytest.raises(ConnectionClosed), connect(target) as line:
        line.send("x" * 1_000_000)
        while True:
            line.recv(timeout=10)


@pytest.mark.slow
def test_work_ends_with_the_last_line_to_it(address):
    """Beside a tab that is closed: one whose process was killed, or that lost its network."""
    post = urllib.request.Request(f"{address}/api/sessions", method="POST")
    with urllib.request.urlopen(post) as answer:
        session = json.load(answer)["session"]
    target = f"{address.replace('http', 'ws')}/ws/{session}"
    wish = {"prompt": "", "seconds": 3.0, "steps": 40, "temperature": 1.0, "cfg": 1.0}
    with connect(target) as line:
        line.send(json.dumps({"type": "make", **wish}))
        while isinstance(line.recv(timeout=30), str):
            pass
        line.socket.shutdown(socket.SHUT_RDWR)  # no goodbye
    time.sleep(3)
    with connect(target) as line:
        chunks = 0
        while isinstance(message := line.recv(timeout=30), bytes) or '"live"' not in message:
            chunks += isinstance(message, bytes)
        assert chunks <= 2


def test_a_real_stream_keeps_the_contract_of_the_fake(open_studio, make_sampler):
    sampler = make_sampler()
    studio = open_studio(open_stream=partial(Stream, sampler))
    with studio.tab(studio.session()) as tab:
        tab.make(prompt="abc")
        tab.until("status", status="finished")
        tab.say("branch", take=0, chunk=4, text="jab")
        tab.until("status", status="finished", take=1)
        said = tab.until("words", take=1, chunk=4)
        assert (said["text"], said["source"]) == ("jab", "forced")
        shown = [m["pixels"] for m in tab.story() if m["type"] == "frames" and m["take"] == 1]
        spoken = Stream(sampler, Request("abc", seconds=3.0), sampler.config.sample)
        whole = [event.frames.tolist() for event in spoken if isinstance(event, FramesDecoded)]
        assert len(shown) == 9 and len(whole) == 13


def test_a_branch_of_a_plan_shares_nothing(open_studio, make_sampler):
    studio = open_studio(open_stream=partial(Stream, make_sampler(mode="think2v")))
    with studio.tab(studio.session()) as tab:
        tab.make(prompt="abc", mode="think2v")
        tab.until("status", status="finished")
        tab.say("branch", take=0, chunk=4, seed=3)
        tab.until("status", status="finished", take=1)
        take = tab.until("take", take=1)
        assert (take["at"], take["left_at"]) == (0, 4)
        assert tab.until("frames", take=1, chunk=0)


def test_only_the_toy_world_is_a_game(make_sampler):
    config = make_sampler().config
    record = {"name": "x", "step": 1}
    assert describe(Model(config, Stream, record))["game"]
    other = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, path="llama3"))
    about = describe(Model(other, Stream, record))
    assert (about["game"], about["actions"], about["prompt"]) == (False, None, "")


def test_csgo_has_action_lines_and_no_keys():
    config = load_config(Path(__file__).parents[2] / "configs/3b_csgo.yaml")
    about = describe(Model(config, Stream, {"name": "x", "step": 1}))
    assert (about["game"], about["actions"]) == (False, "csgo")


def test_only_a_proxy_that_is_named_says_who_asks(studio):
    assert not server_of(studio.app).config.proxy_headers
    assert server_of(studio.app, behind_proxy=True).config.proxy_headers


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="--port 70000"):
        main(["--checkpoint", "nowhere", "--port", "70000"])
    with pytest.raises(ValueError, match="nowhere"):
        main(["--checkpoint", str(tmp_path / "nowhere"), "--port", "0"])
    with pytest.raises(ValueError, match="give the name alone"):
        main(["--checkpoint", "nowhere", "--public-name", "https://videos.example.org/"])
    with pytest.raises(ValueError, match="--host"):
        main(["--checkpoint", "nowhere", "--host", "203.0.113.7", "--port", "0"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ValueError, match="choose another --port"):
            main(["--checkpoint", "nowhere", "--port", port])
