"""Replies of every shape: the right answer comes out, or one sentence that says why none does.

    pytest --hypothesis-profile=fuzz tests/curate/test_reply_fuzz.py        # 10,000 of each test

A reply is put together from what models and servers really send, so that it is known what was the answer in
it and what a draft. Never does a draft, a part of an answer or another exception come out, nor a wait beyond
the limits.
"""

import json
import socket
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from megatv.curate import endpoint as module
from megatv.curate.answers import json_object, quality_score, segment_captions
from megatv.curate.endpoint import Endpoint
from megatv.curate.post import Answer, PostError
from megatv.curate.recipe import EndpointSettings
from megatv.curate.words import _caption, _score, _texts

pytest.importorskip("httpx", reason="the endpoint is asked through httpx; pip install httpx")
RETRIES, MAX_TOKENS = 2, 100
SETTINGS = EndpointSettings("http://127.0.0.1:1/v1", "seer", retries=RETRIES, max_tokens=MAX_TOKENS)

# What is asked for: how it is read and checked, an answer and a draft as they are written, and the answer.
CAPTION = (json_object, _caption, '{"caption": "A {dog} jumps."}', '{"caption": "Draft."}', "A {dog} jumps.")
SCORE = (quality_score, _score, '{"quality_score": 8}', '{"quality_score": 3}', 8.0)
SEGMENTS = (
    segment_captions,
    lambda tree: _texts(tree, 2),
    '{"captions": ["He runs. She follows.", ""]}',
    '{"captions": ["Draft.", "Draft."]}',
    ["He runs. She follows.", ""],
)
LINES = (
    *SEGMENTS[:2],
    'Description of segment 1: He runs. She follows.\nDescription of segment 2: ""',
    "Description of segment 1: Draft.\nDescription of segment 2: Draft.",
    SEGMENTS[4],
)
KINDS = [CAPTION, SCORE, SEGMENTS, LINES]
TAGS = ("think", "thinking", "THINK", "thought", "reasoning", "seed:think", "analysis", "scratchpad")
PAIRS = [
    *((f"<{tag}>", f"</{tag}>") for tag in TAGS),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("", "</think>"),
    ("<plan>", "</plan>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("[DRAFT]", "[/DRAFT]"),
]
WORDS = st.one_of(
    st.sampled_from(["", "Sure!", "Here is the {JSON}:", "Note: I used {curly} braces.", "{", "}", "}}",
                     "```", "\n", "\u2028", "\x00", "\ud83d", "\ufffd", "<", "a < b", "$5", '"', "\\"]),
    st.text(max_size=8).filter(lambda text: "Description" not in text),
)  # fmt: skip


@st.composite
def replies(draw, kind):
    """What a model says, in whose end alone is the answer; its draft stands before it or within thoughts."""
    _, _, answer, draft, _ = kind
    whole = [answer, f"```json\n{answer}\n```", f"[{answer}]", f"{{{answer}}}", f"{answer}\n{answer}",
             f"<answer>{answer}</answer>", f"{answer}<|im_end|>"]  # fmt: skip
    broken = ["", answer[:-1] + ",}", answer.replace('"', "'"), answer[: len(answer) // 2],
              json.dumps(answer), answer[:-1] + ', "confidence": 1}', f'{{"answer": {answer}}}',
              answer[:-1] + ", " + answer[1:]]  # fmt: skip
    last = draw(st.sampled_from(whole) | st.sampled_from(whole) | st.sampled_from(broken))
    thoughts = []
    for opens, closes in draw(st.lists(st.sampled_from(PAIRS), max_size=2)):
        within = (
            draw(WORDS) + draw(st.sampled_from(["", draft, draft[:-2], answer[:9], "{", '{"'])) + draw(WORDS)
        )
        thoughts.append(opens + within + (closes if draw(st.integers(0, 3)) else ""))
    text = draw(WORDS) + "".join(thoughts) + draw(WORDS) + last + "\n" + draw(WORDS)
    if draw(st.integers(0, 7)) == 0 and last:
        text = f"{draft}\n{text}"  # a draft in the open: with an answer after it, whole or broken
    return text


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def completions(draw, kind):
    """(body of a completion, what a client may take from it): all of the text, or nothing."""
    text = draw(replies(kind))
    finish = draw(
        st.sampled_from(["stop"] * 6 + [None, None, "length", "content_filter", "abort", 3, ["stop"], ""])
    )
    cut = finish not in ("stop", None, "") or draw(st.integers(0, 9)) == 0
    if cut:
        text, finish = text[: draw(st.integers(0, len(text)))], "length" if finish in ("stop", "") else finish
    parts = [{"type": "thinking", "thinking": kind[3]}, {"type": "text", "text": text[:5]},
             {"type": "output_text", "text": text[5:]}]  # fmt: skip
    odd = [[{"type": "text"}], [text], [{"type": "image_url"}], None, 3, {"text": text}]
    content = draw(st.sampled_from([text] * 6 + [parts] * 3) | st.sampled_from([text, text, *odd]))
    message = {"role": "assistant", "content": content}
    message |= draw(
        st.sampled_from([{}, {}, {}, {"reasoning_content": kind[3]}, {"refusal": "No."}, {"refusal": None}])
    )
    choice = {"index": 0, "finish_reason": finish, "message": message}
    counts = st.sampled_from([0, 10, MAX_TOKENS, 10**30, -1, 1.5, "7", None, True, float("nan"), [1]])
    usage = draw(JUNK | st.fixed_dictionaries({"prompt_tokens": counts, "completion_tokens": counts}))
    if cut and finish is None:
        usage = {"prompt_tokens": 1, "completion_tokens": MAX_TOKENS}
    choices = draw(st.sampled_from([[choice]] * 12 + [[], [choice, choice], None, choice, [None], [{}]]))
    tree = {"choices": choices, "usage": usage}
    tree |= draw(
        st.sampled_from([{}, {}, {}, {"error": {"message": "context"}}, {"error": None}, {"id": "x"}])
    )
    return json.dumps(tree).encode(draw(st.sampled_from(["utf-8"] * 8 + ["utf-8-sig", "utf-16"])))


WAITS = ["", "0", "1", "59", "9" * 400, "nan", "-1", "inf", "soon", "Wed, 21 Oct 2065 07:28:00 GMT",
         "Wed, 21 Oct 2015 07:28:00 GMT", "1e3", "٣", "0x10"]  # fmt: skip


@st.composite
def answers(draw, kind):
    """What `post` brings: an Answer, or the PostError that it raises."""
    body = st.one_of(
        *[completions(kind)] * 6, st.binary(max_size=20), JUNK.map(lambda tree: json.dumps(tree).encode())
    )
    status = draw(st.sampled_from([200] * 12 + [*range(400, 430), *range(500, 530), 204, 302]))
    wait = st.sampled_from(WAITS) | st.text(max_size=30)
    failed = st.builds(PostError, st.text(max_size=20))
    answer = st.builds(Answer, st.just(status), body, wait)
    return draw(st.one_of(answer, answer, answer, answer, answer, failed))


def outcome(endpoint, kind):
    """The answer that comes out, or None for a ValueError that is one short line."""
    try:
        return endpoint.ask(["Say."], kind[1], kind[0])
    except ValueError as error:
        said = str(error)
        assert type(error) is ValueError and said.isprintable() and 0 < len(said) < 1000, error
        assert said.startswith("http://127.0.0.1:"), said
        return None


@given(st.sampled_from(KINDS), st.data())
def test_whatever_a_server_sends(kind, data):
    """Some answers one after the other; the last of them again and again."""
    sent, waits = [], []

    def post(url, body, headers, seconds):
        json.dumps(body, ensure_ascii=False).encode()  # is sent as text
        sent.append(None)
        assert len(sent) <= 2 * (RETRIES + 1)
        answer = data.draw(answers(kind), label="answer")
        if isinstance(answer, PostError):
            raise answer
        return answer

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(module, "post", post),
        mock.patch.object(module.time, "sleep", waits.append),
    ):
        endpoint = Endpoint(SETTINGS, Path(folder))
        found = outcome(endpoint, kind)
        assert found in (None, kind[4]) and type(found) in (type(None), type(kind[4])), found
        assert all(0 <= wait <= 60 for wait in waits) and endpoint.usage.cost == 0
        event("answered" if found is not None else "given up")
        if found is not None:  # and it is kept
            asked = len(sent)
            assert outcome(Endpoint(SETTINGS, Path(folder)), kind) == found and len(sent) == asked


@given(st.sampled_from(KINDS), st.data())
def test_the_answer_is_all_that_is_ever_read(kind, data):
    text = data.draw(replies(kind))
    read, check, *_, answer = kind
    try:
        tree = read(text)
        json.dumps(tree, ensure_ascii=False).encode()
        assert check(tree) == answer
    except ValueError as error:
        assert str(error)


@given(
    st.sampled_from([json_object, quality_score, segment_captions]),
    st.text(alphabet="{}[]\":,'\\ \n<>/|think1Description of segment◁▷", max_size=80),
)
def test_letters_at_random_are_read_or_refused(read, text):
    try:
        assert isinstance(read(text), dict)
    except ValueError as error:
        assert str(error)


GOOD = json.dumps({"choices": [{"message": {"content": CAPTION[2]}, "finish_reason": "stop"}]}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@contextmanager
def raw_server():
    """A server that reads a request and sends `answer` as it is, then hangs up; yields it and its port."""

    class Server:
        answer = b""

    def run():
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(5)
                try:
                    data = b""
                    while b"\r\n\r\n" not in data:
                        data += peer.recv(65536)
                    head, _, body = data.partition(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    while len(body) < length:
                        body += peer.recv(65536)
                    peer.sendall(Server.answer)
                except OSError:
                    pass

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=run, daemon=True).start()
    try:
        yield Server, listener.getsockname()[1]
    finally:
        listener.close()


@pytest.fixture(scope="module")
def server():
    with raw_server() as found:
        yield found


HEADERS = [b"Content-Encoding: gzip", b"Content-Encoding: identity", b"Content-Type: text/html", b": x",
           b"Transfer-Encoding: chunked", b"Content-Length: 5", b"Content-Length: -1", b"Location: /",
           b"Connection: keep-alive", b"Set-Cookie: \xff=;;=", b"\x00: \x00", b"X" * 70_000]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([b"200 OK", b"200", b"204 No", b"429 Wait", b"520 ?", b"100 Go", b"999 x", b"\xff", b""]),
    st.lists(st.sampled_from(HEADERS) | st.binary(max_size=12), max_size=2),
    st.integers(0, 200) | st.none(),
    st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=2)), max_size=2),
)
@example(b"200 OK", [], None, [])
def test_bytes_at_random_are_a_caption_or_a_sentence(server, status, headers, cut, changes):
    """A whole answer with other headers, cut short, and with bytes in it that are others."""
    held, port = server
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(GOOD), *headers, b"", GOOD]
    data = bytearray(b"\r\n".join(lines))
    for place, piece in changes:
        data[place : place + len(piece)] = piece
    held.answer = bytes(data[:cut])
    where = EndpointSettings(f"http://127.0.0.1:{port}/v1", "seer", retries=0, timeout_seconds=20)
    with tempfile.TemporaryDirectory() as folder:
        found = outcome(Endpoint(where, Path(folder)), CAPTION)
    assert found is None or isinstance(found, str)
    if not changes and found is not None:
        assert found == CAPTION[4] and held.answer == data
    if (cut, changes, headers, status) == (None, [], [], b"200 OK"):
        assert found == CAPTION[4]
