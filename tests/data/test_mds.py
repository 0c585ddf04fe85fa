"""Rows come out as streaming put them in; a number that does not fit the file is refused before its use."""

import os
import struct
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatv.data.files import open_file
from megatv.data.mds import MAX_FILE_BYTES, Column, read_row
from megatv.data.shards import MDSWriter

COLUMNS = (
    Column("a", "bytes", 0, 1000),
    Column("b", "ndarray:uint8:3", 3, 3, fixed=True),
    Column("c", "str", 0, 1 << 20),
)


def write(path, values):
    import numpy as np

    with MDSWriter(columns={c.name: c.encoding for c in COLUMNS}, out=str(path)) as writer:
        for a, c in values:
            writer.write({"a": a, "b": np.array([1, 2, 3], np.uint8), "c": c})
    return path / "shard.00000.mds"


def read(path, rows, row):
    with open_file(path, MAX_FILE_BYTES) as file:
        return read_row(file, rows, row, COLUMNS)


@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.tuples(st.binary(max_size=50), st.text(max_size=50)), min_size=1, max_size=9))
def test_rows_are_those_that_were_written(tmp_path_factory, values):
    path = write(tmp_path_factory.mktemp("set") / "set", values)
    for row, (a, c) in enumerate(values):
        assert read(path, len(values), row) == {"a": a, "b": b"\1\2\3", "c": c.encode()}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_the_bytes_are_a_row_or_a_sentence_comes_out(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.mds"
    numbers = st.integers(0, 60) | st.sampled_from([2**31, 2**32 - 1])
    words = data.draw(st.lists(numbers, max_size=16))
    path.write_bytes(struct.pack(f"<{len(words)}I", *words) + data.draw(st.binary(max_size=40)))
    try:
        found = read(path, data.draw(st.integers(1, 5)), 0)
    except ValueError:
        return
    assert sum(map(len, found.values())) <= path.stat().st_size and len(found["b"]) == 3


@pytest.fixture
def good(tmp_path):
    """Two rows; where the second begins."""
    path = write(tmp_path / "set", [(b"x" * 10, "first"), (b"y" * 20, "second")])
    return path, struct.unpack_from("<4I", path.read_bytes())[2]


def change(path, at, *words):
    data = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(words)}I", data, at, *words)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("begin", "end", "message"),
    [
        (200, 100, "said to lie at bytes 200 to 100 of a file of"),
        (0, 40, "said to lie at bytes 0 to 40"),
        (4, 40, "said to lie at bytes 4 to 40"),
        (100, 2**32 - 1, "said to lie at bytes 100 to 4294967295"),
        (2**32 - 1, 2**32 - 1, "said to lie"),
        (100, 105, "it has 5 bytes where 11 to"),
    ],
)
def test_places_outside_the_file_are_refused(good, begin, end, message):
    path, _ = good
    change(path, 8, begin, end)
    with pytest.raises(ValueError, match=message):
        read(path, 2, 1)


@pytest.mark.parametrize(
    "lengths", [(2**32 - 1, 6), (20, 2**32 - 1), (21, 6), (20, 5), (2**31, 2**31), (0, 0)]
)
def test_lengths_that_do_not_fill_the_row_are_refused(good, lengths):
    path, begin = good
    change(path, begin, *lengths)
    with pytest.raises(ValueError, match=r"is said to have \d+ bytes|bytes behind its last column"):
        read(path, 2, 1)
    assert read(path, 2, 0)["c"] == b"first"


def test_a_file_that_ends_early_is_refused(good):
    path, begin = good
    for size in (0, 3, 11, begin + 3):
        os.truncate(path, size)
        with pytest.raises(ValueError, match=r"the file ends \d+ bytes early|said to lie at"):
            read(path, 2, 1)


def test_a_row_larger_than_its_columns_is_never_read(peak_source, tmp_path):
    """Four GiB of holes as one row, in a process that may not have one."""
    path = tmp_path / "shard.00000.mds"
    with path.open("wb") as file:
        file.write(struct.pack("<3I", 1, 12, MAX_FILE_BYTES))
        file.truncate(MAX_FILE_BYTES)
    script = textwrap.dedent(f"""
        import resource
        from megatv.data.files import open_file
        from megatv.data.mds import MAX_FILE_BYTES, Column, read_row
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        columns = (Column("a", "bytes", 0, 1000), Column("c", "str", 0, 1 << 20))
        with open_file({str(path)!r}, MAX_FILE_BYTES) as file:
            try:
                read_row(file, 1, 0, columns)
            finally:
                print(peak())
    """)
    found = subprocess.run(
        [sys.executable, "-c", peak_source + script], capture_output=True, text=True, timeout=60
    )
    assert "ValueError: it has 4294967283 bytes where 8 to 1049584 are expected" in found.stderr
    assert int(found.stdout) < 1 << 20
