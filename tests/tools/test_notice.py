"""NOTICE names the licence of every package in launch/lock/, as the package itself says it."""

import sys
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("notice")


def test_notice_is_what_the_lock_and_the_packages_say(tool):
    """Fails when a dependency is new, gone or under another licence: run tools/notice.py."""
    assert tool.notice() == (ROOT / "NOTICE").read_text()


def test_every_locked_package_is_listed(tool):
    listed = {line.split()[0] for line in (ROOT / "NOTICE").read_text().splitlines() if line.startswith("  ")}
    files = {file for part in tool.PARTS.values() for file in part}
    assert files == {path.stem for path in tool.LOCK.glob("*.txt")} - {"torch-cpu", "audit", "renew"}
    assert set(tool.licences()) <= listed and len(tool.licences()) > 100


def test_a_package_without_a_licence_is_an_error(tool, monkeypatch):
    monkeypatch.setattr(tool, "READ", {name: v for name, v in tool.READ.items() if name != "jinja2"})
    monkeypatch.setitem(tool.READ, "einops", "GPL-3.0-only")
    with pytest.raises(
        ValueError, match=r"admits: einops \(GPL-3.0-only\), jinja2 \(says none\); read their"
    ):
        tool.licences()


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "MIT"}, "MIT"),
        ({"License-Expression": "GPL-3.0-only", "License": "MIT"}, "GPL-3.0-only"),
        ({"License": "Apache License 2.0"}, "Apache-2.0"),
        ({"License": "MIT License\n\nCopyright ..."}, "MIT"),
        ({"License": "MIT OR Apache-2.0"}, "MIT OR Apache-2.0"),
        ({"License": "MIT OR GPL-2.0-only"}, None),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: BSD License"}, None),  # which one?
        ({"License": "GPL"}, None),
        ({}, None),
    ],
)
def test_words_that_can_be_read_in_two_ways_are_not_read(tool, fields, licence):
    about = Message()
    for name, value in fields.items():
        about[name] = value
    assert tool.said(about) == licence


@pytest.mark.skipif(sys.platform != "linux", reason="looks into the wheels for Linux")
def test_what_notice_says_of_wheels_is_so():
    """x264 and x265 in PyAV's wheel, an FFmpeg in OpenCV's."""
    import av
    import cv2

    folder = Path(av.__file__).parents[1]
    assert {"x264", "x265"} <= {path.name[3:7] for path in (folder / "av.libs").glob("libx26*")}
    folder = Path(cv2.__file__).parents[1] / "opencv_python_headless.libs"
    assert list(folder.glob("libavcodec*")) and list(folder.glob("libssl*"))
