"""Objects of an S3 bucket, fetched into new files and never more bytes than asked for. The only module that
knows boto3.

Credentials and region come from the environment as boto3 reads it (AWS_*), the endpoint from S3_ENDPOINT_URL.
A location is `s3://bucket/prefix` and nothing else: no other scheme, no user, password or query. It may stand
in somebody else's config, and what is fetched is asked for in the user's name.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from megatv.in_time import in_time
from megatv.regular_file import create_file
from megatv.untrusted import printable

TIMEOUT_SECONDS = 60.0
HEAD_TRIES = 3
"""How often the SDK asks within one download; all of that takes at most so many times TIMEOUT_SECONDS."""
MIN_BYTES_PER_SECOND = 16 << 10
"""A body may take TIMEOUT_SECONDS and, for what came of it, as long as at this rate."""
MAX_ANSWER_BYTES = 64 << 10
"""Of what the SDK reads whole: all answers but an object."""
REFUSED = {"401", "403", "404", "NoSuchKey", "NoSuchBucket", "AccessDenied"}
"""Answers that asking again does not change."""
MAX_REASON = 500
"""Characters of a reason, part of which the store writes."""
_LOCATION = re.compile(
    r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{1,254})(?P<prefix>(/[^/?#\\\x00-\x1f\x7f]+)*)/?"
)


def parse_location(location: str) -> tuple[str, str]:
    """(bucket, prefix) of `s3://bucket/prefix`. Raises ValueError, without the password it may hold."""
    found = _LOCATION.fullmatch(location)
    if found and not {".", ".."} & set(found["prefix"].split("/")):
        return found["bucket"], found["prefix"].strip("/")
    scheme, _, rest = location.partition("://")
    shown = f"{scheme[:20]}://{re.split('[?#]', rest)[0].rpartition('@')[2][:100]}"
    raise ValueError(
        f"{shown!r}: shards are read from a directory or from s3://bucket/prefix, without user, password or "
        "query and by no other scheme; correct data.train and data.val, and give credentials in AWS_*, the "
        "endpoint in S3_ENDPOINT_URL"
    )


def download(location: str, name: str, local: Path, most: int) -> tuple[str, bool]:
    """Fetch the object `name` below `location` into the new file `local`, at most `most` bytes.

    Returns why it failed ("" when it did not) and whether trying again is pointless.
    """
    bucket, prefix = parse_location(location)
    local.unlink(missing_ok=True)
    try:
        client = _client(os.environ.get("S3_ENDPOINT_URL"))
        key = f"{prefix}/{name}".lstrip("/")
        answer = in_time(HEAD_TRIES * TIMEOUT_SECONDS, lambda: client.get_object(Bucket=bucket, Key=key))
        with closing(answer["Body"]) as body, create_file(local) as file:
            size = 0
            for block in body.iter_chunks(1 << 20):
                size += len(block)
                if size > most:
                    return "it has more bytes than it should", True
                file.write(block)
    except ImportError as error:
        raise ValueError(
            f"{location}: needs {error.name}: `pip install --no-deps --require-hashes --only-binary :all: "
            "-r launch/lock/data.txt`"
        ) from None
    except Exception as error:  # the SDK and its layers have their own errors; the reason goes on
        answer = getattr(error, "response", None)  # of a connection that broke, there is the attribute, None
        code = str(answer["Error"].get("Code")) if isinstance(answer, dict) and "Error" in answer else ""
        reason = printable(" ".join(str(error).split()))[:MAX_REASON]
        return reason or type(error).__name__, code in REFUSED
    return "", False


class _HeadInTime:
    """Of a connection: the head of an answer comes within TIMEOUT_SECONDS, or the connection is ended.

    A single read has a time limit of its own, but a head may come byte by byte, and after as many
    `100 Continue` as a server likes.
    """

    sock: socket.socket

    def getresponse(self) -> Any:
        """The answer, its head read. Raises TimeoutError."""
        over, sock = threading.Event(), self.sock

        def end() -> None:
            over.set()
            with suppress(OSError):  # it has ended meanwhile
                sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(TIMEOUT_SECONDS, end)
        timer.daemon = True
        timer.start()
        try:
            answer = super().getresponse()  # type: ignore[misc]
        finally:
            timer.cancel()
        if over.is_set():  # what came of the head passes for a whole one
            answer.close()
            raise TimeoutError("its head comes too slowly")
        return answer


class _Reply:
    """The body of an answer in place of urllib3's: read as it comes, in time, and only an object to its end.

    A thread ends the connection when the time is over: whoever reads may be waiting for the end of a line.
    """

    def __init__(self, raw: Any) -> None:
        self._raw, self._size, self._began = raw, 0, time.monotonic()
        self._read = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _seconds_left(self) -> float:
        return self._began + TIMEOUT_SECONDS + self._size / MIN_BYTES_PER_SECOND - time.monotonic()

    def _watch(self) -> None:
        while (left := self._seconds_left()) > 0:
            if self._read.wait(left):
                return
        with suppress(OSError, TypeError):  # it has ended meanwhile
            self._raw._sock_shutdown(socket.SHUT_RDWR)  # its `shutdown` leaves the other side writing

    def read(self, size: int | None = None) -> bytes:
        """At most `size` bytes, not waiting until there are so many; b"" at the end. Raises TimeoutError."""
        try:
            block: bytes = self._raw.read1(size)
        except Exception:
            self._in_time()
            raise
        self._in_time()
        self._size += len(block)
        if not block:
            self._read.set()
        return block

    def _in_time(self) -> None:
        if self._seconds_left() <= 0:
            raise TimeoutError("it comes too slowly")

    def stream(self) -> Iterator[bytes]:
        """What the SDK takes for the whole body of an answer other than an object."""
        left = MAX_ANSWER_BYTES
        with closing(self), suppress(TimeoutError):
            while left and (block := self.read(left)):
                left -= len(block)
                yield block

    def close(self) -> None:
        """End the connection; no other request shall find the rest of the body there."""
        self._read.set()
        self._raw.close()


@functools.cache
def _client(endpoint: str | None) -> Any:
    """Made once, for all threads: it takes longer than a small object."""
    from boto3.session import Session
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": HEAD_TRIES}
    config = Config(read_timeout=TIMEOUT_SECONDS, retries=retries)
    client = Session().client("s3", config=config, endpoint_url=endpoint)
    pools = client._endpoint.http_session._pool_classes_by_scheme  # of proxies, too
    for scheme, pool in [*pools.items()]:
        connection = type("Connection", (_HeadInTime, pool.ConnectionCls), {})
        pools[scheme] = type("Pool", (pool,), {"ConnectionCls": connection})

    def send(request: Any, **_: Any) -> Any:
        request.stream_output = True  # else the body is read before it is replaced
        answer = client._endpoint.http_session.send(request)
        answer.raw = _Reply(answer.raw)
        return answer

    # of all operations: before GetObject the SDK may ask for a session, or where the bucket is
    client.meta.events.register("before-send.s3", send)
    return client
