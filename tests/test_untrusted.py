"""JSON and file names that a stranger wrote: every fault is a ValueError with a reason."""

import json
from pathlib import Path

import pytest

from megatv.untrusted import inside, parse_json, plain_name


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
