"""What `python -m megatv.eval.human` does, verb by verb; `megatv.eval.human.cli` has its options."""

from __future__ import annotations

import argparse
import json
import socket
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from megatv.connections import Bounds, Server
from megatv.eval.human.answers import Answers
from megatv.eval.human.desk import Desk
from megatv.eval.human.markdown import to_markdown
from megatv.eval.human.report import figures, rows, to_csv, to_jsonl
from megatv.eval.human.server import make_app
from megatv.eval.human.study import PORT, Study
from megatv.eval.human.tasks import Item, make_checks, make_items
from megatv.eval.human.videos import find_videos, look_at, tell_apart
from megatv.guard import own_names
from megatv.log import progress, say
from megatv.regular_file import write_file

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_HEAD_BYTES, MAX_UNREAD_BYTES = 16_384, 1 << 20
WAIT_SECONDS = 30.0
"""For one head, one body, or one reader to take what was written (some 64 KiB): 2 KiB a second."""
MAX_CONNECTIONS = 400
"""With a file each, they are fewer than the 1,024 descriptors that a process usually has."""
MAX_INVITED = 1_000
SHAPES, REPORTS = (".csv", ".jsonl"), (".md", ".json")


def serve(study: Study, host: str, port: int, public_name: str | None = None) -> None:
    """Look at every video, then serve the page until Ctrl-C."""
    names = own_names(host, public_name)
    desk = open_desk(study)
    door = _listen(host, port)
    name = f"[{host}]" if ":" in host else host
    items = sum(not item.check for item in desk.items.values())
    say(f"{study.title}: {items} items, answers in {study.database}")
    if study.joins == "open" and (host not in LOOPBACK or public_name):
        say(f"whoever reaches this page can see videos and take part, {study.max_raters} people at most")
    if study.joins == "invited" and not desk.answers.raters():
        say("nobody is invited yet: `python -m megatv.eval.human invite` makes links, also while this runs")
    say(f"open http://{name}:{door.getsockname()[1]}/ in a browser; Ctrl-C ends, and answers are kept")
    try:
        server_of(desk, names, behind_proxy=bool(public_name)).run([door])
    finally:
        desk.answers.close()


def server_of(desk: Desk, names: frozenset[str], *, behind_proxy: bool = False) -> Server:
    """The page's server. behind_proxy: a proxy on this machine says whose request it passes on."""
    bounds = Bounds(
        total=MAX_CONNECTIONS,
        request_seconds=WAIT_SECONDS,
        body_seconds=WAIT_SECONDS,
        stalled_seconds=WAIT_SECONDS,
        max_unread_bytes=MAX_UNREAD_BYTES,
    )
    return Server(
        make_app(desk, names),
        bounds,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=5,
        proxy_headers=behind_proxy,
        timeout_graceful_shutdown=2,  # a browser that has paused a video holds its connection
    )


def open_desk(study: Study) -> Desk:
    """All that serving needs. Raises ValueError for what is missing, unreadable or of another study."""
    found = find_videos(study)
    infos = []
    for system, videos in zip(study.systems, found, strict=True):
        infos.append(list(progress(look_at(videos), total=len(videos), desc=system.name)))
    if study.kind == "pairwise" and (warning := tell_apart(*infos)):
        say(f"warning: {warning}")
    items = _items(study, write=True)
    answers = Answers(study, items.values(), create=True)
    try:
        answers.claim_videos(items.values())
    except ValueError:
        answers.close()
        raise
    return Desk(study, items, answers)


def invite(study: Study, url: str, count: int, renew: int | None) -> None:
    """Say a link for each name of `raters` that has none, for `count` people more, or again for one rater."""
    try:
        parts = urlsplit(url)
        place = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # such as a port of 70000
        place = False
    if not place or parts.query or parts.fragment:
        raise ValueError(f"--url {url}: give what people open, such as http://127.0.0.1:{PORT}/")
    if not 0 <= count <= MAX_INVITED:
        raise ValueError(f"--count {count}: it must be from 0 to {MAX_INVITED}")
    with closing(Answers(study, _items(study).values(), create=True)) as answers:
        known = answers.raters()
        names = {rater.name for rater in known}
        again = [rater for rater in known if rater.number == renew]
        if renew is not None and not again:
            raise ValueError(f"--renew {renew}: there is no rater-{renew}; the report says who there is")
        again += [rater for rater in answers.without_invitation() if rater.name in study.raters]
        links = [(rater, answers.renew(rater)) for rater in dict.fromkeys(again)]
        links += [answers.invite(name) for name in study.raters if name not in names]
        links += [answers.invite() for _ in range(count)]
    for rater, token in links:
        say(f"{rater.label}{f' {rater.name}' if rater.name else ''}: {url.rstrip('/')}/#{token}")
    if not links:
        say("nobody is left to invite: --count N makes N links more, --renew NUMBER another for rater-NUMBER")


def tell(study: Study, args: argparse.Namespace) -> None:
    """The answers as a report or as rows."""
    export = args.verb == "export"
    shape = _suffix(args.out, *(SHAPES if export else REPORTS)) if args.out else ".md"
    items = _items(study)
    with closing(Answers(study, items.values(), create=False)) as answers:
        tasks, raters = answers.tasks(), answers.raters()
    if export:
        table = rows(study, items, tasks, raters, names=args.names)
        text = to_csv(table) if shape == ".csv" else to_jsonl(table)
    else:
        told = figures(study, items, tasks, raters, names=args.names)
        text = to_markdown(told) if shape == ".md" else json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    if args.out:
        _write(Path(args.out), text)
        say(f"{args.out} written, from {sum(task.answered is not None for task in tasks)} answered tasks")
    else:
        say(text)


def _items(study: Study, *, write: bool = False) -> dict[str, Item]:
    """Items and checks by opaque name; `write`: with the checks' degraded copies."""
    items = make_items(study, find_videos(study))
    folder = Path(study.database).with_suffix(".checks")
    return {item.id: item for item in (*items, *make_checks(study, items, folder, write=write))}


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a taken port is one sentence."""
    if not 0 <= port < 65536:
        raise ValueError(f"--port {port}: ports are 0 to 65535")
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
    """The file appears whole or not at all, for its owner alone, and in the place of a link."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text, private=True)
    except OSError as error:
        raise ValueError(f"--out {path}: cannot be written ({error.strerror}); name another one") from None
