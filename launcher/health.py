"""Is the engine well? Asked on rank 0 only, where the answer means something, while the group serves.

Three questions, each its own loop: does the health endpoint answer, do tokens move while requests run, and, while
draining, is anything still in flight. What the answers mean is decided by pure functions over successive samples, with
the time as an argument; `agent.py` turns a verdict into a failure of the epoch.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from launcher import probe, tasks
from launcher.data import dataclass, field
from launcher.settings import Settings
from launcher.words import Cause, CauseKind, Health

METRICS_EVERY = 5.0  #: seconds between looks at the engine's metrics while it serves
IDLE_EVERY = 0.25
SAY_EVERY = 5.0  #: seconds at least between two lines about what a drain waits for
MOST_SERIES = 2048  #: label sets of one metric that are looked at: engines have a few for each rank
IDLE_FOR = 2.0  #: running + waiting must stay 0 this long before the engine counts as drained

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
            continue  # NaN is equal to nothing, itself included: it would look like progress
        labels = match[2] or ""
        for name, label in wanted[match[1]]:
            series = found.setdefault(name, {})
            if label in labels and (len(series) < MOST_SERIES or labels in series):
                series[labels] = value
    return {name: series for name, series in found.items() if series}


@dataclass
class Progress:
    """Forward progress, judged for each engine by its own labels: a stuck data-parallel rank hides in a sum."""

    health: Health
    limit: float  #: seconds that a label may run requests while its counters stand still
    _moved: dict[Labels, tuple[tuple[float, ...], float]] = field(default_factory=dict)

    def look(self, page: Samples, now: float) -> str:
        """Take in one sample; words if an engine makes no progress, else nothing."""
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
                return f"{running:g} requests run{which} and no token moved for {now - before[1]:.0f} s"
        return ""


def in_flight(health: Health, page: Samples) -> float:
    """Requests that run or wait, all engines together."""
    return sum(v for n in (*health.running, *health.waiting) for v in page.get(n, {}).values())


def _engine(labels: Labels) -> str:
    """Which engine a sample speaks of: the label that tells data-parallel ranks apart, where there is one."""
    match = re.search(r'(?:engine|engine_index|dp_rank)="([^"]*)"', labels)
    return match[0] if match else ""


def _by_engine(page: Samples, names: Iterable[str]) -> dict[str, list[float]]:
    """Values of each engine, in a steady order."""
    found: dict[str, list[float]] = {}
    for name in names:
        for labels, value in sorted(page.get(name, {}).items()):
            found.setdefault(_engine(labels), []).append(value)
    return found


class HealthWatch:
    """The loops.

    ``broke(cause, seconds that it took to notice)`` is called at most once; ``idle()`` when a drain has nothing left to
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
        moving: Callable[[bool], bool],
    ) -> None:
        self._rank = rank
        self._settings = settings
        self._health = health
        self._process = process
        self._broke = broke
        self._idle = idle
        self._moving = moving
        self._tasks: list[asyncio.Task[None]] = []
        self.ok = False
        self.words = ""  #: what the endpoint said last, when it was not well
        self.in_flight: float | None = None

    def start(self) -> None:
        """The group serves: begin to look."""
        self.ok = True
        if self._health.url:
            self._loop(self._look_at_health())
        if self._health.metrics_url and self._health.running and self._settings.hang_timeout:
            self._loop(self._look_at_progress())
        if self._health.canary_url and self._settings.canary_interval:
            self._loop(self._send_canaries())

    def drain(self, say: Callable[[], None]) -> None:
        """No new work comes: say when the last is done. ``say`` is called now and then, when ``in_flight`` is new."""
        self._loop(self._wait_until_idle(say))

    def stop(self) -> None:
        self.ok = False
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def _loop(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(tasks.start(work))

    def _fail(self, kind: CauseKind, text: str, noticed: float) -> None:
        self.ok = False
        self._broke(Cause(kind, self._rank, text, self._process), noticed)

    async def _look_at_health(self) -> None:
        failures, well_at = 0, time.monotonic()
        interval = self._settings.health_interval
        while True:
            await asyncio.sleep(interval)
            assert self._health.url is not None
            limit = max(self._health.timeout, 2 * interval)
            reply = await probe.ask(self._health.url, limit, insecure=self._health.insecure)
            self.words = "" if reply.ok else reply.words
            failures, well_at = (0, time.monotonic()) if reply.ok else (failures + 1, well_at)
            self.ok = reply.ok
            if self._health.dead and reply.status == self._health.dead and not reply.body:
                text = f"{self._process} says that its engine is dead: {reply.words}"
                self._fail(CauseKind.HEALTH, text, time.monotonic() - well_at)
                return
            if failures >= self._settings.health_failures:
                text = f"{self._process} failed its health check {failures} times in a row: {reply.words}"
                self._fail(CauseKind.HEALTH, text, time.monotonic() - well_at)
                return

    async def _look_at_progress(self) -> None:
        limit = self._settings.hang_timeout
        progress = Progress(self._health, limit)
        names = (*self._health.running, *self._health.progress, *self._health.sleeping)
        while True:
            await asyncio.sleep(min(METRICS_EVERY, limit / 4))
            page = await self._page(names)
            stuck = "" if page is None else progress.look(page, time.monotonic())
            if stuck:
                self._fail(CauseKind.HANG, f"{self._process}: {stuck} (--hang-timeout {limit:g})", limit)
                return

    async def _send_canaries(self) -> None:
        limit = self._settings.hang_timeout or 300.0
        names = (*self._health.running, *self._health.waiting, *self._health.sleeping)
        while True:
            await asyncio.sleep(self._settings.canary_interval)
            page = await self._page(names)
            if page is None or in_flight(self._health, page) > 0:
                continue  # real requests tell as much
            if any(v > 0 for n in self._health.sleeping for v in page.get(n, {}).values()):
                continue
            assert self._health.canary_url is not None
            asked = time.monotonic()
            reply = await probe.ask(
                self._health.canary_url, limit, insecure=self._health.insecure, body=self._health.canary_body
            )
            if reply.status == 0 or reply.status >= 500:
                text = f"{self._process} did not make one token when asked (--canary-interval): {reply.words}"
                self._fail(CauseKind.HANG, text, time.monotonic() - asked)
                return

    async def _wait_until_idle(self, say: Callable[[], None]) -> None:
        """Until ``--drain-settle`` has passed, nothing runs or waits for 2 s and no connection moves bytes.

        An engine too busy to answer is not idle; the grace bounds that. One that does not count its requests (it has no
        such page, or other names on it) is judged by its connections alone: those that wait for an answer count, too.
        """
        began = time.monotonic()
        quiet_since = began
        said: tuple[float | None, float] | None = None
        self._moving(False)
        names = (*self._health.running, *self._health.waiting)
        while True:
            page, answered = await self._ask_page(names) if self._health.metrics_url and names else ({}, True)
            self.in_flight = in_flight(self._health, page) if page else None  # None: it does not count them
            now = time.monotonic()
            if said is None or (said[0] != self.in_flight and now - said[1] >= SAY_EVERY):
                said = (self.in_flight, now)
                say()
            if self._moving(self.in_flight is None) or self.in_flight or not answered:
                quiet_since = now
            settled = now - began >= self._settings.drain_settle
            if settled and now - quiet_since >= min(IDLE_FOR, self._settings.drain_settle or IDLE_FOR):
                self._idle()
                return
            await asyncio.sleep(IDLE_EVERY)

    async def _page(self, names: Iterable[str]) -> Samples | None:
        return (await self._ask_page(names))[0] if self._health.metrics_url else None

    async def _ask_page(self, names: Iterable[str]) -> tuple[Samples | None, bool]:
        """The metrics, if they could be read, and whether there was an answer at all."""
        assert self._health.metrics_url is not None
        reply = await probe.ask(self._health.metrics_url, 5.0, insecure=self._health.insecure)
        page = samples(reply.body.decode("utf-8", "replace"), names) if reply.ok else None
        return page, reply.status != 0
