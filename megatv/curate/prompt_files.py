"""What a vision-language model is asked: five text files, in `prompts/` or in a folder of the user's.

    quality.txt    the score of a clip                $topic: what the clips should show
    meta.txt       one sentence about a clip          $words: at most so many
    segments.txt   what each segment brings           $count: segments, $words: at most so many in each
    detailed.txt   Think2V's long caption             $meta: the sentence of meta.txt as a JSON string, $words
    repair.txt     after a reply of a wrong form      $fault: what is wrong with it, as a JSON string

A file may leave its placeholders out and has no other; a dollar sign is written $$. The pictures follow the
text, each after its time. What counts as an answer is said in `megatv.curate.words`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from string import Template

from megatv.regular_file import read_bytes

PROMPTS = Path(__file__).parent / "prompts"
PLACEHOLDERS = {
    "quality": {"topic"},
    "meta": {"words"},
    "segments": {"count", "words"},
    "detailed": {"meta", "words"},
    "repair": {"fault"},
}
"""What stands in each file for a value."""
MAX_PROMPT_BYTES = 1 << 16


@dataclass(frozen=True)
class Prompts:
    """The text of each file."""

    quality: str
    meta: str
    segments: str
    detailed: str
    repair: str


def load_prompts(folder: str | Path | None = None) -> Prompts:
    """All five files of `folder`; None: those of megatv.

    Raises ValueError with the file and the remedy for one that is missing, too large, empty or not UTF-8, and
    for a placeholder that it does not have.
    """
    place = PROMPTS if folder is None else Path(folder)
    if not place.is_dir():
        raise ValueError(f"captions.prompts {place}: is no folder; copy {PROMPTS} and change the texts there")
    return Prompts(**{f.name: _read(place / f"{f.name}.txt", PLACEHOLDERS[f.name]) for f in fields(Prompts)})


def fill(prompt: str, **values: object) -> str:
    """A prompt with its placeholders replaced; values that it does not ask for are left out."""
    return Template(prompt).substitute(values)


def _read(file: Path, known: set[str]) -> str:
    try:
        text = read_bytes(file, MAX_PROMPT_BYTES, links=True).decode("utf-8-sig")
    except OSError as error:
        fault = f"{file}: cannot be read ({error.strerror}); copy it from {PROMPTS}"
    except UnicodeDecodeError as error:
        fault = f"{file}: is not UTF-8 (byte {error.start}); save it as UTF-8"
    except ValueError as error:  # too large, or no regular file; it names the file
        fault = f"{error}; make it a short text"
    else:
        reason = _fault(text, known)
        fault = f"{file}: {reason}" if reason else ""
    if fault:
        raise ValueError(f"captions.prompts: {fault}")
    return text


def _fault(text: str, known: set[str]) -> str:
    """What is wrong with a prompt's text, with the remedy; empty for a right one."""
    template = Template(text)
    names = ", ".join(f"${name}" for name in sorted(known))
    if not text.strip():
        return f"is empty; copy it from {PROMPTS}"
    if not template.is_valid():
        return f"has a $ before no name; write $$ for a dollar sign, or one of {names}"
    if unknown := set(template.get_identifiers()) - known:
        return f"has the unknown placeholder ${min(unknown)}; it may have {names}, and $$ is a dollar sign"
    return ""
