"""The paper's evaluation sets as data: how many videos, of which starts, with which words and seeds."""

from collections import Counter
from itertools import islice, product
from pathlib import Path

import pytest

from megatv.config import FPS, TEMPORAL_FACTOR, load_config
from megatv.data.sequence import chunk_start_seconds
from megatv.data.tokenizer import load_tokenizer
from megatv.eval.eval_set import (
    ACTIONS,
    ARMS,
    SETS_OF,
    TIMES,
    batch_line,
    csgo_items,
    csgo_studies,
    frame_order,
    manifest_line,
    sports_items,
    sports_studies,
)
from megatv.eval.human.questions import questions_of
from megatv.eval.human.study import read_study
from megatv.sample.request import Intervention, Request
from megatv.sample.script import Script
from megatv.sample.timeline import frames_of

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "configs/study"
PROMPT = (
    "A brief gameplay clip from the iconic Dust 2 map, showcasing classic Counter-Strike tactical combat in "
    "the legendary desert setting."
)
PICTURES = Path("frames")


def test_csgo_has_the_papers_counts():
    """Section 3.3: 100 short videos, 40 of 64 seconds, each of a single, unique frame; 150 steered ones."""
    sets = csgo_items(0)
    assert {name: len(items) for name, items in sets.items()} == {"short": 100, "long": 40, "steered": 150}
    assert {item.prompt for items in sets.values() for item in items} == {PROMPT}
    assert {item.seconds for item in sets["long"]} == {64.0}
    assert {item.seconds for item in sets["short"] + sets["steered"]} == {None}
    starts = {name: {item.start for item in items} for name, items in sets.items()}
    assert {name: len(found) for name, found in starts.items()} == {"short": 100, "long": 40, "steered": 15}
    assert len(set.union(*starts.values())) == 155
    assert len({item.name for items in sets.values() for item in items}) == 290


def test_every_action_is_asked_for_as_often_at_both_times():
    steered = csgo_items(0)["steered"]
    asked = Counter((item.action, item.time) for item in steered if not item.control)
    actions = ("backward", "left-click", "reload", "jump")
    assert asked == dict.fromkeys(product(actions, (0.8125, 2.8125)), 15)
    controls = Counter((item.action, item.time) for item in steered if item.control)
    assert sum(controls.values()) == 30
    assert set(controls) == set(asked) and set(controls.values()) <= {3, 4}


def test_both_times_are_starts_of_chunks():
    """So an intervention falls on the chunk of its own time, which START and STOP show."""
    assert [chunk_start_seconds(chunk) for chunk in (4, 12)] == list(TIMES.values())


def test_a_control_is_the_video_of_its_interventions_left_alone():
    """One start, prompt and seed for the five of a time; another seed at the other time."""
    groups: dict = {}
    for item in csgo_items(0)["steered"]:
        groups.setdefault((item.start, item.time), []).append(item)
    assert len(groups) == 30 and {len(items) for items in groups.values()} == {5}
    assert all(len({item.seed for item in items}) == 1 for items in groups.values())
    assert len({items[0].seed for items in groups.values()}) == 30


def test_seeds_follow_from_the_sets_own():
    def seeds(seed):
        return [item.seed for name in ("short", "long") for item in csgo_items(seed)[name]]

    assert len(set(seeds(0))) == 140
    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


def test_words_hold_for_the_four_frames_of_their_chunk():
    said = {
        item.action: batch_line(item, "tv2tv", PICTURES)["interventions"]
        for item in csgo_items(0)["steered"]
        if not item.control and item.time == 0.8125
    }
    assert said == {
        "backward": [[0.8125, "\n".join(["(s). 0, 0, 0, 0."] * 4)]],
        "left-click": [[0.8125, "\n".join(["(.). 0, 0, 1, 0."] * 4)]],
        "reload": [[0.8125, "\n".join(["(r). 0, 0, 0, 0."] * 4)]],
        "jump": [[0.8125, "\n".join(["(space). 0, 0, 0, 0."] * 4)]],
    }


def test_controls_and_plain_videos_are_told_nothing():
    sets = csgo_items(0)
    items = [*sets["short"], *sets["long"], *(item for item in sets["steered"] if item.control)]
    assert not any("interventions" in batch_line(item, "tv2tv", PICTURES) for item in items)


def test_an_arm_differs_in_its_mode_alone():
    items = [item for items in csgo_items(0).values() for item in items] + sports_items(["a", "b"], 0)
    for item in items:
        lines = {arm: batch_line(item, arm, PICTURES) for arm in ARMS}
        assert {arm: line.pop("mode") for arm, line in lines.items()} == {arm: arm for arm in ARMS}
        assert lines["tv2tv"] == lines["t2v"] == lines["think2v"]


