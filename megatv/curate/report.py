"""One HTML page, complete in itself: what is left after each stage, what was made, what fell, and why.

All of it is read from the stages' records, those of earlier runs included; pictures come from the videos.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatv.curate.endpoint import Usage, jpeg_base64
from megatv.curate.engine import Summary
from megatv.curate.manifest import Item, Record, seconds_of
from megatv.curate.page import Html, join, page, table, tag
from megatv.curate.words import picture
from megatv.data.video import probe
from megatv.regular_file import write_file
from megatv.untrusted import inside

CLIPS, VIDEOS, FAILURES = 40, 60, 200
"""Shown at most; the page says how many more there are, the manifests have all."""
WIDTH_PIXELS = 240
Result = tuple[list[Item], list[Record], Summary]
"""A stage's items, their records in the same order, and the figures of this run."""


def write_report(
    path: Path, videos: Path, results: Sequence[Result], runs: Sequence[Summary], notes: Sequence[str]
) -> None:
    """Write the page, atomically.

    results: every stage that was reached. runs: figures of all runs that did something, for the speeds.
    notes: lines for the top.
    """
    body = page(
        "Data set",
        tag("h1", "Data set"),
        *(tag("p", note, class_="soft small") for note in notes),
        _tiles(results),
        _funnel(results),
        *_failures(results),
        *_reasons(results),
        *_clips(results, videos),
        *_videos(results, videos),
        _speeds(results, runs),
        *_cost(results),
    )
    write_file(path, body)


def _tiles(results: Sequence[Result]) -> Html:
    probed = [o for _, records, s in results if s.stage == "probe" for r in records for o in r.outputs]
    made = list(_made(results))
    figures = [
        (results[0][2].inputs, "videos", ""),
        (f"{sum(map(seconds_of, probed)):.1f} s", "of video read", ""),
        (len(made), "clips made", ""),
        (f"{sum(map(seconds_of, made)):.1f} s", "of clips", ""),
        (sum(len(item["captions"]) for item in made), "captions", ""),
        *((s.outputs, "examples", "") for *_, s in results if s.stage == "shards"),
        *((n, "failures", " failed") for n in [sum(s.failed for *_, s in results)] if n),
    ]
    return tag(
        "div",
        *(
            tag("div", tag("b", n), tag("span", name, class_="soft"), class_=f"tile{c}")
            for n, name, c in figures
        ),
        class_="tiles",
    )


def _funnel(results: Sequence[Result]) -> Html:
    """A bar a stage: the seconds of video that it passes on, after those that it took away."""
    seconds = [sum(seconds_of(o) for r in records for o in r.outputs) for _, records, _ in results]
    whole = max([*seconds, 1e-9])
    steps, before = [], whole
    for (_, _, summary), after in zip(results, seconds, strict=True):
        bars, amount = [], f", {after:.1f} s"
        if not after and (summary.stage == "shards" or before == whole):
            amount = ""  # shards count examples; nobody knows a video's length before its header was read
        else:
            lost = max(0.0, before - after)
            bars = [(after / whole, "kept"), (lost / whole, "lost")]
            before = after
        counts = [f"{summary.inputs} in → ", tag("b", f"{summary.outputs} out"), amount]
        for status in ("dropped", "failed"):
            if number := getattr(summary, status):
                counts += [" · ", tag("span", f"{number} {status}", class_=status)]
        bar = [tag("i", class_=kind, style=f"width:{100 * share:.2f}%") for share, kind in bars]
        cells = [
            tag("b", summary.stage),
            tag("div", *bar, class_="bar"),
            tag("span", *counts, class_="counts small"),
        ]
        steps.append(tag("div", *cells, class_="step"))
    legend = tag(
        "p",
        tag("span", "seconds of video passed on", class_="kept"),
        tag("span", "taken away by this stage", class_="lost"),
        class_="legend small soft",
    )
    return join(tag("h2", "What is left after each stage"), tag("div", *steps, legend, class_="card"))


