"""RMSNorm, residual + RMSNorm, SwiGLU and rotation: eager torch, torch.compile and liger-kernel, as JSON.

    python tools/bench_fused.py --out fused.json     # on a GPU, at the shapes of configs/8b_sports.yaml
    python tools/bench_fused.py --small              # anywhere: tiny shapes, proves that it runs

Every case reports for each contestant the relative error against fp64 of output and gradients, and forward
and forward + backward in ms (median with the 10th and 90th percentile). `floor_ms` is the least time that
memory allows: inputs read once and outputs written once, at the rate that a plain copy reaches here.
`ours` is what the model runs. Contestants that are not installed are `skipped`, with the reason.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    args = parser.parse_args()
    from time_fused import measure  # imports torch, which takes seconds

    import torch

    if not args.small and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA GPU is visible; use --small to try the benchmark on a CPU")
    text = json.dumps(measure(args.small), indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
