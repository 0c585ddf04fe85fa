"""What a checkpoint's config names is followed only where its user has named it, too."""

from __future__ import annotations

import argparse
import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from megatv.checkpoint.trust import NAMED, STRANGER, Trust, admit, remember
from megatv.config import CodecConfig, Config, DataConfig, TokenizerConfig, load_config, save_config

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")
URL = "s3://bucket/shards"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has named nothing yet, in a working directory of his own; the file of his named places."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home/state"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home/state/megatv" / NAMED


def naming(
    codec: str = "/codec", tokenizer: str = "toy_world", train: str = "/train", val: str | None = "/val"
) -> Config:
    return dataclasses.replace(
        TOY,
        codec=CodecConfig("learned", codec),
        tokenizer=TokenizerConfig(tokenizer),
        data=DataConfig(train, val),
    )


OWN = {"codec": "run/codec", "train": "run/train", "val": "run/val"}
"""Places inside the run `run` of the working directory."""


@pytest.mark.parametrize(
    "place", ["/codec", "codec", "../up", "run/../codec", "s3://b/codec", "a\0b", "\ud800"]
)
@pytest.mark.parametrize(("key", "flag"), [("codec", "--codec"), ("tokenizer", "--tokenizer")])
def test_a_strange_codec_or_tokenizer_is_refused_with_both_remedies(key: str, flag: str, place: str) -> None:
    with pytest.raises(ValueError, match=f"^run: its config names {key}.path ") as caught:
        admit(naming(**{**OWN, key: place}), "run", STRANGER)
    assert repr(place) in str(caught.value)
    assert flag in str(caught.value) and "--trust-checkpoint" in str(caught.value)


@pytest.mark.parametrize("place", ["/val", "val", URL, "http://127.0.0.1:1/x", "file:///etc", "run/../val"])
def test_strange_shards_are_left_closed_and_why_is_known(place: str) -> None:
    config, refused = admit(naming(**{**OWN, "val": place}), "run", STRANGER)
    assert refused.keys() == {"data.val"}
    assert f"data.val {place!r}" in refused["data.val"] and "--data" in refused["data.val"]
    assert config.data.val == place


def test_what_training_named_is_followed_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    config = naming("data/codec", "data/tokens", "data/train", URL)
    remember(config)
    assert admit(config, "run", STRANGER) == (config, {})
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(ValueError, match=r"codec\.path"):
        admit(config, "run", STRANGER)  # the same words mean other places here
    (tmp_path / "there/data").symlink_to(tmp_path / "here/data")
    assert admit(config, "run", STRANGER) == (config, {})
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.parent.stat().st_mode) == 0o700
    lines = state.read_text().splitlines()
    monkeypatch.chdir(tmp_path / "here")
    remember(config)
    assert state.read_text().splitlines() == lines and len(lines) == len(set(lines)) == 5


def test_neighbours_and_parents_of_named_places_are_not_named() -> None:
    remember(naming("/data/codec", val="/data/val"))
    for codec in ("/data", "/data/codec2", "/data/codec/x", "/data/codec/../secret"):
        with pytest.raises(ValueError, match=r"codec\.path"):
            admit(naming(codec), "run", STRANGER)
    assert "data.val" in admit(naming("/data/codec", val="/data/val\n/etc"), "run", STRANGER)[1]


def test_a_line_cannot_be_smuggled_into_the_named_places(state: Path) -> None:
    remember(naming("/codec\n/etc/passwd"))
    assert "/etc/passwd" not in state.read_text().splitlines()


def test_a_runs_own_files_are_followed_but_not_links_out_of_it(tmp_path: Path) -> None:
    run = tmp_path / "here/run"
    step = run / "checkpoints/step_00000001"
    step.mkdir(parents=True)
    config = naming(**OWN)
    assert admit(config, run, STRANGER) == (config, {})
    with pytest.raises(ValueError, match=r"codec\.path"):
        admit(config, step, STRANGER)  # a folder named checkpoints does not make its parent a run
    save_config(TOY, run / "config.yaml")
    assert admit(config, step, STRANGER) == (config, {})
    (run / "val").symlink_to(tmp_path)
    assert admit(config, run, STRANGER)[1].keys() == {"data.val"}


