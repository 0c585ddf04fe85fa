"""What one client can take of the studio: not all sessions, takes and room for downloads; others get some."""

import asyncio
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

from megatv.studio import downloads, limits
from megatv.studio.downloads import Downloads

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def ask_from(studio):
    """ask_from(address): the answer to the wish for a session, from there."""

    def ask(address):
        web = TestClient(studio.app, "http://localhost:8000", client=(address, 1))
        return web.post("/api/sessions")

    return ask


def watched(stack, studio, answer):
    """A tab of a session that was just asked for."""
    tab = stack.enter_context(studio.tab(answer.json()["session"]))
    tab.until("live")
    return tab


@pytest.mark.parametrize("address", ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8::{}"])
def test_one_network_cannot_watch_all_sessions(studio, ask_from, address):
    with ExitStack() as stack:
        for number in range(limits.MAX_SESSIONS_OF_ONE):
            watched(stack, studio, ask_from(address.format(number)))
        full = ask_from(address.format(99))
        assert full.status_code == 503 and "6 sessions started from your address" in full.json()["detail"]
        for _ in range(limits.MAX_SESSIONS - limits.MAX_SESSIONS_OF_ONE):
            watched(stack, studio, ask_from("192.0.2.8"))
        full = ask_from("192.0.2.9")
        assert full.status_code == 503 and "8 sessions are being watched" in full.json()["detail"]


def test_who_asks_for_many_sessions_ends_only_his_own(studio, ask_from):
    """Those that nobody watches make room, first his, though mine is the oldest."""
    mine = ask_from("192.0.2.8").json()["session"]
    for _ in range(3 * limits.MAX_SESSIONS):
        ask_from("192.0.2.7")
    ask_from("192.0.2.9")
    sessions = studio.app.state.worker.sessions
    assert mine in sessions and len(sessions) == limits.MAX_SESSIONS_OF_ONE + 2
    for _ in range(3):
        ask_from("192.0.2.9")
    assert mine in sessions and len(sessions) == limits.MAX_SESSIONS


def test_one_network_cannot_hold_all_open_takes(open_studio, monkeypatch):
    studio = open_studio(0.01)
    worker = studio.app.state.worker
    near = [worker.new_session("192.0.2.7").name for _ in range(2)]
    far = worker.new_session("192.0.2.8").name
    with studio.tab(near[0]) as first, studio.tab(near[1]) as second, studio.tab(far) as other:
        for take in range(4):
            first.make(seconds=60.0)
            first.say("pause", take=take)
            first.until("status", take=take, status="paused")
        for take in range(3):
            second.make(seconds=60.0)
            second.say("pause", take=take)
        error = second.until("error")["message"]
        assert "6 takes of sessions started from your address are being made or paused" in error
        for take in range(2):
            other.make(seconds=60.0)
            other.until("take", take=take)
        other.make(seconds=60.0)
        assert "8 takes are being made or paused in this studio" in other.until("error")["message"]


def test_one_network_cannot_hold_all_room_for_downloads(monkeypatch):
    """By readers of large videos who hardly read."""
    takes = [SimpleNamespace(number=n, frames=[n], video=None) for n in range(6)]
    monkeypatch.setattr(limits, "MAX_VIDEO_BYTES", 1000)
    monkeypatch.setattr(limits, "MAX_DOWNLOAD_BYTES", 4000)
    monkeypatch.setattr(limits, "MAX_DOWNLOAD_BYTES_OF_ONE", 3000)
    monkeypatch.setattr(downloads, "encode_clips", lambda *args, **options: bytes(1000))

    async def run():
        desk = Downloads(lambda: takes)
        held = [await desk.send_video(take, "192.0.2.7") for take in takes[:3]]
        refused = []
        for ask in (
            lambda: desk.send_video(takes[3], "192.0.2.7"),
            lambda: desk.send_video(takes[4], "192.0.2.9"),
        ):
            try:
                held.append(await ask())
            except HTTPException as error:
                refused.append((error.status_code, error.detail))
        with pytest.raises(HTTPException, match="the studio is busy with other downloads"):
            desk.send(b"x", "text/plain", "x.txt", "192.0.2.9")
        with pytest.raises(HTTPException, match=r"busy|your address"):
            desk.send(b"x", "text/plain", "x.txt", "192.0.2.7")
        return len(held), refused

    assert asyncio.run(run()) == (4, [(503, downloads.BUSY_OF_ONE)])
