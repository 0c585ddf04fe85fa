"""The page's requests: blinded tasks in, answers kept, and one sentence for everything that is wrong."""

import re
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from megatv.eval.human import assign
from megatv.eval.human.limit import MAX_BODY_BYTES
from megatv.eval.human.server import make_app
from megatv.eval.human.tasks import check_places, video_id

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library that the client will use next
    from fastapi.testclient import TestClient

JSON = {"content-type": "application/json"}
GOOD = {"alignment": "tie", "fidelity": "tie", "quality": "left_much", "overall": "tie"}


def person(client, name):
    assert client.post("/api/raters", json={"rater": name}).status_code == 200
    return lambda: client.get("/api/next", params={"rater": name}).json()


def send(client, name, task, answers=None, **more):
    body = {"rater": name, "item": task["item"], "answers": answers or GOOD, **more}
    return client.post("/api/answers", json=body)


def answer_all(client, desk, name, *, attentive=True):
    """Judge until nothing is left, preferring `ours`; returns the number of tasks."""
    told = person(client, name)()
    count = 0
    while task := told["task"]:
        item = desk.items[task["item"]]
        left = task["videos"][0].endswith(assign_video(desk, item))
        better = "left_much" if left == attentive else "right_much"
        told = send(client, name, task, dict.fromkeys(GOOD, better)).json()
        count += 1
    return count


def assign_video(desk, item):
    return video_id(desk.study, item, 0)


def test_nothing_on_the_page_names_a_system(desk):
    client = TestClient(make_app(desk()))
    told = person(client, "Ada")()
    text = str([told, client.get("/api/study").json()])
    for name in ("ours", "theirs", "duel", "check", ".mp4", "degraded"):
        assert name not in text
    assert len(set(told["task"]["videos"])) == 2


def test_sides_are_shuffled_by_rater_and_item_and_stay(desk):
    one = desk(checks=0, raters_per_item=99)
    client = TestClient(make_app(one))
    firsts = Counter()
    for number in range(30):
        told = person(client, f"rater {number}")()
        assert told == person(client, f"rater {number}")()  # asked again: the same task, the same sides
        task = told["task"]
        firsts[task["videos"][0].endswith(assign_video(one, one.items[task["item"]]))] += 1
    assert min(firsts[True], firsts[False]) >= 7


def test_every_item_is_judged_by_so_many_people_and_no_more(desk):
    one = desk(raters_per_item=2, checks=1)
    client = TestClient(make_app(one))
    assert [answer_all(client, one, name) for name in ("Ada", "Ben", "Cleo")] == [5, 5, 0]
    judged = Counter(task.item for task in one.answers.tasks() if not one.items[task.item].check)
    assert len(judged) == 4 and set(judged.values()) == {2}


def test_a_rater_who_fails_the_check_is_replaced(desk):
    one = desk(raters_per_item=1)
    client = TestClient(make_app(one))
    assert answer_all(client, one, "Ada", attentive=False) == 5
    assert answer_all(client, one, "Ben") == 5
    assert assign.left_out(one.study, one.items, one.answers.tasks()) == {"Ada"}


def test_checks_come_at_their_places_and_first_what_fewest_have_judged(desk):
    one = desk(raters_per_item=3, checks=1)
    client = TestClient(make_app(one))
    for rater in ("Ada", "Ben", "Cleo"):
        answer_all(client, one, rater)
        order = [one.items[task.item].check for task in one.answers.tasks() if task.rater == rater]
        assert order.index(True) == check_places(one.study, rater, 4)[0]
    two = desk(raters_per_item=3, checks=0, database=one.study.database + ".2")
    client = TestClient(make_app(two))
    for rater in ("Dan", "Eve"):  # each answers one and holds another
        send(client, rater, person(client, rater)()["task"])
    assert len({task.item for task in two.answers.tasks()}) == 4


