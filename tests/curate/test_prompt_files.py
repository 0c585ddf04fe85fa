"""Prompts of the user's own are checked before anything is asked, and each fault is one sentence."""

import os
import re
import shutil

import pytest

from megatv.curate.prompt_files import PROMPTS, fill, load_prompts


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(PROMPTS, tmp_path / "prompts")


def test_megatvs_own_have_all_their_placeholders(folder):
    own = load_prompts()
    assert load_prompts(folder) == own
    for text in (own.meta, own.segments, own.detailed):
        assert "$words" in text
    asked = fill(own.segments, count=3, words=50)
    assert "3 consecutive segments" in asked and "fewer than 50 words" in asked and "$" not in asked


def test_a_prompt_may_leave_its_placeholders_out_and_name_a_price(folder):
    (folder / "segments.txt").write_bytes(b"\xef\xbb\xbfDescribe EACH segment. It costs $$5.\r\n")
    (folder / "notes.md").write_text("$nobody reads this")
    assert fill(load_prompts(folder).segments, count=3, words=50) == "Describe EACH segment. It costs $5.\r\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, r"segments.txt: cannot be read \(No such file or directory\); copy it from"),
        (b"", "is empty; copy it from"),
        (b" \n\t", "is empty"),
        (b"In $wrods words.", r"unknown placeholder \$wrods; it may have \$count, \$words, and \$\$ is"),
        (b"In ${fault} words.", r"unknown placeholder \$fault"),
        (
            b"It costs $5.",
            r"has a \$ before no name; write \$\$ for a dollar sign, or one of \$count, \$words",
        ),
        (b"Cut ${count into", r"has a \$ before no name"),
        ("Très bien.".encode("latin-1"), r"is not UTF-8 \(byte 2\); save it as UTF-8"),
        ("Words.".encode("utf-16"), r"is not UTF-8"),
        (b"x" * 65_537, "has 65537 bytes, and at most 65536 are read"),
    ],
)
def test_a_faulty_prompt_is_one_sentence(folder, text, fault):
    file = folder / "segments.txt"
    file.unlink() if text is None else file.write_bytes(text)
    with pytest.raises(ValueError, match=fault) as error:
        load_prompts(folder)
    assert str(error.value).startswith("captions.prompts") and "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_what_is_no_file_is_named(folder, tmp_path):
    (folder / "meta.txt").unlink()
    (folder / "meta.txt").mkdir()
    with pytest.raises(ValueError, match=r"meta.txt: cannot be read \(Is a directory\)"):
        load_prompts(folder)
    (folder / "meta.txt").rmdir()
    os.mkfifo(folder / "meta.txt")
    with pytest.raises(ValueError, match=r"meta.txt: is not a regular file"):
        load_prompts(folder)
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(tmp_path / 'none'))}: is no folder; copy .*prompts"
    ):
        load_prompts(tmp_path / "none")
