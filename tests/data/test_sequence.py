"""Sequences, read as letters: `^` BOS, `[` BOF, `]` EOF, `$` EOS; a chunk stands between `[` and `]`."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatv.data.noise import Draws
from megatv.data.sequence import (
    Cursor,
    Plan,
    build_sequence,
    chunk_of_text,
    chunk_start_seconds,
    drop_text,
    interleave,
    prompt_ids,
    text_ids,
)
from megatv.types import IGNORE

STARTS = [chunk_start_seconds(i) for i in range(13)]
REST = "[]" * 11


def binomial_bounds(n, p, tail=5e-8):
    """The counts between which Binomial(n, p) lies but for `tail` on either side, by its exact masses."""
    log = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    masses = np.exp(np.array(log) + np.arange(n + 1) * math.log(p) + np.arange(n, -1, -1) * math.log1p(-p))
    return np.searchsorted(np.cumsum(masses), tail), n - np.searchsorted(np.cumsum(masses[::-1]), tail)


def build(example, letters, config, *, seed=0, epoch=0, train=True):
    return build_sequence(example, letters, config, seed=seed, epoch=epoch, train=train)


def words(sequence):
    return "".join(map(chr, sequence.text_ids))


def targets(sequence):
    """One letter a row: its target, or a dot where there is no loss."""
    return "".join("." if t == IGNORE else chr(t) for t in sequence.text_targets)


class TestTime:
    def test_chunks_start_at_frames_0_1_5_and_again_with_every_group(self):
        frames = [chunk_start_seconds(i) * 16 for i in range(27)]
        group = [0, 1, *range(5, 46, 4)]
        assert frames == [*group, *(49 + f for f in group), 98]

    def test_every_time_that_the_paper_prints_is_a_chunk(self):
        """0.8125 and 2.8125 in section 3.4, the others in its examples, rounded to two places."""
        printed = [0.8125, 2.8125, 0.56, 2.56, 4.63, 4.88, 1.56, 3.13, 5.13]
        frames = [13, 45, 9, 41, 74, 78, 25, 50, 82]
        for seconds, frame in zip(printed, frames, strict=True):
            assert chunk_start_seconds(chunk_of_text(seconds)) == frame / 16

    def test_text_of_a_frame_goes_to_the_first_chunk_not_before_it(self):
        starts = [chunk_start_seconds(i) for i in range(60)]
        for frame in range(180):
            assert chunk_of_text(frame / 16) == next(i for i, s in enumerate(starts) if s >= frame / 16)


class TestLayout:
    def test_tv2tv_puts_text_before_the_chunk_of_its_time(self, make_example, make_config, letters):
        example = make_example({0.0: "a", 1 / 16: "b", 0.1: "c", 5 / 16: "de"})
        sequence = build(example, letters, make_config())
        assert words(sequence) == "^M\na[]b[]c\nde[]" + "[]" * 10 + "$"

    def test_t2v_has_the_meta_caption_only(self, make_example, make_config, letters):
        sequence = build(make_example({0.0: "a", 1.0: "b"}), letters, make_config(sequence__mode="t2v"))
        assert words(sequence) == "^M\n" + "[]" * 13 + "$"

    def test_think2v_says_all_before_any_chunk(self, make_example, make_config, letters):
        example = make_example({0.0: "a", 0.1: "b", 1.0: "c"}, detailed="long")
        actions = build(example, letters, make_config(sequence__mode="think2v"))
        assert words(actions) == "^M\na\nb\nc" + "[]" * 13 + "$"
        config = make_config(sequence__mode="think2v", sequence__think2v="detailed_caption")
        assert words(build(example, letters, config)) == "^M\nlong" + "[]" * 13 + "$"

    def test_think2v_without_its_detailed_caption_is_refused(self, make_example, make_config, letters):
        config = make_config(sequence__mode="think2v", sequence__think2v="detailed_caption")
        with pytest.raises(ValueError, match=r"sample clip has no detailed caption.*think2v to actions"):
            build(make_example(), letters, config)

    def test_a_plan_of_frames_has_a_line_for_every_frame(self, make_example, make_config, letters):
        config = make_config(sequence__mode="think2v", sequence__think2v="frame_actions")
        captions = {start: "a" if chunk == 0 else "a\n\nb\nc" for chunk, start in enumerate(STARTS[:13])}
        plan = "\n".join(captions.values())
        assert words(build(make_example(captions), letters, config)) == f"^M\n{plan}" + "[]" * 13 + "$"
        short = make_example({**captions, STARTS[3]: "a\nb"})
        with pytest.raises(ValueError, match=r"sample clip has 2 lines of words for its chunk 3, "):
            build(short, letters, config)
        with pytest.raises(ValueError, match=r"0 lines of words for its chunk 5"):
            build(make_example({s: t for s, t in captions.items() if s != STARTS[5]}), letters, config)

    def test_no_words_at_all(self, make_example, make_config, letters):
        assert words(build(make_example(meta=""), letters, make_config())) == "^" + "[]" * 13 + "$"

    @pytest.mark.parametrize("mode", ["tv2tv", "think2v", "t2v"])
    def test_padded_chunks_and_their_words_are_left_out(self, mode, make_example, make_config, letters):
        example = make_example({0.0: "a", STARTS[4]: "x"}, valid=2)
        sequence = build(example, letters, make_config(sequence__mode=mode))
        assert words(sequence) == {"tv2tv": "^M\na[][]$", "think2v": "^M\na[][]$", "t2v": "^M\n[][]$"}[mode]
        assert sequence.clean.shape == sequence.noisy.shape == sequence.velocity.shape == (2, 16, 4, 4)
        assert sequence.chunk_loss.shape == sequence.clean_t.shape == sequence.noisy_t.shape == (2,)

    def test_latents_of_another_size_are_refused(self, make_example, make_config, letters):
        with pytest.raises(ValueError, match=r"sample clip: latents are \(13, 16, 4, 4\)"):
            build(make_example(), letters, make_config(video__width=64, sequence__context_tokens=3000))


class TestTextLoss:
    def test_bof_is_predicted_and_eof_never(self, make_example, make_config, letters):
        sequence = build(make_example({0.0: "a", 1 / 16: "b"}), letters, make_config())
        assert words(sequence) == "^M\na[]b[]" + REST + "$"
        assert targets(sequence) == "M\na[.b[.[" + ".[" * 10 + ".$."

    @pytest.mark.parametrize("mode", ["tv2tv", "think2v", "t2v"])
    def test_a_crop_learns_no_end(self, mode, make_example, make_config, letters):
        sequence = build(make_example({0.0: "a"}, ends=False), letters, make_config(sequence__mode=mode))
        assert words(sequence).endswith("[]") and targets(sequence).endswith("[..")

    def test_dropped_text_leaves_no_rows_and_no_false_target(self, make_example, make_config, letters):
        """Rows before dropped words are silent; a BOF that follows in the data too stays a target."""
        config = make_config(sequence__text_dropout=1.0)
        sequence = build(make_example({0.0: "a", 1 / 16: "b"}), letters, config)
        assert words(sequence) == "^[][]" + REST + "$"
        assert targets(sequence) == "...." + "[." * 11 + "$."
        np.testing.assert_array_equal(sequence.text_positions[:5], [0, 1, 6, 7, 12])  # contiguous

    def test_a_dropped_segment_leaves_the_others(self, make_example, make_config, letters):
        config = make_config(sequence__text_dropout=0.2)
        example = make_example({start: "ab" for start in STARTS}, meta="MM")
        kept = set()
        for epoch in range(60):
            sequence = build(example, letters, config, epoch=epoch)
            segments = words(sequence).rstrip("$").replace("^", "").replace("]", "").split("[")[:-1]
            first, *rest = segments
            assert {first} <= {"", "ab", "MM\n", "MM\nab"} and set(rest) <= {"", "ab"}
            kept.add(tuple(segments))
            for row, (token, target) in enumerate(zip(words(sequence), targets(sequence), strict=True)):
                if token == "]" and words(sequence)[row + 1 : row + 2] == "[":
                    assert target == "."  # all chunks but dropped ones have words here
        assert len(kept) > 30

    @pytest.mark.parametrize("probability", [0.05, 0.2, 0.9])
    def test_a_segment_is_dropped_with_the_stated_probability(self, probability):
        """Counts over 4000 epochs lie where all but one in 10^7 binomial counts do; another rule's do not."""
        plan, epochs = Plan(((1,),), ((2,), (), (3,))), 4000
        dropped, text_free = np.zeros(3, int), 0
        for epoch in range(epochs):
            changed = drop_text(plan, Draws(0, epoch, "clip"), probability)
            assert changed.before[1] == ()  # where nothing was said, nothing is dropped
            found = [ids is None for ids in (*changed.prompt, changed.before[0], changed.before[2])]
            dropped += found
            text_free += all(found)
        lowest, highest = binomial_bounds(epochs, probability)
        assert ((lowest <= dropped) & (dropped <= highest)).all()
        free = probability / 2 + (1 - probability / 2) * (probability / (2 - probability)) ** 3
        lowest, highest = binomial_bounds(epochs, free)
        assert lowest <= text_free <= highest
        lowest, highest = binomial_bounds(epochs, 1 - (1 - probability) ** 2)
        assert (dropped < lowest).all()  # the test would notice both kinds with the whole probability

    def test_validation_drops_and_flips_nothing(self, make_example, make_config, letters):
        config = make_config(sequence__text_dropout=1.0, sequence__clean_flip=1.0)
        example = make_example({0.0: "a"})
        sequence = build(example, letters, config, train=False)
        assert words(sequence) == "^M\na" + "[]" * 13 + "$"
        np.testing.assert_array_equal(sequence.clean, example.latents)
        np.testing.assert_array_equal(sequence.clean_t, 1)
        np.testing.assert_array_equal(sequence.noisy, build(example, letters, config).noisy)


