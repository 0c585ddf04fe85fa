"""What breaks HTTP or the WebSocket protocol, or bends it, ends its own connection: quietly, and guarded."""

import importlib.util
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from megatv.connections import Server

_spec = importlib.util.spec_from_file_location("loopback", Path(__file__).with_name("loopback.py"))
loopback = importlib.util.module_from_spec(_spec)
sys.modules["loopback"] = loopback
_spec.loader.exec_module(loopback)
server, errors = loopback.server, loopback.errors
GET, UPGRADE, CHUNKED = loopback.GET, loopback.UPGRADE, loopback.CHUNKED
line, hear, answers, settled = loopback.line, loopback.hear, loopback.answers, loopback.settled
seconds_to_end = loopback.seconds_to_end

pytestmark = pytest.mark.timeout(60)
PONG = bytes([0x8A, 0x80]) + bytes(4)


def test_a_message_in_endless_parts(server):
    with line(server, UPGRADE) as found:
        assert found.recv(1000)
        found.sendall(bytes([0x01, 0x80]) + bytes(4))
        with pytest.raises(OSError):
            for _ in range(10_000):
                found.sendall((bytes([0x00, 0x80]) + bytes(4)) * 1000)
                time.sleep(0.01)
    settled(server, 0)
    target = "ws://{}:{}".format(*server.address)
    with connect(target) as tab:
        tab.send(["a", "b", "c"])
        assert tab.recv(timeout=10) == "abc"
    with pytest.raises(ConnectionClosed), connect(target) as tab:
        tab.send("x" * (16 << 10 | 1))
        tab.recv(timeout=10)


def test_a_head_that_does_not_end(server):
    with line(server) as found, pytest.raises(OSError):
        for _ in range(1000):
            found.sendall(b"GET /" + b"x" * 10_000)
            time.sleep(0.005)


