"""A server has as many file descriptors as the system grants, and says once that none is left."""

import importlib.util
import os
import resource
import socket
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from megatv.connections import BACKLOG, Server
from megatv.descriptors import NONE_LEFT

_spec = importlib.util.spec_from_file_location("loopback", Path(__file__).with_name("loopback.py"))
loopback = importlib.util.module_from_spec(_spec)
sys.modules["loopback"] = loopback
_spec.loader.exec_module(loopback)
server, errors = loopback.server, loopback.errors

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def limits():
    """This process's soft and hard limit, restored after the test."""
    found = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield found
    resource.setrlimit(resource.RLIMIT_NOFILE, found)


def test_few_newcomers_are_let_in_at_a_time():
    assert Server(loopback.app, loopback.BOUNDS).config.backlog == BACKLOG == 128


def test_the_limit_is_raised_at_the_start(limits):
    hard = limits[1]
    if hard <= 512:
        pytest.skip("the system grants few descriptors, or names no limit")
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    with loopback.serving(loopback.BOUNDS) as server:
        assert loopback.answers(server)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_that_none_is_left_is_said_once(server, errors, limits):
    assert loopback.answers(server)
    loopback.settled(server, 0)
    with ExitStack() as stack:
        lines = [stack.enter_context(closing(socket.socket())) for _ in range(5)]
        lowest = os.dup(lines[0].fileno())
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        for found in lines:
            found.connect(server.address)
        while not errors:
            time.sleep(0.01)
        time.sleep(0.2)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        lines[0].sendall(loopback.GET)
        assert b"is us" in loopback.hear(lines[0])
    assert [record.getMessage() for record in errors] == [NONE_LEFT]


def test_other_faults_of_the_loop_are_logged_as_ever(server, errors):
    loopback.answers(server)
    loop = server.servers[0].get_loop()
    for _ in range(2):
        loop.call_soon_threadsafe(lambda: 1 // 0)
    while len(errors) < 2:
        time.sleep(0.01)
    assert all(record.exc_info for record in errors)
