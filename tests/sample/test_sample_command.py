"""`python -m megatv.sample`: what it writes, and what it refuses."""

import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from megatv.data.video import decode_video, probe, write_video
from megatv.sample import outputs
from megatv.sample.batch import foreign_words
from megatv.sample.batch_file import read_batch, seed_of
from megatv.sample.cli import main
from megatv.sample.outputs import write_results
from megatv.sample.request import ChunkWords, Request

PROMPT = "A player jumps and shoots among pillars."
QUICK = ["--steps", "1"]


def test_writes_video_sheet_and_transcript(run_dir, tmp_path):
    Image.fromarray(np.full((50, 40, 4), 200, np.uint8)).save(tmp_path / "start.png")
    out = tmp_path / "deep/out"
    start = ["--prompt", PROMPT, "--image", str(tmp_path / "start.png")]
    spoken = ["--intervene", "0.8125:(space). 0, 0, 0, 0.", "--intervene", "2:"]
    main(["--checkpoint", str(run_dir), *start, *spoken, *QUICK, "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == [
        "contact_sheet.png",
        "transcript.json",
        "video.mp4",
    ]
    info = probe(out / "video.mp4")
    assert (info.width, info.height, round(info.seconds * 16)) == (512, 256, 49)
    first = decode_video(out / "video.mp4", width=512, height=256, frames=1)[0]
    grey = 200 * 200 // 255  # the picture over black
    assert abs(first.astype(int) - grey).mean() < 30  # chunk 0 shows it as the codec codes it
    tree = json.loads((out / "transcript.json").read_text())
    assert (tree["prompt"], tree["step"], tree["seed"], tree["mode"]) == (PROMPT, 7, 0, "tv2tv")
    assert tree["precision"] == ("bf16" if torch.cuda.is_available() else "fp32")
    assert tree["settings"] == {
        "steps": 1,
        "temperature": 1.0,
        "cfg": 1.0,
        "solver": "euler",
        "top_p": 1.0,
        "grammar": "none",
        "when_full": "bof",
        "keep_prompt": True,
        "keep_first_frame": False,
    }
    chunks = tree["runs"][0]["chunks"]
    assert [c["given"] for c in chunks] == [True] + [False] * 12 and tree["start_words"] == "model"
    assert [c["source"] for c in chunks] == ["own"] * 4 + ["forced"] + ["own"] * 4 + ["forced"] + ["own"] * 3
    assert chunks[4]["text"] == "(space). 0, 0, 0, 0." and chunks[9] == {
        "start_seconds": 2.0625,
        "text": "",
        "source": "forced",
        "cut": False,
        "given": False,
    }
    assert not list(out.parent.glob(".*"))


def test_compare_shows_both(run_dir, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    checkpoint = run_dir / "checkpoints/step_00000007"
    asked = ["--example", "1", "--compare", "--intervene", "1:(w). 2, 0, 0, 0."]
    main(["--checkpoint", str(checkpoint), *asked, *QUICK, "--out", str(out)])
    assert {path.name for path in out.glob("*.mp4")} == {"left_alone.mp4", "with_your_words.mp4"}
    alone, changed = json.loads((out / "transcript.json").read_text())["runs"]
    assert alone["chunks"][:5] == changed["chunks"][:5]
    assert (alone["chunks"][5]["source"], changed["chunks"][5]["source"]) == ("own", "forced")
    pictures = [decode_video(out / run["video"], width=64, height=32) for run in (alone, changed)]
    assert np.abs(pictures[0][:17].astype(int) - pictures[1][:17]).mean() < 1
    sheet = Image.open(out / "contact_sheet.png")
    assert sheet.width > 1000 and sheet.height > 500


def test_a_video_starts_from_another_and_a_timeline_brings_words(run_dir, tmp_path):
    frames = (
        np.full((30, 32, 64, 3), 90, np.uint8) + np.arange(0, 120, 4, dtype=np.uint8)[:, None, None, None]
    )
    write_video(tmp_path / "start.mp4", frames)
    out = tmp_path / "out"
    timeline = tmp_path / "timeline.txt"
    timeline.write_text("# two moments\n1.5:(w). 2, 0, 0, 0.\n\n2.5:\n")
    start = ["--prompt", PROMPT, "--video", str(tmp_path / "start.mp4"), "--timeline", str(timeline)]
    drawn = ["--solver", "dpmpp", "--steps", "2", "--top-p", "0.9", "--grammar", "actions"]
    drawn += ["--precision", "fp8", "--device", "cpu"]
    main(["--checkpoint", str(run_dir), *start, *drawn, "--out", str(out)])
    tree = json.loads((out / "transcript.json").read_text())
    assert [tree["settings"][key] for key in ("solver", "top_p", "grammar")] == ["dpmpp", 0.9, "actions"]
    assert tree["precision"] == "fp8"
    chunks = tree["runs"][0]["chunks"]
    assert [c["given"] for c in chunks[:7]] == [True] * 6 + [False]
    assert [c["text"] for c in chunks if c["source"] == "forced"] == ["(w). 2, 0, 0, 0.", ""][
        : len(chunks) - 6
    ]
    made = decode_video(out / "video.mp4", width=64, height=32)[:21]
    assert np.abs(made.astype(int) - frames[:21]).mean() < 20  # coded twice


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_guidance_that_a_model_was_not_trained_for_is_said(run_dir, tmp_path, capsys, cfg):
    main(
        [
            "--checkpoint",
            str(run_dir),
            *BASE,
            "--seconds",
            "0.1",
            "--cfg",
            str(cfg),
            "--out",
            str(tmp_path / "o"),
        ]
    )
    told = "guidance 2: this model was trained with sequence.text_dropout 0" in capsys.readouterr().out
    assert told == (cfg == 2)


LINE, OTHER = "(w). 2, 0, 0, 0.", "(space). 0, 0, 0, 0."


@pytest.fixture
def start_video(tmp_path):
    """Nine frames: three chunks, at 0, 0.0625 and 0.3125 s."""
    frames = np.full((9, 32, 64, 3), 90, np.uint8) + np.arange(0, 90, 10, dtype=np.uint8)[:, None, None, None]
    write_video(tmp_path / "start.mp4", frames)
    return tmp_path / "start.mp4"


def test_words_before_what_is_given_are_the_models_nobodys_or_yours(run_dir, tmp_path, start_video):
    """In one request, and in a batch's lines, which give the same videos."""
    words = tmp_path / "words.txt"
    words.write_text(f"# two of three\n0:{LINE}\n0.3:{OTHER}\n")
    ways = {
        "model": (["--start-words", "model"], {"start_words": "model"}),
        "default": ([], {}),
        "none": (["--start-words", "none"], {"start_words": "none"}),
        "given": (["--video-words", str(words)], {"video_words": [[0, LINE], [0.3, OTHER]]}),
    }
    run = ["--checkpoint", str(run_dir), *QUICK]
    lines, alone = [], {}
    for name, (options, fields) in ways.items():
        out = tmp_path / f"one-{name}"
        main(
            [
                *run,
                "--prompt",
                PROMPT,
                "--seed",
                "2",
                "--video",
                str(start_video),
                *options,
                "--out",
                str(out),
            ]
        )
        alone[name] = json.loads((out / "transcript.json").read_text())
        start = {"prompt": PROMPT, "seed": 2, "video": str(start_video)}
        lines.append(json.dumps({"name": name, **start, **fields}) + "\n")
    (tmp_path / "batch.jsonl").write_text("".join(lines))
    main([*run, "--batch", str(tmp_path / "batch.jsonl"), "--out", str(tmp_path / "many")])
    for name, tree in alone.items():
        together = json.loads((tmp_path / "many" / name / "transcript.json").read_text())
        assert together["runs"][0]["chunks"] == tree["runs"][0]["chunks"]
        assert together["start_words"] == tree["start_words"] == ("model" if name == "default" else name)
        assert together["video_words"] == tree["video_words"]
    chunks = {name: tree["runs"][0]["chunks"] for name, tree in alone.items()}
    assert chunks["model"] == chunks["default"] and {c["source"] for c in chunks["model"]} == {"own"}
    assert any(chunk["text"] for chunk in chunks["model"][:3])
    assert [c["text"] for c in chunks["given"][:3]] == [LINE, "", OTHER]
    assert [c["text"] for c in chunks["none"][:3]] == ["", "", ""]
    for name in ("given", "none"):
        assert [c["source"] for c in chunks[name][:3]] == ["given"] * 3
        assert {c["source"] for c in chunks[name][3:]} <= {"own"}
    assert alone["given"]["video_words"] == [{"seconds": 0.0, "text": LINE}, {"seconds": 0.3, "text": OTHER}]


@pytest.mark.parametrize("seconds", [-0.5, 0.4, 3.0, 1e308])
def test_words_beyond_what_a_video_gives_are_refused(run_dir, tmp_path, start_video, seconds):
    (tmp_path / "words.txt").write_text(f"{seconds}:{LINE}\n")
    start = ["--prompt", PROMPT, "--video", str(start_video), "--video-words", str(tmp_path / "words.txt")]
    with pytest.raises(ValueError, match=r"--video-words at .*the video gives 3 chunks"):
        main(["--checkpoint", str(run_dir), *QUICK, *start, "--out", str(tmp_path / "out")])


def test_an_examples_words_are_the_models_unless_they_are_asked_for(run_dir, tmp_path):
    found = {}
    for name, options in {
        "model": [],
        "given": ["--start-words", "given"],
        "yours": ["--image-words", LINE],
        "compare": ["--image-words", LINE, "--compare", "--intervene", f"1:{OTHER}"],
    }.items():
        out = tmp_path / name
        main(["--checkpoint", str(run_dir), "--example", "0", *QUICK, *options, "--out", str(out)])
        found[name] = [run["chunks"][0] for run in json.loads((out / "transcript.json").read_text())["runs"]]
    assert found["model"][0]["source"] == "own" and found["model"][0]["text"]
    assert [(c["text"], c["source"]) for c in found["given"]] == [("(s). 0, 0, 0, 0.", "given")]
    assert [(c["text"], c["source"]) for c in found["yours"]] == [(LINE, "given")]
    assert [c["text"] for c in found["compare"]] == [LINE, LINE]  # both videos start alike


@pytest.mark.slow
def test_ranks_share_a_batch_and_a_second_start_makes_what_is_missing(run_dir, tmp_path, on_ranks, python):
    lines = [
        {"name": f"v{i}", "prompt": PROMPT, "seed": i, "interventions": [[1.0, "(w). 2, 0, 0, 0."]]}
        for i in range(5)
    ] + [{"name": "bad", "prompt": PROMPT, "seconds": -1}]
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["-m", "megatv.sample", "--checkpoint", run_dir, "--batch", tmp_path / "batch.jsonl", *QUICK]
    told = on_ranks(2, *words, "--rows", 2, "--out", tmp_path / "two")
    assert "not made: bad: seconds is -1" in told
    made = {f"v{i}" for i in range(5) if f"not made: v{i}: the model ended it" not in told}
    assert {path.name for path in (tmp_path / "two").iterdir()} == made and len(made) >= 3
    again, other, *_ = sorted(made)
    shutil.rmtree(tmp_path / "two" / again)
    kept = (tmp_path / "two" / other / "video.mp4").stat().st_mtime_ns
    on_ranks(2, *words, "--rows", 2, "--out", tmp_path / "two")
    assert (tmp_path / "two" / other / "video.mp4").stat().st_mtime_ns == kept
    alone = python(*words, "--rows", 6, "--out", tmp_path / "one", check=False)
    assert alone.returncode == 2 and "not made: bad" in alone.stdout
    for name in made:
        trees = [
            json.loads((tmp_path / way / name / "transcript.json").read_text()) for way in ("one", "two")
        ]
        assert trees[0]["runs"][0]["chunks"] == trees[1]["runs"][0]["chunks"]
        assert trees[0]["seed"] == int(name[1:])


def test_a_full_disk_leaves_nothing_behind(run_dir, tmp_path, monkeypatch):
    def full(path, frames):
        path.write_bytes(b"half a video")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "write_video", full)
    with pytest.raises(ValueError, match="No space left on device"):
        main(["--checkpoint", str(run_dir), *BASE, "--out", str(tmp_path / "deep/out")])
    assert not list((tmp_path / "deep").iterdir())


BATCH = '{"name": "a", "prompt": "b"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "asks for no video"),
        ("{", "line 1: is not valid JSON"),
        ("[1]", 'line 1: write an object with a "name"'),
        (f'{BATCH}\n{{"name": "../b", "prompt": "b"}}', "line 2: the name '../b' cannot be"),
        (f"{BATCH}\n{BATCH}", "line 2: the name 'a' is another line's"),
        ('{"name": "a", "promt": "b"}', "line 1: 'promt' is unknown: use example, image"),
        ('{"name": "a", "prompt": 3}', "prompt is 3: write str"),
        ('{"name": "a", "seed": true}', "seed is True: write int"),
        ('{"name": "a", "seed": 1' + "0" * 400 + "}", "seed is 1000"),
        ('{"name": "a", "seconds": NaN}', "line 1: has NaN or an infinite number"),
        ('{"name": "a", "prompt": ' + "[" * 30 + "]" * 30 + "}", "prompt is [[[...]]]: write str"),
        ('{"name": "a", "prompt": ' + "[" * 900 + "]" * 900 + "}", "line 1: is nested too deeply"),
        ("[" * 100_000, "line 1: is not valid JSON (nested too deeply"),
        ('{"name": "a", "interventions": [[1' + "0" * 400 + ', "b"]]}', "interventions are a list of"),
        ('{"name": "a", "interventions": [[1, ["b"]]]}', "interventions are a list of"),
        ('{"name": "a", "mode": "v2v"}', "mode 'v2v' is unknown: use tv2tv, t2v or think2v"),
        ('{"name": "a", "start_words": "mine"}', "start_words 'mine' is unknown: use model, none or given"),
        ('{"name": "a", "start_words": null}', "start_words is None: write str"),
        ('{"name": "a", "video_words": [["soon", "b"]]}', "video_words are a list of [seconds, text]"),
        ('{"name": "a", "interventions": [["soon", "b"]]}', "interventions are a list of"),
        *(
            (f'{BATCH}\n{{"name": {json.dumps(name)}, "prompt": "b"}}', "line 2: the name '")
            for name in ("", ".", ".b", "b/c", "b\0", "b\\c", "b" * 201, "\u96ea" * 70)
        ),
        *(
            (f'{BATCH}\n{{"name": "b", {field}}}', "line 2: is not UTF-8, or has half")
            for field in (
                r'"prompt": "\ud800"',
                r'"image": "\uDFFF.png"',
                r'"image_words": "\ud800a"',
                r'"video": "\udc80"',
                r'"video_words": [[0, "\ud800"]]',
                r'"interventions": [[1, "\ud800"]]',
            )
        ),
        (r'{"name": "\ud800", "prompt": "b"}', "line 1: is not UTF-8, or has half a character"),
    ],
)
def test_bad_batches_name_file_and_line(run_dir, tmp_path, text, message):
    file = tmp_path / "batch.jsonl"
    file.write_text(text)
    if not text or text.count("\n") == 0:  # nothing to make
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            main(["--checkpoint", str(run_dir), "--batch", str(file), "--out", str(tmp_path / "out")])
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    else:
        asked, (fault,) = read_batch(str(file))
        assert list(asked) == ["a"] and str(file) in fault and message in fault and "\n" not in fault


