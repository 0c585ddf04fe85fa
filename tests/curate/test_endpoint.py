"""The captioner against a real HTTP server that speaks the protocol, and fails in every way."""

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from megatv.curate import endpoint as module
from megatv.curate.endpoint import Endpoint, retry_after
from megatv.curate.recipe import EndpointSettings
from megatv.curate.words import _caption, _score, _texts

pytest.importorskip("httpx", reason="the endpoint is asked through httpx; pip install httpx")
PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def server():
    """Answers what `replies` holds, in order: (status, content), or ("sleep", seconds).

    A content that is a dictionary is the whole choice of the completion.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.server.asked.append((self.path, dict(self.headers), body))
            status, content = self.server.replies.pop(0)
            if status == "sleep":
                time.sleep(content)
                return
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            choice = content if isinstance(content, dict) else {"message": {"content": content}}
            answer = {"choices": [choice], "usage": usage}
            data = json.dumps(answer).encode() if status == 200 else content.encode()
            self.send_response(status)
            if status == 429:
                self.send_header("retry-after", "0")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.replies = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(server, tmp_path, monkeypatch):
    """Ask with short waits; returns (answer, usage)."""
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.01)

    def call(*replies, check=_caption, parts=("Say.", PICTURE), **options):
        server.replies[:] = replies
        url = f"http://127.0.0.1:{server.server_port}/v1"
        options = {
            "retries": 2,
            "timeout_seconds": 5.0,
            "prompt_price": 2.0,
            "completion_price": 10.0,
            **options,
        }
        endpoint = Endpoint(EndpointSettings(url, "seer", **options), tmp_path / "cache")
        return endpoint.ask(parts, check), endpoint.usage

    return call


GOOD = (200, '{"caption": "She  jumps."}')


def test_the_request_speaks_the_protocol_and_the_answer_is_counted(ask, server, monkeypatch):
    monkeypatch.setenv("SEER_API_KEY", "secret")
    answer, usage = ask(GOOD, api_key_env="SEER_API_KEY")
    assert answer == "She jumps."
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "seer" and body["response_format"] == {"type": "json_object"}
    text, picture = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "Say."}
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (1, 100, 10)
    assert usage.cost == pytest.approx(300e-6)


def test_the_same_question_is_paid_once(ask, server):
    ask(GOOD)
    answer, usage = ask()
    assert answer == "She jumps." and (usage.requests, usage.cached) == (0, 1)
    ask(GOOD, parts=("Say more.", PICTURE))
    ask(GOOD, parts=("Say.", PICTURE + 255))
    ask(GOOD, temperature=0.7)
    assert len(server.asked) == 4


def test_a_damaged_cache_is_asked_again(ask, server, tmp_path):
    ask(GOOD)
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text("{")
    assert ask(GOOD)[0] == "She jumps." and len(server.asked) == 2


def test_busy_broken_and_slow_servers_are_asked_again(ask):
    answer, usage = ask((500, "oops"), (429, "slow down"), GOOD)
    assert answer == "She jumps." and (usage.retries, usage.requests) == (2, 1)
    assert ask(("sleep", 0.6), GOOD, timeout_seconds=0.3, parts=("Again.",))[1].retries == 1


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529, 599])
def test_a_status_of_a_server_in_trouble_is_asked_again(ask, status):
    assert ask((status, "wait"), GOOD)[1].retries == 1


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0), ("3", 3.0), ("1.5", 1.5), ("61", 60.0), ("3600", 60.0), ("3601", None), ("9" * 400, None),
        ("1e400", None), ("nan", None), ("inf", None), ("-5", None), ("", None), ("soon", None),
        (formatdate(NOW + 7, usegmt=True), 7.0), (formatdate(NOW + 100, usegmt=True), 60.0),
        (formatdate(NOW - 7, usegmt=True), None), ("Wed, 21 Oct 2065 07:28:00 GMT", None),
        ("Wed, 99 Oct 20650 07:28:00 GMT", None), ("²", None), ("Mon, 01 Jan 0001 00:00:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_believed_within_reason(value, seconds):
    assert retry_after(value, NOW) == seconds


def test_giving_up_names_the_server_and_the_reason(ask):
    with pytest.raises(ValueError, match=r"/v1/chat/completions: answers 500: oops, tried 3 times; see that"):
        ask(*[(500, "oops")] * 3)
    with pytest.raises(ValueError, match=r"does not answer within 0.2 s, tried 1 times"):
        ask(("sleep", 0.5), timeout_seconds=0.2, retries=0)
    with pytest.raises(ValueError, match=r"answers 401: who are you; correct the endpoint section"):
        ask((401, "who are you"))
    with pytest.raises(ValueError, match=r"answers 400: .*; set endpoint.response_format to text"):
        ask((400, "response_format json_object is not supported"))


@pytest.mark.parametrize(
    "reply",
    ["no braces", '{"caption": ', '{"text": "wrong key"}', '{"caption": "", "more": 1}', '{"caption": 3}'],
)
def test_a_wrong_form_is_sent_back_once_with_the_reason(ask, server, reply):
    answer, usage = ask((200, reply), GOOD)
    assert answer == "She jumps." and usage.repairs == 1
    messages = server.asked[1][2]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert (
        messages[1]["content"] == reply
        and "cannot be used. The fault, as a JSON string" in messages[2]["content"]
    )
    assert ask()[1].cached == 1  # the repaired answer is what the cache has


def choice(content, finish="stop", **message):
    return (200, {"message": {"content": content, **message}, "finish_reason": finish})


WHOLE = GOOD[1]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (choice(WHOLE, "length"), "cut off at 2048 tokens: raise max_tokens"),
        (choice(WHOLE, "MAX_TOKENS"), "cut off at 2048 tokens"),
        (choice(WHOLE[:-5], "length"), "cut off at 2048 tokens"),
        (choice(WHOLE, "content_filter"), "it ended by 'content_filter'"),
        (choice(WHOLE, "abort"), "it ended by 'abort'"),
        (choice(WHOLE, ["stop"]), "it ended by"),
        (choice(WHOLE, refusal="I cannot."), "the model refuses: I cannot."),
        (choice(None, refusal="I cannot."), "the model refuses: I cannot."),
        (choice(None, reasoning_content=WHOLE), "thoughts and no answer"),
        (choice(None, reasoning=WHOLE), "thoughts and no answer"),
        (choice(None), "it is empty"),
        (choice(" \n"), "it is empty"),
        (choice([{"type": "thinking", "thinking": WHOLE}]), "it is empty"),
    ],
)
def test_a_reply_that_is_not_whole_is_asked_for_anew(ask, server, reply, reason):
    """Even where it holds JSON of the right form, which may be a draft or end early."""
    answer, usage = ask(reply, GOOD)
    assert answer == "She jumps." and (usage.repairs, usage.requests) == (1, 2)
    assert server.asked[0][2] == server.asked[1][2]
    with pytest.raises(ValueError, match=reason):
        ask(reply, reply, parts=("Another.",))


def test_a_server_that_does_not_say_how_it_ended_is_believed_up_to_the_limit(ask):
    assert ask(choice(WHOLE, None), max_tokens=11)[0] == "She jumps."  # it counts 10
    with pytest.raises(ValueError, match="cut off at 10 tokens"):
        ask(*[choice(WHOLE, None)] * 2, max_tokens=10)


def test_a_content_in_parts_is_the_text_of_them(ask):
    parts = [{"type": "thinking", "thinking": '{"caption": "Draft."}'}, {"type": "text", "text": WHOLE[:9]},
             {"type": "output_text", "text": WHOLE[9:]}]  # fmt: skip
    assert ask(choice(parts))[0] == "She jumps."


def test_half_a_character_is_not_sent_back(ask, server):
    assert ask((200, "\ud83d" + WHOLE[:-1]), GOOD)[0] == "She jumps."
    assert server.asked[1][2]["messages"][1]["content"] == "?" + WHOLE[:-1]


def test_a_wrong_form_twice_fails_and_is_not_cached(ask, server):
    with pytest.raises(ValueError, match=r"seer answers twice in a wrong form .*begins 'still bad'"):
        ask((200, "bad"), (200, "still bad"))
    assert ask(GOOD)[0] == "She jumps."


def test_fences_and_words_around_the_object_do_no_harm(ask):
    assert ask((200, 'Sure!\n```json\n{"caption": "Yes."}\n```'))[0] == "Yes."


@pytest.mark.parametrize(
    ("check", "answer", "fault"),
    [
        (_score, {"quality_score": 11}, "from 1 to 10"),
        (_score, {"quality_score": True}, "from 1 to 10"),
        (_score, {"score": 5}, "exactly the key 'quality_score'"),
        (lambda a: _texts(a, 2), {"captions": ["one"]}, "has 1 texts, it needs exactly 2"),
        (lambda a: _texts(a, 1), {"captions": [None]}, "list of texts"),
        (lambda a: _texts(a, 2), {"captions": ["", " "]}, "all empty"),
        (
            lambda a: _texts(a, 2),
            {"captions": ["One.", "T\x00o."]},
            r"captions\[1\] has the character U\+0000",
        ),
        (_caption, {"caption": "A \x1b[31mdog."}, r"U\+001B"),
        (_caption, {"caption": "A dog \ufffd jumps."}, r"U\+FFFD"),
        (_caption, {"caption": "A dog jumps.<|eot_id|>"}, r"'<\|eot_id\|>' in it"),
        (_caption, {"caption": "<b>A dog</b> jumps."}, "'<b>' in it"),
        (_caption, {"caption": '{"caption": "A dog jumps."}'}, "in it; it must be plain words"),
        (_caption, {"caption": 'A dog jumps."}'}, "a brace without its other half"),
        (_caption, {"caption": "```A dog jumps.```"}, "'```' in it"),
        (_caption, {"caption": "**Description of segment 1:** A dog jumps."}, "it must be plain words"),
        (_caption, {"caption": "..."}, "not a description"),
        (_caption, {"caption": "[Your description here]"}, "not a description"),
        (_caption, {"caption": "your sentence"}, "not a description"),
    ],
)
def test_answers_of_the_wrong_form_are_told_what_is_wrong(check, answer, fault):
    with pytest.raises(ValueError, match=fault):
        check(answer)


def test_a_key_that_is_not_set_is_named(ask, monkeypatch):
    monkeypatch.delenv("SEER_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"endpoint.api_key_env names SEER_API_KEY, which is not set"):
        ask(GOOD, api_key_env="SEER_API_KEY")