@pytest.mark.parametrize("mode", ["tv2tv", "think2v"])
def test_the_shipped_configs_can_make_them(mode):
    """Words fall on the chunk of their own time and fit; six seconds are 98 frames, 64 seconds are 1025."""
    config = load_config(ROOT / "configs/3b_csgo.yaml", ["tokenizer.path=toy_world", f"sequence.mode={mode}"])
    tokenizer = load_tokenizer("toy_world")
    frames = {}
    for name, items in csgo_items(0).items():
        for item in items:
            line = batch_line(item, mode, PICTURES)
            said = tuple(Intervention(*pair) for pair in line.get("interventions", ()))
            request = Request(item.prompt, interventions=said, seconds=item.seconds, mode=mode)
            script = Script(request, 1, config, tokenizer, config.sample)
            frames[name] = frames_of(script.chunks, config.video.groups)
            chunk = {0.8125: 4, 2.8125: 12}.get(item.time)
            assert script.forced == ({chunk: said[0].text} if said else {})
    assert frames == {"short": 98, "long": 1025, "steered": 98}


def test_t2v_has_no_words_to_change():
    assert {arm: "steered" in names for arm, names in SETS_OF.items()} == {
        "tv2tv": True,
        "t2v": False,
        "think2v": True,
    }


def test_a_control_is_asked_about_an_action():
    lines = [manifest_line(item, "steered") for item in csgo_items(0)["steered"]]
    assert {line["caption"] for line in lines} == {caption for _, caption in ACTIONS.values()}
    assert sum(line["control"] for line in lines) == 30
    assert {line["start"] for line in lines} == {0.8125, 2.8125}
    jump = next(line for line in lines if line["name"] == "steered-03-3s-jump")
    assert jump == {
        "name": "steered-03-3s-jump",
        "video": "steered/steered-03-3s-jump/video.mp4",
        "prompt": PROMPT,
        "caption": "The player jumps.",
        "start": 2.8125,
        "action": "jump",
        "control": False,
    }
    assert TEMPORAL_FACTOR / FPS == 0.25  # STOP, where the manifest says none


def test_sports_has_five_videos_for_each_prompt():
    items = sports_items([f"prompt {number}" for number in range(30)], 0)
    assert len(items) == len({item.name for item in items}) == len({item.seed for item in items}) == 150
    assert Counter(item.prompt for item in items) == {f"prompt {number}": 5 for number in range(30)}
    assert len({(item.start, item.prompt) for item in items}) == 30


def test_frames_come_once_and_from_all_episodes_in_turn():
    frames = {"a": 3, "b": 1, "c": 5}
    order = list(frame_order(frames, 0))
    assert sorted(order) == [(name, frame) for name in "abc" for frame in range(frames[name])]
    assert {name for name, _ in order[:3]} == {"a", "b", "c"}
    assert order == list(frame_order(frames, 0)) != list(frame_order(frames, 1))
    many = dict.fromkeys(map(str, range(190)), 1000)
    first = list(islice(frame_order(many, 0), 155))
    assert len({name for name, _ in first}) == 155
    assert len({frame for _, frame in first}) > 100
    assert list(frame_order({}, 0)) == []


MADE = {**csgo_studies(Path("runs/eval/csgo")), **sports_studies(Path("runs/eval/sports"))}


@pytest.mark.parametrize("name", MADE)
def test_the_shipped_studies_are_those_of_the_sets(name):
    assert read_study(STUDIES / f"{name}.yaml") == MADE[name]


def test_all_shipped_studies_are_looked_at():
    shipped = {path.stem for path in STUDIES.glob("*.yaml")}
    assert shipped == {*MADE, "sports_external", "pairwise", "pointwise"}


def test_csgo_asks_for_quality_alone_and_sports_without_the_games_hints():
    """Appendices A.2 and B.4. Section 3.3 counts 280 pairs and 300 steered videos: one judgement each."""
    for name, study in {**MADE, "sports_external": read_study(STUDIES / "sports_external.yaml")}.items():
        questions = questions_of(study)
        assert study.raters_per_item == 1
        if name.startswith("sports"):
            assert list(questions) == ["alignment", "fidelity", "quality", "overall"]
            assert not any(question.hint for question in questions.values())
        elif study.kind == "pairwise":
            assert list(questions) == ["quality"]
            assert "walls" in questions["quality"].hint and "see through" in questions["quality"].hint
        else:
            assert list(questions) == ["correctness", "quality"]
            assert questions["correctness"].hint and "walls" in questions["quality"].hint
