"""What a run tells people: guarded entry points, rank-aware lines, metrics.jsonl, loss curves.

Only rank 0 speaks and writes; the rank comes from the launcher's environment, so that this module knows no
process groups. Nothing here touches the weights: a run without it would train the same numbers.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from megatv.regular_file import open_regular, write_file
from megatv.untrusted import MAX_LINE_BYTES, parse_json, printable
from megatv.wandb_record import WandbRecord

T = TypeVar("T")

TIMES = {"run_started", "seconds", "data_wait"}
"""What goodput needs of a record of a step: Unix seconds, seconds, and the share of them."""
LOSSES = [f"{stage}{name}_loss" for stage in ("", "val_", "val_ema_") for name in ("text", "video")]
LOSSES += [f"val_ema_video_loss_t{level}" for level in range(8)]
KEPT = ("step", *sorted(TIMES), "first_step_seconds", "loss", *LOSSES)
"""Of a record that is read: what goodput, loss curves and reports need."""
MAX_METRICS_BYTES, MAX_METRICS_LINES = 512 << 20, 1_000_000
"""Of a metrics.jsonl that is read: one line of about 500 bytes a step."""
SECONDS_TO_SPEAK = 10.0
"""How long a rank with bad input waits for rank 0 to say what is wrong, before it ends."""
SECONDS_BETWEEN_LINES = 30.0
"""Between two lines of progress where there is no terminal."""


def rank() -> int:
    """Global rank of this process as its launcher says; 0 without one, or where it says no number."""
    said = os.environ.get("RANK", "")
    return int(said) if said.isascii() and said.isdecimal() else 0


class AloneError(ValueError):
    """What only this process knows, since the others did not come: it says so itself, whatever its rank."""


def main_guard(main: Callable[[], int | None]) -> NoReturn:
    """Run a command-line entry point: ValueError becomes one `error:` line on stderr and exit code 2.

    So does a full disk, wherever it is met. All ranks raise the same error and rank 0 prints it, or it is an
    AloneError; Ctrl-C exits with 130.
    """
    try:
        code = main()
    except (ValueError, OSError) as error:
        if isinstance(error, OSError):
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            error = ValueError(
                f"{error.filename or 'a file'}: cannot be written ({error.strerror}); make room on the disk"
            )
        # launchers end the other ranks when the first has gone: rank 0, which may be late, must have said why
        # by then, and the code of bad input must be theirs, too
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        if rank() == 0 or isinstance(error, AloneError):
            print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
        else:
            ended.wait(SECONDS_TO_SPEAK)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    sys.exit(code)


def progress(iterable: Iterable[T], *, total: int | None = None, desc: str = "") -> Iterable[T]:
    """The same items. Rank 0 shows a tqdm bar or, where there is no terminal, now and then a line."""
    if rank() != 0:
        return iterable
    if sys.stderr.isatty():
        return tqdm(iterable, total=total, desc=desc)
    return _told(iterable, len(iterable) if total is None and isinstance(iterable, Sized) else total, desc)


def _told(iterable: Iterable[T], total: int | None, desc: str) -> Iterator[T]:
    """The same items; every SECONDS_BETWEEN_LINES a line as tqdm writes it, without its bar."""
    began = told = time.monotonic()
    for count, item in enumerate(iterable):
        now = time.monotonic()
        if count and now - told >= SECONDS_BETWEEN_LINES:
            line = tqdm.format_meter(count, total, now - began, ncols=0, prefix=desc)
            print(printable(line), file=sys.stderr, flush=True)
            told = now
        yield item


def say(line: str) -> None:
    """Print one line from rank 0, above the progress bar if there is one."""
    if rank() == 0:
        tqdm.write(printable(line), file=sys.stdout)
        sys.stdout.flush()


@contextmanager
def spare(what: str) -> Iterator[None]:
    """What training can do without, such as a picture: where it fails, a line says so, no more."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        say(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


class RunLog:
    """The record of one run: a line for people, metrics.jsonl for programs, wandb by option.

    Only rank 0 makes one. Records of steps after `resume_step` (written by a run that died before its
    next checkpoint) are dropped, so that the file reads like a run that was never interrupted.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        resume_step: int,
        total_steps: int,
        started: float | None = None,
        wandb_config: dict | None = None,
    ) -> None:
        """started: when this process began, in Unix seconds; None: now."""
        self.path = run_dir / "metrics.jsonl"
        self.goodput = Goodput(read_metrics(self.path), resume_step, started or time.time())
        _truncate(self.path, resume_step)
        self._file = self.path.open("a")
        self._bar = (
            tqdm(total=total_steps, initial=resume_step, desc="train", unit="step")
            if sys.stderr.isatty()
            else None
        )
        self._wandb = WandbRecord(run_dir, wandb_config) if wandb_config is not None else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record (`step` and plain numbers) to metrics.jsonl and wandb."""
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise AloneError(
                f"{self.path}: cannot be written ({error.strerror}); put that right, then use --resume auto"
            ) from None
        if self._wandb is not None:
            self._wandb.write(record)

    def advance(self, step: int) -> None:
        """Move the bar of a terminal to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Finish the bar and wandb."""
        self._file.close()
        if self._bar is not None:
            self._bar.close()
        if self._wandb is not None:
            self._wandb.close()


