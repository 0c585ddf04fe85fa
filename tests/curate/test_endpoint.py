"""The captioner against a real HTTP server that speaks the protocol, and fails in every way."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from megatv.curate import endpoint as module
from megatv.curate.endpoint import Endpoint
from megatv.curate.recipe import EndpointSettings
from megatv.curate.words import _caption, _score, _texts

pytest.importorskip("httpx", reason="the endpoint is asked through httpx; pip install httpx")
PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def server():
    """Answers what `replies` holds, in order: (status, content) or a number of seconds to sleep first."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.server.asked.append((self.path, dict(self.headers), body))
            status, content = self.server.replies.pop(0)
            if status == "sleep":
                time.sleep(content)
                return
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            answer = {"choices": [{"message": {"content": content}}], "usage": usage}
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


def test_giving_up_names_the_server_and_the_reason(ask):
    with pytest.raises(ValueError, match=r"/v1/chat/completions: answers 500: oops, tried 3 times; see that"):
        ask(*[(500, "oops")] * 3)
    with pytest.raises(ValueError, match=r"does not answer within 0.2 s, tried 1 times"):
        ask(("sleep", 0.5), timeout_seconds=0.2, retries=0)
    with pytest.raises(ValueError, match=r"answers 401: who are you; correct the endpoint section"):
        ask((401, "who are you"))


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
    ],
)
def test_answers_of_the_wrong_form_are_told_what_is_wrong(check, answer, fault):
    with pytest.raises(ValueError, match=fault):
        check(answer)


def test_a_key_that_is_not_set_is_named(ask, monkeypatch):
    monkeypatch.delenv("SEER_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"endpoint.api_key_env names SEER_API_KEY, which is not set"):
        ask(GOOD, api_key_env="SEER_API_KEY")
