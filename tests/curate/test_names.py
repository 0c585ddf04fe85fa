"""Names in metadata and manifests, and links, lead to no file outside the videos' or the output's folder."""

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from megatv.curate.engine import Stage, Summary
from megatv.curate.manifest import Record
from megatv.curate.recipe import load_recipe
from megatv.curate.report import write_report
from megatv.curate.steps import Places, _file_name, list_videos, stages
from megatv.curate.words import picture
from megatv.data.video import write_video

ROOT = Path(__file__).parents[2]
OUTSIDE = ["../private.mp4", "a/../../private.mp4", "PRIVATE", "link.mp4", "folder/private.mp4", "nul\0.mp4",
           "back\\slash.mp4", "x" * 300, "\ud800.mp4", "."]  # fmt: skip


@pytest.fixture
def places(tmp_path):
    """A folder of videos with links, beside a video that is nobody's business."""
    videos = tmp_path / "videos"
    videos.mkdir()
    frames = np.full((16, 32, 48, 3), 200, np.uint8)
    write_video(tmp_path / "private.mp4", frames)
    write_video(videos / "mine.mp4", frames)
    (videos / "link.mp4").symlink_to(tmp_path / "private.mp4")
    (videos / "folder").symlink_to(tmp_path)
    return Places(videos, tmp_path / "out")


def recipe(tmp_path, *more):
    (tmp_path / "words.jsonl").write_text('{"video": "mine.mp4", "meta_caption": "x", "captions": []}\n')
    overrides = [f"captions.words_from={tmp_path / 'words.jsonl'}", "quality=null", *more]
    return load_recipe(ROOT / "configs/data/sports.yaml", overrides)


def named(name, places):
    return str(places.videos.parent / "private.mp4") if name == "PRIVATE" else name


@pytest.mark.parametrize("name", OUTSIDE)
def test_every_stage_refuses_a_video_outside(places, tmp_path, name):
    item = {
        "id": "x",
        "video": named(name, places),
        "stamp": [1, 1],
        "metadata": {},
        "start": 0.0,
        "end": 8.0,
    }
    item |= {"shot_start": 0.0, "key_frames": [], "segments": [[0.0, 8.0]], "captions": []}
    item |= {"info": {"width": 48, "height": 32, "rate": 16.0, "seconds": 1.0}, "meta_caption": "x"}
    ways = {stage.name: stage.work for stage in stages(places, recipe(tmp_path))}
    for way in ("source", "probe", "shots", "filters", "clips", "segments", "export"):
        with pytest.raises(ValueError, match=r"does not name a file within|is a link that leads out of"):
            ways[way](item)
    with pytest.raises(ValueError, match=r"does not name a file within|is a link that leads out of"):
        picture(item, 0.0, places.videos, 48)
    assert not places.out.exists()


def test_metadata_and_folders_may_name_them_and_the_rest_goes_on(places, tmp_path):
    names = ["mine.mp4", *(named(name, places) for name in OUTSIDE if name != "\ud800.mp4")]
    (tmp_path / "meta.jsonl").write_text("".join(json.dumps({"video": name}) + "\n" for name in names))
    items = list_videos(places, recipe(tmp_path, f"source.metadata={tmp_path / 'meta.jsonl'}"))
    assert [item["stamp"] is None for item in items] == [False, *[True] * (len(names) - 1)]
    items = list_videos(places, recipe(tmp_path))
    assert {item["video"]: item["stamp"] is None for item in items} == {"link.mp4": True, "mine.mp4": False}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"video": 3}', "must be an object with `video`"),
        ("[]", "must be an object"),
        ('{"video": "a", "x": ' + "[" * 400 + "]" * 400 + "}", "nested too deeply"),
        ('"\\ud800"', "half a character"),
    ],
)
def test_faults_of_metadata_are_named_with_their_line(places, tmp_path, line, fault):
    (tmp_path / "meta.jsonl").write_text('{"video": "mine.mp4"}\n' + line)
    with pytest.raises(ValueError, match=rf"meta\.jsonl line 2: .*{fault}"):
        list_videos(places, recipe(tmp_path, f"source.metadata={tmp_path / 'meta.jsonl'}"))


IDS = ["a b", "a_b", "a/b", "a\\b", "../b", "..", "/etc/passwd", "a\0b", "a\nb", "b" * 5000, "b" * 5001, "é",
       "\udcff", ".hidden", "-o", "CON", ""]  # fmt: skip


