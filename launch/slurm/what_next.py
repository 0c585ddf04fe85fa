"""After a run has ended in a Slurm job: is it finished, does it come back, or must a person look first?

    python launch/slurm/what_next.py --exit-code CODE --config RUN.yaml [section.key=value ...]

Exit code 0: finished; 75: put the job back into the queue; 1: a person must look. What counts is the newest
checkpoint, not the exit code: a run that was preempted leaves with 0, and so does a launcher that was killed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatv.config import Config, load_config
from megatv.log import main_guard
from megatv.regular_file import read_bytes, write_file
from megatv.untrusted import parse_json

FINISHED, COME_BACK, LOOK = 0, 75, 1
BAD_INPUT = 2
"""Exit code of errors that come again until somebody changes something."""
TRIES = 3
"""Ends in a row at one checkpoint until the run is given up: a loss of a node is survived, a loop is not."""


def main() -> int:
    """Say what is next and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--exit-code", type=int, required=True, help="what the launcher ended with")
    parser.add_argument("--config", required=True, help="the run's YAML")
    parser.add_argument("--resume", help="as given to launch/train.py; does not matter here")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    code, sentence = what_next(load_config(args.config, args.overrides), args.exit_code)
    print(f"[slurm] {sentence}", flush=True)
    return code


def what_next(config: Config, exit_code: int) -> tuple[int, str]:
    """FINISHED, COME_BACK or LOOK, with the sentence for the log."""
    from megatv.checkpoint import store  # imports torch, which takes seconds

    run = Path(config.run.dir)
    saved = store.steps(run)
    step = int(saved[-1].name.removeprefix("step_")) if saved else 0
    at = f"{run}: step {step} of {config.run.steps} is saved"
    if step >= config.run.steps:
        return FINISHED, f"{at}; the run is finished"
    if exit_code == BAD_INPUT:
        return LOOK, f"{at}; the error above comes again until it is put right, then submit the same command"
    tries = _count(run / "ends.json", step)
    if tries >= TRIES:
        return LOOK, (
            f"{at}; the run ended {tries} times without getting further (exit code {exit_code}), so it does "
            "not come back by itself: see above, then submit the same command"
        )
    how = "stopped" if exit_code == 0 else f"died (exit code {exit_code})"
    return COME_BACK, f"{at}; the run {how} and goes back into the queue"


def _count(file: Path, step: int) -> int:
    """How many times in a row the run has ended with `step` as its newest checkpoint, this one included."""
    try:
        before = parse_json(read_bytes(file))
    except (OSError, ValueError):  # none yet, or nothing that this program wrote: count anew
        before = None
    ends = 1
    if isinstance(before, dict) and before.get("step") == step and type(before.get("ends")) is int:
        ends += before["ends"]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps({"step": step, "ends": ends}))
    except OSError as error:
        raise ValueError(f"{file}: cannot be written ({error.strerror}); free or mount it") from None
    return ends


if __name__ == "__main__":
    main_guard(main)
