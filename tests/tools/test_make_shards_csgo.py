"""CS:GO episodes to shards, and one set of shards as TV2TV, Think2V and T2V."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from megatv.config import load_config
from megatv.data import csgo
from megatv.data.csgo_actions import MOUSE_X, GameAction, encode_action
from megatv.data.loader import Loader
from megatv.data.sequence import interleave
from megatv.data.shards import Shards
from megatv.data.tokenizer import load_tokenizer
from megatv.model.codec import load_codec

ROOT = Path(__file__).parents[2]
LLAMA3 = ROOT / "../shared/llama3/tokenizer.model"

CONFIG = ROOT / "configs/3b_csgo.yaml"
SMALL = [
    "codec={kind: dct}",
    "tokenizer.path=toy_world",
    "video={width: 32, height: 32, groups: 2}",
    "sequence.context_tokens=3000",  # 2 copies x 26 chunks x 4 tokens + 2792 text rows
    "batch.examples=2",
]


def numbered_action(frame):
    return GameAction(("w",) if frame % 2 else (), mouse_x=MOUSE_X[frame % 23])


@pytest.fixture
def recordings(write_episode, tmp_path):
    """Eight episodes, seven of 120 frames (a clip and 22 frames) and one of 147 (a clip and a group)."""
    for number in range(8):
        frames = 147 if number == 7 else 120
        pictures = np.random.default_rng(number).integers(0, 255, (frames, 1, 1, 3), np.uint8)
        pictures = np.broadcast_to(pictures, (frames, 150, 280, 3))
        actions = np.array([encode_action(numbered_action(frame)) for frame in range(frames)])
        write_episode(tmp_path / f"csgo/part{number % 2}/episode_{number}.hdf5", pictures, actions)
    (tmp_path / "held_out.txt").write_text("episode_2.hdf5\nepisode_7.hdf5\n")
    return tmp_path / "csgo"


@pytest.fixture
def run(monkeypatch, load_tool):
    def call(*args):
        command = ["make_shards.py", "--config", CONFIG, *SMALL, *args]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        load_tool("make_shards").main()

    return call


def test_episodes_become_shards_of_either_split(run, recordings, tmp_path, capsys):
    lists = ["--held-out", tmp_path / "held_out.txt"]
    run("--csgo", recordings, *lists, "--out", tmp_path / "train")
    run(
        "--csgo",
        recordings,
        *lists,
        "--split",
        "val",
        "--stats",
        tmp_path / "train",
        "--out",
        tmp_path / "val",
    )
    train, val = (Shards(tmp_path / split) for split in ("train", "val"))
    assert [train[i].id for i in range(len(train))] == [f"episode_{n}@0.0000" for n in (0, 1, 3, 4, 5, 6)]
    examples = [val[i] for i in range(len(val))]
    assert [example.id for example in examples] == [
        "episode_2@0.0000",
        "episode_7@0.0000",
        "episode_7@6.1250",
    ]
    assert [example.valid_latents for example in examples] == [26, 26, 13]
    assert not any(example.ends_clip for example in examples)  # the recording ends, the game does not
    assert all(example.meta_caption == csgo.META_PROMPT for example in examples)
    second = examples[2].captions
    assert [caption.text.count("\n") for caption in second] == [0, *[3] * 12]
    assert second[1].text.split("\n")[0] == numbered_action(98 + 1).words()
    assert "3 examples of 26 latents" in capsys.readouterr().out


def test_latents_are_those_of_the_resized_rgb_pictures(run, recordings, tmp_path):
    run("--csgo", recordings / "part0/episode_0.hdf5", "--held-out", tmp_path / "held_out.txt",
        "--action-lag", 1, "--out", tmp_path / "set")  # fmt: skip
    (example,) = [Shards(tmp_path / "set")[i] for i in range(1)]
    assert example.id == "episode_0@0.0625"  # frame 0 has no action before it
    assert example.captions[0].text == numbered_action(0).words()
    colours = np.random.default_rng(0).integers(0, 255, (120, 1, 1, 3), np.uint8)[1:99, ..., ::-1]
    frames = torch.from_numpy(np.broadcast_to(colours, (98, 32, 32, 3)).copy())
    raw = load_codec(load_config(CONFIG, SMALL).codec).encode(frames[None])[0].numpy()
    expected = Shards(tmp_path / "set").stats.normalize(raw.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(example.latents, expected, rtol=1e-5, atol=1e-5)


def test_the_three_modes_come_from_the_same_shards(run, recordings, tmp_path):
    run("--csgo", recordings, "--held-out", tmp_path / "held_out.txt", "--out", tmp_path / "set")
    shards = Shards(tmp_path / "set")
    path = str(LLAMA3) if LLAMA3.is_file() else "toy_world"
    tokenizer, example = load_tokenizer(path), shards[0]
    texts = [caption.text for caption in example.captions]
    read = {}
    for mode in ("tv2tv", "think2v", "t2v"):
        config = load_config(CONFIG, [*SMALL, f"sequence.mode={mode}"])
        plan = interleave(example, tokenizer, config.sequence)
        read[mode] = (
            [tokenizer.decode(list(ids)) for ids in plan.prompt],
            [tokenizer.decode(list(ids)) for ids in plan.before],
        )
        toy = load_tokenizer("toy_world")
        (batch, *_) = Loader(shards, toy, config, dp_rank=0, dp_size=1).step(0)
        assert batch.clean.shape == (26, 16, 4, 4) and batch.chunk_loss.all()
    prompt = csgo.META_PROMPT + "\n"
    assert read["tv2tv"] == ([prompt], texts)
    assert read["think2v"] == ([prompt, "\n".join(texts)], [""] * 26)
    assert read["t2v"] == ([prompt], [""] * 26)


def test_a_bad_episode_is_named_before_any_work_and_nothing_is_left(run, recordings, tmp_path):
    bad = recordings / "part1/episode_5.hdf5"
    bad.write_bytes(bad.read_bytes()[:5000])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"episode_5\.hdf5: does not read.*fetch the file again") as caught:
        run("--csgo", recordings, "--held-out", tmp_path / "held_out.txt", "--out", tmp_path / "set")
    assert "\n" not in str(caught.value) and sorted(tmp_path.iterdir()) == before


def test_flags_of_csgo_alone_are_refused_elsewhere(run, tmp_path, capsys):
    for flag in (["--held-out", "a.txt"], ["--action-lag", "1"]):
        with pytest.raises(SystemExit):
            run("--toy", 1, "--out", tmp_path / "set", *flag)
        assert f"{flag[0]} needs --csgo" in capsys.readouterr().err
