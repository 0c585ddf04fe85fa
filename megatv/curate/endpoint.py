"""Asks an OpenAI-compatible chat server about pictures and insists on JSON of a given form.

A reply is cached on disk by the hash of everything that was asked, so that neither a restart nor a changed
threshold pays twice. Only replies that passed their check are cached. The protocol: POST URL/chat/completions
(as OpenAI, vLLM and llama.cpp serve it), pictures as data URLs.

The server is not trusted: its answers are bounded in size and time, and the key, should an answer repeat it,
goes into no message and no cached reply. What a model says can only be checked for its form: a model may
still follow instructions in a picture or in the text that it was given.

A reply is used when it is whole and has one answer of the right form (`completion`, `answers`). Otherwise it
is asked for once more, and then the question is given up with the reason.
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
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from megatv.curate.address import HIDDEN, hide_key, read_key
from megatv.curate.answers import json_object
from megatv.curate.completion import Completion, NotACompletion, read_completion
from megatv.curate.post import Answer, PostError, post
from megatv.curate.prompt_files import fill, load_prompts
from megatv.curate.recipe import EndpointSettings
from megatv.curate.replies import read_reply, write_reply
from megatv.untrusted import inside

T = TypeVar("T")
Part = str | np.ndarray
"""Of a question: words, or a picture uint8 [H, W, 3]."""
RETRY_STATUS = (408, 409, 425, 429)
"""Asked again, as is every status from 500 on: proxies have numbers of their own for a server in trouble."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 60.0
THIS_QUESTION_STATUS = (400, 413, 422)
"""Refusals that may be of what was asked alone: too long, or against a server's rules."""
LONGEST_RETRY_AFTER_SECONDS = 3600.0
"""A `Retry-After` beyond it is not believed."""
ERROR_CHARACTERS = 200
LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x7f\x85\u2028\u2029"}
"""Line breaks that json.dumps leaves unescaped."""


class NoAnswerError(ValueError):
    """One question has no usable answer; another one may have."""


