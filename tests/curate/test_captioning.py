"""Who is asked what about a clip, with how many frames; and which settings ask again for what."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatv.curate import endpoint as endpoint_module
from megatv.curate.post import Answer
from megatv.curate.prompt_files import PROMPTS
from megatv.curate.recipe import load_recipe
from megatv.curate.steps import Places, stages
from megatv.data.video import write_video

SPORTS = Path(__file__).parents[2] / "configs/data/sports.yaml"
SERVED = ["endpoint={url: 'http://localhost:1/v1', model: writer}"]
JUDGE = "quality.endpoint={url: 'http://localhost:2/v1', model: judge, image_width_pixels: 64}"
ITEM = {
    "id": "a.mp4@0.500-6.500",
    "video": "a.mp4",
    "start": 0.5,
    "end": 6.5,
    "shot_start": 0.0,
    "key_frames": [2.0],
    "segments": [[0.5, 2.0], [2.0, 6.5]],
    "info": {"width": 96, "height": 64, "rate": 16.0, "seconds": 7.0},
}


class Server:
    """Stands in the place of `post`: what it was asked as (url, body), and what it answers to a prompt."""

    def __init__(self):
        self.asked = []
        self.captions = ["She serves. He returns it.", ""]

    def post(self, url, body, headers, seconds):
        self.asked.append((url, body))
        prompt = body["messages"][0]["content"][0]["text"]
        if "quality" in prompt:
            answer = json.dumps({"quality_score": 8})
        elif "EACH segment" in prompt:
            answer = 'Description of segment 1: She serves. He returns it.\nDescription of segment 2: ""'
        elif "consecutive segments" in prompt:
            answer = json.dumps({"captions": self.captions})
        else:
            answer = json.dumps({"caption": "They play."})
        tree = {"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]}
        return Answer(200, json.dumps(tree).encode(), "")

    def pictures(self):
        """How many each question had."""
        return [
            sum(part["type"] == "image_url" for part in body["messages"][0]["content"])
            for _, body in self.asked
        ]


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(endpoint_module, "post", server.post)
    return server


@pytest.fixture
def do(server, tmp_path):
    """do(stage, *overrides): what a stage makes of ITEM."""
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.mp4", np.full((7 * 16, 64, 96, 3), 90, np.uint8))

    def call(name, *overrides):
        chain = stages(
            Places(tmp_path / "videos", tmp_path / "out"), load_recipe(SPORTS, [*SERVED, *overrides])
        )
        (stage,) = (stage for stage in chain if stage.name == name)
        return stage.work(stage.seen({**ITEM, "quality": 3.0}))

    return call


def test_the_long_caption_sees_more_densely_sampled_frames(do, server):
    (made,) = do("captions").outputs
    assert made["captions"] == [{"start": 0.0, "text": "She serves. He returns it."}]
    assert made["meta_caption"] == made["detailed_caption"] == "They play."
    assert server.pictures() == [8, 2 * 4, 24]
    server.asked.clear()
    do(
        "captions",
        "captions.frames_per_clip=2",
        "captions.detailed_frames=5",
        "captions.frames_per_segment=3",
    )
    assert server.pictures() == [2, 6, 5]
    server.asked.clear()
    (made,) = do("captions", "captions.detailed=false", "captions.meta_words=29").outputs
    assert made["detailed_caption"] == "" and server.pictures() == [8]  # the segments' answer was kept


def test_lengths_are_asked_for_and_a_text_far_beyond_is_refused(do, server):
    words = ["captions.segment_words=12", "captions.meta_words=7", "captions.detailed_words=99"]
    do("captions", *words)
    meta, segments, detailed = (body["messages"][0]["content"][0]["text"] for _, body in server.asked)
    assert "at most 7 words" in meta and "fewer than 12 words" in segments and "at most 99 words" in detailed
    server.captions = ["", "He runs. " * 17]
    with pytest.raises(ValueError, match=r"captions\[1\] has 152 characters and must have at most 12 words"):
        do("captions", *words, "endpoint.temperature=0.3")
    server.captions = ["", "He runs. " * 5]  # 10 words more or less are no fault
    assert len(do("captions", *words, "endpoint.temperature=0.4").outputs[0]["captions"]) == 1


def test_quality_has_a_judge_of_its_own(do, server):
    (made,) = do("quality", JUDGE).outputs
    ((url, body),) = server.asked
    assert url == "http://localhost:2/v1/chat/completions" and body["model"] == "judge"
    assert made["quality"] == 8.0 and server.pictures() == [9]
    server.asked.clear()
    do("captions", JUDGE)
    assert {(url, body["model"]) for url, body in server.asked} == {
        ("http://localhost:1/v1/chat/completions", "writer")
    }
    server.asked.clear()
    do("quality")
    assert server.asked[0][1]["model"] == "writer"


def test_people_may_write_and_a_model_judge(tmp_path):
    recipe = load_recipe(SPORTS, ["captions.words_from=words.jsonl", JUDGE])
    assert recipe.endpoint is None and recipe.judge.model == "judge"
    with pytest.raises(ValueError, match=r"quality\.endpoint\.url is http to another machine"):
        load_recipe(SPORTS, [*SERVED, "quality.endpoint={url: 'http://x/v1', model: judge}"])
    with pytest.raises(ValueError, match=r"quality\.endpoint\.retries is 101: it must be 0 to 100"):
        load_recipe(SPORTS, [*SERVED, JUDGE, "quality.endpoint.retries=101"])


def test_the_papers_own_prompt_can_be_used(do, server, tmp_path):
    folder = shutil.copytree(PROMPTS, tmp_path / "mine")
    (folder / "segments.txt").write_text("Describe what happens in EACH segment separately.\n")
    (made,) = do("captions", f"captions.prompts={folder}", "endpoint.response_format=text").outputs
    assert [c["text"] for c in made["captions"]] == ["She serves. He returns it."]
    segments = server.asked[1][1]
    assert segments["response_format"] == {"type": "text"}
    texts = [part["text"] for part in segments["messages"][0]["content"] if part["type"] == "text"]
    assert texts[0].startswith("Describe what happens in EACH segment") and texts[1].startswith(
        "Segment 1, 0.00"
    )


@pytest.fixture
def again(tmp_path):
    """again(old, new, item, edited): the stages done again when overrides, item or a prompt's file change."""
    folder = shutil.copytree(PROMPTS, tmp_path / "mine")

    def keys(overrides, item):
        recipe = load_recipe(SPORTS, [*SERVED, *overrides])
        return {stage.name: stage.key(item) for stage in stages(Places(tmp_path, tmp_path / "out"), recipe)}

    def call(old, new, item=ITEM, edited=None):
        before = keys(old, ITEM)
        if edited:
            (folder / f"{edited}.txt").write_text((folder / f"{edited}.txt").read_text() + "Be exact.")
        after = keys([word.replace("FOLDER", str(folder)) for word in new], item)
        return {name for name in before.keys() & after.keys() if before[name] != after[name]}

    return call


