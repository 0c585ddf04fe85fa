"""TorchScript codecs run only on the user's word on the command line, in every tool that loads a codec."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from megatv.config import CodecConfig, load_config
from megatv.model.codec import load_codec

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
ROOT = Path(__file__).parents[2]
CONFIG = """
run: {dir: unused, steps: 1}
data: {train: unused}
tokenizer: {path: toy_world}
codec: {kind: dct}
video: {width: 32, height: 32, groups: 1}
sequence: {mode: tv2tv, context_tokens: 404}
model: {layers: 1, width: 8, ffn: 8, heads: 1, kv_heads: 1, vocab: 512, tied_embeddings: false}
batch: {examples: 2}
checkpoint: {every: 1}
"""


class Encoder(nn.Module):
    """Codes as the codec should, and leaves a file."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = marker
        self.conv = nn.Conv3d(3, 16, (4, 8, 8), stride=(4, 8, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        torch.save(x.sum(), self.marker)
        return self.conv(torch.cat([x[:, :, :1].repeat(1, 1, 3, 1, 1), x], dim=2)), x.new_zeros(1)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(16, 3, (4, 8, 8), stride=(4, 8, 8))

    def forward(self, z: Tensor) -> Tensor:
        return self.conv(z)[:, :, 3:]


@pytest.fixture
def codec(tmp_path: Path) -> Path:
    """The folder of a codec that writes `marker` beside it when it is tried out."""
    folder = tmp_path / "codec"
    folder.mkdir()
    torch.jit.script(Encoder(str(tmp_path / "marker"))).save(str(folder / "encoder.jit"))
    torch.jit.script(Decoder()).save(str(folder / "decoder.jit"))
    return folder


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a tool's main with arguments, in an empty folder; CONFIG lies in config.yaml of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    Path("config.yaml").write_text(CONFIG)

    def run(tool: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        importlib.import_module(tool).main()

    return run


def test_every_tool_refuses_or_is_told(codec: Path, start, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    named = ("codec.kind=cosmos", f"codec.path={codec}")
    shards = ("--config", "config.yaml", "--toy", 1)
    start("make_shards", *shards, "--out", "clips", "--store", "clips")
    commands: list[tuple[object, ...]] = [
        ("codec_report", "--toy", 1, "--codec", f"cosmos={codec}"),
        ("make_shards", *shards, "--out", "made", *named),
        ("shards", "stats", "clips", "--config", "config.yaml", "--recompute", *named),
        ("shards", "inspect", "clips", "--config", "config.yaml", *named),
        ("inspect_sequence", "--config", "config.yaml", "data.train=clips", *named),
    ]
    for words in commands:
        with pytest.raises(ValueError, match=r"TorchScript can run any code.*--trust-codec"):
            start(*words)
        assert not marker.exists()
        start(*words, "--trust-codec")
        assert marker.exists(), words
        marker.unlink()


def test_training_hands_on_the_users_word(codec: Path, start, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `launch/train.py` to the loader's codec and the preview's."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    import megatv.train

    given = []
    for name in ("parallel.slurm.give_way_to_srun", "parallel.orphan.stop_without_launcher"):
        monkeypatch.setattr(f"megatv.{name}", lambda: None)
    monkeypatch.setattr("megatv.parallel.environment.prepare", lambda: torch.device("cpu"))
    monkeypatch.setattr("megatv.train.train", lambda *_, trust_codec: given.append(trust_codec))
    spec = importlib.util.spec_from_file_location("launch_train", ROOT / "launch/train.py")
    assert spec is not None and spec.loader is not None
    launch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launch)
    for more in ([], ["--trust-codec"]):
        monkeypatch.setattr(sys, "argv", ["train.py", "--config", "config.yaml", *more])
        launch.main()
    assert given == [False, True]

    trainer = object.__new__(megatv.train.Trainer)
    trainer.config = load_config(Path("config.yaml"), ["codec.kind=cosmos", f"codec.path={codec}"])
    trainer.device, trainer._encoder, trainer.trust_codec = torch.device("cpu"), None, False
    with pytest.raises(ValueError, match="--trust-codec"):
        trainer._clip_encoder()
    trainer.trust_codec = True
    trainer._clip_encoder()


def test_no_file_can_say_the_users_word(codec: Path, start) -> None:
    """Trust is no setting of a config, which a checkpoint carries."""
    for key in ("trust", "trust_codec"):
        with pytest.raises(ValueError, match=f"codec.{key}"):
            load_config(Path("config.yaml"), [f"codec.{key}=true"])
    with pytest.raises(ValueError, match="--trust-codec"):
        load_codec(CodecConfig("cosmos", str(codec)))
