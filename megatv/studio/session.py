"""One address that people share: its takes, the log of all that happened, and who watches."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatv.config import Config, SampleConfig
from megatv.data.toy_world import Action
from megatv.sample import Request, Stream
from megatv.studio import limits
from megatv.studio.protocol import AnyCommand, Branch, Control, Edit, Keys, Make, Play
from megatv.studio.take import Take


@dataclass(frozen=True)
class Model:
    """What the studio knows of the model that it shows.

    config         of its checkpoint
    open_stream    starts a video
    record         what a transcript says of it: `name`, `step`, ...
    examples       how many held-out examples there are to start from
    read_example   caption, first words and first latents of one: see `megatv.sample.inputs.read_example`
    """

    config: Config
    open_stream: Callable[[Request, SampleConfig], Stream]
    record: dict[str, Any]
    examples: int = 0
    read_example: Callable[[int], tuple[str, str, np.ndarray]] | None = None


class Viewer:
    """One tab: how far it has read in the session's log, and what is for it alone."""

    def __init__(self, session: Session) -> None:
        self.session, self.read = session, 0
        self._past = len(session.log)
        self._live = False
        self.private: deque[dict[str, Any]] = deque(maxlen=limits.MAX_WAITING)
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """There is something to read; from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    def tell(self, message: dict[str, Any]) -> None:
        """A message for this tab alone; from any thread."""
        self.private.append(message)
        self.wake()

    async def messages(self) -> str | bytes:
        """What comes next: a list of messages as JSON, or one chunk's frames."""
        while True:
            self._news.clear()
            found = list(self.private)
            self.private.clear()
            log = self.session.log
            while self.read < len(log) and len(found) < limits.MAX_BATCH:
                message = log[self.read]
                if isinstance(message, bytes):
                    if found:
                        break
                    self.read += 1
                    return message
                if message is not None:
                    found.append(message)
                self.read += 1
            if not self._live and self.read >= self._past:
                self._live = True  # what follows happens now
                found.append({"type": "live"})
            if found:
                return json.dumps(found)
            await self._news.wait()


