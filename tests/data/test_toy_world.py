import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatv.data.toy_pictures import LEVEL_OF_PHASE, RISE, SIZE, render
from megatv.data.toy_world import (
    ACTIONS,
    META_PROMPT,
    Action,
    State,
    chunk_starts,
    parse_words,
    simulate,
    step,
    words,
)

REST = State(*np.array([0, 4, 0, 2, 0, 0]))


def play(state: State, actions: dict[int, Action], frames: int = 49) -> State:
    """States after `state`, with the given actions in some chunks and no keys in the others; fields [F]."""
    starts = chunk_starts(frames)
    history = []
    for chunk, (start, end) in enumerate(pairwise(starts)):
        for frame in range(start, end):
            state = step(state, actions.get(chunk, Action()), frame == start)
            history.append(state)
    return State(*np.array(history).T)


def test_chunks_restart_with_every_group():
    starts = chunk_starts(98)
    assert len(starts) == 27 and starts[-1] == 98
    assert starts[:3].tolist() == [0, 1, 5] and starts[12:15].tolist() == [45, 49, 50]
    # Every time that TV2TV prints beside its examples is the start of a chunk.
    printed = [0.8125, 2.8125, 0.56, 2.56, 4.63, 4.88, 1.56, 3.13, 5.13]
    assert all(round(16 * seconds) in starts for seconds in printed)


def test_a_jump_takes_eight_frames_from_the_chunk_of_its_words():
    states = play(REST, {4: Action(jump=1), 5: Action(jump=1)})
    assert RISE[LEVEL_OF_PHASE[states.jump]][12:23].tolist() == [0, 2, 4, 5, 6, 6, 5, 4, 2, 0, 0]


def test_a_held_key_jumps_again_on_landing():
    states = play(REST, {4: Action(jump=1), 6: Action(jump=1)})
    assert states.jump[13:22].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 1]


def test_a_shot_flashes_for_two_frames_and_costs_a_round():
    states = play(REST, {2: Action(shoot=1), 3: Action(shoot=1), 4: Action(shoot=1)})
    assert states.flash[4:16].tolist() == [0, 2, 1, 0, 0, 2, 1, 0, 0, 0, 0, 0]
    assert states.ammo[[4, 5, 9, 13, 48]].tolist() == [2, 1, 0, 0, 0]


def test_a_shot_in_a_one_frame_chunk_flashes_into_the_next():
    states = play(REST, {0: Action(shoot=1)})
    assert states.flash[:3].tolist() == [2, 1, 0]


def test_a_reload_lowers_the_gun_for_eight_frames_then_holds_four_rounds():
    states = play(REST, {2: Action(shoot=1), 3: Action(reload=1), 4: Action(shoot=1), 5: Action(shoot=1)})
    assert states.reload[8:18].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]
    assert states.ammo[8:18].tolist() == [1] * 9 + [3]  # four rounds, one shot at once
    assert states.flash[9:18].tolist() == [0] * 8 + [2]


def test_reloading_wins_over_a_click_and_ends_a_flash():
    states = play(REST, {0: Action(shoot=1), 1: Action(shoot=1, reload=1)})
    assert (
        states.flash[:2].tolist() == [2, 0] and states.ammo[:9].tolist() == [1] * 9 and states.reload[1] == 1
    )


def test_moves_stop_at_the_walls_and_turns_wrap():
    forward = play(REST, {chunk: Action(move=1, turn=-2) for chunk in range(13)})
    assert forward.depth[[0, 1, 4, 5, 48]].tolist() == [5, 6, 6, 7, 7]
    assert forward.yaw[:2].tolist() == [62, 60]
    assert play(REST, {chunk: Action(move=-1) for chunk in range(13)}).depth[-1] == 0


