"""A server that means harm: what it sends is bounded, goes nowhere else, and the key stays where it was."""

import gzip
import json
import os
import socket
import stat
import threading
import time

import numpy as np
import pytest

from megatv.curate import endpoint as module
from megatv.curate import post as post_module
from megatv.curate.endpoint import Endpoint
from megatv.curate.recipe import EndpointSettings
from megatv.curate.words import _caption, _score

pytest.importorskip("httpx", reason="the endpoint is asked through httpx; pip install httpx")
KEY = "sk-hunter2"
GOOD = b'{"choices": [{"message": {"content": "{\\"caption\\": \\"She jumps.\\"}"}}]}'


def http(body, status="200 OK", *headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def reply(content, **more):
    return http(json.dumps({"choices": [{"message": {"content": content}}], **more}).encode())


@pytest.fixture
def serve():
    """serve(*answers): the port of a server that sends raw bytes, one answer a connection, and what it heard.

    An answer is bytes, or a generator of bytes that are sent one after the other.
    """
    sockets = []

    def start(*answers):
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)
        heard = []

        def run():
            for answer in answers:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    data = b""
                    while b"\r\n\r\n" not in data:
                        data += peer.recv(65536)
                    head, _, body = data.partition(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    while len(body) < length:
                        body += peer.recv(65536)
                    heard.append((head.decode(), body))
                    try:
                        for piece in [answer] if isinstance(answer, bytes) else answer:
                            peer.sendall(piece)
                    except OSError:
                        pass

        threading.Thread(target=run, daemon=True).start()
        return server.getsockname()[1], heard

    yield start
    for server in sockets:
        server.close()


@pytest.fixture
def ask(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setenv("SEER_API_KEY", KEY)

    def call(*answers, check=_caption, **options):
        port, call.heard = serve(*answers)
        options = {"retries": 0, "timeout_seconds": 5.0, "api_key_env": "SEER_API_KEY", **options}
        settings = EndpointSettings(f"http://127.0.0.1:{port}/v1", "seer", **options)
        call.endpoint = Endpoint(settings, tmp_path / "cache")
        return call.endpoint.ask(["Say.", np.zeros((8, 8, 3), np.uint8)], check)

    return call


def refused(ask, match, *answers, **options):
    with pytest.raises(ValueError, match=match) as caught:
        ask(*answers, **options)
    said = str(caught.value)
    assert KEY not in said and said.isprintable() and len(said) < 1000
    return said


def test_the_servers_of_these_tests_can_be_understood(ask):
    assert ask(http(GOOD)) == "She jumps."
    head, _ = ask.heard[0]
    assert "accept-encoding: identity" in head.lower() and f"Authorization: Bearer {KEY}" in head


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
def test_a_redirect_takes_the_key_nowhere(ask, serve, status):
    port, heard = serve(http(GOOD))
    elsewhere = f"Location: http://127.0.0.1:{port}/v1/chat/completions"
    refused(ask, f"answers {status[:3]}", http(b"", status, elsewhere))
    time.sleep(0.2)
    assert not heard


def test_proxies_of_the_environment_see_nothing(ask, serve, monkeypatch):
    port, heard = serve(http(GOOD))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert ask(http(GOOD)) == "She jumps." and not heard


def drip(start, piece, seconds=0.05):
    yield start
    for _ in range(400):
        time.sleep(seconds)
        yield piece


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
     b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
    ids=["nothing", "header", "body", "error body", "chunks"],
)  # fmt: skip
def test_a_server_that_sends_a_byte_at_a_time_is_left_in_time(ask, start):
    piece = b"1\r\n \r\n" if b"chunked" in start else b"a"
    began = time.monotonic()
    refused(ask, "does not answer within 0.5 s", drip(start, piece if start else b""), timeout_seconds=0.5)
    assert time.monotonic() - began < 5


def test_a_name_that_is_not_resolved_is_left_in_time(monkeypatch):
    resolve, end = socket.getaddrinfo, threading.Event()

    def hang(*args, **kwargs):
        end.wait(20)
        return resolve(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    with pytest.raises(post_module.PostError, match=r"does not answer within 0\.5 s"):
        post_module.post("http://localhost:1/v1", {}, {}, 0.5)
    assert time.monotonic() - began < 10
    end.set()


def endless(start):
    yield start
    while True:
        yield b" " * 65536


@pytest.mark.parametrize("status", ["200 OK", "401 No", "500 Broken"])
def test_answers_have_a_size(ask, status):
    start = f"HTTP/1.1 {status}\r\n\r\n".encode()
    refused(ask, "sends more than 1 MiB for one answer", endless(start))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP"])
def test_a_compressed_answer_is_not_opened(ask, monkeypatch, encoding):
    bomb = gzip.compress(bytes(1 << 24))
    monkeypatch.setattr(post_module, "MAX_ANSWER_BYTES", len(bomb))
    refused(ask, "compresses its answer", http(bomb, "200 OK", f"Content-Encoding: {encoding}"))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"[" * 100_000, "another protocol .*nested too deeply"),
        (b'{"choices": ' + b"9" * 5000 + b"}", "another protocol .*too many digits"),
        (b"\xff\xfe", "another protocol"),
        (b"[]", "no object"),
        (b'{"choices": {"0": 1}}', "no list `choices`"),
        (b'{"choices": []}', "no list `choices`"),
        (b'{"choices": [{}, {}]}', "no list `choices` of exactly one"),
        (b'{"choices": [{"message": null}]}', "no choices.0..message"),
        (b'{"error": {"message": "context too long"}}', "an error: .*context too long"),
        (b'{"choices": [{"message": {"content": 3}}]}', "the content is no text"),
        (b'{"choices": [{"message": {"content": ["a"]}}]}', "the content is no text"),
        (b'{"choices": [{"message": {"content": [{"type": "image_url"}]}}]}', "a part of an unknown type"),
        (b'{"choices": [{"message": {"content": [{"type": "text"}]}}]}', "a part of it has none"),
        (b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]', "another protocol"),
        (gzip.compress(GOOD, mtime=0), "another protocol"),
    ],
)  # fmt: skip
def test_answers_of_another_protocol_are_one_sentence(ask, body, fault):
    refused(ask, fault, http(body))


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": None}, [1], "x", 3, {"prompt_tokens": "7"},
     *({"prompt_tokens": 1, "completion_tokens": count} for count in
       (float("nan"), float("inf"), 1e400, -1, 10**30, True, 1.5, [1], "n/a"))],
)  # fmt: skip
def test_a_usage_that_counts_no_tokens_costs_no_caption(ask, usage):
    """It is counted as missing, not as zero."""
    assert ask(reply('{"caption": "x"}', usage=usage), prompt_price=1.0) == "x"
    counted = ask.endpoint.usage
    assert (counted.uncounted, counted.prompt_tokens, counted.cost) == (1, 0, 0)


