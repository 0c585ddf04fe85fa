"""DALI beside PyAV: the same frames, nearly the same pixels, and a sentence wherever DALI will not do."""

import contextlib
import io
import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from megatv.data import video, video_dali
from megatv.data.format import DatasetInfo
from megatv.data.shards import Shards, ShardWriter
from megatv.data.stats import LatentStats
from megatv.data.video import TOLERANCE, decode_frames
from megatv.data.video_source import read_timeline

H, W = 64, 96
KINDS = {
    "vp9 mp4": ("libvpx-vp9", "mp4", "yuv420p", {"deadline": "good", "cpu-used": "5", "lag-in-frames": "8"}),
    "vp8 webm": ("libvpx", "webm", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "8", "b:v": "1M"}),
    "mjpeg mov": ("mjpeg", "mov", "yuvj420p", {"q": "3"}),
}


def written(kind: str, *, seed=0, colorspace=None, rotation=0, size=(H, W), count=40) -> bytes:
    """Waves that run with the frame's number over a tinted ground, at uneven times from 0.7 s on."""
    codec, container, stored, options = KINDS[kind]
    gaps = np.random.default_rng(seed).integers(10, 120, count)
    y, x = np.mgrid[: size[0], : size[1]]
    tint = np.stack([x / size[1], 1 - x / size[1], y / size[0]], -1) * 80
    with av.open(file := io.BytesIO(), "w", format=container) as out:
        stream = out.add_stream(codec, 25, options=options)
        stream.height, stream.width = size
        stream.pix_fmt, stream.codec_context.time_base = stored, Fraction(1, 1000)
        if colorspace:
            stream.codec_context.colorspace = colorspace
        if rotation:
            stream.set_display_rotation(rotation)
        for index, milliseconds in enumerate(700 + np.cumsum(gaps) - gaps[0]):
            waves = 88 + 80 * np.sin((x - 6 * index) * (2 * np.pi / 48))
            picture = (waves[..., None] + tint).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if colorspace:
                frame = frame.reformat(format=stored, dst_colorspace=colorspace)
                frame.colorspace = colorspace
            frame.pts, frame.time_base = int(milliseconds), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


@pytest.fixture
def dali():
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")


def difference(data: bytes, width=W, height=H) -> float:
    """The worst frame's mean absolute difference over every sixteenth of a second."""
    seconds = np.arange(0, read_timeline(data).end - 0.01, 1 / 16)
    both = [
        decode_frames(data, seconds, width=width, height=height, backend=b).float() for b in ("pyav", "dali")
    ]
    assert both[0].shape == both[1].shape == (len(seconds), height, width, 3)
    return float((both[0] - both[1]).abs().mean((1, 2, 3)).max())


@pytest.mark.parametrize("kind", KINDS)
def test_both_decoders_agree_at_every_time_of_an_uneven_video(dali, kind):
    assert difference(written(kind)) < TOLERANCE
    assert difference(written(kind), width=48, height=40) < TOLERANCE
    assert difference(written(kind), width=192, height=128) < TOLERANCE


def test_the_tolerance_would_notice_a_neighbouring_frame(dali):
    """Frame against next frame differs by more than the two decoders do."""
    data = written("vp9 mp4")
    timeline = read_timeline(data)
    middles = timeline.seconds[:-1] + np.diff(timeline.seconds) / 2
    found = decode_frames(data, list(middles), width=W, height=H, backend="dali").float()
    exact = decode_frames(data, list(middles), width=W, height=H, backend="pyav").float()
    assert (found[1:] - exact[:-1]).abs().mean((1, 2, 3)).min() > TOLERANCE


@pytest.mark.parametrize("kind", ["vp9 mp4", "mjpeg mov"])
def test_matrix_and_rotation_are_done_for_dali(dali, kind):
    assert difference(written(kind, rotation=90), width=H, height=W) < TOLERANCE
    if kind == "vp9 mp4":
        assert difference(written(kind, colorspace=1)) < TOLERANCE


