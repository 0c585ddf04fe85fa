"""What the audit passes over, what stops it, and a service of advisories that is none."""

import datetime
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TODAY = datetime.date(2026, 12, 1)


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("audit")


class _Service(BaseHTTPRequestHandler):
    def do_POST(self):
        text = self.server.reply.encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def service():
    """`reply` is the body and `status` the code of every answer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Service)
    server.status, server.reply = 200, json.dumps({"vulns": [{"id": "GHSA-462w-v97r-4m45"}]})
    server.url = f"http://127.0.0.1:{server.server_port}/v1/query"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_what_is_ignored_today_is_well_said(tool):
    assert isinstance(
        tool.ignored((ROOT / "launch/lock/ignored.toml").read_text(), datetime.date.today()), list
    )
    text = '["GHSA-1"]\nuntil = 2026-12-01\nreason = "no server runs"\n'
    assert tool.ignored(text, TODAY) == ["GHSA-1"] and tool.ignored("", TODAY) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[a]\nuntil = 2026-11-30\nreason = 'x'", r"\[a\] was ignored until 2026-11-30: upgrade"),
        ("[a]\nuntil = 2026-12-02", "must have `until` and `reason` alone"),
        ("[a]\nreason = 'x'", "must have `until` and `reason` alone"),
        ("a = 3", "must have `until` and `reason` alone"),
        ("[a]\nuntil = '2027-01-01'\nreason = 'x'", "needs a day, `until`"),
        ("[a]\nuntil = 2027-01-01T00:00:00\nreason = 'x'", "needs a day, `until`"),
        ("[a]\nuntil = 2027-01-01\nreason = ' '", "and words, `reason`"),
        ("[a", "launch/lock/ignored.toml: "),
    ],
)
def test_an_advisory_without_a_day_and_a_reason_is_not_ignored(tool, text, why):
    with pytest.raises(ValueError, match=why):
        tool.ignored(text, TODAY)


@pytest.mark.parametrize(
    ("status", "reply", "why"),
    [
        (404, "", "404"),
        (200, "<html>a proxy</html>", "Expecting value"),
        (200, "{}", "it knows no vulnerability"),
        (200, "[]", "it knows no vulnerability"),
    ],
)
def test_a_service_that_knows_nothing_is_not_believed(tool, service, status, reply, why):
    assert tool.answers(service.url) is None
    service.status, service.reply = status, reply
    assert why in tool.answers(service.url)


@pytest.fixture
def run(tool, service, tmp_path, monkeypatch):
    """run(code): the audit with programs that write down how they are called; pip-audit exits with `code`."""

    def run(code):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "pip-audit").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\nexit {code}\n")
        write = f"echo '{{\"components\": []}}' > {tmp_path}/sbom.json"
        (folder / "cyclonedx-py").write_text(f"#!/bin/sh\n{write}\n")
        for program in folder.iterdir():
            program.chmod(0o755)
        monkeypatch.setattr(tool, "programs", lambda: folder)
        words = ["audit.py", "--sbom", str(tmp_path / "sbom.json"), "--service", service.url]
        monkeypatch.setattr(sys, "argv", words)
        return tool.main()

    return run


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_vulnerability_or_a_fault_fails(run, code, tmp_path):
    assert run(code) == min(code, 1)
    asked = (tmp_path / "asked").read_text().splitlines()
    files = {path.name for path in (ROOT / "launch" / "lock").glob("*.txt")} - {"torch-cpu.txt"}
    assert {word.rpartition("/")[2] for line in asked for word in line.split() if ".txt" in word} == files


def test_where_nobody_answers_it_says_so_and_passes(run, service, tmp_path, capsys):
    service.status = 503
    assert run(1) == 0
    assert "not audited: http://127.0.0.1" in capsys.readouterr().out and not (tmp_path / "asked").exists()
