"""Packed rows: fixed shapes, the mask of the paper, and neighbours that do not matter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatv_kernels.reference import dense_mask

from megatv.data.packing import pack
from megatv.data.sequence import build_sequence
from megatv.types import IGNORE

PARTS = ["text_ids", "text_targets", "clean", "noisy", "velocity", "clean_t", "noisy_t", "chunk_loss"]

EXAMPLES = st.lists(
    st.fixed_dictionaries(
        {
            "captions": st.dictionaries(
                st.integers(0, 20).map(lambda f: f / 16), st.text("ab", min_size=1, max_size=3), max_size=4
            ).map(lambda captions: dict(sorted(captions.items()))),
            "valid": st.integers(1, 6),
            "ends": st.booleans(),
        }
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="session")
def sequences_of(make_example, letters):
    def make(examples, config):
        built = [make_example(**e, name=f"clip{i}") for i, e in enumerate(examples)]
        return [build_sequence(e, letters, config, seed=0, epoch=i) for i, e in enumerate(built)]

    return make


@pytest.mark.parametrize("mode", ["tv2tv", "t2v", "think2v"])
@settings(max_examples=8, deadline=None)
@given(examples=EXAMPLES)
def test_the_mask_is_the_papers(mode, examples, make_config, sequences_of, mask_by_definition):
    """Every pair of rows, against the definition applied to the text as it reads (`[` opens a chunk)."""
    config = make_config(
        sequence__mode=mode,
        sequence__examples_per_row=3,
        sequence__context_tokens=3 * (2 * 13 * 4 + 60),
        batch__examples=3,
        sequence__text_dropout=0.3,
        sequence__clean_flip=0.5,
    )
    sequences = sequences_of(examples, config)
    batch = pack(sequences, config)
    documents = ["".join("tc" if i == ord("[") else "t" for i in s.text_ids) for s in sequences]
    expected = mask_by_definition(documents, text_rows=180, chunk_rows=4, chunks=39)
    np.testing.assert_array_equal(dense_mask(batch.record).numpy(), expected)


def test_rows_lie_one_after_the_other_and_the_rest_is_padding(make_config, sequences_of):
    config = make_config()
    sequences = sequences_of([{"captions": {0.0: "ab"}}, {"valid": 3}, {"ends": False, "valid": 1}], config)
    batch = pack(sequences, config)
    assert batch.ids == ("clip0", "clip1", "clip2")
    padding = {"text_targets": IGNORE, "clean_t": 1, "noisy_t": 1}
    for name in PARTS:
        packed = getattr(batch, name)
        joined = np.concatenate([getattr(s, name) for s in sequences])
        assert len(packed) == (config.text_rows if name.startswith("text") else config.chunks_per_row)
        np.testing.assert_array_equal(packed[: len(joined)].numpy(), joined)
        assert (packed[len(joined) :] == padding.get(name, 0)).all()
    text, clean, noisy = batch.positions.split([config.text_rows, *[config.chunks_per_row * 4] * 2])
    for part, name in ((text, "text_positions"), (clean, "clean_positions"), (noisy, "noisy_positions")):
        joined = np.concatenate([getattr(s, name).ravel() for s in sequences])
        np.testing.assert_array_equal(part[: len(joined)].numpy(), joined)
        assert (part[len(joined) :] == 0).all()


def test_shapes_and_types_do_not_depend_on_what_is_packed(make_config, sequences_of):
    config = make_config()

    def signature(batch):
        tensors = {name: getattr(batch, name) for name in [*PARTS, "positions"]}
        tensors["intervals"] = batch.record.intervals
        return {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}

    small = signature(pack(sequences_of([{"valid": 1}], config), config))
    assert small == signature(pack(sequences_of([{"captions": {0.0: "abc"}}] * 8, config), config))
    rows = config.sequence.context_tokens
    assert small["positions"] == ((rows,), torch.int32) and small["intervals"][0] == (rows, 3, 2)
    assert small["text_ids"] == ((config.text_rows,), torch.int64)
    assert small["noisy"] == ((104, 16, 4, 4), torch.float32) and small["chunk_loss"] == ((104,), torch.bool)


def test_counts_are_those_of_the_sequences(make_config, sequences_of):
    config = make_config(sequence__first_chunk_loss="false")
    sequences = sequences_of([{"captions": {0.0: "ab"}}, {"valid": 3, "ends": False}], config)
    text = sum(int((s.text_targets != IGNORE).sum()) for s in sequences)
    assert pack(sequences, config).counts().tolist() == [text, (12 + 2) * 16 * 4 * 4]


def test_a_sequence_is_the_same_in_any_row(make_config, sequences_of):
    """Packing moves values and changes none: the second of three and alone."""
    config = make_config()
    sequences = sequences_of([{"valid": 5}, {"captions": {0.0: "ab", 1.0: "c"}}, {"valid": 2}], config)
    alone, among = pack([sequences[1]], config), pack(sequences, config)
    at, n = len(sequences[0].text_ids), len(sequences[1].text_ids)
    assert torch.equal(alone.text_ids[:n], among.text_ids[at : at + n])
    assert torch.equal(alone.positions[:n], among.positions[at : at + n])
    for name in ("clean", "noisy", "velocity", "clean_t", "noisy_t"):
        assert torch.equal(getattr(alone, name)[:13], getattr(among, name)[5:18])


def test_more_examples_than_the_row_holds_are_refused(make_config, sequences_of):
    config = make_config()
    with pytest.raises(ValueError, match=r"document 8 does not fit: .* 0 are left"):
        pack(sequences_of([{}] * 9, config), config)


def test_positions_of_both_copies_stand_where_their_rows_do(make_config, sequences_of):
    """With `shared` positions the copies could change places and nobody would see."""
    config = make_config(sequence__noisy_pos="sequential", sequence__examples_per_row=3, batch__examples=3)
    sequences = sequences_of([{"valid": 4}, {"captions": {0.0: "ab"}, "valid": 6}], config)
    batch = pack(sequences, config)
    text, clean, noisy = batch.positions.split(
        [config.text_rows, *[config.chunks_per_row * config.tokens_per_chunk] * 2]
    )
    for name, found in (("text", text), ("clean", clean), ("noisy", noisy)):
        wanted = np.concatenate([getattr(s, f"{name}_positions").ravel() for s in sequences])
        np.testing.assert_array_equal(found[: len(wanted)], wanted, err_msg=name)
        assert not found[len(wanted) :].any()
    assert (clean != noisy)[: 10 * config.tokens_per_chunk].all()
