"""Every fault of a captions file is one sentence with its line; clips keep what was being said."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatv.data.captions import check_duration, clip_captions, read_captions
from megatv.types import Caption

GOOD = {
    "video": "a.mp4",
    "meta_caption": "A game.",
    "captions": [{"start": 0.0, "text": "She serves."}, {"start": 2.5, "text": "He returns."}],
}


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_good_file_is_read(tmp_path):
    more = {**GOOD, "start": 4, "detailed_caption": " Long. "}
    first, second = read_captions(write(tmp_path / "c.jsonl", GOOD, "", more))
    assert first.captions == (Caption(0.0, "She serves."), Caption(2.5, "He returns."))
    assert (first.start_seconds, first.detailed_caption, first.meta_caption) == (0.0, "", "A game.")
    assert (second.start_seconds, second.detailed_caption) == (4.0, "Long.")
    assert second.where.endswith("c.jsonl line 3")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"video": "a.mp4", ', "is not valid JSON"),
        ("[1, 2]", "must be an object with the keys video, meta_caption, captions"),
        ({**GOOD, "caption": []}, "unknown key 'caption'; did you mean 'captions'"),
        ({**GOOD, "zzz": 1}, "unknown key 'zzz'; known keys: video"),
        ({"video": "a.mp4", "captions": []}, "key 'meta_caption' is missing"),
        ({**GOOD, "video": 3}, "video must be text that is not empty, got 3"),
        ({**GOOD, "meta_caption": "  "}, "meta_caption must be text"),
        ({**GOOD, "captions": "none"}, "`captions` must be a list"),
        ({**GOOD, "captions": [{"start": 1.0}]}, r"captions\[0\]: key 'text' is missing"),
        (
            {**GOOD, "captions": [{"start": -1.0, "text": "x"}]},
            r"captions\[0\].start must be .* from 0 to 86400, got -1.0",
        ),
        ({**GOOD, "captions": [{"start": "1", "text": "x"}]}, r'captions\[0\].start must be .* got "1"'),
        (
            '{"video": "b", "meta_caption": "m", "captions": [{"start": NaN, "text": "x"}]}',
            "has NaN or an inf",
        ),
        (
            {**GOOD, "captions": GOOD["captions"][::-1]},
            r"captions\[1\] starts at 0 s, before the one above it \(2.5 s\)",
        ),
        ({**GOOD, "start": True}, "start must be a number of seconds"),
        ({**GOOD, "start": 10**400}, "start must be a number of seconds"),
        ({**GOOD, "captions": [{"start": 10**400, "text": "x"}]}, r"captions\[0\].start must be a number"),
        ({**GOOD, "quality": {"x": 10**400}}, "quality: 'x' must be a number"),
        ({**GOOD, "quality": {"x": float("nan")}}, "has NaN or an infinite number"),
        (
            {**GOOD, "quality": {"x": 1e12}},
            r"'x' must be a number within 1e\+09, got 1000000000000.0",
        ),
        ({**GOOD, "source": {"deep": [float("inf")]}}, "has NaN or an infinite number"),
        (json.dumps({**GOOD, "source": {"x": 0}}).replace("0}", "1e999}"), "has NaN or an infinite number"),
        (
            json.dumps(GOOD).replace('"start": 2.5', '"start": 2.5, "start": 3'),
            "the key 'start' is given twice",
        ),
        (json.dumps(GOOD)[:-1] + ', "video": "b.mp4"}', "the key 'video' is given twice"),
        ({**GOOD, "detailed_caption": None}, "detailed_caption must be text .* got null"),
        ({**GOOD, "detailed_caption": False}, "detailed_caption must be text .* got false"),
        ({**GOOD, "detailed_caption": 0}, "detailed_caption must be text"),
        ({**GOOD, "detailed_caption": []}, "detailed_caption must be text"),
        ({**GOOD, "start": None}, "start must be a number of seconds"),
        ({**GOOD, "start": 86401}, "start must be a number of seconds from 0 to 86400"),
        ({**GOOD, "captions": {"start": 0, "text": "x"}}, "`captions` must be a list"),
        ({**GOOD, "captions": [[0, "x"]]}, r"captions\[0\]: must be an object"),
        ({**GOOD, "captions": [{"start": True, "text": "x"}]}, r"captions\[0\].start must be a number"),
        ({**GOOD, "captions": [{"start": 0, "text": 1}]}, r"captions\[0\].text must be text"),
        ({**GOOD, "video": "./b.mp4"}, r'video "./b.mp4" must be written as "b.mp4"'),
        ({**GOOD, "video": "a//b.mp4"}, r'must be written as "a/b.mp4"'),
        ({**GOOD, "video": "a\nb.mp4"}, "has control characters; rename the file"),
        ({**GOOD, "start": 0.03}, r"begins 0.03 s after the part of .*line 1, less than a frame"),
        ({**GOOD, "k" * 500_000: 1}, "unknown key 'kkk"),
        ({**GOOD, "meta_caption": ["x"] * 100_000}, "meta_caption must be text"),
        ({**GOOD, "source": json.loads("[" * 50 + "]" * 50)}, "is nested too deeply"),
        ({**GOOD, "meta_caption": "half \ud800"}, "half a character"),
        ("[" * 100_000, "is not valid JSON .*nested too deeply"),
        ("9" * 5000, "is not valid JSON .*too many digits"),
        (json.dumps(GOOD)[:-1] + " " * (1 << 20) + "}", "is longer than 1 MiB"),
        (GOOD, r"'a.mp4' from 0 s on was described before \(.*line 1\)"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path, line, message):
    with pytest.raises(ValueError, match=rf"c\.jsonl line 3: .*{message}") as caught:
        read_captions(write(tmp_path / "c.jsonl", GOOD, "", line))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_files_without_lines_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"c\.jsonl: holds no lines"):
        read_captions(write(tmp_path / "c.jsonl", "", ""))
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot be read"):
        read_captions(tmp_path / "none.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"bytes\.jsonl line 1: is not UTF-8"):
        read_captions(tmp_path / "bytes.jsonl")


def test_captions_beyond_the_video_are_refused(tmp_path):
    early, late = read_captions(write(tmp_path / "c.jsonl", GOOD, {**GOOD, "start": 8.0}))
    check_duration(early, 2.6)
    with pytest.raises(ValueError, match=r"line 1: captions\[1\] starts at 2.5 s, beyond .* \(2.50 s\)"):
        check_duration(early, 2.5)
    with pytest.raises(ValueError, match=r"line 2: captions\[1\] starts at 2.5 s, beyond .* \(2.00 s\)"):
        check_duration(late, 10.0)
    with pytest.raises(ValueError, match=r"line 2: start 8 lies beyond the end of 'a.mp4' \(8.00 s\)"):
        check_duration(late, 8.0)


def test_two_lines_of_a_video_are_parts_that_do_not_overlap(tmp_path):
    late, early = {**GOOD, "start": 8.0}, {**GOOD, "captions": GOOD["captions"][:1]}
    other = {**GOOD, "video": "b.mp4", "start": 2.0}
    parts = read_captions(write(tmp_path / "c.jsonl", late, other, early))  # in any order
    assert [part.end_seconds for part in parts] == [None, None, 8.0]
    with pytest.raises(
        ValueError, match=r"line 2: captions\[1\] starts at 2.5 s, where the part of .*line 1 has"
    ):
        read_captions(write(tmp_path / "c.jsonl", {**GOOD, "start": 2.5}, GOOD))


@pytest.mark.parametrize("between", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r"])
def test_a_line_ends_where_json_lines_do(tmp_path, between):
    """Python's str.splitlines ends lines at each of these."""
    text = f"First{between}second"
    line = {**GOOD, "captions": [{"start": 0, "text": text}]}
    raw = json.dumps(
        line, ensure_ascii=between in "\x0b\x0c\x1c\x1e\r"
    )  # control characters are escaped in JSON
    (tmp_path / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{raw}\r\n\r\n".encode())
    (video,) = read_captions(tmp_path / "c.jsonl")
    assert video.captions == (Caption(0.0, text),)


@pytest.mark.parametrize(
    "name", [" a.mp4", "a .mp4 ", "-a.mp4", "50%.mp4", "M: 1.mp4", "🎾.mp4", "e\u0301.mp4", "x/\xe9.mp4"]
)
def test_a_name_is_kept_to_the_letter(tmp_path, name):
    assert read_captions(write(tmp_path / "c.jsonl", {**GOOD, "video": name}))[0].video == name


def test_the_caption_in_force_is_carried_into_the_clip():
    captions = (Caption(0, "a"), Caption(2, "b"), Caption(2, "c"), Caption(5, "d"), Caption(6, "e"))
    assert clip_captions(captions, 0, 2) == (Caption(0, "a"),)
    assert clip_captions(captions, 3, 3) == (Caption(0, "b"), Caption(0, "c"), Caption(2, "d"))
    assert clip_captions(captions, 5, 3) == (Caption(0, "d"), Caption(1, "e"))
    assert clip_captions(captions[3:], 1, 3) == ()


@given(
    times=st.lists(st.integers(0, 200).map(lambda i: i / 16), max_size=12).map(sorted),
    length=st.integers(1, 60).map(lambda i: i / 16),
)
def test_consecutive_clips_say_everything_and_always_know_what_goes_on(times, length):
    captions = tuple(Caption(time, str(i)) for i, time in enumerate(times))
    clips = int(max(times, default=0) / length) + 1
    said = set()
    for k in range(clips):
        clip = clip_captions(captions, k * length, length)
        assert all(0 <= c.start_seconds < length for c in clip)
        assert list(clip) == sorted(clip, key=lambda c: c.start_seconds)
        if times and times[0] <= k * length:
            spoken = [int(c.text) for c in clip if c.start_seconds == 0]
            assert spoken[-1] == max(i for i, time in enumerate(times) if time <= k * length)
        said |= {c.text for c in clip}
    assert said == {c.text for c in captions}


def test_a_clip_looks_at_few_captions_of_a_long_video():
    class Watched(tuple):
        looked = 0

        def __getitem__(self, place):
            self.looked += len(range(*place.indices(len(self)))) if isinstance(place, slice) else 1
            return super().__getitem__(place)

        def __iter__(self):
            self.looked += len(self)
            return super().__iter__()

    captions = Watched(Caption(float(i), str(i)) for i in range(100_000))
    assert clip_captions(captions, 70_000.5, 2) == (
        Caption(0, "70000"),
        Caption(0.5, "70001"),
        Caption(1.5, "70002"),
    )
    assert captions.looked < 100


def test_provenance_takes_no_more_memory_than_its_text(peak_source, tmp_path):
    """As objects of Python it took 24 times as much."""
    source = '{"a": [' + ", ".join(["[]"] * 100_000) + "]}"
    line = '{"video": "%d", "meta_caption": "a", "captions": [], "source": ' + source + "}\n"
    (tmp_path / "a.jsonl").write_text("".join(line % k for k in range(40)))
    program = peak_source + (
        "import sys\nfrom megatv.data.captions import read_captions\nbefore = peak()\n"
        "videos = read_captions(sys.argv[1])\nprint(peak() - before)\n"
        "assert videos[3].source == {'a': [[]] * 100_000}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.jsonl"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 64 << 10  # KiB; the file has 16 MB
