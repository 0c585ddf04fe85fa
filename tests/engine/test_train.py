"""When a run logs, validates, saves and previews: after every so many steps, counted from 1."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from megatv.log import spare
from megatv.train import Trainer, _due


def test_what_is_due_after_every_third_step_and_what_is_never() -> None:
    """Runs of tests save after every step, where a count that is off by one does not show."""
    assert [step for step in range(1, 10) if _due(step, 3)] == [3, 6, 9]
    assert not any(_due(step, 0) for step in range(10))
    assert all(_due(step, 1) for step in range(1, 10))


def test_a_preview_that_fails_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megatv.sample.preview.preview", fail)
    model = nn.Linear(1, 1)
    trainer: Any = SimpleNamespace(
        mesh=SimpleNamespace(rank=0),
        engine=SimpleNamespace(model=model),
        shards=SimpleNamespace(stats=None),
        **dict.fromkeys(("config", "tokenizer", "trust_codec")),
        run_dir=tmp_path,
        done=3,
    )
    Trainer._sample_preview(trainer)
    assert model.training and "no preview: OSError: [Errno 28] No space left" in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError("disk"), ValueError("a\nb"), RuntimeError("out of memory")])
def test_what_can_be_spared_is_told_in_a_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with spare("no picture"):
        raise error
    assert capsys.readouterr().out.count("\n") == 1
