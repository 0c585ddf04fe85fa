"""What the parts of `bench_data.py` share: medians of times, fresh processes, tables."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from megatv.untrusted import parse_json

Row = dict[str, Any]
"""One line of a table: plain data by column; `skipped` says why a contestant did not take part."""
Tables = dict[str, list[Row]]

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(__file__).parent
READY = "ready"


def seconds_of(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median wall-clock and CPU seconds (all threads) of a call, after one that warms up."""
    work()
    wall, cpu = [], []
    for _ in range(repeats):
        begun, spent = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - spent)
    return statistics.median(wall), max(statistics.median(cpu), 1e-9)


def fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module beside this one returns in a new Python; all of it must be JSON."""
    return together(function, [arguments])[0]


def together(function: Callable[..., Any], calls: Iterable[Iterable[Any]]) -> list[Any]:
    """`fresh` for several calls at once, each in a process of its own, with one thread for its arithmetic.

    Functions that call `wait_for_others` go on from there when all have come so far.
    """
    code = (
        "import json, sys, time; begun = time.perf_counter()\n"
        f"from {function.__module__} import {function.__name__} as function\n"
        "print(json.dumps(function(*json.loads(sys.argv[1]))))"
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(TOOLS), str(ROOT))),
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(list(call))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for call in calls
    ]
    last = [_next_line(child) for child in children]
    for index, child in enumerate(children):
        if last[index] == READY:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
    answers = [
        _next_line(child) if line == READY else line for child, line in zip(children, last, strict=True)
    ]
    for child in children:
        child.communicate()
        if child.returncode:
            raise RuntimeError(f"{function.__name__} failed in its own process, see above")
    return [parse_json(answer) for answer in answers]


def wait_for_others() -> None:
    """In a process of `together`: go on when all of them are here."""
    print(READY, flush=True)
    sys.stdin.readline()


def _next_line(child: subprocess.Popen[str]) -> str:
    """The next line that is `READY` or JSON; libraries print lines of their own when they are imported."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == READY or line.startswith(("{", "[")):
            return line.strip()
    child.wait()
    raise RuntimeError("a process of the benchmark ended without an answer, see above")


def table(title: str, rows: list[Row]) -> str:
    """The rows as text, a column for every key that occurs; who was skipped is named below, and why."""
    shown = [row for row in rows if "skipped" not in row]
    columns = list(dict.fromkeys(key for row in shown for key in row))
    lines = [[column.replace("_", " ") for column in columns]]
    lines += [[_cell(row.get(column, "")) for column in columns] for row in shown]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"\n{title}"] + [
        "  ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)).rstrip() for x in lines
    ]
    for row in rows:
        if "skipped" in row:
            name = " ".join(str(value) for key, value in row.items() if key != "skipped")
            text.append(f"not measured: {name}: {row['skipped']}")
    return "\n".join(text)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
