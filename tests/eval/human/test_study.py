"""What a study refuses before anyone is asked: one sentence each."""

import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from megatv.data.video import decode_video, write_video
from megatv.eval.human.run import open_desk
from megatv.eval.human.study import System, read_study
from megatv.eval.human.videos import find_videos

CONFIGS = Path(__file__).parents[3] / "configs/study"
SYSTEMS = [{"name": "a", "videos": "x"}, {"name": "b", "videos": "y"}]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"systems": SYSTEMS[:1]}, "a pairwise study needs 2, got 1"),
        ({"systems": [SYSTEMS[0]] * 2}, "a, a: give every one a name of its own"),
        ({"kind": "triple"}, "kind is 'triple': choose one of pairwise, pointwise"),
        ({"raters_per_item": 0}, "raters_per_item is 0: it must be at least 1"),
        ({"criteria": []}, "name each that you want once"),
        ({"criteria": ["beauty"]}, "choose one of alignment, fidelity, quality, overall"),
        ({"database": ""}, "database is empty"),
        ({"rater": 3}, "unknown key 'rater'; did you mean 'raters'?"),
        ({"checks": 10**12}, "checks is 1000000000000: it must be at least 0 and at most 1000000"),
        ({"max_raters": 10**9}, "max_raters is 1000000000: it must be at least 1 and at most"),
        ({"items_per_rater": 10**9}, "items_per_rater is 1000000000: it must be at least 1 and at most"),
        ({"seed": "0"}, "seed must be a whole number"),
        ({"title": "a\x1b[2Jb"}, "letters that can be seen"),
        ({"title": "x" * 201}, "at most 200 letters"),
        ({"systems": [{"name": "a\nb", "videos": "x"}, SYSTEMS[1]]}, "letters that can be seen"),
        ({"raters": ["Ada", "Ada"]}, "stands there once"),
        ({"raters": ["Ada"], "joins": "open"}, "leave one of the two out"),
        ({"joins": "any"}, "joins is 'any': choose one of invited, open"),
        ({"max_raters": 0}, "max_raters is 0"),
        ({"joins_per_hour": 0}, "joins_per_hour is 0"),
    ],
)
def test_bad_yaml(tmp_path, changes, sentence):
    path = tmp_path / "study.yaml"
    tree = {"kind": "pairwise", "systems": SYSTEMS, "database": "a.sqlite", **changes}
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        read_study(path)
    assert str(path) in str(error.value)


def test_folders_that_do_not_fit(make_study, videos, tmp_path):
    def refused(kind, *places):
        systems = tuple(System(f"s{i}", str(place)) for i, place in enumerate(places))
        with pytest.raises(ValueError) as error:
            open_desk(make_study(kind, systems=systems))
        return str(error.value)

    def manifest(*lines):
        path = tmp_path / "m.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return path

    ours = videos / "ours"
    shutil.copy(ours / "duel-0.mp4", tmp_path)
    one = {"name": "duel-0", "video": "duel-0.mp4"}
    assert "is neither a folder" in refused("pairwise", ours, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "holds no videos" in refused("pairwise", ours, tmp_path / "empty")
    assert "no video named duel-1, duel-2, duel-3, which" in refused("pairwise", ours, manifest(one))
    assert "two videos are named duel-0" in refused("pairwise", ours, manifest(one, one))
    assert "line 1 is not JSON" in refused("pairwise", ours, manifest("{"))
    assert "did you mean 'video'" in refused("pairwise", ours, manifest({"name": "a", "vidoe": "b"}))
    assert "does not exist" in refused("pairwise", ours, manifest({"name": "a", "video": "gone.mp4"}))
    assert "has no caption or no start" in refused("pointwise", ours)
    late = one | {"caption": "He jumps.", "start": 99}
    assert "STOP at 99.25 s, but it ends at 3.06 s" in refused("pointwise", manifest(late))
    assert "must be in order" in refused("pointwise", manifest(late | {"stop": 1}))
    other = manifest(one | {"prompt": "another"})
    alone = manifest(one).rename(tmp_path / "alone.jsonl")
    assert "has no prompt" in refused("pairwise", alone, alone)
    other = manifest(one | {"prompt": "another"})
    third = other.rename(tmp_path / "third.jsonl")
    assert "prompts differ" in refused("pairwise", third, manifest(one | {"prompt": "a text"}))


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_shipped_examples_are_sound(kind):
    """The paper's studies, which are shipped beside them: tests/eval/test_eval_set.py."""
    assert read_study(CONFIGS / f"{kind}.yaml").kind == kind


@pytest.mark.parametrize("damage", [b"", b"this is no video", None])
def test_unreadable_video(make_study, videos, tmp_path, damage):
    broken = tmp_path / "broken"
    broken.mkdir()
    whole = (videos / "ours/duel-0.mp4").read_bytes()
    (broken / "duel-0.mp4").write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    (broken / "duel-0.txt").write_text("a text")
    study = make_study(systems=(System("a", str(broken)), System("b", str(broken))))
    with pytest.raises(ValueError, match=r"duel-0\.mp4"):
        open_desk(study)


def test_a_video_that_browsers_do_not_play(make_study, videos, tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "duel-0.txt").write_text("a text")
    with av.open(str(strange / "duel-0.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", 16)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(4):
            grey = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), format="rgb24")
            container.mux(stream.encode(grey))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="not every browser plays mpeg4 in yuv420p"):
        open_desk(make_study(systems=(System("a", str(strange)), System("b", str(strange)))))


