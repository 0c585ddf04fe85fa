"""Episodes made to do harm: nothing outside the file is read, and no array is larger than the layout's."""

import os
import re
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from megatv.data import csgo, csgo_episode
from megatv.data.csgo_actions import GameAction, encode_action
from megatv.data.csgo_episode import Episode
from megatv.data.csgo_episode_child import Recording

h5py = pytest.importorskip("h5py", reason="episodes are HDF5; pip install h5py")
PICTURE = np.full((150, 280, 3), 7, np.uint8)
ACTION = encode_action(GameAction(("w",)))
WHOLE = {"chunks": (150, 280, 3), "compression": "gzip"}


def store(picture=None, action=None):
    """A file's writer: one frame, whose picture or action is stored in another way than usual."""

    def write(path, outside):
        with h5py.File(path, "w") as file:
            for key, usual, own in (("frame_0_x", PICTURE, picture), ("frame_0_y", ACTION, action)):
                if own is None:
                    file[key] = usual
                else:
                    own(file, key, outside)

    return write


def dataset(**options):
    return lambda file, key, outside: file.create_dataset(key, **options)


def external(shape, dtype):
    def make(file, key, outside):
        file.create_dataset(key, shape, dtype, external=[(str(outside), 0, h5py.h5f.UNLIMITED)])

    return make


def virtual(shape, dtype):
    def make(file, key, outside):
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(str(outside.with_suffix(".hdf5")), "secret", shape)
        file.create_virtual_dataset(key, layout)

    return make


def link(kind):
    def make(file, key, outside):
        other = str(outside.with_suffix(".hdf5"))
        file[key] = h5py.SoftLink("/frame_9_z") if kind == "soft" else h5py.ExternalLink(other, "/secret")
        file["frame_9_z"] = PICTURE

    return make


def filters(*added):
    """A dataset in one chunk, with filters set by number and flags, and the chunk's own bytes."""

    def make(file, key, outside, data=b"x" * 100):
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((150, 280, 3))
        for code, values in added:
            plist.set_filter(code, h5py.h5z.FLAG_OPTIONAL, values)
        space = h5py.h5s.create_simple((150, 280, 3))
        made = h5py.h5d.create(file.id, key.encode(), h5py.h5t.STD_U8LE, space, plist)
        made.write_direct_chunk((0, 0, 0), data)

    return make


def chunk(data, **options):
    """A dataset in one chunk of these bytes, as they lie in the file."""

    def make(file, key, outside):
        made = file.create_dataset(key, (150, 280, 3), np.uint8, **{**WHOLE, **options})
        made.id.write_direct_chunk((0, 0, 0), data)

    return make


def lzf_of_gigabytes(path, outside):
    store(dataset(data=PICTURE, chunks=(150, 280, 3), compression="lzf"))(path, outside)
    data, size = path.read_bytes(), struct.pack("<II", 261, PICTURE.size)
    assert data.count(size) == 1
    path.write_bytes(data.replace(size, struct.pack("<II", 261, (1 << 32) - 1)))


