"""The network policy where the CNI enforces one: who reaches which port of the launcher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.settings import AGENT_PORT, GROUP_PORT
from tests.cluster.kubectl import Kubectl, until
from tests.cluster.options import Options
from tests.cluster.space import INSTANCE, Space

pytestmark = pytest.mark.cluster

NAMESPACE_LABEL = "/spec/ingress/2/from/1/namespaceSelector/matchLabels/kubernetes.io~1metadata.name"


@pytest.fixture
def monitoring(reached: Kubectl, options: Options, space: Space, tmp_path: Path) -> Iterator[Space]:
    with Space(f"{space.name[:50]}-monitoring", options, tmp_path / "monitoring") as made:
        yield made


def enforced(space: Space) -> bool:
    """Whether a policy that lets nobody in does so: within 20 s a port that was open is closed."""
    space.run("canary", "prometheus", "serve", "--port", "9090", port=9090)
    target = f"canary.{space.name}:9090"
    assert space.reaches(space.client(), target)[target]
    deny = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "canary", "namespace": space.name},
        "spec": {"podSelector": {"matchLabels": {"run": "canary"}}, "policyTypes": ["Ingress"]},
    }
    space.kubectl.apply([deny])
    try:
        until("the canary can't be reached", lambda: not space.reaches(space.client(), target)[target], 20.0)
    except AssertionError:
        return False
    finally:
        space.kubectl.delete([deny])
    return True


def test_only_readers_reach_the_agent(space: Space, monitoring: Space) -> None:
    """API: everybody. Agent: the service's own pods, of any role, and monitoring. Group port: the group."""
    if not enforced(space):
        pytest.skip("this cluster's network enforces no NetworkPolicy: a port that a policy closes stays open")
    patch = {
        "target": {"kind": "NetworkPolicy"},
        "patch": f'[{{"op": "replace", "path": "{NAMESPACE_LABEL}", "value": "{monitoring.name}"}}]',
    }
    with space.group("policy", patches=[patch]) as group:
        group.serving()
        group.check()
        (leader,) = [p["status"]["podIP"] for p in group.found() if p["metadata"]["name"] == group.leader]
        api, agent, own = (f"{leader}:{port}" for port in (group.pods.port("api"), AGENT_PORT, GROUP_PORT))
        role = {"app.kubernetes.io/name": "inference-engine", INSTANCE: group.name, "inference-group": "router"}
        space.run("router", "wait", labels=role)
        scraper = monitoring.client()
        ports = (api, agent, own)
        assert space.reaches(space.client(), *ports) == {api: True, agent: False, own: False}
        assert monitoring.reaches(scraper, *ports) == {api: True, agent: True, own: False}
        assert space.reaches("router", *ports) == {api: True, agent: True, own: False}
        assert group.serves(), "the kubelet's probes come from the node"
