"""The report shows every reason, caption and figure, and whatever strangers write stays words."""

from html.parser import HTMLParser

import numpy as np
import pytest

from megatv.curate.engine import Summary
from megatv.curate.manifest import Record
from megatv.curate.page import join, tag
from megatv.curate.report import write_report
from megatv.data.video import write_video

EVIL = """<script>alert("x")</script><img src=x onerror='alert(1)'>"""
INFO = {"width": 64, "height": 48, "rate": 16.0, "seconds": 3.0}


class Reader(HTMLParser):
    """Elements, their attributes and the words, as a browser understands them."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(page)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_data(self, words):
        self.words.append(words)


def summary(stage, inputs, kept, dropped, failed, outputs, **run):
    run = {"done_now": 0, "video_seconds": 0.0, "wall_seconds": 1.0, **run}
    return Summary(stage, inputs, kept, dropped, failed, outputs, **run)


@pytest.fixture
def report(tmp_path):
    """A video that becomes a clip, one that two filters drop, one that fails; all with words that attack."""
    rng = np.random.default_rng(0)
    good, still, broken = "good.mp4", f"{EVIL.replace('/', '')}.mp4", "broken.mp4"
    for name in (good, still):
        write_video(tmp_path / name, rng.integers(0, 256, (48, 48, 64, 3), dtype=np.uint8))
    (tmp_path / broken).write_text("no video")
    videos = [{"id": name, "video": name} for name in (good, still, broken)]
    probed = [{**video, "info": INFO} for video in videos[:2]]
    shots = [{**item, "id": f"{item['id']}#0", "start": 0.0, "end": 3.0} for item in probed]
    clip = {**shots[0], "id": f"{good}@0-3", "key_frames": [1.5], "segments": [[0.0, 1.5], [1.5, 3.0]]}
    words = {"meta_caption": EVIL, "detailed_caption": f"Long {EVIL}", "quality": 7.5, "file": "good.mp4"}
    captions = [{"start": 0.0, "text": "It begins."}, {"start": 1.5, "text": EVIL}]
    exported = {**clip, **words, "captions": captions}
    both = "motion filter: 0.01 slow; face filter: a face"
    usage = {"requests": 3, "prompt_tokens": 4000, "cost": 0.25}
    results = [
        (
            videos,
            [
                *(Record(f"p {item['id']}", item["id"], "kept", [item]) for item in probed),
                Record("p2", broken, "failed", reason=f"cannot be opened {EVIL}"),
            ],
            summary("probe", 3, 2, 0, 1, 2),
        ),
        (
            shots,
            [
                Record("f0", shots[0]["id"], "kept", [shots[0]]),
                Record("f1", shots[1]["id"], "dropped", reason=both),
            ],
            summary("filters", 2, 1, 1, 0, 1),
        ),
        (
            [clip],
            [Record("c", clip["id"], "kept", [exported], facts=usage)],
            summary("captions", 1, 1, 0, 0, 1),
        ),
        ([exported], [Record("e", clip["id"], "kept", [exported])], summary("export", 1, 1, 0, 0, 1)),
        ([], [], summary("shards", 1, 1, 0, 0, 2)),
    ]
    runs = [
        summary("filters", 2, 1, 1, 0, 1, done_now=1, video_seconds=3.0, wall_seconds=1.0),
        summary("filters", 2, 1, 1, 0, 1, done_now=3, video_seconds=5.0, wall_seconds=3.0),
    ]
    write_report(tmp_path / "report.html", tmp_path, results, runs, [f"note {EVIL}"])
    return Reader((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_strangers_words_stay_words(report):
    names = {name for name, _ in report.elements}
    assert "script" not in names and "a" not in names
    for name, attributes in report.elements:
        assert not any(key.startswith("on") for key in attributes)
        if name == "img":
            assert attributes["src"].startswith("data:image/jpeg;base64,")
    assert report.words.count(EVIL) >= 2  # the meta caption and a segment's
    assert f"{EVIL.replace('/', '')}.mp4" in report.words
    policy = next(a["content"] for _, a in report.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "script-src" not in policy


def test_all_that_was_decided_is_told(report):
    words = "|".join(report.words)
    for said in (
        "motion filter: 0.01 slow|face filter: a face",  # both reasons of one item, each in its own chip
        "motion filter: … slow|1",  # counted with the numbers aside
        f"broken.mp4|cannot be opened {EVIL}",
        "0.00 s |It begins.",
        "quality 7.5",
        "2 in → |1 out|, 3.0 s · |1 dropped",
        "filters|4|4.0|1.00|2.00",  # items, seconds, items/s and s/s over both runs
        "captions|3|0|0|0|0|4,000|0|0.25",
        "2|examples",
    ):
        assert said in words, said
    assert sum(name == "img" for name, _ in report.elements) == 2 + 2  # two segments, two videos that decode
    assert "no picture" in words


def test_a_tag_escapes_all_but_tags():
    assert tag("b", "<", tag("i", "&"), class_='"', title=None) == '<b class="&quot;">&lt;<i>&amp;</i></b>'
    assert join("<", tag("img", alt="")) == '&lt;<img alt="">'