GROWING = {"shape": (150, 280, 3), "maxshape": (None, None, None), "dtype": np.uint8}
BAD = {
    "picture in another file": (store(external((150, 280, 3), np.uint8)), "takes its numbers from other"),
    "action in another file": (store(action=external((51,), np.uint8)), "takes its numbers from other files"),
    "virtual picture": (store(virtual((150, 280, 3), np.uint8)), "takes its numbers from other files"),
    "virtual action": (store(action=virtual((51,), np.uint8)), "takes its numbers from other files"),
    "soft link": (store(link("soft")), "is a link to another place"),
    "external link": (store(link("external")), "is a link to another place"),
    "external link of an action": (store(action=link("external")), "is a link to another place"),
    "huge picture": (store(dataset(shape=(1 << 31, 280, 3), dtype=np.uint8)), r"is uint8 \[.* instead"),
    "huge action": (store(action=dataset(shape=(1 << 31,), dtype=np.float64)), "has the shape"),
    "huge chunked picture": (
        store(dataset(shape=(1 << 31,), dtype=np.uint8, chunks=(1 << 20,), compression="gzip")),
        r"is uint8 \[.* instead",
    ),
    "huge chunks": (store(dataset(chunks=(3000, 3000, 100), **GROWING)), "has chunks of"),
    "tiny chunks": (store(dataset(chunks=(1, 1, 1), **GROWING)), "has chunks of"),
    "nothing written": (store(dataset(shape=(150, 280, 3), dtype=np.uint8)), "was never filled"),
    "no chunk written": (store(dataset(shape=(150, 280, 3), dtype=np.uint8, **WHOLE)), "was not filled"),
    "bomb": (store(chunk(zlib.compress(bytes(100 << 20), 9))), "has a chunk that becomes larger than itself"),
    "large bomb": (store(chunk(zlib.compress(bytes(1 << 30), 1))), "has a compressed chunk larger than it"),
    "bomb in a bomb": (store(filters((1, (9,)), (1, (9,)))), "is stored by other filters"),
    "gzip before shuffle": (store(filters((1, (9,)), (2, ()))), "is stored by other filters"),
    "scale and offset": (
        store(dataset(shape=(150, 280, 3), dtype=np.uint8, chunks=(150, 280, 3), scaleoffset=0)),
        "is stored by other filters",
    ),
    "n-bit": (store(filters((5, ()))), "is stored by other filters"),
    "lzf of gigabytes": (lzf_of_gigabytes, "claims chunks larger than itself"),
    "damaged gzip": (store(chunk(b"\x78\x9c" + b"\xff" * 100)), "does not read, frame_0_x"),
    "variable length": (
        store(action=dataset(shape=(51,), dtype=h5py.vlen_dtype(np.float64))), "holds object instead"
    ),
    "text": (store(action=dataset(shape=(51,), dtype=h5py.string_dtype())), "holds object instead"),
    "references": (store(action=dataset(shape=(51,), dtype=h5py.ref_dtype)), "holds object instead"),
    "compound": (store(action=dataset(shape=(51,), dtype=[("a", "f8"), ("b", "f8")])), r"holds \[.* instead"),
    "arrays in an array": (store(action=dataset(shape=(51,), dtype="(1000000,)f8")), "holds .* instead"),
    "complex": (store(action=dataset(shape=(51,), dtype="c16")), "holds complex128 instead"),
    "one number": (store(action=dataset(data=1.0)), r"has the shape \[\] instead of \[51\]"),
    "empty": (store(action=dataset(data=h5py.Empty("f8"))), "has the shape nothing instead"),
    "a type": (store(lambda file, key, outside: file.__setitem__(key, np.dtype("f8"))), "is not an array"),
}  # fmt: skip


@pytest.fixture
def outside(tmp_path):
    """A file of somebody's own, and the same as HDF5."""
    (tmp_path / "secret").write_bytes(b"\x01" * PICTURE.size)
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["secret"] = PICTURE
    return tmp_path / "secret"


def read(path):
    with Episode(path) as episode:
        episode.picture(0)
        episode.action(0)


@pytest.mark.parametrize("name", BAD)
def test_an_array_of_another_kind_is_refused_before_it_is_read(tmp_path, outside, name):
    write, fault = BAD[name]
    write(tmp_path / "a.hdf5", outside)
    with pytest.raises(
        ValueError, match=rf"a\.hdf5: (frame_0_[xy] )?{fault}.*fetch the file again"
    ) as caught:
        read(tmp_path / "a.hdf5")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


LIMITED = """
import resource, sys
from megatv.data.csgo_episode_child import Recording, load_h5py
load_h5py()
before = peak()
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
try:
    recording = Recording(sys.argv[1])
    recording.array("frame_0_x")
    recording.array("frame_0_y")
except ValueError as error:
    print((peak() - before) >> 10, error)
"""


