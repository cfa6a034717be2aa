"""What a pod is made of: a sandbox of namespaces, the programs in it, and a limit on their memory. Used by pods.py."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

PREFIX = "launcher-pods-"
ROOT = Path(__file__).resolve().parent.parent
INSIDE = Path(__file__).resolve().parent / "pod_inside.py"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CLONE_NEWNET = 0x40000000

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


class PodError(Exception):
    """The machine refused something that a pod needs; the text says what."""


def until(condition: Callable[[], T], timeout: float, what: str = "the condition") -> T:
    """The first true value of `condition`, asked again and again for `timeout` seconds; an OSError means not yet."""
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
        """The exit code (-n after signal n), once all of its PID namespace is gone; or subprocess.TimeoutExpired."""
        return self._entered.wait(timeout)

    def signal(self, number: int) -> None:
        """Signals PID 1. As in a container it gets SIGKILL, SIGSTOP, SIGCONT, and else what it has a handler for."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def kill_all(self) -> None:
        """SIGKILL to PID 1, with which the kernel ends all of its PID namespace; returns when they are gone."""
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


class Sandbox:
    """Network, mount, UTS and IPC namespaces, held by one process."""

    def __init__(
        self,
        lifeline: int,
        log: Path,
        shared: Sequence[str],
        hostname: str,
        tmpfs: Mapping[str, str],
        files: Mapping[str, str],
    ) -> None:
        self._lifeline = lifeline
        seen = [str(ROOT), sys.prefix, sys.base_prefix, *shared]
        spec = {"hostname": hostname, "tmpfs": tmpfs, "files": files, "shared": seen, "folders": ["/tmp/home"]}
        self._holder, self.pid, handle = _inside({"hold": spec}, lifeline, log, {"PATH": SYSTEM_PATH})
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
        return PodProcess(*_inside({"run": spec}, self._lifeline, log, env), log)

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

    def open_socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
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
        connection = self.open_socket()
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


class Memory:
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


def sweep() -> None:
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
