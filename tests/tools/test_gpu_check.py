"""The GPU check where there is no GPU: it runs at tiny shapes, and the tables carry its figures."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_sections_run_apart_and_become_tables(python, tmp_path):
    out = tmp_path / "check.json"
    chosen = ["training", "sampling", "stream"]
    python("tools/gpu_check.py", "--small", "--only", *chosen, "--out", out)
    report = json.loads(out.read_text())
    assert set(report) == {"machine", "seconds", *chosen}
    assert report["stream"]["chunks"] == 17 and report["stream"]["largest_difference"] < 1e-3
    assert report["training"]["sdpa"]["step_ms"] > 0
    printed = python("tools/gpu_report.py", out).stdout
    for found in (report["sampling"], report["sampling"]["fp8"]):
        assert f"{found['chunk']['eager_ms']:.2f}" in printed
    assert report["sampling"]["fp8"]["precision"] == "fp8" and "| text pass, fp8 |" in printed
    assert "## Attention" not in printed


def test_a_section_that_fails_leaves_the_others(python, tmp_path):
    out = tmp_path / "check.json"
    python("tools/gpu_check.py", "--small", "--only", "sampling", "--out", out)
    report = json.loads(out.read_text())
    report["training"] = {"error": "RuntimeError: an illegal instruction was encountered"}
    out.write_text(json.dumps(report))
    printed = python("tools/gpu_report.py", out).stdout
    assert "Failed: RuntimeError: an illegal instruction" in printed and "## Sampling" in printed


def test_committed_tables_are_those_of_the_committed_figures(python):
    printed = python("tools/gpu_report.py", "docs/measured/h100.json").stdout
    page = (ROOT / "docs/measured/h100.md").read_text()
    assert printed.partition("## Attention")[2].strip() == page.partition("## Attention")[2].strip()
