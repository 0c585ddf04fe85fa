"""Only regular files of a plausible size are opened, and new files replace nothing."""

import os

import pytest

from megatv.data.files import MAX_LEVELS, MAX_TEXT_BYTES, create, is_deeper, open_regular, read_json


def test_a_file_and_a_link_to_one_are_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for name in "ab":
        with open_regular(tmp_path / name, 3) as file:
            assert file.read() == b"abc"
    with pytest.raises(ValueError, match=r"b: cannot be read \(Too many levels"):
        open_regular(tmp_path / "b", 3, links=False)
    with pytest.raises(ValueError, match=r"a: has 3 bytes, and at most 2 are read; copy"):
        open_regular(tmp_path / "a", 2)
    with pytest.raises(ValueError, match=r"none: cannot be read \(No such file"):
        open_regular(tmp_path / "none", 2)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    """A pipe would keep its reader waiting, and a device has no end."""
    path = tmp_path / "odd"
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    with pytest.raises(ValueError, match="odd: is not a file; copy"):
        open_regular(path, 1 << 20)


def nested(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        (nested(MAX_LEVELS + 1), "nested too deeply"),
        (nested(900), "nested too deeply"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("9" * 5000, "too many digits"),
        (b"\xff\xfe\x00", "not UTF-8|Expecting value"),
        (" " * (MAX_TEXT_BYTES + 1), "at most 1048576 are read"),
    ],
    ids=["cut", "33 levels", "900 levels", "deep list", "deep object", "digits", "no text", "long"],
)
def test_texts_that_are_no_plain_data_are_refused(tmp_path, text, reason):
    path = tmp_path / "dataset.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(
        ValueError, match=rf"dataset\.json: .*({reason}).*; copy the directory again"
    ) as error:
        read_json(path)
    assert len(str(error.value)) < 400


def test_levels_are_objects_and_lists():
    assert not is_deeper("x", 0) and is_deeper({}, 0) and not is_deeper({"a": [1]}, 2)
    assert is_deeper({"a": [1, {}]}, 2)


def test_a_new_file_replaces_nothing(tmp_path):
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "marker")
    for name in ("target", "link", "dangling"):
        with pytest.raises(FileExistsError):
            create(tmp_path / name)
    with create(tmp_path / "new") as file:
        file.write(b"x")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "target").read_text() == "kept" and not (tmp_path / "marker").exists()
