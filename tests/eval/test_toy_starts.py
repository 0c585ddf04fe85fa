import dataclasses

import numpy as np

from megatv.data.sequence import chunk_start_seconds
from megatv.data.toy_world import simulate, words
from megatv.eval.toy_starts import start_requests, told


def test_a_start_brings_no_words_and_told_are_those_of_the_true_episode_before_every_chunk():
    episodes = [simulate(seed) for seed in range(3)]
    requests = start_requests(episodes, np.zeros((3, 13, 16, 4, 4), np.float32), seed=2)
    assert [request.seed for request in requests] == [6, 7, 8]
    assert all(request.first_latents.shape == (1, 16, 4, 4) for request in requests)
    assert not any(request.given_words or request.interventions for request in requests)
    for request, episode, plain in zip(told(requests, episodes), episodes, requests, strict=True):
        assert request.given_words == (words(episode.actions[0]),)
        said = [(i.seconds, i.text) for i in request.interventions]
        assert said == [(chunk_start_seconds(k), words(episode.actions[k])) for k in range(1, 13)]
        assert dataclasses.replace(request, interventions=()).first_latents is plain.first_latents
