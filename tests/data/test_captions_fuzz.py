"""Whatever a captions file holds: one sentence, or exactly what it says, in a form that shards can hold.

MEGATV_FUZZ_CASES=10000 tries so many inputs instead of 200.
"""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatv.config import CodecConfig, config_to_dict
from megatv.data.captions import CaptionedVideo, clip_captions, read_captions
from megatv.data.format import DatasetInfo
from megatv.data.record import Record

CASES = int(os.environ.get("MEGATV_FUZZ_CASES", "200"))
INFO = DatasetInfo(32, 32, 1, config_to_dict(CodecConfig("dct")), stores="clips")
ODD = (
    "",
    " ",
    "NaN",
    "1",
    "\x00",
    "\ufeff",
    "\u2028",
    "\x85",
    "\ud83d",
    "🎾",
    "e\u0301",
    "../a",
    ".",
    "a\\b",
)
KNOWN = {"video", "start", "meta_caption", "captions", "detailed_caption", "quality", "source"}
numbers = st.one_of(st.floats(), st.integers(), st.sampled_from([1e308, -0.0, 86401, 10**400, 1e9, 1.5]))
texts = st.one_of(st.sampled_from(ODD), st.text(st.characters(), max_size=6))
keys = st.one_of(st.sampled_from(sorted(KNOWN | {"text", "frames"})), texts)
scalars = st.one_of(numbers, texts, st.booleans(), st.none())
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)


def mostly(usual, rarely=anything):
    """The usual value eleven times in twelve."""
    return st.integers(0, 11).flatmap(lambda n: rarely if n == 11 else usual)


def in_order(items):
    """By time, where all have one."""
    timed = all(isinstance(item, dict) and type(item["start"]) is float for item in items)
    return sorted(items, key=lambda item: item["start"]) if timed else items


words = mostly(st.sampled_from(["He serves.", " He returns. ", "🎾 e\u0301 \u2028 \x85"]), texts)
seconds = st.integers(0, 160).map(lambda n: n / 16)
caption = st.fixed_dictionaries({"start": mostly(seconds), "text": mostly(words)})
captions = st.lists(caption, max_size=4).map(in_order)
lines = st.fixed_dictionaries(
    {
        "video": mostly(st.sampled_from(["a.mp4", "b c.mp4", "x/é.mp4"])),
        "meta_caption": mostly(words),
        "captions": mostly(captions),
    },
    optional={
        "start": mostly(seconds.map(lambda s: 20 * s)),
        "detailed_caption": mostly(words),
        "quality": mostly(st.dictionaries(texts, numbers, max_size=2)),
        "source": mostly(st.dictionaries(texts, anything, max_size=2)),
    },
)


@st.composite
def files(draw) -> bytes:
    """Lines of JSON, some with faults of their values, some with faults of their bytes."""
    ends = st.sampled_from(["\n", "\r\n", "\n\n", "\r", ""])
    text = ""
    for line in draw(st.lists(lines, min_size=1, max_size=3)):
        text += json.dumps(line, ensure_ascii=draw(st.booleans())) + draw(mostly(st.just("\n"), ends))
    data = bytearray(text.encode(errors="surrogatepass"))
    if draw(st.integers(0, 3)) == 3:
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
        kind = draw(st.sampled_from(["cut", "insert", "repeat"]))
        piece = draw(st.binary(max_size=8)) if kind == "insert" else bytes(data[at : at + length]) * 2
        data[at : at + (0 if kind == "insert" else length)] = b"" if kind == "cut" else piece
    return draw(mostly(st.just(b""), st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe"]))) + bytes(data)


def pairs_once(pairs):
    assert len(dict(pairs)) == len(pairs), "a key was taken twice"
    return dict(pairs)


def same(video: CaptionedVideo, line: dict) -> None:
    """Nothing was changed but spaces at the edges of texts."""
    assert set(line) <= KNOWN
    assert video.video == line["video"]
    assert type(line.get("start", 0)) is not bool and video.start_seconds == line.get("start", 0)
    assert video.meta_caption == line["meta_caption"].strip() != ""
    assert video.detailed_caption == line.get("detailed_caption", "").strip()
    said = [(c.start_seconds, c.text) for c in video.captions]
    assert said == [(c["start"], c["text"].strip()) for c in line["captions"]]
    assert video.quality == line.get("quality", {}) and video.source == line.get("source", {})


def storable(video: CaptionedVideo) -> None:
    """Its first clip becomes a row of a shard: nothing is found out only when the clip was coded."""
    source = {"video": video.video, "start": video.start_seconds, "frames": 49, **video.source}
    said = clip_captions(video.captions, 0.0, 3.0625)
    id = f"{video.video}@{video.start_seconds:.4f}"
    Record(
        id, b"mp4", said, video.meta_caption, video.detailed_caption, 1, True, source, video.quality
    ).to_sample(INFO)


@pytest.mark.timeout(600 + CASES)
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(files())
def test_a_captions_file_is_one_sentence_or_what_it_says(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.jsonl"
        path.write_bytes(data)
        try:
            found = read_captions(path)
        except ValueError as error:
            sentence = str(error)
            assert sentence.startswith(str(path)) and len(sentence) < 700 + 3 * len(str(path))
            assert "\n" not in sentence and "Error" not in sentence
            return
    text = data.decode("utf-8-sig")
    told = [json.loads(line, object_pairs_hook=pairs_once) for line in text.split("\n") if line.strip()]
    assert len(told) == len(found)
    for video, line in zip(found, told, strict=True):
        same(video, line)
        storable(video)
    parts = sorted((v.video, v.start_seconds, v.end_seconds) for v in found if v.end_seconds is not None)
    for name, start, end in parts:  # what one line describes no other one does
        assert end == min(v.start_seconds for v in found if v.video == name and v.start_seconds > start)
