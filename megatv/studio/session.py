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
from megatv.sample.timeline import chunks_within, frames_of
from megatv.studio import limits
from megatv.studio.log import Log
from megatv.studio.protocol import AnyCommand, Branch, Control, Edit, Keys, Make, Play
from megatv.studio.take import NO_KEYS, Take


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
    """One tab: how far it has read in the session's log, and what is for it alone.

    waiting   commands of it that wait for the worker
    """

    def __init__(self, session: Session) -> None:
        self.session, self.read, self.waiting = session, 0, 0
        self._past = session.log.end
        self._live = False
        self._told = 0
        self._private: deque[dict[str, Any]] = deque()
        self._loop = asyncio.get_running_loop()
        self.news = asyncio.Event()

    def tell(self, message: dict[str, Any]) -> None:
        """A message for this tab alone, from any thread; a tab that reads none of them misses the rest."""
        if len(self._private) < limits.MAX_PRIVATE:
            self._private.append(message)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.news.set)

    async def messages(self) -> str | bytes:
        """What comes next: a list of messages as JSON, or one chunk's frames."""
        while True:
            self.news.clear()
            found = [json.dumps(self._private.popleft()) for _ in range(len(self._private))]
            if self._told != (count := len(self.session.viewers)):
                self._told = count
                found.append(json.dumps({"type": "viewers", "count": count}))
            read = self.session.log.read(self.read, limits.MAX_BATCH)
            if not isinstance(read[0], bytes):
                found += read[0]
                self.read = read[1]
            elif not found:
                self.read = read[1]
                return read[0]
            if not self._live and self.read >= self._past:
                self._live = True  # what follows happens now
                found.append('{"type": "live"}')
            if found:
                return f"[{','.join(found)}]"
            await self.news.wait()


