"""Reads one chat completion: the text that was said, whether it is whole, and what it cost in tokens.

The protocol is OpenAI's, as vLLM, llama.cpp and others serve it. Only the text of the answer is read: what a
model wrote while it thought (`reasoning_content`, parts of type `thinking`) is no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatv.untrusted import parse_json

WHOLE = {None, "", "stop", "eos", "eos_token", "end_turn", "stop_sequence"}
"""`finish_reason`, in lower case, of an answer that the model itself ended; None: it was left out."""
CUT = {"length", "max_tokens", "max_output_tokens"}
"""... of one that reached the limit of its tokens."""
SAID, THOUGHT = {"text", "output_text"}, {"thinking", "reasoning"}
"""Types of the parts of a content: those of the answer, and those that are passed over."""
MAX_TOKENS = 1 << 32
"""Most tokens of one answer that are believed."""
REASON_CHARACTERS = 100


class NotACompletion(Exception):
    """A body without the fields of a chat completion."""


@dataclass(frozen=True)
class Completion:
    """What one request brought.

    text     of the answer; may be empty
    fault    why the text cannot be the answer that was asked for, in words; empty for a whole one
    tokens   (prompt, completion) as the server counts them; None when it does not say
    """

    text: str
    fault: str
    tokens: tuple[int, int] | None


def read_completion(body: bytes, max_tokens: int) -> Completion:
    """The completion in a body; `max_tokens` is the limit that was asked for.

    Raises NotACompletion and json.JSONDecodeError.
    """
    tree = parse_json(body)
    if not isinstance(tree, dict):
        raise NotACompletion("no object")
    if error := tree.get("error"):
        raise NotACompletion(f"an error: {error}")
    choices = tree.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise NotACompletion("no list `choices` of exactly one")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise NotACompletion("no choices[0].message")
    text, tokens = _text(message.get("content")), _tokens(tree.get("usage"))
    return Completion(text, _fault(choices[0], text, tokens, max_tokens), tokens)


def _text(content: Any) -> str:
    """Of a string, or of a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise NotACompletion("the content is no text")
    said = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in SAID | THOUGHT:
            raise NotACompletion("the content is no text: it has a part of an unknown type")
        if kind in SAID:
            said.append(part.get("text"))
    if not all(isinstance(text, str) for text in said):
        raise NotACompletion("the content is no text: a part of it has none")
    return "".join(said)


def _fault(choice: dict[str, Any], text: str, tokens: tuple[int, int] | None, max_tokens: int) -> str:
    """See `Completion.fault`."""
    message, reason = choice["message"], choice.get("finish_reason")
    ended = reason.lower() if isinstance(reason, str) else reason
    if refusal := message.get("refusal"):
        return f"the model refuses: {refusal}"
    full = ended is None and tokens is not None and tokens[1] >= max_tokens
    if full or (isinstance(ended, str) and ended in CUT):
        return f"it was cut off at {max_tokens} tokens: raise max_tokens of the endpoint"
    if not (ended is None or (isinstance(ended, str) and ended in WHOLE)):
        return f"it ended by {str(reason)[:REASON_CHARACTERS]!r}, not by itself"
    if not text.strip():
        thought = message.get("reasoning_content") or message.get("reasoning")
        return "it has thoughts and no answer" if thought else "it is empty"
    return ""


def _tokens(usage: Any) -> tuple[int, int] | None:
    """Of an answer's `usage`, which servers leave out or fill in their own ways."""
    if not isinstance(usage, dict):
        return None
    sent, made = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    if not all(type(count) is int and 0 <= count < MAX_TOKENS for count in (sent, made)):
        return None
    return sent, made  # type: ignore[return-value]
