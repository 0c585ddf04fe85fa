"""The words of one request: whose turn it is to speak, what is said for whom, and how much room is left.

Knows tokens and times, but no model: the sampler asks it before every chunk and tells it what was said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from megatv.config import FPS, Config, SampleConfig
from megatv.data.sequence import Ids, Plan, plan_lines, prompt_ids, text_ids
from megatv.data.tokenizer import Tokenizer
from megatv.sample.grammar import LINES, Walk, action_grammar
from megatv.sample.request import ChunkWords, Request
from megatv.sample.speech import Speech
from megatv.sample.timeline import MAX_SECONDS, Window, chunk_starts, chunks_within, plan_windows


class TooLongError(ValueError):
    """Words that no window has room for. excess: tokens that are too many."""

    def __init__(self, reason: str, excess: int) -> None:
        super().__init__(reason)
        self.excess = excess


class Script:
    """chunks: length of the video; given: chunks that the request brings.

    The sequence is prompt, words of chunk 0, chunk 0, words of chunk 1, ... and the model says the words
    before given chunks as before all others (TV2TV figure 3), unless the request brings some.

    places             place in its window of every chunk
    lines, all_lines   what a plan of actions says of each chunk, in this window and in all so far
    transcript, said   the words of the chunks so far, and their tokens; they grow chunk by chunk
    recalled           the same of a video that this one repeats, up to some chunk
    live               somebody listens while the video is made, and may put words in (`go_live`)

    Raises ValueError when the request does not fit the model (its times, its mode, its text) or the grammar.
    """

    def __init__(
        self, request: Request, given: int, config: Config, tokenizer: Tokenizer, settings: SampleConfig
    ) -> None:
        self.mode = request.mode or config.sequence.mode
        self.given, self.tokenizer = given, tokenizer
        self.size, self.budget = config.latents, config.text_rows_per_example
        self.sequence, self.ends_when_full = config.sequence, settings.when_full == "end"
        self.plans_actions = config.sequence.think2v != "detailed_caption"
        held = settings.grammar == "actions" and self.mode != "t2v"  # which has no words to be held
        if held and self.mode == "think2v" and not self.plans_actions:
            raise ValueError(
                "sample.grammar actions is for action lines, and this model plans in a detailed caption: set "
                "it to none"
            )
        self.grammar = action_grammar(tokenizer) if held else None
        if request.seconds is not None and not 0 < request.seconds <= MAX_SECONDS:
            raise ValueError(
                f"seconds is {request.seconds:g}: a video must last longer than 0 seconds, and "
                f"{MAX_SECONDS:g} at most"
            )
        groups = config.video.groups
        self.chunks = self.size if request.seconds is None else chunks_within(request.seconds, groups)
        self.chunks = max(self.chunks, given)
        windows = plan_windows(self.chunks, groups)
        self.places = [place for window in windows for place in range(window.kept, window.end)]
        self.keep_prompt = settings.keep_prompt
        self.prompt = prompt_ids(tokenizer, request.prompt)
        if len(request.given_words) > given:
            raise ValueError(
                f"words of {len(request.given_words)} chunks are given, but only {given} chunks: words for "
                "chunks that are to be made are interventions"
            )
        brought = {k: text for k, text in enumerate(request.given_words) if text is not None}
        if self.mode == "t2v":  # which is silent anyway
            brought = {k: text for k, text in brought.items() if text}
        self.given_words = {k: self._yours(k, text) for k, text in brought.items()}
        self.forced = self._place(request, chunk_starts(windows))
        self._check_room(windows)
        self.transcript: list[ChunkWords] = []
        self.said: list[Ids] = []
        self.recalled: list[tuple[Ids, ChunkWords]] = []
        self.live, self._spare = False, 0
        self._interrupted: set[int] = set()
        self.ended = False
        self.words: list[Ids] = []
        self.lines: list[str] = []
        self.all_lines: list[str] = []

    def _place(self, request: Request, starts: list[float]) -> dict[int, str]:
        """Chunk of the video -> the user's words for it; times count in whole frames, as in training."""
        forced: dict[int, str] = {}
        for intervention in request.interventions:
            frame = round(max(-1.0, min(intervention.seconds, 2 * MAX_SECONDS)) * FPS)  # an endless time, too
            chunk = next((k for k, s in enumerate(starts) if s * FPS >= frame and k >= self.given), None)
            if frame < 0 or chunk is None:
                raise ValueError(
                    f"intervention at {intervention.seconds:g} s is outside the video, whose last chunk "
                    f"starts at {starts[-1]:g} s: choose another time or ask for more seconds"
                )
            if chunk in forced:
                raise ValueError(
                    f"interventions '{forced[chunk]}' and '{intervention.text}' both fall on the chunk at "
                    f"{starts[chunk]:g} s; give them times at least a chunk apart"
                )
            forced[chunk] = self._yours(chunk, intervention.text)
        return forced

    def _check_room(self, windows: list[Window]) -> None:
        """Refuse text that no window can hold, before any work is done."""
        need = self._rows([()] * self.size, windows[0])
        if need > self.budget:
            raise ValueError(
                f"the prompt takes {len(self.prompt)} tokens, but the model's sequences have room for "
                f"{self.budget - need + len(self.prompt)}: shorten the prompt"
            )
        for window in windows:
            first = window.first - window.kept
            need = self._rows([self._forced_ids(first + i) for i in range(self.size)], window)
            if need > self.budget:
                raise TooLongError(
                    f"your words from {window.start_seconds:g} s on take {need - self.budget} tokens "
                    "more than the model's sequences have room for: shorten them or use fewer",
                    need - self.budget,
                )

    def _rows(self, words: list[Ids], window: Window) -> int:
        return Plan((self._meta(window),), tuple(words), ends=True).rows

    def _meta(self, window: Window) -> Ids:
        return self.prompt if self.keep_prompt or window.first == 0 else ()

    def _forced_ids(self, chunk: int) -> Ids:
        text = self._told(chunk)
        return text_ids(self.tokenizer, [text]) if text else ()

    def _told(self, chunk: int) -> str | None:
        """The user's words for a chunk of the video; empty words are words, too."""
        return self.forced.get(chunk, self.given_words.get(chunk))

    def open(self, window: Window) -> None:
        """Start a window. Its kept chunks keep their words; a plan keeps its lines from there on."""
        self.window = window
        self.words = self.words[len(self.words) - window.kept :]
        if self.plans_actions:
            self.lines = self.lines[self.size - window.kept : self.size]
        if window.recoded and self.sequence.think2v == "frame_actions":
            # a frame coded anew keeps the words that it was drawn under: the last line of its chunk
            self.words = [self._last_line(ids) for ids in self.words]
            self.lines = [text.rpartition("\n")[2] for text in self.lines]
        self._spare = self.budget if self.live else 0

    def head(self) -> list[int]:
        """What the window begins with: BOS and the meta-prompt, if it is kept."""
        return [self.tokenizer.bos, *self._meta(self.window)]

    def index(self, chunk: int) -> int:
        """Place in the video of a chunk of the window; an anchor has that of the chunk after it."""
        return self.window.first - self.window.kept + max(chunk, 0)

    def slots(self) -> int:
        """The most text tokens that the window may come to: the model keeps to the budget, users may not."""
        forced = sum(len(self._forced_ids(self.index(0) + i)) + 1 for i in range(self.size))
        anchor = len(self._anchor_ids()) + 2 if self.window.anchored else 0  # with BOF and EOF
        return self.budget + forced + self._spare + anchor

    def _anchor_ids(self) -> Ids:
        """The words that the video's first chunk was drawn under."""
        return self.said[0] if self.said else ()

    def _anchor_lines(self) -> list[str]:
        """The same as a plan's line, in front of the window's own lines."""
        return self.all_lines[:1] if self.window.anchored and self.plans_actions else []

    def turn(self, chunk: int) -> tuple[Ids, int | None]:
        """Words that surely stand before this chunk of the window, and how many tokens the model may add.

        None: it is not asked, not even whether it would say any.
        """
        index = self.index(chunk)
        if self.mode == "think2v":
            if chunk != self.window.chunks.start or self.ended:
                return (), None
            if not self.plans_actions:
                return text_ids(self.tokenizer, self.lines), None if self.lines else self._room(0)
            lines = self._anchor_lines() + self.lines
            kept = text_ids(self.tokenizer, [*lines, ""] if lines else [])
            return kept, max(0, self._room(0) - len(kept))
        if chunk < 0:
            return self._anchor_ids(), None
        if chunk < self.window.kept:
            return self.words[chunk], None
        if index < len(self.recalled):
            return self.recalled[index][0], None
        if self._told(index) is not None:
            return self._forced_ids(index), None
        silent = self.mode == "t2v" or self.ended or index >= self.chunks
        return (), None if silent else self._room(chunk)

    def speech(self, chunk: int, head: Sequence[int]) -> Speech:
        """Start to speak before this chunk of the window, after the tokens of `head`.

        EOS may only follow a chunk, and a plan has as many lines as it has room for. Before a given chunk
        neither EOS nor a full context ends the video: the chunk is there.
        """
        words, room = self.turn(chunk)
        there = self.index(chunk) < self.given
        spills, walk = self.ends_when_full and not there, None
        if self.grammar is not None and room is not None and (room > 0 or spills):
            lines = math.inf if self.mode == "think2v" else LINES
            walk = Walk(self.grammar, lines, room, may_end=chunk > 0 and not there)
        return Speech(head, words, room, walk, may_end=not there, spills=spills)

    def go_live(self) -> None:
        """Words may come while the video is made: keep room for as many as a sequence has."""
        self.live, self._spare = True, self.budget

    def intervene(self, chunk: int, text: str) -> None:
        """Words of the user's for a chunk of the video, given while it is being made (after `go_live`).

        Raises ValueError when they come too late, fit no chunk, or are too long.
        """
        where = f"words for chunk {chunk}"
        if not 0 <= chunk < self.chunks:
            raise ValueError(f"{where}: choose one of the chunks 0 to {self.chunks - 1}")
        text = self._yours(chunk, text)
        if self.ended or chunk < len(self.transcript):
            raise ValueError(f"{where}: they are too late, it is drawn already; branch from it instead")
        if self.mode == "think2v" and self.words:
            raise ValueError(f"{where}: the whole plan is said already; branch, and it is said anew")
        tokens = len(text_ids(self.tokenizer, [text])) + 1
        if tokens > self._spare:
            raise ValueError(
                f"{where}: they take {tokens} tokens, and {self._spare} are left for yours; shorten them"
            )
        self._spare -= tokens
        self.forced[chunk] = text
        if self.mode == "tv2tv":
            self._interrupted.add(chunk)

    def interrupted(self, chunk: int) -> Ids | None:
        """The user's words for this chunk of the window, if they have come while the model was speaking."""
        index = self.index(chunk)
        if index not in self._interrupted:
            return None
        self._interrupted.remove(index)
        return self._forced_ids(index)

    def say(self, chunk: int, ids: Ids, *, cut: bool) -> Ids:
        """Note the words before this chunk of the window; return those that must stand there.

        Only a Think2V plan is ever changed: the user's words replace the plan's line of their chunk (TV2TV
        section 3.3), or are added to a plan that has no such line.
        """
        index = self.index(chunk)
        if self.mode == "think2v" and chunk == self.window.chunks.start and not self.ended:
            ids = self._plan(ids)
        if chunk >= 0:
            self.words[chunk : chunk + 1] = [ids]
        if self.window.kept <= chunk and index < self.chunks and not self.ended:
            recall = index < len(self.recalled)
            self.transcript.append(self.recalled[index][1] if recall else self._entry(chunk, ids, cut))
            self.said.append(ids)
            self._interrupted.discard(index)
        return ids

    def plan(self) -> str:
        """The whole Think2V plan, interventions included."""
        return "\n".join(self.all_lines)

    def text_tokens(self) -> int:
        """Tokens of all words after the prompt."""
        return sum(len(self.tokenizer.encode(text)) for text in (self.plan(), *self._chunk_texts()))

    def _chunk_texts(self) -> list[str]:
        return [] if self.mode == "think2v" else [words.text for words in self.transcript]

    def _room(self, chunk: int) -> int:
        """Tokens that the model may say here: all that the window has left for a plan, else half of it.

        The half keeps a model that never stops from leaving the later chunks without words; where a full
        context ends the video (`sample.when_full: end`) it may have all. Interventions to come take nothing
        away: they change nothing before their time.
        """
        left = self.budget - self._rows(self.words[:chunk] + [()] * (self.size - chunk), self.window)
        whole = self.mode == "think2v" or (self.ends_when_full and self.index(chunk) >= self.given)
        return max(0, left) // (1 if whole else min(2, self.size - chunk))

    def _plan(self, ids: Ids) -> Ids:
        """Split a plan into lines, put the user's in and return its tokens."""
        first, anchor = self.index(0), self._anchor_lines()
        lines = self.tokenizer.decode(list(ids)).split("\n") if ids else []
        self.lines = self._by_chunk(lines[len(anchor) :])
        told = {k: text for k, text in (self.given_words | self.forced).items() if text or self.plans_actions}
        edits = {k - first: text for k, text in told.items() if self.window.first <= k < first + self.size}
        for line, text in sorted(edits.items()):
            at = line if self.plans_actions else len(self.lines)  # a caption has no line of a chunk's
            self.lines[at : at + 1] = [text]
        old = int(self.window.recoded)  # a frame coded anew is no new chunk
        self.all_lines[first + old :] = self.lines[old:]
        return text_ids(self.tokenizer, anchor + self.lines) if edits else ids

    def _by_chunk(self, lines: list[str]) -> list[str]:
        """A plan's lines, those of one chunk joined."""
        texts: list[str] = []
        while lines:
            count = plan_lines(len(texts), self.sequence)
            texts.append("\n".join(lines[:count]))
            lines = lines[count:]
        return texts

    def _yours(self, chunk: int, text: str) -> str:
        """The user's words as the model needs them: a plan of frames has a line for every frame of a chunk.

        One line stands for all. Raises ValueError for another number of them, and for a model without words.
        """
        if self.mode == "t2v":
            raise ValueError(
                f"words for chunk {chunk}, '{text}': a t2v model has no words to change; use a tv2tv or "
                "think2v model"
            )
        wanted, lines = plan_lines(self.places[chunk], self.sequence), text.split("\n")
        if self.mode != "think2v" or not self.plans_actions or len(lines) == wanted:
            return text
        if len(lines) > 1:
            raise ValueError(
                f"words for chunk {chunk}: {len(lines)} lines, but this model plans {wanted} for it: give "
                f"{'one' if wanted == 1 else f'one line, which then stands for all, or {wanted}'}"
            )
        return "\n".join(lines * wanted)

    def _last_line(self, ids: Ids) -> Ids:
        return text_ids(self.tokenizer, [self.tokenizer.decode(list(ids)).rpartition("\n")[2]])

    def _entry(self, chunk: int, ids: Ids, cut: bool) -> ChunkWords:
        index, start = self.index(chunk), self.window.starts()[chunk]
        given = index < self.given
        if index in self.forced:
            return ChunkWords(start, self.forced[index], "forced", given=given)
        if self.mode == "think2v":
            text = self.lines[chunk] if self.plans_actions and chunk < len(self.lines) else ""
        else:
            text = self.tokenizer.decode(list(ids))
        return ChunkWords(start, text, "given" if index in self.given_words else "own", cut, given)
