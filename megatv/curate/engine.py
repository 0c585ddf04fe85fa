"""Runs one stage over its items with Ray Data: on this machine by default, on a cluster by its address.

The driver alone writes the manifest, line by line as results stream in; workers return plain data. So a
restart, after kill -9 too, redoes only the items that were in flight. What goes wrong with one item is
recorded with its reason and ends nothing, a crash of the worker's whole process included.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatv.curate.manifest import Item, Manifest, Record, key_of, seconds_of
from megatv.log import say
from megatv.untrusted import parse_json

WINDOW = 4096
"""Items given to Ray at once, each a task of its own, so that nothing finished waits for its neighbours."""
CRASHES = 2
"""Times that a task may lose its worker and start anew: the node may have gone."""
OBJECT_STORE_BYTES = 256 << 20
"""Of a local Ray: items are small, frames never leave the worker that decoded them."""
LONGEST_PLACE = 17
"""Bytes of the folder for temporary files (TMPDIR) below which Ray's files are kept. With a longer one, paths
of its sockets, 86 bytes more, could pass the 103 that macOS and Linux both allow: /tmp is taken instead."""


@dataclass(frozen=True)
class Outcome:
    """What a stage says of one item: outputs to pass on, or none and the reason; facts for the report."""

    outputs: Sequence[Item] = ()
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    name      also of its manifest
    version   raise it when `work` changes what it returns: finished items are then done again
    work      item -> Outcome, run by a worker; ValueError is the way to say that an item cannot be done
    settings  plain data of all that decides the result; a change does the items again
    cpus      that one task takes
    threads   items that a task works on together, for work that waits for a server
    tasks     at most so many tasks at once; None: as many as there are cores
    makes     keys that every output has
    passes    keys of an item that `work` does not see and that every output gets as they are then: another
              value of them does no item again
    """

    name: str
    version: int
    work: Callable[[Item], Outcome]
    settings: Any
    cpus: float = 1.0
    threads: int = 1
    tasks: int | None = None
    makes: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()

    def key(self, item: Item) -> str:
        """The item's key in this stage's manifest."""
        return key_of(self.seen(item), self.name, self.version, self.settings)

    def seen(self, item: Item) -> Item:
        """What `work` sees of an item."""
        return {name: value for name, value in item.items() if name not in self.passes}

    def passed_on(self, record: Record, item: Item) -> Record:
        """An item's record, with what passes by in each output."""
        passed = {name: item[name] for name in self.passes if name in item}
        return replace(record, outputs=[{**output, **passed} for output in record.outputs])


@dataclass(frozen=True)
class Summary:
    """One run of one stage: items by status over all inputs, and the speed of what was done in this run.

    done_now, video_seconds, wall_seconds   items done in this run, how much video they are, how long it took
    """

    stage: str
    inputs: int
    kept: int
    dropped: int
    failed: int
    outputs: int
    done_now: int
    video_seconds: float
    wall_seconds: float

    @property
    def items_per_second(self) -> float:
        """Of the items done in this run; 0 when there was nothing to do."""
        return self.done_now / self.wall_seconds if self.done_now else 0.0

    def line(self) -> str:
        """One line for people."""
        speed = f", {self.items_per_second:.2f} items/s" if self.done_now else ", nothing new"
        return (
            f"{self.stage}: {self.inputs} in, {self.kept} kept, {self.dropped} dropped, "
            f"{self.failed} failed, {self.outputs} out{speed}"
        )


def start_ray(address: str | None) -> None:
    """Start Ray on this machine, or join the cluster at `address`. Raises ValueError when it is not there.

    On a cluster every node needs megatv installed and the folders of videos and output under the same paths.
    """
    if address:
        _knock(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        ray.init(address=address, **quiet)
    else:
        # Ray listens on all interfaces and runs code for whoever knows its token. What the environment says
        # (no token, or a cluster's) is not for this Ray. Without a mode here it takes "token", also where
        # an earlier import of Ray read another; without a token here it would write one to a file.
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            os.environ.pop(name, None)
        os.environ["RAY_AUTH_TOKEN"] = _token()
        own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        # "local": not a cluster that this machine happens to belong to
        ray.init(address="local", _temp_dir=str(_private_folder() / "ray"), **own, **quiet)


@cache
def _token() -> str:
    """Of this process's own Ray, which keeps the first that it is told."""
    return secrets.token_hex(32)


def _private_folder() -> Path:
    """A new folder for Ray's files, for this user alone, which is removed when the process ends.

    Ray lets everybody write its own folder, whatever the umask, and its processes learn from files there whom
    to send the token. Raises ValueError where others could put another folder in the place of this one.
    """
    from megatv_kernels.parents import fault_above

    place = Path(tempfile.gettempdir())
    if len(os.fsencode(place.resolve())) > LONGEST_PLACE:
        place = Path("/tmp")
    if fault := fault_above(place / "megatv"):
        raise ValueError(
            f"Ray's files cannot be kept in {place}: {fault}; set TMPDIR to a folder of your own"
        )
    folder = Path(tempfile.mkdtemp(prefix="megatv-", dir=place.resolve()))
    atexit.register(_end_ray, folder)
    return folder


def _end_ray(folder: Path) -> None:
    """End Ray and remove its files; its processes may write for a moment longer."""
    import ray

    ray.shutdown()
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.1)