@pytest.mark.parametrize(
    "line",
    [
        '{"name": "%s", "prompt": "p"}' % ("a" * 245),
        r'{"name": "a", "prompt": "x \ud83d"}',
        '{"name": "a", "prompt": "p", "seed": 18446744073709551616}',
        '{"name": "a", "prompt": "p", "interventions": [[1e308, "a"]]}',
        '{"name": "a", "prompt": "p", "interventions": [[-1e300, "a"]]}',
        '{"name": "a", "prompt": "p", "interventions": [[0.3, null]]}',
        '{"name": "a", "prompt": "p", "interventions": [[false, "a"]]}',
        '{"name": "a", "prompt": "p", "interventions": {"0a": 1}}',
        '{"name": "a", "prompt": "p", "interventions": ["0a"]}',
        '{"name": "a", "prompt": "p", "interventions": null}',
        '{"name": "a", "prompt": "p", "seconds": Infinity}',
        '{"name": "a", "prompt": "p", "seconds": 1e999}',
        '{"name": "a", "prompt": "p", "seconds": 1e18}',
        '{"name": "a", "prompt": "p", "image": "none.png"}',
        '{"name": "a"}',
        "[" * 100_000,
        "[1",
    ],
)
def test_a_line_that_cannot_be_used_costs_the_others_nothing(run_dir, tmp_path, capsys, line):
    good = {"name": "ok", "prompt": PROMPT, "seconds": 0.25}
    (tmp_path / "batch.jsonl").write_text(line + "\n" + json.dumps(good) + "\n")
    words = ["--batch", str(tmp_path / "batch.jsonl"), "--out", str(tmp_path / "out")]
    assert main(["--checkpoint", str(run_dir), *QUICK, *words]) == 2
    told = capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ok"]
    assert len(re.findall(r"^not made: ", told, re.MULTILINE)) == 1


