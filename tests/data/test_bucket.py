"""A location is s3://bucket/prefix: anything else is refused before a request, no password repeated."""

import urllib.request

import pytest

from megatv.config import DataConfig
from megatv.data import bucket
from megatv.data.bucket import parse_location
from megatv.data.remote import RemoteShards, open_shards


@pytest.mark.parametrize(
    ("location", "parts"),
    [
        ("s3://clips", ("clips", "")),
        ("s3://clips/", ("clips", "")),
        ("s3://my.clips-1/a/b c/d@e/", ("my.clips-1", "a/b c/d@e")),
    ],
)
def test_a_location_has_a_bucket_and_a_prefix(location, parts):
    assert parse_location(location) == parts


SCHEMES = [
    "http",
    "https",
    "ftp",
    "file",
    "sftp",
    "gs",
    "oci",
    "azure",
    "azure-dl",
    "hf",
    "dbfs",
    "dbfs-uc",
    "alipan",
    "S3",
    "s3a",
    "s3n",
    "s3+http",
    "ssh",
]


@pytest.mark.parametrize(
    "location",
    [
        *(f"{scheme}://127.0.0.1:9/set" for scheme in SCHEMES),
        "://clips/set",
        "s3://",
        "s3:///set",
        "s3://clips:443/set",
        "s3://clips//set",
        "s3://clips/../other",
        "s3://clips/a/./b",
        "s3://clips/a\\b",
        "s3://clips/a\nb",
        "s3://clips/set?versionId=1",
        "s3://clips/set#part",
        "s3://user:secret@clips/set",
        "s3://secret@clips/set",
        "https://user:secret@host/set?key=secret",
        "s3://clips/set?key=secret",
        "s3://arn:aws:s3:eu-west-1:1:accesspoint/set",
        " s3://clips/set",
        "s3://-clips/set",
    ],
)
def test_other_locations_are_refused_before_any_request(tmp_path, monkeypatch, location):
    def asked(*args, **kwargs):
        raise AssertionError("a request was made")

    monkeypatch.setattr(bucket, "_client", asked)
    monkeypatch.setattr(urllib.request, "urlopen", asked)
    for open_it in (
        lambda: open_shards(location, DataConfig(train="x", cache_dir=str(tmp_path / "cache"))),
        lambda: RemoteShards(location, tmp_path / "cache", 1 << 20),
    ):
        with pytest.raises(ValueError, match="are read from a directory or from s3://bucket/prefix") as error:
            open_it()
        assert "secret" not in str(error.value) and str(error.value).isprintable()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("location", ["dbfs:/Volumes/set", "file:/etc", "hf:datasets/x", "s3:clips/set"])
def test_what_has_no_slashes_is_a_directory_that_is_not_there(tmp_path, location):
    with pytest.raises(ValueError, match="is not a directory of shards"):
        open_shards(location, DataConfig(train="x", cache_dir=str(tmp_path)))


def test_an_object_larger_than_it_should_be_is_not_fetched_whole(tmp_path, monkeypatch):
    taken = []

    class Body:
        def iter_chunks(self, size):
            for _ in range(1000):
                taken.append(size)
                yield b"x" * size

        def close(self):
            taken.append("closed")

    class Client:
        def get_object(self, Bucket, Key):
            assert (Bucket, Key) == ("clips", "set/shard.00000.mds")
            return {"Body": Body()}

    monkeypatch.setattr(bucket, "_client", lambda endpoint: Client())
    local = tmp_path / "a"
    reason, final = bucket.download("s3://clips/set", "shard.00000.mds", local, 3 << 20)
    assert (reason, final) == ("it has more bytes than it should", True)
    assert taken == [1 << 20] * 4 + ["closed"] and local.stat().st_size <= 3 << 20


def test_a_download_writes_through_no_link(tmp_path, monkeypatch):
    class Body:
        def iter_chunks(self, size):
            return [b"new"]

        def close(self):
            pass

    class Client:
        def get_object(self, Bucket, Key):
            return {"Body": Body()}

    monkeypatch.setattr(bucket, "_client", lambda endpoint: Client())
    (tmp_path / "target").write_text("kept")
    (tmp_path / "a").symlink_to(tmp_path / "target")
    assert bucket.download("s3://clips", "index.json", tmp_path / "a", 10) == ("", False)
    assert (tmp_path / "target").read_text() == "kept" and (tmp_path / "a").read_bytes() == b"new"
    assert not (tmp_path / "a").is_symlink()
