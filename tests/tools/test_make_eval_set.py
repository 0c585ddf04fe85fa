"""The paper's evaluation sets from tiny recordings and clips, read back as the sampler and the studies do."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatv.data import csgo
from megatv.data.csgo_actions import GameAction, encode_action
from megatv.data.csgo_episode import Episode
from megatv.data.picture import decode_picture
from megatv.data.video import decode_video, probe, write_video
from megatv.eval.human.run import open_desk
from megatv.eval.human.study import Study, System, read_study
from megatv.eval.human.videos import find_videos
from megatv.sample.batch_file import read_batch
from megatv.schema import plain
from megatv.yaml_tree import dump

spec = importlib.util.spec_from_file_location(
    "make_eval_set", Path(__file__).parents[2] / "tools/make_eval_set.py"
)
assert spec is not None and spec.loader is not None
make_eval_set = importlib.util.module_from_spec(spec)
sys.modules["make_eval_set"] = make_eval_set
spec.loader.exec_module(make_eval_set)

ARMS = ("tv2tv", "t2v", "think2v")


@pytest.fixture
def run(monkeypatch):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["make_eval_set.py", *map(str, words)])
        return make_eval_set.main()

    return call


def write_recordings(write_episode, folder, frames):
    """An episode for each of `frames`, a number of frames whose pictures are flat and all different."""
    action = encode_action(GameAction())
    for number, count in enumerate(frames):
        shades = np.stack([np.full(count, 20 * number), np.arange(count), np.zeros(count)], -1)
        pictures = np.broadcast_to(shades[:, None, None].astype(np.uint8), (count, 150, 280, 3))
        write_episode(folder / f"expert_{number}.hdf5", pictures, [action] * count)
    return folder


@pytest.fixture(scope="module")
def recordings(write_episode, tmp_path_factory):
    return write_recordings(write_episode, tmp_path_factory.mktemp("recordings"), (60, 60, 60))


@pytest.fixture(scope="module")
def made(recordings, tmp_path_factory):
    """The CS:GO set of three recordings."""
    out = tmp_path_factory.mktemp("csgo") / "set"
    sys_argv, sys.argv = sys.argv, ["make_eval_set.py", "csgo", "--csgo", str(recordings), "--out", str(out)]
    try:
        assert make_eval_set.main() == 0
    finally:
        sys.argv = sys_argv
    return out


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_sampler_reads_the_papers_counts(made):
    counts = {
        f"{arm}/{path.stem}": len(read_batch(str(path))[0])
        for arm in ARMS
        for path in (made / arm).glob("*.jsonl")
        if path.stem != "steered_videos"
    }
    baseline = {"short": 100, "long": 40}
    assert counts == {
        **{f"{arm}/{name}": count for arm in ARMS for name, count in baseline.items()},
        "tv2tv/steered": 150,
        "think2v/steered": 150,
    }


def test_arms_have_the_same_items_but_for_their_mode(made):
    for name in ("short", "long", "steered"):
        ours = read_batch(str(made / f"tv2tv/{name}.jsonl"))[0]
        for arm in ("t2v", "think2v") if name != "steered" else ("think2v",):
            theirs = read_batch(str(made / f"{arm}/{name}.jsonl"))[0]
            assert {asked.mode for asked in theirs.values()} == {arm}
            alike = {key: dataclasses.replace(asked, mode="tv2tv") for key, asked in theirs.items()}
            assert alike == ours


def test_every_start_is_a_frame_of_its_own_as_training_shows_it(made, recordings):
    starts = lines_of(made / "starts.jsonl")
    assert len(starts) == 155
    assert len({(start["episode"], start["frame"]) for start in starts}) == 155
    pictures = {path.stem: np.asarray(Image.open(path)) for path in (made / "frames").iterdir()}
    assert set(pictures) == {start["start"] for start in starts}
    assert len({pixels.tobytes() for pixels in pictures.values()}) == 155
    for start in starts[::20]:
        with Episode(recordings / f"{start['episode']}.hdf5") as episode:
            stored = csgo.resize(episode.picture(start["frame"]), 320, 192)
        assert (pictures[start["start"]] == stored).all()
        read, _ = decode_picture(made / "frames" / f"{start['start']}.png", 320, 192)
        assert (read == stored).all()


def test_videos_start_from_the_pictures(made):
    for path in made.glob("*/short.jsonl"):
        asked, _ = read_batch(str(path))
        assert len({video.image for video in asked.values()}) == 100
        assert all(Path(video.image).is_file() for video in asked.values())


def test_its_studies_find_what_the_sampler_leaves(made):
    """Videos where the printed commands put them; a person sees an item of each study."""
    frames = np.zeros((16, 16, 16, 3), np.uint8)
    write_video(made / "black.mp4", frames)
    data = (made / "black.mp4").read_bytes()
    for batch in made.glob("*/*.jsonl"):
        if batch.stem != "steered_videos":
            for name in read_batch(str(batch))[0]:
                folder = batch.with_name(batch.stem) / name
                folder.mkdir(parents=True)
                (folder / "video.mp4").write_bytes(data)
    counts = {}
    for path in sorted((made / "study").glob("*.yaml")):
        study = read_study(path)
        counts[path.stem] = [len(videos) for videos in find_videos(study)]
    assert counts == {
        "csgo_interventions": [150, 150],
        "csgo_long_t2v": [40, 40],
        "csgo_long_think2v": [40, 40],
        "csgo_short_t2v": [100, 100],
        "csgo_short_think2v": [100, 100],
    }
    study = read_study(made / "study/csgo_long_t2v.yaml")
    desk = open_desk(dataclasses.replace(study, joins="open", checks=0))
    desk.answers.close()
    assert Path(study.database).is_file()


def test_the_commands_name_each_arms_run(run, recordings, tmp_path, capsys):
    out = tmp_path / "a set"
    assert run("csgo", "--csgo", recordings, "--out", out, "--run", "t2v=elsewhere/t2v") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "megatv.sample" in line]
    assert len(said) == 8
    prefix = "torchrun --nproc_per_node 8 -m megatv.sample --checkpoint"
    assert f"{prefix} runs/3b_csgo --batch '{out}/tv2tv/steered.jsonl' --out '{out}/tv2tv/steered'" in said
    assert f"{prefix} elsewhere/t2v --batch '{out}/t2v/long.jsonl' --out '{out}/t2v/long'" in said
    assert sum("runs/3b_csgo_think2v" in line for line in said) == 3


def test_equal_pictures_count_once_and_what_is_damaged_is_left_out(run, write_episode, tmp_path, capsys):
    folder = write_recordings(write_episode, tmp_path / "recordings", (100, 55))
    twin = (folder / "expert_0.hdf5").read_bytes()
    (folder / "twin_of_0.hdf5").write_bytes(twin)
    (folder / "damaged.hdf5").write_bytes(twin[:5000])
    assert run("csgo", "--csgo", folder, "--out", tmp_path / "set") == 0
    assert "left out: " in (said := capsys.readouterr().out) and "damaged.hdf5" in said
    pictures = {path.read_bytes() for path in (tmp_path / "set/frames").iterdir()}
    assert len(pictures) == 155


def test_too_few_frames_are_refused_and_nothing_is_left(run, write_episode, tmp_path):
    folder = write_recordings(write_episode, tmp_path / "recordings", (100, 54))
    with pytest.raises(ValueError, match="has 154 different frames, and each of 155 starts needs its own"):
        run("csgo", "--csgo", folder, "--out", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["recordings"]


def test_bad_words_are_refused_first(run, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        run("csgo", "--csgo", tmp_path / "absent", "--out", tmp_path)
    for text in ("t2v", "t2v=", "gpt=runs/a"):
        with pytest.raises(ValueError, match=f"--run {text}: write ARM=RUN"):
            run("csgo", "--csgo", tmp_path, "--out", tmp_path / "set", "--run", text)
    with pytest.raises(ValueError, match="--width 321"):
        run("normalise", tmp_path / "a.yaml", "--out", tmp_path / "set", "--width", 321)


def write_clips(folder, count):
    """Videos of 64x48 whose first frame has their number as its shade, and their captions file."""
    folder.mkdir()
    lines = []
    for number in range(count):
        frames = np.full((8, 48, 64, 3), 4 * number, np.uint8)
        frames[4:] = 255
        write_video(folder / f"clip_{number}.mp4", frames)
        lines.append({"video": f"clip_{number}.mp4", "meta_caption": f"Goal {number}.", "captions": []})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_sports_takes_first_frames_and_their_prompts(run, tmp_path, capsys):
    videos = tmp_path / "videos"
    write_clips(videos, 33)
    (videos / "clip_3.mp4").write_bytes(b"no video")
    out = tmp_path / "set"
    assert run("sports", "--videos", videos, "--captions", videos / "captions.jsonl", "--out", out) == 0
    said = capsys.readouterr().out
    assert "runs/8b_sports_think2v --batch" in said
    starts = lines_of(out / "starts.jsonl")
    assert len({start["video"] for start in starts}) == len(starts) == 30
    assert "clip_3.mp4" not in {start["video"] for start in starts}
    batches = [read_batch(str(out / arm / "videos.jsonl"))[0] for arm in ARMS]
    assert [len(batch) for batch in batches] == [150] * 3
    assert len({asked.seed for asked in batches[0].values()}) == 150
    prompt_of = {asked.image: asked.prompt for asked in batches[0].values()}
    assert len(prompt_of) == 30
    for start in starts:
        number = int(start["video"].split("_")[1].split(".")[0])
        picture = out / "frames" / f"{start['start']}.png"
        pixels = np.asarray(Image.open(picture))
        assert pixels.shape == (48, 64, 3) and abs(float(pixels.mean()) - 4 * number) < 4
        assert prompt_of[str(picture)] == f"Goal {number}."
    assert {path.stem for path in (out / "study").iterdir()} == {"sports_t2v", "sports_think2v"}


def test_sports_needs_thirty_videos(run, tmp_path):
    write_clips(tmp_path / "videos", 29)
    captions = tmp_path / "videos/captions.jsonl"
    with pytest.raises(ValueError, match="has 29 videos that can be used, and the set has 30"):
        run("sports", "--videos", tmp_path / "videos", "--captions", captions, "--out", tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.fixture
def unlike(tmp_path):
    """A study of ours (98 frames of 80x48 at 16) and of another model's (160x88 at 24 frames a second)."""
    for system, shape, counts, fps in (
        ("ours", (48, 80), (98, 98, 98), 16),
        ("theirs", (88, 160), (121, 200, 48), 24),
    ):
        (tmp_path / system).mkdir()
        for number, count in enumerate(counts):
            shades = np.linspace(0, 240, count).astype(np.uint8)
            frames = np.broadcast_to(shades[:, None, None, None], (count, *shape, 3))
            write_video(tmp_path / system / f"v{number}.mp4", frames, fps=fps)
            (tmp_path / system / f"v{number}.txt").write_text(f"Goal {number}.")
    systems = (System("TV2TV", str(tmp_path / "ours")), System("WAN", str(tmp_path / "theirs")))
    study = Study("pairwise", systems, str(tmp_path / "a.sqlite"), checks=0, joins="open", hints="none")
    path = tmp_path / "study.yaml"
    path.write_text(dump(plain(study)))
    return path


