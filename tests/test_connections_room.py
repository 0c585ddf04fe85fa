"""When all places of a server are taken: who makes room for a newcomer, and who is refused."""

import importlib.util
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.sync.client import connect

from megatv.connections import MAX_REFUSED, REFUSAL

_spec = importlib.util.spec_from_file_location("loopback", Path(__file__).with_name("loopback.py"))
loopback = importlib.util.module_from_spec(_spec)
sys.modules["loopback"] = loopback
_spec.loader.exec_module(loopback)
server, errors = loopback.server, loopback.errors
BOUNDS, GET, UPGRADE = loopback.BOUNDS, loopback.GET, loopback.UPGRADE
line, hear, answers, settled = loopback.line, loopback.hear, loopback.answers, loopback.settled

pytestmark = pytest.mark.timeout(60)
HALF_A_BODY = b"POST /slow HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nabc"


@pytest.mark.parametrize("others", [b"", b"GET / HT", UPGRADE[:-2], HALF_A_BODY, GET])
def test_those_who_never_finish_lock_nobody_out(server, others):
    idle = [socket.create_connection(server.address) for _ in range(30)]
    try:
        for found in idle:
            found.sendall(others)
            assert answers(server)
        assert len(server.server_state.connections) <= BOUNDS.total
    finally:
        for found in idle:
            found.close()


def test_when_all_are_served_a_newcomer_is_refused_with_a_sentence(server):
    target = "ws://{}:{}".format(*server.address)
    with ExitStack() as stack:
        tabs = [stack.enter_context(connect(target)) for _ in range(BOUNDS.total)]
        for _ in range(40):  # who says nothing is refused, too
            stack.enter_context(line(server))
        with line(server, GET) as found:
            answer = hear(found)
        assert answer.startswith(b"HTTP/1.1 503") and answer.endswith(REFUSAL.encode())
        assert len(server.server_state.connections) <= BOUNDS.total + MAX_REFUSED
        tabs.pop().close()
        while not answers(server):
            time.sleep(0.05)
        for tab in tabs:
            tab.send("still here")
            assert tab.recv(timeout=10) == "still here"


SERVED = GET.replace(b"/ ", b"/slow ") * 20
FAR = "127.0.0.9"


def test_a_crowd_from_one_address_makes_room_for_others_though_all_of_it_is_served(server):
    """Each has asked for so much at once that the server waits for none of them."""
    with ExitStack() as stack:
        crowd = [stack.enter_context(line(server, SERVED)) for _ in range(BOUNDS.total)]
        all_are_served(server)
        assert not answers(server)  # its own kind does not displace it
        for _ in range(5):
            assert answers(server, FAR)
        assert sum(is_open(found) for found in crowd) >= BOUNDS.total - 5


def test_websockets_that_stay_open_make_room_for_others(server):
    target = "ws://{}:{}".format(*server.address)
    with ExitStack() as stack:
        tabs = [stack.enter_context(connect(target)) for _ in range(BOUNDS.total)]
        assert not answers(server) and answers(server, FAR)
        with line(server, UPGRADE, FAR) as own:  # and who came that way is not displaced by the crowd
            assert b"101" in own.recv(1000)
            for _ in range(5):
                assert not answers(server)
            own.sendall(bytes([0x81, 0x82]) + bytes(4) + b"hi")
            assert own.recv(1000).endswith(b"hi")
        assert tabs


def test_who_holds_few_is_not_displaced_by_who_holds_many(server):
    """Also where the server waits for the few: one who sends a head slowly, or reads slowly."""
    with line(server, GET[:-2], FAR) as slow, ExitStack() as stack:
        while len(server.server_state.connections) != 1:
            time.sleep(0.01)
        for _ in range(2 * BOUNDS.total):
            stack.enter_context(line(server, GET[:-2]))
        assert answers(server)  # so that all of them have come
        slow.sendall(b"\r\n")
        assert b"is us" in hear(slow)


def test_addresses_that_hold_as_many_end_nothing_that_is_served(server):
    with ExitStack() as stack:
        for number in range(BOUNDS.total):
            stack.enter_context(line(server, SERVED, f"127.0.0.{10 + number}"))
        all_are_served(server)
        assert not answers(server, FAR)


def all_are_served(server):
    """Wait until every place is taken by somebody whose request has come."""
    while True:
        found = list(server.server_state.connections)
        if len(found) == BOUNDS.total and all(connection.cycle for connection in found):
            return
        time.sleep(0.01)


def is_open(found):
    """Whether the server has not ended a connection; what it sent is thrown away."""
    found.settimeout(0.2)
    try:
        while found.recv(1 << 16):
            pass
    except TimeoutError:
        return True
    except ConnectionResetError:
        pass
    return False


def test_the_reader_waited_for_longest_makes_room(server):
    """Before a newer connection that has said nothing: who is least likely to go on goes first."""
    with ExitStack() as stack:
        reader = stack.enter_context(line(server))
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(GET.replace(b"/ ", b"/large "))
        (served,) = loopback.one_served(server)
        target = "ws://{}:{}".format(*server.address)
        tabs = [stack.enter_context(connect(target)) for _ in range(BOUNDS.total - 2)]
        newer = stack.enter_context(line(server))
        while len(server.server_state.connections) != BOUNDS.total:
            time.sleep(0.01)
        assert answers(server)
        assert served not in server.server_state.connections
        newer.sendall(GET)
        assert b"is us" in hear(newer)
        for tab in tabs:
            tab.send("still here")
            assert tab.recv(timeout=10) == "still here"


def test_a_websocket_that_is_not_accepted_is_ended_and_makes_room(server, errors):
    hold = UPGRADE.replace(b"/ws", b"/never")
    with ExitStack() as stack:
        lines = [stack.enter_context(line(server, hold)) for _ in range(BOUNDS.total + 2)]
        assert answers(server)
        for found in lines:
            assert loopback.seconds_to_end(found) < 5
    settled(server, 0)
    assert not errors
