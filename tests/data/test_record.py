"""A row says what it may and nothing else: a hash that fits does not make any value a good one."""

import json

import numpy as np
import pytest
import xxhash

from megatv.data.format import MAX_META_BYTES, DatasetInfo
from megatv.data.record import Record
from megatv.types import Caption

INFO = DatasetInfo(width=32, height=16, groups=1, codec={"kind": "dct"})
META = {
    "captions": [[0, "one"], [1.5, "zwei \u4e8c"]],
    "meta_caption": "All of it.",
    "detailed_caption": "",
    "valid_latents": 11,
    "ends_clip": True,
    "source": {"video": "a.mp4", "cut": {"start": [1, 2.5, None, True]}},
    "quality": {"motion": 0.7},
}


def row_of(meta, id=b"clip-1", **changes):
    """A row with a hash that fits; meta: plain data, or bytes as they are."""
    content = np.zeros(INFO.latent_shape, np.float16).tobytes()
    text = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    digest = xxhash.xxh64(content + id + b"\0" + text).hexdigest()
    return {"id": id, "latents": content, "meta": text, "hash": digest.encode(), **changes}


def nested(levels):
    tree = "x"
    for _ in range(levels):
        tree = {"a": [tree]}
    return tree


def test_a_row_is_what_was_written():
    latents = np.arange(np.prod(INFO.latent_shape)).reshape(INFO.latent_shape).astype(np.float16)
    captions = (Caption(0.0, "one"), Caption(0.0, "\U0001f600"))
    record = Record("clip-1", latents, captions, "m", "d", 13, False, {"video": "a"}, {"motion": 1})
    sample = record.to_sample(INFO)
    row = {name: value.encode() if isinstance(value, str) else value for name, value in sample.items()}
    again = Record.of_row({**row, "latents": latents.tobytes()}, INFO)
    assert np.array_equal(again.content, latents) and again.content.dtype == np.float16
    assert (again.id, again.captions, again.source) == ("clip-1", captions, {"video": "a"})
    without = {key: value for key, value in META.items() if key != "quality"}
    assert Record.of_row(row_of(without), INFO).quality == {}
    assert Record.of_row(row_of(META), INFO).captions[1] == Caption(1.5, "zwei \u4e8c")


@pytest.mark.parametrize("name", ["id", "latents", "meta", "hash"])
def test_the_hash_is_compared_first(name):
    """Text that is no JSON and no UTF-8 is not looked at when the hash differs."""
    row = row_of(META)
    row[name] = b"\xff" + row[name][1:]
    with pytest.raises(ValueError, match="its hash differs from the one written"):
        Record.of_row(row, INFO)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("valid_latents", 0, "whole number from 1 to 13"),
        ("valid_latents", 14, "whole number from 1 to 13"),
        ("valid_latents", -1, "whole number from 1 to 13"),
        ("valid_latents", 10**40, "whole number from 1 to 13"),
        ("valid_latents", True, "whole number from 1 to 13"),
        ("valid_latents", 5.0, "whole number from 1 to 13"),
        ("valid_latents", "5", "whole number from 1 to 13"),
        ("valid_latents", None, "whole number from 1 to 13"),
        ("ends_clip", 1, "true or false"),
        ("ends_clip", "false", "true or false"),
        ("meta_caption", None, "`meta_caption` must be text"),
        ("detailed_caption", ["x"], "`detailed_caption` must be text"),
        ("source", [], "`source` must be an object"),
        ("source", "a.mp4", "`source` must be an object"),
        ("source", {"a": nested(40)}, "`source` must be an object of at most 32 levels"),
        ("quality", [], "`quality` must be an object of numbers"),
        ("quality", {"a": float("nan")}, "`quality` must be an object of numbers"),
        ("quality", {"a": float("inf")}, "`quality` must be an object of numbers"),
        ("quality", {"a": 10**400}, "`quality` must be an object of numbers"),
        ("quality", {"a": "9"}, "`quality` must be an object of numbers"),
        ("quality", {"a": True}, "`quality` must be an object of numbers"),
        ("captions", {}, "`captions` must be a list"),
        ("captions", "", "`captions` must be a list"),
        ("captions", None, "`captions` must be a list"),
        ("captions", {"ab": 1}, "`captions` must be a list"),
        ("captions", ["ab"], "the fault is at 0"),
        ("captions", [[0, "a"], [1]], "the fault is at 1"),
        ("captions", [[0, "a", "b"]], "the fault is at 0"),
        ("captions", [["0", "a"]], "the fault is at 0"),
        ("captions", [[0, 5]], "the fault is at 0"),
        ("captions", [[-0.1, "a"]], "the fault is at 0"),
        ("captions", [[2, "a"], [1, "b"]], "in order of time.*the fault is at 1"),
        ("captions", [[float("nan"), "a"]], "the fault is at 0"),
        ("captions", [[float("inf"), "a"]], "the fault is at 0"),
        ("captions", [[1e300, "a"]], "the fault is at 0"),
        ("captions", [[10**400, "a"]], "the fault is at 0"),
        ("captions", [[False, "a"]], "the fault is at 0"),
        ("captions", [[0, "\ud83d"]], "half of a character"),
        ("meta_caption", "\udc80", "half of a character"),
        ("source", {"\udc80": 1}, "half of a character"),
    ],
)
def test_values_that_are_not_of_the_format_are_refused(key, value, message):
    with pytest.raises(ValueError, match=rf"sample 'clip-1': its meta: .*{message}") as error:
        Record.of_row(row_of({**META, key: value}), INFO)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("key", ["content", "id", "__class__", "latents", "self", "foreign"])
