"""What the record says of time: speeds and utilisation by hand, the first step apart, goodput."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from megatv_kernels import Document, build_record

from megatv import clock as module
from megatv.clock import Clock, peak_flops
from megatv.config import load_config
from megatv.log import KEPT, Goodput, RunLog, plot_losses, read_metrics, step_line
from megatv.model.cost import dense_training_flops, training_flops
from megatv.objective.validation import ValidationSums

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml", ["run.steps=10"])


def batches(count: int) -> list:
    """Micro-batches that are their records: one document of one token before each chunk."""
    chunks = TOY.latents
    document = Document(np.arange(chunks + 1), np.arange(1, chunks + 1))
    layout = {"text_rows": TOY.text_rows, "chunk_rows": TOY.tokens_per_chunk, "chunks": TOY.chunks_per_row}
    return [SimpleNamespace(record=build_record([document], **layout))] * count


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Records of four steps of 8, 4, 2 and 2 seconds on one of four H100s, a quarter of them waiting."""
    ticks = itertools.accumulate([0, 8, 0, 4, 0, 2, 0, 2, 0])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    clock = Clock(TOY, 6, 32.0, 4, torch.device("cuda"))
    records = []
    for waited_seconds in (2, 1, 0.5, 0.5):
        records.append(clock.finish_step(batches(2), waited_seconds))
        clock.start()
        if len(records) == 3:
            records[-1]["window"], records[-1]["left"] = clock.window(), clock.seconds_left()
    records[-1]["window"] = clock.window()
    return records


def test_speeds_and_utilisation_by_hand(timed: list[dict]) -> None:
    first, second = timed[:2]
    tokens = TOY.rows_per_step * TOY.sequence.context_tokens
    flops = 2 * sum(training_flops(TOY, batches(1)[0].record).values())
    assert second["seconds"] == 4 and second["data_wait"] == 0.25
    assert second["sequences_per_second"] == 8 and second["tokens_per_second"] == tokens / 4
    assert second["tokens_per_second_per_gpu"] == tokens / 4 / 4
    assert second["tflops_per_gpu"] == pytest.approx(flops / 4 / 1e12)
    assert second["mfu"] == pytest.approx(flops / 4 / 989.4e12)
    dense = TOY.rows_per_step * dense_training_flops(TOY)
    assert second["mfu_dense"] == pytest.approx(dense / 4 / 4 / 989.4e12)
    assert first["first_step_seconds"] == 8 and "first_step_seconds" not in second


def test_the_first_step_counts_in_no_mean(timed: list[dict]) -> None:
    assert timed[2]["window"]["sequences_per_second"] == 2 * 32 / (4 + 2)
    assert timed[2]["left"] == 4 * 1  # one step left after nine, the longer one of two
    assert timed[3]["window"]["sequences_per_second"] == 32 / 2
    assert ["first_step_seconds" in record for record in timed] == [True, False, False, False]


def test_model_parallel_ranks_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    grid = load_config(
        Path(__file__).parents[2] / "configs/toy_world.yaml", ["parallel.tp=2", "log.preview_every=0"]
    )
    found = []
    for config in (TOY, grid):
        clock = Clock(config, 0, 1.0, 2, torch.device("cpu"))
        found.append(clock.finish_step(batches(1), 0.0))
    assert found[0]["tflops_per_gpu"] == 2 * found[1]["tflops_per_gpu"]
    assert found[0]["mfu"] is found[0]["mfu_dense"] is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def record(step: int, seconds: float, **more: float) -> dict:
    return {"step": step, "seconds": seconds, "data_wait": 0.5, **more}


