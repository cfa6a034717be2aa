"""`launcher status`: the /status object of a pod as a table that takes two seconds to read.

All of it comes from a port, so nothing of it is trusted: whatever the object holds, a table comes out. Ranks that are
unlike most others are always shown, however many there are.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from launcher.api import client
from launcher.common.text import printable
from launcher.settings import AGENT_PORT

SHOWN_MEMBERS = 40
SHOWN_FINDINGS = 5
SHOWN_ENDS = 12  #: rows of the table that says how every rank ended
SHOWN_LINES = 5  #: last lines of a failure
MOST_RANKS = 4096
NO_FAILURE = ("drain", "restart")  #: causes of an end that somebody asked for
#: States of a rank with which nothing is wrong, whatever the others' are.
QUIET = frozenset({"running", "leader"})


def run(url: str | None, port: int | None, token_file: str | None, as_json: bool, watch: bool) -> int:
    """Print once, or every second. 0 if the group serves, 1 if it does not."""
    base = client.base_url(url, port)

    def look() -> tuple[str, bool]:
        try:
            status = client.fetch(base, token_file)
        except client.NoAnswer as error:
            if not watch:
                raise
            status = {"error": error.message}
        return json.dumps(status) if as_json else table(status, _port(base)), bool(status.get("ready"))

    return show(look, watch)


def show(look: Callable[[], tuple[str, bool]], watch: bool) -> int:
    """Print what ``look`` finds, once or every second until Ctrl-C. 0 if all is well, 1 if it is not."""
    clears = watch and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "")
    try:
        while True:
            text, well = look()
            print(("\x1b[H\x1b[2J" if clears else "") + text, flush=True)
            if not watch:
                return 0 if well else 1
            time.sleep(1.0)
    except KeyboardInterrupt:
        return 0


def _port(base: str) -> int:
    with contextlib.suppress(ValueError):
        return urlsplit(base).port or 80
    return 80


def table(status: Mapping[str, Any], port: int = AGENT_PORT) -> str:
    """The verdict first, then what is missing, starting or failed, then the members.

    ``port``: of the launcher that answered, assumed for the leader, too.
    """
    get = status.get
    if "error" in status:
        return f"nobody answers: {clean(get('error'))}"
    head = f"{clean(get('group', '?'))}: {clean(verdict(status).upper())}"
    if get("epoch") is not None:
        restarts = clean(get("restarts", 0))
        head += f"  epoch {clean(get('epoch'))}, {restarts} restart{'' if restarts == '1' else 's'}"
    lines = [head + f"  (asked rank {clean(get('rank'))} of {clean(get('size'))})"]
    lines += [f"  {line}" for line in (_engine(status), *_why(status)) if line]
    lines += _failures(status)
    lines += _findings(objects(get("findings")))
    members = objects(get("members"))
    lines += _members(members)
    known = bool(members) and members[0].get("state") != "unknown"
    if known and get("rank") != 0 and isinstance(get("size"), int) and get("size", 0) > len(members):
        address = clean(members[0].get("address"))
        lines.append(f"  only rank 0 knows the others: launcher status --url http://{address}:{port}")
    timeline = [f"{clean(t.get('phase'))} {_seconds(t.get('seconds', 0))}s" for t in objects(get("timeline"))[-6:]]
    if timeline:
        lines += ["", "  " + " > ".join(timeline)]
    return "\n".join(lines)


def verdict(status: Mapping[str, Any]) -> str:
    """One word: serving, or the phase."""
    return "serving" if status.get("ready") else str(status.get("phase", "unknown"))


def _engine(status: Mapping[str, Any]) -> str:
    """``vllm 0.33.0, model /models/llama, API http://10.0.0.5:8000``, without the parts that are unknown."""
    get = status.get
    name = " ".join(clean(word) for word in (get("engine"), get("engine_version")) if isinstance(word, str) and word)
    model = f"model {clean(get('model'))}" if isinstance(get("model"), str) and get("model") else ""
    api = f"API {clean(get('api_url'))}" if isinstance(get("api_url"), str) and get("api_url") else ""
    return ", ".join(filter(None, (name, model, api)))


def _why(status: Mapping[str, Any]) -> list[str]:
    get = status.get
    found = [clean(get("why"))] if not get("ready") and get("why") else []
    found += [clean(get(name)) for name in ("waiting_for", "note") if get(name)]
    started = starting(objects(get("members")))
    return [*found, started] if started else found


# ------------------------------------------------------------------------------------------------------ the start


def starting(members: Sequence[Mapping[str, Any]]) -> str:
    """How far the ranks are that still start: the slowest one, in words; empty if none does."""
    rows = [(m.get("rank"), m["progress"]) for m in members if isinstance(m.get("progress"), Mapping)]
    if not rows:
        return ""
    rank, slowest = min(rows, key=lambda row: _ratio(row[1]))
    count = f"{len(rows)} rank{'s start' if len(rows) > 1 else ' starts'}"
    return f"{count}; rank {clean(rank)}: {progress(slowest)}"


