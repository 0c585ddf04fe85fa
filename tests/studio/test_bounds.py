"""What a studio holds, however much its pages ask for."""

import asyncio
import io
import threading
import time
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from fastapi import HTTPException
from PIL import Image

from megatv.data.video import probe
from megatv.studio import downloads, limits, uploads
from megatv.studio.downloads import Downloads
from megatv.studio.uploads import Uploads

pytestmark = pytest.mark.timeout(60)
FRAME = 32 * 32 * 3


def held(studio):
    return sum(take.held_bytes for take in studio.app.state.worker.takes())


def test_takes_are_bounded(studio, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TAKES", 2)
    with studio.tab(studio.session()) as tab:
        tab.make()
        tab.make(seed=1)
        tab.until("status", status="finished", take=1)
        tab.make(seed=2)
        assert "holds 2 takes" in tab.until("error")["message"]


def test_room_for_frames_is_taken_at_the_start(open_studio, monkeypatch):
    """49 frames twice, as pixels and as messages: two takes fit, whatever is made of them yet."""
    whole = 2 * 49 * FRAME
    monkeypatch.setattr(limits, "MAX_HELD_BYTES", 2 * whole + 1000)
    studio = open_studio(0.01)
    first, second = studio.session(), studio.session()
    with studio.tab(first) as tab, studio.tab(second) as other:
        tab.make()
        tab.until("take")
        other.make()
        other.until("take")
        while held(studio) != 2 * whole:  # it is told a moment before it is held
            time.sleep(0.01)
        tab.make(seed=2)
        error = tab.until("error")["message"]
        assert "needs 0.3 MiB for its frames, and the studio has 0.0 MiB left" in error
        other.until("frames", chunk=2)
        other.say("stop", take=0)
        other.until("status", status="stopped")
        made = held(studio) - whole
        assert 2 * 9 * FRAME <= made < whole  # what a shorter take did not use is there again
        tab.make(seconds=1.0, seed=2)
        tab.until("take", take=1)
        other.say("branch", take=0, chunk=1)
        assert "close takes" in other.until("error")["message"]
        other.say("close", take=0)
        other.until("closed")
        tab.until("status", status="finished", take=1)
        tab.until("status", status="finished", take=0)
        assert held(studio) == sum(
            sum(frames.nbytes for frames in take.frames) * 2 + 28 * len(take.frames)
            for take in studio.app.state.worker.takes()
        )
        tab.until("status", status="finished", take=1)
        other.make(seconds=64.0)
        other.seen.clear()
        assert "make a shorter one" in other.until("error")["message"]


def test_a_branch_takes_room_for_its_own_chunks_only(studio):
    with studio.tab(studio.session()) as tab:
        tab.make()
        tab.until("status", status="finished")
        tab.say("branch", take=0, chunk=12)
        tab.until("status", status="finished", take=1)
        branch = studio.app.state.worker.takes()[1]
        assert branch._will_hold == (2 * 4 + 45) * FRAME  # its stream shows the shared, too
        assert branch.held_bytes == 2 * 4 * FRAME + 28


def test_open_takes_are_bounded(open_studio, monkeypatch):
    monkeypatch.setattr(limits, "MAX_OPEN", 2)
    monkeypatch.setattr(limits, "MAX_OPEN_IN_ALL", 3)
    studio = open_studio(0.01)
    with studio.tab(studio.session()) as tab, studio.tab(studio.session()) as other:
        for seed in range(3):
            tab.make(seed=seed, seconds=60.0)
        assert "2 takes of this session are being made or paused" in tab.until("error")["message"]
        tab.say("pause", take=1)  # it keeps its memory
        tab.until("status", status="paused", take=1)
        other.make(seconds=60.0)
        other.make(seconds=60.0)
        assert "3 takes are being made or paused in this studio" in other.until("error")["message"]
        tab.say("stop", take=1)
        tab.until("status", status="stopped", take=1)
        other.seen.clear()
        other.make(seconds=60.0)
        other.until("take", take=1)


def test_the_log_is_bounded_however_long_a_session_lasts(studio, monkeypatch):
    monkeypatch.setattr(limits, "MESSAGES_PER_SECOND", 1e9)
    session = studio.session()
    with studio.tab(session) as tab:
        tab.make()
        tab.until("status", status="finished", take=0)
        log = studio.app.state.worker.sessions[session].log
        settled = len(log)
        assert settled == 1 + 1 + 2 * 13  # the take, its status, words and frames
        for number in range(1, 12):
            tab.make(seed=number, seconds=1.0, game=True)
            for _ in range(5):
                tab.say("pause", take=number)
                tab.say("edit", take=number, chunk=4, text="x" * 1000)
                tab.say("resume", take=number)
                tab.say("play", take=number, on=True)
                tab.say("play", take=number, on=False)
            tab.until("status", status="finished", take=number)
            tab.say("close", take=number)
            tab.until("closed", take=number)
        assert len(log) <= settled + 2  # and that the last is closed
        with studio.tab(session) as late:
            late.until("live")
            assert {m["take"] for m in late.story() if m["type"] != "closed"} == {0}


def test_a_late_viewer_hears_the_plan(open_studio, monkeypatch):
    """Its tokens are gone with the first words."""
    studio = open_studio(0.002)
    session = studio.session()
    with studio.tab(session) as tab:
        tab.make(mode="think2v")
        tab.until("status", status="finished")
        with studio.tab(session) as late:
            late.until("live")
            assert not [m for m in late.seen if m["type"] == "token"]
            plan = late.until("plan")["text"]
            assert plan == tab.until("plan")["text"] == tab.until("words", chunk=0)["text"]


def test_a_session_that_nobody_watched_makes_room_first(studio, monkeypatch):
    monkeypatch.setattr(limits, "MAX_SESSIONS", 2)
    left = studio.session()
    with studio.tab(left) as tab:
        tab.until("live")
    for _ in range(5):
        studio.session()
    with studio.tab(left) as tab:  # a reload finds it
        tab.until("live")


def test_hello_outlives_what_a_tab_does_not_read(open_studio, monkeypatch):
    studio = open_studio()
    session = studio.app.state.worker.sessions[studio.session()]

    async def crowd():
        first = session.join()
        first.tell({"type": "hello"})
        for _ in range(200):
            first.tell({"type": "error"})
        others = [session.join() for _ in range(limits.MAX_VIEWERS - 1)]
        with pytest.raises(ValueError, match="200 tabs"):
            session.join()
        message = await first.messages()
        for viewer in (first, *others):
            session.leave(viewer)
        return message

    heard = asyncio.run(crowd())
    assert heard.startswith('[{"type": "hello"}') and heard.count('"error"') == limits.MAX_PRIVATE - 1
    assert '{"type": "viewers", "count": 200}' in heard


def test_one_tab_cannot_fill_the_queue(open_studio, monkeypatch):
    monkeypatch.setattr(limits, "MAX_WAITING_OF_ONE", 3)
    studio = open_studio(1.0)
    session = studio.session()
    with studio.tab(session) as tab, studio.tab(session) as other:
        tab.make(seconds=1.0)
        tab.until("take")
        for _ in range(8):
            tab.say("pause", take=0)
        assert "busy" in tab.until("error")["message"]
        other.say("stop", take=0)
        other.until("status", status="stopped")
        assert not [m for m in other.seen if m["type"] == "error"]


def test_an_error_repeats_little_of_what_was_said(studio):
    with studio.tab(studio.session()) as tab:
        tab.socket.send_text('{"type": "%s"}' % ("x" * 10_000))
        tab.socket.send_text('{"type": "pause", "take": 0, "%s": 1}' % ("y" * 10_000))
        tab.until("error")
        tab.say("close", take=99)
        tab.until("error", message="there is no take 99 in this session")
        assert max(len(m["message"]) for m in tab.seen if m["type"] == "error") < 250


def png(side):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


class Body:
    """A request whose body comes in pieces, with a pause before each; None: the line breaks."""

    def __init__(self, pieces, pause=0.0, headers=(), host="127.0.0.1"):
        self.pieces, self.pause, self.headers = list(pieces), pause, dict(headers)
        self.client = SimpleNamespace(host=host)

    async def receive(self):
        await asyncio.sleep(self.pause)
        piece = self.pieces.pop(0)
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}


