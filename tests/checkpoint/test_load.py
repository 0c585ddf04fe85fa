"""Which checkpoint of a run is opened, and what the user is told of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megatv import free_memory
from megatv.checkpoint.load import find_checkpoint, load_model
from megatv.config import load_config


def test_a_damaged_newer_checkpoint_is_passed_over_with_a_line(
    tmp_path: Path, save_checkpoint: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")
    older, newer = (save_checkpoint(tmp_path / f"checkpoints/step_{n:08}", config) for n in (1, 2))
    assert find_checkpoint(tmp_path)[0] == newer and not capsys.readouterr().out
    (newer / "model.safetensors").write_bytes(b"")
    assert find_checkpoint(tmp_path)[0] == older
    assert capsys.readouterr().out.startswith(
        f"checkpoint passed over: {newer / 'model.safetensors'}: 0 bytes"
    )


def test_a_run_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: does not exist; give a run"):
        find_checkpoint(tmp_path / "nowhere")


def test_weights_that_do_not_fit_into_memory_are_refused_before_they_are_read(
    tmp_path: Path, save_checkpoint: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint with holes takes its author nothing."""
    config = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml", ["model.layers=1"])
    found = find_checkpoint(save_checkpoint(tmp_path / "step_00000001", config))
    model, _ = load_model(*found)
    need = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    monkeypatch.setattr(free_memory, "available_bytes", lambda device: need)
    load_model(*found)
    monkeypatch.setattr(free_memory, "available_bytes", lambda device: need - 1)
    with pytest.raises(
        ValueError, match=r"the model's weights take .* GiB of memory on cpu, and .* are free"
    ):
        load_model(*found)
