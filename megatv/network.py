"""From whose network a request comes, so that limits hold for a household however many addresses it has."""

from __future__ import annotations

import functools
import ipaddress

HOUSEHOLD_BITS = 64
"""Of an IPv6 address: a provider gives each customer at least one such network (RFC 6177)."""


@functools.lru_cache(maxsize=4096)
def network_of(address: str | None) -> str:
    """An IPv4 address, or the first 64 bits of an IPv6 address; anything else is returned as it is.

    A server that listens on `::` sees IPv4 addresses within IPv6 ones (::ffff:192.0.2.1, RFC 4291, 2.5.5.2).
    """
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return address or ""
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            rest = 128 - HOUSEHOLD_BITS
            return f"{ipaddress.IPv6Address(int(ip) >> rest << rest)}/{HOUSEHOLD_BITS}"
        ip = ip.ipv4_mapped
    return str(ip)
