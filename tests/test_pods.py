"""The pods that other tests stand on: each promise of tests/pods.py, with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pod_network import hardware_address
from tests.pod_sandbox import PREFIX
from tests.pods import ROOT, Cluster, Pod, PodError, PodProcess, until, why_not

pytestmark = [pytest.mark.pods, pytest.mark.skipif(bool(why := why_not()), reason=str(why))]

# Answers every line with the address of the asker and the line, on a connection that is kept.
ECHO = """
import socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(self.client_address[0].encode() + b" " + line)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("0.0.0.0", 7000), Echo).serve_forever()
"""


@pytest.fixture
def two(cluster: Cluster) -> tuple[Pod, Pod]:
    return cluster.pod("engine-0"), cluster.pod("engine-1")


def echo(pod: Pod) -> PodProcess:
    server = pod.start([sys.executable, "-c", ECHO])
    until(lambda: ping(pod.connect("127.0.0.1", 7000)), 10, "the echo server listens")
    return server


def ping(connection: socket.socket) -> str:
    connection.sendall(b"ping\n")
    return connection.recv(100).decode().strip()


def resolved(pod: Pod, name: str) -> list[str]:
    """What the pod's own resolver says: /etc/hosts, resolv.conf and its search list included."""
    answer = pod.exec(["getent", "ahostsv4", name], check=False).stdout
    return sorted({line.split()[0] for line in answer.splitlines()})


def test_the_gateway_keeps_its_hardware_address_as_pods_come(cluster: Cluster) -> None:
    for n in range(4):
        pod = cluster.pod(f"engine-{n}")
        resolved(pod, "nobody.invalid")
        assert (
            f"{cluster.gateway} dev eth0 lladdr {hardware_address(cluster.gateway)} "
            in pod.exec(["ip", "neigh"]).stdout
        )


def test_pods_reach_each_other_from_their_own_addresses(two: tuple[Pod, Pod]) -> None:
    first, second = two
    echo(first)
    assert ping(second.connect(first.ip, 7000)) == f"{second.ip} ping"
    assert ping(second.connect(first.fqdn, 7000)) == f"{second.ip} ping"
    assert ping(first.cluster.connect(first.ip, 7000)) == f"{first.cluster.gateway} ping"


def test_http_gives_any_status_and_oserror_for_none(two: tuple[Pod, Pod]) -> None:
    first, second = two
    server = first.start([sys.executable, "-m", "http.server", "80"])
    assert until(lambda: second.http(f"http://{first.fqdn}/"), 10).status == 200
    assert first.http("http://localhost/nothing-here").status == 404
    server.kill_all()
    with pytest.raises(OSError, match="refused"):
        second.http(f"http://{first.ip}/")


def test_no_way_out_of_the_cluster(cluster: Cluster) -> None:
    pod = cluster.pod("engine-0")
    assert resolved(pod, "localhost") == ["127.0.0.1"]
    with Cluster() as other, pytest.raises(OSError):
        pod.connect(other.pod("engine-9").ip, 22, timeout=0.5)
    assert os.listdir("/sys/class/net") != sorted(pod.exec(["ls", "/sys/class/net"]).stdout.split())
    assert sorted(pod.exec(["ls", "/sys/class/net"]).stdout.split()) == ["eth0", "lo"]


def test_a_name_appears_late_changes_and_vanishes(cluster: Cluster) -> None:
    asking, late = cluster.pod("engine-0"), cluster.pod("engine-1", resolvable=False)
    assert resolved(asking, late.fqdn) == []
    cluster.dns.set(late.fqdn, late.ip)
    assert resolved(asking, late.fqdn) == [late.ip]
    assert resolved(asking, "engine-1.engine") == [late.ip]  # by the search list
    late.change_address(str(cluster.subnet[200]))
    assert late.ip == str(cluster.subnet[200])
    assert resolved(late, late.name) == [late.ip]  # its own name from /etc/hosts, at once
    cluster.dns.set(late.fqdn, late.ip)
    assert resolved(asking, late.fqdn) == [late.ip]
    echo(late)
    assert ping(asking.connect(late.fqdn, 7000)) == f"{asking.ip} ping"
    cluster.dns.set("engine.default.svc.cluster.local", asking.ip, late.ip)
    assert resolved(asking, "engine") == sorted([asking.ip, late.ip])
    cluster.dns.remove(late.fqdn)
    assert resolved(asking, late.fqdn) == []


