"""Threads that wait soon sleep, so that a busy machine's cores do what others want of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatv.threads import WAITING, spin_briefly

ROOT = Path(__file__).parents[1]


def test_threads_soon_sleep_and_their_number_stays() -> None:
    env = {"OMP_NUM_THREADS": "3"}
    spin_briefly(env)
    assert env == {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "2000"}


@pytest.mark.parametrize("name", WAITING)
def test_what_the_user_said_stands(name: str) -> None:
    env = {name: "active"}
    spin_briefly(env)
    assert env == {name: "active"}


@pytest.mark.parametrize(("said", "rounds"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_openmp_hears_of_it_when_a_tool_starts(said: dict[str, str], rounds: str, tmp_path: Path) -> None:
    """OpenMP shows its settings when torch loads it: what a tool imported before must have made them."""
    env = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [
        sys.executable,
        ROOT / "tools/train_codec.py",
        "--videos",
        tmp_path,
        "--out",
        tmp_path / "codec",
    ]
    env |= {"OMP_DISPLAY_ENV": "verbose"} | said
    ran = subprocess.run(command, env=env, capture_output=True, text=True)
    assert "no videos" in ran.stderr
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", ran.stderr) == [rounds]