@pytest.mark.parametrize(
    "name", ["huge picture", "huge action", "huge chunked picture", "huge chunks", "bomb", "large bomb",
             "lzf of gigabytes", "arrays in an array"],
)  # fmt: skip
def test_refusals_take_little_memory(peak_source, tmp_path, outside, name):
    write, fault = BAD[name]
    write(tmp_path / "a.hdf5", outside)
    done = subprocess.run(
        [sys.executable, "-c", peak_source + LIMITED, tmp_path / "a.hdf5"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    mebibytes, _, said = done.stdout.partition(" ")
    assert int(mebibytes) < 64 and re.search(fault, said)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf", "shuffle": True},
        {"fletcher32": True},
        {"chunks": (1, 280, 3)},
        {"chunks": (150, 280, 3), "compression": 9},
    ],
)
def test_episodes_that_were_packed_anew_are_read(tmp_path, options):
    noise = np.random.default_rng(0).integers(0, 256, PICTURE.shape, np.uint8)
    for number, picture in enumerate((PICTURE, noise)):
        path = tmp_path / f"{number}.hdf5"
        store(dataset(data=picture, **options), dataset(data=ACTION, compression="gzip"))(path, None)
        with Episode(path) as episode:
            assert np.array_equal(episode.picture(0), picture[..., ::-1])
            assert episode.action(0) == GameAction(("w",))


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("frame_10000_x", "says 10001 frames, and at most 10000 are read"),
        ("frame_999999_y", "says 1000000 frames"),
        ("frame_" + "9" * 5000 + "_x", None),
    ],
)
def test_frames_are_counted_within_bounds(tmp_path, key, fault):
    store()(tmp_path / "a.hdf5", None)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file[key] = 1
    if fault is None:  # no frame's key: it is not looked at
        return read(tmp_path / "a.hdf5")
    with pytest.raises(ValueError, match=rf"a\.hdf5: {fault}"):
        Episode(tmp_path / "a.hdf5")


def test_no_decoder_is_loaded_from_elsewhere(tmp_path):
    store()(tmp_path / "a.hdf5", None)
    h5py.h5pl.append(os.fsencode(tmp_path))
    Recording(str(tmp_path / "a.hdf5")).array("frame_0_x")
    assert h5py.h5pl.size() == 0


def growing(file, key, outside):
    """A virtual dataset without an end: HDF5 asks the other file for its shape."""
    layout = h5py.VirtualLayout(PICTURE.shape, np.uint8, (None, 280, 3))
    source = h5py.VirtualSource(str(outside), "secret", PICTURE.shape, maxshape=(None, 280, 3))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset(key, layout)


def test_the_shape_of_an_array_in_another_file_is_not_asked_for(tmp_path):
    """The other file is a pipe: to open it would be to wait."""
    os.mkfifo(tmp_path / "pipe")
    store(growing)(tmp_path / "a.hdf5", tmp_path / "pipe")
    program = "import sys; from megatv.data.csgo_episode_child import Recording\n"
    program += "Recording(sys.argv[1]).array('frame_0_x')"
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.hdf5"], capture_output=True, text=True, timeout=60
    )
    assert "frame_0_x takes its numbers from other files" in done.stderr


@pytest.fixture
def own_child(tmp_path, monkeypatch):
    """Puts a program in the place of the one that reads."""

    def use(program):
        monkeypatch.setattr(csgo_episode, "CHILD", tmp_path / "child.py")
        root = Path(csgo_episode.__file__).parents[2]
        csgo_episode.CHILD.write_text(f"import os, sys\nsys.path.insert(0, {str(root)!r})\n{program}\n")

    return use


@pytest.mark.parametrize("name", ["picture in another file", "virtual picture"])
def test_no_second_file_can_be_opened(tmp_path, outside, own_child, name):
    """Even if an array is read that should have been refused."""
    own_child(
        "from megatv.data import csgo_episode_child as child\nchild._fault = lambda *_: ''\nchild.main()"
    )
    BAD[name][0](tmp_path / "a.hdf5", outside)
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["frame_0_x"][()].any()  # the other file's numbers
    with Episode(tmp_path / "a.hdf5") as episode:
        try:
            assert not episode.picture(0).any()  # HDF5 takes a virtual one's absent file for zeros
        except ValueError as error:
            assert "does not read, frame_0_x" in str(error)


