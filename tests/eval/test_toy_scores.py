import numpy as np
import pytest

from megatv.data.toy_pictures import LEVEL_OF_PHASE, render
from megatv.data.toy_world import Action, State, chunk_starts, parse_words, simulate, step, words
from megatv.eval.toy_scores import (
    INTERVENTIONS,
    SHOWN_BY,
    impossible_transitions,
    intervention_scores,
    intervention_words,
    possible,
    residual_limit,
    share,
    shown,
    valid_lines,
    wilson,
    words_followed,
)
from megatv.eval.toy_world import Reading, check_reader, read_states, reader_accuracy

VIDEOS = 24


@pytest.fixture(scope="module")
def episodes():
    return [simulate(seed, groups=2) for seed in range(VIDEOS)]


@pytest.fixture(scope="module")
def frames(episodes):
    return np.stack([episode.frames for episode in episodes])


@pytest.fixture(scope="module")
def truth(episodes):
    return State(*(np.stack(field) for field in zip(*(e.states for e in episodes), strict=True)))


@pytest.fixture(scope="module")
def lines(episodes):
    return [[words(action) for action in episode.actions] for episode in episodes]


def noisy(frames, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, frames.shape)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)


def test_true_frames_are_read_exactly(frames, truth):
    reading = read_states(frames)
    assert reader_accuracy(reading, truth) == dict.fromkeys(State._fields, 1.0)
    assert reading.residual.max() == 0 and np.allclose(reading.psnr, 58.92, atol=0.01)


def test_codec_noise_does_not_confuse_the_reader(frames, truth):
    accuracy = reader_accuracy(check_reader(noisy(frames, 8), truth), truth)
    assert min(accuracy.values()) >= 0.995, accuracy


def test_a_blurred_picture_is_still_read(frames, truth):
    """A codec blurs more than it adds noise: average each pixel with its four neighbours."""
    padded = np.pad(frames.astype(np.float32), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifts = [
        padded[:, :, 1 + y : 33 + y, 1 + x : 33 + x] for y, x in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
    ]
    blurred = np.mean(shifts, axis=0).astype(np.uint8)
    assert min(reader_accuracy(read_states(blurred), truth).values()) >= 0.995


def test_any_state_is_read_from_its_first_frame():
    rng = np.random.default_rng(0)
    yaw, depth, jump, ammo, reload = (rng.integers(0, high, 3000) for high in (32, 8, 9, 5, 9))
    flash = np.where(reload == 0, rng.integers(0, 3, 3000), 0)
    read = read_states(render(2 * yaw, depth, jump, ammo, reload, flash)[:, None]).states.at(np.s_[:, 0])
    assert (read.yaw == 2 * yaw).all() and (read.depth == depth).all() and (read.ammo == ammo).all()
    assert (LEVEL_OF_PHASE[read.jump] == LEVEL_OF_PHASE[jump]).all()
    assert (LEVEL_OF_PHASE[read.reload] == LEVEL_OF_PHASE[reload]).all()
    assert ((read.flash > 0) == (flash > 0)).all()


def test_the_residual_is_the_distance_to_the_nearest_picture(frames):
    shifted = np.where(frames < 128, frames + 5, frames - 5).astype(np.uint8)
    reading = read_states(shifted[:2])
    np.testing.assert_allclose(reading.residual, 25)
    np.testing.assert_allclose(reading.psnr, 10 * np.log10(255**2 / 25), rtol=1e-6)


def test_a_codec_that_hides_the_state_is_refused(frames, truth):
    with pytest.raises(ValueError, match="train the codec longer"):
        check_reader(np.full_like(frames, 128), truth)


def test_true_episodes_follow_their_words(frames, truth, lines):
    followed = words_followed(read_states(frames).states, lines)
    assert followed["all"].all() and len(followed["all"]) == VIDEOS * 25
    assert all(followed[name].all() and len(followed[name]) > 20 for name in SHOWN_BY)
    # Independent count of one of them: every shot has one frame with a fresh flash.
    assert len(followed["shoot"]) == (truth.flash[:, 1:] == 2).sum()
    assert len(followed["jump"]) == (truth.jump[:, 1:] == 1).sum()
    assert len(followed["reload"]) == (truth.reload[:, 1:] == 1).sum()
    assert len(followed["move"]) == (np.diff(truth.depth) != 0).sum()


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("turn", {"turn": 2}),
        ("move", {"move": 1}),
        ("jump", {"jump": 1}),
        ("shoot", {"shoot": 1}),
        ("reload", {"reload": 1}),
    ],
)
def test_words_that_the_pictures_do_not_follow_are_found(truth, lines, name, changed):
    """Give one idle chunk words that it does not show: exactly one more entry, and it is false."""
    effective = {"jump": truth.jump == 0, "move": truth.depth < 7}
    idle = {"reload": (truth.reload == 0), "shoot": (truth.reload == 0) & (truth.ammo > 0)}
    starts = chunk_starts(98)
    can = (effective | idle).get(name, truth.yaw >= 0)
    video, chunk = next(
        (v, c)
        for v in range(VIDEOS)
        for c in range(1, 26)
        if can[v, starts[c] - 1]
        and parse_words(lines[v][c])._asdict()[next(iter(changed))] == 0
        and not parse_words(lines[v][c]).reload
    )
    lied = [list(video_lines) for video_lines in lines]
    lied[video][chunk] = words(parse_words(lines[video][chunk])._replace(**changed))
    before, after = words_followed(truth, lines), words_followed(truth, lied)
    assert (~after["all"]).sum() == 1
    assert len(after[name]) == len(before[name]) + 1 and (~after[name]).sum() == 1


