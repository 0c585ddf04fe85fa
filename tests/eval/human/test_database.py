"""The answers' file: private, no link, nobody else's; one of today's names is brought up to date."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sqlite3
import struct
from pathlib import Path

import pytest

from megatv.eval.human import cli, database
from megatv.eval.human.answers import Answers
from megatv.eval.human.database import TABLES, connect
from megatv.eval.human.raters import UnknownRaterError
from megatv.eval.human.report import figures
from megatv.eval.human.tasks import make_checks, make_items
from megatv.eval.human.videos import find_videos

HIDDEN = "CREATE TRIGGER tasks AFTER INSERT ON people BEGIN DELETE FROM people; END"
TODAY = "; ".join(TABLES.values())
TODAY_BUT_TASKS = "; ".join(sql for name, sql in TABLES.items() if name != "tasks")
OLD = Path(__file__).with_name("answers_of_names.sql")


def items_of(study):
    items = make_items(study, find_videos(study))
    return {i.id: i for i in (*items, *make_checks(study, items, Path("absent"), write=False))}


def opened(study, *, create=True):
    return Answers(study, items_of(study).values(), create=create)


def fill(path, sql):
    connection = sqlite3.connect(path)
    connection.executescript(sql)
    connection.close()


@pytest.fixture
def old(make_study):
    """A study whose answers were written when raters were known by their names."""
    study = make_study()
    fill(study.database, OLD.read_text())
    return study


def test_answers_of_names_are_read_as_they_were(old):
    answers = opened(old, create=False)
    assert [(r.number, r.id, r.name) for r in answers.raters()] == [
        (1, "Ada", "Ada"),
        (2, "Ben @home", "Ben @home"),
    ]
    tasks = answers.tasks()
    assert [task.rater for task in tasks] == ["Ada"] * 5 + ["Ben @home"] * 3
    assert [bool(task.answered) for task in tasks] == [True] * 7 + [False]
    told = figures(old, items_of(old), tasks, answers.raters())
    # each preferred `ours` wherever it stood: sides are those that they saw
    assert told["questions"]["overall"]["wins"]["ours"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 6}
    assert told["raters_left_out"] == 0 and [p["rater"] for p in told["raters"]] == ["rater-1", "rater-2"]
    answers.close()
    again = opened(old, create=False)
    assert again.tasks() != [] and len(again.raters()) == 2
    again.close()


def test_people_of_names_come_back_with_an_invitation(old, desk, tmp_path, capsys):
    connection = sqlite3.connect(old.database)
    connection.execute("DELETE FROM meta WHERE key = 'videos'")  # these were encoded on another machine
    connection.commit()
    connection.close()
    one = desk()
    systems = [{"name": s.name, "videos": s.videos} for s in old.systems]
    tree = {"kind": "pairwise", "systems": systems, "database": old.database, "checks": 1, "raters": ["Ada"]}
    (tmp_path / "study.yaml").write_text(json.dumps(tree))
    cli.main(["invite", str(tmp_path / "study.yaml")])
    token = capsys.readouterr().out.strip().partition("#")[2]
    assert one.next(one.answers.rater(token))["done"] == 5
    cli.main(["invite", str(tmp_path / "study.yaml"), "--renew", "2"])
    ben = one.answers.rater(capsys.readouterr().out.strip().partition("#")[2])
    assert ben.name == "Ben @home" and one.next(ben)["done"] == 2


def test_the_file_is_private(make_study):
    study = make_study()
    before = os.umask(0)
    try:
        answers = opened(study)
        answers.invite()
        files = list(Path(study.database).parent.glob("answers.sqlite*"))
        assert len(files) == 3 and {path.stat().st_mode & 0o777 for path in files} == {0o600}
        answers.close()
        Path(study.database).chmod(0o644)
        opened(study).close()
        assert Path(study.database).stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_neither_file_nor_folder_is_a_link(make_study, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for place, sentence in (
        ("link.sqlite", "link.sqlite: is a link"),
        ("folder/a.sqlite", "folder: is a link"),
    ):
        (tmp_path / Path(place).parts[0]).symlink_to(outside / "new.sqlite" if "link" in place else outside)
        with pytest.raises(ValueError, match=sentence):
            opened(make_study(database=str(tmp_path / place)))
    study = make_study()
    opened(study).close()
    Path(study.database + "-wal").symlink_to(outside / "wal")
    with pytest.raises(ValueError, match=r"answers\.sqlite-wal: is a link"):
        opened(study)
    assert not list(outside.iterdir())


@pytest.mark.parametrize(
    "sql",
    [
        f"{TODAY_BUT_TASKS}; {HIDDEN}; {TABLES['tasks']}",
        f"{TODAY}; CREATE INDEX people_of_name ON people (name)",
        f"{TODAY}; CREATE VIRTUAL TABLE words USING fts5(word)",
        TODAY.replace("token TEXT", "token TEXT AS (hex(name))"),
        TODAY.replace("token TEXT", "token TEXT CHECK (length(randomblob(900000000)))"),
        TODAY.replace("key TEXT", "key\u00a0TEXT"),
        "CREATE TABLE cookies (value TEXT)",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
        OLD.read_text() + "CREATE TRIGGER t AFTER UPDATE ON tasks BEGIN DELETE FROM tasks; END;",
        OLD.read_text() + "CREATE VIEW people AS SELECT 1;",
        OLD.read_text().replace("seconds REAL", "seconds REAL CHECK (randomblob(900000000))"),
    ],
    ids=[
        "a trigger named as a table",
        "an index",
        "a virtual table",
        "a computed column",
        "a check",
        "another word",
        "another program's",
        "a part",
        "a trigger",
        "a view",
        "a check that allocates",
    ],
)
def test_a_file_of_something_else_is_left_alone(make_study, sql):
    study = make_study()
    fill(study.database, sql.replace('INSERT INTO "tasks"', "-- "))
    before = Path(study.database).read_bytes()
    with pytest.raises(ValueError, match="is the database of something else; name another one"):
        opened(study)
    assert Path(study.database).read_bytes() == before


def hot_journal(path, sql, names):
    """A database in the midst of a transaction, as a crash leaves it; its journal names another file."""
    source = path.with_name("source.sqlite")
    fill(source, sql)
    connection = sqlite3.connect(source, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE filler (value TEXT)")
    connection.executemany("INSERT INTO filler VALUES (?)", [("y" * 500,)] * 500)
    shutil.copy(source, path)
    shutil.copy(f"{source}-journal", f"{path}-journal")
    connection.close()
    name = os.fsencode(names)
    page, checksum = 0x40000000 // 4096 + 1, sum(name)
    with open(f"{path}-journal", "ab") as journal:
        journal.write(struct.pack(">I", page) + name + struct.pack(">II", len(name), checksum))
        journal.write(bytes.fromhex("d9d505f920a163d7"))


@pytest.mark.parametrize("sql", [TODAY, "CREATE TABLE cookies (value TEXT)"], ids=["ours", "foreign"])
def test_a_journal_deletes_and_changes_nothing(make_study, tmp_path, sql):
    study, precious = make_study(), tmp_path / "precious"
    precious.touch()
    hot_journal(Path(study.database), sql, precious)
    before = Path(study.database).read_bytes()
    for open_it in (lambda: opened(study, create=False), lambda: connect(Path(study.database))):
        with pytest.raises(ValueError, match=r"answers\.sqlite-journal: .*remove the journal"):
            open_it()
    assert precious.exists() and Path(study.database).read_bytes() == before


def test_a_journal_of_any_kind_is_refused(make_study, tmp_path):
    """A pipe would be waited for; what a link leads to would be rolled back or deleted."""
    study = make_study()
    opened(study).close()
    journal, precious = Path(study.database + "-journal"), tmp_path / "precious"
    precious.write_bytes(b"x" * 1000)
    for make in (
        lambda: os.mkfifo(journal),
        lambda: journal.symlink_to(precious),
        lambda: journal.symlink_to(tmp_path / "absent"),
        lambda: journal.touch(),
    ):
        make()
        with pytest.raises(ValueError, match=r"answers\.sqlite-journal: "):
            opened(study)
        journal.unlink()
    assert precious.read_bytes() == b"x" * 1000
    opened(study).close()


def open_until(path, statement):
    """Open a file in a process that ends before this statement, from 0: exit code 9; 0 where none is left."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = itertools.count()

    def counting(place, **options):
        connection = connect(place, **options)
        connection.set_trace_callback(lambda sql: next(count) == statement and os._exit(9))
        return connection

    database.connect = counting  # in this process alone
    try:
        database.open_database(path, create=True)
    finally:
        os._exit(0)


