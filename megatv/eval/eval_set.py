"""The videos that the paper's people judged, as data: where each starts, its words and seed, and the studies.

TV2TV section 3.3 (CS:GO): every model makes 100 short videos and 40 long ones and, where it has words to
change, 150 for the question whether it did what it was told. Section 4.2.2 (sports): five videos for each of
30 pictures and prompts. Pure functions; `tools/make_eval_set.py` reads and writes the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from megatv.config import TEMPORAL_FACTOR
from megatv.data.csgo import META_PROMPT
from megatv.data.csgo_actions import GameAction, chunk_words
from megatv.eval.human.study import Study, System
from megatv.eval.human.tasks import draw
from megatv.sample.request import Mode

ARMS: dict[Mode, str] = {"tv2tv": "TV2TV", "t2v": "T2V", "think2v": "Think2V"}
"""The three models of one data set, by `sequence.mode`, and their names in the paper."""
BASELINES: tuple[Mode, ...] = ("t2v", "think2v")
SHORT, LONG, STEERED = 100, 40, 150
"""Videos of a model (section 3.3): of about six seconds, of 64 seconds, and with an intervention or none."""
LONG_SECONDS = 64.0
TIMES = {"1s": 0.8125, "3s": 2.8125}
"""Seconds of the interventions, by the paper's short names for them. Both are starts of chunks."""
ACTIONS = {
    "backward": (GameAction(keys=("s",)), "The player moves backwards."),
    "left-click": (GameAction(left=1), "The player fires the weapon."),
    "reload": (GameAction(keys=("r",)), "The player reloads the weapon."),
    "jump": (GameAction(keys=("space",)), "The player jumps."),
}
"""The interventions: what the controller does in every frame of the chunk, and the caption people read."""
STARTS = STEERED // ((len(ACTIONS) + 1) * len(TIMES))
"""Pictures that the steered videos start from: 15, each with four actions and a control at both times."""
PROMPTS, VIDEOS_A_PROMPT = 30, 5
"""Of the sports set (section 4.2.2)."""
SETS_OF: dict[Mode, tuple[str, ...]] = {
    "tv2tv": ("short", "long", "steered"),
    "t2v": ("short", "long"),
    "think2v": ("short", "long", "steered"),
}
"""The sets of CS:GO that an arm makes: T2V has no words to change."""


@dataclass(frozen=True)
class Item:
    """One video that every arm makes alike.

    name      of the video, the same in all arms
    start     of the picture that it starts from
    seed      of all its randomness
    seconds   None: as long as a training example
    action    what people are asked about ("" where they are not), at `time` seconds; one of ACTIONS
    control   nobody intervenes, and "no" is the right answer
    """

    name: str
    start: str
    prompt: str
    seed: int
    seconds: float | None = None
    action: str = ""
    time: float = 0.0
    control: bool = False


def csgo_items(seed: int) -> dict[str, list[Item]]:
    """The items of the sets `short`, `long` and `steered`. No two sets share a start.

    Steered videos of one start and time have one seed, so an intervention and its control are the same video
    up to `time`, and what differs afterwards is its doing. The paper says how many videos there are (150 a
    model, section 3.3), not how they are divided: here 120 are interventions, 15 of each action and time, and
    30 are controls. A control is asked about one of the four actions, which take turns.
    """
    items = {
        "short": [_item(f"short-{i:03}", seed) for i in range(SHORT)],
        "long": [_item(f"long-{i:03}", seed, seconds=LONG_SECONDS) for i in range(LONG)],
        "steered": [],
    }
    for number, (at, (label, time)) in product(range(STARTS), enumerate(TIMES.items())):
        start = f"steered-{number:02}"
        first = Item("", start, META_PROMPT, _seed(seed, start, label), time=time)
        asked = list(ACTIONS)[(number + 2 * at) % len(ACTIONS)]
        items["steered"] += [
            *(replace(first, name=f"{start}-{label}-{name}", action=name) for name in ACTIONS),
            replace(first, name=f"{start}-{label}-no-op", action=asked, control=True),
        ]
    return items


def sports_items(prompts: list[str], seed: int) -> list[Item]:
    """Five videos for each of the prompts, whose pictures are called `start-00`, `start-01`, ..."""
    return [
        Item(f"{start}-{take}", start, prompt, _seed(seed, start, str(take)))
        for start, prompt in zip(start_names(len(prompts)), prompts, strict=True)
        for take in range(VIDEOS_A_PROMPT)
    ]


