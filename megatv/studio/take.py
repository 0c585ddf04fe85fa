"""One video of a session: a stream of the sampler, what came out of it so far, and whether it goes on."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from megatv.config import FPS, SampleConfig
from megatv.sample import ChunkStarted, ChunkWords, Finished, FramesDecoded, Request, Stream, TextToken
from megatv.studio.game import Game
from megatv.studio.protocol import pack_frames

if TYPE_CHECKING:
    from megatv.studio.downloads import File

Status = Literal["making", "paused", "stopped", "finished", "failed"]


class Say(Protocol):
    """Tell all viewers; `packed` travels in the place of a message that says what it is."""

    def __call__(self, message: dict[str, Any], packed: bytes | None = None) -> None: ...


NO_KEYS = "the keys need the mode tv2tv, in which words come before every chunk"


class Take:
    """Lives in the worker's thread. `say` puts a message into the session's log; see `Session._say`.

    number, parent        its name, and the take that it branched from
    left_at, at           the chunk at which it did; the first chunk of its own, 0 when none is shared
    example               the held-out example that it starts from
    words, frames         of every chunk so far: ChunkWords, and uint8 [n, H, W, 3]
    will_hold             bytes of frames that it will hold when all its chunks are made
    video                 the take as an mp4 file, while that is kept (see `megatv.studio.downloads`)
    """

    def __init__(
        self,
        number: int,
        stream: Stream,
        request: Request,
        settings: SampleConfig,
        say: Say,
        will_hold: int,
        *,
        parent: Take | None = None,
        left_at: int | None = None,
        example: int | None = None,
    ) -> None:
        self.number, self.stream, self._say = number, stream, say
        self.request, self.settings = request, settings
        self.parent, self.left_at = parent, left_at
        self.example: int | None = parent.example if parent else example
        # a think2v plan comes before every chunk, so a branch of it draws all chunks anew
        self.at = 0 if left_at is None or request.mode == "think2v" else left_at
        self.words: list[ChunkWords] = parent.words[: self.at] if parent else []
        self.frames: list[np.ndarray] = parent.frames[: self.at] if parent else []
        self.status: Status = "making"
        self.game: Game | None = None
        self.plan = ""
        self.video: File | None = None
        self._will_hold, self._holds = will_hold, 0
        self._next = 0
        self._keyed: int | None = None
        say(
            {
                "type": "take",
                "take": number,
                "parent": parent.number if parent else None,
                "at": self.at,
                "left_at": left_at,
                "prompt": request.prompt,
                "seed": request.seed,
                "mode": request.mode,
                "steps": settings.steps,
                "picture": request.first_image is not None,
                "example": self.example,
                "starts": list(stream.starts),
            }
        )
        self.turn("making")

    @property
    def is_open(self) -> bool:
        """Whether it may go on, and keeps the sampler's memory for that."""
        return self.status in ("making", "paused")

    @property
    def held_bytes(self) -> int:
        """Of the frames that it does not share with the take it left, as pixels and as messages.

        While it is open, those that it will hold at its end count too.
        """
        return max(self._holds, self._will_hold) if self.is_open else self._holds

    def turn(self, status: Status, why: str = "") -> None:
        """Enter a status and say so; the last three are for good and free the sampler's memory."""
        self.status = status
        if not self.is_open:
            self.take_keys(False)
            self.stream.close()
        self._say({"type": "status", "take": self.number, "status": status, "why": why})

    def wait(self) -> float:
        """Seconds until its next piece of work is due: 0, but for a game that is ahead of the clock."""
        if self.game is None or self._next == 0 or not self._between_chunks():
            return 0.0
        return max(0.0, self.game.wait(self.stream.starts[self._next]))

    def advance(self) -> None:
        """One piece of work. An error ends this take, not the studio."""
        try:
            self._steer()
            event = next(self.stream, None)
        except Exception as error:  # whatever a device may throw
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.turn("failed", reason)
            return
        if isinstance(event, TextToken):
            self._spoken(event)
        elif isinstance(event, ChunkStarted):
            self._started(event)
        elif isinstance(event, FramesDecoded):
            self._decoded(event)
        elif isinstance(event, Finished):
            self._planned(event.result.plan)
            self.turn("finished", "the model ended it" if event.result.ended else "")
        else:
            self.turn("finished", "the model ended it before its first chunk: try another seed")

    def edit(self, chunk: int, text: str) -> None:
        """The user's words for a chunk to come. Raises ValueError when it is too late."""
        if not self.is_open:
            raise ValueError("this take is not being made any more: branch from one of its chunks instead")
        if chunk < self.at:
            raise ValueError("this chunk is the other take's, too: branch from it instead")
        self.stream.intervene(chunk, text)
        self._say({"type": "planned", "take": self.number, "chunk": chunk, "text": text})

    def take_keys(self, on: bool) -> None:
        """Hand the game's controls to the person, or back to the model."""
        if on and not self.is_open:
            raise ValueError("this take is not being made any more: start a new game")
        if on and self.request.mode != "tv2tv":
            raise ValueError(NO_KEYS)
        if on != (self.game is not None):
            self.game = Game() if on else None
            self._say({"type": "game", "take": self.number, "on": on})

    def record(self) -> dict[str, Any]:
        """What the transcript says of it."""
        return {
            "take": self.number,
            "parent": self.parent.number if self.parent else None,
            "branched_at_chunk": self.left_at,
            "prompt": self.request.prompt,
            "seconds": self.request.seconds,
            "seeds": self._seeds(),
            "mode": self.request.mode,
            "first_picture": self.request.first_image is not None,
            "example": self.example,
            "settings": asdict(self.settings),
            "status": self.status,
            "chunks": [asdict(words) for words in self.words],
            "plan": self.plan,
        }

    def _seeds(self) -> list[dict[str, int]]:
        """Which seed its chunks were drawn with, from which chunk on."""
        before = self.parent._seeds() if self.parent else []
        before = [entry for entry in before if entry["from_chunk"] < self.at]
        return [*before, {"from_chunk": self.at, "seed": self.request.seed}]

    def _steer(self) -> None:
        """Say what the keys say before the next chunk: once, and as late as can be."""
        chunk = self._next
        if self.game is None or not self._between_chunks() or self._keyed == chunk:
            return
        if chunk < len(self.request.given_words):  # these stay: the keys count from the next chunk on
            return
        self._keyed = chunk
        with suppress(ValueError):  # no room left for the user's words: the model speaks
            self.edit(chunk, self.game.words(self._one_frame(chunk)))
            self.game.used(self._one_frame(chunk))

    def _between_chunks(self) -> bool:
        """Whether a chunk of its own is next, and not begun."""
        return self.at <= self._next <= len(self.frames) and self._next < len(self.stream.starts)

    def _spoken(self, event: TextToken) -> None:
        if event.chunk >= self.at:
            self._say({"type": "token", "take": self.number, "chunk": event.chunk, "text": event.text})
        if event.chunk == 0 and self.request.mode == "think2v":
            self.plan += event.text

    def _planned(self, plan: str) -> None:
        self.plan = plan
        if plan:
            self._say({"type": "plan", "take": self.number, "text": plan})

    def _started(self, event: ChunkStarted) -> None:
        self._next = event.chunk + 1
        if event.chunk == 0:
            self._planned(self.plan)  # of which the tokens are outdated when the words come
        if event.chunk >= self.at:
            self.words[event.chunk :] = [event.words]
            said = {"text": event.words.text, "source": event.words.source, "cut": event.words.cut}
            self._say({"type": "words", "take": self.number, "chunk": event.chunk, **said})

    def _decoded(self, event: FramesDecoded) -> None:
        if event.chunk >= self.at:
            self.frames[event.chunk :] = [event.frames]
            first = round(event.start_seconds * FPS)
            packed = pack_frames(self.number, event.chunk, first, event.frames)
            self._holds += event.frames.nbytes + len(packed)
            self._say({"type": "frames", "take": self.number, "chunk": event.chunk}, packed)

    def _one_frame(self, chunk: int) -> bool:
        following = self.stream.starts[chunk + 1 : chunk + 2]
        return bool(following) and round((following[0] - self.stream.starts[chunk]) * FPS) == 1