@given(st.integers(0, 2**32), st.sampled_from(ACTIONS), st.booleans())
def test_many_worlds_step_as_each_alone(seed, action, key_frame):
    rng = np.random.default_rng(seed)
    many = State(*(rng.integers(0, high, 7) for high in (64, 8, 9, 5, 9, 3)))
    together = step(many, action, key_frame)
    for index in range(7):
        assert step(many.at(index), action, key_frame) == together.at(index)


def test_episodes_are_a_function_of_the_seed():
    np.random.seed(1)
    one, again, other = simulate(5, groups=2), simulate(5, groups=2), simulate(6, groups=2)
    assert one.frames.shape == (98, SIZE, SIZE, 3) and one.frames.dtype == np.uint8 and len(one.actions) == 26
    np.testing.assert_array_equal(one.frames, again.frames)
    assert one.actions == again.actions != other.actions


def test_the_world_stays_what_it_is():
    """Trained codecs, shards and scores hold for these very pictures; a new world needs a new hash here."""
    digest = hashlib.sha256(b"".join(simulate(seed).frames.tobytes() for seed in range(4))).hexdigest()
    assert digest[:16] == "8310f70ed7f7bcb0"


def test_frames_show_the_states_that_the_actions_lead_to():
    episode = simulate(3, groups=2)
    np.testing.assert_array_equal(episode.frames, render(*episode.states))
    starts = chunk_starts(98)
    for chunk, action in enumerate(episode.actions[1:], 1):
        state = episode.states.at(starts[chunk] - 1)
        for frame in range(starts[chunk], starts[chunk + 1]):
            state = step(state, action, frame == starts[chunk])
            assert state == episode.states.at(frame)


def test_the_player_acts_about_as_often_as_the_papers():
    actions = [action for seed in range(150) for action in simulate(seed).actions]
    for key in ("jump", "shoot", "reload"):
        assert 0.05 < np.mean([getattr(action, key) for action in actions]) < 0.28
    moves, turns = ([getattr(a, key) for a in actions] for key in ("move", "turn"))
    assert all(0.25 < np.mean(np.equal(moves, move)) < 0.42 for move in (-1, 0, 1))
    assert all(0.25 < np.mean(np.equal(turns, turn)) < 0.42 for turn in (-2, 0, 2))


def test_words_follow_the_grammar_of_csgo():
    assert words(Action(move=1, turn=2, jump=1, shoot=1)) == "(w, space). 2, 0, 1, 0."
    assert words(Action()) == "(.). 0, 0, 0, 0."
    assert words(Action(move=-1, turn=-2, reload=1)) == "(s, r). -2, 0, 0, 0."
    assert len(set(map(words, ACTIONS))) == len(ACTIONS) == 72
    assert all(parse_words(words(action)) == action for action in ACTIONS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(.). 0, 0, 0, 0",
        "(.). 0, 0, 0, 0. ",
        " (.). 0, 0, 0, 0.",
        "(.). 0, 0, 0, 0.\n",
        "(space, w). 0, 0, 0, 0.",
        "(w, s). 0, 0, 0, 0.",
        "(w, .). 0, 0, 0, 0.",
        "(w w). 0, 0, 0, 0.",
        "(a). 0, 0, 0, 0.",
        "(w). 4, 0, 0, 0.",
        "(w). 0, 2, 0, 0.",
        "(w). 0, 0, 0, 1.",
        "(w). 0, 0, 2, 0.",
        "(.). 0, 0, 0, 0.(.). 0, 0, 0, 0.",
        META_PROMPT,
    ],
)
def test_other_text_is_not_an_action(text):
    assert parse_words(text) is None


def test_captions_tell_every_chunk_at_its_start():
    episode = simulate(0, groups=2)
    captions = episode.captions()
    assert [16 * caption.start_seconds for caption in captions] == chunk_starts(98)[:-1].tolist()
    assert [parse_words(caption.text) for caption in captions] == list(episode.actions)
    assert [captions[i].start_seconds for i in (0, 1, 4, 12, 13, 14)] == [
        0,
        1 / 16,
        13 / 16,
        45 / 16,
        49 / 16,
        50 / 16,
    ]
