"""Show one training sequence as a person would read it, and draw who sees whom as a PNG.

    python tools/inspect_sequence.py --config configs/toy_world.yaml --index 3
    python tools/inspect_sequence.py --config configs/toy_world.yaml --demo sequence.clean_flip=0.3

Without `--demo` the sample is read from the config's training shards; the demo needs none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatv.config import load_config
from megatv.log import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--demo", action="store_true", help="a built-in example; no shards needed")
    parser.add_argument("--index", type=int, default=0, help="of the sample in the training shards")
    parser.add_argument("--epoch", type=int, default=0, help="decides crop, noise, times, dropout and flips")
    parser.add_argument("--out", type=Path, default=Path("sequence.png"), help="the drawing")
    parser.add_argument(
        "--trust-codec", action="store_true", help="load a TorchScript codec, which can run any code"
    )
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    args = parser.parse_args()
    config = load_config(args.config, args.overrides)
    from training_sequence import inspect  # the tool beside this one; imports torch, which takes seconds

    inspect(args, config)


if __name__ == "__main__":
    main_guard(main)
