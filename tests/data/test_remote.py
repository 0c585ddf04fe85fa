"""Shards from an S3-compatible server on loopback: whole, damaged, missing; a small cache that many share."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from megatv.config import CodecConfig, DataConfig, load_config
from megatv.data import bucket as s3
from megatv.data import cache
from megatv.data.loader import window_of
from megatv.data.remote import DESCRIPTION, RemoteShards, open_shards
from megatv.data.shards import LENGTHS, DatasetInfo, Shards, ShardWriter
from megatv.data.stats import LatentStats
from megatv.data.video import encode_video
from megatv.model.codec import clip_encoder, load_codec

boto3 = pytest.importorskip("boto3", reason="the object store needs boto3")
moto = pytest.importorskip("moto.server", reason="the test server needs moto[server]")
TOY_WORLD = Path(__file__).parents[2] / "configs" / "toy_world.yaml"
EXAMPLES = 12
URL = "s3://clips/train"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Six shards of two examples."""
    path = tmp_path_factory.mktemp("source") / "set"
    info = DatasetInfo(width=16, height=16, groups=1, codec={"kind": "dct"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatv.data.shards.SHARD_BYTES", 4400)
        with ShardWriter(path, info) as writer:
            for index in range(EXAMPLES):
                latents = np.random.default_rng(index).normal(size=info.latent_shape).astype(np.float32)
                words = {"captions": (), "meta_caption": "m", "detailed_caption": "", "source": {}}
                writer.write(f"clip-{index}", latents, **words, valid_latents=13, ends_clip=True)
            writer.finish(LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32)))
    assert len(list(path.glob("*.mds"))) == 6
    return path


@pytest.fixture(scope="module")
def server():
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def bucket(server, source, monkeypatch):
    """The bucket with the shards, as the environment's endpoint."""
    for key, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    monkeypatch.setenv("S3_ENDPOINT_URL", server)
    monkeypatch.setattr(cache, "BACKOFF_SECONDS", 0.0)
    bucket = boto3.resource("s3", endpoint_url=server).create_bucket(Bucket="clips")
    for file in source.iterdir():
        bucket.upload_file(str(file), f"train/{file.name}")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture
def fetched(monkeypatch):
    """Names of the shards asked for, in order."""
    names, download = [], s3.download

    def counted(location, name, local, most):
        if name.endswith(".mds"):
            names.append(name)
        return download(location, name, local, most)

    monkeypatch.setattr(s3, "download", counted)
    return names


def size_of(source, shards=1):
    return shards * max(file.stat().st_size for file in source.glob("*.mds"))


def cached(path):
    return sorted(file.name for file in path.glob("*/shard*"))


def test_remote_examples_are_the_local_ones_and_fetched_once(bucket, source, tmp_path, fetched):
    shards, local = RemoteShards(URL, tmp_path, 1 << 20), Shards(source)
    assert len(shards) == EXAMPLES and fetched == []
    assert np.array_equal(shards.lengths, local.lengths)
    for index in (5, 4, 0, 5, 11):
        assert shards[index].id == local[index].id == f"clip-{index}"
        assert np.array_equal(shards[index].latents, local[index].latents)
    assert fetched == ["shard.00002.mds", "shard.00000.mds", "shard.00005.mds"]
    assert RemoteShards(URL, tmp_path, 1 << 20)[4].id == "clip-4" and len(fetched) == 3
    assert cached(tmp_path) == sorted(fetched)


def test_crops_of_remote_clips_are_those_of_local_ones(bucket, tmp_path):
    """Windows are drawn before anything is fetched; a fetched clip gives the same pixels."""
    info = DatasetInfo(16, 16, 1, {"kind": "dct"}, stores="clips", longest_clip=200)
    with ShardWriter(tmp_path / "local", info) as writer:
        for index in range(4):
            rng = np.random.default_rng(index)
            frames = np.broadcast_to(rng.integers(0, 256, (130, 1, 1, 3), dtype=np.uint8), (130, 16, 16, 3))
            words = {"captions": (), "meta_caption": "m", "detailed_caption": "", "source": {}}
            clip = encode_video(frames, crf=12, key_frame_every=32)
            writer.write(f"clip-{index}", clip, **words, valid_latents=13, ends_clip=True, frames=130)
        writer.finish(LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32)))
    for file in (tmp_path / "local").iterdir():
        bucket.upload_file(str(file), f"whole/{file.name}")

    def encoder():
        return clip_encoder(load_codec(CodecConfig("dct")))

    sets = Shards(tmp_path / "local", encoder), RemoteShards("s3://clips/whole", tmp_path, 1 << 20, encoder)
    config = load_config(TOY_WORLD, ["video={width: 16, height: 16, groups: 1}", "data.crop=starts"])
    windows = set()
    for index, epoch in itertools.product(range(4), range(3)):
        found = [(s.record(index), window_of(s, s.record(index), config, epoch)) for s in sets]
        local, fetched = (s.example(*place) for s, place in zip(sets, found, strict=True))
        np.testing.assert_array_equal(local.latents, fetched.latents)
        assert found[0] == found[1]
        windows.add(found[0][1])
    assert len(windows) > 6


