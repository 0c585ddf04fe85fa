"""A YAML file that somebody else wrote is read in bounded memory, or refused in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatv.yaml_tree import MAX_CHARACTERS, MAX_NODES, dump, parse, read_yaml

DEEP = "[" * 50_000
LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)
)
MERGED = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 40)
)


@pytest.mark.parametrize(
    "text",
    [
        *(DEEP, "{a: " * 50_000, "- " * 50_000, "a: &a [*b]", "a: &a [*a]", MERGED),
        *(
            "a: !!int ''",
            "a: !!float ''",
            "a: !!bool x",
            "a: !!timestamp x",
            "a: !!binary x",
            "a: 2026-99-99",
        ),
        *(
            "a: !!python/object/apply:os.system ['true']",
            "a: !!map 5",
            "? [a]\n: b",
            "a: " + "9" * 9000,
            "\0",
        ),
        "a: 9999-99-99T99:99:99.9Z",
    ],
)
def test_what_is_no_plain_tree_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^here: not valid YAML: .*$") as caught:
        parse(text, "here")
    assert len(str(caught.value)) < 400


def test_aliases_and_merging_of_ordinary_size_stay() -> None:
    tree = parse("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}", "here")
    assert tree == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}
    assert parse(dump({"<<": 1}), "here") == {"<<": 1}  # quoted, it is a key as others


@pytest.mark.parametrize("text", [LAUGHS, MERGED, "a: &a [*a]"])
def test_aliases_that_stand_for_too_much_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"aliases stand for more than {MAX_NODES} values"):
        parse(text, "here")


def test_a_file_that_repeats_itself_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"{LAUGHS}run: *a39\n")
    program = (
        "import resource, sys; from megatv.config import load_config\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "try: load_config(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "stand for more than" in done.stdout and len(done.stdout) < 400


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "run.yaml").open("w") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=f"has more than {MAX_CHARACTERS} characters"):
        read_yaml(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "number",
    ["1" + ":1" * 80_000, "1" + ":1" * 80_000 + ".5", "9" * 129, "0x" + "f" * 127, "1." + "0" * 127]
    + [f"!!{kind} '1{':1' * 80_000}'" for kind in ("int", "float")]
    + ["0b" + "1" * 200, "0" + "7" * 200, "1" + "_" * 200],
)
def test_numbers_are_short(number: str) -> None:
    """Those of base 60 would take the square of their length, and others could not be printed."""
    with pytest.raises(ValueError, match=r"x\.yaml: not valid YAML: line 2: a number of more than 128 char"):
        parse(f"b: 1\na: {number}", "x.yaml")
    assert parse("a: [1:30, 0x10, 1e-4, 9" + "0" * 127 + "]", "x.yaml")["a"][:3] == [90, 16, 1e-4]
    assert parse("a: " + "x" * 1000, "x.yaml") == {"a": "x" * 1000}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"config\.yaml: is not a regular file"):
        read_yaml(tmp_path / "config.yaml")
