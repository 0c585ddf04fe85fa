"""The attention record against the mask's definition, pair by pair in order of time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatv_kernels import AttentionRecord, Document, build_record
from megatv_kernels.reference import dense_mask

WORDS = st.lists(st.text("tc", max_size=8), max_size=4)
"""Documents as words over {t, c}: text tokens and chunks in order of time."""


def visibility(word: str) -> Document:
    """Count what stands before every token and chunk of a word."""
    return Document(
        np.array([word[:i].count("c") for i, x in enumerate(word) if x == "t"], np.int32),
        np.array([word[:i].count("t") for i, x in enumerate(word) if x == "c"], np.int32),
    )


@settings(max_examples=60, deadline=None)
@given(
    words=WORDS, chunk_rows=st.integers(1, 3), spare_text=st.integers(0, 2), spare_chunks=st.integers(0, 2)
)
def test_record_equals_the_definition(words, chunk_rows, spare_text, spare_chunks, mask_by_definition):
    layout = {
        "text_rows": sum(w.count("t") for w in words) + spare_text,
        "chunk_rows": chunk_rows,
        "chunks": sum(w.count("c") for w in words) + spare_chunks,
    }
    record = build_record([visibility(w) for w in words], **layout)
    expected = mask_by_definition(words, **layout)
    np.testing.assert_array_equal(dense_mask(record).numpy(), expected)
    padding = spare_text + 2 * spare_chunks * chunk_rows
    assert record.live_pairs() == expected.sum() - padding


@settings(max_examples=30, deadline=None)
@given(words=WORDS)
def test_extents_tile_the_row(words):
    record = build_record(
        [visibility(w) for w in words],
        text_rows=sum(w.count("t") for w in words) + 1,
        chunk_rows=2,
        chunks=sum(w.count("c") for w in words) + 1,
    )
    starts = [0, record.text_rows, record.text_rows + 2 * record.chunks]
    for word, extent in zip(words, record.documents.tolist(), strict=True):
        sizes = [word.count("t"), 2 * word.count("c"), 2 * word.count("c")]
        assert extent == [[lo, lo + n] for lo, n in zip(starts, sizes, strict=True)]
        starts = [hi for _, hi in extent]


def test_live_pairs_of_the_paper_sized_row():
    """26 chunks of 240 tokens: with the text counted by hand, 27 % of the square is alive."""
    word = "t" * 108 + ("t" * 18 + "c") * 26  # 576 text rows in all
    record = build_record([visibility(word)], text_rows=576, chunk_rows=240, chunks=26)
    text = sum(j + 1 + 240 * c for j, c in enumerate([0] * 108 + [c for c in range(26) for _ in range(18)]))
    video = sum(2 * 240 * (108 + 18 * (c + 1) + 240 * (c + 1)) for c in range(26))
    assert record.live_pairs() == text + video
    assert record.live_pairs() / record.rows**2 == pytest.approx(0.27, abs=0.005)


def test_move_keeps_the_record(mask_by_definition):
    record = build_record([visibility("tct")], text_rows=3, chunk_rows=2, chunks=1)
    moved = record.to("meta")
    assert moved.intervals.device.type == "meta" and moved.documents.device.type == "cpu"
    assert torch.equal(moved.documents, record.documents) and moved.rows == record.rows == 7


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (visibility("tttt"), "needs 4 text rows and 0 chunks, but 3 and 1 are left"),
        (visibility("cc"), "needs 0 text rows and 2 chunks"),
        (Document(np.array([0, 2]), np.array([1])), "text_sees_chunks must rise from >= 0 to <= 1"),
        (Document(np.array([1, 0]), np.array([1])), "text_sees_chunks"),
        (Document(np.array([0, 1]), np.array([3])), "chunk_sees_text must rise from >= 0 to <= 2"),
        (Document(np.array([0, 1]), np.array([-1])), "chunk_sees_text"),
    ],
)
def test_impossible_documents_are_refused(document, message):
    with pytest.raises(ValueError, match=message):
        build_record([document], text_rows=3, chunk_rows=2, chunks=1)


@pytest.mark.parametrize(
    ("row", "interval", "value", "message"),
    [
        (2, 0, [3, 2], "row 2: an interval lies beyond the keys or ends before it starts"),
        (2, 0, [-1, 2], "row 2: an interval lies beyond the keys"),
        (6, 2, [5, 8], "row 6: an interval lies beyond the keys"),
        (3, 1, [0, 2], "row 3: an interval starts before an earlier one ends"),
        (3, 2, [0, 1], "row 3: an interval starts before an earlier one ends"),
        (0, 0, [0, 0], "row 0: an interval shows no key at all"),
    ],
)
def test_impossible_intervals_are_refused(row, interval, value, message):
    record = build_record([visibility("tct")], text_rows=3, chunk_rows=2, chunks=1)
    intervals = record.intervals.clone()
    intervals[row, interval] = torch.tensor(value)
    with pytest.raises(ValueError, match=message):
        AttentionRecord(intervals, record.documents, 3, 2, 1)


def test_records_are_made_of_int32_on_the_host():
    record = build_record([visibility("tct")], text_rows=3, chunk_rows=2, chunks=1)
    with pytest.raises(ValueError, match=r"must be int32 \[7, 3, 2\], got torch.int64"):
        AttentionRecord(record.intervals.long(), record.documents, 3, 2, 1)
    with pytest.raises(ValueError, match=r"got torch.int32 \[6, 3, 2\]"):
        AttentionRecord(record.intervals[:6], record.documents, 3, 2, 1)
    with pytest.raises(ValueError, match="made on the host"):
        AttentionRecord(record.intervals.to("meta"), record.documents, 3, 2, 1)
