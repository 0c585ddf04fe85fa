"""The tools that train codecs and report their quality, run as a person would run them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatv.data.video import write_video
from megatv.model.codec.learned import LearnedCodec

SMALL = ("--width", "32", "--batch", "16", "--threads", "1")


@pytest.fixture
def run(python: Callable) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run(tool, *arguments): a script of tools/, however it ends."""
    return lambda tool, *arguments: python(f"tools/{tool}", *arguments, check=False)


def last_psnr(output: str) -> float:
    return float([line for line in output.splitlines() if "PSNR" in line][-1].split("PSNR ")[1].split()[0])


@pytest.mark.slow
def test_toy_world_codec_learns_is_reproducible_and_is_reported(run: Callable, tmp_path: Path) -> None:
    common = ("--toy", 30, *SMALL)
    short = run("train_codec.py", *common, "--steps", 2, "--out", tmp_path / "short.safetensors")
    assert short.returncode == 0, short.stderr
    again = run("train_codec.py", *common, "--steps", 2, "--out", tmp_path / "again.safetensors")
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("short", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    longer = run("train_codec.py", *common, "--steps", 60, "--out", tmp_path / "long.safetensors")
    assert last_psnr(longer.stdout) > last_psnr(again.stdout) + 3
    assert "s left" in longer.stdout

    out = tmp_path / "report.json"
    codecs = ("--codec", "dct", "--codec", f"learned={tmp_path / 'long.safetensors'}")
    report = run("codec_report.py", "--toy", 2, *codecs, "--out", out)
    assert report.returncode == 0, report.stderr
    rows = json.loads(out.read_text())
    assert [row["codec"] for row in rows] == ["dct", "learned"]
    assert rows[1]["psnr"] == pytest.approx(last_psnr(longer.stdout), abs=3)
    assert set(rows[0]["read"]) == {"yaw", "depth", "jump", "ammo", "reload", "flash"}


@pytest.mark.slow
def test_codec_of_a_folder_of_videos(run: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder, out = tmp_path / "videos", tmp_path / "codec.safetensors"
    folder.mkdir()
    for name in ("a", "b"):
        mosaic = rng.integers(0, 256, (52, 10, 10, 3), dtype=np.uint8)
        write_video(folder / f"{name}.mp4", mosaic.repeat(8, axis=1).repeat(8, axis=2))
    done = run("train_codec.py", "--videos", folder, "--size", "80x80", *SMALL, "--steps", 3, "--out", out)
    assert done.returncode == 0, done.stderr
    assert LearnedCodec.load(out).network.width == 32


def test_wrong_arguments_are_one_line(run: Callable, tmp_path: Path) -> None:
    for arguments, message in (
        (("train_codec.py", "--videos", tmp_path), "no videos"),
        (("train_codec.py", "--toy", 1), "at least 2 are needed"),
        (("codec_report.py", "--toy", 1, "--codec", "learned=none"), "no such codec"),
    ):
        out = tmp_path / "out.safetensors"
        failed = run(*arguments, "--out", out)
        assert failed.returncode == 2 and not out.exists()
        assert failed.stderr.startswith("error: ") and message in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
