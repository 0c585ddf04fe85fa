"""What the page may ask, apart from how: joining, tasks, answers and videos of one study."""

from __future__ import annotations

import hashlib
import hmac
import math
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatv.eval.human.answers import Answers, FullError, Task, UnknownError
from megatv.eval.human.assign import chooser, progress
from megatv.eval.human.questions import Question, questions_of
from megatv.eval.human.raters import Arrivals, Rater, UnknownRaterError, read_name, same
from megatv.eval.human.study import Study
from megatv.eval.human.tasks import Item, shown

MAX_COMMENT = 2_000
MAX_SECONDS = 1e9


@dataclass
class Desk:
    """What all requests share: the study, its items and checks by opaque name, and the answers."""

    study: Study
    items: dict[str, Item]
    answers: Answers
    questions: dict[str, Question] = field(init=False)

    def __post_init__(self) -> None:
        self.questions = questions_of(self.study)
        self._arrivals = Arrivals(self.study.joins_per_hour)
        self._joining = threading.Lock()

    def join(self, name: str, address: str) -> tuple[Rater, str]:
        """A new rater of an open study, and their token. A name that another one has is no matter."""
        if self.study.joins != "open":
            raise UnknownRaterError("this study is for those who are invited: open the link you were given")
        name = read_name(name)
        with self._joining:
            if self._arrivals.full(address):
                raise FullError("too many people joined from this address within an hour: try again later")
            new = self.answers.invite(name, most=self.study.max_raters, joined=time.time())
            self._arrivals.note(address)
        return new

    def enter(self, rater: Rater, name: str) -> Rater:
        """Begin or go on with an invitation; a name is given once."""
        return self.answers.join(rater, rater.name or read_name(name))

    def next(self, rater: Rater) -> dict[str, Any]:
        """What the page shows next: a task, or None when there is none."""
        item = self.answers.give(rater, chooser(self.study, self.items, rater.id))
        if item:
            return self.view(rater, item)
        return {"task": None, "before": (self._done(rater) or [None])[-1], **self.progress(rater)}

    def view(self, rater: Rater, name: str) -> dict[str, Any]:
        """A task as the page shows it, under opaque names, and the one answered before it."""
        task = self.answers.task(rater, name)
        item = self.items[name]
        first = item.videos[0]
        told: dict[str, Any] = {
            "item": name,
            "videos": [
                f"/api/videos/{name}/{self.video_name(rater.id, item, i)}"
                for i in shown(self.study, rater.id, item)
            ],
            "prompt": next((video.prompt for video in item.videos if video.prompt), ""),
            "answers": task.answers,
            "comment": task.comment,
        }
        if self.study.kind == "pointwise":
            told |= {"caption": first.caption, "start": first.start, "stop": first.stop}
        done = self._done(rater)
        earlier = done[: done.index(name)] if name in done else done
        return {"task": told, "before": (earlier or [None])[-1], **self.progress(rater)}

    def progress(self, rater: Rater) -> dict[str, int]:
        """How far the rater is."""
        found = progress(self.study, self.items, self.answers.tasks(), rater.id)
        return {"done": found.done, "total": found.total}

    def _done(self, rater: Rater) -> list[str | None]:
        """The items that a rater has answered, in the order in which they were given."""
        return [task.item for task in self.answers.tasks("WHERE rater = ?", (rater.id,)) if task.answered]

    def save(
        self, rater: Rater, item: str, answers: dict[str, str], comment: str, seconds: float | None
    ) -> None:
        """Keep answers that are complete and on the scale. Raises ValueError for others."""
        self.answers.task(rater, item)
        missing = [name for name in self.questions if name not in answers]
        foreign = [name for name in answers if name not in self.questions]
        if missing or foreign:
            fault = f"{missing[0]} is missing" if missing else f"{foreign[0][:40]!r} is no question"
            raise ValueError(f"answers must be to {', '.join(self.questions)}: {fault}")
        for name, value in answers.items():
            self.questions[name].score(value)
        if len(comment) > MAX_COMMENT:
            raise ValueError(f"a comment has at most {MAX_COMMENT} letters, this one has {len(comment)}")
        if any("\ud800" <= letter <= "\udfff" for letter in comment):
            raise ValueError("the comment has half a letter, which no text file can hold: write it anew")
        if seconds is not None and not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
            raise ValueError(f"seconds is {seconds}: it must be from 0 to {MAX_SECONDS:g}")
        self.answers.save(Task(rater.id, item, 0, answers, comment, seconds))

    def video_name(self, rater: str, item: Item, index: int) -> str:
        """What a rater's page calls one of an item's videos: another for each rater, and not to be guessed.

        A <video> sends no header of ours, so the name itself is the right to see it.
        """
        text = "\0".join((rater, item.id, str(index)))
        return hmac.new(self.answers.key, text.encode(), hashlib.sha256).hexdigest()[:32]

    def video(self, item_name: str, name: str) -> Path:
        """The file of a video's name, if the item was given to the rater whose name for it this is."""
        item = self.items.get(item_name)
        for task in self.answers.tasks("WHERE item = ?", (item_name,)) if item else ():
            for index, video in enumerate(item.videos if item else ()):
                if item and same(name, self.video_name(task.rater, item, index)):
                    if not Path(video.video).is_file():
                        raise UnknownError("this video's file is gone: tell whoever runs the study")
                    return Path(video.video)
        raise UnknownError("there is no such video: reload the page")
