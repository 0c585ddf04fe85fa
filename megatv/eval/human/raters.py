"""Who takes part: a number, a name to be greeted by, and a secret that nobody else has.

A rater's token is `NUMBER.SECRET`. The database keeps a hash of the secret alone, so that a copy of the file
lets nobody in; a number only says which hash to compare with. Reports and exports call people `rater-NUMBER`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import defaultdict, deque
from dataclasses import dataclass

from megatv.network import network_of

MAX_NAME = 40
SECRET_BYTES = 24
HOUR_SECONDS = 3600.0


@dataclass(frozen=True)
class Rater:
    """A person. `id`: what sides and order are drawn from; `joined`: Unix seconds, None: not yet come."""

    number: int
    id: str
    name: str
    joined: float | None = None

    @property
    def label(self) -> str:
        """What others read instead of the name."""
        return f"rater-{self.number}"


class UnknownRaterError(ValueError):
    """A request without the token of a rater of this study."""


def new_secret() -> str:
    """192 random bits, to be shown once."""
    return secrets.token_urlsafe(SECRET_BYTES)


def hash_secret(secret: str) -> str:
    """What is kept of a secret. It has too many bits to be guessed from a fast hash."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def same(a: str, b: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(a.encode(errors="replace"), b.encode(errors="replace"))


def read_bearer(authorization: str) -> str:
    """The token in what a request's header says, `Bearer TOKEN`; "" where there is none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def read_token(token: str) -> tuple[int, str]:
    """Number and secret of a token; 0, which nobody has, when it is none."""
    number, _, secret = token.partition(".")
    return (int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0), secret


def read_name(name: str) -> str:
    """A name as it is kept. Raises ValueError for one that is empty, long or not printable."""
    name = " ".join(name.split())
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise ValueError(f"a name has 1 to {MAX_NAME} letters, all of which can be seen")
    return name


class Arrivals:
    """How many joined from each network within the last hour, by the monotonic clock."""

    def __init__(self, per_hour: int) -> None:
        self._per_hour = per_hour
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def full(self, address: str) -> bool:
        """Whether nobody else may join from an address now."""
        times = self._times.get(network_of(address), deque())
        while times and times[0] < time.monotonic() - HOUR_SECONDS:
            times.popleft()
        return len(times) >= self._per_hour

    def note(self, address: str) -> None:
        """Somebody joined."""
        self._times[network_of(address)].append(time.monotonic())