def _ratio(found: Mapping[str, Any]) -> float:
    """For the order only: what has no percent yet comes first."""
    ratio = found.get("ratio")
    return float(ratio) if isinstance(ratio, (int, float)) and 0 <= ratio <= 1 else -1.0


def progress(found: Mapping[str, Any]) -> str:
    """``weights 45 %, 12.3 of 27.0 GB, 210 MB/s, 60 s left``, or the gate that is waited for."""
    get = found.get
    parts = [clean(get("step") or get("stage") or "starting")]
    if _ratio(found) >= 0:
        parts[0] += f" {100 * _ratio(found):.0f} %"
    read, total, rate = (_number(get(name)) for name in ("bytes_read", "bytes_total", "bytes_per_second"))
    if read is not None:
        parts.append(f"{_bytes(read)} of {_bytes(total)}" if total else _bytes(read))
    if rate:
        parts.append(f"{_bytes(rate)}/s")
    left, spent = _number(get("eta_s")), _number(get("seconds"))
    if left is not None:
        parts.append(f"about {ago(left)} left")
    elif get("gate") and not read:
        answer = f": {clean(get('gate_answer'))}" if get("gate_answer") else ""
        parts.append(f"waits for {clean(get('gate'))}{answer}")
    if spent is not None:
        parts.append(f"for {ago(spent)}")
    return ", ".join(parts)


# ------------------------------------------------------------------------------------------------------- failures


def _failures(status: Mapping[str, Any]) -> list[str]:
    """The first failure, the latest cause if it is another one, and how every rank ended in that epoch."""
    first, latest = status.get("first_failure"), status.get("latest_cause")
    lines: list[str] = []
    ended = objects(status.get("failures"))
    if isinstance(first, Mapping):
        lines += _failure("first failure", first)
        if not ended:
            lines += [f"    because of it: {clean(line)}" for line in listed(first.get("because_of_it"))[:3]]
        lines += _ends(_epoch(ended, first), status)
    if isinstance(latest, Mapping) and not _same(first, latest):
        lines += _failure("latest end", latest)
        lines += _ends(_epoch(ended, latest), status)
    return lines


def _same(first: object, latest: Mapping[str, Any]) -> bool:
    names = ("epoch", "rank", "cause", "text")
    return isinstance(first, Mapping) and all(first.get(name) == latest.get(name) for name in names)


