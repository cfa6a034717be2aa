"""What the guard and the agent say to each other: orders one way, reports the other, over one stream socketpair.

A frame is a length (4 bytes, network order) and a JSON array ``[kind, field, field...]``. Both sides use these classes,
so there is one description of the protocol and it is this file. Frames never leave the machine and both ends are of
one build: no version, no negotiation. The classes are named tuples, since importing dataclasses would cost the guard
2 MiB for as long as the pod lives.

The agent's end is :class:`GuardChannel`. It knows nothing of asyncio: give its ``fileno()`` to ``add_reader`` and,
while ``wants_write``, to ``add_writer``. The guard imports this file: only what is cheap and single-threaded may enter.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

#: The longest frame. An argv and environment that the kernel accepts stay under 2 MiB, six times that escaped in JSON.
LIMIT = 16 << 20
MOST_SECONDS = 1e12  #: of a time or a duration
_HEADER = struct.Struct("!I")

#: A process that would not go: pid, start time (clock ticks after boot), command name, state letter of /proc/PID/stat.
Left = tuple[int, int, str, str]


# ------------------------------------------------------------------------------------------ orders: agent to guard


class Spawn(NamedTuple):
    """Start ``argv`` with exactly ``env`` in its own session. Answered by Started or NotStarted, later by Exited."""

    id: str  #: the agent's word for this process; free again after Exited or NotStarted
    name: str  #: for messages
    argv: tuple[str, ...]
    env: Mapping[str, str]  #: complete; the guard adds PYTHONUNBUFFERED=1 unless it is there
    cwd: str | None = None
    capture: bool = False  #: output goes to the agent only, not to the launcher's own stdout and stderr


class Stop(NamedTuple):
    """TERM roots one after the other, the last started first; then what they left; then KILL. Answered by Stopped.

    A later Stop or Kill of the same processes with less grace shortens one that runs; more grace does not extend it.
    With ``examine`` no TERM is sent: every process is examined (``examining.py``), which ends it, and then comes KILL.
    """

    id: str  #: of this order, echoed in Stopped
    ids: tuple[str, ...] | None  #: roots; None: everything that descends from the guard but the agent
    grace: float  #: seconds from TERM to KILL, for all of it together
    examine: float = 0.0  #: seconds in which to gather evidence instead; only if no stop of these processes runs yet


class Kill(NamedTuple):
    """Stop without TERM. Answered by Stopped."""

    id: str
    ids: tuple[str, ...] | None = None


class Deadline(NamedTuple):
    """When CLOCK_MONOTONIC passes ``at``, everything but the agent is killed and spawns are refused. None: no lease.

    Questions (``Spawn.capture``) are answered all the same.
    """

    at: float | None


class Deliver(NamedTuple):
    """Send a signal to the process groups of roots."""

    signal: int
    ids: tuple[str, ...] | None = None  #: None: every root


class Ping(NamedTuple):
    """Answered by Pong with the same number: does the guard live?"""

    n: int


class Handoff(NamedTuple):
    """When the agent has then exited with 0, the guard executes ``argv`` in its own place and keeps its pid."""

    argv: tuple[str, ...]
    env: Mapping[str, str]  #: complete
    cwd: str | None = None


class Policy(NamedTuple):
    """Whether an agent that was killed by a signal is started anew (after its tree is dead)."""

    restart_agent: bool


class Incarnation(NamedTuple):
    """The name of this agent's life, handed to a later agent of the same guard in LAUNCHER_REPLACES."""

    value: str


class Remember(NamedTuple):
    """The newest text that a later agent of the same guard gets in LAUNCHER_LAST_EPOCH; at most 100 KiB."""

    text: str


class Say(NamedTuple):
    """Write text to the launcher's own stdout (1) or stderr (2) through the guard's queue: never blocks the agent."""

    stream: int
    text: str


Order = Spawn | Stop | Kill | Deadline | Deliver | Ping | Handoff | Policy | Incarnation | Remember | Say


# ----------------------------------------------------------------------------------------- reports: guard to agent


