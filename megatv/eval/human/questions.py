"""The questions of TV2TV's studies (appendices A.2, B.4) in our own words, and what every answer counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatv.eval.human.study import Study


@dataclass(frozen=True)
class Option:
    """An answer: `value` is stored, `label` is shown, `score` is counted."""

    value: str
    label: str
    score: float


@dataclass(frozen=True)
class Question:
    """A question with its answers from left to right, and a hint in smaller letters."""

    name: str
    text: str
    hint: str
    options: tuple[Option, ...]

    def score(self, value: str) -> float:
        """What an answer counts. Raises ValueError for one that is not on the scale."""
        for option in self.options:
            if option.value == value:
                return option.score
        known = ", ".join(option.value for option in self.options)
        raise ValueError(f"{value[:40]!r} is no answer to {self.name}: choose one of {known}")


PREFERENCES = (
    Option("left_much", "Left, clearly", 2),
    Option("left_little", "Left, slightly", 1),
    Option("tie", "Unsure or equal", 0),
    Option("right_little", "Right, slightly", -1),
    Option("right_much", "Right, clearly", -2),
)
"""Five answers, scored for the video on the left."""

FLAWS = (
    "Poor are clouds and flicker, walking through walls, hardly moving, and sudden jumps elsewhere. "
    "Characters that one can see through are no flaw."
)
"""Of a game's videos (appendix A.2)."""

PAIRWISE = {
    "alignment": Question("alignment", "Which video does what the text says?", "", PREFERENCES),
    "fidelity": Question("fidelity", "Which video is truer to the real world?", "", PREFERENCES),
    "quality": Question("quality", "Which video looks better?", FLAWS, PREFERENCES),
    "overall": Question("overall", "All in all, which video do you prefer?", "", PREFERENCES),
}

CORRECTNESS = Question(
    "correctness",
    "Is the caption right about what happens between START and STOP?",
    "What follows STOP at once counts too, since a jump, a reload or a step back needs its time. The rest of "
    "the video only shows where we are.",
    (
        Option("yes", "Yes", 1),
        Option("no", "No", 0),
        Option("unsure_inactive", "Unsure: nobody can act here", 0.5),
        Option("unsure", "Unsure: see my comment", 0.5),
    ),
)
QUALITY = Question(
    "quality",
    "How good does the video look?",
    FLAWS,
    (
        Option("strong", "Good", 1),
        Option("moderate", "Fair", 2 / 3),
        Option("weak", "Poor", 1 / 3),
        Option("none", "Worthless", 0),
    ),
)


def questions_of(study: Study) -> dict[str, Question]:
    """The study's questions by name, in the order in which they are asked."""
    if study.kind == "pointwise":
        asked = {question.name: question for question in (CORRECTNESS, QUALITY)}
    else:
        asked = {name: PAIRWISE[name] for name in study.criteria}
    if study.hints == "none" and "quality" in asked:
        asked["quality"] = replace(asked["quality"], hint="")
    return asked


def judging(study: Study) -> str:
    """The question whose answer decides an attention check: the one nearest to picture quality."""
    asked = questions_of(study)
    return next(name for name in ("quality", "overall", "fidelity", "alignment") if name in asked)
