"""Checkpoints on disk: whole or absent, and never trusted unseen."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from megatv.checkpoint import store
from megatv.checkpoint.meta import read_meta


def save(run_dir: Path, step: int, tensors: dict[str, torch.Tensor]) -> Path:
    final = store.checkpoint_dir(run_dir, step)
    temporary = store.begin(final)
    shapes = {n: tuple(t.shape) for n, t in tensors.items()}
    name = store.part_name("model", 0, 1)
    record = store.write_tensors(temporary / name, shapes, iter(tensors.values()))
    store.commit(temporary, final, {"step": step}, {name: record})
    return final


@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4))
def test_written_file_is_plain_safetensors(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    tensors = {f"t{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    record = store.write_tensors(path, {n: tuple(t.shape) for n, t in tensors.items()}, tensors.values())
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[n], tensors[n]) for n in tensors)
    assert record["bytes"] == path.stat().st_size
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_slices_and_transposes_are_written_whole(tmp_path: Path) -> None:
    value = torch.arange(12.0).view(3, 4).t()[1:]
    final = save(tmp_path, 1, {"a": value})
    assert torch.equal(store.Tensors(final, "model")["a"], value)


def test_newest_whole_checkpoint_wins(tmp_path: Path) -> None:
    paths = [save(tmp_path, step, {"a": torch.full((4,), float(step))}) for step in (1, 2, 3)]
    assert store.latest(tmp_path) == (paths[2], [])
    assert store.verify(paths[1])["step"] == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "meta"])
def test_damage_is_found_and_the_one_before_used(tmp_path: Path, damage: str) -> None:
    old, new = (save(tmp_path, step, {"a": torch.randn(64)}) for step in (1, 2))
    victim = new / ("meta.json" if damage == "meta" else "model.safetensors")
    content = bytearray(victim.read_bytes())
    match damage:
        case "flip":
            content[len(content) // 2] ^= 1
        case "truncate" | "meta":
            del content[-5:]
    victim.write_bytes(content)
    if damage == "remove":
        victim.unlink()
    with pytest.raises(ValueError, match=str(victim)):
        store.verify(new)
    path, skipped = store.latest(tmp_path)
    assert path == old
    assert len(skipped) == 1 and str(victim) in skipped[0]


def test_a_save_that_died_is_ignored_and_cleared(tmp_path: Path) -> None:
    whole = save(tmp_path, 1, {"a": torch.zeros(2)})
    partial = store.begin(store.checkpoint_dir(tmp_path, 2))
    (partial / "model.safetensors").write_bytes(b"half")
    assert store.latest(tmp_path) == (whole, [])
    save(tmp_path, 3, {"a": torch.zeros(2)})
    assert not partial.exists()


def test_damaged_directory_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    final = save(tmp_path, 1, {"a": torch.zeros(2)})
    (final / "model.safetensors").write_bytes(b"")
    save(tmp_path, 1, {"a": torch.ones(2)})
    assert torch.equal(store.Tensors(final, "model")["a"], torch.ones(2))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, {"a": torch.zeros(1)})
    store.prune(tmp_path, keep=2)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step_00000004",
        "step_00000005",
    ]


def test_split_files_read_as_one(tmp_path: Path) -> None:
    final = store.checkpoint_dir(tmp_path, 1)
    temporary = store.begin(final)
    parts = {store.part_name("model", i, 2): {f"t{i}": torch.full((i + 1,), float(i))} for i in range(2)}
    files = {}
    for name, tensors in parts.items():
        shapes = {n: tuple(t.shape) for n, t in tensors.items()}
        files[name] = store.write_tensors(temporary / name, shapes, tensors.values())
    places = {n: name for name, tensors in parts.items() for n in tensors}
    files["model.safetensors.index.json"] = store.write_index(temporary, "model", places)
    store.commit(temporary, final, {"step": 1}, files)
    store.verify(final)
    read = store.Tensors(final, "model")
    assert read.names() == {"t0", "t1"}
    assert read.shape("t1") == (2,) and torch.equal(read["t1"], torch.ones(2))
    index = json.loads((final / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["t0"] == "model-00001-of-00002.safetensors"


def test_missing_checkpoint_and_kind_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        read_meta(tmp_path)
    final = save(tmp_path, 1, {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="holds no `ema` tensors"):
        store.Tensors(final, "ema")


def test_everything_is_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not synced may come to the disk in any order, or not: the order of syncs and rename counts."""
    done: list[tuple[str, str, int]] = []
    sync, rename = os.fsync, os.rename

    def recorded_sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append(("sync", path.name, 0 if path.is_dir() else path.stat().st_size))
        sync(descriptor)

    def recorded_rename(old: Path, new: Path) -> None:
        done.append(("rename", Path(new).name, len(list(Path(old).iterdir()))))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    final = store.checkpoint_dir(tmp_path, 7)
    temporary = store.begin(final)
    tensors = {"a": torch.randn(64), "b": torch.randn(3, 5)}
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    part = store.part_name("model", 0, 2)
    files = {part: store.write_tensors(temporary / part, shapes, tensors.values())}
    index = "model.safetensors.index.json"
    files[index] = store.write_index(temporary, "model", dict.fromkeys(tensors, part))
    store.commit(temporary, final, {"step": 7}, files)
    size = {path.name: path.stat().st_size for path in final.iterdir()}
    assert done == [
        ("sync", part, size[part]),
        ("sync", index, size[index]),
        ("sync", "meta.json", size["meta.json"]),
        ("sync", final.name + ".tmp", 0),
        ("rename", final.name, 3),
        ("sync", "checkpoints", 0),
    ]