def test_other_models_videos_become_alike(run, unlike, tmp_path, capsys):
    """Section 4.2.2: 320x192 and 16 frames a second for all; of a pair, the shorter one's length."""
    out = tmp_path / "alike"
    assert run("normalise", unlike, "--out", out) == 0
    said = capsys.readouterr().out
    assert "WAN: pictures of 160x88 become narrower" in said and "TV2TV: pictures" not in said
    study = read_study(out / "study.yaml")
    assert (study.hints, [system.name for system in study.systems]) == ("none", ["TV2TV", "WAN"])
    ours, theirs = find_videos(study)
    lengths = {}
    for name in ours:
        infos = [probe(videos[name].video) for videos in (ours, theirs)]
        assert {(info.width, info.height, info.rate) for info in infos} == {(320, 192, 16.0)}
        a, b = (decode_video(videos[name].video, width=32, height=32) for videos in (ours, theirs))
        assert len(a) == len(b)
        lengths[name] = len(a)
        assert ours[name].prompt == theirs[name].prompt == f"Goal {name[1:]}."
    assert lengths == {"v0": 81, "v1": 98, "v2": 32}  # of 121 frames at 24: 5.04 s
    # the picture on screen at 2 s: frame 48 of 121
    shown = decode_video(theirs["v0"].video, width=32, height=32)[32]
    assert abs(float(shown.mean()) - 240 * 48 / 120) < 4
    open_desk(study).answers.close()
    assert "people may tell" not in capsys.readouterr().out


