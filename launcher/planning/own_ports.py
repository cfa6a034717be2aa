"""Where the engine and the launcher listen, and whether a port is free there."""

from __future__ import annotations

import errno
import os

from launcher.common.addresses import is_loopback
from launcher.errors import ConfigError
from launcher.model import Plan
from launcher.settings import Settings, flag_of


def bind_address(settings: Settings, address: str = "") -> str:
    """Where an engine listens for callers by default: everywhere; under ``launcher local`` on the rank's address.

    ``address``: this pod's own; Services use its family. On IPv6 the result is ``::``, since servers by default accept
    IPv4 only; on IPv4 it is ``0.0.0.0``, since some servers (asyncio's) accept no IPv4 on ``::``.
    """
    own = settings.address or ""
    if is_loopback(own):
        return own
    return "::" if ":" in (own or address) else "0.0.0.0"


def listen_host(settings: Settings) -> str | None:
    """Where the launcher's own ports listen; None: on all addresses."""
    own = bind_address(settings)
    return None if own in ("0.0.0.0", "::") else own


def port_error(name: str, settings: Settings, error: OSError) -> ConfigError:
    flag = flag_of(name)
    why = os.strerror(error.errno) if error.errno else str(error)
    if error.errno == errno.EADDRINUSE:
        from launcher.node import listener

        owner = listener.of(getattr(settings, name), listen_host(settings) or "")
        why += f" by {owner}" if owner else ""
    return ConfigError(
        f"{settings.said(name)} cannot be used: {why}",
        f"is another launcher running here? Give another {flag} on every pod of the group",
    )


def taken_ports(plan: Plan, address: str) -> str:
    """The first port of the plan that is already in use, in words, with who uses it; empty: all are free."""
    if not plan.ports:
        return ""
    from launcher.node import leftovers, listener

    for port in plan.ports:
        if leftovers.busy_ports([port.number], address):
            owner = listener.of(port.number, address)
            by = f"{owner}, which is" if owner else "something that is"
            return f"port {port.number} ({port.name}) is in use on this pod by {by} not of this group"
    return ""
