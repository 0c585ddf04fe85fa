"""When chunks start, and which window makes them."""

import math
from itertools import pairwise

import pytest

from megatv.sample import Request
from megatv.sample.timeline import MAX_SECONDS, chunk_starts, chunks_within, frames_of, plan_windows

PAPER_TIMES = [0.8125, 2.8125, 0.56, 2.56, 4.63, 4.88, 1.56, 3.13, 5.13]
"""Times printed in TV2TV's examples; all are starts of latents only if groups restart at frame 49."""


def test_papers_times_are_chunk_starts():
    starts = chunk_starts(plan_windows(26, 2))
    for time in PAPER_TIMES:
        assert min(abs(start - time) for start in starts) < 0.006


@pytest.mark.parametrize(
    ("groups", "chunks", "windows"),
    [  # (start in seconds, kept, end, first)
        (2, 5, [(0.0, 0, 5, 0)]),
        (2, 26, [(0.0, 0, 26, 0)]),
        (2, 30, [(0.0, 0, 26, 0), (49 / 16, 13, 17, 26)]),
        (2, 52, [(0.0, 0, 26, 0), (49 / 16, 13, 26, 26), (98 / 16, 13, 26, 39)]),
        (3, 66, [(0.0, 0, 39, 0), (98 / 16, 13, 39, 39), (196 / 16, 13, 14, 65)]),
        (1, 26, [(0.0, 0, 13, 0), (48 / 16, 1, 13, 13), (96 / 16, 1, 2, 25)]),
    ],
)
def test_windows_move_by_whole_groups(groups, chunks, windows):
    plan = plan_windows(chunks, groups)
    assert [(w.start_seconds, w.kept, w.end, w.first) for w in plan] == windows
    assert all(w.recoded == (groups == 1 and w.first > 0) for w in plan)
    anchored = plan_windows(chunks, groups, anchored=True)
    assert chunk_starts(anchored) == chunk_starts(plan)
    assert [w.chunks for w in anchored] == [range(-(w.first > 0), w.end) for w in plan]


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_chunks_follow_each_other_without_gaps(groups):
    starts = [round(16 * start) for start in chunk_starts(plan_windows(100, groups))]
    steps = [b - a for a, b in pairwise(starts)]
    single = {0} if groups == 1 else {i for i in range(100) if i % 13 == 0}
    assert steps == [1 if i in single else 4 for i in range(99)]
    assert [frames_of(n, groups) for n in range(100)] == starts


def test_seconds_are_covered():
    for groups in (1, 2):
        for seconds in (0.01, 0.0625, 0.07, 3.0625, 6.125, 64.0):
            chunks = chunks_within(seconds, groups)
            assert frames_of(chunks, groups) >= seconds * 16 > frames_of(chunks - 1, groups) - 1e-9
    assert chunks_within(98 / 16, 2) == 26


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_shortest_video_that_lasts_so_long_is_found(groups):
    """By adding chunk after chunk, which took hours for a number that a batch file may hold."""
    starts = chunk_starts(plan_windows(200, groups))
    for frames in range(1, 600):
        wanted = next(n for n in range(1, 200) if starts[n] * 16 >= frames)
        assert chunks_within(frames / 16, groups) == wanted
        assert chunks_within(frames / 16 - 1e-6, groups) == wanted


def test_no_plan_is_made_beyond_the_longest_video(make_sampler):
    assert chunks_within(1e300, 1) <= MAX_SECONDS * 16 + 1
    for seconds in (0.0, -1.0, math.nextafter(MAX_SECONDS, math.inf), 1e18, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"longer than 0 seconds, and 3600 at most"):
            make_sampler().generate([Request("a", seconds=seconds)])
