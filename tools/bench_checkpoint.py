"""How long a checkpoint holds training up: written beside it (as training does), and blocking.

    python tools/bench_checkpoint.py --config configs/toy_world.yaml [--dir DIR] [--rounds 5] [key=value ...]

Both save the state of the config's model (random weights; no data are read) in turns, so that a busy machine
or disk slows both alike. Held is the time until the next step could begin; the first save beside training is
given apart, as it takes the memory for the copies, too. The blocking save streams into the same files.
One process; files go to a temporary folder in --dir, which should be where runs are. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from megatv.log import main_guard, say

SMALL = ["model.layers=1", "model.width=32", "model.ffn=32", "model.heads=2", "model.kv_heads=2"]


def main() -> None:
    """Save in turns and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--dir", type=Path, help="an existing folder; default: the system's temporary one")
    parser.add_argument("--rounds", type=int, default=5, help="saves of each kind")
    parser.add_argument("--small", action="store_true", help="shrink the model: for tests")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    if args.dir is not None and not args.dir.is_dir():
        raise ValueError(f"--dir {args.dir}: is no folder; make it first")
    with tempfile.TemporaryDirectory(prefix="bench_checkpoint_", dir=args.dir) as folder:
        small = SMALL if args.small else []
        figures = measure(
            args.config, [*small, *args.overrides, f"run.dir={folder}", "checkpoint.keep=1"], args.rounds
        )
    say(json.dumps({k: round(v, 4) for k, v in figures.items()}))


def measure(config_file: str, overrides: list[str], rounds: int) -> dict[str, float]:
    """The medians over `rounds` saves of each kind; GB are 10^9 bytes."""
    from megatv.config import load_config
    from megatv.parallel.environment import prepare

    config = load_config(config_file, overrides)
    device = prepare()
    from megatv.checkpoint import store
    from megatv.engine import Engine
    from megatv.parallel.mesh import Mesh, initialize_distributed
    from megatv.saver import Saver

    import torch.distributed as dist

    initialize_distributed(device)
    mesh = Mesh(config.parallel)
    if mesh.world > 1:
        raise ValueError("the blocking save knows one process only: start it without a launcher")
    engine = Engine(config, mesh, device, None)
    saver = Saver(config, mesh, engine)
    run_dir = Path(config.run.dir)

    def block(step: int) -> None:
        final = store.checkpoint_dir(run_dir, step)
        temporary = store.begin(final)
        files = {}
        for kind in engine.kinds:
            name = store.part_name(kind, 0, 1)
            files[name] = store.write_tensors(temporary / name, engine.shapes, engine.full(kind))
        store.commit(temporary, final, {"step": step}, files)
        store.prune(run_dir, 1)

    first = seconds(partial(saver.save, 1, {"step": 1}))
    saver.finish()
    held, whole, blocking = [], [], []
    for step in range(2, 2 + 2 * rounds, 2):
        held.append(seconds(partial(saver.save, step, {"step": step})))
        whole.append(held[-1] + seconds(saver.finish))
        blocking.append(seconds(partial(block, step + 1)))
    newest = store.steps(run_dir)[-1]
    gigabytes = sum(file.stat().st_size for file in newest.iterdir()) / 1e9
    dist.destroy_process_group()
    medians = [statistics.median(times) / gigabytes for times in (held, blocking, whole)]
    return {
        "gigabytes": gigabytes,
        "held_seconds_per_gb": medians[0],
        "held_first_seconds_per_gb": first / gigabytes,
        "blocking_seconds_per_gb": medians[1],
        "blocking_over_held": medians[1] / medians[0],
        "until_whole_seconds_per_gb": medians[2],
    }


def seconds(work: Callable[[], None]) -> float:
    """Wall-clock seconds of `work`."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main_guard(main)
