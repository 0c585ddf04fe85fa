"""Whose address it is: one person's, a household's, or an IPv4 address in IPv6 clothes."""

import pytest

from megatv.network import network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("testclient", "testclient"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_household_is_one_network(address, network):
    assert network_of(address) == network


def test_ipv4_addresses_are_told_apart_by_a_server_that_listens_on_both():
    assert network_of("::ffff:192.0.2.1") != network_of("::ffff:192.0.2.2")
