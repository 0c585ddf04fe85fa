"""Checkpoints beside training: what is written is the copy, and no failure costs more than the one save."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatv.checkpoint import store
from megatv.config import load_config
from megatv.parallel.mesh import Mesh
from megatv.saver import Saver

ROOT = Path(__file__).parents[2]


class Toy:
    """What a saver asks of an engine, on weights that a test changes."""

    kinds = ("model", "exp_avg")
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.shapes = {"a": (3,), "b": (2, 2)}
        self.weights = [torch.zeros(shape) for shape in self.shapes.values()]

    def full(self, kind: str) -> Iterator[torch.Tensor]:
        yield from self.weights

    def step(self) -> None:
        """Every weight grows by one, in place."""
        for weight in self.weights:
            weight += 1


@pytest.fixture
def engine() -> Toy:
    return Toy()


@pytest.fixture
def saver(engine: Toy, tmp_path: Path) -> Iterator[Saver]:
    config = load_config(ROOT / "configs/toy_world.yaml", [f"run.dir={tmp_path}", "checkpoint.keep=2"])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Saver(config, Mesh(config.parallel), engine)  # type: ignore[arg-type]
    for thread in threading.enumerate():
        if (
            thread.name == "megatv-saver"
        ):  # a save that was left alone: torch aborts a process that ends in it
            thread.join(60)
    dist.destroy_process_group()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Closed: no file is written before a test sets it."""
    event = threading.Event()
    write = store.write_tensors

    def waiting(*arguments: object) -> dict:
        assert event.wait(60)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "write_tensors", waiting)
    return event


def newest(run_dir: Path) -> str | None:
    path, _ = store.latest(run_dir)
    return None if path is None else path.name


def test_training_goes_on_and_the_copy_is_written(
    saver: Saver, engine: Toy, gate: threading.Event, tmp_path: Path
) -> None:
    engine.step()
    saver.save(1, {"step": 1})
    for _ in range(3):
        engine.step()
        saver.poll()
    assert newest(tmp_path) is None
    gate.set()
    saver.finish()
    path, _ = store.latest(tmp_path)
    assert path is not None
    for kind in engine.kinds:
        tensors = store.Tensors(path, kind)
        assert all(torch.equal(tensors[n], torch.ones(s)) for n, s in engine.shapes.items())


def test_polling_alone_brings_a_save_to_its_end(saver: Saver, tmp_path: Path) -> None:
    saver.save(1, {"step": 1})
    while newest(tmp_path) is None:
        saver.poll()


def test_a_second_save_waits_for_the_first(
    saver: Saver, engine: Toy, gate: threading.Event, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver.save(1, {"step": 1})
    engine.step()
    threading.Timer(1.2, gate.set).start()
    saver.save(2, {"step": 2})
    assert newest(tmp_path) == "step_00000001"
    assert "until the checkpoint of step 1 was written" in capsys.readouterr().out
    with saver:
        pass
    path, _ = store.latest(tmp_path)
    assert path is not None and path.name == "step_00000002"
    assert torch.equal(store.Tensors(path, "model")["a"], torch.ones(3))


def test_only_the_newest_are_kept(saver: Saver, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        saver.save(step, {"step": step})
    saver.finish()
    assert [path.name for path in store.steps(tmp_path)] == ["step_00000002", "step_00000003"]


@pytest.mark.parametrize("broken", ["write_tensors", "commit", "begin"])
def test_an_error_reaches_the_loop_and_costs_one_save(
    broken: str, saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver.save(1, {"step": 1})
    saver.finish()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, broken, fail)
        with pytest.raises(ValueError, match=r"step_00000002: the checkpoint could not .*No space"):
            saver.save(2, {"step": 2})
            while True:
                saver.poll()
    assert newest(tmp_path) == "step_00000001"
    saver.save(2, {"step": 2})
    saver.finish()
    assert newest(tmp_path) == "step_00000002"


@pytest.mark.parametrize(("error", "kept"), [(ValueError, True), (RuntimeError, False)])
def test_only_an_error_that_all_ranks_raise_waits_for_the_save(
    error: type[Exception], kept: bool, saver: Saver, gate: threading.Event, tmp_path: Path
) -> None:
    with pytest.raises(error), saver:
        saver.save(1, {"step": 1})
        threading.Timer(0.2, gate.set).start()
        raise error
    assert (newest(tmp_path) is not None) == kept
