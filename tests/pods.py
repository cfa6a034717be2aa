"""Pods as network namespaces of one machine, for tests that need real processes, addresses, DNS and broken networks.

    with Cluster() as cluster:
        leader, worker = cluster.pod("engine-0"), cluster.pod("engine-1")
        process = leader.start(["python3", "-m", "http.server", "80"])
        until(lambda: worker.http(f"http://{leader.ip}/").status == 200, 10)
        worker.drop("in")
        process.kill_all()

A `Cluster` is a network namespace of its own with a bridge (10.77.n.0/24) and dnsmasq as cluster DNS, whose records a
test sets, changes and removes. A `Pod` is what Kubernetes calls a sandbox: own eth0, hostname, /dev/shm, /tmp,
/etc/hosts and /etc/resolv.conf; what is started in it is PID 1 of a new PID namespace with its own /proc, as a
container is, and may be started again. The rest of the file system is the machine's. No route leads out of the
cluster.

Nothing is left behind, even by a run that is killed: every namespace is held by a process that ends with its creator
(see pod_inside.py), and interfaces, mounts and processes go with their namespaces. Two kinds of folder could stay (a
temporary one, a memory cgroup); their names start with `launcher-pods-` and the creator's process id, and the next
run removes those of dead creators.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tests.pod_network import RULES, Answer, Dns, hardware_address, request
from tests.pod_sandbox import (
    PREFIX,
    ROOT,
    SYSTEM_PATH,
    Memory,
    PodError,
    PodProcess,
    Process,
    Sandbox,
    sweep,
    until,
)

__all__ = [
    "ROOT",
    "Answer",
    "Cluster",
    "Direction",
    "Dns",
    "Pod",
    "PodError",
    "PodProcess",
    "Process",
    "install_debian_packages",
    "until",
    "why_not",
]

PACKAGES = ("iproute2", "dnsmasq-base", "nftables")

Direction = Literal["in", "out", "both"]

_numbers = itertools.count(1)


def why_not() -> str | None:
    """Why pods cannot be made here, for a test's skip reason; None where they can. Makes one empty cluster to know."""
    if not sys.platform.startswith("linux"):
        return f"pods need Linux namespaces, this is {sys.platform}"
    if os.geteuid() != 0:
        return "pods need root"
    missing = [name for name in ("ip", "nft", "dnsmasq") if shutil.which(name, path=SYSTEM_PATH) is None]
    if missing:
        return f"pods need {', '.join(missing)}: apt-get install {' '.join(PACKAGES)}, or `python -m tests.pods`"
    return _trial()


@functools.cache
def _trial() -> str | None:
    try:
        with Cluster() as cluster:
            cluster.pod("trial").exec(["true"])
    except (PodError, OSError, subprocess.SubprocessError) as error:
        return f"no pods on this machine: {error}"
    return None


def install_debian_packages() -> None:
    """Installs what `why_not` may find missing. Needs root and apt-get; `apt-get update` is the caller's."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], check=True, env=environment
    )


class Cluster:
    """A network of pods with its DNS. A context manager; all in it ends with it.

    `shared` are folders under /tmp that pods shall see too: each pod has its own /tmp, through which this checkout,
    this interpreter and the cluster's own `folder` are seen.
    """

    def __init__(self, shared: Iterable[Path | str] = (), service: str = "engine", namespace: str = "default") -> None:
        self.service = service
        self.namespace = namespace
        self._shared = [str(path) for path in shared]
        self._pods: dict[str, Pod] = {}
        self._veths = itertools.count(1)
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Cluster:
        sweep()
        with contextlib.ExitStack() as closing:
            number = next(_numbers)
            name = f"{PREFIX}{os.getpid()}-{number}-"
            self.folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix=name)))
            self._lifeline, keep = os.pipe()
            closing.callback(os.close, self._lifeline)
            closing.callback(os.close, keep)
            # Two clusters never meet, so equal numbers do no harm; different ones make logs easier to read.
            self.subnet = ipaddress.IPv4Network(f"10.77.{(os.getpid() + number) % 254 + 1}.0/24")
            self.gateway = str(self.subnet[1])
            self._node = self._sandbox("node", tmpfs={}, files={})
            closing.callback(self._node.close)
            self._node.configure(
                "link set lo up",
                # A hub, not a switch: what a bridge learns of an address is wrong once another pod has it. With a
                # hardware address of its own: else it takes the lowest of its ports', and when a new pod's is lower,
                # the pods that know the gateway by the former one reach no DNS until their ARP entries have expired.
                f"link add br0 address {hardware_address(self.gateway)} type bridge ageing_time 0",
                f"address add {self.gateway}/24 dev br0",
                "link set br0 up",
            )
            self._node.run(["nft", "-f", "-"], stdin=RULES)
            self.dns = Dns(self._node, self.gateway, self.folder)
            closing.callback(self.dns.close)
            closing.callback(self._close_pods)
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def pod(
        self,
        name: str,
        *,
        ip: str | None = None,
        resolvable: bool = True,
        hostname: str | None = None,
        shm_mib: int = 512,
        memory_limit: int | None = None,
    ) -> Pod:
        """A new pod.

        `resolvable` gives it a DNS record at once; `memory_limit` in bytes needs a writable memory cgroup.
        """
        if name in self._pods:
            raise PodError(f"there is a pod {name} already; close it first")
        pod = Pod(self, name, ip or self._free_address(), hostname or name, shm_mib, memory_limit)
        self._pods[name] = pod
        if resolvable:
            self.dns.set(pod.fqdn, pod.ip)
        return pod

    def fqdn(self, name: str) -> str:
        """The name of a pod behind the cluster's headless Service."""
        return f"{name}.{self.service}.{self.namespace}.svc.cluster.local"

    def connect(self, host: str, port: int, timeout: float = 5.0) -> socket.socket:
        """A TCP connection to an address or a name in cluster DNS, from outside the pods as a gateway would make it."""
        return self._node.connect(self.dns.address(host), port, timeout)

    def http(self, url: str, **options: Any) -> Answer:
        """An HTTP request from outside the pods; the options are those of `Pod.http`."""
        return request(self.connect, url, **options)

    def _sandbox(self, hostname: str, tmpfs: Mapping[str, str], files: Mapping[str, str]) -> Sandbox:
        seen = [str(self.folder), *self._shared]
        return Sandbox(self._lifeline, self.folder / "sandbox.log", seen, hostname, tmpfs, files)

    def _free_address(self) -> str:
        used = {pod.ip for pod in self._pods.values()}
        return next(str(address) for address in list(self.subnet.hosts())[9:] if str(address) not in used)

    def _close_pods(self) -> None:
        for pod in list(self._pods.values()):
            pod.close()