@pytest.mark.parametrize("kind", [*KINDS, "h264 mp4"])
def test_packets_tell_when_every_frame_is_shown(kind, monkeypatch):
    """The times that frame numbers come from, against the decoder's own."""
    monkeypatch.setitem(KINDS, "h264 mp4", ("libx264", "mp4", "yuv420p", {"x264-params": "bframes=3"}))
    data = written(kind)
    with av.open(io.BytesIO(data)) as container:
        times = np.array([frame.time for frame in container.decode(video=0)])
    timeline = read_timeline(data)
    assert np.allclose(timeline.seconds, times - times[0]) and len(times) == 40
    assert timeline.care == "" and timeline.end > timeline.seconds[-1]


def test_it_never_shows_what_lies_beyond_the_end(dali):
    with pytest.raises(ValueError, match="is shorter than asked, it has ended at 99 s"):
        decode_frames(written("vp9 mp4"), [0, 99], width=W, height=H, backend="dali")


def test_damage_is_a_sentence(dali):
    with pytest.raises(ValueError, match="does not decode"):
        decode_frames(written("vp9 mp4")[:3000], [0], width=W, height=H, backend="dali")


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("h264 mp4", {}, "on cpu it decodes mjpeg, vp8, vp9 and this is h264"),
        ("vp9 mp4", {"size": (61, 97)}, "it cannot show an odd size"),
        ("vp9 mp4", {"colorspace": 9}, "it does not know the YUV matrix number 9"),
    ],
)
def test_what_it_cannot_show_is_refused_by_name_and_done_by_pyav(dali, monkeypatch, kind, options, reason):
    monkeypatch.setitem(KINDS, "h264 mp4", ("libx264", "mp4", "yuv420p", {}))
    data = written(kind, **options)
    with pytest.raises(ValueError, match=f"DALI was asked for, but {reason}; or take the backend 'pyav'"):
        decode_frames(data, [0], width=W, height=H, backend="dali")
    assert decode_frames(data, [0], width=W, height=H).shape == (1, H, W, 3)


def test_a_missing_dali_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install nvidia-dali-cuda130==2\.4\.0"):
        decode_frames(written("vp9 mp4"), [0], width=W, height=H, backend="dali")


def stay_on_cpu(monkeypatch) -> None:
    """Let `device="cuda"` be chosen, but nothing be moved there."""
    original = torch.Tensor.to

    def to(tensor, target):
        return tensor if isinstance(target, torch.device) else original(tensor, target)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(video, "_own_stream", lambda device: contextlib.nullcontext())
    video._say_once.cache_clear()
    video._failed_trial.cache_clear()


@pytest.mark.parametrize(
    ("codec", "care", "installed", "chosen"),
    [
        ("h264", "", True, "h264 for cuda is decoded by DALI (NVDEC)"),
        ("h264", "HDR", True, "h264 for cuda is decoded by PyAV (it cannot show HDR)"),
        ("prores", "", True, "PyAV (on cuda it decodes av1, h264, hevc, mjpeg, mpeg4, vp8, vp9 and this is"),
        ("h264", "", False, "PyAV (it is not installed: pip install nvidia-dali-cuda130==2.4.0)"),
    ],
)
def test_the_choice_on_a_gpu_is_said_once(monkeypatch, capsys, codec, care, installed, chosen):
    """Without a GPU: the decoders are replaced, the choice is real."""
    from dataclasses import replace

    data = written("mjpeg mov")
    timeline = replace(read_timeline(data), codec=codec, care=care)
    monkeypatch.setattr(video, "read_timeline", lambda source: timeline)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(video_dali, "decode", lambda *args: torch.zeros(1))
    stay_on_cpu(monkeypatch)
    monkeypatch.setattr(video, "_failed_trial", lambda codec, device: "")
    for _ in range(3):
        decode_frames(data, [0], width=W, height=H, device="cuda")
    said = capsys.readouterr().out
    assert chosen in said and said.count("\n") == 1


