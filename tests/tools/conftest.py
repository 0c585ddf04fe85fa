"""A model behind HTTP and the command line of the whole pipeline, for its tests."""

import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from megatv.data.video import write_video

ROOT = Path(__file__).parents[2]


class _Seer(BaseHTTPRequestHandler):
    """Answers each prompt in its form."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][0]["content"][0]["text"]
        self.server.asked.append(prompt)
        time.sleep(self.server.seconds)
        if self.server.down:
            self.send_error(400, "out of order")
            return
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


@pytest.fixture
def model():
    """`asked` has the prompts; `seconds` is what an answer takes; while `down`, every request is refused."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Seer)
    server.asked, server.seconds, server.down = [], 0.0, False
    server.override = f"endpoint={{url: 'http://127.0.0.1:{server.server_port}/v1', model: seer, retries: 0}}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def moving_video():
    """(path, seed) -> writes 7 s of a picture that moves sideways: no cuts, no faces."""

    def write(path, seed):
        cv2 = pytest.importorskip("cv2")
        coarse = np.random.default_rng(seed).integers(0, 256, (12, 60, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (1000, 192), interpolation=cv2.INTER_CUBIC)
        write_video(path, np.stack([picture[:, 4 * k : 4 * k + 320] for k in range(7 * 16)]))

    return write


@pytest.fixture(scope="session")
def dataset_command():
    """(videos, out, *more) -> the keyword arguments of subprocess that run the tool on the sports recipe."""

    def command(videos, out, *more):
        arguments = [
            "--videos",
            str(videos),
            "--out",
            str(out),
            "--config",
            "configs/data/sports.yaml",
            *more,
        ]
        return {"args": [sys.executable, "tools/build_dataset.py", *arguments],
                "cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}  # fmt: skip

    return command