class Session:
    """`takes` and `obey` belong to the worker's thread; `viewers` to the web's; the log only grows.

    picture   the first picture of the next video, uint8 [H, W, 3]
    left      when the last viewer left, or it was made (time.monotonic); None while somebody watches
    """

    def __init__(self, name: str, model: Model) -> None:
        self.name, self._model = name, model
        self.takes: dict[int, Take] = {}
        self.log: list[dict[str, Any] | bytes | None] = []
        self.viewers: set[Viewer] = set()
        self.picture: np.ndarray | None = None
        self.left: float | None = time.monotonic()
        self._owners: list[int] = []
        self._count = 0

    def join(self) -> Viewer:
        """A new tab. Raises ValueError when there are too many."""
        if len(self.viewers) >= limits.MAX_VIEWERS:
            raise ValueError(f"{limits.MAX_VIEWERS} tabs watch this session already: close one")
        viewer = Viewer(self)
        self.viewers.add(viewer)
        self.left = None
        self._count_viewers()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """A tab is gone; without any, the session's work stops."""
        self.viewers.discard(viewer)
        if not self.viewers:
            self.left = time.monotonic()
        self._count_viewers()

    def working(self) -> list[Take]:
        """Takes that want to go on; none while nobody watches."""
        return [take for take in self.takes.values() if take.status == "making"] if self.viewers else []

    def held_bytes(self) -> int:
        """Of all its frames."""
        return sum(take.held_bytes for take in self.takes.values())

    def close(self) -> None:
        """End all its work and free the sampler's memory."""
        for take in self.takes.values():
            take.stream.close()
        self.takes.clear()

    def obey(self, command: AnyCommand) -> None:
        """Do what a page asks. Raises ValueError with one sentence."""
        if isinstance(command, Make):
            self._make(command)
            return
        take = self.takes.get(command.take)
        if take is None:
            raise ValueError(f"there is no take {command.take} in this session")
        match command:
            case Edit():
                take.edit(command.chunk, command.text)
            case Branch():
                self._branch(take, command)
            case Play():
                take.take_keys(command.on)
            case Keys() if take.game is not None:
                fields = (command.move, command.turn, command.jump, command.shoot, command.reload)
                take.game.press(Action(*fields))
            case Control(type="close"):
                self._close(take)
            case Control(type="pause") if take.status == "making":
                take.turn("paused")
            case Control(type="resume") if take.status == "paused":
                take.turn("making")
            case Control(type="stop") if take.status in ("making", "paused"):
                take.turn("stopped")

    def _make(self, command: Make) -> None:
        self._check_room()
        request = Request(
            command.prompt,
            first_image=self.picture if command.picture else None,
            seconds=command.seconds,
            seed=command.seed,
            mode=command.mode or self._model.config.sequence.mode,
        )
        if command.example is not None:
            request = self._from_example(request, command.example)
        if command.picture and command.example is not None:
            raise ValueError("a video starts from a picture or from an example, not from both")
        if command.picture and self.picture is None:
            raise ValueError("the first picture has not arrived: choose it again")
        settings = replace(
            self._model.config.sample,
            steps=command.steps,
            temperature=command.temperature,
            cfg=command.cfg,
            solver=command.solver,
            top_p=command.top_p,
        )
        stream = self._model.open_stream(request, settings)
        take = self._add(stream, request, settings, example=command.example)
        take.take_keys(command.game)

    def _from_example(self, request: Request, index: int) -> Request:
        """The first chunk of a held-out example is given, in tv2tv with the words that stand before it."""
        if self._model.read_example is None or index >= self._model.examples:
            raise ValueError(f"there is no example {index}: this studio has {self._model.examples}")
        _, words, latents = self._model.read_example(index)
        given = (words,) if request.mode == "tv2tv" else ()
        return replace(request, first_latents=latents, given_words=given)

    def _branch(self, parent: Take, command: Branch) -> None:
        self._check_room()
        if command.chunk >= len(parent.frames):
            raise ValueError("this chunk is not made yet: change its words, or branch from an earlier one")
        stream = parent.stream.branch(command.chunk, command.text, command.seed)
        request = parent.request
        if command.seed is not None:
            request = replace(request, seed=command.seed)
        self._add(stream, request, parent.settings, parent, command.chunk)

    def _add(
        self,
        stream: Stream,
        request: Request,
        settings: SampleConfig,
        parent: Take | None = None,
        left_at: int | None = None,
        example: int | None = None,
    ) -> Take:
        number, self._count = self._count, self._count + 1

        def say(message: dict[str, Any] | bytes) -> None:
            self._say(message, number)

        take = Take(number, stream, request, settings, say, parent=parent, left_at=left_at, example=example)
        self.takes[number] = take
        return take

    def _close(self, take: Take) -> None:
        """Forget a take, its part of the log too; what its branches share with it goes on as theirs."""
        if any(other.parent is take for other in self.takes.values()):
            raise ValueError("other takes branch from this one: close them first")
        take.stream.close()
        del self.takes[take.number]
        for place, owner in enumerate(self._owners):
            if owner == take.number:
                self.log[place] = None
        self._say({"type": "closed", "take": take.number}, take.number)

    def _check_room(self) -> None:
        if len(self.takes) >= limits.MAX_TAKES:
            raise ValueError(f"a session holds {limits.MAX_TAKES} takes: close one that you need no more")

    def _say(self, message: dict[str, Any] | bytes, owner: int) -> None:
        self._owners.append(owner)
        self.log.append(message)
        for viewer in tuple(self.viewers):
            viewer.wake()

    def _count_viewers(self) -> None:
        for viewer in self.viewers:
            viewer.tell({"type": "viewers", "count": len(self.viewers)})
