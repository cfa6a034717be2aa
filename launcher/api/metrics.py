"""The /metrics page, in the text format of Prometheus. README, "Metrics", lists the names and what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping

from launcher.api.snapshot import LeaderView, Snapshot
from launcher.group.metrics import Durations
from launcher.model import PHASES


def metrics_page(pod: Snapshot) -> str:
    """One pod's /metrics."""
    page = _Page()
    phases = {phase: float(phase == pod.phase) for phase in PHASES}
    page.by_label("launcher_phase", "gauge", "1 for the phase the group is in", phases, "phase")
    page.one("launcher_ready", "gauge", "1 while /readyz answers 200", float(pod.ready))
    page.one("launcher_rank", "gauge", "rank of this pod", pod.identity.rank)
    page.one("launcher_group_size", "gauge", "pods in the group", pod.identity.size)
    page.one("launcher_epoch", "gauge", "number of the current or latest epoch", pod.epoch or 0)
    page.one("launcher_members_present", "gauge", "members that are connected to the leader", pod.members_present)
    page.one("launcher_restarts_total", "counter", "epochs that failed after they had started a process", pod.restarts)
    page.one(
        "launcher_start_progress_ratio",
        "gauge",
        "how much of its current step this rank's start has done; 1 while the group serves, NaN if unknown",
        _ratio(pod),
    )
    page.one(
        "launcher_start_bytes",
        "gauge",
        "bytes of the weight files that this rank has read in its current or latest start",
        pod.loaded_bytes or 0,
    )
    if pod.leader is not None:
        _add_leader(page, pod.leader)
    page.by_label(
        "launcher_connection_errors_total",
        "counter",
        "connections closed because of what came on them, by kind",
        pod.connection_errors,
        "kind",
    )
    page.by_label(
        "launcher_connections_turned_away_total",
        "counter",
        "connections closed before they had asked or joined: too many, too slow, or not the protocol",
        pod.turned_away,
        "port",
    )
    page.one("launcher_deadline_stretch", "gauge", "how many times longer deadlines are just now", pod.stretch)
    page.one("launcher_gaps_total", "counter", "times that this launcher did not run for 2 s or more", pod.gaps)
    seconds = pod.phase_seconds
    page.by_label(
        "launcher_phase_seconds_total", "counter", "seconds spent in each phase, ended visits", seconds, "phase"
    )
    return page.text()


def _ratio(pod: Snapshot) -> float:
    if pod.start is None:
        return float(pod.phase in ("running", "draining"))
    return math.nan if pod.start.ratio is None else pod.start.ratio


def _add_leader(page: _Page, leader: LeaderView) -> None:
    page.by_label("launcher_failures_total", "counter", "epochs that failed, by cause", leader.failures, "cause")
    page.summary(
        "launcher_detection_seconds", "from a failure to the moment that the leader knew of it", leader.detected
    )
    page.summary("launcher_stop_seconds", "from then until every rank had stopped", leader.stopped)
    page.summaries(
        "launcher_start_step_seconds",
        "time of starts that succeeded, on the slowest rank of each",
        leader.start_steps,
        "step",
    )
    page.by_label("launcher_drains_total", "counter", "drains, by how they ended", leader.drains, "outcome")
    page.summary("launcher_drain_seconds", "from the first SIGTERM to the end of the drain", leader.drained)
    page.one("launcher_engine_slow", "gauge", "1 while requests move and health checks time out", float(leader.slow))
    reasons = leader.health_failures
    page.by_label(
        "launcher_health_failures_total", "counter", "health checks that failed, by reason", reasons, "reason"
    )


def _number(value: float) -> str:
    """As Prometheus reads it; whole numbers in full."""
    if math.isnan(value):
        return "NaN"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:g}"


class _Page:
    """Lines of the page; a metric's HELP and TYPE come before its samples."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def one(self, name: str, kind: str, text: str, value: float) -> None:
        self._head(name, kind, text)
        self._lines.append(f"{name} {_number(value)}")

    def by_label(self, name: str, kind: str, text: str, values: Mapping[str, float], label: str) -> None:
        self._head(name, kind, text)
        self._lines += [f'{name}{{{label}="{key}"}} {value:g}' for key, value in values.items()]

    def summary(self, name: str, text: str, durations: Durations) -> None:
        self._head(name, "summary", text)
        self._lines += [f"{name}_sum {durations.sum:g}", f"{name}_count {durations.count}"]

    def summaries(self, name: str, text: str, durations: Mapping[str, Durations], label: str) -> None:
        self._head(name, "summary", text)
        for key, of in durations.items():
            self._lines += [f'{name}_sum{{{label}="{key}"}} {of.sum:g}', f'{name}_count{{{label}="{key}"}} {of.count}']

    def _head(self, name: str, kind: str, text: str) -> None:
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"
