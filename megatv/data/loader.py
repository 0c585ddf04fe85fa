"""From a step's number to its batches: no iterator state, so a resumed run goes on exactly where it was.

Step s trains on rows s * rows_per_step and the following, counted over all epochs, which `megatv.data.order`
fills with examples and which are dealt to the data-parallel ranks by attention cost where the shards note the
lengths (`megatv.data.balance`), else in turn. What a step trains on is a function of (seed, step) and of
which samples are bad (`megatv.data.bad`); it does not depend on the number of ranks or workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from megatv.config import Config
from megatv.data.bad import BadSample, BadSamples
from megatv.data.balance import deal, example_costs
from megatv.data.crop import draw_window
from megatv.data.format import check_codec
from megatv.data.noise import Draws
from megatv.data.order import Place, RowOrder
from megatv.data.packing import pack
from megatv.data.record import Record
from megatv.data.sequence import build_sequence
from megatv.data.shards import Shards
from megatv.data.tokenizer import Tokenizer
from megatv.types import Batch, Sequence

PREFETCH = 2
"""Steps built ahead. Reading and noise take milliseconds; this hides a hiccup of the disk."""
STOP_SECONDS = 10
"""How long an ending run waits for the thread to finish the step in hand."""
STALL_SECONDS = 900
"""A step that takes longer to build is taken for a hang (a file system that does not answer)."""


class Loader:
    """Batches of one data-parallel rank; ranks that share `dp_rank` (tp and pp siblings) build equal ones.

    train: rows filled and shuffled anew in every epoch, with text dropout and clean flips, and up to
    `data.max_bad_samples` samples that cannot be used replaced; else `examples_per_row` examples a row in
    stored order, without, and any bad sample is an error: losses are compared only over the same rows.
    pin: in page-locked memory, from which a GPU copies at once.
    Raises ValueError when the shards were not made for the config or `dp_size` does not divide a step's rows.
    """

    def __init__(
        self,
        shards: Shards,
        tokenizer: Tokenizer,
        config: Config,
        *,
        dp_rank: int,
        dp_size: int,
        train: bool = True,
        pin: bool = False,
    ) -> None:
        assert 0 <= dp_rank < dp_size
        config.accumulation(dp_size)
        check_shards(shards, config)
        if train:
            check_crop(shards, config)
        self.shards, self.tokenizer, self.config = shards, tokenizer, config
        self.dp_rank, self.dp_size, self.train, self.pin = dp_rank, dp_size, train, pin
        self.bad = BadSamples(config.data.max_bad_samples)
        self._met: dict[int, list[BadSample]] = {}
        if train:
            self._order = RowOrder(shards.lengths, shards.shard_sizes, config, tokenizer.bytes_per_token)
        workers = config.data.workers
        self._map = map if workers == 1 else ThreadPoolExecutor(workers, "megatv-row").map

    @property
    def examples_per_step(self) -> float:
        """Examples of a step on average; more than `batch.examples` where short ones share a place."""
        return self.config.rows_per_step * len(self.shards) / len(self._order)

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step `step`, counted from 0; a pure function of it.

        Raises ValueError when more samples cannot be used than the config allows.
        """
        met: list[BadSample] = []
        batches = self._build_rows(self.plan(step)[self.dp_rank], met)
        if met:
            self._met[step] = met
        return batches

    def try_out(self) -> None:
        """Build the first row there is, before a model is made for it. Raises ValueError as `step` does.

        So it is known at the start when no example can be used, such as with a `sequence.context_tokens` that
        has no room for their words. What is found here is met again in its step.
        """
        known, self.bad = self.bad, BadSamples(self.bad.limit)
        try:
            self._build_rows(self.plan(0)[self.dp_rank][:1], [])
        finally:
            self.bad = known

    def met(self, step: int) -> list[BadSample]:
        """The bad samples that `step` met and replaced, by index; asked once for a step that was built."""
        return sorted(set(self._met.pop(step, [])))

    def plan(self, step: int) -> list[list[list[Place]]]:
        """The step's examples as [dp_size][accumulation][of a row]; equal on every rank."""
        count, dp = self.config.rows_per_step, self.dp_size
        rows = self._order.rows(range(step * count, (step + 1) * count))
        hands = [list(range(rank, count, dp)) for rank in range(dp)]
        if self.shards.lengths is not None:
            lengths = self.shards.lengths[[place.index for row in rows for place in row]]
            costs = example_costs(lengths, self.config.tokens_per_chunk, self.config.text_rows_per_example)
            firsts = np.cumsum([0, *map(len, rows[:-1])])
            hands = deal(np.add.reduceat(costs, firsts), hands)
        return [[rows[i] for i in hand] for hand in hands]

    def validation(self, rows: int) -> list[Batch]:
        """This rank's share of the first `rows` packed rows, for a loader that does not `train`.

        Where they need more examples than there are, these come again with other noise. Raises ValueError
        when the ranks cannot share the rows equally or a sample cannot be used.
        """
        assert not self.train
        if rows % self.dp_size:
            raise ValueError(
                f"log.val_rows {rows} cannot be shared equally by {self.dp_size} data-parallel ranks: "
                f"make it a multiple of {self.dp_size}"
            )
        size, n = self.config.sequence.examples_per_row, len(self.shards)
        budget = self.config.text_rows_per_example
        return self._build_rows(
            [
                [Place(e % n, e // n, budget) for e in range(row * size, (row + 1) * size)]
                for row in range(self.dp_rank, rows, self.dp_size)
            ],
            [],
        )

    def iterate(self, start_step: int) -> Iterator[list[Batch]]:
        """`step(start_step)`, `step(start_step + 1)` and so on without end, built ahead by a thread.

        An error of the thread is raised here, at the step where it belongs; a thread that died or that is
        stuck for `STALL_SECONDS` is a RuntimeError. The thread ends with the generator: when that is closed,
        raises or is garbage.
        """
        ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(PREFETCH)
        closed = threading.Event()

        def work() -> None:
            step = start_step
            try:
                while not closed.is_set():
                    ready.put(self.step(step))
                    step += 1
            except BaseException as error:
                ready.put(error)

        thread = threading.Thread(target=work, name="megatv-loader", daemon=True)
        thread.start()
        try:
            while True:
                item = _take(ready, thread)
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()
            until = time.monotonic() + STOP_SECONDS  # one that is stuck in a read is left to its daemon's end
            while thread.is_alive() and time.monotonic() < until:
                with contextlib.suppress(queue.Empty):  # make room for what it may be waiting to hand over
                    ready.get(timeout=0.01)

    def _build_rows(self, rows: list[list[Place]], met: list[BadSample]) -> list[Batch]:
        """The packed rows, built by the workers."""

        def build(row: list[Place]) -> Batch:
            sequences = [s for place in row if (s := self._sequence(place, met))]
            if not sequences:
                first = row[0].index
                raise ValueError(
                    f"{self.shards.path}: none of the samples that fit in the place of example {first} can "
                    f"be used; {self.bad.get(first, self._turn(row[0]))}"
                )
            batch = pack(sequences, self.config)
            return _pinned(batch) if self.pin else batch

        return list(self._map(build, rows))

    def _sequence(self, place: Place, met: list[BadSample]) -> Sequence | None:
        """The sequence of this place's example, or of the first that can be used in its stead, if any can."""
        for index in self._order.substitutes(place.index) if self.train else [place.index]:
            bad = self.bad.get(index, self._turn(place))
            if bad is None:
                built = self._build(dataclasses.replace(place, index=index))
                if isinstance(built, Sequence):
                    return built
                if not self.train:
                    raise ValueError(str(built))
                self.bad.add(bad := built)
            met.append(bad)
        return None

    def _turn(self, place: Place) -> int:
        """The epoch where it decides what the example is, so that no other decides what is bad; else 0."""
        return place.epoch if self.shards.info.longest_clip else 0

    def _build(self, place: Place) -> Sequence | BadSample:
        """The sequence, or why there is none; an error that is not the data's is raised with the sample."""
        name = f"example {place.index} of the shards"
        try:
            record = self.shards.record(place.index)
            name = record.id
            window = window_of(self.shards, record, self.config, place.epoch)
            return build_sequence(
                self.shards.example(record, window),
                self.tokenizer,
                self.config,
                seed=self.config.run.seed,
                epoch=place.epoch,
                train=self.train,
                text_rows=place.text_rows,
            )
        except (ValueError, OSError) as error:
            return BadSample(place.index, name, str(error), self._turn(place))
        except Exception as error:
            error.add_note(f"while building sample '{name}' (example {place.index} of the shards)")
            raise


def _take(ready: queue.Queue, thread: threading.Thread) -> list[Batch] | BaseException:
    """The next thing that the thread hands over; RuntimeError when it died or does not come to an end."""
    since = time.monotonic()
    while True:
        try:
            return ready.get(timeout=0.2)
        except queue.Empty:
            if not thread.is_alive() and ready.empty():
                raise RuntimeError(
                    "the loader's thread died without a word; start again with --resume auto"
                ) from None
            if time.monotonic() - since > STALL_SECONDS:
                raise RuntimeError(
                    f"no batch for {STALL_SECONDS} s: the shards' file system or server does not answer; see "
                    "to it and start again with --resume auto"
                ) from None


def _pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory; the record, small and rebuilt on the device's side, stays."""
    tensors: dict[str, Any] = {
        k: v.pin_memory() for k, v in vars(batch).items() if isinstance(v, torch.Tensor)
    }
    return dataclasses.replace(batch, **tensors)


def window_of(shards: Shards, record: Record, config: Config, epoch: int) -> range:
    """The frames of a record that a run with this config trains on in `epoch`: a crop, or what is stored."""
    if record.frames is None:
        return shards.beginning(record)
    assert config.data.crop != "none", "check_shards refuses it"
    draws = Draws(config.run.seed, epoch, record.id)
    return draw_window(record.frames, shards.info.frames, config.data.crop, draws)


def check_crop(shards: Shards, config: Config) -> None:
    """Refuse to train on fixed examples where the config says that they are crops; ValueError."""
    if config.data.crop != "none" and not (shards.info.longest_clip or shards.info.crops):
        raise ValueError(
            f"{shards.path}: holds fixed pieces of videos, of which nothing can be cropped as data.crop "
            f"{config.data.crop} says: make the shards again with this config (tools/make_shards.py --store "
            "clips, or --crops K for latents), or set data.crop to none"
        )


def check_shards(shards: Shards, config: Config) -> None:
    """Refuse shards whose videos or codec are not the config's; ValueError names both and the remedy."""
    info = shards.info
    for key, made, asked in (
        ("width", info.width, config.video.width),
        ("height", info.height, config.video.height),
        ("groups", info.groups, config.video.groups),
        ("codec", info.codec.get("kind"), config.codec.kind),
    ):
        if made != asked:
            raise ValueError(
                f"{shards.path}: its {key} is {made}, the config's is {asked}; make the shards again with "
                "this config (tools/make_shards.py) or correct the config"
            )
    if info.longest_clip and config.data.crop == "none":
        raise ValueError(
            f"{shards.path}: holds clips of up to {info.longest_clip} frames, from which examples of "
            f"{info.frames} are cropped: set data.crop to starts, as the paper does, or to frames"
        )
    check_codec(info, config.codec, shards.path)
