"""`run.sh leader|worker`: a Ray cluster over pods, with the options of the script that many manifests call today.

    run.sh leader --ray_cluster_size=N [--ray_port=6379] [--ray_init_timeout=300] [options of `ray start`]
    run.sh worker --ray_address=HOST  [--ray_port=6379] [--ray_init_timeout=300] [options of `ray start`]

The leader starts a head and returns 0 once Ray itself counts N alive nodes; the worker waits for the head's name and
port, joins, and stays. What is different from the script: the head's start is checked, nodes are counted by one process
that asks Ray every 50 ms instead of a new interpreter every 5 s, more nodes than N are as good as N, names are resolved
anew on each try, and signals reach Ray. New deployments are better off with `launcher --engine vllm --backend ray`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.common.addresses import host_port
from launcher.common.numbers import is_whole
from launcher.errors import UNREPLACED, ConfigError, ExitCode, LauncherError, UnavailableError, UsageError
from launcher.log import WaitLines
from launcher.network.names import resolve

INSIDE = str(Path(__file__).parents[1] / "engines" / "ray" / "cluster_program.py")
FAILED = 1  #: the exit code that users of the script test for


@dataclass(frozen=True)
class Wanted:
    """The parsed options. ``rest`` goes to `ray start` unchanged."""

    role: str
    port: int
    size: int
    address: str
    timeout: float
    rest: tuple[str, ...]


def main(args: Sequence[str]) -> int:
    """Exit code 0: the cluster is complete (leader), or Ray exited cleanly (worker)."""
    try:
        if not args or "--help" in args or "-h" in args:
            print(__doc__)
            return 0 if args else int(ExitCode.USAGE)
        wanted = parse(args)
        python = _interpreter()
        return _leader(wanted, python) if wanted.role == "leader" else _worker(wanted, python)
    except LauncherError as error:
        print(f"run.sh: {error}", file=sys.stderr)
        return FAILED if isinstance(error, UnavailableError) else int(error.code)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parse(args: Sequence[str]) -> Wanted:
    """The script's options, ``--name=value`` or ``--name value``. Raises UsageError."""
    role, *words = args
    if role not in ("leader", "worker"):
        raise UsageError(f"{role!r} is neither leader nor worker", "see run.sh leader --help")
    names = {
        "--ray_port": "port",
        "--port": "port" if role == "leader" else "",
        "--ray_cluster_size": "size",
        "--ray_address": "address",
        "--ray_init_timeout": "timeout",
    }
    found: dict[str, str] = {}
    rest: list[str] = []
    at = 0
    while at < len(words):
        name, equals, value = words[at].partition("=")
        key = names.get(name, "")
        at += 1
        if not key:
            rest.append(words[at - 1])
            continue
        if not equals:
            if at == len(words):
                raise UsageError(f"{name} needs a value", f"write {name}=VALUE")
            value = words[at]
            at += 1
        found[key] = value
    if role == "leader" and "size" not in found:
        raise UsageError("run.sh leader needs --ray_cluster_size", "give the number of pods: --ray_cluster_size=2")
    if role == "worker" and not found.get("address"):
        raise UsageError("run.sh worker needs --ray_address", "give the leader's name or IP: --ray_address=HOST")
    if role == "worker":
        _check_address(found["address"], found.get("port", "6379"))
    return Wanted(
        role,
        _number("--ray_port", found.get("port", "6379"), 1, 65535),
        _number("--ray_cluster_size", found.get("size", "1"), 1, 100000),
        found.get("address", ""),
        _number("--ray_init_timeout", found.get("timeout", "300"), 1, 10**9),
        tuple(rest),
    )


def _check_address(text: str, port: str) -> None:
    """Accept a bare host only: with anything else the name never resolves, and the worker waits until the timeout."""
    if "$" in text:
        raise UsageError(
            f"--ray_address={text} is a variable that nothing has replaced",
            UNREPLACED,
        )
    rest = text.partition("://")[2] if "://" in text else text
    rest = rest.split("/", 1)[0].rpartition("@")[2]
    if rest.startswith("["):
        host, _, after = rest[1:].partition("]")
        wanted = after.removeprefix(":")
    elif rest.count(":") == 1:
        host, _, wanted = rest.partition(":")
    else:
        host, wanted = rest, ""
    if host == text and not any(c in text for c in " ,/[]"):
        return
    if not host or any(c in host for c in " ,/[]"):
        raise UsageError(
            f"--ray_address={text} is not a DNS name or an IP", "give the leader's name: --ray_address=HOST"
        )
    raise UsageError(
        f"--ray_address={text} is more than a host",
        f"give --ray_address={host} --ray_port={wanted if wanted.isdecimal() else port}",
    )


