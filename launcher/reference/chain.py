"""The chain: frames that carry the states of a batch from worker to worker, and the worker process that passes them on.

    rank 0 main -> worker 0 .. worker k of rank 0 -> (TCP) -> workers of rank 1 -> (TCP) -> ... -> (TCP) -> rank 0 main

A connection between ranks opens with a hello that carries the epoch's token. The answer is ACCEPTED or REFUSED, so a
rank left over from another epoch never joins. A connection that sends nothing (a port probe) is harmless. A worker
decides nothing: it reports events to its main process, one line each (``serving``, ``lost ...``, ``failed ...``,
``bye``), and exits when that process is gone.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from time import monotonic

from launcher.reference.loading import load
from launcher.reference.options import Options
from launcher.reference.process import end, log, rename
from launcher.reference.tokens import mix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

HEADER = struct.Struct("!BIQ")  # kind, number of states, step
HELLO = struct.Struct("!4sHH")  # magic, sender's rank, bytes of the token that follows
MAGIC = b"REF1"
STEP, BYE = 1, 2
ACCEPTED, REFUSED = b"A", b"R"
RETRY = 0.05
LARGEST_TOKEN = 512
STRANGERS = 16  #: most connections that have not sent their hello


def frame(kind: int, step: int, states: list[int]) -> bytes:
    """Encode a batch of states; it is empty in a probe of the chain and in a farewell."""
    return HEADER.pack(kind, len(states), step) + struct.pack(f"!{len(states)}Q", *states)


class ChainFrames:
    """Splits a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> tuple[int, int, list[int]] | None:
        """(kind, step, states) of the next whole frame, else None."""
        if len(self._buffer) < HEADER.size:
            return None
        kind, states, step = HEADER.unpack_from(self._buffer)
        whole = HEADER.size + 8 * states
        if len(self._buffer) < whole:
            return None
        values = list(struct.unpack_from(f"!{states}Q", self._buffer, HEADER.size))
        del self._buffer[:whole]
        return kind, step, values


def hello(options: Options) -> bytes:
    """The first bytes that a rank sends to the next one."""
    token = options.epoch_token.encode()
    return HELLO.pack(MAGIC, options.rank, len(token)) + token


