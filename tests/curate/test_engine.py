"""The engine under Ray: what is done stays done, what fails is named, kill -9 costs what was in flight."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from megatv.curate import engine
from megatv.curate.engine import Outcome, Stage, run_stage, start_ray
from megatv.curate.manifest import Manifest

pytestmark = pytest.mark.usefixtures("ray_alone")

ray = pytest.importorskip("ray", reason="Ray runs the pipeline; pip install 'ray[data]'")


@pytest.fixture(scope="module")
def local_ray():
    start_ray(None)
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path, local_ray):
    (tmp_path / "ran").mkdir()
    return tmp_path


def items(numbers):
    return [{"id": f"i{n}", "n": n} for n in numbers]


def counting(folder, *, fails=True, **options):
    """A stage that leaves a byte in a file for each time it works on an item."""
    ran = str(folder / "ran")

    def work(item):
        with open(f"{ran}/{item['id']}", "a") as file:
            file.write("x")
        if item["n"] == 1 and fails:
            raise ValueError("one is bad")
        if item["n"] == 2 and fails:
            raise KeyError("two")
        if item["n"] == 3:
            return Outcome(reason="three is left out", facts={"n": 3})
        return Outcome([{"id": f"{item['id']}/{k}"} for k in range(item["n"])])

    return Stage("count", options.pop("version", 1), work, options.pop("settings", {}), **options)


def times_ran(folder):
    return {path.name: path.stat().st_size for path in (folder / "ran").iterdir()}


def test_every_item_gets_its_record_and_is_never_done_twice(folder, capsys):
    manifest = folder / "m.jsonl"
    records, summary = run_stage(counting(folder), items([5, 1, 2, 3, 4]), manifest)
    assert [(r.id, r.status, r.reason) for r in records] == [
        ("i5", "kept", ""),
        ("i1", "failed", "one is bad"),
        ("i2", "failed", "KeyError: 'two'"),
        ("i3", "dropped", "three is left out"),
        ("i4", "kept", ""),
    ]
    assert records[3].facts == {"n": 3} and [o["id"] for o in records[4].outputs][-1] == "i4/3"
    assert (summary.kept, summary.dropped, summary.failed, summary.outputs) == (2, 1, 2, 9)
    assert "count: 5 in, 2 kept, 1 dropped, 2 failed, 9 out" in capsys.readouterr().out

    again, summary = run_stage(counting(folder), items([5, 1, 2, 3, 4, 6]), manifest)
    assert again[:5] == records and again[5].status == "kept" and summary.done_now == 1
    assert set(times_ran(folder).values()) == {1}

    retried, _ = run_stage(counting(folder, fails=False), items([5, 1, 2]), manifest, retry_failed=True)
    assert [r.status for r in retried] == ["kept"] * 3
    assert times_ran(folder) == {"i5": 1, "i1": 2, "i2": 2, "i3": 1, "i4": 1, "i6": 1}


def test_other_settings_and_another_version_do_items_again_and_the_old_ones_stay(folder):
    for options in ({}, {"settings": {"threshold": 2}}, {"version": 2}, {}):
        run_stage(counting(folder, **options), items([4]), folder / "m.jsonl")
    assert times_ran(folder) == {"i4": 3}


def test_what_passes_by_does_no_item_again_and_is_passed_on_as_it_is_now(folder):
    stage = counting(folder, passes=("score",))
    for score in ({"score": 3}, {"score": 8}, {}):
        (record,), _ = run_stage(stage, [{"id": "i4", "n": 4, **score}], folder / "m.jsonl")
        assert [output for output in record.outputs] == [{"id": f"i4/{k}", **score} for k in range(4)]
    assert times_ran(folder) == {"i4": 1}
    with Manifest(folder / "m.jsonl") as manifest:
        assert "score" not in str(manifest.records)


def test_items_that_wait_together_all_come_back(folder):
    stage = counting(folder, threads=4, tasks=1, cpus=0.5)
    records, _ = run_stage(stage, items(range(4, 15)), folder / "m.jsonl")
    assert [r.id for r in records] == [f"i{n}" for n in range(4, 15)]
    assert [len(r.outputs) for r in records] == list(range(4, 15))


def test_a_worker_that_dies_takes_only_its_own_item_along(folder):
    def work(item):
        if item["n"] == 1:
            os._exit(7)
        return Outcome([item])

    records, _ = run_stage(Stage("die", 1, work, {}), items(range(3)), folder / "m.jsonl")
    assert [r.status for r in records] == ["kept", "failed", "kept"]
    assert records[1].reason.startswith("its worker died")


@pytest.mark.parametrize(
    ("address", "fault"),
    [("127.0.0.1:1", "no Ray cluster answers"), ("nowhere", "must look like HOST:PORT")],
)
def test_an_address_without_a_cluster_is_refused(address, fault):
    with pytest.raises(ValueError, match=f"--ray-address {address}: {fault}"):
        start_ray(address)


AUTHENTICATED = """
import os
from megatv.curate.engine import start_ray
start_ray(None)
from ray._raylet import get_authentication_mode, AuthenticationMode
print(get_authentication_mode() == AuthenticationMode.TOKEN, len(os.environ["RAY_AUTH_TOKEN"]))
"""


@pytest.mark.parametrize(
    "said",
    [
        {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": "nowhere"},
        {"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": ""},
    ],
    ids=["disabled", "empty"],
)
def test_the_local_ray_has_its_own_token_whatever_the_environment_says(tmp_path, said):
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": str(tmp_path), **said}
    command = [sys.executable, "-c", AUTHENTICATED]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, timeout=200)
    assert done.stdout.split() == ["True", "64"]
    assert not (tmp_path / ".ray").exists()


STARTED = """
import os, signal, sys
from pathlib import Path
from megatv.curate.engine import start_ray
start_ray(None)
import ray
print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
os.kill(os.getpid(), int(sys.argv[1])) if int(sys.argv[1]) else None
"""


@pytest.mark.parametrize("end", [0, signal.SIGTERM])
def test_the_token_of_the_local_ray_is_in_no_file(tmp_path, end):
    """And its other files are removed, also those that lie in /tmp because TMPDIR is long."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    mine |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", STARTED, str(int(end))]
    done = subprocess.run(command, env=mine, stdout=subprocess.PIPE, text=True, timeout=200)
    assert not (tmp_path / ".ray").exists()
    session = Path(done.stdout.strip())
    assert session.name.startswith("session_") and len(session.parents) == 4
    assert session.parents[1].name.startswith("megatv-") and not session.parents[1].exists()


