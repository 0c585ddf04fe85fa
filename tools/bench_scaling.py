"""Weak scaling: the same work for each process, on 1, 2 and 4 of them, beside the ideal of this machine.

    python tools/bench_scaling.py --config configs/toy_world.yaml [--processes 1 2 4] [--steps 30]
        [--rounds 3] [--examples 8] [--out FILE] [key=value ...]

Every number of processes trains the run anew under torchrun with `--examples` examples a process and step, in
turns, so that a busy machine slows all alike. A process has one thread for its arithmetic (and one that
loads): the ideal is as many times the speed of one process as there are processes, but never more than there
are cores. On a GPU machine there is one process a GPU. Medians of the steps' times in metrics.jsonl, without
the first of a run. Prints a table; --out writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from megatv.config import load_config
from megatv.log import main_guard, read_metrics

ROOT = Path(__file__).parents[1]
QUIET = ["log.val_every=0", "log.preview_every=0", "log.wandb=false"]


def main() -> None:
    """Train in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML of a run whose shards are there")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=30, help="steps of a run, after one to warm up")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each number of processes")
    parser.add_argument("--examples", type=int, default=8, help="examples of a process and step")
    parser.add_argument("--out", type=Path, help="write the table here as JSON")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    if min(args.steps, args.rounds, *args.processes) < 1:
        raise ValueError("--processes, --steps and --rounds must be at least 1")
    if args.out and not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: give the name of a file in a folder that exists")
    import torch  # which takes seconds

    overrides = {n: [*args.overrides, f"batch.examples={n * args.examples}"] for n in args.processes}
    for words in overrides.values():
        load_config(args.config, words)  # refuses before anything is started
    seconds: dict[int, list[float]] = {n: [] for n in args.processes}
    for _ in range(args.rounds):
        for n, found in seconds.items():
            found += step_seconds(args.config, overrides[n], n, args.steps)
    gpus = torch.cuda.device_count()
    processors = gpus or len(os.sched_getaffinity(0))
    report = {
        "processors": processors,
        "kind": "GPU" if gpus else "CPU core",
        "examples_per_process": args.examples,
        "runs": table(seconds, args.examples, processors),
    }
    print(f"{processors} {report['kind']}s, {args.examples} examples a process and step")
    print("  processes   s a step (quartiles)      seq/s   x one   ideal   of the ideal")
    for run in report["runs"]:
        low, high = run["seconds_quartiles"]
        print(
            f"  {run['processes']:9}   {run['seconds_per_step']:.3f} ({low:.3f} to {high:.3f})"
            f"{run['sequences_per_second']:11.2f}{run['times_first']:8.2f}{run['ideal']:8.2f}"
            f"{run['efficiency']:14.1%}"
        )
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def step_seconds(config: str, overrides: list[str], processes: int, steps: int) -> list[float]:
    """Seconds of every step of one run but the first. ValueError with the run's last words if it fails."""
    with tempfile.TemporaryDirectory(prefix="bench_scaling_") as folder:
        run = [f"run.dir={folder}", f"run.steps={steps + 1}", f"checkpoint.every={steps + 1}"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, f"--nproc_per_node={processes}", str(ROOT / "launch/train.py")]
        done = subprocess.run(
            [*command, "--config", config, *overrides, *QUIET, *run],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = [line[7:] for line in done.stderr.splitlines() if line.startswith("error: ")]
            raise ValueError(f"training on {processes} processes failed: {(said or [done.stderr])[0]}")
        timed = [record for record in read_metrics(Path(folder) / "metrics.jsonl") if "seconds" in record]
        return [record["seconds"] for record in timed if "first_step_seconds" not in record]


def table(seconds: dict[int, list[float]], examples: int, processors: int) -> list[dict[str, Any]]:
    """One row for each number of processes; `times_first`, `ideal`: beside the first of them.

    seconds: of every step; processors: how many processes can compute at once.
    """
    rows: list[dict[str, Any]] = []
    first = next(iter(seconds))
    rates = {n: n * examples / statistics.median(found) for n, found in seconds.items()}
    for n, found in seconds.items():
        low, median, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
        times, ideal = rates[n] / rates[first], min(n, processors) / min(first, processors)
        rows.append(
            {
                "processes": n,
                "steps": len(found),
                "seconds_per_step": median,
                "seconds_quartiles": [low, high],
                "sequences_per_second": rates[n],
                "times_first": times,
                "ideal": ideal,
                "efficiency": times / ideal,
            }
        )
    return rows


if __name__ == "__main__":
    main_guard(main)