def test_what_the_sampler_leaves_is_a_folder_of_videos(make_study, videos, tmp_path):
    made = tmp_path / "samples/first"
    made.mkdir(parents=True)
    (made / "video.mp4").write_bytes((videos / "ours/duel-0.mp4").read_bytes())
    told = {"prompt": "A text.", "interventions": [{"seconds": 0.7, "text": "He jumps."}]}
    chunks = [{"start_seconds": 0, "source": "own"}, {"start_seconds": 0.8125, "source": "forced"}]
    told["runs"] = [{"chunks": chunks}]
    (made / "transcript.json").write_text(json.dumps(told))
    study = make_study("pointwise", systems=(System("a", str(made.parent)),))
    made.with_name(".second.partial-x").mkdir()
    (made.with_name(".second.partial-x") / "video.mp4").write_bytes(b"unfinished")
    (video,) = find_videos(study)[0].values()
    assert (video.name, video.prompt, video.caption) == ("first", "A text.", "He jumps.")
    assert (video.start, video.stop) == (0.8125, 1.0625)
    half = json.dumps(told | {"prompt": "a\ud800b"})
    for text in ("[1]", "{", '{"prompt": "A text."}', half):
        (made / "transcript.json").write_text(text)
        with pytest.raises(ValueError, match="is not a transcript"):
            find_videos(study)


def test_people_must_not_tell_systems_by_their_size(make_study, videos, tmp_path, capsys):
    open_desk(make_study()).answers.close()
    assert "warning" not in capsys.readouterr().out
    small = tmp_path / "small"
    small.mkdir()
    for path in (videos / "ours").glob("*.mp4"):
        write_video(small / path.name, decode_video(path, width=64, height=64))
    study = make_study(
        systems=(System("a", str(videos / "ours")), System("b", str(small))),
        database=str(tmp_path / "other.sqlite"),
    )
    open_desk(study).answers.close()
    assert "tell the systems apart by size (128x128 and 64x64): make them" in capsys.readouterr().out


def test_answers_belong_to_one_study(desk, make_study, videos, tmp_path):
    desk(seed=0)
    with pytest.raises(ValueError, match="another kind, seed, criteria, hints, checks or names"):
        open_desk(make_study(seed=1))
    with pytest.raises(ValueError, match="hints"):
        open_desk(make_study(hints="none"))
    swapped = (System("ours", str(videos / "theirs")), System("theirs", str(videos / "ours")))
    with pytest.raises(ValueError, match="a study with other videos"):
        open_desk(make_study(systems=swapped))
    (tmp_path / "text.sqlite").write_text("this is no database, but long enough to be looked at" * 20)
    with pytest.raises(ValueError, match="is no database that can be used"):
        open_desk(make_study(database=str(tmp_path / "text.sqlite")))


SECRET = "a secret of this machine"
DEEP = "[" * 5000


@pytest.fixture
def place(videos, tmp_path):
    """A folder with one whole video, beside a file and a video that nobody may see."""
    place = tmp_path / "place"
    place.mkdir()
    shutil.copy(videos / "ours/duel-0.mp4", place / "duel-0.mp4")
    shutil.copy(videos / "ours/duel-0.mp4", tmp_path / "private.mp4")
    (tmp_path / "private.txt").write_text(SECRET)
    return place


