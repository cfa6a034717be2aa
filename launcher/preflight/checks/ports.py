"""Are the ports that this pod will listen on free?"""

from __future__ import annotations

from collections.abc import Iterator

from launcher.node import leftovers, listener
from launcher.preflight.finding import Finding, fail, ok, skipped
from launcher.preflight.pod import Node
from launcher.settings import PORTS, flag_of


def check(node: Node) -> Iterator[Finding]:
    wanted = {port.number: port.name for port in node.plan.ports} if node.plan else {}
    if not node.agent:  # the agent itself listens on these two
        wanted[node.settings.agent_port] = "agent"
        if node.identity and node.identity.is_leader and not node.identity.alone:
            wanted[node.settings.group_port] = "group"
    if node.running:
        yield skipped("ports", "a launcher runs in this pod: what it and its engine listen on is theirs")
        return
    host = node.network.address if node.network else ""
    busy = leftovers.busy_ports(wanted, host)
    for number in busy:
        owner = listener.of(number, host)
        yield fail(
            "ports",
            f"port {number} ({wanted[number]}) is in use on this pod" + (f" by {owner}" if owner else ""),
            "the engine or the launcher cannot listen there",
            "end what holds it (`ss -ltnp`), or choose another with one of "
            f"{', '.join(map(flag_of, PORTS))}; with hostNetwork, other pods of the node count",
        )
    free = sorted(set(wanted) - set(busy))
    if free:
        yield ok("ports", "free: " + ", ".join(f"{number} ({wanted[number]})" for number in free))
