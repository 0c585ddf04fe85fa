"""A manifest gives back what was written, whatever became of the process that wrote it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
