"""StatefulSet: the ordinal of the pod gives group and rank, the headless Service gives the names.

One set may hold several groups of ``--size`` pods: with ordinals from ``.spec.ordinals.start``, group =
(ordinal - start) // size and rank = (ordinal - start) % size. POD_INDEX is the label apps.kubernetes.io/pod-index by
the downward API (Kubernetes 1.28 and later).
"""

from __future__ import annotations

import re

from launcher.errors import ConfigError
from launcher.identity import headless
from launcher.identity.source import Found, Pod

# Kubernetes writes ordinals without leading zeros: "node-007" is no pod of a StatefulSet.
_ORDINAL = re.compile(r"(.+)-(0|[1-9][0-9]{0,8})")


def look(pod: Pod) -> Found | str:
    size = pod.wanted_size
    if not pod.in_kubernetes:
        return "not inside Kubernetes: none of KUBERNETES_SERVICE_HOST, POD_NAME and POD_INDEX is set"
    if size is None or size == 1:
        return "--size greater than 1 is not given"
    found = _ordinal(pod)
    if isinstance(found, str):
        return found
    set_name, ordinal, ordinal_from = found
    start = pod.settings.ordinal_start or 0
    if ordinal < start:
        raise ConfigError(
            f"ordinal {ordinal} from {ordinal_from} is below {pod.settings.said('ordinal_start')}",
            "give --ordinal-start the value of the StatefulSet's .spec.ordinals.start (0 if it has none)",
        )
    group, rank = divmod(ordinal - start, size)
    names = _names(pod, set_name, start + group * size, size, group)
    return Found(
        rank=rank,
        rank_from=f"ordinal {ordinal} ({ordinal_from})",
        size=size,
        size_from=pod.wanted_size_said,
        leader=names.leader,
        leader_from=names.leader_from,
        name=f"{set_name}-{ordinal}" if set_name else pod.name,
        why=f"ordinal {ordinal} from {ordinal_from}, {pod.wanted_size_said}: group {group}, rank {rank}; "
        f"leader from {names.leader_from}",
        peers=names.peers,
        namespace=names.namespace,
        waits_forever=True,
        warnings=_warnings(pod, group),
    )


def _ordinal(pod: Pod) -> tuple[str, int, str] | str:
    """The set's name, this pod's ordinal and where it came from; or why there is none."""
    variable = "POD_NAME" if pod.text("POD_NAME") else "the hostname"
    name = pod.text("POD_NAME") or pod.short_hostname
    named = _ORDINAL.fullmatch(name)
    index = pod.number("POD_INDEX")
    if index is None:
        if not named:
            return f"POD_INDEX is not set, and {variable} {name} does not end in an ordinal"
        if variable != "POD_NAME" and pod.host_network:
            raise ConfigError(
                f"the hostname {name} is the node's, since this pod uses the host network: its number is no ordinal",
                "set POD_NAME by the downward API (fieldPath: metadata.name)",
            )
        return named[1], int(named[2]), f"{variable} {name}"
    if named and variable == "POD_NAME" and int(named[2]) != index:
        raise ConfigError(
            f"POD_INDEX={index} contradicts POD_NAME={name}",
            "take both from the downward API: metadata.labels['apps.kubernetes.io/pod-index'] and metadata.name",
        )
    # A hostname that is not the pod's (hostNetwork) may end in any number; it is believed only where it agrees.
    set_name = named[1] if named and int(named[2]) == index else ""
    return set_name, index, f"POD_INDEX={index}"


def _names(pod: Pod, set_name: str, first: int, size: int, group: int) -> headless.PeerNames:
    domain = headless.domain(pod)
    if domain and set_name:
        return headless.names(domain, set_name, first, size)
    leader, leader_from = pod.wanted_leader
    if leader and group == 0:
        return headless.PeerNames(leader, leader_from, pod.settings.peers)
    if leader:
        raise ConfigError(
            f"{leader_from} cannot be the leader of group {group} too, in which this pod is by its ordinal",
            "several groups in one StatefulSet need names of their own: give --service instead, the set's headless "
            "Service",
        )
    if not set_name:
        raise ConfigError(
            f"the StatefulSet's name, and so the leader's, cannot be told from the hostname {pod.short_hostname}",
            "set POD_NAME by the downward API (fieldPath: metadata.name), or give --leader",
        )
    raise ConfigError(
        f"nothing tells where {set_name}-{first}, the leader of this pod's group, is found",
        "give --service, the headless Service that the StatefulSet's serviceName names",
    )


def _warnings(pod: Pod, group: int) -> tuple[str, ...]:
    if not pod.settings.group_id or group == 0:
        return ()
    return (
        f"{pod.settings.said('group_id')} is the same in all groups of this set (this pod is in group {group}): "
        "a pod of one group is not told apart from one of another; leave out --group-id",
    )
