import numpy as np
import pytest
import torch

from megatv.data.toy_world import State, chunk_starts, simulate
from megatv.eval.inverse_dynamics import FEATURES, PARTS, clips_of, labels_of, train_eye


@pytest.fixture(scope="module")
def episodes():
    return [simulate(seed, groups=2) for seed in range(30)]


@pytest.fixture(scope="module")
def states(episodes):
    return State(*(np.stack(field) for field in zip(*(e.states for e in episodes), strict=True)))


@pytest.fixture(scope="module")
def clips(episodes):
    return clips_of(np.stack([e.frames for e in episodes]), chunk_starts(98))


def test_clips_are_the_four_frame_chunks_with_the_frame_before(episodes, clips):
    assert clips.shape == (30, 24, 5, 32, 32, 3)
    assert np.array_equal(clips[3, 0], episodes[3].frames[:5])
    assert np.array_equal(clips[3, 12], episodes[3].frames[49:54])  # the first four-frame chunk of group 2


def test_labels_are_the_actions_that_have_an_effect(episodes, states):
    labels = labels_of(states, chunk_starts(98))
    assert labels.shape == (30, 24, 5)
    chunks = [i for i in range(26) if i % 13]
    for row, episode in enumerate(episodes):
        actions = [episode.actions[i] for i in chunks]
        assert labels[row, :, 0].tolist() == [action.turn // 2 + 1 for action in actions]
        assert labels[row, :, 3].tolist() == [action.shoot for action in actions]  # it never shoots in vain
        assert labels[row, :, 4].tolist() == [action.reload for action in actions]
    assert labels.max((0, 1)).tolist() == [count - 1 for count in PARTS.values()] and labels.min() == 0


@pytest.mark.slow
def test_the_eye_learns_to_see_and_is_a_function_of_its_data(clips, states):
    flat, labels = clips.reshape(-1, *clips.shape[2:]), labels_of(states, chunk_starts(98)).reshape(-1, 5)
    eye = train_eye(flat, labels, steps=200, batch=64)
    told = eye.accuracy(flat, labels)
    common = {name: np.bincount(labels[:, i]).max() / len(labels) for i, name in enumerate(PARTS)}
    assert told["turn"] > common["turn"] + 0.2, (told, common)
    features = eye.features(clips[:2])
    assert features.shape == (2, 24, FEATURES) and np.abs(features).max() <= 1
    again = train_eye(flat, labels, steps=3, batch=64).see[0].weight
    torch.testing.assert_close(
        again, train_eye(flat, labels, steps=3, batch=64).see[0].weight, rtol=0, atol=0
    )
