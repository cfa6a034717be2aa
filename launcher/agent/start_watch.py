"""How far the start of this rank's engine is: which step it is in, how much of it is done, and how long each step took.

Two sources: what the engine prints (`StepLine`), and what the kernel says about the weight files
(`node/file_reads.py`). A line says which step begins; while the kernel sees weights being read, no line of one process
ends that step for the others. What neither source knows stays unknown: no percent rather than a wrong one.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable

from launcher.common.last_lines import without_colours
from launcher.common.numbers import MOST_DIGITS
from launcher.model import COMPILE, ENGINE_STEPS, GRAPHS, IMPORTS, PREPARING, REST, WEIGHTS, Plan, StartProgress
from launcher.node.file_reads import Reading

RATE_SECONDS = 30.0  #: over which the rate of a step is measured
RATE_LEAST = 3.0  #: before that there is no rate
QUIET = 3.0  #: seconds in which no weight file is read, after which they have been
ALMOST = 0.98  #: of the weight files: the rest may never be read (tensors of other ranks, metadata)


class StepClock:
    """The time of one start by step."""

    def __init__(self, now: float) -> None:
        self.step = PREPARING
        self.since = now
        self._spent: dict[str, float] = {}

    def enter(self, step: str, at: float) -> None:
        """Go on with ``step``, since ``at``."""
        at = max(at, self.since)
        self._spent[self.step] = self._spent.get(self.step, 0.0) + at - self.since
        self.step, self.since = step, at

    def seconds(self, now: float) -> dict[str, float]:
        found = dict(self._spent)
        found[self.step] = found.get(self.step, 0.0) + max(0.0, now - self.since)
        return found


class Rate:
    """How fast a number grows, over the last seconds."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque(maxlen=256)

    def add(self, value: float, now: float) -> None:
        if self._points and value < self._points[-1][1]:
            self._points.clear()  # it counts something else now
        self._points.append((now, value))
        while len(self._points) > 2 and now - self._points[1][0] >= RATE_SECONDS:
            self._points.popleft()

    @property
    def per_second(self) -> float | None:
        """None: it is too early to tell."""
        if len(self._points) < 2:
            return None
        (began, first), (ended, last) = self._points[0], self._points[-1]
        return (last - first) / (ended - began) if ended - began >= RATE_LEAST else None


