"""The page's requests: blinded tasks in, answers kept, and one sentence for everything that is wrong."""

import json
import re
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from megatv.eval.human import assign
from megatv.eval.human.limit import MAX_BODY_BYTES
from megatv.eval.human.server import make_app
from megatv.eval.human.tasks import check_places
from megatv.guard import own_names

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library that the client will use next
    from fastapi.testclient import TestClient

LONELY = '{"item": "%s", "answers": %s, "comment": "\\ud800"}'
"""A body whose comment is half a letter."""
JSON = {"content-type": "application/json"}
GOOD = {"alignment": "tie", "fidelity": "tie", "quality": "left_much", "overall": "tie"}


class Person:
    """Somebody who has joined an open study, and asks with their own token."""

    def __init__(self, client, name, token=None):
        self.client, self.name = client, name
        if token is None:
            reply = client.post("/api/raters", json={"name": name})
            assert reply.status_code == 200, reply.text
            token = reply.json()["token"]
        self.token, self.headers = token, {"authorization": f"Bearer {token}"}

    def get(self, path):
        return self.client.get(path, headers=self.headers)

    def next(self):
        return self.get("/api/next").json()

    def send(self, task, answers=None, **more):
        body = {"item": task["item"], "answers": answers or GOOD, **more}
        return self.client.post("/api/answers", json=body, headers=self.headers)

    def answer_all(self, desk, *, attentive=True):
        """Judge until nothing is left, preferring `ours`; returns the number of tasks."""
        told, count = self.next(), 0
        while task := told["task"]:
            told = self.send(
                task,
                dict.fromkeys(GOOD, "left_much" if self.ours_left(desk, task) == attentive else "right_much"),
            ).json()
            count += 1
        return count

    def ours_left(self, desk, task):
        rater = desk.answers.rater(self.token)
        return task["videos"][0].endswith(desk.video_name(rater.id, desk.items[task["item"]], 0))


def client_of(desk, **options):
    return TestClient(make_app(desk, frozenset({"testserver"})), **options)


def test_nothing_on_the_page_names_a_system(desk):
    client = client_of(desk())
    told = Person(client, "Ada").next()
    text = str([told, client.get("/api/study").json()])
    for name in ("ours", "theirs", "duel", "check", ".mp4", "degraded", "Ada"):
        assert name not in text
    assert len(set(told["task"]["videos"])) == 2


def test_sides_are_shuffled_by_rater_and_item_and_stay(desk):
    one = desk(checks=0, raters_per_item=99)
    client = client_of(one)
    firsts = Counter()
    for number in range(30):
        person = Person(client, f"rater {number}")
        told = person.next()
        assert told == person.next()  # asked again: the same task, the same sides
        firsts[person.ours_left(one, told["task"])] += 1
    assert min(firsts[True], firsts[False]) >= 5


def test_every_item_is_judged_by_so_many_people_and_no_more(desk):
    one = desk(raters_per_item=2, checks=1)
    client = client_of(one)
    assert [Person(client, name).answer_all(one) for name in ("Ada", "Ben", "Cleo")] == [5, 5, 0]
    judged = Counter(task.item for task in one.answers.tasks() if not one.items[task.item].check)
    assert len(judged) == 4 and set(judged.values()) == {2}


def test_a_rater_who_fails_the_check_is_replaced(desk):
    one = desk(raters_per_item=1)
    client = client_of(one)
    assert Person(client, "Ada").answer_all(one, attentive=False) == 5
    assert Person(client, "Ben").answer_all(one) == 5
    (ada, _) = one.answers.raters()
    assert assign.left_out(one.study, one.items, one.answers.tasks()) == {ada.id}


def test_checks_come_at_their_places_and_first_what_fewest_have_judged(desk):
    one = desk(raters_per_item=3, checks=1)
    client = client_of(one)
    for name in ("Ada", "Ben", "Cleo"):
        person = Person(client, name)
        person.answer_all(one)
        rater = one.answers.rater(person.token).id
        order = [one.items[task.item].check for task in one.answers.tasks() if task.rater == rater]
        assert order.index(True) == check_places(one.study, rater, 4)[0]
    two = desk(raters_per_item=3, checks=0, database=one.study.database + ".2")
    client = client_of(two)
    for name in ("Dan", "Eve"):  # each answers one and holds another
        person = Person(client, name)
        person.send(person.next()["task"])
    assert len({task.item for task in two.answers.tasks()}) == 4


