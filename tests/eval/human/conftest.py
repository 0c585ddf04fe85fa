"""Two systems' videos of the toy world, studies over them, and a desk that serves one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from megatv.data.toy_world import META_PROMPT, simulate
from megatv.data.video import write_video
from megatv.eval.human.desk import Desk
from megatv.eval.human.run import open_desk
from megatv.eval.human.study import Study, System

NAMES = ("duel-0", "duel-1", "duel-2", "duel-3")


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `ours` and `theirs` (with ghosts), each of four videos and their prompts, and `ours.jsonl`."""
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for number, name in enumerate(NAMES):
        frames = simulate(number).frames.repeat(4, 1).repeat(4, 2)
        ghosts = (frames / 2 + frames[np.maximum(np.arange(len(frames)) - 6, 0)] / 2).astype(np.uint8)
        for system, shown in (("ours", frames), ("theirs", ghosts)):
            (folder / system).mkdir(exist_ok=True)
            write_video(folder / system / f"{name}.mp4", shown)
            (folder / system / f"{name}.txt").write_text(META_PROMPT)
        line = {
            "name": name,
            "video": f"ours/{name}.mp4",
            "prompt": META_PROMPT,
            "caption": "The player jumps.",
        }
        line |= {"caption": "The player jumps.", "start": 0.8125, "action": "jump", "control": number == 3}
        lines.append(json.dumps(line) + "\n")
    (folder / "ours.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def make_study(videos: Path, tmp_path: Path) -> Callable[..., Study]:
    """make_study(kind, **changes): a study whose answers lie in this test's folder."""

    def make(kind: str = "pairwise", **changes: object) -> Study:
        pair = (System("ours", str(videos / "ours")), System("theirs", str(videos / "theirs")))
        alone = (System("ours", str(videos / "ours.jsonl")),)
        base = {
            "systems": pair if kind == "pairwise" else alone,
            "checks": 1,
            "raters_per_item": 2,
            "joins": "open",
        }
        base["database"] = str(tmp_path / "answers.sqlite")
        return Study(kind=kind, **{**base, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def desk(make_study: Callable[..., Study]) -> Iterator[Callable[..., Desk]]:
    """desk(kind, **changes): an open desk, closed with the test."""
    opened: list[Desk] = []

    def make(kind: str = "pairwise", **changes: object) -> Desk:
        opened.append(open_desk(make_study(kind, **{"joins_per_hour": 99, **changes})))
        return opened[-1]

    yield make
    for one in opened:
        one.answers.close()
