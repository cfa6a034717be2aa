"""What all ranks of `launcher doctor --group` found, as one screen: ranks, problems, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.planning import variables
from launcher.preflight import show
from launcher.preflight.at_start import FINDING, findings_in
from launcher.preflight.finding import Finding, Level, clean, counts, facts_of, fail, from_object, ok, warn
from launcher.preflight.group import compare

BAD = (Level.FAIL, Level.WARN)


def page(posts: Mapping[str, Mapping[str, Any]], size: int) -> dict[str, Any]:
    """The report as plain data. ``posts``: by kind and rank, as on the exchange's board."""
    ranks = [_rank(rank, posts) for rank in range(size)]
    facts = {row["rank"]: row["facts"] for row in ranks if row["facts"]}
    between = list(compare.odd_ones(facts))
    silent = [str(row["rank"]) for row in ranks if not row["name"]]
    if silent:
        text = f"no word from rank{'s' if len(silent) > 1 else ''} {', '.join(silent)}"
        between.append(fail("group", text, "the check there did not come to its end", "see that pod's own log"))
    if size > 1 and not between:
        between.append(_alike(facts))
    results = [body.get("result") for body in posts.get("collective", {}).values() if isinstance(body, dict)]
    found = [from_object(f) for row in ranks for f in row["findings"]]
    n = counts([*found, *between])
    return {
        "ok": not n[Level.FAIL],
        "counts": {level.value: count for level, count in n.items()},
        "size": size,
        "ranks": ranks,
        "between": [f.as_object() for f in between],
        "collective": next((r for r in results if r), None),
    }


def of_status(status: Mapping[str, Any]) -> dict[str, Any]:
    """The same page from the leader's /status: what the launchers reported about their pods in their hello."""
    ranks = []
    members = status.get("members")
    for member in members if isinstance(members, list) else ():
        if not isinstance(member, dict) or not isinstance(member.get("rank"), int):
            continue
        told = member.get("facts")
        facts = {clean(k): clean(v) for k, v in told.items()} if isinstance(told, dict) else {}
        found = []
        for one in findings_in(facts):
            check, _, what = one["text"].partition(": ")
            found.append(from_object({"check": check, "level": one["level"], "what": what}))
        plain = {name: value for name, value in facts.items() if not name.startswith(FINDING)}
        own = post_of("-" if facts else "", member.get("address"), found, plain)
        ranks.append(_rank(member["rank"], {"check": {str(member["rank"]): own}}))
    between = list(compare.odd_ones({row["rank"]: row["facts"] for row in ranks}))
    silent = [row["rank"] for row in ranks if not row["facts"]]
    if silent:
        text = f"nothing is known of {_on(silent, -1)}"
        between.append(warn("group", text, "not there yet, or without preflight", "see `launcher status`"))
    if not between:
        between.append(_alike({row["rank"]: row["facts"] for row in ranks}))
    n = counts([*(from_object(f) for row in ranks for f in row["findings"]), *between])
    return {
        "ok": not n[Level.FAIL],
        "counts": {level.value: count for level, count in n.items()},
        "size": len(ranks),
        "ranks": ranks,
        "between": [f.as_object() for f in between],
        "collective": None,
        "note": "what the running launchers found when they started",
    }


def post_of(name: str, address: object, findings: Sequence[Finding], facts: Mapping[str, str]) -> dict[str, Any]:
    """One rank's post."""
    return {"name": name, "address": address, "findings": [f.as_object() for f in findings], "facts": dict(facts)}