class Guarding(NamedTuple):
    """The first report: who guards. What ``tree.kill_tree_without_guard`` needs when the guard is gone."""

    pid: int
    start_time: int
    init: bool  #: the guard is PID 1 of its PID namespace: when it dies the kernel kills all the rest, the agent too


class Started(NamedTuple):
    """The program was executed (exec succeeded)."""

    id: str
    pid: int
    start_time: int  #: clock ticks after boot (field 22 of /proc/PID/stat); with the pid it names a process for good


class NotStarted(NamedTuple):
    """The order to spawn was refused, or fork, chdir or exec failed. There is no process and no Exited will come."""

    id: str
    errno: int
    text: str


class Output(NamedTuple):
    """What a process wrote, as it was read; lines may be cut anywhere. Bytes that are not UTF-8 are replaced."""

    id: str
    stream: int  #: 1 stdout, 2 stderr
    data: str


class Exited(NamedTuple):
    """A root ended: with a code or by a signal. All that it wrote before was reported first, bar what was dropped."""

    id: str
    code: int | None
    signal: int | None
    tail: str  #: the last 16 KiB that it wrote, both streams together
    told: bool = False  #: a stop, or the deadline, had sent TERM or KILL to it before it ended
    at: float = 0.0  #: when the guard noticed, CLOCK_MONOTONIC; 0: not told
    doubt: float = 0.0  #: seconds that it may have been earlier: the guard had no CPU, or was busy


class Aborting(NamedTuple):
    """A process that a Stop with ``examine`` is about to abort. Output up to the next Aborting is what it prints."""

    id: str  #: of the order
    pid: int
    name: str  #: its title
    state: str  #: letter of /proc/PID/stat, before it was touched
    wchan: str  #: where it slept in the kernel; empty: unknown
    syscall: str  #: the number of the system call that it was in, or ``running``; empty: unknown


class Orphaned(NamedTuple):
    """A process ended that the guard had not started: its parent was gone before, so the guard has reaped it."""

    pid: int


class Stopped(NamedTuple):
    """A Stop or Kill is done. ``clean``: nothing in its scope is left but zombies that a living parent may reap."""

    id: str
    clean: bool
    left: tuple[Left, ...]
    seconds: float


class LeaseExpired(NamedTuple):
    """The deadline passed. Comes again with ``clean`` when something unkillable kept the first from being clean."""

    clean: bool
    seconds: float  #: from the deadline until the last process was gone


class SignalReceived(NamedTuple):
    """A signal that reached the guard, in the order of arrival."""

    number: int


class Dropped(NamedTuple):
    """Output that found its queue full since the last such report."""

    stream: int  #: 1, 2: not written to the launcher's stdout, stderr; 0: not told to the agent
    bytes: int


class Pong(NamedTuple):
    """The answer to Ping."""

    n: int


class GuardLost(NamedTuple):
    """Made by GuardChannel itself: the guard's end is closed, so the guard is dead. Comes once, as the last report."""


Report = (
    Guarding
    | Started
    | NotStarted
    | Output
    | Exited
    | Aborting
    | Orphaned
    | Stopped
    | LeaseExpired
    | SignalReceived
    | Dropped
    | Pong
    | GuardLost
)

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(Spawn, Stop, Kill, Deadline, Deliver, Ping, Handoff, Policy, Incarnation, Remember, Say),
        *(Guarding, Started, NotStarted, Output, Exited, Aborting, Orphaned, Stopped),
        *(LeaseExpired, SignalReceived, Dropped, Pong),
    )
}


# ---------------------------------------------------------------------------------------------------------- frames


def encode(message: Order | Report) -> bytes:
    """One frame. Lone surrogates, which stand for bytes of argv or environment that are no UTF-8, survive."""
    text = json.dumps([type(message).__name__, *message], ensure_ascii=False, separators=(",", ":"), default=dict)
    body = text.encode("utf-8", "surrogatepass")
    if len(body) > LIMIT:
        raise ValueError(f"a {type(message).__name__} of {len(body)} bytes is over the limit of {LIMIT}")
    return _HEADER.pack(len(body)) + body