@pytest.mark.parametrize("old", [False, True], ids=["a new file", "a file of names"])
def test_a_crash_while_it_is_made_leaves_a_file_that_opens(tmp_path, old):
    for statement in itertools.count():
        path = tmp_path / f"{statement}.sqlite"
        if old:
            fill(path, OLD.read_text())
        ended = open_until(path, statement)
        assert not Path(f"{path}-journal").exists()
        database.open_database(path, create=True).close()
        if not ended:
            break
    assert statement > 5


def test_a_foreign_file_keeps_its_write_ahead_log(make_study):
    """What another program has yet to write back stays so, though SQLite reads it."""
    study = make_study()
    path, source = Path(study.database), Path(study.database + ".source")
    connection = sqlite3.connect(source)
    connection.executescript("PRAGMA journal_mode = WAL; CREATE TABLE cookies (value TEXT)")
    for end in ("", "-wal"):
        shutil.copy(f"{source}{end}", f"{path}{end}")
    connection.close()
    before = {end: Path(f"{path}{end}").read_bytes() for end in ("", "-wal")}
    assert all(before.values())
    with pytest.raises(ValueError, match="is the database of something else"):
        opened(study)
    assert {end: Path(f"{path}{end}").read_bytes() for end in ("", "-wal")} == before


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("answers", "[" * 5000),
        ("answers", "3"),
        ("answers", '{"overall": "tie"}'),
        ("answers", '{"alignment": "7", "fidelity": "tie", "quality": "tie", "overall": "tie"}'),
        ("answers", '{"alignment": {}, "fidelity": "tie", "quality": "tie", "overall": "tie"}'),
        ("answers", b"\xff"),
        ("answered", "yesterday"),
        ("answered", 1e300),
        ("seconds", "many"),
        ("comment", b"\xff"),
        ("item", "no such item"),
        ("rater", "nobody"),
        ("rater", b"\xff"),
    ],
)
def test_damaged_answers_are_one_sentence(old, tmp_path, what, value):
    opened(old).close()
    connection = sqlite3.connect(old.database)
    connection.execute(f"UPDATE tasks SET {what} = ? WHERE rowid = 1", (value,))
    connection.commit()
    connection.close()
    systems = [{"name": s.name, "videos": s.videos} for s in old.systems]
    tree = {"kind": "pairwise", "systems": systems, "database": old.database, "checks": 1}
    (tmp_path / "study.yaml").write_text(json.dumps(tree))
    for verb in (["report"], ["export", "--out", str(tmp_path / "a.csv")]):
        with pytest.raises(ValueError, match=r"answers\.sqlite: .*undo what changed") as error:
            cli.main([verb[0], str(tmp_path / "study.yaml"), *verb[1:]])
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("id", b"\xff"),
        ("id", ""),
        ("name", b"\xff"),
        ("name", "x" * 5000),
        ("name", "a\x1b[31m"),
        ("joined", b"\xff"),
        ("joined", "yesterday"),
        ("joined", 1e300),
        ("token", b"\xff"),
    ],
)
def test_damaged_people_are_one_sentence(old, desk, tmp_path, what, value):
    opened(old).close()
    connection = sqlite3.connect(old.database)
    connection.execute("DELETE FROM meta WHERE key = 'videos'")  # these were encoded on another machine
    connection.execute("UPDATE people SET token = 'x'")
    connection.execute(f"UPDATE people SET {what} = ? WHERE number = 1", (value,))
    connection.commit()
    connection.close()
    answers = desk().answers
    with pytest.raises(UnknownRaterError):
        answers.rater("1.x")
    if what == "token":
        return
    with pytest.raises(ValueError, match="person '1' is damaged"):
        answers.raters()
    systems = [{"name": s.name, "videos": s.videos} for s in old.systems]
    tree = {"kind": "pairwise", "systems": systems, "database": old.database, "checks": 1}
    (tmp_path / "study.yaml").write_text(json.dumps(tree))
    for verb in (["report", "--names"], ["export", "--names", "--out", str(tmp_path / "a.csv")]):
        with pytest.raises(ValueError, match=r"answers\.sqlite: .*undo what changed") as error:
            cli.main([verb[0], str(tmp_path / "study.yaml"), *verb[1:]])
        assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_half_a_file_is_one_sentence(make_study, tmp_path):
    study = make_study()
    answers = opened(study)
    for _ in range(400):
        answers.invite("x" * 40)
    answers.close()
    path = Path(study.database)
    whole = path.read_bytes()
    systems = [{"name": s.name, "videos": s.videos} for s in study.systems]
    tree = {"kind": "pairwise", "systems": systems, "database": study.database, "checks": 1}
    (tmp_path / "study.yaml").write_text(json.dumps(tree))
    for damaged in (whole[: len(whole) // 2], whole[:4096] + b"\xff" * (len(whole) - 4096), whole[:50]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"answers\.sqlite: "):
            cli.main(["report", str(tmp_path / "study.yaml")])


def test_an_export_replaces_a_link_and_not_what_it_leads_to(old, tmp_path):
    systems = [{"name": s.name, "videos": s.videos} for s in old.systems]
    tree = {"kind": "pairwise", "systems": systems, "database": old.database, "checks": 1}
    (tmp_path / "study.yaml").write_text(json.dumps(tree))
    (tmp_path / "mine").write_text("mine")
    for link in ("a.csv", ".a.csv.partial"):
        (tmp_path / link).symlink_to(tmp_path / "mine")
    cli.main(["export", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "a.csv")])
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "a.csv").is_symlink()
    assert (tmp_path / "a.csv").stat().st_mode & 0o777 == 0o600
