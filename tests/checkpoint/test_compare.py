"""`verify` finds what a damaged or incomplete checkpoint lacks, `diff` what sets two of them apart."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from megatv.checkpoint import store
from megatv.checkpoint.compare import diff, difference, faults
from megatv.checkpoint.convert import export
from megatv.config import Config, load_config

ROOT = Path(__file__).parents[2]
KINDS = ("model", "exp_avg", "exp_avg_sq")
NORM = "blocks.0.text.ffn_norm.weight"


def tiny() -> Config:
    toy = load_config(ROOT / "configs/toy_world.yaml")
    model = dataclasses.replace(toy.model, layers=1, width=32, ffn=32, heads=2, kv_heads=2)
    return dataclasses.replace(toy, model=model, optim=dataclasses.replace(toy.optim, ema=None))


@pytest.fixture
def whole(tmp_path: Path, save_checkpoint: Callable) -> Path:
    """A sound checkpoint to train on from."""
    return save_checkpoint(tmp_path / "run/checkpoints/step_00000007", tiny(), KINDS)


def rewrite(checkpoint: Path, kind: str, edit: Callable[[dict], None]) -> None:
    """Edit the tensors of one kind and record the new checksum, as a writer with a fault would."""
    name = f"{kind}.safetensors"
    tensors = {n: t.clone() for n, t in load_file(checkpoint / name).items()}
    edit(tensors)
    shapes = {n: tuple(t.shape) for n, t in tensors.items()}
    meta = json.loads((checkpoint / "meta.json").read_text())
    meta["files"][name] = store.write_tensors(checkpoint / name, shapes, tensors.values())
    (checkpoint / "meta.json").write_text(json.dumps(meta))


def test_sound_checkpoints_have_no_faults(whole: Path, tmp_path: Path) -> None:
    export(whole, tmp_path / "export", weights="auto", dtype="bfloat16", part_bytes=20_000)
    for path in (whole, whole.parents[1], tmp_path / "export"):
        assert list(faults(path)) == []


def test_each_fault_is_a_line(whole: Path) -> None:
    weights = bytearray((whole / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (whole / "model.safetensors").write_bytes(weights)
    (whole / "exp_avg.safetensors").write_bytes(b"cut")

    def edit(tensors: dict) -> None:
        del tensors["head.text_norm.weight"]
        tensors["stranger"] = torch.zeros(1)
        tensors[NORM] = torch.zeros(3)

    rewrite(whole, "exp_avg_sq", edit)
    size = json.loads((whole / "meta.json").read_text())["files"]["exp_avg.safetensors"]["bytes"]
    assert sorted(faults(whole)) == sorted(
        [
            f"{whole}/model.safetensors: content does not match its sha256",
            f"{whole}/exp_avg.safetensors: 3 bytes instead of {size}",
            f"{whole}: exp_avg_sq lacks head.text_norm.weight",
            f"{whole}/exp_avg_sq.safetensors: holds stranger, which the model does not have",
            f"{whole}/exp_avg_sq.safetensors: {NORM} is [3], the model needs [32]",
        ]
    )


def test_a_state_without_half_of_it_is_a_fault(whole: Path) -> None:
    meta = json.loads((whole / "meta.json").read_text())
    del meta["files"]["exp_avg_sq.safetensors"]
    (whole / "meta.json").write_text(json.dumps(meta))
    assert list(faults(whole)) == [f"{whole}: holds no `exp_avg_sq` tensors"]


def test_the_damaged_checkpoints_of_a_run_are_named(whole: Path) -> None:
    later = whole.with_name("step_00000009")
    shutil.copytree(whole, later)
    (later / "exp_avg.safetensors").unlink()
    (later.with_name("step_00000011")).mkdir()
    assert list(faults(whole.parents[1])) == [
        f"{later}/exp_avg.safetensors: missing",
        f"{later.with_name('step_00000011')}: no checkpoint (meta.json is missing); give a step_* directory",
    ]


def test_diff_says_what_is_apart_and_by_how_much(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    assert diff(whole, other) == ([diff(whole, other)[0][-1]], False)
    names = store.Tensors(whole, "model").names()

    def edit(tensors: dict) -> None:
        tensors[NORM][3] += 0.5
        tensors["head.text_norm.weight"] += 10
        tensors["embed.text.weight"] = tensors["embed.text.weight"][1:]
        tensors["stranger"] = tensors.pop("blocks.0.text.wq.weight")

    before = store.Tensors(whole, "model")[NORM].clone()
    rewrite(other, "model", edit)
    after = store.Tensors(other, "model")[NORM]
    (other / "exp_avg_sq.safetensors").unlink()
    lines, differ = diff(whole, other)
    assert differ
    full = len(names)
    assert lines[:4] == [
        f"only in {whole}: exp_avg_sq ({full} tensors)",
        f"only in {whole}: model/blocks.0.text.wq.weight",
        f"only in {other}: model/stranger",
        f"model/embed.text.weight: F32 [328, 32] in {whole}, F32 [327, 32] in {other}",
    ]
    assert [line.split()[2] for line in lines[5:7]] == ["model/head.text_norm.weight", f"model/{NORM}"]
    relative, absolute, _ = lines[6].split()
    scale = float(torch.maximum(before.abs(), after.abs()).max())
    assert float(absolute) == pytest.approx(0.5, rel=1e-3)
    assert float(relative) == pytest.approx(0.5 / scale, rel=1e-3)
    assert lines[7] == f"{2 * full - 1} tensors in both, 2 of them with other values"


@given(st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=1, max_size=9))
def test_difference_against_python(pairs: list[tuple[float, float]]) -> None:
    a, b = (torch.tensor(side, dtype=torch.float32) for side in zip(*pairs, strict=True))
    gaps = [
        0.0 if x == y or (math.isnan(x) and math.isnan(y)) else abs(x - y)
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    expected = math.nan if any(map(math.isnan, gaps)) else max(gaps)
    found = difference(a, b)
    if found is None:
        assert expected == 0
    else:
        assert found[1] == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.slow
def test_exit_codes(whole: Path, python: Callable, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(whole, other)

    def tool(*words: object) -> tuple[int, str]:
        done = python("tools/convert_ckpt.py", *words, check=False)
        return done.returncode, done.stdout + done.stderr

    assert tool("verify", whole) == (0, f"{whole}: sound\n")
    rewrite(other, "model", lambda tensors: tensors[NORM].add_(1))
    assert tool("diff", whole, other)[0] == 1
    (other / "model.safetensors").unlink()
    assert tool("verify", other) == (2, f"{other}/model.safetensors: missing\n")
