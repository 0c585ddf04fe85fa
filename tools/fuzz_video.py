"""Feed the video decoder hostile inputs, made from real clips by seeded damage, and count what it does.

    python tools/fuzz_video.py CLIP [CLIP ...] [--count 10000] [--seed 0] [--workers 2] [--out fuzz.json]
        [--limit-seconds 20] [--memory-mb 1024] [--budget-seconds S] [--backend pyav|dali] [--keep DIR]

Every input is a function of (clips, seed, number). It is decoded in a worker process under a limit of time
and of memory. Only a decode of the right shape and a ValueError of one line are right; crashes, hangs, other
exceptions and leaks (memory, open files, threads that grow while a worker lives) are failures. Those of an
input are listed by its number, and `--keep` writes it. Exit code 1 says that there were any.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.stream import VideoStream

from megatv.data.video import decode_frames, iterate_video, probe
from megatv.log import main_guard, progress

WIDTH, HEIGHT = 64, 48
SIZES = {"tiny": [(1, 1), (1, 4096), (7, 7), (0, 0)], "huge": [(7680, 4320), (16384, 16384), (65500, 65500)]}
TIME_BOXES = (b"mvhd", b"mdhd", b"tkhd", b"elst", b"stts", b"ctts", b"stsz", b"mehd", b"\x44\x89")
MAGICS = (
    b"RIFF\xff\xff\xff\xffAVI LIST", b"\x1aE\xdf\xa3\x9fB\x86\x81\x01", b"OggS\0\x02", b"\x89PNG\r\n\x1a\n",
    b"#EXTM3U\n#EXTINF:9,\nfile:other.mp4\n", b"FLV\x01\x05\0\0\0\x09", b"\0\0\x01\xba\x44\0\x04\0",
    b"ffconcat version 1.0\nfile other.mp4\n", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"G@\0\x10\0\0\xb0\x0d",
)  # fmt: skip
WARM_UP, SAMPLE = 100, 50
"""Inputs that a worker has had before its memory counts, and how many are looked at for the least."""
LEAK_LIMITS = {"rss_mb": 128, "files": 8, "threads": 8}


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(len(data) * rng.random() ** 2)]


def bit_flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """1 to 1000 bits: anywhere, in the first 2 KiB or in the last 8 KiB, where headers and indexes are."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    first, last = ((0, len(bits)), (0, 8 * 2048), (len(bits) - 8 * 8192, len(bits)))[rng.integers(3)]
    at = rng.integers(max(first, 0), min(last, len(bits)), int(10 ** (3 * rng.random())))
    bits[at] ^= 1
    return np.packbits(bits).tobytes()


def zero_length(data: bytes, rng: np.random.Generator) -> bytes:
    """Nothing, nothing but zeros, or a file with a run of zeros."""
    if rng.random() < 0.5:
        return b"\0" * int(rng.integers(0, 64) * rng.integers(0, 64))
    at, size = (int(v) for v in rng.integers(0, len(data), 2))
    return data[:at] + b"\0" * size + data[at + size :]


def wrong_container(data: bytes, rng: np.random.Generator) -> bytes:
    """Another format's first bytes, in front of the file or over its own; or noise."""
    magic = MAGICS[rng.integers(len(MAGICS))]
    if rng.random() < 0.2:
        return magic + rng.bytes(int(rng.integers(1, 4096)))
    return magic + data[len(magic) * int(rng.integers(2)) :]


def resized(data: bytes, rng: np.random.Generator, sizes: str) -> bytes:
    """Claims of another size where MP4, Matroska, JPEG and VP8 keep theirs."""
    width, height = SIZES[sizes][rng.integers(len(SIZES[sizes]))]
    out = bytearray(data)
    for tag, gap, form, pair in (
        (b"avc1", 24, ">HH", (width, height)), (b"jpeg", 24, ">HH", (width, height)),
        (b"vp09", 24, ">HH", (width, height)), (b"tkhd", 76, ">II", (width << 16, height << 16)),
        (b"\xff\xc0", 3, ">HH", (height, width)),
        (b"\x9d\x01\x2a", 0, "<HH", (width & 16383, height & 16383)),
    ):  # fmt: skip
        for at in _places(out, tag):
            if at + gap + struct.calcsize(form) <= len(out) and rng.random() < 0.9:
                struct.pack_into(form, out, at + gap, *(value & 0xFFFFFFFF for value in pair))
    for at in _places(out, b"\xb0"):  # Matroska's PixelWidth, two bytes, followed by PixelHeight
        if out[at : at + 1] == b"\x82" and out[at + 3 : at + 5] == b"\xba\x82":
            struct.pack_into(">H", out, at + 1, min(width, 65535))
            struct.pack_into(">H", out, at + 5, min(height, 65535))
    return bytes(out)


