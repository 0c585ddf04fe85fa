"""A YAML file that somebody else wrote is read in bounded memory, or refused in one sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatv.yaml_tree import MAX_CHARACTERS, MAX_NODES, dump, parse, read_yaml

CONFIG = Path(__file__).parents[1] / "configs/toy_world.yaml"
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
            "a: !!int '1'",
            "a: !mine 1",
        ),
        *(
            "a: !!python/object/apply:os.system ['true']",
            "a: !!map 5",
            "? [a]\n: b",
            "a: " + "9" * 9000,
            "\0",
        ),
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
    ["9" * 129, "0x" + "f" * 127, "0o" + "7" * 127, "1." + "0" * 127, "1e" + "9" * 127],
)
def test_numbers_are_short(number: str) -> None:
    """Longer ones could not be printed."""
    with pytest.raises(ValueError, match=r"x\.yaml: not valid YAML: line 2: a number of more than 128 char"):
        parse(f"b: 1\na: {number}", "x.yaml")
    with pytest.raises(ValueError, match="a number of more than 128 char"):
        read_yaml(CONFIG, [f"run.seed={number}"])
    assert parse("a: 9" + "0" * 127, "x.yaml") == {"a": 9 * 10**127}
    assert parse("a: " + "x" * 1000, "x.yaml") == {"a": "x" * 1000}


PLAIN = {
    "010": 10,
    "0100": 100,
    "-07": -7,
    "0o10": 8,
    "0x1F": 31,
    "1e-4": 1e-4,
    "3E4": 3e4,
    ".5": 0.5,
    "1.": 1.0,
    "-.inf": float("-inf"),
    "true": True,
    "FALSE": False,
    "~": None,
    "null": None,
    # of YAML 1.1 numbers, truth values, dates and what not
    **{
        text: text
        for text in (
            "1:30",
            "1:30.5",
            "1_000",
            "0b11",
            "yes",
            "No",
            "on",
            "off",
            "y",
            "2026-12-01",
            "=",
            "0x",
        )
    },
    **{
        text: text
        for text in ("1e", "e5", "+", "-x", ".", "1.2.3", "nan", "inf", "True!", "~/x", "NULLA", "۳")
    },
}
"""Plain values, and what YAML 1.2 (10.3, the core schema) makes of them."""


@pytest.mark.parametrize("text", PLAIN)
def test_plain_values_are_those_of_yaml_1_2(text: str) -> None:
    """In a file, in a list on the command line and alone there."""
    told = [parse(f"a: {text}", "x")["a"], read_yaml(CONFIG, [f"run.dir={text}"])["run"]["dir"]]
    told += read_yaml(CONFIG, [f"run.dir=[{text}]"])["run"]["dir"]
    assert [(type(value), value) for value in told] == [(type(PLAIN[text]), PLAIN[text])] * 3


@pytest.mark.parametrize(
    "text", [*PLAIN, "a #b", "&a b", "*b", "a: b", "- a", "", " ", "\n", "'", '"x"', "é"]
)
def test_texts_come_back_as_texts(text: str) -> None:
    assert parse(dump({"a": text, text: [text]}), "x") == {"a": text, text: [text]}


@pytest.mark.parametrize(
    "text",
    [
        *("runs/lr #2", "#2", "&a b", "*a", "!x y", "a: b", "- a", "| x", "> x", "% x", "@x", "`x`", "? x"),
        *("{x", " {x}", " [1]", "x]", "a,b", "a'b", "---", "...", "x\ty", "s3://bucket/prefix", "C:\\x"),
    ],
)
def test_a_text_on_the_command_line_is_what_stands_there(text: str) -> None:
    if text == "{x":
        with pytest.raises(ValueError, match="not valid YAML"):
            read_yaml(CONFIG, [f"run.dir={text}"])
    else:
        assert read_yaml(CONFIG, [f"run.dir={text}"])["run"]["dir"] == text


@pytest.mark.parametrize(
    "text",
    [
        *("[1] # two", "'a' # b", "{a: 1} #", "[1] ", "[&a 1, *a]", "{a: !!str 1}", "'a': b", '"a": b'),
        *("[1,\n2]", "[1, # x\n2]", "'a\nb'", "[1]\n---\n[2]"),
    ],
)
def test_lists_on_the_command_line_hold_values_alone(text: str) -> None:
    with pytest.raises(ValueError, match=r"^override 'run\.dir=") as caught:
        read_yaml(CONFIG, [f"run.dir={text}"])
    assert "without comments and anchors" in str(caught.value) or "not valid YAML" in str(caught.value)


def test_a_value_that_is_left_out_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"override 'data\.val=' gives no value: write null or ''"):
        read_yaml(CONFIG, ["data.val="])
    assert read_yaml(CONFIG, ["data.val=''"])["data"]["val"] == ""


ANY = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
LETTERS = st.text("0123456789:._-+eExob~#&*!|>%@`'\"[]{},?= \nnullyestruea", max_size=12)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML that is read at once."""
    path = tmp_path_factory.mktemp("small") / "run.yaml"
    path.write_text("run: {dir: x}")
    return path


@given(text=LETTERS | ANY)
def test_any_override_is_a_value_or_a_sentence(small: Path, text: str) -> None:
    """What begins like no list, section or quoted text stays a text to the letter, unless it is a number."""
    try:
        value = read_yaml(small, [f"run.dir={text}"])["run"]["dir"]
    except ValueError as error:
        assert str(error).startswith("override 'run.dir=")
        return
    if text[0] not in "[{'\"":
        alone = re.fullmatch(
            r"[-+]?(\d*\.?\d*(e[-+]?\d+)?|\.inf|\.nan)|0[xo][\da-f]+|~|null|true|false", text, re.I
        )
        assert value == text or (alone and not isinstance(value, str))
        return
    assert parse(dump({"a": value}), "x") == {"a": value} or value != value
    assert not re.search(r"[&*!#]", re.sub(r"'[^']*'|\"[^\"]*\"", "", text)) or re.search(
        r"[^\s,\[\]{}:][&*!#]", text
    )


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"config\.yaml: is not a regular file"):
        read_yaml(tmp_path / "config.yaml")
