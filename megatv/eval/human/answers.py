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
from pathlib import Path

from megatv.eval.human.study import Study
from megatv.eval.human.tasks import Item

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS raters (name TEXT PRIMARY KEY, joined REAL NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    rater TEXT NOT NULL REFERENCES raters, item TEXT NOT NULL, given REAL NOT NULL,
    answers TEXT, comment TEXT NOT NULL DEFAULT '', seconds REAL, answered REAL,
    PRIMARY KEY (rater, item)
);
"""


class UnknownError(ValueError):
    """A rater or an item that this study does not know."""


@dataclass(frozen=True)
class Task:
    """An item given to a rater, with the answers by question once there are any.

    given, answered   Unix seconds; answered: None until then
    seconds           spent on the page, as it says itself
    """

    rater: str
    item: str
    given: float
    answers: dict[str, str] = field(default_factory=dict)
    comment: str = ""
    seconds: float | None = None
    answered: float | None = None


class Answers:
    """The answers of one study; threads may share it. Raises ValueError when the file is not this study's."""

    def __init__(self, study: Study, items: Iterable[Item], *, videos: bool) -> None:
        """items: all of them, checks too. videos: whether the videos must be those of earlier answers too.

        Files that only read (`videos=False`) must exist.
        """
        path = Path(study.database)
        items = list(items)
        if not videos and not path.is_file():
            raise ValueError(f"{path}: does not exist, so there are no answers yet; serve the study first")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.executescript(TABLES)
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"{path}: is no database that can be used ({error}); name another one") from None
        self._lock = threading.RLock()
        self.id = self._claim(path, "id", secrets.token_hex(8), fixed=False)
        """Of this file, so that no browser mixes up the half-finished answers of two."""
        self._claim(path, "study", _fingerprint(study, items))
        if videos:
            self._claim(path, "videos", _contents(items))

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def join(self, rater: str) -> None:
        """Let a rater take part, again too."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO raters VALUES (?, ?)", (rater, time.time()))

    def give(self, rater: str, choose: Callable[[list[Task]], str | None]) -> str | None:
        """The item that `choose` picks in view of all tasks, now the rater's; None when there is none."""
        self.check_rater(rater)
        with self._transaction() as connection:
            item = choose(self.tasks())
            if item is not None:
                connection.execute(
                    "INSERT OR IGNORE INTO tasks (rater, item, given) VALUES (?, ?, ?)",
                    (rater, item, time.time()),
                )
        return item

    def save(self, task: Task) -> None:
        """Keep a task's answers, in place of earlier ones. The task must have been given to the rater."""
        self.task(task.rater, task.item)
        with self._transaction() as connection:
            connection.execute(
                "UPDATE tasks SET answers = ?, comment = ?, seconds = ?, answered = coalesce(answered, ?) "
                "WHERE rater = ? AND item = ?",
                (json.dumps(task.answers), task.comment, task.seconds, time.time(), task.rater, task.item),
            )

    def check_rater(self, rater: str) -> None:
        """Raises UnknownError for a rater who has not joined."""
        with self._lock:
            found = self._connection.execute("SELECT 1 FROM raters WHERE name = ?", (rater,)).fetchone()
        if not found:
            raise UnknownError(f"nobody named {rater[:40]!r} takes part: start from the first page")

    def task(self, rater: str, item: str) -> Task:
        """One task; UnknownError when the rater was never given the item."""
        self.check_rater(rater)
        for task in self.tasks("WHERE rater = ? AND item = ?", (rater, item)):
            return task
        raise UnknownError(f"{rater} has no task {item[:40]!r}: reload the page")

    def tasks(self, where: str = "", values: tuple[str, ...] = ()) -> list[Task]:
        """All tasks, in the order in which they were given."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT rater, item, given, answers, comment, seconds, answered FROM tasks "
                f"{where} ORDER BY given, rowid",
                values,
            ).fetchall()
        return [
            Task(rater, item, given, json.loads(answers or "{}"), comment, seconds, answered)
            for rater, item, given, answers, comment, seconds, answered in rows
        ]

    def raters(self) -> list[str]:
        """Everybody who joined, in that order."""
        with self._lock:
            return [name for (name,) in self._connection.execute("SELECT name FROM raters ORDER BY joined")]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def _claim(self, path: Path, key: str, value: str, *, fixed: bool = True) -> str:
        """What the file has under a key, which is `value` if it is new; `fixed`: and must be."""
        try:
            with self._transaction() as connection:
                connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
                (there,) = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise ValueError(f"{path}: cannot be written ({error}); name another database") from None
        if fixed and there != value:
            changed = "other videos" if key == "videos" else "another kind, seed, criteria, checks or names"
            raise ValueError(
                f"{path}: its answers belong to a study with {changed}; undo the change, or name another "
                "database to begin anew"
            )
        return there


def _fingerprint(study: Study, items: list[Item]) -> str:
    """What answers depend on: questions, seed and the items' names."""
    names = [(item.id, item.name, item.systems, [v.control for v in item.videos]) for item in items]
    told = {key: asdict(study)[key] for key in ("kind", "seed", "criteria")}
    return hashlib.sha256(json.dumps([told, names]).encode()).hexdigest()


def _contents(items: list[Item]) -> str:
    """Hash of all bytes that people see, apart from the degraded copies."""
    total = hashlib.sha256()
    for item in items:
        for video in () if item.check else item.videos:
            with open(video.video, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
