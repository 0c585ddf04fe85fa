"""One run directory, one run at a time; what a dead run left is no obstacle."""

from __future__ import annotations

import copy
import dataclasses
import errno
import fcntl
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatv.checkpoint.convert import model_shapes
from megatv.checkpoint.rundir import open_run
from megatv.config import Config, load_config, save_config

HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("host elsewhere, process 7", file=lock, flush=True)
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    toy = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")
    return dataclasses.replace(toy, run=dataclasses.replace(toy.run, dir=str(tmp_path / "run")))


def test_a_second_run_is_told_who_holds_the_first(config: Config) -> None:
    first = open_run(config, "auto")
    for _ in range(2):  # the refusal itself leaves the holder's name alone
        with pytest.raises(ValueError, match="another run is using it") as caught:
            open_run(config, "auto")
        assert f"(host {socket.gethostname()}, process {os.getpid()})" in str(caught.value)
    first.lock.close()
    assert open_run(config, "auto").notes == []


def test_the_lock_of_a_killed_process_is_none(config: Config) -> None:
    file = Path(config.run.dir) / ".lock"
    file.parent.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match="host elsewhere, process 7"):
        open_run(config, "auto")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    opened = open_run(config, "auto")
    assert file.read_text() == f"host {socket.gethostname()}, process {os.getpid()}\n"
    opened.lock.close()


@pytest.mark.parametrize(
    "name", [".lock", "config.yaml.tmp", "metrics.jsonl", "hang/rank_0.txt", "checkpoints"]
)
def test_nothing_is_written_through_a_link_out_of_the_run(config: Config, tmp_path: Path, name: str) -> None:
    run, theirs = Path(config.run.dir), tmp_path / "theirs"
    theirs.write_text("precious")
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(theirs)
    with pytest.raises(
        ValueError, match=r"is a link that leads out of .*run.*, and training would write there"
    ):
        open_run(config, "auto")
    assert theirs.read_text() == "precious" and [p.name for p in run.iterdir()] == [name.split("/")[0]]


def test_wandbs_own_folder_is_no_link_out_of_the_run(config: Config, tmp_path: Path) -> None:
    run = Path(config.run.dir)
    run.mkdir()
    (tmp_path / "theirs").mkdir()
    (run / "wandb").symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"wandb: is a link that leads out of .*, and training would write"):
        open_run(config, "auto")
    assert not any((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize("name", [".lock", "config.yaml", "wandb_id", "hang/rank_0.txt"])
def test_a_pipe_in_a_run_is_not_waited_for(config: Config, name: str) -> None:
    pipe = Path(config.run.dir) / name
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=f"{name}: is neither a file nor a folder"):
        open_run(config, "auto")


def test_links_within_a_run_and_a_run_that_is_a_link_are_fine(config: Config, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    Path(config.run.dir).symlink_to(tmp_path / "scratch")
    (tmp_path / "scratch/latest.png").symlink_to("preview.png")
    wandb = tmp_path / "scratch/wandb"
    wandb.mkdir()
    (wandb / "latest-run").symlink_to("/nowhere/run/wandb/run-1")  # as wandb leaves it when a run has moved
    open_run(config, "auto").lock.close()


def test_a_strange_record_in_a_run_is_one_short_sentence(config: Config) -> None:
    run = Path(config.run.dir)
    run.mkdir()
    save_config(config, run / "config.yaml")
    text = (run / "config.yaml").read_text().replace("path: toy_world", f"path: {'x' * 100_000}")
    (run / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.path is x+ there and toy_world now") as caught:
        open_run(config, "auto")
    assert len(str(caught.value)) < 600


def test_a_file_system_without_locks_is_a_note(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert "cannot be locked (No locks available)" in open_run(config, "auto").notes[0]


FREE = {"parallel", "checkpoint", "log", "profile", "health", "sample", "attention", "run.dir"} | {
    f"data.{key}" for key in ("max_bad_samples", "workers", "cache_dir", "cache_bytes")
}
"""What a resumed run may change, whole sections and single keys."""


def leaves(tree: object, prefix: str = "") -> Iterator[tuple[object, str, str]]:
    """(section, field, `section.field`) of every value of a config."""
    for field in dataclasses.fields(tree):  # type: ignore[arg-type]
        value = getattr(tree, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield tree, field.name, f"{prefix}{field.name}"


def other(value: object) -> object:
    """A value of like kind that is not equal."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case tuple():
            return (*value[:-1], other(value[-1]))
        case _:
            return 1


NAMES = [name for *_, name in leaves(load_config(Path(__file__).parents[2] / "configs/toy_world.yaml"))]


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_kept_on_resume_or_free(name: str, config: Config, tmp_path: Path) -> None:
    open_run(config, "auto").lock.close()
    changed = copy.deepcopy(config)
    ((section, field),) = ((s, f) for s, f, n in leaves(changed) if n == name)
    object.__setattr__(section, field, other(getattr(section, field)))  # whether it is valid is no question
    if name in FREE or name.partition(".")[0] in FREE:
        object.__setattr__(changed.run, "dir", config.run.dir)
        open_run(changed, "auto").lock.close()
    else:
        with pytest.raises(ValueError, match=re.escape(f"{name} is ")):
            open_run(changed, "auto")


def test_a_checkpoint_more_must_find_room(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, both moments and the average in float32. A refused start leaves no config in the way."""
    weights = sum(math.prod(shape) for shape in model_shapes(config).values())
    for kinds, ema in ((3, None), (4, 0.9)):
        asked = dataclasses.replace(config, optim=dataclasses.replace(config.optim, ema=ema))
        for free, enough in ((4 * kinds * weights - 1, False), (4 * kinds * weights, True)):
            monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
            if enough:
                open_run(asked, "auto").lock.close()
                (Path(config.run.dir) / "config.yaml").unlink()
            else:
                with pytest.raises(ValueError, match=r"has .* GB free, and a checkpoint takes .* GB beside"):
                    open_run(asked, "auto")
                assert not (Path(config.run.dir) / "config.yaml").exists()


def test_checkpoints_that_are_no_folder_are_found_at_the_start(config: Config) -> None:
    Path(config.run.dir).mkdir()
    (Path(config.run.dir) / "checkpoints").write_text("")
    with pytest.raises(ValueError, match=r"checkpoints: is no folder"):
        open_run(config, "auto")


def test_a_config_that_cannot_be_written_is_found_at_the_start(config: Config) -> None:
    (Path(config.run.dir) / "config.yaml.tmp").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"config\.yaml\.tmp cannot be written \(Is a directory\)"):
        open_run(config, "auto")
