"""The data engine measured beside its peers and beside what H100s need: JSON and tables.

    python tools/bench_data.py --videos DIR --out data.json    # everything; minutes on two cores
    python tools/bench_data.py --only loader consumer --mfu 0.4
    python tools/bench_data.py --small                         # tiny, proves that it runs

decode    one clip by PyAV, DALI (on the CPU) and torchcodec; without --videos a synthetic one
stages    the stages of configs/data/sports.yaml, and the methods that could stand in their places
loader    sequences/s of one loader process at the geometry of configs/8b_sports.yaml and 3b_csgo.yaml, and
          its head-room: that over what one H100 needs at --mfu, and over what the GPUs of one model need
first     from opening shards to the first batch
index     opening an index of millions of samples, planning a step in it, and the memory that takes
consumer  how long the simulated GPUs of a node wait for their loaders

Shards hold random latents or synthetic clips, which is fine for rates, and lie in the page cache. Rates are
medians after a warm-up; those per CPU second hold on a shared machine too. Whatever is not installed is
named and left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as launchers set it; before torch is imported

import bench_data_index
from bench_data_timing import Row, Tables, table
from megatv.choices import TOY_WORLD
from megatv.log import main_guard, read_metrics, say

SECTIONS = ("decode", "stages", "loader", "first", "index", "consumer")
PACKAGES = (
    "numpy",
    "torch",
    "av",
    "nvidia-dali-cuda130",
    "torchcodec",
    "mosaicml-streaming",
    "opencv-python-headless",
)


def main() -> None:
    """Measure, print tables, write the JSON."""
    args = _arguments()
    if args.out and not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: give the name of a file in a folder that exists")
    if not 0 < args.mfu <= 1:
        raise ValueError(f"--mfu {args.mfu:g}: is a share of the peak, above 0 and at most 1")
    if min(args.index_samples or [1]) < 1:
        raise ValueError("--index-samples: every number must be at least 1")
    import torch  # which takes seconds

    torch.set_num_threads(1)
    machine = _machine()
    report: dict[str, Any] = {"machine": machine}
    say(", ".join(f"{key} {value}" for key, value in machine.items()))
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        for section in args.only:
            tables = measure(section, args, Path(folder))
            for title, rows in tables.items():
                say(table(title, rows))
            report[section] = tables
            _write(args.out, report)
    if args.metrics:
        title, rows = "data wait of a run", [waits(args.metrics)]
        report["run"] = {title: rows}
        say(table(title, rows))
        _write(args.out, report)


def measure(section: str, args: argparse.Namespace, work: Path) -> Tables:
    """The tables of one section; what it writes lies in `work`, where later sections find it again."""
    import bench_data_loader  # these import torch
    import bench_data_video

    small = args.small
    repeats = 1 if small else 5
    if section in ("decode", "stages"):
        videos = args.videos or work / "videos"
        if not videos.exists() and not args.videos:
            bench_data_video.synthetic_video(videos, small)
        if section == "decode":
            return bench_data_video.decode(videos, repeats)
        return bench_data_video.curation(videos, work, 1 if small else 3)
    setup = bench_data_loader.Setup(
        ("toy_world",) if small else ("8b_sports", "3b_csgo"),
        tokenizer=args.tokenizer,
        mfu=args.mfu,
        work=work,
        samples=16 if small else 64,
        steps=1 if small else 12,
    )
    if section == "index":
        name = setup.names[0]
        overrides = ["codec={kind: dct}", f"tokenizer.path={args.tokenizer}", "batch.examples=512"]
        sizes = args.index_samples or ([4000] if small else [1_000_000, 10_000_000])
        return bench_data_index.index(sizes, setup.file(name), overrides, work)
    if section == "consumer":
        return bench_data_loader.consumer(setup, 2 if small else bench_data_loader.NODE)
    return {"loader": bench_data_loader.loader, "first": bench_data_loader.first}[section](setup)


def _write(out: Path | None, report: dict[str, Any]) -> None:
    """What there is so far: the whole takes minutes."""
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")


def waits(path: Path) -> Row:
    """Data wait in percent of a run's time, by its metrics.jsonl, and the same without its first step."""
    records = [record for record in read_metrics(path) if record.keys() >= {"data_wait", "seconds"}]
    if len(records) < 2 or sum(record["seconds"] for record in records[1:]) <= 0:
        raise ValueError(f"--metrics {path}: holds fewer than two steps; name the metrics.jsonl of a run")

    def percent(records: list[dict]) -> float:
        return 100 * sum(r["data_wait"] * r["seconds"] for r in records) / sum(r["seconds"] for r in records)

    return {"steps": len(records), "wait_percent": percent(records), "after_first_step": percent(records[1:])}


def _machine() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    cpu = platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        models = [
            line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = models[0] if models else cpu
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **found,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="these sections only")
    parser.add_argument("--videos", type=Path, metavar="DIR", help="videos for decode and stages")
    parser.add_argument("--tokenizer", default=TOY_WORLD, metavar="FILE", help="such as Llama-3's")
    parser.add_argument("--mfu", type=float, default=0.5, help="share of the peak that the GPUs reach")
    parser.add_argument("--index-samples", type=int, nargs="+", metavar="N", help="default: 1 and 10 million")
    parser.add_argument("--metrics", type=Path, metavar="FILE", help="metrics.jsonl of a run: its data wait")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where temporary files go, about 2 GB")
    parser.add_argument("--small", action="store_true", help="tiny shapes, in a minute")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    return parser.parse_args()


if __name__ == "__main__":
    main_guard(main)
