"""The board of `doctor --group`: every rank posts its findings to the leader and measures its path to it.

Each request is one TCP connection: a line of JSON with a MAC keyed by the epoch's token, answered by one line. The same
UDP port echoes, to find the path MTU. The board lives for one doctor run; it stores posts without interpreting them.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import socket
import socketserver
import threading
import time
from collections.abc import Sequence
from typing import Any

LONGEST = 1 << 20  #: bytes of one request
SECONDS = 5.0  #: for one request and its answer
BACK_SECONDS = 2.0  #: for a connection from the leader to a worker
MTU_TRIES = 3
ECHO_SECONDS = 0.3
HEADERS = {4: 28, 6: 48}  #: IP and UDP
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2  #: ip(7); sets DF: a packet that is too large is dropped, not fragmented
IPV6_MTU_DISCOVER = 23  #: ipv6(7)


class ExchangeError(Exception):
    """A request got no answer; the message says why."""


class Board:
    """The posts, by kind and rank. Shared by the threads of the server."""

    def __init__(self, token: str, ports: Sequence[int]) -> None:
        self.token = token
        self.ports = tuple(ports)
        self._posts: dict[str, dict[int, Any]] = {}
        self._lock = threading.Lock()

    def answer(self, question: dict[str, Any]) -> Any:
        kind = question.get("is")
        if kind == "time":
            return time.time()
        if kind == "ports":
            return list(self.ports)
        if kind == "back":
            return _connect_back(question.get("address"), question.get("port"))
        with self._lock:
            if kind == "post":
                self._posts.setdefault(str(question["kind"]), {})[int(question["rank"])] = question.get("body")
                return True
            return {k: {str(rank): body for rank, body in v.items()} for k, v in self._posts.items()}


class BoardServer:
    """Listens on ``address`` and ``port``, TCP and UDP, until :meth:`close`. Raises OSError."""

    def __init__(self, address: str, port: int, board: Board) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._tcp = _Tcp((address, port), family, board)
        self._udp = socket.socket(family, socket.SOCK_DGRAM)
        self._udp.bind((address, self.port))
        threading.Thread(target=self._tcp.serve_forever, args=(0.1,), name="exchange", daemon=True).start()
        threading.Thread(target=self._echo, name="echo", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._tcp.server_address[1])

    def close(self) -> None:
        self._tcp.shutdown()
        self._tcp.server_close()
        self._udp.close()

    def _echo(self) -> None:
        """Answer with the received length only: the return path may have another MTU."""
        while True:
            try:
                data, peer = self._udp.recvfrom(65536)
                self._udp.sendto(str(len(data)).encode(), peer)
            except OSError:
                return


def ask(address: str, port: int, token: str, question: dict[str, Any], seconds: float = SECONDS) -> Any:
    """Send one request and return the answer. Raises ExchangeError."""
    body = json.dumps(question)
    line = f"{_mac(token, body)} {body}\n".encode()
    try:
        with socket.create_connection((address, port), seconds) as connection:
            connection.settimeout(seconds)
            connection.sendall(line)
            answer = connection.makefile("rb").readline(LONGEST)
        mac, _, body = answer.decode("utf-8", "replace").strip().partition(" ")
        if not hmac.compare_digest(mac, _mac(token, body)):
            raise ExchangeError("an answer without a proof of the epoch's token: something else listens there")
        return json.loads(body)
    except OSError as error:
        raise ExchangeError("no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)) from None
    except ValueError:
        raise ExchangeError("an answer that cannot be read") from None


def clock_skew(address: str, port: int, token: str, tries: int = 5) -> tuple[float, float]:
    """Seconds that the leader's clock is ahead of ours, and the uncertainty (half of the fastest round trip)."""
    best = (0.0, float("inf"))
    for _ in range(tries):
        before = time.time()
        theirs = float(ask(address, port, token, {"is": "time"}))
        after = time.time()
        half = (after - before) / 2
        if half < best[1]:
            best = (theirs - before - half, half)
    return best


def path_mtu(address: str, port: int, largest: int) -> int | None:
    """The largest packet (headers included) that reaches the leader whole, at most ``largest``; None: no UDP passes.

    Packets have DF set. If a router reports that one is too big, the kernel learns the path's MTU; if it drops the
    packet silently (a black hole), no answer comes. Tries only the sizes that occur in networks.
    """
    version = 6 if ":" in address else 4
    sizes = [s for s in (largest, 9000, 8950, 8900, 4096, 1500, 1480, 1450, 1440, 1420, 1400, 1280) if s <= largest]
    with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if version == 6:
            probe.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)
        else:
            probe.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        probe.settimeout(ECHO_SECONDS)
        probe.connect((address, port))
        if not _echoed(probe, 64):
            return None
        for size in dict.fromkeys(sizes):
            if _echoed(probe, size - HEADERS[version]):
                return size
    return 0


def _echoed(probe: socket.socket, length: int) -> bool:
    for _ in range(MTU_TRIES):
        try:
            probe.send(b"\0" * length)
            while True:
                if probe.recv(64) == str(length).encode():
                    return True
        except TimeoutError:
            continue
        except OSError:  # EMSGSIZE: the kernel already knows that it is too large
            return False
    return False


def _connect_back(address: object, port: object) -> str:
    """Empty if a connection to the requesting pod works, else why not."""
    if not isinstance(address, str) or not isinstance(port, int) or not 0 < port < 65536:
        return "no port was named"
    try:
        socket.create_connection((address, port), BACK_SECONDS).close()
    except OSError as error:
        return "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return ""


def _mac(token: str, body: str) -> str:
    return hmac.new(token.encode(), body.encode(), hashlib.sha256).hexdigest()


class _Handler(socketserver.StreamRequestHandler):
    timeout = SECONDS

    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Tcp)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            line = self.rfile.readline(LONGEST).decode("utf-8")
            mac, _, body = line.strip().partition(" ")
            if hmac.compare_digest(mac, _mac(server.board.token, body)):
                answer = json.dumps(server.board.answer(json.loads(body)))
                self.wfile.write(f"{_mac(server.board.token, answer)} {answer}\n".encode())


class _Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, at: tuple[str, int], family: socket.AddressFamily, board: Board) -> None:
        self.address_family = family
        self.board = board
        super().__init__(at, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a peer that hangs up."""
