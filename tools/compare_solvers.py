"""Solvers of the flow at equal cost: how far from the exact chunk, for so many evaluations of the model.

    python tools/compare_solvers.py --checkpoint runs/toy_world [--starts 32] [--out solvers.json]

Held-out examples (data.val) give the first four chunks with their words; the fifth is drawn under the
example's own words from the same noise by every solver. The exact chunk is that of Heun in 200 steps.
Distances are root mean squares in normalised latents, whose data have unit variance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatv.checkpoint.trust import Trust
from megatv.log import main_guard, progress
from megatv.regular_file import require_place

EVALUATIONS = (3, 5, 9, 17, 33)
"""Odd, since Heun takes two a step but for the last."""
EXACT_STEPS = 200


def main() -> None:
    """Draw, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint directory, or a run")
    parser.add_argument("--starts", type=int, default=32, help="held-out examples")
    parser.add_argument("--device", help="default: a GPU, or the CPU where there is none")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    Trust.add_options(parser)
    args = parser.parse_args()
    require_place(args.out)
    if args.starts < 1:
        raise ValueError(f"--starts {args.starts}: must be at least 1")
    # these import torch, which takes seconds
    from megatv.eval.solver_error import fifth_chunks, rms, starts
    from megatv.sample.sampler import Sampler, some_device
    from megatv.sample.solver import SOLVERS

    device = args.device or some_device()
    # in less than fp32 the rounding of the model would hide how near the solvers come
    sampler = Sampler.from_checkpoint(args.checkpoint, device, precision="fp32", trust=Trust.given(args))
    requests = starts(sampler, args.starts)
    exact = fifth_chunks(sampler, requests, "heun", EXACT_STEPS)
    runs = [(name, n) for name in SOLVERS for n in EVALUATIONS]
    found = {
        (name, n): rms(fifth_chunks(sampler, requests, name, (n + 1) // 2 if name == "heun" else n) - exact)
        for name, n in progress(runs, desc="solvers")
    }
    print(
        f"| {len(requests)} chunks; distance to the exact one | " + " | ".join(map(str, EVALUATIONS)) + " |"
    )
    print("|---" * (1 + len(EVALUATIONS)) + "|")
    for name in SOLVERS:
        print(f"| {name} | " + " | ".join(f"{found[name, n]:.4f}" for n in EVALUATIONS) + " |")
    if args.out:
        tree = {name: {n: found[name, n] for n in EVALUATIONS} for name in SOLVERS}
        args.out.write_text(json.dumps({"chunks": len(requests), "rms": tree}, indent=1) + "\n")


if __name__ == "__main__":
    main_guard(main)  # type: ignore[arg-type]