class TestBudget:
    """The tests' config has 144 text rows an example, 28 of them for markers."""

    def test_whole_trailing_chunks_go_with_their_words_and_the_end(self, make_example, make_config, letters):
        example = make_example({STARTS[i]: "x" * 12 for i in range(13)})
        sequence = build(example, letters, make_config())
        assert words(sequence) == "^M\n" + ("x" * 12 + "[]") * 10  # 143 rows; with the eleventh 157
        assert targets(sequence).endswith("[..")

    def test_one_row_too_many_costs_a_chunk(self, make_example, make_config, letters):
        fits = make_example({0.0: "x" * (144 - 28 - 2)})
        assert words(build(fits, letters, make_config())).endswith("[]$")
        over = make_example({0.0: "x" * (144 - 28 - 1)})
        assert words(build(over, letters, make_config())).count("[") == 12

    def test_without_room_for_the_first_chunk(self, make_example, make_config, letters):
        with pytest.raises(ValueError, match=r"sample clip: .* takes 145 rows, but it may have 144"):
            build(make_example({0.0: "x" * 140}), letters, make_config())


class TestVideo:
    def test_flow_matching_by_its_equations(self, make_example, make_config, letters):
        """x_t = t x + (1 - t) eps and v = x - eps (eq. 2, 15): eps and x come back from x_t, v and t."""
        example = make_example()
        sequence = build(example, letters, make_config(sequence__clean_flip=0.0))
        t = sequence.noisy_t[:, None, None, None]
        np.testing.assert_allclose(sequence.noisy + (1 - t) * sequence.velocity, example.latents, atol=1e-5)
        epsilon = sequence.noisy - t * sequence.velocity
        assert epsilon.std() == pytest.approx(1, abs=0.05) and abs(epsilon.mean()) < 0.1
        assert len(set(sequence.noisy_t)) == 13  # a time of its own for every chunk
        np.testing.assert_array_equal(sequence.clean, example.latents)
        np.testing.assert_array_equal(sequence.clean_t, 1)

    def test_flipped_copies_are_the_noisy_sample_at_its_true_time(self, make_example, make_config, letters):
        example, config = make_example(), make_config(sequence__clean_flip=0.5)
        share = []
        for epoch in range(60):
            sequence = build(example, letters, config, epoch=epoch)
            flipped = sequence.clean_t != 1
            assert not flipped[0]
            share.append(flipped[1:].mean())
            np.testing.assert_array_equal(sequence.clean[flipped], sequence.noisy[flipped])
            np.testing.assert_array_equal(sequence.clean_t[flipped], sequence.noisy_t[flipped])
            np.testing.assert_array_equal(sequence.clean[~flipped], example.latents[~flipped])
        assert np.mean(share) == pytest.approx(0.5, abs=0.08)  # 720 draws, 4 sigma

    @pytest.mark.parametrize("flag", [True, False])
    def test_loss_on_the_first_chunk_by_option(self, flag, make_example, make_config, letters):
        sequence = build(make_example(), letters, make_config(sequence__first_chunk_loss=str(flag).lower()))
        assert sequence.chunk_loss.tolist() == [flag] + [True] * 12


