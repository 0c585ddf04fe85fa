"""Oracles and files that tests of several folders share."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import settings

settings.register_profile("megatv", deadline=None)  # a busy machine is no failure
settings.register_profile("many", deadline=None, max_examples=10_000)  # pytest --hypothesis-profile many
settings.load_profile("megatv")


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands remember of their user goes into a folder of the tests' own, those of children too."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


@pytest.fixture(scope="session")
def peak_source() -> str:
    """Python lines to put before a program: `peak()` is the most memory its process has held, in KiB (Linux).

    `ru_maxrss` will not do: a started program takes it over from the process that starts it.
    """
    return """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""


ROOT = Path(__file__).parents[1]
SURVIVED = pytest.StashKey[list[tuple[str, str]]]()

TINY = {
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
"""A run that takes milliseconds a step, for tests that start real processes."""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def command() -> Command:
    """command(*words): run a command as a person types it, from the repository's root, on CPU.

    This Python's console scripts are on PATH. A failure is the test's, unless `check=False`.
    """

    def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        line = [str(word) for word in words]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
        if check:
            assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `val` shards."""
    folder = tmp_path_factory.mktemp("shards")
    _write_shards(folder / "train", 24, seed=0)
    _write_shards(folder / "val", 8, seed=1)
    return folder


@pytest.fixture(scope="session")
def config_file(shards: Path) -> Path:
    """The tiny run's YAML; tests override `run.dir` and what they are about."""
    path = shards / "tiny.yaml"
    data = {"train": str(shards / "train"), "val": str(shards / "val")}
    path.write_text(yaml.safe_dump({"run": {"dir": "unset", "steps": 4}, "data": data, **TINY}))
    return path


def _write_shards(out: Path, examples: int, seed: int) -> None:
    """Random latents with a shape in time, and a caption for every chunk."""
    from megatv.data.shards import DatasetInfo, ShardWriter  # seconds, which most tests can do without
    from megatv.data.stats import LatentStats
    from megatv.types import Caption

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
def deepspeed() -> Callable[[int], list[object]]:
    """deepspeed(n): the launcher for n processes, on a port that no other run of this machine uses."""

    def words(processes: int) -> list[object]:
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ["deepspeed", "--num_gpus", processes, "--master_port", probe.getsockname()[1]]

    return words


@pytest.fixture(scope="session")
def losses() -> Callable[[Path], dict[int, tuple[float, float]]]:
    """losses(run_dir): step -> (text, video) training losses of its metrics.jsonl."""

    def read(run_dir: Path) -> dict[int, tuple[float, float]]:
        lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        return {m["step"]: (m["text_loss"], m["video_loss"]) for m in lines if "text_loss" in m}

    return read


@pytest.fixture(scope="session")
def steps_of() -> Callable[[Path], list[dict]]:
    """steps_of(run_dir): what its steps computed, without what they took."""
    timing = ("second", "tflops", "mfu", "data_wait", "memory", "goodput", "run_started")

    def read(run_dir: Path) -> list[dict]:
        records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in r.items() if not any(word in k for word in timing)} for r in records]

    return read


@pytest.fixture(scope="session")
def same_end(steps_of: Callable[[Path], list[dict]]) -> Callable[[Path, Path], None]:
    """same_end(one, other): two runs have bitwise the same losses, weights, moments and average."""
    import torch

    from megatv.checkpoint.store import Tensors, steps, verify

    def check(one: Path, other: Path) -> None:
        assert steps_of(one) == steps_of(other)
        ends = [steps(path)[-1] for path in (one, other)]
        assert ends[0].name == ends[1].name
        metas = [verify(end) for end in ends]
        assert metas[0]["updates"] == metas[1]["updates"] == metas[0]["step"] - metas[0]["skipped"]
        kinds = {name.partition(".")[0].partition("-")[0] for name in metas[0]["files"]}
        assert {"model", "exp_avg", "exp_avg_sq"} <= kinds
        for kind in kinds:
            a, b = (Tensors(end, kind) for end in ends)
            differ = [name for name in sorted(a.names()) if not torch.equal(a[name], b[name])]
            assert not differ, f"{kind} differs in {differ}"

    return check


@pytest.fixture(scope="session")
def examine(python: Command) -> Callable[..., str]:
    """examine(shards, *config): all that tools/shards.py tells about a directory, which must be sound."""

    def ask(shards: Path, *config: object) -> str:
        told = [python("tools/shards.py", "verify", shards).stdout]
        for verb in ("inspect", "stats"):
            picture = shards.with_name(f"{shards.name}_{verb}.png")
            done = python("tools/shards.py", verb, shards, "--config", *config, "--out", picture)
            assert picture.stat().st_size > 0
            told.append(done.stdout)
        return "".join(told)

    return ask