def test_a_share_of_items_and_an_abandoned_one(desk, monkeypatch):
    one = desk(raters_per_item=1, items_per_rater=1, checks=0)
    client = client_of(one)
    taken = {Person(client, f"r{n}").next()["task"]["item"] for n in range(4)}
    late = Person(client, "late")
    assert len(taken) == 4 and late.next()["task"] is None
    monkeypatch.setattr(assign, "CLAIM_SECONDS", -1)
    assert late.next()["task"]["item"] in taken


def test_people_at_once_share_the_items(desk):
    one = desk(raters_per_item=1, checks=0)
    client = client_of(one)
    with ThreadPoolExecutor(4) as pool:
        tasks = list(pool.map(lambda n: Person(client, f"r{n}").next()["task"], range(4)))
    assert len({task["item"] for task in tasks}) == 4


def test_answers_survive_a_restart_and_can_be_changed(desk):
    one = desk()
    ada = Person(client_of(one), "Ada")
    first = ada.next()["task"]
    told = ada.send(first, comment="odd", seconds=3.5).json()
    assert (told["done"], told["total"], told["before"]) == (1, 5, first["item"])
    one.answers.close()
    one = desk()
    ada = Person(client_of(one), "Ada", ada.token)
    assert ada.next() == told
    again = ada.get(f"/api/tasks/{first['item']}").json()["task"]
    assert again["answers"] == GOOD and again["comment"] == "odd"
    changed = GOOD | {"overall": "right_little"}
    rater = one.answers.rater(ada.token)
    when = one.answers.task(rater, first["item"]).answered
    assert ada.send(first, changed).json()["done"] == 1
    again = ada.get(f"/api/tasks/{first['item']}").json()["task"]
    assert again["answers"] == changed
    assert one.answers.task(rater, first["item"]).answered == when


def test_videos_come_by_ranges(desk, videos):
    client = client_of(desk(checks=0))
    url = Person(client, "Ada").next()["task"]["videos"][0]
    whole = client.get(url)
    assert whole.headers["content-type"] == "video/mp4" and whole.headers["accept-ranges"] == "bytes"
    assert whole.content in [path.read_bytes() for path in videos.rglob("*.mp4")]
    part = client.get(url, headers={"Range": "bytes=100-199"})
    assert part.status_code == 206 and part.content == whole.content[100:200]
    assert client.get(url, headers={"Range": "bytes=99999999-"}).status_code == 416


