"""DNS: resolves the leader's name and the pod's own name, and recognizes a NetworkPolicy in the way."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

from launcher.common.addresses import is_loopback
from launcher.errors import LauncherError
from launcher.network.names import is_literal, resolve
from launcher.preflight.finding import Finding, fail, ok, skipped, warn
from launcher.preflight.pod import Node

CONNECT_SECONDS = 1.5


def check_own(node: Node) -> Iterator[Finding]:
    """The pod's own name must not resolve to loopback: some libraries listen on the hostname's address."""
    name = socket.gethostname()
    try:
        found = resolve(name)
    except (OSError, LauncherError) as error:
        yield warn(
            "own name",
            f"the hostname {name} does not resolve: {getattr(error, 'strerror', None) or error}",
            "gloo and some engines look it up where they are not told an address; the launcher tells them",
            "leave /etc/hosts to the kubelet, or add the name there",
        )
        return
    if node.size > 1 and all(is_loopback(a) for a in found):
        yield ok("own name", f"{name} is {', '.join(found)} here: the launcher gives the engine the real address")
    else:
        yield ok("own name", f"{name} is {', '.join(found)}")


def check_leader(node: Node) -> Iterator[Finding]:
    """Forward DNS of the leader's name, then a connection to its group port."""
    who = node.identity
    if who is None or who.alone:
        yield skipped("leader", node.trouble.get("identity") or "alone: there is no other pod")
        return
    try:
        found = resolve(who.leader)
    except (OSError, LauncherError) as error:
        yield fail(
            "leader",
            f"{who.leader} does not resolve: {getattr(error, 'strerror', None) or error}",
            "the pods find each other by this name",
            "is the leader's pod there? Its headless Service needs publishNotReadyAddresses: true, and the "
            "StatefulSet's serviceName must be that Service",
        )
        return
    shown = who.leader if is_literal(who.leader) else f"{who.leader} is {', '.join(found)}"
    if who.is_leader:
        yield ok("leader", f"{shown}: this pod")
    else:
        yield judge_leader(shown, node.settings.group_port, connect(found, node.settings.group_port))


def judge_leader(shown: str, port: int, error: OSError | None) -> Finding:
    """Judge the result of a connection to the leader's group port."""
    if error is None:
        return ok("leader", f"{shown}; its group port {port} answers")
    if isinstance(error, ConnectionRefusedError):
        return warn(
            "leader",
            f"{shown}; port {port} refuses",
            "the pod is there and no launcher listens in it yet",
            "wait for its container, or compare --group-port on both",
        )
    why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return fail(
        "leader",
        f"{shown}; port {port}: {why}",
        "the name resolves and nothing answers: that is what a NetworkPolicy looks like (or a node that is lost)",
        "allow all ports between the pods of the group: engines use random ones too",
    )


def connect(addresses: Sequence[str], port: int, timeout: float = CONNECT_SECONDS) -> OSError | None:
    """None if one of the addresses accepts a connection, else why the last one did not."""
    last: OSError | None = None
    for address in addresses:
        try:
            socket.create_connection((address, port), timeout).close()
            return None
        except OSError as error:
            last = error
    return last
