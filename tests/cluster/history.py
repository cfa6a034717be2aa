"""What watches and events tell of a group: when each pod was ready, who was behind a Service, what was scaled to."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.cluster.kubectl import Event, Object


def condition(pod: Object, kind: str) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def ready(pod: Object) -> bool:
    return condition(pod, "Ready") and "deletionTimestamp" not in pod["metadata"]


def engine_state(pod: Object) -> Object:
    """The status of the engine's container; empty before there is one."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((s for s in statuses if s["name"] == "engine"), {})


def restarts(events: Iterable[Event]) -> dict[str, int]:
    """Restarts of the engine's container, of the pods that had any."""
    found: dict[str, int] = {}
    for event in events:
        count = int(engine_state(event.object).get("restartCount", 0))
        if count:
            found[event.name] = max(found.get(event.name, 0), count)
    return found


@dataclass(frozen=True)
class Turn:
    """A pod became ready, or stopped being so."""

    at: float
    ready: bool


def readiness(events: Iterable[Event], pod: str) -> list[Turn]:
    """From its first sight (never ready) on, each turn once. A pod made anew goes on in the list."""
    found: list[Turn] = []
    for event in events:
        if event.name != pod:
            continue
        now = event.type != "DELETED" and ready(event.object)
        if not found or found[-1].ready != now:
            found.append(Turn(event.at, now))
    return found


def least_ready(events: Sequence[Event], names: Sequence[str]) -> int:
    """How many of these pods were ready at the worst, after all of them were once."""
    now: dict[str, bool] = {}
    fewest: int | None = None
    for event in events:
        if event.name in names:
            now[event.name] = event.type != "DELETED" and ready(event.object)
        total = sum(now.values())
        if total == len(names) and fewest is None:
            fewest = total
        if fewest is not None:
            fewest = min(fewest, total)
    return fewest or 0


def behind(slices: Iterable[Event], service: str) -> set[str]:
    """Every pod that a Service has ever sent callers to."""
    found: set[str] = set()
    for event in slices:
        labels = event.object["metadata"].get("labels") or {}
        if labels.get("kubernetes.io/service-name") != service or event.type == "DELETED":
            continue
        for endpoint in event.object.get("endpoints") or []:
            # absent means true, says the API
            if endpoint.get("conditions", {}).get("ready") is not False and endpoint.get("targetRef"):
                found.add(endpoint["targetRef"]["name"])
    return found


# ------------------------------------------------------------------------------------------------------------ scaling


def wanted(events: Iterable[Event], *names: str) -> list[tuple[float, int]]:
    """The sum of `spec.replicas` over these sets, at each event that changed it."""
    now: dict[str, int] = {}
    found: list[tuple[float, int]] = []
    for event in events:
        if names and event.name not in names:
            continue
        now[event.name] = 0 if event.type == "DELETED" else int(event.object["spec"].get("replicas", 1))
        total = sum(now.values())
        if not found or found[-1][1] != total:
            found.append((event.at, total))
    return found


def off_a_multiple(events: Iterable[Event], size: int) -> list[str]:
    """Each event at which a set was told to have a part of a group."""
    numbers = ((e, int(e.object["spec"].get("replicas", 1))) for e in events if e.type != "DELETED")
    return [f"{e.name}: {number} at {e.at:.1f}" for e, number in numbers if number % size]


@dataclass(frozen=True)
class WakeUp:
    """Where the seconds went from the first request to a group that serves."""

    keda: float  #: until the set was told its number
    scheduling: float  #: until the last pod's container ran: scheduler, images, container runtime
    launcher: float  #: until the engine was started on the whole group
    engine: float  #: until the engine served
    probe: float  #: until the Service had the leader

    @property
    def total(self) -> float:
        return self.keda + self.scheduling + self.launcher + self.engine + self.probe


def wake_up(
    asked: float, sets: Sequence[Event], pods: Sequence[Event], leader: str, timeline: Sequence[dict[str, Any]]
) -> WakeUp:
    """`asked`: when the metric rose; `timeline`: of the leader's /status. Kubernetes' own times are whole seconds."""
    scaled = next(e.at for e in sets if e.at >= asked and e.type != "DELETED" and int(e.object["spec"]["replicas"]) > 0)
    began: dict[str, float] = {}
    for event in pods:
        if event.at >= asked and engine_state(event.object).get("state", {}).get("running"):
            began.setdefault(event.name, event.at)
    up = max(began.values())
    starting = next(parsed(t["at"]) for t in timeline if t["phase"] == "starting")
    running = next(parsed(t["at"]) for t in timeline if t["phase"] == "running")
    served = next(turn.at for turn in readiness(pods, leader) if turn.ready and turn.at >= asked)
    # the watch hears of a container a moment after it has begun, and clocks differ: no part is negative
    at = [asked, scaled, up, starting, running, served]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1])
    return WakeUp(*(round(after - before, 1) for before, after in itertools.pairwise(at)))


def parsed(text: str) -> float:
    """A time as Kubernetes and the launcher write it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


# ------------------------------------------------------------------------------------------------------------- events


def warnings(events: Iterable[Object], names: Iterable[str]) -> list[str]:
    """Warning events of these objects, as `kubectl describe` shows them."""
    wanted_names = set(names)
    return [
        f"{e['involvedObject']['name']}: {e.get('reason', '')}: {e.get('message', '')} (x{e.get('count') or 1})"
        for e in events
        if e.get("type") == "Warning" and e["involvedObject"]["name"] in wanted_names
    ]


# ------------------------------------------------------------------------------------------------------------ streams


@dataclass(frozen=True)
class Stream:
    """What a client lived through: a line of `inside/streams.py`."""

    at: float
    seconds: float
    end: str  #: done, cut or none
    tokens: int
    text: str
    why: str
    tries: int


def streams(output: str) -> list[Stream]:
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    names = Stream.__dataclass_fields__
    return [Stream(**{name: line[name] for name in names}) for line in lines]


def complaints(found: Sequence[Stream], text: str | None = None) -> list[str]:
    """Streams that were cut, that nobody answered, or whose text is another than it must be."""
    bad = [f"{s.end} after {s.tokens} tokens and {s.seconds:.1f} s: {s.why}" for s in found if s.end != "done"]
    return bad + [f"another text: {s.text}" for s in found if text is not None and s.end == "done" and s.text != text]
