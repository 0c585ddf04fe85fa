"""A studio in this process, and a stream without a model: the toy world plays, with words drawn by chance."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from megatv.config import FPS, load_config
from megatv.data.toy_pictures import render
from megatv.data.toy_world import ACTIONS, Action, State, parse_words, step, words
from megatv.guard import own_names
from megatv.sample import ChunkStarted, ChunkWords, Finished, FramesDecoded, Request, Result, TextToken
from megatv.sample.timeline import chunk_starts, chunks_within, plan_windows
from megatv.studio.app import make_app
from megatv.studio.protocol import HEADER
from megatv.studio.serve import server_of
from megatv.studio.session import Model

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")

# a tiny random model and a run that holds it: the sampler's tests make them
_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "sample/conftest.py")
_tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tiny)
make_sampler, run_dir = _tiny.make_sampler, _tiny.run_dir


@dataclass
class FakeStream:
    """Keeps the contract of `megatv.sample.stream.Stream`; every next() is counted and takes `delay` seconds.

    The prompt "refuse me" does not fit, and "fail at K" fails in chunk K.
    """

    request: Request
    settings: object = None
    delay: float = 0.0
    spoken: dict[int, str] = field(default_factory=dict)
    seeds: dict[int, int] = field(default_factory=dict)
    works: int = 0
    closed: bool = False
    settled: int = 0
    result: Result | None = None

    def __post_init__(self):
        if self.request.prompt == "refuse me":
            raise ValueError("the prompt takes 900 tokens, but there is room for 100: shorten the prompt")
        chunks = chunks_within(self.request.seconds or 3.0625, 1)
        self.starts = chunk_starts(plan_windows(chunks, 1))
        self.chunks = chunks
        self._events = self._make()

    def __iter__(self):
        return self

    def __next__(self):
        assert not self.closed, "a closed stream was asked for work"
        self.works += 1
        time.sleep(self.delay)
        return next(self._events)

    def intervene(self, chunk, text):
        if not self.settled <= chunk < self.chunks:
            raise ValueError(f"chunk {chunk} is settled already: change a later one")
        self.spoken[chunk] = text

    def branch(self, chunk, text=None, seed=None):
        spoken = {k: v for k, v in self.spoken.items() if k < chunk}
        if text is not None:
            spoken[chunk] = text
        seeds = {**self.seeds, **({} if seed is None else {chunk: seed})}
        return FakeStream(self.request, self.settings, self.delay, spoken, seeds)

    def close(self):
        self.closed = True

    def _make(self):
        state = State(*np.array([10, 3, 0, 3, 0, 0]))
        said, pictures = [], []
        ends = [*self.starts[1:], self.starts[-1] + 0.25]
        seed = self.request.seed
        for chunk, (start, end) in enumerate(zip(self.starts, ends, strict=True)):
            seed = self.seeds.get(chunk, seed)
            rng = np.random.default_rng([seed, chunk])
            own = words(ACTIONS[rng.integers(len(ACTIONS))])
            if chunk in self.spoken:
                text = self.spoken[chunk]
            else:
                text = own
                for piece in own.split(" "):
                    yield TextToken(chunk, piece if piece == own.split(" ")[0] else " " + piece)
                    if chunk in self.spoken:
                        text = self.spoken[chunk]  # unsaid
                        break
            self.settled = chunk + 1
            if self.request.prompt == f"fail at {chunk}":
                raise RuntimeError("out of memory\nand a long tail")
            source = "forced" if chunk in self.spoken else "own"
            said.append(ChunkWords(start, text, source))
            yield ChunkStarted(chunk, start, said[-1])
            frames = []
            for frame in range(max(1, round((end - start) * FPS))):
                state = step(state, parse_words(text) or Action(), frame == 0)
                frames.append(render(*(np.asarray(part) for part in state)))
            if chunk == 0 and self.request.first_image is not None:
                frames[0] = self.request.first_image
            pictures.append(np.stack(frames))
            yield FramesDecoded(chunk, start, pictures[-1])
        latents = np.zeros((len(said), 16, 4, 4), np.float32)
        self.result = Result(latents, np.concatenate(pictures), tuple(said), "", False, 8, 99, 4 * len(said))
        yield Finished(self.result)


class Tab:
    """One page of a session, without a browser. `seen`: all messages so far, frames as dicts too."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.seen = socket, []

    def say(self, kind: str, **fields: Any) -> None:
        self.socket.send_text(json.dumps({"type": kind, **fields}))

    def make(self, **fields: Any) -> None:
        usual = {"prompt": "a world", "seconds": 3.0, "steps": 2, "temperature": 1.0, "cfg": 1.0}
        self.say("make", **usual | fields)

    def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Read on until a message of that kind, with these values, has come; it may have come already."""
        at = 0
        while True:
            for message in self.seen[at:]:
                if message["type"] == kind and all(message.get(k) == v for k, v in fields.items()):
                    return message
            at = len(self.seen)
            self.read()

    def read(self) -> None:
        event = self.socket.receive()
        if event["type"] == "websocket.close":
            raise ConnectionError(event.get("reason", ""))
        if event.get("text") is not None:
            self.seen += json.loads(event["text"])
        else:
            self.seen.append(unpack(event["bytes"]))

    def story(self) -> list[dict[str, Any]]:
        """What is the same for every tab that reads all of it as it happens."""
        private = ("hello", "viewers", "live", "error", "refused")
        return [m for m in self.seen if m["type"] not in private]

    def outcome(self) -> dict[tuple, dict[str, Any]]:
        """What a tab knows in the end, however late it came: the last message of each kind on each thing."""
        last: dict[tuple, dict[str, Any]] = {}
        for message in self.story():
            last[message["type"], message["take"], message.get("chunk")] = message
        return {key: m for key, m in last.items() if key[0] not in ("token", "planned")}


def unpack(data: bytes) -> dict[str, Any]:
    take, chunk, first, count, width, height, jpeg = HEADER.unpack_from(data)
    assert not jpeg
    pixels = np.frombuffer(data, np.uint8, offset=HEADER.size).reshape(count, height, width, 3)
    return {"type": "frames", "take": take, "chunk": chunk, "first": first, "pixels": pixels.tolist()}


class Studio:
    """The application with its worker; `streams`: every one that was opened, branches excepted."""

    def __init__(self, delay: float = 0.0, open_stream: Callable[..., Any] | None = None) -> None:
        self.streams: list[FakeStream] = []

        def fake(request: Request, settings: Any) -> Any:
            self.streams.append(FakeStream(request, settings, delay))
            return self.streams[-1]

        def example(index: int) -> tuple[str, str, np.ndarray]:
            return "a caption", f"words {index}", np.zeros((1, 16, 4, 4), np.float32)

        record = {"megatv": "1", "name": "toy_world", "step": 7}
        self.app = make_app(Model(TOY, open_stream or fake, record, 3, example), own_names("127.0.0.1"))
        self.web = TestClient(self.app, base_url="http://localhost:8000")

    def session(self) -> str:
        return self.web.post("/api/sessions").json()["session"]

    @contextmanager
    def tab(self, session: str) -> Iterator[Tab]:
        with self.web.websocket_connect(f"/ws/{session}", headers={"host": "localhost:8000"}) as socket:
            yield Tab(socket)


@pytest.fixture
def open_studio() -> Iterator[Callable[..., Studio]]:
    """open_studio(delay=seconds of every piece of work, open_stream=the fake): a studio that serves."""
    opened: list[Studio] = []

    def run(delay: float = 0.0, open_stream: Callable[..., Any] | None = None) -> Studio:
        opened.append(Studio(delay, open_stream))
        opened[-1].web.__enter__()
        return opened[-1]

    yield run
    for studio in opened:
        studio.web.__exit__(None, None, None)


@pytest.fixture
def served() -> Iterator[str]:
    """The address at which a thread serves a studio with the fake stream, for browsers."""
    door = socket.create_server(("127.0.0.1", 0))
    server = server_of(Studio(0.002).app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{door.getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)
    door.close()


@pytest.fixture
def studio(open_studio) -> Studio:
    return open_studio()