@pytest.mark.parametrize("noisy_pos", ["shared", "sequential"])
@pytest.mark.parametrize("chunk_pos", ["raster", "single"])
def test_positions_count_the_rows_in_order_of_time(noisy_pos, chunk_pos, make_example, make_config, letters):
    config = make_config(sequence__noisy_pos=noisy_pos, sequence__chunk_pos=chunk_pos)
    sequence = build(make_example({0.0: "ab", 1.0: "c"}), letters, config)
    position, token, chunk = 0, 0, 0
    step = [0, 1, 2, 3] if chunk_pos == "raster" else [0, 0, 0, 0]
    for letter in words(sequence):
        assert sequence.text_positions[token] == position
        position, token = position + 1, token + 1
        if letter == "[":
            assert (sequence.noisy_positions[chunk] == position + np.array(step)).all()
            if noisy_pos == "sequential":
                position = sequence.noisy_positions[chunk].max() + 1
            assert (sequence.clean_positions[chunk] == position + np.array(step)).all()
            position, chunk = sequence.clean_positions[chunk].max() + 1, chunk + 1
    assert (token, chunk) == (len(sequence.text_positions), 13)


CAPTIONS = st.dictionaries(
    st.integers(0, 45).map(lambda frame: frame / 16), st.text("abcdef", min_size=1, max_size=5), max_size=8
).map(lambda captions: dict(sorted(captions.items())))


