"""Whether a job comes back is decided by the newest checkpoint, and no run comes back for ever."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "launch/slurm/what_next.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("what_next", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ends(script, tmp_path: Path):
    """ends(step, exit code): the run of 10 steps ends with this newest checkpoint; what is next?"""

    def decide(step: int, exit_code: int) -> str:
        if step:
            (tmp_path / f"run/checkpoints/step_{step:08d}").mkdir(parents=True, exist_ok=True)
        config = SimpleNamespace(run=SimpleNamespace(dir=str(tmp_path / "run"), steps=10))
        code, sentence = script.what_next(config, exit_code)
        assert f"step {step} of 10 is saved" in sentence
        return {0: "finished", 75: "come back", 1: "look"}[code]

    return decide


@pytest.mark.parametrize("exit_code", [0, 143])
def test_finished_is_what_has_its_last_checkpoint(ends, exit_code: int) -> None:
    """A launcher that is killed after the last save has finished all the same."""
    assert ends(10, exit_code) == "finished"


@pytest.mark.parametrize("exit_code", [0, 1, 124, 137])
def test_preempted_crashed_hung_and_killed_come_back(ends, exit_code: int) -> None:
    assert ends(4, exit_code) == "come back"


def test_bad_input_does_not(ends) -> None:
    assert ends(4, 2) == "look"


def test_no_progress_three_times_is_the_end(ends) -> None:
    assert [ends(0, 137), ends(0, 137), ends(4, 137)] == ["come back"] * 3
    assert [ends(4, 137), ends(4, 0), ends(4, 137)] == ["come back", "look", "look"]
    assert ends(6, 137) == "come back"


def test_a_half_written_checkpoint_is_none(ends, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints/step_00000010.tmp").mkdir(parents=True)
    assert ends(4, 0) == "come back"


def test_the_command_line_is_the_trainings_own(python, config_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [SCRIPT, "--exit-code", 0, "--config", config_file, f"run.dir={run_dir}"]
    done = python(*words, "run.steps=7", "--resume", "auto", check=False)
    assert done.returncode == 75
    assert f"[slurm] {run_dir}: step 0 of 7 is saved; the run stopped and goes back" in done.stdout


@pytest.mark.parametrize("text", ["[]", '{"step": 4}', '{"step": 4, "ends": "x"}', '{"step": 4, "ends'])
def test_a_count_that_is_none_begins_anew(ends, tmp_path: Path, text: str) -> None:
    assert ends(4, 137) == "come back"
    (tmp_path / "run/ends.json").write_text(text)
    assert [ends(4, 137), ends(4, 137), ends(4, 137)] == ["come back", "come back", "look"]


def test_a_count_in_the_place_of_a_pipe_or_link_is_not_read_or_written_through(ends, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run/ends.json")
    assert ends(4, 137) == "come back"
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run/ends.json").unlink()
    (tmp_path / "run/ends.json").symlink_to(tmp_path / "mine")
    assert ends(4, 137) == "come back"
    assert (tmp_path / "mine").read_text() == "mine"
