"""HTML that is safe by construction: everything is escaped unless it was made by `tag` itself.

Names of files and captions come from strangers and from a language model; the page also forbids scripts and
anything from outside itself (Content-Security-Policy), should a browser ever see more in a text than a text.
"""

from __future__ import annotations

import html
from pathlib import Path

VOID = ("img", "meta")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = Path(__file__).with_name("report.css")


class Html(str):
    """Markup; a plain `str` is words."""


def tag(kind: str, *children: object, **attributes: object) -> Html:
    """An element. Underscores at the end of an attribute's name go (`class_`), None leaves one out."""
    written = "".join(
        f' {key.rstrip("_")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if kind in VOID:
        return Html(f"<{kind}{written}>")
    return Html(f"<{kind}{written}>{join(*children)}</{kind}>")


def join(*children: object) -> Html:
    """Children one after the other; what is not markup is escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(str(c), quote=True) for c in children))


def table(head: list[str], rows: list[list[object]]) -> Html:
    """A table; cells that begin with a digit, and a dash, stand to the right."""

    def cell(value: object) -> Html:
        number = not isinstance(value, Html) and (str(value)[:1].isdigit() or value == "-")
        return tag("td", value, class_="number" if number else None)

    head_row = tag("tr", *(tag("th", name) for name in head))
    body = [tag("tr", *map(cell, row)) for row in rows]
    return tag("div", tag("table", head_row, *body), class_="scroll")


def page(title: str, *body: object) -> str:
    """A whole document, complete in itself."""
    style = Html(STYLE.read_text(encoding="utf-8"))
    head = [
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    ]
    return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', tag('main', *body)), lang='en')}\n"
