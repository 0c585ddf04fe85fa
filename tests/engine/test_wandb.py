"""wandb: one run over all restarts of a run directory, offline without a key. No network in any of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatv.log import RunLog
from megatv.wandb_record import WandbRecord

wandb = pytest.importorskip("wandb")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What `wandb.init` was asked for."""
    asked: list[dict] = []
    monkeypatch.setattr(wandb, "init", lambda **words: asked.append(words) or Run())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return asked


def start(run_dir: Path) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    RunLog(run_dir, resume_step=0, total_steps=1, wandb_config={}).close()


def test_a_restart_goes_on_with_the_same_run(begun: list[dict], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    start(tmp_path / "a/run")
    start(tmp_path / "a/run")
    start(tmp_path / "b/run")  # another run of the same name
    one, again, other = (words["id"] for words in begun)
    assert one == again != other
    assert all(words["resume"] == "allow" and words["name"] == "run" for words in begun)


@pytest.mark.parametrize(
    ("key", "told", "mode"),
    [(False, None, "offline"), (True, None, None), (False, "online", None), (True, "offline", None)],
)
def test_offline_without_a_key_unless_told(
    key: bool, told: str | None, mode: str | None, begun: list[dict], tmp_path: Path, monkeypatch
) -> None:
    """None leaves it to wandb, which reads WANDB_MODE and is online otherwise."""
    monkeypatch.setattr(wandb, "login", lambda prompt: key)
    if told:
        monkeypatch.setenv("WANDB_MODE", told)
    start(tmp_path)
    assert begun[0]["mode"] == mode


class Run:
    """A run of wandb that fails in one of its calls."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.taken = fails, []

    def log(self, values: dict, step: int) -> None:
        if self.fails == "log":
            raise ConnectionError("gone\nfor good")
        self.taken.append((step, values))

    def finish(self) -> None:
        if self.fails == "finish":
            raise TimeoutError("too slow")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_without_network_the_record_is_kept_offline(
    online: None, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, modes = Run(), []

    def init(**words: object) -> Run:
        modes.append(words["mode"])
        if words["mode"] != "offline":
            raise wandb.errors.CommError("no network")
        return run

    monkeypatch.setattr(wandb, "init", init)
    record = WandbRecord(tmp_path, {})
    record.write({"step": 3, "loss": 1.0})
    record.close()
    assert modes == [None, "offline"] and run.taken == [(3, {"loss": 1.0})]
    assert "wandb cannot start (CommError: no network); training goes on" in capsys.readouterr().out


@pytest.mark.parametrize("fails", ["log", "finish"])
def test_what_fails_later_is_said_once(
    fails: str, online: None, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **words: Run(fails))
    record = WandbRecord(tmp_path, {})
    for step in (1, 2):
        record.write({"step": step, "loss": 1.0})
    record.close()
    told = capsys.readouterr().out
    assert told.count("wandb cannot") == 1 and told.count("\n") == 1


def test_a_mode_that_wandb_does_not_know_ends_nothing(
    tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "of-line")
    record = WandbRecord(tmp_path, {})
    record.write({"step": 1, "loss": 1.0})
    record.close()
    assert "Input should be 'online', 'offline'" in capsys.readouterr().out


@pytest.mark.parametrize("held", ["", "a/b", "x" * 65, "a b", "\0", "\udcff"])
def test_an_id_is_checked_before_it_is_used(
    held: str, begun: list[dict], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    (tmp_path / "wandb_id").write_bytes(held.encode(errors="surrogateescape"))
    start(tmp_path)
    start(tmp_path)
    one, again = (words["id"] for words in begun)
    assert one == again != held and len(one) == 8
