"""JSON and file names that a stranger wrote: every fault is a ValueError with a reason."""

import json
import os
from pathlib import Path

import pytest

from megatv import untrusted
from megatv.log import main_guard
from megatv.untrusted import inside, is_deeper, json_lines, parse_json, plain_name, printable


def test_a_fault_of_a_line_has_its_column_and_no_line_of_its_own(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", ""):
        (tmp_path / "a.jsonl").write_text('{}\n{"a": 1' + end, newline="")
        with pytest.raises(ValueError) as caught:
            list(json_lines(tmp_path / "a.jsonl"))
        assert str(caught.value) == (
            f"{tmp_path}/a.jsonl line 2: is not valid JSON (Expecting ',' delimiter, column 8); "
            "write one object on one line"
        )


def test_json_is_read_as_always() -> None:
    assert parse_json('{"a": [1, null, "é"]}') == {"a": [1, None, "é"]}
    assert parse_json('["é"]'.encode()) == ["é"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (b'["\xff"]', "not UTF-8"),
        ("1" * 5_000, "too many digits"),
        ("{", "Expecting property name"),
        ('{"a": 1, "a": 1}', "the key 'a' is given twice"),
        ('[{"b": {"\\u0061": 1, "a": 2}}]', "the key 'a' is given twice"),
        ('{"a": 1, "b": [{"c": 2, "c": 2}]}', "the key 'c' is given twice"),
    ],
)
def test_faults_of_json_are_one_kind_of_error(text: str | bytes, reason: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=reason):
        parse_json(text)


@pytest.mark.parametrize("name", ["a.mp4", "..a", "a b", "é.mds"])
def test_plain_names(name: str, tmp_path: Path) -> None:
    assert plain_name(name) == name
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a\0b", None, 3, ["a"]])
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="is not a plain file name"):
        plain_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "b/../../a", "/etc/passwd", "a\\..\\b", "a\0", None, 3]
)
def test_names_stay_inside_their_folder(name: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not name a file within"):
        inside(tmp_path, name)


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("x")
    (folder / "link").symlink_to(outside)
    (folder / "within").symlink_to(folder)
    assert inside(folder, "within/a") == folder / "within" / "a"
    assert inside(folder, "link", links=True) == folder / "link"
    with pytest.raises(ValueError, match="leads out of"):
        inside(folder, "link")


def test_a_folder_reached_by_a_link_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert inside(tmp_path / "link", "a") == tmp_path / "link" / "a"


def test_a_link_to_itself_is_a_path_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert not inside(tmp_path, "loop").exists()


@pytest.mark.parametrize("name", ["a" * 256, "é" * 128, "\ud800"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a plain file name"):
        plain_name(name)
    for longer in (name, f"a/{name}", "a/" * 600 + "b"):
        with pytest.raises(ValueError, match="does not name a file within"):
            inside(tmp_path, longer)


def test_lines_of_json_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes('{"a": "x\u2028y\x85"}\r\n\n  \n[1]\n"\\ud83d\\ude00"'.encode())
    assert list(json_lines(file)) == [
        (f"{file} line 1", {"a": "x\u2028y\x85"}),
        (f"{file} line 4", [1]),
        (f"{file} line 5", "\U0001f600"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON .*nested too deeply"),
        (b"[" * 40 + b"]" * 40, "is nested too deeply, more than 32 levels"),
        (b'{"a": ' * 500 + b"1" + b"}" * 500, "is nested too deeply, more than 32 levels"),
        (b'"\xff"', "is not UTF-8"),
        (b"\xff\xfe", "is not UTF-8"),
        (b'{"a": ["\\ud800"]}', "half a character"),
        (b'{"\\uDFFF": 1}', "half a character"),
        (b"9" * 5000, "too many digits"),
        (b'"' + b"a" * (1 << 20) + b'"', "is longer than 1 MiB"),
    ],
)  # fmt: skip
def test_faults_of_lines_are_named_with_their_line(tmp_path: Path, line: bytes, reason: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"[1]\n" + line + b"\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl line 2: .*{reason}") as caught:
        list(json_lines(file))
    assert "\n" not in str(caught.value)


def test_files_are_read_within_their_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("[1]\n" * 9)
    monkeypatch.setattr(untrusted, "MAX_LINES_BYTES", 35)
    with pytest.raises(ValueError, match=r"a\.jsonl: is longer than"):
        list(json_lines(file))
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot be read \(No such file"):
        list(json_lines(tmp_path / "none.jsonl"))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match=r"pipe\.jsonl: is not a regular file"):
        list(json_lines(tmp_path / "pipe.jsonl"))


def test_levels_are_objects_and_lists() -> None:
    assert not is_deeper("x", 0) and is_deeper({}, 0) and not is_deeper({"a": [1]}, 2)
    assert is_deeper({"a": [1, {}]}, 2)


def test_a_terminal_is_told_nothing() -> None:
    assert printable("a\x1b[2J\x9b\r\ud800\u202eb\n\té") == "a\\x1b[2J\\x9b\\r\\ud800\\u202eb\n\té"
    assert printable("a\x1b\n\té", keep="") == "a\\x1b\\n\\té"


def test_errors_are_printed_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ValueError("the name 'a\x1b]0;title\x07\ud800' is unknown")

    with pytest.raises(SystemExit):
        main_guard(main)
    assert capsys.readouterr().err == "error: the name 'a\\x1b]0;title\\x07\\ud800' is unknown\n"
