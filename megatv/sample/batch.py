"""Many videos, shared among the teams of whatever launcher there is; what is there is not made again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megatv.config import SampleConfig
from megatv.data.csgo_actions import are_lines
from megatv.log import AloneError
from megatv.sample.grammar import says_actions
from megatv.sample.inputs import Asked
from megatv.sample.outputs import write_results
from megatv.sample.ranks import Ranks
from megatv.sample.request import Result
from megatv.sample.sampler import Sampler
from megatv.schema import short
from megatv.untrusted import printable

Describe = Callable[[Asked, SampleConfig], dict[str, Any]]


def make_all(
    asked: dict[str, Asked],
    out: Path,
    sampler: Sampler,
    settings: SampleConfig,
    rows: int,
    ranks: Ranks,
    describe: Describe,
    overwrite: bool = False,
) -> list[str]:
    """Make this team's videos of `asked`, `rows` at a time, each into the folder out/NAME.

    Team r of n has every n-th name from the r-th on, so no team waits for another. A video does not depend on
    its neighbours, nor on the number of teams. Folders that are there are left alone, or with `overwrite`
    replaced. Returns a sentence for each that could not be made; the others are.
    """
    mine = sorted(asked)[ranks.team :: ranks.teams]
    todo = ranks.agree([name for name in mine if overwrite or not (out / name).exists()])
    failed, began = [], time.monotonic()
    for at in range(0, len(todo), rows):
        requests = {}
        for name in todo[at : at + rows]:
            try:
                requests[name] = asked[name].request(sampler)
                # a request that does not fit must not end its neighbours
                sampler.draft(requests[name], settings)
            except ValueError as error:
                requests.pop(name, None)
                failed.append(f"{name}: {error}")
        if not requests:
            continue
        results = sampler.generate(list(requests.values()), settings)
        for (name, request), result in zip(requests.items(), results, strict=True):
            if sentence := too_short(result):
                failed.append(f"{name}: {sentence}")
                continue
            if ranks.speaks:
                for sentence in foreign_words(result, says_actions(sampler.config)):
                    print(printable(f"{name}: {sentence}", keep=""), flush=True)
                record = describe(asked[name], settings)
                try:
                    write_results(out / name, request, {name: result}, record, overwrite)
                except ValueError as error:  # a full disk here is nothing that rank 0 would tell of
                    raise AloneError(str(error)) from None
        if ranks.speaks:
            done = min(at + rows, len(todo))
            left = tqdm.format_interval((time.monotonic() - began) / done * (len(todo) - done))
            print(f"[{ranks.team}] {done} of {len(todo)} videos, {left} left", flush=True)
    return failed


def foreign_words(result: Result, actions: bool) -> list[str]:
    """A sentence for each words of the user that are no action line, of a model that says nothing else.

    actions  the model is known to (`says_actions`); otherwise its own words must show it
    """
    own = [said.text for said in result.transcript if said.source == "own" and said.text]
    if not actions and not (own and all(map(are_lines, own))):
        return []
    return [
        f"{short(said.text)} at {said.start_seconds:g} s is not an action line, and this model says nothing "
        "else: try '(w). 0, 0, 0, 0.' (keys held; mouse right and down; left and right click)"
        for said in result.transcript
        if said.source == "forced" and said.text and not are_lines(said.text)
    ]


def too_short(result: Result) -> str | None:
    """Why there is no video to show, if there is none."""
    return None if len(result.frames) else "the model ended it before its first chunk; try another seed"
