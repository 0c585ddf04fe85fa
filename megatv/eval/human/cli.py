"""Ask people about videos: `python -m megatv.eval.human serve STUDY.yaml`, then `report` and `export`."""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import uvicorn

from megatv.eval.human.answers import Answers
from megatv.eval.human.markdown import to_markdown
from megatv.eval.human.report import figures, rows, to_csv, to_jsonl
from megatv.eval.human.server import Desk, make_app
from megatv.eval.human.study import Study, read_study
from megatv.eval.human.tasks import Item, make_checks, make_items
from megatv.eval.human.videos import find_videos, look_at, tell_apart
from megatv.log import main_guard, progress, say

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and do what the verb says. Raises ValueError with one sentence for any bad input."""
    args = _parser().parse_args(argv)
    study = read_study(args.study)
    if args.verb == "serve":
        serve(study, args.host, args.port)
        return
    items = _items(study)
    answers = Answers(study, items.values(), videos=False)
    tasks = answers.tasks()
    if args.verb == "export":
        table = rows(study, items, tasks)
        text = to_csv(table) if _suffix(args.out, ".csv", ".jsonl") == ".csv" else to_jsonl(table)
    else:
        told = figures(study, items, tasks, answers.raters())
        shape = _suffix(args.out, ".md", ".json") if args.out else ".md"
        text = to_markdown(told) if shape == ".md" else json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    answers.close()
    if args.out:
        _write(Path(args.out), text)
        say(f"{args.out} written, from {sum(task.answered is not None for task in tasks)} answered tasks")
    else:
        say(text)


def serve(study: Study, host: str, port: int) -> None:
    """Look at every video, then serve the page until Ctrl-C."""
    desk = open_desk(study)
    door = _listen(host, port)
    name = f"[{host}]" if ":" in host else host
    items = sum(not item.check for item in desk.items.values())
    say(f"{study.title}: {items} items, answers in {study.database}")
    if host not in LOOPBACK:
        say("whoever reaches this machine can see the videos and take part under any name")
    say(f"open http://{name}:{door.getsockname()[1]}/ in a browser; Ctrl-C ends, and answers are kept")
    # a browser that has paused a video holds its connection: Ctrl-C does not wait for that
    config = uvicorn.Config(make_app(desk), log_level="warning", ws="none", timeout_graceful_shutdown=2)
    try:
        uvicorn.Server(config).run([door])
    finally:
        desk.answers.close()


def open_desk(study: Study) -> Desk:
    """All that serving needs. Raises ValueError for what is missing, unreadable or of another study."""
    found = find_videos(study)
    infos = []
    for system, videos in zip(study.systems, found, strict=True):
        infos.append(list(progress(look_at(videos), total=len(videos), desc=system.name)))
    if study.kind == "pairwise" and (warning := tell_apart(*infos)):
        say(f"warning: {warning}")
    items = _items(study, write=True)
    return Desk(study, items, Answers(study, items.values(), videos=True))


def command() -> NoReturn:
    """`main` with errors as one sentence."""
    main_guard(main)


def _items(study: Study, *, write: bool = False) -> dict[str, Item]:
    """Items and checks by opaque name; `write`: with the checks' degraded copies."""
    items = make_items(study, find_videos(study))
    folder = Path(study.database).with_suffix(".checks")
    return {item.id: item for item in (*items, *make_checks(study, items, folder, write=write))}


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a taken port is one sentence."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(family, kind, protocol)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
        door.listen(128)
        return door
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"cannot listen on {host}:{port} ({reason}); choose another --host or --port"
        ) from None


def _suffix(out: str, *known: str) -> str:
    suffix = Path(out).suffix.lower()
    if suffix not in known:
        raise ValueError(f"--out {out}: must end in {' or '.join(known)}")
    return suffix


def _write(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"--out {path}: cannot be written ({error.strerror}); name another one") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m megatv.eval.human", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (
        ("serve", "show the study on a web page"),
        ("export", "every answer as a row of a .csv or .jsonl file"),
        ("report", "win rates or scores with intervals, agreement, people; .md or .json"),
    ):
        one = verbs.add_parser(verb, help=what, description=what)
        one.add_argument("study", help="the study's YAML")
        if verb == "serve":
            one.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
            one.add_argument("--port", type=int, default=8420, help="0 takes any that is free")
        else:
            one.add_argument("--out", required=verb == "export", help="the file to write")
    return parser