def test_a_tree_that_is_its_own_branch_is_one_sentence(tmp_path):
    """HDF5 walks down its B-trees by recursion until its stack overflows."""
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for frame in range(40):
            file[f"frame_{frame}_x"] = file[f"frame_{frame}_y"] = 0
    data = bytearray((tmp_path / "a.hdf5").read_bytes())
    node, count = 0, 0
    while (node := data.find(b"TREE", node)) >= 0:
        if data[node + 4] == 0:  # of a group: its level, and the place of its first branch
            data[node + 5], count = 1, count + 1
            struct.pack_into("<Q", data, node + 32, node)
        node += 4
    assert count
    (tmp_path / "a.hdf5").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.hdf5: does not read \(the decoder crashed\); fetch"):
        Episode(tmp_path / "a.hdf5")


def test_a_reader_that_takes_too_much_is_ended(tmp_path, monkeypatch, own_child):
    store()(tmp_path / "a.hdf5", None)
    for program, seconds, reason in [
        ("import time; time.sleep(60)", 1, "reading it takes too long"),
        ("os.write(1, b'+'); import time; time.sleep(60)", 1, "reading it takes too long"),
        ("while True: pass", 1, "reading it takes too long"),
        ("os.abort()", 60, "the decoder crashed"),
        ("os.write(1, b'+')", 60, "the decoder crashed"),
        ("os.write(1, b'+' + b'\\xff' * 4)", 60, "says 4294967295 frames"),
        ("os.write(1, b'-' + b'\\xff\\n' * 256)", 60, "\ufffd"),
    ]:
        own_child(program)
        monkeypatch.setattr(csgo_episode, "MAX_ANSWER_SECONDS", seconds)
        with pytest.raises(ValueError, match=rf"a\.hdf5: .*{reason}") as caught:
            Episode(tmp_path / "a.hdf5")
        assert "\n" not in str(caught.value)
    monkeypatch.undo()

    for bound, value, program, reason in [
        ("MAX_READER_BYTES", 256 << 20, "bytearray(1 << 30)", "the decoder crashed"),
        ("MAX_READER_SECONDS", 1, "[0 for _ in iter(int, 1)]", "reading it takes too long"),
    ]:
        monkeypatch.setattr(csgo_episode, bound, value)
        own_child(
            "from megatv.data import csgo_episode_child as child\n"
            f"child.Recording.array = lambda *_: {program}\nchild.main()"
        )
        with pytest.raises(ValueError, match=reason), Episode(tmp_path / "a.hdf5") as episode:
            episode.picture(0)
        monkeypatch.undo()


def test_a_pipe_is_no_episode(tmp_path):
    os.mkfifo(tmp_path / "a.hdf5")
    with pytest.raises(ValueError, match=r"a\.hdf5: is not a file"):
        Episode(tmp_path / "a.hdf5")


def test_a_reader_ends_with_its_episode(tmp_path):
    store()(tmp_path / "a.hdf5", None)
    with Episode(tmp_path / "a.hdf5") as episode:
        reader = episode._reader
        assert reader.poll() is None
    assert reader.poll() is not None and reader.stdout.closed and reader.stdin.closed


def test_links_out_of_a_folder_of_episodes_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    store()(tmp_path / "private.hdf5", None)
    (tmp_path / "mine/a.hdf5").symlink_to(tmp_path / "private.hdf5")
    with pytest.raises(ValueError, match=r"'a\.hdf5' is a link that leads out of .*mine"):
        csgo.find_episodes([tmp_path / "mine"])
    assert csgo.find_episodes([tmp_path / "mine/a.hdf5"])  # what the user names is his own word


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "shuffle": True}, {"compression": "lzf"}])
def test_flipped_bytes_are_read_or_refused_and_crash_nothing(tmp_path, options):
    """300 damaged copies, in one process of bounded memory that must end well."""
    store(dataset(data=PICTURE, **options))(tmp_path / "whole.hdf5", None)
    script = Path(__file__).with_name("flip_bytes.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "whole.hdf5", tmp_path / "flipped.hdf5", "300"],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    read_well, refused = map(int, done.stdout.split())
    assert read_well + refused == 300 and refused > 50
