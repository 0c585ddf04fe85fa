"""Many viewers, and connections that never finish: memory stays flat, and the others are served."""

import asyncio
import contextlib
import io
import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from websockets.asyncio.client import connect
from websockets.sync.client import connect as connect_sync

from megatv.studio import limits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
MIB = 1 << 20
HANDSHAKE = (
    "GET /ws/{} HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def watch(target, ready, wish=None):
    """One tab: how many chunks of frames it saw until a take ended, and the last count of viewers."""
    async with connect(target, max_size=None, compression=None) as tab:
        chunks = 0
        while True:
            message = await asyncio.wait_for(tab.recv(), 60)
            if isinstance(message, bytes):
                chunks += 1
                continue
            for said in json.loads(message):
                if said["type"] == "refused":
                    return said["message"]
                if said["type"] == "live":
                    ready.release()
                if said["type"] == "status" and said["status"] == "finished":
                    return chunks


def wish(**fields):
    usual = {"type": "make", "prompt": "", "seconds": 3.0, "steps": 2, "temperature": 1.0, "cfg": 1.0}
    return json.dumps(usual | fields)


def finish(tab, take):
    """Read on until a take is finished."""
    while True:
        message = tab.recv(timeout=60)
        if isinstance(message, str) and any(
            m["type"] == "status" and m["take"] == take and m["status"] == "finished"
            for m in json.loads(message)
        ):
            return


def test_200_viewers_of_one_session(real_studio):
    studio = real_studio
    session = studio.session()
    with connect_sync(studio.sockets + session, max_queue=None) as tab:
        tab.send(wish())
        finish(tab, 0)
        tab.send(json.dumps({"type": "close", "take": 0}))
    before = studio.memory()

    async def crowd():
        ready = asyncio.Semaphore(0)
        target = studio.sockets + session
        tabs = [asyncio.create_task(watch(target, ready)) for _ in range(limits.MAX_VIEWERS)]
        for _ in tabs:
            await ready.acquire()
        assert "200 tabs watch this session already" in await watch(target, ready)
        one, *others = tabs
        async with connect(studio.sockets + studio.session()):  # another session is served, too
            pass
        one.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await one
        while True:  # its place is free as soon as the studio notices
            async with connect(target, compression=None) as maker:
                first = json.loads(await maker.recv())
                if first[0]["type"] != "refused":
                    await maker.send(wish())
                    seen = await asyncio.gather(*others)
                    return seen, studio.memory()

    seen, during = asyncio.run(crowd())
    assert seen == [13] * 199
    assert during - before < 100 * MIB
    assert studio.memory() - before < 100 * MIB


def make_takes(tab, numbers):
    """Long takes of the fake model, 3 MiB of frames each."""
    for number in numbers:
        tab.send(wish(seconds=60.0, seed=number))
        finish(tab, number)


def viewers(tab):
    """The next count of viewers that the tab hears, or None within a second."""
    with contextlib.suppress(TimeoutError):
        while True:
            message = tab.recv(timeout=1)
            for said in json.loads(message) if isinstance(message, str) else []:
                if said["type"] == "viewers":
                    return said["count"]
    return None


def test_a_viewer_who_reads_a_byte_a_second(studio):
    """More frames than the system's buffers hold wait for each of them; 20 of them delay nobody."""
    session = studio.session()
    with connect_sync(studio.sockets + session, compression=None) as tab:
        make_takes(tab, range(3))
        before = studio.memory()
        slow = [studio.line(HANDSHAKE.format(session).encode(), receives=4096) for _ in range(20)]
        seen = 0
        while seen != 21:
            seen = viewers(tab)
        make_takes(tab, range(3, 4))
        while seen != 1:  # they are cut off
            for found in slow:
                found.recv(1)
            seen = viewers(tab)
        assert studio.memory() - before < 60 * MIB
        make_takes(tab, range(4, 5))
    for found in slow:
        found.close()


UPLOAD = "POST /api/sessions/{}/picture HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nabc"


def test_connections_that_never_finish(studio):
    """More of each kind than there are places, twice: nobody is locked out, and all are ended."""
    session = studio.session()
    before = studio.memory()
    kinds = [
        b"",
        b"GET / HTTP/1.1\r\nho",
        HANDSHAKE.format(session)[:-2].encode(),
        UPLOAD.format(session).encode(),
    ]
    for said in kinds:
        lines = [studio.line(said) for _ in range(100)]
        with connect_sync(studio.sockets + session, max_queue=None) as tab:
            tab.send(wish(seconds=1.0))
            while isinstance(tab.recv(timeout=20), str):
                pass
        began = time.monotonic()
        for found in lines:
            with contextlib.suppress(ConnectionError):
                while found.recv(1 << 16):
                    pass
            found.close()
        assert time.monotonic() - began < 15
    uploads = [studio.line(kinds[-1]) for _ in range(40)]
    assert upload(studio, session, picture(100)) == 200
    for found in uploads:
        assert b"408" in found.recv(100)
        found.close()
    assert studio.memory() - before < 40 * MIB


def test_a_handshake_then_silence(studio):
    """A process that was stopped answers no ping; its place is free again after some time."""
    session = studio.session()
    with connect_sync(studio.sockets + session, max_queue=None) as tab:
        lines = [studio.line(HANDSHAKE.format(session).encode()) for _ in range(3)]
        seen = 0
        while seen != 4:
            seen = viewers(tab)
        while seen != 1:
            seen = viewers(tab)
    for found in lines:
        found.close()


def picture(side):
    file = io.BytesIO()
    flat = np.zeros((side, side, 3), np.uint8)
    Image.fromarray(flat).save(file, "PNG")
    return file.getvalue()


def upload(studio, session, data):
    """The status of one upload."""
    ask = urllib.request.Request(f"{studio.web}/api/sessions/{session}/picture", data, method="POST")
    try:
        with urllib.request.urlopen(ask, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def together(count, work):
    """Do the same in so many threads, and return what each got."""
    found = [None] * count

    def one(at):
        found[at] = work(at)

    threads = [threading.Thread(target=one, args=(at,)) for at in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_many_large_pictures_at_once(studio):
    """16 million pixels each; what is larger still takes no more."""
    session = studio.session()
    large, larger = picture(4000), picture(8000)
    assert upload(studio, session, picture(10)) == 200
    before = studio.memory()
    most = 0

    def look():
        nonlocal most
        while not done.is_set():
            most = max(most, studio.memory())
            time.sleep(0.01)

    done = threading.Event()
    looking = threading.Thread(target=look)
    looking.start()
    answers = together(8, lambda at: upload(studio, session, large if at % 2 else larger))
    done.set()
    looking.join()
    assert answers == [422, 200] * 4
    assert most - before < 60 * MIB and studio.memory() - before < 30 * MIB


def test_one_take_downloaded_by_many_who_do_not_read(studio):
    session = studio.session()
    with connect_sync(studio.sockets + session, compression=None) as tab:
        tab.send(wish(seconds=60.0))
        finish(tab, 0)
        path = f"/api/sessions/{session}/takes/0/video.mp4"
        with urllib.request.urlopen(studio.web + path, timeout=60) as answer:
            whole = answer.read()
        before = studio.memory()
        ask = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
        lines = [studio.line(ask, receives=4096) for _ in range(40)]
        time.sleep(1)
        assert studio.memory() - before < 40 * MIB
        with urllib.request.urlopen(studio.web + path, timeout=60) as answer:
            assert answer.read() == whole
        for found in lines:
            found.close()


def test_a_session_that_lasts(studio):
    """Takes made and closed, paused and gone on with, for as long as it takes to see memory grow."""
    session = studio.session()
    sizes = []
    with connect_sync(studio.sockets + session, compression=None) as tab:
        for number in range(24):
            tab.send(wish(seconds=20.0, seed=number))
            for _ in range(20):
                tab.send(json.dumps({"type": "pause", "take": number}))
                tab.send(json.dumps({"type": "edit", "take": number, "chunk": 70, "text": "x" * 4000}))
                tab.send(json.dumps({"type": "resume", "take": number}))
                time.sleep(0.001)
            finish(tab, number)
            tab.send(json.dumps({"type": "close", "take": number}))
            sizes.append(studio.memory())
    assert sizes[-1] - sizes[7] < 20 * MIB, [size // MIB for size in sizes]
