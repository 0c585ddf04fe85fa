"""What `bench_attention.py` measured, as Markdown tables and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

PARTS = ("out", "dq", "dk", "dv")
WAYS = {"forward": "#3f5fa8", "backward": "#e0763f"}


def tables(report: dict[str, Any]) -> str:
    """The figures as Markdown; who did not take part is named below each table, with the reason."""
    machine = report["machine"]
    lines = [
        f"{machine['gpu']}, torch {machine['torch']}, {machine['dtype']}, {machine['date']}; "
        f"a plain matrix product reaches {machine['matmul_tflops']:.3g} TFLOP/s."
    ]
    rows = {
        name: [*(f"{row[p]:.1e}" for p in PARTS), f"{row.get('worst_to_plain', 1):.2f}"]
        for name, row in report["errors"].items()
        if "out" in row
    }
    lines += _table(["error against fp64", *PARTS, "worst / plain"], rows.items())
    lines += _absent(report["errors"])
    for case in report["cases"]:
        header = ["forward ms", "TFLOP/s", "backward ms", "TFLOP/s"]
        rows = {name: list(_cells(result)) for name, result in case["results"].items() if "forward" in result}
        lines += _table([f"{case['name']}, {case['rows']:,} rows", *header], rows.items())
        lines += _absent(case["results"])
    decode = [
        (f"{r['batch']} x {r['queries']}, {r['keys']}", [f"{r[k]:.3g}" for k in ("ms", "tflops", "gb_per_s")])
        for r in report["decode"]
    ]
    lines += _table(["decode: batch x queries, keys", "ms", "TFLOP/s", "GB/s"], decode)
    times = [(n, [f"{t['ms']:.3f}"]) for n, t in report["metadata"].items() if n != "kib"]
    lines += _table([f"metadata ({report['metadata']['kib']:.0f} KiB)", "ms"], times)
    return "\n".join(lines)


def _table(header: list[str], rows: Iterable[tuple[str, list[str]]]) -> Iterator[str]:
    yield from ("", f"| {' | '.join(header)} |", "|---" * len(header) + "|")
    for name, cells in rows:
        yield f"| {name} | {' | '.join(cells)} |"


def _cells(result: dict[str, Any]) -> Iterator[str]:
    for way in WAYS:
        time = result.get(way)
        yield f"{time['ms']:.3f} ({time['low']:.3f}-{time['high']:.3f})" if time else ""
        yield f"{time['tflops']:.3g}" if time else ""


def _absent(results: dict[str, Any]) -> Iterator[str]:
    reasons = {name: result["skipped"] for name, result in results.items() if "skipped" in result}
    if reasons:
        yield ""
    for name, reason in reasons.items():
        yield f"- {name}: {reason}"


def plot(report: dict[str, Any], path: Path) -> None:
    """Bars of TFLOP/s over the visible pairs, forward and backward, one panel for each case."""
    cases = report["cases"]
    figure = Figure(figsize=(4.2 * len(cases), 4.4), layout="constrained")
    panels = figure.subplots(1, len(cases), squeeze=False, sharey=True)[0]
    for axes, case in zip(panels, cases, strict=True):
        results = {name: r for name, r in case["results"].items() if "forward" in r}
        at = np.arange(len(results))
        for shift, (way, colour) in zip((-0.2, 0.2), WAYS.items(), strict=True):
            heights = [r[way]["tflops"] if way in r else 0 for r in results.values()]
            axes.bar(at + shift, heights, 0.4, color=colour, label=way)
        axes.axhline(report["machine"]["matmul_tflops"], color="#33312c", lw=0.8, ls=":")
        axes.set_xticks(at, list(results), rotation=60, ha="right", fontsize=8)
        axes.set_title(case["name"], fontsize=9)
    panels[0].set_ylabel("TFLOP/s over visible pairs\n(dotted: a matrix product)")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
