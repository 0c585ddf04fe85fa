"""The scoring tool on players whose scores are known: one that obeys every word, and one that obeys none."""

import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np

from megatv.config import load_config
from megatv.data.toy_pictures import render
from megatv.data.toy_world import Action, State, chunk_starts, parse_words, simulate, step, words
from megatv.sample import ChunkWords, Result
from megatv.sample.timeline import chunks_within, frames_of

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("score_toy_world", ROOT / "tools/score_toy_world.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

STARTS = 24
INTERVENTIONS = ("jump", "left_click", "reload", "backward")
RECORD = {"checkpoint": "run", "step": 1, "mode": "tv2tv", "starts": STARTS, "seconds": 1.0}


class Exact:
    """A codec and statistics that change nothing: a frame is its own latent."""

    def encode(self, frames):
        return frames

    def decode(self, latents):
        return latents

    def normalize(self, latents):
        return latents


class Player:
    """Stands where a sampler stands and plays the world itself, with the words or without regard to them."""

    def __init__(self, obeys: bool, mode: str = "tv2tv"):
        config = load_config(ROOT / "configs/toy_world.yaml", [f"sequence.mode={mode}"])
        self.config, self.obeys = config, obeys
        self.codec = self.stats = Exact()
        self.asked = []

    def generate(self, requests, settings):
        self.asked += requests
        return [self._play(request) for request in requests]

    def _play(self, request):
        episode = simulate(tool.FIRST_EPISODE + request.seed % STARTS)
        assert np.array_equal(request.first_latents, episode.frames[:1])
        chunks = 13 if request.seconds is None else chunks_within(request.seconds, 1)
        starts = chunk_starts(frames_of(chunks, 1))
        spoken = {round(i.seconds * 16): parse_words(i.text) for i in request.interventions}
        states, transcript = [episode.states.at(0)], []
        for chunk, (first, end) in enumerate(pairwise(starts)):
            action = spoken.get(first, episode.actions[chunk])
            source = "given" if chunk == 0 else "forced" if first in spoken else "own"
            transcript.append(ChunkWords(first / 16, words(action) if chunk else "", source))
            for frame in range(max(first, 1), end):
                states.append(step(states[-1], action if self.obeys else Action(), frame == first))
        frames = render(*State(*np.array([[int(field) for field in state] for state in states]).T))
        return Result(np.zeros((chunks, 1)), frames, tuple(transcript), "", False, 1, 1, 1)


def test_an_obedient_player_scores_full_marks():
    player = Player(obeys=True)
    scores = tool.score(player, STARTS, 16, 0, player.config.sample)
    assert scores["ended_early"] == 0 and scores["psnr"] > 50
    assert scores["valid_lines"]["mean"] == 1.0 and scores["valid_lines"]["n"] == 12 * STARTS
    assert scores["impossible_transitions"]["mean"] < 0.002
    assert all(followed["mean"] > 0.99 for followed in scores["words_followed"].values())
    assert [(row["action"], row["seconds"]) for row in scores["interventions"]] == [
        (name, seconds) for seconds in (0.8125, 2.8125) for name in INTERVENTIONS
    ]
    for row in scores["interventions"]:
        assert row["done"]["n"] >= 8
        assert row["done"]["mean"] > 0.98, row
        assert row["without"]["mean"] < 0.6
    assert scores["interventions_done_mean"] > 0.98 and scores["interventions_without_mean"] < 0.4
    alone = player.asked[:STARTS]
    assert [r.seed for r in alone] == list(range(STARTS)) and not any(r.interventions for r in alone)
    table = tool.table({**RECORD, **scores})
    assert "done: jump at 0.81 s" in table and "100.0 %" in table


def test_a_player_that_ignores_words_scores_nothing():
    player = Player(obeys=False)
    scores = tool.score(player, STARTS, STARTS, 3, player.config.sample)
    assert scores["interventions_done_mean"] == scores["interventions_without_mean"] == 0.0
    assert scores["words_followed"]["turn"]["mean"] == 0.0
    assert scores["impossible_transitions"]["mean"] < 0.002
    assert {r.seed for r in player.asked} == set(range(3 * STARTS, 4 * STARTS))


def test_t2v_is_scored_by_its_pictures_alone():
    player = Player(obeys=False, mode="t2v")
    scores = tool.score(player, STARTS, STARTS, 0, player.config.sample)
    assert len(player.asked) == STARTS and "interventions" not in scores and "valid_lines" not in scores
    assert "PSNR" in tool.table({**RECORD, **scores})