class Session:
    """`takes` and `obey` belong to the worker's thread, `viewers` to the web's.

    admit     raises ValueError when the studio has no room for a video of so many bytes of frames, or none
              for one more of this network's sessions
    network   from which it was asked for (`megatv.network`)
    picture   the first picture of the next video, uint8 [H, W, 3]
    left      when the last viewer left, or it was made (time.monotonic); None while somebody watches
    watched   whether anybody ever has
    ended     whether the studio has forgotten it: what it would make now, nobody would count or end
    """

    def __init__(self, name: str, model: Model, admit: Callable[[int, str], None], network: str = "") -> None:
        self.name, self._model, self._admit, self.network = name, model, admit, network
        self.takes: dict[int, Take] = {}
        self.log = Log()
        self.viewers: set[Viewer] = set()
        self.picture: np.ndarray | None = None
        self.left: float | None = time.monotonic()
        self.watched = self.ended = False
        self._closed: dict[int, int] = {}
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waking = False

    def join(self) -> Viewer:
        """A new tab. Raises ValueError when there are too many."""
        if len(self.viewers) >= limits.MAX_VIEWERS:
            raise ValueError(f"{limits.MAX_VIEWERS} tabs watch this session already: close one")
        viewer = Viewer(self)
        self.viewers.add(viewer)
        self.left, self.watched = None, True
        self._loop = asyncio.get_running_loop()
        self._wake()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """A tab is gone; without any, the session's work stops."""
        self.viewers.discard(viewer)
        if not self.viewers:
            self.left = time.monotonic()
        self._wake()

    def working(self) -> list[Take]:
        """Takes that want to go on; none while nobody watches."""
        return [take for take in self.takes.values() if take.status == "making"] if self.viewers else []

    def close(self) -> None:
        """End all its work and free the sampler's memory."""
        for take in self.takes.values():
            take.stream.close()
        self.takes.clear()

    def obey(self, command: AnyCommand) -> None:
        """Do what a page asks. Raises ValueError with one sentence."""
        if self.ended:
            raise ValueError("this session has ended: start a new one")
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
        will_hold = self._check_room(command.seconds)
        request = Request(
            command.prompt,
            first_image=self.picture if command.picture else None,
            given_words=() if command.image_words is None else (command.image_words,),
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
        if command.image_words is not None and not (command.picture or command.example is not None):
            raise ValueError("words before the first picture need one: start from a picture or an example")
        if command.game and request.mode != "tv2tv":
            raise ValueError(NO_KEYS)
        settings = replace(
            self._model.config.sample,
            steps=command.steps,
            temperature=command.temperature,
            cfg=command.cfg,
            solver=command.solver,
            top_p=command.top_p,
        )
        stream = self._model.open_stream(request, settings)
        take = self._add(stream, request, settings, will_hold, example=command.example)
        take.take_keys(command.game)

    def _from_example(self, request: Request, index: int) -> Request:
        """The first chunk of a held-out example is given, its words are not: they are the model's to say."""
        if self._model.read_example is None or index >= self._model.examples:
            raise ValueError(f"there is no example {index}: this studio has {self._model.examples}")
        _, _, latents = self._model.read_example(index)
        return replace(request, first_latents=latents)

    def _branch(self, parent: Take, command: Branch) -> None:
        if command.chunk >= len(parent.frames):
            raise ValueError("this chunk is not made yet: change its words, or branch from an earlier one")
        assert parent.request.seconds is not None
        shared = 0 if parent.request.mode == "think2v" else command.chunk
        will_hold = self._check_room(parent.request.seconds, shared)
        stream = parent.stream.branch(command.chunk, command.text, command.seed)
        request = parent.request
        if command.seed is not None:
            request = replace(request, seed=command.seed)
        self._add(stream, request, parent.settings, will_hold, parent, command.chunk)

    def _add(
        self,
        stream: Stream,
        request: Request,
        settings: SampleConfig,
        will_hold: int,
        parent: Take | None = None,
        left_at: int | None = None,
        example: int | None = None,
    ) -> Take:
        number, self._count = self._count, self._count + 1

        self.takes[number] = take = Take(
            number,
            stream,
            request,
            settings,
            self._say,
            will_hold,
            parent=parent,
            left_at=left_at,
            example=example,
        )
        return take

    def _close(self, take: Take) -> None:
        """Forget a take, its part of the log too; what its branches share with it goes on as theirs."""
        if any(other.parent is take for other in self.takes.values()):
            raise ValueError("other takes branch from this one: close them first")
        take.stream.close()
        del self.takes[take.number]
        self.log.forget(take.number)
        behind = min((viewer.read for viewer in tuple(self.viewers)), default=self.log.end)
        for number, place in tuple(self._closed.items()):
            if place < behind:  # everybody has heard that it is closed, and who comes later never saw it
                self.log.forget(number)
                del self._closed[number]
        self._closed[take.number] = self.log.end
        self._say({"type": "closed", "take": take.number})

    def _check_room(self, seconds: float, shared: int = 0) -> int:
        """Bytes of frames that a video will hold whose first chunks are shared. ValueError without room."""
        if len(self.takes) >= limits.MAX_TAKES:
            raise ValueError(f"a session holds {limits.MAX_TAKES} takes: close one that you need no more")
        if sum(take.is_open for take in self.takes.values()) >= limits.MAX_OPEN:
            raise ValueError(
                f"{limits.MAX_OPEN} takes of this session are being made or paused: stop one, or wait for it"
            )
        video = self._model.config.video
        chunks = chunks_within(seconds, video.groups)
        others = frames_of(shared, video.groups)
        own = frames_of(chunks, video.groups) - others
        # its own as pixels and as messages; its stream has those of the shared chunks, too
        will_hold = (2 * own + others) * video.width * video.height * 3
        self._admit(will_hold, self.network)
        return will_hold

    def _say(self, message: dict[str, Any], packed: bytes | None = None) -> None:
        self.log.add(packed or json.dumps(message), message["take"], message["type"], message.get("chunk"))
        self._wake()

    def _wake(self) -> None:
        """Viewers have something to read; from any thread. One call for all of them, if none is under way."""
        if self._loop is not None and not self._loop.is_closed() and not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        self._waking = False
        for viewer in self.viewers:
            viewer.news.set()
