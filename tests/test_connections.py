"""Connections that never finish and readers that do not read; on loopback, with short time limits."""

import importlib.util
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from websockets.sync.client import connect

from megatv.connections import Server, WebSocket

_spec = importlib.util.spec_from_file_location("loopback", Path(__file__).with_name("loopback.py"))
loopback = importlib.util.module_from_spec(_spec)
sys.modules["loopback"] = loopback
_spec.loader.exec_module(loopback)
server = loopback.server
BOUNDS, GET, UPGRADE = loopback.BOUNDS, loopback.GET, loopback.UPGRADE
line, hear, seconds_to_end, settled = loopback.line, loopback.hear, loopback.seconds_to_end, loopback.settled

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("said", [b"", b"GET / HT", GET[:-2], UPGRADE[:-2], GET, GET * 3])
def test_a_connection_that_asks_nothing_more_is_ended(server, said):
    with line(server, said) as found:
        assert seconds_to_end(found) < 5
    settled(server, 0)


@pytest.mark.parametrize("drip", [b"x", b"x: y\r\n"])
def test_dripping_does_not_win_time(server, drip):
    with line(server, GET[:-2]) as found, pytest.raises(OSError):
        for _ in range(100):
            found.sendall(drip)
            time.sleep(0.1)


def test_dripping_the_body_of_an_answered_request_does_not_either(server):
    said = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10000\r\n\r\n"
    with line(server, said) as found, pytest.raises(OSError):
        for _ in range(100):
            found.sendall(b"x")
            time.sleep(0.1)


def test_nor_does_dripping_the_body_that_an_answer_waits_for(server):
    said = b"POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10000\r\n\r\n"
    began = time.monotonic()
    with line(server, said) as found, pytest.raises(OSError):
        for _ in range(100):
            found.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() - began < 5
    settled(server, 0)


def test_who_asks_on_is_served_on_and_who_waits_is_not_hurried(server):
    with line(server) as busy, line(server, GET.replace(b"/ ", b"/slow ")) as waits:
        for _ in range(12):
            busy.sendall(GET)
            assert b"is us" in hear(busy)
            time.sleep(0.1)
        assert b"is us" in hear(waits)


@pytest.mark.parametrize("said", [GET.replace(b"/ ", b"/large "), UPGRADE])
def test_a_reader_who_does_not_read_is_cut_off(server, said):
    with line(server) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.sendall(said)
        if said == UPGRADE:
            assert found.recv(1000)
            found.sendall(bytes([0x81, 0x80 | 5]) + bytes(4) + b"flood")
        for _ in range(100):
            if not server.server_state.connections:
                break
            found.recv(1)  # a byte at a time is not reading
            time.sleep(0.05)
        settled(server, 0)


def test_a_reader_who_reads_a_little_and_then_nothing_is_cut_off(server):
    """Below the mark at which writing stops, though not below the one at which it goes on."""
    with line(server) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.sendall(GET.replace(b"/ ", b"/large "))
        (served,) = loopback.one_served(server)
        while served.transport.get_write_buffer_size() > served.transport.get_write_buffer_limits()[1]:
            assert found.recv(1 << 16)
        settled(server, 0)


def test_a_server_without_websockets_has_none():
    bounds = replace(BOUNDS, max_parts=0)
    assert (
        Server(loopback.app, bounds).config.ws == "none"
        and Server(loopback.app, BOUNDS).config.ws is WebSocket
    )


def test_a_reader_who_is_slow_but_reads_is_not(server):
    with line(server, GET.replace(b"/ ", b"/large ")) as found:
        read, began = 0, time.monotonic()
        while read < 64 << 20:
            piece = found.recv(1 << 20)
            assert piece, "it was cut off"
            read += len(piece)
            time.sleep(0.02 if time.monotonic() - began < 3 else 0)
        assert time.monotonic() - began > BOUNDS.stalled_seconds


def test_pings_that_nobody_reads_the_answers_of(server):
    with line(server, UPGRADE) as found:
        assert found.recv(1000)
        pings = (bytes([0x89, 0x80 | 100]) + bytes(4) + bytes(100)) * 600
        with pytest.raises(OSError):
            for _ in range(10_000):
                found.sendall(pings)
    settled(server, 0)


def test_a_clock_that_jumps_hurries_nobody(server, monkeypatch):
    target = "ws://{}:{}".format(*server.address)
    with connect(target) as tab, line(server) as busy:
        for now in (0.0, 4e9, 1e9):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            busy.sendall(GET)
            assert b"is us" in hear(busy)
            time.sleep(0.2)
            tab.send("here")
            assert tab.recv(timeout=10) == "here"
    with line(server) as found:
        assert seconds_to_end(found) < 5
