"""What training leaves out because an example has more words than text rows: counted, to be said."""

from __future__ import annotations

from megatv.config import Config
from megatv.data.sequence import fit
from megatv.data.tokenizer import load_tokenizer
from megatv.types import Example


class TextBudget:
    """Counts examples, their chunks and those that training leaves out (see `megatv.data.sequence.fit`)."""

    def __init__(self, config: Config) -> None:
        self._config, self._tokenizer = config, load_tokenizer(config.tokenizer.path, config.model.vocab)
        self.examples = self.chunks = self.cut = self.lost = 0
        self._first = ""

    def check(self, words: Example) -> int:
        """How many chunks of the example fit with their words; ValueError when not even the first does."""
        rows = self._config.text_rows_per_example
        return len(fit(words, self._tokenizer, self._config.sequence, rows).before)

    def count(self, words: Example) -> None:
        """`check` an example that is in the data set."""
        lost = words.valid_latents - self.check(words)
        self.examples, self.chunks = self.examples + 1, self.chunks + words.valid_latents
        if lost:
            self.cut, self.lost = self.cut + 1, self.lost + lost
            self._first = self._first or words.id

    def report(self) -> str:
        """One line: whether all fits, or how much does not and the remedy."""
        rows = self._config.text_rows_per_example
        if not self.cut:
            return f"the words of all {self.examples} examples fit the {rows} text rows of an example"
        cut, lost = self.cut / self.examples, self.lost / self.chunks
        return (
            f"{self.cut} of {self.examples} examples ({cut:.2%}), {self._first} the first, have words for "
            f"more than the {rows} text rows of an example: training leaves out {self.lost} of {self.chunks} "
            f"chunks ({lost:.2%}), trailing ones and whole; raise sequence.context_tokens to keep them"
        )
