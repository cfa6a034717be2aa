"""Strangers in numbers: a process that opens connections, keeps them or not, and stops by itself.

    python -m tests.crowd '{"host": "127.0.0.1", "port": 1, "kind": "idle", "count": 300, "seconds": 5}'

idle    keeps `count` connections and says nothing; one that is closed is opened again
slow    the same, and each says a request, one byte each second and connection
talk    the same, and each says a whole upgrade and then nothing
storm   connects, says an upgrade on every second one, and hangs up

At most `rate` connections are opened in a second, from `sources` addresses (0: from the one that clients have). What
came of it is printed as JSON.
Loopback only.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UPGRADE = (
    b"GET /group HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nLauncher-Proof: 2\r\n\r\n"
)
_RESET = struct.pack("ii", 1, 0)
KINDS = ("idle", "slow", "talk", "storm")


class Crowd:
    """The strangers of one process."""

    def __init__(self, host: str, port: int, kind: str, count: int, seconds: float, rate: float, sources: int) -> None:
        assert host.startswith("127.") and kind in KINDS
        self._where, self._kind, self._count, self._rate = (host, port), kind, count, rate
        self._sources = [f"127.0.{i // 250 + 1}.{i % 250 + 1}" for i in range(sources)]
        self._until = time.monotonic() + seconds
        self._epoll = select.epoll()
        self._open: dict[int, tuple[socket.socket, int, float]] = {}  # bytes said, and when the next is due
        self.told = {"opened": 0, "refused": 0, "closed": 0, "most": 0}

    def run(self) -> dict[str, int]:
        began, opened = time.monotonic(), 0
        drip = began
        while (now := time.monotonic()) < self._until:
            due = int((now - began) * self._rate) - opened
            for _ in range(min(due, 200, self._count - len(self._open))):
                self._dial()
                opened += 1
            if self._count <= len(self._open):  # what is not opened now is not opened later, all at once
                opened = int((now - began) * self._rate)
            self.told["most"] = max(self.told["most"], len(self._open))
            for fd, _ in self._epoll.poll(0.005):
                self._read(fd)
            if self._kind == "slow" and now >= drip:
                drip = now + 0.25
                self._drip(now)
        for fd in list(self._open):
            self._drop(fd)
        return self.told

    def _dial(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)  # no TIME_WAIT: ports are used again
        try:
            if self._sources:
                sock.bind((self._sources[self.told["opened"] % len(self._sources)], 0))
            with contextlib.suppress(BlockingIOError):
                sock.connect(self._where)  # on loopback it is there, or waits for room in the backlog
        except OSError:
            self.told["refused"] += 1
            sock.close()
            return
        self.told["opened"] += 1
        if self._kind == "talk" or (self._kind == "storm" and self.told["opened"] % 2):
            with contextlib.suppress(OSError):
                sock.send(UPGRADE)
        if self._kind == "storm":
            sock.close()
            return
        self._open[sock.fileno()] = (sock, 0, time.monotonic())
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLHUP)

    def _read(self, fd: int) -> None:
        try:
            alive = self._open[fd][0].recv(65536)
        except BlockingIOError:
            return
        except OSError:
            alive = b""
        if not alive:
            self.told["closed"] += 1
            self._drop(fd)

    def _drip(self, now: float) -> None:
        for fd, (sock, said, due) in list(self._open.items()):
            if due <= now:
                with contextlib.suppress(OSError):
                    sock.send(UPGRADE[said % 60 :][:1])
                self._open[fd] = (sock, said + 1, now + 1.0)

    def _drop(self, fd: int) -> None:
        sock, _, _ = self._open.pop(fd)
        self._epoll.unregister(fd)
        sock.close()


@contextlib.contextmanager
def crowd(host: str, port: int, kind: str, count: int, seconds: float, **more: Any) -> Iterator[dict[str, int]]:
    """Strangers at a port for the length of the block, and for ``seconds`` at most. Afterwards: what came of them."""
    spec = {"host": host, "port": port, "kind": kind, "count": count, "seconds": seconds, **more}
    told: dict[str, int] = {}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.crowd", json.dumps(spec)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert process.stdout is not None and process.stdout.readline(), "the crowd has begun"
        yield told
    finally:
        process.terminate()
        out, _ = process.communicate()
        told.update(json.loads(out or b"{}"))


def main() -> None:
    import signal

    spec = json.loads(sys.argv[1])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(spec["count"], hard - 50)
    one = Crowd(
        spec["host"],
        spec["port"],
        spec["kind"],
        count,
        spec["seconds"],
        spec.get("rate", 5000.0),
        spec.get("sources", 0),
    )
    parent = os.getppid()

    def stop(*_: object) -> None:
        one._until = 0.0

    signal.signal(signal.SIGTERM, stop)
    print("begun", flush=True)
    assert os.getppid() == parent
    print(json.dumps(one.run()), flush=True)


if __name__ == "__main__":
    main()
