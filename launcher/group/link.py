"""The group's network: who connects to whom, and who is let in. The only file of this room that opens a socket.

One WebSocket connection from each member to the leader, kept for life, without compression and without the library's
own pings (the protocol's pings carry the lease). What arrives is decoded and checked (`messages.py`) before anybody
sees it; with a secret, nothing is decoded before the peer has proven that it knows it (`proof.py`).

Strangers are to be expected on an open port. Whoever says no valid hello within a few seconds, sends too much, too fast
or something unreadable, is closed and, once a minute, named in the log. A reader that is too slow is closed too: the
leader never waits for a member's socket. What one connection is, is in `wire.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from launcher.group import messages as m
from launcher.group import proof
from launcher.group.wire import CLOSE_SECONDS, SILENT, Allowance, Errors, LinkError, Unexpected, Wire

HELLO_SECONDS = 10.0  #: a connection that has not said hello by then is closed
OPEN_SECONDS = 3.0  #: for TCP: an address that is silent costs so much
SHAKE_SECONDS = 10.0  #: for the handshake of one that answers: a leader to whom a thousand come at once is busy

# ---------------------------------------------------------------------------------------------------- the leader


class LeaderLink:
    """The leader's end: many connections, numbered from 1 (0 is rank 0's own, which needs no socket).

    ``heard(conn, message)`` and ``closed(conn, why)`` are called in the order of arrival; a connection that never said
    hello is never reported. ``stranger(address, what)`` tells of peers that are not members.
    """

    def __init__(
        self,
        group: str,
        secret: bytes | None,
        most: int,
        heard: Callable[[int, Any], None],
        closed: Callable[[int, str], None],
        stranger: Callable[[str, str], None],
        *,
        hello_seconds: float = HELLO_SECONDS,
    ) -> None:
        self._group = group
        self._secret = secret
        self._most = most
        self._heard = heard
        self._closed = closed
        self._stranger = stranger
        self._hello_seconds = hello_seconds
        self._guests: dict[Wire, asyncio.TimerHandle] = {}  # who has not said hello, and until when he may
        self._members: dict[int, Wire] = {}
        self._numbers: dict[Wire, int] = {}
        self._unsent: dict[Wire, list[bytes]] = {}
        self._next = 0
        self._server: asyncio.Server | None = None
        self._open: set[Wire] = set()
        self._emptied = asyncio.Event()
        self._named: dict[str, float] = {}
        self.errors = Errors()

    async def listen(self, hosts: Sequence[str] | None, port: int) -> None:
        """Listen on ``port`` of these addresses; None: of all, IPv4 and IPv6. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._wire, list(hosts) if hosts else None, port, backlog=2048)

    def say(self, conns: Sequence[int], message: Any) -> None:
        """Send one message, encoded once, with the next :meth:`flush`. Unknown connections are passed over."""
        there = [wire for wire in map(self._members.get, conns) if wire is not None]
        if not there:
            return
        frame = Frame(Opcode.TEXT, m.encode(message).encode()).serialize(mask=False)
        for wire in there:
            self._unsent.setdefault(wire, []).append(frame)

    def flush(self) -> None:
        """What was said goes out, to each member in one piece. Never waits."""
        unsent, self._unsent = self._unsent, {}
        for wire, frames in unsent.items():
            wire.write(frames)

    def hang(self, conn: int) -> None:
        """Close a connection; ``closed`` will not be called for it."""
        wire = self._members.pop(conn, None)
        if wire is not None:
            wire.write(self._unsent.pop(wire, []))
            wire.hang()

    async def close(self) -> None:
        """Send what is buffered, close all, stop listening."""
        if self._server is None:
            return
        self.flush()
        self._server.close()
        for wire in list(self._open):
            wire.hang(1001)
        if self._open:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), 2 * CLOSE_SECONDS)

    # ------------------------------------------------------------------------------------------- one of its wires

    def _wire(self) -> Wire:
        return Wire(
            ServerProtocol(max_size=m.MAX_FROM_MEMBER, logger=SILENT),
            made=self._arrived,
            shaken=self._shaken,
            ended=self._ended,
            lost=self._lost,
            allowance=Allowance(),
        )

    def _arrived(self, wire: Wire) -> None:
        self._open.add(wire)
        self._emptied.clear()
        if len(self._open) > self._most:
            self._name(wire, f"more than {self._most} connections")
            wire.cut()
            return
        self._guests[wire] = asyncio.get_running_loop().call_later(
            self._hello_seconds, wire.refuse, LinkError("said no hello in time")
        )

    def _shaken(self, wire: Wire, request: Any) -> None:
        """A request has come: an upgrade is accepted, everything else answered in words."""
        ws = cast(ServerProtocol, wire.ws)
        if ws.close_expected():
            return  # what came with it was no WebSocket frame
        if not _is_upgrade(request):
            self._name(wire, "made a plain HTTP request")
            response = ws.reject(
                HTTPStatus.UPGRADE_REQUIRED,
                "This is the launcher's group port, for members only. /status is on the agent port.\n",
            )
        else:
            response = ws.accept(request)
        ws.send_response(response)
        if ws.state is not State.OPEN:
            wire.flush()
            return
        nonce = secrets.token_hex(16)
        wire.hear = self._greeted if self._secret is None else partial(self._proven, nonce, self._secret)
        wire.say({"is": "open", "protocol": m.PROTOCOL, "prove": self._secret is not None, "nonce": nonce})

    def _proven(self, nonce: str, secret: bytes, wire: Wire, text: str) -> None:
        answer = _object(text, "prove")
        theirs, mac = str(answer.get("nonce", ""))[:64], str(answer.get("mac", ""))[:128]
        if not proof.same(mac, proof.member_mac(secret, self._group, nonce, theirs)):
            raise LinkError("did not prove the group's secret (--token-file)")
        wire.hear = self._greeted
        wire.say({"is": "proven", "mac": proof.leader_mac(secret, self._group, nonce, theirs)})

    def _greeted(self, wire: Wire, text: str) -> None:
        hello = m.decode(text, m.MEMBER_SAYS)
        if not isinstance(hello, m.Hello):
            raise m.Malformed("the first word was not hello")
        self._guests.pop(wire).cancel()
        self._next += 1
        self._members[self._next], self._numbers[wire] = wire, self._next
        wire.hear = partial(self._listened, self._next)
        self._heard(self._next, hello)

    def _listened(self, number: int, wire: Wire, text: str) -> None:
        if number in self._members:  # else given up: what it still says is nobody's
            self._heard(number, m.decode(text, m.MEMBER_SAYS))

    def _ended(self, wire: Wire, error: Exception | None) -> None:
        """It has closed, or said (``error``) what it may not say."""
        if error is not None:
            self.errors.count(error)
        guest = self._guests.pop(wire, None)
        if guest is not None:
            guest.cancel()
            if error is not None or wire.spoke:
                self._name(wire, _words(error) if error is not None else f"left without a hello ({wire.why})")
            return
        number = self._numbers.get(wire)
        if number is None or self._members.pop(number, None) is None:
            return
        if error is not None:
            self._name(wire, str(error))
        self._closed(number, wire.why if error is None else f"it sent what is not the protocol: {error}")

    def _lost(self, wire: Wire) -> None:
        self._open.discard(wire)
        self._numbers.pop(wire, None)
        self._unsent.pop(wire, None)
        if not self._open:
            self._emptied.set()

    def _name(self, wire: Wire, what: str) -> None:
        host, now = wire.peer[0], time.monotonic()
        if now - self._named.get(host, -1e9) < 60:
            return
        if len(self._named) > 1000:
            self._named.clear()
        self._named[host] = now
        self._stranger(":".join(map(str, wire.peer)), what)


