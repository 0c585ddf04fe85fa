"""The index in pieces is what `json.loads` makes of the whole; anything else is a sentence that names it."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatv.data import index as index_module
from megatv.data.format import DatasetInfo
from megatv.data.index import Index, read_index, shard_name
from megatv.data.shards import MDSWriter

CLIPS = DatasetInfo(width=16, height=16, groups=1, codec={"kind": "dct"}, stores="clips")
LATENTS = DatasetInfo(width=16, height=16, groups=1, codec={"kind": "dct"})
COLUMNS: dict[str, list] = {
    "column_names": ["clip", "hash", "id", "meta"],
    "column_encodings": ["bytes", "str", "str", "str"],
    "column_sizes": [None, None, None, None],
}


def entry_of(shard, *, size=1000, samples=3, digest="00ff00ff00ff00ff", **changes):
    """One shard's entry as MDSWriter writes it."""
    file = {"basename": shard_name(shard), "bytes": size, "hashes": {"xxh64": digest}}
    shape = {"version": 2, "format": "mds", "compression": None, **COLUMNS}
    rest = {"samples": samples, "raw_data": file, "zip_data": None, "hashes": ["xxh64"], "size_limit": None}
    return {**rest, **shape, **changes}


def tree_of(*entries):
    return {"version": 2, "shards": list(entries)}


def by_json(text):
    """(bytes, samples, digests) a shard of an index that `json.loads` accepts as one."""
    entries = json.loads(text)["shards"]
    return [(e["raw_data"]["bytes"], e["samples"], e["raw_data"]["hashes"]["xxh64"]) for e in entries]


def by_us(index):
    samples = np.diff(index.starts).tolist()
    return [(index.file(s)[1], samples[s], index.file(s)[2]) for s in range(len(samples))]


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=30), limit=st.sampled_from([200, 500, 1 << 26])
)
def test_what_mdswriter_writes_is_read(tmp_path_factory, lengths, limit):
    path = tmp_path_factory.mktemp("set") / "set"
    columns = {column.name: column.encoding for column in CLIPS.columns}
    with MDSWriter(columns=columns, out=str(path), hashes=["xxh64"], size_limit=limit) as writer:
        for number, length in enumerate(lengths):
            writer.write({"id": str(number), "clip": b"x" * length, "meta": "{}", "hash": "0" * 16})
    index = read_index(path, CLIPS)
    assert by_us(index) == by_json((path / "index.json").read_text())
    assert index.starts[-1] == len(lengths)
    assert index.sizes_found(path).tolist() == index.bytes.tolist()