class Pod:
    """One pod. Made by `Cluster.pod`; a context manager too, for one that ends before its cluster."""

    def __init__(
        self, cluster: Cluster, name: str, ip: str, hostname: str, shm_mib: int, memory_limit: int | None
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.ip = ip
        self.hostname = hostname
        self.fqdn = cluster.fqdn(name)
        self._veth = f"v{next(cluster._veths)}"
        self._logs = itertools.count(1)
        self._started: list[PodProcess] = []
        self._memory = None if memory_limit is None else Memory(f"{cluster.folder.name}-{name}", memory_limit)
        self.folder = cluster.folder / self._veth
        self.folder.mkdir()
        (self.folder / "hostname").write_text(f"{hostname}\n")
        (self.folder / "resolv.conf").write_text(
            f"nameserver {cluster.gateway}\n"
            f"search {cluster.namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        )
        self._write_hosts()
        self._sandbox = cluster._sandbox(
            hostname,
            tmpfs={"/dev/shm": f"size={shm_mib}m,mode=1777", "/tmp": "mode=1777"},
            files={f"/etc/{name}": str(self.folder / name) for name in ("hosts", "resolv.conf", "hostname")},
        )
        cluster._node.configure(
            f"link add {self._veth} type veth peer name eth0 address {hardware_address(ip)} netns {self._sandbox.pid}",
            f"link set {self._veth} master br0",
            f"link set {self._veth} up",
        )
        self._sandbox.configure(
            "link set lo up",
            f"address add {ip}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {cluster.gateway}",
        )

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """The least a container has: PATH (this interpreter's folder first), HOME (the pod's own), HOSTNAME, LANG."""
        path = f"{Path(sys.executable).parent}:{SYSTEM_PATH}"
        return {"PATH": path, "HOME": "/tmp/home", "HOSTNAME": self.hostname, "LANG": "C.UTF-8"}

    def start(
        self,
        argv: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        *,
        stdout: Path | None = None,
        cwd: Path | str = "/tmp",
        beside: PodProcess | None = None,
    ) -> PodProcess:
        """Starts a program as PID 1 of the pod.

        `env` is added to `environment`; what it writes goes to the file `stdout`, else to one of ours. A pod may start
        several, each with its own PID namespace, as containers of a pod have; or one `beside` another in its PID
        namespace, as `kubectl exec` does, and then it is not PID 1. Raises PodError if it cannot be executed.
        """
        log = stdout or self.folder / f"log-{next(self._logs)}"
        environment = {**self.environment, **(env or {})}
        limits = [] if self._memory is None else [str(self._memory.entrance)]
        started = self._sandbox.start(
            [str(word) for word in argv], environment, log, cwd=str(cwd), cgroups=limits, beside=beside
        )
        self._started.append(started)
        return started

    def exec(
        self,
        argv: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        *,
        timeout: float = 30.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a short command beside the newest running program (its PID namespace and /proc), or in the bare sandbox.

        stdout holds both streams. With `check`, an exit code other than 0 is a PodError with that text.
        """
        words = [str(word) for word in argv]
        log = self.folder / f"exec-{next(self._logs)}"
        running = next((one for one in reversed(self._started) if one.returncode is None), None)
        environment = {**self.environment, **(env or {})}
        process = self._sandbox.start(words, environment, log, beside=running)
        try:
            code = process.wait(timeout)
        finally:
            process.kill_all()
        if check and code != 0:
            raise PodError(f"{self.name}: {' '.join(words)}: exit code {code}: {process.output().strip()}")
        return subprocess.CompletedProcess(words, code, process.output(), "")

    def connect(self, host: str, port: int, timeout: float = 5.0) -> socket.socket:
        """A TCP connection made inside the pod's network, to an address or a name in cluster DNS; the test's to use."""
        return self._sandbox.connect(self.cluster.dns.address(host), port, timeout)

    def http(self, url: str, **options: Any) -> Answer:
        """An HTTP request from inside the pod; `http://localhost:PORT/` is the pod's own.

        Options: data (str or a JSON value, which makes it a POST), method, headers, timeout (5 s). OSError when there
        is no answer; any status is an answer.
        """
        return request(self.connect, url, **options)

    def processes(self) -> list[Process]:
        """Every process of every program that was started here."""
        return list({process.pid: process for started in self._started for process in started.processes()}.values())

    def freeze(self) -> None:
        """Stops (SIGSTOP) every process here, as on a frozen node.

        The kernel still answers for them (connections open, pings return): cut the link too where it should not.
        """
        until(lambda: all(self._each(signal.SIGSTOP)), 10, f"every process of {self.name} is stopped")

    def thaw(self) -> None:
        """Lets them go on."""
        self._each(signal.SIGCONT)

    def link_down(self) -> None:
        """Pulls the cable. eth0 keeps its address; connections stall, after seconds ARP gives up (no route to host)."""
        self.cluster._node.configure(f"link set {self._veth} down")

    def link_up(self) -> None:
        """Plugs it in again."""
        self.cluster._node.configure(f"link set {self._veth} up")

    def drop(self, direction: Direction = "both") -> None:
        """Loses every IP packet from ("out") or to ("in") the pod, silently; ARP passes."""
        for way in _ways(direction):
            self.cluster._node.run(["nft", "add", "element", "bridge", "pods", way, f"{{ {self._veth} }}"])

    def undrop(self, direction: Direction = "both") -> None:
        """Ends what `drop` began."""
        for way in _ways(direction):
            # Adding first makes the removal of what is not there harmless.
            self.cluster._node.run(["nft", "add", "element", "bridge", "pods", way, f"{{ {self._veth} }}"])
            self.cluster._node.run(["nft", "delete", "element", "bridge", "pods", way, f"{{ {self._veth} }}"])

    def change_address(self, ip: str) -> None:
        """Gives the pod another address, in eth0 and /etc/hosts. Its DNS record is for the test to change."""
        old, self.ip = self.ip, ip
        self._sandbox.configure(
            # The old one first: where it was the first of its subnet, the kernel removes the others with it.
            f"address delete {old}/24 dev eth0",
            f"link set eth0 address {hardware_address(ip)}",
            f"address add {ip}/24 dev eth0",
            f"route replace default via {self.cluster.gateway}",
        )
        self._write_hosts()

    def give_up_name(self) -> None:
        """As one that was deleted by force on a node that nobody reaches: another may be made of its name, and this one
        runs on."""
        taken = self.cluster._pods
        del taken[self.name]
        self.name = next(name for n in itertools.count(1) if (name := f"{self.name} (former {n})") not in taken)
        taken[self.name] = self

    def memory_peak(self) -> int:
        """The most memory that the pod held at once, in bytes. Needs `memory_limit`."""
        if self._memory is None:
            raise PodError(f"pod {self.name} was made without memory_limit")
        return self._memory.peak()

    def close(self) -> None:
        """Ends the pod with all in it. Its DNS record stays, as one does for a while, until the test removes it."""
        if self.cluster._pods.get(self.name) is not self:
            return
        del self.cluster._pods[self.name]
        with contextlib.ExitStack() as closing:  # each is done, whatever becomes of the others
            if self._memory is not None:
                closing.callback(self._memory.remove)
            closing.callback(self._sandbox.close)
            closing.callback(self.cluster._node.configure, f"link delete {self._veth}")
            for process in self._started:
                closing.callback(process.kill_all)

    def _each(self, number: signal.Signals) -> list[bool]:
        found = self.processes()
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        return [process.state in "TZ" for process in found]

    def _write_hosts(self) -> None:
        # In place: the pod sees this very file, not its name.
        text = f"127.0.0.1\tlocalhost\n{self.ip}\t{self.fqdn}\t{self.hostname}\n"
        (self.folder / "hosts").write_text(text)


def _ways(direction: Direction) -> tuple[str, ...]:
    return ("in", "out") if direction == "both" else (direction,)


if __name__ == "__main__":
    install_debian_packages()
    print(why_not() or "pods can be made here")
