"""Files of a shard directory are regular ones of a plausible size, or a sentence says what to do."""

import os

import pytest

from megatv.data.files import MAX_TEXT_BYTES, open_file, read_json
from megatv.untrusted import MAX_LEVELS


def test_a_file_and_a_link_to_one_are_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for name in "ab":
        with open_file(tmp_path / name, 3) as file:
            assert file.read() == b"abc"
    with pytest.raises(ValueError, match=r"b: is a link, .*; copy the directory again"):
        open_file(tmp_path / "b", 3, links=False)
    with pytest.raises(ValueError, match=r"a: has 3 bytes, and at most 2 are read; copy"):
        open_file(tmp_path / "a", 2)
    with pytest.raises(ValueError, match=r"none: cannot be read \(No such file"):
        open_file(tmp_path / "none", 2)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    """A pipe would keep its reader waiting, and a device has no end."""
    path = tmp_path / "odd"
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    with pytest.raises(ValueError, match=r"odd: (is not a regular|.*Is a dir).*; copy the directory"):
        open_file(path, 1 << 20)


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
