"""Do the parallel sizes fit, which port has an epoch, where does the API listen."""

from __future__ import annotations

import pytest

from launcher.engines import endpoint, ports, topology
from launcher.engines.topology import World
from launcher.errors import ConfigError
from launcher.model import Epoch, Gate, Health, NodeFacts
from launcher.settings import Settings

NAMES = endpoint.OptionNames(("r",), ("w",), ("p",))


def world(tp: int = 1, pp: int = 1) -> World:
    return World((("--tp", tp), ("--pp", pp)))


@pytest.mark.parametrize(
    ("needed", "size", "gpus", "why", "warning"),
    [
        (world(4, 2), 2, 4, "--tp 4 x --pp 2 = 8 ranks over 2 pods: 4 a pod, as many as it has GPUs", None),
        (
            world(2),
            1,
            8,
            "--tp 2 x --pp 1 = 2 ranks over 1 pod: 2 a pod",
            "each pod has 8 GPUs and uses 2: 6 stay idle",
        ),
        (
            world(2),
            2,
            None,
            "--tp 2 x --pp 1 = 2 ranks over 2 pods: 1 a pod; the GPUs of a pod are not known here, so that is not"
            " checked",
            None,
        ),
        (
            world(4),
            2,
            0,
            "--tp 4 x --pp 1 = 4 ranks over 2 pods: 2 a pod; no GPU in this pod: taken as a CPU engine, not checked"
            " further",
            None,
        ),
    ],
)
def test_a_world_that_fits(needed: World, size: int, gpus: int | None, why: str, warning: str | None) -> None:
    found = topology.check(Settings(), NodeFacts(gpus=gpus), size, needed)
    assert found.why == (why,)
    assert found.warnings == ((warning,) if warning else ())


@pytest.mark.parametrize(
    ("needed", "size", "gpus", "message", "fix"),
    [
        (
            world(3),
            2,
            None,
            "--tp 3 x --pp 1 = 3 ranks cannot be spread evenly over 2 pods",
            "make --tp x --pp x --dp a multiple of 2, or change the number of pods",
        ),
        (
            world(),
            2,
            8,
            "--tp 1 x --pp 1 = 1 ranks cannot be spread evenly over 2 pods",
            "say how the model is split over the 2 pods, for instance --tp 8 --pp 2",
        ),
        (
            world(),
            2,
            None,
            "--tp 1 x --pp 1 = 1 ranks cannot be spread evenly over 2 pods",
            "say how the model is split over the 2 pods, for instance --tp 2",
        ),
        (
            world(8, 2),
            2,
            4,
            "--tp 8 x --pp 2 = 16 ranks over 2 pods are 8 a pod, and this pod has 4 GPUs",
            "use 4 pods or more (--size), give each 8 GPUs, or make --tp x --pp x --dp at most 8",
        ),
    ],
)
def test_a_world_that_does_not_fit(needed: World, size: int, gpus: int | None, message: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        topology.check(Settings(), NodeFacts(gpus=gpus), size, needed)
    assert (caught.value.message, caught.value.fix) == (message, fix)


def test_gpus_that_were_said_go_before_those_found() -> None:
    assert topology.gpus(Settings(), NodeFacts(gpus=4)) == 4
    assert topology.gpus(Settings(gpus_per_pod=8), NodeFacts(gpus=4)) == 8
    assert topology.gpus(Settings(gpus_per_pod=0), NodeFacts(gpus=4)) == 0
    assert topology.world(Settings(tp=2, dp=3)).size == 6


def port(n: int, taken: frozenset[int] = frozenset(), **more: object) -> int:
    return ports.of_epoch(100, Epoch(n, "a"), taken=taken, slots=4, **more)  # type: ignore[arg-type]


def test_each_epoch_has_a_port_of_its_own() -> None:
    assert [port(n) for n in (1, 2, 3, 4, 5)] == [100, 101, 102, 103, 100]
    assert [port(n, stride=32) for n in (1, 2)] == [100, 132]
    assert [port(n, frozenset({100, 102})) for n in (1, 2, 3)] == [101, 103, 101]
    assert [port(n, frozenset({113}), footprint=(0, 13), stride=32) for n in (1, 2)] == [132, 164]


def test_no_port_is_left() -> None:
    with pytest.raises(ConfigError) as caught:
        port(1, frozenset({100, 101, 102, 103}))
    assert caught.value.message == "no free port for the engine from 100 on: 100, 101, 102, 103 are taken"
    with pytest.raises(ConfigError):
        ports.of_epoch(65530, Epoch(1, "a"), footprint=(0, 13))


@pytest.mark.parametrize(
    ("args", "bind", "url"),
    [
        ("", "0.0.0.0", "http://127.0.0.1:8"),
        ("", "127.0.0.3", "http://127.0.0.3:8"),
        ("", "::", "http://[::1]:8"),
        ("--host ::", "0.0.0.0", "http://[::1]:8"),
        ("--host fd00::1", "0.0.0.0", "http://[fd00::1]:8"),
        ("--host 10.0.0.1 --root-path /a", "0.0.0.0", "http://10.0.0.1:8"),
        ("--ssl-certfile c --ssl-keyfile k", "0.0.0.0", "https://127.0.0.1:8"),
        ("--uds /run/v.sock", "0.0.0.0", "http+unix://%2Frun%2Fv.sock"),
    ],
)
def test_where_the_api_listens(args: str, bind: str, url: str) -> None:
    health = endpoint.health(args.split(), bind, 8, NAMES, "m")
    assert health.url == url + "/health"
    assert health.metrics_url == url + "/metrics"
    assert health.insecure is url.startswith("https")
    assert endpoint.gate(health) == Gate("http", url + "/health")


def test_what_cannot_be_asked() -> None:
    assert endpoint.health(["--ssl-cert-reqs=2"], "0.0.0.0", 8, NAMES, "m") == Health()
    assert endpoint.gate(Health()) == Gate()
    assert "client certificate" in endpoint.notes(Settings(engine_args=("--ssl-cert-reqs", "2")))[0]
    key = endpoint.health(["--api-key", "x"], "0.0.0.0", 8, NAMES, "m")
    assert key.canary_url is None and key.url
    said = Settings(
        engine_args=("--api-key", "x"), canary_interval=10.0, origins={"canary_interval": "--canary-interval"}
    )
    assert endpoint.notes(said) == ("--canary-interval 10.0 has no effect: --api-key would refuse the canary",)
    assert endpoint.notes(Settings(engine_args=("--api-key", "x"))) == ()
