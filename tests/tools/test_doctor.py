"""The doctor: right on this machine, right on a bare Python, and honest about broken libraries."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCTOR = ROOT / "tools/doctor.py"


@pytest.fixture(scope="module")
def doctor():
    spec = importlib.util.spec_from_file_location("doctor", DOCTOR)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["doctor"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["doctor"]


def run(*options, python=(sys.executable,)):
    return subprocess.run([*python, DOCTOR, *options], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_this_environment_can_run():
    result = run("--json")
    report = json.loads(result.stdout)
    assert (result.returncode, report["can_run_on_cpu"]) == (0, True), result.stdout
    needed = {f["name"]: f for f in report["findings"] if f["group"] == "needed"}
    assert {f["state"] for f in needed.values()} == {"ok"}
    assert needed["torch"]["found"].startswith("2.")


def test_a_bare_python_is_told_what_to_install():
    """-S leaves site-packages out: nothing but the standard library, as on a fresh machine."""
    result = run("--json", python=(sys.executable, "-I", "-S"))
    report = json.loads(result.stdout)
    assert (result.returncode, report["can_run_on_cpu"], result.stderr) == (1, False, "")
    for finding in report["findings"]:
        if finding["group"] == "needed":
            assert finding["state"] == "missing" and finding["found"] == "not installed"
            assert finding["cost"] and finding["fix"] == "source launch/setup.sh"
    text = run(python=(sys.executable, "-I", "-S")).stdout
    assert "A run on CPU lacks torch, numpy, pyyaml" in text


def test_every_dependency_is_looked_at(doctor):
    """What pyproject.toml lists is in a table here, save the four small parts that only streaming imports."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {doctor.re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    looked_at = {library.name for library in (*doctor.NEEDED, *doctor.OPTIONAL)}
    assert names - looked_at == {"brotli", "catalogue", "python-snappy", "xxhash", "zstd"}


def test_every_dependency_is_pinned(doctor):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [
        *project["dependencies"],
        *(line for extra in extras.values() for line in extra),
        "mosaicml-streaming",
    ]
    names = {doctor.re.match(r"[\w-]+", line)[0].lower() for line in lines} - {"megatv"}  # extras of extras
    assert names <= doctor.tested_versions().keys()


def test_a_broken_library_is_not_ok(doctor, tmp_path, monkeypatch):
    (tmp_path / "broken_thing.py").write_text(
        "import os\nos.write(1, b'noise')\nraise OSError('libfoo.so: gone')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = doctor.probe(doctor.Library("broken-thing", "broken_thing", "no things"), "needed", {})
    assert (finding.state, finding.cost, finding.fix) == ("missing", "no things", doctor.SETUP)
    assert "OSError: libfoo.so: gone" in finding.found


def test_old_torch_and_untested_versions_are_named(doctor, monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.10.1+cu128")
    torch = doctor.Library("torch", "json", "nothing runs")
    assert doctor.probe(torch, "needed", {}).found == "2.10.1+cu128 is older than 2.11"
    numpy = doctor.Library("numpy", "json", "")
    assert doctor.probe(numpy, "needed", {"numpy": "2.1.3"}).found == "2.10.1+cu128 (tested with 2.1.3)"
    assert doctor.probe(numpy, "needed", {"numpy": "2.10.1"}).state == "ok"


def test_gpus_of_the_driver_are_reported(doctor, tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        "#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 580.1'\necho 'NVIDIA H200, 143771 MiB, 580.1'\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "cuda_of_torch", lambda: (False, "torch 2.13.0 is a CPU build"))
    found = {f.name: f for f in doctor.gpu()}
    assert found["NVIDIA GPU"].found == "2 x NVIDIA H200, 143771 MiB, driver 580.1"
    assert found["CUDA in torch"].state == "absent" and found["CUDA in torch"].fix


def test_the_table_is_aligned(doctor):
    ok = doctor.Finding("needed", "a", "ok", "1.0")
    bad = doctor.Finding("needed", "longer", "missing", "not installed", "no cake", "bake")
    assert doctor.report([bad, ok]).splitlines() == [
        "needed",
        "  ✓ a       1.0",
        "  ✗ longer  not installed",
        "            no cake",
        "            > bake",
        "",
        "A run on CPU lacks longer.",
        *doctor.report([bad, ok]).splitlines()[7:],
    ]


def test_a_fit_node_says_so_by_its_name(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "node-17")
    result = run("--node")
    assert (result.returncode, result.stdout) == (0, "node-17: fit\n"), result.stderr


def test_a_bare_node_names_itself_and_its_fault(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "node-17")
    result = run("--node", "--gpus", "8", python=(sys.executable, "-I", "-S"))
    assert result.returncode == 1
    assert result.stdout.startswith("node-17: torch: not installed; source launch/setup.sh on this node")


@pytest.fixture
def node(doctor, monkeypatch):
    """node(free GiB of each GPU): the faults of a node of 4 GPUs of 80 GiB, one of which may be `broken`."""
    import torch

    def faults(*free, broken=None):
        def memory(index):
            if free[index] is None:
                raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
            return free[index] * 2**30, 80 * 2**30

        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
        monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.full(shape, 1.0 + (device == broken)))
        return list(doctor.node_faults(gpus=4))

    return faults


def test_gpus_are_counted_tried_and_found_empty(node):
    assert node(79, 79, 79, 79) == []
    assert [fault.split(" (")[0] for fault in node(79, 79, 79)] == ["3 of 4 GPUs are usable"]
    (fault,) = node(79, 79, None, 79)
    assert fault.startswith("GPU 2 does not compute (RuntimeError: CUDA error: uncorrectable ECC")
    (fault,) = node(79, 20, 79, 79)
    assert fault.startswith("GPU 1 has 60 GiB taken by other processes")
    assert node(79, 79, 79, 79, broken="cuda:3") == [
        "GPU 3 computes wrong numbers: take the node out of service"
    ]
