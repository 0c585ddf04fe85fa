"""The report of `experiment.py`: plots as PNG files, and one HTML page that holds them.

python tools/experiment_report.py OUT     # draw the plots and the page again from OUT/scores.json
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

from experiment_plots import draw  # the tool beside this one
from megatv.curate.page import Html, page, table, tag
from megatv.log import main_guard
from megatv.untrusted import parse_json

from PIL import Image

NAMES = {"tv2tv": "TV2TV", "t2v": "T2V", "think2v": "Think2V", "data": "true episodes"}
CLAIMS = (
    ("done", "does what changed words say more often", 1),
    ("alone_psnr", "makes clearer short videos (PSNR to the nearest valid frame)", 1),
    ("long_psnr", "makes clearer long videos (PSNR to the nearest valid frame)", 1),
    ("long_impossible", "breaks the world's rules less in long videos", -1),
    ("told_psnr", "shows what known words lead to (PSNR against the simulator)", 1),
    ("alone_frechet", "comes nearer to the data's distribution in short videos", -1),
    ("own_frechet", "comes nearer to it where words are sampled at temperature 1", -1),
    ("long_frechet", "comes nearer to the data's distribution in long videos", -1),
)
"""Figure, what it means to be ahead in it, and whether more (1) or less (-1) is better."""


def write_report(out: Path, scores: dict[str, Any], sheets: dict[str, Image.Image]) -> None:
    """Write OUT/report.html and its pictures. scores: of `experiment.py`; sheets: contact sheets by name."""
    for name, sheet in sheets.items():
        sheet.convert("RGB").quantize(256).save(out / f"sheet_{name}.png", optimize=True)
    draw(out, scores, NAMES)
    partial = out / ".report.html.partial"
    partial.write_text(_page(out, scores), encoding="utf-8")
    os.replace(partial, out / "report.html")


def _page(out: Path, scores: dict[str, Any]) -> str:
    return page(
        "TV2TV against T2V and Think2V",
        tag("h1", "TV2TV against T2V and Think2V"),
        tag("p", how(scores), class_="soft small"),
        tag("h2", "What it shows"),
        tag("ul", *(tag("li", line) for line in verdicts(scores))),
        tag("h2", "Words changed at two times (TV2TV figure 5)"),
        _picture(out, "interventions"),
        _interventions(scores),
        tag("h2", "Pair by pair (TV2TV figure 4)"),
        tag(
            "p",
            "The video with the higher mean PSNR to the nearest valid frame wins; a difference within the "
            "band is a tie. The shares move with the band, so there are three; 1 dB was chosen beforehand.",
        ),
        _picture(out, "pairwise"),
        _pairs(scores),
        tag("h2", "Drift over time"),
        tag(
            "p",
            f"Videos of {scores['long_seconds']} s from models trained on {scores['trained_frames']} frames, "
            "made in sliding windows. Pixel and codec statistics: distance of each second's means and "
            "spreads, channel by channel, from those of true episodes of the same length. These are coded in "
            "groups of 49 frames: where a group begins in mid-jump or mid-reload, which the codec did not "
            "learn, even they are misread now and then.",
        ),
        _picture(out, "drift"),
        tag("h2", "All figures"),
        tag(
            "p",
            "With 95 % intervals: bootstrap over starts, differences paired by start. The Frechet distance "
            "is in the features of a small network that tells the player's action from a chunk's pictures; "
            f"of true chunks it tells {_parts(scores['eye_accuracy'])}. Its row for true episodes is the "
            "distance of as many other true episodes. Below temperature 1 rare words, and with them rare "
            "actions, become rarer, which this distance sees: so it stands here at temperature 1, too. Told "
            "all words: every chunk has the words of the true episode, so the simulator's own frames are "
            "what should be seen.",
        ),
        _figures(scores),
        tag("h2", "The same start"),
        _picture(out, "sheet_arms"),
        _picture(out, "sheet_steered"),
        tag("h2", "The runs"),
        _runs(scores),
    )


def how(scores: dict[str, Any]) -> str:
    """One paragraph: what was run, where and when."""
    return (
        f"{scores['date']}, {scores['machine']}. {scores['config']}: every run {scores['steps']:,} steps of "
        f"{scores['examples_a_step']} examples, seeds {', '.join(map(str, scores['seeds']))}; runs differ in "
        f"sequence.mode alone. {scores['starts']} held-out starts, the same for all: the meta-prompt and one "
        "frame, whose words the models say themselves, as all others (TV2TV figure 3). "
        f"{scores['euler_steps']} Euler steps a chunk. Ended early: "
        + ", ".join(f"{NAMES[mode]} {count}" for mode, count in scores["ended_early"].items())
        + "."
    )


def verdicts(scores: dict[str, Any]) -> list[str]:
    """A sentence a claim and rival: ahead, behind, or no difference that can be told from chance."""
    rows = {row["name"]: row for row in scores["figures"]}
    lines = []
    for name, claim, sign in CLAIMS:
        known = {m: d for m, d in rows[name]["ahead_of"].items() if d["value"] is not None}
        for rival, apart in known.items():
            sides = [sign * apart[side] for side in ("low", "high") if apart[side] is not None]
            low, high = min(sides, default=0), max(sides, default=0)  # one start has no interval
            word = "Yes" if low > 0 else "No, the reverse" if high < 0 else "Cannot be told"
            ours, theirs = (_value(rows[name]["arms"][mode], rows[name]["unit"]) for mode in ("tv2tv", rival))
            lines.append(
                f"{word}: TV2TV {claim} than {NAMES[rival]}: {ours} against {theirs}, a difference of "
                f"{_signed(apart, rows[name]['unit'])}."
            )
    return lines


def _interventions(scores: dict[str, Any]) -> Html:
    rows: list[list[object]] = []
    for row in scores["interventions"]:
        for mode, cell in row["arms"].items():
            rows.append(
                [
                    f"{row['action'].replace('_', ' ')} at {row['seconds']:.2f} s",
                    NAMES[mode],
                    _share(cell["done"]),
                    _share(cell["without"]),
                    _value(cell["psnr"], "dB"),
                ]
            )
    return table(["words", "arm", "done", "shown without them (no-op)", "PSNR from there on"], rows)


def _pairs(scores: dict[str, Any]) -> Html:
    rows: list[list[object]] = [
        [
            f"{row['videos']}, against {NAMES[row['against']]}",
            f"{row['band']:g} dB",
            *(_share(row[outcome]) for outcome in ("win", "tie", "lose")),
        ]
        for row in scores["pairwise"]
    ]
    return table(["videos", "tie band", "TV2TV wins", "tie", "TV2TV loses"], rows)


def _figures(scores: dict[str, Any]) -> Html:
    arms = list(scores["ended_early"])
    rivals = [mode for mode in arms if mode != "tv2tv"]
    rows: list[list[object]] = []
    for row in scores["figures"]:
        unit = row["unit"]
        rows.append(
            [
                f"{row['label']}, {unit}" if unit else row["label"],
                _value(row["data"], unit),
                *(_value(row["arms"].get(mode), unit) for mode in arms),
                *(_signed(row["ahead_of"].get(mode), unit) for mode in rivals),
            ]
        )
    head = ["", NAMES["data"], *(NAMES[m] for m in arms), *(f"TV2TV - {NAMES[m]}" for m in rivals)]
    return table(head, rows)


def _runs(scores: dict[str, Any]) -> Html:
    rows: list[list[object]] = [
        [
            name,
            f"{run['training_seconds'] / 60:.1f} min",
            f"{run['measuring_seconds'] / 60:.1f} min",
            f"{run['val_ema_video_loss']:.3f}" if "val_ema_video_loss" in run else "-",
            f"{run['val_ema_text_loss']:.3f}" if run.get("val_ema_text_loss") is not None else "-",
        ]
        for name, run in scores["runs"].items()
    ]
    return table(["run", "training", "sampling and scoring", "validation loss, video", "text"], rows)


def _picture(out: Path, name: str) -> Html:
    data = base64.b64encode((out / f"{name}.png").read_bytes()).decode()
    return tag("img", src=f"data:image/png;base64,{data}", alt=name, style="max-width: 100%")


def _scaled(value: float, unit: str) -> str:
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.2f}"


def _value(estimate: dict[str, Any] | None, unit: str) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    if estimate["low"] is None:  # of one start
        return _scaled(estimate["value"], unit)
    value, low, high = (_scaled(estimate[key], unit) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _signed(estimate: dict[str, Any] | None, unit: str) -> str:
    text = _value(estimate, unit)
    return f"+{text}" if text[0].isdigit() else text


def _share(rate: dict[str, Any]) -> str:
    if not rate["n"]:
        return "-"
    mean, low, high = (100 * rate[key] for key in ("mean", "low", "high"))
    return f"{mean:.0f} % ({low:.0f} to {high:.0f}, n = {rate['n']})"


def _parts(accuracy: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in accuracy.items())


def main() -> None:
    """Draw again what is there."""
    if len(sys.argv) != 2 or not Path(sys.argv[1], "scores.json").is_file():
        raise ValueError("give the folder that experiment.py wrote: python tools/experiment_report.py OUT")
    out = Path(sys.argv[1])
    drawn = {path.stem.removeprefix("sheet_"): path for path in out.glob("sheet_*.png")}
    sheets = {name: Image.open(path, formats=["PNG"]).copy() for name, path in drawn.items()}
    write_report(out, parse_json((out / "scores.json").read_text()), sheets)


if __name__ == "__main__":
    main_guard(main)
