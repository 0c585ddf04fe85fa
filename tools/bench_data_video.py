"""Decoding and the stages of the curation pipeline, for `bench_data.py`."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from bench_data_timing import ROOT, Row, Tables, seconds_of
from megatv.config import FPS, GROUP_FRAMES
from megatv.curate.embed import embed_span, load_embedder
from megatv.curate.engine import Outcome, Stage
from megatv.curate.filters import face_frame_size, judge_faces, judge_motion
from megatv.curate.manifest import Item
from megatv.curate.recipe import Recipe, load_recipe
from megatv.curate.shots import find_shots
from megatv.curate.steps import VIDEO_ENDINGS, Places, list_videos, stages
from megatv.data.video import decode_frames, decode_video, iterate_video, probe

import av
import numpy as np
import torch
from torch.nn.functional import interpolate

WIDTH, HEIGHT, FRAMES = 320, 192, 2 * GROUP_FRAMES
"""What configs/8b_sports.yaml trains on."""
CODECS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "h264": ("libx264", "mp4", "yuv420p", {"crf": "20"}),
    "vp9": ("libvpx-vp9", "mp4", "yuv420p", {"deadline": "good", "cpu-used": "5", "crf": "30", "b:v": "0"}),
    "mjpeg": ("mjpeg", "mov", "yuvj420p", {"q": "3"}),
}
"""By FFmpeg's name: encoder, container, pixel format and options. DALI on a CPU decodes the last two."""
EASY = (
    "source.min_seconds=0.5", "source.min_width_pixels=16", "source.min_height_pixels=16", "quality=null",
    "clips.min_seconds=3.1", "clips.min_peaks=0", "motion.min_widths_per_second=0", "faces.max_coverage=1",
)  # fmt: skip
"""Thresholds that let short clips through all stages; they change what is kept, not what is computed."""


