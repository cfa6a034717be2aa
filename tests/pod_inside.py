"""The process that stands between a test and a pod: makes namespaces and holds them, or runs a program in them.

Run by pods.py as `python -I -S pod_inside.py SPEC`, with SPEC a JSON object. It imports little and nothing of ours:
one of these runs beside every program in a pod. It is a process of its own, because a process with threads (pytest's)
cannot safely fork and enter namespaces, and because util-linux's nsenter stops itself when its child is stopped,
which a test that freezes a program must not see.

Nothing outlives the creator: this process reads a pipe, the lifeline, whose other end only the creator holds. When
that is closed, by whatever cause, this process ends; the kernel then kills what it started (PR_SET_PDEATHSIG, and the
whole PID namespace with its PID 1) and drops the namespaces with their interfaces and mounts.

It answers on the report pipe with lines: `pid N` (as this process's PID namespace counts, which is the test's), and
`error TEXT` when something failed; then closes it. A program is executed when the pipe `go` ends, so that the creator
can open handles on a process that is surely there.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any, NoReturn

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


def main(spec: dict[str, Any]) -> int:
    lifeline, report = int(spec["lifeline"]), int(spec["report"])
    for descriptor in (lifeline, report):
        os.set_inheritable(descriptor, False)
    try:
        if "hold" in spec:
            hold(spec["hold"])
            answer(report, f"pid {os.getpid()}")
            os.close(report)
            os.read(lifeline, 1)
            return 0
        return run({**spec["run"], "go": spec["go"]}, lifeline, report)
    except OSError as error:
        answer(report, f"error {error}")
        return 1


def hold(spec: dict[str, Any]) -> None:
    """Makes a sandbox: network, mount, UTS and IPC namespaces, with the mounts that every program in it will see."""
    call("unshare", CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    socket.sethostname(spec["hostname"])
    # Opened before a tmpfs covers them, and after the namespace is made: a bind takes mounts of the own one only.
    cgroups = opened("/sys/fs/cgroup")
    keep = {path: opened(path) for path in spec["shared"]}
    # /sys/class/net shows the network namespace that sysfs was mounted in.
    mount("sysfs", "/sys", "sysfs", 0)
    if cgroups is not None:
        with contextlib.suppress(OSError):
            mount(f"/proc/self/fd/{cgroups}", "/sys/fs/cgroup", None, MS_BIND | MS_REC)
    for path, options in spec["tmpfs"].items():
        mount("tmpfs", path, "tmpfs", 0, options)
    for path, descriptor in keep.items():
        if not os.path.exists(path):
            os.makedirs(path)
            mount(f"/proc/self/fd/{descriptor}", path, None, MS_BIND | MS_REC)
    for path in spec["folders"]:
        os.makedirs(path, exist_ok=True)
    for target, source in spec["files"].items():
        if os.path.exists(target):
            mount(source, target, None, MS_BIND)


def run(spec: dict[str, Any], lifeline: int, report: int) -> int:
    """Runs a program in existing namespaces: as PID 1 of a new PID namespace, or beside that of an existing one."""
    limits = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in spec["cgroups"]]
    # All are opened before any is entered: behind another mount namespace /proc is another.
    for descriptor in [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in spec["enter"]]:
        call("setns", descriptor, 0)
    if spec["first"]:
        # unshare after setns: the program gets its own /proc without touching the sandbox's mounts.
        call("unshare", CLONE_NEWNS | CLONE_NEWPID)
    parent_end, child_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(parent_end)
        program(spec, limits, report, child_end)
    os.close(child_end)
    answer(report, f"pid {child}")
    failure = os.read(parent_end, 4096)
    if failure:
        answer(report, f"error {failure.decode()}")
    os.close(report)
    return status_of(child, lifeline)


def program(spec: dict[str, Any], limits: list[int], report: int, failures: int) -> NoReturn:
    """The child, up to its exec. It says what went wrong on `failures`, which a successful exec closes."""
    try:
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(report)
        os.setsid()
        for descriptor in limits:
            os.write(descriptor, b"0")
        if spec["first"]:
            mount("proc", "/proc", "proc", 0)
        os.chdir(spec["cwd"])
        os.read(spec["go"], 1)
        os.close(spec["go"])
        for name in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what is ignored stays so over an exec.
            signal.signal(name, signal.SIG_DFL)
        os.execvpe(spec["argv"][0], spec["argv"], dict(os.environ))
    except OSError as error:
        os.write(failures, f"{spec['argv'][0]}: {error}".encode())
    os._exit(127)


def status_of(child: int, lifeline: int) -> int:
    """Waits for the child and ends as it did; kills it when the lifeline ends."""
    poll = select.poll()
    ended = os.pidfd_open(child)
    poll.register(ended, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    while not any(descriptor == ended for descriptor, _ in poll.poll()):
        os.kill(child, signal.SIGKILL)
        poll.unregister(lifeline)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return os.waitstatus_to_exitcode(status)


def answer(report: int, text: str) -> None:
    with contextlib.suppress(OSError):  # the creator may be gone
        os.write(report, f"{text}\n".encode())


def opened(path: str) -> int | None:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    arguments = [None if text is None else text.encode() for text in (source, target, kind, options)]
    if libc.mount(arguments[0], arguments[1], arguments[2], ctypes.c_ulong(flags), arguments[3]) != 0:
        raise failed(f"mount {source} on {target}")


def call(name: str, *arguments: int) -> None:
    if getattr(libc, name)(*arguments) != 0:
        raise failed(f"{name}{arguments}")


def failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
