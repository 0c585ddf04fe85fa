"""From an Example to one interleaved Sequence (TV2TV sections 2.1, 2.2 and 3.1).

    BOS meta-caption | text_0 BOF [noisy_0 clean_0] EOF | text_1 BOF [noisy_1 clean_1] EOF | ... | EOS

Text and chunks stand in order of time, and text comes before the chunk of the same time. A `Plan` holds the
words and their places, `Plan.runs` turns it into the runs of text rows between the chunks, and a `Cursor`
gives every row its RoPE position: training and sampling use these three, so both see the same sequence.
Pure functions; all randomness comes from `megatv.data.noise`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from megatv.config import (
    FPS,
    GROUP_FRAMES,
    GROUP_LATENTS,
    LATENT_CHANNELS,
    TEMPORAL_FACTOR,
    Config,
    SequenceConfig,
)
from megatv.data.noise import Draws
from megatv.data.tokenizer import Tokenizer
from megatv.types import IGNORE, Example, Sequence

Ids = tuple[int, ...]


def chunk_start_seconds(chunk: int) -> float:
    """Start of latent frame `chunk`: frames 0, 1, 5, ..., 45, 49, 50, 54, ... at 16 frames a second.

    Every 49-frame group is coded alone: its first latent holds one frame, the other twelve hold four.
    """
    group, inside = divmod(chunk, GROUP_LATENTS)
    return (group * GROUP_FRAMES + max(0, (inside - 1) * TEMPORAL_FACTOR + 1)) / FPS


def plan_lines(chunk: int, config: SequenceConfig) -> int:
    """Lines that a Think2V plan of actions has for a chunk: one, or one for each of its frames."""
    return TEMPORAL_FACTOR if config.think2v == "frame_actions" and chunk % GROUP_LATENTS else 1


def chunk_of_text(seconds: float) -> int:
    """The chunk that text of this time stands before: the first that starts at or after it.

    Times are rounded to the nearest frame first, so that a printed "4.63" means frame 74 (4.625 s).
    """
    group, frame = divmod(round(seconds * FPS), GROUP_FRAMES)
    return group * GROUP_LATENTS + (1 + math.ceil((frame - 1) / TEMPORAL_FACTOR) if frame else 0)


@dataclass(frozen=True)
class Run:
    """The text rows between two chunks. follows[j]: what comes next truly follows token j."""

    ids: list[int]
    follows: list[bool]


@dataclass(frozen=True)
class Plan:
    """The words of a sequence and their places; token ids, markers left out.

    prompt  segments before the video: the meta-caption's line, and for Think2V the whole plan
    before  before[i]: text right before chunk i's BOF; there are as many chunks as entries
    ends    the sequence is over after the last chunk (EOS)

    () says that there is no text; None that there was some and it was dropped: it leaves no rows, and the
    row before it bears no loss, because what follows there is not what follows in the data.
    """

    prompt: tuple[Ids | None, ...]
    before: tuple[Ids | None, ...]
    ends: bool = False

    @property
    def rows(self) -> int:
        """Text rows of the sequence: words, BOS, a BOF and an EOF for every chunk, EOS."""
        words = sum(len(ids) for ids in self.prompt + self.before if ids is not None)
        return 1 + words + 2 * len(self.before) + self.ends

    def without_text(self) -> Plan:
        """The text-free sequence of classifier-free guidance: markers stay, all words are dropped."""
        return replace(self, prompt=tuple(map(_drop, self.prompt)), before=tuple(map(_drop, self.before)))

    def runs(self, tokenizer: Tokenizer) -> list[Run]:
        """The sequence is runs[0], chunk 0, runs[1], chunk 1, ..., runs[N].

        The first run opens with BOS, the others with EOF; all but the last close with BOF. BOF is followed by
        a chunk, and the EOF after that is appended, never predicted, so BOF has no target (nor has
        Transfusion's BOI). The last EOF has one only at the true end: a cut says nothing about what follows.
        """
        runs = []
        last = len(self.before)
        for index in range(last + 1):
            run = Run([tokenizer.eof if index else tokenizer.bos], [True])
            for ids in (() if index else self.prompt) + self.before[index : index + 1]:
                if ids is None:
                    run.follows[-1] = False
                else:
                    run.ids.extend(ids)
                    run.follows.extend([True] * len(ids))
            if index < last or self.ends:
                run.ids.append(tokenizer.bof if index < last else tokenizer.eos)
                run.follows.append(False)
            else:
                run.follows[-1] = False
            runs.append(run)
        return runs


def prompt_ids(tokenizer: Tokenizer, meta_caption: str) -> Ids:
    """Tokens of the meta-caption: a line with its newline, so that later text follows by concatenation."""
    return tuple(tokenizer.encode(meta_caption + "\n")) if meta_caption else ()


def text_ids(tokenizer: Tokenizer, texts: Iterable[str]) -> Ids:
    """Tokens of one text segment; texts of the same chunk (or of a Think2V plan) are joined by newlines."""
    joined = "\n".join(texts)
    return tuple(tokenizer.encode(joined)) if joined else ()


def texts_by_chunk(example: Example) -> list[list[str]]:
    """The captions before each chunk of the example; those after its last valid chunk are left out."""
    texts: list[list[str]] = [[] for _ in range(example.valid_latents)]
    for caption in example.captions:
        chunk = chunk_of_text(caption.start_seconds)
        assert chunk >= 0, "shards refuse captions before the clip"
        if chunk < len(texts):
            texts[chunk].append(caption.text)
    return texts


def interleave(example: Example, tokenizer: Tokenizer, config: SequenceConfig) -> Plan:
    """Put the example's words in their places, by `config.mode` (TV2TV figure 3).

    tv2tv    the meta-caption, then every caption right before the first chunk at or after its time
    think2v  the meta-caption, then all captions or the detailed one (`config.think2v`), before any chunk
    t2v      the meta-caption only
    Raises ValueError when the detailed caption is wanted but absent, or when lines are wanted by frame
    (`frame_actions`) and a chunk has more or fewer of them than frames.

    Chunks that only repeat the last frame (`valid_latents`) are left out: what bears no loss and conditions
    nothing needs no place.
    """
    texts = texts_by_chunk(example)
    prompt, before = [prompt_ids(tokenizer, example.meta_caption)], [Ids()] * len(texts)
    if config.mode == "tv2tv":
        before = [text_ids(tokenizer, group) for group in texts]
    elif config.mode == "think2v" and config.think2v != "detailed_caption":
        if config.think2v == "frame_actions":
            _check_frame_lines(example, texts, config)
        prompt.append(text_ids(tokenizer, [text for group in texts for text in group]))
    elif config.mode == "think2v":
        if not example.detailed_caption:
            raise ValueError(
                f"sample {example.id} has no detailed caption, which `think2v: detailed_caption` needs: add "
                "it to the shards, or set sequence.think2v to actions"
            )
        prompt.append(text_ids(tokenizer, [example.detailed_caption]))
    return Plan(tuple(prompt), tuple(before), example.ends_clip)


def _check_frame_lines(example: Example, texts: list[list[str]], config: SequenceConfig) -> None:
    for chunk, group in enumerate(texts):
        found, wanted = sum(text.count("\n") + 1 for text in group), plan_lines(chunk, config)
        if found != wanted:
            raise ValueError(
                f"sample {example.id} has {found} lines of words for its chunk {chunk}, but `think2v: "
                f"frame_actions` is a line a frame, {wanted}: mend the captions, or set think2v to actions"
            )


def fit(example: Example, tokenizer: Tokenizer, config: SequenceConfig, text_rows: int) -> Plan:
    """The plan of the example's longest start whose words and markers take at most `text_rows`.

    Trailing chunks are left out whole, each with its words (Think2V's plan loses its actions too); a cut
    example has no true end. Raises ValueError when not even the first chunk fits.
    """
    plan = interleave(example, tokenizer, config)
    chunks = len(plan.before)
    while plan.rows > text_rows:
        if chunks == 1:
            raise ValueError(
                f"sample {example.id}: the text up to its first chunk takes {plan.rows} rows, but it may "
                f"have {text_rows}: shorten the text or raise sequence.context_tokens"
            )
        chunks -= 1
        plan = interleave(replace(example, valid_latents=chunks, ends_clip=False), tokenizer, config)
    return plan


def drop_text(plan: Plan, draws: Draws, probability: float) -> Plan:
    """Text dropout: every segment is dropped with `probability` p, alone or with all others.

    With p / 2 the sample loses all its words, which guidance needs (a sequence without any text); otherwise
    each segment is dropped alone, the paper's dropout of x_i^txt (TV2TV section 2.2, p_txt-drop), with
    p / (2 - p). A segment is then dropped with p / 2 + (1 - p / 2) p / (2 - p) = p.
    """
    whole, each = draws.text(len(plan.prompt) + len(plan.before))
    if whole < probability / 2:
        return plan.without_text()
    alone = probability / (2 - probability)
    segments = zip(plan.prompt + plan.before, each, strict=True)
    kept = [_drop(ids) if u < alone else ids for ids, u in segments]
    split = len(plan.prompt)
    return replace(plan, prompt=tuple(kept[:split]), before=tuple(kept[split:]))


def _drop(ids: Ids | None) -> Ids | None:
    return None if ids else ids  # where nothing was said, nothing is dropped


class Cursor:
    """RoPE positions of one sequence, handed out row by row in order of time.

    Text takes one position a token. A chunk takes P (`chunk_pos: raster`) or one (`single`); its copies share
    them (`noisy_pos: shared`), or the noisy copy comes first and the clean one after it (`sequential`).
    """

    def __init__(self, config: SequenceConfig, tokens_per_chunk: int) -> None:
        self.position = 0
        offsets = np.arange(tokens_per_chunk, dtype=np.int32)
        self._offsets = offsets if config.chunk_pos == "raster" else np.zeros_like(offsets)
        self._extent = int(self._offsets[-1]) + 1
        self._clean_after = self._extent if config.noisy_pos == "sequential" else 0

    def text(self, count: int) -> np.ndarray:
        """int32 [count]: positions of the next `count` text tokens."""
        positions = np.arange(self.position, self.position + count, dtype=np.int32)
        self.position += count
        return positions

    def chunk(self) -> tuple[np.ndarray, np.ndarray]:
        """int32 [P] each: positions of the next chunk's (clean, noisy) tokens."""
        noisy = self.position + self._offsets
        clean = noisy + np.int32(self._clean_after)
        self.position += self._extent + self._clean_after
        return clean, noisy


def build_sequence(
    example: Example,
    tokenizer: Tokenizer,
    config: Config,
    *,
    seed: int,
    epoch: int,
    train: bool = True,
    text_rows: int | None = None,
) -> Sequence:
    """The sequence of `example` in this epoch; a pure function of its arguments.

    Without `train` no text is dropped and no clean copy flipped; noise and times stay. text_rows: of this
    example, `config.text_rows_per_example` unless given (`fit`). Raises ValueError when not even the first
    chunk's words fit or the latents are not of the configured shape.
    """
    expected = (config.latents, LATENT_CHANNELS, config.latent_height, config.latent_width)
    if example.latents.shape != expected:
        raise ValueError(
            f"sample {example.id}: latents are {example.latents.shape}, but the config's video section gives "
            f"{expected}: use the width, height and groups that the shards were made with"
        )
    draws = Draws(seed, epoch, example.id)
    plan = fit(example, tokenizer, config.sequence, text_rows or config.text_rows_per_example)
    if train:
        plan = drop_text(plan, draws, config.sequence.text_dropout)
    return Sequence(
        id=example.id,
        **_text_rows(plan, tokenizer, config),
        **_chunks(example, len(plan.before), draws, config, train),
    )


def _text_rows(plan: Plan, tokenizer: Tokenizer, config: Config) -> dict[str, np.ndarray]:
    """Text rows, positions and visibility: a walk over the runs in order of time."""
    cursor = Cursor(config.sequence, config.tokens_per_chunk)
    runs = plan.runs(tokenizer)
    text_positions, clean_positions, noisy_positions = [], [], []
    for index, run in enumerate(runs):
        text_positions.append(cursor.text(len(run.ids)))
        if index < len(plan.before):
            clean, noisy = cursor.chunk()
            clean_positions.append(clean)
            noisy_positions.append(noisy)
    lengths = np.array([len(run.ids) for run in runs])
    ids = np.concatenate([run.ids for run in runs]).astype(np.int64)
    follows = np.concatenate([run.follows for run in runs])
    return {
        "text_ids": ids,
        "text_targets": np.where(follows, np.roll(ids, -1), IGNORE),
        "text_positions": np.concatenate(text_positions),
        "text_sees_chunks": np.repeat(np.arange(len(runs), dtype=np.int32), lengths),
        "chunk_sees_text": np.cumsum(lengths)[:-1].astype(np.int32),
        "clean_positions": np.stack(clean_positions),
        "noisy_positions": np.stack(noisy_positions),
    }


def _chunks(
    example: Example, chunks: int, draws: Draws, config: Config, train: bool
) -> dict[str, np.ndarray]:
    """Both copies of every chunk, their times and the velocity (TV2TV eq. 2 and 15)."""
    seq = config.sequence
    drawn = [
        draws.chunk(i, example.latents.shape[1:], mean=seq.timestep_mean, std=seq.timestep_std)
        for i in range(chunks)
    ]
    x = example.latents[:chunks].astype(np.float32, copy=False)
    epsilon = np.stack([d.epsilon for d in drawn])
    t = np.array([d.t for d in drawn], np.float32)
    time = t[:, None, None, None]
    noisy = time * x + (1 - time) * epsilon
    flipped = np.array([train and d.flip < seq.clean_flip for d in drawn])
    flipped[0] = False  # chunk 0 is the given picture at sampling time
    chunk_loss = np.ones(chunks, bool)
    chunk_loss[0] = seq.first_chunk_loss
    return {
        "clean": np.where(flipped[:, None, None, None], noisy, x),
        "noisy": noisy,
        "velocity": x - epsilon,
        "clean_t": np.where(flipped, t, np.float32(1)),
        "noisy_t": t,
        "chunk_loss": chunk_loss,
    }
