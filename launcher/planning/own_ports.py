"""Where the engine and the launcher listen, and whether a port is free there."""

from __future__ import annotations

import os

from launcher.common.addresses import is_loopback
from launcher.errors import ConfigError
from launcher.model import Plan
from launcher.settings import Settings, flag_of


def bind_address(settings: Settings, address: str = "") -> str:
    """Where an engine listens for callers by default: everywhere; under ``launcher local`` on the rank's address.

    ``address``: this pod's own. Services reach the pod by its family: ``::`` on IPv6, since some servers then take no
    IPv4 (asyncio's), and those that are not told take IPv4 only.
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
    """The first port of the plan that somebody listens on already, in words; empty: all are free."""
    if not plan.ports:
        return ""
    from launcher.node import leftovers

    for port in plan.ports:
        if leftovers.busy_ports([port.number], address):
            return f"port {port.number} ({port.name})"
    return ""
