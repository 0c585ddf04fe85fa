"""How far a command is and how long it will take, where there is no terminal."""

import pytest

from megatv import log
from megatv.log import progress


@pytest.fixture
def clock(monkeypatch):
    """Ten seconds pass between two looks at the clock."""
    now = iter(range(0, 100_000, 10))
    monkeypatch.setattr(log.time, "monotonic", lambda: float(next(now)))


def test_lines_with_the_time_left(clock, capsys):
    assert list(progress(range(8), desc="score")) == list(range(8))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("score:  25% 2/8 [00:30<01:30") and second.startswith(
        "score:  62% 5/8 [01:00<00:36"
    )


def test_a_total_that_is_told(clock, capsys):
    assert list(progress(iter("abcdefgh"), total=8, desc="read")) == list("abcdefgh")
    assert "/8" in capsys.readouterr().err


def test_a_total_that_nobody_knows(clock, capsys):
    assert list(progress(iter("abcdefgh"), desc="read")) == list("abcdefgh")
    assert "read" in capsys.readouterr().err


def test_only_rank_0_speaks(clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert list(progress(range(8))) == list(range(8))
    assert not capsys.readouterr().err
