"""Only regular files are opened, within bounds; new ones replace nothing half and go through no link."""

import json
import os
import stat

import pytest

from megatv import regular_file
from megatv.regular_file import MAX_SMALL_BYTES, create_file, open_regular, read_bytes, write_file


def test_a_file_is_replaced_and_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.json").symlink_to("mine")
    old = os.umask(0o022)
    try:
        write_file(tmp_path / "a.json", json.dumps("n\udcffé", ensure_ascii=False))
        write_file(tmp_path / "b.json", "x", private=True)
    finally:
        os.umask(old)
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "a.json").is_symlink()
    assert json.loads((tmp_path / "a.json").read_text()) == "n\udcffé"
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "b.json").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "mine"]


def test_a_link_in_the_place_of_the_new_file_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(regular_file.secrets, "token_hex", lambda size: "guessed")
    (tmp_path / ".a.json.guessed.partial").symlink_to(tmp_path / "marker")
    with pytest.raises(OSError, match="exists"):
        write_file(tmp_path / "a.json", "x")
    assert not (tmp_path / "marker").exists() and not (tmp_path / "a.json").exists()


def test_a_new_file_replaces_nothing(tmp_path):
    os.umask(umask := os.umask(0o022))
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "marker")
    for name in ("target", "link", "dangling"):
        with pytest.raises(FileExistsError):
            create_file(tmp_path / name)
    with create_file(tmp_path / "new") as file:
        file.write(b"x")
    with create_file(tmp_path / "shown", private=False):
        assert (tmp_path / "shown").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "target").read_text() == "kept" and not (tmp_path / "marker").exists()


def test_a_file_is_opened_and_a_link_when_it_may_be(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to("loop")
    assert read_bytes(tmp_path / "a", 3) == read_bytes(tmp_path / "b", 3, links=True) == b"abc"
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"abc"
    with pytest.raises(ValueError, match=r"b: is a link, and only .* copy the folder with cp -rL"):
        open_regular(tmp_path / "b")
    with pytest.raises(OSError, match="Too many levels"):
        open_regular(tmp_path / "loop", links=True)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    """A pipe would keep its reader waiting, and a device has no end."""
    path = tmp_path / "odd"
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    before = len(os.listdir("/proc/self/fd"))
    for read in (open_regular, read_bytes):
        with pytest.raises((ValueError, OSError), match=r"odd: is not a regular|Is a directory"):
            read(path, links=True)
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_are_read_within_their_bounds(tmp_path):
    (tmp_path / "a.jsonl").write_text("[1]\n" * 9)
    assert read_bytes(tmp_path / "a.jsonl", 36) == b"[1]\n" * 9
    with pytest.raises(ValueError, match=r"a\.jsonl: has 36 bytes, and at most 35 are read"):
        read_bytes(tmp_path / "a.jsonl", 35)
    os.truncate(tmp_path / "a.jsonl", 1 << 40)
    with pytest.raises(ValueError, match=f"at most {MAX_SMALL_BYTES} are read"):
        read_bytes(tmp_path / "a.jsonl")


def test_a_file_that_grows_is_not_read_on(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abc")
    monkeypatch.setattr(os, "fstat", lambda handle, real=os.fstat: Smaller(real(handle)))
    with pytest.raises(ValueError, match="a: grew while it was read"):
        read_bytes(tmp_path / "a")


class Smaller:
    """What is known of a file before somebody writes one byte more."""

    def __init__(self, found):
        self.st_mode, self.st_size = found.st_mode, found.st_size - 1
