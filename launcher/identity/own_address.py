"""The IP that this pod was told is its own: ``--address``, else POD_IP, else the first of POD_IPS.

POD_IP is status.podIP by the downward API. Nothing is looked up here: without it, `network` finds the address by route.
"""

from __future__ import annotations

from launcher.errors import ConfigError
from launcher.identity.source import Pod


def own_address(pod: Pod) -> str | None:
    if pod.settings.address:
        return _checked(pod.settings.address, pod.settings.said("address"))
    if pod.text("POD_IP"):
        return _checked(pod.text("POD_IP"), f"POD_IP={pod.text('POD_IP')}")
    first = pod.text("POD_IPS").split(",")[0].strip()
    return _checked(first, f"POD_IPS={pod.text('POD_IPS')}") if first else None


def _checked(address: str, said: str) -> str:
    import ipaddress  # costs milliseconds at every start, and most starts are not told an address

    fix = "give the pod's own IP (fieldPath: status.podIP), or leave it out to have it found by route"
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise ConfigError(f"{said} is not an IP address", fix) from None
    if parsed.is_unspecified or parsed.is_multicast:
        raise ConfigError(f"{said} is no address of one pod", fix)
    return address
