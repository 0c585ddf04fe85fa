"""What is written is read back normalised; any damage of any byte ends in a sentence that names the file."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatv.data.shards import DatasetInfo, Shards, ShardWriter, verify
from megatv.data.stats import LatentStats
from megatv.types import Caption

INFO = DatasetInfo(width=32, height=16, groups=1, codec={"kind": "dct"})
STATS = LatentStats(
    np.stack([np.full(16, 3.0), np.arange(16)]).astype(np.float32),
    np.stack([np.full(16, 2.0), np.full(16, 0.5)]).astype(np.float32),
)


def latents_of(index: int) -> np.ndarray:
    return np.random.default_rng(index).normal(size=INFO.latent_shape).astype(np.float32)


def write_example(writer: ShardWriter, index: int, **changes) -> None:
    words = {
        "captions": (Caption(0.0, f"one {index}"), Caption(1.5, "zwei 二")),
        "meta_caption": "All of it.",
        "detailed_caption": "In detail.",
        "valid_latents": 11,
        "ends_clip": index % 2 == 0,
        "source": {"seed": index},
    }
    writer.write(f"clip-{index}", latents_of(index), **{**words, **changes})


@pytest.fixture
def directory(tmp_path):
    """Ten examples; in several shards, so that damage has neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatv.data.shards.SHARD_BYTES", 16_000)
        with ShardWriter(tmp_path / "set", INFO) as writer:
            for index in range(10):
                write_example(writer, index)
            writer.finish(STATS)
    return tmp_path / "set"


def test_examples_come_back_normalised_with_their_words(directory):
    shards = Shards(directory)
    assert len(shards) == 10 and len(list(directory.glob("*.mds"))) > 2
    assert shards.info == replace(INFO, stats_fingerprint=STATS.fingerprint())
    assert shards.info.latent_shape == (13, 16, 2, 4)
    for index in (9, 0, 4):
        example = shards[index]
        assert example.id == f"clip-{index}"
        assert example.captions == (Caption(0.0, f"one {index}"), Caption(1.5, "zwei 二"))
        assert (example.meta_caption, example.detailed_caption) == ("All of it.", "In detail.")
        assert (example.valid_latents, example.ends_clip) == (11, index % 2 == 0)
        stored = latents_of(index).astype(np.float16).astype(np.float32)
        expected = (stored - np.arange(16)[:, None, None]) / 0.5
        expected[0] = (stored[0] - 3) / 2
        assert example.latents.dtype == np.float32
        np.testing.assert_allclose(example.latents, expected, rtol=1e-6, atol=1e-6)


def test_the_directory_appears_whole_or_not_at_all(tmp_path):
    with ShardWriter(tmp_path / "deep" / "set", INFO) as writer:
        write_example(writer, 0)
        assert not (tmp_path / "deep" / "set").exists()
    assert not list((tmp_path / "deep").iterdir())
    with pytest.raises(RuntimeError, match="boom"), ShardWriter(tmp_path / "set", INFO):
        raise RuntimeError("boom")
    with (
        pytest.raises(ValueError, match="no example was written"),
        ShardWriter(tmp_path / "set", INFO) as writer,
    ):
        writer.finish(STATS)
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    (tmp_path / "set").mkdir()  # an empty directory may be filled
    with ShardWriter(tmp_path / "set", INFO) as writer:
        write_example(writer, 0)
        writer.finish(STATS)
    assert len(Shards(tmp_path / "set")) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "set"]


