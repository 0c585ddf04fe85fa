"""Blinded tasks, checks that people can pass, and the report that is made of known answers."""

from __future__ import annotations

import csv
import io
import json
import re
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest

from megatv.data.video import decode_video, probe
from megatv.eval.human import cli
from megatv.eval.human.answers import Task
from megatv.eval.human.markdown import to_markdown
from megatv.eval.human.report import figures, rows, to_csv, to_jsonl
from megatv.eval.human.study import System
from megatv.eval.human.tasks import check_places, oriented, passed, swapped


def say(desk, rater, name, value, comment="fine"):
    """A rater's answer to every question about an item: one that means `value` on their sides."""
    known = {one.name: one for one in desk.answers.raters()}
    person = known[rater] if rater in known else desk.answers.join(desk.answers.invite(rater)[0], rater)
    item = next(item for item in desk.items.values() if item.name == name)
    if desk.study.kind == "pairwise" and swapped(desk.study, person.id, item):
        value = MIRROR.get(value, value)
    desk.answers.give(person, lambda _: item.id)
    desk.answers.save(Task(person.id, item.id, 0, dict.fromkeys(desk.questions, value), comment, 4.0))


MIRROR = {
    "left_much": "right_much",
    "left_little": "right_little",
    "right_little": "left_little",
    "right_much": "left_much",
}


def test_a_degraded_copy_is_far_from_its_original_and_as_long(desk):
    one = desk()
    (check,) = [item for item in one.items.values() if item.check]
    intact, degraded = (video.video for video in check.videos)
    assert probe(degraded).seconds == pytest.approx(probe(intact).seconds, abs=0.1)
    a, b = (decode_video(path, width=64, height=64).astype(float) for path in (intact, degraded))
    frames = min(len(a), len(b))
    assert np.abs(a[:frames] - b[:frames]).mean() > 8
    assert (np.abs(np.diff(b, axis=0)).mean((1, 2, 3)) < 1).mean() > 0.8  # it stutters


def test_who_passes_a_check(desk):
    one = desk()
    (check,) = [item for item in one.items.values() if item.check]
    for rater in map(str, range(20)):
        better = "right_little" if swapped(one.study, rater, check) else "left_little"
        for value in ("left_little", "tie", "right_little"):
            assert passed(one.study, check, rater, {"quality": value}) == (value == better)
    alone = desk("pointwise", database=one.study.database + ".2")
    (check,) = [item for item in alone.items.values() if item.check]
    verdicts = {v: passed(alone.study, check, "Ada", {"quality": v}) for v in ("strong", "moderate", "weak")}
    assert verdicts == {"strong": False, "moderate": False, "weak": True}


def test_checks_are_spread_over_a_raters_items(make_study):
    study = make_study(checks=3)
    places = [check_places(study, str(rater), 31) for rater in range(50)]
    assert all(1 <= a < 11 <= b < 21 <= c < 31 for a, b, c in places)
    assert len({tuple(p) for p in places}) > 40
    assert check_places(study, "Ada", 1) == [1, 1, 1]


def test_figures_of_known_answers(desk):
    one = desk(raters_per_item=2)
    for rater in ("Ada", "Ben"):
        say(one, rater, "duel-0", "left_much")
        say(one, rater, "duel-1", "left_little")
        say(one, rater, "duel-2", "tie")
        say(one, rater, "duel-3", "right_much")
        say(one, rater, "check-0", "left_much")
    for name in ("duel-0", "duel-1", "duel-2", "duel-3", "check-0"):
        say(one, "Eve", name, "right_much")  # the degraded copy is the second system: she does not look
    told = figures(one.study, one.items, one.answers.tasks(), one.answers.raters())
    assert told["raters_left_out"] == 1 and told["items_with_enough_raters"] == 4
    assert [p["left_out"] for p in told["raters"]] == [False, False, True]
    for result in told["questions"].values():
        assert [result["wins"][who]["mean"] for who in ("ours", "tie", "theirs")] == [0.5, 0.25, 0.25]
        assert result["counts"] == {"2": 2, "1": 2, "0": 2, "-1": 0, "-2": 2}
        assert result["difference"]["mean"] == 0.25 and result["alpha"] == 1
        assert result["difference"]["low"] < 0 < result["difference"]["high"]
    table = rows(one.study, one.items, one.answers.tasks(), one.answers.raters())
    assert len(table) == 3 * 5 * 4
    assert {row["counted"] for row in table if row["rater"] == "rater-3"} == {False}
    for row in table:
        assert set(row["shown"].split(" | ")) == set(row["systems"].split(" | "))


