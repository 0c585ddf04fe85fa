"""The study's web page and its few requests. A refusal is one sentence under `error`; the server stays up.

    GET  /                                  the page; its files lie in `page/`
    GET  /api/study                         id, title, kind, questions
    POST /api/raters    {rater}             take part, or come back
    GET  /api/next?rater=                   the next task, or what is said when there is none
    GET  /api/tasks/ITEM?rater=             one that was given before, with its answers
    POST /api/answers   {rater, item, answers, comment, seconds}
    GET  /api/videos/ITEM/VIDEO             a video, by ranges

Videos are looked up in a table of opaque names, never by a path from a request.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from megatv.eval.human.answers import Answers, Task, UnknownError
from megatv.eval.human.assign import chooser, progress
from megatv.eval.human.limit import BodyLimit
from megatv.eval.human.questions import questions_of
from megatv.eval.human.study import Study
from megatv.eval.human.tasks import Item, shown, video_id
from megatv.guard import Guard

PAGE = Path(__file__).with_name("page")
MAX_NAME = 40
MAX_COMMENT = 2_000


@dataclass
class Joining:
    """Who wants to take part."""

    rater: str


@dataclass
class Answering:
    """A task's answers by question."""

    rater: str
    item: str
    answers: dict[str, str]
    comment: str = ""
    seconds: float | None = None


@dataclass
class Desk:
    """What all requests share: the study, its items and checks by opaque name, and the answers."""

    study: Study
    items: dict[str, Item]
    answers: Answers
    questions: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.questions = questions_of(self.study)

    def join(self, rater: str) -> str:
        """The rater's name as it is kept. Raises HTTPException 403 for one who is not on the list."""
        name = " ".join(rater.split())
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise ValueError(f"a name has 1 to {MAX_NAME} letters, this one has {len(name)}")
        if self.study.raters and name not in self.study.raters:
            raise HTTPException(
                403, f"{name!r} is not among this study's raters: use the name you were given"
            )
        self.answers.join(name)
        return name

    def next(self, rater: str) -> dict[str, Any]:
        """What the page shows next: a task, or None when there is none."""
        item = self.answers.give(rater, chooser(self.study, self.items, rater))
        if item:
            return self.view(rater, item)
        return {"task": None, "before": (self._done(rater) or [None])[-1], **self.progress(rater)}

    def view(self, rater: str, name: str) -> dict[str, Any]:
        """A task as the page shows it, under opaque names, and the one answered before it."""
        task = self.answers.task(rater, name)
        item = self.items[name]
        first = item.videos[0]
        told: dict[str, Any] = {
            "item": name,
            "videos": [
                f"/api/videos/{name}/{video_id(self.study, item, i)}" for i in shown(self.study, rater, item)
            ],
            "prompt": next((video.prompt for video in item.videos if video.prompt), ""),
            "answers": task.answers,
            "comment": task.comment,
        }
        if self.study.kind == "pointwise":
            told |= {"caption": first.caption, "start": first.start, "stop": first.stop}
        done = self._done(rater)
        earlier = done[: done.index(name)] if name in done else done
        return {"task": told, "before": (earlier or [None])[-1], **self.progress(rater)}

    def progress(self, rater: str) -> dict[str, int]:
        """How far the rater is."""
        found = progress(self.study, self.items, self.answers.tasks(), rater)
        return {"done": found.done, "total": found.total}

    def _done(self, rater: str) -> list[str | None]:
        """The items that a rater has answered, in the order in which they were given."""
        return [task.item for task in self.answers.tasks("WHERE rater = ?", (rater,)) if task.answered]

    def save(self, said: Answering) -> None:
        """Keep answers that are complete and on the scale. Raises ValueError for others."""
        self.answers.task(said.rater, said.item)
        missing = [name for name in self.questions if name not in said.answers]
        foreign = [name for name in said.answers if name not in self.questions]
        if missing or foreign:
            fault = f"{missing[0]} is missing" if missing else f"{foreign[0][:40]!r} is no question"
            raise ValueError(f"answers must be to {', '.join(self.questions)}: {fault}")
        for name, value in said.answers.items():
            self.questions[name].score(value)
        if len(said.comment) > MAX_COMMENT:
            raise ValueError(f"a comment has at most {MAX_COMMENT} letters, this one has {len(said.comment)}")
        seconds = said.seconds
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"seconds is {seconds}: it must not be negative")
        self.answers.save(Task(said.rater, said.item, 0, said.answers, said.comment, seconds))

    def video(self, name: str, side: str) -> Path:
        """The file behind opaque names. Raises UnknownError."""
        item = self.items.get(name)
        for index, video in enumerate(item.videos if item else ()):
            if item and side == video_id(self.study, item, index):
                if not Path(video.video).is_file():
                    raise UnknownError("this video's file is gone: tell whoever runs the study")
                return Path(video.video)
        raise UnknownError("there is no such video: reload the page")


def make_app(desk: Desk) -> FastAPI:
    """The application of one study."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit)  # type: ignore[arg-type]
    # raters come by whatever name the study was given, and play a video more than once
    app.add_middleware(Guard, cache=b"no-cache")
    _refusals(app)

    @app.get("/api/study")
    def tell() -> dict[str, Any]:
        study = desk.study
        questions = list(desk.questions.values())
        return {"id": desk.answers.id, "title": study.title, "kind": study.kind, "questions": questions}

    @app.post("/api/raters")
    def join(body: Joining) -> dict[str, Any]:
        rater = desk.join(body.rater)
        return {"rater": rater, **desk.progress(rater)}

    @app.get("/api/next")
    def following(rater: str) -> dict[str, Any]:
        return desk.next(rater)

    @app.get("/api/tasks/{item}")
    def task(item: str, rater: str) -> dict[str, Any]:
        return desk.view(rater, item)

    @app.post("/api/answers")
    def answer(body: Answering) -> dict[str, Any]:
        desk.save(body)
        return desk.next(body.rater)

    @app.get("/api/videos/{item}/{side}")
    def video(item: str, side: str) -> FileResponse:
        path = desk.video(item, side)
        return FileResponse(path, media_type="video/webm" if path.suffix == ".webm" else "video/mp4")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _refusals(app: FastAPI) -> None:
    """One sentence for every error."""

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])[:80]
        if first["type"] == "json_invalid" or not where:
            return _error(422, "the body must be a JSON object, sent as application/json")
        return _error(422, f"{where}: {first['msg'][:200]}")

    @app.exception_handler(UnknownError)
    def unknown(_: Request, error: UnknownError) -> Response:
        return _error(404, str(error))

    @app.exception_handler(ValueError)
    def wrong(_: Request, error: ValueError) -> Response:
        return _error(422, str(error))

    @app.exception_handler(sqlite3.Error)
    def broken(_: Request, error: sqlite3.Error) -> Response:
        return _error(503, f"the answers cannot be written now ({error}): try again in a moment")

    def refused(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail))

    for status in (400, 403, 404, 405):
        app.add_exception_handler(status, refused)  # type: ignore[arg-type]


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)