def test_every_line_without_a_seed_has_one_of_its_own(tmp_path):
    lines = [{"name": name, "prompt": "p"} for name in "abc"] + [{"name": "d", "prompt": "p", "seed": 7}]
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked, faults = read_batch(str(tmp_path / "batch.jsonl"))
    assert not faults and asked["d"].seed == 7
    assert [asked[name].seed for name in "abc"] == [seed_of(name) for name in "abc"]
    assert len({seed_of(str(k)) for k in range(1000)}) == 1000 and all(0 <= seed_of(k) < 2**31 for k in "xyz")
    assert seed_of("a") == 1_699_463_305  # the same on every machine


def test_a_place_that_cannot_be_written_to_is_named_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "b.jsonl").write_text(BATCH)
    for out, reason in [
        ("file", "is not an empty directory"),
        ("full", "is not an empty directory"),
        ("file/out", "cannot be written"),
        ("n" * 245, "cannot be written"),
    ]:
        with pytest.raises(ValueError, match=reason):
            main(["--checkpoint", "none", "--prompt", "p", "--out", str(tmp_path / out)])
    for out in ("file", "file/out"):
        with pytest.raises(ValueError, match="cannot be written"):
            main(["--checkpoint", "none", "--batch", str(tmp_path / "b.jsonl"), "--out", str(tmp_path / out)])
    with pytest.raises(ValueError, match=r"holds no earlier result \(transcript\.json\)"):
        main(["--checkpoint", "none", "--prompt", "p", "--overwrite", "--out", str(tmp_path / "full")])
    assert (tmp_path / "full/notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "full", "b.jsonl"}


def test_an_earlier_result_is_replaced_when_that_is_asked_for(run_dir, tmp_path):
    words = ["--checkpoint", str(run_dir), *BASE, "--seconds", "0.25", "--out", str(tmp_path / "out")]
    main(words)
    (tmp_path / "out/older").touch()
    with pytest.raises(ValueError, match="give --overwrite to replace"):
        main(words)
    main([*words, "--overwrite", "--seed", "5"])
    assert json.loads((tmp_path / "out/transcript.json").read_text())["seed"] == 5
    assert not (tmp_path / "out/older").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]

    (tmp_path / "b.jsonl").write_text(
        json.dumps({"name": "out", "prompt": PROMPT, "seconds": 0.25, "seed": 6})
    )
    many = [
        "--checkpoint",
        str(run_dir),
        *QUICK,
        "--batch",
        str(tmp_path / "b.jsonl"),
        "--out",
        str(tmp_path),
    ]
    main(many)
    assert json.loads((tmp_path / "out/transcript.json").read_text())["seed"] == 5
    main([*many, "--overwrite"])
    assert json.loads((tmp_path / "out/transcript.json").read_text())["seed"] == 6