def stored(tmp_path, kind: str) -> Shards:
    """A directory with one clip of 49 frames at 16 fps, 96x64; and the same opened as a GPU's rank does."""
    codec, container, pixels, options = KINDS[kind]
    y, x = np.mgrid[:H, :W]
    with av.open(file := io.BytesIO(), "w", format=container) as out:
        stream = out.add_stream(codec, 16, options=options)
        stream.height, stream.width, stream.pix_fmt = H, W, pixels
        for index in range(49):
            waves = 128 + 80 * np.sin((x - 6 * index) * (2 * np.pi / 48)) * np.cos(y / 16)
            picture = np.stack([waves.astype(np.uint8)] * 3, -1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    with ShardWriter(tmp_path / "clips", DatasetInfo(W, H, 1, {"kind": "dct"}, stores="clips")) as writer:
        words = {"captions": (), "meta_caption": "", "detailed_caption": "", "source": {"video": "a"}}
        writer.write("a", file.getvalue(), **words, valid_latents=13, ends_clip=True)
        writer.finish(LatentStats(np.zeros((2, 16), np.float32), np.ones((2, 16), np.float32)))
    return Shards(tmp_path / "clips", device="cuda")


@pytest.mark.parametrize("kind", ["vp9 mp4", "mjpeg mov"])
def test_stored_clips_go_to_nvdec_where_its_trial_succeeds(dali, monkeypatch, capsys, tmp_path, kind):
    """DALI on the CPU stands in for NVDEC, from the trial to the pixels, in four threads as in a loader."""
    used, real = [], video_dali.decode

    def decode(data, indices, timeline, width, height, device):
        used.append((timeline.codec, device.type))
        return real(data, indices, timeline, width, height, torch.device("cpu"))

    stay_on_cpu(monkeypatch)
    monkeypatch.setattr(video_dali, "decode", decode)
    shards = stored(tmp_path, kind)
    exact = Shards(tmp_path / "clips").frames(shards.record(0)).float()
    assert not used and exact.shape == (49, H, W, 3)
    capsys.readouterr()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: shards.frames(shards.record(0)).float(), range(8)))
    codec = kind.split()[0]
    assert used == [(codec, "cuda")] * 9  # one trial and eight clips
    assert all((frames - exact).abs().mean((1, 2, 3)).max() < TOLERANCE for frames in found)
    assert capsys.readouterr().out == f"video: {codec} for cuda is decoded by DALI (NVDEC)\n"


@pytest.mark.parametrize("fault", ["no driver", "wrong pixels"])
def test_a_failed_trial_leaves_stored_clips_to_pyav(monkeypatch, capsys, tmp_path, fault):
    def decode(data, indices, timeline, width, height, device):
        if fault == "no driver":
            raise OSError("libnvcuvid.so.1: cannot open shared object file")
        return torch.zeros(len(indices), height, width, 3, dtype=torch.uint8)

    stay_on_cpu(monkeypatch)
    monkeypatch.setattr(video_dali, "obstacle", lambda timeline, device: "")
    monkeypatch.setattr(video_dali, "decode", decode)
    monkeypatch.setitem(KINDS, "h264 mp4", ("libx264", "mp4", "yuv420p", {"crf": "12"}))
    shards = stored(tmp_path, "h264 mp4")
    capsys.readouterr()
    exact = Shards(tmp_path / "clips").frames(shards.record(0))
    assert all(torch.equal(shards.frames(shards.record(0)), exact) for _ in range(2))
    why = {
        "no driver": "a trial failed: libnvcuvid.so.1: cannot open shared object file",
        "wrong pixels": "a trial differs from PyAV's pixels by 127 of 255",
    }[fault]
    assert capsys.readouterr().out == f"video: h264 for cuda is decoded by PyAV ({why})\n"


FORK = """
import multiprocessing, sys
from megatv.data.video import decode_frames
data = sys.stdin.buffer.read()
def show(backend="dali"):
    return decode_frames(data, [0], width=32, height=32, backend=backend).shape
def child(pipe):
    try:
        pipe.send(str(show()))
    except ValueError as error:
        pipe.send(str(error))
fork = multiprocessing.get_context("fork")
def answer():
    here, there = fork.Pipe()
    process = fork.Process(target=child, args=(there,), daemon=True)
    process.start()
    print(here.recv() if here.poll(60) else "hangs", flush=True)
answer()
show()
answer()
"""


@pytest.mark.slow
def test_a_fork_after_use_is_refused_instead_of_hanging(dali):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system does not fork")
    result = subprocess.run(
        [sys.executable, "-c", FORK], input=written("mjpeg mov"), capture_output=True, timeout=300
    )
    lines = [line for line in result.stdout.decode().splitlines() if not line.startswith("video: ")]
    assert len(lines) == 2 and lines[0] == "torch.Size([1, 32, 32, 3])", result.stderr.decode()
    assert lines[1].startswith("DALI was used before this process was forked and would hang here; use it")
