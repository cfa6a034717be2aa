"""Indexed Job, also as a child of a JobSet: JOB_COMPLETION_INDEX is the rank.

Kubernetes sets the hostname of such a pod to ``<job>-<index>`` (the pod's own name has a random end and no DNS name). A
JobSet's child Job is called ``<jobset>-<replicated job>-<job index>``, so the same rule gives one group a child Job;
its headless Service bears the JobSet's name. The number of completions is told to no pod, so ``--size`` must say it.
JOBSET_NAME is what JobSet's examples call the jobset-name annotation.
Sources: kubernetes.io "Job / Completion mode", jobset.sigs.k8s.io "Concepts".
"""

from __future__ import annotations

from launcher.errors import ConfigError
from launcher.identity import headless
from launcher.identity.source import Found, Pod

INDEX = "JOB_COMPLETION_INDEX"


def look(pod: Pod) -> Found | str:
    index = pod.number(INDEX)
    if index is None:
        return f"{INDEX} is not set"
    size = pod.wanted_size
    if size is None:
        raise ConfigError(
            f"{INDEX}={index} says that this is pod {index} of an Indexed Job, but Kubernetes does not tell its size",
            "give --size (the Job's completions and parallelism), or --size 1 to run an engine of its own in each pod",
        )
    if size == 1:
        return f"{INDEX}={index}, but {pod.wanted_size_said} makes each pod a group of its own"
    names = _names(pod, index, size)
    return Found(
        rank=index,
        rank_from=f"{INDEX}={index}",
        size=size,
        size_from=pod.wanted_size_said,
        leader=names.leader,
        leader_from=names.leader_from,
        name=pod.short_hostname,
        why=f"{INDEX}={index}, {pod.wanted_size_said}, leader from {names.leader_from}",
        peers=names.peers,
        namespace=names.namespace,
        fix="make the Job's completions and parallelism equal to --size",
    )


def _names(pod: Pod, index: int, size: int) -> headless.PeerNames:
    leader, leader_from = pod.wanted_leader
    if leader:
        return headless.PeerNames(leader, leader_from, pod.settings.peers)
    host = pod.short_hostname
    base = host.removesuffix(f"-{index}")
    if base == host or pod.host_network:
        raise ConfigError(
            f"the hostname {host} does not end in -{index}, as that of an Indexed Job's pod with {INDEX}={index} does, "
            "so the leader's name cannot be told (hostNetwork, or a hostname of its own?)",
            "give --leader",
        )
    jobset = pod.text("JOBSET_NAME")
    domain = headless.domain(pod, (jobset, f"JOBSET_NAME={jobset}"))
    if domain is None:
        raise ConfigError(
            f"{INDEX}={index}: nothing tells where {base}-0, the leader, is found",
            "give --service, the headless Service that the pod template's subdomain names (for a JobSet: the JobSet's "
            "name), or --leader",
        )
    return headless.names(domain, base, 0, size)
