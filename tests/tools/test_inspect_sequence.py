"""The command as a person calls it: what it prints, draws and refuses."""

import re

import numpy as np
import pytest
from PIL import Image

from megatv.data.shards import DatasetInfo, ShardWriter
from megatv.data.stats import LatentStats
from megatv.types import Caption

pytestmark = pytest.mark.slow  # every call is a process


@pytest.fixture
def inspect(python):
    """inspect(*arguments): the command on the toy world's config."""
    tool = ("tools/inspect_sequence.py", "--config", "configs/toy_world.yaml")
    return lambda *arguments: python(*tool, *arguments, check=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "train"
    info = DatasetInfo(width=32, height=32, groups=1, codec={"kind": "learned"})
    with ShardWriter(directory, info) as writer:
        writer.write(
            "a-clip",
            np.random.default_rng(0).standard_normal(info.latent_shape).astype(np.float32),
            captions=(Caption(0.0, "(w). 0, 0, 0, 0."),),
            meta_caption="Pillars.",
            detailed_caption="",
            valid_latents=2,
            ends_clip=True,
            source={},
        )
        writer.finish(LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32)))
    return directory


def test_demo_reads_like_a_story_and_is_drawn(inspect, tmp_path):
    out = tmp_path / "mask.png"
    done = inspect("--demo", "--out", out, "sequence.clean_flip=1", "sequence.first_chunk_loss=false")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("sample demo, tv2tv: 4 of 13 chunks, 4 tokens each;")
    assert lines[1].endswith("3 chunks; clean copies flipped: 3")
    assert "<|bos|>A player jumps and shoots among pillars.↵(" in lines[2] and "<|bof|>" in lines[2]
    assert "| clean]" in lines[3] and "* |" not in lines[3]
    assert "0.0625 s" in lines[4] and "* | clean flipped to noisy, t=0." in lines[5]
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert min(picture.shape[:2]) > 800
    for colour in ("2f8f83", "3f5fa8", "e0763f"):  # text, clean and noisy keys
        assert (picture == np.frombuffer(bytes.fromhex(colour), np.uint8)).all(-1).mean() > 0.005
    assert list(tmp_path.iterdir()) == [out]


def test_a_sample_of_the_shards_with_its_text_dropped(inspect, shards, tmp_path):
    sample = [f"data.train={shards}", "sequence.text_dropout=1"]
    done = inspect("--out", tmp_path / "mask.png", *sample)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()[2], done.stdout.splitlines()[-2]
    assert "<|bos|><|bof|>  *0/2" in first and "tokens dropped)" in first
    assert "<|eof|><|eos|>  *1/2" in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--index", 1], "--index 1: .* holds samples 0 to 0"),
        (["--out", "no/such/mask.png"], "--out no/such/mask.png: give the name of a PNG file"),
        (["video.width=64", "sequence.context_tokens=4000"], "its width is 32, the config's is 64"),
    ],
)
def test_mistakes_end_in_one_sentence(inspect, arguments, message, shards, tmp_path):
    out = tmp_path / "mask.png"
    done = inspect("--out", out, *arguments, f"data.train={shards}")
    assert done.returncode == 2 and done.stdout == "" and not out.exists()
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr), done.stderr
