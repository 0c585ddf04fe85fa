"""The run directory: one run, one config, one process group at a time.

RUN/config.yaml      the resolved config; a resumed run must agree with it in everything that matters
RUN/metrics.jsonl    one record a step
RUN/checkpoints/     see `store`
RUN/wandb_id         with which a resumed run goes on in wandb, where `log.wandb` is set
RUN/profile/         traces, see `megatv.profiler`
RUN/hang/            where every rank was when the run hung, see `megatv.watchdog`
RUN/.lock            held (flock) by rank 0 while the run is alive; the kernel frees it however the run dies.
                     The host and process in it are for people: what stays there of a dead run holds nothing
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megatv.checkpoint.meta import config_of, read_meta
from megatv.checkpoint.store import CHECKPOINTS, checkpoint_dir, latest, verify
from megatv.config import Config, config_to_dict, load_config, save_config
from megatv.model.cost import meta_model
from megatv.untrusted import foreign

FREE = (
    *("run.dir", "parallel", "checkpoint", "log", "profile", "health", "sample", "attention"),
    *("data.max_bad_samples", "data.workers", "data.cache_dir", "data.cache_bytes"),
)
"""Keys that a resumed run may change: they say where, how fast and how loud, not what is computed."""


@dataclass
class RunDir:
    """An opened run directory: its lock, and where to go on from.

    checkpoint   the checkpoint to resume from, or None to start at step 0
    notes        lines to tell the user (damaged checkpoints that were passed over, no locks here)
    """

    path: Path
    checkpoint: Path | None
    notes: list[str]
    lock: IO[str]


def open_run(config: Config, resume: str) -> RunDir:
    """Create or reopen `run.dir` (rank 0 only). resume: `auto`, `none` or a checkpoint directory.

    Raises ValueError when the directory cannot be written, is in use, holds a run that must not be touched or
    a link that leads out of it, or was made with a config that differs in something that matters.
    """
    path = Path(config.run.dir)
    _refuse_links(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("a+")  # not "w", which would empty the file of the run that holds it
    except OSError as error:
        raise ValueError(f"run.dir {path}: cannot be written ({error.strerror}); choose another") from None
    unlocked = _take(lock, path)
    checkpoint, notes = _choose(path, resume)
    notes = [*unlocked, *notes]
    for source, record in _records(path, checkpoint):
        _require_same(record, config_to_dict(config), source)
    _require_room(path, config)
    try:
        save_config(config, path / "config.yaml")
    except OSError as error:
        where = error.filename or path
        raise ValueError(
            f"run.dir {path}: {where} cannot be written ({error.strerror}); put that right, or choose another"
        ) from None
    return RunDir(path, checkpoint, notes, lock)


def _require_room(run: Path, config: Config) -> None:
    """Refuse (ValueError) a run directory that cannot take one checkpoint more.

    It holds weights, both moments and, if there is one, the average, in float32, and is written beside those
    before it: the oldest is deleted when it is whole.
    """
    if (run / CHECKPOINTS).exists() and not (run / CHECKPOINTS).is_dir():
        raise ValueError(f"{run / CHECKPOINTS}: is no folder, and checkpoints are to lie there; remove it")
    kinds = 3 if config.optim.ema is None else 4
    size = 4 * kinds * sum(parameter.numel() for parameter in meta_model(config).parameters())
    free = shutil.disk_usage(run).free
    if free < size:
        raise ValueError(
            f"run.dir {run}: has {free / 1e9:.3g} GB free, and a checkpoint takes {size / 1e9:.3g} GB beside "
            "those that are there: make room, or choose another"
        )


def _refuse_links(run: Path) -> None:
    """Refuse (ValueError) a run that holds a link to elsewhere: what training writes would be written there.

    What lies in wandb's folder is left alone: it links its newest run by an absolute path, and has random
    names else.
    """
    for path, fault in foreign(run, run, but=[run / "wandb"]):
        raise ValueError(
            f"{path}: {fault}, and training would write there; remove it, or let run.dir itself be the link"
        )


def _take(lock: IO[str], path: Path) -> list[str]:
    """Lock the run and write who holds it into the file; a note where the file system knows no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        raise ValueError(
            f"run.dir {path}: another run is using it ({holder}); wait for it, stop it or choose another"
        ) from None
    except OSError as error:
        return [f"run.dir {path}: cannot be locked ({error.strerror}); start no second run there"]
    lock.truncate(0)
    lock.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
    lock.flush()
    return []


def _choose(path: Path, resume: str) -> tuple[Path | None, list[str]]:
    if resume == "none":
        for name in (CHECKPOINTS, "metrics.jsonl", "config.yaml"):
            if (path / name).exists():
                raise ValueError(
                    f"run.dir {path}: holds a run already ({name}); use --resume auto to go on with it, "
                    "or choose another directory"
                )
        return None, []
    if resume == "auto":
        checkpoint, skipped = latest(path)
        if checkpoint is None and skipped:
            raise ValueError(
                f"run.dir {path}: none of its checkpoints is whole ({'; '.join(skipped)}); restore one, or "
                "start in a new run.dir"
            )
        return checkpoint, [f"checkpoint passed over: {why}" for why in skipped]
    checkpoint = Path(resume)
    step = verify(checkpoint)["step"]
    newest, _ = latest(path)
    if newest is not None and newest > checkpoint_dir(path, step):
        raise ValueError(
            f"run.dir {path}: has the newer checkpoint {newest.name}, which --resume {resume} would make "
            "stale; use --resume auto or another run.dir"
        )
    return checkpoint, []


def _records(path: Path, checkpoint: Path | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    if (path / "config.yaml").exists():
        yield path / "config.yaml", config_to_dict(load_config(path / "config.yaml"))
    if checkpoint is not None:
        # through Config, so that a key which is younger than the checkpoint counts as its default
        yield checkpoint, config_to_dict(config_of(read_meta(checkpoint), checkpoint))


def _require_same(before: dict[str, Any], now: dict[str, Any], source: Path) -> None:
    old, new = dict(_flat(before)), dict(_flat(now))
    for key in sorted(old.keys() | new.keys()):
        free = any(key == f or key.startswith(f"{f}.") for f in FREE)
        if not free and old.get(key) != new.get(key):
            raise ValueError(
                f"{source}: {key} is {str(old.get(key))[:200]} there and {new.get(key)} now; set it back to "
                "go on with this run, or start another one in a new run.dir"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