def _failures(results: Sequence[Result]) -> list[Html]:
    rows: list[list[object]] = [
        [summary.stage, record.id, record.reason]
        for _, records, summary in results
        for record in records
        if record.status == "failed"
    ]
    if not rows:
        return []
    note = "Skipped until the command is run with --retry-failed, or the file changes."
    return [
        tag("h2", "Failures"),
        tag("p", note, class_="note"),
        tag(
            "div", table(["stage", "item", "reason"], rows[:FAILURES]), *_more(rows, FAILURES), class_="card"
        ),
    ]


def _reasons(results: Sequence[Result]) -> list[Html]:
    """How often each reason was given, numbers aside; an item may have several."""
    counts: Counter[tuple[str, str]] = Counter()
    for _, records, summary in results:
        for record in records:
            if record.status == "dropped":
                counts.update((summary.stage, re.sub(r"-?\d+(\.\d+)?", "…", part)) for part in _parts(record))
    rows: list[list[object]] = [[stage, reason, number] for (stage, reason), number in counts.most_common()]
    if not rows:
        return []
    return [
        tag("h2", "Why items were dropped"),
        tag("div", table(["stage", "reason", "items"], rows), class_="card count"),
    ]


def _clips(results: Sequence[Result], videos: Path) -> list[Html]:
    made = list(_made(results))
    note = "A picture from the middle of each segment, captions that begin in it; ◆ begins at a key frame."
    cards = [_clip(item, videos) for item in made[:CLIPS]]
    return [tag("h2", "Clips"), tag("p", note, class_="note"), *cards, *_more(made, CLIPS)] if made else []


def _clip(item: Item, videos: Path) -> Html:
    score = f" · quality {item['quality']:g}" if "quality" in item else ""
    where = f"{item['start']:.2f} s to {item['end']:.2f} s of {item['video']}{score}"
    figures = []
    for start, end in item["segments"]:
        begin, stop = start - item["start"], end - item["start"]
        words = [c for c in item["captions"] if begin <= c["start"] < stop]
        mark = tag("span", "◆ ", class_="key") if start in item["key_frames"] else ""
        lines = [tag("div", tag("time", f"{c['start']:.2f} s "), c["text"]) for c in words]
        span = tag("div", mark, tag("time", f"{begin:.2f} to {stop:.2f} s"))
        caption = tag("figcaption", span, *(lines or [tag("div", "no new words", class_="soft")]))
        figures.append(tag("figure", _picture(item, (start + end) / 2, videos), caption))
    return tag(
        "div",
        tag("h3", item["meta_caption"]),
        tag("p", where, class_="soft small"),
        tag("p", item["detailed_caption"], class_="small") if item["detailed_caption"] else "",
        tag("div", *figures, class_="clip"),
        class_="card",
    )


def _videos(results: Sequence[Result], videos: Path) -> list[Html]:
    """Every video's line of time and what was said of its parts; those with losses first."""
    told: defaultdict[str, list[tuple[str, Item, Record]]] = defaultdict(list)
    for items, records, summary in results:
        for item, record in zip(items, records, strict=True):
            told[item["video"]].append((summary.stage, item, record))
    names = sorted(told, key=lambda name: all(not record.reason for *_, record in told[name]))
    legend = [("kept", "in a clip"), ("dropped", "dropped"), ("failed", "failed"), ("none", "not chosen")]
    return [
        tag("h2", "Videos"),
        tag("p", *(tag("span", text, class_=kind) for kind, text in legend), class_="legend small soft"),
        *(_video(name, told[name], videos) for name in names[:VIDEOS]),
        *_more(names, VIDEOS),
    ]


