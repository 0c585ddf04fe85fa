"""The loader's rates beside what H100s need, its first batch, its consumer's wait, for `bench_data.py`."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_data_rank import consume, first_batch, open_loader, read_rates
from bench_data_timing import ROOT, Row, Tables, fresh, together
from megatv.clock import PEAK_FLOPS
from megatv.config import LATENT_CHANNELS, Config, load_config
from megatv.data.format import DatasetInfo
from megatv.data.shards import ShardWriter
from megatv.data.stats import LatentStats
from megatv.data.tokenizer import Tokenizer, load_tokenizer
from megatv.data.video import encode_video
from megatv.model.cost import training_flops
from megatv.types import Batch, Caption

import numpy as np

STORES = ("latents", "clips")
WORDS = {"8b_sports": (6, 45), "3b_csgo": (26, 100), "toy_world": (13, 4)}
"""Captions of an example and tokens of each: segments of a clip; actions before every chunk of a game."""
NODE = 8
"""GPUs, and so processes, of a node."""
ROWS_PER_STEP = 4
"""Packed rows a data-parallel rank builds a step; more would only make steps longer."""


@dataclass
class Setup:
    """The runs that are measured, with shards of their geometry, made when they are first asked for."""

    names: tuple[str, ...]
    tokenizer: str
    mfu: float
    work: Path
    samples: int
    steps: int
    _needs: dict[str, Row] = field(default_factory=dict)

    def file(self, name: str) -> str:
        """The run's YAML."""
        return str(ROOT / f"configs/{name}.yaml")

    def overrides(self, name: str, dp: int = 1, workers: int = 1) -> list[str]:
        """What keeps the geometry and needs no weights: the dct codec, a local tokenizer, short steps.

        Clips are examples (`data.crop: none`): a crop's place among other frames is not measured.
        """
        examples = load_config(self.file(name)).sequence.examples_per_row * ROWS_PER_STEP * dp
        return [
            "codec={kind: dct}",
            f"tokenizer.path={self.tokenizer}",
            f"batch.examples={examples}",
            f"data.workers={workers}",
            "data.crop=none",
        ]

    def config(self, name: str) -> Config:
        """The run as it is measured."""
        return load_config(self.file(name), self.overrides(name))

    def shards(self, name: str, stores: str) -> str:
        """A directory of shards: random latents, or clips of a few synthetic videos."""
        path = self.work / f"{name}_{stores}"
        if not path.exists():
            _write_shards(path, self.config(name), stores, self.samples, WORDS[name])
        return str(path)

    def need(self, name: str) -> Row:
        """What a sequence costs, and the rates at which one H100 would use sequences up."""
        if name not in self._needs:
            loader = open_loader(self.file(name), self.overrides(name), self.shards(name, "latents"))
            batches = loader.iterate(0)
            self._needs[name] = _need(name, self.config(name), next(batches), self.mfu)
            batches.close()  # type: ignore[attr-defined]
        return self._needs[name]


def _need(name: str, config: Config, rows: list[Batch], mfu: float) -> Row:
    sequences = sum(len(row.ids) for row in rows)
    flops = sum(sum(training_flops(config, row.record).values()) for row in rows) / sequences
    rate = PEAK_FLOPS["H100"] * mfu / flops
    tokens = sum(map(_tokens, rows)) / sequences
    return {
        "config": name,
        "pflop_per_sequence": flops / 1e15,
        "tokens_per_sequence": tokens,
        "mfu": mfu,
        "sequences_per_s_of_a_gpu": rate,
        "tokens_per_s_of_a_gpu": rate * tokens,
        "gpus_of_a_model": config.parallel.tp * config.parallel.pp,
    }


def _tokens(row: Batch) -> int:
    """Rows of a packed row that belong to a sequence: both copies of its chunks, no padding."""
    return int((row.record.documents[..., 1] - row.record.documents[..., 0]).sum())


def _write_shards(path: Path, config: Config, stores: Any, samples: int, words: tuple[int, int]) -> None:
    video = config.video
    info = DatasetInfo(video.width, video.height, video.groups, {"kind": config.codec.kind}, stores=stores)
    count, length = words
    text = _text(load_tokenizer(config.tokenizer.path), length)
    generator = np.random.default_rng(0)
    if stores == "clips":
        contents: list[Any] = [encode_video(_frames(info, generator), crf=18) for _ in range(4)]
    else:
        contents = [generator.standard_normal(info.latent_shape, dtype=np.float32) for _ in range(4)]
    seconds = info.frames / info.fps
    captions = tuple(Caption(k * seconds / count, text) for k in range(count))
    with ShardWriter(path, info) as writer:
        for index in range(samples):
            writer.write(
                f"sample-{index}",
                contents[index % len(contents)],
                captions=captions,
                meta_caption=text,
                detailed_caption="",
                valid_latents=config.latents,
                ends_clip=True,
                source={"video": "synthetic"},
            )
        shape = (2, LATENT_CHANNELS)
        writer.finish(LatentStats(np.zeros(shape, np.float32), np.ones(shape, np.float32)))


def _text(tokenizer: Tokenizer, tokens: int) -> str:
    text = "She"
    while len(tokenizer.encode(text)) < tokens:
        text += " runs to the left and turns"[len(text) % 7 * 4 :][:4]
    return text


