"""Accepts connections so that a flood of them, or a shortage of descriptors, costs no more than closed connections.

Both protocols of the launcher begin with an HTTP request. Until its head is complete, a connection is one descriptor
and less than 1 KiB, without an asyncio transport; it waits here, and a newer one may displace it (`places.py`).
Complete requests are handed on, and so is what can never become a request, to be refused in words. Each iteration of
the event loop accepts, reads and hands on a bounded number, so that a flood leaves established connections their share.
Accepting is ten times cheaper than serving: the kernel's backlog is emptied fast, and of those that wait here, the
newest of the address with the fewest is served first. A probe never queues behind a flood.

asyncio's own servers do none of this: they accept without bound, pass a failed accept to the handler for bugs, and then
accept nothing for a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence

from launcher.common.places import Places

EACH_TURN = 128  #: connections accepted, and as many read, in one iteration of the event loop, at most
SERVED_EACH_TURN = 8  #: and handed on
PAUSE = 0.05  #: seconds until the next try after a shortage
MOST_HEAD = 16 << 10  #: of a request
MOST_PIECES = 256  #: in which it may come: who sends single bytes is no client that anybody misses
MOST_BYTES = 8 << 20  #: of unfinished heads, all together
#: Nothing more can be accepted until something is closed (accept(2)); every other error is that connection's own.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
_RESET = struct.pack("ii", 1, 0)  #: SO_LINGER: close with a reset, which leaves nothing behind in the kernel
_REQUEST_LINE = re.compile(rb"[A-Z]{1,20} [!-~]{1,8000} HTTP/1\.[01]\r\n")


class Incoming:
    """A connection whose request is not there yet, or not all of it."""

    __slots__ = ("head", "host", "pieces", "port", "since", "sock")

    def __init__(self, sock: socket.socket, host: str, port: int) -> None:
        self.sock = sock
        self.host = host
        self.port = port
        self.since = time.monotonic()
        self.head = b""  #: all that has come
        self.pieces = 0

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def read(self) -> bool:
        """Take what has come. False: the other side has gone."""
        try:
            piece = self.sock.recv(MOST_HEAD)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        self.head += piece
        self.pieces += 1
        return bool(piece)

    @property
    def has_asked(self) -> bool:
        """The head of the request is whole, or will never be one."""
        if not self.head:
            return False
        end = self.head.find(b"\n") + 1
        if not end:
            return len(self.head) > MOST_HEAD or not b"A" <= self.head[:1] <= b"Z"
        return b"\r\n\r\n" in self.head or len(self.head) > MOST_HEAD or not _REQUEST_LINE.match(self.head)


class Acceptor:
    """Accepts on ``sockets``, which it owns from now on.

    ``asked(incoming)`` takes over a connection and the head of its request, with whatever came behind it.
    ``refused(address, why)`` tells of each that was closed without a word. ``expel()`` closes a connection that was
    handed on, when there is nothing left to close here and a descriptor is needed.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        places: Places[Incoming],
        seconds: float,
        asked: Callable[[Incoming], None],
        refused: Callable[[str, str], None],
        expel: Callable[[], None],
    ) -> None:
        self._sockets = tuple(sockets)
        self._places = places
        self._seconds = seconds
        self._asked = asked
        self._refused = refused
        self._expel = expel
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._open = True
        self._each_turn = max(1, min(EACH_TURN, places.most // 4))  # who is in has some turns before it is displaced
        # One epoll inside the loop's own: it costs a system call for each connection instead of a handle and a key,
        # and hands out a bounded number of those that are ready, the others first the next time.
        self._epoll = select.epoll()
        self._by_fd: dict[int, Incoming] = {}
        self._ready: Places[Incoming] = Places(places.most, places.most)  # those of all that have asked
        self._bytes = 0  # of all heads
        self._loop.add_reader(self._epoll, self._read_some)
        for one in self._sockets:
            one.setblocking(False)
            self._listen(one)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Where it listens."""
        return tuple(one.getsockname()[:2] for one in self._sockets)

    def close(self) -> None:
        """Stop listening, and close those who have not asked."""
        if not self._open:
            return
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        for one in self._sockets:
            self._loop.remove_reader(one)
            one.close()
        for incoming in list(self._places):
            self._close(incoming)
        self._loop.remove_reader(self._epoll)
        self._epoll.close()

    # -------------------------------------------------------------------------------------------------------------

    def _listen(self, listening: socket.socket) -> None:
        if self._open:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(self._each_turn):
            try:
                sock, where = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in SHORTAGES:
                    continue  # it was gone before it was accepted (ECONNABORTED), or its network is
                if self._make_room(error):
                    continue
                self._loop.remove_reader(listening)
                self._loop.call_later(PAUSE, self._listen, listening)
                return
            self._enter(Incoming(sock, str(where[0]), int(where[1])))

    def _make_room(self, error: OSError) -> bool:
        """Close the connection that a newer one would displace. False: there is none here; one is closed elsewhere."""
        incoming = self._places.expel()
        if incoming is None:
            self._expel()
            return False
        self._refuse(incoming, f"said no hello, and made room for others ({error.strerror})")
        return True

    def _enter(self, incoming: Incoming) -> None:
        sock = incoming.sock
        sock.setblocking(False)
        if not incoming.read():
            sock.close()  # it is gone already: in a storm, most are
            return
        asked = incoming.has_asked  # most clients ask at once
        if not asked:
            try:
                self._epoll.register(sock, select.EPOLLIN)
            except OSError:  # it has no memory, or no watch, for one more
                sock.close()
                return
            self._by_fd[sock.fileno()] = incoming
        self._bytes += len(incoming.head)
        victim = self._places.enter(incoming, incoming.host)
        if victim is not None:
            self._displace(victim)
        if asked:
            self._is_ready(incoming)
        else:
            self._bound_bytes()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._expire)

    def _displace(self, victim: Incoming) -> None:
        """It has lost its place. It may have asked since we last looked: on a busy machine that is a while."""
        if not len(self._ready) and self._take(victim) and victim.has_asked:
            self._hand_on(victim)
        else:
            self._refuse(victim, "said no hello, and made room for a newer connection")

    def _read_some(self) -> None:
        for fd, _ in self._epoll.poll(0, self._each_turn):
            incoming = self._by_fd.get(fd)
            if incoming is not None:  # else it was closed in this very loop
                self._read(incoming)

    def _read(self, incoming: Incoming) -> None:
        if not self._take(incoming):
            self._close(incoming)
        elif incoming.has_asked:
            self._unwatch(incoming)
            self._is_ready(incoming)
        elif incoming.pieces > MOST_PIECES:
            self._refuse(incoming, "sent its request in too many pieces")
        else:
            self._bound_bytes()

    def _bound_bytes(self) -> None:
        if self._bytes > MOST_BYTES and self._by_fd:
            most = max(self._by_fd.values(), key=lambda one: len(one.head))
            self._refuse(most, "sent too much that is no request")

    def _is_ready(self, incoming: Incoming) -> None:
        if not len(self._ready):
            self._loop.call_soon(self._serve)
        self._ready.enter(incoming, incoming.host)

    def _serve(self) -> None:
        for _ in range(SERVED_EACH_TURN):
            incoming = self._ready.most_deserving()
            if incoming is None:
                return
            self._hand_on(incoming)
        if len(self._ready):
            self._loop.call_soon(self._serve)

    def _take(self, incoming: Incoming) -> bool:
        """Read, and count what came."""
        before = len(incoming.head)
        alive = incoming.read()
        self._bytes += len(incoming.head) - before
        return alive

    def _expire(self) -> None:
        now = time.monotonic()
        self._timer = None
        while (incoming := self._places.oldest()) is not None:
            left = incoming.since + self._seconds - now
            if left > 0:
                self._timer = self._loop.call_later(left, self._expire)
                return
            self._close(incoming)
            self._refused(incoming.address, "said no hello in time")

    def _hand_on(self, incoming: Incoming) -> None:
        self._forget(incoming)
        self._asked(incoming)

    def _refuse(self, incoming: Incoming, why: str) -> None:
        with contextlib.suppress(OSError):
            incoming.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close(incoming)
        self._refused(incoming.address, why)

    def _close(self, incoming: Incoming) -> None:
        self._forget(incoming)
        incoming.sock.close()

    def _forget(self, incoming: Incoming) -> None:
        self._places.leave(incoming)
        self._bytes -= len(incoming.head)
        if not self._ready.leave(incoming):
            self._unwatch(incoming)

    def _unwatch(self, incoming: Incoming) -> None:
        if self._by_fd.pop(incoming.sock.fileno(), None) is not None:
            self._epoll.unregister(incoming.sock)


async def adopt(protocol: asyncio.BaseProtocol, sock: socket.socket) -> None:
    """Give an accepted socket to asyncio. A failure ends this connection only."""
    try:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, sock)
    except Exception:  # whatever it is, it is of this connection
        sock.close()