def test_a_share_of_items_and_an_abandoned_one(desk, monkeypatch):
    one = desk(raters_per_item=1, items_per_rater=1, checks=0)
    client = TestClient(make_app(one))
    taken = {person(client, f"r{n}")()["task"]["item"] for n in range(4)}
    assert len(taken) == 4 and person(client, "late")()["task"] is None
    monkeypatch.setattr(assign, "CLAIM_SECONDS", -1)
    assert person(client, "late")()["task"]["item"] in taken


def test_people_at_once_share_the_items(desk):
    one = desk(raters_per_item=1, checks=0)
    client = TestClient(make_app(one))
    with ThreadPoolExecutor(4) as pool:
        tasks = list(pool.map(lambda n: person(client, f"r{n}")()["task"], range(4)))
    assert len({task["item"] for task in tasks}) == 4


def test_answers_survive_a_restart_and_can_be_changed(desk):
    one = desk()
    client = TestClient(make_app(one))
    first = person(client, "Ada")()["task"]
    told = send(client, "Ada", first, comment="odd", seconds=3.5).json()
    assert (told["done"], told["total"], told["before"]) == (1, 5, first["item"])
    one.answers.close()
    one = desk()
    client = TestClient(make_app(one))
    assert person(client, "Ada")() == told
    again = client.get(f"/api/tasks/{first['item']}", params={"rater": "Ada"}).json()["task"]
    assert again["answers"] == GOOD and again["comment"] == "odd"
    changed = GOOD | {"overall": "right_little"}
    when = one.answers.task("Ada", first["item"]).answered
    assert send(client, "Ada", first, changed).json()["done"] == 1
    again = client.get(f"/api/tasks/{first['item']}", params={"rater": "Ada"}).json()["task"]
    assert again["answers"] == changed
    assert one.answers.task("Ada", first["item"]).answered == when


def test_videos_come_by_ranges(desk, videos):
    client = TestClient(make_app(desk(checks=0)))
    url = person(client, "Ada")()["task"]["videos"][0]
    whole = client.get(url)
    assert whole.headers["content-type"] == "video/mp4" and whole.headers["accept-ranges"] == "bytes"
    assert whole.content in [path.read_bytes() for path in videos.rglob("*.mp4")]
    part = client.get(url, headers={"Range": "bytes=100-199"})
    assert part.status_code == 206 and part.content == whole.content[100:200]
    assert client.get(url, headers={"Range": "bytes=99999999-"}).status_code == 416


