"""Damage is skipped and counted, replaced the same way everywhere, and ends the run when it is too much."""

import collections
import copy
import dataclasses
import itertools
import shutil
import threading

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatv.config import config_from_dict
from megatv.data import loader as loader_module
from megatv.data.bad import BadSample, BadSamples, places_to_try
from megatv.data.loader import Loader
from megatv.data.shards import DatasetInfo, Shards, ShardWriter
from megatv.data.stats import LatentStats
from megatv.data.tokenizer import LLAMA3_PATTERN, load_tokenizer
from megatv.types import Caption

EXAMPLES, PER_SHARD = 24, 4
TREE = yaml.safe_load("""
run: {dir: unused, steps: 10, seed: 3}
video: {width: 16, height: 16, groups: 1}
codec: {kind: dct}
tokenizer: {path: toy_world}
data: {train: unused, max_bad_samples: 5}
sequence: {mode: tv2tv, context_tokens: 252, examples_per_row: 2}
model: {layers: 1, width: 8, ffn: 8, heads: 1, kv_heads: 1, vocab: 512, tied_embeddings: false}
batch: {examples: 8}
checkpoint: {every: 1}
""")
TOKENIZER = load_tokenizer("toy_world")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """24 examples of 1 to 13 latents, four a shard."""
    path = tmp_path_factory.mktemp("failures") / "set"
    info = DatasetInfo(width=16, height=16, groups=1, codec={"kind": "dct"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatv.data.shards.SHARD_BYTES", PER_SHARD * 2100)
        with ShardWriter(path, info) as writer:
            for index in range(EXAMPLES):
                writer.write(
                    f"clip-{index}",
                    np.random.default_rng(index).normal(size=info.latent_shape).astype(np.float32),
                    captions=(Caption(0.0, f"(w). {index}, 0, 0, 0."),),
                    meta_caption="m",
                    detailed_caption="",
                    valid_latents=1 + index * 7 % 13,
                    ends_clip=True,
                    source={},
                )
            writer.finish(LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32)))
    assert len(list(path.glob("*.mds"))) == EXAMPLES // PER_SHARD
    return path


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "set")


def make(shards, dp_rank=0, dp_size=1, train=True, **data):
    tree = copy.deepcopy(TREE)
    tree["data"] |= data
    shards = shards if isinstance(shards, Shards) else Shards(shards)
    return Loader(shards, TOKENIZER, config_from_dict(tree), dp_rank=dp_rank, dp_size=dp_size, train=train)


