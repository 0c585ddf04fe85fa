"""Making, steering, branching and comparing, as a page does it."""

import json
import time

import numpy as np
import pytest

from megatv.data.video import decode_video, probe

pytestmark = pytest.mark.timeout(60)
JUMP = "(space). 0, 0, 0, 0."


def test_words_come_before_their_chunk_and_all_of_both_arrives(open_studio):
    studio = open_studio(0.01)  # time enough for the tab to read every token before its words are settled
    with studio.tab(studio.session()) as tab:
        hello = tab.until("hello")
        assert (hello["width"], hello["mode"], hello["game"], hello["step"]) == (32, "tv2tv", True, 7)
        tab.make(seed=3)
        assert tab.until("status", status="finished")["take"] == 0
        take = tab.until("take")
        assert (take["seed"], take["parent"], len(take["starts"])) == (3, None, 13)
        for chunk in range(13):
            order = [m["type"] for m in tab.story() if m.get("chunk") == chunk]
            assert order == [*["token"] * (len(order) - 2), "words", "frames"]
            said = "".join(m["text"] for m in tab.story() if m["type"] == "token" and m["chunk"] == chunk)
            assert said == tab.until("words", chunk=chunk)["text"]
        frames = [m for m in tab.story() if m["type"] == "frames"]
        assert [m["first"] for m in frames] == [0, *range(1, 49, 4)]
        pixels = np.concatenate([np.array(m["pixels"], np.uint8) for m in frames])
        assert np.array_equal(pixels, studio.streams[0].result.frames)
        assert studio.streams[0].closed


def test_everybody_sees_the_same_however_late(open_studio):
    studio = open_studio(0.002)
    session = studio.session()
    with studio.tab(session) as first:
        first.make()
        first.until("frames", chunk=5)
        with studio.tab(session) as second:
            for tab in (first, second):
                tab.until("status", status="finished")
            assert second.outcome() == first.outcome()
            assert first.until("viewers", count=2)


def test_a_chunk_to_come_says_what_it_is_told(open_studio):
    studio = open_studio(0.01)
    with studio.tab(studio.session()) as tab:
        tab.make()
        tab.until("words", chunk=1)
        tab.say("pause", take=0)
        tab.until("status", status="paused")
        tab.say("edit", take=0, chunk=9, text=JUMP)
        tab.say("edit", take=0, chunk=11, text="")
        tab.until("planned", chunk=9, text=JUMP)
        worked = studio.streams[0].works
        time.sleep(0.1)
        assert studio.streams[0].works == worked  # paused is paused
        tab.say("resume", take=0)
        tab.until("status", status="finished")
        said = tab.until("words", chunk=9)
        assert (said["text"], said["source"]) == (JUMP, "forced")
        assert tab.until("words", chunk=11)["text"] == ""
        assert tab.until("words", chunk=10)["source"] == "own"


def test_what_is_too_late_is_said_to_the_one_who_asked(studio):
    session = studio.session()
    with studio.tab(session) as tab, studio.tab(session) as other:
        tab.make()
        tab.until("status", status="finished")
        tab.say("edit", take=0, chunk=2, text=JUMP)
        assert "branch" in tab.until("error")["message"]
        tab.make(seed=1)
        other.until("status", status="finished", take=1)
        assert not [m for m in other.seen if m["type"] == "error"]


def test_a_branch_shares_what_was_before_it(studio):
    session = studio.session()
    with studio.tab(session) as tab:
        tab.make()
        tab.until("status", status="finished")
        tab.say("branch", take=0, chunk=4, text="(s). -2, 0, 0, 0.")
        tab.until("status", status="finished", take=1)
        branch = tab.until("take", take=1)
        assert (branch["parent"], branch["at"]) == (0, 4)
        own = [m for m in tab.story() if m.get("take") == 1 and "chunk" in m]
        assert min(m["chunk"] for m in own) == 4 and own[0]["source"] == "forced"
        tab.say("branch", take=1, chunk=6, seed=5)
        tab.until("status", status="finished", take=2)
        takes = studio.app.state.worker.sessions[session].takes
        whole = [np.concatenate(take.frames) for take in takes.values()]
        shared = [frames[:21] for frames in whole]  # chunks 0 to 5
        assert np.array_equal(shared[1], shared[2]) and not np.array_equal(shared[0], shared[1])
        assert not np.array_equal(whole[1], whole[2])
        for take, frames in zip(takes.values(), whole, strict=True):
            assert np.array_equal(take.stream.result.frames, frames)
        seeds = [(entry["from_chunk"], entry["seed"]) for entry in takes[2].record()["seeds"]]
        assert seeds == [(0, 0), (4, 0), (6, 5)]


def test_a_branch_needs_a_chunk_that_is_made(open_studio):
    studio = open_studio(0.01)
    with studio.tab(studio.session()) as tab:
        tab.make()
        tab.until("frames", chunk=1)
        tab.say("branch", take=0, chunk=12)
        assert "not made yet" in tab.until("error")["message"]


