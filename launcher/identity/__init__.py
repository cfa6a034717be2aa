"""Who am I? The identity of a pod, from the most specific source that knows it.

The order is explicit, lws, job, slurm, statefulset, alone. The first source that applies decides and the
lower ones are not consulted, because a more specific source may look like a less specific one: an LWS leader is called
``name-1`` and is rank 0 all the same. What the user said on the side (``--rank``, ``--size``, ``--leader``,
``--peers``) is then compared with what the source says, and a difference is an error, never a silent choice.

Everything here is a pure function of settings, environment and hostname. No file, no socket, no clock may enter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from launcher.errors import ConfigError
from launcher.identity import agreement, alone, explicit, job, lws, names, slurm, statefulset
from launcher.identity.own_address import own_address
from launcher.identity.source import Found, Pod
from launcher.model import Identity, SourceReport
from launcher.settings import Settings

#: Each answers with what it found, or with why it does not apply.
SOURCES: tuple[tuple[str, Callable[[Pod], Found | str]], ...] = (
    ("explicit", explicit.look),
    ("lws", lws.look),
    ("job", job.look),
    ("slurm", slurm.look),
    ("statefulset", statefulset.look),
)


def identify(
    settings: Settings,
    env: Mapping[str, str],
    hostname: str,
    service_account_namespace: str = "",
    resolv_conf: str = "",
    hosts: str = "",
) -> tuple[Identity, tuple[SourceReport, ...], tuple[str, ...]]:
    """This pod's identity, why each source did or did not apply, and warnings in words.

    ``service_account_namespace`` is the text of ``/var/run/secrets/kubernetes.io/serviceaccount/namespace`` where the
    caller could read it; ``resolv_conf`` and ``hosts`` are those of /etc/resolv.conf and /etc/hosts. Raises ConfigError
    where sources contradict what the user said, or cannot be read.
    """
    pod = Pod(settings, env, hostname.strip(), service_account_namespace.strip(), resolv_conf, hosts)
    agreement.check_settings(pod)
    source, found, reports = _first(pod)
    agreement.check(pod, source, found)
    address = own_address(pod)
    _check_leader(found, address)
    identity = Identity(
        group=settings.group_id or _group(found.namespace or pod.namespace[0], found.leader),
        rank=found.rank,
        size=found.size,
        name=found.name,
        leader=found.leader,
        source=source,
        peers=found.peers or settings.peers,
        address=address,
        waits_forever=found.waits_forever,
    )
    return identity, reports, found.warnings


def _check_leader(found: Found, address: str | None) -> None:
    """A loopback leader is this very machine: right under `launcher local`, whose ranks have loopback addresses."""
    if found.rank > 0 and names.is_this_machine(found.leader) and not (address and names.is_this_machine(address)):
        raise ConfigError(
            f"rank {found.rank}: {found.leader_from} is this machine itself, where no rank 0 runs",
            "give the name or IP of rank 0's machine; to run all ranks on this machine, use `launcher local --size "
            f"{found.size}`, or give each rank an --address of its own (127.0.0.{found.rank + 1} here)",
        )


def _first(pod: Pod) -> tuple[str, Found, tuple[SourceReport, ...]]:
    reports: list[SourceReport] = []
    decided: tuple[str, Found] | None = None
    for name, look in SOURCES:
        if decided:
            reports.append(SourceReport(name, False, f"not consulted: {decided[0]} decided"))
            continue
        answer = look(pod)
        if isinstance(answer, Found):
            decided = (name, answer)
            reports.append(SourceReport(name, True, answer.why))
        else:
            reports.append(SourceReport(name, False, answer))
    if decided:
        reports.append(SourceReport("alone", False, f"not consulted: {decided[0]} decided"))
        return (*decided, tuple(reports))
    found = alone.look(pod, tuple(reports))
    reports.append(SourceReport("alone", True, found.why))
    return "alone", found, tuple(reports)


def _group(namespace: str, leader: str) -> str:
    return f"{namespace}/{leader}" if namespace else leader