def test_no_foreign_key_reaches_the_record(key):
    with pytest.raises(ValueError, match="its meta: must hold exactly captions, detailed_caption"):
        Record.of_row(row_of({**META, key: "x"}), INFO)
    short = {name: value for name, value in META.items() if name != "source"}
    with pytest.raises(ValueError, match="its meta: must hold exactly"):
        Record.of_row(row_of(short), INFO)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "must hold exactly"),
        (b"null", "must hold exactly"),
        (b"", "Expecting value"),
        (b"\xff", "can't decode"),
        ('{"captions": "\\ud800"}'.encode("utf-16"), "can't decode"),
        (b'{"captions": "\xed\xa0\x80"}', "can't decode"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"captions":' * 100_000, "nested too deeply"),
        (b"9" * 5000, "too many digits"),
        (b"gASVKAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU", "Expecting value"),
    ],
    ids=["list", "null", "empty", "no text", "UTF-16", "surrogate", "deep", "deep object", "digits", "other"],
)
def test_meta_that_is_no_json_object_is_refused(text, message):
    with pytest.raises(ValueError, match=rf"sample 'clip-1': its meta: .*({message})"):
        Record.of_row(row_of(text), INFO)


@pytest.mark.parametrize("id", [b"a\nb", b"\x1b[2J", b"\0", "a\x9b31m".encode()])
def test_an_id_that_a_terminal_would_obey_is_refused(id):
    with pytest.raises(ValueError, match="has control characters") as error:
        Record.of_row(row_of(META, id), INFO)
    assert str(error.value).isprintable()


def test_nothing_is_written_that_would_not_be_read():
    latents = np.zeros(INFO.latent_shape, np.float16)
    good = {
        "captions": (),
        "meta_caption": "m",
        "detailed_caption": "",
        "valid_latents": 1,
        "ends_clip": True,
    }
    for changes, message in (
        ({"captions": (Caption(2.0, "b"), Caption(1.0, "a"))}, "in order of time"),
        ({"meta_caption": "\ud800"}, "half of a character"),
        ({"quality": {"motion": float("nan")}}, "an object of numbers"),
        ({"id": "x" * 5000}, "its id has 5000 bytes"),
        ({"meta_caption": "x" * MAX_META_BYTES}, r"its meta has \d+ bytes"),
        ({"id": "a\tb"}, "control characters"),
    ):
        values = {"id": "x", "content": latents, "source": {}, "quality": {}, **good, **changes}
        with pytest.raises(ValueError, match=message):
            Record(**values).to_sample(INFO)
