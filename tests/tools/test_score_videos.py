"""The tool on folders of videos: its record, and what it refuses in one sentence, leaving nothing behind."""

import importlib.util
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from megatv.curate import endpoint
from megatv.data.video import write_video
from megatv.log import main_guard

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("score_videos", ROOT / "tools/score_videos.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

VLM = ["--metrics", "vlm", "--endpoint", "https://x/v1", "--model", "m"]


class Apart(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3))


class Colours(torch.nn.Module):
    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return video.mean(dim=(2, 3, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """videos/{a,b}/video.mp4 with transcripts, references/{a,b,more}.mp4 of twice the size, two networks."""
    folder = tmp_path_factory.mktemp("scored")
    rng = np.random.default_rng(0)
    (folder / "references").mkdir()
    for name in ("a", "b", "more"):
        pixels = rng.integers(0, 200, (8, 4, 6, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        write_video(folder / f"references/{name}.mp4", pixels.repeat(2, 1).repeat(2, 2))
        if name == "more":
            continue
        (folder / "videos" / name).mkdir(parents=True)
        write_video(folder / "videos" / name / "video.mp4", pixels + (20 if name == "b" else 0))
        tree = {
            "prompt": f"Scene {name}.",
            "interventions": [{"seconds": 0.25, "text": "Jump."}] * (1 if name == "a" else 2),
            "runs": [{"name": name, "video": "video.mp4"}],
        }
        (folder / "videos" / name / "transcript.json").write_text(json.dumps(tree))
    torch.jit.script(Apart()).save(str(folder / "lpips.pt"))
    torch.jit.script(Colours()).save(str(folder / "i3d.pt"))
    return folder


@pytest.fixture
def score(folder, tmp_path, monkeypatch):
    """Run the tool with the folders' videos and references unless told otherwise; the record, if written."""

    def run(*more, videos=folder / "videos", references=folder / "references", out=tmp_path / "out.json"):
        said = ["--videos", videos, *(["--references", references] if references else []), "--out", out]
        monkeypatch.setattr(sys, "argv", ["score_videos.py", *map(str, [*said, *more]), "--device", "cpu"])
        tool.main()
        return json.loads(out.read_text()) if out.exists() else None

    return run


def test_everything_that_compares(score, folder, tmp_path, capsys):
    results = {str(folder / f"videos/{n}/video.mp4"): s for n, s in (("a", 0.25), ("b", 0.75))}
    entries = [{"video_path": path, "video_results": s} for path, s in results.items()]
    (tmp_path / "bench.json").write_text(json.dumps({"motion_smoothness": [0.5, entries]}))
    files = ["--lpips", folder / "lpips.pt", "--i3d", folder / "i3d.pt", "--vbench", tmp_path / "bench.json"]
    files.append("--trust-weights")
    record = score("--metrics", "psnr", "ssim", "lpips", "fvd", "vbench", *files)
    a, b = record["per_video"]["a"], record["per_video"]["b"]
    assert a["psnr"]["mean"] > 30 > b["psnr"]["mean"] > 20 and len(b["ssim"]["frames"]) == 8
    assert a["ssim"]["mean"] > 0.95 and b["lpips"]["mean"] == pytest.approx(20 / 127.5, rel=0.1)
    means = record["metrics"]
    assert set(means) == {"psnr", "ssim", "lpips", "fvd", "vbench motion_smoothness"}
    assert means["psnr"]["value"] == pytest.approx((a["psnr"]["mean"] + b["psnr"]["mean"]) / 2)
    assert means["psnr"]["low"] == pytest.approx(b["psnr"]["mean"])
    assert means["vbench motion_smoothness"] == {"value": 0.5, "low": 0.25, "high": 0.75, "videos": 2}
    assert means["fvd"]["value"] > 0 and len(record["files"]["fvd"]["sha256"]) == 64
    shown = capsys.readouterr().out
    assert "psnr" in shown and f"{means['psnr']['value']:.4f}" in shown and "2 videos" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "out.json"]


def test_orders_are_judged_by_a_server(score, tmp_path, monkeypatch):
    pytest.importorskip("httpx", reason="the endpoint is asked through httpx; pip install httpx")
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.01)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            words = body["messages"][0]["content"][0]["text"]
            asked.append(words)
            said = ["yes"] if "Scene a." in words else ["partly", "no"]
            content = json.dumps({"answers": said}) if not refused or refused[0] not in words else "No."
            data = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    asked, refused = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        more = ["--metrics", "vlm", "--endpoint", url, "--model", "seer"]
        assert score(*more, "--dry-run", references=None) is None and not asked
        assert not list(tmp_path.iterdir())
        record = score(*more, references=None)
        assert len(asked) == 2 and record["vlm"]["requests"] == 2
        assert record["per_video"]["a"]["vlm"]["mean"] == 1
        assert [o["answer"] for o in record["per_video"]["b"]["vlm"]["orders"]] == ["partly", "no"]
        assert record["metrics"]["vlm"] == {"value": 0.625, "low": 0.25, "high": 1.0, "videos": 2}
        assert record["vlm"]["failed"] == {}
        assert score(*more, references=None)["vlm"]["cached"] == 2 and len(asked) == 2
        refused.append("Scene b.")
        with pytest.raises(
            ValueError, match=r"vlm: 1 of 2 videos were not judged, .*; b: .*'No\.'; start again"
        ):
            score(*more, "--metrics", "psnr", "vlm", "--frames", "5")
        record = json.loads((tmp_path / "out.json").read_text())
        assert "answers twice in a wrong form" in record["vlm"]["failed"]["b"]
        assert record["metrics"]["vlm"]["videos"] == 1 and record["metrics"]["psnr"]["videos"] == 2
    finally:
        server.shutdown()
        server.server_close()


def test_a_dry_run_says_what_would_be_asked(score, capsys):
    assert score("--metrics", "psnr", *VLM[1:], "--dry-run") is None
    shown = capsys.readouterr().out
    assert "dry run: psnr, vlm of 2 videos; nothing is sent or written" in shown
    assert (
        "2 requests to https://x/v1 for 3 interventions" in shown and 'order 1, from 0.25 s: "Jump."' in shown
    )


@pytest.mark.parametrize(
    ("more", "changed", "fault"),
    [
        ([], {"references": None}, "psnr, ssim compare with references: give --references DIR"),
        ([], {"videos": Path("gone")}, "--videos gone: is no folder"),
        ([], {"references": Path("gone")}, "--references gone: is no folder"),
        ([], {"out": Path("gone/out.json")}, "--out gone/out.json: cannot be written"),
        (["--metrics", "lpips"], {}, "lpips needs weights and nothing is downloaded: give --lpips FILE"),
        (["--metrics", "fvd"], {}, "fvd needs weights and nothing is downloaded: give --i3d FILE"),
        (["--metrics", "fvd", "--i3d", ROOT / "LICENSE"], {}, "LICENSE: is no TorchScript"),
        (["--metrics", "fvd", "--i3d", "FOLDER/i3d.pt"], {}, "its SHA-256 is not the published bec6519f"),
        (["--metrics", "lpips", "--lpips", "FOLDER/lpips.pt"], {}, "or --trust-weights if you know"),
        (["--metrics", "vbench"], {}, "vbench's scores come from its own package"),
        (["--metrics", "vlm"], {}, "give --endpoint URL and --model NAME"),
        ([*VLM[:3], "x", *VLM[4:]], {}, "endpoint.url is no plain URL"),
        ([*VLM, "--api-key-env", "NO_SUCH_API_KEY"], {},
         "--api-key-env names NO_SUCH_API_KEY, which is not set"),
        ([*VLM, "--api-key-env", "HOME"], {}, "--api-key-env must be the name of an environment variable"),
        ([*VLM[:3], "https://me:hunter2@x/v1", *VLM[4:]], {}, "endpoint.url has a user name or password"),
        ([*VLM, "--concurrency", "0"], {},
         "concurrency is 0: it must be above 0"),
        (["--frames", "0"], {}, "--frames 0: must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(score, folder, tmp_path, more, changed, fault):
    with pytest.raises(ValueError) as error:
        score(*(str(word).replace("FOLDER", str(folder)) for word in more), **changed)
    assert fault in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_set_of_one_has_no_fvd(score, folder, tmp_path):
    one = folder / "videos/a"
    (tmp_path / "references").mkdir()
    (tmp_path / "references/video.mp4").symlink_to(folder / "references/a.mp4")
    more = {"videos": one, "references": tmp_path / "references"}
    with pytest.raises(ValueError, match="fvd compares sets: give at least 2 videos"):
        score("--metrics", "fvd", "--i3d", folder / "i3d.pt", "--trust-weights", **more)
    assert score("--metrics", "ssim", **more)["metrics"]["ssim"]["low"] is None


def test_a_broken_video_in_the_middle_leaves_no_file_and_exit_code_2(
    score, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the guard would make these tests deaf to SIGTERM
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").symlink_to(folder / "videos/a/video.mp4")
    data = (folder / "videos/b/video.mp4").read_bytes()
    (tmp_path / "videos/b.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(SystemExit) as left:
        main_guard(lambda: score(videos=tmp_path / "videos"))
    said = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and len(said) == 1 and said[0].startswith("error: ") and "b.mp4" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]