def test_refusals_are_one_sentence_and_the_server_stays(desk):
    client = client_of(desk(), raise_server_exceptions=False)
    ada = Person(client, "Ada")
    item = ada.next()["task"]["item"]
    get = ada.get
    body = {"item": item, "answers": GOOD}

    def post(path, headers=None, **sent):
        return client.post(path, headers=ada.headers | (headers or {}), **sent)

    def join(name):
        return client.post("/api/raters", json={"name": name})

    cases = [
        (get("/api/tasks/0"), 404, "you have no task '0'"),
        (post("/api/answers", json=body | {"item": "x" * 999}), 404, "you have no task"),
        (post("/api/answers", content=LONELY % ("\\ud800", "{}"), headers=JSON), 404, "you have no task"),
        (post("/api/answers", json=body | {"answers": GOOD | {"overall": "7"}}), 422, "'7' is no answer to"),
        (post("/api/answers", json=body | {"answers": {}}), 422, "alignment is missing"),
        (
            post("/api/answers", json=body | {"answers": GOOD | {"beauty": "tie"}}),
            422,
            "'beauty' is no question",
        ),
        (post("/api/answers", json=body | {"seconds": -1}), 422, "must be from 0 to"),
        (post("/api/answers", json=body | {"seconds": 1e99}), 422, "must be from 0 to"),
        (post("/api/answers", json=body | {"comment": "x" * 2001}), 422, "at most 2000 letters"),
        (post("/api/answers", content=LONELY % (item, json.dumps(GOOD)), headers=JSON), 422, "half a letter"),
        (post("/api/answers", json=body | {"answers": "tie"}), 422, "answers: "),
        (post("/api/answers", json=body | {"answers": {"overall": {"a": 1}}}), 422, "answers.overall: "),
        (post("/api/answers", content=b"{}"), 422, "must be a JSON object"),
        (post("/api/answers", content=b"{", headers=JSON), 422, "must be a JSON object"),
        (post("/api/answers", content=b"\xff\xfe", headers=JSON), 422, "must be a JSON object"),
        (post("/api/answers", content=b"[" * 9999, headers=JSON), 400, "parsing the body"),
        (post("/api/answers", content=b"9" * 9999, headers=JSON), 400, "parsing the body"),
        (post("/api/answers", content=b"x" * (MAX_BODY_BYTES + 1)), 413, "at most 16384 bytes"),
        (post("/api/answers", content=(b"x" * 1000 for _ in range(99))), 413, "at most 16384 bytes"),
        (join("  "), 422, "1 to 40 letters"),
        (join("x" * 41), 422, "1 to 40 letters"),
        (join("a\x00b"), 422, "1 to 40 letters"),
        (join("a\u202eb"), 422, "1 to 40 letters"),
        (join(["Ada"]), 422, "name: "),
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
    assert ada.next()["task"]["item"] == item and not ada.next()["done"]


def test_another_sites_page_may_not_ask_nor_show(desk):
    client = client_of(desk())
    evil = {"origin": "http://evil.example"}
    reply = client.post("/api/raters", json={"name": "Ada"}, headers=evil)
    assert reply.status_code == 403 and "another site's page" in reply.text
    url = Person(client, "Ada").next()["task"]["videos"][0]
    assert client.get(url).headers["cross-origin-resource-policy"] == "same-origin"


def test_only_the_names_of_this_server_are_answered(desk):
    app = make_app(desk(), own_names("127.0.0.1") | {"study.example.org"})
    for host, status in (
        ("127.0.0.1:8420", 200),
        ("localhost:8420", 200),
        ("study.example.org", 200),
        ("evil.example", 403),
        ("study.example.org.evil.example", 403),
        ("localhost.evil.example:8420", 403),
    ):
        reply = TestClient(app, base_url=f"http://{host}").get("/api/study")
        assert reply.status_code == status, host
    own = {"host": "study.example.org", "origin": "https://study.example.org"}
    assert TestClient(app).post("/api/raters", json={"name": "Ada"}, headers=own).status_code == 200


def test_a_video_or_database_that_goes_away(desk, tmp_path):
    one = desk(checks=1, raters_per_item=1)
    ada = Person(client_of(one, raise_server_exceptions=False), "Ada")
    rater = one.answers.rater(ada.token)
    check = next(item for item in one.items.values() if item.check)
    one.answers.give(rater, lambda _: check.id)
    task = ada.next()["task"]
    (tmp_path / "answers.checks").rename(tmp_path / "moved")
    reply = ada.get(f"/api/videos/{check.id}/{one.video_name(rater.id, check, 1)}")
    assert reply.status_code == 404 and "file is gone" in reply.json()["error"]
    one.answers._connection.execute("PRAGMA query_only = 1")
    reply = ada.send(task)
    assert reply.status_code == 503 and "cannot be written now" in reply.json()["error"]
    one.answers._connection.execute("PRAGMA query_only = 0")
    assert ada.send(task, comment="before").status_code == 200
    one.answers._connection.execute("PRAGMA max_page_count = 1")  # as large as it is
    replies = [ada.send(task, comment=letter * 2000) for letter in "\U0001f600\U0001f601\U0001f602"]
    assert {reply.status_code for reply in replies} == {503} and "is full" in replies[0].json()["error"]
    again = ada.get(f"/api/tasks/{task['item']}").json()["task"]
    assert again["comment"] == "before" and again["answers"] == GOOD


def test_the_page_needs_nothing_from_elsewhere(desk):
    client = client_of(desk())
    for name in ("/", "/app.js", "/player.js", "/style.css"):
        reply = client.get(name)
        assert reply.status_code == 200 and not re.search(r"https?:|[\"'(]//", reply.text)


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_the_questions_fit_the_page(desk, kind):
    told = client_of(desk(kind)).get("/api/study").json()
    assert told["kind"] == kind
    assert [len(question["options"]) for question in told["questions"]] == {
        "pairwise": [5, 5, 5, 5],
        "pointwise": [4, 4],
    }[kind]
