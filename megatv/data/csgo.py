"""CS:GO episodes as clips with their words, for TV2TV, Think2V and T2V alike (TV2TV section 3.2).

An episode is cut into consecutive clips of whole groups, and every chunk gets one caption with a line for
each of its frames: one for the first chunk of a 49-frame group, four for the others. Whether the captions
stand between the chunks, before the video or nowhere is up to `sequence.mode`, not to the shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash
from PIL import Image

from megatv.config import FPS
from megatv.data.csgo_actions import GameAction, chunk_words
from megatv.data.csgo_episode import Episode
from megatv.data.sequence import chunk_start_seconds
from megatv.data.video import cut, whole_latents
from megatv.regular_file import read_bytes
from megatv.types import Caption
from megatv.untrusted import inside, text_lines

MAX_LIST_BYTES = 1 << 26
META_PROMPT = (
    "A brief gameplay clip from the iconic Dust 2 map, showcasing classic Counter-Strike tactical combat in "
    "the legendary desert setting."
)
"""The prompt of the paper's evaluation (section 3.3). That training clips carry it too is our choice."""
HELD_OUT_ONE_IN = 11
"""Without a list, one episode in so many is held out: as many as diamond's `test_split.txt` (500 of 5503)."""


@dataclass(frozen=True)
class GameClip:
    """A clip of an episode. first_frame: its place there; frames uint8 [F, H, W, 3]; words by chunk."""

    first_frame: int
    frames: np.ndarray
    captions: tuple[Caption, ...]


def find_episodes(paths: Iterable[Path]) -> list[Path]:
    """All episodes among files and folders (with their subfolders), by name.

    Raises ValueError when a path does not exist, a folder has none or a link that leads out of it, or two
    episodes share a name: clips are called after it.
    """
    found: dict[str, Path] = {}
    for path in paths:
        files = sorted(path.rglob("*.hdf5")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: holds no .hdf5 files; unpack the recordings' tar files there")
        for file in files:
            if file is not path:
                inside(path, file.relative_to(path).as_posix())
            if not file.is_file():
                raise ValueError(f"{file}: does not exist; name an episode (.hdf5) or a folder of them")
            other = found.setdefault(file.stem, file)
            if other.resolve() != file.resolve():
                raise ValueError(f"{file}: has the same name as {other}; rename one or leave it out")
    return [found[name] for name in sorted(found)]


def split_episodes(episodes: list[Path], split: str, held_out: Path | None = None) -> list[Path]:
    """The episodes of `train` or `val`: by the hash of their names, or `val` is what `held_out` has.

    An episode keeps its side whatever else lies in the folder. `held_out` is a folder of episodes, such as
    `dataset_dm_expert_dust2` (the expert play that TV2TV is evaluated on), or a list with one file name a
    line, as diamond's `test_split.txt`; either may have episodes that are not here. Raises ValueError when
    the list cannot be read, a line is no such name, or nothing is left.
    """
    if held_out and held_out.is_dir():
        names = {episode.name for episode in find_episodes([held_out])}
    elif held_out:
        names = _names(held_out)
    else:
        names = {e.name for e in episodes if xxhash.xxh64_intdigest(e.stem) % HELD_OUT_ONE_IN == 0}
    chosen = [episode for episode in episodes if (episode.name in names) == (split == "val")]
    if not chosen:
        rule = (
            str(held_out) if held_out else f"the hash of their names (one in {HELD_OUT_ONE_IN} is held out)"
        )
        raise ValueError(
            f"none of {len(episodes)} episodes is left for the split '{split}': {rule} puts them all into "
            "the other one; name more episodes, or list the held-out ones with --held-out"
        )
    return chosen


def frames_with_actions(episode: Episode, action_lag: int) -> range:
    """The frames whose action lies in the episode too, when frame f is described by action f - action_lag."""
    frames = range(max(0, action_lag), episode.frames + min(0, action_lag))
    if not frames:
        raise ValueError(
            f"{episode.path}: has {episode.frames} frames, and an action lag of {action_lag} leaves none of "
            "them; choose a smaller --action-lag"
        )
    return frames


def check_episode(path: Path, *, length: int, action_lag: int = 0) -> int:
    """How many clips of `length` frames the episode gives, after all checks that need no picture."""
    with Episode(path) as episode:
        usable = frames_with_actions(episode, action_lag)
        episode.actions()
    return sum(1 for _ in cut((np.empty(0) for _ in usable), length))


def episode_clips(
    path: Path, *, width: int, height: int, length: int, action_lag: int = 0
) -> Iterator[GameClip]:
    """The clips of an episode in order of time: of `length` frames, only the last may be shorter (`cut`).

    Pictures are resized to width x height without letterboxing (280x150 becomes 320x192 in the paper).

    Frame f is described by action f - action_lag. The recordings' actions are inferred from the change into
    the frame of the same number (their `dm_infer_actions.py`), so the lag is 0; diamond gives its model
    action f - 1 for frame f, a lag of 1. `tools/check_action_lag.py` measures it.
    """
    with Episode(path) as episode:
        usable = frames_with_actions(episode, action_lag)
        pictures = (resize(episode.picture(frame), width, height) for frame in usable)
        first = usable.start
        for frames, _ in cut(pictures, length):
            numbers = range(first - action_lag, first - action_lag + len(frames))
            captions = caption_actions([episode.action(number) for number in numbers])
            yield GameClip(first, frames, captions)
            first += len(frames)


def caption_actions(actions: list[GameAction]) -> tuple[Caption, ...]:
    """One caption a chunk from the actions of a clip's frames, for the chunks that they fill."""
    starts = [chunk_start_seconds(chunk) for chunk in range(whole_latents(len(actions)) + 1)]
    return tuple(
        Caption(start, chunk_words(actions[round(start * FPS) : round(end * FPS)]))
        for start, end in pairwise(starts)
    )


def resize(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3], bicubic (over the area of a pixel when it shrinks), without letterboxing."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def _names(path: Path) -> set[str]:
    """The episodes that a list holds out. A line that can match none would let its episode into training."""
    try:
        text = read_bytes(path, MAX_LIST_BYTES, links=True).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give one file name a line") from None
    names = set()
    for number, line in enumerate(map(str.strip, text_lines(text)), 1):
        if line and (Path(line).suffix != ".hdf5" or Path(line).name != line):
            raise ValueError(
                f"{path} line {number}: {line[:80]!r} is not the name of an episode, such as a_1.hdf5"
            )
        names.add(line)
    return names - {""}
