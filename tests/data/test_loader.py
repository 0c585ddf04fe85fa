"""What a step trains on is a function of (seed, step): of no rank count, no restart and no thread."""

import collections
import copy
import itertools
import shutil
import threading
import time

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatv.config import config_from_dict
from megatv.data import loader as loader_module
from megatv.data.loader import Loader
from megatv.data.order import RowOrder
from megatv.data.shards import DatasetInfo, Shards, ShardWriter
from megatv.data.stats import LatentStats
from megatv.data.tokenizer import load_tokenizer
from megatv.types import Caption

EXAMPLES = 11
TREE = yaml.safe_load("""
run: {dir: unused, steps: 10, seed: 3}
video: {width: 16, height: 16, groups: 1}
codec: {kind: dct}
tokenizer: {path: toy_world}
data: {train: unused}
sequence: {mode: tv2tv, context_tokens: 252, examples_per_row: 2, text_dropout: 0.3, clean_flip: 0.5}
model: {layers: 1, width: 8, ffn: 8, heads: 1, kv_heads: 1, vocab: 512, tied_embeddings: false}
batch: {examples: 8}
checkpoint: {every: 1}
""")


def make_config(**sections):
    tree = copy.deepcopy(TREE)
    for section, values in sections.items():
        tree[section] |= values
    return config_from_dict(tree)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    path = tmp_path_factory.mktemp("loader") / "set"
    info = DatasetInfo(width=16, height=16, groups=1, codec={"kind": "dct"})
    with ShardWriter(path, info) as writer:
        for index in range(EXAMPLES):
            writer.write(
                f"clip-{index}",
                np.random.default_rng(index).normal(size=info.latent_shape).astype(np.float32),
                captions=(Caption(0.0, f"(w). {index}, 0, 0, 0."), Caption(1.0, "(s). 0, 0, 0, 0.")),
                meta_caption="m",
                detailed_caption="",
                valid_latents=13 - index % 3,
                ends_clip=index % 2 == 0,
                source={},
            )
        writer.finish(LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32)))
    return Shards(path)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("toy_world")


@pytest.fixture
def make(shards, tokenizer):
    def make_loader(dp_rank=0, dp_size=1, train=True, **sections):
        return Loader(
            shards, tokenizer, make_config(**sections), dp_rank=dp_rank, dp_size=dp_size, train=train
        )

    return make_loader


def fingerprint(batches):
    """Everything that a step feeds to the model, row by row."""
    rows = []
    for batch in batches:
        tensors = {**vars(batch), **vars(batch.record)}
        parts = [v.numpy().tobytes() for v in tensors.values() if isinstance(v, torch.Tensor)]
        rows.append((batch.ids, tuple(parts)))
    return rows


def ids(batches):
    return [i for batch in batches for i in batch.ids]


@pytest.mark.parametrize("step", [0, 1, 5])
def test_the_ranks_together_train_on_the_same_rows_whatever_their_number(make, step):
    whole = sorted(fingerprint(make().step(step)))
    assert len(whole) == 4
    for dp_size in (2, 4):
        shares = [make(rank, dp_size).step(step) for rank in range(dp_size)]
        assert {len(share) for share in shares} == {4 // dp_size}
        assert sorted(row for share in shares for row in fingerprint(share)) == whole


@settings(max_examples=25, deadline=None)
@given(step=st.integers(0, 10**6), dp_size=st.sampled_from([1, 2, 4]))
def test_every_row_goes_to_one_rank(shards, tokenizer, step, dp_size):
    config = make_config()
    got = [
        batch.ids
        for rank in range(dp_size)
        for batch in Loader(shards, tokenizer, config, dp_rank=rank, dp_size=dp_size).step(step)
    ]
    order = RowOrder(shards.lengths, shards.shard_sizes, config, tokenizer.bytes_per_token)
    rows = order.rows(range(step * 4, step * 4 + 4))
    assert sorted(got) == sorted(tuple(f"clip-{place.index}" for place in row) for row in rows)


def test_epochs_follow_each_other_inside_a_step(make):
    loader = make()
    steps = [collections.Counter(ids(loader.step(step))) for step in range(9)]
    seen = collections.Counter()
    for step in steps:  # 4 rows a step, 6 an epoch: nobody comes a third time before all came once
        seen += step
        times = [seen[f"clip-{i}"] for i in range(EXAMPLES)]
        assert max(times) - min(times) <= 2
    assert set(times) == {6}
    assert len({tuple(sorted(step)) for step in steps}) > 6
    assert loader.examples_per_step == 4 * EXAMPLES / 6


def test_short_examples_share_a_place(tokenizer, tmp_path):
    """Rows with room for two of 13 chunks hold four of 6, each with its own words, masked from the others."""
    info = DatasetInfo(width=16, height=16, groups=1, codec={"kind": "dct"})
    with ShardWriter(tmp_path / "set", info) as writer:
        for index in range(8):
            writer.write(
                f"clip-{index}",
                np.ones(info.latent_shape, np.float32),
                captions=(Caption(0.0, f"(w). {index}, 0, 0, 0."),),
                meta_caption="",
                detailed_caption="",
                valid_latents=6,
                ends_clip=True,
                source={},
            )
        writer.finish(LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32)))
    config = make_config(sequence={"text_dropout": 0}, batch={"examples": 4})
    loader = Loader(Shards(tmp_path / "set"), tokenizer, config, dp_rank=0, dp_size=1)
    batches = loader.step(0)
    assert [len(batch.ids) for batch in batches] == [4, 4] and len(set(ids(batches))) == 8
    assert loader.examples_per_step == 8
    for batch in batches:
        assert len(batch.record.documents) == 4 and int(batch.chunk_loss.sum()) == 24
        words = tokenizer.decode([i for i in batch.text_ids.tolist() if i < tokenizer.bos])
        assert all(f"(w). {i.removeprefix('clip-')}, 0, 0, 0." in words for i in batch.ids)


