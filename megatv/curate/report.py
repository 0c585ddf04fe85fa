"""One HTML page, complete in itself: what every stage kept and dropped, why, how fast, with thumbnails."""

from __future__ import annotations

import html
import os
from pathlib import Path

from megatv.curate.endpoint import jpeg_base64
from megatv.curate.engine import Summary
from megatv.curate.manifest import Item, Record
from megatv.curate.words import picture
from megatv.data.video import probe

CARDS = 40
"""Of each status of each stage; the page says how many more there are, the manifests have all."""
WIDTH_PIXELS = 160
STYLE = """body{font:14px sans-serif;margin:2em;max-width:1200px}table{border-collapse:collapse}
td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:right}
td:first-child,th:first-child{text-align:left}.cards{display:flex;flex-wrap:wrap;gap:10px}
.card{width:230px;border:2px solid;padding:6px;overflow-wrap:anywhere}
.kept{border-color:#2a7d2a}.dropped{border-color:#c77800}.failed{border-color:#b00020}img{display:block}
small{color:#555}"""


def write_report(
    path: Path, videos: Path, results: list[tuple[list[Item], list[Record], Summary]], notes: list[str]
) -> None:
    """Write the page from every stage's items, records and summary, atomically. notes: lines for the top."""
    rows, sections = [], []
    for items, records, summary in results:
        busy = sum(record.seconds for record in records)
        speed = f"{len(records) / busy:.2f}" if busy else "-"
        cells = (summary.inputs, summary.kept, summary.dropped, summary.failed, summary.outputs, speed)
        rows.append(f"<tr><td>{summary.stage}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        sections.append(f"<h2>{summary.stage}</h2>")
        for status in ("failed", "dropped", "kept"):
            chosen = [p for p in zip(items, records, strict=True) if p[1].status == status]
            if chosen:
                sections.append(f"<h3>{status}: {len(chosen)}</h3><div class=cards>")
                sections += [_card(item, record, videos) for item, record in chosen[:CARDS]]
                sections.append("</div>")
            if len(chosen) > CARDS:
                sections.append(f"<p>and {len(chosen) - CARDS} more, see the stage's manifest</p>")
    page = (
        f"<!doctype html><meta charset=utf-8><title>Data set</title><style>{STYLE}</style><h1>Data set</h1>"
        f"{''.join(f'<p>{html.escape(note)}</p>' for note in notes)}<table><tr><th>stage</th><th>in</th>"
        "<th>kept</th><th>dropped</th><th>failed</th><th>out</th><th>items per worker second</th></tr>"
        f"{''.join(rows)}</table>{''.join(sections)}"
    )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)


def _card(item: Item, record: Record, videos: Path) -> str:
    facts = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in record.facts.items()
    )
    lines = [f"<b>{html.escape(record.id)}</b>", _thumbnail(item, videos)]
    lines += [f"<br>{html.escape(record.reason)}"] if record.reason else []
    lines += [f"<br><small>{html.escape(facts)}</small>"] if facts else []
    for output in record.outputs:
        if record.outputs and "captions" in output and "file" not in output:
            lines.append(f"<p><i>{html.escape(output['meta_caption'])}</i></p>")
            lines += [f"<p>{c['start']:.2f} s: {html.escape(c['text'])}</p>" for c in output["captions"]]
    return f"<div class='card {record.status}'>{''.join(lines)}</div>"


def _thumbnail(item: Item, videos: Path) -> str:
    """A frame from the item's middle; words where there is none."""
    try:
        if "info" not in item:
            info = probe(videos / item["video"])
            item = {**item, "info": {"width": info.width, "height": info.height, "seconds": info.seconds}}
        time = (item.get("start", 0.0) + item.get("end", item["info"]["seconds"])) / 2
        jpeg = jpeg_base64(picture(item, time, videos, WIDTH_PIXELS), 70)
    except ValueError:
        return "<p>(no picture)</p>"
    return f"<img src='data:image/jpeg;base64,{jpeg}'>"
