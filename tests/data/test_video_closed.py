"""A video reads no other file and no address: neither by what it holds, nor by what it is called."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from megatv.data import video_source
from megatv.data.video import decode_video, probe, write_video


@pytest.fixture
def private(tmp_path):
    """A video of somebody's own, bright, in the folder of the tests' files."""
    write_video(tmp_path / "private.mp4", np.full((16, 32, 48, 3), 230, np.uint8))
    return tmp_path / "private.mp4"


@pytest.fixture
def server():
    """A port of this machine; nobody may come there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        yield listening.getsockname()[1]
        with pytest.raises(TimeoutError):
            listening.accept()


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.5,\n{}\n#EXT-X-ENDLIST\n"
DASH = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
 mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet
 mimeType="video/mp4"><Representation id="1" bandwidth="1" width="48" height="32"><BaseURL>{}
</BaseURL></Representation></AdaptationSet></Period></MPD>"""
POINTING = {
    "HLS": HLS,
    "a playlist of playlists": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n",
    "a key of HLS": HLS.replace("#EXTINF", '#EXT-X-KEY:METHOD=AES-128,URI="{}"\n#EXTINF', 1),
    "DASH": DASH,
    "a list to join": "ffconcat version 1.0\nfile '{}'\n",
    "an old list to join": "file '{}'\n",
    "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=control:{}\n",
    "a graph": "movie={}\n",
    "SMIL": '<smil><body><video src="{}"/></body></smil>',
    "ASX": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
    "a picture": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{}" width="48" height="32"/></svg>',
    "a link": "[InternetShortcut]\nURL={}\n",
}
ENDINGS = (".mp4", ".m3u8", ".mpd", ".ffconcat", ".sdp", ".ts", ".mov")


@pytest.mark.parametrize("kind", POINTING)
def test_text_that_names_another_file_opens_none(tmp_path, private, server, kind):
    for target in (str(private), "private.mp4", f"file:{private}", f"http://127.0.0.1:{server}/private.mp4"):
        text = POINTING[kind].replace("{}", target)
        with pytest.raises(ValueError, match="video bytes: does not decode"):
            decode_video(text.encode(), width=48, height=32)
        for ending in ENDINGS:
            (tmp_path / f"a{ending}").write_text(text)
            with pytest.raises(ValueError, match=rf"a\{ending}: does not decode") as caught:
                probe(tmp_path / f"a{ending}")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "protocol",
    ["file:", "FILE:", "concat:", "subfile,,start,0,end,0,,:", "async:", "cache:", "crypto:", "data:",
     "pipe:", "concatf:", "unix:", "http:", "tcp:"],
)  # fmt: skip
def test_a_name_with_a_colon_is_a_name(tmp_path, private, monkeypatch, protocol):
    """FFmpeg would open what follows: `file:/home/me/private.mp4` in a folder that holds a folder `file:`."""
    monkeypatch.chdir(tmp_path)
    for name in (f"{protocol}private.mp4", f"{protocol}{private}"):
        mine = Path(name)
        mine.parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / mine, np.full((16, 32, 48, 3), 20, np.uint8))
        for source in (mine, str(mine)):
            assert decode_video(source, width=48, height=32).mean() < 60
        mine.unlink()
        with pytest.raises(ValueError, match="does not decode"):
            probe(mine)


def test_an_address_is_no_file(tmp_path, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for scheme in ("http", "https", "tcp", "udp", "rtmp", "rtsp", "ftp", "srt", "tls", "gopher"):
        with pytest.raises(ValueError, match=f"{scheme}://.*does not decode"):
            probe(f"{scheme}://127.0.0.1:{server}/a.mp4")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"a\.mp4: is not a file"):
        probe(tmp_path / "a.mp4")


def test_pictures_numbered_in_a_folder_are_no_video(tmp_path):
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (48, 32)).save(tmp_path / f"a{number}.png")
    for name in ("a%d.png", "a*.png", "a0.png"):
        with pytest.raises(ValueError, match="does not decode"):
            probe(tmp_path / name)


def test_no_container_that_points_elsewhere_is_tried():
    tried = set(video_source.CONTAINERS.split(","))
    pointing = "hls applehttp dash concat image2 image2pipe lavfi sdp rtsp rtp webm_dash_manifest mpjpeg imf"
    assert not tried & {*pointing.split(), "vapoursynth", "avisynth", "bluray", "dvdvideo"}


def test_a_link_in_the_place_of_a_new_video_is_not_followed(tmp_path):
    for name in (".a.mp4.partial", "a.mp4"):
        (tmp_path / name).symlink_to(tmp_path / "marker")
    write_video(tmp_path / "a.mp4", np.full((16, 32, 48, 3), 20, np.uint8))
    assert not (tmp_path / "marker").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4"]