@pytest.fixture(scope="session")
def mask_by_definition() -> Callable[..., np.ndarray]:
    """The mask of a packed row, written from the paper's definition in order of time (TV2TV section 2.2)."""
    return _mask_by_definition


def _mask_by_definition(
    documents: Sequence[str], *, text_rows: int, chunk_rows: int, chunks: int
) -> np.ndarray:
    """bool [S, S] in packed order, True where the query (row) sees the key (column).

    A document is a word over {t, c}: text tokens and chunks in order of time. It is laid out as eq. 1 says
    (a noisy copy right before its clean copy); then "text is causal, video is causal by chunks, and nothing
    else ever sees a noisy chunk" is decided pair by pair.
    """
    tokens = []  # (document, kind, chunk or -1) in order of time
    for number, word in enumerate(documents):
        chunk = 0
        for letter in word:
            if letter == "t":
                tokens.append((number, "text", -1))
            else:
                tokens += [(number, "noisy", chunk)] * chunk_rows + [(number, "clean", chunk)] * chunk_rows
                chunk += 1

    def sees(q: int, k: int) -> bool:
        (q_document, q_kind, q_chunk), (k_document, k_kind, k_chunk) = tokens[q], tokens[k]
        if q_document != k_document:
            return False
        if q_kind != "text" and (q_kind, q_chunk) == (k_kind, k_chunk):
            return True  # one copy of one chunk, both ways
        return k <= q and k_kind != "noisy"

    row_of = {}  # token -> row of the packed order
    starts = {"text": 0, "clean": text_rows, "noisy": text_rows + chunks * chunk_rows}
    for kind, start in starts.items():
        members = [i for i, token in enumerate(tokens) if token[1] == kind]
        row_of |= {token: start + i for i, token in enumerate(members)}
    mask = np.eye(text_rows + 2 * chunks * chunk_rows, dtype=bool)  # a padding row sees itself
    for q in range(len(tokens)):
        for k in range(len(tokens)):
            mask[row_of[q], row_of[k]] = sees(q, k)
    return mask


@pytest.fixture(scope="session")
def write_episode() -> Callable[..., Path]:
    """Write a CS:GO episode as published: pictures [F, 150, 280, 3] blue first, actions [F, 51]."""
    h5py = pytest.importorskip("h5py", reason="h5py is absent, which reads and writes CS:GO's episodes")

    def write(path: Path, pictures: np.ndarray, actions: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for frame, (picture, action) in enumerate(zip(pictures, actions, strict=True)):
                file[f"frame_{frame}_x"] = picture
                file[f"frame_{frame}_y"] = action
                file[f"frame_{frame}_xaux"] = np.zeros(54)
                file[f"frame_{frame}_helperarr"] = np.zeros(2)
        return path

    return write


@pytest.fixture(scope="module")
def ray_alone() -> Iterator[None]:
    """No other test's cluster of Ray on this machine meanwhile: two that start at once fight over ports."""
    with open(Path(tempfile.gettempdir()) / "megatv_tests_ray.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def survived(pytestconfig: pytest.Config) -> list[tuple[str, str]]:
    """Faults that runs have survived, and what each cost; told when all tests have ended."""
    return pytestconfig.stash[SURVIVED]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SURVIVED] = []
    config.pluginmanager.register(_beside("forged"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first: what is left for the end fills every worker."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands what its runs survived to the process that reports."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["survived"] = session.config.stash[SURVIVED]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[SURVIVED].extend(getattr(node, "workeroutput", {}).get("survived", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = terminalreporter.config.stash[SURVIVED]
    if found:
        terminalreporter.section(
            "survived, with bitwise the losses, weights and moments of an undisturbed run"
        )
        width = max(len(fault) for fault, _ in found)
        for fault, lost in found:
            terminalreporter.write_line(f"{fault:{width}}  lost: {lost}")


@pytest.fixture
def browser() -> Iterator[Any]:
    """A page of a headless Chromium (tests/browser.py); the test is skipped where there is none."""
    module = _beside("browser")
    if module.MISSING:
        pytest.skip(module.MISSING)
    with module.Browser() as page:
        yield page


@pytest.fixture(scope="session")
def audit() -> Any:
    """What a page gets wrong for eyes and fingers (tests/audit.py)."""
    return _beside("audit")


def _beside(name: str) -> Any:
    """The module of that name in this folder, which is not on sys.path."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tests/{name}.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[name] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module
