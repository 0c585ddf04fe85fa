"""Whatever a captions file holds: one sentence, or exactly what it says, in a form that shards can hold.

    pytest --hypothesis-profile many tests/data/test_captions_fuzz.py        # 10,000 files

A file is a function of a number: hypothesis would need most of the time to draw it value by value.
"""

import json
import random

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from megatv.config import CodecConfig, config_to_dict
from megatv.data.captions import CaptionedVideo, clip_captions, read_captions
from megatv.data.format import DatasetInfo
from megatv.data.record import Record

INFO = DatasetInfo(32, 32, 1, config_to_dict(CodecConfig("dct")), stores="clips")
WORDS = ["He serves.", " He returns. ", "🎾 e\u0301 \u2028 \x85"]
ODD_TEXTS = [
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
    "../a",
    ".",
    "a\\b",
    "x\n",
]
ODD_NUMBERS = [0, -1, 7, 1e308, -0.0, 5e-324, 86400, 86401, 10**400, 1e9, 1.5, float("nan"), float("inf")]
ODD_NUMBERS += [-1e-9, 2**63]
KNOWN = {"video", "start", "meta_caption", "captions", "detailed_caption", "quality", "source"}
KEYS = [*sorted(KNOWN), "text", "frames", *ODD_TEXTS]
ODDS_OF_AN_ODD_ONE = 1 / 48
"""Of each value: about half the files have none."""


def odd_text(rng):
    return rng.choice([*ODD_TEXTS, "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(6)))])


def anything(rng, levels=2):
    """Plain data of at most so many levels."""
    if levels and rng.random() < 0.4:
        inner = [anything(rng, levels - 1) for _ in range(rng.randrange(4))]
        return rng.choice([inner, {rng.choice(KEYS): value for value in inner}])
    return rng.choice([*ODD_NUMBERS, odd_text(rng), True, False, None])


def mostly(rng, usual, rarely=anything):
    """The usual value, or now and then another."""
    return rarely(rng) if rng.random() < ODDS_OF_AN_ODD_ONE else usual


def words(rng):
    return mostly(rng, mostly(rng, rng.choice(WORDS), odd_text))


def captions(rng):
    """By time, where all have one."""
    times = [mostly(rng, rng.randrange(161) / 16) for _ in range(rng.randrange(5))]
    if all(type(time) is float for time in times):
        times.sort()
    return [mostly(rng, {"start": time, "text": words(rng)}) for time in times]


def line(rng):
    """One video, most of whose values are right."""
    tree = {
        "video": mostly(rng, rng.choice(["a.mp4", "b c.mp4", "x/é.mp4"])),
        "meta_caption": words(rng),
        "captions": mostly(rng, captions(rng)),
    }
    scores = {odd_text(rng): rng.choice(ODD_NUMBERS) for _ in range(rng.randrange(2))}
    more = {
        "start": mostly(rng, 20 * rng.randrange(161) / 16),
        "detailed_caption": words(rng),
        "quality": mostly(rng, rng.choice([{"motion": 0.7}, {}, scores])),
        "source": mostly(rng, rng.choice([{"licence": "CC0"}, {odd_text(rng): anything(rng)}])),
    }
    tree |= {key: value for key, value in more.items() if rng.random() < 0.4}
    for key in list(tree) if rng.random() < ODDS_OF_AN_ODD_ONE else ():
        tree[rng.choice(KEYS)] = tree.pop(key)
    return tree


def file(rng) -> bytes:
    """Lines of JSON, some with faults of their values, some with faults of their bytes."""
    text = ""
    for _ in range(rng.randrange(1, 4)):
        end = mostly(rng, "\n", lambda rng: rng.choice(["\r\n", "\n\n", "\r", ""]))
        text += json.dumps(line(rng), ensure_ascii=rng.random() < 0.5) + end
    data = text.encode(errors="surrogatepass")
    if rng.random() < 0.25:
        at = rng.randrange(len(data) + 1)
        piece = data[at : at + rng.randrange(13)]
        new = rng.choice([b"", piece * 2, piece + rng.randbytes(rng.randrange(9))])
        data = data[:at] + new + data[at + len(piece) :]
    return mostly(rng, b"", lambda rng: rng.choice([b"\xef\xbb\xbf", b"\xff\xfe"])) + data


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


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("captions") / "c.jsonl"


@given(st.integers(0, 2**64 - 1))
def test_a_captions_file_is_one_sentence_or_what_it_says(path, number):
    data = file(random.Random(number))
    path.write_bytes(data)
    try:
        found = read_captions(path)
    except ValueError as error:
        sentence = str(error)
        assert sentence.startswith(str(path)) and len(sentence) < 700 + 3 * len(str(path))
        assert "\n" not in sentence and "Error" not in sentence
        event("refused")
        return
    event("read")
    text = data.decode("utf-8-sig")
    told = [json.loads(row, object_pairs_hook=pairs_once) for row in text.split("\n") if row.strip()]
    assert len(told) == len(found)
    for video, row in zip(found, told, strict=True):
        same(video, row)
        storable(video)
    parts = sorted((v.video, v.start_seconds, v.end_seconds) for v in found if v.end_seconds is not None)
    for name, start, end in parts:  # what one line describes no other one does
        assert end == min(v.start_seconds for v in found if v.video == name and v.start_seconds > start)
