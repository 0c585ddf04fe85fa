"""What lies in the cache is used only while it is the index's: hashed first, fetched again, never linked."""

import os
import stat
import time
from types import SimpleNamespace

import pytest
import xxhash

from megatv.data import bucket
from megatv.data import cache as cache_module
from megatv.data.cache import ShardCache, make_private

NAME, DATA = "shard.00000.mds", b"the right bytes" * 100
WANTED = (NAME, len(DATA), xxhash.xxh64(DATA).hexdigest())


@pytest.fixture
def fetched(monkeypatch):
    """Names asked for, of a store whose every object is DATA."""
    names = []

    class Client:
        def get_object(self, Bucket, Key):
            names.append(Key.removeprefix("set/"))
            return {"Body": SimpleNamespace(iter_chunks=lambda size: [DATA], close=lambda: None)}

    monkeypatch.setattr(bucket, "_client", lambda endpoint: Client())
    return names


@pytest.fixture
def hashed(monkeypatch):
    """Counts whole files that were hashed."""
    calls, digest = [], cache_module.file_digest
    monkeypatch.setattr(cache_module, "file_digest", lambda file: calls.append(1) or digest(file))
    return calls


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def read(cache):
    with cache.hold(*WANTED) as file:
        return os.pread(file.fileno(), 1 << 20, 0)


def new(directory):
    return ShardCache("s3://clips/set", directory, 1 << 20)


def test_a_file_is_fetched_once_and_hashed_once_a_process(directory, fetched, hashed):
    first = new(directory)
    assert [read(first) for _ in range(3)] == [DATA] * 3
    assert fetched == [NAME] and len(hashed) == 1  # when it arrived
    other = new(directory)
    assert [read(other) for _ in range(3)] == [DATA] * 3
    assert fetched == [NAME] and len(hashed) == 2


@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_that_another_put_there_is_not_used(directory, fetched, same_size):
    (directory / NAME).write_bytes(b"x" * (len(DATA) if same_size else 5))
    assert read(new(directory)) == DATA and fetched == [NAME]
    assert (directory / NAME).read_bytes() == DATA


def test_a_file_that_changed_after_its_first_use_is_hashed_and_fetched_again(directory, fetched):
    cache = new(directory)
    read(cache)
    time.sleep(0.01)
    (directory / NAME).write_bytes(b"x" * len(DATA))
    assert read(cache) == DATA and fetched == [NAME] * 2
    (directory / NAME).unlink()
    (directory / NAME).write_bytes(b"y" * len(DATA))  # another file of the same name
    assert read(cache) == DATA and fetched == [NAME] * 3


@pytest.mark.parametrize("suffix", ["", ".arriving", ".room"])
@pytest.mark.parametrize("right", [True, False])
def test_links_in_the_cache_are_not_followed(directory, tmp_path, fetched, suffix, right):
    target = tmp_path / "target"
    target.write_bytes(DATA if right else b"kept")
    before = target.stat()
    (directory / f"{NAME}{suffix}").symlink_to(target)
    assert read(new(directory)) == DATA and fetched == [NAME]
    assert not (directory / NAME).is_symlink()
    assert target.read_bytes() == (DATA if right else b"kept")
    assert target.stat().st_mtime_ns == before.st_mtime_ns
    assert sorted(p.name for p in directory.iterdir()) == ["locks", NAME]


def test_a_dangling_link_makes_no_file(directory, tmp_path, fetched):
    for suffix in ("", ".arriving", ".room"):
        (directory / f"{NAME}{suffix}").symlink_to(tmp_path / "marker")
    assert read(new(directory)) == DATA and not (tmp_path / "marker").exists()


def test_a_hard_link_is_replaced_and_not_written_through(directory, tmp_path, fetched):
    (tmp_path / "target").write_bytes(b"kept")
    os.link(tmp_path / "target", directory / NAME)
    assert read(new(directory)) == DATA and (tmp_path / "target").read_bytes() == b"kept"


def test_a_pipe_in_the_cache_is_replaced(directory, fetched):
    os.mkfifo(directory / NAME)
    assert read(new(directory)) == DATA


def test_a_folder_in_the_place_of_a_file_is_a_sentence(directory, fetched):
    (directory / NAME).mkdir()
    cache = new(directory)
    with pytest.raises(ValueError, match=rf"{NAME}: cannot be kept there \(Is a directory\); remove"):
        read(cache)
    assert not cache.drop_if_bad(*WANTED)


def test_a_lock_that_is_a_link_is_not_opened(directory, tmp_path, fetched):
    cache = new(directory)
    (directory / "locks" / NAME).symlink_to(tmp_path / "marker")
    with pytest.raises(ValueError, match="cannot be kept there"):
        read(cache)
    assert not (tmp_path / "marker").exists()


def test_a_file_of_links_counts_as_little_as_the_link(directory, tmp_path, fetched):
    """A link to a large file does not make the cache evict everything else."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    (directory / "shard.00001.mds").symlink_to(tmp_path / "large")
    assert read(new(directory)) == DATA
    assert (tmp_path / "large").stat().st_size == 1 << 30


def test_the_directory_is_the_users_alone(tmp_path, fetched):
    path, owner = tmp_path / "set", tmp_path.stat().st_uid
    make_private(path, owner)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o777)
    make_private(path, owner)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    read(cache := new(path))
    assert {stat.S_IMODE(p.stat().st_mode) for p in (path / "locks").iterdir()} == {0o600}
    assert cache.directory == path
    with pytest.raises(ValueError, match="it belongs to another user"):
        make_private(path, owner + 1)


@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_what_is_no_directory_of_ours_is_refused(tmp_path, kind):
    path, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    if kind == "file":
        path.touch()
    else:
        path.symlink_to(elsewhere)
    if kind == "link":
        elsewhere.mkdir(mode=0o755)
    with pytest.raises(ValueError, match="set: cannot hold fetched shards"):
        make_private(path, tmp_path.stat().st_uid)
    assert elsewhere.exists() == (kind == "link")
    assert kind != "link" or stat.S_IMODE(elsewhere.stat().st_mode) == 0o755


def test_remembering_what_was_hashed_takes_bounded_memory(directory, fetched, hashed, monkeypatch):
    monkeypatch.setattr(cache_module, "MAX_REMEMBERED", 2)
    cache = new(directory)
    for number in range(7):
        with cache.hold(f"shard.{number:05}.mds", *WANTED[1:]):
            pass
        assert len(cache._hashed) <= 2
