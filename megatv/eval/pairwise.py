"""Two sets of videos from the same starts, side by side: wins, ties and losses (TV2TV figure 4)."""

from __future__ import annotations

import numpy as np

from megatv.eval.toy_scores import rate


def win_tie_lose(ours: np.ndarray, theirs: np.ndarray, band: float) -> dict[str, dict[str, float | None]]:
    """Shares, each with Wilson's 95 % interval, of pairs that `ours` wins, ties or loses.

    ours, theirs: one number a video, more is better, paired by index; pairs with a NaN are left out. A
    difference of `band` or less is a tie: people would not see it.
    """
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    lead = (ours - theirs).ravel()
    lead = lead[~np.isnan(lead)]
    outcomes = {"win": lead > band, "tie": np.abs(lead) <= band, "lose": lead < -band}
    return {name: rate(outcome) for name, outcome in outcomes.items()}
