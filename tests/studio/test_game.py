"""Keys become the words of the next chunk."""

import time
from itertools import product

import pytest

from megatv.data.toy_world import Action, parse_words
from megatv.studio.game import Game

pytestmark = pytest.mark.timeout(60)


def test_held_and_tapped_keys_count_once_each():
    game = Game()
    game.press(Action(1, -1, 0, 0, 0))
    game.press(Action(1, -1, 1, 0, 0))
    game.press(Action(1, 0, 0, 0, 0))  # `a` and the space bar were tapped, w is still held
    assert game.words(one_frame=False) == "(w, space). -2, 0, 0, 0."
    game.used(one_frame=False)
    assert game.words(one_frame=False) == "(w). 0, 0, 0, 0."


def test_a_chunk_of_one_frame_leaves_the_keys_to_the_next():
    game = Game()
    game.press(Action(0, 1, 0, 1, 1))
    game.press(Action())
    assert game.words(one_frame=True) == "(.). 2, 0, 0, 0."
    game.used(one_frame=True)
    assert game.words(one_frame=False) == "(r). 0, 0, 1, 0."


def test_every_hand_on_the_keys_is_a_line_of_the_world():
    for action in (Action(*hand) for hand in product((-1, 0, 1), (-1, 0, 1), (0, 1), (0, 1), (0, 1))):
        game = Game()
        game.press(action)
        assert parse_words(game.words(one_frame=False)) == action._replace(turn=2 * action.turn)


def test_a_late_model_does_not_hurry_afterwards(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    game = Game()
    assert game.wait(1.0) == 0  # the clock starts here
    assert game.wait(1.25) == pytest.approx(0.25)
    now = 101.0  # 0.75 s too late
    assert game.wait(1.25) == 0
    assert game.wait(1.5) == pytest.approx(0.25)


def test_the_person_plays(studio):
    with studio.tab(studio.session()) as tab:
        began = time.monotonic()
        tab.make(seconds=3.0, game=True, mode="tv2tv")
        tab.until("game", on=True)
        tab.until("words", chunk=1)
        tab.say("keys", take=0, move=1, turn=1)
        tab.until("words", text="(w). 2, 0, 0, 0.")
        tab.say("keys", take=0, jump=1)
        tab.say("keys", take=0)  # a tap
        tab.until("words", text="(space). 0, 0, 0, 0.")
        tab.until("status", status="finished")
        said = [m for m in tab.story() if m["type"] == "words"]
        assert {m["source"] for m in said[1:]} == {"forced"}
        assert len([m for m in said if "space" in m["text"]]) == 1
        assert time.monotonic() - began > 2.4  # 3 s of world take 3 s, less the first and the last chunk
        tab.until("game", on=False)


def test_words_given_before_the_first_picture_are_not_the_keys_to_change(studio):
    with studio.tab(studio.session()) as tab:
        tab.make(example=0, seconds=1.0, game=True, image_words="(w). 0, 0, 0, 0.")
        tab.until("words", chunk=1)
        assert 0 not in studio.streams[0].spoken and studio.streams[0].spoken[1] == "(.). 0, 0, 0, 0."


def test_the_controls_go_back_to_the_model(open_studio):
    studio = open_studio(0.002)
    with studio.tab(studio.session()) as tab:
        tab.make(game=True)
        tab.until("frames", chunk=2)
        tab.say("play", take=0, on=False)
        tab.until("status", status="finished")
        assert tab.until("words", chunk=12)["source"] == "own"


def test_modes_without_words_before_every_chunk_have_no_keys(studio):
    with studio.tab(studio.session()) as tab:
        tab.make(mode="t2v", game=True)
        assert "tv2tv" in tab.until("error")["message"]
