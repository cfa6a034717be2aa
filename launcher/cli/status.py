"""`launcher status`: the /status object of a pod as a table that takes two seconds to read."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from launcher.api import client
from launcher.common.text import printable
from launcher.errors import UnavailableError
from launcher.settings import AGENT_PORT

SHOWN_MEMBERS = 40
SHOWN_FINDINGS = 5


def run(url: str | None, port: int | None, token_file: str | None, as_json: bool, watch: bool) -> int:
    """Print once, or every second. 0 if the group serves, 1 if it does not."""
    base = (url or f"http://127.0.0.1:{port or AGENT_PORT}").rstrip("/")
    if "://" not in base:
        base = f"http://{base}"
    try:
        while True:
            try:
                status = client.fetch(base, token_file)
            except UnavailableError as error:
                if not watch:
                    raise
                status = {"error": error.message}
            if watch and sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[2J")
            print(json.dumps(status) if as_json else table(status, _port(base)), flush=True)
            if not watch:
                return 0 if status.get("ready") else 1
            time.sleep(1.0)
    except KeyboardInterrupt:
        return 0


def _port(base: str) -> int:
    with contextlib.suppress(ValueError):
        return urlsplit(base).port or 80
    return 80


def table(status: Mapping[str, Any], port: int = AGENT_PORT) -> str:
    """A dozen lines: the verdict first, then what is missing or what failed, then the members.

    ``port``: of the launcher that answered, assumed for the leader, too.
    """
    get = status.get
    if "error" in status:
        return f"nobody answers: {_clean(get('error'))}"
    word = "serving" if get("ready") else str(get("phase", "unknown"))
    head = f"{_clean(get('group', '?'))}: {_clean(word.upper())}"
    if get("epoch") is not None:
        restarts = _clean(get("restarts", 0))
        head += f"  epoch {_clean(get('epoch'))}, {restarts} restart{'' if restarts == '1' else 's'}"
    lines = [head + f"  (asked rank {_clean(get('rank'))} of {_clean(get('size'))})"]
    if not get("ready") and get("why"):
        lines.append(f"  {_clean(get('why'))}")
    if get("waiting_for"):
        lines.append(f"  {_clean(get('waiting_for'))}")
    if get("note"):
        lines.append(f"  {_clean(get('note'))}")
    failure = get("first_failure")
    if isinstance(failure, dict):
        likely = "probably " if failure.get("probably") else ""
        lines.append(f"  {_when(failure)}: {likely}rank {_clean(failure.get('rank'))}: {_clean(_what(failure))}")
        lines += [f"    | {_clean(line)}" for line in _list(failure.get("tail"))[-5:]]
        if failure.get("autopsy"):
            lines.append(f"    autopsy: {_clean(failure['autopsy'])}")
        lines += [f"    because of it: {_clean(line)}" for line in _list(failure.get("because_of_it"))[:3]]
    lines += _findings([f for f in _list(get("findings")) if isinstance(f, dict)])
    members = [m for m in _list(get("members")) if isinstance(m, dict)]
    lines += _members(members)
    known = bool(members) and members[0].get("state") != "unknown"
    if known and get("rank") != 0 and isinstance(get("size"), int) and get("size", 0) > len(members):
        address = _clean(members[0].get("address"))
        lines.append(f"  only rank 0 knows the others: launcher status --url http://{address}:{port}")
    timeline = [
        f"{_clean(t.get('phase'))} {_seconds(t.get('seconds', 0))}s"
        for t in _list(get("timeline"))[-6:]
        if isinstance(t, dict)
    ]
    if timeline:
        lines += ["", "  " + " > ".join(timeline)]
    return "\n".join(lines)


def _what(failure: Mapping[str, Any]) -> str:
    """The failure's text; if the details are withheld, its cause, process and exit code."""
    if "text" in failure:
        return str(failure["text"])
    process = f", process {failure['process']}" if failure.get("process") else ""
    code = f", exit code {failure['exit_code']}" if failure.get("exit_code") is not None else ""
    return f"{failure.get('cause')}{process}{code}"


def _when(failure: Mapping[str, Any]) -> str:
    """``first failure (epoch 3, 4 min ago)``, without the parts that are unknown."""
    known = [] if failure.get("epoch") is None else [f"epoch {_clean(failure['epoch'])}"]
    age = failure.get("age_s")
    if isinstance(age, (int, float)) and 0 <= age < 1e12:
        known.append(f"{_ago(age)} ago")
    return f"first failure ({', '.join(known)})" if known else "first failure"


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def _findings(findings: list[dict[str, Any]]) -> list[str]:
    """Warnings and failures of the preflight; `launcher doctor` says why they matter and what to do."""
    bad = [f for f in findings if f.get("level") in ("fail", "warn")]
    shown = [f"  {_clean(f['level'])}: {_clean(f.get('check'))}: {_clean(f.get('what'))}" for f in bad[:SHOWN_FINDINGS]]
    return [*shown, f"  and {len(bad) - SHOWN_FINDINGS} more: launcher doctor"] if len(bad) > SHOWN_FINDINGS else shown


def _members(members: list[dict[str, Any]]) -> list[str]:
    rows = [("rank", "state", "address", "seen", "engine pids")]
    for m in members[:SHOWN_MEMBERS]:
        seen = m.get("last_seen_s")
        pids = [_clean(p) for p in _list(m.get("engine_pids"))]
        rows.append(
            (
                _clean(m.get("rank")),
                _clean(m.get("state")),
                _clean(m.get("address")),
                "never" if seen is None else f"{_seconds(seen)} s ago",
                " ".join(pids[:6]) + (f" and {len(pids) - 6} more" if len(pids) > 6 else ""),
            )
        )
    if len(rows) == 1:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["", *("  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)]
    if len(members) > SHOWN_MEMBERS:
        lines.append(f"  and {len(members) - SHOWN_MEMBERS} more")
    return lines


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _seconds(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, (int, float)) and abs(value) < 1e12 else "?"


def _clean(value: object) -> str:
    """A peer's text, made printable and short."""
    return printable(value, 500)
