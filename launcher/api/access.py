"""Access to the agent port: pure functions over a request's headers and its peer's address.

There are three levels:

- **open**: what `opened` leaves of /status: states and numbers, no text of an engine, no arguments, no paths;
- **details**: for bearers of the status token and, by ``--status-details``, for loopback or everybody;
- **actions**: a route that changes anything takes POST with the header ``X-Launcher-Action``, which another site's page
  cannot send through a browser, and must pass `acts`.

Loopback is convenient and proves little. A sidecar delivers other pods' requests from a loopback address, with
``hostNetwork`` every process of the node is on it, an engine fetches URLs that its users give, and a browser on a
port-forward runs pages of other sites. So a request counts as local only if its peer is on loopback, its Host is a
loopback name (against DNS rebinding), no header shows that it was forwarded, and none that another site's page made it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.common.addresses import is_loopback
from launcher.group.proof import same, status_token

ACTION = "X-Launcher-Action"
DETAILS = ("none", "loopback", "all")  #: who sees details without a token

#: The open part of /status. `launcher status`, other groups and roles may rely on it.
_FAILURE = ("epoch", "at", "age_s", "rank", "cause", "process", "exit_code", "served_s", "probably", "or_rank")
OPEN: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("phase", "ready", "epoch", "rank", "size", "group", "name", "source"), ()),
    **dict.fromkeys(("members_present", "restarts", "agent_port"), ()),
    "first_failure": _FAILURE,
    "latest_cause": _FAILURE,
    "members": ("rank", "state", "address", "last_seen_s"),
    "timeline": ("phase", "at", "seconds"),
}
#: Also open, for each member, where there is no token: `doctor --group` in a worker's pod compares the pods by it.
OPEN_WITHOUT_TOKEN = ("facts",)

#: Headers that a proxy adds; most proxies add more than one.
_FORWARDED = frozenset(
    {
        *("forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "client-ip"),
        *(
            "cf-connecting-ip",
            "fastly-client-ip",
            "x-request-id",
            "x-amzn-trace-id",
            "l5d-client-id",
            "l5d-dst-canonical",
        ),
    }
)
_FORWARDED_BEGIN = ("x-forwarded", "x-envoy-", "x-original-", "x-proxyuser-")
#: Istio's sidecar delivers other pods' requests from these.
_SIDECARS = ("127.0.0.6", "::6")
#: Interfaces of a node, which a pod's own network namespace does not have.
_NODES = ("veth", "cali", "cni", "flannel", "lxc", "cilium_", "docker", "podman", "cbr", "kube-", "azv", "eni", "gke")


@dataclass(frozen=True)
class Asker:
    """What a request shows of its sender."""

    peer: str
    headers: Mapping[str, str]
    query: str = ""  #: what follows the question mark

    @property
    def bearer(self) -> str:
        scheme, _, token = self.one("Authorization").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    @property
    def forwarded(self) -> bool:
        names = [name.lower() for name in self.headers]
        return any(name in _FORWARDED or name.startswith(_FORWARDED_BEGIN) for name in names)

    @property
    def host(self) -> str:
        """The host that was asked for, lower case, without the port."""
        text = self.one("Host").strip().lower()
        if text.startswith("["):
            return text[1:].partition("]")[0]
        return text.partition(":")[0]

    @property
    def of_another_site(self) -> bool:
        """Whether a browser says that a page of another site made this request."""
        if "-site" in self.one("Sec-Fetch-Site").lower():  # cross-site, same-site; else same-origin or none
            return True
        origin = self.one("Origin").lower()
        return bool(origin) and origin.partition("://")[2] != self.one("Host").strip().lower()

    def is_local(self, host_needed: bool) -> bool:
        """Whether it seems to come from this pod. Without ``host_needed`` Host may be missing, as in HTTP/1.0."""
        if not on_loopback(self.peer) or self.forwarded or self.of_another_site:
            return False
        host = self.host
        return (not host and not host_needed) or host.rstrip(".") == "localhost" or on_loopback(host)

    def one(self, name: str) -> str:
        """The value of a header. Several of one name are joined, and then pass none of the checks."""
        return ", ".join(value for key, value in _pairs(self.headers) if key.lower() == name.lower())


@dataclass(frozen=True)
class Permission:
    """``status`` 200: yes. Otherwise an HTTP status, and ``why`` in words with what to do."""

    status: int = 200
    why: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200


LEAKED = Permission(
    401,
    "this is the group's secret itself, which must never be sent: whoever saw this request has it. Replace the secret "
    "and send what `launcher status-token --token-file FILE` prints",
)
_YES = Permission()


def reads(asker: Asker, secrets: Collection[bytes], details: str) -> Permission:
    """May this request see the details of /status? 401: it sent the secret. 403: no, and it gets what is `OPEN`."""
    bearer = _bearer(asker, secrets)
    if bearer is not None and bearer.status != 403:
        return bearer
    if details == "all" or (details == "loopback" and asker.is_local(host_needed=False)):
        return _YES
    if bearer is not None:
        return bearer
    if details == "loopback" and on_loopback(asker.peer):
        return Permission(403, f"details are not shown: {_why_not_local(asker)}")
    ways = ["from the pod itself"] if details == "loopback" else []
    ways += ["with `Authorization: Bearer TOKEN` of `launcher status-token`"] if secrets else []
    ways += [] if secrets or ways else ["with --token-file or another --status-details"]
    return Permission(403, f"details only {' or '.join(ways)}")


def acts(
    asker: Asker, method: str, action: str, secrets: Collection[bytes], details: str, host_network: bool
) -> Permission:
    """May this request do ``action``? The one gate of every route that changes anything."""
    if method != "POST":
        return Permission(405, f"{action} takes POST")
    if asker.one(ACTION) != action:
        return Permission(403, f"send the header `{ACTION}: {action}`")
    if asker.of_another_site:
        return Permission(403, "a page of another site made this request")
    if not asker.host:
        return Permission(400, "the request has no Host, or more than one")
    bearer = _bearer(asker, secrets)
    if bearer is not None:
        return bearer
    token = "send `Authorization: Bearer TOKEN` of `launcher status-token`" if secrets else "it needs --token-file"
    if host_network:
        return Permission(403, f"with hostNetwork every process of the node is on loopback: {token}")
    if details == "none":
        return Permission(403, f"with --status-details none loopback is not believed: {token}")
    if not asker.is_local(host_needed=True):
        return Permission(403, f"{_why_not_local(asker)}: {token}")
    return _YES


def _bearer(asker: Asker, secrets: Collection[bytes]) -> Permission | None:
    """What the bearer token proves; None: there is none, or no secret to compare it with. Takes constant time."""
    token = asker.bearer
    if not token or not secrets:
        return None
    right = [same(token, status_token(secret)) for secret in secrets]
    leaked = [same(token, secret.decode("utf-8", "replace")) for secret in secrets]
    if any(leaked):
        return LEAKED
    return _YES if any(right) else Permission(403, "this is not the status token of this group's secret")


def _why_not_local(asker: Asker) -> str:
    if not on_loopback(asker.peer):
        return "it does not come from this pod"
    if asker.forwarded:
        return "it was forwarded by a proxy"
    if asker.of_another_site:
        return "a page of another site made this request"
    return f"Host is {asker.host[:100]!r}: ask localhost"


def on_loopback(address: str) -> bool:
    """Whether an IP address is a loopback address that no known sidecar uses."""
    return is_loopback(address) and address.lower().removeprefix("::ffff:") not in _SIDECARS


def opened(status: Mapping[str, Any], has_token: bool) -> dict[str, Any]:
    """The open part of a /status object."""
    shown: dict[str, Any] = {}
    members = OPEN["members"] if has_token else (*OPEN["members"], *OPEN_WITHOUT_TOKEN)
    for name, fields in {**OPEN, "members": members}.items():
        if name not in status:
            continue
        value = status[name]
        if fields and isinstance(value, list):
            shown[name] = [_only(fields, one) for one in value if isinstance(one, Mapping)]
        elif fields and isinstance(value, Mapping):
            shown[name] = _only(fields, value)
        elif not isinstance(value, (list, Mapping)):
            shown[name] = value
    return shown


def _only(fields: Iterable[str], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in fields if name in values}


def _pairs(headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """All headers; websockets' Headers lists several of one name only in ``raw_items``."""
    raw = getattr(headers, "raw_items", headers.items)
    yield from raw()


def shares_host_network(hosts: str, sysfs: str = "/sys") -> bool:
    """Whether loopback is the node's, by the first line of /etc/hosts, which the kubelet writes, else by interfaces."""
    if hosts.startswith("# Kubernetes-managed hosts file"):
        return hosts.startswith("# Kubernetes-managed hosts file (host network)")
    try:
        names = os.listdir(f"{sysfs}/class/net")
    except OSError:
        return True  # unknown: assume the worse
    return any(name.startswith(_NODES) for name in names)
