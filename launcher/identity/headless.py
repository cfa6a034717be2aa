"""DNS names under a headless Service, for the sources whose pods have predictable hostnames.

Kubernetes makes ``<hostname>.<subdomain>.<namespace>.svc.<cluster domain>`` where the pod's subdomain is the name of a
headless Service. A pod is told none of that by itself; with ``setHostnameAsFQDN: true`` its hostname is that name.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import ConfigError
from launcher.identity.source import Pod


@dataclass(frozen=True)
class Domain:
    """What comes after a pod's hostname in its DNS name."""

    service: str
    namespace: str
    cluster_domain: str
    service_from: str

    def name(self, host: str) -> str:
        return f"{host}.{self.service}.{self.namespace}.svc.{self.cluster_domain}"


@dataclass(frozen=True)
class PeerNames:
    """How the pods of a group are called; ``peers`` and ``namespace`` are empty where the leader alone was said."""

    leader: str
    leader_from: str
    peers: tuple[str, ...] = ()
    namespace: str = ""


def names(domain: Domain, base: str, first: int, size: int) -> PeerNames:
    """Of the pods ``<base>-<first>`` and on, the leader first."""
    peers = tuple(domain.name(f"{base}-{first + i}") for i in range(size))
    return PeerNames(peers[0], f"{base}-{first} and {domain.service_from}", peers, domain.namespace)


def domain(pod: Pod, other_service: tuple[str, str] = ("", "")) -> Domain | None:
    """The domain of this pod's names, or None where nothing names the Service.

    ``other_service`` is a Service name, and where it came from, to fall back on. Raises ConfigError where two sources
    disagree (one of the names then does not exist), or where the namespace is not known.
    """
    s = pod.settings
    full = _of_hostname(pod.hostname)
    if s.service:
        if "." in s.service:
            raise ConfigError(f"{s.said('service')} is not the name of a Service", "give its name only, with no domain")
        service, service_from = s.service, s.said("service")
        _same(service_from, service, "the Service", full.service if full else "", f"the hostname {pod.hostname}")
    elif full:
        service, service_from = full.service, full.service_from
    else:
        service, service_from = other_service
    if not service:
        return None
    return Domain(service, _namespace(pod, full), _cluster_domain(pod, full), service_from)


def _of_hostname(hostname: str) -> Domain | None:
    labels = hostname.rstrip(".").split(".")
    if len(labels) < 5 or labels[3] != "svc":
        return None
    return Domain(labels[1], labels[2], ".".join(labels[4:]), f"the hostname {hostname}")


def _namespace(pod: Pod, full: Domain | None) -> str:
    namespace, said = pod.namespace
    for other, other_said in (
        (pod.text("POD_NAMESPACE"), f"POD_NAMESPACE={pod.text('POD_NAMESPACE')}"),
        (full.namespace if full else "", f"the hostname {pod.hostname}"),
    ):
        if namespace:
            _same(said, namespace, "the namespace", other, other_said)
        else:
            namespace, said = other, other_said
    if not namespace:
        raise ConfigError(
            "the namespace of this pod is not known: neither --namespace nor POD_NAMESPACE is given, and no service "
            "account is mounted",
            "set POD_NAMESPACE by the downward API (fieldPath: metadata.namespace)",
        )
    return namespace


def _cluster_domain(pod: Pod, full: Domain | None) -> str:
    s = pod.settings
    if full is None:
        if "cluster_domain" in s.origins:
            return s.cluster_domain
        return of_search_list(pod.resolv_conf) or s.cluster_domain
    if "cluster_domain" in s.origins:
        _same(s.said("cluster_domain"), s.cluster_domain, "the domain", full.cluster_domain, f"hostname {pod.hostname}")
    return full.cluster_domain


def of_search_list(resolv_conf: str) -> str:
    """The cluster's domain, by what the kubelet writes: ``search NS.svc.DOMAIN svc.DOMAIN DOMAIN``; empty: none.

    Asked of the last such line, as resolv.conf(5) has it.
    """
    searched: list[str] = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if words[:1] == ["search"]:
            searched = [w.rstrip(".").lower() for w in words[1:]]
    for entry in searched:
        namespace, svc, domain = ([*entry.split(".", 2), "", ""])[:3]
        if svc == "svc" and namespace and domain and f"svc.{domain}" in searched:
            return domain
    return ""


def _same(said: str, value: str, what: str, other: str, other_said: str) -> None:
    if other and value != other:
        raise ConfigError(
            f"{said} contradicts {what} {other} from {other_said}",
            f"leave out the first, or make both {other}: names in {value} would never resolve to this pod",
        )
