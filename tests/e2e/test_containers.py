"""The manifests' pods as real containers: any user id, a read-only root, no capabilities, the launcher as PID 1."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from launcher.reference.tokens import expected_text
from launcher.render import objects, service
from launcher.render.model import RenderOptions
from tests.e2e import images
from tests.e2e.containers import Container, Network
from tests.e2e.group import until
from tests.e2e.podman import NAME, podman, sweep, why_not
from tests.manifests import Pods, groups, overlay, size_patch

pytestmark = [
    pytest.mark.containers,
    pytest.mark.timeout(900),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
PATIENCE = 90.0


@pytest.fixture(scope="module")
def image() -> str:
    return images.launcher_image()


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


def reference(size: int, folder: Path, *components: str) -> Pods:
    """The reference engine's manifest for a group of `size`, quick to drain."""
    patch = {"target": {"kind": "StatefulSet"}, "patch": size_patch(size)}
    (pods,) = groups(overlay(["engines/reference"], components, folder, patches=[patch]))
    return pods


def serving(group: Sequence[Container]) -> None:
    words = lambda: "\n".join(f"== {c.name}\n{c.logs[-1500:]}" for c in group)  # noqa: E731
    until("all are ready", lambda: all(c.probe("readinessProbe") for c in group), PATIENCE, words)
    assert group[0].complete("hello") == expected_text("hello", 5, size=len(group))


def test_group_of_three_lives_through_what_containers_go_through(image: str, network: Network, tmp_path: Path) -> None:
    pods = reference(3, tmp_path)
    group = [Container(network, pods, rank, image, 10 + rank) for rank in range(3)]
    leader, first, second = group
    until("all are alive", lambda: all(c.probe("startupProbe") and c.probe("livenessProbe") for c in group), PATIENCE)
    serving(group)
    for c in group:
        status = podman("exec", c.name, "cat", "/proc/1/status")
        assert "Uid:\t12345\t12345" in status
        assert "CapBnd:\t0000000000000000" in status
        assert c.launcher_memory() <= 64 << 20
        assert podman("exec", c.name, "sh", "-c", "touch /x 2>/dev/null || echo no") == "no"
    assert second.ip in podman("exec", leader.name, "/opt/launcher/launcher", "status")
    assert "shm" in podman("exec", leader.name, "/opt/launcher/launcher", "doctor", check=False)
    memory = {c.pod: round(c.launcher_memory() / 2**20, 1) for c in group}
    print(f"launcher's own memory, MiB: {memory}")

    # one is told to go: it exits with 0, the others stop their engine and wait
    podman("stop", "-t", "60", second.name)
    assert second.exit_code == 0, second.logs[-3000:]
    until("the leader is not ready", lambda: not leader.probe("readinessProbe"), PATIENCE)
    assert leader.exit_code is None and first.exit_code is None
    assert leader.probe("livenessProbe")
    podman("start", second.name)
    serving(group)

    # one is killed, and starts again in the same pod
    podman("kill", "-s", "KILL", first.name)
    until("the leader has seen it", lambda: not leader.probe("readinessProbe"), PATIENCE)
    podman("start", first.name)
    serving(group)

    # the leader's pod is made anew, with another address
    leader.again(50)
    serving(group)
    # and a worker's
    second.again(60)
    serving(group)

    # all are told to go at once, as by a deletion of the set
    for c in group:
        podman("kill", "-s", "TERM", c.name)
    assert [c.wait(PATIENCE) for c in group] == [0, 0, 0]


@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_unmodified_image_starts_with_the_copied_launcher(
    version: str, image: str, network: Network, tmp_path: Path
) -> None:
    if images.python_home(version) is None:
        pytest.skip(f"no Python {version} here that could be put into an image")
    engine = images.engine_image(version)
    found = podman("run", "--rm", "--network=none", engine, "python3", "-c", "import sys; print(sys.version)")
    assert found.startswith(version)
    assert podman("run", "--rm", "--network=none", engine, "sh", "-c", "find / -xdev -name '*launcher*' | wc -l") == "0"
    pods = reference(2, tmp_path, "components/launcher-copy")
    group = [Container(network, pods, rank, engine, 10 + rank) for rank in range(2)]
    serving(group)
    said = podman("exec", group[0].name, "/opt/launcher/launcher", "status")
    assert "SERVING" in said
    assert podman("exec", group[0].name, "readlink", "/proc/1/exe") == f"/usr/local/bin/python{version}"
    podman("stop", "-t", "60", group[1].name, group[0].name)
    assert [c.exit_code for c in group] == [0, 0]


def added(image: str) -> int:
    """Bytes of /opt/launcher."""
    return int(podman("run", "--rm", "--network=none", "--entrypoint", "du", image, "-sb", "/opt/launcher").split()[0])


def test_size_of_what_is_added(image: str) -> None:
    print(f"/opt/launcher: {added(image) / 1e6:.1f} MB")
    assert added(image) < 40e6
    labels = json.loads(podman("inspect", "--format", "{{json .Config.Labels}}", image))
    assert labels["org.opencontainers.image.title"] == "launcher"
    entrypoint = json.loads(podman("inspect", "--format", "{{json .Config.Entrypoint}}", image))
    assert entrypoint == ["/opt/launcher/launcher"]