def test_the_cache_stays_within_its_bytes_and_keeps_what_was_read_last(bucket, source, tmp_path, fetched):
    shards = RemoteShards(URL, tmp_path, size_of(source, 2))
    for index in (0, 2, 0, 4):
        assert shards[index].id == f"clip-{index}"
        assert sum(p.stat().st_size for p in tmp_path.glob("*/*.mds")) <= size_of(source, 2)
    assert cached(tmp_path) == ["shard.00000.mds", "shard.00002.mds"]
    assert len(fetched) == 3


def test_what_is_in_use_is_not_evicted(bucket, source, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FULL_SECONDS", 0.2)
    shards = RemoteShards(URL, tmp_path, size_of(source))
    (path,) = tmp_path.glob("*/locks")
    path = path.parent / "shard.00000.mds"
    with shards._cache.hold(*shards.index.file(0)):
        with pytest.raises(ValueError, match=r"no room for \d+ bytes"):
            shards[11]
        assert path.exists()
    assert shards[11].id == "clip-11" and not path.exists()


def test_a_transfer_that_went_wrong_is_repeated(bucket, tmp_path, monkeypatch):
    download, calls = s3.download, itertools.count()

    def unreliable(location, name, local, most):
        answer = download(location, name, local, most)
        if name.endswith(".mds"):
            match next(calls):
                case 0:
                    local.write_bytes(local.read_bytes()[:-1])
                case 1:
                    return "connection reset", False
        return answer

    monkeypatch.setattr(s3, "download", unreliable)
    assert RemoteShards(URL, tmp_path, 1 << 20)[3].id == "clip-3" and next(calls) == 3


def test_a_damaged_object_is_an_error_once_and_never_data(bucket, tmp_path, fetched):
    data = bytearray(bucket.Object("train/shard.00001.mds").get()["Body"].read())
    data[-9] ^= 1
    bucket.put_object(Key="train/shard.00001.mds", Body=bytes(data))
    shards = RemoteShards(URL, tmp_path, 1 << 20)
    for index in (2, 3):
        with pytest.raises(ValueError, match=r"s3://clips/train/shard\.00001\.mds: cannot be fetched \(its"):
            shards[index]
    assert fetched == ["shard.00001.mds"] * cache.ATTEMPTS and cached(tmp_path) == []
    assert shards[4].id == "clip-4"


def test_a_missing_object_is_not_asked_for_again(bucket, tmp_path, fetched):
    bucket.Object("train/shard.00001.mds").delete()
    with pytest.raises(ValueError, match=r"shard\.00001\.mds: cannot be fetched \(.*NoSuchKey"):
        RemoteShards(URL, tmp_path, 1 << 20)[2]
    assert fetched == ["shard.00001.mds"]


def test_a_cached_file_that_went_bad_is_fetched_again(bucket, tmp_path, fetched):
    RemoteShards(URL, tmp_path, 1 << 20)[0]
    (path,) = tmp_path.glob("*/shard.00000.mds")
    path.write_bytes(path.read_bytes()[:100])
    assert RemoteShards(URL, tmp_path, 1 << 20)[0].id == "clip-0" and len(fetched) == 2


def test_another_set_at_the_same_place_finds_no_old_shards(bucket, source, tmp_path):
    RemoteShards(URL, tmp_path, 1 << 20)[0]
    index = (source / "index.json").read_text()
    bucket.put_object(Key="train/index.json", Body=index + " ")
    RemoteShards(URL, tmp_path, 1 << 20)
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 2


def test_shards_without_lengths_open(bucket, tmp_path):
    bucket.Object(f"train/{LENGTHS}").delete()
    assert RemoteShards(URL, tmp_path, 1 << 20).lengths is None


@pytest.mark.parametrize("gone", ["index.json", "dataset.json", "latent_stats.json"])
def test_an_incomplete_set_is_refused(bucket, tmp_path, gone):
    bucket.Object(f"train/{gone}").delete()
    with pytest.raises(ValueError, match=f"s3://clips/train/{gone}: cannot be fetched"):
        RemoteShards(URL, tmp_path, 1 << 20)


def test_lengths_that_another_put_into_the_cache_are_not_used(bucket, source, tmp_path):
    bucket.Object(f"train/{LENGTHS}").delete()
    RemoteShards(URL, tmp_path, 1 << 20)
    (directory,) = tmp_path.iterdir()
    np.save(directory / LENGTHS, np.ones((EXAMPLES, 2), np.int32))
    assert RemoteShards(URL, tmp_path, 1 << 20).lengths is None


def test_links_in_place_of_the_description_are_replaced(bucket, source, tmp_path):
    cache, target = tmp_path / "cache", tmp_path / "target"
    target.write_text("kept")
    RemoteShards(URL, cache, 1 << 20)
    (directory,) = cache.iterdir()
    for name in DESCRIPTION:
        (directory / name).unlink()
        (directory / name).symlink_to(target)
    assert RemoteShards(URL, cache, 1 << 20)[0].id == "clip-0" and target.read_text() == "kept"


def test_what_a_stranger_calls_a_column_is_not_run_from_a_bucket(bucket, source, tmp_path):
    tree = json.loads((source / "index.json").read_text())
    for entry in tree["shards"]:
        entry["column_encodings"] = ["str", "str", entry["column_encodings"][2], "pkl"]
    bucket.put_object(Key="train/index.json", Body=json.dumps(tree))
    with pytest.raises(ValueError, match=r"index\.json: shard 0 has column_encodings .*'pkl'"):
        RemoteShards(URL, tmp_path, 1 << 20)


@pytest.mark.parametrize("name", ["index.json", "dataset.json", LENGTHS])
def test_a_description_without_end_is_not_fetched_whole(bucket, tmp_path, monkeypatch, name):
    monkeypatch.setitem(DESCRIPTION, name, 10)
    with pytest.raises(ValueError, match=f"{name}: cannot be fetched .it has more bytes than"):
        RemoteShards(URL, tmp_path, 1 << 20)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_the_users_alone(bucket, tmp_path):
    cache = tmp_path / "cache"
    RemoteShards(URL, cache, 1 << 20)[0]
    (directory,) = cache.iterdir()
    assert {p.stat().st_mode & 0o777 for p in (cache, directory, directory / "locks")} == {0o700}
    assert all(p.stat().st_mode & 0o077 == 0 for p in directory.rglob("*"))
    cache.chmod(0o777)
    with pytest.raises(ValueError, match="cache: anybody may change it"):
        RemoteShards(URL, cache, 1 << 20)
    cache.chmod(0o1777)  # as /tmp is: nobody moves what is another's
    RemoteShards(URL, cache, 1 << 20)
    directory.rename(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="cannot hold fetched shards"):
        RemoteShards(URL, cache, 1 << 20)
    with pytest.raises(ValueError, match="cannot hold fetched shards"):
        RemoteShards(URL, directory / "index.json", 1 << 20)


def test_a_server_that_does_not_answer_is_refused(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(cache, "ATTEMPTS", 1)
    with pytest.raises(ValueError, match=r"index\.json: cannot be fetched \(Could not connect"):
        RemoteShards(URL, tmp_path, 1 << 20)


def test_a_cache_that_the_order_would_thrash_is_refused(bucket, source, tmp_path):
    def opened(**values):
        return open_shards(URL, DataConfig(train=URL, cache_dir=str(tmp_path), **values))

    four = size_of(source, 4)
    with pytest.raises(ValueError, match=r"set data\.shuffle_shards to at most 2$"):
        opened(cache_bytes=four)
    assert len(opened(cache_bytes=four, shuffle_shards=2)) == EXAMPLES
    assert len(opened(cache_bytes=size_of(source, 6))) == EXAMPLES
    with pytest.raises(ValueError, match="a shard has"):
        opened(cache_bytes=10)
    assert type(open_shards(str(source), DataConfig(train="x"))) is Shards


READER = """
import os, sys, threading
from pathlib import Path
import numpy as np
from megatv.data.remote import RemoteShards
url, cache, capacity, examples = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
shards = RemoteShards(url, cache, capacity)
order = np.random.default_rng(int(os.environ["RANK"])).integers(0, examples, 24)
wrong = []
def read(indices):
    wrong.extend(i for i in indices if shards[int(i)].id != f"clip-{i}")
threads = [threading.Thread(target=read, args=(part,)) for part in np.split(order, 2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("wrong:", wrong)
"""


def test_ranks_share_a_cache_that_holds_half(bucket, source, on_ranks, tmp_path):
    """Three processes of two threads read while shards come and go, after one died while fetching."""
    script, cache = tmp_path / "reader.py", tmp_path / "cache"
    script.write_text(READER)
    cache.mkdir()
    RemoteShards(URL, cache, 1 << 20)
    (directory,) = cache.iterdir()
    (directory / "shard.00003.mds.room").write_bytes(b"\0" * size_of(source))  # what a killed rank leaves
    (directory / "shard.00003.mds.arriving.ab12").write_bytes(b"\0" * 9)
    told = on_ranks(3, script, URL, cache, size_of(source, 3), EXAMPLES)
    assert told.splitlines() == ["wrong: []"] * 3
    left = [p.name for p in directory.iterdir() if ".room" in p.name or ".arriving" in p.name]
    assert left == [] and len(cached(cache)) <= 3
    assert os.listdir(cache) == [directory.name]
