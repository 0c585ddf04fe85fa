"""The experiment's tool: its report on players whose scores are known, and a real arm made from nothing."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from megatv.checkpoint.store import latest
from megatv.eval import toy_runs
from megatv.sample.sampler import Sampler

ROOT = Path(__file__).parents[2]
STARTS = 8


@pytest.fixture(scope="module")
def tool():
    """tools/ is on sys.path, as it is for a script there."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        spec = importlib.util.spec_from_file_location("experiment", ROOT / "tools/experiment.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "tools"))


def call(tool, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["experiment.py", *map(str, arguments)])
    tool.main()


@pytest.mark.slow
def test_the_report_on_players_whose_scores_are_known(tool, tmp_path, monkeypatch, make_player, capsys):
    """TV2TV obeys its words and Think2V does not; both draw exactly, T2V badly."""
    players = {
        "tv2tv": make_player(STARTS),
        "think2v": make_player(STARTS, obeys=False, mode="think2v"),
        "t2v": make_player(STARTS, obeys=False, mode="t2v", noise=12),
    }

    def load(path, device, trust):
        return players[Path(path).name.split("-")[0]]

    def trained(config, overrides, out, mode, seed):
        run = out / f"{mode}-{seed}"
        run.mkdir(exist_ok=True)
        record = {
            "step": 1,
            "loss": 1.0,
            "seconds": 2.0,
            "val_ema_video_loss": 0.5,
            "val_ema_text_loss": None,
        }
        (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        return run

    monkeypatch.setattr(tool, "prepare", lambda *_: None)
    monkeypatch.setattr(tool, "train", trained)
    monkeypatch.setattr(Sampler, "from_checkpoint", load)
    monkeypatch.setattr(toy_runs, "EYE_EPISODES", 8)
    monkeypatch.setattr(toy_runs, "train_eye", lambda clips, labels: toy_runs.Eye().eval())
    options = ("--out", tmp_path, "--starts", STARTS, "--seconds", 7)
    call(tool, monkeypatch, "--config", ROOT / "configs/toy_world.yaml", *options)

    scores = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    figures = {row["name"]: row for row in scores["figures"]}
    done, able = figures["done"], ("tv2tv", "think2v")
    assert done["arms"]["tv2tv"]["value"] > 0.97 and done["arms"]["think2v"]["value"] == 0
    assert done["ahead_of"]["think2v"]["low"] > 0.9 and "t2v" not in done["arms"]
    assert len(scores["interventions"]) == 8 and set(scores["interventions"][0]["arms"]) == {*able}
    yaw = figures["told_yaw"]["arms"]
    assert yaw["tv2tv"]["value"] == 0 < yaw["think2v"]["value"]
    assert figures["alone_impossible"]["arms"]["t2v"]["value"] < 0.02
    assert figures["told_ssim"]["data"]["value"] == 1
    assert figures["long_psnr"]["data"]["value"] > 58 > figures["long_psnr"]["arms"]["t2v"]["value"]
    frechet = figures["long_frechet"]
    assert frechet["data"]["value"] < frechet["arms"]["t2v"]["value"]
    for row in scores["pairwise"]:
        assert row["win"]["mean"] + row["tie"]["mean"] + row["lose"]["mean"] == pytest.approx(1)
        assert row["win" if row["against"] == "t2v" else "tie"]["mean"] == 1, row
    drift = scores["drift"]
    assert drift["tv2tv"]["second"] == drift["data"]["second"] == list(range(1, 8))
    assert max(drift["data"]["latent"]) < min(drift["t2v"]["latent"])  # a player's latents are all zero

    html = (tmp_path / "report.html").read_text()
    assert "Yes: TV2TV does what changed words say more often than Think2V" in html
    assert html.count("data:image/png;base64,") == 5 and not re.search(r'(src|href)="(?!data:)', html)
    for name in ("interventions", "pairwise", "drift", "sheet_arms", "sheet_steered"):
        assert min(Image.open(tmp_path / f"{name}.png").size) > 100

    asked = sum(len(player.asked) for player in players.values())
    capsys.readouterr()
    call(tool, monkeypatch, "--config", ROOT / "configs/toy_world.yaml", *options)
    again = sum(len(player.asked) for player in players.values()) - asked
    assert again == 5, "only the contact sheets are made anew"
    assert "== measuring" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--starts", 1), "--starts 1: must be at least 2"),
        (("--seconds", 1), "--seconds 1.0: must be at least 4"),
        (("--seeds", 0, 0), "--seeds 0 0: give every seed once"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(tool, tmp_path, monkeypatch, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(tool, monkeypatch, "--config", "nowhere.yaml", "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_arm_is_made_from_nothing_and_kept(tool, tmp_path, monkeypatch, capfd):
    """Shards, then one tiny Think2V run through the launcher; a second call starts no process."""
    monkeypatch.setattr(tool, "VAL_EPISODES", 2)
    text = (ROOT / "configs/toy_world.yaml").read_text()
    for old, new in {
        "{kind: learned, path: data/toy_world/codec.safetensors}": "{kind: dct}",
        "data/toy_world": str(tmp_path / "data"),
        "layers: 4": "layers: 1",
        "width: 128": "width: 32",
        "ffn: 384": "ffn: 32",
        "warmup_steps: 50": "warmup_steps: 1",
        "val_every: 325": "val_every: 0",
        "preview_every: 200": "preview_every: 0",
    }.items():
        assert old in text
        text = text.replace(old, new)
    config_file = tmp_path / "tiny.yaml"
    config_file.write_text(text)
    tool.prepare(str(config_file), [], episodes=8)
    run = tool.train(str(config_file), ["run.steps=2"], tmp_path, "think2v", 3)
    checkpoint, _ = latest(run)
    meta = tool.read_meta(checkpoint)
    assert meta["step"] == 2 and meta["config"]["run"]["seed"] == 3
    assert meta["config"]["sequence"]["mode"] == "think2v"
    assert "leaves out" not in capfd.readouterr().out
    monkeypatch.setattr(tool, "command_line", lambda *words: pytest.fail(" ".join(words)))
    tool.prepare(str(config_file), [], episodes=8)
    assert tool.train(str(config_file), ["run.steps=2"], tmp_path, "think2v", 3) == run
    with pytest.raises(ValueError, match="another `run` section"):
        tool.train(str(config_file), ["run.steps=1"], tmp_path, "think2v", 3)
