"""A session's log: all that a late viewer needs, and no more, however long the session lasts."""

import numpy as np
import pytest

from megatv.studio.log import Log


def everything(log, number=0, most=3):
    """What a viewer reads from `number` on, binary messages too."""
    heard = []
    while number < log.end:
        found, number = log.read(number, most)
        heard += [found] if isinstance(found, bytes) else found
    return heard


def test_order_and_batches():
    log = Log()
    assert log.read(0, 2) == ([], 0)
    for text in ("a", "b", "c", b"d", "e", b"f"):
        log.add(text, 0, "any")
    assert log.read(0, 2) == (["a", "b"], 2)
    assert log.read(1, 9) == (["b", "c"], 3)
    assert log.read(3, 9) == (b"d", 4)
    assert log.read(4, 9) == (["e"], 5)
    assert everything(log) == ["a", "b", "c", b"d", "e", b"f"]
    assert log.read(6, 9) == ([], 6)


def test_what_is_outdated_leaves_and_places_stay():
    log = Log()
    log.add("take", 0, "take")
    for text in ("making", "paused"):
        log.add(text, 0, "status")
    for chunk in (0, 1):
        log.add(f"planned {chunk}", 0, "planned", chunk)
        for piece in range(3):
            log.add(f"token {chunk}.{piece}", 0, "token", chunk)
        _, place = log.read(0, 4)
        log.add(f"words {chunk}", 0, "words", chunk)
        log.add(b"frames %d" % chunk, 0, "frames", chunk)
        if chunk == 0:  # who was between the tokens reads on with the words
            assert everything(log, place) == ["words 0", b"frames 0"]
    assert everything(log) == ["take", "paused", "words 0", b"frames 0", "words 1", b"frames 1"]
    log.add("other", 1, "take")
    log.forget(0)
    assert everything(log) == ["other"] and log.end == 16


@pytest.mark.parametrize("seed", range(3))
def test_a_reader_who_stops_anywhere_misses_nothing_that_is_needed(seed):
    rng = np.random.default_rng(seed)
    log, heard, number = Log(), [], 0
    for count in range(2000):
        kind = rng.choice(["token", "planned", "words", "frames", "status"])
        take, chunk = int(rng.integers(3)), int(rng.integers(4)) if kind != "status" else None
        log.add(f"{count} {kind} {take} {chunk}", take, str(kind), chunk)
        if rng.random() < 0.05:
            log.forget(int(rng.integers(3)))
        if rng.random() < 0.3:
            found, number = log.read(number, int(rng.integers(1, 6)))
            heard += found
    heard += everything(log, number)
    assert [int(text.split()[0]) for text in heard] == sorted({int(text.split()[0]) for text in heard})
    assert set(everything(log)) <= set(heard)