entries = st.lists(
    st.tuples(st.integers(2**26, 2**32 - 1), st.integers(1, 2**20), st.integers(0, 2**64 - 1)),
    min_size=1,
    max_size=8,
)
plain = st.sampled_from(['"shards": [', "}]}", '\\"', "é\n二"]) | st.text(max_size=5) | st.integers()
strange = plain | st.lists(plain, max_size=2) | st.dictionaries(st.text(max_size=3), plain, max_size=2)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A directory whose index every test writes anew."""
    return tmp_path_factory.mktemp("set")


@settings(max_examples=100, deadline=None)
@given(data=st.data(), numbers=entries, piece=st.integers(1, 400))
def test_spaces_order_and_foreign_fields_change_nothing(path, data, numbers, piece):
    shards = [
        entry_of(i, size=size, samples=samples, digest=f"{digest:016x}", foreign=data.draw(strange))
        for i, (size, samples, digest) in enumerate(numbers)
    ]
    fields = [("a", data.draw(strange)), ("shards", shards), ("version", 2), ("shardz", data.draw(strange))]
    text = json.dumps(
        dict(data.draw(st.permutations(fields))),
        indent=data.draw(st.sampled_from([None, 0, 3, "\t"])),
        separators=data.draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\r\n: ")])),
        sort_keys=data.draw(st.booleans()),
        ensure_ascii=data.draw(st.booleans()),
    )
    (path / "index.json").write_text(f" {text}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "PIECE", piece)
        index = read_index(path, CLIPS)
    assert by_us(index) == by_json(text)


@settings(max_examples=300, deadline=None)
@given(
    where=st.floats(0, 1, exclude_max=True),
    cut=st.integers(0, 40),
    put=st.text('{}[]",: \n0a\x00', max_size=2) | st.sampled_from(["null,", ", {}", '"shards": [', "]}"]),
    piece=st.integers(1, 2000),
)
def test_a_damaged_text_is_refused_or_means_the_same(path, where, cut, put, piece):
    """Whatever is cut out or put in: what is read after all is what JSON says, and bad JSON is not read."""
    text = json.dumps({"a": {"b": []}, **tree_of(*(entry_of(i, size=700 + i) for i in range(3))), "c": [{}]})
    at = int(where * len(text))
    text = text[:at] + put + text[at + cut :]
    (path / "index.json").write_text(text, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "PIECE", piece)
        try:
            index = read_index(path, CLIPS)
        except ValueError as error:
            assert f"{path}" in str(error) and ("copy the dir" in str(error) or "make them" in str(error))
        else:
            assert by_us(index) == by_json(text)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (tree_of(), "its index lists no shards with examples"),
        (tree_of(entry_of(0, samples=0)), "its index lists no shards with examples"),
        ([1, 2], "is not an MDS index of version 2"),
        ({"shards": {}, "version": 2}, "is not an MDS index of version 2"),
        ({"shards": [entry_of(0)], "version": 1}, "is not an MDS index of version 2"),
        ({"version": 2, "a": {"shards": [entry_of(0)]}}, "is not an MDS index of version 2"),
        (tree_of(entry_of(0), None), "is not an MDS index of version 2"),
        (tree_of({}), r"is not an MDS index with xxh64 hashes \(shard 0\)"),
        (tree_of(entry_of(0), entry_of(1, samples="3")), r"with xxh64 hashes \(shard 1\)"),
        (tree_of(entry_of(0, samples=True)), r"with xxh64 hashes \(shard 0\)"),
        (tree_of(entry_of(0, samples=1e3)), r"with xxh64 hashes \(shard 0\)"),
        (tree_of(entry_of(0, size=1.5)), r"with xxh64 hashes \(shard 0\)"),
        (tree_of(entry_of(0, size=None)), r"with xxh64 hashes \(shard 0\)"),
        (tree_of(entry_of(0, raw_data=[])), r"with xxh64 hashes \(shard 0\)"),
        (tree_of(entry_of(0, raw_data="x")), r"with xxh64 hashes \(shard 0\)"),
        (tree_of(entry_of(0, digest=17)), r"with xxh64 hashes \(shard 0\)"),
        (tree_of(entry_of(0, digest="0xff")), r"with xxh64 hashes \(shard 0\)"),
        (tree_of(entry_of(0, digest="-1")), r"with xxh64 hashes \(shard 0\)"),
        (tree_of(entry_of(0), entry_of(2)), "shard 1 is called 'shard.00002.mds' where 'shard.00001.mds'"),
        (
            tree_of(entry_of(0), entry_of(1, column_names=["name"])),
            r"shard 1 has column_names \['name'\] where \['clip', .*\] is expected: all shards of a dir",
        ),
        (tree_of(entry_of(0), entry_of(1, column_sizes=[4])), r"shard 1 has column_sizes \[4\] where"),
        (tree_of(entry_of(0, compression="zstd:3")), "shard 0 has compression 'zstd:3' where None"),
        (tree_of(entry_of(0, format="json")), "shard 0 has format 'json' where 'mds'"),
        (tree_of(entry_of(0, version=1)), "shard 0 has version 1 where 2"),
    ],
)
def test_what_is_no_index_of_ours_is_named(tmp_path, tree, message):
    (tmp_path / "index.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=f"{tmp_path}.*{message}"):
        read_index(tmp_path, CLIPS)


@pytest.mark.parametrize(
    "encoding", ["pkl", "json", "png", "jpeg_array", "ndarray", "str_int", "int", "str:", ""]
)
def test_no_column_is_read_in_another_encoding(tmp_path, encoding):
    """Streaming's reader unpickles a column that the index calls `pkl`."""
    good = [column.encoding for column in LATENTS.columns]
    for column in range(4):
        encodings = [*good[:column], encoding, *good[column + 1 :]]
        entry = entry_of(
            0,
            size=10**6,
            column_names=[column.name for column in LATENTS.columns],
            column_encodings=encodings,
            column_sizes=[column.size for column in LATENTS.columns],
        )
        (tmp_path / "index.json").write_text(json.dumps(tree_of(entry)))
        with pytest.raises(ValueError, match=r"index\.json: shard 0 has column_encodings .* is expected"):
            read_index(tmp_path, LATENTS)
        entry["column_encodings"] = good
        (tmp_path / "index.json").write_text(json.dumps(tree_of(entry)))
        assert len(read_index(tmp_path, LATENTS).bytes) == 1


