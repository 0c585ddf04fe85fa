"""wandb: one run over all restarts of a run directory, offline without a key. No network in any of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatv.log import RunLog

wandb = pytest.importorskip("wandb")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What `wandb.init` was asked for."""
    asked: list[dict] = []
    monkeypatch.setattr(wandb, "init", lambda **words: asked.append(words))
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
