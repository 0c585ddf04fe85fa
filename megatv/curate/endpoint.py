"""Asks an OpenAI-compatible chat server about pictures and insists on JSON of a given form.

A reply is cached on disk by the hash of everything that was asked, so that neither a restart nor a changed
threshold pays twice. Only replies that passed their check are cached. The protocol: POST URL/chat/completions
(as OpenAI, vLLM and llama.cpp serve it), pictures as data URLs.

The server is not trusted: its answers are bounded in size and time, and the key, should an answer repeat it,
goes into no message and no cached reply. What a model says can only be checked for its form: a model may
still follow instructions in a picture or in the text that it was given.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from megatv.curate.address import read_key
from megatv.curate.post import Answer, PostError, post
from megatv.curate.recipe import EndpointSettings
from megatv.curate.replies import read_reply, write_reply
from megatv.untrusted import inside, parse_json

T = TypeVar("T")
Part = str | np.ndarray
"""Of a question: words, or a picture uint8 [H, W, 3]."""
RETRY_STATUS = (408, 409, 425, 429, 500, 502, 503, 504)
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 60.0
ERROR_CHARACTERS = 200
LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x7f\x85\u2028\u2029"}
"""Line breaks that json.dumps leaves unescaped."""
MAX_TOKENS = 1 << 32
"""Most tokens of one answer, as its server counts them."""


@dataclass
class Usage:
    """What questions cost, as the server counts: nothing for what the cache had; cost in the prices' unit."""

    requests: int = 0
    cached: int = 0
    retries: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def add(self, other: Usage) -> None:
        """Sum in place."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))


class Endpoint:
    """A server, its settings and the cache folder. Safe to use from several threads.

    usage  counters of all that this object asked
    """

    def __init__(self, settings: EndpointSettings, cache: Path, prompt_folder: Path | None = None) -> None:
        self.settings, self.cache, self.usage = settings, cache, Usage()
        self._repair = (prompt_folder or PROMPTS).joinpath("repair.txt").read_text(encoding="utf-8")

    def ask(self, parts: Sequence[Part], check: Callable[[Any], T]) -> T:
        """What `check` makes of the JSON that the server answers; `check` raises ValueError on a wrong form.

        A reply that is no JSON or fails its check is sent back once with the reason. Raises ValueError with
        the server's address and the reason when that does not help, or the server does not answer.
        """
        messages = [{"role": "user", "content": [self._part(part) for part in parts]}]
        file = self._file(messages)
        if (stored := self._stored(file, check)) is not None:
            self.usage.cached += 1
            return stored
        reply = self._complete(messages)
        try:
            tree, answer = self._parse(reply, check)
        except ValueError as fault:
            self.usage.repairs += 1
            again = self._repair.replace("$fault", quoted(self._excerpt(fault)))
            messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": again}]  # type: ignore[list-item, dict-item]
            reply = self._complete(messages)
            try:
                tree, answer = self._parse(reply, check)
            except ValueError as error:
                raise ValueError(
                    f"{self.settings.url}: {self.settings.model} answers twice in a wrong form "
                    f"({self._excerpt(error)}); the last reply begins {self._excerpt(reply)!r}"
                ) from None
        write_reply(file, json.dumps(tree))
        return answer

    def _part(self, part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        url = "data:image/jpeg;base64," + jpeg_base64(part, self.settings.jpeg_quality)
        return {"type": "image_url", "image_url": {"url": url}}

    def _file(self, messages: list[dict[str, Any]]) -> Path:
        s = self.settings
        asked = json.dumps([s.url, s.model, s.temperature, s.max_tokens, messages], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()
        return inside(self.cache, f"{digest[:2]}/{digest}.json")

    def _stored(self, file: Path, check: Callable[[Any], T]) -> T | None:
        """A cached answer; None when there is none, the check has become stricter since, or it is damaged."""
        try:
            return None if (reply := read_reply(file)) is None else self._parse(reply, check)[1]
        except ValueError:
            return None

    def _complete(self, messages: list[dict[str, Any]]) -> str:
        """The reply's text, after as many tries as the settings allow."""
        s = self.settings
        body = {
            "model": s.model,
            "messages": messages,
            "temperature": s.temperature,
            "max_tokens": s.max_tokens,
            "response_format": {"type": "json_object"},
        }
        url = s.url.rstrip("/") + "/chat/completions"
        headers = {}
        if s.api_key_env is not None:
            headers["Authorization"] = f"Bearer {read_key(s.api_key_env, 'endpoint.api_key_env')}"
        for attempt in range(s.retries + 1):
            waited: float | None = None
            try:
                answer = post(url, body, headers, s.timeout_seconds)
                if answer.status == 200:
                    return self._read(answer)
                fault = f"answers {answer.status}: {self._excerpt(answer.body.decode(errors='replace'))}"
                if answer.status not in RETRY_STATUS:
                    raise ValueError(f"{url}: {fault}; correct the endpoint section")
                waited = _retry_after(answer.retry_after)
            except PostError as error:
                fault = self._excerpt(error)
            except (json.JSONDecodeError, _NoReply) as error:
                fault = f"speaks another protocol ({self._excerpt(error)})"
            if attempt < s.retries:
                self.usage.retries += 1
                longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt)
                time.sleep(waited if waited is not None else longest * random.uniform(0.5, 1))
        raise ValueError(f"{url}: {fault}, tried {s.retries + 1} times; see that the server runs")

    def _read(self, answer: Answer) -> str:
        """The text of a chat completion, whose tokens are counted."""
        tree = parse_json(answer.body)
        try:
            text = tree["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise _NoReply("no choices[0].message.content") from None
        if not isinstance(text, str):
            raise _NoReply("the content is no text")
        sent, made = _tokens(tree, "prompt_tokens"), _tokens(tree, "completion_tokens")
        s = self.settings
        cost = (sent * s.prompt_price + made * s.completion_price) / 1e6
        self.usage.add(Usage(requests=1, prompt_tokens=sent, completion_tokens=made, cost=cost))
        return text

    def _parse(self, reply: str, check: Callable[[Any], T]) -> tuple[Any, T]:
        """The JSON object in a reply and what `check` makes of it; ValueError for a reply of a wrong form."""
        try:
            tree = json_object(reply)
            words = json.dumps(tree, ensure_ascii=False)
            words.encode()
            answer = check(tree)
        except UnicodeEncodeError:
            raise ValueError("it has a lone surrogate, half a character, in it") from None
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if (key := self._key()) and key in words:
            raise ValueError("it repeats the API key")
        return tree, answer

    def _excerpt(self, words: object) -> str:
        """The beginning of a server's text on one line, the key replaced."""
        text = str(words)
        if key := self._key():
            text = text.replace(key, "[API key]")
        text = "".join(c if c.isprintable() else " " for c in text[: 2 * ERROR_CHARACTERS])
        return " ".join(text.split())[:ERROR_CHARACTERS]

    def _key(self) -> str:
        """What must not be repeated; a cache is read without a key, too."""
        return os.environ.get(self.settings.api_key_env or "", "")


PROMPTS = Path(__file__).parent / "prompts"


class _NoReply(Exception):
    """A 200 without the fields of a chat completion."""


def quoted(text: str) -> str:
    """A stranger's text as it stands in a prompt: a JSON string on one line, which no text can end early."""
    return json.dumps(text, ensure_ascii=False).translate(LINE_ENDS)


def json_object(reply: str) -> Any:
    """The JSON object in a model's reply, also inside a code fence or between words; ValueError if none."""
    begin, end = reply.find("{"), reply.rfind("}")
    if begin < 0 or end < begin:
        raise ValueError("there is no JSON object in it")
    try:
        return parse_json(reply[begin : end + 1])
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON: {error}") from None


def jpeg_base64(picture: np.ndarray, quality: int) -> str:
    """A picture uint8 [H, W, 3] as JPEG in base64."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return base64.b64encode(file.getvalue()).decode()


def _tokens(tree: dict[str, Any], name: str) -> int:
    """A count in an answer's `usage`, which servers may leave out."""
    usage = tree.get("usage") or {}
    count = (usage.get(name) or 0) if isinstance(usage, dict) else None
    if type(count) is not int or not 0 <= count < MAX_TOKENS:
        raise _NoReply(f"usage.{name} is no number of tokens")
    return count


def _retry_after(seconds: str) -> float | None:
    """Seconds that the server asks for, if it says so in seconds."""
    try:
        return min(LONGEST_WAIT_SECONDS, max(0.0, float(seconds)))
    except ValueError:
        return None
