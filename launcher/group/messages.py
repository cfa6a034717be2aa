"""The messages between a member and the leader: small JSON objects, versioned, bounded, validated.

Every field that arrives is checked here for type, length and range before anything else sees it, so the state machines
never see a malformed message: :func:`decode` returns a message or raises :class:`Malformed`. Nothing here does I/O.
An unknown field is ignored (a newer peer may add one); an unknown message or a missing required field is malformed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Union

from launcher.model import Cause, CauseKind, Epoch, ProcessEvidence, StartProgress

PROTOCOL = 1
#: Bytes of one message. A list of 1,024 members is about 45 KiB; the largest message of a member is its hello.
MAX_FROM_LEADER = 512 * 1024
MAX_FROM_MEMBER = 96 * 1024
MAX_RANKS = 4096
MAX_CHARGES = 1000
MAX_SECONDS = 1e9  #: of a duration or an age
MAX_RETRY = 60.0  #: the longest that a member waits because a leader said so, in seconds
MAX_DIGITS = 20  #: of a whole number: enough for any 64-bit value
#: The highest epoch number. It grows by one an epoch; at one a second, 2**40 would take 30,000 years. A higher one is a
#: lie or comes from a broken file, and is rejected whether it comes from a peer or from our own memory.
MOST_EPOCHS = 2**40
MOST_WORDS = 1000  #: characters of the text for people in a cause, a refusal or an abort
TAIL_LINES, TAIL_BYTES = 240, 28 * 1024  #: of a cause: a traceback and the last lines; a hello may hold two causes
MAX_BYTES = 2**63  #: of a model, and a second
MAX_STEPS = 16  #: of a start
MAX_FACTS, MAX_FACT = 48, 300  #: entries, and characters of each
#: Of a rank's evidence: processes, frames of each, lines that each printed, characters of a line, and bytes of it all.
MOST_PROCESSES, MOST_FRAMES, MOST_PRINTED, LONGEST_PRINTED, EVIDENCE_BYTES = 64, 40, 3000, 300, 64 * 1024
LEAST_EVIDENCE, ALL_EVIDENCE = 8 * 1024, 16 << 20  #: bytes of a rank in a large group, and of all ranks together
MOST_NAME = 100  #: characters of a process's title, and of the kernel's words


class Malformed(ValueError):
    """A message that cannot be read. The text is short, safe to log, and never contains the peer's raw bytes."""


# -------------------------------------------------------------------------------------------------- field checks

Check = Callable[[Any], Any]


def _text(longest: int) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest:
            raise Malformed(f"is not a text of at most {longest} characters")
        return value

    return check


def _token(longest: int) -> Check:
    """A text for logs, names and comparisons: printable, without spaces or control characters."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest or not value.isprintable() or " " in value:
            raise Malformed(f"is not a plain word of at most {longest} characters")
        return value

    return check


def _whole(least: int, most: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Malformed(f"is not a whole number from {least} to {most}")
        return value

    return check


def _seconds(value: Any) -> float:
    """Compare before converting: an integer of 400 digits does not fit a float. NaN fails the range check."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_SECONDS:
        raise Malformed(f"is not a number of seconds from 0 to {MAX_SECONDS:g}")
    return float(value) + 0.0  # -0.0 becomes 0.0


def _sendable(value: Any) -> Any:
    """Clamp seconds to what the other side accepts, so that a clock that was set, or a pod that is many years old, can
    still say hello."""
    if value is None or 0 <= value <= MAX_SECONDS:
        return value
    return MAX_SECONDS if value > 0 else 0.0


def _all_sendable(values: Any) -> list[Any]:
    return [_sendable(value) for value in values[:MAX_CHARGES]]


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Malformed("is not true or false")
    return value