def endless(data: bytes, rng: np.random.Generator) -> bytes:
    """Huge numbers in the boxes that hold durations, times and counts of samples."""
    out = bytearray(data)
    tags = [tag for tag in TIME_BOXES if tag in data and rng.random() < 0.4]
    for tag in tags or TIME_BOXES:
        for at in _places(out, tag)[:2]:
            value = (0x7FFFFFFF, 0xFFFFFFFE, 0x3FFFFFFF, 0x00FFFFFF)[rng.integers(4)]
            place = at + int(rng.integers(1, 8)) * 4
            if tag == b"\x44\x89":
                out[at + 1 : at + 9] = struct.pack(">d", 10 ** rng.uniform(6, 300))
            elif place + 4 <= len(out):
                struct.pack_into(">I", out, place, value)
    return bytes(out)


DAMAGE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "truncated": truncated,
    "bit_flipped": bit_flipped,
    "zero_length": zero_length,
    "wrong_container": wrong_container,
    "tiny": lambda data, rng: resized(data, rng, "tiny"),
    "huge": lambda data, rng: resized(data, rng, "huge"),
    "endless": endless,
}


def make_input(clips: list[bytes], seed: int, number: int) -> tuple[str, bytes]:
    """(kind of damage, bytes) of one input; kinds take turns, one in ten is damaged twice."""
    rng = np.random.default_rng([seed, number])
    kinds = list(DAMAGE)
    kind = kinds[number % len(kinds)]
    data = DAMAGE[kind](clips[rng.integers(len(clips))], rng)
    if rng.random() < 0.1 and len(data) > 1:
        data = bit_flipped(data, rng)
    return kind, data


def variants(clip: Path) -> list[bytes]:
    """The clip itself, and its first two seconds in other codecs and containers."""
    made = [clip.read_bytes()]
    pictures = [frame for frame, _ in zip(iterate_video(clip, width=160, height=96), range(32), strict=False)]
    for codec, container, stored in (
        ("libx264", "mp4", "yuv420p"), ("libx264", "mpegts", "yuv420p"), ("mjpeg", "mov", "yuvj420p"),
        ("libvpx", "webm", "yuv420p"), ("libvpx-vp9", "mp4", "yuv420p"), ("mpeg4", "avi", "yuv420p"),
    ):  # fmt: skip
        with av.open(file := io.BytesIO(), "w", format=container) as out:
            stream = cast(VideoStream, out.add_stream(codec, 16))
            stream.width, stream.height, stream.pix_fmt = 160, 96, stored
            for picture in pictures:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(stream.encode())
        made.append(file.getvalue())
    return made


def attempt(data: bytes, way: int, backend: str) -> dict[str, Any]:
    """Decode in one of three ways; what came of it as {"outcome": ..., "detail": ...}."""
    seconds = [0.0, 0.1] if way == 1 else [1.25, 1.5]
    try:
        if way == 0 and backend == "pyav":
            probe(data)
            shapes = {frame.shape for frame in iterate_video(data, width=WIDTH, height=HEIGHT)}
        else:
            found = decode_frames(data, seconds, width=WIDTH, height=HEIGHT, backend=backend)  # type: ignore
            shapes = {tuple(frame.shape) for frame in found}
    except ValueError as error:
        fine = type(error) is ValueError and str(error) and "\n" not in str(error)
        return {"outcome": "refused" if fine else "wrong exception", "detail": repr(error)}
    except BaseException as error:
        return {"outcome": "wrong exception", "detail": repr(error)}
    good = shapes == {(HEIGHT, WIDTH, 3)}
    return {"outcome": "decoded" if good else "wrong shape", "detail": str(shapes)}


