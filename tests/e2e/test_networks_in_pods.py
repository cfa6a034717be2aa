"""Networks as pods have them: IPv6 only, both families, two networks, a path that does not connect. Real namespaces.

Each pod is a network namespace with an /etc/hosts of its own, on bridges that this test makes. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.pods,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]
LAUNCHER = str(Path(sys.executable).with_name("launcher"))
WAIT = 90.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Machines:
    """Two machines, each with an interface on every network, and what was started in them."""

    def __init__(self, folder: Path, networks: Mapping[str, tuple[str, ...]], hosts: Sequence[str] = ("", "")) -> None:
        """``networks``: interface -> addresses, ``{}`` is the machine's number; the first has the default route."""
        self.folder = folder
        self.prefix = f"lt{os.getpid() % 100000}"
        self.running: list[subprocess.Popen[bytes]] = []
        for number in (1, 2):
            ip("netns", "add", self.name(number))
            for family in ("all", "default"):
                self.inside(number, "sysctl", "-qw", f"net.ipv6.conf.{family}.disable_ipv6=0")
            ip("-n", self.name(number), "link", "set", "lo", "up")
            if hosts[number - 1]:
                etc = Path("/etc/netns") / self.name(number)
                etc.mkdir(parents=True)
                (etc / "hosts").write_text(hosts[number - 1])
        for net, (interface, addresses) in enumerate(networks.items()):
            wire = self.name(f"n{net}")
            ip("netns", "add", wire)
            ip("-n", wire, "link", "add", "br0", "type", "bridge")
            ip("-n", wire, "link", "set", "br0", "up")
            for number in (1, 2):
                end = f"{self.prefix}{net}{number}"
                ip("link", "add", end, "type", "veth", "peer", "name", interface, "netns", self.name(number))
                ip("link", "set", end, "netns", wire)
                ip("-n", wire, "link", "set", end, "master", "br0", "up")
                ip("-n", self.name(number), "link", "set", interface, "up")
                for address in addresses:
                    six = ["nodad"] if ":" in address else []
                    ip("-n", self.name(number), "addr", "add", address.format(number), "dev", interface, *six)
        for number in (1, 2):
            first = next(iter(networks))
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("-n", self.name(number), "route", "add", "default", "dev", first)
        self.networks = list(networks)

    def name(self, what: object) -> str:
        return f"{self.prefix}-{what}"

    def cut(self, interface: str) -> None:
        """The network of an interface connects nothing from now on."""
        ip("-n", self.name(f"n{self.networks.index(interface)}"), "link", "set", "br0", "down")

    def inside(
        self, number: int, *argv: str, env: Mapping[str, str] | None = None, seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if k not in ("POD_IP", "POD_NAME")}
        return subprocess.run(
            ["ip", "netns", "exec", self.name(number), *argv],
            env={**clean, **(env or {})},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start(self, number: int, *options: str, env: Mapping[str, str] | None = None) -> None:
        """Start the launcher."""
        self._start(number, [LAUNCHER, *options], env)

    def start_apart(self, number: int, *argv: str, env: Mapping[str, str] | None = None) -> None:
        """Start a program with a /dev/shm of its own: SGLang takes ranks that share one for ranks of one host."""
        script = 'mount -t tmpfs -o size=4g shm /dev/shm && exec "$@"'
        self._start(number, ["unshare", "--mount", "sh", "-c", script, "sh", *argv], env)

    def _start(self, number: int, argv: Sequence[str], env: Mapping[str, str] | None) -> None:
        clean = {k: v for k, v in os.environ.items() if k not in ("POD_IP", "POD_NAME")}
        with self.log(number).open("wb") as log:
            self.running.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", self.name(number), *argv],
                    env={**clean, **(env or {})},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def log(self, number: int) -> Path:
        return self.folder / f"{number}.log"

    def said(self, number: int, words: str) -> str:
        """The log, once it holds these words."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            text = self.log(number).read_text(errors="replace")
            if words in text:
                return text
            time.sleep(0.2)
        raise AssertionError(f"machine {number} never said {words!r}:\n{self.log(number).read_text(errors='replace')}")

    def get(self, number: int, url: str) -> int:
        """The HTTP status of a page, asked from a machine; 0: no answer."""
        code = (
            f"import urllib.request as u; print(u.build_opener(u.ProxyHandler({{}})).open({url!r}, timeout=5).status)"
        )
        out = self.inside(number, sys.executable, "-c", code).stdout.strip()
        return int(out) if out.isdecimal() else 0

    def close(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for what in (1, 2, *(f"n{i}" for i in range(len(self.networks)))):
            subprocess.run(["ip", "netns", "del", self.name(what)], check=False, capture_output=True)
            shutil.rmtree(Path("/etc/netns") / self.name(what), ignore_errors=True)


@contextlib.contextmanager
def machines(
    folder: Path, networks: Mapping[str, tuple[str, ...]], hosts: Sequence[str] = ("", "")
) -> Iterator[Machines]:
    made = Machines.__new__(Machines)
    made.running, made.networks = [], list(networks)
    try:
        made.__init__(folder, networks, hosts)  # type: ignore[misc]  # what it has made is removed, also after an error
        yield made
    finally:
        made.close()


V6, V4 = "fd5a:7::1{}", "10.37.0.1{}"


@pytest.mark.parametrize(
    ("addresses", "own"),
    [((f"{V6}/64",), V6), ((f"{V4}/24", f"{V6}/64"), V4), ((f"{V4}/24", f"{V6}/64"), V6)],
    ids=["IPv6 only", "dual stack, IPv4 first", "dual stack, IPv6 first"],
)
@pytest.mark.parametrize("told", [True, False], ids=["POD_IP", "found"])
def test_the_api_answers_on_the_pods_own_address(
    tmp_path: Path, addresses: tuple[str, ...], own: str, told: bool
) -> None:
    leader = own.format(1)
    with machines(tmp_path, {"eth0": addresses}) as pair:
        for number in (1, 2):
            env = {"POD_IP": own.format(number)} if told else {}
            rank = str(number - 1)
            pair.start(number, "--engine", "reference", "--rank", rank, "--size", "2", "--leader", leader, env=env)
        pair.said(1, "group runs")
        host = f"[{leader}]" if ":" in leader else leader
        assert pair.get(2, f"http://{host}:9471/readyz") == 200
        assert pair.get(2, f"http://{host}:8000/health") == 200
        assert pair.get(1, "http://127.0.0.1:9471/status") == 200


def hosts(subnet: str) -> tuple[str, str]:
    """As Debian writes it: a machine's own name is a loopback address there, and the other's is on one network."""
    return (
        f"127.0.0.1 localhost\n127.0.1.1 box-a\n{subnet}.12 box-b\n",
        f"127.0.0.1 localhost\n127.0.1.1 box-b\n{subnet}.11 box-a\n",
    )


TWO = {"lan0": ("192.168.57.1{}/24",), "fab0": ("192.168.207.1{}/24",)}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=["leader first", "worker first"])
@pytest.mark.parametrize("isolated", [False, True], ids=["both connect", "the default network connects nothing"])
def test_rank_0_takes_the_address_at_which_members_arrive(
    tmp_path: Path, isolated: bool, order: tuple[int, int]
) -> None:
    """A worker that waits already arrives before rank 0 has looked for its own address."""
    with machines(tmp_path, TWO, hosts("192.168.207")) as pair:
        if isolated:
            pair.cut("lan0")
        for number in order:
            rank = str(number - 1)
            pair.start(number, "--engine", "reference", "--rank", rank, "--size", "2", "--leader", "box-a")
        pair.said(1, "group runs")
        status = pair.inside(1, LAUNCHER, "status").stdout
        assert "192.168.207.11" in status and "192.168.207.12" in status
        assert "192.168.57" not in status
        assert "another address" not in pair.log(1).read_text() + pair.log(2).read_text()


def test_an_address_of_rank_0_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    """It was told a wrong one: the group forms over one network, and the engine would stand still on the other."""
    with machines(tmp_path, TWO, hosts("192.168.207")) as pair:
        pair.cut("lan0")
        for number in (1, 2):
            env = {"POD_IP": "192.168.57.11"} if number == 1 else {}
            rank = str(number - 1)
            pair.start(number, "--engine", "reference", "--rank", rank, "--size", "2", "--leader", "box-a", env=env)
        text = pair.said(1, "cannot reach rank 0 at 192.168.57.11")
        assert "while the group's link goes to 192.168.207.11" in text
        assert "arrived_at=192.168.207.11" in pair.said(1, "a member reaches rank 0 at another address")


@pytest.mark.parametrize("told", [False, True], ids=["found", "told wrongly"])
def test_doctor_of_the_group_ends_in_findings(tmp_path: Path, told: bool) -> None:
    with machines(tmp_path, TWO, hosts("192.168.207")) as pair:
        pair.cut("lan0")
        words = ("doctor", "--group", "--engine", "reference", "--size", "2", "--leader", "box-a")
        pair.start(1, *words, "--rank", "0", env={"POD_IP": "192.168.57.11"} if told else {})
        pair.start(2, *words, "--rank", "1")
        codes = [process.wait(WAIT) for process in pair.running]
        text = pair.log(1).read_text() + pair.log(2).read_text()
        assert "Traceback" not in text, text
        if told:
            assert 0 not in codes
            assert "rank 1 cannot reach rank 0 at 192.168.57.11" in text
            assert "192.168.207.11" in text
        else:
            assert codes == [0, 0], text
            assert "launcher doctor: 2 pods" in text and "192.168.57" not in text.split("launcher doctor: 2 pods")[1]


def test_an_api_that_services_cannot_reach_is_not_ready(tmp_path: Path) -> None:
    """The user's own --host is of the other family: loopback answers, and nobody else gets through."""
    with machines(tmp_path, {"eth0": (f"{V6}/64",)}) as pair:
        for number in (1, 2):
            env = {"POD_IP": V6.format(number)}
            rank = str(number - 1)
            words = ("--engine", "reference", "--rank", rank, "--size", "2", "--leader", V6.format(1))
            pair.start(number, *words, "--", "--host", "0.0.0.0", env=env)
        text = pair.said(1, "no Service reaches the engine")
        assert f"the API does not answer on [{V6.format(1)}]:8000" in text
        assert pair.get(2, f"http://[{V6.format(1)}]:9471/livez") == 200
        assert pair.get(2, f"http://[{V6.format(1)}]:9471/readyz") == 0  # 503 is an exception there