def _video(name: str, told: list[tuple[str, Item, Record]], videos: Path) -> Html:
    info: dict[str, Any] = next(
        (i["info"] for _, item, r in told for i in (item, *r.outputs) if "info" in i), {}
    )
    seconds = max(info.get("seconds", 0.0), 1e-9)
    marks, chips = [], []
    for stage, item, record in told:
        if record.status != "kept" and "start" in item:
            marks.append(_mark(item, record.status, seconds, record.reason))
        if stage == "export":
            marks += [_mark(clip, "kept", seconds, clip["meta_caption"]) for clip in record.outputs]
        if record.reason:
            span = f" {item['start']:.2f} to {item['end']:.2f} s" if "start" in item else ""
            words = [tag("span", part, class_=f"chip {record.status}") for part in _parts(record)]
            fate = "kept in part" if record.status == "kept" else record.status
            chips.append(tag("div", tag("b", fate), f" by {stage}{span}", *words, class_="reason small"))
    about = ""
    if info:
        about = f"{info['width']} x {info['height']}, {info['rate']:.4g} frames/s, {info['seconds']:.2f} s"
    return tag(
        "div",
        _picture({"video": name}, info.get("seconds", 0.0) / 2, videos),
        tag(
            "div",
            tag("h3", name),
            tag("p", about, class_="soft small"),
            tag("div", *marks, class_="line") if info else "",
            *(chips or [tag("p", "nothing was dropped", class_="soft small")]),
        ),
        class_="card video",
    )


def _mark(item: Item, kind: str, seconds: float, title: str) -> Html:
    left, width = 100 * item["start"] / seconds, 100 * seconds_of(item) / seconds
    return tag("i", class_=kind, title=title, style=f"left:{left:.2f}%;width:{width:.2f}%")


def _speeds(results: Sequence[Result], runs: Sequence[Summary]) -> Html:
    rows: list[list[object]] = []
    for _, records, summary in results:
        mine = [run for run in runs if run.stage == summary.stage]
        done, wall = sum(run.done_now for run in mine), sum(run.wall_seconds for run in mine)
        seconds = sum(run.video_seconds for run in mine)
        busy = sum(record.seconds for record in records)
        rows.append(
            [
                summary.stage,
                done or "-",
                f"{wall:.1f}" if done else "-",
                f"{done / wall:.2f}" if done else "-",
                f"{seconds / wall:.2f}" if seconds else "-",
                f"{busy:.1f}" if busy else "-",
            ]
        )
    head = ["stage", "items done", "wall-clock s", "items/s", "s of video per s", "s of all workers"]
    note = "Over all runs that ended the stage. Wall-clock time includes the start of workers and models."
    return join(
        tag("h2", "Speed"),
        tag("p", note, class_="note"),
        tag("div", table(head, rows), class_="card numbers"),
    )


def _cost(results: Sequence[Result]) -> list[Html]:
    """What the model's server counted, by stage; nothing where no model was asked."""
    names = list(vars(Usage()))
    rows = []
    for _, records, summary in results:
        sums = [sum(record.facts.get(name, 0) for record in records) for name in names]
        if any(sums):
            rows.append([summary.stage, *sums])
    if not rows:
        return []
    total = ["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])]
    cells: list[list[object]] = [[f"{v:,.6g}" if isinstance(v, float) else v if isinstance(v, str) else f"{v:,}" for v in row] for row in [*rows, total]]  # fmt: skip  # noqa: E501
    head = ["stage", *(name.replace("_", " ") for name in names)]
    return [tag("h2", "What the model cost"), tag("div", table(head, cells), class_="card numbers")]


def _made(results: Sequence[Result]) -> Iterator[Item]:
    """Exported clips."""
    for _, records, summary in results:
        if summary.stage == "export":
            yield from (output for record in records for output in record.outputs)


def _parts(record: Record) -> list[str]:
    return record.reason.split("; ")


def _more(things: Sequence[object], shown: int) -> list[Html]:
    if len(things) <= shown:
        return []
    return [tag("p", f"and {len(things) - shown} more: see the manifests", class_="soft")]


def _picture(item: Item, time: float, videos: Path) -> Html:
    """What is on screen at a time of the item's video; words where there is nothing to see."""
    try:
        if "info" not in item:
            item = {**item, "info": vars(probe(inside(videos, item["video"])))}
        jpeg = jpeg_base64(picture(item, time, videos, WIDTH_PIXELS), 75)
    except ValueError:
        return tag("div", "no picture", class_="blank small")
    return tag("img", src=f"data:image/jpeg;base64,{jpeg}", alt="")
