"""Who may take part: invitations that nobody can guess, own tasks and answers only, and joins that end."""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings

import pytest

from megatv.eval.human import assign, cli, raters
from megatv.eval.human.server import make_app
from megatv.guard import own_names

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library that the client will use next
    from fastapi.testclient import TestClient

ANSWERS = dict.fromkeys(("alignment", "fidelity", "quality", "overall"), "tie")


def client_of(desk, address="127.0.0.1"):
    app = make_app(desk, own_names("127.0.0.1"))
    return TestClient(app, "http://localhost:8420", raise_server_exceptions=False, client=(address, 1))


def bearing(token):
    return {"authorization": f"Bearer {token}"}


def join(client, name="Ada"):
    return client.post("/api/raters", json={"name": name})


def next_item(client, token):
    return client.get("/api/next", headers=bearing(token)).json()["task"]["item"]


def send(client, token, item, **more):
    return client.post(
        "/api/answers", headers=bearing(token), json={"item": item, "answers": ANSWERS, **more}
    )


def test_the_same_name_twice_is_two_people(desk):
    one = desk()
    client = client_of(one)
    first, second = (join(client).json()["token"] for _ in range(2))
    assert first != second
    item = next_item(client, first)
    assert send(client, first, item, comment="mine").status_code == 200
    reply = client.get(f"/api/tasks/{item}", headers=bearing(second))
    assert reply.status_code == 404 and "you have no task" in reply.json()["error"]
    assert send(client, second, item, comment="yours").status_code == 404
    (task,) = [task for task in one.answers.tasks() if task.answered]
    assert task.comment == "mine"
    # what the page sent when names were all that it took
    for path in ("/api/next?rater=Ada", f"/api/tasks/{item}?rater=Ada"):
        assert client.get(path).status_code == 401
    old = {"rater": "Ada", "item": item, "answers": ANSWERS}
    assert client.post("/api/answers", json=old).status_code == 401


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic QWRhOg==", "Ada"])
def test_nothing_is_told_without_a_token(desk, header):
    client = client_of(desk())
    join(client)
    for path in ("/api/me", "/api/next", "/api/tasks/x"):
        reply = client.get(path, headers={} if header is None else {"authorization": header})
        assert reply.status_code == 401 and "no valid invitation" in reply.json()["error"]


def test_a_token_is_nearly_right(desk):
    one = desk()
    client = client_of(one)
    token = join(client).json()["token"]
    number, secret = token.split(".")
    kept = hashlib.sha256(secret.encode()).hexdigest()
    for wrong in (
        secret,
        f"{number}.",
        f"2.{secret}",
        f"{token}x",
        token[:-1],
        f"{number}.{kept}",
        f"-{token}",
        f"{number}.{secret.swapcase()}",
        f"{'9' * 5000}.{secret}",
        f"\u00b9.{secret}".encode(),
        "1.\x00",
    ):
        headers = {"authorization": b"Bearer " + (wrong if isinstance(wrong, bytes) else wrong.encode())}
        assert client.get("/api/me", headers=headers).status_code == 401, wrong
    assert client.get("/api/me", headers=bearing(token)).json() == {"rater": {"number": 1, "name": "Ada"}}


def test_the_file_holds_a_hash_and_no_token(desk, tmp_path):
    one = desk()
    secret = join(client_of(one)).json()["token"].split(".")[1]
    assert len(secret) * 6 >= 128
    one.answers.close()
    data = b"".join(path.read_bytes() for path in tmp_path.glob("answers.sqlite*"))
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in data
    assert secret.encode() not in data


def test_videos_are_for_those_who_were_given_them(desk):
    one = desk(raters_per_item=9)
    client = client_of(one)
    tokens = [join(client).json()["token"] for _ in range(2)]
    shown = [client.get("/api/next", headers=bearing(token)).json()["task"] for token in tokens]
    assert client.get(shown[0]["videos"][0]).status_code == 200
    again = client.get(f"/api/tasks/{shown[0]['item']}", headers=bearing(tokens[0])).json()["task"]
    assert again["videos"] == shown[0]["videos"]
    names = [url.rpartition("/")[2] for task in shown for url in task["videos"]]
    assert len(set(names)) == 4 and all(len(name) == 32 for name in names)
    # nobody is shown an item before it is given, not even under a name that only the server could make
    other = next(item for item in one.items.values() if item.id not in {task["item"] for task in shown})
    name = one.video_name(one.answers.rater(tokens[0]).id, other, 0)
    assert client.get(f"/api/videos/{other.id}/{name}").status_code == 404
    for wrong in (names[0][:-1], names[0].upper(), "\u00e9"):
        assert client.get(f"/api/videos/{shown[0]['item']}/{wrong}").status_code in (404, 422)


