"""What `gpu_check.py` measured, as Markdown.

python tools/gpu_report.py gpu_check.json > tables.md   # a page of docs/measured
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from attention_report import tables as attention_tables  # the tool beside this one
from megatv.log import main_guard
from megatv.untrusted import parse_json


def markdown(report: dict[str, Any]) -> str:
    """Tables of every section of the report; a section that failed is one line with its error."""
    machine = report["machine"]
    lines = [
        f"Measured {machine['date']} on one {machine['gpu']}, torch {machine['torch']}, "
        f"Python {machine['python']}, by `tools/gpu_check.py`."
    ]
    sections = {
        "attention": attention_tables,
        "training": training_table,
        "sampling": sampling_table,
        "stream": stream_sentence,
    }
    for name, table in sections.items():
        if name in report:
            found = report[name]
            lines += ["", f"## {name.capitalize()}", ""]
            lines.append(f"Failed: {found['error']}" if "error" in found else table(found))
    return "\n".join(lines)


def training_table(found: dict[str, Any]) -> str:
    """One optimizer step of one packed row, by attention backend."""
    lines = [
        "| attention | layers | parameters | ms a step | tokens/s | TFLOP/s | of a matrix product | GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for backend, row in found.items():
        if "skipped" in row:
            lines.append(f"| {backend} | {row['skipped']} |")
            continue
        memory = "" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
        lines.append(
            f"| {backend} | {row['layers']} | {row['parameters'] / 1e9:.2f} B | {row['step_ms']:.0f} | "
            f"{row['tokens_per_s']:,.0f} | {row['tflops']:.0f} | {row['share_of_matmul']:.0%} "
            f"of {row['matmul_tflops']:.0f} | {memory} |"
        )
    return "\n".join(lines)


def sampling_table(found: dict[str, Any]) -> str:
    """Text steps and chunk passes of one sequence through the whole model, against a nearly full cache."""
    lines = [
        f"| batch 1, {found['cached_rows']:,} cached rows | ms eager | captured | floor | of it | uncached |",
        "|---|---|---|---|---|---|",
    ]
    for label, part in (("", found), (", fp8", found.get("fp8", {}))):
        if "skipped" in part:
            lines.append(f"| fp8 | {part['skipped']} |")
            continue
        for name in ("text", "chunk"):
            if name in part:
                lines.append(f"| {name} pass{label} | {' | '.join(sampling_cells(part[name]))} |")
    return "\n".join(lines)


def sampling_cells(row: dict[str, Any]) -> list[str]:
    """Eager, captured and least time, its share, and the time without a cache; empty where not measured."""
    share = "" if row["share_of_floor"] is None else f"{row['share_of_floor']:.0%}"
    ms = ["" if row[k] is None else f"{row[k]:.2f}" for k in ("eager_ms", "graph_ms", "floor_ms")]
    return [*ms, share, "" if row["uncached_ms"] is None else f"{row['uncached_ms']:.0f}"]


def stream_sentence(found: dict[str, Any]) -> str:
    """How the toy model's stream compares with the CPU's."""
    how = "captured passes and the decoding thread" if found["captured"] else "the decoding thread"
    return (
        f"With {how}, {found['chunks']} chunks of the toy model have the {found['tokens']} tokens that a CPU "
        f"says, and differ from its chunks by {found['largest_difference']:.1e} at most."
    )


def main() -> None:
    """Read the file named on the command line and print its tables."""
    if len(sys.argv) != 2:
        raise ValueError("give the file that gpu_check.py wrote: python tools/gpu_report.py gpu_check.json")
    try:
        report = parse_json(Path(sys.argv[1]).read_text())
        print(markdown(report))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{sys.argv[1]}: is no report of gpu_check.py ({error!r})") from None


if __name__ == "__main__":
    main_guard(main)
