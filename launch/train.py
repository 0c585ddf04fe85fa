"""Train one YAML: `deepspeed launch/train.py --config RUN.yaml [section.key=value ...] [--resume ...]`.

Works the same under `torchrun`, under `srun` (one task a rank) and as a plain single process. Inside a Slurm
allocation `deepspeed` trains on all of its nodes. launch/slurm/train.sbatch is the job script.
"""

from __future__ import annotations

import argparse
import os

from megatv.log import main_guard


def main() -> None:
    """Parse the command line, complete the launcher's environment and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="the run's YAML")
    parser.add_argument(
        "--resume", default="auto", help="auto (default): newest whole checkpoint; none; or a checkpoint"
    )
    parser.add_argument(
        "--trust-codec", action="store_true", help="load a TorchScript codec, which can run any code"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # injected by the launcher
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()

    from megatv.parallel.slurm import give_way_to_srun

    give_way_to_srun()
    from megatv.checkpoint.trust import remember
    from megatv.config import load_config
    from megatv.log import rank
    from megatv.parallel.environment import complete, prepare
    from megatv.parallel.orphan import stop_without_launcher

    stop_without_launcher()
    complete(os.environ)  # first, so that of all ranks only rank 0 tells of a bad config
    config = load_config(args.config, args.overrides)
    device = prepare()  # imports torch, which takes seconds
    if rank() == 0:
        remember(config)  # its checkpoints may name what their user has named
    from megatv.train import train  # imports DeepSpeed, which must find its environment complete

    train(config, args.resume, device, trust_codec=args.trust_codec)


if __name__ == "__main__":
    main_guard(main)
