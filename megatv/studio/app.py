"""The web side of the studio: the page, one WebSocket a viewer, pictures up, videos and transcripts down."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from megatv.config import FPS, GROUP_FRAMES
from megatv.data.toy_world import META_PROMPT
from megatv.guard import Guard
from megatv.network import network_of
from megatv.sample.grammar import says_actions
from megatv.studio import limits
from megatv.studio.downloads import Downloads
from megatv.studio.protocol import parse
from megatv.studio.session import Model, Session, Viewer
from megatv.studio.take import Take
from megatv.studio.uploads import Uploads
from megatv.studio.worker import Worker

STATIC = Path(__file__).parent / "static"


def make_app(model: Model, names: frozenset[str]) -> FastAPI:
    """The application, with a worker of its own that lives as long as it is served.

    names   under which it may be opened: see `guard.own_names`
    """
    worker = Worker(model)
    uploads, downloads = Uploads(), Downloads(worker.takes)
    about = describe(model)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await run_in_threadpool(worker.stop)

    app = FastAPI(title="megatv studio", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.worker = worker
    app.add_middleware(Guard, names=names)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    def find(name: str) -> Session:
        session = worker.sessions.get(name)
        if session is None:
            raise HTTPException(404, "this session has ended or never was: start a new one")
        return session

    def find_take(name: str, number: int) -> Take:
        take = find(name).takes.get(number)
        if take is None:
            raise HTTPException(404, f"there is no take {number} in this session")
        return take

    @app.get("/")
    @app.get("/s/{name}")
    async def page(name: str = "") -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.post("/api/sessions")
    async def new_session(request: Request) -> dict[str, str]:
        try:
            return {"session": worker.new_session(_network(request)).name}
        except ValueError as error:
            raise HTTPException(503, str(error)) from None

    @app.post("/api/sessions/{name}/picture")
    async def picture(name: str, request: Request) -> dict[str, str]:
        session = find(name)
        video = model.config.video
        session.picture, size = await uploads.receive(request, video.width, video.height)
        resized = "" if size == (video.width, video.height) else ", resized to the model's {}x{}"
        return {"note": "{}x{}".format(*size) + resized.format(video.width, video.height)}

    @app.get("/api/sessions/{name}/takes/{number}/video.mp4")
    async def video(name: str, number: int, request: Request) -> Response:
        return await downloads.send_video(find_take(name, number), _network(request))

    @app.get("/api/sessions/{name}/takes/{number}/transcript.json")
    async def transcript(name: str, number: int, request: Request) -> Response:
        tree = {**model.record, **find_take(name, number).record()}
        data = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
        return downloads.send(data.encode(), "application/json", f"take-{number}.json", _network(request))

    @app.websocket("/ws/{name}")
    async def watch(socket: WebSocket, name: str) -> None:
        await socket.accept()
        session = worker.sessions.get(name)
        try:
            if session is None:
                raise ValueError("this session has ended or never was: start a new one")
            viewer = session.join()
        except ValueError as error:
            await _refuse(socket, str(error), "gone" if session is None else "refused")
            return
        viewer.tell({"type": "hello", "session": name, **about})
        sending = asyncio.create_task(_send(socket, viewer))
        try:
            worker.wake()
            await _hear(socket, worker, viewer)
        finally:
            session.leave(viewer)
            sending.cancel()

    return app


def describe(model: Model) -> dict[str, Any]:
    """What a page must know about the model: its name and size, and what a first video needs."""
    config = model.config
    toy = config.tokenizer.path == "toy_world"
    return {
        "name": model.record["name"],
        "step": model.record["step"],
        "width": config.video.width,
        "height": config.video.height,
        "fps": FPS,
        "seconds": config.video.groups * GROUP_FRAMES / FPS,
        "max_seconds": limits.MAX_SECONDS,
        "mode": config.sequence.mode,
        "plan_lines": {"actions": "chunk", "frame_actions": "frame"}.get(config.sequence.think2v),
        "steps": config.sample.steps,
        "max_steps": limits.MAX_STEPS,
        "temperature": config.sample.temperature,
        "cfg": config.sample.cfg,
        "solver": config.sample.solver,
        "top_p": config.sample.top_p,
        "max_takes": limits.MAX_TAKES,
        "prompt": META_PROMPT if toy else "",
        "game": toy,
        "actions": "toy_world" if toy else "csgo" if says_actions(config) else None,
        "examples": model.examples,
    }


def _network(request: Request) -> str:
    return network_of(request.client.host if request.client else None)


async def _send(socket: WebSocket, viewer: Viewer) -> None:
    """All that happens, until the tab is gone."""
    with suppress(WebSocketDisconnect, RuntimeError):  # it left while we spoke: `_hear` sees it too
        while True:
            message = await viewer.messages()
            await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_text(message))


async def _hear(socket: WebSocket, worker: Worker, viewer: Viewer) -> None:
    """What a tab says, until it leaves or says too much."""
    allowance, before = float(limits.BURST), time.monotonic()
    while True:
        event = await socket.receive()
        if event["type"] == "websocket.disconnect":
            return
        now = time.monotonic()
        allowance = min(limits.BURST, allowance + (now - before) * limits.MESSAGES_PER_SECOND) - 1
        before = now
        if allowance < 0:
            await _refuse(socket, f"this page says more than {limits.MESSAGES_PER_SECOND:g} things a second")
            return
        try:
            worker.ask(viewer.session, viewer, parse(event.get("text") or ""))
        except ValueError as error:
            viewer.tell({"type": "error", "message": str(error)})


async def _refuse(socket: WebSocket, reason: str, kind: str = "refused") -> None:
    """Say why, once, and hang up."""
    with suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_text(json.dumps([{"type": kind, "message": reason}]))
        await socket.close(1008)