def test_refusals_are_one_sentence_and_the_server_stays(desk):
    client = TestClient(make_app(desk()), raise_server_exceptions=False)
    follow = person(client, "Ada")
    task = follow()["task"]
    item = task["item"]
    post = client.post
    get = client.get
    body = {"rater": "Ada", "item": item, "answers": GOOD}
    cases = [
        (get("/api/next", params={"rater": "nobody"}), 404, "nobody named 'nobody' takes part"),
        (get("/api/next"), 422, "rater: "),
        (get("/api/tasks/0", params={"rater": "Ada"}), 404, "has no task '0'"),
        (post("/api/answers", json=body | {"rater": "Eve"}), 404, "nobody named 'Eve'"),
        (post("/api/answers", json=body | {"item": "x" * 999}), 404, "has no task"),
        (post("/api/answers", json=body | {"answers": GOOD | {"overall": "7"}}), 422, "'7' is no answer to"),
        (post("/api/answers", json=body | {"answers": {}}), 422, "alignment is missing"),
        (
            post("/api/answers", json=body | {"answers": GOOD | {"beauty": "tie"}}),
            422,
            "'beauty' is no question",
        ),
        (post("/api/answers", json=body | {"seconds": -1}), 422, "must not be negative"),
        (post("/api/answers", json=body | {"comment": "x" * 2001}), 422, "at most 2000 letters"),
        (post("/api/answers", json=body | {"answers": "tie"}), 422, "answers: "),
        (post("/api/answers", content=b"{}"), 422, "must be a JSON object"),
        (post("/api/answers", content=b"{", headers=JSON), 422, "must be a JSON object"),
        (post("/api/answers", content=b"\xff\xfe", headers=JSON), 422, "must be a JSON object"),
        (post("/api/answers", content=b"[" * 9999, headers=JSON), 400, "parsing the body"),
        (post("/api/answers", content=b"x" * (MAX_BODY_BYTES + 1)), 413, "at most 16384 bytes"),
        (post("/api/answers", content=(b"x" * 1000 for _ in range(99))), 413, "at most 16384 bytes"),
        (post("/api/raters", json={"rater": "  "}), 422, "1 to 40 letters"),
        (post("/api/raters", json={"rater": "x" * 41}), 422, "1 to 40 letters"),
        (post("/api/raters", json={"rater": "a\x00b"}), 422, "1 to 40 letters"),
        (get("/api/videos/0/0"), 404, "no such video"),
        (get(f"/api/videos/{item}/..%2F..%2F..%2Fetc%2Fpasswd"), 404, ""),
        (get("/..%2f..%2f..%2fserver.py"), 404, ""),
        (get("/%2e%2e/server.py"), 404, ""),
        (get("/absent.js"), 404, ""),
        (client.delete("/api/answers"), 405, ""),
    ]
    for case, (reply, status, sentence) in enumerate(cases):
        assert reply.status_code == status, (case, reply.request.url, reply.text)
        assert sentence in reply.json()["error"] and "\n" not in reply.json()["error"]
        assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert follow()["task"]["item"] == item and not follow()["done"]


def test_another_sites_page_may_not_ask(desk):
    client = TestClient(make_app(desk()))
    evil = {"origin": "http://evil.example"}
    reply = client.post("/api/raters", json={"rater": "Ada"}, headers=evil)
    assert reply.status_code == 403 and "another site's page" in reply.text
    own = {"host": "study.example", "origin": "https://study.example"}
    assert client.post("/api/raters", json={"rater": "Ada"}, headers=own).status_code == 200


def test_only_those_on_the_list(desk):
    client = TestClient(make_app(desk(raters=("Ada",))))
    assert client.post("/api/raters", json={"rater": " Ada "}).json()["rater"] == "Ada"
    reply = client.post("/api/raters", json={"rater": "Eve"})
    assert reply.status_code == 403 and "'Eve' is not among this study's raters" in reply.json()["error"]


def test_a_video_or_database_that_goes_away(desk, tmp_path, videos, monkeypatch):
    one = desk(checks=1)
    client = TestClient(make_app(one), raise_server_exceptions=False)
    task = person(client, "Ada")()["task"]
    check = next(item for item in one.items.values() if item.check)
    (tmp_path / "answers.checks").rename(tmp_path / "moved")
    reply = client.get(f"/api/videos/{check.id}/{video_id(one.study, check, 1)}")
    assert reply.status_code == 404 and "file is gone" in reply.json()["error"]
    one.answers._connection.execute("PRAGMA query_only = 1")
    reply = send(client, "Ada", task)
    assert reply.status_code == 503 and "cannot be written now" in reply.json()["error"]
    one.answers._connection.execute("PRAGMA query_only = 0")
    assert send(client, "Ada", task).status_code == 200


def test_the_page_needs_nothing_from_elsewhere(desk):
    client = TestClient(make_app(desk()))
    for name in ("/", "/app.js", "/player.js", "/style.css"):
        reply = client.get(name)
        assert reply.status_code == 200 and not re.search(r"https?:|[\"'(]//", reply.text)


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_the_questions_fit_the_page(desk, kind):
    told = TestClient(make_app(desk(kind))).get("/api/study").json()
    assert told["kind"] == kind
    assert [len(question["options"]) for question in told["questions"]] == {
        "pairwise": [5, 5, 5, 5],
        "pointwise": [4, 4],
    }[kind]
