"""Replies of every shape: the right answer comes out, or one sentence that says why none does.

    pytest --hypothesis-profile many tests/curate/test_reply_fuzz.py        # 10,000 of each test

A reply is a function of a number. It is put together from what models and servers really send, so that it is
known what was the answer in it and what a draft. Never does a draft, a part of an answer or another exception
come out, nor a wait beyond the limits.
"""

import json
import random
import socket
import threading
from unittest import mock

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from megatv.curate import endpoint as module
from megatv.curate.answers import json_object, quality_score, segment_captions
from megatv.curate.endpoint import Endpoint, NoAnswerError
from megatv.curate.post import Answer, PostError
from megatv.curate.recipe import EndpointSettings
from megatv.curate.words import _caption, _score, _texts

pytest.importorskip("httpx", reason="the endpoint is asked through httpx; pip install httpx")
NUMBERS = st.integers(0, 2**64 - 1)
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
    *(("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"), ("<|begin_of_thought|>", "<|end_of_thought|>")),
    *(("", "</think>"), ("<plan>", "</plan>"), ("[DRAFT]", "[/DRAFT]")),
    ("<|channel|>analysis<|message|>", "<|end|>"),
]
WORDS = ["", "", "", "Sure!", "Here is the {JSON}:", "Note: I used {curly} braces.", "{", "}", "}}", "```",
         "\n", "\u2028", "\x00", "\ud83d", "\ufffd", "<", "a < b", "$5", '"', "\\", "é", "🏀"]  # fmt: skip
LETTERS = "{}[]\":,'\\ \n<>/|think1Description of segment◁▷\x00\ud83d"
WAITS = ["", "0", "1", "59", "9" * 400, "nan", "-1", "inf", "soon", "Wed, 21 Oct 2065 07:28:00 GMT", "1e3",
         "Wed, 21 Oct 2015 07:28:00 GMT", "٣", "0x10", "Mon, 99 Foo 1 1:1"]  # fmt: skip
JUNK = [None, True, 0, -1, 1.5, float("nan"), 10**30, "", "7", "n/a", [], [1], {}, {"a": [None]}, [[{}]]]
ODDS_OF_AN_ODD_ONE = 0.15


def letters(rng, most=12):
    return "".join(rng.choice(LETTERS) for _ in range(rng.randrange(most)))


def odd(rng, usual, *others):
    """`usual` mostly, else one of the others."""
    return rng.choice(others) if rng.random() < ODDS_OF_AN_ODD_ONE else usual


