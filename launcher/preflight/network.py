"""The network as the launcher has chosen it: address, interface, RDMA, and warnings about what the user set."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.preflight.finding import Finding, Level, fail, ok, skipped
from launcher.preflight.node import Node


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
        what, _, fix = warning.rpartition("; ")
        yield Finding(
            "rdma" if "NCCL_IB" in warning or "RDMA" in warning or "GID" in warning else "network",
            Level.WARN,
            what or warning,
            "collectives are slow, hang, or do not start",
            fix if what else "",
        )