# ---------------------------------------------------------------------------------------------------- a member


class MemberLink:
    """A member's end: at most one connection at a time, made by :meth:`dial`.

    ``task`` runs a coroutine whose failure is not lost: what is no failure of the network is not tried again here.
    """

    def __init__(
        self,
        group: str,
        secret: bytes | None,
        port: int,
        resolve: Callable[[], Awaitable[Sequence[str]]],
        connected: Callable[[str], None],
        heard: Callable[[Any], None],
        closed: Callable[[str], None],
        failed: Callable[[str], None],
        task: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._group = group
        self._secret = secret
        self._port = port
        self._resolve = resolve
        self._connected = connected
        self._heard = heard
        self._closed = closed
        self._failed = failed
        self._run = task
        self._wire: Wire | None = None
        self._proving: Wire | None = None  # the latest to which we have said our proof
        self._task: asyncio.Task[None] | None = None
        self.errors = Errors()

    def dial(self, delay: float) -> None:
        """After ``delay`` seconds resolve and connect, again and again until it works. ``failed`` tells of each try."""
        self.hang()
        self._task = self._run(self._dial(delay))

    def say(self, message: Any) -> None:
        """Send. Never waits; without a connection it is lost, as it would be on a broken one."""
        if self._wire is not None:
            self._wire.say_text(m.encode(message))

    def hang(self) -> None:
        """Give the connection up, or the attempt at one; ``closed`` will not be called."""
        wire, self._wire = self._wire, None
        task, self._task = self._task, None
        if wire is not None:
            wire.hang()
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    # ------------------------------------------------------------------------------------------------------------

    async def _dial(self, delay: float) -> None:
        await asyncio.sleep(delay)
        pause = 0.1
        while True:
            wire = await self._try_all()
            if wire is not None:
                break
            # an address that refuses is often a leader that starts this second; one that is silent costs OPEN_SECONDS
            await asyncio.sleep(pause * (0.75 + secrets.randbelow(500) / 1000))
            pause = min(pause * 2, 1.5)
        self._wire = wire
        wire.hear = self._listened
        self._connected(wire.own)

    async def _try_all(self) -> Wire | None:
        try:
            addresses = await self._resolve()
        except (OSError, UnicodeError) as error:  # UnicodeError: a label of the name that is too long
            self._failed(str(error))
            return None
        for address in addresses:
            try:
                return await self._open(address)
            except (OSError, asyncio.TimeoutError, WebSocketException) as error:
                self._failed(f"{address} port {self._port}: {_words(error)}")
            except (LinkError, m.Malformed) as error:
                self._failed(f"{address} port {self._port} is not a leader that we can join: {error}")
            except Exception as error:  # whoever listens there is no reason to end
                self.errors.count(Unexpected(str(error)))
                self._failed(f"{address} port {self._port}: {type(error).__name__}: {_words(error)}")
        return None

    async def _open(self, address: str) -> Wire:
        host = f"[{address}]" if ":" in address else address
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        ready.add_done_callback(lambda it: it.cancelled() or it.exception())  # it may fail when nobody waits any more
        wire = Wire(
            ClientProtocol(parse_uri(f"ws://{host}:{self._port}/group"), max_size=m.MAX_FROM_LEADER, logger=SILENT),
            made=_ask,
            shaken=partial(self._shaken, ready),
            ended=partial(self._ended, ready),
        )
        sock = await asyncio.wait_for(_connected(address, self._port), OPEN_SECONDS)
        try:
            await loop.create_connection(lambda: wire, sock=sock)
            await asyncio.wait_for(ready, SHAKE_SECONDS)
        except BaseException:
            wire.hang()
            raise
        if wire.over:
            raise ConnectionError(wire.why or "it left")
        return wire

    def _shaken(self, ready: asyncio.Future[None], wire: Wire, response: Any) -> None:
        if wire.ws.handshake_exc is None:
            wire.hear = partial(self._opened, ready)

    def _opened(self, ready: asyncio.Future[None], wire: Wire, text: str) -> None:
        opening = _object(text, "open")
        if bool(opening.get("prove")) is not (self._secret is not None):
            raise LinkError(
                "it wants a proof of the secret and this pod has no --token-file"
                if self._secret is None
                else "it has no --token-file and this pod has one"
            )
        if self._secret is None:
            _done(ready)
            return
        theirs, nonce = str(opening.get("nonce", ""))[:64], secrets.token_hex(16)
        expected = proof.leader_mac(self._secret, self._group, theirs, nonce)
        self._proving = wire
        wire.hear = partial(self._proven, ready, expected)
        wire.say({"is": "prove", "nonce": nonce, "mac": proof.member_mac(self._secret, self._group, theirs, nonce)})

    def _proven(self, ready: asyncio.Future[None], expected: str, wire: Wire, text: str) -> None:
        answer = _object(text, "proven")
        if not proof.same(str(answer.get("mac", ""))[:128], expected):
            raise LinkError("it does not know the group's secret (--token-file)")
        _done(ready)

    def _listened(self, wire: Wire, text: str) -> None:
        self._heard(m.decode(text, m.LEADER_SAYS))

    def _ended(self, ready: asyncio.Future[None], wire: Wire, error: Exception | None) -> None:
        if error is not None:
            self.errors.count(error)
        if not ready.done():
            if error is None and self._proving is wire:
                error = LinkError("it did not take our proof: another secret (--token-file) or another group")
            ready.set_exception(error or ConnectionError(str(wire.ws.handshake_exc or wire.why or "it left")))
        elif self._wire is wire:
            self._wire = None
            self._closed(wire.why if error is None else f"the leader sent what is not the protocol: {error}")


def _ask(wire: Wire) -> None:
    ws = cast(ClientProtocol, wire.ws)
    ws.send_request(ws.connect())
    wire.flush()


def _done(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


# ------------------------------------------------------------------------------------------------------- helpers


def _is_upgrade(request: Request) -> bool:
    return any(value.lower() == "websocket" for value in request.headers.get_all("Upgrade"))


async def _connected(address: str, port: int) -> socket.socket:
    """A TCP connection to an IP address. Raises OSError."""
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)  # asks nobody
    family, kind, protocol, _, where = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


def _object(text: str, word: str) -> dict[str, Any]:
    body = m.read_json(text) if len(text) <= 4096 else None
    if not isinstance(body, dict) or body.get("is") != word:
        raise m.Malformed(f"no {word!r} came")
    return body


def _words(error: BaseException) -> str:
    """What happened to a connection, for people."""
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "no answer"
    if isinstance(error, ConnectionRefusedError):
        return "refused: nothing listens there yet"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0][:200] or type(error).__name__
