"""Batch files of every shape: a line is used exactly as it is written or named in a sentence of its own.

    pytest --hypothesis-profile many tests/sample/test_batch_file_fuzz.py       # 10,000 files

A file is a function of a number, put together so that it is known which of its lines are right.
"""

import dataclasses
import json
import random

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from megatv.sample.batch_file import read_batch, seed_of
from megatv.sample.inputs import Asked

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Asked)}
TIMED = ("interventions", "video_words")
WORDS = [
    "He kicks.",
    "",
    " \n",
    "NaN",
    "\u2028 \x85",
    "e\u0301 🎾",
    "\x00",
    "\x1b[31m",
    "\ufeff",
    "../a",
    "None",
]
NAMES = [
    "a",
    "a",
    "b c",
    "é",
    "e\u0301",
    "雪" * 66,
    "x" * 200,
    "a\nb",
    "a.tmp",
    "-o",
    "~",
    "\u2028",
    "\x1b[2J",
    "'",
]
NO_NAMES = ["", ".", "..", ".a", "a/b", "a\\b", "\x00", "雪" * 67, "x" * 201, "\ud83d", None, 3, ["a"], {}]
TIMES = [0, 0.0, -0.0, 1, 1.5, 1e-300, -3, 9e18]
NO_TIMES = [True, None, "1", [], 2**63, -(2**63), 1e308, 10**400, float("nan"), float("inf")]
PAIRS_THAT_ARE_NONE = [None, "0a", [], [0], ["0", "a"], [0, None], [0, ["a"]], [0, "a", "b"], {"0a": 1}, "ab"]
JUNK = [
    None,
    True,
    [],
    {},
    [[{}]],
    "\ud83d",
    float("nan"),
    -1,
    10**400,
    2**63,
    1e308,
    "x" * 1000,
    {"a": [None]},
]


def timed(rng):
    return [[rng.choice(TIMES), rng.choice(WORDS)] for _ in range(rng.randrange(3))]


def right_line(rng):
    """A line that must be accepted."""
    start = rng.choice(["nothing", "image", "video", "example"])
    tree = {"name": rng.choice(NAMES), "prompt": rng.choice(WORDS)}
    if start == "example":
        tree["example"] = rng.choice([0, 7, 2**62])
        if rng.random() < 0.5:
            del tree["prompt"]
    elif start != "nothing":
        tree[start] = rng.choice(["a.png", "/tmp/b c.mp4", "é"])
    words = {"image": ("image_words", rng.choice(WORDS)), "video": ("video_words", timed(rng))}
    words["example"] = words["image"]
    if start != "nothing":
        key, said = words[start]
        spoken = {"start_words": "given", key: said}
        tree |= rng.choice([{}, {key: said}, spoken, {"start_words": "none"}, {"start_words": "model"}])
    more = {
        "interventions": timed(rng),
        "seconds": rng.choice([1, 0.5, 64.0]),
        "seed": rng.choice([0, 5, 2**63 - 1]),
        "mode": rng.choice(["tv2tv", "t2v", "think2v"]),
    }
    tree |= {key: value for key, value in more.items() if rng.random() < 0.3}
    return dict(rng.sample(sorted(tree.items()), len(tree)))


def wrong_line(rng):
    """A line that must be refused, as JSON."""
    tree = right_line(rng)
    pair = rng.choice([[rng.choice(NO_TIMES), "a"], rng.choice(PAIRS_THAT_ARE_NONE)])
    fault = rng.randrange(8)
    if fault == 0:
        tree["name"] = rng.choice(NO_NAMES)
    elif fault == 1:
        tree["interventions"] = rng.choice([[pair], [*timed(rng), pair], pair or None, {"0a": 1}, "0a"])
    elif fault == 2:
        tree |= {"seed": rng.choice([-1, 2**63, 1.0, True, None, "1", 10**4000])}
    elif fault == 3:
        tree |= {"seconds": rng.choice([True, None, "1", float("nan"), float("inf"), 1e308, 2**63])}
    elif fault == 4:
        tree |= {rng.choice(["promt", "", "x" * 1000, "\x1b[2J", "Name"]): rng.choice(JUNK)}
    elif fault == 5:
        tree |= {rng.choice(["prompt", "image", "video", "image_words", "mode", "start_words"]): rng.choice(
            [None, True, 3, [], {}, ["a"], "\ud83d"])}  # fmt: skip
    elif fault == 6:
        tree |= {"prompt": "a", "image": "a.png", "video": "b.mp4"}
    else:
        return rng.choice([None, True, 3, "a", [], [tree], {}, [[[]]]])
    return tree