@pytest.mark.parametrize("kind", ["text/html", "text/event-stream", "application/octet-stream", "\xff"])
def test_the_type_that_a_server_gives_its_answer_does_not_matter(ask, kind):
    assert ask(http(GOOD, "200 OK", f"Content-Type: {kind}")) == "She jumps."


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"caption": ' + "[" * 100_000 + "}", "nested too deeply"),
        *[('{"quality_score": ' + "[" * n + "]" * n + "}", "too deeply|from 1 to") for n in range(900, 995)],
        ('{"quality_score": ' + "9" * 5000 + "}", "too many digits"),
        ('{"quality_score": ' + "9" * 4000 + "}", "from 1 to 10"),
        ('{"quality_score": 1e999}', "from 1 to 10"),
        ('{"quality_score": NaN}', "from 1 to 10"),
        ("{" + ", ".join(f'"k{n}": 1' for n in range(30_000)) + "}", "exactly the key"),
        ('{"quality_score": "\\ud800"}', "lone surrogate"),
        ('{"quality_score": "\\u001b[2J\x1b[2J"}', "quality_score|JSON"),
    ],
)  # fmt: skip
def test_replies_of_a_wrong_form_are_one_short_sentence(ask, content, fault):
    refused(ask, fault, reply(content), reply(content), check=_score)


@pytest.mark.parametrize(
    "answer",
    [
        http(f"who is {KEY}?".encode(), "401 No"),
        http(b"x" * 195 + KEY.encode() + b" and more", "401 No"),
        http(KEY.encode() * 1000, "500 Broken"),
        http(GOOD, f"302 {KEY}", f"Location: https://example.com/{KEY}"),
        f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode(),
        f"HTTP/1.1 {KEY}\r\n\r\n".encode(),
        http(b"{}", "200 OK", f"Content-Encoding: {KEY}"),
        http(json.dumps({"choices": KEY}).encode()),
    ],
)
def test_errors_do_not_repeat_the_key(ask, answer):
    said = refused(ask, "chat/completions", answer)
    assert "hunter" not in said.replace("[API key]", "")


def ended_by(reason):
    return {"message": {"content": "Yes."}, "finish_reason": reason}


LONG_KEY = "sk-" + "".join(f"{n:02d}x" for n in range(20))


