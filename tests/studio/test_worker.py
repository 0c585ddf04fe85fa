"""The worker's turns between commands and videos, and what must not end it."""

from types import SimpleNamespace

import pytest

from megatv.studio import worker as module
from megatv.studio.protocol import parse
from megatv.studio.session import Session
from megatv.studio.worker import Worker

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def run(monkeypatch):
    """run(seconds_of_a_job, jobs, at_once): what a worker did with one take that is due, pieces of half a
    second by a clock of its own, until the take was worked on 20 times.

    The jobs come after the first piece; all at once, or each when the one before is done.
    """

    def run(seconds, jobs, at_once):
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
        worker, done = Worker(None), []

        def job():
            clock.now += seconds
            done.append("job")
            if not at_once and done.count("job") < jobs:
                worker._jobs.put(job)

        def advance():
            clock.now += 0.5
            done.append("take")
            if len(done) == 1:
                for _ in range(jobs if at_once else 1):
                    worker._jobs.put(job)
            worker._stopping = done.count("take") == 20

        take = SimpleNamespace(wait=lambda: 0.0, advance=advance)
        worker.sessions["a"] = SimpleNamespace(left=None, working=lambda: [take], close=lambda: None)
        worker._run()
        return done

    return run


@pytest.mark.parametrize("seconds", [0.25, 0.5, 2.0])
def test_commands_without_end_take_no_more_time_than_videos(run, seconds):
    """As many as a client likes, who asks again as soon as one is done; longer ones count for a second."""
    done = run(seconds, 100, at_once=False)
    assert done.count("take") == 20
    assert 0 < done.count("job") * min(seconds, module.LONGEST_AHEAD) <= 0.5 * 20 + module.LONGEST_AHEAD


def test_short_commands_are_all_heard_before_the_next_piece_of_work(run):
    """Keys come ten times a second, and a piece of work may take half of one."""
    assert run(0.001, 30, at_once=True) == ["take", *["job"] * 30, *["take"] * 19]


class Leaving:
    """A session whose last viewer comes back between two looks at it."""

    def __init__(self):
        self._told = iter([-1e9, None, None])

    @property
    def left(self):
        return next(self._told)


def test_a_viewer_who_comes_back_meanwhile_ends_nothing():
    worker = Worker(None)
    worker.sessions["a"] = Leaving()
    worker._forget = lambda session: None
    worker._end_left_sessions()


def test_a_session_that_cannot_be_ended_ends_nobody_elses_work(studio):
    def fail():
        raise RuntimeError("no")

    studio.app.state.worker._ended.append(SimpleNamespace(close=fail, takes={}))
    with studio.tab(studio.session()) as tab:
        tab.make()
        tab.until("status", status="finished")


def test_a_session_that_has_ended_makes_nothing_more():
    """What waited for the worker when it ended, too: nobody would count or end such a video."""
    made = []
    model = SimpleNamespace(open_stream=lambda *asked: made.append(asked))
    worker = Worker(model)
    session = worker.new_session()
    assert isinstance(session, Session)
    worker._forget(session)
    wish = '{"type":"make","prompt":"","seconds":1.0,"steps":1,"temperature":1.0,"cfg":1.0}'
    with pytest.raises(ValueError, match="this session has ended: start a new one"):
        session.obey(parse(wish))
    assert not made