@settings(max_examples=50, deadline=None)
@given(captions=CAPTIONS, valid=st.integers(1, 13), ends=st.booleans(), epoch=st.integers(0, 9))
def test_visibility_counts_what_stands_before(
    captions, valid, ends, epoch, make_example, make_config, letters
):
    config = make_config(sequence__text_dropout=0.3)
    example = make_example(captions, valid=valid, ends=ends)
    sequence = build(example, letters, config, epoch=epoch)
    text = words(sequence)
    chunks = text.count("[")
    assert chunks == text.count("]") == len(sequence.chunk_sees_text) == valid
    assert len(text) <= config.text_rows_per_example and text.endswith("$") == ends
    assert sequence.text_sees_chunks.tolist() == [text[: row + 1].count("]") for row in range(len(text))]
    bofs = [row for row, letter in enumerate(text) if letter == "["]
    assert sequence.chunk_sees_text.tolist() == [row + 1 for row in bofs]
    for row, target in enumerate(targets(sequence)):
        assert target in (".", text[row + 1 : row + 2]) and target != "]"


@settings(max_examples=50, deadline=None)
@given(captions=CAPTIONS)
def test_words_and_pictures_stand_in_order_of_time(captions, make_example, make_config, letters):
    """Between the chunk before and the first at or after its time stands every caption, in their order."""
    text = words(build(make_example(captions), letters, make_config()))
    spoken = text.removeprefix("^M\n").rstrip("$").replace("]", "").split("[")[:-1]
    for i, said in enumerate(spoken):
        earlier = STARTS[i - 1] if i else -1
        assert said == "\n".join(t for s, t in captions.items() if earlier < s <= STARTS[i])