def start_names(count: int) -> list[str]:
    """The names of the sports set's pictures."""
    return [f"start-{number:02}" for number in range(count)]


def batch_line(item: Item, arm: Mode, pictures: Path) -> dict[str, Any]:
    """The line of `python -m megatv.sample --batch` that makes an item with an arm."""
    line: dict[str, Any] = {"name": item.name, "image": str(pictures / f"{item.start}.png")}
    line |= {"prompt": item.prompt, "seed": item.seed, "mode": arm}
    if item.seconds is not None:
        line["seconds"] = item.seconds
    if item.action and not item.control:
        action, _ = ACTIONS[item.action]
        line["interventions"] = [[item.time, chunk_words([action] * TEMPORAL_FACTOR)]]
    return line


def manifest_line(item: Item, folder: str) -> dict[str, Any]:
    """The line of a pointwise study's manifest about an item whose videos the sampler left in `folder`."""
    return {
        "name": item.name,
        "video": f"{folder}/{item.name}/video.mp4",
        "prompt": item.prompt,
        "caption": ACTIONS[item.action][1],
        "start": item.time,
        "action": item.action,
        "control": item.control,
    }


def manifest_of(arm: Mode, out: Path) -> Path:
    """The manifest of an arm's steered videos, which lie in the folder `steered` beside it."""
    return out / arm / "steered_videos.jsonl"


def csgo_studies(out: Path) -> dict[str, Study]:
    """The studies of section 3.3 over the videos in out/ARM/SET, by name.

    280 pairs are judged by picture quality alone (appendix A.2), TV2TV beside each baseline; 300 steered
    videos by correctness and quality. One person judges each: the paper counts as many tasks as pairs.
    """
    studies = {
        f"csgo_{length}_{arm}": _pairwise(out, f"csgo_{length}_{arm}", arm, length, ("quality",), "game")
        for length, arm in product(("short", "long"), BASELINES)
    }
    speaking = [arm for arm, names in SETS_OF.items() if "steered" in names]
    steered = tuple(System(ARMS[arm], str(manifest_of(arm, out))) for arm in speaking)
    database = str(out / "answers" / "csgo_interventions.sqlite")
    studies["csgo_interventions"] = Study(
        "pointwise", steered, database, title="Did it happen?", raters_per_item=1
    )
    return studies


def sports_studies(out: Path) -> dict[str, Study]:
    """The studies of section 4.2.2 over the videos in out/ARM/videos, by name: TV2TV beside each baseline.

    150 pairs each, four questions (appendix B.4), without the hints for games.
    """
    criteria = ("alignment", "fidelity", "quality", "overall")
    return {
        f"sports_{arm}": _pairwise(out, f"sports_{arm}", arm, "videos", criteria, "none") for arm in BASELINES
    }


def frame_order(frames: Mapping[str, int], seed: int) -> Iterator[tuple[str, int]]:
    """All (episode, frame), each once. frames: how many each episode has, by name.

    Episodes take turns in an order that `seed` shuffles, and so do the frames of each: the first of them are
    spread over as many episodes as there are.
    """
    names = sorted(frames, key=lambda name: (draw(seed, "episode", name), name))
    orders = {
        name: np.random.default_rng(draw(seed, "frame", name)).permutation(frames[name]).tolist()
        for name in names
    }
    for turn in range(max(frames.values(), default=0)):
        yield from ((name, orders[name][turn]) for name in names if turn < frames[name])


def _item(name: str, seed: int, seconds: float | None = None) -> Item:
    return Item(name, name, META_PROMPT, _seed(seed, name), seconds)


def _seed(seed: int, *parts: str) -> int:
    """A seed below 2^31 that follows from the set's own and from what the video is."""
    return draw(seed, *parts) >> 33


def _pairwise(out: Path, name: str, arm: Mode, folder: str, criteria: tuple[Any, ...], hints: Any) -> Study:
    return Study(
        "pairwise",
        tuple(System(ARMS[one], str(out / one / folder)) for one in ("tv2tv", arm)),
        str(out / "answers" / f"{name}.sqlite"),
        criteria=criteria,
        raters_per_item=1,
        hints=hints,
    )