class Goodput:
    """Share of a run's wall-clock time since its first start that went into steps which it kept.

    Time between a kill and a restart, starting, steps that are done again, the first step after each start
    (which compiles and warms up), waiting for data, validating and saving are all lost. What it needs to know
    is in metrics.jsonl; only a run that died before its first record does not know of that start any more.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]], resume_step: int, started: float) -> None:
        """records: what metrics.jsonl held at this start (at `started`), beyond `resume_step` too."""
        timed = [record for record in records if record.keys() >= TIMES]
        self._started = timed[0]["run_started"] if timed else started
        self._useful = sum(map(_useful_seconds, (r for r in timed if r["step"] <= resume_step)))

    def add(self, record: Mapping[str, Any]) -> dict[str, float]:
        """After a step: the run's goodput, and its first start (Unix seconds) for the next restart."""
        self._useful += _useful_seconds(record)
        share = self._useful / max(time.time() - self._started, 1e-9)
        return {"goodput": share, "run_started": self._started}


def _useful_seconds(record: Mapping[str, Any]) -> float:
    return 0.0 if "first_step_seconds" in record else record["seconds"] * (1 - record["data_wait"])


def step_line(record: Mapping[str, Any], total_steps: int, seconds_left: float) -> str:
    """The step line: losses by modality, gradient norm, learning rate, speed, data wait, memory, time left.

    Left out: what is not known (utilisation on a CPU), did not happen (skipped steps) or says nothing new.
    """
    minutes, seconds = divmod(int(seconds_left), 60)
    parts = [
        f"step {record['step']}/{total_steps}",
        f"text {record['text_loss']:.4f}",
        f"video {record['video_loss']:.4f}",
        f"grad {record['grad_norm']:.3f}",
        f"lr {record['lr']:.2e}",
        f"{record['sequences_per_second']:.2f} seq/s",
        f"{record['tokens_per_second']:.0f} tok/s",
    ]
    if record["tokens_per_second_per_gpu"] != record["tokens_per_second"]:
        parts.append(f"{record['tokens_per_second_per_gpu']:.0f} tok/s/gpu")
    parts.append(f"{record['tflops_per_gpu']:.3g} TFLOP/s/gpu")
    if record["mfu"] is not None:
        parts.append(f"mfu {100 * record['mfu']:.1f}% (dense {100 * record['mfu_dense']:.1f}%)")
    if "first_step_seconds" in record:
        parts.append(f"first step {record['first_step_seconds']:.1f}s")
    parts += [
        f"data wait {100 * record['data_wait']:.1f}%",
        f"goodput {100 * record['goodput']:.1f}%",
        f"{record['memory_gib']:.1f} GiB",
    ]
    if record["skipped"]:
        parts.append(f"skipped {record['skipped']}")
    return "  ".join([*parts, f"left {minutes}m{seconds:02d}s"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """KEPT keys of the records of a metrics.jsonl, none where there is no file. Raises as `_records` does."""
    return [{key: record[key] for key in KEPT if key in record} for _, record in _records(path)]


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line, record) of a metrics.jsonl, one after the other. Lines that no run writes are left out.

    So is all from a line on that is no JSON, such as a last one cut short by a crash. Raises ValueError when
    the file cannot be read, or has more than MAX_METRICS_BYTES or MAX_METRICS_LINES.
    """
    number = size = 0
    try:
        with open_regular(path, links=True) as file:
            while line := file.readline(MAX_LINE_BYTES):
                number, size = number + 1, size + len(line)
                if number > MAX_METRICS_LINES or size > MAX_METRICS_BYTES:
                    most = f"{MAX_METRICS_BYTES >> 20} MiB or {MAX_METRICS_LINES:,} lines"
                    raise ValueError(f"{path}: is longer than {most}; move it away")
                text = line.decode("utf-8-sig").strip()
                if _is_record(record := parse_json(text)):
                    yield text, record
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        pass
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); move it away") from None


def _is_record(tree: Any) -> bool:
    """Whether it has a step, and numbers where a run of ours writes some."""
    if not isinstance(tree, dict) or type(tree.get("step")) is not int or not 0 <= tree["step"] < 2**63:
        return False
    losses = [value for key, value in tree.items() if key.endswith("_loss") and value is not None]
    times = [tree[key] for key in TIMES & tree.keys()]
    return all(type(v) in (int, float) for v in losses + times) and all(abs(t) < 1e18 for t in times)


def plot_losses(run_dir: Path) -> Path:
    """Draw the training and validation losses by modality as RUN/losses.png and return its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_metrics(run_dir / "metrics.jsonl")
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, name, unit in zip(axes, ("text", "video"), ("nats / token", "MSE of v"), strict=True):
        for key, style in ((f"{name}_loss", "-"), (f"val_{name}_loss", "o"), (f"val_ema_{name}_loss", "s")):
            points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                axis.plot(steps, values, style, markersize=4, linewidth=1, label=key)
        axis.set(xlabel="step", ylabel=unit, yscale="log", title=f"{name} loss")
        if axis.lines:
            axis.legend()
    out = run_dir / "losses.png"
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
    return out


def _truncate(path: Path, step: int) -> None:
    """Leave the records up to `step` in a new file; where a link was, nothing behind it changes."""
    try:
        write_file(path, "".join(f"{line}\n" for line, record in _records(path) if record["step"] <= step))
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); put that right") from None
