"""`launcher local --size N`: a whole group on this machine, for trying things out and for demos.

Each rank r is its own launcher on 127.0.0.(1+r), so all ranks use the same ports, as pods do; an engine may ask for
other addresses (``Engine.local``). Their output becomes one stream, with a prefix for each rank. Ctrl-C and SIGTERM
are forwarded to all ranks. The exit code is that of the lowest rank that failed.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any

from launcher.errors import ConfigError
from launcher.node import reexec
from launcher.planning import steps
from launcher.settings import Settings

PR_SET_PDEATHSIG = 1  #: prctl(2)
COLOURS = (36, 33, 35, 32, 34, 31)


def run(size: int, args: Sequence[str], settings: Settings) -> int:
    """Start ``size`` ranks with the command line ``args`` (without the word local) and wait for all."""
    if size > 250:
        raise ConfigError(f"--size {size} is more than this machine's loopback ranks", "give 250 or less")
    needs = steps.engine_of(settings).local(settings, size)
    wrap = _own_shm(needs.private_shm)
    ranks = [_start(rank, size, args, wrap, needs.first_host) for rank in range(size)]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGHUP: the terminal closed
        as_what = signal.SIGTERM if number == signal.SIGHUP else number
        signal.signal(number, lambda *_, n=as_what: _pass_on(ranks, n))
    _prefix_all(ranks)
    codes = [r.wait() for r in ranks]
    codes = [c if c >= 0 else 128 - c for c in codes]
    return next((c for c in codes if c), 0)


def _start(rank: int, size: int, args: Sequence[str], wrap: list[str], first: int) -> subprocess.Popen[bytes]:
    environ = dict(os.environ)
    for name in ("LAUNCHER_PEERS", "LAUNCHER_LEADER"):
        environ.pop(name, None)
    environ |= {
        "LAUNCHER_RANK": str(rank),
        "LAUNCHER_SIZE": str(size),
        "LAUNCHER_LEADER": f"127.0.0.{first}",
        "LAUNCHER_ADDRESS": f"127.0.0.{first + rank}",
        "LAUNCHER_GROUP_ID": os.environ.get("LAUNCHER_GROUP_ID", f"local/{os.getpid()}"),
        "LAUNCHER_TERMINATION_LOG": os.devnull,
    }
    command = [*wrap, reexec.python(), "-m", "launcher", "run", *args]
    # Each rank gets its own session, so that Ctrl-C reaches it only once, through this process.
    return subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with(os.getpid()),  # noqa: PLW1509  # there is one thread
    )


def _end_with(parent: int) -> Callable[[], None]:
    """A hook for a rank: the kernel sends it SIGTERM if this process is killed, since nothing else would stop it."""
    prctl = ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)

    return bind


def _pass_on(ranks: list[subprocess.Popen[bytes]], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def _prefix_all(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Copy lines, with a prefix, until every rank has closed its output."""
    paint = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    out = sys.stdout.buffer
    with selectors.DefaultSelector() as selector:
        parts: dict[int, bytes] = {}
        for rank, process in enumerate(ranks):
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            selector.register(process.stdout, selectors.EVENT_READ, rank)
            parts[rank] = b""
        while selector.get_map():
            for key, _ in selector.select():
                stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
                data: bytes | None = stream.read(1 << 16)
                rank = key.data
                if data is None:
                    continue
                *lines, parts[rank] = (parts[rank] + data).split(b"\n")
                if not data:
                    selector.unregister(stream)
                    lines += [parts[rank]] if parts[rank] else []
                for line in lines:
                    out.write(_mark(rank, paint) + line + b"\n")
            out.flush()


def _mark(rank: int, paint: bool) -> bytes:
    text = f"[{rank}] "
    return (f"\x1b[{COLOURS[rank % len(COLOURS)]}m{text}\x1b[0m" if paint else text).encode()


def _own_shm(why: str) -> list[str]:
    """The wrapper command that gives each rank its own /dev/shm; empty without a reason for one."""
    if not why:
        return []
    wrap = [reexec.python(), "-m", "launcher.cli.private_shm", "--"]
    probe: Any = subprocess.run([*wrap, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise ConfigError(
            f"each rank on this machine needs a /dev/shm of its own ({why}), "
            f"and this user may not mount one ({probe.stderr.strip()})",
            "run as root or where unprivileged user namespaces are allowed; or run the ranks in containers",
        )
    return wrap
