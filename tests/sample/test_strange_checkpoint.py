"""A checkpoint of a stranger's is sampled, and nothing that its config names is opened, fetched or run."""

import json
import shutil
import socket
import threading

import pytest
import torch

from megatv.checkpoint.trust import Trust, remember
from megatv.config import config_from_dict
from megatv.sample.cli import main
from megatv.sample.inputs import held_out
from megatv.sample.sampler import Sampler
from megatv.studio.serve import _examples


@pytest.fixture
def strange(run_dir, tmp_path):
    """strange(data={...}, codec={...}): a run whose checkpoint names these; its shards lie beside it."""

    def make(**sections):
        shutil.copytree(run_dir, tmp_path / "run")
        shutil.move(tmp_path / "run/val", tmp_path / "val")
        file = tmp_path / "run/checkpoints/step_00000007/meta.json"
        meta = json.loads(file.read_text())
        for section, values in sections.items():
            meta["config"][section] |= values
        file.write_text(json.dumps(meta))
        return tmp_path / "run"

    return make


@pytest.fixture
def store(monkeypatch):
    """An object store on loopback that only counts who comes."""
    callers = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                callers.append(line.recv(1000))
                line.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                line.close()

        threading.Thread(target=answer, daemon=True).start()
        for key, value in {
            "ACCESS_KEY_ID": "x",
            "SECRET_ACCESS_KEY": "x",
            "DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(f"AWS_{key}", value)
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield callers
        server.shutdown(socket.SHUT_RDWR)


def sample(run, out, *words):
    return main(["--checkpoint", str(run), "--steps", "1", "--seconds", "0.5", "--out", str(out), *words])


def test_torchscript_that_a_checkpoint_names_is_not_run(strange, tmp_path):
    class Writes(torch.nn.Module):
        def forward(self, x: torch.Tensor, file: str = str(tmp_path / "marker")) -> torch.Tensor:
            return torch.from_file(file, True, 4) + x.sum()

    for name in ("encoder.jit", "decoder.jit"):
        (tmp_path / "codec").mkdir(exist_ok=True)
        torch.jit.script(Writes()).save(tmp_path / "codec" / name)
    run = strange(codec={"kind": "cosmos", "path": str(tmp_path / "codec")})
    with pytest.raises(ValueError, match=r"names codec\.path .*--codec.*--trust-checkpoint"):
        sample(run, tmp_path / "out", "--prompt", "a")
    assert not (tmp_path / "marker").exists() and not (tmp_path / "out").exists()


def test_a_url_that_a_checkpoint_names_is_not_fetched(strange, store, tmp_path):
    run = strange(data={"val": "s3://private/shards", "cache_dir": str(tmp_path / "cache")})
    with pytest.raises(
        ValueError, match=r"names data\.val 's3://private/shards'.*--data.*--trust-checkpoint"
    ):
        sample(run, tmp_path / "out", "--example", "0")
    sampler = Sampler.from_checkpoint(run)
    assert _examples(sampler) == 0
    assert sample(run, tmp_path / "out", "--prompt", "a") == 0  # which needs no examples
    assert store == [] and not (tmp_path / "cache").exists()


def test_the_studio_says_why_it_has_no_examples(strange, tmp_path, capsys):
    run = strange()
    assert _examples(Sampler.from_checkpoint(run)) == 0
    assert "no held-out examples to start from" in (told := capsys.readouterr().out) and "--data" in told
    assert _examples(Sampler.from_checkpoint(run, trust=Trust(data=str(tmp_path / "val")))) == 2


def test_the_users_words_open_what_is_named(strange, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = strange(data={"val": str(tmp_path / "val")})
    with pytest.raises(ValueError, match=r"data\.val"):
        sample(run, tmp_path / "none", "--example", "1")
    sample(run, tmp_path / "named", "--example", "1", "--data", str(tmp_path / "val"))
    sample(run, tmp_path / "trusted", "--example", "1", "--trust-checkpoint")
    named = json.loads((tmp_path / "named/transcript.json").read_text())
    trusted = json.loads((tmp_path / "trusted/transcript.json").read_text())
    assert named["data"] == str(tmp_path / "val") and trusted["data"] is None
    assert named["runs"] == trusted["runs"]
    meta = json.loads((run / "checkpoints/step_00000007/meta.json").read_text())
    remember(config_from_dict(meta["config"]))  # as training does
    assert len(held_out(Sampler.from_checkpoint(run))) == 2


def test_a_strange_tokenizer_is_not_read(strange, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hunter2 is the word")
    run = strange(tokenizer={"path": str(secret)})
    with pytest.raises(ValueError, match=r"names tokenizer\.path .*--tokenizer") as caught:
        sample(run, tmp_path / "out", "--prompt", "a")
    assert "hunter2" not in str(caught.value)