def flip(file):
    data = bytearray(file.read_bytes())
    for at in range(len(data) // 12, len(data), 256):
        data[at] ^= 0xFF
    file.write_bytes(data)


def truncate(file):
    file.write_bytes(file.read_bytes()[:50])


DAMAGE = {"flipped": flip, "header": lambda f: f.write_bytes(b"\xff" * 64 + f.read_bytes()[64:])}
DAMAGE |= {"truncated": truncate, "empty": lambda f: f.write_bytes(b""), "missing": lambda f: f.unlink()}


def ids(batches):
    return [i for batch in batches for i in batch.ids]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_lost_shard_costs_its_samples_and_no_place(copied, damage, workers):
    """Opened whole, damaged while the run goes on: every step stays full, its rows as if written so."""
    shards = Shards(copied)
    lost = {shards[i].id for i in range(PER_SHARD, 2 * PER_SHARD)}
    healthy = {s: ids(make(shards).step(s)) for s in range(3)}
    DAMAGE[damage](copied / "shard.00001.mds")
    loader = make(shards, workers=workers)
    met = []
    for step, batches in zip(range(3), loader.iterate(0), strict=False):
        got = ids(batches)
        kept = collections.Counter(i for i in healthy[step] if i not in lost)
        assert len(got) == len(healthy[step]) and not kept - collections.Counter(got) and not lost & set(got)
        met += loader.met(step)
    assert {bad.index for bad in met} == set(range(PER_SHARD, 2 * PER_SHARD))
    assert all("shard.00001.mds" in bad.reason for bad in met)
    assert not lost & {i for step in range(3, 9) for i in ids(loader.step(step))}


def test_replacements_do_not_depend_on_ranks_workers_or_restarts(copied):
    shards = Shards(copied)
    flip(copied / "shard.00002.mds")
    straight = make(shards)
    steps = [sorted(ids(straight.step(step))) for step in range(6)]
    for dp_size, workers in ((2, 1), (4, 2)):
        for step in (4, 2, 5):  # started in the middle, where nothing is known yet
            ranks = [make(shards, rank, dp_size, workers=workers) for rank in range(dp_size)]
            assert sorted(i for rank in ranks for i in ids(rank.step(step))) == steps[step]


def test_too_many_bad_samples_end_the_run_and_are_named(copied):
    shards = Shards(copied)
    for number in (1, 3):
        (copied / f"shard.0000{number}.mds").unlink()
    with pytest.raises(ValueError, match=r"6 samples cannot .* data\.max_bad_samples is 5: mend") as caught:
        list(itertools.islice(make(shards).iterate(0), 9))
    assert str(caught.value).count("; sample '") == 5 and "shard.00003.mds" in str(caught.value)
    with pytest.raises(ValueError, match=r"1 samples cannot be used and data\.max_bad_samples is 0"):
        list(itertools.islice(make(shards, max_bad_samples=0).iterate(0), 9))


def test_where_nothing_can_be_used_the_search_ends(copied):
    shards = Shards(copied)
    for file in copied.glob("*.mds"):
        file.unlink()
    with pytest.raises(ValueError, match=r"none of the samples that fit in the place of example \d+ can be"):
        make(shards, max_bad_samples=1000).step(0)


def test_held_out_samples_are_never_replaced(copied):
    shards = Shards(copied)
    flip(copied / "shard.00000.mds")
    with pytest.raises(ValueError, match=r"shard\.00000\.mds: example \d is damaged"):
        make(shards, train=False).validation(4)


def test_a_sample_that_does_not_build_is_left_out_by_its_id(whole, monkeypatch):
    build = loader_module.build_sequence

    def fail(sample, *args, **kwargs):
        if sample.id == "clip-7":
            raise ValueError("sample clip-7: does not decode")
        return build(sample, *args, **kwargs)

    monkeypatch.setattr(loader_module, "build_sequence", fail)
    loader = make(whole)
    seen = [i for step in range(6) for i in ids(loader.step(step))]
    assert len(seen) > 48 and "clip-7" not in seen
    met = [b for step in range(6) for b in loader.met(step)]
    assert met and set(met) == {BadSample(7, "clip-7", "sample clip-7: does not decode")}


def test_a_sample_with_an_endless_text_is_left_out(whole, monkeypatch):
    """Tiktoken itself ends on a million blanks with an error that is no Exception."""
    monkeypatch.setattr("megatv.data.tokenizer.TOY_PATTERN", LLAMA3_PATTERN)
    monkeypatch.setitem(globals(), "TOKENIZER", load_tokenizer("toy_world"))
    shards = Shards(whole)
    example = Shards.example

    def endless(self, record, window):
        found = example(self, record, window)
        too_long = dataclasses.replace(found, meta_caption=" " * 1_100_000 + "x")
        return too_long if record.id == "clip-7" else found

    monkeypatch.setattr(Shards, "example", endless)
    loader = make(shards)
    for step in range(6):
        assert "clip-7" not in ids(loader.step(step))
    met = {(bad.id, bad.reason) for step in range(6) for bad in loader.met(step)}
    assert met == {("clip-7", "a text of 1,100,002 characters; give at most 524,288: cut it")}


@given(n=st.integers(1, 300), data=st.data())
def test_every_place_is_tried_once_its_own_first(n, data):
    place = data.draw(st.integers(0, n - 1))
    tried = list(places_to_try(place, n))
    assert tried[0] == place and sorted(tried) == list(range(n))


def test_a_sample_counts_once():
    known = BadSamples(1)
    known.add(BadSample(3, "a", "x"))
    known.add(BadSample(3, "a", "y"))
    known.learn(BadSample(4, "b", "z"))
    assert len(known) == 2 and str(known.get(3)) == "sample 'a': x"
    with pytest.raises(ValueError, match=r"3 samples .* sample 'a': x; sample 'b': z; sample 'c': w"):
        known.add(BadSample(5, "c", "w"))


def test_a_dead_thread_is_an_error(whole, monkeypatch):
    monkeypatch.setattr(threading.Thread, "run", lambda self: None)
    with pytest.raises(RuntimeError, match="thread died"):
        next(make(whole).iterate(0))


def test_an_exit_inside_the_thread_is_no_hang(whole, monkeypatch):
    monkeypatch.setattr(loader_module, "pack", lambda *a: (_ for _ in ()).throw(SystemExit(3)))
    with pytest.raises(SystemExit):
        next(make(whole).iterate(0))


def test_a_read_that_never_ends_is_an_error(whole, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(loader_module, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(loader_module, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(Shards, "record", lambda self, index: release.wait(60))
    try:
        with pytest.raises(RuntimeError, match=r"no batch for 0\.3 s"):
            next(make(whole).iterate(0))
    finally:
        release.set()


def test_a_place_that_nothing_fits_stays_empty(whole, monkeypatch):
    """The shortest example is bad, and so is the only other one of its length: its row goes without it."""
    shards = Shards(whole)
    short = np.flatnonzero(shards.lengths[:, 0] == 1)
    read = Shards.record

    def fail(self, index):
        if index in short:
            raise ValueError("does not decode")
        return read(self, index)

    monkeypatch.setattr(Shards, "record", fail)
    loader = make(whole)
    seen = collections.Counter(i for step in range(7) for i in ids(loader.step(step)))  # four epochs
    assert set(seen.values()) == {4} and len(seen) == EXAMPLES - len(short)
    assert {bad.index for step in range(7) for bad in loader.met(step)} == set(short)


def test_rows_are_dealt_by_attention_cost(whole, monkeypatch):
    """The heaviest of two ranks comes closer to the mean than when dealt in turn, by the records' pairs."""

    def heaviest():
        ranks = [make(whole, rank, 2) for rank in (0, 1)]
        sums = np.array([[sum(b.record.live_pairs() for b in r.step(s)) for r in ranks] for s in range(14)])
        return float((sums.max(1) / sums.mean(1)).mean())

    dealt = heaviest()
    monkeypatch.setattr(loader_module, "deal", lambda costs, hands: hands)
    assert dealt - 1 < 0.8 * (heaviest() - 1)


def test_who_is_in_a_row_does_not_depend_on_the_dealing(whole):
    for step in range(4):
        expected = sorted(tuple(sorted(b.ids)) for b in make(whole).step(step))
        for dp_size in (2, 4):
            ranks = [make(whole, rank, dp_size).step(step) for rank in range(dp_size)]
            assert sorted(tuple(sorted(b.ids)) for rank in ranks for b in rank) == expected


def test_pages_are_locked_where_asked(whole, monkeypatch):
    locked = []
    monkeypatch.setattr("torch.Tensor.pin_memory", lambda self: locked.append(self.dtype) or self)
    loader = make(whole)
    loader.pin = True
    loader.step(0)
    assert len(locked) == 4 * 9


def test_that_no_example_can_be_used_is_known_before_the_first_step(whole, monkeypatch):
    """And trying it out leaves no trace in what is trained on."""
    loader = make(whole)
    loader.try_out()
    assert len(loader.bad) == 0
    assert [batch.ids for batch in loader.step(0)] == [batch.ids for batch in make(whole).step(0)]

    def refuse(sample, *_, **__):
        raise ValueError(f"sample {sample.id}: has no room")

    monkeypatch.setattr("megatv.data.loader.build_sequence", refuse)
    with pytest.raises(ValueError, match=r"6 samples cannot be used .* has no room"):
        loader.try_out()
    assert len(loader.bad) == 0