def _number(name: str, text: str, least: int, most: int) -> int:
    if not is_whole(text) or not least <= int(text) <= most:
        raise UsageError(f"{name}={text} is not a number from {least} to {most}", "correct it")
    return int(text)


def _interpreter() -> str:
    """The Python that has Ray: that of the `ray` command on PATH, else python3."""
    ray = shutil.which("ray")
    if ray:
        with open(ray, "rb") as script:
            first = script.readline(512).decode("utf-8", "replace").strip()
        if first.startswith("#!") and "env" not in first and os.access(first[2:].split()[0], os.X_OK):
            return first[2:].split()[0]
    python = shutil.which("python3")
    if python is None:
        raise ConfigError("there is neither ray nor python3 on PATH", "run this in the engine's image")
    return python


# ------------------------------------------------------------------------------------------------------ leader


def _leader(wanted: Wanted, python: str) -> int:
    until = time.monotonic() + wanted.timeout
    head = [python, "-m", "ray.scripts.scripts", "start", "--head", f"--port={wanted.port}", *wanted.rest]
    started = subprocess.run(head, check=False)
    if started.returncode:
        print(f"run.sh: `ray start --head` failed with exit code {started.returncode}", file=sys.stderr)
        return FAILED
    head_address = host_port(_own_address(wanted.rest), wanted.port)
    argv = [python, INSIDE, "wait", head_address, str(wanted.size), "0"]
    try:
        return subprocess.run(argv, check=False, timeout=max(1.0, until - time.monotonic())).returncode
    except subprocess.TimeoutExpired:
        raise UnavailableError(
            f"the Ray cluster was not whole within {wanted.timeout:g} s (--ray_init_timeout)",
            "see above what is missing; are the workers running, and is their --ray_address this pod?",
        ) from None


def _own_address(rest: Sequence[str]) -> str:
    """The address that Ray's head takes: --node-ip-address, else that of the default route."""
    for at, word in enumerate(rest):
        name, equals, value = word.partition("=")
        if name == "--node-ip-address":
            return value if equals else (rest[at + 1] if at + 1 < len(rest) else "127.0.0.1")
    from launcher.network.addresses import NOWHERE, route_source

    for target in NOWHERE:
        try:
            return route_source(target)
        except OSError:
            continue
    return "127.0.0.1"


# ------------------------------------------------------------------------------------------------------ worker


def _worker(wanted: Wanted, python: str) -> int:
    """Try to join until it works or time runs out; then stay as long as Ray does."""
    until = time.monotonic() + wanted.timeout
    wait, told = WaitLines(), ""
    while True:
        try:
            address = resolve(wanted.address)[0]
        except OSError as error:
            told = _tell(f"waiting: {wanted.address} does not resolve yet: {error.strerror or error}", wait)
        else:
            code, asked = _join(wanted, python, address, until)
            if code == 0 or asked or time.monotonic() > until:
                return 128 + asked if asked else code  # Ray exits with 1 even after SIGTERM
            told = _tell(f"joining {wanted.address} ({address}) failed with exit code {code}; trying again", wait)
        if time.monotonic() > until:
            raise UnavailableError(
                f"no Ray head at {wanted.address}:{wanted.port} within {wanted.timeout:g} s: {told}",
                "is the leader running, and may this pod reach it? --ray_init_timeout=SECONDS waits longer",
            )
        time.sleep(1.0)


def _join(wanted: Wanted, python: str, address: str, until: float) -> tuple[int, int]:
    """Run Ray's node until it exits; return its exit code and the signal that we received (0: none)."""
    asked = 0

    def pass_on(number: int, _: object) -> None:
        nonlocal asked
        asked = number
        process.send_signal(number)

    head = host_port(address, wanted.port)
    argv = [python, INSIDE, "start", "--after", head, "--", "start", f"--address={head}", "--block", *wanted.rest]
    process = subprocess.Popen(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    while True:
        try:
            return process.wait(1.0), asked
        except subprocess.TimeoutExpired:
            if time.monotonic() > until and not _reachable(address, wanted.port):
                process.terminate()  # it is still waiting for a head that never came
                until = float("inf")


def _reachable(address: str, port: int) -> bool:
    import socket

    try:
        socket.create_connection((address, port), 2.0).close()
    except OSError:
        return False
    return True


def _tell(why: str, wait: WaitLines) -> str:
    """Say it when it changes, and once a minute how long it has lasted."""
    now = time.monotonic()
    if line := wait.line(why, now):
        lasted = wait.lasted(now)
        print(f"run.sh: {line}{f' (for {lasted:.0f} s)' if lasted >= 1 else ''}", file=sys.stderr, flush=True)
    return why


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
