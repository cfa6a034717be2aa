"""What the agent tells of itself: log lines of the group's progress, the pages' Snapshot, failures, the state file."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from launcher.agent import redaction, state_file
from launcher.agent.context import AgentContext
from launcher.agent.engine_runner import EngineRunner
from launcher.agent.links import Links
from launcher.agent.outage import Outage
from launcher.agent.preflight_watch import PreflightWatch
from launcher.agent.start_log import StartLog
from launcher.agent.state_file import StateFile
from launcher.agent.timeline import Timeline, wall_clock
from launcher.agent.verdict import CheckFailure
from launcher.api.failure import FailureReporter
from launcher.api.snapshot import (
    AutopsyRecord,
    EndedEpoch,
    FailureRecord,
    LeaderView,
    MemberRow,
    Snapshot,
    StartRecord,
)
from launcher.common.addresses import host_port
from launcher.errors import ExitCode
from launcher.group import coordinator as co
from launcher.group import member as me
from launcher.group import messages as m
from launcher.group.autopsy import Autopsy
from launcher.guard import channel as guard
from launcher.model import NO_FAILURE, Cause, Epoch, Plan, StartProgress
from launcher.node import leftovers

LAST_WRITE = 2.0  #: seconds for the state file at exit
AWAY = (me.State.CLEANING, me.State.SEEKING)  #: states of a member without a leader
#: Phases in which the log says what is waited for.
WAITS = frozenset({"gathering", "mismatched", "fenced", "leaving", "backoff", "stopping"})


class Reporter:
    """One pod's. `publish` is called after every event."""

    def __init__(
        self,
        context: AgentContext,
        member: me.Member,
        coordinator: co.Coordinator | None,
        engine: EngineRunner,
        links: Links,
        watch: PreflightWatch,
        file: StateFile,
    ) -> None:
        self._context = context
        self._log = context.log
        self._member = member
        self._coordinator = coordinator
        self._engine = engine
        self._links = links
        self._watch = watch
        self._file = file
        self._failures = FailureReporter(
            context.log, context.settings.termination_log, context.settings.last_lines == "on"
        )
        self._timeline = Timeline()
        self._start_log = StartLog(context.log, context.identity.size)
        self._incarnation = context.incarnation
        self._saved_news: m.News | None = None
        self._saved_verdict = member.gave_up_at
        self._saved_epoch: tuple[Epoch, tuple[str, ...], leftovers.Snapshot | None] | None = None
        self._kept_autopsy: Autopsy | None = None
        self._owns_file = False  # whether the state file describes this agent, no longer the one before
        self._outage = Outage()
        self.phase = "setup"  #: as people see it

    # ----------------------------------------------------------------------------------------------------- events

    def enter(self, phase: str) -> None:
        self.phase = phase
        self._timeline.enter(phase)
        cause = (self._member if self._coordinator is None else self._coordinator).cause
        over = self._outage.enter(phase, cause is not None and cause.kind not in NO_FAILURE, time.monotonic())
        if over:
            self._log(over)
        if phase == "preparing" and self._coordinator is not None and not self._context.identity.alone:
            self._watch.compare({rank: seat.hello.facts for rank, seat in self._coordinator.seats.items()})

    def publish(self, finished: bool) -> None:
        """Tell what the latest event has changed. ``finished``: the agent is about to exit."""
        member, news = self._member, self._member.news
        phase = self._phase_now
        if phase != self.phase:
            self.enter(phase)
        if member.state not in AWAY:  # there the leader is waited for, and its link logs it
            shown = news.phase in WAITS
            bound = {} if news.wait is None else {"at_most_s": round(news.wait, 1)}
            self._log.waiting(news.text if shown else "", bound)
        self._report_autopsy()
        self._start_log.say(phase == "starting", time.monotonic(), self._progress_by_rank)
        first = self._coordinator.history.first if self._coordinator is not None else news.first_failure
        stopping = phase in ("stopping", "aborted") or member.state is me.State.STOPPING
        if first is not None and not stopping and not finished:  # until then better evidence may come
            self._failures.failure(first)
        if member.address:
            self._save_news()
            self._save_verdict()
            self._save_epoch()
            self._save_incarnation()

    @property
    def _autopsy(self) -> Autopsy | None:
        return self._coordinator.history.autopsy if self._coordinator is not None else None

    def autopsy_text(self) -> str:
        """The whole of the latest autopsy; empty: there is none on this pod."""
        return self._autopsy.text if self._autopsy is not None else ""

    def _report_autopsy(self) -> None:
        """Keep a new one as a file. Its verdict is in the group's log already."""
        found, folder = self._autopsy, self._context.settings.state_dir
        if found is None or found is self._kept_autopsy:
            return
        self._kept_autopsy = found
        if folder:
            self._context.task(self._keep_autopsy(folder, found.text))
        else:
            self._log("the whole autopsy is at GET /autopsy on the agent port of rank 0 (--state-dir keeps it)")

    async def _keep_autopsy(self, folder: str, text: str) -> None:
        path = f"{folder}/{state_file.AUTOPSY_FILE}"
        try:
            await asyncio.to_thread(state_file.keep_autopsy, folder, text)
        except OSError as error:
            self._log("the autopsy cannot be written", {"path": path, "why": error.strerror}, "warning")
        else:
            self._log("the whole autopsy is written", {"path": path})

    @property
    def _phase_now(self) -> str:
        if self._member.state in AWAY:
            return "setup" if self._context.identity.is_leader else "seeking"
        return self._coordinator.shown_phase if self._coordinator is not None else self._member.news.phase

    def exiting(self, leaving: me.Exit) -> None:
        """Report how the agent ends."""
        news, cause = self._member.news, leaving.cause if leaving.code else None
        if cause is not None:
            self._failures.failure(cause, leaving.text)
        self._failures.write_termination_message(cause or news.first_failure, leaving.code, leaving.text)
        if self._owns_file:  # after a bug the engine still runs, and is ended by the guard when this process is gone
            self.save(clean=leaving.code != ExitCode.SOFTWARE)
            self._file.settle(LAST_WRITE)

    def handing_off(self) -> None:
        self.save(handed_off=True)
        self._file.settle(LAST_WRITE)

    # ------------------------------------------------------------------------------------------------- state file

    def recall(self, address: str) -> None:
        """Use what the previous launcher in this pod saved in --state-dir, and save this one's start.

        Nothing that it ran is left if it exited in good order, or if this guard is PID 1: then its PID namespace ended
        with it. ``place`` recognises a folder that pods share by mistake, or that has outlived its pod.
        """
        former, who = self._file.before, self._context.identity
        here = state_file.place(who.name, address)
        guarding = self._context.guard.guarding
        is_init = guarding is not None and guarding.init
        if former.incarnation and former.place == here and (former.clean or is_init):
            self._member.replace(former.incarnation)
        killed = former.killed(who.rank)
        if killed is not None:
            self._log((self._member.config.died or killed).text, level="warning")
        if self._file.set_aside:
            self._log("the state file is not used", {"why": self._file.set_aside}, "warning")
        self.save(incarnation=self._incarnation, place=here, clean=False, handed_off=False)
        self._owns_file = True

    def save(self, **changes: Any) -> None:
        if not self._file.save(**changes):
            self._log("--state-dir cannot be written; going on without", {"why": self._file.trouble}, "warning")

    def _save_news(self) -> None:
        news, at = self._member.news, self._member.first_at
        if news is not self._saved_news:
            self._saved_news = news
            self.save(
                charges=tuple(round(time.time() - age) for age in self._member.charges(time.monotonic())),
                first_failure=news.first_failure,
                first_epoch=news.first_epoch,
                first_at=None if news.first_failure is None or at is None else round(wall_clock(at), 1),
            )

    def _save_verdict(self) -> None:
        """The pod's next container must know that the group gave up: it has one attempt."""
        at = self._member.gave_up_at
        if at != self._saved_verdict:
            self._saved_verdict = at
            self.save(gave_up_at=None if at is None else round(wall_clock(at), 1))

    def _save_epoch(self) -> None:
        """The guard's next agent, and the pod's next container, must know of the latest epoch."""
        epoch, members, shm = self._member.epoch, self._member.epoch_members, self._engine.shm_before
        if epoch is not None and (epoch, members, shm) != self._saved_epoch:
            self._saved_epoch = (epoch, members, shm)
            self._context.guard.send(guard.Remember(state_file.epoch_text(epoch, members, shm)))
            self.save(last=(epoch, members))

    def _save_incarnation(self) -> None:
        """A member that was taken over goes on under a new incarnation: the launchers after it must know both."""
        if self._member.incarnation != self._incarnation:
            self._incarnation = self._member.incarnation
            self._context.guard.send(guard.Incarnation(self._incarnation))
            self.save(incarnation=self._incarnation)

    # -------------------------------------------------------------------------------------------------- the pages

    def ready(self) -> tuple[bool, str]:
        """The answer of /readyz, and why."""
        engine = self._engine
        if self._context.identity.rank != 0 and self._context.settings.worker_ready == "never":
            return False, "a worker is never ready (--worker-ready never)"
        if not engine.serving:
            return False, f"not serving: {self.phase}"
        if engine.draining:
            return False, engine.drain_words
        if engine.health is not None and not engine.health.ok:
            return False, f"the engine is unhealthy: {engine.health.words}"
        return True, "serving"

    def snapshot(self) -> Snapshot:
        settings, who, member, lead = self._context.settings, self._context.identity, self._member, self._coordinator
        ready, why = self.ready()
        findings = (*self._watch.findings, *self._watch.differences)
        return Snapshot(
            identity=who,
            engine=settings.engine_file or settings.engine,
            agent_port=settings.agent_port,
            engine_version=member.fingerprint.get("engine.version") or None,
            model=settings.model or member.fingerprint.get("model") or None,
            api_url=self._api_url(),
            phase=self.phase,
            ready=ready,
            why=why,
            epoch=self._engine.epoch.n if self._engine.epoch else None,
            waiting_for=self._waiting_for() or member.refusal,
            first_failure=self._first_failure(),
            latest_cause=self._latest_cause(),
            members_present=len(lead.seats) if lead is not None else member.news.present,
            members=self._worker_rows() if lead is None else self._leader_rows(lead),
            restarts=member.news.restarts,
            timeline=self._timeline.visits(),
            phase_seconds=dict(self._timeline.seconds),
            findings=tuple(finding.as_object() for finding in findings),
            leader=None if lead is None else self._leader_view(lead),
            connection_errors=self._links.errors,
            turned_away=self._links.turned_away,
            stretch=self._context.pressure.stretch,
            gaps=self._context.pressure.gaps,
            autopsy=None if self._autopsy is None else AutopsyRecord(self._autopsy, wall_clock(self._autopsy.at)),
            start=self._own_progress,
            loaded_bytes=self._engine.start.bytes_read,
        )

    def _progress_by_rank(self) -> dict[int, StartProgress]:
        """Of every rank on the leader, on a worker of its own."""
        lead = self._coordinator
        if lead is None:
            own = self._own_progress
            return {} if own is None else {self._context.identity.rank: own}
        reports = {rank: seat.report for rank, seat in lead.seats.items() if seat.joined}
        return {rank: it.progress for rank, it in reports.items() if it is not None and it.progress is not None}

    @property
    def _own_progress(self) -> StartProgress | None:
        """How far this rank's own start is."""
        found = self._engine.watch.progress
        return found and replace(found, gate=self._redacted(found.gate), answer=self._redacted(found.answer))

    def _redacted(self, text: str) -> str:
        return redaction.text(text, self._context.redacted)

    def _waiting_for(self) -> str:
        """On the leader what it knows now, on a worker the latest text of the leader."""
        if self._coordinator is not None:
            now = time.monotonic()
            return waiting_for(self._coordinator.waiting_for(), self._coordinator.wait_left(now), now)
        news = self._member.news
        return waiting_for(news.text, news.wait, self._member.news_at)

    def _first_failure(self) -> FailureRecord | None:
        if self._coordinator is not None:
            history = self._coordinator.history
            return _record(history.first, history.first_n, history.first_at)
        news = self._member.news
        return _record(news.first_failure, news.first_epoch, self._member.first_at)

    def _latest_cause(self) -> FailureRecord | None:
        """Why the latest epoch ended; only rank 0 knows what all ranks said of it."""
        if self._coordinator is None or not self._coordinator.history.ended:
            return None
        last = self._coordinator.history.ended[-1]
        return _record(last.cause, last.epoch.n, last.at)

    def _api_url(self) -> str | None:
        """Where callers reach the engine's API, if this rank has it and it has been planned."""
        plan = self._engine.plan
        return None if plan is None else api_url(plan, self._member.address)

    def _leader_view(self, lead: co.Coordinator) -> LeaderView:
        measures, health = lead.measures, self._engine.health
        failures = self._engine.health_failures
        return LeaderView(
            ended=tuple(
                EndedEpoch(FailureRecord(e.cause, e.epoch.n, *_when(e.at)), e.served, tuple(e.ends))
                for e in lead.history.ended
            ),
            failures=dict(measures.failures),
            detected=replace(measures.detected),
            stopped=replace(measures.stopped),
            drains=dict(measures.drains),
            drained=replace(measures.drained),
            slow=health is not None and health.slow,
            health_failures={reason.value: failures[reason.value] for reason in CheckFailure},
            starts=tuple(StartRecord(start, wall_clock(start.at)) for start in measures.starts),
            start_steps={step: replace(durations) for step, durations in measures.start_steps.items()},
        )

    def _leader_rows(self, lead: co.Coordinator) -> tuple[MemberRow, ...]:
        """Every rank."""
        now, rows = time.monotonic(), []
        for rank in range(self._context.identity.size):
            seat = lead.seats.get(rank)
            if seat is None:
                rows.append(MemberRow(rank, "absent", self._context.identity.name_of(rank)))
                continue
            state = "leaving" if seat.leaving is not None else lead.shown_phase if seat.joined else "waiting"
            report = seat.report if seat.joined else None  # without a seat its processes have ended
            pids = report.pids if report is not None else ()
            progress = report.progress if report is not None and state == "starting" else None
            line = seat.tail[-1] if progress is not None and seat.tail else ""
            hello, silent = seat.hello, seat.contact.silent_for(now)
            row = MemberRow(rank, state, hello.address, hello.incarnation, pids, silent, hello.facts, progress, line)
            rows.append(row)
        return tuple(rows)

    def _worker_rows(self) -> tuple[MemberRow, ...]:
        """What a worker knows itself: the leader and its own rank."""
        who, member = self._context.identity, self._member
        silent = None if member.acked_at is None else time.monotonic() - member.acked_at
        state = "unknown" if silent is None else "leader"
        leader = MemberRow(0, state, who.leader, member.leader, (), silent)
        watch, progress = self._engine.watch, self._own_progress
        own = MemberRow(who.rank, member.state.value, member.address, member.incarnation, watch.pids, 0.0)
        return leader, replace(
            own, progress=progress, line=self._redacted(watch.last_line) if progress is not None else ""
        )


def api_url(plan: Plan, own: str) -> str | None:
    """Of a rank's API: at its own address ``own`` where other pods reach it there, else where the plan asks it."""
    if plan.api_port is None:
        return None
    asked = urlsplit(plan.health.url or "")
    host = own if plan.health.outside or not asked.hostname else asked.hostname
    return f"{asked.scheme or 'http'}://{host_port(host, plan.api_port)}"


def waiting_for(text: str, wait: float | None, since: float) -> str:
    """What we wait for, and how much longer: ``wait`` seconds counted from ``since``."""
    if not text or wait is None:
        return text
    return f"{text}; {max(0.0, since + wait - time.monotonic()):.0f} s left"


def _record(cause: Cause | None, epoch: int | None, at: float | None) -> FailureRecord | None:
    """``at``: monotonic seconds."""
    return None if cause is None else FailureRecord(cause, epoch, *_when(at))


def _when(at: float | None) -> tuple[float | None, float | None]:
    """A monotonic time as seconds since 1970, and how long ago it was."""
    return (None, None) if at is None else (wall_clock(at), time.monotonic() - at)