def refusal(make_study, place):
    with pytest.raises(ValueError) as error:
        find_videos(make_study("pointwise", systems=(System("a", str(place)),)))
    assert SECRET not in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 900
    return str(error.value)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"name": "a", "video": "../private.mp4"}', "does not name a file within"),
        ('{"name": "a", "video": "x/../../private.mp4"}', "does not name a file within"),
        ('{"name": "a", "video": "/etc/passwd"}', "does not name a file within"),
        ('{"name": "a", "video": "..\\\\private.mp4"}', "does not name a file within"),
        ('{"name": "a", "video": "link.mp4"}', "is a link that leads out of"),
        ('{"name": "a", "video": "links/private.mp4"}', "is a link that leads out of"),
        ('{"name": "a", "video": "http://127.0.0.1:1/x.mp4"}', "does not exist"),
        ('{"name": "a", "video": "\\u001b[2J"}', "visible letters"),
        ('{"name": "a\\u202eb", "video": "duel-0.mp4"}', "visible letters"),
        ('{"name": "\\ud800", "video": "duel-0.mp4"}', "line 1: name is '\\ud800': it must be text in UTF-8"),
        ('{"name": "a", "video": "duel-0.mp4", "prompt": "%s"}' % ("x" * 20001), "at most 20000"),
        (
            '{"name": "a", "video": "duel-0.mp4", "prompt": "a\\ud800b"}',
            "line 1: prompt is 'a\\ud800b': it must be text",
        ),
        (
            '{"name": "a", "video": "duel-0.mp4", "caption": "\\udfff"}',
            "line 1: caption is '\\udfff': it must be text",
        ),
        ('{"name": "a", "video": ["duel-0.mp4"]}', "video must be text"),
        ('{"name": ' + DEEP, "line 1 is not JSON (nested too deeply)"),
        ('{"name": "a", "start": 1%s' % ("0" * 5000), "line 1 is not JSON"),
        ('{"name": "a", "start": NaN, "video": "duel-0.mp4"}', "must be a finite number"),
        ("3", "must be a section with keys"),
    ],
    ids=range(18),
)
def test_a_manifest_stays_in_its_folder(make_study, place, line, sentence):
    (place / "link.mp4").symlink_to(place.parent / "private.mp4")
    (place / "links").symlink_to(place.parent)
    manifest = place / "m.jsonl"
    manifest.write_text(line)
    assert sentence in refusal(make_study, manifest) and str(manifest) in refusal(make_study, manifest)


def test_a_folder_stays_in_itself(make_study, place):
    (place / "duel-0.txt").symlink_to(place.parent / "private.txt")
    assert "'duel-0.txt' is a link that leads out of" in refusal(make_study, place)
    (place / "duel-0.txt").unlink()
    (place / "other.mp4").symlink_to("../private.mp4")
    assert "'other.mp4' is a link that leads out of" in refusal(make_study, place)
    (place / "other.mp4").unlink()
    (place / "sampled").mkdir()
    shutil.copy(place / "duel-0.mp4", place / "sampled/video.mp4")
    (place / "duel-0.mp4").unlink()
    (place / "sampled/transcript.json").symlink_to("../../private.txt")
    assert "'sampled/transcript.json' is a link" in refusal(make_study, place)
    (place / "sampled/transcript.json").unlink()
    for text in (DEEP, '{"a": 1%s}' % ("0" * 5000), '{"interventions": 3}', '{"prompt": ["x"], "runs": []}'):
        (place / "sampled/transcript.json").write_text(text)
        assert "is not a transcript of megatv.sample" in refusal(make_study, place)
    (place / "sampled/transcript.json").write_bytes(b"\xff")
    assert "is not UTF-8 text" in refusal(make_study, place)
    with (place / "sampled/transcript.json").open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk, but would in memory
    assert "and at most 20000000 are read" in refusal(make_study, place)


def test_a_yaml_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "study.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="is larger than 200000 bytes"):
        read_study(path)


def test_degraded_copies_follow_no_link(make_study, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "answers.checks").symlink_to(outside)
    with pytest.raises(ValueError, match=r"answers\.checks: is a link"):
        open_desk(make_study())
    assert not list(outside.iterdir())
    (tmp_path / "answers.checks").unlink()
    open_desk(make_study()).answers.close()
    (copy,) = (tmp_path / "answers.checks").iterdir()
    copy.unlink()
    partial = copy.with_name(f".{copy.name}.partial")
    partial.symlink_to(outside / "taken.mp4")
    open_desk(make_study()).answers.close()
    assert copy.is_file() and not copy.is_symlink() and not list(outside.iterdir())
    copy.unlink()
    copy.symlink_to(outside / "taken.mp4")
    with pytest.raises(ValueError, match=r"\.mp4: is a link"):
        open_desk(make_study())
    assert not list(outside.iterdir())


def test_a_name_that_is_half_a_letter_is_no_title(make_study):
    for changes in ({"title": "a\ud800"}, {"raters": ("a\ud800",), "joins": "invited"}):
        with pytest.raises(ValueError, match="letters that can be seen"):
            make_study(**changes)