def as_text(page: Mapping[str, Any], paint: bool = False) -> str:
    """One screen. A finding that several ranks share appears once."""
    size = page["size"]
    note = f": {page['note']}" if page.get("note") else ""
    lines = [f"launcher doctor: {size} pod{'s' if size > 1 else ''}{note}", "", *show.columns(_rows(page["ranks"]))]
    shared = shared_findings(page["ranks"])
    if shared:
        lines += ["", "findings", *show.lines(shared, show.width(), paint)]
    between = [from_object(f) for f in page["between"]]
    if between:
        lines += ["", "between the pods", *show.lines(between, show.width(), paint)]
    if page["collective"]:
        lines += ["", *collective_lines(page["collective"])]
    own = [v for row in page["ranks"][:1] for v in variables.from_objects(row["variables"])]
    if own:
        lines += ["", "variables of rank 0: value, who set it, why", *variables.table(own, "  ")]
    everything = [from_object(f) for row in page["ranks"] for f in row["findings"]]
    return "\n".join([*lines, "", show.verdict([*everything, *between])])


def shared_findings(ranks: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Warnings and failures, worst first, with the ranks that have them."""
    by_finding: dict[tuple[str, Level, str, str, str], list[int]] = {}
    for row in ranks:
        for f in (from_object(f) for f in row["findings"]):
            if f.level in BAD:
                by_finding.setdefault((f.check, f.level, f.what, f.why, f.fix), []).append(int(row["rank"]))
    found = []
    for (check, level, what, why, fix), on in by_finding.items():
        where = "" if len(ranks) == 1 else f"{_on(on, len(ranks))}: "
        found.append(Finding(check, level, where + what, why, fix))
    return sorted(found, key=lambda f: BAD.index(f.level))


def collective_lines(result: Mapping[str, Any]) -> list[str]:
    """The all-reduce as a table."""
    with_what = [clean(result.get("backend")), f"torch {clean(result.get('torch'))}"]
    with_what += [f"NCCL {clean(result['nccl'])}"] if result.get("nccl") else []
    with_what += [clean(result["transport"])] if result.get("transport") else []
    alone = result.get("ranks") == 1
    head = f"all-reduce over {result.get('ranks')} rank{'' if alone else 's'} ({', '.join(with_what)})"
    rows = [("size", "latency", "bandwidth")]
    for row in result.get("rows", ()):
        rows.append((_size(row["bytes"]), f"{row['us']:,.1f} us", "-" if alone else f"{row['gbps']:.3g} Gb/s"))
    return [head, *show.columns(rows)]


def _rank(rank: int, posts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    own = posts.get("check", {}).get(str(rank)) or {}
    listed = list(own.get("findings", ()))
    if rank == 0:
        listed += posts.get("listen", {}).get("0") or []
    listed += (posts.get("collective", {}).get(str(rank)) or {}).get("findings", ())
    found = [from_object(f) for f in listed]
    facts = {**facts_of(found), **{clean(k): clean(v) for k, v in own.get("facts", {}).items()}}
    return {
        "rank": rank,
        "name": clean(own.get("name")),
        "address": clean(own.get("address")),
        "clock_ms": own.get("clock_ms"),
        "path_mtu": own.get("path_mtu"),
        "counts": {level.value: count for level, count in counts(found).items()},
        "facts": facts,
        "findings": [f.as_object() for f in found],
        "variables": own.get("variables", []),
    }


def _rows(ranks: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("rank", "pod", "address", "ok", "warnings", "failed", "clock", "path MTU")]
    for row in ranks:
        n, clock, mtu = row["counts"], row["clock_ms"], row["path_mtu"]
        rows.append(
            (
                str(row["rank"]),
                row["name"] or "(no word)",
                row["address"],
                str(n["ok"]),
                str(n["warn"]),
                str(n["fail"]),
                "-" if clock is None else f"{-clock:+.1f} ms",
                "-" if mtu is None else str(mtu),
            )
        )
    return rows


def _alike(facts: Mapping[int, Mapping[str, str]]) -> Finding:
    words = (compare.compared(name) for own in facts.values() for name, value in own.items() if value)
    told = {called for called, _, _ in filter(None, words)}
    return ok("group", "all pods are alike in what matters: " + ", ".join(sorted(told)))


def _on(ranks: Sequence[int], size: int) -> str:
    if len(ranks) == size:
        return "all ranks"
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _size(number: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number} {unit}"
        number //= 1024
    return f"{number} GiB"
