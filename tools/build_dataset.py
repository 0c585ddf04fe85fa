"""From a folder of raw videos to captioned, segmented examples in shards, with a report of every decision.

    python tools/build_dataset.py --videos DIR --out DIR --config configs/data/sports.yaml [key=value ...]

Stages: source, probe, shots, filters, clips, quality, segments, captions, export, shards. Each leaves a
manifest in OUT/manifests, so that the command may be interrupted (kill -9 too) and started again: finished
items are skipped, failed ones also unless --retry-failed. A file that changes is another item and is done
anew. OUT/report.html shows what was kept, dropped and failed, and why.

On several machines, all with megatv and the same versions of Python and Ray installed:

    ray start --head --port=6379                          # on the first
    ray start --address=FIRST:6379                        # on each other one
    python tools/build_dataset.py ... --ray-address FIRST:6379      # on any of them

--videos, --out, captions.words_from and embed.model must lie on a file system that all of them see under the
same paths. The endpoint's URL must answer from each: an https URL, since plain http is for the same machine
only, or http://localhost with a server (or a tunnel to one) on each. SSL_CERT_FILE names the certificate of
a cluster's own authority. Only the machine that runs the command writes manifests and makes the shards.

Videos and metadata may come from strangers: a name that leads out of --videos, by `..` or by a link, fails as
one item. So may the folder of an earlier run: links out of --out are refused, and its manifests are checked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatv.config import load_config
from megatv.curate.engine import Summary, run_stage, start_ray
from megatv.curate.manifest import Item, Manifest, Record, seconds_of
from megatv.curate.recipe import ShardSettings, load_recipe
from megatv.data.format import stores_whole_clips
from megatv.log import main_guard, say
from megatv.regular_file import write_file
from megatv.untrusted import inside, printable

if TYPE_CHECKING:
    from megatv.curate.report import Result

MAKE_SHARDS = Path(__file__).with_name("make_shards.py")
WORDS = ("meta_caption", "detailed_caption", "captions")
WRITTEN = ("manifests", "cache", "clips", "captions.jsonl", "shards", "shards.made_from", "report.html")
FAILURES_SAID = 20
USAGE = (
    "requests",
    "cached",
    "retries",
    "repairs",
    "uncounted",
    "prompt_tokens",
    "completion_tokens",
    "cost",
)


def main() -> None:
    """Run every stage, write captions.jsonl, the shards and the report."""
    args = _arguments()
    recipe = load_recipe(args.config, args.overrides)
    if not args.videos.is_dir():
        raise ValueError(f"--videos {args.videos}: is no folder")
    if recipe.shards:
        check_shard_settings(recipe.shards)
    # these import torch, which takes seconds
    from megatv.curate.report import write_report
    from megatv.curate.steps import Places, list_videos, stages

    places = Places(args.videos.resolve(), args.out.resolve())
    _check_links(places.out)
    items, chain = list_videos(places, recipe), stages(places, recipe)
    start_ray(args.ray_address)
    results: list[Result] = []
    with Manifest(places.out / "manifests" / "runs.jsonl") as runs:
        for stage in chain:
            manifest = places.out / "manifests" / f"{stage.name}.jsonl"
            records, summary = run_stage(stage, items, manifest, retry_failed=args.retry_failed)
            results.append((items, records, summary))
            _note_run(runs, summary)
            items = [output for record in records for output in record.outputs]
            if not items:
                break
        is_asked = recipe.judge or not recipe.captions.words_from
        notes = [_usage_line(results)] if is_asked else ["words of people; no model was asked"]
        if not items:
            notes.append(f"nothing is left after {results[-1][2].stage}: there are no shards")
        else:
            captions = write_captions(places.out / "captions.jsonl", items)
            if recipe.shards:
                note, summary = make_shards(places.out, captions, items, recipe.shards)
                notes.append(note)
                results.append(([], [], summary))
                _note_run(runs, summary)
    notes.insert(0, f"{places.videos} by {args.config}, {time.strftime('%Y-%m-%d %H:%M')}")
    speeds = _speeds(runs)
    write_report(places.out / "report.html", places.videos, results, speeds, notes)
    say("\n".join([*_failure_lines(results), *notes[1:], f"report: {places.out / 'report.html'}"]))


def _check_links(out: Path) -> None:
    """An output folder that came from elsewhere may hold links; nothing is written through them."""
    for name in WRITTEN:
        try:
            inside(out, name)
        except ValueError as error:
            raise ValueError(f"--out {out}: {error}; remove it, or name another folder") from None


def _note_run(runs: Manifest, summary: Summary) -> None:
    """Keep how long a stage took, for the report of later runs, which find it finished."""
    if summary.done_now:
        runs.append(Record(str(time.time_ns()), summary.stage, "kept", facts=asdict(summary)))


def _speeds(runs: Manifest) -> list[Summary]:
    try:
        return [Summary(**record.facts) for record in runs.records.values()]
    except TypeError:
        raise ValueError(f"{runs.path}: holds other facts than a stage's figures; delete it") from None


def _failure_lines(results: list[Result]) -> list[str]:
    """One for each failed item, those of earlier runs included."""
    lines = [
        printable(f"failed in {summary.stage}: {record.id}: {record.reason}", keep="")
        for _, records, summary in results
        for record in records
        if record.status == "failed"
    ]
    if len(lines) > FAILURES_SAID:
        lines = [*lines[:FAILURES_SAID], f"and {len(lines) - FAILURES_SAID} more failures, see the report"]
    return [*lines, "do failed items again with --retry-failed"] if lines else []


def write_captions(path: Path, items: list[Item]) -> Path:
    """The captions file of the exported clips, as `megatv.data.captions` describes it."""
    lines = [json.dumps(_caption_line(item)) + "\n" for item in items]
    write_file(path, "".join(lines))
    return path


def _caption_line(item: Item) -> dict[str, Any]:
    """One exported clip: its words, the score of the model if it has one, and where it comes from."""
    line = {"video": item["file"], **{key: item[key] for key in WORDS}}
    if "quality" in item:
        line["quality"] = {"model_score": item["quality"]}
    origin = {
        "from_video": item["video"],
        "clip_start_seconds": item["start"],
        "clip_end_seconds": item["end"],
    }
    return {**line, "source": origin}


def make_shards(out: Path, captions: Path, items: list[Item], settings: ShardSettings) -> tuple[str, Summary]:
    """Make OUT/shards by tools/make_shards.py unless they stand there from the same input; note, figures."""
    began = time.monotonic()
    shards, stamp = out / "shards", out / "shards.made_from"
    config = Path(settings.config)
    kind = f"{settings.store} {settings.crops}".encode()
    made_from = hashlib.sha256(captions.read_bytes() + config.read_bytes() + kind).hexdigest()
    if shards.is_dir() and stamp.is_file() and stamp.stat().st_size == 64 and stamp.read_text() == made_from:
        note = f"shards: {shards} (made before from the same clips and words)"
        return note, _shards_summary(shards, items, 0, began)
    stamp.unlink(missing_ok=True)
    if shards.is_dir():
        shutil.rmtree(shards)
    command = [sys.executable, str(MAKE_SHARDS), "--config", str(config), "--videos", str(out / "clips"),
               "--captions", str(captions), "--out", str(shards), "--device", settings.device,
               "--store", settings.store]  # fmt: skip
    if settings.crops:
        command += ["--crops", str(settings.crops)]
    done = subprocess.run(command, capture_output=True, text=True)
    if not shards.is_dir():
        raise ValueError(f"shards: {done.stderr.strip().splitlines()[-1] if done.stderr else 'failed'}")
    note = f"shards: {done.stdout.strip()}"
    if done.returncode:  # clips were damaged on the disk; without the stamp the next run tries again
        note += f"\n{done.stderr.strip()}"
    else:
        write_file(stamp, made_from)
    return note, _shards_summary(shards, items, len(items), began)


def check_shard_settings(settings: ShardSettings) -> None:
    """ValueError, before any work, for a run's config that cannot be read or does not go with the others."""
    if not Path(settings.config).is_file():
        raise ValueError(f"shards.config {settings.config}: is no file; name the YAML of a run")
    crop = load_config(settings.config).data.crop
    stores_whole_clips(crop, settings.store, settings.crops)


def _shards_summary(shards: Path, items: list[Item], done: int, began: float) -> Summary:
    from megatv.data.shards import Shards

    seconds = sum(map(seconds_of, items)) if done else 0.0
    count, wall = len(Shards(shards)), time.monotonic() - began
    return Summary("shards", len(items), len(items), 0, 0, count, done, seconds, wall)


def _usage_line(results: list[Result]) -> str:
    """Sums over all records that hold, those of earlier runs included."""
    records = [record for _, stage_records, _ in results for record in stage_records]
    sums = {name: sum(record.facts.get(name, 0) for record in records) for name in USAGE}
    return "model: " + ", ".join(f"{name} {value:g}" for name, value in sums.items())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder of raw videos")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything is written here")
    parser.add_argument(
        "--config", type=Path, required=True, metavar="YAML", help="such as configs/data/sports.yaml"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="of a Ray cluster; default: this machine")
    parser.add_argument("--retry-failed", action="store_true", help="do failed items again")
    return parser.parse_args()


if __name__ == "__main__":
    main_guard(main)
