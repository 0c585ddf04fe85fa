"""From a step's number to its batches: no iterator state, so a resumed run goes on exactly where it was.

Global example g = step * examples_per_step + j is example `order[g % n]` of epoch g // n, and the rows packed
from a step's examples are dealt to the data-parallel ranks in turn. So what a step trains on is a function of
(seed, step) and does not depend on the number of ranks.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

import numpy as np

from megatv.config import Config
from megatv.data.packing import pack
from megatv.data.sequence import build_sequence
from megatv.data.shards import Shards, epoch_order
from megatv.data.tokenizer import Tokenizer
from megatv.types import Batch, Sequence

PREFETCH = 2
"""Steps built ahead. Reading and noise take milliseconds; this hides a hiccup of the disk."""


class Loader:
    """Batches of one data-parallel rank; ranks that share `dp_rank` (tp and pp siblings) build equal ones.

    train: examples in the epoch's order, with text dropout and clean flips; else in stored order, without.
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
    ) -> None:
        assert 0 <= dp_rank < dp_size
        config.accumulation(dp_size)
        check_shards(shards, config)
        self.shards, self.tokenizer, self.config = shards, tokenizer, config
        self.dp_rank, self.dp_size, self.train = dp_rank, dp_size, train

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step `step`, counted from 0; a pure function of it."""
        rows = self.config.rows_per_step
        return [self._row(step * rows + row) for row in range(self.dp_rank, rows, self.dp_size)]

    def validation(self, rows: int) -> list[Batch]:
        """This rank's share of the first `rows` packed rows, for a loader that does not `train`.

        Where they need more examples than there are, these come again with other noise. Raises ValueError
        when the ranks cannot share the rows equally.
        """
        assert not self.train
        if rows % self.dp_size:
            raise ValueError(
                f"log.val_rows {rows} cannot be shared equally by {self.dp_size} data-parallel ranks: "
                f"make it a multiple of {self.dp_size}"
            )
        return [self._row(row) for row in range(self.dp_rank, rows, self.dp_size)]

    def iterate(self, start_step: int) -> Iterator[list[Batch]]:
        """`step(start_step)`, `step(start_step + 1)` and so on without end, built ahead by a thread.

        An error of the thread is raised here, at the step where it belongs. The thread ends with the
        generator: when that is closed, raises or is garbage.
        """
        ready: queue.Queue[list[Batch] | Exception] = queue.Queue(PREFETCH)
        closed = threading.Event()

        def work() -> None:
            step = start_step
            try:
                while not closed.is_set():
                    ready.put(self.step(step))
                    step += 1
            except Exception as error:
                ready.put(error)

        thread = threading.Thread(target=work, name="megatv-loader", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            closed.set()
            while thread.is_alive():
                with contextlib.suppress(queue.Empty):  # make room for what it may be waiting to hand over
                    ready.get(timeout=0.01)

    def _row(self, row: int) -> Batch:
        """Packed row `row` of the run."""
        size = self.config.sequence.examples_per_row
        return pack([self._sequence(row * size + i) for i in range(size)], self.config)

    def _sequence(self, example: int) -> Sequence:
        """The sequence of global example `example`; errors name the sample."""
        seed = self.config.run.seed
        epoch, place = divmod(example, len(self.shards))
        order = epoch_order(seed, epoch, len(self.shards)) if self.train else np.arange(len(self.shards))
        sample = self.shards[int(order[place])]
        try:
            return build_sequence(
                sample, self.tokenizer, self.config, seed=seed, epoch=epoch, train=self.train
            )
        except Exception as error:
            error.add_note(f"while building sample '{sample.id}' (example {example} of the run)")
            raise


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
