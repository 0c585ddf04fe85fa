"""What people said, as rows for programs, as figures, and as Markdown to read.

Win rates are shares of all answers, as in TV2TV figures 4, 7 and 8; scores of pointwise studies are means
between 0 and 1, as in figure 5. Raters who failed the attention checks are left out, and counted.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from megatv.eval.human.answers import Task
from megatv.eval.human.assign import failed_checks, left_out
from megatv.eval.human.questions import questions_of
from megatv.eval.human.raters import Rater
from megatv.eval.human.stats import krippendorff_alpha, mean_interval
from megatv.eval.human.study import Study
from megatv.eval.human.tasks import Item, oriented, passed, shown

Row = dict[str, Any]


def rows(
    study: Study,
    items: dict[str, Item],
    tasks: Iterable[Task],
    raters: Iterable[Rater],
    *,
    names: bool = False,
) -> list[Row]:
    """One row for each answer to a question, checks too. `names`: what raters call themselves as well.

    score    above 0 prefers the first system, 2 to -2 (pairwise); 0 to 1 (pointwise; controls turned round)
    counted  false for checks and for raters who failed them
    """
    tasks = [task for task in tasks if task.answered]
    away = left_out(study, items, tasks)
    people = {rater.id: rater for rater in raters}
    if any(task.rater not in people for task in tasks):
        raise ValueError(f"{study.database}: has answers of nobody who takes part; undo what changed it")
    found = []
    for task in tasks:
        item = items[task.item]
        order = [item.systems[i] for i in shown(study, task.rater, item)]
        first = item.videos[0]
        for question in questions_of(study):
            value = task.answers[question]
            found.append(
                {
                    "rater": people[task.rater].label,
                    **({"rater_name": people[task.rater].name} if names else {}),
                    "name": item.name,
                    "systems": " | ".join(item.systems),
                    "shown": " | ".join(order),
                    "action": first.action,
                    "start": first.start,
                    "control": first.control,
                    "question": question,
                    "answer": value,
                    "score": None if item.check else oriented(study, item, task.rater, question, value),
                    "counted": not item.check and task.rater not in away,
                    "check_passed": passed(study, item, task.rater, task.answers) if item.check else None,
                    "comment": task.comment,
                    "seconds": task.seconds,
                    "answered": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(task.answered)),
                }
            )
    return found


def to_csv(table: list[Row]) -> str:
    """CSV with a header, texts in quotes. Those that a spreadsheet takes for formulas get an apostrophe."""
    file = io.StringIO()
    head = list(table[0]) if table else ["rater"]
    writer = csv.DictWriter(file, head, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    for row in table:
        writer.writerow({key: _no_formula(v) if isinstance(v, str) else v for key, v in row.items()})
    return file.getvalue()


def _no_formula(text: str) -> str:
    """A cell's text, no line of which is a formula, for readers that tear a cell apart at its line breaks.

    Spreadsheets look past spaces and what cannot be seen, and take wide letters for the narrow ones.
    """
    text = "".join(" " if c != "\n" and unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    return "\n".join("'" + line if _is_formula(line) else line for line in text.split("\n"))


def _is_formula(line: str) -> bool:
    first = next((c for c in line if c.isprintable() and not c.isspace()), "")
    return bool(first) and unicodedata.normalize("NFKC", first)[0] in "=+-\u2212@|%"


def to_jsonl(table: list[Row]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)


def figures(
    study: Study, items: dict[str, Item], tasks: list[Task], raters: list[Rater], *, names: bool = False
) -> dict[str, Any]:
    """All figures of the report as plain data; NaN becomes None. `names`: as for `rows`."""
    table = rows(study, items, tasks, raters)
    counted = [row for row in table if row["counted"]]
    away = left_out(study, items, tasks)
    failures = failed_checks(study, items, tasks)
    real = [item for item in items.values() if not item.check]
    judged = {(task.rater, task.item) for task in tasks if task.answered and task.rater not in away}
    enough = sum(sum(i == item.id for _, i in judged) >= study.raters_per_item for item in real)
    people = []
    for rater in raters:
        mine = [task for task in tasks if task.rater == rater.id and task.answered]
        if rater.joined is None and not mine:
            continue  # invited, and has not come
        seconds = [task.seconds for task in mine if task.seconds is not None]
        people.append(
            {
                "rater": rater.label,
                **({"name": rater.name} if names else {}),
                "items": sum(not items[task.item].check for task in mine),
                "checks": sum(items[task.item].check for task in mine),
                "failed": failures[rater.id],
                "left_out": rater.id in away,
                "median_seconds": float(np.median(seconds)) if seconds else None,
            }
        )
    results = {
        name: (_pairwise if study.kind == "pairwise" else _pointwise)(
            study, [row for row in counted if row["question"] == name], name
        )
        for name in questions_of(study)
    }
    told = {
        "title": study.title,
        "kind": study.kind,
        "systems": [system.name for system in study.systems],
        "items": len(real),
        "items_with_enough_raters": enough,
        "raters_per_item": study.raters_per_item,
        "raters_left_out": len(away),
        "raters": people,
        "questions": results,
    }
    return json.loads(json.dumps(told), parse_constant=lambda _: None)


def _pairwise(study: Study, answers: list[Row], name: str) -> dict[str, Any]:
    """Shares of wins, ties and losses of the first system, the difference, the five counts, agreement."""
    score = np.array([row["score"] for row in answers])
    items = _codes([row["name"] for row in answers])
    first, second = (system.name for system in study.systems)
    return {
        "wins": {
            label: mean_interval(values.astype(float), items, study.seed)
            for label, values in ((first, score > 0), ("tie", score == 0), (second, score < 0))
        },
        "difference": mean_interval(np.sign(score), items, study.seed),
        "counts": {str(step): int((score == step).sum()) for step in (2, 1, 0, -1, -2)},
        "alpha": _alpha(answers),
    }


def _pointwise(study: Study, answers: list[Row], name: str) -> dict[str, Any]:
    """Mean scores of each system: of all interventions, of those left alone, by action and by time."""
    found: dict[str, Any] = {}
    for system in study.systems:
        mine = [row for row in answers if row["systems"] == system.name]
        groups: dict[str, list[Row]] = {"with intervention": [], "left alone": []}
        for row in mine:
            alone = row["control"]
            groups["left alone" if alone else "with intervention"].append(row)
            for group in (row["action"], f"at {row['start']:g} s"):
                if group:
                    groups.setdefault(group + ", left alone" * alone, []).append(row)
        found[system.name] = {
            group: mean_interval(
                np.array([row["score"] for row in chosen]),
                _codes([row["name"] for row in chosen]),
                study.seed,
            )
            for group, chosen in groups.items()
            if chosen
        }
    return {"scores": found, "alpha": _alpha(answers)}


def _alpha(answers: list[Row]) -> float:
    """Agreement of all raters about one question."""
    items = _codes([row["systems"] + "\0" + row["name"] for row in answers])
    raters = _codes([row["rater"] for row in answers])
    if not answers:
        return math.nan
    table = np.full((raters.max() + 1, items.max() + 1), math.nan)
    table[raters, items] = [row["score"] for row in answers]
    return krippendorff_alpha(table)


def _codes(names: list[str]) -> np.ndarray:
    return np.unique(names, return_inverse=True)[1]
