"""What a pod says of itself: the /status object, the /metrics page, the failure block, the termination message.

Pure functions over what the agent knows; the same object is what `launcher status` prints as a table.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launcher.log import plain, stamp
from launcher.model import Cause

if TYPE_CHECKING:
    from launcher.agent.agent import Agent
    from launcher.group.ends import End
    from launcher.group.metrics import Durations

TERMINATION_BYTES = 4000  #: the kubelet reads 4096
PHASES = (
    *("setup", "seeking", "gathering", "fenced", "mismatched", "leaving", "backoff"),
    *("preparing", "starting", "running", "draining", "stopping", "aborted"),
)
_BOOT = time.time() - time.monotonic()


def wall_clock(at: float) -> float:
    """A monotonic time of this process as seconds since 1970, always the same for the same time."""
    return _BOOT + at


def monotonic_of(at: float) -> float:
    """The other way round."""
    return at - _BOOT


class Timeline:
    """The phases that this launcher went through, with the time of each."""

    def __init__(self) -> None:
        self._entries: deque[tuple[str, float, float]] = deque(maxlen=64)
        self.seconds: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        now = time.monotonic()
        if self._entries:
            last, _, since = self._entries[-1]
            self.seconds[last] = self.seconds.get(last, 0.0) + now - since
        self._entries.append((phase, time.time(), now))

    def rows(self) -> list[dict[str, Any]]:
        """Oldest first; ``at`` is wall-clock time in UTC, ``seconds`` how long the phase lasted (so far)."""
        ends = [*[since for _, _, since in self._entries][1:], time.monotonic()]
        return [
            {
                "phase": phase,
                "at": stamp(at),
                "seconds": round(end - since, 3),
            }
            for (phase, at, since), end in zip(self._entries, ends, strict=True)
        ]


def failure_object(cause: Cause | None, epoch: int | None, at: float | None) -> dict[str, Any] | None:
    """A failure; ``epoch``: the number of the one that it ended, ``at``: monotonic seconds."""
    if cause is None:
        return None
    return {
        "epoch": epoch,
        "at": None if at is None else stamp(wall_clock(at)),
        "age_s": None if at is None else round(time.monotonic() - at, 1),
        "rank": cause.rank,
        "cause": cause.kind.value,
        "process": cause.process,
        "exit_code": cause.code,
        "text": cause.text,
        "tail": list(cause.tail),
        "probably": bool(cause.rivals),
        "or_rank": list(cause.rivals),
        "because_of_it": list(cause.because),
    }


def end_object(end: End) -> dict[str, Any]:
    """How a rank ended."""
    cause = end.cause
    return {
        "rank": cause.rank,
        "cause": cause.kind.value,
        "exit_code": cause.code,
        "text": cause.text,
        "stopped_by_us": end.told,
        "tail": list(cause.tail),
    }


def status_object(agent: Agent) -> dict[str, Any]:
    """The /status of one pod."""
    who, member, lead = agent.identity, agent.member, agent.coordinator
    ready, why = agent.ready()
    if lead is not None:
        first = (lead.history.first, lead.history.first_n, lead.history.first_at)
    else:
        first = (member.news.first_failure, member.news.first_epoch, member.first_at)
    status: dict[str, Any] = {
        "phase": agent.phase,
        "ready": ready,
        "why": why,
        "epoch": agent.engine.epoch.n if agent.engine.epoch else None,
        "rank": who.rank,
        "size": who.size,
        "group": who.group,
        "name": who.name,
        "source": who.source,
        "engine": agent.settings.engine_file or agent.settings.engine,
        "waiting_for": _waiting_for(agent) or member.refusal,
        "first_failure": failure_object(*first),
        "members_present": len(lead.seats) if lead else member.news.present,
        "members": _members(agent),
        "restarts": member.news.restarts,
        "timeline": agent.timeline.rows(),
        "findings": [f.as_object() for f in (*agent.lookout.findings, *agent.lookout.differences)],
    }
    if lead is not None:
        status["failures"] = [
            {
                "served_s": None if e.served is None else round(e.served, 1),
                **(failure_object(e.cause, e.epoch.n, e.at) or {}),
                "ends": [end_object(end) for end in e.ends],
            }
            for e in lead.history.ended
        ]
    return status


def _waiting_for(agent: Agent) -> str:
    """On the leader what it knows now; on a worker what the leader last said."""
    if agent.coordinator is not None:
        now = time.monotonic()
        return waiting_for(agent.coordinator.waiting_for(), agent.coordinator.wait_left(now), now)
    news = agent.member.news
    return waiting_for(news.text, news.wait, agent.member.news_at)


def waiting_for(text: str, wait: float | None, since: float) -> str:
    """What is waited for, and for how long still: ``wait`` seconds counted from ``since``."""
    if not text or wait is None:
        return text
    return f"{text}; {max(0.0, since + wait - time.monotonic()):.0f} s left"


def _members(agent: Agent) -> list[dict[str, Any]]:
    """On the leader every rank, on a worker what it knows itself: the leader and its own."""
    now = time.monotonic()
    who, member, lead = agent.identity, agent.member, agent.coordinator
    if lead is None:
        silent = None if member.acked_at is None else round(now - member.acked_at, 1)
        me = _row(who.rank, member.state.value, member.address, member.incarnation, agent.engine.pids, 0.0)
        return [_row(0, "unknown" if silent is None else "leader", who.leader, member.leader, (), silent), me]
    rows = []
    for rank in range(who.size):
        seat = lead.seats.get(rank)
        if seat is None:
            rows.append(_row(rank, "absent", who.name_of(rank), "", (), None))
            continue
        pids = seat.report.pids if seat.report and seat.joined else ()  # else they have ended
        hello, silent = seat.hello, round(seat.contact.silent_for(now), 1)
        row = _row(rank, _seat_state(agent, seat), hello.address, hello.incarnation, pids, silent)
        rows.append({**row, "facts": hello.facts} if hello.facts else row)
    return rows


def _seat_state(agent: Agent, seat: Any) -> str:
    lead = agent.coordinator
    assert lead is not None
    if seat.leaving is not None:
        return "leaving"
    return lead.shown_phase if seat.joined else "waiting"


def _row(
    rank: int, state: str, address: str, incarnation: str, pids: tuple[int, ...], seen: float | None
) -> dict[str, Any]:
    return {
        "rank": rank,
        "state": state,
        "address": address,
        "incarnation": incarnation,
        "engine_pids": list(pids),
        "last_seen_s": seen,
    }


# ------------------------------------------------------------------------------------------------------- metrics


def metrics_page(agent: Agent) -> str:
    """Prometheus text. Names and meanings are listed in README, "Metrics"."""
    member, lead = agent.member, agent.coordinator
    phase = agent.phase
    page = _Page()
    page.add(
        "launcher_phase", "gauge", "1 for the phase the group is in", {p: float(p == phase) for p in PHASES}, "phase"
    )
    page.one("launcher_ready", "gauge", "1 while /readyz answers 200", float(agent.ready()[0]))
    page.one("launcher_rank", "gauge", "rank of this pod", agent.identity.rank)
    page.one("launcher_group_size", "gauge", "pods in the group", agent.identity.size)
    page.one(
        "launcher_epoch",
        "gauge",
        "number of the current or latest epoch",
        agent.engine.epoch.n if agent.engine.epoch else 0,
    )
    present = len(lead.seats) if lead else member.news.present
    page.one("launcher_members_present", "gauge", "members that are connected to the leader", present)
    page.one(
        "launcher_restarts_total",
        "counter",
        "epochs that failed after they had started a process",
        member.news.restarts,
    )
    if lead is not None:
        measures = lead.measures
        page.add("launcher_failures_total", "counter", "epochs that failed, by cause", measures.failures, "cause")
        page.summary(
            "launcher_detection_seconds", "from a failure to the moment that the leader knew of it", measures.detected
        )
        page.summary("launcher_stop_seconds", "from then until every rank had stopped", measures.stopped)
        page.add("launcher_drains_total", "counter", "drains, by how they ended", measures.drains, "outcome")
        page.summary("launcher_drain_seconds", "from the first SIGTERM to the end of the drain", measures.drained)
        engine = agent.engine
        slow = engine.health is not None and engine.health.slow
        page.one("launcher_engine_slow", "gauge", "1 while requests move and health checks time out", float(slow))
        reasons = {name: engine.health_failures[name] for name in ("refused", "error", "timeout")}
        page.add("launcher_health_failures_total", "counter", "health checks that failed, by reason", reasons, "reason")
    page.add(
        "launcher_connection_errors_total",
        "counter",
        "connections closed because of what came on them, by kind",
        agent.connection_errors,
        "kind",
    )
    page.add(
        "launcher_connections_turned_away_total",
        "counter",
        "connections closed before they had asked or joined: too many, too slow, or not the protocol",
        {
            "agent": float(agent.visitors.turned_away) if agent.visitors is not None else 0.0,
            "group": float(agent.turned_away),
        },
        "port",
    )
    pressure = agent.pressure
    page.one("launcher_deadline_stretch", "gauge", "how many times longer deadlines are just now", pressure.stretch)
    page.one("launcher_gaps_total", "counter", "times that this launcher did not run for 2 s or more", pressure.gaps)
    seconds = dict(agent.timeline.seconds)
    page.add("launcher_phase_seconds_total", "counter", "seconds spent in each phase, ended visits", seconds, "phase")
    return page.text()


class _Page:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def one(self, name: str, kind: str, text: str, value: float) -> None:
        self._head(name, kind, text)
        self._lines.append(f"{name} {value:g}")

    def add(self, name: str, kind: str, text: str, values: Mapping[str, float], label: str) -> None:
        self._head(name, kind, text)
        self._lines += [f'{name}{{{label}="{key}"}} {value:g}' for key, value in values.items()]

    def summary(self, name: str, text: str, durations: Durations) -> None:
        self._head(name, "summary", text)
        self._lines += [f"{name}_sum {durations.sum:g}", f"{name}_count {durations.count}"]

    def _head(self, name: str, kind: str, text: str) -> None:
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


# ------------------------------------------------------------------------------------------------- words of failure


def failure_block(cause: Cause, reason: str, restarts: int) -> list[str]:
    """The first failure as people read it in a log: printed once."""
    lines = [f"launcher: first failure: {cause}"]
    if cause.process:
        code = "" if cause.code is None else f", exit code {cause.code}"
        lines.append(f"launcher:   process {cause.process}{code}")
    if reason:
        lines.append(f"launcher:   giving up: {reason}")
    if cause.rivals:
        lines.append(f"launcher:   {rivals_in_words(cause)}")
    if cause.tail:
        lines.append(f"launcher:   last lines of rank {cause.rank}:")
        lines += [f"launcher:   | {line}" for line in cause.tail]
    if cause.because:
        lines.append(f"launcher:   {because_in_words(cause)}")
        lines += [f"launcher:   | {line}" for line in cause.because]
    return lines


def rivals_in_words(cause: Cause) -> str:
    """Who else it may have been."""
    others = " or ".join(f"rank {rank}" for rank in cause.rivals)
    return f"it may have been {others}: they ended too close together to know which was first"


def because_in_words(cause: Cause) -> str:
    """How many ended too."""
    count = len(cause.because)
    if count and (more := re.fullmatch(r"and (\d{1,4}) more", cause.because[-1], re.ASCII)):
        count += int(more[1]) - 1
    return f"{count} more rank{' ended' if count == 1 else 's ended'} because of it:"


def termination_message(cause: Cause | None, code: int, text: str) -> str:
    """What the platform shows of the pod's end: at most 4 KiB, the cause first, the oldest lines left out."""
    if cause is None:
        return "" if code == 0 else _in_bytes(f"exit code {code}: {_escaped(text)}\n")
    head = f"first failure: {_escaped(str(cause))}\n"
    if code:
        told = f": {_escaped(text)}" if text and text not in str(cause) else ""
        head = f"exit code {code}{told}\n{head}"
    tail = ""
    for line in map(plain, reversed(cause.tail)):
        if len((head + line + tail).encode()) + 5 > TERMINATION_BYTES:
            break
        tail = f"  | {line}\n" + tail
    return _in_bytes(head + tail)


def _escaped(text: str) -> str:
    """It may come from a peer or an engine, and goes to whoever reads the pod's status, a terminal perhaps."""
    return "\n".join(map(plain, text.splitlines()))


def _in_bytes(text: str) -> str:
    return text.encode()[:TERMINATION_BYTES].decode("utf-8", "ignore")
