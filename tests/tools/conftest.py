"""A model behind HTTP, players of the toy world and the pipeline's command line, for the tools' tests."""

import importlib.util
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from megatv.config import load_config
from megatv.data.stats import LatentStats
from megatv.data.toy_pictures import render
from megatv.data.toy_world import Action, State, parse_words, simulate, step, words
from megatv.data.video import write_video
from megatv.eval.toy_starts import FIRST_EPISODE
from megatv.sample import ChunkWords, Result
from megatv.sample.timeline import chunk_starts, chunks_within, frames_of, plan_windows

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
            answer = {"quality_score": 9 if body["model"] == "judge" else 8}
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
    """(videos, out, *more) -> the words that run the tool on the sports recipe."""
    words = ("tools/build_dataset.py", "--config", "configs/data/sports.yaml", "--videos")
    return lambda videos, out, *more: [*words, videos, "--out", out, *more]


class Exact:
    """A codec that loses nothing: a latent is its four frames (a group's first: one frame, four times)."""

    def encode(self, frames):
        groups = []
        for group in frames.split(49, dim=1):
            padded = torch.cat([group[:, :1].expand(-1, 3, -1, -1, -1), group], 1)
            groups.append(padded.unflatten(1, (-1, 4)).permute(0, 1, 2, 5, 3, 4).flatten(2, 3).float())
        return torch.cat(groups, 1)

    def decode(self, latents):
        groups = []
        for group in latents.split(13, dim=1):
            frames = group.unflatten(2, (4, 3)).permute(0, 1, 2, 4, 5, 3).flatten(1, 2)
            groups.append(frames[:, 3:].to(torch.uint8))
        return torch.cat(groups, 1)


class Player:
    """Stands where a sampler stands and plays the world itself, with the words or without regard to them.

    starts: of the experiment, whose requests it knows by their seeds. noise: standard deviation, in grey
    levels, of what it draws badly. `asked` has all requests.
    """

    step = 1

    def __init__(self, starts, obeys=True, mode="tv2tv", noise=0.0):
        self.config = load_config(ROOT / "configs/toy_world.yaml", [f"sequence.mode={mode}"])
        self.starts, self.obeys, self.noise = starts, obeys, noise
        self.codec, self.asked = Exact(), []
        self.stats = LatentStats(np.zeros((2, 12), np.float32), np.ones((2, 12), np.float32))

    def generate(self, requests, settings=None):
        self.asked += requests
        return [self._play(request) for request in requests]

    def _play(self, request):
        episode = simulate(FIRST_EPISODE + request.seed % self.starts)
        assert np.array_equal(request.first_latents[0, :3].transpose(1, 2, 0), episode.frames[0])
        chunks = 13 if request.seconds is None else chunks_within(request.seconds, 1)
        starts = [round(16 * second) for second in chunk_starts(plan_windows(chunks, 1))]
        spoken = {round(i.seconds * 16): parse_words(i.text) for i in request.interventions}
        states, transcript = [episode.states.at(0)], []
        for chunk, (first, end) in enumerate(pairwise([*starts, frames_of(chunks, 1)])):
            action = spoken.get(first, episode.actions[chunk % 13])
            source = "forced" if first in spoken else "own"
            transcript.append(ChunkWords(first / 16, words(action), source, given=chunk == 0))
            for frame in range(max(first, 1), end):
                states.append(step(states[-1], action if self.obeys else Action(), frame == first))
        frames = render(*State(*np.array([[int(field) for field in state] for state in states]).T))
        dirt = np.random.default_rng(request.seed).normal(0, self.noise, frames.shape)
        frames = np.clip(np.rint(frames + dirt), 0, 255).astype(np.uint8)
        latents = np.zeros((chunks, 12, 4, 4), np.float32)
        return Result(latents, frames, tuple(transcript), "", False, 1, 1, 1)


@pytest.fixture(scope="session")
def make_player():
    """(starts, obeys, mode, noise) -> a player in place of a sampler."""
    return Player


@pytest.fixture(scope="session")
def load_tool():
    """load_tool("audit"): tools/audit.py as a module; the tools import each other as scripts do."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(f"{name}_tool", ROOT / "tools" / f"{name}.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look there
        spec.loader.exec_module(module)
        return module

    with pytest.MonkeyPatch.context() as patch:  # for as long as they run: main() imports others, too
        patch.syspath_prepend(ROOT / "tools")
        yield load
