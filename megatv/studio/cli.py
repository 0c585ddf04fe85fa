"""The studio on this machine: `python -m megatv.studio --checkpoint RUN`, then open what it says."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from megatv.checkpoint.trust import Trust
from megatv.choices import PRECISION_CHOICES
from megatv.log import main_guard


def main(argv: Sequence[str] | None = None) -> None:
    """Load, listen, serve until Ctrl-C. Raises ValueError with one sentence for any bad input."""
    args = _parser().parse_args(argv)
    from megatv.studio.serve import serve  # imports torch, which takes seconds

    serve(args)


def command() -> None:
    """`main` with errors as one sentence."""
    main_guard(main)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m megatv.studio", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="a checkpoint directory, or a run (its newest checkpoint)")
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    add("--port", type=int, default=8000, help="0: any free one")
    add("--public-name", metavar="NAME", help="name under which a proxy on this machine serves the page")
    add("--weights", choices=["auto", "ema", "model"], default="auto", help="auto: averaged ones if saved")
    add("--precision", choices=PRECISION_CHOICES, default="auto", help="auto: bf16 on a GPU, fp32 on a CPU")
    add("--device", help="default: a GPU, or the CPU where there is none")
    Trust.add_options(parser)
    return parser