def test_stop_keeps_what_is_made(open_studio):
    studio = open_studio(0.01)
    session = studio.session()
    with studio.tab(session) as tab:
        tab.make()
        tab.until("frames", chunk=2)
        tab.say("stop", take=0)
        tab.until("status", status="stopped")
        worked = studio.streams[0].works
        made = max(m["chunk"] for m in tab.story() if m["type"] == "frames")
        tab.say("resume", take=0)
        tab.say("branch", take=0, chunk=2, text=JUMP)
        tab.until("words", take=1, chunk=2, text=JUMP)
        assert studio.streams[0].closed and studio.streams[0].works == worked
        video = studio.web.get(f"/api/sessions/{session}/takes/0/video.mp4").content
        assert round(probe(video).seconds * 16) == 1 + 4 * made


def test_video_and_transcript(studio):
    session = studio.session()
    with studio.tab(session) as tab:
        tab.make(seed=2, prompt="pillars")
        tab.until("status", status="finished")
        tab.say("branch", take=0, chunk=5, text=JUMP)
        tab.until("status", status="finished", take=1)
        path = f"/api/sessions/{session}/takes/1"
        video = studio.web.get(f"{path}/video.mp4")
        assert video.headers["content-type"] == "video/mp4"
        shown = decode_video(video.content, width=32, height=32)
        true = np.concatenate(studio.app.state.worker.sessions[session].takes[1].frames)
        assert shown.shape == true.shape and abs(shown.astype(int) - true).mean() < 6
        tree = json.loads(studio.web.get(f"{path}/transcript.json").content)
        assert (tree["name"], tree["step"], tree["mode"]) == ("toy_world", 7, "tv2tv")
        assert (tree["parent"], tree["branched_at_chunk"], tree["status"]) == (0, 5, "finished")
        assert [c["source"] for c in tree["chunks"]] == ["own"] * 5 + ["forced"] + ["own"] * 7
        assert tree["chunks"][5] == {
            "start_seconds": 1.0625,
            "text": JUMP,
            "source": "forced",
            "cut": False,
            "given": False,
        }


@pytest.mark.parametrize(("prompt", "kind"), [("refuse me", "error"), ("fail at 3", "status")])
def test_a_video_that_fails_leaves_the_studio_up(studio, prompt, kind):
    with studio.tab(studio.session()) as tab:
        tab.make(prompt=prompt)
        if kind == "error":
            assert "shorten the prompt" in tab.until("error")["message"]
        else:
            assert tab.until("status", status="failed")["why"] == "out of memory"
            assert tab.until("frames", chunk=2)
        tab.make(seed=4)
        tab.until("status", status="finished")


def test_a_closed_take_is_forgotten(studio):
    session = studio.session()
    with studio.tab(session) as tab:
        tab.make()
        tab.until("status", status="finished", take=0)
        tab.say("branch", take=0, chunk=3, text=JUMP)
        tab.until("status", status="finished", take=1)
        tab.say("close", take=0)
        assert "branch from this one" in tab.until("error")["message"]
        tab.say("close", take=1)
        tab.until("closed", take=1)
        with studio.tab(session) as late:
            late.until("closed", take=1)
            assert {m["take"] for m in late.story() if m["type"] != "closed"} == {0}


def test_a_video_may_start_from_a_held_out_example(studio):
    session = studio.session()
    with studio.tab(session) as tab:
        assert tab.until("hello")["examples"] == 3
        tab.make(example=2)
        assert tab.until("take")["example"] == 2
        tab.make(example=0, mode="t2v")
        tab.until("take", take=1)
        words = [stream.request.given_words for stream in studio.streams]
        assert words == [(), ()]  # the example's words are the model's to say, in all modes
        assert studio.streams[0].request.first_latents.shape == (1, 16, 4, 4)
        tab.make(example=3)
        assert "no example 3" in tab.until("error")["message"]
        tab.until("status", status="finished", take=0)
        tab.say("branch", take=0, chunk=3, seed=1)
        tab.until("status", status="finished", take=2)
        tree = studio.web.get(f"/api/sessions/{session}/takes/2/transcript.json").json()
        assert tree["example"] == 2


def test_words_before_the_first_picture_may_be_the_users(studio):
    with studio.tab(studio.session()) as tab:
        tab.make(image_words=JUMP)
        assert "start from a picture or an example" in tab.until("error")["message"]
        tab.make(example=1, image_words=JUMP)
        tab.until("take")
        assert studio.streams[0].request.given_words == (JUMP,)


@pytest.mark.parametrize("mode", ["t2v", "think2v"])
def test_a_game_in_a_mode_without_keys_makes_no_take(open_studio, mode):
    studio = open_studio(0.0)
    with studio.tab(studio.session()) as tab:
        tab.make(game=True, mode=mode)
        assert "the keys need the mode tv2tv" in tab.until("error")["message"]
        assert not studio.streams and not [m for m in tab.seen if m["type"] == "take"]
