"""The whole pipeline on two nodes, and killed in the middle: the same records, clips, words and shards."""

import json
import signal
import time

import pytest

pytestmark = pytest.mark.usefixtures("ray_alone")

for library in ("ray", "httpx", "cv2", "scenedetect"):
    pytest.importorskip(library, reason=f"the pipeline needs {library}")

VIDEOS = 5
STAGES = ("source", "probe", "shots", "filters", "clips", "quality", "segments", "captions", "export")
OPTIONS = ["shots.method=pyscenedetect", "clips.min_peaks=0", "segments.max_segments=2"]


@pytest.fixture
def run(tmp_path, dataset_command, moving_video, model):
    """(out, *flags) -> the words that run the tool on a few moving pictures."""
    (tmp_path / "videos").mkdir()
    for seed in range(VIDEOS):
        moving_video(tmp_path / "videos" / f"{seed}.mp4", seed)
    model.override = model.override.replace("retries: 0", "concurrency: 2")

    def command(out, *flags):
        return dataset_command(tmp_path / "videos", tmp_path / out, model.override, *OPTIONS, *flags)

    return command


def manifest(out, stage):
    file = out / "manifests" / f"{stage}.jsonl"
    return file.read_bytes().splitlines(keepends=True) if file.exists() else []


def made(out):
    """All that a run leaves but the time it took and what the model's server counted."""
    records = {}
    for stage in STAGES:
        rows = [json.loads(line) for line in manifest(out, stage)]
        assert len({row["key"] for row in rows}) == len(rows) == VIDEOS, stage
        records[stage] = sorted((row["key"], row["status"], json.dumps(row["outputs"])) for row in rows)
    shards = {file.name: file.read_bytes() for file in (out / "shards").iterdir()}
    return records, (out / "captions.jsonl").read_text(), shards


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three starts of Ray and two of the tool, on a machine that may be busy
def test_two_nodes_make_what_one_machine_makes(tmp_path, run, python):
    from ray.cluster_utils import Cluster

    python(*run("alone"))
    node = {"num_cpus": 1, "object_store_memory": 128 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        python(*run("together", "--ray-address", cluster.address))
    finally:
        cluster.shutdown()
    assert made(tmp_path / "together") == made(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four starts of the tool, on a machine that may be busy
def test_a_killed_run_goes_on_where_it_was(tmp_path, run, forge, python, model):
    """kill -9 while filters work and while the model is asked: what was recorded is never done again."""
    out, asked_when_killed = tmp_path / "killed", []
    for stage in ("filters", "captions"):
        model.seconds = 1.0
        (tmp_path / stage).mkdir()
        process = forge(tmp_path / stage, run("killed"), alone=True)
        while not manifest(out, stage):
            assert not (process.out / "codes").exists(), "it ended before it could be killed"
            time.sleep(0.02)
        process.kill()
        assert process.end() == [-signal.SIGKILL]
        time.sleep(2)  # what its workers had asked for arrives
        left = {name: manifest(out, name) for name in STAGES}
        assert 1 <= len(left[stage]) < VIDEOS and not left["export"]
        asked_when_killed.append(len(model.asked))
        model.seconds = 0.0
    python(*run("killed"))
    for name in STAGES:
        finished = [line for line in left[name] if line.endswith(b"\n")]
        assert manifest(out, name)[: len(finished)] == finished
    asked = len(model.asked)

    model.asked.clear()
    python(*run("whole"))
    assert made(out) == made(tmp_path / "whole")
    assert asked_when_killed[0] == 0 and asked - len(model.asked) <= 2  # those under way, of `concurrency`