def greeting(data: bytes, options: Options) -> bytes | None:
    """The answer to the previous rank's hello; None while it is incomplete."""
    if len(data) < HELLO.size:
        return None if MAGIC.startswith(data[:4]) else REFUSED
    magic, rank, length = HELLO.unpack_from(data)
    if magic != MAGIC or length > LARGEST_TOKEN or rank != (options.rank - 1) % options.size:
        return REFUSED
    if len(data) < HELLO.size + length:
        return None
    return ACCEPTED if data[HELLO.size :] == options.epoch_token.encode() else REFUSED


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """A non-blocking listening socket, IPv4 or IPv6 depending on the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, port))
    server.listen(backlog)
    server.setblocking(False)
    return server


class Worker:
    """The loop of one worker process.

    Args:
        index: place among all workers of the group.
        life: the socket to the main process.
        source: where frames come from; None: the first connection to ``listener`` with a valid hello.
        target: where frames go; None: connect to the next rank.
    """

    def __init__(
        self,
        options: Options,
        index: int,
        life: socket.socket,
        *,
        source: socket.socket | None,
        listener: socket.socket | None,
        target: socket.socket | None,
    ) -> None:
        self.options, self.index, self.life = options, index, life
        self.source, self.listener, self.target = source, listener, target
        self.joined = target is not None  #: the target has accepted the hello
        self.passing = False  #: frames are read from the source
        self.next_rank = (options.rank + 1) % options.size
        self.frames = ChainFrames()
        self.strangers: dict[int, tuple[socket.socket, bytearray]] = {}
        self.loaded_at = monotonic() + options.startup_seconds
        self.loading = load(options)  #: after that
        self.loaded = False
        self.serving_since: float | None = None
        self.hang_after = options.hang_after if options.faulty else None
        self.retry_at = 0.0
        self.poll = select.poll()

    def run(self) -> NoReturn:
        """Forward frames until the main process is gone."""
        self._watch(self.life)
        self._watch(self.listener)
        if self.joined:
            self._watch(self.target)
        while True:
            now = monotonic()
            if self.target is None and now >= self.retry_at:
                self._connect()
            if not self.loaded and now >= self.loaded_at:
                self._load(now)
            if not self.passing and self.joined and self.source is not None and self.loaded:
                self.passing = True
                self._watch(self.source)
            for fd, _events in self._wait_for_frames(now):
                self._ready(fd)

    def _wait_for_frames(self, now: float) -> list[tuple[int, int]]:
        """Wait for the rank before: an autopsy tells by this name who waits."""
        return self.poll.poll(self._timeout(now))

    def _timeout(self, now: float) -> int | None:
        waits = [self.retry_at - now] if self.target is None else []
        if not self.loaded:
            waits.append(self.loaded_at - now)
        return int(max(0.0, min(waits)) * 1000) + 1 if waits else None

    def _load(self, now: float) -> None:
        """Go on with loading."""
        pause = next(self.loading, None)
        self.loaded = pause is None
        self.loaded_at = now + (pause or 0.0)

    def _ready(self, fd: int) -> None:
        if fd == self.life.fileno():
            self._main_gone()
        elif self.listener is not None and fd == self.listener.fileno():
            self._accept()
        elif self.target is not None and fd == self.target.fileno():
            self._from_target()
        elif self.source is not None and fd == self.source.fileno():
            self._from_source()
        elif fd in self.strangers:
            self._from_stranger(fd)

    # ------------------------------------------------------------------------------------------- joining

    def _connect(self) -> None:
        address = self.options.peers[self.next_rank]
        try:
            target = socket.create_connection((address, self.options.peer_port), timeout=1.0)
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            target.settimeout(None)
            target.sendall(hello(self.options))
        except OSError:
            self.retry_at = monotonic() + RETRY
            return
        self.target = target
        self._watch(target)

    def _accept(self) -> None:
        assert self.listener is not None
        try:
            stranger, _ = self.listener.accept()
        except OSError:
            return
        if len(self.strangers) >= STRANGERS:
            oldest = next(iter(self.strangers))
            self._forget(oldest)
        stranger.setblocking(False)
        self.strangers[stranger.fileno()] = (stranger, bytearray())
        self._watch(stranger)

    def _from_stranger(self, fd: int) -> None:
        stranger, said = self.strangers[fd]
        data = receive(stranger, HELLO.size + LARGEST_TOKEN)
        if data is None:
            return
        said += data
        answer = greeting(bytes(said), self.options) if data else REFUSED
        if answer is None:
            return
        if answer == ACCEPTED and self.source is None:
            del self.strangers[fd]
            self.poll.unregister(fd)
            stranger.setblocking(True)
            stranger.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stranger.sendall(ACCEPTED)
            self.source = stranger
            return
        if data:
            send(stranger, REFUSED)
        self._forget(fd)

    def _forget(self, fd: int) -> None:
        stranger, _ = self.strangers.pop(fd)
        self.poll.unregister(fd)
        stranger.close()

    # ------------------------------------------------------------------------------------------- forwarding

    def _from_source(self) -> None:
        assert self.source is not None
        data = receive(self.source, 1 << 16)
        if not data:
            self.poll.unregister(self.source)
            self._tell(f"lost the rank before, rank {(self.options.rank - 1) % self.options.size}")
            return
        self.frames.feed(data)
        while (received := self.frames.next()) is not None:
            self._pass_on(*received)

    def _pass_on(self, kind: int, step: int, states: list[int]) -> None:
        now = monotonic()
        if self.serving_since is None:
            self.serving_since = now
            self._tell("serving")
        if kind == BYE:
            self._tell("bye")
        if self.hang_after is not None and now >= self.serving_since + self.hang_after:
            hang(self.options.hang_mode)
            return
        assert self.target is not None
        try:
            self.target.sendall(frame(kind, step, [mix(state, self.index) for state in states]))
        except OSError as error:
            self._tell(f"failed to pass a batch on to rank {self.next_rank}: {error.strerror}")

    def _from_target(self) -> None:
        assert self.target is not None
        data = receive(self.target, 1)
        if not self.joined:
            if data == ACCEPTED:
                self.joined = True
                return
            self.poll.unregister(self.target)
            self.target.close()
            self.target, self.retry_at = None, monotonic() + RETRY
        elif not data:
            self.poll.unregister(self.target)
            self._tell(f"lost the rank after, rank {self.next_rank}")

    def _main_gone(self) -> None:
        if receive(self.life, 1):
            return
        if not self.options.orphans_live or not self.options.faulty:
            end(0)
        self.poll.unregister(self.life)

    def _tell(self, line: str) -> None:
        send(self.life, line.encode() + b"\n")

    def _watch(self, sock: socket.socket | None) -> None:
        if sock is not None:
            self.poll.register(sock, select.POLLIN)


def hang(mode: str) -> None:
    """Injected: do no more work, in one of the ways in which engines do none."""
    if mode == "busy":
        _compute()
    elif mode == "blocked":
        _read_nothing()
    elif mode == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)


def _compute() -> NoReturn:
    number = 0
    while True:
        number = (number * 31 + 7) % 1_000_003


def _read_nothing() -> None:
    nothing, _writer = os.pipe()
    os.read(nothing, 1)


def start(worker: Worker, title: str, others: list[socket.socket]) -> int:
    """Fork a worker process and return its pid; the child closes ``others``."""
    pid = os.fork()
    if pid:
        return pid
    try:
        # The main process ends its workers. SIGTERM to the whole tree must not cut requests in flight.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for sock in others:
            sock.close()
        rename(title)
        worker.run()
    except BaseException as error:
        log(worker.options.rank, f"{title} broke: {error!r}")
    finally:
        end(70)


def receive(sock: socket.socket, most: int) -> bytes | None:
    """Bytes that have arrived; None if there are none, empty if the connection has closed or failed."""
    try:
        return sock.recv(most)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:
        return b""


def send(sock: socket.socket, data: bytes) -> None:
    """Send a few bytes; ignore a peer that is gone."""
    try:
        sock.sendall(data)
    except OSError:
        return
