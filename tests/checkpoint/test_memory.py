"""Tools that pass over whole models hold a tensor or two of them, however large the model is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from megatv.config import Config, load_config

ROOT = Path(__file__).parents[2]
MEASURED = """
import atexit, runpy, sys
from pathlib import Path
atexit.register(lambda: print(Path("/proc/self/status").read_text(), file=sys.stderr))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
COMMANDS = {
    "export": ["{}/0", "--out", "{}/export"],
    "megatv-to-hf": ["{}/0", "--out", "{}/llama"],
    "diff": ["{}/0", "{}/1"],
    "average": ["{}/0", "{}/1", "--out", "{}/mean"],
}


def of_layers(layers: int) -> Config:
    """A model of 30 MB a layer, the largest tensor has 4 MB."""
    toy = load_config(ROOT / "configs/toy_world.yaml")
    sizes = {"layers": layers, "width": 512, "ffn": 2048, "heads": 8, "kv_heads": 8}
    return dataclasses.replace(toy, model=dataclasses.replace(toy.model, **sizes))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable) -> list[Path]:
    """Folders with two checkpoints, `0` and `1`, of a small and of a large model."""
    folders = [tmp_path_factory.mktemp(f"layers{n}") for n in (1, 10)]
    for folder, layers in zip(folders, (1, 10), strict=True):
        for seed in range(2):
            save_checkpoint(folder / str(seed), of_layers(layers), seed=seed)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("verb", COMMANDS)
def test_peak_memory_does_not_grow_with_the_model(
    verb: str, models: list[Path], python: Callable, tmp_path: Path
) -> None:
    """VmHWM counts mapped files too: a reader that keeps what it has read mapped fails."""
    (tmp_path / "measured.py").write_text(MEASURED)
    peaks, sizes = [], []
    for folder in models:
        words = [word.replace("{}", str(folder)) for word in COMMANDS[verb]]
        done = python(tmp_path / "measured.py", "tools/convert_ckpt.py", verb, *words, check=False)
        found = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
        assert found, done.stderr[-3000:]
        assert done.returncode in (0, 1), done.stderr[-3000:]  # 1: `diff` found what it was to find
        peaks.append(int(found[1]) * 1024)
        sizes.append((folder / "0" / "model.safetensors").stat().st_size)
    assert sizes[1] - sizes[0] > 250e6
    assert peaks[1] - peaks[0] < 50e6