def test_goodput_counts_kept_steps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 s after the first start: killed at step 3, resumed at 1, so steps 2 and 3 are done twice."""
    now = 1000.0
    monkeypatch.setattr("megatv.log.time.time", lambda: now)
    log = RunLog(tmp_path, resume_step=0, total_steps=9, started=1000.0)
    now = 1020.0
    shares = []
    for step, more in enumerate([{"first_step_seconds": 9.0}, {}, {}], 1):
        values = record(step, 8, **more)
        values |= log.goodput.add(values)
        shares.append(values["goodput"])
        log.write(values)
    log.close()
    assert shares == [0, 4 / 20, 8 / 20]
    log = RunLog(tmp_path, resume_step=2, total_steps=9, started=1090.0)
    now = 1100.0
    again = log.goodput.add(record(3, 2))
    log.close()
    assert again == {"goodput": (4 + 1) / 100, "run_started": 1000.0}
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


STRANGE = [
    *("[]", "3", "null", '"x"', "{}", '{"step": "a"}', '{"step": true}', '{"step": null}', '{"x": 1}'),
    *('{"step": 1.5}', '{"step": -1}', '{"step": 1' + "0" * 300 + "}", '{"step": 1, "run_started": "x"}'),
    *('{"step": 1, "run_started": NaN}', '{"step": 1, "run_started": 1, "seconds": []}'),
    *('{"step": 1, "run_started": 1, "seconds": 1, "data_wait": 1e999}', '{"step": 1, "text_loss": "x"}'),
    *('{"step": 1, "seconds": 1' + "0" * 400 + "}", '{"step": 1, "val_video_loss": {}}', "", " "),
]


@pytest.mark.parametrize("line", STRANGE)
def test_lines_that_no_run_wrote_are_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [record(step, 8, run_started=1000.0, text_loss=1.0) for step in (1, 2)]
    path.write_text("\n".join([json.dumps(good[0]), line, json.dumps(good[1])]) + "\n")
    kept = read_metrics(path)
    assert kept == (good if line.strip() else good[:1])
    plot_losses(tmp_path)
    RunLog(tmp_path, resume_step=9, total_steps=9).close()
    assert read_metrics(path) == kept == [json.loads(line) for line in path.read_text().splitlines()]


def test_a_start_without_its_times_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "run_started": 1}\n')
    log = RunLog(tmp_path, resume_step=1, total_steps=9)
    log.close()
    assert log.goodput.add(record(2, 2))["run_started"] > 1e9


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe{}\n",
        '{"step": 1, "a": "\xe9"}\n'.encode("utf-16-be"),
        b"[" * 100_000 + b"\n",
        b"1" * (3 << 20),
    ],
)
def test_what_is_no_json_ends_the_record(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(record(1, 8)).encode() + b"\n" + content)
    assert read_metrics(path) == [record(1, 8)]


def test_a_resumed_record_keeps_every_key_and_reading_it_only_those_of_use(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    told = [record(step, 8, text_loss=1.0, **{f"x{i}": 0.0 for i in range(100)}) for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(r) + "\n" for r in told))
    assert read_metrics(path) == [record(step, 8, text_loss=1.0) for step in (1, 2, 3)]
    RunLog(tmp_path, resume_step=2, total_steps=9).close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == told[:2]


def test_every_loss_of_the_average_is_kept() -> None:
    assert {f"val_ema_{name}" for name in ValidationSums(torch.device("cpu")).means()} <= set(KEPT)


@pytest.mark.parametrize("most", ["MAX_METRICS_BYTES", "MAX_METRICS_LINES"])
@pytest.mark.parametrize("line", [record(1, 8), {}], ids=["records", "others"])
def test_a_record_has_a_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str, line: dict
) -> None:
    path = tmp_path / "metrics.jsonl"
    content = (json.dumps(line) + "\n") * 1_000
    path.write_text(content)
    whole = {"MAX_METRICS_BYTES": len(content), "MAX_METRICS_LINES": 1_000}[most]
    monkeypatch.setattr(f"megatv.log.{most}", whole)
    read_metrics(path)
    monkeypatch.setattr(f"megatv.log.{most}", whole - 1)
    for read in (read_metrics, lambda _: RunLog(tmp_path, resume_step=1, total_steps=9)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl: is longer than .*; move it away"):
            read(path)
    assert path.read_text() == content


def test_the_record_is_never_written_through_a_link(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    theirs = tmp_path / "theirs"
    for there in (False, True):
        (run / "metrics.jsonl").unlink(missing_ok=True)
        (run / "metrics.jsonl").symlink_to(theirs)
        (run / "metrics.tmp").unlink(missing_ok=True)
        (run / "metrics.tmp").symlink_to(tmp_path / "others")
        if there:
            theirs.write_text("mine")
        log = RunLog(run, resume_step=0, total_steps=9)
        log.write(record(1, 8))
        log.close()
        assert not (tmp_path / "others").exists() and theirs.exists() == there
        assert not there or theirs.read_text() == "mine"
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: is not a regular file"):
        RunLog(tmp_path, resume_step=0, total_steps=9)


def test_goodput_of_a_record_without_it_begins_now() -> None:
    """A run directory of an older version: its steps have no start that they could be measured from."""
    goodput = Goodput([record(1, 1e9)], 1, started=0.0)
    assert goodput.add(record(2, 2))["goodput"] < 1e-6


def test_step_line_leaves_out_what_is_not_known() -> None:
    values = json.loads(
        '{"step": 3, "text_loss": 1, "video_loss": 2, "grad_norm": 1, "lr": 0.1, "sequences_per_second": 2,'
        '"tokens_per_second": 10, "tokens_per_second_per_gpu": 5, "tflops_per_gpu": 412.3, "mfu": 0.417,'
        '"mfu_dense": 0.55, "data_wait": 0.01, "goodput": 0.931, "memory_gib": 61.2, "skipped": 1}'
    )
    line = step_line(values, 9, 61)
    assert (
        "412 TFLOP/s/gpu  mfu 41.7% (dense 55.0%)  data wait 1.0%  goodput 93.1%  61.2 GiB  skipped 1" in line
    )
    line = step_line({**values, "mfu": None, "mfu_dense": None, "skipped": 0}, 9, 61)
    assert "mfu" not in line and "skipped" not in line and line.endswith("left 1m01s")
    assert "10 tok/s  412 TFLOP/s/gpu" in step_line({**values, "tokens_per_second_per_gpu": 10}, 9, 61)