def _epoch(ended: Sequence[Mapping[str, Any]], failure: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((e for e in reversed(ended) if e.get("epoch") == failure.get("epoch") is not None), {})


def _failure(title: str, failure: Mapping[str, Any]) -> list[str]:
    likely = "probably " if failure.get("probably") else ""
    who = "" if failure.get("cause") == "restart" else f"{likely}rank {clean(failure.get('rank'))}: "
    others = [clean(rank) for rank in listed(failure.get("or_rank"))[:8]]
    rivals = f" (or rank {' or '.join(others)})" if others else ""
    lines = [f"  {_when(title, failure)}: {who}{clean(_what(failure))}{rivals}"]
    lines += [f"    | {clean(line)}" for line in listed(failure.get("tail"))[-SHOWN_LINES:]]
    return [*lines, f"    autopsy: {clean(failure['autopsy'])}"] if failure.get("autopsy") else lines


def _ends(ended: Mapping[str, Any], status: Mapping[str, Any]) -> list[str]:
    """How every rank ended: the cause's own row first, then the others, alike ones in one row."""
    if ended.get("cause") in NO_FAILURE:
        return []  # all were stopped, and how they took it explains nothing
    ends, size = objects(ended.get("ends")), status.get("size")
    size = size if isinstance(size, int) and 0 <= size <= MOST_RANKS else 0
    if len(ends) < 2:
        return []
    rows: dict[tuple[str, ...], list[int]] = {}
    words: dict[tuple[str, ...], str] = {}
    for end in ends:
        is_cause = end.get("rank") == ended.get("rank")
        key = (*(clean(end.get(name)) for name in ("cause", "exit_code", "stopped_by_us")), str(is_cause))
        rows.setdefault(key, []).extend([end["rank"]] if _is_rank(end.get("rank")) else [])
        words.setdefault(key, _end(end, is_cause))
    order = sorted(rows, key=lambda key: (key[-1] != "True", min(rows[key], default=MOST_RANKS)))
    shown = [(ranges(rows[key]), words[key]) for key in order]
    told = {rank for ranks in rows.values() for rank in ranks}
    rest = [rank for rank in range(size) if rank not in told] if len(ends) < 64 else []
    if rest:
        shown.append((ranges(rest), "stopped by the group"))
    lines = columns([("rank", "how it ended"), *shown[:SHOWN_ENDS]], "    ")
    more = [f"    and {len(shown) - SHOWN_ENDS} more kinds of end: --json"] if len(shown) > SHOWN_ENDS else []
    return [*lines, *more]


def _end(end: Mapping[str, Any], is_cause: bool) -> str:
    text = clean(_what(end))
    if end.get("stopped_by_us"):
        return f"{text}, when the group stopped it"
    return text if is_cause else f"{text}, because of it"


def _what(failure: Mapping[str, Any]) -> str:
    """The failure's text; if the details are withheld, its cause, process and exit code."""
    if "text" in failure:
        return str(failure["text"])
    process = f", process {failure['process']}" if failure.get("process") else ""
    code = f", exit code {failure['exit_code']}" if failure.get("exit_code") is not None else ""
    return f"{failure.get('cause')}{process}{code}"


def _when(title: str, failure: Mapping[str, Any]) -> str:
    """``first failure (epoch 3, 4 min ago, served 2 h)``, without the parts that are unknown."""
    known = [] if failure.get("epoch") is None else [f"epoch {clean(failure['epoch'])}"]
    age, served = _number(failure.get("age_s")), _number(failure.get("served_s"))
    if age is not None:
        known.append(f"{ago(age)} ago")
    if served is not None:
        known.append(f"had served {ago(served)}")
    return f"{title} ({', '.join(known)})" if known else title


# --------------------------------------------------------------------------------------------- findings, members


def _findings(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings and failures of the preflight; `launcher doctor` says why they matter and what to do."""
    bad = [f for f in findings if f.get("level") in ("fail", "warn")]
    shown = [f"  {clean(f['level'])}: {clean(f.get('check'))}: {clean(f.get('what'))}" for f in bad[:SHOWN_FINDINGS]]
    return [*shown, f"  and {len(bad) - SHOWN_FINDINGS} more: launcher doctor"] if len(bad) > SHOWN_FINDINGS else shown


def _members(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each; of many, those that are unlike most others first, and the rest in a line for each state."""
    if not members:
        return []
    shown = _worth_a_row(members)
    starts = any(isinstance(m.get("progress"), Mapping) for m in shown)
    rows = [("rank", "state", "address", "seen", *(["start"] if starts else []), "engine pids")]
    for m in shown:
        pids = [clean(p) for p in listed(m.get("engine_pids"))]
        found = m.get("progress")
        rows.append(
            (
                *(clean(m.get(name)) for name in ("rank", "state", "address")),
                "never" if m.get("last_seen_s") is None else f"{_seconds(m.get('last_seen_s'))} s ago",
                *([progress(found) if isinstance(found, Mapping) else ""] if starts else []),
                " ".join(pids[:6]) + (f" and {len(pids) - 6} more" if len(pids) > 6 else ""),
            )
        )
    lines = ["", *columns(rows, "  ")]
    left = [m for m in members if not any(m is one for one in shown)] if len(shown) < len(members) else []
    by_state: dict[str, list[int]] = {}
    for m in left:
        by_state.setdefault(clean(m.get("state")), []).extend([m["rank"]] if _is_rank(m.get("rank")) else [])
    lines += [f"  and {ranges(ranks) or 'more'}: {state}" for state, ranks in list(by_state.items())[:SHOWN_MEMBERS]]
    return lines


def _worth_a_row(members: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """At most `SHOWN_MEMBERS`, in their order: bad ones come before good ones when not all can be shown."""
    if len(members) <= SHOWN_MEMBERS:
        return members
    states = Counter(str(m.get("state")) for m in members)
    usual = states.most_common(1)[0][0]

    def badness(at: int) -> tuple[bool, float, float, int]:
        m = members[at]
        state, silent, found = str(m.get("state")), _number(m.get("last_seen_s")), m.get("progress")
        behind = _ratio(found) if isinstance(found, Mapping) else 2.0
        return state in QUIET or state == usual, behind, -(silent if silent is not None else 1e9), at

    chosen = sorted(sorted(range(len(members)), key=badness)[:SHOWN_MEMBERS])
    return [members[at] for at in chosen]


# ----------------------------------------------------------------------------------------------------- small ones


def columns(rows: Sequence[Sequence[str]], indent: str) -> list[str]:
    """Rows under each other, as wide as the widest of each column; the last column is as wide as it likes."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [indent + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def ranges(ranks: Iterable[int]) -> str:
    """``0-3,5``."""
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:40]]
    return ",".join([*shown, "..."] if len(runs) > 40 else shown)


def objects(value: object) -> list[dict[str, Any]]:
    return [one for one in listed(value) if isinstance(one, dict)]


def listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_RANKS


def _number(value: object) -> float | None:
    """A size or a duration that can be shown."""
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e18
    return float(value) if fine else None  # type: ignore[arg-type]


def _bytes(value: float | None) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value is not None and value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value or 0:.0f} B"


def ago(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def _seconds(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, (int, float)) and abs(value) < 1e12 else "?"


def clean(value: object) -> str:
    """A peer's text, made printable and short."""
    return printable(value, 500)
