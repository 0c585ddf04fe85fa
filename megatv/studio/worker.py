"""The one thread in which all sampling happens, a piece at a time, so that everything can be stopped."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress

from megatv.log import say
from megatv.studio import limits
from megatv.studio.protocol import AnyCommand
from megatv.studio.session import Model, Session, Viewer
from megatv.studio.take import Take

BUSY = "the studio is busy: too many wishes wait for it, try again in a moment"
IDLE_SECONDS = 0.5
"""How often an idle worker looks for sessions that were left."""
LONGEST_AHEAD = 1.0
"""After a command of any length, takes go on for so long at most before the next command is heard."""


class Worker:
    """Holds the sessions; between two pieces of work it hears commands, in their order.

    Takes that are being made advance in turn, each by one event of its stream. Commands come first, but while
    takes are due they get no more time than these: some, such as a start from a picture, take as long as
    pieces of work do, and who asks without pause would stop everybody's videos.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.sessions: dict[str, Session] = {}
        self._jobs: queue.Queue[Callable[[], None]] = queue.Queue(limits.MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="studio", daemon=True)
        self._ended: deque[Session] = deque()
        self._turn = 0
        self._ahead = 0.0  # seconds that commands had more than takes that were due
        self._stopping = False

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End after the piece of work in progress."""
        self._stopping = True
        self.wake()
        self._thread.join()

    def new_session(self, network: str = "") -> Session:
        """One that was asked for from `network`. ValueError when its places, or all, are being watched."""
        own = [session for session in self.sessions.values() if session.network == network]
        if len(own) >= limits.MAX_SESSIONS_OF_ONE:
            self._forget_one(
                own,
                f"{limits.MAX_SESSIONS_OF_ONE} sessions started from your address are being watched: "
                "close the tabs of one",
            )
        elif len(self.sessions) >= limits.MAX_SESSIONS:
            self._forget_one(
                [*self.sessions.values()],
                f"{limits.MAX_SESSIONS} sessions are being watched, more the studio does not hold: "
                "join one of them, or close its tabs",
            )
        session = Session(secrets.token_urlsafe(9), self._model, self._admit, network)
        self.sessions[session.name] = session
        return session

    def _forget_one(self, sessions: list[Session], refusal: str) -> None:
        """Make room by a session that nobody watches, first of the network that has most."""
        left = [session for session in sessions if session.left is not None]
        if not left:
            raise ValueError(refusal)
        held = Counter(session.network for session in self.sessions.values())
        self._forget(min(left, key=lambda one: (-held[one.network], one.watched, one.left)))

    def takes(self) -> list[Take]:
        """All there are, those of sessions that are about to end included; from any thread."""
        sessions = (*tuple(self.sessions.values()), *tuple(self._ended))
        return [take for session in sessions for take in tuple(session.takes.values())]

    def ask(self, session: Session, viewer: Viewer, command: AnyCommand) -> None:
        """Have a command done; what is wrong with it goes to the viewer. ValueError when too many wait."""

        def job() -> None:
            viewer.waiting -= 1
            try:
                session.obey(command)
            except ValueError as error:
                viewer.tell({"type": "error", "message": str(error)})

        if viewer.waiting >= limits.MAX_WAITING_OF_ONE:
            raise ValueError(BUSY)
        self._put(job)
        viewer.waiting += 1

    def _put(self, job: Callable[[], None]) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise ValueError(BUSY) from None

    def wake(self) -> None:
        """There may be work again: somebody came."""
        if self._jobs.empty():
            self._put(lambda: None)

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._end_left_sessions()
                job, take = self._choose()
                began = time.monotonic()
                if job:
                    job()
                    self._ahead = min(self._ahead + time.monotonic() - began, LONGEST_AHEAD)
                elif take:
                    take.advance()
                    seconds = time.monotonic() - began
                    self._ahead = max(self._ahead - seconds, -seconds)
            except Exception as error:  # a fault of ours must not end everybody's work
                say(f"studio: {type(error).__name__}: {error}")
        for session in (*self.sessions.values(), *self._ended):
            session.close()

    def _choose(self) -> tuple[Callable[[], None] | None, Take | None]:
        """The next command, unless commands are ahead; else the next take in turn that is due; else wait."""
        takes = [take for session in tuple(self.sessions.values()) for take in session.working()]
        waits = [take.wait() for take in takes]
        due = [take for take, wait in zip(takes, waits, strict=True) if wait == 0.0]
        if not due:
            self._ahead = 0.0
        if self._ahead <= 0:
            with suppress(queue.Empty):
                wait = min([IDLE_SECONDS, *waits])
                return (self._jobs.get(timeout=wait) if wait > 0 else self._jobs.get_nowait()), None
        if not due:
            return None, None
        self._turn += 1
        return None, due[self._turn % len(due)]

    def _end_left_sessions(self) -> None:
        now = time.monotonic()
        for session in tuple(self.sessions.values()):
            left = session.left  # the web's thread changes it
            if left is not None and now - left > limits.KEEP_SECONDS:
                self._forget(session)
        while self._ended:
            self._ended.popleft().close()

    def _forget(self, session: Session) -> None:
        if self.sessions.pop(session.name, None) is not None:
            session.ended = True
            self._ended.append(session)

    def _admit(self, size: int, network: str) -> None:
        """Raise ValueError when there is no room for a take of a session of `network`.

        size   bytes of frames that the take will hold
        """
        takes = self.takes()
        if sum(take.is_open for take in takes) >= limits.MAX_OPEN_IN_ALL:
            raise ValueError(
                f"{limits.MAX_OPEN_IN_ALL} takes are being made or paused in this studio: wait for one"
            )
        own = [
            take
            for session in tuple(self.sessions.values())
            if session.network == network
            for take in tuple(session.takes.values())
        ]
        if sum(take.is_open for take in own) >= limits.MAX_OPEN_OF_ONE:
            raise ValueError(
                f"{limits.MAX_OPEN_OF_ONE} takes of sessions started from your address are being made "
                "or paused: stop one, or wait for it"
            )
        free = limits.MAX_HELD_BYTES - sum(take.held_bytes for take in takes)
        if size > free:
            raise ValueError(
                f"this video needs {size / (1 << 20):.1f} MiB for its frames, and the studio has "
                f"{max(0, free) / (1 << 20):.1f} MiB left: make a shorter one, or close takes"
            )