def test_a_batch_is_no_pipe(run_dir, tmp_path):
    os.mkfifo(tmp_path / "batch.jsonl")
    for option in ("--batch", "--timeline"):
        words = BASE if option == "--timeline" else []
        with pytest.raises(ValueError, match=r"batch\.jsonl: is not a regular file"):
            main(["--checkpoint", str(run_dir), *words, option, str(tmp_path / "batch.jsonl"), "--out", "o"])


def test_words_with_half_a_character_are_refused_before_sampling(run_dir, tmp_path):
    for words in (["--prompt", "\udcff"], [*BASE, "--intervene", "1:\ud800"]):
        with pytest.raises(ValueError, match="a text is not UTF-8, or has half a character"):
            main(["--checkpoint", str(run_dir), *words, "--out", str(tmp_path / "out")])


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / ("x" * 300), tmp_path / "file/out"):
        with pytest.raises(ValueError, match="cannot be written"):
            write_results(out, Request("p"), {}, {})


def test_options_of_one_video_do_not_mix_with_a_batch(run_dir, tmp_path):
    with pytest.raises(ValueError, match="--seed is one video's"):
        main(["--checkpoint", str(run_dir), "--batch", "b", "--seed", "3", "--out", str(tmp_path / "out")])


BASE = ["--prompt", PROMPT, *QUICK]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1"], "give --prompt"),
        ([*BASE, "--compare"], "at least one --intervene"),
        ([*BASE, "--intervene", "soon:hi"], "write SECONDS:TEXT"),
        ([*BASE, "--intervene", "nan:hi"], "write SECONDS:TEXT"),
        ([*BASE, "--intervene", "1.5"], "write SECONDS:TEXT"),
        ([*BASE, "--intervene", "99:hi"], "outside the video"),
        ([*BASE, "--seconds", "0"], "longer than 0"),
        ([*BASE, "--seconds=-2"], "longer than 0"),
        ([*BASE, "--steps", "0"], "--steps 0"),
        ([*BASE, "--temperature=-1"], "--temperature -1"),
        ([*BASE, "--cfg", "inf"], "--cfg inf"),
        ([*BASE, "--seed=-1"], "--seed -1"),
        ([*BASE, "--top-p", "0"], "--top-p 0"),
        ([*BASE, "--timeline", "missing.txt"], "--timeline missing.txt"),
        ([*BASE, "--timeline", __file__], "line 1: .*write SECONDS:TEXT"),
        ([*BASE, "--video", __file__], "test_sample_command.py"),
        ([*BASE, "--device", "toaster"], "--device toaster"),
        ([*BASE, "--image-words", "hi"], "--image-words: there is no picture; give --image or --example"),
        ([*BASE, "--video", __file__, "--image-words", "hi"], "--image-words: there is no picture"),
        ([*BASE, "--video-words", "missing.txt"], "--video-words missing.txt"),
        ([*BASE, "--video-words", __file__], "line 1: .*write SECONDS:TEXT"),
        ([*BASE, "--start-words", "none"], "--start-words none: nothing is given to start from"),
        ([*BASE, "--example", "0", "--start-words", "model", "--image-words", "hi"], "leave one out"),
        ([*BASE, "--image", "a.png", "--start-words", "given"], "there are no words; give --image-words"),
        ([*BASE, "--video", "a.mp4", "--start-words", "given"], "there are no words; give --video-words"),
        ([*BASE, "--mode", "t2v", "--example", "0", "--image-words", "hi"], "no words to change"),
        ([*BASE, "--mode", "t2v", "--intervene", "1:hi"], "no words to change"),
        (["--prompt", "word " * 200, *QUICK], "shorten the prompt"),
        ([*BASE, "--image", "missing.png"], "missing.png"),
        ([*BASE, "--image", __file__], "cannot be read as a picture"),
        ([*BASE, "--image", "/"], "--image /: cannot be read .Is a directory"),
        ([*BASE, "--example", "2"], "examples 0 to 1"),
        ([*BASE, "--weights", "ema"], "ema"),
    ],
)
def test_bad_input_is_one_sentence(run_dir, tmp_path, arguments, message):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message) as caught:
        main(["--checkpoint", str(run_dir), "--out", str(out), *arguments])
    assert "\n" not in str(caught.value)
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_bad_checkpoints_and_full_directories_are_refused(run_dir, tmp_path):
    for path in ("nowhere", str(tmp_path)):
        with pytest.raises(ValueError, match=path):
            main(["--checkpoint", path, "--out", str(tmp_path / "out"), *BASE])
    damaged = shutil.copytree(run_dir, tmp_path / "damaged")
    file = damaged / "checkpoints/step_00000007/model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="no whole checkpoint"):
        main(["--checkpoint", str(damaged), "--out", str(tmp_path / "out"), *BASE])
    with pytest.raises(ValueError, match="not an empty directory"):
        main(["--checkpoint", str(run_dir), "--out", str(tmp_path), *BASE])