def test_an_address_moves_to_another_pod(two: tuple[Pod, Pod]) -> None:
    asking, old = two
    echo(old)
    assert ping(asking.connect(old.ip, 7000))
    old.close()
    new = asking.cluster.pod("engine-1", ip=old.ip)
    echo(new)
    assert ping(asking.connect(old.ip, 7000))


def test_link_down_stalls_and_up_goes_on(two: tuple[Pod, Pod]) -> None:
    first, second = two
    echo(first)
    kept = second.connect(first.ip, 7000)
    assert ping(kept)
    first.link_down()
    kept.settimeout(0.5)
    with pytest.raises(TimeoutError):
        ping(kept)
    assert first.exec(["cat", "/sys/class/net/eth0/carrier"]).stdout.strip() == "0"
    first.link_up()
    kept.settimeout(30)
    assert kept.recv(100), "the stalled connection goes on"
    assert until(lambda: ping(second.connect(first.ip, 7000)), 10)


@pytest.mark.parametrize(("direction", "heard"), [("in", False), ("out", True), ("both", False)])
def test_drop_is_silent_and_one_way(two: tuple[Pod, Pod], direction: str, heard: bool) -> None:
    first, second = two
    echo(first)
    inside = first.start([sys.executable, "-uc", RECEIVER])
    until(inside.output, 10, "the receiver is bound")
    kept = second.connect(first.ip, 7000)
    assert ping(kept)
    first.drop(direction)  # type: ignore[arg-type]
    # A datagram tells the directions apart: it needs no answer.
    second.exec([sys.executable, "-c", SENDER, first.ip])
    kept.settimeout(0.5)
    with pytest.raises(TimeoutError):
        ping(kept)
    with pytest.raises(TimeoutError):
        second.connect(first.ip, 7000, timeout=0.5)
    if heard:
        until(lambda: "datagram" in inside.output(), 10, "the datagram has come")
    assert ("datagram" in inside.output()) is heard
    first.undrop()
    first.undrop()  # twice is harmless
    kept.settimeout(30)
    assert kept.recv(100)


RECEIVER = """
import socket
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("0.0.0.0", 7001))
print("bound")
print(receiver.recv(100).decode())
"""
SENDER = """
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"datagram", (sys.argv[1], 7001))
"""


def test_the_program_is_pid_1_and_its_exit_is_told(cluster: Cluster) -> None:
    pod = cluster.pod("engine-0", hostname="engine-0.example")
    shown = pod.start(["sh", "-c", "echo $$; hostname; echo /proc/[0-9]*; echo $COLOUR; exit 7"], {"COLOUR": "red"})
    assert shown.wait(10) == 7
    # The shell lists /proc when no child is left: its own number is all there is.
    assert shown.output().split() == ["1", "engine-0.example", "/proc/1", "red"]
    with pytest.raises(PodError, match=r"no-such-program: .*No such file"):
        pod.start(["no-such-program"])
    # As in a container: a signal without a handler does not reach PID 1, SIGKILL does.
    sleeping = pod.start(["sleep", "100"])
    sleeping.signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        sleeping.wait(0.3)
    assert sleeping.returncode is None
    sleeping.signal(signal.SIGKILL)
    assert sleeping.wait(10) == -signal.SIGKILL


