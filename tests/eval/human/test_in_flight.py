"""Requests whose senders do not wait for an answer: bounded, and others are answered."""

import asyncio
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager

import pytest

from megatv.eval.human import in_flight
from megatv.eval.human.answers import Answers
from megatv.eval.human.desk import Desk
from megatv.eval.human.in_flight import MAX_OF_ONE, MAX_OF_RATER, MAX_REQUESTS, REFUSAL, InFlight
from megatv.eval.human.run import server_of
from megatv.guard import own_names

pytestmark = pytest.mark.timeout(60)
ASK = b"GET %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


@contextmanager
def serving(desk):
    """The page's server on loopback; `address` is where it listens."""
    server = server_of(desk, own_names("127.0.0.1"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    server.address = listening.getsockname()
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def asking(server, path, source="127.0.0.1"):
    found = socket.create_connection(server.address, timeout=20, source_address=(source, 0))
    found.sendall(ASK % path)
    return closing(found)


def hear(found):
    answer = b""
    while piece := found.recv(1 << 16):
        answer += piece
    return answer


def test_requests_that_are_dropped_are_bounded_and_others_are_answered(desk, monkeypatch):
    """Work on those of one address does not go on for a while; a second address has its turn after them."""
    gate = threading.Event()
    rater = Answers.rater
    monkeypatch.setattr(Answers, "rater", lambda self, token: (gate.wait(), rater(self, token))[1])
    with serving(desk()) as server:
        try:
            for _ in range(2000):
                with asking(server, b"/api/me"):
                    pass
            deadline = time.monotonic() + 20
            while server.server_state.connections and time.monotonic() < deadline:
                time.sleep(0.05)  # until all of them have come and gone
            assert len(server.server_state.tasks) == MAX_OF_ONE
            with asking(server, b"/api/me") as same:
                refused = hear(same)
            assert refused.startswith(b"HTTP/1.1 503") and REFUSAL.encode() in refused
            assert b"\r\nretry-after: 2\r\n" in refused and b"content-security-policy" in refused
            with asking(server, b"/api/study", "127.0.0.2") as other:
                gate.set()
                assert hear(other).startswith(b"HTTP/1.1 200")
            while server.server_state.tasks:
                time.sleep(0.05)
            with asking(server, b"/api/study") as same:  # what was held is free again
                assert hear(same).startswith(b"HTTP/1.1 200")
        finally:
            gate.set()


def test_a_network_keeps_a_share_when_others_fill_all():
    """Requests of 210 networks in turn, each of which sends very many."""

    async def flood():
        opened = asyncio.Event()

        async def app(scope, receive, send):
            await opened.wait()
            raise ZeroDivisionError  # a fault, too, ends what it holds

        limit, refused, tasks = InFlight(app), [], []

        async def send(message):
            refused.append(message)

        for network in range(210):
            scope = {"type": "http", "client": (f"192.0.2.{network}", 1), "headers": []}
            tasks += [asyncio.create_task(limit(scope, None, send)) for _ in range(MAX_OF_ONE + 1)]
            await asyncio.sleep(0)
        held = dict(limit.count)
        opened.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return held, dict(limit.count)

    held, after = asyncio.run(flood())
    assert list(held.values())[:5] == [64, 64, 64, 50, 40]
    assert len(held) == MAX_REQUESTS and sum(held.values()) < 6 * MAX_REQUESTS
    assert not after


def test_one_rater_cannot_have_all_threads(desk, monkeypatch):
    """However the token is written; others of the same network, and those without one, are answered."""
    gate = threading.Event()
    following = Desk.next
    monkeypatch.setattr(Desk, "next", lambda self, rater: (gate.wait(), following(self, rater))[1])
    study = desk()
    (_, token), (_, another) = study.answers.invite("one"), study.answers.invite("two")
    number, _, secret = token.partition(".")

    def asking_as(*authorizations):
        found = socket.create_connection(server.address, timeout=20)
        lines = "".join(f"authorization: {value}\r\n" for value in authorizations)
        found.sendall(f"GET /api/next HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n".encode())
        return closing(found)

    with serving(study) as server, ExitStack() as stack:
        stack.callback(gate.set)
        spellings = [f"bearer {token}", f"BEARER  {token} ", f"Bearer 00{number}.{secret}"]
        asked = [stack.enter_context(asking_as(spellings[k % 3])) for k in range(MAX_OF_RATER)]
        while len(server.server_state.tasks) < MAX_OF_RATER:
            time.sleep(0.01)
        for spelling in (*spellings, f"Bearer {token}"):
            with asking_as(spelling) as more:
                assert more.recv(1 << 16).startswith(b"HTTP/1.1 503")
        with asking_as(f"Bearer {token}", "Bearer 1.x") as more:  # the first counts
            assert more.recv(1 << 16).startswith(b"HTTP/1.1 503")
        other = stack.enter_context(asking_as(f"Bearer {another}"))
        with asking(server, b"/api/study") as nobody:
            assert hear(nobody).startswith(b"HTTP/1.1 200")
        gate.set()
        for found in (*asked, other):
            assert found.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with asking_as(f"Bearer {token}") as again:
            assert again.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_who_has_no_address_is_one_network(monkeypatch):
    monkeypatch.setattr(in_flight, "MAX_OF_ONE", 0)
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(InFlight(None)({"type": "http", "client": None, "headers": []}, None, send))
    assert sent[0]["status"] == 503
