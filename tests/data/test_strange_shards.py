"""Shards from a stranger: whatever their files say, nothing of it is run, and every fault is a sentence."""

import importlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatv.data.shards import LENGTHS, MAX_HEADER_BYTES, DatasetInfo, MDSWriter, Shards, ShardWriter, verify
from megatv.data.stats import LatentStats
from megatv.types import Caption

INFO = DatasetInfo(width=16, height=16, groups=1, codec={"kind": "dct"})
STATS = LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32))
META = {
    "captions": [], "meta_caption": "m", "detailed_caption": "", "valid_latents": 13, "ends_clip": True,
    "source": {"video": "a"}, "quality": {},
}  # fmt: skip


class Bomb:
    """Writes the marker when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "run")


def describe(path, info=INFO):
    info.save(path / "dataset.json")
    STATS.save(path / "latent_stats.json")


@pytest.fixture
def directory(tmp_path):
    """Three good examples."""
    with ShardWriter(tmp_path / "set", INFO) as writer:
        for index in range(3):
            writer.write(
                f"clip-{index}", np.zeros(INFO.latent_shape), captions=(Caption(0.0, "a"),), meta_caption="m",
                detailed_caption="", valid_latents=13, ends_clip=True, source={"video": f"v{index}"},
            )  # fmt: skip
        writer.finish(STATS)
    return tmp_path / "set"


def pickled(path, column, marker):
    """Shards as streaming writes them, with one column pickled."""
    columns = {c.name: c.encoding for c in INFO.columns} | {column: "pkl"}
    row = {"id": "clip", "latents": np.zeros(INFO.latent_shape, np.float16), "meta": json.dumps(META)}
    with MDSWriter(columns=columns, out=str(path), hashes=["xxh64"]) as writer:
        writer.write({**row, "hash": "0" * 16, column: Bomb(marker)})
    describe(path)
    return path


@pytest.mark.parametrize("column", ["id", "latents", "meta", "hash"])
def test_pickles_are_not_unpickled(tmp_path, column):
    marker = tmp_path / "marker"
    path = pickled(tmp_path / "set", column, marker)
    for open_it in (verify, Shards, lambda path: Shards(path)[0]):
        with pytest.raises(ValueError, match=r"index\.json: shard 0 has column_\w+ .*pkl.* is expected"):
            open_it(path)
    index = json.loads((path / "index.json").read_text())
    for key, wanted in (("encodings", "encoding"), ("sizes", "size")):
        values = [getattr(c, wanted) for c in INFO.columns]
        index["shards"][0][f"column_{key}"] = values
    index["shards"][0]["raw_data"]["bytes"] = (path / "shard.00000.mds").stat().st_size
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"which no file can|example 0 is damaged"
    ):  # called by its right name
        Shards(path).record(0)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.read_text() == "run"  # the marker works


def test_a_column_more_or_less_is_refused(directory):
    path = directory / "index.json"
    good = json.loads(path.read_text())
    for change in (
        lambda names, encodings, sizes: ([*names, "run"], [*encodings, "pkl"], [*sizes, None]),
        lambda names, encodings, sizes: (names[1:], encodings[1:], sizes[1:]),
        lambda names, encodings, sizes: (names[::-1], encodings[::-1], sizes[::-1]),
        lambda names, encodings, sizes: (names, [*encodings, "pkl"], sizes),
        lambda names, encodings, sizes: (names, encodings, [16, *sizes[1:]]),
        lambda names, encodings, sizes: (names, encodings, [*sizes[:2], 10**12, None]),
    ):
        entry = dict(good["shards"][0])
        keys = ("column_names", "column_encodings", "column_sizes")
        entry.update(zip(keys, change(*(entry[key] for key in keys)), strict=True))
        path.write_text(json.dumps({**good, "shards": [entry]}))
        with pytest.raises(ValueError, match=r"index\.json: shard 0 has column_"):
            Shards(directory)


def test_other_readers_of_mds_read_what_is_written(directory):
    """Streaming's own reader gives the same values."""
    reader = importlib.import_module("streaming.base.format.mds").MDSReader
    entry = json.loads((directory / "index.json").read_text())["shards"][0]
    mds, shards = reader.from_json(str(directory), None, entry), Shards(directory)
    assert mds.samples == len(shards) == 3
    for index in range(3):
        sample, record = mds[index], shards.record(index)
        assert sample["id"] == record.id and np.array_equal(sample["latents"], record.content)
        assert json.loads(sample["meta"])["source"] == record.source