def test_the_same_sample_gets_new_noise_in_another_epoch(make):
    loader = make(sequence={"examples_per_row": 1, "context_tokens": 126}, batch={"examples": EXAMPLES})
    first, second = ({b.ids: b.noisy for b in loader.step(step)} for step in (0, 1))
    assert first.keys() == second.keys() and len(first) == EXAMPLES
    assert all(not torch.equal(first[i], second[i]) for i in first)


def test_a_resumed_run_goes_on_exactly_where_it_was(make):
    through = [fingerprint(b) for b in itertools.islice(make().iterate(0), 6)]
    for start in (1, 4):
        resumed = [fingerprint(b) for b in itertools.islice(make().iterate(start), 6 - start)]
        assert resumed == through[start:]


def test_prefetched_steps_equal_direct_ones(make):
    loader = make(1, 2)
    ahead = loader.iterate(3)
    for step in range(3, 8):
        assert fingerprint(next(ahead)) == fingerprint(loader.step(step))
    ahead.close()


def threads():
    return [t for t in threading.enumerate() if t.name == "megatv-loader"]


def test_no_thread_is_left_behind(make):
    ahead = make().iterate(0)
    next(ahead)
    assert len(threads()) == 1
    ahead.close()
    assert not threads()
    forgotten = make().iterate(0)
    next(forgotten)
    del forgotten
    assert not threads()
    with pytest.raises(KeyError):
        for _ in make().iterate(0):
            raise KeyError
    assert not threads()


def test_the_thread_builds_a_few_steps_ahead_and_no_more(make, monkeypatch):
    loader, built = make(), []
    build = loader.step
    monkeypatch.setattr(loader, "step", lambda step: built.append(step) or build(step))
    ahead = loader.iterate(0)
    next(ahead)
    deadline = time.time() + 5
    while len(built) < 4 and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert built == [0, 1, 2, 3]  # one handed over, two ready, one waiting for a place
    ahead.close()


def test_an_error_in_the_thread_comes_at_its_step_with_the_sample(make, monkeypatch):
    loader, build = make(), loader_module.build_sequence
    plan = [ids(loader.step(step)) for step in range(4)]
    broken = next(i for i in plan[1] if i not in plan[0])

    def fail(sample, *args, **kwargs):
        if sample.id == broken:
            raise ZeroDivisionError("a bug")
        return build(sample, *args, **kwargs)

    monkeypatch.setattr(loader_module, "build_sequence", fail)
    seen = []
    with pytest.raises(ZeroDivisionError) as caught:
        for batches in loader.iterate(0):
            seen.append(ids(batches))
    assert seen == plan[:1]
    assert f"sample '{broken}'" in caught.value.__notes__[0]
    assert not threads()


def test_a_damaged_shard_ends_the_run_with_its_name(shards, tokenizer, tmp_path):
    copied = shutil.copytree(shards.path, tmp_path / "set")
    file = copied / "shard.00000.mds"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    config = make_config(data={"max_bad_samples": 0})
    loader = Loader(Shards(copied), tokenizer, config, dp_rank=0, dp_size=1)
    with pytest.raises(ValueError, match=r"shard\.00000\.mds: example \d+ is damaged"):
        list(itertools.islice(loader.iterate(0), 3))


def test_validation_is_deterministic_and_shared(make):
    rows = fingerprint(make(train=False).validation(4))
    assert rows == fingerprint(make(train=False, run={"steps": 99}).validation(4))
    shares = [make(rank, 2, train=False).validation(4) for rank in (0, 1)]
    assert sorted(row for share in shares for row in fingerprint(share)) == sorted(rows)
    assert [i for row, _ in rows for i in row] == [f"clip-{i}" for i in range(8)]


def test_validation_neither_drops_text_nor_flips(make):
    for batch in make(train=False, sequence={"text_dropout": 1.0, "clean_flip": 1.0}).validation(4):
        assert (batch.clean_t == 1).all()
        assert (batch.text_ids < load_tokenizer("toy_world").bos).any()


def test_more_validation_rows_than_examples_come_with_other_noise(make):
    batches = make(train=False, sequence={"examples_per_row": 1, "context_tokens": 126}).validation(
        EXAMPLES + 1
    )
    assert batches[0].ids == batches[EXAMPLES].ids == ("clip-0",)
    assert not torch.equal(batches[0].noisy, batches[EXAMPLES].noisy)


def test_rows_that_ranks_cannot_share_are_refused(make):
    with pytest.raises(ValueError, match="which 3 data-parallel ranks cannot share"):
        make(0, 3)
    with pytest.raises(ValueError, match=r"log\.val_rows 3 cannot be shared equally by 2"):
        make(0, 2, train=False).validation(3)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"video": {"width": 32}, "sequence": {"context_tokens": 400}},
            "its width is 16, the config's is 32",
        ),
        ({"video": {"groups": 2}, "sequence": {"context_tokens": 400}}, "its groups is 1, the config's is 2"),
        ({"codec": {"kind": "wan", "path": "x"}}, "its codec is dct, the config's is wan"),
    ],
)
def test_shards_of_another_kind_are_refused(make, sections, message):
    with pytest.raises(ValueError, match=f"set: {message}; make the shards again"):
        make(**sections)
