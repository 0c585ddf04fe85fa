"""A hang ends within its time-out, with files that show where every rank was and which one is missing.

    last progress                        3/4 of the time-out                          the time-out
    |-- nothing, on every rank ----------|-- reports, then each rank's verdict -------|-- gone at the latest

A rank that finishes no step for three quarters of `health.watchdog_seconds` writes RUN/hang/rank_N.txt: a
line of JSON for the other ranks, then the stacks of all its threads. It then reads the others' reports: a
rank that hangs is rarely the one that is the matter, it waits for that one in a collective. The lowest rank
with a report says on stderr which one that is. Reports are plain files, so that no part of what may hang
(collectives, the launcher's store, rank 0) has to work for the verdict.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatv.parallel.mesh import Mesh
from megatv.untrusted import parse_json

EXIT_CODE = 124
"""What `timeout` exits with; not 0, so that the launcher ends the other ranks."""


class Watchdog:
    """Context manager around the run's loop, which must `tick`; a thread ends the process when it does not.

    seconds: the time-out, above the slowest step with its validation, save and preview, and below the 1,800 s
    after which collectives give up by themselves without naming a rank; 0: never.
    """

    def __init__(self, seconds: float, run_dir: Path, mesh: Mesh) -> None:
        self._seconds, self._folder, self._mesh = seconds, run_dir / "hang", mesh
        self._closed = threading.Event()
        self._ticks = 0
        self.tick(0)

    def tick(self, step: int) -> None:
        """`step` is done, with all that follows it."""
        self._step, self._wall = step, time.time()
        self._ticks += 1

    def __enter__(self) -> Watchdog:
        if self._seconds:
            threading.Thread(target=self._watch, name="megatv-watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()

    def _watch(self) -> None:
        """Count waking up, not the time of day: a job that was suspended did not hang."""
        idle, seen, period = 0.0, 0, self._seconds / 100
        while idle < 0.75 * self._seconds:
            if self._closed.wait(period):
                return
            idle, seen = (idle + period if seen == self._ticks else 0.0), self._ticks
        end = threading.Timer(self._seconds / 4, os._exit, [EXIT_CODE])  # run.dir itself may be what hangs
        end.daemon = True
        end.start()
        try:
            self._tell(period)
        finally:
            os._exit(EXIT_CODE)

    def _tell(self, period: float) -> None:
        mine = self._path(self._mesh.rank)
        self._write(mine)
        reports: dict[int, dict[str, Any]] = {}
        until = time.monotonic() + self._seconds / 5
        while len(reports) < self._mesh.world and time.monotonic() < until:
            time.sleep(period)
            reports = self._reports()
        sentence = (
            f"hang: no step for {self._seconds:.0f} s after step {self._step}; "
            f"{verdict(reports, self._mesh.world)}; the stacks of all ranks are in {self._folder}"
        )
        with mine.open("a") as file:
            file.write(f"\n{sentence}\n")
        first = self._path(min(reports))
        if first == mine:
            print(sentence, file=sys.stderr, flush=True)
        while "\nhang: " not in first.read_text():  # the launcher ends that rank as soon as this one is gone
            time.sleep(period)

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.txt"

    def _write(self, path: Path) -> None:
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        report = {
            "rank": self._mesh.rank,
            "step": self._step,
            "counts": _collectives(skip_world=self._mesh.pp > 1),
            **whereabouts(traceback.extract_stack(frame)),
        }
        self._folder.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            file.write(json.dumps(report) + "\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        temporary.replace(path)

    def _reports(self) -> dict[int, dict[str, Any]]:
        """By rank; those older than this rank's last step are of an earlier hang."""
        found = {}
        for rank in range(self._mesh.world):
            path = self._path(rank)
            if path.exists() and path.stat().st_mtime > self._wall:
                found[rank] = parse_json(path.read_text().partition("\n")[0])
        return found


def verdict(reports: Mapping[int, Mapping[str, Any]], world: int) -> str:
    """Which ranks are missing, from the reports by rank.

    A rank without a report is. Else the one that did less than another (steps, or collectives of a group that
    both are in) and more than none: who did more than another waits for it. Where all did the same, those
    that are in no collective while others are.
    """
    silent = [rank for rank in range(world) if rank not in reports]
    if silent:
        return f"missing: {_ranks(silent)}, without a report: ended, frozen, or on a machine that is gone"
    done = {rank: {**r["counts"], "step": r["step"]} for rank, r in reports.items()}
    keys = {key for counts in done.values() for key in counts}
    of = {key: [counts[key] for counts in done.values() if key in counts] for key in keys}
    behind = {rank for rank, counts in done.items() if any(n < max(of[k]) for k, n in counts.items())}
    ahead = {rank for rank, counts in done.items() if any(n > min(of[k]) for k, n in counts.items())}
    outside = {rank for rank, r in reports.items() if r["waits_in"] is None}
    missing = sorted(behind - ahead) or (sorted(outside) if len(outside) < world else [])
    if not missing:
        return "no rank is behind the others: they are all in the same collective, or all in their own work"
    places = {rank: f"rank {rank} at {reports[rank]['at']}" for rank in missing}
    waits = {r["waits_in"] for rank, r in reports.items() if rank not in missing} - {None}
    others = f" while others wait in {', '.join(sorted(waits))}" if waits else ""
    return f"missing: {', '.join(places.values())}{others}"


def whereabouts(stack: Iterable[traceback.FrameSummary]) -> dict[str, str | None]:
    """`at`: the innermost line of a stack; `waits_in`: the collective that it is in, or None."""
    frames = list(stack)
    calls = [f.name for f in frames if Path(f.filename) == Path(distributed_c10d.__file__)]
    last = frames[-1]
    return {
        "at": f"{Path(last.filename).name}:{last.lineno} in {last.name}",
        "waits_in": calls[-1] if calls else None,
    }


def _collectives(skip_world: bool) -> dict[str, int]:
    """Collectives begun in each process group of this rank.

    Under a pipeline the world's group also counts messages, of which every stage has its own number.
    """
    groups = [g for g in distributed_c10d._world.pg_map if not (skip_world and g is dist.group.WORLD)]
    # torch's stubs lack the method
    return {g.group_name: g._get_sequence_number_for_group() for g in groups}  # type: ignore[attr-defined]


def _ranks(ranks: list[int]) -> str:
    return ", ".join(f"rank {rank}" for rank in ranks)
