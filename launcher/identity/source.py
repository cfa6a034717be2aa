"""What a source of identity may look at (``Pod``) and what it answers (``Found``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import ConfigError
from launcher.settings import Settings

_NUMBER = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class Found:
    """A source's answer. Each ``..._from`` says where the value came from, in the words of an error text."""

    rank: int
    rank_from: str
    size: int
    size_from: str
    leader: str
    leader_from: str
    name: str
    why: str
    peers: tuple[str, ...] = ()
    namespace: str = ""  #: of the group id, where it is not the Kubernetes namespace
    waits_forever: bool = False
    fix: str = ""  #: what to do where rank and size do not fit together
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pod:
    """Everything that a source may look at."""

    settings: Settings
    env: Mapping[str, str]
    hostname: str
    service_account_namespace: str = ""
    resolv_conf: str = ""  #: text of /etc/resolv.conf
    hosts: str = ""  #: text of /etc/hosts

    @property
    def host_network(self) -> bool:
        """Whether the kubelet says that this pod shares its node's network, and so its node's hostname."""
        return self.hosts.startswith("# Kubernetes-managed hosts file (host network)")

    def text(self, variable: str) -> str:
        """A variable's value. The downward API gives an empty one for a label that is absent: the same as not set."""
        return self.env.get(variable, "").strip()

    def number(self, variable: str, least: int = 0) -> int | None:
        """A variable that must be a whole number; None where it is not set or empty."""
        value = self.text(variable)
        if not value:
            return None
        if not _NUMBER.fullmatch(value):
            raise ConfigError(
                f"{variable}={value} is not a whole number",
                f"correct {variable}, or take it out of the environment where nothing sets it on purpose",
            )
        if int(value) < least:
            raise ConfigError(
                f"{variable}={value} is too small: {least} is the least", f"correct what sets {variable} in this pod"
            )
        return int(value)

    @property
    def short_hostname(self) -> str:
        """With ``setHostnameAsFQDN: true`` the hostname is the full DNS name."""
        return self.hostname.split(".", 1)[0]

    @property
    def name(self) -> str:
        return self.text("POD_NAME") or self.short_hostname

    @property
    def in_kubernetes(self) -> bool:
        return any(self.text(v) for v in ("KUBERNETES_SERVICE_HOST", "POD_NAME", "POD_INDEX"))

    @property
    def namespace(self) -> tuple[str, str]:
        """The namespace and where it came from; two empty strings where nothing tells it."""
        if self.settings.namespace:
            return self.settings.namespace, self.settings.said("namespace")
        if self.text("POD_NAMESPACE"):
            return self.text("POD_NAMESPACE"), f"POD_NAMESPACE={self.text('POD_NAMESPACE')}"
        if self.service_account_namespace:
            return self.service_account_namespace, f"the service account's namespace {self.service_account_namespace}"
        return "", ""

    @property
    def wanted_size(self) -> int | None:
        """What the user says the size is: ``--size``, or the count of ``--peers``."""
        return self.settings.size if self.settings.size is not None else (len(self.settings.peers) or None)

    @property
    def wanted_size_said(self) -> str:
        if self.settings.size is not None or not self.settings.peers:
            return self.settings.said("size")
        return f"{self.settings.said('peers')} ({len(self.settings.peers)} names)"

    @property
    def wanted_leader(self) -> tuple[str, str]:
        """What the user says the leader is, and how: ``--leader``, or the first of ``--peers``; else empty strings."""
        if self.settings.leader:
            return self.settings.leader, self.settings.said("leader")
        if self.settings.peers:
            return self.settings.peers[0], f"the first of {self.settings.said('peers')}"
        return "", ""