class TestSharedWithTheSampler:
    def test_a_plan_grown_step_by_step_is_the_training_sequence(self, make_example, make_config, letters):
        """What the sampler feeds row by row has the same tokens at the same positions (shared positions)."""
        config = make_config()
        captions = {0.0: "a", 1 / 16: "b", 1.0: "cd"}
        sequence = build(make_example(captions, ends=False), letters, config)
        cursor = Cursor(config.sequence, config.tokens_per_chunk)
        fed: list[int] = []
        text_at: list[int] = []
        chunks_at: list[np.ndarray] = []

        def say(ids):
            fed.extend(ids)
            text_at.extend(cursor.text(len(ids)))

        say([letters.bos, *prompt_ids(letters, "M")])
        for chunk in range(13):
            said = [t for s, t in captions.items() if chunk_of_text(s) == chunk]
            for token in text_ids(letters, said):
                say([token])
            say([letters.bof])
            chunks_at.append(cursor.chunk()[0])
            say([letters.eof])
        np.testing.assert_array_equal(fed, sequence.text_ids)
        np.testing.assert_array_equal(text_at, sequence.text_positions)
        np.testing.assert_array_equal(chunks_at, sequence.clean_positions)

    def test_a_window_keeps_its_second_half(self, letters):
        plan = Plan((prompt_ids(letters, "M"),), tuple((ord(x),) for x in "abcd"))
        slid = Plan(plan.prompt, plan.before[2:])
        assert ["".join(map(chr, run.ids)) for run in slid.runs(letters)] == ["^M\nc[", "]d[", "]"]

    def test_the_text_free_sequence_is_the_one_that_dropout_trains(self, make_example, make_config, letters):
        config = make_config(sequence__text_dropout=1.0)
        example = make_example({0.0: "a", 1.0: "b"})
        dropped = build(example, letters, config)
        free = interleave(example, letters, config.sequence).without_text()
        assert words(dropped) == "".join(map(chr, (i for run in free.runs(letters) for i in run.ids)))


def test_a_pure_function_of_seed_epoch_and_sample(make_example, make_config, letters):
    config, example = make_config(sequence__text_dropout=0.5), make_example({0.0: "ab", 1.0: "cd"})
    first = build(example, letters, config, seed=3, epoch=5)
    build(make_example(name="another"), letters, config)
    again = build(example, letters, config, seed=3, epoch=5)
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    for seed, epoch in ((4, 5), (3, 6)):
        assert not np.array_equal(first.noisy, build(example, letters, config, seed=seed, epoch=epoch).noisy)
    fewer = build(make_example(valid=4), letters, config, seed=3, epoch=5)
    np.testing.assert_array_equal(fewer.noisy, first.noisy[:4])  # draws of a chunk know only its index


def test_an_example_may_be_given_another_budget(make_example, make_config, letters):
    """Rows that short examples share give each of them its own."""
    example, config = make_example({0.0: "a", 1 / 16: "b"}), make_config()
    rows = len(build(example, letters, config).text_ids)
    for budget in (rows, rows - 1, 9, rows + 5):
        cut = build_sequence(example, letters, config, seed=0, epoch=0, text_rows=budget)
        assert rows - len(cut.text_ids) <= max(0, rows - budget) + 2 and len(cut.text_ids) <= budget
        assert len(cut.clean) == 13 if budget >= rows else len(cut.clean) < 13
    with pytest.raises(ValueError, match="takes 6 rows, but it may have 5"):
        build_sequence(example, letters, config, seed=0, epoch=0, text_rows=5)