@pytest.mark.parametrize(
    ("name", "builder"), [("any", "podman"), ("vllm", "podman"), ("sglang", "podman"), ("sglang", "buildah")]
)
def test_engine_images_are_built_over_any_base(name: str, builder: str, image: str) -> None:
    """Over an image that has a Python and no engine: what the Dockerfiles add is there, and nothing else is."""
    if images.python_home("3.12") is None:
        pytest.skip("no Python 3.12 here that could be put into an image")
    if shutil.which(builder) is None:
        pytest.skip(f"no {builder} here")
    base = images.engine_image("3.12")
    built = images.build(name, BASE_IMAGE=base, LAUNCHER_IMAGE=image, BUILDER=builder)
    run = ("run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--user=4711:4711", "--passwd=false")
    assert podman(*run, built, "--version").startswith("launcher")
    assert added(built) < 40e6
    config = json.loads(podman("inspect", "--format", "{{json .Config}}", built))
    assert config["Entrypoint"] == ["/opt/launcher/launcher"]
    if name != "any":
        assert (config["User"], config["Labels"]["org.opencontainers.image.title"]) == (
            "12345:12345",
            f"launcher-{name}",
        )
    differ = podman("image", "diff", built, base).splitlines()
    ours = ("/opt", "/usr", "/usr/local", "/usr/local/bin", "/usr/local/bin/launcher", "/run", "/tmp", "/var", "/etc")
    other = [d for d in differ if not d.split(" ", 1)[1].startswith("/opt/launcher") and d.split(" ", 1)[1] not in ours]
    assert not other


def test_what_a_killed_run_left_is_swept() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    left, mine = (f"{NAME}-{pid}-left" for pid in (ended.pid, os.getpid()))
    for name in (left, mine):
        podman("volume", "create", name)
    sweep.__wrapped__()
    there = podman("volume", "ls", "--format", "{{.Name}}").split()
    podman("volume", "rm", mine)
    assert left not in there
    assert mine in there


INFERENCE_SERVICE = """
apiVersion: system.hero.ai/v1alpha1
kind: InferenceService
metadata: {name: played}
spec:
  deploymentMode: DistributeInference
  replicas: 1
  servers:
    leader:
      template:
        spec:
          containers:
          - name: inference-server
            image: IMAGE
            args: [--engine, reference]
            ports: [{containerPort: 8000, name: http}]
            resources: {limits: {memory: 256Mi}}
"""


def test_rendered_pod_is_played(image: str, network: Network) -> None:
    """`podman kube play` of the rendered pod spec, the init container's copy included."""
    (one,) = service.read(INFERENCE_SERVICE.replace("IMAGE", json.dumps(image)), "is.yaml")
    documents = objects.render(one, RenderOptions(launcher_image=image, keda=False))["group-0.yaml"]
    (pods,) = groups([d.data for d in documents])
    spec = json.loads(json.dumps(pods.spec))
    environ = {k: v for k, v in pods.environment(0).items() if k not in ("PATH", "POD_IP")}
    for container in [*spec["containers"], *spec["initContainers"]]:
        container["imagePullPolicy"] = "Never"
    # podman does not know the fields of the downward API
    spec["containers"][0]["env"] = [{"name": k, "value": v} for k, v in environ.items()]
    # and it would publish every port on this machine, where somebody may have it
    del spec["containers"][0]["ports"]
    # nor a folder in memory; and it would give an emptyDir to the container's user, which no kubelet does
    for volume in spec["volumes"]:
        if "emptyDir" in volume:
            del volume["emptyDir"]
            place = network.empty_dir(spec["securityContext"]["fsGroup"])
            volume["hostPath"] = {"path": place, "type": "Directory"}
    name = f"{network.name}-played"
    # what holds for the pod, podman 4.3 takes for its init containers too: they would run again and again
    spec["restartPolicy"] = "Never"
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": pods.labels}, "spec": spec}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pod.yaml"
        path.write_text(yaml.safe_dump(pod))
        try:
            podman("kube", "play", "--network", network.name, str(path))
            running = f"{name}-engine"

            def serves() -> bool:
                return "SERVING" in podman("exec", running, "/opt/launcher/launcher", "status", check=False)

            until("it serves", serves, PATIENCE, lambda: podman("logs", running, check=False))
            assert podman("exec", running, "id", "-u") == "12345"
            infra = podman("pod", "inspect", "--format", "{{.InfraContainerID}}", name)
            networks = json.loads(podman("inspect", "--format", "{{json .NetworkSettings.Networks}}", infra))
            connection = http.client.HTTPConnection(networks[network.name]["IPAddress"], pods.port("agent"), timeout=10)
            connection.request("GET", pods.engine["readinessProbe"]["httpGet"]["path"])
            assert connection.getresponse().status == 200, "the kubelet's probe comes from outside"
        finally:
            podman("kube", "down", str(path), check=False)
            podman("pod", "rm", "-f", "-t", "0", name, check=False)
