"""When two names mean one pod, and what a name of a pod may look like."""

from __future__ import annotations

import re

from launcher.common.addresses import ANY, is_localhost
from launcher.errors import UNREPLACED, ConfigError

_IPV4 = re.compile(r"[0-9.]+")


def alike(one: str, other: str) -> bool:
    """Whether two configured names can mean one host: equal, or one is the other with its domain.

    Nothing is resolved here. An IP is like nothing but itself.
    """
    a, b = _plain(one), _plain(other)
    if a == b:
        return True
    if _is_ip(a) or _is_ip(b):
        return False
    return a.startswith(f"{b}.") or b.startswith(f"{a}.")


def same(one: str, other: str) -> bool:
    return _plain(one) == _plain(other)


def is_this_machine(name: str) -> bool:
    """Whether a name means the machine that asks: localhost, a loopback address, or none at all (0.0.0.0, ::)."""
    return is_localhost(name) or _plain(name) in ANY


def check(name: str, said: str) -> None:
    """Refuse what cannot be a host: a URL, a port, a list, spaces, a variable that nothing has replaced."""
    if "$" in name:
        raise ConfigError(
            f"{name!r} in {said} is a variable that nothing has replaced",
            UNREPLACED,
        )
    if not name or re.search(r"[\s,/\[\]]", name) or (":" in name and name.count(":") < 2):
        raise ConfigError(
            f"{name!r} in {said} is not a DNS name or an IP",
            "give bare names or IPs, with no scheme and no port; the port is --group-port on every pod",
        )


def _plain(name: str) -> str:
    return name.strip().rstrip(".").lower()


def _is_ip(name: str) -> bool:
    return ":" in name or bool(_IPV4.fullmatch(name))
