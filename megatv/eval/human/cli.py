"""Ask people about videos: `python -m megatv.eval.human invite STUDY.yaml`, `serve`, `report`, `export`."""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Sequence
from typing import NoReturn

from megatv.eval.human.study import PORT, read_study
from megatv.log import main_guard


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and do what the verb says. Raises ValueError with one sentence for any bad input."""
    args = _parser().parse_args(argv)
    study = read_study(args.study)
    from megatv.eval.human import run  # imports torch, which takes seconds

    try:
        if args.verb == "serve":
            run.serve(study, args.host, args.port, args.public_name)
        elif args.verb == "invite":
            run.invite(study, args.url, args.count, args.renew)
        else:
            run.tell(study, args)
    except sqlite3.Error as error:
        raise ValueError(f"{study.database}: cannot be read or written ({error})") from None


def command() -> NoReturn:
    """`main` with errors as one sentence."""
    main_guard(main)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m megatv.eval.human", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (
        ("invite", "a secret link for each person: for the names in `raters`, and for --count more"),
        ("serve", "show the study on a web page"),
        ("export", "every answer as a row of a .csv or .jsonl file"),
        ("report", "win rates or scores with intervals, agreement, people; .md or .json"),
    ):
        one = verbs.add_parser(verb, help=what, description=what)
        one.add_argument("study", help="the study's YAML")
        if verb == "invite":
            one.add_argument("--count", type=int, default=0, help="so many links without names")
            one.add_argument("--renew", type=int, metavar="NUMBER", help="another link for rater-NUMBER")
            one.add_argument("--url", default=f"http://127.0.0.1:{PORT}/", help="where people open the page")
        elif verb == "serve":
            one.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
            one.add_argument("--port", type=int, default=PORT, help="0 takes any that is free")
            one.add_argument("--public-name", metavar="NAME", help="name under which a proxy serves the page")
        else:
            one.add_argument("--out", required=verb == "export", help="the file to write")
            one.add_argument("--names", action="store_true", help="what raters call themselves as well")
    return parser
