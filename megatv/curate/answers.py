"""Finds the answer in what a model said: one JSON object, or what TV2TV's own prompts ask for.

Models think aloud, draft, repeat themselves, fence their JSON and add remarks. The answer is taken only where
it cannot be mistaken: after all thoughts, and with no other object beside it that says something else.
Everything else is a ValueError whose words the model may be told.
"""

from __future__ import annotations

import json
import re
from typing import Any

from megatv.untrusted import read_object

_NAME = r"(?:\w+:)?(?:think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad)"
_THOUGHTS_BEGIN = re.compile(
    rf"<\s*{_NAME}(?:\s[^<>]*)?>|◁think▷|\[THINK\]|<\|begin_of_thought\|>", re.IGNORECASE
)
_THOUGHTS_END = re.compile(rf"<\s*/\s*{_NAME}\s*>|◁/think▷|\[/THINK\]|<\|end_of_thought\|>", re.IGNORECASE)
"""How models mark what they think before they answer (DeepSeek, Qwen, GLM; Kimi-VL; Magistral; Sky-T1)."""
_ANSWER_MARKS = re.compile(
    r"</?(?:answer|output|json|response)>|<\|(?:begin|end)_of_(?:box|solution)\|>"
    r"|<\|(?:im_end|eot_id|end|endoftext)\|>|<end_of_turn>|</s>|<eos>",
    re.IGNORECASE,
)
"""Marks that stand around an answer and say nothing else of it."""
TAG = re.compile(r"<[/|]?[A-Za-z_][^<>]*>|◁[^◁▷]*▷")
"""Any other mark: what it means for the text in it is not known."""
_BRACKETED = re.compile(r"\[/?[A-Z]{2,}\]")
LIKE_AN_OBJECT = re.compile(r"""\{(?:\s|\\[nrt]|\\)*(?:["'“\u2018}]|\w+\s*:)""")
"""A brace that begins an object, whole, broken or within a string, and not a word such as {this}."""
MAX_OBJECTS = 16
_SCORE = re.compile(r"""\{\s*['\u2018\u2019]quality_score['\u2018\u2019]\s*:\s*([0-9]+(?:\.[0-9]+)?)\s*\}""")
_DESCRIPTION = re.compile(r"^[ \t*#-]*Description of segment ([0-9]{1,4})[ \t*]*:[ \t*]*", re.M | re.I)


def json_object(reply: str) -> Any:
    """The one JSON object of a reply, also in a code fence, between words, in brackets, or said twice.

    Raises ValueError when there is none, one is broken or has a key twice, two differ, thoughts do not end,
    or a mark of unknown meaning stands beside it.
    """
    text = after_thoughts(reply)
    found: list[Any] = []
    words: list[str] = []
    position = 0
    while match := LIKE_AN_OBJECT.search(text, position):
        words.append(text[position : match.start()])
        try:
            tree, position = read_object(text, match.start())
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not valid JSON: {error}") from None
        found.append(tree)
        if len(found) > MAX_OBJECTS:
            raise ValueError(f"it has more than {MAX_OBJECTS} JSON objects, and must have one")
    words.append(text[position:])
    _refuse_marks(_ANSWER_MARKS.sub("", " ".join(words)))
    if not found:
        raise ValueError("there is no JSON object in it")
    if any(_written(tree) != _written(found[0]) for tree in found[1:]):
        raise ValueError(f"it has {len(found)} JSON objects that differ, and must have one")
    return found[0]


def quality_score(reply: str) -> Any:
    """The JSON object of a reply, also {'quality_score': 8} as TV2TV's prompt writes it (appendix B.1)."""
    return json_object(_SCORE.sub(r'{"quality_score": \1}', after_thoughts(reply)))


def segment_captions(reply: str) -> Any:
    """{"captions": [texts]} of a reply in JSON, or in lines `Description of segment 1: text`.

    TV2TV asks for such lines (appendix B.2). They must be numbered from 1 on without a gap, and each
    description must stand on one line: what follows it might be a remark. Raises ValueError.
    """
    text = after_thoughts(reply)
    marks = list(_DESCRIPTION.finditer(text))
    if not marks:
        return json_object(reply)
    if LIKE_AN_OBJECT.search(text):
        raise ValueError("it has both descriptions and a JSON object, and must have one of them")
    _refuse_marks(text)
    if [int(mark[1]) for mark in marks] != list(range(1, len(marks) + 1)):
        raise ValueError("the descriptions must be numbered from 1 on, each number once")
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    texts = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    for number, one in enumerate(texts, 1):
        if len(one.splitlines()) > 1:
            raise ValueError(f"the description of segment {number} must stand on one line")
        if len(one) > 2 and one.startswith(('""', "''", "“”")):
            raise ValueError(f"the description of segment {number} must be text or empty, not both")
    return {"captions": [_unquoted(one) for one in texts]}


def after_thoughts(reply: str) -> str:
    """What a reply says after its last thought.

    A template may open the thoughts itself, so that a reply only closes them. ValueError when they stay open.
    """
    text = reply[max((mark.end() for mark in _THOUGHTS_END.finditer(reply)), default=0) :]
    if _THOUGHTS_BEGIN.search(text):
        raise ValueError("it ends within its thoughts")
    return text


def _refuse_marks(words: str) -> None:
    if mark := TAG.search(words) or _BRACKETED.search(words):
        raise ValueError(f"there is {mark[0][:40]!r} beside the answer, which may be no part of it")


def _written(tree: Any) -> str:
    return json.dumps(tree, sort_keys=True)


def _unquoted(text: str) -> str:
    """Without one pair of quotes around all of it: the prompt of appendix B.2 writes no text as ""."""
    for first, last in ('""', "''", "“”"):
        if len(text) > 1 and text[0] == first and text[-1] == last and first not in text[1:-1]:
            return text[1:-1].strip()
    return text
