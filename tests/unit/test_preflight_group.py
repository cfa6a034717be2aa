"""The pods side by side, what a hello carries, the exchange of `doctor --group`, and its report."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.group.messages import MAX_FACT, MAX_FACTS, MEMBER_SAYS, Hello, decode, encode
from launcher.preflight import at_start
from launcher.preflight.finding import Finding, Level, fail, from_object, ok, warn
from launcher.preflight.group import compare, exchange, report
from launcher.preflight.group.rank_program import judge_clock, judge_mtu, run_collective

RAILS = {"rdma.rails": "8", "mtu": "9000", "rdma.gids": "RoCE v2", "shm": "16 GiB"}


# ----------------------------------------------------------------------------------------------------- odd ones out


def test_alike() -> None:
    assert compare.odd_ones(dict.fromkeys(range(4), RAILS)) == ()
    assert compare.odd_ones({}) == compare.odd_ones({0: RAILS}) == ()


def test_the_odd_one_out_is_named_by_rank() -> None:
    facts = dict.fromkeys(range(4), RAILS) | {2: {**RAILS, "rdma.rails": "7", "rdma.gids": "IB/RoCE v1"}}
    found = {f.what: f for f in compare.odd_ones(facts)}
    assert "RDMA rails: rank 2 has 7; the other 3 have 8" in found
    assert "GID version: rank 2 has IB/RoCE v1; the other 3 have RoCE v2" in found
    assert all(f.level is Level.WARN and f.why and f.fix for f in found.values())


def test_of_two_ranks_both_values_are_named() -> None:
    found = compare.odd_ones({0: RAILS, 1: {**RAILS, "mtu": "1500"}})
    assert [f.what for f in found] == ["MTU: rank 1 has 1500; the other has 9000"]


def test_what_one_lacks() -> None:
    found = compare.odd_ones({0: RAILS, 1: RAILS, 2: {"mtu": "9000", "shm": "16 GiB"}})
    assert {f.what for f in found} == {
        "RDMA rails: rank 2 has none; the other 2 have 8",
        "GID version: rank 2 has none; the other 2 have RoCE v2",
    }


def test_a_rank_that_told_nothing_is_left_out() -> None:
    assert compare.odd_ones({0: RAILS, 1: {}, 2: RAILS}) == ()


def test_what_must_be_equal_fails() -> None:
    found = compare.odd_ones({0: {"nccl.version": "2.27.3"}, 1: {"nccl.version": "2.26.2"}})
    assert found[0].level is Level.FAIL


@given(
    st.dictionaries(st.integers(0, 20), st.sampled_from(["7", "8", "9"]), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_order_never_changes_who_is_odd(rails: dict[int, str], chance: Any) -> None:
    facts = {rank: {"rdma.rails": value} for rank, value in rails.items()}
    mixed = list(facts.items())
    chance.shuffle(mixed)
    found = compare.odd_ones(facts)
    assert found == compare.odd_ones(dict(mixed))
    assert bool(found) == (len(set(rails.values())) > 1)


# ------------------------------------------------------------------------------------------------------- the hello


def test_what_a_hello_carries() -> None:
    findings = [
        ok("gpus", "8", {"gpu.count": "8", "driver": "570", "nobody.compares": "x"}),
        warn("nofile", "1024 open files", "y", "raise it"),
        fail("shm", "64 MiB " + "x" * 900, "y", "z"),
    ]
    facts = at_start.as_facts(findings, {"mtu": "9000", "interface": "eth0"})
    assert {k: v for k, v in facts.items() if not k.startswith("finding.")} == {
        "gpu.count": "8",
        "driver": "570",
        "mtu": "9000",
    }
    assert facts["finding.00"].startswith("fail shm: 64 MiB")
    assert at_start.findings_in(facts)[1] == {"level": "warn", "text": "nofile: 1024 open files; raise it"}
    hello = Hello("g", 1, 2, "i", "10.0.0.1", facts=facts)
    assert decode(encode(hello), MEMBER_SAYS) == hello


def test_a_hello_is_never_too_large() -> None:
    findings = [warn(f"c{i}", "w" * 5000, "y" * 5000, "f" * 5000) for i in range(200)]
    facts = at_start.as_facts(findings, dict.fromkeys(compare.COMPARED, "v" * 5000))
    assert len(facts) <= MAX_FACTS and all(len(v) <= MAX_FACT for v in facts.values())
    decode(encode(Hello("g", 1, 2, "i", "10.0.0.1", facts=facts)), MEMBER_SAYS)


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.integers(), st.text()), max_size=4))
@settings(max_examples=60, deadline=None)
def test_findings_of_others_are_cleaned(said: dict[str, Any]) -> None:
    finding = from_object({**said, "level": "warn", "what": "a\x1b[31m\nb" + "x" * 9999})
    assert finding.what.isprintable() and len(finding.what) <= 600


# ---------------------------------------------------------------------------------------------------- the exchange


@pytest.fixture
def board() -> exchange.Board:
    return exchange.Board("token", [1, 2])


@pytest.fixture
def server(board: exchange.Board) -> Iterator[exchange.BoardServer]:
    running = exchange.BoardServer("127.0.0.1", 0, board)
    yield running
    running.close()


def ask(server: exchange.BoardServer, **question: Any) -> Any:
    return exchange.ask("127.0.0.1", server.port, "token", question)


def test_posts_are_kept(server: exchange.BoardServer) -> None:
    assert ask(server, **{"is": "post", "kind": "check", "rank": 1, "body": {"a": 1}}) is True
    assert ask(server, **{"is": "all"}) == {"check": {"1": {"a": 1}}}
    assert ask(server, **{"is": "ports"}) == [1, 2]


def test_strangers_get_no_answer(server: exchange.BoardServer) -> None:
    with pytest.raises(exchange.ExchangeError):
        exchange.ask("127.0.0.1", server.port, "another token", {"is": "all"})
    with socket.create_connection(("127.0.0.1", server.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stranger.settimeout(10)
        assert stranger.recv(100) == b""
    assert ask(server, **{"is": "all"}) == {}


def test_something_else_that_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        import threading

        def answer() -> None:
            connection, _ = other.accept()
            connection.sendall(b"220 smtp ready\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(exchange.ExchangeError):
            exchange.ask("127.0.0.1", other.getsockname()[1], "token", {"is": "time"})


def test_the_clock_of_one_machine_agrees_with_itself(server: exchange.BoardServer) -> None:
    skew, sure = exchange.clock_skew("127.0.0.1", server.port, "token")
    assert abs(skew) <= sure + 0.05


def test_a_connection_back(server: exchange.BoardServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert ask(server, **{"is": "back", "address": "127.0.0.1", "port": port}) == ""
    assert ask(server, **{"is": "back", "address": "127.0.0.1", "port": port}) == "Connection refused"
    assert ask(server, **{"is": "back", "address": None, "port": "x"}) == "no port was named"


def test_the_path_mtu_of_loopback(server: exchange.BoardServer) -> None:
    assert exchange.path_mtu("127.0.0.1", server.port, 9000) == 9000


def test_over_ipv6() -> None:
    board = exchange.Board("token", [])
    try:
        server = exchange.BoardServer("::1", 0, board)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert exchange.ask("::1", server.port, "token", {"is": "ports"}) == []
    assert exchange.path_mtu("::1", server.port, 9000) == 9000
    server.close()


def test_no_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        assert exchange.path_mtu("127.0.0.1", silent.getsockname()[1], 1500) is None


@pytest.mark.parametrize(
    ("mtu", "largest", "level"),
    [(1500, 1500, Level.OK), (1400, 1500, Level.FAIL), (0, 9000, Level.FAIL), (None, 1500, Level.SKIPPED)],
)
def test_mtu_in_words(mtu: int | None, largest: int, level: Level) -> None:
    assert judge_mtu(mtu, largest).level is level
    assert judge_mtu(None, 65536).level is judge_mtu(None, 0).level is Level.SKIPPED


def test_the_clock_in_words() -> None:
    assert judge_clock(0.002, 0.001).what == "2 ms behind the leader (+- 1 ms)"
    assert judge_clock(-5.0, 0.001).level is Level.WARN


# ------------------------------------------------------------------------------------------------------ the report


def post(rank: int, *findings: Finding, **more: Any) -> dict[str, Any]:
    body = {"name": f"pod-{rank}", "address": f"10.0.0.{rank}", "findings": [f.as_object() for f in findings]}
    return {**body, "facts": {"mtu": "9000"}, "variables": [], **more}


def test_a_fit_group() -> None:
    posts = {"check": {"0": post(0, ok("gpus", "8")), "1": post(1, ok("gpus", "8"), clock_ms=-0.4, path_mtu=9000)}}
    page = report.page(posts, 2)
    assert page["ok"]
    text = report.as_text(page)
    assert "1     pod-1  10.0.0.1  1   0         0       +0.4 ms  9000" in text
    assert text.endswith("3 ok")


def test_what_several_ranks_share_is_told_once() -> None:
    small = fail("shm", "/dev/shm is 64 MiB", "y", "z")
    page = report.page({"check": {str(r): post(r, small) for r in range(3)}}, 3)
    assert not page["ok"]
    text = report.as_text(page)
    assert text.count("/dev/shm is 64 MiB") == 1 and "all ranks: /dev/shm" in text
    two = report.page({"check": {"0": post(0, small), "1": post(1), "2": post(2, small)}}, 3)
    assert "ranks 0, 2: /dev/shm" in report.as_text(two)


def test_the_report_of_a_group_that_runs() -> None:
    facts = at_start.as_facts([fail("shm", "64 MiB", "y", "mount it", {"shm": "64 MiB"})], {"mtu": "9000"})
    members = [{"rank": 0, "address": "10.0.0.1", "facts": {"mtu": "1500"}}, {"rank": 1, "facts": facts}, {"rank": 2}]
    page = report.of_status({"members": [*members, "strange", {"rank": "x"}]})
    text = report.as_text(page)
    assert not page["ok"] and "rank 1: 64 MiB; mount it" in text
    assert "MTU: rank 1 has 9000; the other has 1500" in text and "nothing is known of rank 2" in text
    assert report.as_text(report.of_status({"members": 3})).startswith("launcher doctor: 0 pod")


def test_a_rank_without_a_word() -> None:
    page = report.page({"check": {"0": post(0)}}, 2)
    assert not page["ok"] and "no word from rank 1" in report.as_text(page)


def test_differences_are_part_of_the_verdict() -> None:
    one, other = post(0), post(1, ok("model", "m", {"model.config": "sha256:1"}))
    one["findings"] = [ok("model", "m", {"model.config": "sha256:2"}).as_object()]
    page = report.page({"check": {"0": one, "1": other}}, 2)
    assert not page["ok"]
    assert "config.json of the model: rank 1 has sha256:1; the other has sha256:2" in report.as_text(page)


def test_the_table_of_a_collective() -> None:
    rows = [{"bytes": 8, "us": 31.5, "gbps": 0.002}, {"bytes": 268435456, "us": 1234.5, "gbps": 391.2}]
    result = {"backend": "nccl", "ranks": 16, "torch": "2.13.0", "nccl": "2.27.3", "rows": rows, "transport": "IB: x"}
    posts = {"check": {"0": post(0)}, "collective": {"0": {"findings": [], "result": result}}}
    text = report.as_text(report.page(posts, 1))
    assert "all-reduce over 16 ranks (nccl, torch 2.13.0, NCCL 2.27.3, IB: x)" in text
    assert "256 MiB  1,234.5 us  391 Gb/s" in text


def test_a_collective_that_fails_says_its_last_line() -> None:
    import sys

    outcome = run_collective([sys.executable, "-c", "raise RuntimeError('Gloo connectFullMesh failed')"], 60)
    assert "Gloo connectFullMesh failed" in outcome["findings"][0]["what"]
    assert (
        "no end within"
        in run_collective([sys.executable, "-c", "import time; time.sleep(99)"], 0.2)["findings"][0]["what"]
    )
    assert run_collective(["/no/such/python"], 1)["findings"][0]["level"] == "fail"