def reply(rng, kind):
    """What a model says, in whose end alone is the answer; its draft stands before it or within thoughts."""
    _, _, answer, draft, _ = kind
    whole = [answer, f"```json\n{answer}\n```", f"[{answer}]", f"{{{answer}}}", f"{answer}\n{answer}",
             f"<answer>{answer}</answer>", f"{answer}<|im_end|>"]  # fmt: skip
    broken = ["", answer[:-1] + ",}", answer.replace('"', "'"), answer[: len(answer) // 2],
              json.dumps(answer), answer[:-1] + ', "confidence": 1}', f'{{"answer": {answer}}}',
              answer[:-1] + ", " + answer[1:]]  # fmt: skip
    last = odd(rng, rng.choice(whole), *broken)
    thoughts = []
    for opens, closes in rng.sample(PAIRS, rng.choice([0, 0, 1, 2])):
        within = rng.choice(WORDS) + rng.choice(["", draft, draft[:-2], answer[:9], "{", '{"'])
        thoughts.append(opens + within + rng.choice(WORDS) + odd(rng, closes, ""))
    words = [odd(rng, rng.choice(WORDS), letters(rng)) for _ in range(3)]
    text = words[0] + "".join(thoughts) + words[1] + last + "\n" + words[2]
    return odd(rng, text, f"{draft}\n{text}") if last else text  # a draft in the open, an answer after it


def completion(rng, kind):
    """The body of a completion, whose text may be cut off: then it says so."""
    text = reply(rng, kind)
    finish = odd(
        rng, rng.choice(["stop", "stop", None]), "", "length", "content_filter", "abort", 3, ["stop"]
    )
    counts = [odd(rng, 10, *JUNK) for _ in range(2)]
    if rng.random() < ODDS_OF_AN_ODD_ONE:
        text = text[: rng.randrange(len(text) + 1)]
        finish = rng.choice(["length", None])
        counts = [1, MAX_TOKENS] if finish is None else counts
    parts = [{"type": "thinking", "thinking": kind[3]}, {"type": "text", "text": text[:5]},
             {"type": "output_text", "text": text[5:]}]  # fmt: skip
    content = odd(rng, text, parts, parts, [{"type": "text"}], [text], [{"type": "image_url"}], None, 3)
    message = {"role": "assistant", "content": content}
    message |= odd(rng, {}, {"reasoning_content": kind[3]}, {"refusal": "No."}, {"refusal": None})
    choice = {"index": 0, "finish_reason": finish, "message": message}
    usage = dict(zip(("prompt_tokens", "completion_tokens"), counts, strict=True))
    tree = {"choices": odd(rng, [choice], [], [choice, choice], None, choice, [None], [{}])}
    # a server that does not say how it ended must say how many tokens it made: nothing else shows a cut
    tree["usage"] = usage if finish is None else odd(rng, usage, *JUNK)
    tree |= odd(rng, {}, {"error": {"message": "context"}}, {"error": None}, {"id": "x"})
    return json.dumps(tree).encode(odd(rng, "utf-8", "utf-8-sig", "utf-16"))


def answer_of(rng, kind):
    """What `post` brings: an Answer, or the PostError that it raises."""
    if rng.random() < ODDS_OF_AN_ODD_ONE:
        return PostError(letters(rng))
    body = odd(rng, completion(rng, kind), rng.randbytes(9), json.dumps(rng.choice(JUNK)).encode(), b"")
    status = odd(rng, 200, 204, 302, *range(400, 430), *range(500, 530))
    return Answer(status, body, odd(rng, rng.choice(WAITS), letters(rng)))


def outcome(endpoint, question, kind):
    """The answer that comes out, or None for a ValueError that is one short line."""
    try:
        return endpoint.ask([question], kind[1], kind[0])
    except ValueError as error:
        said = str(error)
        assert type(error) in (ValueError, NoAnswerError), repr(error)
        assert said.isprintable() and len(said) < 1000 and said.startswith("http://127.0.0.1:"), said
        return None


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("replies")


@given(NUMBERS)
def test_whatever_a_server_sends(cache, number):
    rng = random.Random(number)
    kind = rng.choice(KINDS)
    sent, waits = [], []

    def post(url, body, headers, seconds):
        json.dumps(body, ensure_ascii=False).encode()  # it is sent as text
        sent.append(url)
        assert len(sent) <= 2 * (RETRIES + 1)
        answer = answer_of(rng, kind)
        if isinstance(answer, PostError):
            raise answer
        return answer

    with mock.patch.object(module, "post", post), mock.patch.object(module.time, "sleep", waits.append):
        endpoint = Endpoint(SETTINGS, cache)
        found = outcome(endpoint, f"Say {number}.", kind)
        assert found is None or (found == kind[4] and type(found) is type(kind[4])), found
        assert all(0 <= wait <= 60 for wait in waits) and endpoint.usage.cost == 0
        event("answered" if found is not None else "given up")
        if found is not None:  # and it is kept
            asked = len(sent)
            assert outcome(Endpoint(SETTINGS, cache), f"Say {number}.", kind) == found and len(sent) == asked


@given(NUMBERS)
def test_nothing_but_the_answer_is_read(number):
    rng = random.Random(number)
    read, check, *_, answer = kind = rng.choice(KINDS)
    try:
        tree = read(reply(rng, kind))
        json.dumps(tree, ensure_ascii=False).encode()
        assert check(tree) == answer
        event("answered")
    except ValueError as error:
        assert str(error)
        event("refused")


@given(NUMBERS)
def test_letters_at_random_are_read_or_refused(number):
    rng = random.Random(number)
    try:
        assert isinstance(rng.choice([json_object, quality_score, segment_captions])(letters(rng, 200)), dict)
    except ValueError as error:
        assert str(error)


@pytest.fixture(scope="module")
def server():
    """Reads a request and sends `answer` as it is, then hangs up."""

    def run():
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                try:
                    data = b""
                    while b"\r\n\r\n" not in data:
                        data += peer.recv(65536)
                    head, _, body = data.partition(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    while len(body) < length:
                        body += peer.recv(65536)
                    peer.sendall(server.answer)
                except OSError:
                    pass

    listener = socket.create_server(("127.0.0.1", 0))
    server = mock.Mock(answer=b"", port=listener.getsockname()[1])
    threading.Thread(target=run, daemon=True).start()
    yield server
    listener.close()


GOOD = json.dumps({"choices": [{"message": {"content": CAPTION[2]}, "finish_reason": "stop"}]}).encode()
STATUS = [b"200 OK", b"200", b"204 No", b"429 Wait", b"520 ?", b"100 Go", b"999 x", b"\xff", b""]
HEADERS = [b"Content-Encoding: gzip", b"Content-Encoding: identity", b"Content-Type: text/html", b": x",
           b"Transfer-Encoding: chunked", b"Content-Length: 5", b"Content-Length: -1", b"Location: /", b"",
           b"Connection: keep-alive", b"Set-Cookie: \xff=;;=", b"\x00: \x00", b"X" * 70_000]  # fmt: skip


@given(NUMBERS)
@example(None)
def test_bytes_at_random_are_a_caption_or_a_sentence(cache, server, number):
    """A whole answer with other headers, cut short, and with bytes in it that are others."""
    rng = random.Random(number)
    headers, changes, cut = [], 0, None
    status = b"200 OK"
    if number is not None:
        status = rng.choice(STATUS) if rng.random() < 0.5 else status
        headers = rng.sample(HEADERS, rng.choice([0, 0, 1, 2]))
        changes, cut = rng.choice([0, 0, 1, 3]), rng.choice([None, None, rng.randrange(250)])
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(GOOD), *headers, b"", GOOD]
    data = bytearray(b"\r\n".join(lines))
    for _ in range(changes):
        place = rng.randrange(len(data))
        data[place : place + 1] = rng.randbytes(rng.randrange(3))
    server.answer = bytes(data[:cut])
    where = EndpointSettings(f"http://127.0.0.1:{server.port}/v1", "seer", retries=0, timeout_seconds=60)
    found = outcome(Endpoint(where, cache), f"Say {number}.", CAPTION)
    event("answered" if found is not None else "given up")
    if not changes and found is not None:
        assert found == CAPTION[4] and server.answer == data
    if number is None:
        assert found == CAPTION[4]
