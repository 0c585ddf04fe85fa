"""The controller's vector and its words: the paper's two examples, and every vector comes back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatv.data.csgo import META_PROMPT, caption_actions
from megatv.data.csgo_actions import (
    ACTION_VALUES,
    KEYS,
    MOUSE_X,
    MOUSE_Y,
    GameAction,
    are_lines,
    chunk_words,
    decode_action,
    encode_action,
    meaning,
    parse_line,
)
from megatv.data.tokenizer import load_tokenizer

LLAMA3 = Path(__file__).parents[3] / "shared/llama3/tokenizer.model"

# TV2TV section 3.2: the two examples of four actions
FIRST = "(w, d, shift). 10, 0, 0, 0.\n(d). 4, 0, 0, 0.\n(d). 4, 0, 0, 0.\n(d). 0, 0, 1, 0."
SECOND = "(d). -100, 10, 0, 0.\n(d). -100, 4, 0, 0.\n(.). -60, 0, 0, 0.\n(.). -4, 0, 0, 1."

actions = st.builds(
    GameAction,
    st.sets(st.sampled_from(KEYS)).map(lambda held: tuple(key for key in KEYS if key in held)),
    st.sampled_from(MOUSE_X),
    st.sampled_from(MOUSE_Y),
    st.integers(0, 1),
    st.integers(0, 1),
)


def vector(keys=(), x=11, y=7, left=0, right=0):
    """The stored layout, written out by hand: places of the keys, of the mouse's steps, and the clicks."""
    values = np.zeros(51)
    values[list(keys)] = 1
    values[11:13] = left, right
    values[13 + x] = values[36 + y] = 1
    return values


def test_the_papers_examples():
    w, d, shift = 0, 3, 6  # w a s d space ctrl shift 1 2 3 r
    first = [vector((w, d, shift), x=14), vector((d,), x=13), vector((d,), x=13), vector((d,), left=1)]
    second = [vector((d,), 4, 10), vector((d,), 4, 9), vector(x=5), vector(x=9, right=1)]
    assert chunk_words(map(decode_action, first)) == FIRST
    assert chunk_words(map(decode_action, second)) == SECOND


def test_the_layout_has_51_values():
    assert ACTION_VALUES == 51 and len(KEYS) == 11 and len(MOUSE_X) == 23 and len(MOUSE_Y) == 15
    everything = decode_action(vector(range(11), 0, 14, 1, 1)).words()
    assert everything == "(w, a, s, d, space, ctrl, shift, 1, 2, 3, r). -1000, 200, 1, 1."
    assert decode_action(vector()).words() == "(.). 0, 0, 0, 0."  # stored as -0.0; printed without a sign
    assert list(MOUSE_X) == sorted(MOUSE_X) and list(MOUSE_Y) == sorted(MOUSE_Y)


@given(actions)
def test_every_action_comes_back_from_its_vector(action):
    assert decode_action(encode_action(action)) == action
    assert decode_action(encode_action(action).astype(np.float16)) == action


@given(actions, actions)
def test_two_actions_never_have_the_same_words(one, other):
    assert (one.words() == other.words()) == (one == other)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 0.5, "has 0.5 among its keys, where only 0 and 1 can be"),
        (12, 2.0, "has 2 among its clicks"),
        (2, np.nan, "has nan among its keys"),
        (13, 1.0, "says 2 steps of mouse_x instead of exactly one"),
        (36 + 7, 0.0, "says 0 steps of mouse_y instead of exactly one"),
    ],
)
def test_vectors_that_cannot_be_are_refused(place, value, message):
    wrong = vector()
    wrong[place] = value
    with pytest.raises(ValueError, match=message):
        decode_action(wrong)


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"has the shape \[50\] instead of \[51\]"):
        decode_action(vector()[:50])


def test_four_lines_a_chunk_and_one_for_one_frame_latents():
    numbered = [GameAction(mouse_x=MOUSE_X[frame % 23], mouse_y=MOUSE_Y[frame // 23]) for frame in range(98)]
    captions = caption_actions(numbered)
    lines = [caption.text.split("\n") for caption in captions]
    assert [len(group) for group in lines] == 2 * [1, *[4] * 12]
    assert [line for group in lines for line in group] == [action.words() for action in numbered]
    starts = [caption.start_seconds * 16 for caption in captions]
    assert starts == [0, *range(1, 49, 4), 49, *range(50, 98, 4)]


@given(st.integers(1, 98))
def test_a_chunk_that_is_not_filled_has_no_words(frames):
    lines = [caption.text.count("\n") + 1 for caption in caption_actions([GameAction()] * frames)]
    assert lines == (2 * [1, *[4] * 12])[: len(lines)] and 0 <= frames - sum(lines) < 4


@pytest.mark.skipif(
    not LLAMA3.is_file(), reason=f"{LLAMA3} is absent: the Llama-3 tokenizer is not ours to ship"
)
def test_a_busy_clip_fits_the_papers_context():
    """Seven keys held, both clicks and the mouse at its widest in all 98 frames: within 2880 text rows."""
    llama3 = load_tokenizer(str(LLAMA3))
    assert [len(llama3.encode(text)) for text in (FIRST, SECOND)] == [60, 56]
    busy = caption_actions(
        [GameAction(("w", "d", "space", "ctrl", "shift", "1", "r"), -1000, -200, 1, 1)] * 98
    )
    words = sum(len(llama3.encode(caption.text)) for caption in busy)
    markers = 1 + 2 * 26 + len(llama3.encode(META_PROMPT + "\n"))
    joined = len(busy)  # Think2V joins the chunks' words by newlines
    assert words + joined + markers <= 15360 - 2 * 26 * 240


@given(
    st.builds(
        GameAction,
        st.lists(st.sampled_from(KEYS), unique=True).map(lambda held: tuple(k for k in KEYS if k in held)),
        st.sampled_from(MOUSE_X),
        st.sampled_from(MOUSE_Y),
        st.integers(0, 1),
        st.integers(0, 1),
    )
)
def test_a_line_is_read_as_it_was_written(action):
    assert parse_line(action.words()) == action and are_lines(f"{action.words()}\n{action.words()}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "jump",
        "(w). 0, 0, 0, 0",
        "(w). 3, 0, 0, 0.",
        "(d, w). 0, 0, 0, 0.",
        "(w, w). 0, 0, 0, 0.",
        "(x). 0, 0, 0, 0.",
        "(w). 00, 0, 0, 0.",
        "(w). -0, 0, 0, 0.",
        "(w).  0, 0, 0, 0.",
        "(). 0, 0, 0, 0.",
        "(w). 0, 0, 2, 0.",
        "(w). 0, 0, 0, 0.\n",
        "(w). 1\u0660, 0, 0, 0.",
        "(w). " + "1" * 5000 + ", 0, 0, 0.",
    ],
)
def test_any_other_text_is_no_line(text):
    assert parse_line(text) is None and not are_lines(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(.). 0, 0, 0, 0.", "stand still"),
        ("(w, d, shift). 10, 0, 0, 0.", "forward, step right, walk, turn right 10"),
        ("(a, r). -60, -4, 1, 1.", "step left, reload, turn left 60, look up 4, shoot, right click"),
        (
            "\n".join(["(w). 0, 0, 0, 0."] * 3 + ["(w, space). 0, 2, 0, 0."]),
            "forward; forward, jump, look down 2",
        ),
        ("(w). 0, 0, 0, 0.\njump", None),
        ("(w). 3, 0, 0, 0.", None),
        ("A boy runs.", None),
        ("", None),
    ],
)
def test_lines_have_a_meaning_for_people(text, said):
    assert meaning(text) == said
