"""Words of people for a clip: those of every part of the video that lies in it."""

import json

import pytest

from megatv.curate.words import human_words

PARTS = [
    {
        "video": "match.mp4",
        "start": 0.0,
        "meta_caption": "A point is played.",
        "detailed_caption": "Two players in white.",
        "captions": [{"start": 0.0, "text": "She serves."}, {"start": 4.0, "text": "He returns."}],
    },
    {
        "video": "match.mp4",
        "start": 10.0,
        "meta_caption": "The crowd cheers.",
        "captions": [{"start": 0.0, "text": "People stand up."}, {"start": 3.0, "text": "They wave."}],
    },
    {"video": "match.mp4", "start": 16.0, "meta_caption": "A pause.", "captions": []},
    {"video": "other.mp4", "start": 8.0, "meta_caption": "Another day.", "captions": []},
]


@pytest.fixture
def words(tmp_path):
    """words(start, end): those of that clip of match.mp4."""
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps(part) + "\n" for part in reversed(PARTS)))  # in any order
    return lambda start, end: human_words({"video": "match.mp4", "start": start, "end": end}, str(file))


def test_a_clip_within_one_part_has_its_words_alone(words):
    assert words(3.0, 9.0) == {
        "meta_caption": "A point is played.",
        "detailed_caption": "Two players in white.",
        "captions": [{"start": 0.0, "text": "She serves."}, {"start": 1.0, "text": "He returns."}],
    }


def test_a_clip_that_spans_parts_has_the_words_of_each(words):
    assert words(6.0, 14.0) == {
        "meta_caption": "A point is played. The crowd cheers.",
        "detailed_caption": "Two players in white.",
        "captions": [
            {"start": 0.0, "text": "He returns."},
            {"start": 4.0, "text": "People stand up."},
            {"start": 7.0, "text": "They wave."},
        ],
    }
    assert words(9.0, 17.0)["meta_caption"] == "A point is played. The crowd cheers. A pause."


def test_a_part_of_which_no_frame_is_in_the_clip_says_nothing(words):
    assert words(3.0, 10.0)["meta_caption"] == words(3.0, 10.05)["meta_caption"] == "A point is played."


def test_a_time_before_all_parts_is_refused(tmp_path):
    file = tmp_path / "words.jsonl"
    file.write_text(json.dumps(PARTS[1]) + "\n")
    with pytest.raises(ValueError, match=r"no line for 'match\.mp4' at 6\.00 s"):
        human_words({"video": "match.mp4", "start": 6.0, "end": 14.0}, str(file))
