"""Everything that is measured of one trained arm of the experiment, one number a start: `compare` joins arms.

An arm's measurements are plain arrays by name, so that they can be kept in one file and resampled by start.
Rows of starts that the model ended early are NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from megatv.config import FPS, GROUP_FRAMES, SampleConfig
from megatv.data.toy_pictures import RING, render
from megatv.data.toy_world import Episode, chunk_starts, simulate
from megatv.eval.drift import by_second, moments
from megatv.eval.inverse_dynamics import Eye, clips_of
from megatv.eval.similarity import psnr, ssim
from megatv.eval.toy_scores import (
    impossible_transitions,
    intervention_scores,
    residual_limit,
    valid_lines,
    words_followed,
)
from megatv.eval.toy_starts import (
    FIRST_EPISODE,
    codec_pass,
    intervened,
    start_requests,
    states_of,
    through_codec,
    told,
)
from megatv.eval.toy_world import Reading, read_states
from megatv.sample import Request, Result, Sampler, timeline

Measured = dict[str, np.ndarray]


@dataclass(frozen=True)
class Stage:
    """What all arms share: the starts with their true episodes, what the codec makes of them, and the eye.

    latents  float32 [V, N, C, h, w], normalised     real  the codec's pictures of the true episodes, read
    """

    episodes: list[Episode]
    latents: np.ndarray
    real: Reading
    eye: Eye

    @classmethod
    def open(cls, sampler: Sampler, starts: int, eye: Eye, batch: int) -> Stage:
        """Raises ValueError when the codec is too coarse for the reader."""
        groups = sampler.config.video.groups
        episodes = [simulate(FIRST_EPISODE + i, groups) for i in range(starts)]
        real, latents = codec_pass(sampler, episodes, batch)
        return cls(episodes, latents, real, eye)


def measure_arm(
    sampler: Sampler,
    stage: Stage,
    *,
    seed: int,
    seconds: float,
    batch: int,
    settings: SampleConfig,
    done: Callable[[str], None] = lambda what: None,
) -> Measured:
    """Sample an arm in every way and measure it. seconds: of the long videos; done: told after each way.

    alone_*   the trained length, left alone      told_*   the true episode's words before every chunk
    long_*    `seconds`, left alone               done, without, steered_psnr   [V, interventions]
    own_features   left alone, with words at temperature 1: the model's own distribution, not sharpened
    """
    requests = start_requests(stage.episodes, stage.latents, seed)
    limit = residual_limit(stage.real)

    def take(wanted: list[Request], what: str, settings: SampleConfig = settings) -> Take:
        results = []
        for at in range(0, len(wanted), batch):
            results += sampler.generate(wanted[at : at + batch], settings)
        done(what)
        return Take.of(results, what)

    alone = take(requests, "left alone")
    reading = read_states(alone.frames)
    measured = alone.spread(watch(alone.frames, alone.latents, alone.starts, stage.eye, reading), "alone")
    measured["own_features"] = measured["alone_features"]
    asked = list(intervened(sampler, requests))
    if asked:
        own = take(requests, "temperature 1", dataclasses.replace(settings, temperature=1.0))
        measured["own_features"] = own.column(stage.eye.features(clips_of(own.frames, own.starts)))
        lines = [[said.text for said in result.transcript] for result in alone.results]
        measured |= alone.spread(_words(reading, lines), "alone")
        cells: dict[str, list[np.ndarray]] = {"done": [], "without": [], "steered_psnr": []}
        for name, chunk, changed in asked:
            steered = take(changed, f"{name} in chunk {chunk}")
            seen = read_states(steered.frames)
            first = chunk_starts(seen.states.yaw.shape[1])[chunk]
            cells["done"].append(steered.column(intervention_scores(seen, name, chunk, limit)))
            cells["without"].append(alone.column(intervention_scores(reading, name, chunk, limit)))
            cells["steered_psnr"].append(steered.column(seen.psnr[:, first:].mean(1)))
        measured |= {name: np.stack(columns, 1) for name, columns in cells.items()}
        obeyed = take(told(requests, stage.episodes), "told every word")
        measured |= obeyed.spread(against(obeyed.frames, [stage.episodes[i] for i in obeyed.rows]), "told")
    long = take([dataclasses.replace(r, seconds=seconds) for r in requests], f"{seconds:g} s left alone")
    starts = _first_frames(long.latents.shape[1], sampler.config.video.groups)
    return measured | long.spread(watch(long.frames, long.latents, starts, stage.eye), "long")


def measure_truth(sampler: Sampler, stage: Stage, *, seconds: float, batch: int) -> Measured:
    """The same measurements of true episodes as the codec shows them: what no model can do better."""
    frames, latents = through_codec(sampler, stage.episodes, batch)
    starts = chunk_starts(frames.shape[1])
    measured = _named(watch(frames, latents, starts, stage.eye, stage.real), "alone")
    measured |= _named(against(frames, stage.episodes), "told")
    whole = int(seconds) * FPS
    groups = -(-whole // GROUP_FRAMES)
    count = len(stage.episodes)
    played, others = (  # the starts, and as many others
        through_codec(sampler, [simulate(first + i, groups) for i in range(count)], batch)
        for first in (FIRST_EPISODE, FIRST_EPISODE + count)
    )
    starts = chunk_starts(whole)
    measured |= _named(
        watch(played[0][:, :whole], played[1][:, : len(starts) - 1], starts, stage.eye), "long"
    )
    for name, length in (("alone", frames.shape[1]), ("long", whole)):
        clips = clips_of(others[0][:, :length], chunk_starts(length))
        measured[f"{name}_other_features"] = stage.eye.features(clips)
    for what in ("features", "other_features"):
        measured[f"own_{what}"] = measured[f"alone_{what}"]
    return measured


@dataclass(frozen=True)
class Take:
    """The whole videos of `count` requests. rows: which request each is of."""

    results: list[Result]
    rows: list[int]
    count: int

    @classmethod
    def of(cls, results: list[Result], what: str) -> Take:
        """Raises ValueError when no video is whole."""
        rows = [i for i, result in enumerate(results) if not result.ended]
        if not rows:
            raise ValueError(
                f"{what}: the model ends every video early, so there is nothing to score; train longer"
            )
        return cls([results[i] for i in rows], rows, len(results))

    @property
    def frames(self) -> np.ndarray:
        """uint8 [V, F, H, W, 3]."""
        return np.stack([result.frames for result in self.results])

    @property
    def latents(self) -> np.ndarray:
        """float32 [V, N, C, h, w]."""
        return np.stack([result.latents for result in self.results])

    @property
    def starts(self) -> np.ndarray:
        """First frames of the chunks of a video of at most the trained length, then F."""
        return chunk_starts(len(self.results[0].frames))

    def column(self, values: np.ndarray) -> np.ndarray:
        """values [V, ...] as [count, ...], NaN where a video ended early."""
        column = np.full((self.count, *values.shape[1:]), np.nan)
        column[self.rows] = values
        return column

    def spread(self, measured: Measured, name: str) -> Measured:
        """Every array as a column, its name after `name_`."""
        return _named({key: self.column(values) for key, values in measured.items()}, name)


def watch(
    frames: np.ndarray, latents: np.ndarray, starts: np.ndarray, eye: Eye, reading: Reading | None = None
) -> Measured:
    """What needs no words, of V videos [V, F, H, W, 3] whose chunks begin at `starts`; [V, T] by second.

    psnr           dB to the nearest valid picture     impossible   share of transitions that are impossible
    features       of the eye, [V, chunks, 32]         pixel_*, latent_*   moments, [V, T, channels]
    The given first frame does not count, but for the moments.
    """
    reading = reading or read_states(frames)
    seconds, whole = np.arange(frames.shape[1]) / FPS, max(1, frames.shape[1] // FPS)
    impossible = impossible_transitions(reading.states, starts)
    pixels = moments(frames, seconds, whole)
    codes = moments(latents.transpose(0, 1, 3, 4, 2), starts[:-1] / FPS, whole)
    return {
        "psnr": by_second(reading.psnr[:, 1:], seconds[1:], whole),
        "impossible": by_second(impossible, seconds[1:], whole),
        "features": eye.features(clips_of(frames, starts)),
        "pixel_mean": pixels.mean,
        "pixel_square": pixels.square,
        "latent_mean": codes.mean,
        "latent_square": codes.square,
    }


def against(frames: np.ndarray, episodes: Iterable[Episode]) -> Measured:
    """Videos beside the simulator's own frames for the same words, without the given frame.

    psnr, ssim   [V]
    wrong        [V, 6]: share of frames in which a part of the state, as read, is not the true one
    yaw          [V]: mean error of the view's direction in pixels
    """
    episodes = list(episodes)
    truth = states_of(episodes).at(np.s_[:, 1:])
    pictures = render(*truth)
    seen = read_states(frames).states.at(np.s_[:, 1:])
    turned = np.abs(seen.yaw - truth.yaw)
    return {
        "psnr": psnr(frames[:, 1:], pictures).mean(1),
        "ssim": ssim(frames[:, 1:], pictures).mean(1),
        "wrong": np.stack([(a != b).mean(1) for a, b in zip(seen, truth, strict=True)], 1),
        "yaw": np.minimum(turned, RING - turned).mean(1),
    }


def _words(reading: Reading, lines: list[list[str]]) -> Measured:
    """Own words, [V] each: share of valid lines, and of chunks that show exactly what their words say."""
    shown = []
    for row, said in enumerate(lines):
        seen = words_followed(reading.states.at(np.s_[row : row + 1]), [said])["all"]
        shown.append(seen.mean() if len(seen) else np.nan)
    return {
        "valid": np.array([valid_lines([said]).mean() for said in lines]),
        "followed": np.array(shown),
    }


def _first_frames(chunks: int, groups: int) -> np.ndarray:
    """First frame of every chunk of a video made in sliding windows, then the number of frames."""
    windows = timeline.plan_windows(chunks, groups)
    first = [round(start * FPS) for start in timeline.chunk_starts(windows)]
    return np.array([*first, timeline.frames_of(chunks, groups)])


def _named(measured: Measured, name: str) -> Measured:
    return {f"{name}_{key}": values for key, values in measured.items()}
