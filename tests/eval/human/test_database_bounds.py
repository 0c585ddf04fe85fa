"""A file of answers that claims more than it holds costs bounded time and memory."""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from megatv.eval.human import database
from megatv.eval.human.answers import Answers
from megatv.eval.human.database import bounded, connect, open_database, read_rows

PAGE = 4096
INTERIOR, LEAF = 5, 13
"""Kinds of pages of a table (https://sqlite.org/fileformat2.html, section 1.6)."""


def many_times(cell: bytes, *, kind: int, child: int = 0, count: int = 300, head: bytes = b"") -> bytes:
    """A page whose `count` entries are all the same cell; `head`: the file's first 100 bytes."""
    place = PAGE - len(cell)
    top = struct.pack(">BHHHB", kind, 0, count, place, 0) + (
        struct.pack(">I", child) if kind == INTERIOR else b""
    )
    return (head + top + struct.pack(">H", place) * count).ljust(place, b"\0") + cell


def tree_of_one_child(path: Path, levels: int = 10) -> None:
    """A schema of 300^11 rows in 45 KB: each interior page names the next page 301 times."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE x (a)")
    head = bytearray(path.read_bytes()[:100])
    head[28:32] = struct.pack(">I", levels + 1)  # the file's pages
    pages = [
        many_times(
            struct.pack(">IB", page + 1, 1), kind=INTERIOR, child=page + 1, head=head if page == 1 else b""
        )
        for page in range(1, levels + 1)
    ]
    texts = [b"table", b"x", b"x", b"CREATE TABLE IF NOT EXISTS x(a)"]
    types = [13 + 2 * len(text) for text in texts]
    record = bytes([6, *types[:3], 1, types[3]]) + b"".join(texts[:3]) + b"\x02" + texts[3]
    pages.append(many_times(bytes([len(record), 1]) + record, kind=LEAF))
    path.write_bytes(b"".join(pages))


def test_a_tree_that_names_a_child_many_times_is_left_in_time(make_study, monkeypatch):
    monkeypatch.setattr(database, "OPENING_SECONDS", 0.1)
    study = make_study()
    tree_of_one_child(Path(study.database))
    assert Path(study.database).stat().st_size < 50_000
    with pytest.raises(ValueError, match=r"answers\.sqlite: takes more than 0\.1 s of computing") as error:
        Answers(study, [], create=False)
    assert "\n" not in str(error.value)


@pytest.fixture
def one_row_many_times(tmp_path):
    """A file of ours in which one person's row stands 680 times, as many as a page may have."""
    path = tmp_path / "answers.sqlite"
    with closing(open_database(path, create=True)) as connection:
        connection.execute("INSERT INTO people (id, name) VALUES ('0123456789abcdef', printf('%64d', 1))")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'people'").fetchone()
    repeat_row(path, page)
    return path


def repeat_row(path: Path, page: int) -> None:
    """Let the only row of a table, whose tree is this page, stand there 680 times."""
    pages = bytearray(path.read_bytes())
    leaf = pages[(page - 1) * PAGE : page * PAGE]
    (place,) = struct.unpack(">H", leaf[8:10])
    pages[(page - 1) * PAGE : page * PAGE] = many_times(bytes(leaf[place:]), kind=LEAF, count=680)
    path.write_bytes(pages)


def test_rows_are_no_more_than_the_file_can_hold(one_row_many_times):
    with closing(open_database(one_row_many_times, create=False)) as connection:
        assert (
            len(read_rows(connection, one_row_many_times, "SELECT number, name FROM people LIMIT 100")) == 100
        )
        with pytest.raises(ValueError, match=r"answers\.sqlite: has more rows than its length") as error:
            read_rows(connection, one_row_many_times, "SELECT number, name FROM people")
    assert "\n" not in str(error.value)


def test_rows_of_an_old_file_are_counted_before_they_are_sorted(tmp_path):
    """To sort them SQLite writes them into a file of its own, wherever it keeps such: gigabytes a minute."""
    path = tmp_path / "answers.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        for sql in database.TABLES_OF_NAMES.values():
            connection.execute(sql)
        connection.execute("INSERT INTO raters VALUES (printf('%64d', 1), 1.0)")
        connection.commit()
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'raters'").fetchone()
    repeat_row(path, page)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"answers\.sqlite: has more rows than its length") as error:
        open_database(path, create=False)
    assert "\n" not in str(error.value) and path.read_bytes() == before


def test_rows_are_bounded_however_long_the_file_is(one_row_many_times, monkeypatch):
    os.truncate(one_row_many_times, 64 << 20)
    with closing(connect(one_row_many_times)) as connection:
        query = (connection, one_row_many_times, "SELECT number, name FROM people")
        assert len(read_rows(*query)) == 680
        monkeypatch.setattr(database, "MAX_ROWS", 500)
        with pytest.raises(ValueError, match="has more than 500 rows"):
            read_rows(*query)
        monkeypatch.setattr(database, "MAX_ROWS_BYTES", 10_000)
        with pytest.raises(ValueError, match="has more rows than its length or"):
            read_rows(*query)


def test_a_statement_is_bounded_and_the_next_one_is_not_disturbed(make_study, monkeypatch):
    study = make_study()
    answers = Answers(study, [], create=True)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    monkeypatch.setattr(bounded.__wrapped__, "__defaults__", (0.05,))
    with pytest.raises(ValueError, match=r"takes more than 0\.05 s"), answers._transaction() as connection:
        connection.execute("INSERT INTO people (id, name) VALUES ('a', 'Ada')")
        connection.execute(endless)
    assert answers.raters() == []
    with pytest.raises(ValueError, match=r"takes more than 0\.05 s"):
        answers._read(endless)
    answers.invite("Ben")
    assert [rater.name for rater in answers.raters()] == ["Ben"]
    answers.close()


def test_waiting_for_another_process_is_not_computing(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 60.0)
    monkeypatch.setattr(database, "STEPS", 1)
    path = tmp_path / "answers.sqlite"
    with closing(open_database(path, create=True)) as connection, closing(connect(path)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        release = threading.Thread(target=lambda: (time.sleep(1), holder.execute("ROLLBACK")))
        release.start()
        with bounded(connection, path, 0.5), connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO people (id, name) VALUES ('a', 'Ada')")
        release.join()
        assert read_rows(connection, path, "SELECT name FROM people") == [("Ada",)]


@pytest.mark.parametrize("end", ["", "-wal"])
def test_a_file_has_a_longest(tmp_path, end):
    path = tmp_path / "answers.sqlite"
    open_database(path, create=True).close()
    with open(f"{path}{end}", "ab") as file:
        file.truncate(database.MAX_FILE_BYTES + 1)
    with pytest.raises(ValueError, match=r"answers\.sqlite: is longer than 4 GiB"):
        open_database(path, create=False)
