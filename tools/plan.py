"""Plan a run on a cluster: what each GPU holds and sends, how long it may take, and which grids fit.

    python tools/plan.py --config configs/8b_sports.yaml --gpus 256 --gpu h100-80gb [--json FILE] [key=value]

Parameters are counted on the real model (a rank of each pipeline stage, on the meta device) and bytes follow
from them. Times are predictions from rates that are printed with them; those that were measured are named. No
step on several GPUs was measured. The config's own grid is shown first, then the fastest of all grids, then
why the others do not go. Where none goes, the nearest numbers of GPUs that work are said; the exit code is 2.
`tools/rehearse.py` then starts every rank of the grid that was chosen.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatv.config import Config, load_config
from megatv.log import main_guard

MAX_GPUS = 1_000_000


def main() -> None:
    """Search, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML of the run")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of the cluster")
    parser.add_argument("--gpu", default="h100-80gb", help="a100-80gb, h100-80gb, h200-141gb or b200-180gb")
    parser.add_argument("--best", type=int, default=5, help="how many grids to rank")
    parser.add_argument("--json", type=Path, help="write everything here as well")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    arguments = parser.parse_args()
    if arguments.json and not arguments.json.parent.is_dir():
        raise ValueError(f"--json {arguments.json}: give the name of a file in a folder that exists")
    if arguments.best < 1:
        raise ValueError(f"--best is {arguments.best}: it must be at least 1")
    if not 1 <= arguments.gpus <= MAX_GPUS:
        raise ValueError(f"--gpus is {arguments.gpus}: it must be from 1 to {MAX_GPUS:,}")
    report = make_report(arguments, load_config(arguments.config, arguments.overrides))
    print_report(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if not report["fitting"]:
        nearest = " and ".join(f"{count:,}" for count in report["nearest"]) or "none: see the reasons above"
        raise ValueError(f"no grid goes on {arguments.gpus:,} GPUs; the nearest numbers that work: {nearest}")


def make_report(arguments: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Plain data of the whole plan. ValueError for a config, a GPU or a number that cannot be planned."""
    from megatv.parallel.environment import prepare  # torch comes with it, and takes seconds

    prepare()  # before DeepSpeed, which comes with the planner, looks for an accelerator
    from megatv.model.cost import parameter_counts
    from megatv.plan.hardware import ASSUMPTIONS, GPUS
    from megatv.plan.search import nearest_counts, plan, search
    from megatv.plan.shapes import built_stage, unsplit

    if arguments.gpu not in GPUS:
        raise ValueError(f"--gpu {arguments.gpu} is unknown: choose one of {', '.join(GPUS)}")
    gpu, gpus = GPUS[arguments.gpu], arguments.gpus
    plans, refusals = search(config, gpu, gpus)
    own = plan(config, config.parallel, gpu, gpus)
    for best in plans[:1]:  # its first, middle and last stage as the engine builds them
        pp = best.config.parallel.pp
        for stage in sorted({0, pp // 2, pp - 1}):
            assert built_stage(best.config, gpus, stage) == best.shapes[stage]
    reasons = defaultdict(list)
    for refusal in refusals:
        reasons[refusal.reason].append(refusal.name)
    return {
        "config": str(arguments.config),
        "gpus": gpus,
        "gpu": asdict(gpu),
        "parameters": parameter_counts(unsplit(config)),
        "own": as_data(own),
        "best": [as_data(one) for one in plans[: arguments.best]],
        "fitting": len(plans),
        "nearest": [] if plans else nearest_counts(config, gpu, gpus),
        "refused": reasons,
        "assumptions": {name: asdict(value) for name, value in ASSUMPTIONS.items()},
    }


def as_data(one: Any) -> dict[str, Any]:
    """A Plan's figures or a Refusal's sentence."""
    if not hasattr(one, "prediction"):
        return {"grid": one.name, "refused": one.reason}
    return {
        "grid": one.name,
        "parallel": asdict(one.config.parallel),
        "dp": one.dp,
        "rows_per_gpu": one.config.accumulation(one.dp),
        "parameters_per_stage": [shape.parameters for shape in one.shapes],
        "blocks_per_stage": [shape.blocks for shape in one.shapes],
        "fullest_stage": one.fullest,
        "memory_bytes": one.memory,
        "traffic_per_step": [asdict(kind) for kind in one.traffic],
        "predicted": asdict(one.prediction),
    }


def print_report(report: dict[str, Any]) -> None:
    """The plan as tables."""
    total = sum(report["parameters"].values())
    print(f"{report['config']} on {report['gpus']} x {report['gpu']['name']}: {total:,} parameters")
    for part, count in report["parameters"].items():
        print(f"  {part:24}{count:>18,}")
    print("\nThe config's own grid")
    print_plan(report["own"])
    if report["best"]:
        print(f"\n{report['fitting']} grids fit. The fastest, as PREDICTED (unmeasured):")
        print(f"  {'grid':48}{'GB a GPU':>9}{'s a step':>9}{'MFU':>7}{'days':>7}{'GPU-hours':>11}")
    for one in report["best"]:
        guess = one["predicted"]
        print(
            f"  {one['grid']:48}{one['memory_bytes']['peak'] / 1e9:9.1f}{guess['step_seconds']:9.2f}"
            f"{guess['mfu']:7.1%}{guess['days']:7.1f}{guess['gpu_hours']:11,.0f}"
        )
    if report["best"]:
        print("\nThe first of them")
        print_plan(report["best"][0])
    print("\nGrids that do not go")
    for reason, names in report["refused"].items():
        print(f"  {reason}\n      {names[0]}" + (f"  and {len(names) - 1} more" if len(names) > 1 else ""))
    rates, gpu = report["assumptions"], report["gpu"]["name"]
    measured = {name: one for name, one in rates.items() if one["measured_on"] == gpu}
    print("\nMeasured on this GPU" + ("" if measured else ": nothing"))
    print_rates(measured)
    print("\nAssumed, not measured")
    print(f"  GPU: {report['gpu']['source']}")
    print_rates({name: one for name, one in rates.items() if name not in measured})


def print_rates(rates: dict[str, dict[str, Any]]) -> None:
    """A line for each, with its source and, where another GPU gave it, that GPU."""
    for name, one in rates.items():
        where = f" (measured on an {one['measured_on']})" if one["measured_on"] else ""
        print(f"  {name:18}{one['value']:>10g} {one['unit']}: {one['source']}{where}")


def print_plan(one: dict[str, Any]) -> None:
    """One grid: memory by part, traffic by kind, the step by part."""
    print(f"  {one['grid']}")
    if "refused" in one:
        print(f"  does not go: {one['refused']}")
        return
    stages = zip(one["blocks_per_stage"], one["parameters_per_stage"], strict=True)
    print(f"  rows a GPU and step: {one['rows_per_gpu']}")
    print("  weights a GPU, by stage (ranks of a stage hold the same shapes):")
    print("    " + ", ".join(f"{count:,} in {blocks} blocks" for blocks, count in stages))
    print(f"  GB on a GPU of stage {one['fullest_stage']}, the fullest")
    for part, size in one["memory_bytes"].items():
        if size:
            print(f"    {part:28}{size / 1e9:10.2f}")
    print("  GB sent by a GPU in a step")
    for kind in one["traffic_per_step"]:
        print(f"    {kind['kind']:28}{kind['sent'] / 1e9:10.2f}")
    guess = one["predicted"]
    print(f"  PREDICTED, unmeasured: {guess['step_seconds']:.2f} s a step, MFU {guess['mfu']:.1%},")
    print(
        f"  {guess['days']:.1f} days, {guess['gpu_hours']:,.0f} GPU-hours for the whole schedule; of a step"
    )
    for part, seconds in guess["parts"].items():
        if seconds:
            print(f"    {part:28}{seconds:10.2f} s")


if __name__ == "__main__":
    main_guard(main)