@dataclass
class Usage:
    """What questions cost, as the server counts: nothing for what the cache had; cost in the prices' unit.

    retries    requests that the server did not answer, and that were sent again
    repairs    replies of a wrong form, or cut off, that were asked for once more
    uncounted  requests whose tokens the server did not say: they are missing from tokens and cost
    """

    requests: int = 0
    cached: int = 0
    retries: int = 0
    repairs: int = 0
    uncounted: int = 0
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

    def __init__(self, settings: EndpointSettings, cache: Path, repair_prompt: str | None = None) -> None:
        self.settings, self.cache, self.usage = settings, cache, Usage()
        self._repair = repair_prompt or load_prompts().repair

    def ask(
        self, parts: Sequence[Part], check: Callable[[Any], T], read: Callable[[str], Any] = json_object
    ) -> T:
        """What `check` makes of the answer that `read` finds in the server's reply, plain data.

        `read` and `check` raise ValueError on a wrong form. Such a reply is sent back once with the reason;
        one that is cut off, refused or empty is asked for anew. Raises NoAnswerError with the server's
        address and the reason when that does not help, or the server does not answer this question; and
        ValueError when it would answer none: a wrong address, model or key.
        """
        messages = [{"role": "user", "content": [self._part(part) for part in parts]}]
        file = self._file(messages)
        if (stored := self._stored(file, check, read)) is not None:
            self.usage.cached += 1
            return stored
        reply = self._complete(messages)
        try:
            tree, answer = self._answer(reply, check, read)
        except ValueError as fault:
            self.usage.repairs += 1
            reply = self._complete(messages if reply.fault else messages + self._sent_back(reply, fault))
            try:
                tree, answer = self._answer(reply, check, read)
            except ValueError as error:
                raise NoAnswerError(
                    f"{self.settings.url}: {self.settings.model} answers twice in a wrong form "
                    f"({self._excerpt(error)}); the last reply begins {self._excerpt(reply.text)!r}"
                ) from None
        write_reply(file, json.dumps(tree))
        return answer

    def _sent_back(self, reply: Completion, fault: ValueError) -> list[dict[str, Any]]:
        said = reply.text.encode(errors="replace").decode()  # half a character is no text to a server
        again = fill(self._repair, fault=quoted(self._excerpt(fault)))
        return [{"role": "assistant", "content": said}, {"role": "user", "content": again}]

    def _part(self, part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        url = "data:image/jpeg;base64," + jpeg_base64(part, self.settings.jpeg_quality)
        return {"type": "image_url", "image_url": {"url": url}}

    def _file(self, messages: list[dict[str, Any]]) -> Path:
        s = self.settings
        how = [s.url, s.model, s.temperature, s.max_tokens, s.response_format]
        asked = json.dumps([*how, messages], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()
        return inside(self.cache, f"{digest[:2]}/{digest}.json")

    def _stored(self, file: Path, check: Callable[[Any], T], read: Callable[[str], Any]) -> T | None:
        """A cached answer; None when there is none, the check has become stricter since, or it is damaged."""
        try:
            reply = read_reply(file)
            return None if reply is None else self._answer(Completion(reply, "", None), check, read)[1]
        except ValueError:
            return None

    def _complete(self, messages: list[dict[str, Any]]) -> Completion:
        """What the server answers, after as many tries as the settings allow."""
        s = self.settings
        body = {
            "model": s.model,
            "messages": messages,
            "temperature": s.temperature,
            "max_tokens": s.max_tokens,
            "response_format": {"type": s.response_format},
        }
        url = s.url.rstrip("/") + "/chat/completions"
        headers = {}
        if s.api_key_env is not None:
            headers["Authorization"] = f"Bearer {read_key(s.api_key_env, f'{s.section}.api_key_env')}"
        for attempt in range(s.retries + 1):
            waited: float | None = None
            try:
                answer = post(url, body, headers, s.timeout_seconds)
                if answer.status == 200:
                    return self._read(answer)
                fault = f"answers {answer.status}: {self._excerpt(answer.body.decode(errors='replace'))}"
                if answer.status not in RETRY_STATUS and answer.status < 500:
                    refused = NoAnswerError if answer.status in THIS_QUESTION_STATUS else ValueError
                    raise refused(f"{url}: {fault}; {self._remedy(fault)}")
                waited = retry_after(answer.retry_after, time.time())
            except PostError as error:
                fault = self._excerpt(error)
            except (json.JSONDecodeError, NotACompletion) as error:
                fault = f"speaks another protocol ({self._excerpt(error)})"
            if attempt < s.retries:
                self.usage.retries += 1
                longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt)
                time.sleep(waited if waited is not None else longest * random.uniform(0.5, 1))
        raise NoAnswerError(f"{url}: {fault}, tried {s.retries + 1} times; see that the server runs")

    def _remedy(self, fault: str) -> str:
        if "response_format" in fault and self.settings.response_format != "text":
            return f"set {self.settings.section}.response_format to text"
        return f"correct the {self.settings.section} section"

    def _read(self, answer: Answer) -> Completion:
        """The completion in an answer, counted."""
        s = self.settings
        key = self._key().encode() or HIDDEN.encode()
        completion = read_completion(answer.body.replace(key, HIDDEN.encode()), s.max_tokens)
        sent, made = completion.tokens or (0, 0)
        cost = (sent * s.prompt_price + made * s.completion_price) / 1e6
        uncounted = int(completion.tokens is None)
        self.usage.add(
            Usage(requests=1, uncounted=uncounted, prompt_tokens=sent, completion_tokens=made, cost=cost)
        )
        return completion

    def _answer(
        self, reply: Completion, check: Callable[[Any], T], read: Callable[[str], Any]
    ) -> tuple[Any, T]:
        """The plain data in a reply and what `check` makes of it; ValueError for a reply of a wrong form."""
        if reply.fault:
            raise ValueError(reply.fault)
        try:
            tree = read(reply.text)
            words = json.dumps(tree, ensure_ascii=False)
            words.encode()
            answer = check(tree)
        except UnicodeEncodeError:
            raise ValueError("it has a lone surrogate, half a character, in it") from None
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if (key := self._key()) and (HIDDEN in words or hide_key(words, key) != words):
            raise ValueError("it repeats the API key")
        return tree, answer

    def _excerpt(self, words: object) -> str:
        """The beginning of a server's text on one line, the key replaced."""
        key = self._key()
        text = hide_key(str(words).replace(key or HIDDEN, HIDDEN)[: 2 * ERROR_CHARACTERS], key)
        text = "".join(c if c.isprintable() else " " for c in text)
        return " ".join(text.split())[:ERROR_CHARACTERS]

    def _key(self) -> str:
        """What must not be repeated; a cache is read without a key, too."""
        return os.environ.get(self.settings.api_key_env or "", "")


def quoted(text: str) -> str:
    """A stranger's text as it stands in a prompt: a JSON string on one line, which no text can end early."""
    return json.dumps(text, ensure_ascii=False).translate(LINE_ENDS)


def jpeg_base64(picture: np.ndarray, quality: int) -> str:
    """A picture uint8 [H, W, 3] as JPEG in base64."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return base64.b64encode(file.getvalue()).decode()


def retry_after(value: str, now: float) -> float | None:
    """Seconds to wait as a `Retry-After` header says, in seconds or as a date; `now` is Unix time.

    At most LONGEST_WAIT_SECONDS. None when there is none, it is no number and no date (RFC 9110, 10.2.3), it
    is negative or passed, or lies beyond LONGEST_RETRY_AFTER_SECONDS.
    """
    try:
        seconds = float(value) if value[:1].isdigit() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return min(seconds, LONGEST_WAIT_SECONDS) if 0 <= seconds <= LONGEST_RETRY_AFTER_SECONDS else None
