"""The group's network: who connects to whom, and who is let in. The only file of this package that opens a socket.

Each member keeps one WebSocket connection to the leader for life, without compression and without the library's own
pings (the protocol's pings carry the lease). Every message is decoded and checked (`messages.py`) before anything else
sees it. With a secret, no message is decoded until the peer has proven that it knows the secret (`proof.py`).

An open port attracts any number of unknown peers. A peer that says no valid hello within a few seconds, or sends too
much, too fast or something unreadable, is closed and logged, at most once a minute. Connections that are not (yet)
members' have a limited number of places, shared out by address. When they are full, the oldest connection is closed for
the newest (`common/places.py`), never a member's. A reader that is too slow is closed too: the leader never waits for a
member's socket. `connection.py` holds a single connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from launcher.common import tasks
from launcher.common.acceptor import Acceptor, Incoming, adopt
from launcher.common.addresses import host_port
from launcher.common.places import Places
from launcher.group import messages as m
from launcher.group import proof
from launcher.group.connection import (
    CLOSE_SECONDS,
    SILENT,
    Allowance,
    EncodedMessage,
    Errors,
    LinkError,
    Unexpected,
    Wire,
)

HELLO_SECONDS = 10.0  #: a connection that has not said hello by then is closed
OPEN_SECONDS = 3.0  #: to open TCP: what an address that does not answer costs
SHAKE_SECONDS = 10.0  #: for the handshake once TCP is open: a leader that a thousand members dial at once is busy
PENDING_BYTES = 8 << 20  #: of unfinished messages, of all connections that have not joined together
SMALL = 4 << 10  #: an unfinished message below this is not counted: the number of guests is limited
PROOF = "Launcher-Proof"  #: header of a member's request: the version of its proof
OLD_PROOF = "with --token-file every pod of a group must run launcher 0.2 or later"

#: A fixed secret, or one that is read again when its file changes.
Secret = bytes | proof.Secrets | None

# ---------------------------------------------------------------------------------------------------- the leader


class LeaderLink:
    """The leader's end: many connections, numbered from 1 (0 is rank 0's own, which needs no socket).

    ``heard(conn, message)`` and ``closed(conn, why)`` are called in the order of arrival; a connection that never said
    hello is never reported. ``stranger(address, what)`` reports peers that are not members. Up to ``most`` connections
    may be open that have not said hello; one address may hold enough of them for all ``size`` members.
    """

    def __init__(
        self,
        group: str,
        secret: Secret,
        most: int,
        heard: Callable[[int, Any], None],
        closed: Callable[[int, str], None],
        stranger: Callable[[str, str], None],
        *,
        size: int = 1,
        hello_seconds: float = HELLO_SECONDS,
    ) -> None:
        self._group = group
        self._secret = secret
        self._heard = heard
        self._closed = closed
        self._stranger = stranger
        self._hello_seconds = hello_seconds
        self._known: dict[str, None] = {}  # addresses of members, the latest last
        self._most_known = 2 * size
        # Before its hello a connection is incoming (no complete request yet), talking (not proven) or proven. After its
        # hello it is a member's; once refused, it is leaving.
        talking = max(2, min(most // 2, 512 + 2 * size))
        incoming = max(2, most - talking)
        self._incoming: Places[Incoming] = Places(incoming, max(size + 8, incoming * 3 // 4), self._is_known)
        self._talking: Places[Wire] = Places(talking, max(size + 8, talking * 3 // 4), self._is_known)
        self._proven: Places[Wire] = Places(2 * size + 8, 2 * size + 8)
        self._leaving: Places[Wire] = Places(talking, talking)
        self._most_members = 2 * size + 64
        self._guests: dict[Wire, asyncio.TimerHandle] = {}  # connections without a hello, and the timer of each
        self._members: dict[int, Wire] = {}
        self._numbers: dict[Wire, int] = {}
        self._unsent: dict[Wire, list[EncodedMessage]] = {}
        self._next = 0
        self._acceptor: Acceptor | None = None
        self._open: set[Wire] = set()
        self._emptied = asyncio.Event()
        self._named: dict[str, float] = {}
        self.errors = Errors()
        self.turned_away = 0  #: connections closed or refused before their hello, and members' that ended with an error

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on sockets that are already listening."""
        self._acceptor = Acceptor(
            sockets, self._incoming, self._hello_seconds, self._asked, self._name_address, self._expel
        )

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The addresses that it listens on."""
        return self._acceptor.addresses if self._acceptor is not None else ()

    def own_address(self, conn: int) -> str:
        """This machine's address that a member connected to; empty if the connection is gone."""
        wire = self._members.get(conn)
        return wire.own if wire is not None else ""

    def say(self, conns: Sequence[int], message: Any) -> None:
        """Queue one message, encoded once, for the next :meth:`flush`. Unknown connections are skipped."""
        there = [wire for wire in map(self._members.get, conns) if wire is not None]
        if not there:
            return
        encoded = EncodedMessage(m.encode(message), self._secret is not None)
        for wire in there:
            self._unsent.setdefault(wire, []).append(encoded)
            if isinstance(message, m.Accepted):
                self._know(wire.peer[0])

    def flush(self) -> None:
        """Send what was queued, to each member in one write. Never waits."""
        unsent, self._unsent = self._unsent, {}
        for wire, messages in unsent.items():
            wire.write(messages)

    def hang(self, conn: int) -> None:
        """Close a connection; ``closed`` will not be called for it."""
        wire = self._members.pop(conn, None)
        if wire is not None:
            wire.write(self._unsent.pop(wire, []))
            self._hang(wire)

    async def close(self) -> None:
        """Send what is buffered, close all, stop listening."""
        if self._acceptor is None:
            return
        self.flush()
        self._acceptor.close()
        for wire in list(self._open):
            wire.hang(1001)
        if self._open:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), 2 * CLOSE_SECONDS)

    # ------------------------------------------------------------------------------------------- one of its wires

    def _asked(self, incoming: Incoming) -> None:
        """A connection has sent its request: turn it into a wire."""
        tasks.start(self._adopt(self._guest(incoming), incoming.sock))

    def _guest(self, incoming: Incoming) -> Wire:
        """A wire that is a guest until its hello."""
        head = incoming.head
        wire = Wire(
            ServerProtocol(max_size=m.MAX_FROM_MEMBER, logger=SILENT),
            made=lambda wire: wire.receive(head),
            shaken=self._shaken,
            ended=self._ended,
            lost=self._lost,
            grew=self._grew,
            allowance=Allowance(),
        )
        wire.peer = (incoming.host, incoming.port)
        loop = asyncio.get_running_loop()
        self._open.add(wire)
        self._emptied.clear()
        left = incoming.since + self._hello_seconds - time.monotonic()
        self._guests[wire] = loop.call_later(left, self._turn_away, wire, "said no hello in time")
        victim = self._talking.enter(wire, incoming.host)
        if victim is not None:
            self._turn_away(victim, "said no hello, and made room for a newer connection", cut=True)
        return wire

    async def _adopt(self, wire: Wire, sock: socket.socket) -> None:
        await adopt(wire, sock)
        if wire.gone:  # it was closed before the transport took over
            wire.connection_lost(None)

    def _turn_away(self, wire: Wire, why: str, cut: bool = False) -> None:
        wire.refuse(LinkError(why))
        if cut:
            wire.cut()

    def _expel(self) -> None:
        """A file descriptor is needed: close the connection that would make room for a newcomer."""
        for places in (self._leaving, self._talking, self._proven):
            victim = places.expel()
            if victim is not None:
                self._turn_away(victim, "said no hello, and made room for others", cut=True)
                return

    def _grew(self, wire: Wire) -> None:
        """Unfinished messages of guests are kept in memory: bound their total."""
        if wire.pending < SMALL or wire not in self._guests:
            return
        if sum(guest.pending for guest in self._guests) > PENDING_BYTES:
            self._turn_away(
                max(self._guests, key=lambda guest: guest.pending), "sent too much without a hello", cut=True
            )

    def _hang(self, wire: Wire) -> None:
        wire.hang()
        self._leaves(wire)

    def _leaves(self, wire: Wire) -> None:
        """The connection is closing, which may take CLOSE_SECONDS: bound the number of those too."""
        if wire in self._open and wire not in self._leaving:
            victim = self._leaving.enter(wire, "")
            if victim is not None:
                victim.cut()

    def _is_known(self, address: str) -> bool:
        return address in self._known

    def _know(self, address: str) -> None:
        self._known.pop(address, None)
        self._known[address] = None
        if len(self._known) > self._most_known:
            del self._known[next(iter(self._known))]

    def _shaken(self, wire: Wire, request: Any) -> None:
        """A request has arrived: accept an upgrade, answer anything else with an explanation."""
        ws = cast(ServerProtocol, wire.ws)
        if ws.close_expected():
            return  # what followed the request was no WebSocket frame
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
        opening = {"is": "open", "protocol": m.PROTOCOL, "prove": self._secret is not None, "nonce": nonce}
        if self._secret is None:
            wire.hear = self._greeted
        elif request.headers.get_all(PROOF) != [str(proof.VERSION)]:
            wire.refuse(LinkError(OLD_PROOF), 4001)  # before it sends its proof: only then does 0.1 log our reason
            return
        else:
            opening["bound"] = proof.VERSION
            wire.hear = partial(self._prove, nonce, _accepted(self._secret))
        wire.say(opening)

    def _prove(self, nonce: str, accepted: Sequence[bytes], wire: Wire, text: str) -> None:
        answer = _object(text, "prove")
        theirs = str(answer.get("nonce", ""))[:64]
        also = answer.get("also")
        macs = [str(mac)[:128] for mac in (answer.get("mac", ""), *(also if isinstance(also, list) else ())[:3])]
        for secret in accepted:
            expected = proof.member_mac(secret, self._group, nonce, theirs)
            if any(proof.same(mac, expected) for mac in macs):
                break
        else:
            raise LinkError("did not prove the group's secret (--token-file)")
        self._talking.leave(wire)
        victim = self._proven.enter(wire, wire.peer[0])
        if victim is not None:
            self._turn_away(victim, "said no hello, and made room for a newer connection", cut=True)
        wire.hear = self._greeted
        wire.say({"is": "proven", "mac": proof.leader_mac(secret, self._group, nonce, theirs)})
        wire.seal_out, wire.seal_in = proof.seals(secret, self._group, nonce, theirs)

    def _greeted(self, wire: Wire, text: str) -> None:
        hello = m.decode(text, m.MEMBER_SAYS)
        if not isinstance(hello, m.Hello):
            raise m.Malformed("the first word was not hello")
        if len(self._members) >= self._most_members:
            raise LinkError(f"said hello when {len(self._members)} others had")
        self._no_guest(wire)
        self._next += 1
        self._members[self._next], self._numbers[wire] = wire, self._next
        wire.hear = partial(self._listened, self._next)
        self._heard(self._next, hello)

    def _no_guest(self, wire: Wire) -> bool:
        """The connection has joined or is refused. Returns False if it was no guest."""
        timer = self._guests.pop(wire, None)
        if timer is None:
            return False
        timer.cancel()
        self._talking.leave(wire)
        self._proven.leave(wire)
        return True

    def _listened(self, number: int, wire: Wire, text: str) -> None:
        if number in self._members:  # otherwise we hung up on it: ignore what still arrives
            self._heard(number, m.decode(text, m.MEMBER_SAYS))

    def _ended(self, wire: Wire, error: Exception | None) -> None:
        """The connection has closed, or sent something that it may not (``error``)."""
        if error is not None:
            self.errors.count(error)
        self._leaves(wire)
        if self._no_guest(wire):
            self._name(wire, _words(error) if error is not None else f"left without a hello ({wire.why})")
            return
        number = self._numbers.get(wire)
        if number is None or self._members.pop(number, None) is None:
            return
        if error is not None:
            self._name(wire, _words(error))
        self._closed(number, _why(wire, error, "it"))

    def _lost(self, wire: Wire) -> None:
        self._open.discard(wire)
        self._leaving.leave(wire)
        self._numbers.pop(wire, None)
        self._unsent.pop(wire, None)
        if not self._open:
            self._emptied.set()

    def _name(self, wire: Wire, what: str) -> None:
        self._name_address(":".join(map(str, wire.peer)), what)

    def _name_address(self, address: str, what: str) -> None:
        """Report once a minute per host: an unknown peer may connect ten thousand times."""
        self.turned_away += 1
        host, now = address.rpartition(":")[0], time.monotonic()
        if now - self._named.get(host, -1e9) < 60:
            return
        if len(self._named) > 1000:
            self._named.clear()
        self._named[host] = now
        self._stranger(address, what)