def test_an_invited_study_takes_nobody_else(desk, make_study):
    one = desk(joins="invited")
    client = client_of(one)
    assert client.get("/api/study").json()["joins"] == "invited"
    reply = join(client)
    assert reply.status_code == 401 and "open the link you were given" in reply.json()["error"]
    _, token = one.answers.invite()
    reply = client.post("/api/raters", headers=bearing(token), json={"name": "Ada"})
    assert reply.json() == {"rater": {"number": 1, "name": "Ada"}}
    reply = client.post("/api/raters", headers=bearing(token), json={"name": "Eve"})  # a name is given once
    assert reply.json()["rater"]["name"] == "Ada" and one.answers.raters()[0].name == "Ada"
    assert client.post("/api/raters", headers=bearing("1.x"), json={"name": "Eve"}).status_code == 401


def test_joins_end_for_all_and_for_each_address(desk, monkeypatch):
    one = desk(max_raters=5, joins_per_hour=2)
    near, far = client_of(one), client_of(one, "192.0.2.7")
    assert [join(near).status_code for _ in range(3)] == [200, 200, 429]
    assert "too many people joined from this address within an hour" in join(near).json()["error"]
    assert join(far).status_code == 200
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + raters.HOUR_SECONDS + 1)
    assert [join(near).status_code for _ in range(2)] == [200, 200]
    assert join(far).status_code == 429 and "has all the 5 people" in join(far).json()["error"]
    assert len(one.answers.raters()) == 5


def test_a_household_is_one_address():
    arrivals = raters.Arrivals(2)
    for last in range(2):
        assert not arrivals.full(f"2001:db8::{last}")
        arrivals.note(f"2001:db8::{last}")
    assert arrivals.full("2001:db8::abcd") and not arrivals.full("2001:db8:0:1::1")
    assert not arrivals.full("192.0.2.1") and not arrivals.full("no address")


def test_people_with_ipv4_addresses_are_many_where_the_server_listens_on_all(desk):
    """`--host ::`: their addresses come inside of IPv6 ones that share their first 64 bits."""
    one = desk(joins_per_hour=2)
    near, far = client_of(one, "::ffff:192.0.2.7"), client_of(one, "::ffff:192.0.2.8")
    assert [join(near).status_code for _ in range(3)] == [200, 200, 429]
    assert [join(far).status_code for _ in range(3)] == [200, 200, 429]
    assert join(client_of(one, "192.0.2.7")).status_code == 429


def test_a_limit_holds_across_a_restart(desk):
    one = desk(max_raters=2)
    assert [join(client_of(one)).status_code for _ in range(3)] == [200, 200, 429]
    one.answers.close()
    assert join(client_of(desk(max_raters=2))).status_code == 429


def test_people_who_only_join_hold_no_item_back(desk, monkeypatch):
    one = desk(raters_per_item=1, checks=0)
    client = client_of(one)
    for _ in range(6):
        client.get("/api/next", headers=bearing(join(client, "invented").json()["token"]))
    honest = join(client, "Ada").json()["token"]
    assert client.get("/api/next", headers=bearing(honest)).json()["task"] is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + assign.CLAIM_SECONDS + 1)
    judged = 0
    told = client.get("/api/next", headers=bearing(honest)).json()
    while told["task"]:
        told, judged = send(client, honest, told["task"]["item"]).json(), judged + 1
    assert judged == 4