def test_every_process_of_the_pod_is_seen_and_dies_with_pid_1(cluster: Cluster) -> None:
    pod = cluster.pod("engine-0")
    program = pod.start(["sh", "-c", "setsid sleep 101 & setsid sleep 102 & /bin/true & exec sleep 103"])
    # The third child is a zombie: PID 1 does not reap.
    commands = ["[true]", "sleep 101", "sleep 102", "sleep 103"]
    until(lambda: sorted(p.command for p in pod.processes()) == commands, 10)
    seen = pod.processes()
    assert {p.command: p.state for p in seen}["[true]"] == "Z"
    assert next(p for p in seen if p.pid_inside == 1).pid == program.pid
    assert all(Path(f"/proc/{p.pid}").exists() and p.started > 0 for p in seen)
    beside = pod.start(["sleep", "104"], beside=program)
    assert any(p.command == "sleep 104" for p in program.processes())
    program.kill_all()
    assert program.returncode == -signal.SIGKILL
    assert beside.wait(10) == -signal.SIGKILL
    assert pod.processes() == []
    assert not any(Path(f"/proc/{p.pid}").exists() for p in seen)
    assert pod.start(["true"]).wait(10) == 0, "a pod's program may be started again"


def test_freeze_and_thaw(two: tuple[Pod, Pod]) -> None:
    first, second = two
    server = echo(first)
    kept = second.connect(first.ip, 7000)
    assert ping(kept)
    first.freeze()
    assert [p.state for p in server.processes()] == ["T"]
    kept.settimeout(0.3)
    with pytest.raises(TimeoutError):
        ping(kept)
    first.thaw()
    kept.settimeout(10)
    assert kept.recv(100)
    assert server.returncode is None


def test_shared_memory_and_tmp_are_apart(two: tuple[Pod, Pod]) -> None:
    first, second = two
    mine = f"mine-{first.cluster.folder.name}"
    for folder in ("/dev/shm", "/tmp"):
        first.exec(["touch", f"{folder}/{mine}"])
        assert mine not in second.exec(["ls", folder]).stdout
        assert not Path(folder, mine).exists()
        # They are the sandbox's: a program that is started again finds them.
        assert mine in first.exec(["ls", folder]).stdout
    assert ROOT.joinpath("tests").exists()
    assert "tests" in first.exec(["ls", ROOT]).stdout


def test_a_memory_limit_kills(cluster: Cluster) -> None:
    try:
        pod = cluster.pod("engine-0", memory_limit=64 << 20)
    except PodError as why:
        pytest.skip(str(why))
    assert pod.exec([sys.executable, "-c", "bytearray(16 << 20)"]).returncode == 0
    greedy = pod.start([sys.executable, "-c", "bytearray(256 << 20)"])
    assert greedy.wait(20) == -signal.SIGKILL
    assert 32 << 20 < pod.memory_peak() <= 64 << 20


def test_nothing_is_left(cluster: Cluster) -> None:
    with Cluster() as short:
        first, second = short.pod("engine-0"), short.pod("engine-1")
        processes = [echo(first), echo(second), short.dns._server]
        pids = [process.pid for process in processes] + [pod._sandbox.pid for pod in (first, second)]
        namespaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}
        folder = short.folder
    assert not folder.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not namespaces & network_namespaces()
    assert cluster.dns.answers("other.clusters.live") == ()


def test_nothing_is_left_by_a_creator_that_is_killed(cluster: Cluster) -> None:
    creator = subprocess.Popen(
        [sys.executable, "-c", CREATOR], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert creator.stdout is not None
    with contextlib.closing(creator.stdout):
        folder, *pids = creator.stdout.readline().split()
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    creator.kill()
    creator.wait(10)
    until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()], 10, "its processes are gone")
    assert Path(folder).exists(), "nobody was left to remove it"
    with Cluster():
        assert not Path(folder).exists(), "the next run does"


CREATOR = """
import sys
from tests.pods import Cluster
with Cluster() as cluster:
    pod = cluster.pod("engine-0")
    started = pod.start(["sh", "-c", "sleep 100 & exec sleep 101"])
    pids = [started.pid, pod._sandbox.pid, cluster._node.pid, cluster.dns._server.pid]
    print(cluster.folder, *pids, flush=True)
    sys.stdin.read()
"""


def network_namespaces() -> set[str]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(process / "ns" / "net"))
    return found


def test_names_of_temporary_folders_tell_their_creator(cluster: Cluster) -> None:
    assert cluster.folder.name.startswith(f"{PREFIX}{os.getpid()}-")


def test_until_says_what_it_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"the moon: not within 0.1 s \(last: 0\)"):
        until(lambda: 0, 0.1, "the moon")
    assert time.monotonic() - began < 5
