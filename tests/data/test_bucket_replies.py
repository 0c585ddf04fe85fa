"""What a store may answer besides the object: a reason in one sentence, in bounded memory and time."""

import socket
import struct
import threading
import time
import tracemalloc

import pytest

from megatv.data import bucket, cache, remote

pytest.importorskip("boto3")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def store(monkeypatch):
    """A server on loopback whose answers a test writes: `store(answer)`, with `answer(connection)`."""
    listening = socket.create_server(("127.0.0.1", 0))
    told = {"asked": 0}

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    def one(connection):
        with connection:
            try:
                while b"\r\n\r\n" not in connection.recv(1 << 16):
                    pass
                told["asked"] += 1
                told["answer"](connection)
            except OSError:
                pass

    threading.Thread(target=serve, daemon=True).start()
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(cache, "BACKOFF_SECONDS", 0.0)
    yield told
    listening.close()


OK = b"HTTP/1.1 200 OK\r\n"


def reset(connection):
    connection.sendall(OK + b"Content-Length: 1000\r\n\r\nabc")
    time.sleep(0.1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def to_itself(connection):
    port = connection.getsockname()[1]
    head = f"HTTP/1.1 307 T\r\nLocation: http://127.0.0.1:{port}/x\r\nContent-Length: 0\r\n\r\n"
    connection.sendall(head.encode())


BROKEN = {
    "closed": lambda connection: None,
    "cut short": lambda connection: connection.sendall(OK + b"Content-Length: 1000\r\n\r\nabc"),
    "reset": reset,
    "garbage": lambda connection: connection.sendall(b"\x00\xff garbage\r\n\r\n"),
    "a bad chunk": lambda connection: connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "silence": lambda connection: time.sleep(3),
    "a redirect to itself": to_itself,
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_a_connection_that_breaks_is_a_reason_and_tried_again(tmp_path, monkeypatch, store, answer):
    monkeypatch.setattr(bucket, "TIMEOUT_SECONDS", 1.0)
    store["answer"] = answer
    reason, final = bucket.download("s3://clips/set", "index.json", tmp_path / "a", 1000)
    assert reason and reason.isprintable() and len(reason) <= bucket.MAX_REASON and not final

    monkeypatch.setattr(cache, "ATTEMPTS", 2)
    before = store["asked"]
    with pytest.raises(
        ValueError, match=r"s3://clips/set/index.json: cannot be fetched \(.*\); check"
    ) as error:
        remote.open_shards("s3://clips/set", remote.DataConfig(train="x", cache_dir=str(tmp_path / "cache")))
    assert "\n" not in str(error.value) and store["asked"] >= before + 2


def test_what_a_store_says_obeys_no_terminal(tmp_path, store):
    body = b"<Error><Code>AccessDenied</Code><Message>" + b"A\x1b[31m&#27;" * 9 + b"</Message></Error>"
    head = b"HTTP/1.1 403 F\r\nContent-Length: %d\r\n\r\n" % len(body)
    store["answer"] = lambda connection: connection.sendall(head + body)
    reason, final = bucket.download("s3://clips/set", "index.json", tmp_path / "a", 1000)
    assert reason.isprintable() and len(reason) <= bucket.MAX_REASON and final


def test_the_body_of_an_error_is_bounded_in_memory(tmp_path, store):
    def flood(connection):
        connection.sendall(b"HTTP/1.1 404 N\r\nContent-Length: 700000000\r\n\r\n")
        for _ in range(700):
            connection.sendall(b"x" * 1_000_000)

    store["answer"] = flood
    tracemalloc.start()
    reason, final = bucket.download("s3://clips/set", "index.json", tmp_path / "a", 1000)
    assert reason and final
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def drip(head, piece, pause=0.1):
    def answer(connection):
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return answer


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        drip(OK + b"Content-Length: 1000\r\n\r\n", b"x"),
        drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        drip(b"HTTP/1.1 404 N\r\nContent-Length: 1000\r\n\r\n", b"x"),
        drip(OK, b"a"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        drip(CHUNKED, b"0"),
        drip(CHUNKED + b"1;", b"x"),
        drip(CHUNKED + b"0\r\n", b"a: b\r\n"),
        drip(CHUNKED + b"0\r\n", b"a: b\r\n" * 10_000, pause=0),
        drip(CHUNKED.replace(b"200 OK", b"404 N") + b"0\r\n", b"a: b\r\n"),
    ],
    ids=[
        "body",
        "chunks",
        "error",
        "head",
        "continue",
        "chunk line",
        "chunk extension",
        "trailers",
        "trailer flood",
        "trailers of an error",
    ],
)
def test_an_answer_that_drips_is_left_in_time(tmp_path, monkeypatch, store, answer):
    monkeypatch.setattr(bucket, "TIMEOUT_SECONDS", 0.5)
    store["answer"] = answer
    before = threading.active_count()
    tracemalloc.start()
    began = time.monotonic()
    reason, _ = bucket.download("s3://clips/set", "index.json", tmp_path / "a", 1000)
    assert reason and time.monotonic() - began < 20
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    leave(before)


def leave(before):
    """Wait until no thread is left: none that reads, and none of the store's, which end with connections."""
    for _ in range(1000):
        if threading.active_count() <= before:
            return
        time.sleep(0.01)
    raise AssertionError(f"{threading.active_count() - before} threads are left")


def test_a_line_that_does_not_end_takes_little_memory(tmp_path, store):
    store["answer"] = drip(CHUNKED, b"0" * 1_000_000, pause=0)
    tracemalloc.start()
    reason, _ = bucket.download("s3://clips/set", "index.json", tmp_path / "a", 1000)
    assert reason and tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_an_answer_that_came_in_time_leaves_nobody_waiting(tmp_path, store):
    store["answer"] = lambda connection: connection.sendall(OK + b"Content-Length: 3\r\n\r\nabc")
    before = threading.active_count()
    for name in ("a", "b", "c", "d"):
        assert bucket.download("s3://clips/set", name, tmp_path / name, 1000) == ("", False)
    while threading.active_count() > before + 1:  # the last connection's own
        time.sleep(0.01)


def test_no_answer_to_another_request_is_read_whole(tmp_path, store):
    """For a bucket of this name the SDK first asks for a session, and reads what it is answered."""

    def flood(connection):
        connection.sendall(OK + b"Content-Type: application/xml\r\n\r\n")
        for _ in range(700):
            connection.sendall(b" " * 1_000_000)

    store["answer"] = flood
    tracemalloc.start()
    name = "clips--use1-az4--x-s3"
    reason, _ = bucket.download(f"s3://{name}/set", "index.json", tmp_path / "a", 1000)
    assert reason and tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def test_an_object_is_fetched_whole(tmp_path, store):
    body = bytes(range(256)) * 20_000
    store["answer"] = lambda connection: connection.sendall(
        OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    )
    assert bucket.download("s3://clips/set", "a", tmp_path / "a", len(body)) == ("", False)
    assert (tmp_path / "a").read_bytes() == body
