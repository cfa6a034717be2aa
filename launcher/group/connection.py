"""One connection of the group: the WebSocket library's sans-I/O protocol, between asyncio's transport and `link.py`.

A leader may have a thousand members, which connect in the same second and ping twice a second each. So a connection is
not a task with queues, as in the library's own asyncio implementation: what arrives is handled before anything else is
read. Each connection is served once per loop iteration, so that newcomers do not delay the members' pings.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol

from launcher.group import messages as m
from launcher.group.proof import TAG_BYTES, Seal, digest_of

CLOSE_SECONDS = 0.5  #: for the other side's goodbye, then the connection is cut
UNREAD_BYTES = 4 << 20  #: a peer that leaves more than this unread is closed
BURST, PER_SECOND = 500, 100.0  #: frames that one member may send at once, and per second in the long run

# The library would log every unknown peer; we log what matters ourselves.
SILENT = logging.getLogger("launcher.link")
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False
SILENT.setLevel(logging.CRITICAL + 1)


class LinkError(Exception):
    """A connection could not be made or was refused before hello; the text is for people."""


class Unexpected(Exception):
    """An unforeseen error over what arrived on a connection. It is counted separately, because it deserves a look."""


EXPECTED = (LinkError, m.Malformed, OSError)


class Errors:
    """How many connections were closed because of what arrived on them, by kind."""

    def __init__(self) -> None:
        self.protocol = 0  #: the peer violated the protocol
        self.unexpected = 0

    def count(self, error: Exception) -> None:
        if isinstance(error, Unexpected):
            self.unexpected += 1
        elif not isinstance(error, OSError):  # an OSError is a broken connection
            self.protocol += 1


class EncodedMessage:
    """One message of the leader, encoded once for all its recipients."""

    def __init__(self, text: str, sealed: bool) -> None:
        self._text = text.encode()
        self._digest = digest_of(self._text) if sealed else b""
        self._head = _head(len(self._text) + (TAG_BYTES if sealed else 0))

    def pieces(self, seal: Seal | None) -> tuple[bytes, ...]:
        """The frame for one member."""
        if seal is None:
            return (self._head, self._text)
        return (self._head, seal.tag(self._digest), self._text)


def _head(length: int) -> bytes:
    """The header of an unmasked text frame (RFC 6455, 5.2)."""
    if length < 126:
        return bytes((0x81, length))
    if length < 1 << 16:
        return b"\x81\x7e" + length.to_bytes(2, "big")
    return b"\x81\x7f" + length.to_bytes(8, "big")


class Allowance:
    """How much one peer may send: a burst, and a number of frames per second."""

    def __init__(self) -> None:
        self._left, self._since = float(BURST), time.monotonic()

    def spend(self) -> None:
        """Raises Malformed if the peer exceeds its allowance."""
        now = time.monotonic()
        self._left, self._since = min(BURST, self._left + (now - self._since) * PER_SECOND) - 1, now
        if self._left < 0:
            raise m.Malformed(f"more than {PER_SECOND:g} messages a second")


#: What a read may bring; asyncio's own 256 KiB for each are mapped and unmapped by glibc at every message.
_BUFFER = memoryview(bytearray(64 * 1024))


class Wire(asyncio.BufferedProtocol):
    """One connection. Each text that arrives goes to ``hear``; its end is reported once, immediately.

    ``made``: TCP is open. ``shaken``: the handshake's request or response has arrived. ``ended(error)``: nothing more
    will be heard, because the other side has left (None) or because of what it sent. ``lost``: TCP is closed.
    Whatever ``shaken``, ``hear`` or the library raise over input ends this connection and nothing else: no input
    reaches the event loop as an exception. ``grew``: bytes wait here for the rest of their message.
    """

    def __init__(
        self,
        ws: ServerProtocol | ClientProtocol,
        *,
        made: Callable[[Wire], None],
        shaken: Callable[[Wire, Any], None],
        ended: Callable[[Wire, Exception | None], None],
        lost: Callable[[Wire], None] = lambda wire: None,
        grew: Callable[[Wire], None] = lambda wire: None,
        allowance: Allowance | None = None,
    ) -> None:
        self.ws = ws
        self.hear: Callable[[Wire, str], None] = _too_soon
        self.pending = 0  #: bytes that have arrived of an incomplete message
        self.seal_out: Seal | None = None  #: once proven: seals outgoing messages
        self.seal_in: Seal | None = None  #: once proven: verifies incoming messages
        self._made = made
        self._shaken = shaken
        self._ended = ended
        self._lost = lost
        self._grew = grew
        self._allowance = allowance
        self.over = False  #: nothing more will be heard
        self._finished = False  # our half is closed
        self._doomed = False  # cut before TCP was handed to us
        self.peer: tuple[str, int] = ("an unknown address", 0)  #: address and port of the other side
        self._transport: asyncio.Transport | None = None
        self._closing: asyncio.TimerHandle | None = None

    @property
    def gone(self) -> bool:
        """Whether it never got a transport."""
        return self._transport is None

    @property
    def own(self) -> str:
        """Our own address on this connection."""
        found = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(found[0]) if isinstance(found, tuple) else ""

    @property
    def why(self) -> str:
        """Why it was closed, for people; empty if in good order."""
        close = self.ws.close_rcvd or self.ws.close_sent
        if close is None:
            return "without a goodbye"
        return "" if close.code in (1000, 1001) else f"code {close.code} {close.reason}".strip()

    def say(self, body: dict[str, Any]) -> None:
        self.say_text(json.dumps(body))

    def say_text(self, text: str) -> None:
        if self.ws.state is State.OPEN:
            said = text.encode()
            self.ws.send_text(said if self.seal_out is None else self.seal_out.tag(digest_of(said)) + said)
            self.flush()

    def write(self, messages: list[EncodedMessage]) -> None:
        """Send encoded messages of the leader. A peer that reads too slowly is cut off."""
        transport = self._transport
        if transport is None or self._finished or not messages or self.ws.state is not State.OPEN:
            return
        transport.write(b"".join(piece for one in messages for piece in one.pieces(self.seal_out)))
        if transport.get_write_buffer_size() > UNREAD_BYTES:
            transport.abort()

    def flush(self) -> None:
        """Send what the library has queued."""
        transport = self._transport
        for data in self.ws.data_to_send():
            if transport is None or self._finished:
                continue
            if data == SEND_EOF:
                self._finished = True
                try:
                    transport.write_eof()
                except OSError:  # the other side has left, and asyncio does not know yet
                    transport.abort()
            else:
                transport.write(data)
        if transport is not None and transport.get_write_buffer_size() > UNREAD_BYTES:
            transport.abort()
        if self.ws.close_expected() and self._closing is None:
            self._closing = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.cut)

    def refuse(self, error: Exception, code: int = 1000) -> None:
        """Refuse the connection and ignore its further input. With another ``code`` the peer is told why."""
        self._end(error)
        self.hang(code, str(error) if code >= 4000 else "")

    def hang(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame and close soon; ``ended`` will not be called."""
        self.over = True
        if self.ws.state is State.OPEN:
            self.ws.send_close(code, reason)
            self.flush()
        elif self.ws.state is State.CONNECTING:
            self.cut()

    def cut(self) -> None:
        """Close at once."""
        self._doomed = True
        if self._transport is not None:
            self._transport.abort()

    def receive(self, data: bytes) -> None:
        """Take in bytes that have arrived."""
        self.pending += len(data)
        with self._contained():
            self.ws.receive_data(data)
            self._proceed()
        if self.pending and not self.over:
            self._grew(self)

    def _end(self, error: Exception | None) -> None:
        if not self.over:
            self.over = True
            self._ended(self, error)

    # ------------------------------------------------------------------------------------------- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._doomed:
            self._transport.abort()
            return
        with self._contained():
            self._made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.receive(bytes(_BUFFER[:nbytes]))

    def eof_received(self) -> None:
        with self._contained():
            self.ws.receive_eof()
            self._proceed()

    def connection_lost(self, exc: Exception | None) -> None:
        with self._contained():
            self.ws.receive_eof()
        self._finished = True
        self._end(None)
        self._lost(self)
        if self._closing is not None:
            self._closing.cancel()

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        """An error ends only the connection on which it occurred."""
        try:
            yield
        except EXPECTED as error:
            self.refuse(error)
        except Exception as error:
            self._end(Unexpected(f"{type(error).__name__} over what came on it: {error}"[:200]))
            self.cut()

    def _proceed(self) -> None:
        """Hand over what has arrived."""
        try:
            for event in self.ws.events_received():
                self.pending = 0
                if self.over:
                    break
                self._take(event)
        except EXPECTED as error:
            self.refuse(error)
        self.flush()
        if self.ws.state in (State.CLOSING, State.CLOSED) or self.ws.close_expected():
            self._end(None)

    def _take(self, event: Any) -> None:
        if self._allowance is not None:
            self._allowance.spend()
        if not isinstance(event, Frame):
            self._shaken(self, event)
        elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if event.opcode is not Opcode.TEXT or not event.fin:
                raise m.Malformed("not a text in one piece")
            data = bytes(event.data)
            if self.seal_in is not None:
                opened = self.seal_in.opened(data)
                if opened is None:
                    raise LinkError("a message was altered, repeated, left out or moved on its way (its MAC is wrong)")
                data = opened
            try:
                text = str(data, "utf-8")
            except UnicodeDecodeError:
                raise m.Malformed("not UTF-8") from None
            self.hear(self, text)


def _too_soon(wire: Wire, text: str) -> None:
    raise m.Malformed("it spoke too soon")