def test_others_cannot_enter_the_files_of_the_local_ray(local_ray):
    """Ray's own folders are open to everybody, and its processes read there whom to send the token."""
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    private = session.parents[1].stat()
    assert private.st_uid == os.geteuid() and private.st_mode & 0o077 == 0
    if os.geteuid() == 0:
        look = [
            sys.executable,
            "-c",
            "import os, sys; os.setgid(20002); os.setuid(20002); os.listdir(sys.argv[1])",
        ]
        for folder in (session, *session.parents[:2]):
            done = subprocess.run([*look, str(folder)], capture_output=True, text=True)
            assert "PermissionError" in done.stderr, folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_place_that_another_user_could_replace_is_refused(monkeypatch):
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(place, 20002, 20002)
    place.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr(engine.atexit, "register", lambda end, folder: None)
    try:
        with pytest.raises(
            ValueError, match=f"user 20002 may put another in its place .{place} .*set TMPDIR"
        ):
            engine._private_folder()
    finally:
        shutil.rmtree(place)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_stranger_cannot_join_the_local_ray(local_ray, tmp_path, mode):
    """Without the token, or with another one; Ray gives up after half a minute."""
    address, marker = ray.get_runtime_context().gcs_address, tmp_path / "marker"
    code = f"""
import ray
ray.init(address={address!r}, logging_level=40)
ray.get(ray.remote(lambda: open({str(marker)!r}, "w").close()).remote())
"""
    stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    stranger |= {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": 64 * "0"}
    done = subprocess.run([sys.executable, "-c", code], env=stranger, capture_output=True, timeout=200)
    assert done.returncode and not marker.exists()
    mine = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=200)
    assert mine.returncode == 0 and marker.exists()


SLOW_STAGE = """
import sys, time
from pathlib import Path
from megatv.curate import engine
from megatv.curate.engine import Outcome, Stage, run_stage, start_ray
folder = Path(sys.argv[1])
def work(item):
    with open(folder / "ran" / item["id"], "a") as file:
        file.write("x")
    time.sleep(0.3)
    return Outcome([item])
start_ray(None)
run_stage(Stage("slow", 1, work, {}), [{"id": f"i{n}"} for n in range(20)], folder / "m.jsonl")
"""


def test_after_kill_nine_only_items_in_flight_are_done_again(tmp_path):
    (tmp_path / "ran").mkdir()
    manifest = tmp_path / "m.jsonl"
    command = [sys.executable, "-c", SLOW_STAGE, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not manifest.exists() or manifest.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Manifest(manifest) as left:
        finished = {record.id for record in left.records.values()}
    assert 4 <= len(finished) < 20

    subprocess.run(command, check=True, capture_output=True)
    times = times_ran(tmp_path)
    assert set(times) == {f"i{n}" for n in range(20)}
    assert all(times[id] == 1 for id in finished)
    cores = os.cpu_count() or 1
    assert (
        sum(n - 1 for n in times.values()) <= 2 * cores
    )  # running, or finished and on the way to the driver
    with Manifest(manifest) as whole:
        assert {r.id for r in whole.records.values()} == set(times)


@pytest.mark.slow
def test_two_nodes_share_a_stage(tmp_path):
    """A head and a second node with a core each; every item needs one, and both nodes work."""
    script = tmp_path / "cluster.py"
    script.write_text(TWO_NODES)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(tmp_path / "m.jsonl").read_bytes().count(b"\n") == 8


TWO_NODES = """
import sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
from megatv.curate import engine
from megatv.curate.engine import Outcome, Stage, run_stage, start_ray

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()

def work(item):
    import ray
    time.sleep(1)
    return Outcome([{"id": item["id"], "node": ray.get_runtime_context().get_node_id()}])

start_ray(cluster.address)
stage = Stage("nodes", 1, work, {})
records, _ = run_stage(stage, [{"id": str(n)} for n in range(8)], Path(sys.argv[1]) / "m.jsonl")
assert len({r.outputs[0]["node"] for r in records}) == 2, records
import ray
ray.shutdown()
cluster.shutdown()
"""
