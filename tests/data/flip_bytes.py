"""Reads damaged copies of an episode: flip_bytes.py WHOLE COPY COUNT. Prints how many were read and refused.

Bytes of long equal runs, which are pixels, stay as they are: what describes them is of interest.
"""

import itertools
import random
import sys
from pathlib import Path

import numpy as np

from megatv.data.csgo_episode_child import Recording


def main(whole: Path, copy: Path, count: int) -> None:
    """The same damage in every call."""
    data = np.frombuffer(whole.read_bytes(), np.uint8)
    runs = [0, *(np.flatnonzero(np.diff(data)) + 1), len(data)]
    places = [k for a, b in itertools.pairwise(runs) for k in range(a, b) if b - a < 2000]
    seen = {"read": 0, "refused": 0}
    for seed in range(count):
        chance, flipped = random.Random(seed), data.copy()
        for place in chance.sample(places, chance.choice((1, 1, 2, 4, 8))):
            flipped[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        copy.write_bytes(flipped.tobytes())
        try:
            recording = Recording(str(copy))
            for frame in range(recording.frames):
                recording.array(f"frame_{frame}_x")
                recording.array(f"frame_{frame}_y")
            seen["read"] += 1
        except ValueError as error:
            assert "\n" not in str(error), error
            seen["refused"] += 1
    print(*seen.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