@pytest.mark.parametrize("left", [1, 2, 4, 10, 50])
@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("where", ["reason", "mark", "twice"])
def test_a_text_that_is_cut_within_the_key_does_not_show_the_rest(ask, monkeypatch, where, left, escaped):
    monkeypatch.setenv("SEER_API_KEY", LONG_KEY)
    text = {
        "reason": "~" * (100 - len(LONG_KEY) + left) + LONG_KEY,
        "mark": "<" + "a" * left + LONG_KEY + ">" + '{"caption": "A."}',
        "twice": "~" * (79 - len(LONG_KEY) + left) + LONG_KEY,
    }[where]
    choice = {"message": {"content": text}} if where == "mark" else ended_by(text)
    body = json.dumps({"choices": [choice]})
    if where == "twice":
        body = f'{{"{text}": 1, "{text}": 2}}'
    if escaped:
        body = body.replace(LONG_KEY, "".join(f"\\u{ord(c):04x}" for c in LONG_KEY))
    said = refused(ask, "127.0.0.1", http(body.encode()), http(body.encode()))
    assert not [n for n in range(len(LONG_KEY) - 8) if LONG_KEY[n : n + 8] in said]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"caption": f"Your key is {KEY}."}),
        '{"caption": "\\u0073k-hunter\\u0032"}',
        f'{{"caption": "a"}} {KEY}',
        KEY,
    ],
)
def test_replies_that_repeat_the_key_are_kept_nowhere(ask, tmp_path, content):
    try:
        assert KEY not in ask(reply(content), reply(content))
    except ValueError as error:
        assert KEY not in str(error)
    for file in (tmp_path / "cache").rglob("*.json"):
        assert KEY not in file.read_text() and KEY not in str(json.loads(file.read_text()))


def cached(ask, tmp_path):
    """The file of a reply that was kept."""
    ask(http(GOOD))
    (file,) = (tmp_path / "cache").rglob("*.json")
    return file


@pytest.fixture
def again(ask, serve, monkeypatch):
    """Ask the question of `cached` anew, of a server that answers otherwise."""

    def call():
        port, _ = serve(reply('{"caption": "Anew."}'))
        settings = ask.endpoint.settings
        real = module.post
        monkeypatch.setattr(
            module, "post", lambda url, *rest: real(f"http://127.0.0.1:{port}/v1/chat/completions", *rest)
        )
        return Endpoint(settings, ask.endpoint.cache).ask(["Say.", np.zeros((8, 8, 3), np.uint8)], _caption)

    return call


def test_replies_are_private_and_nothing_else_is_left(ask, tmp_path, again):
    old = os.umask(0o022)
    try:
        file = cached(ask, tmp_path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (
        stat.S_IMODE(file.parent.stat().st_mode) == stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    )
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [file] and again() == "She jumps."


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b"[]", b'"x"', b'{"reply": 3}', b'{"other": "x"}', b"\xff",
     b'{"reply": "' + b"[" * 100_000 + b'"}', json.dumps({"reply": '{"caption": 3}'}).encode(),
     json.dumps({"reply": '{"caption": "' + KEY + '"}'}).encode(),
     json.dumps({"reply": '{"caption": "' + " " * (8 << 20) + 'x"}'}).encode()],
    ids=range(12),
)  # fmt: skip
def test_a_kept_reply_is_checked_again(ask, tmp_path, again, content):
    cached(ask, tmp_path).write_bytes(content)
    assert again() == "Anew."


def test_a_link_in_place_of_a_reply_is_neither_read_nor_written_through(ask, tmp_path, again):
    file = cached(ask, tmp_path)
    target = tmp_path / "target.json"
    file.rename(target)
    before = target.read_bytes()
    file.symlink_to(target)
    with pytest.raises(ValueError, match="is a link that leads out of"):
        again()
    file.unlink()
    within = file.with_name("within.json")
    within.write_bytes(before)
    file.symlink_to(within.name)
    assert again() == "Anew." and not file.is_symlink() and within.read_bytes() == before


def test_a_linked_folder_of_replies_is_refused(ask, tmp_path, again):
    file = cached(ask, tmp_path)
    outside = tmp_path / "outside"
    file.parent.rename(outside)
    file.parent.symlink_to(outside)
    with pytest.raises(ValueError, match="is a link that leads out of"):
        again()


def test_a_named_pipe_in_place_of_a_reply_does_not_stop_the_run(ask, tmp_path, again):
    file = cached(ask, tmp_path)
    file.unlink()
    os.mkfifo(file)
    assert again() == "Anew."
