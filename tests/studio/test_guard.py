"""Who may ask, and what may not be had: foreign pages, foreign names, files, pictures."""

import io

import numpy as np
import pytest
from PIL import Image
from starlette.websockets import WebSocketDisconnect

from megatv.guard import own_names, refusal
from megatv.studio import limits

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("host", "origin", "welcome"),
    [
        ("localhost:8000", None, True),
        ("localhost:8000", "http://localhost:8000", True),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("192.168.1.5:8000", None, True),
        ("LocalHost:8000", "http://localhost:8000", True),
        ("localhost:8000", "http://evil.example", False),
        ("localhost:8000", "http://localhost:9000", False),
        ("localhost:8000", "http://127.0.0.1:8000", False),
        ("localhost:8000", "http://localhost:8000.evil.example", False),
        ("localhost:8000", "null", False),
        ("localhost:8000", "", False),
        ("evil.example:8000", "http://evil.example:8000", False),
        ("localhost.evil.example", None, False),
        ("127.0.0.1.evil.example", None, False),
        ("", None, False),
        ("localhost.", None, False),
        ("[::1]evil.example", "http://[::1]evil.example", False),
        ("[::1].evil.example:8000", None, False),
        ("[::1", None, False),
        ("localhost:8000:9000", None, False),
        ("localhost:evil.example", None, False),
        ("127.0.0.1:evil.example", "http://127.0.0.1:evil.example", False),
        ("[localhost]:8000", "ftp://[localhost]:8000", False),
        ("localhost:8000", "https://localhost:8000", True),
        ("localhost:8000", "chrome-extension://localhost:8000", False),
    ],
)
def test_only_our_page_under_our_name(host, origin, welcome):
    headers = {b"host": host.encode()}
    if origin is not None:
        headers[b"origin"] = origin.encode()
    assert (refusal(headers, own_names("127.0.0.1")) is None) == welcome


def test_a_foreign_page_gets_neither_socket_nor_session(studio):
    session = studio.session()
    evil = {"host": "localhost:8000", "origin": "http://evil.example"}
    with pytest.raises(WebSocketDisconnect), studio.web.websocket_connect(f"/ws/{session}", headers=evil):
        pass
    assert not studio.app.state.worker.sessions[session].viewers
    answer = studio.web.post("/api/sessions", headers=evil)
    assert answer.status_code == 403 and "another site" in answer.text
    assert studio.web.get("/", headers={"host": "evil.example"}).status_code == 403


def test_every_answer_is_guarded(studio):
    for path in ("/", "/static/main.js", "/nothing"):
        headers = studio.web.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


def test_the_page_asks_nobody_else(studio):
    for name in ("index.html", "studio.css", "panels.css", "main.js", "socket.js", "store.js", "player.js"):
        text = studio.web.get(f"/static/{name}").text
        assert (text and "http://www.w3.org" in text) or "http" not in text.replace('"https:"', ""), name


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
        "/static//etc/passwd",
        "/s/../../etc/passwd",
        "/s/..%2f..%2fapp.py",
        "/api/sessions/..%2f..%2fetc/takes/0/video.mp4",
        "/api/sessions/nobody/takes/0/transcript.json",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_file_of_the_machine(studio, path):
    answer = studio.web.get(path)
    assert answer.status_code == 404
    assert "import" not in answer.text and "root:" not in answer.text


def test_unknown_takes_and_numbers(studio):
    session = studio.session()
    assert studio.web.get(f"/api/sessions/{session}/takes/3/video.mp4").status_code == 404
    assert studio.web.get(f"/api/sessions/{session}/takes/-1/video.mp4").status_code == 404
    assert studio.web.get(f"/api/sessions/{session}/takes/x/video.mp4").status_code == 422


def picture(size, kind="PNG", mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, 200).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "I;16"])
def test_a_first_picture_of_any_size_and_mode(studio, mode):
    session = studio.session()
    path = f"/api/sessions/{session}/picture"
    with studio.tab(session) as tab:
        tab.make(picture=True)
        assert "has not arrived" in tab.until("error")["message"]
        answer = studio.web.post(path, content=picture((50, 40), mode=mode))
        assert answer.json()["note"] == "50x40, resized to the model's 32x32"
        tab.make(picture=True)
        assert tab.until("take")["picture"]
        given = studio.streams[0].request.first_image
        assert given.shape == (32, 32, 3) and given.dtype == np.uint8 and given.std((0, 1)).max() < 1


def test_pictures_that_are_none_or_too_much(studio):
    path = f"/api/sessions/{studio.session()}/picture"

    def refused(data, status, words):
        answer = studio.web.post(path, content=data)
        assert answer.status_code == status and words in answer.json()["detail"], answer.text

    refused(b"", 422, "give a PNG, JPEG, WebP")
    refused(b"<html>", 422, "give a PNG, JPEG, WebP")
    refused(picture((60, 60))[:70], 422, "give a PNG, JPEG, WebP")
    refused(bytes(limits.MAX_PICTURE_BYTES + 1), 413, "larger than 10 MiB")
    refused(picture((60, 60), "EPS"), 422, "give a PNG, JPEG, WebP")
    refused(picture((4001, 4000), mode="1"), 422, "at most 16 million pixels")
    assert studio.web.post("/api/sessions/nobody/picture", content=b"x").status_code == 404