def test_chunks_without_a_valid_line_are_left_out(truth, lines):
    broken = [[*video[:5], "(w. 0", *video[6:]] for video in lines]
    assert len(words_followed(truth, broken)["all"]) == VIDEOS * 24
    assert valid_lines(lines).all() and valid_lines(broken).mean() == 25 / 26


def test_true_episodes_are_possible(frames):
    assert not impossible_transitions(read_states(frames).states).any()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("yaw", {20: 4}),  # turns by 4 pixels
        ("depth", {20: 3}),  # moves, but not at a chunk's start
        ("depth", {21: 2}),  # two depths at once
        ("jump", {20: 1}),  # takes off in mid-chunk
        ("jump", {21: 2}),  # skips a phase
        ("ammo", {21: 3}),  # a round from nowhere
        ("ammo", {21: 1}),  # a round lost without a flash
        ("flash", {21: 2}),  # a flash that costs no round
        ("reload", {21: 5}),  # a reload that starts in its middle
    ],
)
def test_impossible_transitions_are_found(field, values):
    """A still player, changed for good from one frame on: only the step into that frame is impossible."""
    still = State(*(np.full((1, 49), value) for value in (0, 4, 0, 2, 0, 0)))
    assert not impossible_transitions(still).any()
    changed = getattr(still, field).copy()
    for frame, value in values.items():
        changed[0, frame] = value
    found = impossible_transitions(still._replace(**{field: changed}))[0]
    (frame,) = values
    assert found[frame - 1] and not found[: frame - 1].any() and not found[frame + 1 :].any()


def roll_out(start: State, chunk: int, action: Action) -> State:
    """Hold no keys but in one chunk; fields [V, 49]."""
    history, state = [], start
    starts = chunk_starts(49)
    for index in range(13):
        for frame in range(starts[index], starts[index + 1]):
            state = step(state, action if index == chunk else Action(), frame == starts[index])
            history.append(state)
    return State(*(np.stack(field, axis=1) for field in zip(*history, strict=True)))


@pytest.mark.parametrize("chunk", [4, 12])
@pytest.mark.parametrize("name", list(INTERVENTIONS))
def test_interventions_show_exactly_where_they_are_possible(truth, name, chunk):
    start = truth.at(np.s_[:, 60])  # whatever the players were doing
    done = roll_out(start, chunk, INTERVENTIONS[name])
    left_alone = roll_out(start, chunk, Action())
    can = possible(done, name, chunk)
    assert (can == possible(left_alone, name, chunk)).all() and can.sum() > 5
    assert (shown(done, name, chunk) == can).all()
    assert not shown(left_alone, name, chunk).any()
    assert parse_words(intervention_words(name)) == INTERVENTIONS[name]


def test_intervention_scores_know_done_not_done_unsure_and_impossible(truth):
    start = State(
        *(np.array(field) for field in zip(*[(0, 4, 0, 2, 0, 0)] * 3, (0, 4, 0, 0, 0, 0), strict=True))
    )
    states = roll_out(start, 4, INTERVENTIONS["left_click"])
    states = State(
        *(
            np.where(np.arange(4)[:, None] == 1, alone, done)
            for alone, done in zip(roll_out(start, 4, Action()), states, strict=True)
        )
    )
    pictures = render(*states)
    reading = read_states(pictures)
    limit = residual_limit(read_states(noisy(pictures[:1], 8)))
    assert 60 < limit < 70
    pictures[2] = noisy(pictures[2], 40)
    scores = intervention_scores(read_states(pictures), "left_click", 4, limit)
    np.testing.assert_array_equal(scores, [1, 0, 0.5, np.nan])
    assert share(scores) == {
        "mean": 0.5,
        "low": pytest.approx(0.1253, abs=1e-3),
        "high": pytest.approx(0.8747, abs=1e-3),
        "n": 3,
    }
    assert reading.residual.max() == 0


def test_only_four_frame_chunks_can_be_scored(truth):
    for chunk in (0, 13, 26, -1):
        with pytest.raises(ValueError, match=f"chunk {chunk} of 26"):
            shown(truth, "jump", chunk)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_interval_against_published_values(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_no_trials_say_nothing():
    assert wilson(0, 0) == (0.0, 1.0) and share(np.array([np.nan]))["n"] == 0


@pytest.mark.parametrize(
    ("name", "field", "phases", "found"),
    [
        ("jump", "jump", [1, 1, 1, 1], False),  # the camera rises by 2 pixels
        ("jump", "jump", [1, 2, 2, 2], True),  # by 4
        ("reload", "reload", [1, 2, 0, 0], False),
        ("reload", "reload", [0, 1, 2, 3], True),
        ("reload", "reload", [1, 2, 3, 4], True),
    ],
)
def test_what_is_just_enough_to_be_shown(name, field, phases, found):
    states = State(*(np.full((1, 49), value) for value in (0, 4, 0, 2, 0, 0)))
    changed = getattr(states, field).copy()
    start = chunk_starts(49)[4]
    changed[0, start : start + 4] = phases
    assert shown(states._replace(**{field: changed}), name, 4).tolist() == [found]


def test_unsure_is_what_lies_above_the_limit():
    still = State(*(np.full((3, 49), value) for value in (0, 4, 0, 2, 0, 0)))
    residual = np.repeat(np.array([[9.9], [10.0], [10.1]], np.float32), 49, 1)
    scores = intervention_scores(Reading(still, residual), "jump", 4, float(np.float32(10.0)))
    assert scores.tolist() == [0, 0, 0.5]