@pytest.mark.parametrize(
    ("old", "new", "stages_done_again"),
    [
        ([], [JUDGE], {"quality"}),
        ([JUDGE], [JUDGE, "quality.endpoint.model=other"], {"quality"}),
        ([JUDGE], [JUDGE, "endpoint.model=other"], {"captions"}),
        ([], ["endpoint.model=other"], {"quality", "captions"}),
        ([], ["quality.min_score=7"], {"quality"}),
        ([], ["quality=null"], set()),
        ([], ["endpoint.url=https://example.com/v1", "endpoint.concurrency=4", "endpoint.retries=1"], set()),
        ([], ["endpoint.timeout_seconds=9", "endpoint.prompt_price=2.0", "endpoint.max_tokens=4096"], set()),
        ([], ["endpoint.jpeg_quality=70"], {"quality", "captions"}),
        ([], ["captions.segment_words=40"], {"captions"}),
        ([], ["captions.detailed_frames=32"], {"captions"}),
        ([], ["motion.method=farneback"], {"filters"}),
    ],
)
def test_a_setting_does_again_what_it_decides(again, old, new, stages_done_again):
    assert again(old, new) == stages_done_again


@pytest.mark.parametrize(
    ("edited", "more", "stages_done_again"),
    [
        (None, [], set()),
        ("quality", [], {"quality"}),
        ("meta", [], {"captions"}),
        ("segments", [], {"captions"}),
        ("detailed", [], {"captions"}),
        ("repair", [], {"quality", "captions"}),
    ],
)
def test_a_changed_prompt_does_again_what_it_asks(again, edited, more, stages_done_again):
    """The folder's name does not matter, its texts do."""
    assert again(more, [*more, "captions.prompts=FOLDER"], edited=edited) == stages_done_again


def test_the_long_captions_prompt_does_not_matter_where_none_is_asked_for(again):
    old = ["captions.detailed=false"]
    assert again(old, [*old, "captions.prompts=FOLDER"], edited="detailed") == set()


def test_another_score_asks_for_no_caption_and_other_words_export_no_clip(again):
    assert again([], [], {**ITEM, "quality": 9.0}) & {"segments", "captions", "export"} == set()
    worded = {**ITEM, "meta_caption": "x", "detailed_caption": "", "captions": []}
    assert "export" not in again([], [], worded)
    assert "export" in again([], [], {**ITEM, "end": 6.0})


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["captions.detailed_frames=4"], "detailed_frames 4 is below captions.frames_per_clip 8: .*raise it"),
        (["captions.detailed_frames=257"], "detailed_frames is 257: it must be 1 to 256"),
        (["captions.segment_words=0"], "segment_words is 0: it must be 1 to 1000"),
        (["endpoint.prompt_price=-1.0"], r"endpoint\.prompt_price is -1.0: it must be 0 to 1e\+06"),
        (["endpoint.temperature=3.0"], r"endpoint\.temperature is 3.0: it must be 0 to 2"),
        (["endpoint.response_format=xml"], "choose one of json_object, text"),
        (["endpoint=null", "captions.words_from=w.jsonl", "quality=null", "captions.prompts=x"],
         "captions.prompts is given, and no model is asked"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(overrides, fault):
    with pytest.raises(ValueError, match=fault):
        load_recipe(SPORTS, [*SERVED, *overrides])


def test_faulty_prompts_are_found_before_anything_is_done(tmp_path):
    folder = shutil.copytree(PROMPTS, tmp_path / "mine")
    (folder / "meta.txt").write_text("In $sentences sentences.")
    recipe = load_recipe(SPORTS, [*SERVED, f"captions.prompts={folder}"])
    with pytest.raises(
        ValueError, match=re.escape(f"{folder / 'meta.txt'}: has the unknown placeholder $sentences")
    ):
        stages(Places(tmp_path, tmp_path / "out"), recipe)
