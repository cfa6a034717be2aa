"""The network that the launcher chose: address, interface, RDMA, and warnings about the user's settings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.preflight.finding import Finding, Level, fail, ok, skipped
from launcher.preflight.pod import Node

_VARIABLE = re.compile(r"([A-Z][A-Z0-9_]+)=")  # a warning about a variable starts with its name


def check(node: Node) -> Iterator[Finding]:
    if "network" in node.trouble:
        message, _, fix = node.trouble["network"].partition("\n  fix: ")
        yield fail("network", message, "collectives have no way to the other pods", fix)
        return
    if node.network is None:
        yield skipped("network", node.trouble.get("identity") or "alone: no other pod, nothing to choose")
        return
    found = node.network
    held = found.facts.get("interface")
    on = f" on {held} (MTU {found.facts.get('mtu') or '?'})" if held else ""
    yield ok("network", f"{found.address}{on}: {found.why}", found.facts)
    for note in found.notes:
        yield ok("rdma", note.removeprefix("RDMA: "))
    for warning in found.warnings:
        about = "rdma" if any(word in warning for word in ("NCCL_IB", "RDMA", "GID")) else "network"
        own = _VARIABLE.match(warning)
        fix = f"take {own[1]} out of the environment: the launcher then finds the value itself" if own else ""
        yield Finding(about, Level.WARN, warning, "collectives are slow, hang, or do not start", fix)
