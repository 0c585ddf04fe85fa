"""A tiny run that every engine test shares: synthetic shards, a small model, real processes on gloo."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatv.data.shards import DatasetInfo, ShardWriter
from megatv.data.stats import LatentStats
from megatv.types import Caption

ROOT = Path(__file__).parents[2]

CONFIG = {
    "video": {"width": 32, "height": 32, "groups": 1},
    "codec": {"kind": "dct"},
    "tokenizer": {"path": "toy_world"},
    "sequence": {
        "mode": "tv2tv",
        "context_tokens": 2 * (2 * 13 * 4 + 100),
        "examples_per_row": 2,
        "clean_flip": 0.5,
        "text_dropout": 0.1,
    },
    "model": {
        "layers": 2,
        "width": 32,
        "ffn": 48,
        "heads": 4,
        "kv_heads": 2,
        "vocab": 512,
        "tied_embeddings": False,
        "rope_theta": 10000.0,
        "unet_channels": [16, 16],
        "init_video": "random",
    },
    "batch": {"examples": 8},
    "checkpoint": {"every": 100, "keep": 5},
    "optim": {"lr": 1e-2, "min_lr": 1e-4, "warmup_steps": 2, "weight_decay": 0.01, "clip": 1e9},
    "parallel": {"zero": 0},
    "log": {"every": 1},
}


def write_shards(out: Path, examples: int, seed: int) -> None:
    """Random latents with a shape in time, and a caption for every chunk."""
    rng = np.random.default_rng(seed)
    info = DatasetInfo(width=32, height=32, groups=1, codec={"kind": "dct"})
    with ShardWriter(out, info) as writer:
        for i in range(examples):
            base = rng.normal(size=(1, 16, 4, 4))
            latents = base + 0.3 * rng.normal(size=(13, 16, 4, 4))
            writer.write(
                f"clip{seed}-{i}",
                latents.astype(np.float32),
                captions=tuple(Caption(0.25 * k, f"(w). {i % 3}, 0, {k % 2}, 0.") for k in range(3)),
                meta_caption="a clip",
                detailed_caption="",
                valid_latents=13,
                ends_clip=i % 2 == 0,
                source={},
            )
        writer.finish(LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32)))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `val` shards."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "train", 24, seed=0)
    write_shards(folder / "val", 8, seed=1)
    return folder


@pytest.fixture(scope="session")
def config_file(shards: Path) -> Path:
    """The tiny run's YAML; tests override `run.dir` and what they are about."""
    path = shards / "tiny.yaml"
    data = {"train": str(shards / "train"), "val": str(shards / "val")}
    path.write_text(yaml.safe_dump({"run": {"dir": "unset", "steps": 4}, "data": data, **CONFIG}))
    return path


@pytest.fixture(scope="session")
def zygote() -> Iterator[subprocess.Popen]:
    """A process that forks ranks; see zygote.py."""
    command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process
        os.killpg(process.pid, signal.SIGKILL)


Train = Callable[..., str]


@pytest.fixture
def train(zygote: subprocess.Popen, config_file: Path, tmp_path: Path) -> Train:
    """train(n, run_dir, *arguments): launch/train.py on n forked ranks, which must end well; its output."""
    number = itertools.count()

    def run(
        processes: int,
        run_dir: Path,
        *arguments: str,
        config: Path = config_file,
        script: Path = ROOT / "launch/train.py",
    ) -> str:
        output = tmp_path / f"output{next(number)}.txt"
        argv = [str(script), "--config", str(config), f"run.dir={run_dir}", *arguments]
        assert zygote.stdin is not None and zygote.stdout is not None
        print(
            json.dumps({"processes": processes, "argv": argv, "output": str(output)}),
            file=zygote.stdin,
            flush=True,
        )
        codes = json.loads(zygote.stdout.readline())
        assert codes == [0] * processes, f"{codes}\n{output.read_text()[-6000:]}"
        return output.read_text()

    return run


Launch = Callable[..., subprocess.Popen]


@pytest.fixture
def launch(config_file: Path) -> Launch:
    """launch(n, run_dir, *arguments) starts launch/train.py on n processes (torchrun above one)."""

    def start(
        processes: int,
        run_dir: Path,
        *arguments: str,
        config: Path = config_file,
        script: Path = ROOT / "launch/train.py",
    ) -> subprocess.Popen:
        runner = [sys.executable]
        if processes > 1:
            runner += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*runner, str(script), "--config", str(config), f"run.dir={run_dir}"]
        return subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return start


@pytest.fixture
def finish() -> Callable[[subprocess.Popen], str]:
    """finish(process) waits for success and returns what the run printed."""

    def wait(process: subprocess.Popen) -> str:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output[-6000:]
        return output

    return wait
