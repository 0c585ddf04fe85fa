"""What guidance does to a model of the toy world: words obeyed, quality of the pictures, by scale.

    python tools/sweep_guidance.py --checkpoint runs/toy_world --out guidance.json [--cfg 1 1.5 2 3 5]

Classifier-free guidance draws with v = v_u + s (v_c - v_u), from the sequence with its words and the one
without (TV2TV footnote 5); s = 1 is no guidance. A model learns sequences without words from samples whose
text was dropped: the checkpoint must have been trained with `sequence.text_dropout` above 0. Every scale is
scored on the same starts with the same seeds, as `score_toy_world.py` does it. Prints a table (Markdown) and
writes all scores as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from typing import TYPE_CHECKING, Any

from megatv.checkpoint.trust import Trust
from megatv.log import main_guard, say
from megatv.regular_file import write_file
from score_toy_world import check_scoring, scoring_parser  # the tool beside this one

if TYPE_CHECKING:
    from megatv.sample.sampler import Sampler

FOLLOWED = ("all", "turn", "move", "jump", "shoot", "reload")


def main() -> None:
    """Score at every scale, print, write."""
    parser = scoring_parser(__doc__)
    parser.add_argument("--cfg", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 5.0], help="the scales")
    args = parser.parse_args()
    check_scoring(args)
    for scale in args.cfg:
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"--cfg {scale:g}: must be a number of at least 0")
    # these import torch, which takes seconds
    from megatv.eval.toy_checkpoint import score
    from megatv.eval.toy_runs import machine
    from megatv.sample.sampler import Sampler, some_device

    device = args.device or some_device()
    sampler = Sampler.from_checkpoint(args.checkpoint, device, trust=Trust.given(args))
    require_guidance(sampler, args.checkpoint)
    record: dict[str, Any] = {
        "checkpoint": args.checkpoint,
        "step": sampler.step,
        "text_dropout": sampler.config.sequence.text_dropout,
        "starts": args.starts,
        "seed": args.seed,
        "machine": machine(device),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "scales": [],
    }
    for scale in args.cfg:
        say(f"== cfg {scale:g}")
        settings = dataclasses.replace(sampler.config.sample, cfg=scale)
        scores = score(sampler, args.starts, args.batch, args.seed, settings)
        record["scales"].append({"cfg": scale, **scores})
    print(table(record))
    if args.out:
        write_file(args.out, json.dumps(record, indent=1) + "\n")


def require_guidance(sampler: Sampler, checkpoint: str) -> None:
    """Raise ValueError for a model that guidance cannot be tried on."""
    sequence = sampler.config.sequence
    if sequence.mode == "t2v":
        raise ValueError(
            f"{checkpoint}: a t2v model has no words that could be followed; use tv2tv or think2v"
        )
    if sequence.text_dropout == 0:
        raise ValueError(
            f"{checkpoint}: was trained with sequence.text_dropout 0 and has never seen a sequence without "
            "words, which guidance needs; train with text_dropout above 0, such as 0.1"
        )


def table(record: dict[str, Any]) -> str:
    """The scores for people, one row a scale, as Markdown."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    followed = [f"... {name}" for name in FOLLOWED[1:]]
    head = ["cfg", "words followed", *followed, "interventions done", "PSNR", "impossible transitions"]
    rows = [head, ["---"] * len(head)]
    for one in record["scales"]:
        rows.append(
            [
                f"{one['cfg']:g}",
                *(percent(one["words_followed"][name]["mean"]) for name in FOLLOWED),
                percent(one["interventions_done_mean"]),
                f"{one['psnr']:.2f} dB",
                percent(one["impossible_transitions"]["mean"]),
            ]
        )
    codec = record["scales"][0]["psnr_of_codec"]
    note = [
        f"{record['checkpoint']}, step {record['step']}, text dropout {record['text_dropout']:g}",
        f"{record['starts']} starts, seed {record['seed']}",
        f"PSNR to the nearest valid frame (codec: {codec:.2f} dB)",
        f"{record['machine']}, {record['date']}",
    ]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", "; ".join(note)])


if __name__ == "__main__":
    main_guard(main)
