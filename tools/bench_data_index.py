"""An index of millions of samples: what opening it and planning a step cost, for `bench_data.py`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bench_data_timing import Row, Tables, fresh

import numpy as np

T = TypeVar("T")

EXAMPLES_PER_SHARD = 80
EXAMPLE_BYTES = 835_000
"""Of stored latents at 320x192, their words included."""
RANKS = 8
"""Processes of one node, each of which opens the index for itself."""


def index(sizes: list[int], config: str, overrides: list[str], work: Path) -> Tables:
    """For every size: our reader in two fresh processes (what a first opening leaves helps the second), and
    `LocalDataset` of MosaicML streaming, which only opens."""
    rows: list[Row] = []
    for size in sizes:
        path = work / f"index_{size}"
        generate(path, size, config, overrides)
        for name in ("ours, first opening", "ours, again"):
            found = fresh(open_and_plan, str(path), config, overrides)
            ours = {"samples": size, "reader": name, **found}
            rows.append(ours)
        peer = fresh(open_local, str(path))
        for key in ("open_cpu_s", "memory_mib"):
            peer[f"{key}_ratio"] = peer[key] / max(ours[key], 1e-9)
        rows.append({"samples": size, "reader": "streaming LocalDataset", **peer})
    return {f"index: {EXAMPLES_PER_SHARD} examples a shard, memory of one rank, {RANKS} ranks a node": rows}


def generate(path: Path, samples: int, config: str, overrides: list[str]) -> None:
    """A shard directory without content: index.json as MDSWriter writes it, shard files of holes, lengths."""
    from megatv.config import LATENT_CHANNELS, load_config
    from megatv.data.format import DatasetInfo
    from megatv.data.stats import LatentStats

    run = load_config(config, overrides)
    stats = LatentStats(np.zeros((2, LATENT_CHANNELS), np.float32), np.ones((2, LATENT_CHANNELS), np.float32))
    info = DatasetInfo(
        run.video.width,
        run.video.height,
        run.video.groups,
        {"kind": run.codec.kind},
        stats_fingerprint=stats.fingerprint(),
    )
    path.mkdir()
    info.save(path / "dataset.json")
    stats.save(path / "latent_stats.json")
    generator = np.random.default_rng(0)
    whole = generator.random(samples) < 0.8  # the others end a video
    latents = np.where(whole, run.latents, generator.integers(run.latents // 2 + 1, run.latents + 1, samples))
    text = generator.lognormal(6.5, 0.4, samples)  # a median of 665 bytes
    np.save(path / "lengths.npy", np.stack([latents, text], 1).astype(np.int32))
    shape = ",".join(map(str, info.latent_shape))
    latent_bytes = 2 * int(np.prod(info.latent_shape))
    shards = []
    for number, first in enumerate(range(0, samples, EXAMPLES_PER_SHARD)):
        count = min(EXAMPLES_PER_SHARD, samples - first)
        raw: dict[str, Any] = {
            "basename": f"shard.{number:05}.mds",
            "bytes": count * EXAMPLE_BYTES + number % 4096,
            "hashes": {"xxh64": f"{int(generator.integers(1 << 62)):016x}"},
        }
        shards.append(
            {
                "column_encodings": ["str", "str", f"ndarray:float16:{shape}", "str"],
                "column_names": ["hash", "id", "latents", "meta"],
                "column_sizes": [None, None, latent_bytes, None],
                "compression": None,
                "format": "mds",
                "hashes": ["xxh64"],
                "raw_data": raw,
                "samples": count,
                "size_limit": 1 << 26,
                "version": 2,
                "zip_data": None,
            }
        )
        with (path / raw["basename"]).open("wb") as file:
            file.truncate(raw["bytes"])
    (path / "index.json").write_text(json.dumps({"shards": shards, "version": 2}, sort_keys=True))


def open_and_plan(path: str, config: str, overrides: list[str]) -> Row:
    """Open shards and plan the steps at sample 500,000, at the last sample and in the next epoch.

    Each is the first thing that a run resumed there would do, but for what earlier plans left in memory.
    """
    from megatv.config import load_config
    from megatv.data.loader import Loader
    from megatv.data.shards import Shards
    from megatv.data.tokenizer import load_tokenizer

    run = load_config(config, overrides)
    tokenizer = load_tokenizer(run.tokenizer.path)
    before = memory()
    row: Row = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        begun, spent = time.perf_counter(), time.process_time()
        result = work()
        row[f"{name}_s"] = time.perf_counter() - begun
        row[f"{name}_cpu_s"] = time.process_time() - spent
        return result

    shards = timed("open", lambda: Shards(path))
    loader = Loader(shards, tokenizer, run, dp_rank=0, dp_size=RANKS)
    last = len(shards) // run.batch.examples - 1
    timed("plan", lambda: loader.plan(min(500_000 // run.batch.examples, last)))
    timed("plan_last", lambda: loader.plan(last))
    timed("plan_next_epoch", lambda: loader.plan(last + 2))
    return row | _grown(before)


def open_local(path: str) -> Row:
    """The same of MosaicML streaming's plain reader."""
    import megatv.data.shards  # lets streaming be imported beside a CPU-only torch
    from streaming.base.local import LocalDataset  # isort: skip

    assert megatv.data.shards
    before = memory()
    begun, spent = time.perf_counter(), time.process_time()
    dataset = LocalDataset(path)
    row = {"open_s": time.perf_counter() - begun, "open_cpu_s": time.process_time() - spent}
    assert len(dataset)
    return row | _grown(before)


def memory() -> dict[str, float]:
    """MiB of this process: resident, of it its own and mapped from files, its peak since the last call."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = dict(line.split(":", 1) for line in lines)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    return {key: int(pairs[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon", "RssFile", "VmHWM")}


def _grown(before: dict[str, float]) -> dict[str, Any]:
    """What was added: resident, at its peak, and over a node, where mapped files are shared."""
    after = memory()
    own, mapped = (after[key] - before[key] for key in ("RssAnon", "RssFile"))
    return {
        "memory_mib": after["VmRSS"] - before["VmRSS"],
        "peak_mib": max(after["VmHWM"] - before["VmRSS"], 0.0),
        "node_gib": (RANKS * own + mapped) / 1024,
    }
