"""The sweep over guidance scales: what it asks of the sampler, what it tells, what it refuses."""

import dataclasses
import json
import sys

import pytest

from megatv.sample import Sampler

STARTS = 12


@pytest.fixture
def sweep(load_tool, make_player, monkeypatch):
    """Run the tool with a player of known scores in the sampler's place; the settings it was asked with."""
    tool = load_tool("sweep_guidance")

    def run(*arguments, text_dropout=0.1, mode="tv2tv"):
        player, asked = make_player(STARTS, mode=mode), []
        sequence = dataclasses.replace(player.config.sequence, text_dropout=text_dropout)
        player.config = dataclasses.replace(player.config, sequence=sequence)
        generate = player.generate
        player.generate = lambda requests, settings: asked.append(settings) or generate(requests)
        monkeypatch.setattr(Sampler, "from_checkpoint", lambda *_, **__: player)
        words = ["sweep_guidance.py", "--checkpoint", "run", "--starts", STARTS, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        tool.main()
        return asked

    return run


def test_every_scale_is_scored_on_the_same_starts(sweep, tmp_path, capsys):
    asked = sweep("--cfg", 1, 2.5, "--out", tmp_path / "scores.json")
    assert [settings.cfg for settings in asked] == [1.0] * 9 + [2.5] * 9  # left alone, and 8 interventions
    tree = json.loads((tmp_path / "scores.json").read_text())
    assert [one["cfg"] for one in tree["scales"]] == [1.0, 2.5] and tree["text_dropout"] == 0.1
    one, other = (
        {k: v for k, v in row.items() if k not in ("cfg", "latents_per_second")} for row in tree["scales"]
    )
    assert one == other and one["interventions_done_mean"] > 0.98
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[0].startswith("| cfg | words followed |") and len(rows) == 4
    assert rows[3].startswith("| 2.5 | 100.0 % |") and all(row.count("|") == 11 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        ((), {"text_dropout": 0.0}, "text_dropout 0 and has never seen a sequence without words"),
        ((), {"mode": "t2v"}, "a t2v model has no words"),
        (("--cfg", "nan"), {}, "--cfg nan: must be a number"),
        (("--starts", "0"), {}, "--starts 0: must be at least 1"),
        (("--out", "nowhere/scores.json"), {}, "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_any_work(sweep, arguments, model, message):
    with pytest.raises(ValueError, match=message):
        sweep(*arguments, **model)