# ---------------------------------------------------------------------------------------------------- a member


@dataclass(frozen=True)
class LinkEvents:
    """Callbacks of a member's link."""

    connected: Callable[[str], None]  #: with this end's address
    heard: Callable[[Any], None]  #: a message of the leader
    closed: Callable[[str], None]  #: why the connection ended
    failed: Callable[[str], None]  #: why one try to connect failed
    #: A message cannot be read: the callee tells the leader and hangs up. If None, the link hangs up itself.
    unread: Callable[[str], None] | None = None


class MemberLink:
    """A member's end: at most one connection at a time, made by :meth:`dial`.

    ``task`` must run a coroutine so that its failure is reported: what is no failure of a connection is not retried
    here.
    """

    def __init__(
        self,
        group: str,
        secret: Secret,
        port: int,
        resolve: Callable[[], Awaitable[Sequence[str]]],
        events: LinkEvents,
        task: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._group = group
        self._secret = secret
        self._port = port
        self._resolve = resolve
        self._events = events
        self._run = task
        self._wire: Wire | None = None
        self._proving: Wire | None = None  # the latest connection to which we sent our proof
        self._task: asyncio.Task[None] | None = None
        self.errors = Errors()

    @property
    def reached(self) -> str:
        """The address at which this member reached the leader; empty without a connection."""
        return str(self._wire.peer[0]) if self._wire is not None else ""

    def dial(self, delay: float) -> None:
        """After ``delay`` seconds resolve and connect, until it succeeds. ``failed`` reports each failed attempt."""
        self.hang()
        self._task = self._run(self._dial(delay))

    def say(self, message: Any) -> None:
        """Send a message. Never waits; without a connection the message is lost, as it would be on a broken one."""
        if self._wire is not None:
            self._wire.say_text(m.encode(message))

    def hang(self) -> None:
        """Give up the connection, or the attempt to make one; ``closed`` will not be called."""
        wire, self._wire = self._wire, None
        task, self._task = self._task, None
        if wire is not None:
            wire.hang()
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    # ------------------------------------------------------------------------------------------------------------

    async def _dial(self, delay: float) -> None:
        await asyncio.sleep(delay)
        pause, me = 0.1, asyncio.current_task()
        while True:
            wire = await self._try_all()
            if self._task is not me:  # Python 3.10 and 3.11 lose a cancellation as what `wait_for` waits for ends
                if wire is not None:
                    wire.hang()
                return
            if wire is not None:
                break
            # An address that refuses is often a leader that is just starting, so retry soon. One that does not answer
            # has already cost OPEN_SECONDS.
            await asyncio.sleep(pause * (0.75 + secrets.randbelow(500) / 1000))
            pause = min(pause * 2, 1.5)
        self._wire = wire
        wire.hear = self._listened
        self._events.connected(wire.own)

    async def _try_all(self) -> Wire | None:
        try:
            addresses = await self._resolve()
        except (OSError, UnicodeError) as error:  # UnicodeError: a label of the name is too long
            self._events.failed(str(error))
            return None
        for address in addresses:
            try:
                return await self._open(address)
            except (OSError, asyncio.TimeoutError, WebSocketException) as error:
                self._events.failed(f"{address} port {self._port}: {_words(error)}")
            except (LinkError, m.Malformed) as error:
                self._events.failed(f"{address} port {self._port} is not a leader that we can join: {error}")
            except Exception as error:  # whatever listens there must not end this launcher
                self.errors.count(Unexpected(str(error)))
                self._events.failed(f"{address} port {self._port}: {type(error).__name__}: {_words(error)}")
        return None

    async def _open(self, address: str) -> Wire:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        ready.add_done_callback(lambda it: it.cancelled() or it.exception())  # it may fail after we stopped waiting
        wire = Wire(
            ClientProtocol(
                parse_uri(f"ws://{host_port(address, self._port)}/group"), max_size=m.MAX_FROM_LEADER, logger=SILENT
            ),
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
        wire.peer = (address, self._port)
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
        if opening.get("bound") != proof.VERSION:
            raise LinkError(f"it does not bind messages to the proof, as launcher 0.1 did not: {OLD_PROOF}")
        theirs, nonce = str(opening.get("nonce", ""))[:64], secrets.token_hex(16)
        accepted = _accepted(self._secret)
        first, *also = (proof.member_mac(secret, self._group, theirs, nonce) for secret in accepted)
        self._proving = wire
        wire.hear = partial(self._proven, ready, accepted, theirs, nonce)
        wire.say({"is": "prove", "nonce": nonce, "mac": first, "also": also})

    def _proven(
        self, ready: asyncio.Future[None], accepted: Sequence[bytes], theirs: str, nonce: str, wire: Wire, text: str
    ) -> None:
        mac = str(_object(text, "proven").get("mac", ""))[:128]
        for secret in accepted:
            if proof.same(mac, proof.leader_mac(secret, self._group, theirs, nonce)):
                break
        else:
            raise LinkError("it does not know the group's secret (--token-file)")
        wire.seal_in, wire.seal_out = proof.seals(secret, self._group, theirs, nonce)
        _done(ready)

    def _listened(self, wire: Wire, text: str) -> None:
        try:
            message = m.decode(text, m.LEADER_SAYS)
        except m.Malformed as error:
            if self._events.unread is None:
                raise
            self._events.unread(str(error))
            return
        self._events.heard(message)

    def _ended(self, ready: asyncio.Future[None], wire: Wire, error: Exception | None) -> None:
        if error is not None:
            self.errors.count(error)
        if not ready.done():
            if error is None and self._proving is wire:
                error = LinkError("it did not take our proof: another secret (--token-file) or another group")
            ready.set_exception(error or ConnectionError(str(wire.ws.handshake_exc or wire.why or "it left")))
        elif self._wire is wire:
            self._wire = None
            self._events.closed(_why(wire, error, "the leader"))


def _ask(wire: Wire) -> None:
    ws = cast(ClientProtocol, wire.ws)
    request = ws.connect()
    request.headers[PROOF] = str(proof.VERSION)
    ws.send_request(request)
    wire.flush()


def _done(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


# ------------------------------------------------------------------------------------------------------- helpers


def _accepted(secret: bytes | proof.Secrets) -> tuple[bytes, ...]:
    """The secrets that prove membership now, newest first."""
    return secret.accepted() if isinstance(secret, proof.Secrets) else (secret,)


def _is_upgrade(request: Request) -> bool:
    return any(value.lower() == "websocket" for value in request.headers.get_all("Upgrade"))


async def _connected(address: str, port: int) -> socket.socket:
    """A TCP connection to an IP address. Raises OSError."""
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)  # no DNS
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


def _why(wire: Wire, error: Exception | None, who: str) -> str:
    """Why an established connection ended, for people; empty if it was closed in good order."""
    if error is None:
        return wire.why
    if isinstance(error, OSError):  # a network failure, not a protocol error
        return f"it broke: {_words(error)}"
    return f"{who} sent what is not the protocol: {error}"


def _words(error: BaseException) -> str:
    """What happened to a connection, for people."""
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "no answer"
    if isinstance(error, ConnectionRefusedError):
        return "refused: nothing listens there yet"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0][:200] or type(error).__name__