def _list(check: Check, longest: int) -> Check:
    def checked(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or len(value) > longest:
            raise Malformed(f"is not a list of at most {longest}")
        return tuple(check(item) for item in value)

    return checked


def _map(key: Check, item: Check, most: int) -> Check:
    def checked(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > most:
            raise Malformed(f"is not an object of at most {most} entries")
        return {key(k): item(v) for k, v in value.items()}

    return checked


def _by_rank(longest: int) -> Check:
    """One plain word per rank, sent as a single text: "a b c".

    Each of a thousand members reads the words of a thousand ranks. As one text they are checked in a few passes of C
    code, and the resulting tuple of strings leaves the garbage collector nothing to traverse.
    """

    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, str) or len(value) > MAX_RANKS * (longest + 1) or not _printable(value):
            raise Malformed("is not a text of plain words")
        words = tuple(value.split(" ")) if value else ()
        sizes = set(map(len, words))
        if len(words) > MAX_RANKS or 0 in sizes or max(sizes, default=0) > longest:
            raise Malformed(f"is not one word of at most {longest} characters for each of at most {MAX_RANKS} ranks")
        return words

    return check


def _printable(text: str) -> bool:
    """`str.isprintable` for mostly ASCII text: ten times faster, as it needs no table lookup per character."""
    return not text.encode().translate(None, _PRINTABLE) if text.isascii() else text.isprintable()


_PRINTABLE = bytes(range(0x20, 0x7F))
_INCARNATION = _token(32)
_INCARNATIONS = _by_rank(32)


def _epoch(value: Any) -> Epoch:
    if isinstance(value, Epoch):
        return value
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise Malformed("is not an epoch")
    return Epoch(_whole(0, MOST_EPOCHS)(value[0]), _INCARNATION(value[1]))


def _cause(value: Any) -> Cause:
    if isinstance(value, Cause):
        return value
    if not isinstance(value, dict):
        raise Malformed("is not a cause")
    try:
        kind = CauseKind(value.get("kind"))
    except ValueError:
        raise Malformed("has an unknown kind of cause") from None
    return Cause(
        kind=kind,
        rank=_whole(0, MAX_RANKS)(value.get("rank")),
        text=_text(MOST_WORDS)(value.get("text")),
        process=_text(100)(value.get("process", "")),
        code=_optional(_whole(0, 255))(value.get("code")),
        tail=_list(_text(500), TAIL_LINES)(value.get("tail", [])),
        limit=_text(100)(value.get("limit", "")),
        rivals=_list(_whole(0, MAX_RANKS), 16)(value.get("rivals", [])),
        because=_list(_text(200), 17)(value.get("because", [])),
        autopsy=_text(MOST_WORDS)(value.get("autopsy", "")),
    )


def _process(value: Any) -> ProcessEvidence:
    if isinstance(value, ProcessEvidence):
        return value
    if not isinstance(value, dict):
        raise Malformed("is not a process")
    return ProcessEvidence(
        pid=_whole(1, 2**31)(value.get("pid")),
        name=_text(MOST_NAME)(value.get("name", "")),
        state=_text(1)(value.get("state", "")),
        wchan=_text(MOST_NAME)(value.get("wchan", "")),
        syscall=_text(MOST_NAME)(value.get("syscall", "")),
        frames=_list(_text(LONGEST_PRINTED), MOST_FRAMES)(value.get("frames", [])),
        text=_list(_text(LONGEST_PRINTED), MOST_PRINTED)(value.get("text", [])),
    )


def _all_processes(values: Any) -> list[dict[str, Any]]:
    return [asdict(value) for value in values]


def _number(most: float) -> Check:
    """Compared before it is converted, as in `_seconds`."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
            raise Malformed(f"is not a number from 0 to {most:g}")
        return float(value) + 0.0

    return check


def _progress(value: Any) -> StartProgress:
    """How far a start is. A field that a newer peer has added is ignored, one that an older peer lacks is unknown."""
    if isinstance(value, StartProgress):
        return value
    if not isinstance(value, dict):
        raise Malformed("is not the progress of a start")
    return StartProgress(**{name: check(value[name]) for name, check in _PROGRESS.items() if name in value})


_PROGRESS: dict[str, Check] = {
    "stage": _text(64),
    "step": _token(32),
    "ratio": _optional(_number(1.0)),
    "bytes_read": _optional(_whole(0, MAX_BYTES)),
    "bytes_total": _optional(_whole(0, MAX_BYTES)),
    "bytes_per_second": _optional(_number(float(MAX_BYTES))),
    "eta": _optional(_seconds),
    "gate": _text(300),
    "answer": _text(300),
    "steps": _map(_token(32), _seconds, MAX_STEPS),
}


def _progress_object(value: StartProgress | None) -> dict[str, Any] | None:
    """Progress as JSON, cut to what the other side accepts."""
    if value is None:
        return None
    return {
        "stage": value.stage[:64],
        "step": value.step,
        "ratio": value.ratio,
        "bytes_read": value.bytes_read,
        "bytes_total": value.bytes_total,
        "bytes_per_second": value.bytes_per_second,
        "eta": _sendable(value.eta),
        "gate": value.gate[:300],
        "answer": value.answer[:300],
        "steps": {step: _sendable(seconds) for step, seconds in value.steps.items()},
    }


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _text(4096)(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Epoch):
        return [value.n, value.leader]
    if isinstance(value, Cause):
        return cause_object(value)
    return value


def _wire(check: Check, write: Check | None = None, **more: Any) -> Any:
    """A message field: ``check`` validates what arrives, ``write`` converts what JSON cannot represent."""
    return field(metadata={"check": check, "write": write}, **more)


# -------------------------------------------------------------------------------------------- member to leader


@dataclass(frozen=True)
class Hello:
    """A member's first message, sent only when none of its engine's processes is left."""

    group: str = _wire(_text(600))
    rank: int = _wire(_whole(0, MAX_RANKS - 1))
    size: int = _wire(_whole(1, MAX_RANKS))
    incarnation: str = _wire(_INCARNATION)
    address: str = _wire(_token(64))
    name: str = _wire(_token(300), default="")
    fingerprint: dict[str, str] = _wire(_map(_token(64), _text(600), 64), default_factory=dict)
    #: What else is known of the pod (rails, MTU, findings), for people and for comparison. No rule depends on it.
    facts: dict[str, str] = _wire(_map(_token(64), _text(MAX_FACT), MAX_FACTS), default_factory=dict)
    protocol: int = _wire(_whole(0, 10**6), default=PROTOCOL)
    last_epoch: Epoch | None = _wire(_optional(_epoch), default=None)
    #: The members of ``last_epoch`` of which, as far as this one was told, something may still run; by rank if all.
    last_members: tuple[str, ...] = _wire(_INCARNATIONS, write=" ".join, default=())
    #: Seconds since this member last sent its former leader anything. This bounds that leader's leases.
    quiet: float = _wire(_seconds, write=_sendable, default=0.0)
    #: Earlier incarnations in this very pod whose processes are all known to be gone.
    replaces: tuple[str, ...] = _wire(_list(_INCARNATION, 64), default=())
    #: Ages of the restarts charged in the window, as far as this member knows, newest first.
    charges: tuple[float, ...] = _wire(_list(_seconds, MAX_CHARGES), write=_all_sendable, default=())
    first_failure: Cause | None = _wire(_optional(_cause), default=None)  #: as last reported by a leader
    first_epoch: int | None = _wire(_optional(_whole(0, MOST_EPOCHS)), default=None)  #: number of the epoch it ended
    first_age: float | None = _wire(_optional(_seconds), write=_sendable, default=None)  #: seconds since then
    #: Seconds since the group gave up (`Abort.spent`), if it has not been ready since, as far as this member knows.
    gave_up: float | None = _wire(_optional(_seconds), write=_sendable, default=None)
    died: Cause | None = _wire(_optional(_cause), default=None)  #: how the former launcher in this pod ended
    #: Counts the hellos of an incarnation, so that a delayed one from an abandoned connection is recognised as old.
    attempt: int = _wire(_whole(0, 2**53), default=0)

    @property
    def dead(self) -> tuple[str, ...]:
        """Those of ``replaces`` whose process ended: a superseded launcher lives on under its next name."""
        lived_on = {self.incarnation, *self.replaces}
        return tuple(name for name in self.replaces if next_incarnation(name) not in lived_on)


def next_incarnation(incarnation: str) -> str:
    """A new name for a launcher that was superseded: it keeps the stem, so that logs can be followed."""
    stem, _, number = incarnation.partition("-")
    return f"{stem}-{int(number) + 1 if number.isdecimal() else 2}"


@dataclass(frozen=True)
class Ping:
    """Heartbeat. ``echo`` is the newest ``mark`` received: it proves to the leader that its messages arrive.

    ``at`` and ``heard``: when this was sent and when that mark was received, in seconds of the member's own clock.
    """

    seq: int = _wire(_whole(0, 2**53))
    echo: int = _wire(_whole(0, 2**53), default=0)
    at: float | None = _wire(_optional(_seconds), write=_sendable, default=None)
    heard: float | None = _wire(_optional(_seconds), write=_sendable, default=None)


@dataclass(frozen=True)
class Answer:
    """Reply to a challenge: "I am here, and this is my rank"."""

    nonce: str = _wire(_token(64))


@dataclass(frozen=True)
class Prepared:
    epoch: Epoch = _wire(_epoch)


@dataclass(frozen=True)
class Unable:
    """This member cannot take part in the epoch. ``retry``: a later attempt may work."""

    epoch: Epoch = _wire(_epoch)
    cause: Cause = _wire(_cause)
    retry: bool = _wire(_flag, default=True)


@dataclass(frozen=True)
class StageDone:
    epoch: Epoch = _wire(_epoch)
    stage: int = _wire(_whole(0, 100))


@dataclass(frozen=True)
class Failed:
    epoch: Epoch = _wire(_epoch)
    cause: Cause = _wire(_cause)
    noticed: float = _wire(_seconds, write=_sendable, default=0.0)  #: seconds that the rank took to notice
    #: When it happened, on the clock of the member's pings.
    at: float | None = _wire(_optional(_seconds), write=_sendable, default=None)
    #: Seconds by which it may have been earlier, because its observer had no CPU.
    doubt: float = _wire(_seconds, write=_sendable, default=0.0)
    told: bool = _wire(_flag, default=False)  #: our own stop had reached it before it ended


@dataclass(frozen=True)
class Stopped:
    """None of the epoch's processes is left on this member."""

    epoch: Epoch = _wire(_epoch)
    seconds: float = _wire(_seconds, write=_sendable, default=0.0)


@dataclass(frozen=True)
class Drained:
    """From rank 0: no request is in flight any more."""

    epoch: Epoch = _wire(_epoch)


@dataclass(frozen=True)
class Leaving:
    """This pod received SIGTERM. ``grace``: seconds until it is killed."""

    grace: float = _wire(_seconds, write=_sendable)


@dataclass(frozen=True)
class Report:
    """What a member's engine is doing, sent when it changes."""

    epoch: Epoch = _wire(_epoch)
    pids: tuple[int, ...] = _wire(_list(_whole(1, 2**31), 4096), default=())
    health: str = _wire(_token(32), default="")
    activity: int = _wire(_whole(0, 2**63), default=0)  #: changes while anything works: output, CPU, disk, network
    tail: tuple[str, ...] = _wire(_list(_text(500), 40), default=())  #: last lines, so that the leader has a lost pod's
    progress: StartProgress | None = _wire(
        _optional(_progress), write=_progress_object, default=None
    )  #: while it starts


@dataclass(frozen=True)
class Evidence:
    """What this member's processes were doing when `stop` came, if that asked for it. Said before ``stopped``."""

    epoch: Epoch = _wire(_epoch)
    processes: tuple[ProcessEvidence, ...] = _wire(_list(_process, MOST_PROCESSES), write=_all_processes, default=())


@dataclass(frozen=True)
class Unread:
    """This member cannot read a message of the leader and hangs up; ``text`` says why."""

    text: str = _wire(_text(300))


# -------------------------------------------------------------------------------------------- leader to member


@dataclass(frozen=True)
class Accepted:
    """The member has a seat. Its first ping echoes ``mark``, which proves that messages arrive both ways."""

    leader: str = _wire(_INCARNATION)
    mark: int = _wire(_whole(0, 2**53))


@dataclass(frozen=True)
class Rejected:
    """Not accepted. ``why`` is one word for programs, ``text`` is for people; try again after ``retry`` seconds."""

    why: str = _wire(_token(32))
    text: str = _wire(_text(MOST_WORDS))
    retry: float = _wire(_seconds, write=_sendable, default=1.0)


@dataclass(frozen=True)
class Ack:
    """``good``: the newest ping that counts for the lease. ``mark``: to be echoed by the next ping."""

    good: int = _wire(_whole(0, 2**53))
    mark: int = _wire(_whole(0, 2**53))


@dataclass(frozen=True)
class Challenge:
    """Another pod claims your rank: are you still there?"""

    nonce: str = _wire(_token(64))
    rival: str = _wire(_text(400), default="")


@dataclass(frozen=True)
class Prepare:
    epoch: Epoch = _wire(_epoch)
    incarnations: tuple[str, ...] = _wire(_INCARNATIONS, write=" ".join)  #: by rank
    addresses: tuple[str, ...] = _wire(_by_rank(64), write=" ".join)  #: by rank
    token: str = _wire(_token(200), default="")
    values: dict[str, Any] = _wire(_map(_token(64), _scalar, 32), default_factory=dict)


@dataclass(frozen=True)
class Start:
    epoch: Epoch = _wire(_epoch)
    stage: int = _wire(_whole(0, 100))


@dataclass(frozen=True)
class Running:
    """All stages are done on all ranks: the group serves."""

    epoch: Epoch = _wire(_epoch)


@dataclass(frozen=True)
class Drain:
    """Take no new work; rank 0 says ``drained`` when none is left."""

    epoch: Epoch = _wire(_epoch)
    cause: Cause = _wire(_cause)
    seconds: float = _wire(_seconds, write=_sendable)  #: how long at most


@dataclass(frozen=True)
class Stop:
    """End the epoch's processes: TERM, ``grace`` seconds, KILL. Always answered with ``stopped``, running or not."""

    epoch: Epoch = _wire(_epoch)
    cause: Cause = _wire(_cause)
    grace: float = _wire(_seconds, write=_sendable)
    #: Seconds in which to gather evidence first; then KILL, without TERM. 0: none. A launcher that does not know this
    #: field stops as always and sends no evidence.
    autopsy: float = _wire(_seconds, write=_sendable, default=0.0)


@dataclass(frozen=True)
class Abort:
    """The group has given up: stop and exit with ``code``."""

    cause: Cause = _wire(_cause)
    code: int = _wire(_whole(0, 255))
    text: str = _wire(_text(MOST_WORDS), default="")
    spent: bool = _wire(_flag, default=False)  #: the engine failed too often: the next launchers have one attempt


@dataclass(frozen=True)
class Goodbye:
    """A member that is leaving may exit."""


@dataclass(frozen=True)
class News:
    """What the leader knows about the group, for logs and /status on every pod. Sent when it changes."""

    phase: str = _wire(_token(32))
    text: str = _wire(_text(2000), default="")
    present: int = _wire(_whole(0, MAX_RANKS), default=0)
    restarts: int = _wire(_whole(0, 10**9), default=0)
    charges: tuple[float, ...] = _wire(
        _list(_seconds, MAX_CHARGES), write=_all_sendable, default=()
    )  #: their ages, newest first
    first_failure: Cause | None = _wire(_optional(_cause), default=None)
    first_epoch: int | None = _wire(
        _optional(_whole(0, MOST_EPOCHS)), default=None
    )  #: the number of the epoch it ended
    first_age: float | None = _wire(_optional(_seconds), write=_sendable, default=None)  #: seconds since then
    wait: float | None = _wire(
        _optional(_seconds), write=_sendable, default=None
    )  #: the longest that the wait in ``text`` can last
    over: Epoch | None = _wire(_optional(_epoch), default=None)  #: this leader's latest epoch, if it is over
    lost: tuple[str, ...] = _wire(
        _INCARNATIONS, write=" ".join, default=()
    )  #: its members that may still run something


FromMember = Union[
    Hello, Ping, Answer, Prepared, Unable, StageDone, Failed, Stopped, Drained, Leaving, Report, Evidence, Unread
]  # fmt: skip
FromLeader = Union[
    Accepted, Rejected, Ack, Challenge, Prepare, Start, Running, Drain, Stop, Abort, Goodbye, News
]  # fmt: skip
Message = Union[FromMember, FromLeader]

MEMBER_SAYS: dict[str, type[Any]] = {
    c.__name__.lower(): c
    for c in (
        *(Hello, Ping, Answer, Prepared, Unable, StageDone, Failed, Stopped),
        *(Drained, Leaving, Report, Evidence, Unread),
    )
}
LEADER_SAYS: dict[str, type[Any]] = {
    c.__name__.lower(): c
    for c in (Accepted, Rejected, Ack, Challenge, Prepare, Start, Running, Drain, Stop, Abort, Goodbye, News)
}


# ---------------------------------------------------------------------------------------------- on the wire


#: Precomputed for encode and decode: each message's name, its fields, and how each is checked and written.
_SHAPES: dict[type[Any], tuple[str, tuple[tuple[str, Check, Check], ...]]] = {
    kind: (word, tuple((f.name, f.metadata["check"], f.metadata["write"] or _plain) for f in fields(kind)))
    for word, kind in (*MEMBER_SAYS.items(), *LEADER_SAYS.items())
}


def _short_int(digits: str) -> int:
    """Parsing n digits takes n squared steps, and no field holds a number that long."""
    if len(digits) > MAX_DIGITS:
        raise ValueError("a whole number that is too long")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_short_int)
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def encode(message: Message) -> str:
    """A message as JSON text."""
    word, shape = _SHAPES[type(message)]
    body: dict[str, Any] = {"is": word}
    for name, _, write in shape:
        body[name] = write(getattr(message, name))
    text = _ENCODER.encode(body)
    # A lone surrogate stands for a byte of argv that is not UTF-8, or a peer sent it. Written as an escape, it passes.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def hello_that_fits(hello: Hello) -> Hello:
    """Shrink a hello to what a leader accepts: drop the causes' last lines first, then the facts, then old charges."""
    for less in (
        _without_last_words,
        lambda it: replace(it, facts={}),
        lambda it: replace(it, charges=it.charges[:64]),
    ):
        if len(encode(hello).encode()) <= MAX_FROM_MEMBER:
            break
        hello = less(hello)
    return hello


