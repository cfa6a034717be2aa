"""Accepting connections so that no number of them, and no shortage, is more than a connection that is closed.

A connection that says nothing costs one descriptor and about 1 KiB: it waits here, without a transport, and whoever
comes later takes its place (`places.py`). Both protocols of the launcher have the client speak first, so what has
spoken is handed on. asyncio's own servers do none of this: they accept without bound, hand a failed accept to the
handler that is for bugs, and then accept nobody for a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable, Sequence

from launcher.places import Places

#: Connections accepted in one iteration of the event loop, at most, so that those who are in get their turn.
EACH_TURN = 32
PAUSE = 0.05  #: seconds until the next try after a shortage
#: Nothing more can be accepted until something is closed (accept(2)); every other error is that connection's own.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
_RESET = struct.pack("ii", 1, 0)  #: SO_LINGER: close with a reset, which leaves nothing behind in the kernel


class Silent:
    """A connection that has said nothing yet."""

    __slots__ = ("host", "port", "since", "sock")

    def __init__(self, sock: socket.socket, host: str, port: int) -> None:
        self.sock = sock
        self.host = host
        self.port = port
        self.since = time.monotonic()


class Acceptor:
    """Accepts on ``sockets``, which it owns from now on.

    ``spoke(sock, silent)`` takes over a connection whose first bytes can be read. ``refused(address, why)`` tells of
    each that was closed without a word. ``expel()`` closes a connection that was handed on, when there is nothing left
    to close here and a descriptor is needed.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        places: Places[Silent],
        seconds: float,
        spoke: Callable[[socket.socket, Silent], None],
        refused: Callable[[str, str], None],
        expel: Callable[[], None],
    ) -> None:
        self._sockets = tuple(sockets)
        self._places = places
        self._seconds = seconds
        self._spoke = spoke
        self._refused = refused
        self._expel = expel
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._open = True
        self._each_turn = max(1, min(EACH_TURN, places.most // 4))  # who is in has some turns before it is displaced
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
        """Stop listening, and close those who have said nothing."""
        if not self._open:
            return
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        for one in self._sockets:
            self._loop.remove_reader(one)
            one.close()
        for silent in list(self._places):
            self._drop(silent)

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
            self._enter(sock, str(where[0]), int(where[1]))

    def _make_room(self, error: OSError) -> bool:
        """Close the one who would go for a newcomer. False: it will be closed soon, or there is nobody."""
        silent = self._places.expel()
        if silent is None:
            self._expel()
            return False
        self._close(silent, reset=True)
        self._refused(f"{silent.host}:{silent.port}", f"said nothing, and made room for others ({error.strerror})")
        return True

    def _enter(self, sock: socket.socket, host: str, port: int) -> None:
        silent = Silent(sock, host, port)
        try:
            sock.setblocking(False)
            first = self._first_word(silent)
            if first is None:
                self._loop.add_reader(sock, self._readable, silent)
        except OSError:  # epoll has no memory, or no watch, for one more
            first = b""
        if first:
            self._spoke(sock, silent)  # most clients speak at once
        elif first is not None:
            sock.close()  # it is gone already: in a storm, most are
        if first is not None:
            return
        victim = self._places.enter(silent, host)
        if victim is not None:
            self._displace(victim)
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._expire)

    def _displace(self, victim: Silent) -> None:
        """It has lost its place. It may have spoken since we last looked: on a busy machine that is a while."""
        if self._first_word(victim):
            self._hand_on(victim)
        else:
            self._close(victim, reset=True)
            self._refused(f"{victim.host}:{victim.port}", "said nothing, and made room for a newer connection")

    def _readable(self, silent: Silent) -> None:
        first = self._first_word(silent)
        if first is None:
            return
        if not first:
            self._drop(silent)
            return
        self._places.leave(silent)
        self._hand_on(silent)

    def _hand_on(self, silent: Silent) -> None:
        self._loop.remove_reader(silent.sock)
        self._spoke(silent.sock, silent)

    @staticmethod
    def _first_word(silent: Silent) -> bytes | None:
        """None: nothing has arrived; empty: it has gone."""
        try:
            return silent.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def _expire(self) -> None:
        now = time.monotonic()
        self._timer = None
        while (silent := self._places.oldest()) is not None:
            left = silent.since + self._seconds - now
            if left > 0:
                self._timer = self._loop.call_later(left, self._expire)
                return
            self._drop(silent)
            self._refused(f"{silent.host}:{silent.port}", "said no hello in time")

    def _drop(self, silent: Silent) -> None:
        self._places.leave(silent)
        self._close(silent)

    def _close(self, silent: Silent, reset: bool = False) -> None:
        self._loop.remove_reader(silent.sock)
        if reset:
            with contextlib.suppress(OSError):
                silent.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        silent.sock.close()


async def adopt(protocol: asyncio.BaseProtocol, sock: socket.socket) -> None:
    """Give an accepted socket to asyncio. What fails is that connection's end, and nobody else's."""
    try:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, sock)
    except Exception:  # whatever it is, it is of this connection
        sock.close()
