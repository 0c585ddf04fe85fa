"""One video as it is made: a generator of events, into which a person may put words at any moment."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator

import torch

from megatv.config import SampleConfig
from megatv.data.sequence import text_ids
from megatv.sample.events import Event, Finished
from megatv.sample.request import Intervention, Request
from megatv.sample.sampler import Sampler
from megatv.sample.script import TooLongError
from megatv.sample.timeline import chunk_starts, plan_windows


class Stream(Iterator[Event]):
    """Iterate for the events of one video; between two of them `intervene`, `branch` or `close`.

    Every step of the iteration does a bounded piece of work: a token, a chunk, the decoding of a chunk. Left
    alone, the video is that of `Sampler.generate`. Raises ValueError when the request does not fit.

    chunks   how many the video will have       starts   when each of them starts, in seconds
    overlap  pictures are decoded while the next chunk is spoken and drawn, and come when they are there;
             without it they come before anything of the next chunk is done
    """

    def __init__(
        self,
        sampler: Sampler,
        request: Request,
        settings: SampleConfig | None = None,
        *,
        overlap: bool = True,
    ) -> None:
        self.sampler, self.request = sampler, request
        self.settings, self.overlap = settings or sampler.config.sample, overlap
        self._draft = sampler.draft(request, self.settings)
        self._draft.script.go_live()
        self.chunks = self._draft.script.chunks
        self.starts = chunk_starts(plan_windows(self.chunks, sampler.config.video.groups))
        self._events = self._make()

    def __next__(self) -> Event:
        with torch.inference_mode():
            return next(self._events)

    def intervene(self, chunk: int, text: str) -> None:
        """`text` becomes the words of `chunk` ("" is silence); what the model has said of them is unsaid.

        A given chunk's words may be changed, too. Raises ValueError when it is too late, outside of the video
        or too long, or the model has no words.
        """
        self._draft.script.intervene(chunk, text)

    def branch(self, chunk: int, text: str | None = None, seed: int | None = None) -> Stream:
        """Another video that is this one before `chunk`, and then goes its own way.

        The chunks before are not drawn again, but put in their places, with their events. A think2v model's
        plan comes before every chunk, so its branch says a new one and draws everything anew.

        text   words of `chunk`, the model's own by default       seed   of all that is drawn from there on
        Raises ValueError when the chunk before is not made yet, or the text does not fit.
        """
        script = self._draft.script
        if not 0 <= chunk <= len(script.transcript):
            raise ValueError(f"cannot branch at chunk {chunk}: choose one from 0 to {len(script.transcript)}")
        words = {at: line for at, line in script.forced.items() if at < chunk}
        if text is not None:
            words[chunk] = text
        made = {at: line for at, line in words.items() if at >= script.given}
        spoken = tuple(Intervention(self.starts[at], line) for at, line in sorted(made.items()))
        given = self.request.given_words
        if chunk < len(given):
            given = (*given[:chunk], None, *given[chunk + 1 :])
        seed = self.request.seed if seed is None else seed
        request = dataclasses.replace(self.request, given_words=given, interventions=spoken, seed=seed)
        try:
            twin = Stream(self.sampler, request, self.settings, overlap=self.overlap)
        except TooLongError as error:
            if text is None:
                raise
            tokens = len(text_ids(script.tokenizer, [text])) + 1
            left = max(0, tokens - error.excess)
            raise ValueError(
                f"words for chunk {chunk}: they take {tokens} tokens, and {left} are left for yours; "
                "shorten them"
            ) from None
        for at in words.keys() - made.keys():  # an intervention of a request never falls on a given chunk
            twin.intervene(at, words[at])
        if script.mode != "think2v":
            twin._draft.recall(self._draft, chunk)
        return twin

    def close(self) -> None:
        """Stop, and free what the video needed; it may still be branched, which needs no frames."""
        self._events.close()
        self._draft.frames.clear()

    def _make(self) -> Generator[Event, None, None]:
        for _, event in self.sampler.events([self._draft], self.settings, overlap=self.overlap):
            yield event
        if len(self._draft.script.transcript):
            yield Finished(self._draft.result())