def _without_last_words(hello: Hello) -> Hello:
    first, died = hello.first_failure, hello.died
    return replace(hello, first_failure=first and replace(first, tail=()), died=died and replace(died, tail=()))


def read_json(text: str | bytes) -> Any:
    """Parse untrusted JSON. Raises Malformed and nothing else."""
    try:
        return _DECODER.decode(text if isinstance(text, str) else str(text, "utf-8"))
    except (ValueError, RecursionError):  # ValueError: not JSON, not UTF-8, or a number that is too long
        raise Malformed("not JSON") from None


def decode(text: str | bytes, says: dict[str, type[Any]]) -> Any:
    """A message from JSON text; ``says`` lists the messages that its sender may send.

    Raises:
        Malformed: not JSON, not a known message, or a field out of bounds. Nothing else, whatever ``text`` is.
    """
    body = read_json(text)
    if not isinstance(body, dict):
        raise Malformed("not a JSON object")
    word = body.get("is")
    kind = says.get(word) if isinstance(word, str) else None
    if kind is None:
        raise Malformed("not a word of this protocol")
    values: dict[str, Any] = {}
    for name, check, _ in _SHAPES[kind][1]:
        if name not in body:
            continue
        try:
            values[name] = check(body[name])
        except Malformed as error:
            raise Malformed(f"{word}.{name} {error}") from None
        except (ValueError, TypeError, ArithmeticError, RecursionError):  # no check should; no peer may exploit one
            raise Malformed(f"{word}.{name} cannot be read") from None
    try:
        return kind(**values)
    except TypeError:
        raise Malformed(f"{word} lacks a field") from None


