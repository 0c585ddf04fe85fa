"""Who judges what next: every item by `raters_per_item` people whose attention is good, checks in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from megatv.eval.human.answers import Task
from megatv.eval.human.study import Study
from megatv.eval.human.tasks import Item, check_places, draw, passed

CLAIM_SECONDS = 900.0
"""A task that lies unanswered for so long is given to somebody else too: who only joins, holds nothing."""


@dataclass(frozen=True)
class Progress:
    """How many tasks a rater has answered, and how many there are for them as things stand."""

    done: int
    total: int


def failed_checks(study: Study, items: dict[str, Item], tasks: Iterable[Task]) -> Counter[str]:
    """Number of failed attention checks by rater."""
    return Counter(
        task.rater
        for task in tasks
        if task.answered and items[task.item].check
        if not passed(study, items[task.item], task.rater, task.answers)
    )


def left_out(study: Study, items: dict[str, Item], tasks: Iterable[Task]) -> set[str]:
    """Raters whose answers do not count, since they failed more checks than are allowed."""
    failures = failed_checks(study, items, tasks)
    return {rater for rater, count in failures.items() if count > study.failures_allowed}


def chooser(study: Study, items: dict[str, Item], rater: str) -> Callable[[list[Task]], str | None]:
    """The rule that picks the rater's next item from all tasks so far, see `Answers.give`."""

    def choose(tasks: list[Task]) -> str | None:
        mine = [task for task in tasks if task.rater == rater]
        for task in mine:
            if task.answered is None:
                return task.item
        judged = sum(not items[task.item].check for task in mine)
        met = {task.item for task in mine}
        checks = [item.id for item in items.values() if item.check and item.id not in met]
        places = check_places(study, rater, _load(study, items))[study.checks - len(checks) :]
        wanted = _wanted(study, items, tasks, rater)
        if checks and judged + len(wanted) and (not wanted or places[0] <= judged):
            return min(checks, key=lambda item: draw(study.seed, "order", rater, item))
        return wanted[0] if wanted else None

    return choose


def progress(study: Study, items: dict[str, Item], tasks: list[Task], rater: str) -> Progress:
    """How far a rater is. The total shrinks when others answer what was open."""
    mine = [task for task in tasks if task.rater == rater]
    done = sum(task.answered is not None for task in mine)
    met = {task.item for task in mine}
    checks = sum(item.check and item.id not in met for item in items.values())
    ahead = len(_wanted(study, items, tasks, rater))
    return Progress(done, len(mine) + ahead + (checks if ahead or mine else 0))


def _load(study: Study, items: dict[str, Item]) -> int:
    """Items that one rater is expected to judge."""
    count = sum(not item.check for item in items.values())
    return min(count, study.items_per_rater or count)


def _wanted(study: Study, items: dict[str, Item], tasks: list[Task], rater: str) -> list[str]:
    """Items that still need this rater, first those that fewest judged, up to the rater's share."""
    away = left_out(study, items, tasks)
    taken = Counter(t.item for t in tasks if t.rater not in away and (t.answered or t.waits < CLAIM_SECONDS))
    mine = {task.item for task in tasks if task.rater == rater}
    judged = sum(not items[item].check for item in mine)
    wanted = [
        item.id
        for item in items.values()
        if not item.check and item.id not in mine and taken[item.id] < study.raters_per_item
    ]
    wanted.sort(key=lambda item: (taken[item], draw(study.seed, "order", rater, item)))
    return wanted[: _load(study, items) - judged]