def worker(pipe: Connection, clips: list[bytes], seed: int, memory_mb: int, backend: str) -> None:
    """Answer numbers with outcomes until the pipe closes."""
    attempt(clips[0], 0, backend)  # libraries are loaded before memory is limited
    allowed = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (
        memory_mb << 20
    )
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send(None)
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        kind, data = make_input(clips, seed, number)
        pipe.send({"kind": kind, **attempt(data, number // len(DAMAGE) % 3, backend), **_use_of_self()})


@dataclass
class Worker:
    """One process, the input it is at, and what it used after each one."""

    process: Any
    pipe: Connection
    number: int | None = None
    since: float = 0.0
    use: list[dict[str, float]] = field(default_factory=list)

    def leak(self) -> dict[str, float]:
        """Growth from after the warm-up to the end; peaks do not count, the least of SAMPLE inputs does."""
        if len(self.use) < WARM_UP + 2 * SAMPLE:
            return {}
        early, late = self.use[WARM_UP : WARM_UP + SAMPLE], self.use[-SAMPLE:]
        return {k: round(min(u[k] for u in late) - min(u[k] for u in early), 1) for k in LEAK_LIMITS}


def fuzz(clips: list[bytes], args: argparse.Namespace) -> dict[str, Any]:
    """Run `args.count` inputs, or as many as the budget allows; the report as the JSON file has it."""
    outcomes: Counter[tuple[str, str]] = Counter()
    failures: list[dict[str, Any]] = []
    retired: list[Worker] = []
    begun, slowest = time.monotonic(), 0.0
    numbers = iter(progress(range(args.count), total=args.count, desc="inputs"))
    crew = [_start(clips, args) for _ in range(args.workers)]

    def settle(one: Worker, answer: dict[str, Any]) -> None:
        kind = answer.get("kind") or list(DAMAGE)[(one.number or 0) % len(DAMAGE)]
        outcomes[kind, answer["outcome"]] += 1
        if answer["outcome"] not in ("decoded", "refused"):
            failures.append({"number": one.number, "kind": kind, **answer})
        one.number = None

    while crew:
        for one in crew:
            if one.number is None and time.monotonic() - begun < args.budget_seconds:
                one.number, one.since = next(numbers, None), time.monotonic()
                if one.number is not None:
                    one.pipe.send(one.number)
        idle = [one for one in crew if one.number is None]
        retired += idle
        crew = [one for one in crew if one.number is not None]
        ready = wait([one.pipe for one in crew], timeout=0.5) if crew else []
        for place, one in enumerate(crew):
            late = time.monotonic() - one.since > args.limit_seconds
            if one.pipe not in ready and not late:
                continue
            try:
                if one.pipe not in ready:
                    raise TimeoutError
                answer = one.pipe.recv()
                slowest = max(slowest, time.monotonic() - one.since)
                one.use.append({key: answer.pop(key) for key in LEAK_LIMITS})
                settle(one, answer)
            except (EOFError, ConnectionResetError, TimeoutError) as error:
                one.process.kill() if isinstance(error, TimeoutError) else None
                one.process.join()
                hang = isinstance(error, TimeoutError)
                detail = f"over {args.limit_seconds:g} s" if hang else f"exit code {one.process.exitcode}"
                settle(one, {"outcome": "hang" if hang else "crash", "detail": detail})
                retired.append(one)
                crew[place] = _start(clips, args)
    for one in retired:
        one.pipe.close()
        one.process.join(10)
    leaks = [growth for one in retired if (growth := one.leak())]
    report: dict[str, Any] = {"inputs": sum(outcomes.values()), "seed": args.seed, "backend": args.backend}
    report["seconds"], report["slowest_seconds"] = round(time.monotonic() - begun, 1), round(slowest, 2)
    names = ("decoded", "refused", "wrong exception", "wrong shape", "crash", "hang")
    report["outcomes"] = {n: sum(c for (_, o), c in outcomes.items() if o == n) for n in names}
    report["by_kind"] = {k: {o: c for (kk, o), c in sorted(outcomes.items()) if kk == k} for k in DAMAGE}
    report["growth_of_workers"] = leaks
    report["leaks"] = sum(any(growth[k] > limit for k, limit in LEAK_LIMITS.items()) for growth in leaks)
    return {**report, "failures": failures}


def main() -> int:
    """Make the inputs, run them, print and write the report; 1 when anything failed."""
    args = _arguments()
    clips = [data for clip in args.clips for data in variants(clip)]
    report = fuzz(clips, args)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        for failure in report["failures"]:
            data = make_input(clips, args.seed, failure["number"])[1]
            (args.keep / f"{failure['number']:06d}.{failure['kind']}").write_bytes(data)
    text = json.dumps(report, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)
    return 1 if report["failures"] or report["leaks"] else 0


def _places(data: bytes | bytearray, tag: bytes) -> list[int]:
    """Where the first 64 occurrences of `tag` end."""
    found: list[int] = []
    at = data.find(tag)
    while at >= 0 and len(found) < 64:
        found.append(at + len(tag))
        at = data.find(tag, at + 1)
    return found


def _start(clips: list[bytes], args: argparse.Namespace) -> Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(
        target=worker, args=(there, clips, args.seed, args.memory_mb, args.backend), daemon=True
    )
    process.start()
    there.close()
    here.recv()  # ready
    return Worker(process, here)


def _use_of_self() -> dict[str, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mb": pages * resource.getpagesize() / 2**20,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP", help="real videos to damage")
    parser.add_argument("--count", type=int, default=10_000, help="inputs (10000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs (0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--limit-seconds", type=float, default=20, help="of one input; longer is a hang (20)")
    parser.add_argument("--memory-mb", type=int, default=1024, help="that one worker may take (1024)")
    parser.add_argument(
        "--budget-seconds", type=float, default=float("inf"), help="begin no input after this"
    )
    parser.add_argument("--backend", choices=("pyav", "dali"), default="pyav", help="decoder (pyav)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report here, too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write inputs that failed here")
    args = parser.parse_args()
    if min(args.count, args.workers, args.memory_mb) < 1 or args.limit_seconds <= 0:
        parser.error("--count, --workers, --memory-mb and --limit-seconds must be positive")
    for clip in args.clips:
        if not clip.is_file():
            parser.error(f"{clip}: no such file")
    return args


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("error: limits of memory and the look at /proc need Linux")
    main_guard(main)
