"""What the reference engine's planner makes of settings."""

from __future__ import annotations

import sys

import pytest

from launcher.engines.base import Engine, PlanContext
from launcher.engines.reference import PROGRAM, ReferenceEngine
from launcher.errors import UsageError
from launcher.model import Epoch, Gate, Health, Identity, NodeFacts, Plan, Shared
from launcher.reference.options import HELP, OWNED, parse
from launcher.settings import Settings

ENGINE = ReferenceEngine()


def identity(size: int) -> Identity:
    return Identity("ns/a", 0, size, "a-0", "a-0.svc", "explicit")


def plan(rank: int, size: int = 2, epoch: int = 1, bind: str = "0.0.0.0", ip: str = "10.0.0.", **said: object) -> Plan:
    settings = Settings(engine="reference").replace(**said)
    shared = Shared(Epoch(epoch, "abcdef0123"), tuple(f"{ip}{n + 1}" for n in range(size)))
    return ENGINE.plan(PlanContext(settings, identity(size), NodeFacts(), shared, bind), rank)


def argv(plan: Plan) -> tuple[str, ...]:
    return plan.stages[0].processes[0].argv


def gate(plan: Plan) -> Gate:
    return plan.stages[0].processes[0].gate


def test_it_is_an_engine_and_asks_no_interpreter() -> None:
    assert isinstance(ENGINE, Engine)
    assert ENGINE.distributions(Settings()) == ()
    assert ENGINE.interpreter(Settings()) == sys.executable
    assert ENGINE.interpreter(Settings(python="/opt/python")) == "/opt/python"


def test_ranks_of_two() -> None:
    leader, worker = plan(0), plan(1)
    assert [s.name for s in leader.stages] == [s.name for s in worker.stages] == ["engine"]
    assert argv(leader)[:4] == argv(worker)[:4] == (sys.executable, "-I", "-S", str(PROGRAM))
    read = parse(argv(leader)[4:], {})
    assert (read.rank, read.size, read.peers, read.peer_port, read.port) == (
        0,
        2,
        ("10.0.0.1", "10.0.0.2"),
        29500,
        8000,
    )
    assert (read.host, read.epoch, read.epoch_token, read.workers, read.names) == (
        ("0.0.0.0", 1, "1.abcdef", 1, ("reference",))
    )
    assert parse(argv(worker)[4:], {}).rank == 1
    assert gate(leader) == Gate("http", "http://127.0.0.1:8000/health")
    assert gate(worker) == Gate("tcp", "10.0.0.2:29500")
    assert worker.health == Health() and leader.health.metrics_url == "http://127.0.0.1:8000/metrics"
    assert [(p.name, p.number, p.external) for p in leader.ports] == [("peers", 29500, False), ("api", 8000, True)]
    assert [p.name for p in worker.ports] == ["peers"]


def test_alone_opens_no_port_to_peers() -> None:
    assert [p.name for p in plan(0, size=1).ports] == ["api"]


def test_the_peer_port_moves_with_the_epoch_and_avoids_others() -> None:
    numbers = [plan(1, epoch=n, port=29503).ports[0].number for n in range(1, 10)]
    assert len(set(numbers)) == 9 and 29503 not in numbers
    assert plan(1, master_port=31000).ports[0].number == 31000


def test_ipv6_and_where_the_api_binds() -> None:
    assert gate(plan(1, ip="fd00::")) == Gate("tcp", "[fd00::2]:29500")
    assert gate(plan(0, bind="::")).target == "http://[::1]:8000/health"
    assert gate(plan(0, bind="127.0.0.3", port=9000)).target == "http://127.0.0.3:9000/health"
    said = plan(0, engine_args=("--host", "10.0.0.1"))
    assert gate(said).target == "http://10.0.0.1:8000/health"
    assert parse(argv(said)[4:], {}).host == "10.0.0.1"


def test_names_parallel_sizes_and_what_a_user_says() -> None:
    args = ("--token-seconds", "0.5", "--shutdown-timeout=3")
    read = parse(argv(plan(0, model="/m", served_model_name=("a", "b"), tp=2, pp=2, engine_args=args))[4:], {})
    assert (read.names, read.workers, read.token_seconds, read.shutdown_timeout) == (("a", "b"), 2, 0.5, 3)
    assert parse(argv(plan(0, model="/m"))[4:], {}).names == ("/m",)
    assert parse(argv(plan(0, model="-m"))[4:], {}).names == ("-m",)
    assert parse(argv(plan(0, served_model_name=("-a", "b")))[4:], {}).names == ("-a", "b")
    assert parse(argv(plan(0, grace=60.0))[4:], {}).shutdown_timeout == 53
    checked = ENGINE.check(Settings(tp=3), identity(2), NodeFacts())
    assert checked.why == (
        "1 worker process in each rank for tp x pp x dp = 3 over 2 ranks, which is no even share; "
        "the reference engine uses no GPU",
    )


@pytest.mark.parametrize("name", [name for name in OWNED if name in HELP])
def test_what_the_launcher_owns_is_refused(name: str) -> None:
    for args in ((f"--{name}", "1"), (f"--{name}=1",)):
        with pytest.raises(UsageError, match=f"--{name}"):
            ENGINE.check(Settings(engine_args=args), identity(1), NodeFacts())


def test_what_the_engine_cannot_read_is_refused_before_it_starts() -> None:
    with pytest.raises(UsageError, match="did you mean --hang-after"):
        ENGINE.check(Settings(engine_args=("--hang-aftr", "1")), identity(1), NodeFacts())


def test_fingerprint() -> None:
    def facts(**said: object) -> dict[str, str]:
        return dict(ENGINE.fingerprint(Settings().replace(**said), NodeFacts()))

    assert facts() == facts(engine_args=("--host", "10.0.0.7"))
    assert facts()["engine"] == "reference"
    for said in ({"tp": 2}, {"model": "x"}, {"engine_args": ("--token-seconds", "1")}):
        assert facts() != facts(**said)
