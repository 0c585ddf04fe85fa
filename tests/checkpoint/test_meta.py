"""A checkpoint of a stranger's: one sentence for all that is wrong in it; only listed files are read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatv.checkpoint import store
from megatv.checkpoint.compare import diff, faults
from megatv.checkpoint.convert import average, export, to_llama
from megatv.checkpoint.describe import describe, read_header
from megatv.checkpoint.load import find_checkpoint, load_model
from megatv.checkpoint.meta import read_meta
from megatv.checks import AT_MOST
from megatv.config import Config, load_config
from megatv.regular_file import MAX_SMALL_BYTES

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")
INDEX = "model.safetensors.index.json"
DEEP = "[" * 100_000 + "]" * 100_000


def tiny() -> Config:
    model = dataclasses.replace(TOY.model, layers=1, width=32, ffn=32, heads=2, kv_heads=2)
    return dataclasses.replace(TOY, model=model)


@pytest.fixture
def checkpoint(tmp_path: Path, save_checkpoint: Callable) -> Path:
    return save_checkpoint(tmp_path / "run/checkpoints/step_00000007", tiny())


def edit(checkpoint: Path, **changes: Any) -> dict[str, Any]:
    """Change keys of meta.json; `...` takes one out."""
    meta = json.loads((checkpoint / "meta.json").read_text()) | changes
    meta = {key: value for key, value in meta.items() if value is not ...}
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    return meta


def listed(file: Path) -> dict[str, dict[str, Any]]:
    """The record of a file as meta.json has it."""
    content = file.read_bytes()
    return {file.name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}


def open_all(checkpoint: Path, out: Path) -> None:
    """Everything that opens checkpoints says the same; raises the error that all of them had."""
    options: dict[str, Any] = {"weights": "auto", "dtype": "float32", "part_bytes": 10**9}
    ways: list[Callable] = [
        lambda: load_model(*find_checkpoint(checkpoint)),
        lambda: export(checkpoint, out, **options),
        lambda: to_llama(checkpoint, out, like=None, **options),
        lambda: average([checkpoint, checkpoint], out, weights="model"),
    ]
    found = []
    for way in ways:
        with pytest.raises(ValueError) as caught:
            way()
        found.append(caught.value)
        assert not out.exists()
    assert len({str(error) for error in found}) == 1
    assert len(str(found[0])) < 1000 and "\n" not in str(found[0])
    assert list(faults(checkpoint))
    raise found[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "7"}, "`step` is '7' instead of a whole number"),
        ({"step": ...}, "`step` is missing instead of"),
        ({"step": True}, "`step` is True"),
        ({"step": -1}, "`step` is -1"),
        ({"step": 10**4000}, "`step` is 1000"),
        ({"step": math.nan}, "`step` is nan"),
        ({"updates": None}, "`updates` is None"),
        ({"skipped_in_a_row": 1.5}, "`skipped_in_a_row` is 1.5"),
        ({"grad_norms": [1, "2"]}, "`grad_norms` is"),
        ({"grad_norms": [math.nan]}, "`grad_norms` is"),
        ({"config": []}, "`config` is"),
        ({"config": ...}, "config: key 'run' is missing"),
        ({"config": {"run": DEEP}}, "config: key 'video' is missing"),
        ({"config": {"x" * 10**6: 1}}, "config: unknown key 'xxx"),
        ({"latent_stats": [1]}, "`latent_stats` is"),
        ({"codec_fingerprint": 5}, "`codec_fingerprint` is 5"),
        ({"files": ["model.safetensors"]}, "`files` is"),
        ({"files": {"model.safetensors": 5}}, "files: 'model.safetensors' is 5 instead of its"),
        ({"files": {"model.safetensors": {"bytes": "1", "sha256": "0" * 64}}}, "instead of its"),
        ({"files": {"model.safetensors": {"bytes": 1, "sha256": "z"}}}, "instead of its"),
        ({"files": {"../model.safetensors": {"bytes": 1, "sha256": "0" * 64}}}, "not a plain file name"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}, "not a plain file name"),
        ({"format": 2, "megatv": "9" * 10**6}, "format 2 is not 1"),
        ({"format": True}, "format True is not 1"),
        ({"format": [DEEP]}, "is not 1"),
    ],
)
def test_every_type_is_checked(checkpoint: Path, tmp_path: Path, changes: dict, message: str) -> None:
    edit(checkpoint, **changes)
    with pytest.raises(ValueError) as caught:
        open_all(checkpoint, tmp_path / "out")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"7",
        b'{"format": 1',
        DEEP.encode(),
        b"\xff\xfe",
        b'{"step": 1' + b"0" * 5000 + b"}",
        b"\0",
    ],
    ids=["empty", "list", "number", "cut", "deep", "bytes", "digits", "nul"],
)
def test_what_is_no_record_is_one_sentence(checkpoint: Path, tmp_path: Path, text: bytes) -> None:
    (checkpoint / "meta.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"meta\.json: (cannot be read|is .* instead of a section)"):
        open_all(checkpoint, tmp_path / "out")
    for look in (describe, lambda path: diff(path, path)):
        with pytest.raises(ValueError, match=r"meta\.json"):
            look(checkpoint)  # type: ignore[operator]


def test_a_huge_record_is_not_read_whole(checkpoint: Path) -> None:
    with (checkpoint / "meta.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=f"and at most {MAX_SMALL_BYTES} are read"):
        read_meta(checkpoint)


@pytest.mark.parametrize("name", ["meta.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["link", "inner link", "pipe", "folder"])
def test_files_are_the_checkpoints_own(checkpoint: Path, tmp_path: Path, name: str, kind: str) -> None:
    file = checkpoint / name
    elsewhere = (checkpoint if kind == "inner link" else tmp_path) / "elsewhere"
    file.rename(elsewhere)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"{name}.* is (a link|not a regular file)|cannot be read"):
        read_meta(checkpoint)
        store.verify(checkpoint)
    with pytest.raises(ValueError):
        store.Tensors(checkpoint, "model")


def test_files_that_are_not_listed_decide_nothing(checkpoint: Path, tmp_path: Path) -> None:
    before = load_model(*find_checkpoint(checkpoint))[0].state_dict()
    other = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    save_file(other, tmp_path / "other.safetensors")
    save_file(other, checkpoint / "other.safetensors")
    save_file(other, checkpoint / "ema.safetensors")
    for part in ("../../../other.safetensors", "other.safetensors"):
        (checkpoint / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(before, part)}))
        after = load_model(*find_checkpoint(checkpoint))[0].state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../../../other.safetensors"}}, "names '../../../other.safetensors', which"),
        (
            {"weight_map": {"a": "other.safetensors"}},
            "names 'other.safetensors', which meta.json does not list",
        ),
        ({"weight_map": {"a": "/dev/zero"}}, "which meta.json does not list"),
        ({"weight_map": {"a": "model.safetensors"}}, "places 'a' in a file that lacks it"),
        ({"weight_map": {"a": 5}}, "has no `weight_map` of names"),
        ({"weight_map": ["a"]}, "has no `weight_map` of names"),
        ([], "has no `weight_map` of names"),
        (DEEP, "cannot be read"),
    ],
)
def test_a_listed_index_names_listed_files(
    checkpoint: Path, tmp_path: Path, index: Any, message: str
) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, checkpoint / "other.safetensors")
    (checkpoint / INDEX).write_text(index if isinstance(index, str) else json.dumps(index))
    edit(checkpoint, files=read_meta(checkpoint)["files"] | listed(checkpoint / INDEX))
    with pytest.raises(ValueError, match=r"^.*$") as caught:
        load_model(*find_checkpoint(checkpoint))
    assert message in str(caught.value)


def safetensors(header: Any, size: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * size


def entry(dtype: str, shape: list, offsets: list) -> dict:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**8) + b"{}",
        safetensors(DEEP.encode()),
        safetensors(b"[]"),
        safetensors({"a": 5}),
        safetensors(entry("F32", [2**40], [0, 2**42])),
        safetensors(entry("F32", [2**62, 2**62], [0, 4]), 4),
        safetensors(entry("F32", [-1], [0, 4]), 4),
        safetensors(entry("F32", [1], [4, 0]), 4),
        safetensors(entry("F32", ["1"], [0, 4]), 4),
        safetensors(entry("F32", [1], ["0", "4"]), 4),
        safetensors(entry("Q9", [1], [0, 4]), 4),
    ],
)
def test_damaged_weights_are_one_sentence(checkpoint: Path, tmp_path: Path, content: bytes) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(content)
    edit(checkpoint, files=listed(file))
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        open_all(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.int64, "is I64, and weights are F32, BF16, F16"),
        (torch.bool, "is BOOL"),
        (torch.float64, "is F64"),
        (torch.float8_e4m3fn, "is F8_E4M3"),
    ],
)
def test_numbers_that_weights_are_not(
    checkpoint: Path, tmp_path: Path, dtype: torch.dtype, message: str
) -> None:
    tensors = load_model(*find_checkpoint(checkpoint))[0].state_dict()
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, checkpoint / "model.safetensors")
    edit(checkpoint, files=listed(checkpoint / "model.safetensors"))
    with pytest.raises(ValueError, match=message):
        open_all(checkpoint, tmp_path / "out")


def test_weights_of_another_shape_are_refused_before_they_are_read(checkpoint: Path, tmp_path: Path) -> None:
    config = read_meta(checkpoint)["config"]
    for key, value in {"vocab": 2**20, "layers": 3, "width": 64, "ffn": 2**20}.items():
        edit(checkpoint, config=config | {"model": config["model"] | {key: value}})
        with pytest.raises(ValueError, match="the checkpoint is of another model"):
            open_all(checkpoint, tmp_path / "out")


HUGE = {
    "model": {"layers": 10**6, "width": 2**40, "ffn": 10**12, "vocab": 10**12, "unet_channels": [10**9, 8]},
    "video": {"width": 16 * 10**6, "height": 16 * 10**6, "groups": 10**9},
    "sequence": {"context_tokens": 10**12, "examples_per_row": 10**9},
    "sample": {"steps": 10**12},
    "run": {"seed": 10**30},
}


@pytest.mark.parametrize(("section", "key"), [(s, k) for s, keys in HUGE.items() for k in keys])
def test_huge_sizes_are_refused_before_anything_is_made(checkpoint: Path, section: str, key: str) -> None:
    config = read_meta(checkpoint)["config"]
    edit(checkpoint, config=config | {section: config[section] | {key: HUGE[section][key]}})
    with pytest.raises(ValueError, match=rf"meta\.json: config: {section}\.{key} is .*at most|below 2\^63"):
        find_checkpoint(checkpoint)


def test_the_largest_config_takes_little_memory_until_its_weights_are_compared(
    peak_source: str, checkpoint: Path
) -> None:
    config = read_meta(checkpoint)["config"]
    sizes = {"layers": AT_MOST["model.layers"], "width": 2**17, "ffn": 2**20, "vocab": 2**22, "heads": 2}
    edit(checkpoint, config=config | {"model": config["model"] | sizes})
    program = peak_source + (
        "import sys; from megatv.checkpoint.load import find_checkpoint, load_model\n"
        "before = peak()\n"
        "try: load_model(*find_checkpoint(sys.argv[1]))\n"
        "except ValueError as error: print(error)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(checkpoint)], capture_output=True, text=True)
    sentence, grown = done.stdout.splitlines()
    assert "the checkpoint is of another model" in sentence
    assert int(grown) < 400_000  # KiB


def test_a_terminal_gets_no_control_characters(checkpoint: Path, tmp_path: Path) -> None:
    edit(checkpoint, megatv="\x1b]0;title\x07", average_of=["x"])
    save_file({"\x1b[2Jname": torch.zeros(1)}, tmp_path / "a.safetensors")
    for shown in (describe(checkpoint), describe(tmp_path / "a.safetensors")):
        assert "\x1b" not in shown and "\\x1b" in shown


def test_headers_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 1 << 36))
        stream.truncate(1 << 37)  # without a byte on the disk
    tracemalloc.start()
    with pytest.raises(ValueError, match="is not a safetensors file, or damaged"):
        list(read_header(file))
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [2**62] * 20},
        {"shape": [2**62, 4]},
        {"shape": [1] * 9},
        {"shape": [1] * 1_000_000},
        {"shape": [2**62] * 200_000},
        {"shape": [2]},
        {"shape": [0]},
        {"shape": [True]},
        {"shape": [-1]},
        {"shape": "1"},
        {"dtype": "F64"},
        {"dtype": "X" * 100_000},
        {"dtype": ["F32"]},
        {"data_offsets": [4, 0]},
    ],
)
def test_shapes_are_those_of_the_bytes(tmp_path: Path, fields: dict) -> None:
    file = tmp_path / "a.safetensors"

    def write(entry: dict) -> None:
        text = json.dumps({"a": entry}).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))

    whole = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    write(whole)
    assert "F32" in describe(file) and "cut short" not in describe(file)
    write(whole | fields)
    with pytest.raises(ValueError, match=r"a\.safetensors: is not a safetensors file, or damaged") as caught:
        describe(file)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("link", ["checkpoints", "step", "leftover"])
def test_nothing_is_deleted_through_a_link(tmp_path: Path, save_checkpoint: Callable, link: str) -> None:
    theirs = tmp_path / "theirs"
    for number in (1, 2, 3):
        save_checkpoint(theirs / f"checkpoints/step_{number:08d}", tiny())
    (theirs / "checkpoints/notes.tmp").mkdir()
    run = tmp_path / "run"
    run.mkdir()
    folder = run / "checkpoints"
    if link == "checkpoints":
        folder.symlink_to(theirs / "checkpoints")
    else:
        folder.mkdir()
        name = "step_00000001" if link == "step" else "step_00000001.tmp"
        (folder / name).symlink_to(theirs / "checkpoints/step_00000001")
    before = sorted(path for path in theirs.rglob("*"))
    if link != "leftover":
        for use in (store.latest, store.steps, lambda path: store.prune(path, 1), find_checkpoint):
            with pytest.raises(ValueError, match="is a link, and a run's checkpoints are its own"):
                use(run)  # type: ignore[operator]
    if link != "step":
        with pytest.raises(ValueError, match="is a link, and a run's checkpoints are its own"):
            store.begin(store.checkpoint_dir(run, 9))
    assert sorted(path for path in theirs.rglob("*")) == before
