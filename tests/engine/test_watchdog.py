"""The verdict on a hang, from the reports of the ranks."""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import distributed_c10d

from megatv import watchdog
from megatv.watchdog import EXIT_CODE, Watchdog, verdict, whereabouts


def report(step: int, counts: dict[str, int], waits_in: str | None = None) -> dict:
    return {"step": step, "counts": counts, "waits_in": waits_in, "at": "feed.py:3 in next"}


IN = "all_reduce"


@pytest.mark.parametrize(
    ("reports", "sentence"),
    [
        ({0: report(6, {"0": 9}), 2: report(6, {"0": 9})}, "missing: rank 1, without a report"),
        (
            {0: report(6, {"0": 9}), 1: report(6, {"0": 8}), 2: report(6, {"0": 9})},
            "missing: rank 1 at feed.py:3 in next",  # on GPUs, where the host waits outside of a collective
        ),
        # rank 2 waits for rank 1 in the one group, and keeps rank 0 waiting in the other
        (
            {0: report(6, {"a": 5}, IN), 1: report(6, {"b": 3}), 2: report(6, {"a": 4, "b": 4}, IN)},
            "missing: rank 1 at feed.py:3 in next while others wait in all_reduce",
        ),
        # a preview that does not end: the others are at the next step
        (
            {0: report(5, {"0": 8}), 1: report(6, {"0": 9}, IN), 2: report(6, {"0": 9}, IN)},
            "missing: rank 0 at",
        ),
        # a message of a pipeline, which no group counts
        ({0: report(6, {}, "recv"), 1: report(6, {}), 2: report(6, {}, "recv")}, "missing: rank 1 at"),
        ({r: report(6, {"0": 9}, IN) for r in range(3)}, "no rank is behind the others"),
        ({r: report(6, {"0": 9}) for r in range(3)}, "no rank is behind the others"),
    ],
)
def test_verdict(reports: dict[int, dict], sentence: str) -> None:
    assert verdict(reports, 3).startswith(sentence)


def test_a_rank_says_that_it_waits_in_a_collective() -> None:
    def frame(file: str, name: str) -> traceback.FrameSummary:
        return traceback.FrameSummary(file, 7, name, lookup_line=False)

    inside = [frame("megatv/feed.py", "next"), frame(distributed_c10d.__file__, "barrier")]
    assert whereabouts(inside) == {"at": "distributed_c10d.py:7 in barrier", "waits_in": "barrier"}
    assert whereabouts(inside[:1]) == {"at": "feed.py:7 in next", "waits_in": None}


class Wakings(threading.Event):
    """The watchdog's pauses without waiting, a hundredth of the time-out each; the run ends after `last`."""

    def __init__(self, last: int, tick_every: int | None) -> None:
        super().__init__()
        self.last, self.tick_every, self.count = last, tick_every, 0

    def wait(self, timeout: float | None = None) -> bool:
        self.count += 1
        if self.tick_every and self.count % self.tick_every == 0:
            self.dog.tick(self.count)
        return self.count == self.last


@pytest.mark.parametrize(
    ("tick_every", "ended", "wakings"),
    [(70, [], 1000), (1, [], 1000), (None, [EXIT_CODE], 76), (80, [EXIT_CODE], 76)],
)
def test_a_run_that_goes_on_outlives_ten_time_outs(
    tick_every: int | None,
    ended: list[int],
    wakings: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps of 0.7 time-outs are slow, but no hang; 0.75 without one is, from the first waking on."""
    codes: list[int] = []
    monkeypatch.setattr(watchdog.os, "_exit", codes.append)
    monkeypatch.setattr(watchdog.threading, "Timer", lambda *_: SimpleNamespace(start=lambda: None))
    dog = Watchdog(12.5, tmp_path, SimpleNamespace(rank=0, world=1, pp=1))  # type: ignore[arg-type]
    dog._closed = pauses = Wakings(1000, tick_every)
    pauses.dog = dog
    dog._watch()
    assert codes == ended and pauses.count == wakings
    assert (tmp_path / "hang/rank_0.txt").exists() == bool(ended)


@pytest.mark.parametrize(("age", "said"), [(100, "missing: rank 1, without a report"), (-100, "no rank is")])
def test_a_report_of_an_earlier_hang_is_none(
    age: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog.os, "_exit", lambda code: None)
    monkeypatch.setattr(watchdog.threading, "Timer", lambda *_: SimpleNamespace(start=lambda: None))
    (tmp_path / "hang").mkdir()
    other = tmp_path / "hang/rank_1.txt"
    other.write_text(json.dumps({"rank": 1, **report(0, {})}) + "\n\n")
    os.utime(other, (time.time() - age,) * 2)
    dog = Watchdog(1.25, tmp_path, SimpleNamespace(rank=0, world=2, pp=1))  # type: ignore[arg-type]
    dog._closed = Wakings(1000, None)
    dog._watch()
    assert f"after step 0; {said}" in capsys.readouterr().err
