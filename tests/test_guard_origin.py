"""`Origin` is compared whole: what merely begins, ends or continues like the server's own page is foreign."""

from __future__ import annotations

import pytest

from megatv.guard import own_names, refusal


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "localhost"])
def test_origin_is_compared_whole(host: str) -> None:
    def welcome(origin: str) -> bool:
        headers = {b"host": host.encode(), b"origin": origin.encode()}
        return refusal(headers, own_names("localhost")) is None

    assert welcome(f"http://{host}")
    for origin in (
        f"http://evil{host}",
        f"http://evil.{host}",
        f"http://evil@{host}",
        f"http://{host}.evil.example",
        f"http://{host}1",
        f"http://{host[:-1]}",
        f"http://evil.example/http://{host}",
        f"http://{host}@evil.example",
        f"http://{host}/",
        host,
    ):
        assert not welcome(origin), origin
