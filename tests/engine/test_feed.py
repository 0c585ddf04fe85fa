"""Ranks agree on bad samples: siblings never train on different rows, and all stop with the same sentence."""

import multiprocessing
import os
import types
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatv.config import config_from_dict, config_to_dict, load_config
from megatv.data.bad import BadSample, BadSamples
from megatv.feed import Feed

ROOT = Path(__file__).parents[2]
STEPS = 4


class Rows:
    """A loader whose step s holds the names s.0 and s.1; a bad one is replaced by its name with `+`."""

    def __init__(self, config, dp_rank, broken, fails_at=None):
        self.config, self.dp_rank, self.broken, self.fails_at = config, dp_rank, broken, fails_at
        self.bad = BadSamples(config.data.max_bad_samples)
        self._met = {}

    def met(self, step):
        return self._met.pop(step, [])

    def step(self, step):
        if step == self.fails_at:
            raise ValueError("the disk is gone")
        names, met = [], []
        for place in range(2):
            index = 10 * step + 2 * self.dp_rank + place
            if index in self.broken and self.bad.get(index) is None:
                self.bad.add(BadSample(index, f"s{index}", "broken"))
            if bad := self.bad.get(index):
                met.append(bad)
            names.append(f"{index}+" if bad else f"{index}")
        self._met[step] = met
        return [types.SimpleNamespace(ids=tuple(names))]

    def iterate(self, start):
        ahead = [self.step(start)]
        for step in range(start + 1, start + 99):
            ahead.append(self.step(step))  # built before the step before it is agreed upon
            yield ahead.pop(0)


def rank_main(rank, world, tp, meeting, limit, broken, fails_at, answers):
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    config = config_from_dict(TREE | {"data": {"train": "x", "max_bad_samples": limit}})
    mesh = types.SimpleNamespace(dp_rank=rank // tp, world=world, dp=world // tp)
    loader = Rows(config, mesh.dp_rank, broken.get(rank, ()), fails_at.get(rank))
    feed = Feed(loader, mesh, torch.device("cpu"), 0)
    seen = []
    try:
        for _ in range(STEPS):
            (batch,) = feed.next()
            seen.append((batch.ids, len(feed.bad)))
        answers.put((rank, seen, None))
    except ValueError as error:
        answers.put((rank, seen, str(error)))
    dist.barrier()
    dist.destroy_process_group()


TREE = {}


@pytest.fixture
def run(config_file, tmp_path):
    """Answers of `world` processes by rank: what each saw, and the error that ended it."""
    TREE.update(config_to_dict(load_config(config_file, ["run.dir=x", "run.steps=4"])))

    def start(world, tp=1, limit=9, broken=None, fails_at=None):
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        arguments = (world, tp, tmp_path / "meeting", limit, broken or {}, fails_at or {}, answers)
        ranks = [context.Process(target=rank_main, args=(rank, *arguments)) for rank in range(world)]
        for process in ranks:
            process.start()
        got = sorted(answers.get(timeout=60) for _ in ranks)
        for process in ranks:
            process.join(60)
        return [(seen, error) for _, seen, error in got]

    return start


def test_what_one_sibling_cannot_read_both_leave_out(run):
    """Index 21 is broken for rank 1 alone (tp 2): its sibling had built the step, and builds it again."""
    first, second = run(2, tp=2, broken={1: (21,)})
    assert (
        first
        == second
        == (
            [(("0", "1"), 0), (("10", "11"), 0), (("20", "21+"), 1), (("30", "31"), 1)],
            None,
        )
    )


def test_all_count_what_one_found(run):
    answers = run(2, broken={0: (0, 10), 1: (13,)})
    assert [[count for _, count in seen] for seen, _ in answers] == [[1, 3, 3, 3]] * 2
    assert answers[1][0][1][0] == ("12", "13+")


def test_too_many_over_all_ranks_stop_all_with_the_same_words(run):
    """No rank alone meets more than the limit of 2."""
    answers = run(2, limit=2, broken={0: (0, 20), 1: (12,)})
    assert answers[0][1] == answers[1][1] and [len(seen) for seen, _ in answers] == [2, 2]
    assert "3 samples cannot be used" in answers[0][1] and "sample 's12': broken" in answers[0][1]


def test_an_error_of_one_rank_is_everybodys(run):
    answers = run(2, fails_at={1: 2})
    assert [error for _, error in answers] == ["rank 1: the disk is gone"] * 2


def test_waiting_is_told_step_by_step(monkeypatch):
    """Seconds on a clock that the loader alone moves: 5 for the first step, none for the next, then 2."""
    now, costs = 0.0, iter([5.0, 0.0, 2.0])

    def slow(start):
        nonlocal now
        for step in range(start, start + 3):
            now += next(costs)
            yield [types.SimpleNamespace(ids=(f"{step}",))]

    monkeypatch.setattr("megatv.feed.time", types.SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr("megatv.feed.reduce_world", lambda x, op: x)
    loader = Rows(load_config(ROOT / "configs/toy_world.yaml"), 0, ())
    loader.iterate = slow
    mesh = types.SimpleNamespace(dp_rank=0, world=1, dp=1)
    feed, waited = Feed(loader, mesh, torch.device("cpu"), 0), []
    for _ in range(3):
        feed.next()
        waited.append(feed.waited_seconds)
    assert waited == [5, 0, 2]
