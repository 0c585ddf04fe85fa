"""The study's web page and its few requests. A refusal is one sentence under `error`; the server stays up.

    GET  /                                  the page; its files lie in `page/`
    GET  /api/study                         id, title, kind, how people join, questions
    POST /api/raters    {name}              take part: with an invitation, or in an open study without
    GET  /api/me                            number, name and how far: whose token this is
    GET  /api/next                          the next task, or what is said when there is none
    GET  /api/tasks/ITEM                    one that was given before, with its answers
    POST /api/answers   {item, answers, comment, seconds}
    GET  /api/videos/ITEM/VIDEO             a video, by ranges

Who asks is said by the header `Authorization: Bearer TOKEN` alone: no name and no token is part of a URL,
which servers and browsers write down. A <video> sends no such header: names of videos cannot be guessed,
differ from rater to rater, and are looked up in a table, never taken as a path.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from megatv.eval.human.answers import FullError, UnknownError
from megatv.eval.human.desk import Desk
from megatv.eval.human.in_flight import InFlight
from megatv.eval.human.limit import BodyLimit
from megatv.eval.human.raters import Rater, UnknownRaterError, read_bearer
from megatv.guard import Guard

PAGE = Path(__file__).with_name("page")
STATUS = {UnknownRaterError: 401, UnknownError: 404, ValueError: 422, FullError: 429}


@dataclass
class Joining:
    """Who wants to take part, as they want to be called."""

    name: str = ""


@dataclass
class Answering:
    """A task's answers by question."""

    item: str
    answers: dict[str, str]
    comment: str = ""
    seconds: float | None = None


def make_app(desk: Desk, names: frozenset[str]) -> FastAPI:
    """The application of one study. names: under which it may be opened, see `guard.own_names`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(InFlight)  # type: ignore[arg-type]
    app.add_middleware(BodyLimit)  # type: ignore[arg-type]  # around it: a request counts when its body has come
    app.add_middleware(Guard, names=names, cache=b"no-cache")  # a video is played more than once
    _refusals(app)

    def who(request: Request) -> Rater:
        return desk.answers.rater(read_bearer(request.headers.get("authorization", "")))

    @app.get("/api/study")
    def tell() -> dict[str, Any]:
        study, questions = desk.study, list(desk.questions.values())
        told = {"id": desk.answers.id, "title": study.title, "kind": study.kind, "joins": study.joins}
        return {**told, "questions": questions}

    @app.post("/api/raters")
    def join(body: Joining, request: Request) -> dict[str, Any]:
        if "authorization" in request.headers:
            return {"rater": _about(desk.enter(who(request), body.name))}
        rater, token = desk.join(body.name, request.client.host if request.client else "")
        return {"rater": _about(rater), "token": token}

    @app.get("/api/me")
    def me(request: Request) -> dict[str, Any]:
        return {"rater": _about(who(request))}

    @app.get("/api/next")
    def following(request: Request) -> dict[str, Any]:
        return desk.next(who(request))

    @app.get("/api/tasks/{item}")
    def task(item: str, request: Request) -> dict[str, Any]:
        return desk.view(who(request), item)

    @app.post("/api/answers")
    def answer(body: Answering, request: Request) -> dict[str, Any]:
        rater = who(request)
        desk.save(rater, body.item, body.answers, body.comment, body.seconds)
        return desk.next(rater)

    @app.get("/api/videos/{item}/{name}")
    def video(item: str, name: str) -> FileResponse:
        path = desk.video(item, name)
        return FileResponse(path, media_type="video/webm" if path.suffix == ".webm" else "video/mp4")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _about(rater: Rater) -> dict[str, Any]:
    """What a rater's own page is told about them."""
    return {"number": rater.number, "name": rater.name}


def _refusals(app: FastAPI) -> None:
    """One sentence for every error."""

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])[:80]
        if first["type"] == "json_invalid" or not where:
            return _error(422, "the body must be a JSON object, sent as application/json")
        return _error(422, f"{where}: {first['msg'][:200]}")

    @app.exception_handler(ValueError)
    def wrong(_: Request, error: ValueError) -> Response:
        return _error(next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), str(error))

    @app.exception_handler(sqlite3.OperationalError)  # locked, full, read-only; others are faults of ours
    def broken(_: Request, error: sqlite3.OperationalError) -> Response:
        return _error(503, f"the answers cannot be written now ({error}): try again in a moment")

    def refused(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail))

    for status in (400, 404, 405):
        app.add_exception_handler(status, refused)  # type: ignore[arg-type]


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)