@pytest.mark.parametrize("jump", [-1e9, -3600, 3600, 1e9])
def test_a_clock_that_jumps_neither_frees_nor_holds_items(desk, monkeypatch, jump):
    one = desk(raters_per_item=1, checks=0)
    client = client_of(one)
    tokens = [join(client).json()["token"] for _ in range(5)]
    items = [next_item(client, token) for token in tokens[:4]]
    wall, steady = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: wall() + jump)
    assert client.get("/api/next", headers=bearing(tokens[4])).json()["task"] is None
    for token, item in zip(tokens[:3], items, strict=False):
        assert send(client, token, item).status_code == 200
    monkeypatch.setattr(time, "monotonic", lambda: steady() + assign.CLAIM_SECONDS + 1)
    assert next_item(client, tokens[4]) == items[3]
    assert len([task for task in one.answers.tasks() if task.answered]) == 3


def test_a_clock_that_goes_back_does_not_change_the_order(desk, monkeypatch):
    client = client_of(desk(checks=0))
    token = join(client).json()["token"]
    first = next_item(client, token)
    second = send(client, token, first).json()["task"]["item"]
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() - 1e8)
    told = send(client, token, second).json()
    assert told["before"] == second
    assert send(client, token, told["task"]["item"]).json()["before"] == told["task"]["item"]
    assert client.get(f"/api/tasks/{second}", headers=bearing(token)).json()["before"] == first


@pytest.fixture
def study_file(make_study, tmp_path):
    """A study of invited people as YAML: study_file(**changes)."""

    def write(**changes):
        study = make_study()
        systems = [{"name": s.name, "videos": s.videos} for s in study.systems]
        tree = {"kind": "pairwise", "systems": systems, "database": study.database, "checks": 1, **changes}
        path = tmp_path / "study.yaml"
        path.write_text(json.dumps(tree))
        return str(path)

    return write


LINK = re.compile(r"^rater-(\d+)(?: (\w+))?: (https?://[^#]+/)#(\d+\.[\w-]{32})$", re.MULTILINE)


def test_invitations_from_the_command_line(desk, study_file, capsys):
    cli.main(
        ["invite", study_file(raters=["Ada", "Ben"]), "--count", "2", "--url", "https://study.example.org"]
    )
    links = LINK.findall(capsys.readouterr().out)
    assert [(number, name) for number, name, _, _ in links] == [
        ("1", "Ada"),
        ("2", "Ben"),
        ("3", ""),
        ("4", ""),
    ]
    assert {url for _, _, url, _ in links} == {"https://study.example.org/"}
    one = desk(joins="invited")
    client = client_of(one)
    tokens = [token for *_, token in links]
    assert client.get("/api/me", headers=bearing(tokens[0])).json()["rater"]["name"] == "Ada"
    cli.main(["invite", study_file(raters=["Ada", "Ben"])])
    assert "nobody is left to invite" in capsys.readouterr().out
    item = next_item(client, tokens[2])
    cli.main(["invite", study_file(), "--renew", "3"])  # while it is served
    ((_, _, _, renewed),) = LINK.findall(capsys.readouterr().out)
    assert client.get("/api/me", headers=bearing(tokens[2])).status_code == 401
    assert next_item(client, renewed) == item
    for words, sentence in (
        (["--renew", "9"], "there is no rater-9"),
        (["--count", "-1"], "must be from 0 to 1000"),
        (["--count", "1001"], "must be from 0 to 1000"),
        (["--url", "javascript:alert(1)"], "give what people open"),
        (["--url", "http://h/?rater=1"], "give what people open"),
        (["--url", "http://h:70000/"], "give what people open"),
        (["--url", "http://:80/"], "give what people open"),
        (["--url", "http://[::1/"], "give what people open"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            cli.main(["invite", study_file(), *words])
    with pytest.raises(ValueError, match="give the name alone"):
        cli.main(["serve", study_file(), "--public-name", "https://study.example.org/"])


def test_every_query_is_parametrised(desk):
    one = desk()
    client = client_of(one)
    evil = "'; DROP TABLE tasks; --"
    token = join(client, evil).json()["token"]
    item = next_item(client, token)
    assert send(client, token, item, comment=evil).status_code == 200
    assert send(client, token, evil).status_code == 404
    assert client.get("/api/tasks/' OR '1'='1", headers=bearing(token)).status_code == 404
    assert client.get("/api/videos/' OR '1'='1/x").status_code == 404
    (task,) = [task for task in one.answers.tasks() if task.answered]
    assert task.comment == evil and one.answers.raters()[0].name == evil