def written(rng, tree):
    """JSON of a tree, in the ways in which programs write it."""
    separators = rng.choice([None, (",", ":"), (" ,\t", " : ")])
    return json.dumps(tree, separators=separators, ensure_ascii=rng.random() < 0.5)


def damaged(rng, data):
    """A few bytes cut, repeated or put in."""
    at = rng.randrange(len(data) + 1)
    piece = data[at : at + rng.randrange(12)]
    new = rng.choice([b"", piece * 2, piece + rng.randbytes(rng.randrange(6)), b'{"seed": 1, "seed": 2}'])
    return data[:at] + new + data[at + len(piece) :]


def lines_of(rng):
    """Lines, and for each whether it must be used (True), refused (False), or who knows (None)."""
    lines = []
    for _ in range(rng.randrange(1, 5)):
        right = rng.random() < 0.6
        text = written(rng, right_line(rng) if right else wrong_line(rng))
        data, known = text.encode(errors="surrogatepass"), right
        if rng.random() < 0.15:
            data, known = damaged(rng, data), None
        lines.append((data.replace(b"\n", b" ") + rng.choice([b"", b"", b"\r", b" "]), known))
    if rng.random() < 0.1:
        lines.insert(
            rng.randrange(len(lines)), (rng.choice([b"", b" \t", b"[" * 100_000, b"1" * 5000, b"\xff"]), None)
        )
    return lines


def read(path, lines):
    """Videos and sentences of a file of these lines; nothing but ValueError is raised."""
    path.write_bytes(b"\n".join(lines))
    try:
        return read_batch(str(path))
    except ValueError as error:
        assert type(error) is ValueError
        return {}, [str(error)]


def once(pairs):
    assert len(dict(pairs)) == len(pairs), "of a key that is given twice one value was taken"
    return dict(pairs)


def assert_as_written(name, asked, tree):
    """Every key has the value and the type of the line, and every other one its default."""
    assert name == tree.pop("name") and tree.keys() <= DEFAULTS.keys()
    assert len(name.encode()) <= 200 and not name.startswith(".") and not set(name) & set("/\\\0")
    for key, default in (DEFAULTS | {"seed": seed_of(name)}).items():
        value, found = tree.get(key, default), getattr(asked, key)
        if key in TIMED and key in tree:
            found = [(said.seconds, said.text) for said in found]
            value = [(float(seconds), text) for seconds, text in value]
            assert all(type(seconds) in (int, float) and type(text) is str for seconds, text in tree[key])
        assert (found, type(found)) == (value, type(value)), key


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("batch") / "b.jsonl"


@given(st.integers(0, 2**64 - 1))
def test_a_line_is_used_as_written_or_named_and_costs_the_others_nothing(path, number):
    rng = random.Random(number)
    known = lines_of(rng)
    lines = [line for line, _ in known]
    lines[0] = rng.choice([b"", b"", b"\xef\xbb\xbf"]) + lines[0]
    videos, sentences = {}, []
    for at, line in enumerate(lines):  # each alone, at its place in the file
        found, told = read(path, [b""] * at + [line])
        blank = told == [f"{path}: asks for no video"]
        assert len(found) + len(told) == 1 and known[at][1] in (bool(found), None), (line, told)
        for name, asked in found.items():
            assert_as_written(name, asked, json.loads(line.decode("utf-8-sig"), object_pairs_hook=once))
            if name in videos:
                told = [f"{path} line {at + 1}: the name '{name}' is another line's already"]
        videos = found | videos
        assert blank or all(sentence.startswith(f"{path} line {at + 1}: ") for sentence in told)
        assert all(len(sentence) < 500 + len(str(path)) for sentence in told)
        sentences += [] if blank else told
    found, told = read(path, lines)
    if not videos:  # the first sentence is the error
        sentences = sentences[:1] or [f"{path}: asks for no video"]
    assert (found, told) == (videos, sentences)
    event(f"{len(found)} used, {len(told)} named")
