"""The SQLite file of a study: private, no link, nobody else's, and brought up to today's tables.

A file of another program, or one with triggers, views or other tables, is refused before anything in it is
changed: its tables must be, word for word, those that this module makes.

Beside a file `answers.db` in WAL mode lie `answers.db-wal` and `answers.db-shm`. The first holds pages that
count as the file's own and are looked at with it; SQLite makes the second anew. In its other modes SQLite
writes `answers.db-journal`, and when it opens a file that has one, it first writes the journal's pages into
the file and deletes the file that the journal's end names, wherever it lies (https://sqlite.org/fileformat2.html,
section 3). So a file with a journal is not opened, and none is ever written here.

A page of a table's tree may name the same child many times (section 1.6 there), and ten such pages stand for
more rows than can ever be read. So statements are bounded in computing time, and rows by the file's length.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from megatv.regular_file import create_file

BUSY_SECONDS = 2.0
"""How long a write waits for another process that writes."""
MAX_VALUE_BYTES = 1_000_000
"""The longest text in a file that is read at all."""
OPENING_SECONDS, STATEMENT_SECONDS = 2.0, 60.0
"""Computing time to look at a file's tables, which takes a millisecond, and to do anything else with them."""
MAX_FILE_BYTES = 4 << 30
"""Of a file and its -wal: MAX_ROWS answers of 4 KiB each."""
MAX_ROWS, MAX_ROWS_BYTES = 1_000_000, 256 << 20
"""Of one query, whose rows are all in memory."""
ROW_BYTES = 8
"""A row takes at least as many bytes in a file: lengths of row and header, its number, a type a column."""
STEPS = 1000
"""Of SQLite's machine between two looks at the clock."""

_SPACES = re.compile("[ \\t\\r\\n\\f]+")
"""Between the words of a statement, as SQLite has them."""

TASKS = (
    "answers TEXT, comment TEXT NOT NULL DEFAULT '', seconds REAL, answered REAL, PRIMARY KEY (rater, item) )"
)
TABLES = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "people": (
        "CREATE TABLE people ( number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, "
        "token TEXT, joined REAL )"
    ),
    "tasks": f"CREATE TABLE tasks ( rater TEXT NOT NULL, item TEXT NOT NULL, given REAL NOT NULL, {TASKS}",
}
"""people: sides and order are drawn from `id`, `token` is the hash of a secret, `joined` in Unix seconds."""
TABLES_OF_NAMES = {
    "meta": TABLES["meta"],
    "raters": "CREATE TABLE raters (name TEXT PRIMARY KEY, joined REAL NOT NULL)",
    "tasks": (
        "CREATE TABLE tasks ( rater TEXT NOT NULL REFERENCES raters, item TEXT NOT NULL, "
        f"given REAL NOT NULL, {TASKS}"
    ),
}
"""Before there were invitations: raters were known by their names."""


def open_database(path: Path, *, create: bool) -> sqlite3.Connection:
    """A connection to a study's file, which transactions write. `create`: the file may be new.

    Raises ValueError with one sentence for what is not such a file.
    """
    try:
        _claim_file(path, create=create)
        looking = connect(path, read_only=True)  # closing it leaves its -wal as it was
        with closing(looking):
            with bounded(looking, path, OPENING_SECONDS):
                found = _version(looking, path)
            if found is TABLES_OF_NAMES:  # they will be sorted: SQLite writes the rows into a file meanwhile
                for table in ("raters", "tasks"):
                    read_rows(looking, path, f"SELECT * FROM {table}")
        connection = connect(path)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from None
    try:
        with bounded(connection, path):
            _use_wal(connection)
            _bring_up_to_date(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise _unusable(path, error) from None
    except ValueError:
        connection.close()
        raise
    return connection


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """One more connection to a file that `open_database` has opened; threads may share it.

    Raises ValueError when a journal lies beside it.
    """
    _refuse_journal(path)
    url = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    connection = sqlite3.connect(url, BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.execute("PRAGMA trusted_schema = OFF")
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER, False)
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_ENABLE_VIEW, False)
    return connection


@contextmanager
def bounded(connection: sqlite3.Connection, path: Path, seconds: float = STATEMENT_SECONDS) -> Iterator[None]:
    """Statements within it may compute for so long together, in this thread; waiting for others costs none.

    Raises ValueError for longer ones; as after any error, a transaction is to be rolled back.
    """
    end = time.thread_time() + seconds
    connection.set_progress_handler(lambda: time.thread_time() > end, STEPS)
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        raise ValueError(
            f"{path}: takes more than {seconds:g} s of computing to read, as a damaged database does; name "
            "another one"
        ) from None
    finally:
        connection.set_progress_handler(None, STEPS)


