"""The two state machines under arbitrary messages: what a well-formed but extreme message does behind the decoder."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from launcher.agent.state_file import SavedState
from launcher.cli import sources
from launcher.group import coordinator as co
from launcher.group import member as me
from launcher.group import messages as m
from launcher.group.config import CoordinatorConfig, MemberConfig, StageLimit
from launcher.group.events import Closed, Hang, Send, SendAll, Tick
from launcher.group.roster import LOCAL
from launcher.model import Cause, CauseKind, Epoch, ProcessEvidence, StartProgress
from launcher.settings import Settings
from tests.fuzz import values

SIZE = 3
OWN = "leader"
CAUSE = Cause(CauseKind.EXITED, 1, "it ended", "engine", 1, ("last",))
HANG = Cause(CauseKind.HANG, 1, "no tokens")
PROCESS = ProcessEvidence(7, "worker 1", "S", "poll", "7", ("wait (a.py:1)",), ("File a",))
PROGRESS = StartProgress("engine", "weights", 0.5, 5, 10, 1.0, 5.0, "GET http://a:1/h", "HTTP 503", {"weights": 5.0})


def sample(rng: random.Random, says: dict[str, type[Any]], epoch: Epoch | None = None) -> dict[str, Any]:
    """A message that could be true, as JSON."""
    epoch = epoch or Epoch(3, OWN)
    rank, number = rng.randrange(SIZE), rng.choice((1, 2, 5))
    them: tuple[Any, ...]
    if says is m.MEMBER_SAYS:
        hello = m.Hello(
            group="g",
            rank=rank,
            size=SIZE,
            incarnation=f"m{rank}{rng.choice(('', '', 'b'))}",
            address=f"10.0.0.{rank}",
            name=f"pod-{rank}",
            fingerprint={"model": "m"},
            facts={"mtu": "1500"},
            last_epoch=rng.choice((None, Epoch(rng.randrange(9), rng.choice((OWN, "old"))))),
            last_members=rng.choice(((), ("m0", "m1", "m2"))),
            replaces=rng.choice(((), ("m9",))),
            charges=(1.0, 2.0),
            first_failure=rng.choice((None, CAUSE)),
            first_epoch=2,
            first_age=4.5,
            died=rng.choice((None, CAUSE)),
            attempt=number,
        )
        them = (
            *(hello, hello, hello, m.Ping(number, number), m.Ping(number, number), m.Answer("n"), m.Prepared(epoch)),
            *(m.Prepared(epoch), m.StageDone(epoch, 0), m.StageDone(epoch, 1), m.Failed(epoch, CAUSE, 1.0)),
            *(
                m.Unable(epoch, CAUSE, rng.random() < 0.9),
                m.Stopped(epoch, 1.0),
                m.Stopped(epoch, 1.0),
                m.Drained(epoch),
            ),
            *(m.Failed(epoch, HANG), m.Evidence(epoch, (PROCESS, PROCESS))),
            *(m.Leaving(number), m.Report(epoch, (5, 6), "ok", number, ("line",))),
            *(m.Leaving(number), m.Report(epoch, (5, 6), "ok", number, ("line",), PROGRESS)),
        )
    else:
        news = m.News("starting", "t", 2, 1, (1.0,), CAUSE, 1, 2.0, 3.0)
        them = (
            *(m.Accepted(OWN, 1), m.Accepted(OWN, 1), m.Rejected("duplicate", "t", 1.0), m.Ack(number, number)),
            *(m.Ack(5, 5), m.Challenge("n", "r"), m.Prepare(epoch, ("m0", "m1", "m2"), ("a", "b", "c"), "t", {"v": 1})),
            *(m.Prepare(epoch, ("m0", "m1", "m2"), ("a", "b", "c")), m.Start(epoch, 0), m.Start(epoch, 1)),
            *(m.Running(epoch), m.Drain(epoch, CAUSE, 5.0), m.Stop(epoch, CAUSE, 1.0), m.Stop(epoch, HANG, 1.0, 2.0)),
            *(m.Abort(CAUSE, 1, "t"), m.Goodbye(), news),
        )
    return dict(json.loads(m.encode(rng.choice(them))))


def mutated(rng: random.Random, body: dict[str, Any]) -> Any:
    changed: Any = body
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        changed = values.changed(rng, changed)
    return changed


def decoded(rng: random.Random, says: dict[str, type[Any]], epoch: Epoch | None) -> Any:
    """A message as it comes out of the decoder: often extreme, never malformed."""
    for _ in range(20):
        body = sample(rng, says, epoch)
        if rng.random() < 0.5:
            key = rng.choice(list(body))
            body[key] = rng.choice((values.number(rng), values.value(rng), [values.number(rng), "x"], body[key]))
        try:
            return m.decode(json.dumps(body), says)
        except (m.Malformed, ValueError):
            continue
    return m.decode(json.dumps(sample(rng, says, epoch)), says)


def check_sent(message: Any, says: dict[str, type[Any]], most: int) -> None:
    """What a machine says the other side can read."""
    text = m.encode(message).encode()
    assert len(text) <= most, f"{type(message).__name__} of {len(text)} bytes"
    m.decode(text, says)


def later(rng: random.Random, now: float) -> float:
    return now + rng.choice((0.0, 0.0, 0.01, 0.3, 0.5, 3.0, 30.0, 700.0, 1e6))


def helpful(rng: random.Random, machine: co.Coordinator, conn: int, mark: int, seq: int) -> Any:
    """What a member on this connection would say that goes along."""
    epoch = machine.epoch or Epoch(1, OWN)
    said = {
        co.GroupPhase.PREPARING: (m.Prepared(epoch),),
        co.GroupPhase.STARTING: (m.StageDone(epoch, machine.stage),),
        co.GroupPhase.DRAINING: (m.Drained(epoch), m.Stopped(epoch)),
        co.GroupPhase.STOPPING: (m.Stopped(epoch),),
    }
    if conn not in machine.roster.by_conn:
        hello = m.Hello("g", conn, SIZE, f"m{conn}", f"10.0.0.{conn}", last_epoch=machine.epoch)
        return hello if conn < SIZE else m.Ping(seq, mark)
    return rng.choice((m.Ping(seq, mark), *said.get(machine.phase, ())))


def coordinator(rng: random.Random) -> None:
    """A leader of three, among whose members and strangers anybody may say anything."""
    config = CoordinatorConfig(
        "g", SIZE, OWN, join_timeout=rng.choice((None, 60.0)), max_restarts=rng.choice((0, 2, 10))
    )
    now, hostile = rng.choice((0.0, 1e5, 3e9)), rng.choice((0.03, 0.1, 0.3, 0.9))
    machine = co.Coordinator(config, now, random.Random(rng.getrandbits(32)))
    machine.stages = (StageLimit("one"), StageLimit("two", 60.0, "look"))
    marks: dict[int, int] = {}
    for seq in range(1, rng.choice((20, 60, 120))):
        conn = rng.randrange(SIZE + 2)
        event: Any
        if rng.random() > hostile:
            event = helpful(rng, machine, conn, marks.get(conn, 0), seq)
            if rng.random() < 0.15:
                event, conn, now = Tick(), LOCAL, now + rng.choice((0.05, 0.3, 0.5))
        elif rng.random() < 0.1:
            event = Closed(rng.choice(("", values.text(rng))))
        elif rng.random() < 0.1:
            event, conn, now = Tick(), LOCAL, later(rng, now)
        else:
            event = decoded(rng, m.MEMBER_SAYS, machine.epoch)
        for action in machine.handle(event, conn, now):
            if isinstance(action, (Send, SendAll)):
                check_sent(action.message, m.LEADER_SAYS, m.MAX_FROM_LEADER)
                for one in action.conns if isinstance(action, SendAll) else (action.conn,):
                    marks[one] = getattr(action.message, "mark", marks.get(one, 0))
            elif isinstance(action, Hang):
                marks.pop(action.conn, None)
        assert isinstance(machine.waiting_for(), str)


def obliging(rng: random.Random, machine: me.Member, sent: int) -> Any:
    """What a leader, or the own pod, would say that goes along."""
    epoch = machine.epoch or Epoch(3, OWN)
    ack = m.Ack(sent, 1)
    names, stage, following = ("m0", machine.incarnation, "m2"), max(0, machine.stage), min(100, machine.stage + 1)
    said: dict[me.State, tuple[Any, ...]] = {
        me.State.CLEANING: (me.Gone(),),
        me.State.SEEKING: (me.Connected(), m.Accepted(OWN, 1)),
        me.State.SEATED: (
            ack,
            m.Prepare(Epoch(epoch.n % m.MOST_EPOCHS + 1, OWN), names, ("10.0.0.1", "10.0.0.2", "10.0.0.3")),
        ),
        me.State.PREPARING: (ack, me.Able(epoch)),
        me.State.STARTING: (ack, m.Start(epoch, following), me.Done(epoch, stage), m.Running(epoch)),
        me.State.RUNNING: (ack, m.Drain(epoch, CAUSE, 5.0), me.Idle(epoch), m.Stop(epoch, CAUSE, 1.0)),
        me.State.STOPPING: (ack, me.Gone()),
    }
    return rng.choice(said.get(machine.state, (Tick(),)))


def member(rng: random.Random) -> None:
    """A member of three whose leader may say anything, in any order, and whose own pod says what pods say."""
    last = rng.choice((None, (Epoch(rng.choice((1, 2**40)), "old"), ("a", "b", "c"))))
    config = MemberConfig("g", 1, SIZE, "pod-1", "m1", join_timeout=rng.choice((None, 60.0)), last=last)
    now, hostile, sent = rng.choice((0.0, 1e5, 3e9)), rng.choice((0.03, 0.1, 0.3, 0.9)), 0
    machine = me.Member(config, now)
    machine.address = "10.0.0.1"
    machine.handle(me.Gone(), now)
    for _ in range(rng.choice((20, 60, 120))):
        epoch = machine.epoch or Epoch(3, OWN)
        own = (
            *(me.Connected(), Closed("x"), me.Able(epoch), me.NotAble(epoch, CAUSE), me.Done(epoch, 0)),
            *(me.Broke(epoch, CAUSE, 1.0), me.Gone(), me.Expired(), me.Idle(epoch), Tick()),
            *(me.Activity(m.Report(epoch, (1,), progress=PROGRESS)), me.Terminate(rng.choice((0.0, 30.0)))),
        )
        event: Any
        if rng.random() > hostile:
            now += 0.01
            event = obliging(rng, machine, sent)
        elif rng.random() < 0.2:
            now = later(rng, now)
            event = rng.choice(own)
        else:
            event = decoded(rng, m.LEADER_SAYS, epoch)
        for action in machine.handle(event, now):
            if isinstance(action, Send):
                sent = getattr(action.message, "seq", sent)
                check_sent(action.message, m.MEMBER_SAYS, m.MAX_FROM_MEMBER)
            elif isinstance(action, me.Dial):
                assert 0 <= action.delay <= m.MAX_RETRY, "it is waited for"
            elif isinstance(action, me.SetDeadline) and action.at is not None:
                assert action.at <= now + config.terms.lease, "a lease is no longer than that"
            elif isinstance(action, (me.DoStop, me.DoDrain)):
                assert math.isfinite(getattr(action, "grace", 0.0))


def check_hello(before: SavedState) -> None:
    """A launcher that remembers this says a hello that a leader can read."""
    config = MemberConfig("g", 1, 2, "pod-1", "new", last=before.last, died=before.killed(1))
    machine = me.Member(config, 0.0)
    machine.address = "10.0.0.1"
    if before.incarnation:
        machine.replace(before.incarnation)
    machine.news = m.News("gathering", charges=tuple(map(float, before.charges)), first_failure=before.first_failure)
    machine.handle(me.Gone(), 0.0)
    (hello,) = (a.message for a in machine.handle(me.Connected(), 1.0) if isinstance(a, Send))
    check_sent(hello, m.MEMBER_SAYS, m.MAX_FROM_MEMBER)


def read_settings(environ: dict[str, str]) -> tuple[Settings, dict[str, str], tuple[str, ...]]:
    return sources.parse([], environ)


def check_settings(settings: Settings) -> None:
    for name, value in vars(settings).items():
        if isinstance(value, float):
            assert math.isfinite(value) and abs(value) <= 1e9, f"{name}={value}"
