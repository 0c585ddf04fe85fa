"""The benchmark of the data engine: it runs, its figures are figures, and head-room is rate over need."""

import json

import pytest

pytest.importorskip("cv2", reason="the stages need OpenCV")


@pytest.fixture
def bench(python):
    """bench(out, *arguments): its report and what it printed."""

    def run(out, *arguments):
        done = python("tools/bench_data.py", "--small", "--out", out, *arguments)
        return json.loads(out.read_text()), done.stdout

    return run


def only(tables, start):
    """The rows of the table whose title starts so; those of contestants that took part are positive."""
    (rows,) = (rows for title, rows in tables.items() if title.startswith(start))
    measured = [row for row in rows if "skipped" not in row]
    for row in measured:
        assert all(value >= 0 for value in row.values() if not isinstance(value, str)), row
        assert all(value > 0 for key, value in row.items() if key.endswith(("_s", "_ms"))), row
    return measured, {tuple(row.values())[:2]: row["skipped"] for row in rows if "skipped" in row}


@pytest.mark.slow
def test_decoders_and_stages_are_measured_beside_their_peers(bench, tmp_path):
    report, printed = bench(tmp_path / "out.json", "--only", "decode", "stages")
    assert report["machine"]["date"] in printed and set(report) == {"machine", "decode", "stages"}
    measured, skipped = only(report["decode"], "decode")
    for codec in ("h264", "vp9", "mjpeg"):
        rates = {r["decoder"]: r for r in measured if r["video"].endswith(codec)}
        ours, plain = rates["PyAV (ours)"], rates["plain PyAV"]
        assert ours["ratio_to_ours"] == 1 and ours["clips_per_s"] == pytest.approx(ours["frames_per_s"] / 98)
        ratio = plain["frames_per_cpu_s"] / ours["frames_per_cpu_s"]
        assert plain["ratio_to_ours"] == pytest.approx(ratio)
    assert any("DALI" in reason for reason in skipped.values()), "no CPU build of DALI decodes H.264"

    stages, _ = only(report["stages"], "stages")
    assert [r["stage"] for r in stages][:2] == ["source", "probe"]
    parts, skipped = only(report["stages"], "parts")
    found = {(r["part"], r["method"]) for r in parts} | set(skipped)
    assert {("shots", "pyscenedetect"), ("motion", "dis"), ("motion", "farneback")} <= found


@pytest.mark.slow
def test_head_room_is_the_loaders_rate_over_the_need(bench, tmp_path):
    report, _ = bench(tmp_path / "out.json", "--only", "loader", "first", "--mfu", "0.25")
    (need,), _ = only(report["loader"], "need")
    gpu = 989.4e12 * 0.25 / (need["pflop_per_sequence"] * 1e15)
    assert need["sequences_per_s_of_a_gpu"] == pytest.approx(gpu)
    assert need["tokens_per_s_of_a_gpu"] == pytest.approx(gpu * need["tokens_per_sequence"])
    rates, _ = only(report["loader"], "loader")
    assert {(r["stores"], r["workers"]) for r in rates} == {
        (s, w) for s in ("latents", "clips") for w in (1, 2)
    }
    for row in rates:
        assert row["headroom_a_gpu"] == pytest.approx(row["sequences_per_s"] / gpu)
        assert row["headroom_a_model"] == row["headroom_a_gpu"] / need["gpus_of_a_model"]
    reads, _ = only(report["loader"], "reading")
    assert {(r["stores"], r["reader"]) for r in reads} >= {("latents", "ours"), ("clips", "ours")}
    for row in only(report["first"], "first")[0]:
        assert row["open_s"] < row["open_to_batch_s"]


@pytest.mark.slow
def test_an_index_and_a_node_of_consumers_are_measured(bench, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    steps = [
        {"step": k + 1, "seconds": s, "data_wait": w} for k, (s, w) in enumerate([(3, 1), (1, 0), (1, 0.5)])
    ]
    metrics.write_text("".join(json.dumps(step) + "\n" for step in [*steps, {"step": 3, "val_loss": 1.0}]))
    options = ["--only", "index", "consumer", "--index-samples", "2000", "--metrics", metrics]
    report, printed = bench(tmp_path / "out.json", *options)
    rows, _ = only(report["index"], "index")
    assert [r["reader"] for r in rows] == ["ours, first opening", "ours, again", "streaming LocalDataset"]
    assert all(r["samples"] == 2000 for r in rows) and "2,000" in printed
    (row,), _ = only(report["consumer"], "consumer")
    assert row["ranks"] == 2 and 0 < row["wait_percent_mean"] <= row["wait_percent_max"] <= 100
    (run,) = report["run"]["data wait of a run"]
    assert run == {"steps": 3, "wait_percent": pytest.approx(70), "after_first_step": pytest.approx(25)}