class BadFrame(ValueError):
    """What came is no frame of this protocol: the other end is broken, or is not ours."""


def decode(body: bytes) -> Any:
    """The order or report of one frame's body. Raises BadFrame, whatever ``body`` is."""
    try:
        kind, *fields = json.loads(body.decode("utf-8", "surrogatepass"))
        checks: dict[str, Callable[[Any], bool]] = _CHECKS[kind]
        message = _KINDS[kind](*(_tuples(field) for field in fields))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadFrame("a frame that cannot be read") from None
    for name, value in zip(message._fields, message, strict=True):
        if not checks[name](value):
            raise BadFrame(f"a {kind} whose {name} cannot be read")
    return message


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -MOST_SECONDS <= value <= MOST_SECONDS


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) for item in value)


def _is_environment(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _are_left(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(item, tuple) and len(item) == 4 and all(map(_is_whole, item[:2])) and all(map(_is_text, item[2:]))
        for item in value
    )


#: By the annotation of a field.
_CHECK: dict[str, Callable[[Any], bool]] = {
    "str": _is_text,
    "int": _is_whole,
    "float": _is_number,
    "bool": _is_flag,
    "tuple[str, ...]": _are_texts,
    "Mapping[str, str]": _is_environment,
    "tuple[Left, ...]": _are_left,
    "str | None": lambda value: value is None or _is_text(value),
    "int | None": lambda value: value is None or _is_whole(value),
    "float | None": lambda value: value is None or _is_number(value),
    "tuple[str, ...] | None": lambda value: value is None or _are_texts(value),
}
_CHECKS: dict[str, dict[str, Callable[[Any], bool]]] = {
    word: {name: _CHECK[str(getattr(note, "__forward_arg__", note))] for name, note in kind.__annotations__.items()}
    for word, kind in _KINDS.items()
}


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Every message that is complete with ``data``, oldest first. Raises BadFrame."""
        self._buffer += data
        messages = []
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, at)
            if length > LIMIT:
                raise BadFrame(f"a frame of {length} bytes is over the limit of {LIMIT}")
            end = at + _HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(decode(bytes(self._buffer[at + _HEADER.size : end])))
            at = end
        del self._buffer[:at]
        return messages


# ---------------------------------------------------------------------------------------------- the agent's end


class GuardChannel:
    """The agent's end of the socketpair. Never blocks; what the guard has not yet taken waits in a buffer.

    The guard always reads, so a buffer that does not empty within a second or two means a frozen guard: send a Ping
    and act when no Pong comes (``tree.kill_tree_without_guard``).
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._frames = Frames()
        self._unsent = bytearray()
        self._lost = False

    def fileno(self) -> int:
        return self._fd

    @property
    def wants_write(self) -> bool:
        """Whether :meth:`flush` should be called as soon as the socket is writable."""
        return bool(self._unsent) and not self._lost

    def send(self, order: Order) -> None:
        """Send now what the socket takes and keep the rest. Silently nothing once the guard is gone."""
        self._unsent += encode(order)
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as the socket takes it."""
        try:
            while self._unsent and not self._lost:
                del self._unsent[: os.write(self._fd, bytes(self._unsent[: 1 << 16]))]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._unsent.clear()  # receive() still has to hand out what the guard said last, and then GuardLost

    def receive(self) -> list[Report]:
        """Every report that has arrived (at most about 1 MiB a call, so that the loop turns). GuardLost comes last."""
        reports: list[Report] = []
        for _ in range(16):
            if self._lost:
                break
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            try:
                if data:
                    reports += self._frames.feed(data)
            except BadFrame:  # nothing that it says can be relied on: that is no guard any more
                data = b""
            if not data:
                self._lost = True
                reports.append(GuardLost())
        return reports

    def close(self) -> None:
        """Close the socket; the guard takes that for nothing by itself and waits for the agent to exit."""
        self._lost = True
        os.close(self._fd)