def test_no_file_of_a_runs_own_folders_is_read_through_a_link_out_of_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("codec", "val/deep"):
        (run / name).mkdir(parents=True)
    save_config(TOY, run / "config.yaml")
    config = naming(str(run / "codec"), "toy_world", str(run / "val"), str(run / "val"))
    step = run / "checkpoints/step_00000001"
    step.mkdir(parents=True)
    assert admit(config, step, STRANGER) == (config, {})
    (run / "codec/here").symlink_to(run / "config.yaml")
    assert admit(config, step, STRANGER) == (config, {})

    (tmp_path / "private").write_text("private")
    (run / "val/deep/shard.00000.mds").symlink_to(tmp_path / "private")
    why = admit(config, step, STRANGER)[1]["data.val"]
    assert "shard.00000.mds is a link that leads out of" in why and "--trust-checkpoint" in why
    (run / "codec/model.safetensors").symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match=r"codec/model\.safetensors is a link that leads out of .* --codec"):
        admit(config, step, STRANGER)
    assert admit(config, step, Trust(checkpoint=True)) == (config, {})
    (run / "codec/model.safetensors").unlink()
    os.mkfifo(run / "codec/model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is neither a file nor a folder"):
        admit(config, step, STRANGER)


def test_the_user_names_places_or_vouches_for_the_checkpoint() -> None:
    strange = dataclasses.replace(naming("/a", "/b", "/c", URL), data=DataConfig("/c", URL, cache_dir="/d"))
    assert admit(strange, "run", Trust(checkpoint=True)) == (strange, {})
    parser = argparse.ArgumentParser()
    Trust.add_options(parser)
    words = ["--codec=mine", "--tokenizer=words", "--data=s3://own/shards"]
    trust = Trust.given(parser.parse_args(words))
    assert trust == Trust(codec_path="mine", tokenizer_path="words", data="s3://own/shards")
    assert trust.options() == words
    config, refused = admit(strange, "run", trust)
    assert (config.codec.path, config.tokenizer.path, refused) == ("mine", "words", {})
    assert (config.data.val, config.data.train) == ("s3://own/shards", "s3://own/shards")
    assert config.data.cache_dir == DataConfig("").cache_dir  # shards are never written where a stranger says
    assert not Trust.given(parser.parse_args(["--trust-checkpoint"])).codec


def test_built_in_names_need_no_word() -> None:
    config = dataclasses.replace(naming(**OWN), codec=CodecConfig("dct", "/ignored"))
    assert admit(config, "run", STRANGER) == (config, {})


@pytest.mark.parametrize("fault", ["link", "others", "folder", "pipe", "folder link"])
def test_a_file_that_is_not_the_users_own_is_neither_read_nor_written(
    fault: str, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = naming()
    target = tmp_path / "target"
    text = "/codec\n/train\n/val\n"
    state.parent.mkdir(parents=True, mode=0o700)
    match fault:
        case "link":
            target.write_text(text)
            state.symlink_to(target)
        case "others":
            state.write_text(text)
            state.chmod(0o666)
        case "folder":
            state.mkdir()
        case "pipe":
            os.mkfifo(state)
        case "folder link":
            state.parent.rmdir()
            target.mkdir(mode=0o700)
            (target / NAMED).write_text(text)
            state.parent.symlink_to(target)
    remember(dataclasses.replace(config, codec=CodecConfig("learned", "/new")))
    assert "is not remembered" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"codec\.path"):
        admit(config, "run", STRANGER)
    for file in (target, target / NAMED, state):
        if file.is_file():
            assert file.read_text() == text


def test_a_home_that_cannot_be_written_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember(naming())
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_relative_state_home_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would let the folder that one works in say what the user has named."""
    planted = tmp_path / "here/state/megatv" / NAMED
    planted.parent.mkdir(parents=True, mode=0o700)
    planted.write_text("/codec\n")
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match=r"codec\.path"):
        admit(naming(), "run", STRANGER)


@pytest.mark.slow
def test_training_remembers_what_its_config_names(python: Callable, tmp_path: Path, state: Path) -> None:
    save_config(naming("codec", "tokens", "train", URL), tmp_path / "run.yaml")
    done = python(
        "launch/train.py", "--config", tmp_path / "run.yaml", f"run.dir={tmp_path}/run", check=False
    )
    assert done.returncode == 2  # there is no such tokenizer
    assert URL in state.read_text().splitlines()
