"""Only keys are sent, and only to https or to this machine; what is refused is not repeated."""

import pytest

from megatv.curate.address import check_key_name, check_url, read_key
from megatv.curate.recipe import EndpointSettings

TAKEN = [
    "http://localhost:8000/v1",
    "http://LOCALHOST/v1/",
    "http://127.0.0.1:9/v1",
    "http://127.255.3.4/v1",
    "http://[::1]:8000/v1",
    "http://[0:0::1]/v1",
    "https://example.com",
    "https://api.example.com/v1/projects/a-b/locations/eu:1/%7Eme",
    "https://10.0.0.7:8443/v1",
    "https://[2001:db8::7]/v1",
    "HTTPS://Example.com/v1",
]
REFUSED = [
    "http://example.com/v1",
    "http://10.0.0.7/v1",
    "http://0.0.0.0/v1",
    "http://[::]/v1",
    "http://[2001:db8::1]/v1",
    "http://127.0.0.1.evil.com/v1",
    "http://localhost.evil.com/v1",
    "http://localhost./v1",
    "http://127.0.0.1./v1",
    "http://[::ffff:127.0.0.1]/v1",
    "http://[::ffff:8.8.8.8]/v1",
    "http://[::ffff:7f00:1]/v1",
    "http://[127.0.0.1]/v1",
    "http://[::1%25eth0]/v1",
    "http://2130706433/v1",
    "http://0x7f000001/v1",
    "http://0x7f.1/v1",
    "http://0177.0.0.1/v1",
    "http://127.1/v1",
    "https://0x08080808/v1",
    "https://134744072/v1",
    "http://①②⑦.0.0.1/v1",
    "http://ⓛocalhost/v1",
    "http://localho\u017ft/v1",
    "http://127\u30020.0.1/v1",
    "http://localhost\\.evil.com/v1",
    "http://localhost\t.evil.com/v1",
    "http://localhost\n/v1",
    "http:// localhost/v1",
    " http://localhost/v1",
    "http://localhost/v1\n",
    "http:///v1",
    "http://:8000/v1",
    "http:localhost/v1",
    "http:/localhost/v1",
    "//localhost/v1",
    "localhost:8000",
    "https://",
    "https://a..b/v1",
    "https://-a.b/v1?",
    "https://example.com:0/v1",
    "https://example.com:65536/v1",
    "https://example.com:99999999999999999999/v1",
    "https://example.com:8\u0664/v1",
    f"https://{'a' * 64}.com/v1",
    "ftp://localhost/v1",
    "file:///etc/passwd",
    "",
]
SECRET = [
    "https://me:hunter2@example.com/v1",
    "https://hunter2@example.com/v1",
    "http://localhost@evil.com/hunter2",
    "http://localhost:8000@evil.com/hunter2",
    "https://example.com/v1?key=hunter2",
    "https://example.com/v1#hunter2",
    "https://example.com?hunter2",
    "ftp://hunter2:x@example.com",
    "https://example.com/v1/hunter2?",
    "http://example.com/v1/hunter2",
    "localhost/hunter2",
]


@pytest.mark.parametrize("url", TAKEN)
def test_addresses_that_may_be_asked(url):
    assert check_url(url, "url") == url and EndpointSettings(url, "m").url == url


@pytest.mark.parametrize("url", [*REFUSED, *SECRET])
def test_other_addresses_are_refused_in_one_sentence_that_does_not_repeat_them(url):
    with pytest.raises(ValueError, match=r"^endpoint\.url (is|has) ") as caught:
        EndpointSettings(url, "m")
    said = str(caught.value)
    assert "hunter2" not in said and "evil" not in said and "\n" not in said


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "MY_2_API_KEY", "_API_KEY"])
def test_names_that_a_key_may_have(name):
    assert check_key_name(name, "k") == name


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "HOME", "API_KEYS", "X_API_KEY_ID", "x_API_KEY", "X-API_KEY", "X_API_KEY\n",
     "API_KEY", "É_API_KEY", "PATH=X_API_KEY", "", "sk-hunter2"],
)  # fmt: skip
def test_no_other_variable_is_sent(name, monkeypatch):
    with pytest.raises(
        ValueError, match=r"^endpoint\.api_key_env must be the name of .* ends in _API_KEY"
    ) as caught:
        EndpointSettings("https://example.com/v1", "m", api_key_env=name)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["hunter2\n", "hunter 2", "hünter2", "hunter2\r\nX-Other: 1", 'hunter2"', "hunter2\\"]
)
def test_a_key_that_is_none_is_not_repeated(key, monkeypatch):
    monkeypatch.setenv("SEER_API_KEY", key)
    with pytest.raises(ValueError, match="k names SEER_API_KEY, which holds spaces") as caught:
        read_key("SEER_API_KEY", "k")
    assert "nter" not in str(caught.value)


def test_a_key_is_read_when_it_is_set(monkeypatch):
    monkeypatch.setenv("SEER_API_KEY", "sk-a.B_9~+/=")
    assert read_key("SEER_API_KEY", "k") == "sk-a.B_9~+/="
    monkeypatch.delenv("SEER_API_KEY")
    with pytest.raises(ValueError, match="k names SEER_API_KEY, which is not set"):
        read_key("SEER_API_KEY", "k")