@pytest.mark.parametrize("name", ["dataset.json", "latent_stats.json", LENGTHS, "shard.00000.mds"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_files_that_are_none_are_refused_at_once(directory, name, kind):
    path = directory / name
    path.unlink()
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    with pytest.raises(ValueError, match=rf"{name}: (is not a regular file|is missing|.* \(Is a dir)"):
        Shards(directory)


def npy(header, version=1):
    text = header if isinstance(header, bytes) else header.encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text


def shape(text, descr="'<i4'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {text}, }}\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04" + b"\0" * 40,
        npy(shape("(3, 2)")),
        npy(shape("(3, 2)", "'|O'")) + b"\0" * 48,
        npy(shape("(3, 2)", "'<f4'")) + b"\0" * 24,
        npy(shape("(3, 2)", "[('a', '<i4')]")) + b"\0" * 24,
        npy(shape("(6,)")) + b"\0" * 24,
        npy(shape("(4, 2)")) + b"\0" * 32,
        npy(shape("(10**9, 2)")) + b"\0" * 24,
        npy(shape(f"({2**62}, 2)")) + b"\0" * 24,
        npy(shape("(-3, -2)")) + b"\0" * 24,
        npy(shape("(3, 2)").replace("False", "__import__('os').mkdir('marker')")) + b"\0" * 24,
        npy("(" * 9000, 2),
        npy("{'a" + "b" * 9000, 2),
        npy(b"\xff" * 30),
        npy("x" * 12000, 2),
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{" * 100,
        b"\x93NUMPY\x09\x00" + b"\0" * 100,
    ],
    ids=lambda data: repr(data[:60])[:70],
)
def test_lengths_that_lie_are_refused(directory, data, monkeypatch):
    monkeypatch.chdir(directory)
    (directory / LENGTHS).write_bytes(data)
    with pytest.raises(ValueError, match=r"lengths\.npy: (is damaged|does not hold|has \d+ bytes)") as error:
        Shards(directory)
    assert len(str(error.value)) < 600 and not (directory / "marker").exists()


def test_lengths_of_pickled_objects_are_not_unpickled(directory, tmp_path):
    marker = tmp_path / "marker"
    objects = np.empty((3, 2), object)
    objects[:] = Bomb(marker)
    np.save(directory / LENGTHS, objects, allow_pickle=True)
    with pytest.raises(ValueError, match=r"lengths\.npy: is damaged"):
        Shards(directory)
    (directory / LENGTHS).write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ValueError, match=r"lengths\.npy: is damaged"):
        Shards(directory)
    np.savez(directory / "a.npz", np.zeros((3, 2), np.int32))
    shutil.move(directory / "a.npz", directory / LENGTHS)
    with pytest.raises(ValueError, match=r"lengths\.npy: "):
        Shards(directory)
    assert not marker.exists()


def test_a_large_hole_costs_nothing(directory):
    """Files of 4 GiB without content, in a process that may take 256 MiB more."""
    names = ["dataset.json", "latent_stats.json", LENGTHS, "index.json"]
    for name in names:
        shutil.copytree(directory, copy := directory.with_name(f"with {name}"))
        os.truncate(copy / name, (1 << 32) - 1)
    script = textwrap.dedent(f"""
        import resource
        from megatv.data.shards import Shards
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (256 << 20), now + (256 << 20)))
        for name in {names}:
            try:
                Shards({str(directory.parent)!r} + "/with " + name)
            except ValueError as error:
                print(error)
    """)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    said = [f"{name}: has 4294967295 bytes, and at most" in found.stdout for name in names]
    assert said == [True] * 4, found.stderr


def test_a_row_that_lies_about_itself_is_named_by_file_and_row(directory):
    """Hash and index fit: only the row's own numbers and words are wrong."""
    path = directory / "shard.00000.mds"
    good = path.read_bytes()
    offsets = struct.unpack_from("<4I", good, 4)
    bad = bytearray(good)
    struct.pack_into("<I", bad, offsets[1], 2**31)
    path.write_bytes(bad)
    index = json.loads((directory / "index.json").read_text())
    index["shards"][0]["raw_data"]["hashes"]["xxh64"] = xxhash.xxh64(bytes(bad)).hexdigest()
    (directory / "index.json").write_text(json.dumps(index))
    verify(directory)
    shards = Shards(directory)
    assert shards.record(0).id == "clip-0" and shards.record(2).id == "clip-2"
    with pytest.raises(
        ValueError, match=r"shard\.00000\.mds: example 1 is damaged \(its hash is said to have"
    ):
        shards.record(1)


def test_hashes_of_files_are_compared_before_a_row_is_read(directory, monkeypatch):
    read = []
    monkeypatch.setattr("megatv.data.shards.read_row", lambda *a: read.append(a))
    data = bytearray((directory / "shard.00000.mds").read_bytes())
    data[-1] ^= 1
    (directory / "shard.00000.mds").write_bytes(data)
    with pytest.raises(ValueError, match="its hash differs from the index"):
        verify(directory)
    assert read == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_of_any_file_is_a_sentence(directory, data):
    """Bytes put in, cut out or exchanged, in one file or two: a ValueError, or the same examples."""
    names = ["index.json", "dataset.json", "latent_stats.json", LENGTHS, "shard.00000.mds"]
    shutil.rmtree(copy := directory.with_name("copy"), ignore_errors=True)
    shutil.copytree(directory, copy)
    for name in data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=2)):
        text = bytearray((copy / name).read_bytes())
        at = int(data.draw(st.floats(0, 1, exclude_max=True)) * len(text))
        put = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"9" * 400, b"null", b"[" * 3000, b'"', b"-1"])
        )
        text[at : at + data.draw(st.integers(0, 12))] = put
        (copy / name).write_bytes(text)
    try:
        shards = Shards(copy)
        records = [shards.record(index) for index in range(len(shards))]
    except ValueError as error:
        assert str(copy) in str(error) and len(str(error)) < 1000
    else:
        assert [record.id for record in records] == ["clip-0", "clip-1", "clip-2"]


@pytest.mark.parametrize("version", [1, 2])
def test_the_header_of_lengths_is_small(directory, version):
    """NumPy would read as many bytes as the header says it has."""
    for size, is_read in ((MAX_HEADER_BYTES + 1, False), (118, True)):
        if version == 1:
            start = b"\x93NUMPY\1\0" + struct.pack("<H", size)
        else:
            start = b"\x93NUMPY\2\0" + struct.pack("<I", size)
        (directory / LENGTHS).write_bytes(start + bytes(200))
        with pytest.raises(ValueError, match="is damaged") as caught:
            Shards(directory)
        assert ("its header is too long" in str(caught.value)) != is_read
