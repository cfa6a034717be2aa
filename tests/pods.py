"""Pods as network namespaces of one machine, for tests that need real processes, addresses, DNS and broken networks.

    with Cluster() as cluster:
        leader, worker = cluster.pod("engine-0"), cluster.pod("engine-1")
        process = leader.start(["python3", "-m", "http.server", "80"])
        until(lambda: worker.http(f"http://{leader.ip}/").status == 200, 10)
        worker.drop("in")
        process.kill_all()

A `Cluster` is a network namespace of its own with a bridge (10.77.n.0/24) and dnsmasq as cluster DNS, whose records a test sets, changes
and removes. A `Pod` is what Kubernetes calls a sandbox: own eth0, hostname, /dev/shm, /tmp, /etc/hosts and /etc/resolv.conf; what is
started in it is PID 1 of a new PID namespace with its own /proc, as a container is, and may be started again. The rest of the file
system is the machine's. No route leads out of the cluster.

Nothing is left behind, even by a run that is killed: every namespace is held by a process that ends with its creator
(see pod_inside.py), and interfaces, mounts and processes go with their namespaces. Two kinds of folder could stay (a temporary one, a
memory cgroup); their names start with `launcher-pods-` and the creator's process id, and the next run removes those of dead creators.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import http.client
import ipaddress
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

PREFIX = "launcher-pods-"
PACKAGES = ("iproute2", "dnsmasq-base", "nftables")
ROOT = Path(__file__).resolve().parent.parent
INSIDE = Path(__file__).resolve().parent / "pod_inside.py"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CLONE_NEWNET = 0x40000000

Direction = Literal["in", "out", "both"]
T = TypeVar("T")

_numbers = itertools.count(1)


class PodError(Exception):
    """The machine refused something that a pod needs; the text says what."""


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


def until(condition: Callable[[], T], timeout: float, what: str = "the condition") -> T:
    """The first true value of `condition`, asked again and again for `timeout` seconds. An OSError in it means not yet."""
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            value = condition()
        except OSError as error:
            last = error
        else:
            if value:
                return value
            last = value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:g} s (last: {last!r})")
        time.sleep(0.02)


@dataclass(frozen=True)
class Process:
    """A process in a pod as the machine sees it. `started` is in clock ticks since boot: (pid, started) is unique."""

    pid: int
    pid_inside: int
    parent: int
    started: int
    state: str
    """R, S, D, T (stopped), Z (zombie)..."""
    command: str
    """Its command line, or in brackets its name where it has none."""


@dataclass(frozen=True)
class Answer:
    """What an HTTP server said."""

    status: int
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


class Cluster:
    """A network of pods with its DNS. A context manager; all in it ends with it.

    `shared` are folders under /tmp that pods shall see too: each pod has its own /tmp, with this checkout, this interpreter and
    the cluster's own `folder` seen through it.
    """

    def __init__(self, shared: Iterable[Path | str] = (), service: str = "engine", namespace: str = "default") -> None:
        self.service = service
        self.namespace = namespace
        self._shared = [str(path) for path in shared]
        self._pods: dict[str, Pod] = {}
        self._veths = itertools.count(1)
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Cluster:
        _sweep()
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
            self._node = _Sandbox(self, "node", tmpfs={}, files={})
            closing.callback(self._node.close)
            self._node.configure(
                "link set lo up",
                # A hub, not a switch: what the bridge has learned of a pod is wrong once its address has moved to another.
                "link add br0 type bridge ageing_time 0",
                f"address add {self.gateway}/24 dev br0",
                "link set br0 up",
            )
            self._node.run(["nft", "-f", "-"], stdin=_RULES)
            self.dns = Dns(self)
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
        """A new pod. `resolvable` gives it a DNS record at once; `memory_limit` in bytes needs a writable memory cgroup."""
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
        return _http(self.connect, url, **options)

    def _free_address(self) -> str:
        used = {pod.ip for pod in self._pods.values()}
        return next(str(address) for address in list(self.subnet.hosts())[9:] if str(address) not in used)

    def _close_pods(self) -> None:
        for pod in list(self._pods.values()):
            pod.close()


# ARP passes, so that a cut in one direction leaves the other whole; dropped here and not in the pod, where a send would fail
# with EPERM, nothing in the pod can tell that the packets are lost.
_RULES = """
table bridge pods {
  set out { type ifname; }
  set in { type ifname; }
  chain from_pod { type filter hook prerouting priority -300; ether type { ip, ip6 } iifname @out drop; }
  chain to_pod { type filter hook postrouting priority 300; ether type { ip, ip6 } oifname @in drop; }
}
"""


class Dns:
    """The cluster's DNS server. Names it does not know do not exist (NXDOMAIN); a change is live when the call returns."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._records: dict[str, tuple[str, ...]] = {}
        self._hosts = cluster.folder / "dns"
        self._hosts.write_text("")
        options = [
            *("--keep-in-foreground", "--user=root", "--conf-file=/dev/null", "--pid-file="),
            *("--no-resolv", "--no-hosts", "--local=/#/", "--local-ttl=0", "--bind-interfaces"),
            *(f"--listen-address={cluster.gateway}", f"--addn-hosts={self._hosts}"),
        ]
        self._server = cluster._node.start(["dnsmasq", *options], {"PATH": SYSTEM_PATH}, cluster.folder / "dns.log")
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
        with self._cluster._node.socket(socket.SOCK_DGRAM) as asking:
            asking.settimeout(1.0)
            asking.sendto(_dns_query(name), (self._cluster.gateway, 53))
            return _dns_addresses(asking.recv(4096))

    def address(self, host: str) -> str:
        """The host itself if it is an address, else what it resolves to. OSError for an unknown name, as a resolver has it."""
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
        self._memory = None if memory_limit is None else _Memory(f"{cluster.folder.name}-{name}", memory_limit)
        self.folder = cluster.folder / self._veth
        self.folder.mkdir()
        (self.folder / "hostname").write_text(f"{hostname}\n")
        (self.folder / "resolv.conf").write_text(
            f"nameserver {cluster.gateway}\n"
            f"search {cluster.namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        )
        self._write_hosts()
        self._sandbox = _Sandbox(
            cluster,
            hostname,
            tmpfs={"/dev/shm": f"size={shm_mib}m,mode=1777", "/tmp": "mode=1777"},
            files={f"/etc/{name}": str(self.folder / name) for name in ("hosts", "resolv.conf", "hostname")},
        )
        cluster._node.configure(
            f"link add {self._veth} type veth peer name eth0 address {_mac(ip)} netns {self._sandbox.pid}",
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
        """What a container has in its environment at least: PATH (this interpreter's folder first), HOME (the pod's own), HOSTNAME."""
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

        `env` is added to `environment`; what it writes goes to the file `stdout`, else to one of ours. A pod may start several, each
        with its own PID namespace, as containers of a pod have; or one `beside` another in its PID namespace, as `kubectl exec` does,
        and then it is not PID 1. Raises PodError if it cannot be executed.
        """
        log = stdout or self.folder / f"log-{next(self._logs)}"
        environment = {**self.environment, **(env or {})}
        limits = [] if self._memory is None else [str(self._memory.entrance)]
        started = self._sandbox.start([str(word) for word in argv], environment, log, cwd=str(cwd), cgroups=limits, beside=beside)
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
        """A TCP connection made inside the pod's network, to an address or a name in cluster DNS, usable in the test."""
        return self._sandbox.connect(self.cluster.dns.address(host), port, timeout)

    def http(self, url: str, **options: Any) -> Answer:
        """An HTTP request from inside the pod; `http://localhost:PORT/` is the pod's own. Options: data (str or a JSON value, which
        makes it a POST), method, headers, timeout (5 s). OSError when there is no answer; any status is an answer."""
        return _http(self.connect, url, **options)

    def processes(self) -> list[Process]:
        """Every process of every program that was started here."""
        return list({process.pid: process for started in self._started for process in started.processes()}.values())

    def freeze(self) -> None:
        """Stops (SIGSTOP) every process here, as on a frozen node. Their kernel still answers for them: cut the link too if it should not."""
        until(lambda: all(self._each(signal.SIGSTOP)), 10, f"every process of {self.name} is stopped")

    def thaw(self) -> None:
        """Lets them go on."""
        self._each(signal.SIGCONT)

    def link_down(self) -> None:
        """Pulls the cable: eth0 keeps its address and loses its carrier. Connections stall; new ones fail after some seconds of ARP."""
        self.cluster._node.configure(f"link set {self._veth} down")

    def link_up(self) -> None:
        """Plugs it in again."""
        self.cluster._node.configure(f"link set {self._veth} up")

    def drop(self, direction: Direction = "both") -> None:
        """Loses every IP packet from ("out") or to ("in") the pod, silently. ARP passes, so the other direction works."""
        for way in _ways(direction):
            self.cluster._node.run(["nft", "add", "element", "bridge", "pods", way, f"{{ {self._veth} }}"])

    def undrop(self, direction: Direction = "both") -> None:
        """Ends what `drop` began."""
        for way in _ways(direction):
            # Adding first makes the removal of what is not there harmless.
            self.cluster._node.run(["nft", "add", "element", "bridge", "pods", way, f"{{ {self._veth} }}"])
            self.cluster._node.run(["nft", "delete", "element", "bridge", "pods", way, f"{{ {self._veth} }}"])

    def change_address(self, ip: str) -> None:
        """Gives the pod another address, in eth0 and /etc/hosts. Its DNS record is the test's to change, when it likes."""
        old, self.ip = self.ip, ip
        self._sandbox.configure(
            f"link set eth0 address {_mac(ip)}",
            f"address add {ip}/24 dev eth0",
            f"address delete {old}/24 dev eth0",
            f"route replace default via {self.cluster.gateway}",
        )
        self._write_hosts()

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


class PodProcess:
    """A program in a pod, PID 1 there."""

    def __init__(self, entered: subprocess.Popen[bytes], pid: int, handle: int, log: Path) -> None:
        self._handle = handle
        self._entered = entered
        self._namespace = _readlink(f"/proc/{pid}/ns/pid")
        self.pid = pid
        """Its process id on the machine."""
        self.log = log

    @property
    def returncode(self) -> int | None:
        """None while it runs; its exit code; -n after signal n."""
        return self._entered.poll()

    def wait(self, timeout: float) -> int:
        """The exit code (-n after signal n); subprocess.TimeoutExpired. Once it returns, no process of the PID namespace is left."""
        return self._entered.wait(timeout)

    def signal(self, number: int) -> None:
        """Signals PID 1. As in a container it gets SIGKILL, SIGSTOP, SIGCONT, and else what it has a handler for."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def kill_all(self) -> None:
        """SIGKILL to PID 1, with which the kernel ends every process of its PID namespace; returns when they are gone."""
        self.signal(signal.SIGKILL)
        self.wait(30)

    def processes(self) -> list[Process]:
        """Every process of its PID namespace, by pid."""
        found = (
            _process(pid, self._namespace)
            for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        )
        return [process for process in found if process is not None]

    def output(self) -> str:
        """What it and its children wrote so far, both streams."""
        return self.log.read_text(errors="replace")

    def __del__(self) -> None:
        os.close(self._handle)


class _Sandbox:
    """Network, mount, UTS and IPC namespaces, held by one process."""

    def __init__(self, cluster: Cluster, hostname: str, tmpfs: Mapping[str, str], files: Mapping[str, str]) -> None:
        self._cluster = cluster
        seen = [str(ROOT), sys.prefix, sys.base_prefix, str(cluster.folder), *cluster._shared]
        spec = {"hostname": hostname, "tmpfs": tmpfs, "files": files, "shared": seen, "folders": ["/tmp/home"]}
        log = cluster.folder / "sandbox.log"
        self._holder, self.pid, handle = _inside({"hold": spec}, cluster._lifeline, log, {"PATH": SYSTEM_PATH})
        os.close(handle)
        self._network = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def start(
        self,
        argv: list[str],
        env: Mapping[str, str],
        log: Path,
        *,
        cwd: str = "/",
        cgroups: Sequence[str] = (),
        beside: PodProcess | None = None,
    ) -> PodProcess:
        enter = [f"/proc/{self.pid}/ns/{kind}" for kind in ("net", "uts", "ipc")]
        enter += [f"/proc/{beside.pid if beside else self.pid}/ns/mnt"]
        if beside is not None:
            enter.append(f"/proc/{beside.pid}/ns/pid")
        spec = {"argv": argv, "enter": enter, "first": beside is None, "cwd": cwd, "cgroups": list(cgroups)}
        return PodProcess(*_inside({"run": spec}, self._cluster._lifeline, log, env), log)

    def configure(self, *lines: str) -> None:
        """Runs lines of `ip` in the network namespace."""
        self.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")

    def run(self, argv: Sequence[str], stdin: str = "") -> None:
        """Runs a command of the machine in the network namespace, and in no other."""
        enter = ["nsenter", f"--net=/proc/{self.pid}/ns/net", *argv]
        done = subprocess.run(
            enter, input=stdin, capture_output=True, text=True, check=False, env={"PATH": SYSTEM_PATH}, timeout=30
        )
        if done.returncode:
            raise PodError(f"{' '.join(argv)} <<< {stdin.strip()!r}: {done.stderr.strip()}")

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket of the network namespace. A thread enters it and makes the socket, which stays there for life."""
        made: list[socket.socket] = []
        refused: list[OSError] = []

        def make() -> None:
            if _libc.setns(self._network, CLONE_NEWNET) == 0:
                made.append(socket.socket(socket.AF_INET, kind))
            else:
                refused.append(OSError(ctypes.get_errno(), "setns"))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if refused:
            raise refused[0]
        return made[0]

    def connect(self, address: str, port: int, timeout: float) -> socket.socket:
        connection = self.socket()
        connection.settimeout(timeout)
        try:
            connection.connect((address, port))
        except OSError:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        os.close(self._network)
        self._holder.kill()
        self._holder.wait()


class _Memory:
    """A memory cgroup with a limit, v1 or v2."""

    def __init__(self, name: str, limit: int) -> None:
        v1 = Path("/sys/fs/cgroup/memory")
        old = (v1 / "memory.limit_in_bytes").exists()
        self._folder = (v1 if old else v1.parent) / name
        self._peak = "memory.max_usage_in_bytes" if old else "memory.peak"
        self.entrance = self._folder / "cgroup.procs"
        try:
            self._folder.mkdir()
            (self._folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
        except OSError as error:
            raise PodError(f"no memory limit for pods here: {error}") from error

    def peak(self) -> int:
        return int((self._folder / self._peak).read_text())

    def remove(self) -> None:
        def removed() -> bool:
            self._folder.rmdir()  # EBUSY until the kernel has accounted for the last process
            return True

        until(removed, 10, f"{self._folder} is removed")


def _inside(
    what: Mapping[str, Any], lifeline: int, log: Path, env: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], int, int]:
    """Runs pod_inside.py; returns it, the pid that it reports, and a pidfd of that."""
    with contextlib.ExitStack() as opened:
        out = opened.enter_context(log.open("ab"))
        report_end, report = os.pipe()
        go, go_end = os.pipe()
        answers = opened.enter_context(os.fdopen(report_end))
        let_go = opened.enter_context(os.fdopen(go_end, "wb"))
        try:
            entered = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    str(INSIDE),
                    json.dumps({**what, "lifeline": lifeline, "report": report, "go": go}),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(env),
                pass_fds=(lifeline, report, go),
                start_new_session=True,
            )
        finally:
            os.close(report)
            os.close(go)
        kind, _, said = answers.readline().strip().partition(" ")
        handle = os.pidfd_open(int(said)) if kind == "pid" else -1
        let_go.close()
        failure = answers.read().strip() or ("" if kind == "pid" else said or log.read_text(errors="replace")[-500:])
    if failure:
        if handle >= 0:
            os.close(handle)
        entered.wait(10)
        raise PodError(failure.removeprefix("error "))
    return entered, int(said), handle


def _sweep() -> None:
    """Removes folders of creators that are dead."""
    for parent in (Path(tempfile.gettempdir()), Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        for folder in parent.glob(f"{PREFIX}*"):
            creator = re.match(rf"{PREFIX}(\d+)-", folder.name)
            if creator is None or Path(f"/proc/{creator.group(1)}").exists():
                continue
            if parent.is_relative_to("/sys"):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            else:
                shutil.rmtree(folder, ignore_errors=True)


def _http(
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


def _process(pid: int, namespace: str) -> Process | None:
    if _readlink(f"/proc/{pid}/ns/pid") != namespace:
        return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
    inside = re.search(r"^NSpid:.*\s(\d+)$", status, re.MULTILINE)
    return Process(
        pid=pid,
        pid_inside=int(inside.group(1)) if inside else 0,
        parent=int(fields[1]),
        started=int(fields[19]),
        state=fields[0],
        command=command or f"[{name}]",
    )


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


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


def _mac(ip: str) -> str:
    """A hardware address that follows from the IP address: who takes an address over is reachable at once, whatever ARP caches hold."""
    return "02:77:" + ":".join(f"{part:02x}" for part in ipaddress.IPv4Address(ip).packed)


def _ways(direction: Direction) -> tuple[str, ...]:
    return ("in", "out") if direction == "both" else (direction,)


_libc = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    install_debian_packages()
    print(why_not() or "pods can be made here")
