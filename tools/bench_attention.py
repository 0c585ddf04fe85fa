"""Attention measured: error first, then forward and backward apart, every backend and peer installed.

    python tools/bench_attention.py --out attention.json --plot attention.png   # a GPU, at the paper's shapes
    python tools/bench_attention.py --small                                     # anywhere, in seconds

Rows are those of configs/8b_sports.yaml (13,056) and 3b_csgo.yaml (15,360), as one document and as four.
TFLOP/s count the visible pairs only, 4 FLOP a pair and head dim forward and 10 backward; `causal` rows are
torch's causal attention over its own pairs, the speed of light for a simpler mask. Times are medians in ms
with the 10th and 90th percentile beside them. `interleaved` is FlexAttention on rows in order of time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from attention_report import plot, tables  # the tool beside this one


def main() -> None:
    """Measure, print tables, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    parser.add_argument("--plot", type=Path, help="write a PNG here")
    args = parser.parse_args()
    from time_attention import measure  # imports torch, which takes seconds

    import torch

    if not args.small and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA GPU is visible; use --small to try the benchmark on a CPU")
    report = measure(args.small)
    print(tables(report))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        plot(report, args.plot)


if __name__ == "__main__":
    main()
