"""Is the engine healthy? Checked on rank 0 only, which has the API, while the group serves.

One loop checks the health endpoint and whether requests make progress; others send canaries, and wait for a drain to
finish. What the answers mean is decided by pure rules over successive samples, with the time as an argument
(`verdict.py`, `Progress`). A verdict ends the epoch.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from launcher.agent.verdict import PROMPT, CheckFailure, HealthVerdict
from launcher.common import tasks
from launcher.common.addresses import host_port
from launcher.model import Cause, CauseKind, Health
from launcher.network import probe
from launcher.network.connections import Requests
from launcher.settings import Settings

METRICS_EVERY = 5.0  #: seconds between reads of the engine's metrics while it serves
METRICS_TIMEOUT = 5.0
#: The same while health checks fail, so that an overloaded engine that reports its tokens late is not killed.
PATIENT_TIMEOUT = 15.0
CANARY_LIMIT = 300.0  #: seconds for a canary's one token where --hang-timeout is 0
IDLE_EVERY = 0.25
SAY_EVERY = 5.0  #: seconds at least between two lines about what a drain waits for
MOST_SERIES = 2048  #: label sets of one metric that are read: engines have a few for each rank
OUTSIDE_EVERY = 10.0  #: seconds between checks of the address that Services use
OUTSIDE_TIMEOUT = 5.0
SHUT_OUT = "no Service reaches the engine: its API does not listen on this pod's own address"
UNHEALTHY = "engine is unhealthy: it fails its health checks"
IDLE_FOR = 2.0  #: seconds that running + waiting must stay 0 before the engine counts as drained

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{[^}]*\})?\s+(\S+)")

Labels = str
Samples = Mapping[str, Mapping[Labels, float]]  #: metric name -> labels as written -> value


def samples(text: str, names: Iterable[str]) -> dict[str, dict[Labels, float]]:
    """The named metrics of a Prometheus text page. ``a{b="c"}`` asks for samples that carry that label."""
    wanted: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        bare, brace, label = name.partition("{")
        wanted.setdefault(bare, []).append((name, label.rstrip("}") if brace else ""))
    found: dict[str, dict[Labels, float]] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None or match[1] not in wanted:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if not math.isfinite(value):
            continue  # NaN does not equal itself, which would look like progress
        labels = match[2] or ""
        for name, label in wanted[match[1]]:
            series = found.setdefault(name, {})
            if label in labels and (len(series) < MOST_SERIES or labels in series):
                series[labels] = value
    return {name: series for name, series in found.items() if series}


@dataclass
class Progress:
    """Progress of each engine, by its own labels: a sum would hide a stuck data-parallel rank."""

    health: Health
    limit: float  #: seconds that a label may run requests while its counters stand still
    _moved: dict[Labels, tuple[tuple[float, ...], float]] = field(default_factory=dict)

    def look(self, page: Samples, now: float) -> str:
        """Judge one sample. Returns what is wrong if an engine makes no progress, else nothing."""
        if any(v > 0 for n in self.health.sleeping for v in page.get(n, {}).values()):
            self._moved.clear()  # asleep on purpose
            return ""
        runs, moves = _by_engine(page, self.health.running), _by_engine(page, self.health.progress)
        for engine in sorted(runs):
            running, counters = sum(runs[engine]), tuple(moves.get(engine, ()))
            before = self._moved.get(engine)
            if running <= 0 or before is None or before[0] != counters:
                self._moved[engine] = (counters, now)
            elif now - before[1] >= self.limit:
                which = f" ({engine})" if engine else ""
                return f"{running:g} requests running{which}, no tokens produced for {now - before[1]:.0f} s"
        return ""


def moved(health: Health, before: Samples | None, now: Samples) -> bool:
    """Whether a counter of tokens or prompts has changed between two samples."""
    if before is None:
        return False
    return any(
        labels in before.get(name, {}) and before[name][labels] != value
        for name in health.progress
        for labels, value in now.get(name, {}).items()
    )


def in_flight(health: Health, page: Samples) -> float:
    """Requests that run or wait, all engines together."""
    return sum(v for n in (*health.running, *health.waiting) for v in page.get(n, {}).values())


def _engine(labels: Labels) -> str:
    """The engine that a sample belongs to: the label that tells data-parallel ranks apart, where there is one."""
    match = re.search(r'(?:engine|engine_index|dp_rank)="([^"]*)"', labels)
    return match[0] if match else ""


def _by_engine(page: Samples, names: Iterable[str]) -> dict[str, list[float]]:
    """Values of each engine, in a steady order."""
    found: dict[str, list[float]] = {}
    for name in names:
        for labels, value in sorted(page.get(name, {}).items()):
            found.setdefault(_engine(labels), []).append(value)
    return found


@dataclass(frozen=True)
class HealthInputs:
    """What the watch uses besides the engine's endpoints."""

    moving: Callable[[bool], bool]  #: whether the API's connections move bytes, or (True) wait for an answer
    requests: Callable[[], Requests | None] = lambda: None  #: what went over the API's connections
    signs: Callable[[], int] = lambda: 0  #: a number that moves with CPU time and output
    fair: Callable[[], float] = time.monotonic  #: the clock of deadlines
    starved: Callable[[], str] = str  #: why that clock runs slowly
    say: Callable[[str, Mapping[str, object], str], None] = lambda text, fields, level: None  #: writes a log line
    failures: Counter[str] = field(default_factory=Counter)  #: failed health checks by reason
    own: str = ""  #: this pod's address, which Services use; empty: it has none that others reach


