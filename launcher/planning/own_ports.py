"""Where the engine and the launcher listen, and whether a port is free there."""

from __future__ import annotations

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
    return ConfigError(
        f"{settings.said(name)} cannot be used: {os.strerror(error.errno) if error.errno else error}",
        f"is another launcher running here? Give another {flag} on every pod of the group",
    )


def taken_ports(plan: Plan, address: str) -> str:
    """The first port of the plan that is already in use, as ``port N (name)``; empty: all are free."""
    if not plan.ports:
        return ""
    from launcher.node import leftovers

    for port in plan.ports:
        if leftovers.busy_ports([port.number], address):
            return f"port {port.number} ({port.name})"
    return ""
