"""A manifest gives back what was written, whatever became of the process that wrote it."""

import json
import os
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatv.curate import manifest
from megatv.curate.manifest import Manifest, Record, key_of

RECORDS = [
    Record("a", "one.mp4", "kept", [{"id": "one.mp4#0"}], facts={"score": 7}, seconds=0.5),
    Record("b", "two.mp4", "dropped", reason="too short"),
    Record("c", "drei ü.mp4", "failed", reason="does not decode"),
]


def write(path, records):
    with Manifest(path) as manifest:
        for record in records:
            manifest.append(record)


def test_records_come_back(tmp_path):
    write(tmp_path / "deep/m.jsonl", RECORDS[:2])
    write(tmp_path / "deep/m.jsonl", RECORDS[2:])
    with Manifest(tmp_path / "deep/m.jsonl") as manifest:
        assert list(manifest.records.values()) == RECORDS


@given(data=st.data())
def test_a_line_torn_anywhere_costs_its_own_item_only(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("torn") / "m.jsonl"
    write(path, RECORDS)
    whole = path.read_bytes()
    size = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:size])
    survivors = whole[:size].count(b"\n")
    with Manifest(path) as manifest:
        assert list(manifest.records.values()) == RECORDS[:survivors]
        manifest.append(RECORDS[2])
    assert path.read_bytes().count(b"\n") == survivors + 1
    with Manifest(path) as manifest:
        assert manifest.records["c"] == RECORDS[2]


def test_the_newest_line_of_a_key_counts(tmp_path):
    write(tmp_path / "m.jsonl", [Record("a", "x", "failed", reason="busy"), RECORDS[0]])
    with Manifest(tmp_path / "m.jsonl") as manifest:
        assert manifest.records == {"a": RECORDS[0]}


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "a"}', '"text"'])
def test_damage_within_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "m.jsonl"
    write(path, RECORDS[:1])
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    with pytest.raises(ValueError, match=r"m.jsonl line 2: is damaged .*; delete that line"):
        Manifest(path)


def test_the_key_changes_with_whatever_decides_the_result():
    item = {"id": "a", "seconds": 7.0}
    base = key_of(item, "probe", 1, {"min": 6})
    assert base == key_of(json.loads(json.dumps(item)), "probe", 1, {"min": 6})
    others = [
        key_of({"id": "b", "seconds": 7.0}, "probe", 1, {"min": 6}),
        key_of({"id": "a", "seconds": 8.0}, "probe", 1, {"min": 6}),
        key_of(item, "shots", 1, {"min": 6}),
        key_of(item, "probe", 2, {"min": 6}),
        key_of(item, "probe", 1, {"min": 7}),
    ]
    assert len({base, *others}) == 6


GOOD = {
    "id": "a.mp4@0-8", "video": "a.mp4", "start": 0, "end": 8.0, "shot_start": 0.0, "quality": 7,
    "info": {"width": 48, "height": 32, "rate": 16.0, "seconds": 9}, "key_frames": [1.0],
    "segments": [[0, 8.0]], "meta_caption": "x", "detailed_caption": "", "file": "a.mp4",
    "captions": [{"start": 0.0, "text": "y"}],
    "metadata": {"title": ["any"]}, "stamp": [1, 2],
}  # fmt: skip


def line_of(**changes):
    whole = {**asdict(Record("k", "i", "kept", [GOOD], facts={"n": 1})), **changes}
    return json.dumps(whole).encode() + b"\n"


def test_a_record_of_a_clip_is_taken(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(line_of())
    with Manifest(tmp_path / "m.jsonl", ("video", "file")) as manifest:
        assert manifest.records["k"].outputs == [GOOD]


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000 + b"\n", b"\xff\n", b"1" * 5000 + b"\n",
        line_of(key=3), line_of(id=None), line_of(status="made"), line_of(status=["kept"]), line_of(reason=3),
        line_of(seconds="1"), line_of(seconds=float("nan")), line_of(seconds=10**400), line_of(seconds=True),
        line_of(facts=[]), line_of(facts={"n": "1"}), line_of(facts={"n": float("inf")}),
        line_of(facts={"n": {}}),
        line_of(outputs={}), line_of(outputs=["x"]), line_of(outputs=[[]]),
        *[line_of(outputs=[{k: v for k, v in GOOD.items() if k != gone}])
          for gone in ("id", "video", "end", "file")],
        *[line_of(outputs=[{**GOOD, key: value}]) for key, value in [
            ("id", 3), ("video", None), ("start", "0"), ("end", 10**400), ("end", float("nan")),
            ("quality", True),
            ("info", {}), ("info", {**GOOD["info"], "width": 0}), ("info", {**GOOD["info"], "rate": "16"}),
            ("info", {**GOOD["info"], "more": 1}), ("key_frames", 3), ("key_frames", ["1"]),
            ("segments", [[0]]), ("segments", [["0", 1]]), ("segments", {}), ("captions", [{"start": 0}]),
            ("captions", ["x"]),
            ("captions", [{"start": "0", "text": "x"}]), ("captions", [{"start": 0, "text": 3}]),
            ("meta_caption", 3), ("detailed_caption", None), ("file", "../a.mp4"), ("file", "/etc/a"),
            ("file", 3),
            ("file", "a/b.mp4"), ("file", ".."),
        ]],
    ],
)  # fmt: skip
def test_a_line_of_another_kind_is_refused(tmp_path, line):
    (tmp_path / "m.jsonl").write_bytes(line_of(key="good") + line)
    with pytest.raises(ValueError, match=r"m\.jsonl line 2: is damaged .*; delete that line") as caught:
        Manifest(tmp_path / "m.jsonl", ("video", "file"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_link_is_neither_cut_off_nor_written(tmp_path):
    """The last line of a manifest that has no end is cut off; a file behind a link would lose it."""
    (tmp_path / "mine.txt").write_text("no end of line")
    (tmp_path / "m.jsonl").symlink_to("mine.txt")
    with pytest.raises(ValueError, match=r"m\.jsonl: is a link or no file"):
        Manifest(tmp_path / "m.jsonl")
    assert (tmp_path / "mine.txt").read_text() == "no end of line"
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match=r"pipe\.jsonl: is a link or no file"):
        Manifest(tmp_path / "pipe.jsonl")


def test_lines_and_files_are_read_within_their_bounds(tmp_path, monkeypatch):
    """A hole is one line without an end; nothing is cut off then."""
    path = tmp_path / "m.jsonl"
    write(path, RECORDS)
    size = path.stat().st_size
    os.truncate(path, size + (1 << 34))
    with pytest.raises(ValueError, match=r"m\.jsonl line 4: is longer than 1 MiB"):
        Manifest(path)
    assert path.stat().st_size == size + (1 << 34)
    os.truncate(path, size)
    monkeypatch.setattr(manifest, "MAX_LINES_BYTES", size - 1)
    with pytest.raises(ValueError, match=r"m\.jsonl: is longer than"):
        Manifest(path)
