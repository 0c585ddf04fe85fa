"""Hostile inputs end in a decode or in a sentence, and the tool that counts them would notice if not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatv.data.video import write_video

ROOT = Path(__file__).parents[2]
CLIPS = ROOT / "../shared/clips"
TOOL = ROOT / "tools/fuzz_video.py"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "a.mp4"
    y, x, t = np.mgrid[:96, :160, :40]
    waves = 128 + 100 * np.sin((x + 3 * t) / 9) * np.cos((y - 2 * t) / 7)
    write_video(path, np.repeat(waves.transpose(2, 0, 1)[..., None], 3, -1).astype(np.uint8))
    return path


def run(*command) -> tuple[int, dict]:
    result = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=500)
    assert result.stdout.startswith("{"), result.stderr
    return result.returncode, json.loads(result.stdout)


@pytest.mark.slow
def test_hostile_inputs_end_in_a_decode_or_a_sentence(clip, tmp_path):
    real = sorted(CLIPS.glob("*.mp4"))[:1]
    code, report = run(TOOL, clip, *real, "--count", 700, "--workers", 1, "--out", tmp_path / "f.json")
    assert code == 0, report["failures"]
    assert report["inputs"] == 700 and report["failures"] == [] and report["leaks"] == 0
    assert set(report["by_kind"]) == {
        "truncated", "bit_flipped", "zero_length", "wrong_container", "tiny", "huge", "endless"
    }  # fmt: skip
    assert all(sum(outcomes.values()) == 100 for outcomes in report["by_kind"].values())
    assert all(outcomes["refused"] >= 10 for outcomes in report["by_kind"].values())
    assert report["outcomes"]["decoded"] > 100
    (growth,), (curve,) = report["growth_of_workers"], report["memory_curves"]
    assert growth["inputs"] == 700 and growth["files"] == growth["threads"] == 0
    assert curve.startswith("100: ") and curve.count(" MB") == 7
    assert json.loads((tmp_path / "f.json").read_text()) == report


MISDEEDS = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, TOOLS)
import fuzz_video
import video_fuzzer

hoard, calls, marks = [], 0, Path(MARKS)

def attempt(data, way, backend):  # spawned workers run this file, too
    global calls
    calls += 1
    hoard.append(bytes(bytearray(1 << 20)))
    deed = next((deed for deed in ("crash", "hang") if (marks / deed).exists()), "")
    if calls > 1 and deed:  # the first call is the worker's start
        (marks / deed).unlink()
        os.abort() if deed == "crash" else time.sleep(600)
    return {"outcome": "wrong exception" if calls == 9 else "decoded", "detail": "KeyError()"}

video_fuzzer.attempt = attempt
if __name__ == "__main__":
    sys.exit(fuzz_video.main())
"""


@pytest.mark.slow
def test_crashes_hangs_wrong_exceptions_and_leaks_are_noticed(clip, tmp_path):
    for deed in ("crash", "hang"):
        (tmp_path / deed).touch()
    script = tmp_path / "misdeeds.py"
    script.write_text(MISDEEDS.replace("TOOLS", repr(str(TOOL.parent))).replace("MARKS", repr(str(tmp_path))))
    keep = tmp_path / "keep"
    code, report = run(
        script,
        clip,
        "--count",
        420,
        "--workers",
        1,
        "--limit-seconds",
        2,
        "--memory-mb",
        2048,
        "--keep",
        keep,
    )
    assert code == 1 and report["inputs"] == 420
    assert [(f["number"], f["outcome"]) for f in report["failures"]] == [
        (0, "crash"), (1, "hang"), (9, "wrong exception")
    ]  # fmt: skip
    assert report["leaks"] == 1 and report["growth_of_workers"][0]["second_half_bytes_per_input"] > 1 << 19
    assert sorted(path.name for path in keep.iterdir()) == [
        "000000.truncated", "000001.bit_flipped", "000009.zero_length"
    ]  # fmt: skip


def test_inputs_are_a_function_of_seed_and_number(clip):
    sys.path.insert(0, str(TOOL.parent))
    try:
        from video_damage import make_input
    finally:
        sys.path.remove(str(TOOL.parent))
    clips = [clip.read_bytes()]
    inputs = [make_input(clips, 3, number) for number in range(70)]
    assert inputs == [make_input(clips, 3, number) for number in range(70)]
    assert inputs != [make_input(clips, 4, number) for number in range(70)]
    assert len({data for _, data in inputs}) > 60 and all(data != clips[0] for _, data in inputs)