@pytest.mark.parametrize(
    "said",
    [
        UPGRADE[:-2] + b"content-length: 5\r\n\r\n",
        UPGRADE[:-2] + b"content-length: 5\r\n\r\nhe",
        UPGRADE[:-2] + b"content-length: 0\r\n\r\n",
        UPGRADE[:-2] + b"transfer-encoding: chunked\r\n\r\n",
        UPGRADE[:-2] + b"a: b\r\n" * 200 + b"\r\n",
        UPGRADE[:-2] + b"a: " + b"b" * 9000 + b"\r\n\r\n",
        UPGRADE.replace(b"GET /ws", b"GET /" + b"w" * 9000),
        UPGRADE.replace(b"GET", b"POST"),
    ],
    ids=[
        "a body",
        "half a body",
        "an empty body",
        "chunks",
        "many lines",
        "a long line",
        "a long path",
        "POST",
    ],
)
def test_an_upgrade_of_which_no_websocket_is_made_is_refused(server, said):
    with line(server, said) as found:
        answer = hear(found)
        while piece := found.recv(1000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 4") or (b"POST" in said and b"is us" in answer)
    settled(server, 0)


@pytest.mark.parametrize("length", [b"5", b"0"])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_a_request_of_two_lengths_is_refused(server, errors, length, version):
    """Of which a proxy might believe the other one, and pass the rest on as another person's request."""
    head = CHUNKED[:-2] + b"content-length: " + length + b"\r\n\r\n"
    with line(server, head.replace(b"HTTP/1.1", version) + b"0\r\n\r\n" + GET) as found:
        answer = b""
        while piece := found.recv(1000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1
    settled(server, 0)
    assert not errors


def test_chunks_are_no_part_of_http_1_0(server):
    with line(server, CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n") as found:
        assert hear(found).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("head", "small"),
    [
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED.replace(b"/body", b"/"), b"1\r\nx\r\n"),
        (UPGRADE, PONG),
        (UPGRADE, bytes([0x89, 0x80]) + bytes(4)),
        (UPGRADE, bytes([0x81, 0x80]) + bytes(4)),
    ],
    ids=["chunks", "chunks after the answer", "pongs", "pings", "empty messages"],
)
def test_many_small_pieces_end_a_connection(server, errors, head, small):
    sent = 0
    with line(server, head) as found, pytest.raises(OSError):
        if head == UPGRADE:
            assert found.recv(1000)
        for _ in range(1000):
            found.sendall(small * 1000)
            sent += 1000
            time.sleep(0.001)
    assert sent < 100_000
    settled(server, 0)
    assert answers(server)
    assert not errors


def test_bodies_of_chunks_that_are_large_enough_and_frames_that_come_in_time_pass(server):
    with line(server, CHUNKED) as found:
        for _ in range(2000):
            found.sendall(b"40\r\n" + b"x" * 64 + b"\r\n")
        found.sendall(b"0\r\n\r\n")
        assert b"is us" in hear(found)
    with line(server) as found:
        for _ in range(400):  # short bodies, one after the other
            found.sendall(CHUNKED + b"1\r\nx\r\n0\r\n\r\n")
            assert b"is us" in hear(found)
    with connect("ws://{}:{}".format(*server.address)) as tab:
        for _ in range(600):
            tab.send("a")
            assert tab.recv(timeout=10) == "a"
            time.sleep(0.001)


@pytest.mark.parametrize(
    "said",
    [
        CHUNKED.replace(b"/body", b"/") + b"zz\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"1;" + b"x" * 100_000,
        CHUNKED.replace(b"/body", b"/") + b"1;" + b"x" * 100_000,
        CHUNKED.replace(b"/body", b"/large") + b"zz\r\n",
        CHUNKED.replace(b"/body", b"/slow") + b"zz\r\n",
        UPGRADE + bytes([0x81, 0x82]) + bytes(4) + b"\xff\xfe",
        UPGRADE + bytes([0x83, 0x80]) + bytes(4),
    ],
    ids=[
        "late chunk",
        "chunk",
        "extension",
        "late extension",
        "while sending",
        "while waiting",
        "text",
        "frame",
    ],
)
@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_what_breaks_the_protocol_is_a_quiet_end(server, errors, said, wait):
    head, _, rest = said.partition(b"\r\n\r\n")
    try:
        with line(server, head + b"\r\n\r\n") as found:
            time.sleep(wait)
            found.sendall(rest)
            seconds_to_end(found)
    except OSError:
        pass
    settled(server, 0)
    time.sleep(1.5 * (b"/slow" in said))
    assert not errors


def test_a_head_that_comes_at_once_is_bounded_too(server):
    bounded = GET[:-2] + b"".join(b"a%d: %s\r\n" % (i, b"b" * 1000) for i in range(100)) + b"\r\n"
    with line(server, bounded) as found:
        assert b"HTTP/1.1 4" in found.recv(1000)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (GET, 200),
        (b"GARBAGE\r\n\r\n", 400),
        (GET.replace(b"HTTP/1.1", b"HTTP/9"), 400),
        (GET[:-2] + b"content-length: x\r\n\r\n", 400),
        (GET.replace(b"localhost", b"evil.example"), 403),
        (GET[:-2] + b"origin: http://evil.example\r\n\r\n", 403),
        (UPGRADE[:-2] + b"content-length: 5\r\n\r\n", 400),
        (UPGRADE.replace(b"GET /ws", b"GET /" + b"w" * 9000), 400),
        (UPGRADE.replace(b"version: 13", b"version: 1"), 400),
        (UPGRADE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"), 400),
        (UPGRADE.replace(b"localhost", b"evil.example"), 403),
        (GET.replace(b"/ ", b"/fault "), 500),
        (UPGRADE.replace(b"/ws", b"/fault"), 500),
    ],
)
def test_every_answer_forbids_foreign_content(server, said, status):
    """Those too that no application gives."""
    with line(server, said) as found:
        answer = hear(found)
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 %d" % status)
    for header in (
        b"content-security-policy: default-src 'self'",
        b"x-content-type-options: nosniff",
        b"cross-origin-resource-policy: same-origin",
        b"referrer-policy: no-referrer",
    ):
        assert head.count(b"\r\n" + header) == 1, answer


def test_requests_that_cannot_be_read_are_not_logged(server, errors):
    """Anybody could fill a disk with them."""
    for said in (
        b"GARBAGE\r\n\r\n",
        GET[:-2] + b"content-length: x\r\n\r\n",
        UPGRADE[:-2] + b"a: b\r\n" * 200,
    ):
        for _ in range(3):
            with line(server, said) as found:
                seconds_to_end(found)
    assert not errors


def test_an_upgrade_where_there_are_no_websockets_is_not_logged_either(errors):
    bounds = replace(loopback.BOUNDS, max_parts=0)
    with loopback.serving(bounds) as server, line(server, UPGRADE.replace(b"/ws", b"/")) as found:
        assert b"is us" in hear(found)
    assert not errors


def test_nobody_says_for_whom_he_asks_unless_a_proxy_is_named():
    app, bounds = loopback.app, loopback.BOUNDS
    assert Server(app, bounds).config.proxy_headers is False
    assert Server(app, bounds, proxy_headers=True).config.proxy_headers is True