def test_what_must_not_be_written_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for taken in (tmp_path / "full", tmp_path / "full" / "file"):
        with pytest.raises(ValueError, match=f"{taken.name}: is not an empty directory"):
            ShardWriter(taken, INFO)
    with ShardWriter(tmp_path / "set", INFO) as writer:
        write_example(writer, 0)
        with pytest.raises(ValueError, match="the id 'clip-0' comes twice"):
            write_example(writer, 0)
        for wrong in (1e6, np.nan):
            latents = latents_of(1)
            latents[3, 2, 1, 0] = wrong
            with pytest.raises(ValueError, match="latents of 'x' do not fit float16"):
                writer.write(
                    "x", latents, captions=(), meta_caption="m", detailed_caption="", valid_latents=1,
                    ends_clip=False, source={},
                )  # fmt: skip


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "has .* bytes where the index says"),
        (lambda file: os.truncate(file, 0), "has 0 bytes where the index says"),
        (os.unlink, "is missing"),
    ],
    ids=["truncated", "empty", "missing"],
)
def test_opening_refuses_a_damaged_shard(directory, damage, message):
    damage(directory / "shard.00001.mds")
    with pytest.raises(ValueError, match=rf"shard\.00001\.mds: {message}.*; copy the directory again"):
        Shards(directory)
    damage(directory / "shard.00002.mds")
    with pytest.raises(ValueError, match=r"\(2 of \d+ shards are damaged\)"):
        verify(directory)


def test_a_flipped_bit_is_found_by_verify_and_on_reading(directory):
    verify(directory)
    flip(directory / "shard.00001.mds")
    with pytest.raises(ValueError, match=r"shard\.00001\.mds: has changed since it was written"):
        verify(directory)
    shards, bad = Shards(directory), []
    for index in range(len(shards)):
        try:
            shards[index]
        except ValueError as error:
            assert "shard.00001.mds: example" in str(error) and "is damaged" in str(error)
            bad.append(index)
    assert len(bad) == 1


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_becomes_training_data(tmp_path_factory, where, bit):
    directory = tmp_path_factory.mktemp("flip") / "set"
    with ShardWriter(directory, INFO) as writer:
        for index in range(2):
            write_example(writer, index)
        writer.finish(STATS)
    good = [Shards(directory)[i] for i in range(2)]
    file = directory / "shard.00000.mds"
    data = bytearray(file.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    file.write_bytes(data)
    shards = Shards(directory)
    for index in range(2):
        try:
            example = shards[index]
        except ValueError as error:
            assert "is damaged" in str(error)
        else:
            assert np.array_equal(example.latents, good[index].latents)
            assert example.captions == good[index].captions and example.id == good[index].id


@pytest.mark.parametrize("name", ["index.json", "dataset.json", "latent_stats.json"])
def test_a_damaged_json_is_named(directory, name):
    truncate(directory / name)
    with pytest.raises(ValueError, match=name):
        Shards(directory)
    (directory / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: cannot be read"):
        Shards(directory)


def test_directories_that_are_no_shards_are_named(directory, tmp_path):
    with pytest.raises(ValueError, match="none: is not a directory of shards"):
        Shards(tmp_path / "none")
    (directory / "index.json").write_text('{"version": 2, "shards": []}')
    with pytest.raises(ValueError, match="its index lists no shards"):
        Shards(directory)
    (directory / "index.json").write_text('{"version": 2, "shards": [{}]}')
    with pytest.raises(ValueError, match="is not an MDS index"):
        Shards(directory)


def test_a_description_of_other_shards_is_refused(directory):
    tree = json.loads((directory / "dataset.json").read_text())
    (directory / "dataset.json").write_text(json.dumps({**tree, "stores": "clips"}))
    with pytest.raises(ValueError, match=r"shard 0 has column_names .* where \['clip', 'hash'"):
        Shards(directory)


def test_another_version_is_refused(directory):
    tree = json.loads((directory / "dataset.json").read_text())
    (directory / "dataset.json").write_text(json.dumps({**tree, "version": 99}))
    with pytest.raises(
        ValueError, match=r"dataset\.json: is of version 99 and this program reads up to version 3"
    ):
        Shards(directory)
    (directory / "dataset.json").write_text(json.dumps({**tree, "fsp": 16}))
    with pytest.raises(ValueError, match=r"dataset\.json: must hold exactly width, height"):
        Shards(directory)
