"""Asks an OpenAI-compatible chat server about pictures and insists on JSON of a given form.

A reply is cached on disk by the hash of everything that was asked, so that neither a restart nor a changed
threshold pays twice. Only replies that passed their check are cached. The protocol: POST URL/chat/completions
(as OpenAI, vLLM and llama.cpp serve it), pictures as data URLs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from megatv.curate.recipe import EndpointSettings

T = TypeVar("T")
Part = str | np.ndarray
"""Of a question: words, or a picture uint8 [H, W, 3]."""
RETRY_STATUS = (408, 409, 425, 429, 500, 502, 503, 504)
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 60.0
ERROR_CHARACTERS = 200


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
        if (stored := _stored(file, check)) is not None:
            self.usage.cached += 1
            return stored
        reply = self._complete(messages)
        try:
            answer = check(parse_json(reply))
        except ValueError as fault:
            self.usage.repairs += 1
            again = self._repair.replace("$fault", str(fault))
            messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": again}]  # type: ignore[list-item, dict-item]
            reply = self._complete(messages)
            try:
                answer = check(parse_json(reply))
            except ValueError as error:
                raise ValueError(
                    f"{self.settings.url}: {self.settings.model} answers twice in a wrong form ({error}); "
                    f"the last reply begins {reply[:ERROR_CHARACTERS]!r}"
                ) from None
        _store(file, reply)
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
        return self.cache / digest[:2] / f"{digest}.json"

    def _complete(self, messages: list[dict[str, Any]]) -> str:
        """The reply's text, after as many tries as the settings allow."""
        import httpx

        s = self.settings
        body = {
            "model": s.model,
            "messages": messages,
            "temperature": s.temperature,
            "max_tokens": s.max_tokens,
            "response_format": {"type": "json_object"},
        }
        url = s.url.rstrip("/") + "/chat/completions"
        for attempt in range(s.retries + 1):
            waited: float | None = None
            try:
                answer = httpx.post(url, json=body, headers=self._headers(), timeout=s.timeout_seconds)
                if answer.status_code == 200:
                    return self._read(answer.json())
                fault = f"answers {answer.status_code}: {answer.text[:ERROR_CHARACTERS]}"
                if answer.status_code not in RETRY_STATUS:
                    raise ValueError(f"{url}: {fault}; correct the endpoint section")
                waited = _retry_after(answer.headers)
            except httpx.TimeoutException:
                fault = f"does not answer within {s.timeout_seconds:g} s"
            except httpx.HTTPError as error:
                fault = str(error) or type(error).__name__
            except (json.JSONDecodeError, _NoReply) as error:
                fault = f"speaks another protocol ({error})"
            if attempt < s.retries:
                self.usage.retries += 1
                longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt)
                time.sleep(waited if waited is not None else longest * random.uniform(0.5, 1))
        raise ValueError(f"{url}: {fault}, tried {s.retries + 1} times; see that the server runs")

    def _headers(self) -> dict[str, str]:
        name = self.settings.api_key_env
        if name is None:
            return {}
        if not (key := os.environ.get(name)):
            raise ValueError(f"endpoint.api_key_env names {name}, which is not set: export it on every node")
        return {"Authorization": f"Bearer {key}"}

    def _read(self, answer: Any) -> str:
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise _NoReply("no choices[0].message.content") from None
        if not isinstance(text, str):
            raise _NoReply("the content is no text")
        counts = answer.get("usage") or {}
        sent, made = int(counts.get("prompt_tokens") or 0), int(counts.get("completion_tokens") or 0)
        s = self.settings
        cost = (sent * s.prompt_price + made * s.completion_price) / 1e6
        self.usage.add(Usage(requests=1, prompt_tokens=sent, completion_tokens=made, cost=cost))
        return text


PROMPTS = Path(__file__).parent / "prompts"


class _NoReply(Exception):
    """A 200 without the fields of a chat completion."""


def parse_json(reply: str) -> Any:
    """The JSON object in a model's reply, also inside a code fence or between words; ValueError if none."""
    begin, end = reply.find("{"), reply.rfind("}")
    if begin < 0 or end < begin:
        raise ValueError("there is no JSON object in it")
    try:
        return json.loads(reply[begin : end + 1])
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON: {error}") from None


def jpeg_base64(picture: np.ndarray, quality: int) -> str:
    """A picture uint8 [H, W, 3] as JPEG in base64."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return base64.b64encode(file.getvalue()).decode()


def _stored(file: Path, check: Callable[[Any], T]) -> T | None:
    """A cached answer; None when there is none, or the check has become stricter since, or it is damaged."""
    try:
        return check(parse_json(json.loads(file.read_text(encoding="utf-8"))["reply"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(file: Path, reply: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.{random.getrandbits(32):08x}")
    partial.write_text(json.dumps({"reply": reply}), encoding="utf-8")
    os.replace(partial, file)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks for, if it says so in seconds."""
    try:
        return min(LONGEST_WAIT_SECONDS, max(0.0, float(headers.get("retry-after", ""))))
    except ValueError:
        return None
