"""What watching a run costs: its training loop with health checks, log and watchdog beside the same without.

    python tools/bench_overhead.py --config configs/toy_world.yaml [--steps 50] [--rounds 12] [--out FILE]
    torchrun --nproc_per_node 2 tools/bench_overhead.py ...

One run of `megatv.train`, in which blocks of steps take turns in one process, so that a busy machine slows
both alike. A watched step is what every run does. A bare one leaves out the step's record, step line and
clock, the watchdog's and profiler's marks, garbage at the same step everywhere (Python collects as it likes),
and all reductions over the whole world: of the losses and the stop signal, of samples that are bad, and the
one that makes the gradient's norm alike. Training's own reductions go over its groups and stay, as does the
norm itself, for clipping needs it. Steps of a block are timed together, as lines and garbage come every so
many steps. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from megatv.log import main_guard, rank, say

QUIET = ["log.val_every=0", "log.preview_every=0", "log.wandb=false", "profile.steps=0"]


def main() -> None:
    """Train in turns and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML of a run whose shards are there")
    parser.add_argument("--steps", type=int, default=50, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=12, help="blocks of each kind, after one to warm up")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, too")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    if min(args.steps, args.rounds) < 1:
        raise ValueError("--steps and --rounds must be at least 1")
    if args.out and not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: give the name of a file in a folder that exists")
    figures = measure(args.config, args.overrides, args.steps, args.rounds)
    say(json.dumps(figures))
    if args.out and rank() == 0:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


class Turns:
    """Whose turn it is. stamps: (wall-clock, CPU seconds, seconds in watching) at the ends of the blocks."""

    def __init__(self, block: int) -> None:
        self.watched, self.watching = True, 0.0
        self.stamps: list[tuple[float, float, float]] = []
        self._block, self._steps = block, 0

    def step(self) -> None:
        """A step begins. Pairs of blocks are watched first and bare first in turn: W B B W W B ..."""
        if self._steps % self._block == 0:
            self.stamps.append((time.perf_counter(), time.process_time(), self.watching))
            self.watched = len(self.stamps) % 4 < 2
            (gc.disable if self.watched else gc.enable)()
        self._steps += 1

    def watch(self, work: Callable) -> Callable:
        """`work`, timed in a watched step and left out of a bare one."""

        def turn(*args: Any, **options: Any) -> Any:
            if not self.watched:
                return None
            begun = time.perf_counter()
            try:
                return work(*args, **options)
            finally:
                self.watching += time.perf_counter() - begun

        return turn


@contextmanager
def taking_turns(turns: Turns) -> Iterator[None]:
    """Within: what `megatv.train` does to watch a run is done in its turn only."""
    from megatv import train

    import torch.distributed as dist

    reduce, watched_reduce = dist.all_reduce, turns.watch(dist.all_reduce)
    take = train.Feed.next

    def all_reduce(*args: Any, **options: Any) -> Any:
        ours = len(args) < 3 and "group" not in options  # DeepSpeed and Megatron name a group
        return (watched_reduce if ours else reduce)(*args, **options)

    def following(feed: Any) -> Any:
        turns.step()
        return take(feed)

    with ExitStack() as patches:
        for owner, name in (
            (train.Trainer, "_log_step"),
            (train.Watchdog, "tick"),
            (train.Profiler, "before"),
            (train.Profiler, "after"),
            (train.GarbageTogether, "after"),
        ):
            patches.enter_context(mock.patch.object(owner, name, turns.watch(getattr(owner, name))))
        patches.enter_context(mock.patch.object(dist, "all_reduce", all_reduce))
        patches.enter_context(mock.patch.object(train.Feed, "next", following))
        yield


def measure(config_file: str, overrides: list[str], steps: int, rounds: int) -> dict[str, Any]:
    """Medians over the pairs of blocks, and quartiles of the ratio."""
    from megatv.config import load_config
    from megatv.parallel.environment import prepare

    device = prepare()
    from megatv.parallel.mesh import initialize_distributed
    from megatv.train import train

    import torch.distributed as dist

    initialize_distributed(device)
    total = 2 * steps * (rounds + 1)
    with tempfile.TemporaryDirectory(prefix="bench_overhead_") as folder:
        shared = [folder]
        dist.broadcast_object_list(shared, device=device)  # the first rank's, for all
        run = [f"run.dir={shared[0]}", f"run.steps={total + 1}", f"checkpoint.every={total + 1}"]
        config = load_config(config_file, [*overrides, *QUIET, *run])
        turns = Turns(steps)
        with taking_turns(turns):
            train(config, "none", device)
    if len(turns.stamps) <= 2 * (rounds + 1):
        raise ValueError("the run was stopped before its last step: nothing was measured")
    spent = [
        [after - before for before, after in zip(begin, end, strict=True)]
        for begin, end in zip(turns.stamps, turns.stamps[1:], strict=False)
    ]
    pairs = [spent[i : i + 2][:: 1 if i % 4 == 0 else -1] for i in range(2, 2 * (rounds + 1), 2)]
    wall, cpu = ([watched[k] / bare[k] for watched, bare in pairs] for k in (0, 1))
    quartiles = statistics.quantiles(wall, n=4) if rounds > 1 else [wall[0]] * 3
    step = statistics.median(bare[0] for _, bare in pairs) / steps
    watching = statistics.median(watched[2] for watched, _ in pairs) / steps
    return {
        "bare_seconds_per_step": round(step, 5),
        "ratio": round(statistics.median(wall), 5),
        "ratio_quartiles": [round(quartiles[0], 5), round(quartiles[2], 5)],
        "ratio_cpu": round(statistics.median(cpu), 5),
        "watching_microseconds_per_step": round(1e6 * watching, 1),
        "watching_share": round(watching / step, 6),
        "steps": steps * rounds,
    }


if __name__ == "__main__":
    main_guard(main)