@pytest.mark.parametrize("shape", ["13,16,2,3", "13,16,2,-2", "13,16,2", "13,16,2,2,1", "99999,16,999,999"])
def test_latents_have_the_shape_that_dataset_json_says(tmp_path, shape):
    names = [column.name for column in LATENTS.columns]
    encodings = ["str", "str", f"ndarray:float16:{shape}", "str"]
    sizes = [column.size for column in LATENTS.columns]
    entry = entry_of(0, size=10**6, column_names=names, column_encodings=encodings, column_sizes=sizes)
    (tmp_path / "index.json").write_text(json.dumps(tree_of(entry)))
    with pytest.raises(ValueError, match=f"ndarray:float16:{shape}'.* where .*ndarray:float16:13,16,2,2"):
        read_index(tmp_path, LATENTS)


HUGE = "9" * 5000
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "change",
    [
        {"samples": -1},
        {"samples": 10**9},
        {"samples": 10**30},
        {"size": -1},
        {"size": 2**32},
        {"size": 10**30},
        {"size": 10, "samples": 1},
    ],
    ids=str,
)
def test_sizes_that_no_file_can_have_are_refused(tmp_path, change):
    (tmp_path / "index.json").write_text(json.dumps(tree_of(entry_of(0, **change))))
    with pytest.raises(ValueError, match=r"index\.json: shard 0 is said to hold .* which no file can; copy"):
        read_index(tmp_path, CLIPS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{{"version": 2, "shards": [{DEEP}', "nested too deeply"),
        (f'{{"version": 2, "shards": [{{"a": {DEEP}', "nested too deeply, behind 0 shards"),
        (f'{{"version": 2, "a": {DEEP}', "nested too deeply"),
        (f'{{"version": {HUGE}, "shards": []}}', "too many digits"),
        (f'{{"version": 2, "shards": [{{"samples": {HUGE}}}]}}', "too many digits, behind 0 shards"),
        (" " * 3_000_000, "too much beside the shards' entries"),
        ('{"a": "' + "x" * 3_000_000, "too much beside the shards' entries"),
        ('{"shards": [{"a": "' + "x" * 3_000_000, "too much beside the shards' entries"),
        ('{"shards": [' + "null," * 1_000_000, "too much beside the shards' entries"),
    ],
    ids=[
        "deep array",
        "deep entry",
        "deep field",
        "digits",
        "digits of an entry",
        "spaces",
        "text",
        "entry",
        "nulls",
    ],
)
def test_texts_made_to_exhaust_a_reader_are_refused(tmp_path, text, message):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(
        ValueError, match=rf"index\.json: is damaged .*{message}.*; copy the directory"
    ) as error:
        read_index(tmp_path, CLIPS)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("twice", ['"samples": 1, "samples": 2', '"raw_data": {"bytes": 1, "bytes": 2}'])
def test_a_key_of_an_entry_that_is_given_twice_is_refused(tmp_path, twice):
    """Other readers of MDS keep the last value or the first: all must see the same shards."""
    text = json.dumps(tree_of(entry_of(0), entry_of(1)))
    (tmp_path / "index.json").write_text(text)
    assert len(read_index(tmp_path, CLIPS).bytes) == 2
    place = text.rindex('{"', 0, text.rindex("raw_data")) + 1
    (tmp_path / "index.json").write_text(f"{text[:place]}{twice}, {text[place:]}")
    with pytest.raises(ValueError, match=r"is damaged \(the key '\w+' is given twice, behind 1 shards\)"):
        read_index(tmp_path, CLIPS)


def test_a_value_too_long_or_deep_for_a_message_is_cut(tmp_path):
    deep: list = []
    for _ in range(500):
        deep = [deep]
    for value in (deep, "x" * 10_000, ["x" * 1000] * 500, {"a": deep}):
        (tmp_path / "index.json").write_text(json.dumps(tree_of(entry_of(0, column_names=value))))
        with pytest.raises(ValueError, match="shard 0 has column_names") as error:
            read_index(tmp_path, CLIPS)
        assert len(str(error.value)) < 1000


def test_a_text_without_end_takes_no_memory(tmp_path, monkeypatch):
    """2 GB of zeros are refused for their size, and within the size for what they are."""
    with (tmp_path / "index.json").open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(ValueError, match="has 2147483648 bytes, and at most"):
        read_index(tmp_path, CLIPS)
    os.truncate(tmp_path / "index.json", 1 << 30)
    tracemalloc.start()
    with pytest.raises(ValueError, match="too much beside"):
        read_index(tmp_path, CLIPS)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_an_index_that_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "index.json"
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    with pytest.raises(ValueError, match=r"index\.json: (is not a regular file|.* \(Is a dir)"):
        read_index(tmp_path, CLIPS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], r"is damaged \(Expecting ',' delimiter, behind 3 shards\)"),
        (lambda data: data[: len(data) // 2], r"is damaged \(.*, behind 1 shards\)"),
        (lambda data: b"", r"is damaged \(Expecting value, behind 0 shards\)"),
        (lambda data: data.replace(b"mds", b"\xff\xfe"), "is damaged .*codec can't decode"),
    ],
    ids=["end", "half", "empty", "no text"],
)
def test_a_file_that_is_no_json_is_named(tmp_path, damage, message):
    data = json.dumps(tree_of(*map(entry_of, range(3)))).encode()
    (tmp_path / "index.json").write_bytes(damage(data))
    with pytest.raises(ValueError, match=rf"index\.json: {message}.*; copy the directory again"):
        read_index(tmp_path, CLIPS)


@given(samples=st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_every_example_has_its_place(samples):
    starts = np.concatenate([[0], np.cumsum(samples)])
    index = Index(np.zeros(len(samples), np.int64), starts, np.zeros(len(samples), np.uint64))
    places = [(shard, row) for shard, count in enumerate(samples) for row in range(count)]
    assert [index.place(example) for example in range(sum(samples))] == places


def test_the_sizes_are_those_of_the_shards_alone(tmp_path):
    shards = 100_001  # the names get a sixth digit
    zeros = np.zeros(shards, np.int64)
    index = Index(zeros, np.append(zeros, 0), zeros.astype(np.uint64))
    names = ("shard.00000.mds", "shard.100000.mds", "shard.0.mds", "shard.000001.mds", "shard.100001.mds")
    for size, name in enumerate(names, start=1):
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "shard.00002.mds").mkdir()
    (tmp_path / "shard.00003.mds").symlink_to(tmp_path / "shard.00000.mds")
    (tmp_path / "shard.00004.mds").symlink_to(tmp_path / "nowhere")
    found = index.sizes_found(tmp_path)
    assert {int(s): int(found[s]) for s in np.flatnonzero(found >= 0)} == {0: 1, 3: 1, 100_000: 2}


def test_a_large_index_is_never_held_whole(tmp_path):
    path = tmp_path / "index.json"
    path.write_text(json.dumps(tree_of(*(entry_of(shard, foreign="x" * 700) for shard in range(10_000)))))
    tracemalloc.start()
    index = read_index(tmp_path, CLIPS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert index.starts[-1] == 30_000
    assert peak < path.stat().st_size / 3


def test_the_number_of_examples_is_bounded(tmp_path, monkeypatch):
    """Their order is kept in memory, as numbers below 2^32."""
    assert index_module.MAX_EXAMPLES < 2**32
    monkeypatch.setattr(index_module, "MAX_EXAMPLES", 5)
    (tmp_path / "index.json").write_text(json.dumps(tree_of(entry_of(0), entry_of(1))))
    with pytest.raises(ValueError, match=r"lists 6 examples, and a directory may have 5: split it"):
        read_index(tmp_path, CLIPS)
