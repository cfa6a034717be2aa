"""Real Ray alone: two pods that run.sh joins, with the options of the script that manifests use today."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.pods import ROOT, Cluster, Pod, until
from tests.real.install import NotInstallable, engine

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

RUN = Path(ROOT) / "run.sh"
SMALL = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
COUNT = (
    "import ray; ray.init(address='auto', log_to_driver=False); print('alive', sum(n['Alive'] for n in ray.nodes()))"
)


def _env(pod: Pod) -> dict[str, str]:
    try:
        ray = engine("ray")
    except NotInstallable as reason:
        pytest.skip(f"Ray cannot be installed here: {reason}")
    return {**ray.env, "PATH": f"{ray.python.parent}:{pod.environment['PATH']}"}


def test_leader_and_worker_make_a_cluster_in_either_order(cluster: Cluster) -> None:
    """The worker is there before the leader's name; `leader && COMMAND` runs COMMAND on a whole cluster."""
    leader, worker = cluster.pod("ray-0", resolvable=False), cluster.pod("ray-1")
    env = _env(leader)
    joining = worker.start([RUN, "worker", f"--ray_address={leader.fqdn}", "--ray_port=6380", *SMALL], env)
    until(lambda: "does not resolve yet" in joining.output(), 60, "the worker to wait for the name")
    command = (
        f"{RUN} leader --port=6380 --ray_cluster_size=2 --ray_init_timeout=240 --include-dashboard=false "
        f'{" ".join(SMALL)} && {engine("ray").python} -c "{COUNT}"'
    )
    began = time.monotonic()
    leading = leader.start(["/bin/bash", "-c", command], env)
    cluster.dns.set(leader.fqdn, leader.ip)
    try:
        until(lambda: "alive" in leading.output() or leading.returncode is not None, 400, "the command to run")
        print(f"\ntwo pods to a command on the whole cluster: {time.monotonic() - began:.1f} s")
        assert "alive 2" in leading.output(), leading.output() + joining.output()
        joining.signal(15)
        assert joining.wait(90) == 143, joining.output()
    finally:
        leading.kill_all()
        joining.kill_all()


def test_a_cluster_that_stays_too_small_is_an_error_in_words(cluster: Cluster) -> None:
    leader = cluster.pod("ray-0")
    arguments: list[str | Path] = [
        RUN,
        "leader",
        "--ray_cluster_size=2",
        "--ray_init_timeout=40",
        "--include-dashboard=false",
        *SMALL,
    ]
    leading = leader.start(arguments, _env(leader))
    try:
        assert leading.wait(200) == 1, leading.output()
        assert "1 of 2 nodes" in leading.output()
        assert "--ray_init_timeout" in leading.output()
    finally:
        leading.kill_all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["leader"], "--ray_cluster_size"),
        (["worker"], "--ray_address"),
        (["leader", "--ray_cluster_size=two"], "--ray_cluster_size=two"),
        (["worker", "--ray_address=h", "--ray_port=0"], "--ray_port=0"),
        (["worker", "--ray_address"], "--ray_address needs a value"),
    ],
)
def test_bad_options_are_said_by_name(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    from launcher.compat.ray_script import main

    assert main(arguments) == 64
    assert words in capsys.readouterr().err