def test_no_interval_from_one_answer(desk):
    one = desk(raters_per_item=2, checks=0)
    say(one, "Ada", "duel-0", "left_much")
    told = figures(one.study, one.items, one.answers.tasks(), one.answers.raters())
    for result in told["questions"].values():
        for found in (*result["wins"].values(), result["difference"]):
            assert (found["low"], found["high"], found["n"]) == (None, None, 1)
    text = to_markdown(told)
    assert (
        "| 100 % (no interval) | 0 % (no interval) | 0 % (no interval) | +100 % (no interval) | 1 |" in text
    )
    assert (
        "such as a single answer, give no interval" in text and " to " not in text.split("Intervals are")[0]
    )
    alone = desk("pointwise", checks=0, database=one.study.database + ".2")
    ada, _ = alone.answers.invite("Ada")
    item = next(item for item in alone.items.values() if item.name == "duel-0")
    alone.answers.give(ada, lambda _: item.id)
    alone.answers.save(Task(ada.id, item.id, 0, {"correctness": "yes", "quality": "moderate"}))
    told = figures(alone.study, alone.items, alone.answers.tasks(), alone.answers.raters())
    assert "| 1.00 (no interval), n 1 |" in to_markdown(told)


def test_controls_count_the_other_way_round(desk):
    one = desk("pointwise", checks=0)
    ada, _ = one.answers.invite("Ada")
    for name, value in zip(("duel-0", "duel-1", "duel-2", "duel-3"), "1113", strict=True):
        item = next(item for item in one.items.values() if item.name == name)
        one.answers.give(ada, lambda _, item=item: item.id)
        answer = {"correctness": {"1": "yes", "3": "no"}[value], "quality": "moderate"}
        one.answers.save(Task(ada.id, item.id, 0, answer))
    item = next(item for item in one.items.values() if item.name == "duel-3")
    assert oriented(one.study, item, "Ada", "correctness", "no") == 1
    assert oriented(one.study, item, "Ada", "correctness", "unsure") == 0.5
    told = figures(one.study, one.items, one.answers.tasks(), one.answers.raters())
    scores = told["questions"]["correctness"]["scores"]["ours"]
    assert {group: s["n"] for group, s in scores.items()} == {
        "with intervention": 3,
        "left alone": 1,
        "jump": 3,
        "at 0.8125 s": 3,
        "jump, left alone": 1,
        "at 0.8125 s, left alone": 1,
    }
    assert {s["mean"] for s in scores.values()} == {1.0}
    assert told["questions"]["quality"]["scores"]["ours"]["jump"]["mean"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "comment",
    [
        *("=1+1", "  =1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1+1", "\u200b=1", "|calc", "%0"),
        *("\u22121", "\ufe621", "\u2028=1", "\ufeff=1", "\uff0b1", "\x85=1"),
    ],
)
def test_a_comment_is_no_formula(desk, comment):
    one = desk()
    say(one, "=Eve()", "duel-0", "tie", comment)
    told = (one.study, one.items, one.answers.tasks(), one.answers.raters())
    text = to_csv(rows(*told, names=True))
    table = list(csv.DictReader(io.StringIO(text)))
    assert {row["rater"] for row in table} == {"rater-1"}
    assert {row["rater_name"] for row in table} == {"'=Eve()"}
    assert all(row["comment"].startswith("'") for row in table)
    assert "Eve" not in to_csv(rows(*told)) and "Eve" not in to_jsonl(rows(*told))


