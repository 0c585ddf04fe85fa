"""Which servers may be asked and which environment variables may be sent to them as keys.

A recipe may be copied from somebody else. So a key's variable has a name that only keys have, what is
sent leaves the machine encrypted only, and no secret is taken from a URL, because URLs are shown in errors,
scores and logs.
The messages here repeat neither a URL nor a variable's name that was refused: either may be a secret.
"""

from __future__ import annotations

import ipaddress
import os
import re

EXAMPLE = "http://localhost:8000/v1 or https://example.com/v1"
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|\[[0-9a-f:.]+\])"
    r"(:(?P<port>[0-9]{1,5}))?(/[a-z0-9._~%:/-]*)?",
    re.ASCII | re.IGNORECASE,
)
"""What a URL may consist of, so that every reader finds the same host in it."""
_KEY_NAME = re.compile(r"[A-Z0-9_]*_API_KEY")
_KEY = re.compile(r"[!#-&(-\[\]-~]+")
"""Characters that JSON and repr() leave unescaped, so that a key is found in a reply that repeats it."""

KEY_PART = 8
HIDDEN = "[API key]"


def check_url(url: str, where: str) -> str:
    """`url`, when requests may be sent there; ValueError that begins with `where` otherwise.

    https goes to any host. http goes to this machine only: `localhost`, 127.0.0.0/8 or ::1, written plainly.
    A user name, password, query or fragment is refused.
    """
    if "@" in url:
        raise ValueError(
            f"{where} has a user name or password in it: leave them out, and name the environment variable "
            "that holds the key as api_key_env"
        )
    if "?" in url or "#" in url:
        raise ValueError(f"{where} has a query or fragment (? or #) in it: end it with its path, such as /v1")
    parts = _URL.fullmatch(url)
    if parts is None or not 0 < int(parts["port"] or 1) < 1 << 16:
        raise ValueError(f"{where} is no plain URL: give one such as {EXAMPLE}")
    host = parts["host"].lower()
    address = _address(host)
    if address is None and (host.startswith("[") or _ends_in_a_number(host)):
        raise ValueError(
            f"{where} has an address that is not written plainly: write it as 127.0.0.1 or [::1]"
        )
    if parts["scheme"].lower() == "http" and host != "localhost" and not _is_loopback(address):
        raise ValueError(
            f"{where} is http to another machine, where anybody on the way can read it: give an https URL "
            "(http is for localhost, 127.0.0.0/8 and [::1])"
        )
    return url


def check_key_name(name: str, where: str) -> str:
    """`name`, when it may name the environment variable of a key; ValueError that begins with `where`."""
    if _KEY_NAME.fullmatch(name) is None:
        raise ValueError(
            f"{where} must be the name of an environment variable that ends in _API_KEY, of capital letters, "
            "digits and _, such as OPENAI_API_KEY: no other variable is sent"
        )
    return name


def read_key(name: str, where: str) -> str:
    """The key in the environment variable `name`; ValueError without the key when there is none to send."""
    key = os.environ.get(check_key_name(name, where))
    if not key:
        raise ValueError(f"{where} names {name}, which is not set: export it on every node")
    if _KEY.fullmatch(key) is None:
        raise ValueError(
            f"{where} names {name}, which holds spaces, quotes or characters that no key has: set it again"
        )
    return key


def hide_key(text: str, key: str) -> str:
    """`text` with HIDDEN in place of the key and of every part of it of at least KEY_PART characters.

    Texts are cut before they are shown, so that a part may be what is left of a key. "" is no key.
    """
    if not key:
        return text
    size = min(KEY_PART, len(key))
    parts = "|".join(re.escape(key[begin : begin + size]) for begin in range(len(key) - size + 1))
    return re.sub(rf"(?:(?={parts}).)+.{{{size - 1}}}", HIDDEN, text.replace(key, HIDDEN), flags=re.DOTALL)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, by its usual spelling; None for a name."""
    try:
        if host.startswith("["):
            return ipaddress.IPv6Address(host[1:-1])
        return ipaddress.IPv4Address(host)
    except ValueError:
        return None


def _is_loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    """Not an IPv4 address within an IPv6 one: which machine it reaches differs between systems."""
    if isinstance(address, ipaddress.IPv4Address):
        return address in ipaddress.IPv4Network("127.0.0.0/8")
    return address == ipaddress.IPv6Address("::1")


def _ends_in_a_number(host: str) -> bool:
    """As 2130706433, 127.1 and 0x7f.1 do, which resolvers take for addresses."""
    return re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]) is not None
