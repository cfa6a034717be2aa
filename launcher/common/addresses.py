"""Addresses as text: the loopback ones, IPv6 in brackets, and where a listening server is reached."""

from __future__ import annotations

ANY = ("0.0.0.0", "::")  #: "listen on all addresses"


def is_ipv6(address: str) -> bool:
    return ":" in address


def is_loopback(address: str) -> bool:
    """Whether an IP address is one of 127.0.0.0/8 (also as IPv6 shows it, ``::ffff:127.0.0.1``) or ``::1``."""
    plain = address.lower().removeprefix("::ffff:")
    return plain == "::1" or (plain.startswith("127.") and not plain.strip("0123456789."))


def is_localhost(name: str) -> bool:
    """Whether a name or an IP address means the machine on which it is used."""
    plain = name.strip().rstrip(".").lower()
    return plain == "localhost" or is_loopback(plain)


def bracketed(host: str) -> str:
    """A host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if is_ipv6(host) else host


def host_port(host: str, port: int | str) -> str:
    """``host:port``; an IPv6 address in brackets."""
    return f"{bracketed(host)}:{port}"


def from_inside(bind: str) -> str:
    """Where a server that listens on ``bind`` (empty: on all addresses) is reached from its own machine."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)