@pytest.mark.slow
def test_command_line_exits_with_2(tmp_path, python):
    words = ["-m", "megatv.sample", "--checkpoint", "nowhere", "--out", tmp_path / "o"]
    done = python(*words, *BASE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere") and len(done.stderr.splitlines()) == 1


def test_words_that_are_no_action_line_are_named_to_a_model_that_says_nothing_else():
    def told(*chunks, actions=False):
        said = [ChunkWords(k / 4, text, source) for k, (text, source) in enumerate(chunks)]
        return foreign_words(SimpleNamespace(transcript=said), actions)

    (sentence,) = told((LINE, "own"), ("jump", "forced"), (LINE, "forced"), ("", "forced"))
    assert sentence.startswith("'jump' at 0.25 s is not an action line") and "try '(w)" in sentence
    assert told((LINE, "own"), (LINE, "forced")) == []
    assert told(("A boy runs.", "own"), ("jump", "forced")) == []
    assert told(("jump", "forced")) == []
    frames = "\n".join(4 * ["(w, shift). -10, 0, 0, 0."])  # of CS:GO: a line for every frame
    assert told((frames, "own"), (frames, "forced")) == []
    assert "'jump' at 0.25 s" in told((frames, "own"), ("jump", "forced"))[0]
    assert "'jump' at 0 s" in told(("jump", "forced"), ("(w). 10", "own"), actions=True)[0]


def test_a_file_of_nothing_but_bad_lines_is_no_batch(tmp_path):
    """A sentence for each of millions of lines would take far more memory than they do."""
    good = json.dumps({"name": "ok", "prompt": "p"}) + "\n"
    for bad, count in (("x", 100), ("x", 101), ("{}", 100), ("{}", 101)):
        (tmp_path / "b.jsonl").write_text(good + (bad + "\n") * count)
        if count == 100:
            asked, faults = read_batch(str(tmp_path / "b.jsonl"))
            assert list(asked) == ["ok"] and len(faults) == 100
        else:
            with pytest.raises(ValueError, match=r"b\.jsonl line \d+: ") as caught:
                read_batch(str(tmp_path / "b.jsonl"))
            assert len(str(caught.value)) < 500
