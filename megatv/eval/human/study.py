"""What a study asks, of whom, and about which videos: one strict YAML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatv.eval.human.raters import MAX_NAME, read_name
from megatv.schema import Place, build, with_home
from megatv.yaml_tree import read_yaml

Kind = Literal["pairwise", "pointwise"]
Criterion = Literal["alignment", "fidelity", "quality", "overall"]

PORT = 8420
"""Of the page, where nobody says another."""
MAX_LABEL = 200
MAX_STUDY_BYTES = 200_000
LEAST = {
    **dict.fromkeys(("seed", "checks", "failures_allowed"), 0),
    **dict.fromkeys(("raters_per_item", "max_raters", "joins_per_hour"), 1),
}
MOST = 1_000_000
"""Least and most of a study's numbers."""


def is_label(text: str) -> bool:
    """Whether a text can stand in a table: one line, not long, of letters that can be seen."""
    return len(text) <= MAX_LABEL and text.isprintable()


def _is_name(name: str) -> bool:
    try:
        return read_name(name) == name
    except ValueError:
        return False


@dataclass(frozen=True)
class System:
    """A set of videos under one name, such as a model's. `videos`: a folder or a manifest, see `videos`."""

    name: str
    videos: Place


@dataclass(frozen=True)
class Study:
    """A study of one kind.

    kind               `pairwise`: two systems side by side, five answers; `pointwise`: one video at a time,
                       was the intervention between START and STOP done, and how good is the picture
    systems            two of them, or for a pointwise study one or more
    database           SQLite file of the answers; degraded copies for the checks are kept beside it
    title              stands at the top of the page
    criteria           of a pairwise study, in the order in which they are asked
    seed               of sides, order, checks and bootstrap
    raters_per_item    different people who judge every item
    items_per_rater    at most so many for one person; null: all that are open
    checks             attention checks for each person: a video beside, or in place of, a degraded copy
    failures_allowed   a person who fails more checks is left out of the report, and others are asked instead
    raters             names of people to invite; `invite` makes a link for each
    joins              `invited`: only those with a link of `invite`; `open`: whoever reaches the page, too
    max_raters         so many people may an open study have, the invited among them
    joins_per_hour     so many may join it from one address within an hour
    hints              `game`: the question of quality names flaws of a game's videos (TV2TV appendix A.2);
                       `none`: it names none (appendix B.4, sports)
    """

    kind: Kind
    systems: tuple[System, ...]
    database: Place
    title: str = "Which video is better?"
    criteria: tuple[Criterion, ...] = ("alignment", "fidelity", "quality", "overall")
    seed: int = 0
    raters_per_item: int = 3
    items_per_rater: int | None = None
    checks: int = 3
    failures_allowed: int = 0
    raters: tuple[str, ...] = ()
    joins: Literal["invited", "open"] = "invited"
    max_raters: int = 200
    joins_per_hour: int = 20
    hints: Literal["game", "none"] = "game"

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        wanted = 2 if self.kind == "pairwise" else 1
        limit = self.items_per_rater
        for ok, sentence in (
            (
                len(names) == 2 if self.kind == "pairwise" else len(names) >= 1,
                f"systems: a {self.kind} study needs {wanted}{' or more' * (wanted == 1)}, got {len(names)}",
            ),
            (len(set(names)) == len(names), f"systems: {', '.join(names)}: give every one a name of its own"),
            (all(names), "systems: a name is empty: the report needs it"),
            (
                all(map(is_label, [*names, self.title])),
                f"systems and title: each is one line of at most {MAX_LABEL} letters that can be seen",
            ),
            (
                len(set(self.raters)) == len(self.raters) and all(map(_is_name, self.raters)),
                f"raters: every name has 1 to {MAX_NAME} letters that can be seen, and stands there once",
            ),
            (
                self.joins == "invited" or not self.raters,
                "joins is open, but raters names people to invite: leave one of the two out",
            ),
            (
                bool(self.database),
                "database is empty: name a file for answers, such as runs/study.sqlite",
            ),
            (
                len(set(self.criteria)) == len(self.criteria) > 0,
                f"criteria is {list(self.criteria)}: name each that you want once, and at least one",
            ),
            *(
                (
                    least <= getattr(self, key) <= MOST,
                    f"{key} is {getattr(self, key)}: it must be at least {least} and at most {MOST}",
                )
                for key, least in LEAST.items()
            ),
            (
                limit is None or 1 <= limit <= MOST,
                f"items_per_rater is {limit}: it must be at least 1 and at most {MOST}, or null",
            ),
        ):
            if not ok:
                raise ValueError(sentence)


def read_study(path: str | Path) -> Study:
    """The study of a YAML file. Raises ValueError with the file, the key and the remedy."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: does not exist; give the YAML of a study, such as configs/study/pairwise.yaml"
        )
    if path.stat().st_size > MAX_STUDY_BYTES:
        raise ValueError(f"{path}: is larger than {MAX_STUDY_BYTES} bytes, so it is not the YAML of a study")
    tree = read_yaml(path)
    try:
        return with_home(build(Study, tree))
    except ValueError as error:
        raise ValueError(f"{path}: {str(error)[:500]}") from None