def send(*bodies):
    """The answers to some uploads at once, and what is held after them."""

    async def run():
        desk = Uploads()
        answers = await asyncio.gather(
            *(desk.receive(body, 32, 32) for body in bodies), return_exceptions=True
        )
        return answers, desk._held.total(), desk._waiting

    return asyncio.run(run())


def test_uploads_are_bounded_together(monkeypatch):
    whole = png(50)
    monkeypatch.setattr(limits, "MAX_UPLOAD_BYTES", 3 * len(whole))
    answers, *left = send(*[Body([whole[:4000], whole[4000:]], 0.01) for _ in range(6)])
    refused = [answer for answer in answers if isinstance(answer, HTTPException)]
    assert 0 < len(refused) < 6 and {(e.status_code, e.detail) for e in refused} == {(503, uploads.BUSY)}
    assert left == [0, 0]


def test_uploads_that_stall_at_one_address_leave_room_for_others(monkeypatch):
    monkeypatch.setattr(limits, "UPLOAD_SECONDS", 2.0)
    big = b"x" * (10 << 20)
    stalled = [Body([big[:-10], *[b"x"] * 9], 0.4, host=f"2001:db8::{n}") for n in range(6)]  # one household
    late = [Body([png(50) + bytes(5 << 20)], 1.0, host=f"127.0.0.{n}") for n in (1, 2)]
    answers, *left = send(*stalled, *late)
    assert {(e.status_code, e.detail) for e in answers[2:6]} == {(503, uploads.BUSY_OF_ONE)}
    assert [answer.status_code for answer in answers[:2]] == [408, 408]
    assert [answer.size for answer in answers[6:]] == [(50, 50)] * 2
    assert left == [0, 0]


