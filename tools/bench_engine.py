"""Training speed of the engine beside a plain PyTorch loop of the same model on the same rows.

    python tools/bench_engine.py --config configs/toy_world.yaml [--steps 10] [--rounds 4] [key=value ...]
    torchrun --nproc_per_node 2 tools/bench_engine.py ...

Blocks of steps of both take turns in the same processes, so that a busy machine slows both alike; the ratio
is given in wall-clock and in CPU seconds, the latter for machines that are shared. Under several processes
the plain loop works on each process's own rows without any communication: the ratio then holds everything
that the engine adds, the gradients' reduction included. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from megatv.log import RunLog, main_guard, say


def main() -> None:
    """Run the blocks and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=10, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=4, help="blocks of each kind")
    parser.add_argument(
        "--trust-codec", action="store_true", help="load a TorchScript codec, which can run any code"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()

    from megatv.config import load_config
    from megatv.parallel.environment import prepare

    device = prepare()
    from megatv.data.loader import Loader
    from megatv.data.shards import Shards
    from megatv.data.tokenizer import load_tokenizer
    from megatv.engine import Engine
    from megatv.model.codec import clip_encoder, load_codec
    from megatv.model.init import initialize
    from megatv.model.mot import MoT
    from megatv.objective.pretrain import pretrain_loss, weighted
    from megatv.optim import parameter_groups
    from megatv.parallel.layers import Layers
    from megatv.parallel.mesh import Mesh, initialize_distributed
    from megatv.types import Batch

    import torch
    import torch.distributed as dist

    config = load_config(args.config, args.overrides)
    initialize_distributed(device)
    mesh = Mesh(config.parallel)
    if mesh.tp > 1 or mesh.pp > 1:
        raise ValueError("the plain loop holds the whole model: set parallel.tp and parallel.pp to 1")
    tokenizer = load_tokenizer(config.tokenizer.path, config.model.vocab)
    shards = Shards(
        config.data.train,
        lambda: clip_encoder(load_codec(config.codec, device, trust=args.trust_codec)),
        device=device,
    )
    batches = Loader(shards, tokenizer, config, dp_rank=mesh.dp_rank, dp_size=mesh.dp).iterate(0)
    engine = Engine(config, mesh, device, None)
    plain = MoT(config).to(device)
    initialize(plain.named_parameters(), config)
    groups = parameter_groups(plain.named_parameters(), config.optim)
    adam = torch.optim.AdamW(groups, lr=config.optim.lr, betas=config.optim.betas, fused=True)

    def plain_step(rows: list[Batch]) -> None:
        rows = [row.to(device) for row in rows]
        counts = torch.stack([row.counts() for row in rows]).sum(0)
        for row in rows:
            loss = pretrain_loss(plain(row), row, Layers())
            weighted(loss, counts, config.objective).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), config.optim.clip)
        adam.step()
        adam.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        record = RunLog(Path(folder), resume_step=0, total_steps=1)

        def engine_step(rows: list[Batch]) -> None:
            result = engine.step(rows, config.optim.lr, lambda: False)
            record.write({"step": 0, "text_loss": result.sums[0], "grad_norm": result.grad_norm})

        spent: dict[str, list[tuple[float, float]]] = {"plain": [], "engine": []}
        for number in range(args.rounds + 1):  # the first round warms up
            for name, step in (("plain", plain_step), ("engine", engine_step)):
                dist.barrier()
                block = timed(step, batches, args.steps, device.type)
                spent[name].extend(block if number else [])
        record.close()
    (plain_wall, plain_cpu), (wall, cpu) = (
        map(statistics.median, zip(*s, strict=True)) for s in spent.values()
    )
    figures = {
        "plain_seconds_per_step": plain_wall,
        "engine_seconds_per_step": wall,
        "engine_sequences_per_second": config.batch.examples / wall,
        "overhead": wall / plain_wall,
        "overhead_cpu": cpu / plain_cpu,
        "processes": mesh.world,
        "zero": config.parallel.zero,
    }
    say(json.dumps({k: round(v, 4) for k, v in figures.items()}))
    dist.barrier()
    dist.destroy_process_group()


def timed(step: Callable, batches: Iterator, steps: int, device: str) -> list[tuple[float, float]]:
    """Wall-clock and CPU seconds of each of `steps` steps, waiting for data included."""
    import torch

    seconds = []
    for _ in range(steps):
        begun, cpu = time.perf_counter(), time.process_time()
        step(next(batches))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begun, time.process_time() - cpu))
    return seconds


if __name__ == "__main__":
    main_guard(main)
