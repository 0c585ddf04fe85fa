"""Start every rank of a run on this machine, one after the other, before a cluster does it at once.

    python tools/rehearse.py --config configs/8b_sports_256gpu.yaml --gpus 256 [--out FILE] [key=value]

Each rank makes its process groups (ours, Megatron's, DeepSpeed's), builds its model on the meta device and
cuts its pipeline stage as in a real start, in a process group that is torch's fake. Then the ranks are
compared: all must make the same groups in the same order, see the same ranks in them, and hold the weights
that the planner counted. Times are of one CPU; the network and the checkpoint take none here.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

from megatv.log import main_guard, progress
from megatv.parallel.environment import prepare


def main() -> None:
    """Rehearse, print, and write the JSON; exit code 2 when ranks disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML of the run")
    parser.add_argument("--gpus", type=int, required=True, help="processes of the run")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    if arguments.gpus < 1:
        raise ValueError(f"--gpus is {arguments.gpus}: it must be at least 1")
    if arguments.out and not arguments.out.parent.is_dir():
        raise ValueError(f"--out {arguments.out}: give the name of a file in a folder that exists")
    figures = rehearse(arguments.config, arguments.overrides, arguments.gpus)
    print(f"{arguments.gpus} ranks started one after the other in {figures['seconds']:.1f} s", end=" ")
    print(f"({figures['cpu_seconds']:.1f} s of one CPU)")
    print(f"  {figures['groups_made']} process groups, made alike and in the same order by every rank")
    print(f"  weights of each stage, as planned: {', '.join(f'{n:,}' for n in figures['weights'])}")
    for part, seconds in figures["median_seconds"].items():
        print(f"  {part:30}{1e3 * seconds:8.1f} ms a rank (median)")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


def rehearse(config_file: str, overrides: list[str], gpus: int) -> dict[str, Any]:
    """Figures of the start of all ranks. ValueError for a run that does not fit, or ranks that disagree."""
    prepare()  # before DeepSpeed looks for an accelerator
    from megatv.config import load_config
    from megatv.plan.shapes import stage_shapes
    from megatv.plan.startup import disagreements, start

    config = load_config(config_file, overrides)
    planned = [shape.parameters for shape in stage_shapes(config)]  # loads Megatron, too
    gc.freeze()  # what is imported lives on: it need not be searched for garbage 256 times
    begun, cpu = time.perf_counter(), time.process_time()
    starts = [start(config, gpus, rank) for rank in progress(range(gpus), total=gpus, desc="ranks")]
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    wrong = list(disagreements(starts))
    wrong += [
        f"rank {rank} holds {one.weights:,} weights, {planned[one.stage]:,} are planned"
        for rank, one in enumerate(starts)
        if one.weights != planned[one.stage]
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} disagreements between the ranks; the first: {wrong[0]}")
    return {
        "gpus": gpus,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "groups_made": starts[0].made[0],
        "weights": planned,
        "median_seconds": {
            part: statistics.median(one.seconds[part] for one in starts) for part in starts[0].seconds
        },
    }


if __name__ == "__main__":
    main_guard(main)