def read_rows(
    connection: sqlite3.Connection, path: Path, query: str, values: tuple[object, ...] = ()
) -> list[tuple[Any, ...]]:
    """All rows of a query. Raises ValueError for more than the file can hold, or than MAX_ROWS."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    with bounded(connection, path), closing(connection.execute(query, values)) as cursor:
        most = min(_length(path), MAX_ROWS_BYTES)
        for row in cursor:
            size += ROW_BYTES + sum(len(value) for value in row if isinstance(value, (str, bytes)))
            if size > most and size > (most := min(_length(path), MAX_ROWS_BYTES)):  # it may have grown
                raise ValueError(
                    f"{path}: has more rows than its length or {MAX_ROWS_BYTES >> 20} MiB can hold, as a "
                    "damaged database does; name another one"
                )
            if len(rows) == MAX_ROWS:
                raise ValueError(f"{path}: has more than {MAX_ROWS:,} rows; name another database")
            rows.append(row)
    return rows


def _length(path: Path) -> int:
    """Bytes of a file and its -wal."""
    length = path.stat().st_size
    with suppress(FileNotFoundError):  # whoever closes the file last removes the -wal
        length += path.with_name(f"{path.name}-wal").stat().st_size
    return length


def refuse_link(path: Path) -> None:
    """Raises ValueError when a file or folder beside the answers is a link, which may lead anywhere."""
    if path.is_symlink():
        raise ValueError(f"{path}: is a link; let `database` name the place that it leads to, or remove it")


def _refuse_journal(path: Path) -> None:
    """Raises ValueError when anything has the name of the file's journal: a file, a link, a pipe."""
    journal = path.with_name(f"{path.name}-journal")
    if os.path.lexists(journal):
        raise ValueError(
            f"{journal}: a study's answers never have such a journal, and SQLite would change files that it "
            "names; name another database, or remove the journal"
        )


def _claim_file(path: Path, *, create: bool) -> None:
    """A regular file that only its owner reads, made if it is not there."""
    files = [path.with_name(path.name + end) for end in ("", "-wal", "-shm")]
    for place in (path.parent, *files):
        refuse_link(place)
    _refuse_journal(path)
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            create_file(path).close()
    if not path.exists():
        raise ValueError(f"{path}: does not exist, so there are no answers yet; serve the study first")
    for file in files:
        if file.exists():
            mode = file.stat().st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"{file}: is no file; name another database")
            if mode & 0o077:
                file.chmod(0o600)
    if _length(path) > MAX_FILE_BYTES:
        raise ValueError(
            f"{path}: is longer than {MAX_FILE_BYTES >> 30} GiB with its -wal, which no study is; name "
            "another database"
        )


def _use_wal(connection: sqlite3.Connection) -> None:
    """Put a file into WAL mode, by way of a journal in memory: one beside the file would outlive a crash."""
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA journal_mode = WAL")


def _version(connection: sqlite3.Connection, path: Path) -> dict[str, str]:
    """The tables that a file has: TABLES, TABLES_OF_NAMES or none; ValueError for any others."""
    most = 2 * len(TABLES) + 1  # one more than the tables and the index of each one's key
    found = [
        (kind, name, table, _SPACES.sub(" ", sql) if isinstance(sql, str) else sql)
        for kind, name, table, sql in connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT ?", (most,)
        )
    ]
    for tables in (TABLES, TABLES_OF_NAMES, {}):
        if _same(found, tables):
            return tables
    raise ValueError(f"{path}: is the database of something else; name another one")


def _bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    """Today's tables in a file that is empty or has those of names; ValueError for any other."""
    with connection, closing(connection.cursor()) as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        found = _version(connection, path)
        if found == TABLES:
            return
        if found:
            cursor.execute("ALTER TABLE tasks RENAME TO tasks_of_names")
        for name, sql in TABLES.items():
            if not found or name != "meta":
                cursor.execute(sql)
        if found:
            cursor.execute(
                "INSERT INTO people (id, name, joined) SELECT name, name, joined FROM raters "
                "ORDER BY joined, rowid"
            )
            cursor.execute("INSERT INTO tasks SELECT * FROM tasks_of_names ORDER BY given, rowid")
            cursor.execute("DROP TABLE tasks_of_names")
            cursor.execute("DROP TABLE raters")


def _same(found: list[tuple[Any, ...]], tables: dict[str, str]) -> bool:
    """Whether a schema has these tables with the index of each one's key, and nothing else of any type."""
    wanted: list[tuple[Any, ...]] = [("table", name, name, sql) for name, sql in tables.items()]
    wanted += [("index", f"sqlite_autoindex_{name}_1", name, None) for name in tables]
    return Counter(found) == Counter(wanted)


def _unusable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: is no database that can be used ({error}); name another one")