def test_a_comment_stays_in_its_cell_whatever_parts_cells(desk):
    one = desk()
    say(one, "Ada", "duel-0", "tie", 'fine;=1+1\t=1\n=1","=1\r=1\n \uff1d1\u2028=1')
    text = to_csv(rows(one.study, one.items, one.answers.tasks(), one.answers.raters()))
    cell = """fine;=1+1 =1\n'=1"",""=1 =1\n' \uff1d1 =1"""  # quotes are doubled
    assert text.count(f'"{cell}"') == 4
    assert not any(line.lstrip(' "').startswith(("=", "\uff1d")) for line in text.splitlines())


PICTURE = (
    "![x](http://evil.example/x.png) <img src=//evil.example> | www.evil.example `a` [b]: http://e.example"
)


def test_markdown_of_strangers_makes_no_picture_link_or_cell(desk, videos):
    one = desk(
        title=PICTURE,
        systems=(System(PICTURE, str(videos / "ours")), System("b&<i>", str(videos / "theirs"))),
    )
    say(one, "Ada <b>", "duel-0", "left_much")
    told = figures(one.study, one.items, one.answers.tasks(), one.answers.raters(), names=True)
    text = to_markdown(told)
    assert "evil" in text and "rater\\-1\\, Ada &lt;b&gt;" in text
    for markup in ("![", "](", "<", "://", "www.", "`", "]:"):
        assert markup not in re.sub(r"\\.", "", text), markup
    rows_of_cells = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows_of_cells} == {8, 7}
    anonymous = figures(one.study, one.items, one.answers.tasks(), one.answers.raters())
    assert "Ada" not in to_markdown(anonymous) and "Ada" not in json.dumps(anonymous)


@pytest.fixture
def study_file(make_study, tmp_path):
    """A pairwise study as YAML."""
    study = make_study()
    systems = [{"name": s.name, "videos": s.videos} for s in study.systems]
    path = tmp_path / "study.yaml"
    path.write_text(
        json.dumps({"kind": "pairwise", "systems": systems, "database": study.database, "checks": 1})
    )
    return path


def test_export_and_report_from_the_command_line(desk, study_file, tmp_path, capsys):
    with pytest.raises(ValueError, match="there are no answers yet; serve the study first"):
        cli.main(["report", str(study_file)])
    one = desk()
    empty = tmp_path / "empty.md"
    cli.main(["report", str(study_file), "--out", str(empty)])
    assert "0 of 4 items" in empty.read_text()
    say(one, "A|<b>", "duel-0", "left_much")
    cli.main(["report", str(study_file)])
    shown = capsys.readouterr().out
    assert "| **quality** | 100 % (no interval) | 0 % (no interval) |" in shown and "rater\\-1" in shown
    out = tmp_path / "deep/report.json"
    cli.main(["report", str(study_file), "--out", str(out)])
    assert json.loads(out.read_text())["questions"]["overall"]["alpha"] is None
    for name in ("a.csv", "a.jsonl"):
        cli.main(["export", str(study_file), "--out", str(tmp_path / name)])
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["question"] for line in lines] == list(one.questions)
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 5
    with pytest.raises(ValueError, match=re.escape("must end in .csv or .jsonl")):
        cli.main(["export", str(study_file), "--out", str(tmp_path / "a.xlsx")])
    with pytest.raises(ValueError, match="cannot be written"):
        cli.main(["export", str(study_file), "--out", str(study_file / "a.csv")])


@pytest.mark.parametrize("port", ["-1", "65536", "99999999"])
def test_serve_refuses_what_is_no_port(study_file, port):
    with pytest.raises(ValueError, match=f"--port {port}: ports are 0 to 65535"):
        cli.main(["serve", str(study_file), f"--port={port}"])


def test_serve_listens_on_loopback_and_refuses_a_taken_port(study_file, capsys):
    assert cli._parser().parse_args(["serve", "x"]).host == "127.0.0.1"
    threading.Thread(target=cli.main, args=(["serve", str(study_file), "--port", "0"],), daemon=True).start()
    for _ in range(200):
        time.sleep(0.1)
        if found := re.search(r"open (http://127\.0\.0\.1:\d+/)", text := capsys.readouterr().out):
            break
        assert "error" not in text
    with urllib.request.urlopen(found[1]) as page:
        assert b"A study of videos" in page.read()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port}"):
            cli.main(["serve", str(study_file), "--port", port])
