"""What people answered, in one SQLite file: written before the page hears "saved", readable while served."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatv.eval.human.database import bounded, connect, open_database, read_rows
from megatv.eval.human.questions import questions_of
from megatv.eval.human.raters import (
    MAX_NAME,
    Rater,
    UnknownRaterError,
    hash_secret,
    new_secret,
    read_token,
    same,
)
from megatv.eval.human.study import Study
from megatv.eval.human.tasks import Item
from megatv.regular_file import open_regular
from megatv.untrusted import parse_json

TURN_SECONDS = 5.0
"""How long a write waits for those of other threads."""
MAX_SECONDS = 1e11
"""No clock is later, in Unix seconds."""


class UnknownError(ValueError):
    """An item that a rater was not given."""


class FullError(ValueError):
    """A study that nobody else may join."""


@dataclass(frozen=True)
class Task:
    """An item given to a rater, with the answers by question once there are any.

    rater             the rater's `id`
    given, answered   Unix seconds; answered: None until then
    seconds           spent on the page, as it says itself
    waits             seconds since it was given, or since this process began, by the monotonic clock
    """

    rater: str
    item: str
    given: float
    answers: dict[str, str] = field(default_factory=dict)
    comment: str = ""
    seconds: float | None = None
    answered: float | None = None
    waits: float = 0.0


class Answers:
    """The answers of one study; threads may share it. Raises ValueError when the file is not this study's.

    Writes take turns and wait no longer than TURN_SECONDS for that and BUSY_SECONDS for other processes; then
    sqlite3.Error is raised and nothing has changed. Reads have their own connection and wait for no write.
    """

    def __init__(self, study: Study, items: Iterable[Item], *, create: bool) -> None:
        """items: all of them, checks too. create: the file may be new."""
        self._path = Path(study.database)
        items = list(items)
        self._items = {item.id for item in items}
        self._questions = questions_of(study)
        self._connection = open_database(self._path, create=create)
        self._reader = connect(self._path)
        self._reader.execute("PRAGMA query_only = ON")
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._given: dict[tuple[str, str], float] = {}
        self._told = lru_cache(4096)(
            self._read_answers
        )  # most texts are alike, and all are read for each task
        self.id = self._claim("id", secrets.token_hex(8), fixed=False)
        """Of this file, so that no browser mixes up the half-finished answers of two."""
        self.key = self._claim("key", secrets.token_hex(32), fixed=False).encode()
        """Known to nobody outside; the names of videos are drawn from it."""
        self._claim("study", _fingerprint(study, items))

    def claim_videos(self, items: Iterable[Item]) -> None:
        """Raises ValueError unless the videos are those of earlier answers too."""
        self._claim("videos", _contents(items))

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()
        self._connection.close()

    def invite(
        self, name: str = "", *, most: int | None = None, joined: float | None = None
    ) -> tuple[Rater, str]:
        """A new rater and their token, which is kept nowhere. FullError when there are `most` already."""
        secret = new_secret()
        with self._transaction() as connection:
            (count,) = connection.execute("SELECT count(*) FROM people").fetchone()
            if most is not None and count >= most:
                raise FullError(f"this study has all the {most} people that it may have: thank you")
            row = (secrets.token_hex(8), name, joined, hash_secret(secret))
            query = "INSERT INTO people (id, name, joined, token) VALUES (?, ?, ?, ?)"
            number = connection.execute(query, row).lastrowid
        assert number is not None
        return Rater(number, *row[:3]), f"{number}.{secret}"

    def renew(self, rater: Rater) -> str:
        """Another token for a rater whose own is lost, and now worthless."""
        secret = new_secret()
        with self._transaction() as connection:
            values = (hash_secret(secret), rater.number)
            connection.execute("UPDATE people SET token = ? WHERE number = ?", values)
        return f"{rater.number}.{secret}"

    def join(self, rater: Rater, name: str) -> Rater:
        """Note that a rater has come. A name that they have stays."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE people SET joined = coalesce(joined, ?), name = iif(name = '', ?, name) "
                "WHERE number = ?",
                (time.time(), name, rater.number),
            )
        return next(found for found in self.raters() if found.number == rater.number)

    def rater(self, token: str) -> Rater:
        """Whose token it is. Raises UnknownRaterError for nobody's."""
        number, secret = read_token(token)
        rows = self._read("SELECT number, id, name, joined, token FROM people WHERE number = ?", (number,))
        for *told, kept in rows:
            if isinstance(kept, str) and same(kept, hash_secret(secret)):
                return self._rater(*told)
        raise UnknownRaterError("this page has no valid invitation: open the link that you were given")

    def raters(self) -> list[Rater]:
        """Everybody who joined or was invited, in that order."""
        return [
            self._rater(*row)
            for row in self._read("SELECT number, id, name, joined FROM people ORDER BY number")
        ]

    def without_invitation(self) -> list[Rater]:
        """Raters of a file from before there were tokens, who need one to come back."""
        rows = self._read("SELECT number, id, name, joined FROM people WHERE token IS NULL ORDER BY number")
        return [self._rater(*row) for row in rows]

    def _rater(self, number: Any, id_: Any, name: Any, joined: Any) -> Rater:
        """One row, of which only what this program can have written is believed."""
        sound = isinstance(number, int) and isinstance(id_, str) and isinstance(name, str)
        sound &= joined is None or (isinstance(joined, (int, float)) and 0 <= joined < MAX_SECONDS)
        if not sound or not id_ or (name and (len(name) > MAX_NAME or not name.isprintable())):
            raise ValueError(f"{self._path}: person {str(number)[:40]!r} is damaged; undo what changed them")
        return Rater(number, id_, name, joined)

    def give(self, rater: Rater, choose: Callable[[list[Task]], str | None]) -> str | None:
        """The item that `choose` picks in view of all tasks, now the rater's; None when there is none."""
        with self._transaction() as connection:
            item = choose(self.tasks())
            if item is not None:
                connection.execute(
                    "INSERT OR IGNORE INTO tasks (rater, item, given) VALUES (?, ?, ?)",
                    (rater.id, item, time.time()),
                )
        return item

    def save(self, task: Task) -> None:
        """Keep a task's answers, in place of earlier ones. UnknownError unless the rater was given it."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE tasks SET answers = ?, comment = ?, seconds = ?, answered = coalesce(answered, ?) "
                "WHERE rater = ? AND item = ?",
                (json.dumps(task.answers), task.comment, task.seconds, time.time(), task.rater, task.item),
            )
            if not changed.rowcount:
                raise _not_given(task.item)
        self._given.pop((task.rater, task.item), None)

    def task(self, rater: Rater, item: str) -> Task:
        """One task; UnknownError when the rater was never given the item."""
        known = item in self._items  # and so it is a text that SQLite can look for
        for task in self.tasks("WHERE rater = ? AND item = ?", (rater.id, item)) if known else ():
            return task
        raise _not_given(item)

    def tasks(self, where: str = "", values: tuple[str, ...] = ()) -> list[Task]:
        """All tasks, in the order in which they were given. Raises ValueError for one that is damaged."""
        return [
            self._task(*row)
            for row in self._read(
                "SELECT rater, item, given, answers, comment, seconds, answered FROM tasks "
                f"{where} ORDER BY rowid",
                values,
            )
        ]

    def _task(
        self, rater: str, item: str, given: float, answers: Any, comment: Any, seconds: Any, answered: Any
    ) -> Task:
        """One row, of which only what this program can have written is believed."""
        now = time.monotonic()
        waits = now - self._given.setdefault((rater, item), now) if answered is None else 0.0
        try:
            told = {} if answered is None else self._told(answers)
            sound = isinstance(rater, str) and item in self._items and isinstance(comment, str)
            sound &= 0 <= (answered or 0) < MAX_SECONDS and 0 <= (seconds or 0) < MAX_SECONDS
        except (AttributeError, LookupError, TypeError, ValueError):
            sound = False
        if not sound:
            raise ValueError(
                f"{self._path}: the answers of {str(rater)[:40]!r} to {str(item)[:40]!r} are damaged; undo "
                "what changed them"
            )
        return Task(rater, item, given, told, comment, seconds, answered, waits)

    def _read_answers(self, text: str) -> dict[str, str]:
        """A row's answers to all questions; raises what a text of something else comes to."""
        told = parse_json(text)
        for name, question in self._questions.items():
            question.score(told[name])
        if told.keys() != self._questions.keys():
            raise ValueError
        return told

    def _read(self, query: str, values: tuple[object, ...] = ()) -> list[Any]:
        with self._reading:
            return read_rows(self._reader, self._path, query, values)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written within it, or nothing."""
        if not self._writing.acquire(timeout=TURN_SECONDS):
            raise sqlite3.OperationalError("others are writing")
        try:
            with bounded(self._connection, self._path), self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
        finally:
            self._writing.release()

    def _claim(self, key: str, value: str, *, fixed: bool = True) -> str:
        """What the file has under a key, which is `value` if it is new; `fixed`: and must be."""
        try:
            with self._transaction() as connection:
                connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
                (there,) = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise ValueError(f"{self._path}: cannot be written ({error}); name another database") from None
        if not isinstance(there, str) or (fixed and there != value):
            settings = "another kind, seed, criteria, hints, checks or names"
            changed = "other videos" if key == "videos" else settings
            raise ValueError(
                f"{self._path}: its answers belong to a study with {changed}; undo the change, or name "
                "another database to begin anew"
            )
        return there


def _not_given(item: str) -> UnknownError:
    return UnknownError(f"you have no task {item[:40]!r}: reload the page")


def _fingerprint(study: Study, items: list[Item]) -> str:
    """What answers depend on: questions, seed and the items' names."""
    names = [(item.id, item.name, item.systems, [v.control for v in item.videos]) for item in items]
    told = {key: asdict(study)[key] for key in ("kind", "seed", "criteria")}
    if study.hints != "game":  # the only kind there was, so that files of that time are still read
        told["hints"] = study.hints
    return hashlib.sha256(json.dumps([told, names]).encode()).hexdigest()


def _contents(items: Iterable[Item]) -> str:
    """Hash of all bytes that people see, apart from the degraded copies."""
    total = hashlib.sha256()
    for item in items:
        for video in () if item.check else item.videos:
            with open_regular(video.video, links=True) as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