def test_an_upload_that_stops_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(limits, "UPLOAD_SECONDS", 0.5)
    whole = png(50)
    slow = [Body([b"x"] * 1000, 0.2) for _ in range(100)]
    answers, *left = send(
        *slow, Body([whole]), Body([b"x", None]), Body([b""], headers={"content-length": 1 << 30})
    )
    assert {answer.status_code for answer in answers[:100]} == {408}
    assert "not arrived within 0.5 s" in answers[0].detail
    assert answers[100].size == (50, 50)
    assert [answer.status_code for answer in answers[101:]] == [400, 413]
    assert left == [0, 0]


def test_pictures_wait_in_a_bounded_line(monkeypatch):
    monkeypatch.setattr(limits, "MAX_PICTURES_WAITING", 3)
    answers, *left = send(*[Body([png(20)]) for _ in range(8)])
    assert sorted(getattr(answer, "status_code", 200) for answer in answers) == [200] * 3 + [503] * 5
    assert left == [0, 0]


@pytest.fixture
def encodings(monkeypatch):
    """How many encodings there were, and the most at once; each takes a moment."""
    seen = {"now": 0, "most": 0, "all": 0}
    lock, encode = threading.Lock(), downloads.encode_clips

    def slow(*args, **options):
        with lock:
            seen["now"] += 1
            seen["all"] += 1
            seen["most"] = max(seen["most"], seen["now"])
        time.sleep(0.1)
        try:
            return encode(*args, **options)
        finally:
            with lock:
                seen["now"] -= 1

    monkeypatch.setattr(downloads, "encode_clips", slow)
    return seen


def take_of(count, number=0):
    """A stand-in for a take: `count` chunks of frames that do not compress."""
    pixels = np.random.default_rng(number).integers(0, 256, (count, 4, 32, 32, 3), np.uint8)
    return SimpleNamespace(number=number, frames=list(pixels), video=None)


def answers_of(takes, *wanted):
    """What Downloads answers when all of `wanted` are asked for at once: bytes, or a status."""

    async def run():
        desk = Downloads(lambda: takes)
        found = await asyncio.gather(*(desk.send_video(take) for take in wanted), return_exceptions=True)
        return [getattr(answer, "file", answer) for answer in found]

    return [getattr(answer, "data", None) or answer.status_code for answer in asyncio.run(run())]


def test_a_take_is_encoded_once(studio, encodings):
    session = studio.session()
    with studio.tab(session) as tab:
        tab.make()
        tab.until("status", status="finished")
        path = f"/api/sessions/{session}/takes/0/video.mp4"
        videos = {studio.web.get(path).content for _ in range(3)}
        assert len(videos) == 1 and encodings["all"] == 1
        assert round(probe(videos.pop()).seconds * 16) == 49
        tab.say("close", take=0)
        tab.until("closed")
        assert studio.web.get(path).status_code == 404


def test_one_encoding_at_a_time_and_few_wait(monkeypatch, encodings):
    monkeypatch.setattr(limits, "MAX_VIDEOS_WAITING", 4)
    takes = [take_of(2, number) for number in range(6)]
    found = answers_of(takes, *takes)
    assert encodings == {"now": 0, "most": 1, "all": 4}
    assert found[4:] == [503, 503] and all(isinstance(video, bytes) for video in found[:4])
    encodings["all"] = 0
    grown = takes[0]
    grown.frames = [*grown.frames, grown.frames[0]]
    answers_of(takes, grown, grown, takes[1])
    assert encodings["all"] == 1  # what grew is another video, once


def test_kept_videos_make_room_and_those_being_sent_do_not(monkeypatch, encodings):
    takes = [take_of(4, number) for number in range(3)]
    size = len(answers_of(takes[:1], takes[0])[0])
    takes[0].video = None
    monkeypatch.setattr(limits, "MAX_VIDEO_BYTES", size + 2000)
    monkeypatch.setattr(limits, "MAX_DOWNLOAD_BYTES", 2 * size + 4000)

    async def run():
        desk = Downloads(lambda: takes)
        for take in takes:
            await desk.send_video(take)  # nobody holds on to the answers
        kept = [take.video is not None for take in takes]
        sent = [await desk.send_video(take) for take in takes[:2]]
        with pytest.raises(HTTPException) as refused:
            await desk.send_video(takes[2])
        del sent
        await desk.send_video(takes[2])
        return kept, refused.value

    kept, refused = asyncio.run(run())
    assert kept == [False, False, True] and (refused.status_code, refused.detail) == (503, downloads.BUSY)


def test_a_video_that_is_too_large_says_so(monkeypatch):
    monkeypatch.setattr(limits, "MAX_VIDEO_BYTES", 1 << 16)
    take = take_of(60)
    assert answers_of([take], take) == [409]


def test_a_file_is_sent_in_pieces(monkeypatch):
    monkeypatch.setattr(limits, "PIECE_BYTES", 10)

    async def run():
        answer = Downloads(list).send(b"x" * 25, "text/plain", "x.txt")
        transport = httpx.ASGITransport(app=answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/")

    answer = asyncio.run(run())
    assert answer.content == b"x" * 25 and answer.headers["content-length"] == "25"
    assert answer.headers["content-disposition"] == 'attachment; filename="x.txt"'
