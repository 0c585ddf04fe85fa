"""Worker processes that decode damaged videos under limits, and what came of it, for `fuzz_video.py`."""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from megatv.data.video import decode_frames, iterate_video, probe
from megatv.log import progress
from video_damage import DAMAGE, make_input  # the tool beside this one

import torch  # noqa: F401 - decoding loads it, and a worker must before its memory is limited

WIDTH, HEIGHT = 64, 48
SAMPLE_EVERY = 100
"""Inputs from one look at a worker's memory to the next; the first look ends the warm-up."""
LEAK_BYTES, NOISE_BYTES = 256, 4 << 20
"""A worker leaks when the second half of its inputs takes more than that, for each and in all."""
LEAK_COUNTS = {"files": 8, "threads": 8}
"""... or when it holds so many more of these at the end than after the warm-up."""


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
    done = 0
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        kind, data = make_input(clips, seed, number)
        answer = {"kind": kind, **attempt(data, number // len(DAMAGE) % 3, backend)}
        done += 1
        pipe.send({**answer, "use": _use_of_self(done) if done % SAMPLE_EVERY == 0 else None})


@dataclass
class Worker:
    """One process, the input it is at, and what it used after every SAMPLE_EVERY inputs."""

    process: Any
    pipe: Connection
    number: int | None = None
    since: float = 0.0
    curve: list[dict[str, int]] = field(default_factory=list)

    def growth(self) -> dict[str, Any]:
        """By halves of the inputs after the warm-up; {} for a worker that did not live long enough."""
        if len(self.curve) < 3:
            return {}
        first, middle, last = self.curve[0], self.curve[len(self.curve) // 2], self.curve[-1]
        halves = (middle["rss_bytes"] - first["rss_bytes"], last["rss_bytes"] - middle["rss_bytes"])
        each = halves[1] / (last["inputs"] - middle["inputs"])
        counts = {k: last[k] - first[k] for k in LEAK_COUNTS}
        leaks = (each > LEAK_BYTES and halves[1] > NOISE_BYTES) or any(
            counts[k] > limit for k, limit in LEAK_COUNTS.items()
        )
        return {
            "inputs": last["inputs"],
            "first_half_mb": round(halves[0] / 2**20, 2),
            "second_half_mb": round(halves[1] / 2**20, 2),
            "second_half_bytes_per_input": round(each),
            **counts,
            "leaks": leaks,
        }


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
                if use := answer.pop("use"):
                    one.curve.append(use)
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
    growths = [growth for one in retired if (growth := one.growth())]
    report: dict[str, Any] = {"inputs": sum(outcomes.values()), "seed": args.seed, "backend": args.backend}
    report["seconds"], report["slowest_seconds"] = round(time.monotonic() - begun, 1), round(slowest, 2)
    names = ("decoded", "refused", "wrong exception", "wrong shape", "crash", "hang")
    report["outcomes"] = {n: sum(c for (_, o), c in outcomes.items() if o == n) for n in names}
    report["by_kind"] = {k: {o: c for (kk, o), c in sorted(outcomes.items()) if kk == k} for k in DAMAGE}
    report["growth_of_workers"] = growths
    report["leaks"] = sum(growth["leaks"] for growth in growths)
    points = [[(u["inputs"], round(u["rss_bytes"] / 2**20, 1)) for u in one.curve] for one in retired]
    report["memory_curves"] = [", ".join(f"{n}: {mb} MB" for n, mb in curve) for curve in points]
    return {**report, "failures": failures}


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


def _use_of_self(inputs: int) -> dict[str, int]:
    """What this process holds after so many inputs, without the memory that malloc keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "inputs": inputs,
        "rss_bytes": int(status["VmRSS"].split()[0]) << 10,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
    }