def cause_object(value: Cause, room: int = TAIL_BYTES) -> dict[str, Any]:
    """A cause as JSON, cut to what the other side accepts; ``room``: bytes for its last lines."""
    return {
        "kind": value.kind.value,
        "rank": value.rank,
        "text": value.text[:MOST_WORDS],
        "process": value.process[:100],
        "code": value.code,
        "tail": _newest(value.tail, room),
        "limit": value.limit[:100],
        "rivals": list(value.rivals[:16]),
        "because": [line[:200] for line in value.because[:17]],
        "autopsy": value.autopsy[:MOST_WORDS],
    }


def evidence_that_fits(processes: Sequence[ProcessEvidence], size: int) -> tuple[ProcessEvidence, ...]:
    """Cut evidence to what a leader of ``size`` members has room for.

    Every process and its frames go before what any of them printed.
    """
    room = max(LEAST_EVIDENCE, min(EVIDENCE_BYTES, ALL_EVIDENCE // size))
    kept = []
    for one in processes[:MOST_PROCESSES]:
        frames, room = _oldest(one.frames[:MOST_FRAMES], room)
        names = {field: getattr(one, field)[:MOST_NAME] for field in ("name", "wchan", "syscall")}
        kept.append(replace(one, **names, state=one.state[:1], frames=frames, text=()))
    for at, one in enumerate(processes[:MOST_PROCESSES]):
        share = room // (len(kept) - at)  # what one process leaves, those after it may use
        text, left = _oldest(one.text[:MOST_PRINTED], share)
        room -= share - left
        kept[at] = replace(kept[at], text=text)
    return tuple(kept)


def _oldest(lines: Sequence[str], room: int) -> tuple[tuple[str, ...], int]:
    """The first lines that fit in ``room`` bytes of JSON, and what is left of it."""
    kept: list[str] = []
    for line in (line[:LONGEST_PRINTED] for line in lines):
        size = len(_ENCODER.encode(line).encode("utf-8", "backslashreplace")) + 1
        if size > room:
            break
        kept.append(line)
        room -= size
    return tuple(kept), room


def _newest(lines: tuple[str, ...], room: int) -> list[str]:
    """The newest lines that fit in ``room`` bytes."""
    kept: list[str] = []
    for line in reversed(lines[-TAIL_LINES:]):
        room -= len(line[:500].encode("utf-8", "replace")) + 4
        if room < 0:
            break
        kept.append(line[:500])
    return kept[::-1]


def cause_from(value: Any) -> Cause:
    """A cause from JSON. Raises Malformed (a ValueError)."""
    return _cause(value)
