"""The report as Markdown: the figures of `report.figures` in tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def to_markdown(told: dict[str, Any]) -> str:
    """A page to read. told: what `report.figures` gives."""
    lines = [
        f"# {plain(told['title'])}",
        "",
        f"{told['items_with_enough_raters']} of {told['items']} items were judged by "
        f"{told['raters_per_item']} people or more whose answers count. {told['raters_left_out']} of "
        f"{len(told['raters'])} people failed the attention checks and are left out.",
        "",
    ]
    lines += _pairwise(told) if told["kind"] == "pairwise" else _pointwise(told)
    lines += [
        "",
        "Intervals are 95 %, by bootstrap over items. Answers about one item, such as a single answer, give "
        "no interval. Agreement is Krippendorff's alpha for ordered answers: 1 is perfect, 0 is chance.",
        "",
        "## People",
        "",
    ]
    lines += _table(
        ("who", "items", "checks", "failed", "left out", "median seconds"),
        (
            (
                plain(", ".join(filter(None, (p["rater"], p.get("name"))))),
                p["items"],
                p["checks"],
                p["failed"],
                "yes" if p["left_out"] else "",
                _number(p["median_seconds"], "{:.0f}"),
            )
            for p in told["raters"]
        ),
    )
    return "\n".join(lines) + "\n"


def _pairwise(told: dict[str, Any]) -> Iterable[str]:
    first, second = told["systems"]
    one, other = plain(first), plain(second)
    yield from _table(
        ("", f"{one} preferred", "tie", f"{other} preferred", "difference", "answers", "agreement"),
        (
            (
                f"**{name}**",
                *(_share(result["wins"][who]) for who in (first, "tie", second)),
                _share(result["difference"], signed=True),
                result["difference"]["n"],
                _number(result["alpha"], "{:.2f}"),
            )
            for name, result in told["questions"].items()
        ),
    )
    yield ""
    yield from _table(
        ("answers", f"{one} clearly", "slightly", "tie", "slightly", f"{other} clearly"),
        (
            (f"**{name}**", *(result["counts"][step] for step in ("2", "1", "0", "-1", "-2")))
            for name, result in told["questions"].items()
        ),
    )


def _pointwise(told: dict[str, Any]) -> Iterable[str]:
    for name, result in told["questions"].items():
        scores = result["scores"]
        groups = list(dict.fromkeys(group for system in scores.values() for group in system))
        yield f"## {name.capitalize()}"
        yield ""
        yield from _table(
            ("score, 0 to 1", *map(plain, scores)),
            (
                (
                    plain(group),
                    *(_score(system[group]) if group in system else "-" for system in scores.values()),
                )
                for group in groups
            ),
        )
        yield ""
        yield f"Agreement {_number(result['alpha'], '{:.2f}')}."
        yield ""
    yield 'Videos that were left alone count as correct when people said that the action was "not" shown.'


def plain(text: str) -> str:
    """A text as it reads, whatever is in it: no picture, link, markup, cell, line or hidden letter.

    CommonMark takes a backslash before any ASCII punctuation; the three of HTML are named, for readers that
    know less. An address is broken up too, since some readers make links of what looks like one.
    """
    seen = "".join(letter if letter.isprintable() else " " for letter in text)
    named = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return re.sub(r"[!-/:-@\[-`{-~]", lambda found: named.get(found[0], "\\" + found[0]), seen)


def _table(head: Iterable[object], body: Iterable[Iterable[object]]) -> Iterable[str]:
    cells = [str(cell) for cell in head]
    yield f"| {' | '.join(cells)} |"
    yield f"|{'---|' * len(cells)}"
    for row in body:
        yield f"| {' | '.join(map(str, row))} |"


def _share(found: dict[str, Any], *, signed: bool = False) -> str:
    if found["mean"] is None:
        return "-"
    sign = "+" if signed else ""
    return f"{100 * found['mean']:{sign}.0f} % ({_interval(found, f'{sign}.0f', 100)})"


def _score(found: dict[str, Any]) -> str:
    return f"{found['mean']:.2f} ({_interval(found, '.2f')}), n {found['n']}"


def _interval(found: dict[str, Any], shape: str, unit: float = 1) -> str:
    if found["low"] is None:
        return "no interval"
    return f"{unit * found['low']:{shape}} to {unit * found['high']:{shape}}"


def _number(value: float | None, shape: str) -> str:
    return "-" if value is None else shape.format(value)
