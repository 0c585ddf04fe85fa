"""Tabs that come, go, say too much or the wrong thing."""

import json
import time

import pytest

from megatv.studio import limits

pytestmark = pytest.mark.timeout(60)


def settled(count):
    """The number that `count` comes to rest at."""
    before = None
    while before != (now := count()):
        before = now
        time.sleep(0.1)
    return now


def test_closing_the_last_tab_stops_the_work(open_studio):
    studio = open_studio(0.005)
    session = studio.session()
    with studio.tab(session) as first:
        first.make(seconds=60.0)
        first.until("frames", chunk=1)
        stream = studio.streams[0]
        with studio.tab(session) as second:
            second.until("live")
        worked = stream.works
        time.sleep(0.2)
        assert stream.works > worked + 5  # one tab is still there
    worked = settled(lambda: stream.works)
    time.sleep(0.3)
    assert stream.works == worked and not stream.closed
    with studio.tab(session) as back:
        back.until("frames", chunk=len(stream.starts) // 4)  # a reload finds it, and it goes on
        assert stream.works > worked


def test_a_session_that_nobody_comes_back_to_is_freed(open_studio, monkeypatch):
    monkeypatch.setattr(limits, "KEEP_SECONDS", 0.2)
    studio = open_studio(0.005)
    session = studio.session()
    with studio.tab(session) as tab:
        tab.make(seconds=60.0)
        tab.until("frames", chunk=1)
        time.sleep(0.5)
        assert not studio.streams[0].closed  # it is being watched
    while not studio.streams[0].closed:
        time.sleep(0.05)
    assert studio.web.get(f"/api/sessions/{session}/takes/0/video.mp4").status_code == 404
    with studio.tab(session) as late:
        assert "start a new one" in late.until("gone")["message"]


def test_a_flood_is_refused_once_and_others_are_served(open_studio):
    studio = open_studio(0.002)
    session = studio.session()
    with studio.tab(session) as calm, studio.tab(session) as flood:
        calm.make()
        for _ in range(500):
            flood.say("keys", take=0)
        with pytest.raises((ConnectionError, RuntimeError)):
            while True:
                flood.read()
        assert len([m for m in flood.seen if m["type"] == "refused"]) == 1
        assert "things a second" in flood.until("refused")["message"]
        calm.until("status", status="finished")


def test_a_full_queue_says_so(open_studio, monkeypatch):
    studio = open_studio(1.0)
    monkeypatch.setattr(studio.app.state.worker._jobs, "maxsize", 3)
    with studio.tab(studio.session()) as tab:
        tab.make()
        tab.until("take")
        for _ in range(8):
            tab.say("pause", take=0)
        assert "busy" in tab.until("error")["message"]


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "null",
        "[1, 2]",
        '{"type": "dance"}',
        '{"take": 0}',
        '{"type": "pause"}',
        '{"type": "pause", "take": "0"}',
        '{"type": "pause", "take": -1}',
        '{"type": "pause", "take": 0, "more": 1}',
        '{"type": "edit", "take": 0, "chunk": 1.5, "text": ""}',
        '{"type": "make", "prompt": "", "seconds": NaN, "steps": 1, "temperature": 1, "cfg": 1}',
        '{"type": "make", "prompt": "", "seconds": 1e9, "steps": 1, "temperature": 1, "cfg": 1}',
        '{"type": "make", "prompt": "", "seconds": 1, "steps": 0, "temperature": 1, "cfg": 1}',
        '{"type": "keys", "take": 0, "move": 7}',
        '{"type": "edit", "take": 0, "chunk": 1, "text": "\\ud800"}',
        "[" * 10_000,
        json.dumps({"type": "edit", "take": 0, "chunk": 1, "text": "x" * 4001}),
        json.dumps({"type": "edit", "take": 0, "chunk": 1, "text": "x" * 100_000}),
        b"bytes",
    ],
)
def test_nonsense_gets_one_sentence(studio, message):
    with studio.tab(studio.session()) as tab:
        if isinstance(message, bytes):
            tab.socket.send_bytes(message)
        else:
            tab.socket.send_text(message)
        error = tab.until("error")["message"]
        assert "message" in error and "\n" not in error and len(error) < 200
        tab.make()
        tab.until("status", status="finished")


def test_a_take_that_is_not_there(studio):
    with studio.tab(studio.session()) as tab:
        tab.say("pause", take=5)
        assert tab.until("error")["message"] == "there is no take 5 in this session"


def test_tabs_and_sessions_are_bounded(studio, monkeypatch):
    monkeypatch.setattr(limits, "MAX_VIEWERS", 1)
    monkeypatch.setattr(limits, "MAX_SESSIONS", 2)
    left, watched = studio.session(), studio.session()
    with studio.tab(watched) as tab:
        tab.until("live")
        with studio.tab(watched) as other:
            assert "close one" in other.until("refused")["message"]
        third = studio.session()  # in the place of the one that nobody watches
        with studio.tab(left) as gone, studio.tab(third) as here:
            assert gone.until("gone") and here.until("live")
            full = studio.web.post("/api/sessions")
            assert full.status_code == 503 and "close its tabs" in full.json()["detail"]


def test_a_clock_that_jumps(open_studio, monkeypatch):
    """Neither the past nor the future ends a session or holds a game back."""
    studio = open_studio(0.002)
    session = studio.session()
    with studio.tab(session) as tab:
        for take, now in enumerate((0.0, 4e9, 1e9)):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            tab.make(seconds=1.0, game=True)
            tab.until("status", status="finished", take=take)
    with studio.tab(session) as tab:
        tab.until("live")