class StartWatch:
    """One pod's starts, one after the other. ``changed`` hears of each new step."""

    def __init__(self, changed: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._changed = changed
        self._clock = clock
        self._plan: Plan | None = None
        self._patterns: tuple[tuple[str, re.Pattern[str]], ...] = ()
        self._steps: StepClock | None = None  # None: nothing starts
        self._stage = ""
        self._lines = _LineEvidence()
        self._files = _FileEvidence()

    @property
    def going_on(self) -> bool:
        return self._steps is not None

    @property
    def bytes_read(self) -> int | None:
        """Bytes of the weight files, in this start or in the latest one."""
        return self._files.reading.bytes_read

    @property
    def loads(self) -> bool:
        """Whether the weight files are worth a look: the engine has been started, and compiles nothing yet."""
        return self._steps is not None and self._steps.step in (IMPORTS, WEIGHTS, REST) and not self._lines.past_weights

    def begin(self) -> None:
        """A start begins: it is being prepared."""
        self._steps = StepClock(self._clock())
        self._plan, self._stage = None, ""
        self._lines, self._files = _LineEvidence(), _FileEvidence()

    def planned(self, plan: Plan) -> None:
        self._plan = plan
        self._patterns = tuple((line.step, re.compile(line.pattern)) for line in plan.step_lines)

    def stage(self, number: int) -> None:
        """A stage of the plan begins. All stages before the last one prepare the engine."""
        if self._plan is None or self._steps is None:
            return
        self._stage = self._plan.stages[number].name
        if number == len(self._plan.stages) - 1:
            self._enter(IMPORTS)

    def end(self) -> None:
        """The group serves, or the start has failed."""
        self._steps = None

    def progress(self, gate: str, answer: str) -> StartProgress | None:
        """How far it is; None: nothing starts. ``gate``: what is waited for, and its last ``answer``."""
        steps, now = self._steps, self._clock()
        if steps is None:
            return None
        files, ratio, eta = self._files, None, None
        if steps.step == WEIGHTS:
            shares = [share for share in (self._lines.share, files.share) if share is not None]
            ratio = max(shares, default=None)
            eta = files.eta if files.share is not None else self._lines.eta
        elif steps.step in ENGINE_STEPS:
            ratio, eta = self._lines.share, self._lines.eta
        return StartProgress(
            stage=self._stage,
            step=steps.step,
            ratio=None if ratio is None else round(ratio, 4),
            bytes_read=files.reading.bytes_read,
            bytes_total=files.reading.bytes_total,
            bytes_per_second=files.rate.per_second if steps.step == WEIGHTS and files.share is not None else None,
            eta=None if eta is None else round(eta, 1),
            gate=gate,
            answer=answer,
            steps={step: round(seconds, 3) for step, seconds in steps.seconds(now).items()},
        )

    # ---------------------------------------------------------------------------------------------- the sources

    def hear(self, lines: Iterable[str]) -> None:
        """Take in what the engine prints. A line may come without its end, as progress bars do, and then again."""
        steps = self._steps
        if steps is None or steps.step == PREPARING or not self._patterns:
            return
        for line in lines:
            clean = without_colours(line)
            for step, pattern in self._patterns:
                found = pattern.search(clean)
                if found is not None:
                    self._told(steps, step, share_of(found), seconds_of(found))
                    break

    def see(self, reading: Reading) -> None:
        """Take in what the kernel says about the weight files."""
        steps, now = self._steps, self._clock()
        if steps is None or not self.loads:
            return
        self._files.add(reading, self._lines.weights_over, now)
        loading = self._files.loading_at is not None and now == self._files.loading_at
        if steps.step != WEIGHTS:
            if loading:
                self._enter(WEIGHTS)
        elif self._files.over(now) and (self._lines.weights_over or not self._lines.told_weights or self._files.whole):
            assert self._files.loading_at is not None
            self._enter(REST, self._files.loading_at)

    def _told(self, steps: StepClock, step: str, share: float | None, took: float | None) -> None:
        """A line says that ``step`` goes on; or that it is over and ``took`` so long; or (REST) that some step is."""
        now = self._clock()
        over = REST if took is not None else step
        self._lines.add(step, over, steps.step, share, now)
        if over == REST and steps.step == WEIGHTS and self._files.loading(now):
            return  # this process has loaded, another one has not
        if took is not None and step != steps.step:
            steps.enter(step, now - took)  # only its end was told
        if over != steps.step and not (over == REST and steps.step == IMPORTS):
            self._enter(over)

    def _enter(self, step: str, at: float | None = None) -> None:
        assert self._steps is not None
        self._steps.enter(step, self._clock() if at is None else at)
        self._changed()


class _LineEvidence:
    """What the engine's lines have said in one start."""

    def __init__(self) -> None:
        self.share: float | None = None  #: how much of the current step is done
        self.told_weights = False  #: some line has said that weights are being loaded
        self.weights_over = False  #: and a later one that they have been
        self.past_weights = False  #: it has begun to compile: the kernel's word counts no more
        self._rate = Rate()

    def add(self, step: str, now_step: str, before: str, share: float | None, now: float) -> None:
        """``now_step``: the step that goes on after this line about ``step``; ``before``: the one until now."""
        if now_step != before:
            self._rate, self.share = Rate(), None
        if share is not None:
            self.share = share
            self._rate.add(share, now)
        self.told_weights |= step == WEIGHTS
        self.weights_over = self.told_weights and now_step != WEIGHTS
        self.past_weights = self.past_weights or step in (COMPILE, GRAPHS)

    @property
    def eta(self) -> float | None:
        rate = self._rate.per_second
        return (1 - self.share) / rate if rate and self.share is not None else None


class _FileEvidence:
    """What the kernel has said about the weight files in one start."""

    def __init__(self) -> None:
        self.reading = Reading()
        self.rate = Rate()
        self.loading_at: float | None = None  #: when they were last seen being read
        self._moved_at = -math.inf

    def add(self, reading: Reading, told_over: bool, now: float) -> None:
        """``told_over``: the engine says that all is loaded, so a file that is still open counts only if it is read."""
        moved = (reading.bytes_read or 0) > (self.reading.bytes_read or 0)
        self.reading = reading
        if moved:
            self._moved_at = now
            self.rate.add(reading.bytes_read or 0, now)
        elif reading.bytes_read:
            self.rate.add(reading.bytes_read, now)
        if self.loading(now) if told_over or self.whole else bool(reading.open and reading.bytes_read):
            self.loading_at = now

    def loading(self, now: float) -> bool:
        """Whether a weight file is open and was read just now."""
        return bool(self.reading.open) and now - self._moved_at < QUIET

    def over(self, now: float) -> bool:
        return self.loading_at is not None and now - self.loading_at >= QUIET

    @property
    def share(self) -> float | None:
        read, total = self.reading.bytes_read, self.reading.bytes_total
        return min(1.0, read / total) if read and total else None

    @property
    def whole(self) -> bool:
        return (self.share or 0.0) >= ALMOST

    @property
    def eta(self) -> float | None:
        read, total, rate = self.reading.bytes_read, self.reading.bytes_total, self.rate.per_second
        return max(0, total - read) / rate if read and total and rate else None


def seconds_of(found: re.Match[str]) -> float | None:
    """How long a step took, by the group ``took`` of a `StepLine`."""
    try:
        took = float((found.groupdict().get("took") or "")[:MOST_DIGITS])
    except ValueError:
        return None
    return took if 0 <= took < math.inf else None


def share_of(found: re.Match[str]) -> float | None:
    """How much is done, by the groups of a `StepLine`; None: it does not say."""
    groups = found.groupdict()
    percent, done, total = groups.get("percent"), groups.get("done"), groups.get("total")
    try:
        if percent is not None:
            share = float(percent[:MOST_DIGITS]) / 100
        elif done is not None and total is not None:
            share = float(done[:MOST_DIGITS]) / float(total[:MOST_DIGITS])
        else:
            return None
    except (ValueError, ZeroDivisionError):
        return None
    return share if 0 <= share <= 1 else None
