"""Work lists against the mask's definition: every pair of rows, rebuilt from the lists alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatv_kernels import Document, build_record

TILES = st.tuples(st.integers(1, 7), st.integers(1, 7))
LAYOUTS = st.fixed_dictionaries(
    {"words": st.lists(st.text("tc", max_size=8), max_size=4), "chunk_rows": st.integers(1, 5)}
    | {spare: st.integers(0, 4) for spare in ("spare_text", "spare_chunks")}
)
"""Documents as words over {t, c}: text tokens and chunks in order of time. All that the mask can know about a
sample is in its word: T2V and Think2V plans are words whose text comes first, a flipped clean copy keeps its
place, dropped text leaves chunks alone, and a one-frame document is `c`."""


def visibility(word):
    return Document(
        np.array([word[:i].count("c") for i, x in enumerate(word) if x == "t"], np.int32),
        np.array([word[:i].count("t") for i, x in enumerate(word) if x == "c"], np.int32),
    )


def build(words, chunk_rows, spare_text=0, spare_chunks=0):
    layout = {
        "text_rows": sum(w.count("t") for w in words) + spare_text,
        "chunk_rows": chunk_rows,
        "chunks": sum(w.count("c") for w in words) + spare_chunks,
    }
    return build_record([visibility(w) for w in words], **layout), layout


def paper_record(documents=1, words=18, plan=108):
    """26 chunks of 240 tokens, 576 text rows, shared by equal documents."""
    each = 26 // documents, 576 // documents - plan // documents
    word = "t" * (plan // documents) + ("t" * words + "c") * each[0]
    return build_record([visibility(word)] * documents, text_rows=576, chunk_rows=240, chunks=26)


def mask_of_forward(record, items):
    """What a kernel sees that trusts the list where it is certain and asks the intervals elsewhere."""
    mask, intervals = np.zeros((record.rows, record.rows), int), record.intervals.tolist()
    for q_lo, q_hi, *ranges in items:
        for i in range(3):
            k_lo, k_full_hi, k_hi = ranges[3 * i : 3 * i + 3]
            assert k_lo <= k_full_hi <= k_hi
            mask[q_lo:q_hi, k_lo:k_full_hi] += 1
            for row in range(q_lo, q_hi):
                lo, hi = intervals[row][i]
                mask[row, max(lo, k_full_hi) : min(hi, k_hi)] += 1
    return mask


def mask_of_backward(record, items):
    mask, intervals = np.zeros((record.rows, record.rows), int), record.intervals.tolist()
    for k_lo, k_hi, *ranges in items:
        for i in range(3):
            q_lo, q_full_lo, q_hi = ranges[3 * i : 3 * i + 3]
            assert q_lo <= q_full_lo <= q_hi
            mask[q_full_lo:q_hi, k_lo:k_hi] += 1
            for row in range(q_lo, q_full_lo):
                for lo, hi in intervals[row]:
                    mask[row, max(lo, k_lo) : min(hi, k_hi)] += 1
    return mask


@settings(max_examples=80)
@given(layout=LAYOUTS, tiles=TILES)
def test_both_lists_rebuild_the_mask_and_visit_no_pair_twice(layout, tiles, mask_by_definition):
    record, sizes = build(**layout)
    expected = mask_by_definition(layout["words"], **sizes)
    work = record.work(*tiles)
    np.testing.assert_array_equal(mask_of_forward(record, work.forward.tolist()), expected)
    np.testing.assert_array_equal(mask_of_backward(record, work.backward.tolist()), expected)


@settings(max_examples=60)
@given(layout=LAYOUTS, tiles=TILES)
def test_tiles_are_small_aligned_and_sorted(layout, tiles):
    record, _ = build(**layout)
    work = record.work(*tiles)
    ends = {hi for (_, hi), _, _ in record.documents.tolist()}
    chunks = set(range(record.text_rows, record.rows + 1, record.chunk_rows))
    edges = sorted({0, record.rows} | ends | chunks)
    for items, size in ((work.forward, tiles[0]), (work.backward, tiles[1])):
        used = [item for item in items.tolist() if item[0] < item[1]]
        assert all(item == [0] * 11 for item in items.tolist()[len(used) :])  # the unused stand last
        visits = [sum(item[4::3]) - sum(item[2::3]) for item in used]
        assert visits == sorted(visits, reverse=True)
        at = 0
        for lo, hi, *_ in sorted(used):
            run_lo, run_hi = max(e for e in edges if e <= lo), min(e for e in edges if e > lo)
            assert (lo, (lo - run_lo) % size, hi) == (at, 0, min(lo + size, run_hi))
            at = hi
        assert at == record.rows


@settings(max_examples=40)
@given(data=st.data(), documents=st.integers(0, 4), tiles=TILES)
def test_capacity_depends_on_the_layout_alone(data, documents, tiles):
    words = data.draw(st.lists(st.text("ttc", max_size=6), min_size=documents, max_size=documents))
    record = build_record([visibility(w) for w in words], text_rows=24, chunk_rows=3, chunks=24)
    empty = build_record([visibility("")] * documents, text_rows=24, chunk_rows=3, chunks=24)
    for name in ("forward", "backward"):
        assert getattr(record.work(*tiles), name).shape == getattr(empty.work(*tiles), name).shape


@pytest.mark.parametrize("tiles", [(3, 4), (5, 2)])
def test_capacity_is_reached_by_the_worst_packing(tiles):
    """One-token documents force a tile each: with any less room some packing would not fit."""
    record = build_record([visibility("t")] * 3, text_rows=20, chunk_rows=2, chunks=1)
    for items, size in ((record.work(*tiles).forward, tiles[0]), (record.work(*tiles).backward, tiles[1])):
        assert (items[:, 0] < items[:, 1]).sum() == 3 + -(-17 // size) + 2 * -(-2 // size)
        assert len(items) <= (items[:, 0] < items[:, 1]).sum() + 1


def test_tiles_without_rows_are_refused():
    with pytest.raises(ValueError, match="at least one row and one key, got 0 x 8"):
        build(["tc"], 2)[0].work(0, 8)


def computed(items, rows, keys):
    """Pairs that a kernel with tiles of `rows` x `keys` computes: every range rounded up to whole tiles."""
    spans = items[:, 4::3] - items[:, 2::3]
    return int((torch.ceil(spans / keys) * keys).sum() * rows)


@pytest.mark.parametrize(("documents", "study"), [(1, 1.014), (2, None), (4, 1.065)])
def test_the_area_computed_at_the_paper_sized_row(documents, study):
    """192 x 80 tiles of 4 packed query heads are 48 query rows x 80 keys; the figures of the study hold."""
    record = paper_record(documents)
    forward = record.work(48, 80).forward
    ratio = computed(forward[forward[:, 0] < forward[:, 1]], 48, 80) / record.live_pairs()
    assert 1 <= ratio <= (study or 1.065) + 0.01
    masked = (forward[:, 4::3] - forward[:, 3::3]).sum() / (forward[:, 4::3] - forward[:, 2::3]).sum()
    assert masked < 0.03  # nearly every pair is certain


def test_the_longest_item_first_balances_132_processors():
    """Given to whoever is free, as a GPU does: nobody works 3 % longer than the mean."""
    for items in (paper_record().work(48, 80).forward, paper_record().work(64, 80).backward):
        load = np.zeros(132)
        for cost in np.repeat((items[:, 4::3] - items[:, 2::3]).sum(1).numpy(), 8):  # 8 KV heads
            load[load.argmin()] += cost
        assert load.max() / load.mean() < 1.03


def test_lists_move_with_the_record_in_one_copy(monkeypatch):
    record, _ = build(["tctct", "tc"], 3, 2, 1)
    before = [record.work(4, 3), record.work(2, 5)]
    copies = []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *a, **k: copies.append(t.shape) or to(t, *a, **k))
    moved = record.to("meta")
    assert len(copies) == 1
    assert moved.intervals.shape == record.intervals.shape and moved.intervals.device.type == "meta"
    for old, key in zip(before, [(4, 3), (2, 5)], strict=True):
        new = moved.work(*key)
        assert new.forward.device.type == "meta" and new.forward.shape == old.forward.shape
        assert new.backward.shape == old.backward.shape and new.table.storage_offset() % 32 == 0
    assert len(copies) == 1
    assert moved.work(1, 1).table.device.type == "meta" and len(copies) == 2  # asked for after the move
    assert moved.to("cpu") is record and moved.work(1, 1) is moved.work(1, 1)


def test_the_buffer_carries_every_value(monkeypatch):
    """A copy to another device is stood in for by a clone on this one."""
    record, _ = build(["tctct", "tc"], 3, 2, 1)
    work, buffers = record.work(4, 3), []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *a: buffers.append(t) or to(t, *a))
    record.to("meta")
    (buffer,) = buffers
    assert torch.equal(buffer[: record.intervals.numel()], record.intervals.flatten())
    start = -(-record.intervals.numel() // 32) * 32
    assert torch.equal(buffer[start : start + work.table.numel()], work.table.flatten())


@settings(max_examples=40)
@given(layout=LAYOUTS, tiles=TILES)
def test_no_range_begins_or_ends_with_what_sees_nothing(layout, tiles, mask_by_definition):
    """Rows beyond would be masked away, so results alone do not tell of them: they only cost time."""
    record, sizes = build(**layout)
    mask = mask_by_definition(layout["words"], **sizes)
    work = record.work(*tiles)
    for items, seen in ((work.forward, mask), (work.backward, mask.T)):
        for lo, hi, *ranges in items.tolist():
            for first, _, end in zip(*[iter(ranges)] * 3, strict=True):
                if first < end:
                    assert seen[lo:hi, first].any() and seen[lo:hi, end - 1].any(), (lo, hi, first, end)
