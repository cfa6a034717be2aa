"""The cluster's DNS server, the rules that lose packets, and HTTP over any connection. Used by pods.py."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import random
import signal
import socket
import struct
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pod_sandbox import SYSTEM_PATH, Sandbox, until

# ARP passes, so that a cut in one direction leaves the other whole. Dropped here and not in the pod, where a send would
# fail with EPERM: nothing in the pod can tell that its packets are lost.
RULES = """
table bridge pods {
  set out { type ifname; }
  set in { type ifname; }
  chain from_pod { type filter hook prerouting priority -300; ether type { ip, ip6 } iifname @out drop; }
  chain to_pod { type filter hook postrouting priority 300; ether type { ip, ip6 } oifname @in drop; }
}
"""


@dataclass(frozen=True)
class Answer:
    """What an HTTP server said."""

    status: int
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


class Dns:
    """The cluster's DNS server. Unknown names do not exist (NXDOMAIN); a change is live when the call returns."""

    def __init__(self, node: Sandbox, gateway: str, folder: Path) -> None:
        self._node = node
        self._gateway = gateway
        self._records: dict[str, tuple[str, ...]] = {}
        self._hosts = folder / "dns"
        self._hosts.write_text("")
        options = [
            *("--keep-in-foreground", "--user=root", "--conf-file=/dev/null", "--pid-file="),
            *("--no-resolv", "--no-hosts", "--local=/#/", "--local-ttl=0", "--bind-interfaces"),
            *(f"--listen-address={gateway}", f"--addn-hosts={self._hosts}"),
        ]
        self._server = node.start(["dnsmasq", *options], {"PATH": SYSTEM_PATH}, folder / "dns.log")
        until(lambda: self.answers("ready.invalid") == (), 10, f"dnsmasq answers ({self._server.output()})")

    def set(self, name: str, *addresses: str) -> None:
        """Makes the name resolve to these addresses and no others."""
        self._records[name] = addresses
        self._publish(name)

    def remove(self, name: str) -> None:
        """Makes the name unknown."""
        self._records.pop(name, None)
        self._publish(name)

    def answers(self, name: str) -> tuple[str, ...]:
        """What the server says now (IPv4, sorted); empty for a name that does not exist."""
        with self._node.open_socket(socket.SOCK_DGRAM) as asking:
            asking.settimeout(1.0)
            asking.sendto(_dns_query(name), (self._gateway, 53))
            return _dns_addresses(asking.recv(4096))

    def address(self, host: str) -> str:
        """The host itself if it is an address, else what it resolves to; OSError for an unknown name."""
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
        answers = self.answers(host)
        if not answers:
            raise OSError(f"{host}: no such name in cluster DNS")
        return answers[0]

    def close(self) -> None:
        self._server.kill_all()
        self._server.wait(10)

    def _publish(self, name: str) -> None:
        lines = [f"{address} {known}\n" for known, addresses in self._records.items() for address in addresses]
        fresh = self._hosts.with_suffix(".new")
        fresh.write_text("".join(lines))
        fresh.rename(self._hosts)
        self._server.signal(signal.SIGHUP)
        wanted = tuple(sorted(self._records.get(name, ())))
        until(lambda: self.answers(name) == wanted, 5, f"DNS has {name} as {wanted}")


def request(
    connect: Callable[[str, int, float], socket.socket],
    url: str,
    data: Any = None,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 5.0,
) -> Answer:
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "localhost", parts.port or 80
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    connection.sock = connect(host, port, timeout)
    body = data if data is None or isinstance(data, str) else json.dumps(data)
    kind = {} if body is None else {"Content-Type": "application/json"}
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, {**kind, **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, response.read().decode(errors="replace"))
    except http.client.HTTPException as error:
        raise OSError(f"{url}: {error!r}") from error
    finally:
        connection.close()


def hardware_address(ip: str) -> str:
    """A hardware address made of the IP address: who takes that over is reachable, whatever ARP caches hold."""
    return "02:77:" + ":".join(f"{part:02x}" for part in ipaddress.IPv4Address(ip).packed)


def _dns_query(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    return (
        struct.pack(">HHHHHH", random.randrange(65536), 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    )


def _dns_addresses(message: bytes) -> tuple[str, ...]:
    """The A records of an answer to `_dns_query`: dnsmasq writes each name in it as a two-byte pointer."""
    count = struct.unpack_from(">H", message, 6)[0]
    at = message.index(b"\0", 12) + 5
    found = []
    for _ in range(count):
        kind, length = struct.unpack_from(">2xH6xH", message, at)
        if kind == 1:
            found.append(str(ipaddress.IPv4Address(message[at + 12 : at + 16])))
        at += 12 + length
    return tuple(sorted(found))
