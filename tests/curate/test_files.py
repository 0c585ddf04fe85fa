"""Files are written whole, and through no link."""

import json
import os
import stat

import pytest

from megatv.curate import files
from megatv.curate.files import write_file


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
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "guessed")
    (tmp_path / ".a.json.guessed.partial").symlink_to(tmp_path / "marker")
    with pytest.raises(OSError, match="exists"):
        write_file(tmp_path / "a.json", "x")
    assert not (tmp_path / "marker").exists() and not (tmp_path / "a.json").exists()