class HealthWatch:
    """The loops.

    ``broke(cause, seconds until it was noticed)`` is called at most once, ``idle()`` when a drain has nothing left to
    wait for.
    """

    def __init__(
        self,
        rank: int,
        settings: Settings,
        health: Health,
        process: str,
        broke: Callable[[Cause, float], None],
        idle: Callable[[], None],
        inputs: HealthInputs,
    ) -> None:
        self._rank = rank
        self._settings = settings
        self._health = health
        self._process = process
        self._broke = broke
        self._idle = idle
        self._inputs = inputs
        self._tasks: list[asyncio.Task[None]] = []
        what = f"GET {urlsplit(health.url).path}" if health.url else ""
        self._verdict = HealthVerdict(process, what, settings.health_failures, settings.unresponsive_timeout)
        self._progress = Progress(health, settings.hang_timeout)
        self._page: Samples | None = None  # the latest that could be read
        self._shut_out = ""  # why the API is unreachable from outside
        self._over = False
        self._well_at = time.monotonic()
        self._logged, self._logged_at = "", float("-inf")
        self.ok = False
        self.slow = False  #: it does not answer in time, but requests make progress
        self.words = ""  #: why it is unhealthy
        self.in_flight: float | None = None

    def start(self) -> None:
        """The group serves: start the loops."""
        self.ok = True
        if self._health.url or self._watches_progress:
            self._loop(self._watch())
        if self._health.canary_url and self._settings.canary_interval:
            self._loop(self._send_canaries())
        if self._inputs.own and self._health.outside:
            self._loop(self._watch_outside(self._inputs.own, self._health.outside))

    def drain(self, say: Callable[[], None]) -> None:
        """Wait for the requests in flight. ``say`` is called now and then, when ``in_flight`` has changed."""
        self._loop(self._wait_until_idle(say))

    def stop(self) -> None:
        self.ok = self.slow = False
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def _loop(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(tasks.start(work))

    def _fail(self, kind: CauseKind, text: str, noticed: float) -> None:
        if self._over:
            return
        self._over = True
        self.ok = self.slow = False
        self._broke(Cause(kind, self._rank, text, self._process), noticed)

    @property
    def _watches_progress(self) -> bool:
        return bool(self._health.metrics_url and self._health.running and self._settings.hang_timeout)

    async def _watch(self) -> None:
        """Health and progress, in rounds. No probe of ours is under way between two rounds, so that its bytes do not
        count as a request's."""
        interval, limit = self._settings.health_interval, self._settings.hang_timeout
        page_every = min(METRICS_EVERY, limit / 4) if self._watches_progress else float("inf")
        health_at = time.monotonic() + interval if self._health.url else float("inf")
        page_at = time.monotonic() + page_every
        while not self._over:
            await asyncio.sleep(max(0.0, min(health_at, page_at) - time.monotonic()))
            now = time.monotonic()
            asks, reads = now >= health_at, now >= page_at or self._verdict.spell is not None
            if asks:
                await asyncio.gather(self._check_health(), *([self._read_page()] if reads else []))
            elif reads:
                await self._read_page()
            if asks and not reads and self._verdict.spell is not None:
                await self._read_page()
                reads = True
            now = time.monotonic()
            health_at = now + interval if asks else health_at
            page_at = now + page_every if reads else page_at
            if asks and not self._over:
                self._judge()

    async def _check_health(self) -> None:
        assert self._health.url is not None
        limit = max(self._health.timeout, 2 * self._settings.health_interval)
        asked, asked_fair = time.monotonic(), self._inputs.fair()
        reply = await probe.ask(self._health.url, limit, insecure=self._health.insecure)
        self.words = "" if reply.ok else reply.words
        if reply.ok or reply.ours:  # or we could not ask, which says nothing about the engine
            self._well_at = time.monotonic()
            self._verdict.well()
        elif self._health.dead and reply.status == self._health.dead and not reply.body:
            text = f"{self._process} says that its engine is dead: {reply.words}"
            self._fail(CauseKind.HEALTH, text, time.monotonic() - self._well_at)
        else:
            failure, self.words = _failure(reply, limit, time.monotonic() - asked)
            self._inputs.failures[failure.value] += 1
            self._verdict.failed(failure, self.words, asked, asked_fair)

    async def _read_page(self) -> None:
        """Read the engine's counters, and judge its progress."""
        patient = self._verdict.spell is not None
        names = (*self._health.running, *self._health.waiting, *self._health.progress, *self._health.sleeping)
        page = await self._page_of(names, PATIENT_TIMEOUT if patient else METRICS_TIMEOUT)
        fair = self._inputs.fair()
        if page is not None:
            if moved(self._health, self._page, page):
                self._verdict.progress(time.monotonic(), fair)
            self._page = page
            self.in_flight = in_flight(self._health, page) if self._counts(page) else None
            stuck = self._progress.look(page, fair) if self._watches_progress else ""
            if stuck:
                limit = self._settings.hang_timeout
                self._fail(CauseKind.HANG, f"{self._process}: {stuck} (--hang-timeout {limit:g}{self._why()})", limit)
        else:
            self.in_flight = None  # it may have changed

    def _counts(self, page: Samples) -> bool:
        """Whether the engine reports how many requests it has."""
        return any(name in page for name in (*self._health.running, *self._health.waiting))

    def _judge(self) -> None:
        """After a round: is the evidence enough to end the epoch?"""
        if self._verdict.spell is None:
            self.ok, self.slow = not self._shut_out, False
            self.words = self._shut_out
            self._tell(SHUT_OUT if self._shut_out else "")
            return
        now, fair = time.monotonic(), self._inputs.fair()
        requests = self._inputs.requests()
        busy = self.in_flight
        if busy is None and requests is not None:
            busy = float(requests.owed or requests.answered)
        elif busy is None:  # unknown now: use what was known last
            busy = in_flight(self._health, self._page or {})
        if busy and requests is not None and requests.answered:
            self._verdict.progress(now, fair)
        over = self._verdict.judge(now, fair, bool(busy), self._inputs.signs(), self._inputs.starved())
        self.slow = self._verdict.slow(fair)
        self.ok = self.slow and not self._settings.unready_when_slow
        if over:
            self._fail(CauseKind.HEALTH, over, now - self._well_at)
        else:
            self._tell("engine is slow: health checks time out, but requests make progress" if self.slow else UNHEALTHY)

    def _tell(self, text: str) -> None:
        """Log when a state begins, changes or ends, but not each time that it comes and goes."""
        now = time.monotonic()
        if text != self._logged and now - self._logged_at >= SAY_EVERY:
            self._logged, self._logged_at = text, now
            if text:
                self._inputs.say(text, {"health": self.words}, "warning")
            else:
                self._inputs.say("engine is healthy again", {}, "info")

    def _why(self) -> str:
        starved = self._inputs.starved()
        return f"; {starved}" if starved else ""

    async def _watch_outside(self, own: str, port: int) -> None:
        """Whether the API also accepts connections at the address that Services use, which is not loopback."""
        while not self._over:
            why = await probe.why_unreachable(own, port, OUTSIDE_TIMEOUT)
            if not why:
                self._shut_out = ""
            elif not why.startswith(probe.NO_ANSWER):  # that may be a full backlog
                self._shut_out = f"the API does not answer on {host_port(own, port)}, this pod's own address: {why}"
                if self._verdict.spell is None:
                    self.ok, self.words = False, self._shut_out
            await asyncio.sleep(OUTSIDE_EVERY)

    async def _send_canaries(self) -> None:
        limit, failed = self._settings.hang_timeout or CANARY_LIMIT, 0
        names = (*self._health.running, *self._health.waiting, *self._health.progress, *self._health.sleeping)
        asked = asked_fair = 0.0
        while True:
            await asyncio.sleep(self._settings.canary_interval if not failed else min(1.0, limit / 4))
            page = await self._page_of(names)
            if not failed:
                if page is None or in_flight(self._health, page) > 0:
                    continue  # real requests are evidence enough
                if any(v > 0 for n in self._health.sleeping for v in page.get(n, {}).values()):
                    continue
                asked, asked_fair = time.monotonic(), self._inputs.fair()
            assert self._health.canary_url is not None
            reply = await probe.ask(
                self._health.canary_url, limit, insecure=self._health.insecure, body=self._health.canary_body
            )
            if reply.ours or (reply.status and reply.status < 500):
                failed = 0
                continue
            after = await self._page_of(names)
            if page is not None and after is not None and moved(self._health, page, after):
                failed = 0  # other requests came, and were served
                continue
            failed += 1
            timed_out = reply.error == probe.TOO_LATE
            if (timed_out and self._inputs.fair() - asked_fair >= limit) or failed >= self._settings.health_failures:
                text = (
                    f"{self._process} produced no token for a canary request (--canary-interval): {reply.words}, "
                    f"{failed} {'times' if failed > 1 else 'time'} in {time.monotonic() - asked:.0f} s{self._why()}"
                )
                self._fail(CauseKind.HANG, text, time.monotonic() - asked)
                return

    async def _wait_until_idle(self, say: Callable[[], None]) -> None:
        """Until ``--drain-settle`` has passed and, for 2 s, no request runs or waits and no connection moves bytes.

        An engine too busy to answer is not idle; the grace bounds the wait. One that does not count its requests (no
        such page, or other names on it) is judged by its connections alone, including those that wait for an answer.
        """
        began = time.monotonic()
        quiet_since = began
        said: tuple[float | None, float] | None = None
        self._inputs.moving(False)
        names = (*self._health.running, *self._health.waiting)
        while True:
            page, answered = await self._ask_page(names) if self._health.metrics_url and names else ({}, True)
            self.in_flight = in_flight(self._health, page) if page else None  # None: it does not count them
            now = time.monotonic()
            if said is None or (said[0] != self.in_flight and now - said[1] >= SAY_EVERY):
                said = (self.in_flight, now)
                say()
            if self._inputs.moving(self.in_flight is None) or self.in_flight or not answered:
                quiet_since = now
            settled = now - began >= self._settings.drain_settle
            if settled and now - quiet_since >= min(IDLE_FOR, self._settings.drain_settle or IDLE_FOR):
                self._idle()
                return
            await asyncio.sleep(IDLE_EVERY)

    async def _page_of(self, names: Iterable[str], timeout: float = METRICS_TIMEOUT) -> Samples | None:
        return (await self._ask_page(names, timeout))[0] if self._health.metrics_url else None

    async def _ask_page(self, names: Iterable[str], timeout: float = METRICS_TIMEOUT) -> tuple[Samples | None, bool]:
        """The metrics, if they could be read, and whether the engine answered at all."""
        assert self._health.metrics_url is not None
        reply = await probe.ask(self._health.metrics_url, timeout, insecure=self._health.insecure)
        page = samples(reply.body.decode("utf-8", "replace"), names) if reply.ok else None
        return page, reply.status != 0


def _failure(reply: probe.Reply, limit: float, took: float) -> tuple[CheckFailure, str]:
    """How a check failed, and the text for it."""
    if reply.error == probe.REFUSED:
        return CheckFailure.REFUSED, reply.words
    if reply.status and took < PROMPT:
        return CheckFailure.ERROR, reply.words
    if reply.status:
        return CheckFailure.TIMEOUT, f"{reply.words} only after {PROMPT:g} s or more"
    words = f"timed out after {limit:g} s" if reply.error == probe.TOO_LATE else reply.words
    return CheckFailure.TIMEOUT, words
