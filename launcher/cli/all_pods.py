"""`launcher status --all`: every pod behind a headless Service as one table, a line for each group.

The Service's name resolves to the addresses of all its pods. Each is asked for its /status; without the status token
another pod shows states and numbers, which is all that this table needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from launcher.api import client
from launcher.cli.status import ago, clean, columns, objects, show, verdict
from launcher.common.addresses import host_port
from launcher.errors import LauncherError, UnavailableError, UsageError
from launcher.model import Identity
from launcher.network import names

AT_ONCE = 32  #: pods that are asked at the same time
MOST_PODS = 4096


@dataclass(frozen=True)
class AskedPod:
    """What one address answered."""

    address: str
    status: Mapping[str, Any]  #: empty if there is none
    error: str = ""


def run(host: str, port: int, token_file: str | None, as_json: bool, watch: bool) -> int:
    """Print once, or every second. 0 if every group serves and every pod answers, 1 if not."""

    def look() -> tuple[str, bool]:
        pods = ask(addresses_of(host), port, token_file)
        well = all(not pod.error for pod in pods) and all(_leads(group).get("ready") for group in by_group(pods))
        return as_objects(pods) if as_json else table(host, pods), well

    return show(look, watch)


def service_of(identity: Identity) -> str:
    """The headless Service whose names the group uses: what follows the leader's hostname. Raises UsageError."""
    _, _, domain = identity.leader.partition(".")
    if not domain or names.is_literal(identity.leader):
        raise UsageError(
            f"the leader of this group is {identity.leader!r}, which tells no headless Service",
            "name it: launcher status --all SERVICE.NAMESPACE.svc",
        )
    return domain


def addresses_of(host: str) -> tuple[str, ...]:
    """Of all pods behind a name. Raises UnavailableError if it has no address now."""
    try:
        found = names.resolve(host)
    except OSError as error:
        raise UnavailableError(
            f"{host} does not resolve: {error.strerror}",
            "name the pods' headless Service; it has an address for each pod that is there",
        ) from None
    return tuple(sorted(found, key=lambda text: (":" in text, int(ip_address(text)))))


def ask(addresses: Sequence[str], port: int, token_file: str | None) -> list[AskedPod]:
    """What each pod says, in the order of the addresses."""

    def one(address: str) -> AskedPod:
        try:
            return AskedPod(address, client.fetch(f"http://{host_port(address, port)}", token_file))
        except client.NoAnswer as error:
            return AskedPod(address, {}, error.message.partition(": ")[2] or error.message)
        except UnavailableError as error:
            return AskedPod(address, {}, error.message)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(one, addresses[:MOST_PODS]))


def by_group(pods: Sequence[AskedPod]) -> list[list[Mapping[str, Any]]]:
    """The answers, group by group."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for pod in pods:
        if pod.status:
            groups.setdefault(clean(pod.status.get("group")), []).append(pod.status)
    return [groups[name] for name in sorted(groups)]


def _leads(group: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Who knows most of the group: rank 0, else any."""
    return next((status for status in group if status.get("rank") == 0), group[0])


def table(host: str, pods: Sequence[AskedPod]) -> str:
    groups, silent = by_group(pods), [pod for pod in pods if pod.error]
    serving = sum(1 for group in groups if _leads(group).get("ready"))
    count = f"{len(pods)} pod{'' if len(pods) == 1 else 's'}"
    head = f"{clean(host)}: {serving} of {len(groups)} groups serving, {count}"
    lines = [head + (f", {len(silent)} without an answer" if silent else "")]
    rows: list[tuple[str, ...]] = [("group", "state", "epoch", "restarts", "pods", "for", "trouble")]
    rows += [_row(group) for group in groups]
    if groups:
        lines += ["", *columns(rows, "  ")]
    lines += [f"  {pod.address}: {clean(pod.error)}" for pod in silent]
    return "\n".join(lines)


def _row(group: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    lead = _leads(group)
    timeline = objects(lead.get("timeline"))
    since = timeline[-1].get("seconds") if timeline else None
    lasts = ago(since) if isinstance(since, (int, float)) and 0 <= since < 1e12 else ""
    epoch = "" if lead.get("epoch") is None else clean(lead.get("epoch"))
    present = f"{len(group)}/{clean(lead.get('size'))}"
    return (*(clean(lead.get("group")), verdict(lead), epoch, clean(lead.get("restarts"))), present, lasts, _bad(group))


def _bad(group: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong: no leader, two pods of a rank, ranks in another state than their leader, the first failure."""
    lead = _leads(group)
    ranks = [status.get("rank") for status in group]
    found = ["rank 0 does not answer"] if 0 not in ranks else []
    found += [f"two pods are rank {clean(r)}" for r in dict.fromkeys(r for r in ranks if ranks.count(r) > 1)][:2]
    others = [s for s in group if s.get("phase") != lead.get("phase")]
    found += [f"rank {clean(s.get('rank'))} is {clean(verdict(s))}" for s in others[:4]]
    found += [f"and {len(others) - 4} more"] if len(others) > 4 else []
    failure = lead.get("first_failure")
    if isinstance(failure, Mapping):
        likely = "probably " if failure.get("probably") else ""
        code = "" if failure.get("exit_code") is None else f" {clean(failure.get('exit_code'))}"
        found.append(f"first failure: {likely}rank {clean(failure.get('rank'))} {clean(failure.get('cause'))}{code}")
    return "; ".join(found)


def as_objects(pods: Sequence[AskedPod]) -> str:
    return json.dumps(
        [{"address": p.address, "error": p.error or None, "status": dict(p.status) or None} for p in pods]
    )


def identity_here(args: Sequence[str], environ: Mapping[str, str]) -> Identity:
    """Who this pod is, by its own launcher's options. Raises UsageError where nothing tells."""
    from launcher.cli import sources
    from launcher.planning import steps

    try:
        settings, taken, _ = sources.parse(list(args), environ)
        return steps.identity_of(settings, taken)[0]
    except LauncherError as error:
        raise UsageError(
            f"nothing tells the headless Service here: {error.message}",
            "name it: launcher status --all SERVICE.NAMESPACE.svc",
        ) from None
