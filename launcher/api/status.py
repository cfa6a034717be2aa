"""The /status object, which `launcher status` prints as a table."""

from __future__ import annotations

from typing import Any

from launcher.api.snapshot import AutopsyRecord, EndedEpoch, FailureRecord, MemberRow, Snapshot, StartRecord
from launcher.group.ends import RankEnd
from launcher.group.ledger import RankStart
from launcher.log import stamp


def status_object(pod: Snapshot) -> dict[str, Any]:
    """One pod's /status, with all details."""
    who = pod.identity
    status: dict[str, Any] = {
        "phase": pod.phase,
        "ready": pod.ready,
        "why": pod.why,
        "epoch": pod.epoch,
        "rank": who.rank,
        "size": who.size,
        "group": who.group,
        "name": who.name,
        "source": who.source,
        "agent_port": pod.agent_port,
        "engine": pod.engine,
        "engine_version": pod.engine_version,
        "model": pod.model,
        "api_url": pod.api_url,
        "waiting_for": pod.waiting_for,
        "first_failure": failure_object(pod.first_failure) if pod.first_failure else None,
        "latest_cause": failure_object(pod.latest_cause) if pod.latest_cause else None,
        "members_present": pod.members_present,
        "members": [member_object(row) for row in pod.members],
        "restarts": pod.restarts,
        "timeline": [
            {"phase": visit.phase, "at": stamp(visit.at), "seconds": round(visit.seconds, 3)} for visit in pod.timeline
        ],
        "findings": list(pod.findings),
        "autopsy": autopsy_object(pod.autopsy) if pod.autopsy else None,
        "starts": [start_object(record) for record in pod.leader.starts] if pod.leader is not None else [],
    }
    if pod.leader is not None:
        status["failures"] = [ended_object(ended) for ended in pod.leader.ended]
    return status


def failure_object(failure: FailureRecord) -> dict[str, Any]:
    cause = failure.cause
    return {
        "epoch": failure.epoch,
        "at": None if failure.at is None else stamp(failure.at),
        "age_s": None if failure.age is None else round(failure.age, 1),
        "rank": cause.rank,
        "cause": cause.kind.value,
        "process": cause.process,
        "exit_code": cause.code,
        "text": cause.text,
        "tail": list(cause.tail),
        "probably": bool(cause.rivals),
        "or_rank": list(cause.rivals),
        "because_of_it": list(cause.because),
        "autopsy": cause.autopsy or None,
    }


def ended_object(ended: EndedEpoch) -> dict[str, Any]:
    return {
        "served_s": None if ended.served is None else round(ended.served, 1),
        **failure_object(ended.failure),
        "ends": [end_object(end) for end in ended.ends],
    }


def end_object(end: RankEnd) -> dict[str, Any]:
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


def autopsy_object(record: AutopsyRecord) -> dict[str, Any]:
    """What every rank was doing when the latest epoch that hung was ended."""
    found = record.autopsy
    return {
        "epoch": found.epoch.n,
        "at": round(record.at, 3),
        "verdict": found.verdict,
        "rank": found.rank,
        "ranks": [
            {"rank": rank, "process": p.name, "pid": p.pid, "state": p.state, "frames": list(p.frames)}
            for rank, p in found.telling.items()
        ],
    }


def member_object(row: MemberRow) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "rank": row.rank,
        "state": row.state,
        "address": row.address,
        "incarnation": row.incarnation,
        "engine_pids": list(row.pids),
        "last_seen_s": None if row.silent is None else round(row.silent, 1),
    }
    shown["progress"] = progress_object(row)
    return {**shown, "facts": dict(row.facts)} if row.facts else shown


def progress_object(row: MemberRow) -> dict[str, Any] | None:
    """How far a rank's start is."""
    it = row.progress
    if it is None:
        return None
    return {
        "stage": it.stage,
        "step": it.step,
        "ratio": None if it.ratio is None else round(it.ratio, 4),
        "bytes_read": it.bytes_read,
        "bytes_total": it.bytes_total,
        "bytes_per_second": None if it.bytes_per_second is None else round(it.bytes_per_second),
        "eta_s": None if it.eta is None else round(it.eta, 1),
        "gate": it.gate,
        "gate_answer": it.answer,
        "seconds": round(it.seconds, 1),
        "line": row.line,
    }


def start_object(record: StartRecord) -> dict[str, Any]:
    """Where the time of a start went."""
    start = record.start
    return {
        "epoch": start.epoch,
        "at": round(record.at, 3),
        "seconds": round(start.seconds, 3),
        "ranks": [_rank_start_object(one) for one in start.ranks],
    }


def _rank_start_object(one: RankStart) -> dict[str, Any]:
    return {
        "rank": one.rank,
        "slowest": one.slowest,
        "steps": {step: round(seconds, 3) for step, seconds in one.steps.items()},
        "bytes": one.bytes_read,
        "bytes_per_second": None if one.bytes_per_second is None else round(one.bytes_per_second),
    }