def _frames(info: DatasetInfo, generator: np.random.Generator) -> np.ndarray:
    """uint8 [F, H, W, 3]: a coarse pattern that pans."""
    coarse = generator.integers(0, 255, (-(-info.height // 8), 2 * -(-info.width // 8), 3), dtype=np.uint8)
    ground = coarse.repeat(8, 0).repeat(8, 1)[: info.height]
    return np.stack([np.roll(ground, -3 * k, 1)[:, : info.width] for k in range(info.frames)])


def loader(setup: Setup) -> Tables:
    """Rates of one loader process, by what is stored and by worker threads, and what GPUs need."""
    needs = [setup.need(name) for name in setup.names]
    rows: list[Row] = []
    for need in needs:
        name = need["config"]
        for stores in STORES:
            for workers in (1, 2):
                row = _rate(setup, name, stores, workers)
                per_gpu = row["sequences_per_s"] / need["sequences_per_s_of_a_gpu"]
                rows.append(
                    row | {"headroom_a_gpu": per_gpu, "headroom_a_model": per_gpu / need["gpus_of_a_model"]}
                )
    reads: list[Row] = []
    for stores in STORES:
        rates = fresh(read_rates, setup.shards(setup.names[0], stores), setup.steps)
        for reader, rate in rates.items():
            row = {"stores": stores, "reader": reader}
            failed = isinstance(rate, str)
            reads.append(
                row
                | (
                    {"skipped": rate}
                    if failed
                    else {"samples_per_s": rate, "ratio_to_ours": rate / rates["ours"]}
                )
            )
    return {
        f"need of one H100 at {PEAK_FLOPS['H100'] / 1e12:g} TFLOP/s x MFU": needs,
        "loader: one process, shards in the page cache": rows,
        f"reading stored samples, {setup.names[0]}": reads,
    }


def _rate(setup: Setup, name: str, stores: str, workers: int) -> Row:
    """The median over steps of what the loader's thread builds while nothing else is asked of it."""
    overrides = setup.overrides(name, workers=workers)
    batches = open_loader(setup.file(name), overrides, setup.shards(name, stores)).iterate(0)
    for _ in range(4):  # what was built ahead is used up
        next(batches)
    sequences, tokens, count = [], [], 0
    spent = time.process_time()
    for _ in range(setup.steps):
        begun = time.perf_counter()
        rows = next(batches)
        seconds = time.perf_counter() - begun
        sequences.append(sum(len(row.ids) for row in rows) / seconds)
        tokens.append(sum(map(_tokens, rows)) / seconds)
        count += sum(len(row.ids) for row in rows)
    spent = time.process_time() - spent
    batches.close()  # type: ignore[attr-defined]
    return {
        "config": name,
        "stores": stores,
        "workers": workers,
        "sequences_per_s": statistics.median(sequences),
        "tokens_per_s": statistics.median(tokens),
        "cpu_ms_per_sequence": 1e3 * spent / count,
    }


def first(setup: Setup) -> Tables:
    """Seconds from opening shards to the first batch of 4 rows, in fresh processes; imports apart."""
    rows = []
    for name in setup.names:
        for stores in STORES:
            arguments = (setup.file(name), setup.overrides(name), setup.shards(name, stores))
            runs = [fresh(first_batch, *arguments) for _ in range(min(setup.steps, 3))]
            medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rows.append({"config": name, "stores": stores, **medians})
    return {"first batch, fresh processes": rows}


def consumer(setup: Setup, ranks: int) -> Tables:
    """Share of time that simulated GPUs wait for stored latents, one process a rank, all at once.

    A rank takes a step's rows and sleeps as long as its H100s would work on them. Ranks of one model (tp, pp)
    build the same rows, and each works on a part of them. The config's grid first; where a model takes more
    GPUs than one, also as if it took one. cores_needed: CPU time of all loaders over that of the steps, which
    holds on a machine that has fewer cores, or others at work on them, too.
    """
    rows = []
    for name in setup.names:
        need = setup.need(name)
        for gpus in sorted({1, need["gpus_of_a_model"]}, reverse=True):
            dp = ranks // gpus
            seconds = 1 / need["sequences_per_s_of_a_gpu"] / gpus
            fixed = (setup.file(name), setup.overrides(name, dp), setup.shards(name, "latents"))
            calls = [(*fixed, rank // gpus, dp, seconds, setup.steps) for rank in range(ranks)]
            found = together(consume, calls)
            step = seconds * setup.config(name).batch.examples
            cpu = statistics.mean(rank["cpu"] for rank in found) / setup.steps
            shares = [100 * rank["waited"] / rank["total"] for rank in found]
            rows.append(
                {
                    "config": name,
                    "ranks": ranks,
                    "gpus_of_a_model": gpus,
                    "step_s": step,
                    "wait_percent_mean": statistics.mean(shares),
                    "wait_percent_max": max(shares),
                    "cpu_s_of_a_step": cpu,
                    "cores_needed": ranks * cpu / step,
                }
            )
    return {f"consumer: {ranks} processes, one a GPU, stored latents": rows}