def test_a_video_that_cannot_be_read_costs_its_pair_alone(run, unlike, tmp_path, capsys):
    (tmp_path / "theirs/v1.mp4").write_bytes(b"no video")
    assert run("normalise", unlike, "--out", tmp_path / "alike") == 2
    assert "left out: v1" in capsys.readouterr().out
    assert [list(videos) for videos in find_videos(read_study(tmp_path / "alike/study.yaml"))] == [
        ["v0", "v2"],
        ["v0", "v2"],
    ]


def test_steered_videos_keep_their_captions_and_times(run, tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((32, 48, 80, 3), np.uint8))
    line = {"name": "a", "video": "a.mp4", "caption": "The player jumps.", "start": 0.8125, "action": "jump"}
    (tmp_path / "m.jsonl").write_text(json.dumps({**line, "control": True}) + "\n")
    study = Study("pointwise", (System("ours", str(tmp_path / "m.jsonl")),), str(tmp_path / "a.sqlite"))
    (tmp_path / "s.yaml").write_text(dump(plain(study)))
    assert run("normalise", tmp_path / "s.yaml", "--out", tmp_path / "alike") == 0
    (found,) = find_videos(read_study(tmp_path / "alike/study.yaml"))
    assert (found["a"].caption, found["a"].start, found["a"].control) == ("The player jumps.", 0.8125, True)