def test_every_clip_has_a_plain_name_of_its_own():
    names = [_file_name(id) for id in IDS]
    assert len({name.lower() for name in names}) == len(IDS)
    for name in names:
        assert (
            name.isascii() and name.isprintable() and len(name) < 200 and "/" not in name and name[0] != "."
        )


def test_the_report_shows_nothing_from_outside_and_every_name_as_words(places, tmp_path):
    evil = "<script>alert(1)</script>\"'&\udcff"
    clip = {"id": evil, "video": "../private.mp4", "start": 0.0, "end": 1.0, "segments": [[0.0, 1.0]]}
    clip |= {"key_frames": [], "captions": [{"start": 0.0, "text": evil}], "meta_caption": evil}
    clip |= {"detailed_caption": evil, "file": "a.mp4"}
    seen = {"id": "link.mp4", "video": "link.mp4"}
    records = [Record("k", evil, "kept", [clip]), Record("l", evil, "failed", reason=evil)]
    results = [([clip, seen], records, Summary("export", 2, 1, 0, 1, 1, 0, 0.0, 0.0))]
    write_report(tmp_path / "report.html", places.videos, results, [], [evil])
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "data:image" not in page
    clip["video"] = seen["video"] = "mine.mp4"
    write_report(tmp_path / "report.html", places.videos, results, [], [])
    assert "data:image" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", ["manifests", "cache", "clips", "captions.jsonl", "shards", "report.html"])
def test_an_output_folder_with_links_is_refused(places, tmp_path, monkeypatch, name):
    (tmp_path / "elsewhere").mkdir()
    places.out.mkdir()
    (places.out / name).symlink_to(tmp_path / "elsewhere")
    recipe(tmp_path)
    arguments = ["--videos", places.videos, "--out", places.out, "--config",
                 ROOT / "configs/data/sports.yaml", f"captions.words_from={tmp_path / 'words.jsonl'}",
                 "quality=null"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["build_dataset.py", *map(str, arguments)])
    with pytest.raises(ValueError, match=rf"--out .*'{name}' is a link that leads out of .*remove it"):
        runpy.run_path(str(ROOT / "tools/build_dataset.py"))["main"]()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shards.config=none.yaml"], r"shards\.config none\.yaml: is no file"),
        (["shards.store=latents"], "data.crop starts needs clips that can be cropped"),
        (["shards.crops=3"], "3 stored crops of a clip are for latents"),
        (["shards.crops=0", "shards.store=latents"], r"shards\.crops is 0: it must be null or 1 to 1000"),
        (["shards.store=pictures"], "store is 'pictures'"),
    ],
)
def test_shards_that_cannot_be_made_are_refused_first(places, tmp_path, monkeypatch, overrides, message):
    recipe(tmp_path)
    arguments = ["--videos", places.videos, "--out", places.out, "--config",
                 ROOT / "configs/data/sports.yaml", f"captions.words_from={tmp_path / 'words.jsonl'}",
                 "quality=null", *overrides]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["build_dataset.py", *map(str, arguments)])
    with pytest.raises(ValueError, match=message):
        runpy.run_path(str(ROOT / "tools/build_dataset.py"))["main"]()
    assert not places.out.exists()


def test_stages_know_what_their_outputs_need(places, tmp_path):
    made = {stage.name: stage.makes for stage in stages(places, recipe(tmp_path)) if isinstance(stage, Stage)}
    assert all("video" in makes for makes in made.values()) and "file" in made["export"]


def test_a_name_that_is_not_utf8_is_one_failed_item_before_any_work(places, tmp_path):
    """It would be refused in captions.jsonl, after all captions were bought."""
    odd = places.videos / os.fsdecode(b"caf\xe9.mp4")
    odd.write_bytes((places.videos / "mine.mp4").read_bytes())
    found = {item["video"]: item for item in list_videos(places, recipe(tmp_path))}
    source = stages(places, recipe(tmp_path))[0].work
    with pytest.raises(ValueError, match=r"its name is not UTF-8.*rename it"):
        source(found[odd.name])
    assert source(found["mine.mp4"]).outputs == [found["mine.mp4"]]


def test_one_video_is_not_named_in_two_ways(places, tmp_path):
    for names in (["mine.mp4", "./mine.mp4"], ["a//mine.mp4"]):
        text = "".join(json.dumps({"video": name}) + "\n" for name in names)
        (tmp_path / "meta.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"names 'mine.mp4' twice|write 'a//mine.mp4' as 'a/mine.mp4'"):
            list_videos(places, recipe(tmp_path, f"source.metadata={tmp_path / 'meta.jsonl'}"))
