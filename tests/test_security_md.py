"""SECURITY.md promises what tests hold: each row of its tables names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()
TABLE = TEXT.partition("\n## Promises and their tests\n")[2].partition("\n## ")[0]
HEADS = ("| promise | test |", "|---|---|")
ROWS = [line for line in TABLE.splitlines() if line.startswith("|") and line not in HEADS]


def test_there_are_promises():
    assert len(ROWS) > 10 and all(row.count("|") == 3 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_each_promise_names_tests_that_exist(row):
    promise, tests = row.split("|")[1:3]
    named = re.findall(r"`(tests/\S+?\.py)::(\w+)`", tests)
    assert promise.strip() and named and tests.count("`") == 2 * len(named), row
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), (
            f"{file}::{test}"
        )


def test_tests_named_elsewhere_exist_too():
    """Also in the prose above the table."""
    for file, test in re.findall(r"`(tests/\S+?\.py)::(\w+)`", TEXT):
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_files_that_it_names_exist():
    for name in re.findall(r"`((?:tools|launch|docs|configs)/[\w./]+)`|\]\(([\w./]+)\)", TEXT):
        assert (ROOT / "".join(name)).exists(), name