def _knock(address: str) -> None:
    """Is anybody there? Ray itself finds out after minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(
            f"--ray-address {address}: must look like HOST:PORT, as `ray start --head` prints it"
        )
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--ray-address {address}: no Ray cluster answers ({error}); start one with `ray start --head`"
        ) from None


def run_stage(
    stage: Stage, items: Sequence[Item], manifest_path: Path, *, retry_failed: bool = False
) -> tuple[list[Record], Summary]:
    """Bring every item's record up to date; the records in the order of the items.

    Items that the manifest has under the same key are skipped; failed ones too, unless `retry_failed`.
    """
    began = time.monotonic()
    keys = [stage.key(item) for item in items]
    repeated = [k for k, n in Counter(item["id"] for item in items).items() if n > 1]
    assert not repeated, f"{stage.name}: ids must be unique, {repeated[0]!r} is not"
    with Manifest(manifest_path, stage.makes) as manifest:
        todo = {
            key: stage.seen(item)
            for key, item in zip(keys, items, strict=True)
            if not (old := manifest.records.get(key)) or (retry_failed and old.status == "failed")
        }
        results = _results(stage, todo) if todo else iter(())
        bar = tqdm(
            total=len(items),
            initial=len(items) - len(todo),
            desc=stage.name,
            unit="item",
            disable=not sys.stderr.isatty(),
        )
        with bar:
            for record in results:
                manifest.append(record)
                bar.update()
        records = [
            stage.passed_on(manifest.records[key], item) for key, item in zip(keys, items, strict=True)
        ]
    by_status = Counter(record.status for record in records)
    summary = Summary(
        stage.name,
        len(records),
        by_status["kept"],
        by_status["dropped"],
        by_status["failed"],
        sum(len(record.outputs) for record in records),
        len(todo),
        sum(map(seconds_of, todo.values())),
        time.monotonic() - began,
    )
    say(summary.line())
    return records, summary


def _results(stage: Stage, todo: dict[str, Item]) -> Iterator[Record]:
    """Records as workers finish them, in any order; one for every item."""
    for window in _windows(todo.items(), WINDOW):
        missing = dict(window)
        for record in _ray_results(stage, window):
            del missing[record.key]
            yield record
        for key, item in missing.items():
            yield Record(
                key,
                item["id"],
                "failed",
                reason="its worker died (out of memory, or a crash in native code); leave it out",
            )


def _ray_results(stage: Stage, window: list[tuple[str, Item]]) -> Iterator[Record]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a lost block is an item to report, see `_results`
    rows = [{"task": json.dumps(pair)} for pair in window]
    blocks = -(-len(rows) // stage.threads)
    source = ray.data.from_items(rows, override_num_blocks=blocks)
    with warnings.catch_warnings():
        # Ray 2.60 has no named parameter for max_retries yet (its default is endless), and warns of this way.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        results = source.map_batches(
            _Task(stage).__call__,
            batch_size=stage.threads,
            num_cpus=stage.cpus,
            concurrency=stage.tasks,
            max_retries=CRASHES,
        )
    for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
        for text in batch["record"]:
            yield Record(**parse_json(text))


class _Task:
    """What Ray runs on a worker: a batch of (key, item) in JSON to a batch of records in JSON."""

    def __init__(self, stage: Stage) -> None:
        self._stage = replace(stage, settings=None)  # only the keys depend on them

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        pairs = [parse_json(text) for text in batch["task"]]
        with ThreadPoolExecutor(max(1, len(pairs))) as pool:
            return {"record": list(pool.map(self._one, pairs))}

    def _one(self, pair: tuple[str, Item]) -> str:
        key, item = pair
        began = time.monotonic()
        try:
            outcome = self._stage.work(item)
            status = "kept" if outcome.outputs else "dropped"
            record = Record(key, item["id"], status, [*outcome.outputs], outcome.reason, outcome.facts)  # type: ignore[arg-type]
            assert status == "kept" or record.reason, (
                f"{self._stage.name} drops {item['id']} without a reason"
            )
            return json.dumps(asdict(replace(record, seconds=time.monotonic() - began)))
        except Exception as error:  # whatever it is, it is this item's, and the other items go on
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            record = Record(key, item["id"], "failed", reason=reason or type(error).__name__)
            return json.dumps(asdict(replace(record, seconds=time.monotonic() - began)))


def _windows(pairs: Iterable[tuple[str, Item]], size: int) -> Iterator[list[tuple[str, Item]]]:
    pairs = iter(pairs)
    while window := list(itertools.islice(pairs, size)):
        yield window