def synthetic_video(folder: Path, small: bool) -> None:
    """Fill a folder with one H.264 video: coarse noise that pans behind a box that moves the other way."""
    width, height, rate, count = (96, 64, 24, 96) if small else (1280, 720, 30, 210)
    coarse = np.random.default_rng(0).integers(0, 255, (height // 8, width // 4, 3), dtype=np.uint8)
    ground = coarse.repeat(8, 0).repeat(8, 1)
    frames = []
    for index in range(count):
        frame = np.roll(ground, -4 * index, 1)[:, :width].copy()
        left = 5 * index % (width - width // 8)
        frame[height // 3 : height // 2, left : left + width // 8] = (220, 60, 40)
        frames.append(frame)
    folder.mkdir()
    (folder / "synthetic.mp4").write_bytes(encode(frames, "h264", Fraction(rate)))


def encode(frames: list[np.ndarray], codec: str, rate: Fraction) -> bytes:
    """The bytes of a video of these frames, uint8 [H, W, 3]."""
    encoder, container, pixels, options = CODECS[codec]
    with av.open(file := io.BytesIO(), "w", format=container) as out:
        stream: Any = out.add_stream(encoder, rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


def videos_in(folder: Path) -> list[Path]:
    """The videos of a folder; ValueError when there are none."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_ENDINGS)
    if not found:
        raise ValueError(f"--videos {folder}: holds no videos ({', '.join(VIDEO_ENDINGS)})")
    return found


def decode(folder: Path, repeats: int) -> Tables:
    """Every video in three codecs, by every decoder: up to 98 frames at 16 fps, scaled to 320x192."""
    rows: list[Row] = []
    for path in videos_in(folder):
        with av.open(str(path), "r") as container:
            stream = container.streams.video[0]
            original, rate = stream.codec_context.name, stream.average_rate or Fraction(25)
            needed = int(FRAMES / FPS * rate) + 2
            decoded = itertools.islice(container.decode(stream), needed)
            frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
        sources = {codec: encode(frames, codec, rate) for codec in CODECS}
        if original in sources:
            sources[original] = path.read_bytes()  # as its makers encoded it
        size = f"{frames[0].shape[1]}x{frames[0].shape[0]}"
        for codec, source in sources.items():
            count = min(FRAMES, int(len(frames) / float(rate) * FPS))
            rows += _decoders(f"{path.stem} {size} {codec}", source, count, repeats)
    return {f"decode: {FPS} fps at {WIDTH}x{HEIGHT}, clips of {FRAMES} frames": rows}


def _decoders(name: str, source: bytes, count: int, repeats: int) -> Iterator[Row]:
    seconds = [k / FPS for k in range(count)]
    calls = {
        "PyAV (ours)": partial(_ours, source, seconds, "pyav"),
        "DALI (ours)": partial(_ours, source, seconds, "dali"),
        "plain PyAV": partial(_plain_pyav, source, seconds),
        "torchcodec": partial(_torchcodec, source, seconds),
    }
    ours = None
    for decoder, call in calls.items():
        try:
            assert len(call()) == count
            wall, cpu = seconds_of(call, repeats)
        except (ValueError, ImportError, RuntimeError) as error:  # one that cannot must not hide the others
            yield {"video": name, "decoder": decoder, "skipped": str(error).splitlines()[0]}
            continue
        ours = ours or count / cpu
        yield {
            "video": name,
            "decoder": decoder,
            "frames_per_s": count / wall,
            "clips_per_s": count / wall / FRAMES,
            "frames_per_cpu_s": count / cpu,
            "ratio_to_ours": count / cpu / ours,
        }


def _ours(source: bytes, seconds: list[float], backend: Any) -> torch.Tensor:
    return decode_frames(source, seconds, width=WIDTH, height=HEIGHT, backend=backend)


def _plain_pyav(source: bytes, seconds: list[float]) -> torch.Tensor:
    """A loop as PyAV's users write it: the first frame at or after each time, scaled by swscale's default."""
    found: list[np.ndarray] = []
    with av.open(io.BytesIO(source), "r") as container:
        for frame in container.decode(video=0):
            while len(found) < len(seconds) and (frame.time or 0.0) >= seconds[len(found)] - 1e-3:
                found.append(frame.to_ndarray(width=WIDTH, height=HEIGHT, format="rgb24"))
            if len(found) == len(seconds):
                break
    found += found[-1:] * (len(seconds) - len(found))
    return torch.from_numpy(np.stack(found))


def _torchcodec(source: bytes, seconds: list[float]) -> torch.Tensor:
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError:
        raise ImportError("not installed: pip install torchcodec, beside a shared FFmpeg") from None
    decoder = VideoDecoder(source, num_ffmpeg_threads=1, seek_mode="approximate")
    frames = decoder.get_frames_played_at(seconds).data
    scaled = interpolate(frames.float(), (HEIGHT, WIDTH), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def curation(folder: Path, work: Path, repeats: int) -> Tables:
    """Seconds of video that one core gets through in a second: the pipeline's stages, then parts and peers.

    The stages run in this process, without Ray; `quality` and `captions` are left out, they wait for a model.
    """
    words = work / "words.jsonl"
    words.write_text('{"video": "none.mp4", "meta_caption": "None.", "captions": []}\n')
    recipe = load_recipe(ROOT / "configs/data/sports.yaml", [*EASY, f"captions.words_from={words}"])
    places = Places(folder.resolve(), work / "out")
    items, rows = list_videos(places, recipe), []
    for stage in stages(places, recipe):
        if stage.name == "captions" or not items:
            continue
        seconds = sum(_seconds(item, places.videos) for item in items)
        outcomes: list[Outcome] = []

        def run(stage: Stage = stage, items: list[Item] = items, outcomes: list[Outcome] = outcomes) -> None:
            outcomes[:] = [stage.work(item) for item in items]

        rows.append({"stage": stage.name, "items": len(items), **_speed(seconds, *seconds_of(run, repeats))})
        items = [output for outcome in outcomes for output in outcome.outputs]
    return {
        "stages of the sports pipeline": rows,
        "parts of the stages and their peers": list(_parts(videos_in(folder), recipe, repeats)),
    }


def _seconds(item: Item, folder: Path) -> float:
    return item["end"] - item["start"] if "start" in item else probe(folder / item["video"]).seconds


def _speed(seconds: float, wall: float, cpu: float) -> Row:
    return {"video_s": seconds, "video_s_per_s": seconds / wall, "video_s_per_cpu_s": seconds / cpu}


def _parts(videos: list[Path], recipe: Recipe, repeats: int) -> Iterator[Row]:
    """Whole videos through one part each; the method of the recipe stands first and is `ours`."""
    motion, faces, embedder = recipe.motion, recipe.faces, load_embedder(recipe.embed)
    infos = {path: probe(path) for path in videos}

    def shots(method: Any, path: Path) -> None:
        find_shots(path, replace(recipe.shots, method=method))

    def flow(method: Any, path: Path) -> None:
        size = {"width": motion.width_pixels, "height": motion.height_pixels}
        frames = iterate_video(path, fps=motion.frames_per_second, **size)
        judge_motion(frames, replace(motion, method=method))

    def look(path: Path) -> None:
        width, height = face_frame_size(infos[path].width, infos[path].height, faces)
        judge_faces(iterate_video(path, width=width, height=height, fps=faces.frames_per_second), faces)

    parts: dict[str, dict[str, Callable[[Path], object]]] = {
        "shots": {m: partial(shots, m) for m in _first(recipe.shots.method, ("transnetv2", "pyscenedetect"))},
        "embedding": {
            recipe.embed.model: lambda path: embed_span(
                path, (0, infos[path].seconds), embedder, recipe.embed
            )
        },
        "motion": {m: partial(flow, m) for m in _first(motion.method, ("dis", "farneback"))},
        "faces": {"haar cascades": look},
        "decoding alone": {
            f"{FPS} fps at {WIDTH}x{HEIGHT}": lambda path: decode_video(path, width=WIDTH, height=HEIGHT)
        },
    }
    seconds = sum(info.seconds for info in infos.values())
    for part, methods in parts.items():
        ours = None
        for method, call in methods.items():
            try:
                wall, cpu = seconds_of(lambda call=call: [call(path) for path in videos], repeats)  # type: ignore[misc]
            except ValueError as error:  # its library is not installed
                yield {"part": part, "method": method, "skipped": str(error)}
                continue
            ours = ours or cpu
            yield {"part": part, "method": method, **_speed(seconds, wall, cpu), "ratio_to_ours": ours / cpu}


def _first(name: str, names: tuple[str, ...]) -> list[str]:
    return sorted(names, key=lambda other: other != name)
