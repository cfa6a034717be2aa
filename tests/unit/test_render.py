"""`launcher render`: an InferenceService as YAML, equal to what the layers of k8s/ give, or an error with its path."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from launcher.cli import main
from launcher.errors import ConfigError, LauncherError, UsageError
from launcher.render import command, known, layers, objects, service, text
from launcher.render.model import RenderOptions
from launcher.render.objects import GROUP
from tests.manifests import K8S, Object, build, groups, of_kind, read
from tests.unit.test_k8s_build import NEWEST, OLDEST, check, contents
from tests.unit.test_k8s_groups import check_names

SAMPLE = """
apiVersion: system.hero.ai/v1alpha1
kind: InferenceService
metadata:
  name: simple-inference-service
  namespace: default
spec:
  deploymentMode: DistributeInference
  scheduler:
    queue: team-a-gpus
  replicas: 2
  servers:
    leader:
      replicas: 1
      template:
        metadata:
          annotations:
            k8s.v1.cni.cncf.io/networks: macvlan-conf1
        spec:
          containers:
          - name: inference-server
            image: engine:tag
            args: [--engine, vllm, --backend, mp, --model, /models/m, --tp, "8", --pp, "2", --, --max-model-len, "8192"]
            ports: [{containerPort: 8080, name: http, protocol: TCP}]
            env:
            - {name: NCCL_IB_GID_INDEX, value: "5"}
            - {name: NCCL_SOCKET_IFNAME, value: "eth0"}
            - {name: NCCL_IB_TC, value: "128"}
            resources:
              requests: {cpu: "16", memory: 64Gi, nvidia.com/gpu: 8}
              limits: {memory: 128Gi, nvidia.com/gpu: 8}
    worker:
      replicas: 1
      template: {}
"""


#: what a cluster's user gives
GIVEN = RenderOptions(launcher_image="registry/launcher:1", query="sum(mine)")


@pytest.fixture
def sample() -> Any:
    return yaml.safe_load(SAMPLE)


def rendered(resource: Any, options: RenderOptions | None = None) -> list[Object]:
    (one,) = service.read(yaml.safe_dump(resource), "is.yaml")
    files = objects.render(one, options or RenderOptions())
    return [d for documents in files.values() for o in documents for d in read(text.write(o))]


def container(resource: Any, role: str = "leader") -> Any:
    return resource["spec"]["servers"][role]["template"]["spec"]["containers"][0]


def split(resource: Any) -> Any:
    """The worker's template written out, as the leader's."""
    servers = resource["spec"]["servers"]
    servers["worker"]["template"] = copy.deepcopy(servers["leader"]["template"])
    return container(resource, "worker")


# ------------------------------------------------------------------------------------------------ what comes out

#: what somebody would write over k8s/ for the sample
BY_HAND = """
resources: [{base}]
components: [{copy}]
namePrefix: simple-inference-service-
labels:
- includeSelectors: true
  pairs: {{app.kubernetes.io/instance: simple-inference-service}}
patches:
- target: {{kind: Service, name: engine-api}}
  patch: |-
    - {{op: replace, path: /spec/ports/0/port, value: 8080}}
- target: {{kind: StatefulSet}}
  patch: |-
    - {{op: replace, path: /spec/template/spec/containers/0/ports/0/containerPort, value: 8080}}
- target: {{kind: StatefulSet}}
  patch: |-
    apiVersion: apps/v1
    kind: StatefulSet
    metadata: {{name: any}}
    spec:
      template:
        metadata:
          annotations: {{k8s.v1.cni.cncf.io/networks: macvlan-conf1}}
        spec:
          containers:
          - name: engine
            image: engine:tag
            args: [--engine, vllm, --backend, mp, --model, /models/m, --tp, "8", --pp, "2", --, --max-model-len, "8192"]
            env:
            - {{name: LAUNCHER_PORT, value: "8080"}}
            - {{name: NCCL_IB_GID_INDEX, value: "5"}}
            - {{name: NCCL_SOCKET_IFNAME, value: "eth0"}}
            - {{name: NCCL_IB_TC, value: "128"}}
            resources:
              requests: {{cpu: "16", memory: 64Gi, nvidia.com/gpu: 8}}
              limits: {{memory: 128Gi, nvidia.com/gpu: 8}}
"""
QUERY = 'sum(gateway_requests_in_flight{model="simple-inference-service"})'


def normal(value: Any) -> Any:
    """Without the order of list entries that have a name, which layers may lay in different order."""
    if isinstance(value, dict):
        # TCP is what Kubernetes takes where nothing is said
        return {k: normal(v) for k, v in value.items() if (k, v) != ("protocol", "TCP")}
    if isinstance(value, list):
        entries = [normal(v) for v in value]
        return sorted(entries, key=lambda e: str(e["name"])) if all("name" in e for e in entries if e) else entries
    return value


@pytest.mark.parametrize("gang", ["none", "volcano"])
def test_output_is_what_the_layers_of_k8s_give(sample: Any, gang: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    paths = {"base": K8S / "base", "copy": K8S / "components/launcher-copy"}
    relative = {k: os.path.relpath(v, tmp_path / "model") for k, v in paths.items()}
    (tmp_path / "model/kustomization.yaml").write_text(BY_HAND.format(**relative))
    out = tmp_path / "out"
    parts = ["keda", *(["gang/volcano"] if gang == "volcano" else []), "queue"]
    subprocess.run([str(K8S / "groups.sh"), str(tmp_path / "model"), "2", str(out), "100", *parts], check=True)
    with (out / "kustomization.yaml").open("a") as top:
        top.write("namespace: default\n")
    for scaled in ["group-0", "group-1"]:
        path = out / scaled / "kustomization.yaml"
        change = {"op": "replace", "path": "/spec/triggers/0/metadata/query", "value": QUERY}
        patch = {"target": {"kind": "ScaledObject"}, "patch": yaml.safe_dump([change])}
        path.write_text(yaml.safe_dump({**(k := yaml.safe_load(path.read_text())), "patches": [*k["patches"], patch]}))

    def by_name(found: list[Object]) -> dict[tuple[str, str], Any]:
        return {(o["kind"], o["metadata"]["name"]): normal(o) for o in found}

    assert by_name(rendered(sample, RenderOptions(gang=gang))) == by_name(build(out))


def test_output_is_valid_and_names_agree(sample: Any) -> None:
    found = rendered(sample, RenderOptions(gang="kueue"))
    check_names(found)
    for o in found:
        check(o, OLDEST)
        check(o, NEWEST)


def test_every_rank_of_every_group_is_planned(sample: Any) -> None:
    sample["spec"]["servers"]["worker"]["replicas"] = 3
    container(sample)["args"][container(sample)["args"].index("--pp") + 1] = "4"
    every = list(groups(rendered(sample)))
    assert [p.name for p in every] == ["simple-inference-service-engine-0", "simple-inference-service-engine-1"]
    for pods in every:
        assert pods.size == 4
        page = pods.plan(3)
        assert (page["identity"]["rank"], page["identity"]["size"]) == (3, 4)
        assert {p["number"] for p in page["ports"] if p["name"] == "api"} == {8080}


def test_output_is_stable_and_commented(sample: Any) -> None:
    """The same resource with its fields in another order gives the same text."""

    def backwards(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: backwards(v) for k, v in reversed(value.items())}
        return [backwards(v) for v in value] if isinstance(value, list) else value

    def pages(resource: Any) -> list[str]:
        (one,) = service.read(yaml.safe_dump(resource, sort_keys=False), "is.yaml")
        return [text.write(o) for documents in objects.render(one, RenderOptions()).values() for o in documents]

    first, again = pages(sample), pages(backwards(sample))
    assert first == again
    together = "\n".join(first)
    for said in (
        "# All at once: a leader that waits",
        "# The same command in every pod",
        "# Created as 0, KEDA's from then on",
        "# --- from the InferenceService",
    ):
        assert said in together


def test_groups_wake_one_after_another(sample: Any) -> None:
    sample["spec"]["replicas"] = 3
    options = RenderOptions(load=64, prometheus="http://prometheus:9090", query="sum(mine)")
    triggers = [s["spec"]["triggers"][0]["metadata"] for s in of_kind(rendered(sample, options), "ScaledObject")]
    assert [t["activationThreshold"] for t in triggers] == ["0", "64", "128"]
    assert {(t["serverAddress"], t["query"]) for t in triggers} == {("http://prometheus:9090", "sum(mine)")}


def test_monitoring_may_live_in_another_namespace(sample: Any) -> None:
    for given, found in ((None, "monitoring"), ("observability", "observability")):
        for policy in of_kind(rendered(sample, replace(GIVEN, monitoring_namespace=given)), "NetworkPolicy"):
            _, monitoring = policy["spec"]["ingress"][2]["from"]
            assert monitoring["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": found}
    with pytest.raises(ConfigError, match="--monitoring-namespace"):
        rendered(sample, replace(GIVEN, monitoring_namespace="Not A Name"))


def test_number_is_left_to_keda_from_the_second_time_on(sample: Any) -> None:
    first, later = (rendered(sample, replace(GIVEN, replicas=r)) for r in ("zero", "keep"))
    assert [s["spec"].pop("replicas") for s in of_kind(first, "StatefulSet")] == [0, 0]
    assert first == later
    with pytest.raises(UsageError, match="--replicas keep with --no-keda"):
        rendered(sample, RenderOptions(keda=False, replicas="keep"))


def test_what_a_cluster_must_have_of_its_own_is_warned_of(sample: Any) -> None:
    def warnings(options: RenderOptions) -> list[str]:
        (one,) = service.read(yaml.safe_dump(sample), "is.yaml")
        objects.render(one, options)
        return [w.split()[0] for w in one.warnings]

    assert warnings(RenderOptions()) == ["--query", "--launcher-image"]
    assert warnings(GIVEN) == []
    assert warnings(RenderOptions(keda=False, launcher_image=None)) == []


def test_comments_stand_over_what_they_are_about(sample: Any) -> None:
    (one,) = service.read(yaml.safe_dump(sample), "is.yaml")
    (pods,) = [d for d in objects.render(one, GIVEN)["group-0.yaml"] if d.data["kind"] == "StatefulSet"]
    lines = [line.strip() for line in text.write(pods).splitlines()]
    assert lines[lines.index("# --- from the InferenceService") + 1] == "- name: NCCL_IB_GID_INDEX"
    probes = [line for line in lines if line in ("startupProbe:", "livenessProbe:", "readinessProbe:")]
    assert probes == ["startupProbe:", "livenessProbe:", "readinessProbe:"]
    above = lines.index("startupProbe:") - 2
    assert lines[above].startswith("# This and the liveness probe ask only")


def test_without_keda_the_groups_just_run(sample: Any) -> None:
    found = rendered(sample, RenderOptions(keda=False, launcher_image=None))
    assert not of_kind(found, "ScaledObject")
    assert [s["spec"]["replicas"] for s in of_kind(found, "StatefulSet")] == [2, 2]
    assert not any("initContainers" in p.spec for p in groups(found))


def test_one_pod_is_a_group_too(sample: Any) -> None:
    del sample["spec"]["servers"]["worker"]
    container(sample)["args"] = ["--model", "/models/m", "--tp", "8"]
    (pods, _) = groups(rendered(sample))
    assert pods.size == 1
    assert pods.plan(0)["identity"]["size"] == 1


# --------------------------------------------------------------------------------------------- leader and worker


def test_variables_of_one_role_are_kept_for_it(sample: Any) -> None:
    worker = split(sample)
    worker["env"] = [{"name": "NCCL_IB_TC", "value": "160"}, worker["env"][0], {"name": "ONLY_WORKER", "value": "1"}]
    pods = next(iter(groups(rendered(sample))))
    env = {k: v for k, v in pods.env.items() if "NCCL" in k or "ONLY" in k}
    assert env == {
        "NCCL_IB_GID_INDEX": "5",
        "LAUNCHER_LEADER_ENV_NCCL_SOCKET_IFNAME": "eth0",
        "LAUNCHER_LEADER_ENV_NCCL_IB_TC": "128",
        "LAUNCHER_WORKER_ENV_NCCL_IB_TC": "160",
        "LAUNCHER_WORKER_ENV_ONLY_WORKER": "1",
    }
    _, _, warnings = pods.settings(1)
    assert not warnings


def test_worker_without_variables_has_the_leaders(sample: Any) -> None:
    """As it has the leader's image and args where it says nothing of them."""
    container(sample)["env"].append({"name": "LAUNCHER_HANG_TIMEOUT", "value": "900"})
    (alone, _) = groups(rendered(sample))
    del split(sample)["env"]
    (both, _) = groups(rendered(sample))
    assert both.template == alone.template


def test_resources_fit_both(sample: Any) -> None:
    worker = split(sample)
    worker["resources"] = {"requests": {"cpu": "500m", "memory": "70Gi"}, "limits": {"memory": "120Gi"}}
    container(sample)["resources"]["requests"].pop("nvidia.com/gpu")
    pods = next(iter(groups(rendered(sample))))
    assert pods.engine["resources"] == {
        "requests": {"cpu": "16", "memory": "70Gi"},
        "limits": {"memory": "128Gi", "nvidia.com/gpu": 8},
    }


def test_said_on_one_side_only_holds_for_both_and_is_noted(sample: Any) -> None:
    worker = split(sample)
    worker["imagePullPolicy"] = "Always"
    del worker["args"]
    (one,) = service.read(yaml.safe_dump(sample), "is.yaml")
    files = objects.render(one, RenderOptions())
    assert any("imagePullPolicy holds for all pods" in note for note in one.notes)
    assert "imagePullPolicy: Always" in text.write(files["group-0.yaml"][-1])


def test_the_launchers_own_command_may_be_written_out(sample: Any) -> None:
    (plain, _) = groups(rendered(sample))
    container(sample)["command"] = ["/opt/launcher/launcher", "run"]
    (written, _) = groups(rendered(sample))
    assert written.template == plain.template


def test_port_that_one_side_describes_shorter_is_the_same_port(sample: Any) -> None:
    split(sample)["ports"] = [{"containerPort": 8080}]
    (pods, _) = groups(rendered(sample))
    assert pods.port("api") == 8080


def change(place: str, value: Any) -> Callable[[Any], None]:
    """Sets a field of the sample by its path; DELETE takes it out."""

    def apply(resource: Any) -> None:
        *way, last = (int(part) if part.isdigit() else part for part in place.split("/"))
        for part in way:
            resource = resource[part]
        if value is DELETE:
            del resource[last]
        else:
            resource[last] = value

    return apply


DELETE = object()
POD = "spec/servers/leader/template"
LEADER = f"{POD}/spec/containers/0"
AT = "is.yaml.spec.servers.leader.template.spec.containers[0]"
BASE_ARGS = ["--engine", "vllm", "--model", "/m", "--tp", "8", "--pp", "2"]
WRONG: list[tuple[Callable[[Any], None], str]] = [
    (change("apiVersion", "v1"), "is.yaml.apiVersion: v1 is not system.hero.ai/v1alpha1"),
    (change("kind", DELETE), "is.yaml.kind: is missing"),
    (change("metadata/name", "Upper"), "is.yaml.metadata.name: Upper cannot name"),
    (change("metadata/name", "a" * 43), "is.yaml.metadata.name: aaa"),
    (change("metadata/name", 7), "is.yaml.metadata.name: 7 is no text"),
    (change("spec/deploymentMode", "Simple"), "is.yaml.spec.deploymentMode: Simple is not"),
    (change("spec/replica", 3), "is.yaml.spec.replica: there is no such field"),
    (change("spec/replicas", 0), "is.yaml.spec.replicas: 0 is no whole number from 1"),
    (change("spec/replicas", "2"), "is.yaml.spec.replicas: '2' is no whole number"),
    (change("spec/replicas", True), "is.yaml.spec.replicas: True is no whole number"),
    (change("spec/scheduler", "team-a"), "is.yaml.spec.scheduler: 'team-a' is no mapping"),
    (change("spec/scheduler/pool", "x"), "is.yaml.spec.scheduler.pool: there is no such field"),
    (change("spec/servers/leader", DELETE), "is.yaml.spec.servers.leader: is missing"),
    (change("spec/servers/leader/replicas", 2), "is.yaml.spec.servers.leader.replicas: 2 leaders"),
    (change("spec/servers/worker/replicas", -1), "is.yaml.spec.servers.worker.replicas: -1 is no whole number from 0"),
    (change("spec/servers/leader/template/spec/containers", []), "spec.containers: 0 containers"),
    (change("spec/servers/leader/template/spec/hostname", "x"), "spec.hostname: pods are named by"),
    (change(f"{LEADER}/livenessProbe", {}), f"{AT}.livenessProbe: the launcher answers the probes"),
    (change(f"{LEADER}/comand", []), f"{AT}.comand: there is no such field"),
    (change(f"{LEADER}/image", DELETE), f"{AT}.image: is missing"),
    (change(f"{LEADER}/command", ["/bin/sh", "-c", "vllm serve"]), f"{AT}.command: /bin/sh -c vllm serve takes the"),
    (change(f"{LEADER}/env/0/value", 5), f"{AT}.env[0].value: is a number, not text"),
    (change(f"{LEADER}/env/1/name", "NCCL_IB_TC"), f"{AT}.env[2]: NCCL_IB_TC is set twice"),
    (change(f"{LEADER}/args", [*BASE_ARGS[:-2], "--pp", "3"]), f"{AT}.args: --tp 8 x --pp 3 = 24 ranks over 2 pods"),
    (change(f"{LEADER}/args", [*BASE_ARGS[:-2], "--pp", "1"]), ""),
    (
        change(f"{LEADER}/args", [*BASE_ARGS, "--size", "4"]),
        f"{AT}.args: --size 4 contradicts 1 leader + 1 workers = 2",
    ),
    (change(f"{LEADER}/args", [*BASE_ARGS, "--rank", "0"]), f"{AT}.args: --rank 0 would be said to every pod"),
    (change(f"{LEADER}/args", [*BASE_ARGS, "--port", "9000"]), f"{AT}.args: --port 9000 is none of the container's"),
    (change(f"{LEADER}/args", [*BASE_ARGS, "--tpp", "8"]), f"{AT}.args: No such option"),
    (change(f"{LEADER}/args", [*BASE_ARGS, "--", "--nnodes", "2"]), f"{AT}.args: '-- --nnodes 2': the number of nodes"),
    (change(f"{LEADER}/args", ["--engine", "vllm", "--tp", "16"]), f"{AT}.args: --model is not given"),
    (change(f"{LEADER}/args", "--engine vllm"), f"{AT}.args: '--engine vllm' is no list"),
    (change("metadata/name", "405b"), "is.yaml.metadata.name: 405b cannot name"),
    (change("metadata/namespace", "Bad_NS"), "is.yaml.metadata.namespace: 'Bad_NS' is no namespace"),
    (change("metadata/labels", {"a b": "x"}), "is.yaml.metadata.labels.a b: 'a b' is no name of a label"),
    (change("metadata/labels", {"a": "x y"}), "is.yaml.metadata.labels.a: 'x y' is no label"),
    (
        change(f"{POD}/metadata/annotations", {"a b": "x"}),
        "metadata.annotations.a b: 'a b' is no name of an annotation",
    ),
    (change("spec/scheduler/queue", "Team A!"), "is.yaml.spec.scheduler.queue: 'Team A!' is no queue's name"),
    (change(f"{LEADER}/env/0/name", "A B"), f"{AT}.env[0].name: 'A B' is no variable's name"),
    (change(f"{LEADER}/env/0/valueFrom", {"fieldRef": {}}), f"{AT}.env[0]: NCCL_IB_GID_INDEX has both value and"),
    (change(f"{LEADER}/env/0", {"name": "A", "valueFrom": {}}), f"{AT}.env[0].valueFrom: has no source"),
    (
        change(f"{LEADER}/env/0", {"name": "A", "valueFrom": {"secret": {}}}),
        f"{AT}.env[0].valueFrom.secret: there is no",
    ),
    (change(f"{LEADER}/env/0", {"name": "POD_NAME", "value": "x"}), f"{AT}.env[0]: POD_NAME is how each pod knows"),
    (
        change(f"{LEADER}/env/0", {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}),
        "POD_IP",
    ),
    (change(f"{LEADER}/ports/0/protocol", "UDP"), f"{AT}.ports: 8080 is the API's port, and UDP is not HTTP's"),
    (change(f"{LEADER}/ports/0/name", "a-name-of-sixteen"), f"{AT}.ports[0].name: 'a-name-of-sixteen' is no port's"),
    (change(f"{LEADER}/ports/0/containerPort", "8080"), f"{AT}.ports[0].containerPort: '8080' is no whole number"),
    (change(f"{LEADER}/ports/0/containerPort", 80800), f"{AT}.ports[0].containerPort: 80800 is no port"),
    (change(f"{LEADER}/securityContext", {"runAsUsr": 1}), f"{AT}.securityContext.runAsUsr: there is no such field"),
    (change(f"{LEADER}/securityContext", {"runAsUser": 0}), f"{AT}.securityContext: runAsUser: 0 is root"),
    (change(f"{POD}/spec/securityContext", {"runAsUser": 0}), f"{AT}.securityContext: runAsUser: 0 is root"),
    (change(f"{LEADER}/securityContext", {"privileged": True}), f"{AT}.securityContext: privileged: true and allow"),
    (change(f"{LEADER}/securityContext", {"capabilities": {"add": ["SYS_ADMIN"]}}), "CAP_SYS_ADMIN and allowPrivilege"),
    (change(f"{LEADER}/securityContext", {"privileged": "yes"}), "privileged: 'yes' is neither true nor false"),
    (change(f"{POD}/spec/tolerations", [{"kee": "x"}]), "spec.tolerations[0].kee: there is no such field"),
    (change(f"{POD}/spec/nodeSelector", "gpu"), "spec.nodeSelector: 'gpu' is no mapping"),
    (change(f"{POD}/spec/affinity", {"nodeAfinity": {}}), "spec.affinity.nodeAfinity: there is no such field"),
    (change(f"{POD}/spec/volumes", [{"name": "a"}]), "spec.volumes[0]: has no source"),
    (change(f"{POD}/spec/volumes", [{"name": "a", "emptyDirr": {}}]), "spec.volumes[0].emptyDirr: there is no such"),
    (change(f"{POD}/spec/volumes", [{"name": "a", "hostPath": {"pth": "/"}}]), "volumes[0].hostPath.pth: there is no"),
    (
        change(f"{POD}/spec/volumes", [{"name": "a", "emptyDir": {}, "hostPath": {"path": "/"}}]),
        "spec.volumes[0]: has 2 sources (emptyDir, hostPath)",
    ),
    (change(f"{POD}/spec/volumes", [{"name": "launcher", "emptyDir": {}}]), "launcher is the launcher's own volume"),
    (change(f"{LEADER}/volumeMounts", [{"name": "tmp", "mountPath": "/opt/launcher/x"}]), "would hide the launcher"),
    (
        change(f"{LEADER}/resources", {"requests": {"nvidia.com/gpu": 4}, "limits": {"nvidia.com/gpu": 8}}),
        f"{AT}.resources.requests.nvidia.com/gpu: 4, and a limit of 8",
    ),
    (
        change(f"{LEADER}/resources", {"requests": {"nvidia.com/gpu": 8}}),
        f"{AT}.resources.requests.nvidia.com/gpu: 8, and no limit",
    ),
    (
        change(f"{LEADER}/resources/requests/memory", "200Gi"),
        f"{AT}.resources.requests.memory: 200Gi is more than the limit of 128Gi",
    ),
    (
        change(f"{LEADER}/args", [*BASE_ARGS, "--gpus-per-pod", "4"]),
        f"{AT}.args: --gpus-per-pod 4 contradicts the 8 GPUs in resources.limits",
    ),
    (change(f"{LEADER}/resources/limits", {"memory": "lots"}), ""),
    (change(f"{LEADER}/resources/limits/memory", "128 GB"), "128 GB"),
    (change(f"{LEADER}/ports", [{"containerPort": 9471}, {"containerPort": 80, "name": "http"}]), "9471"),
    (change(f"{LEADER}/ports", [{"containerPort": 1}, {"containerPort": 2}]), f"{AT}.ports: 2 ports, and which"),
    (change("spec/servers/worker/replicas", DELETE), "is.yaml.spec.servers.worker.replicas: is missing"),
    (
        change("spec/servers/worker", {"replicas": 0, "template": {"spec": {}}}),
        "is.yaml.spec.servers.worker.replicas: 0 workers, and a template",
    ),
    (change(f"{POD}/metadata/labels", {GROUP: "x"}), f"metadata.labels.{GROUP}: the pods of a group are found by"),
    (change(f"{POD}/spec/hostNetwork", True), "spec.hostNetwork: the pods of a node would share"),
    (change(f"{POD}/spec/terminationGracePeriodSeconds", "60"), "PeriodSeconds: '60' is no whole number"),
    (change(f"{POD}/spec/volumes", [{"emptyDir": {}}]), "spec.volumes[0].name: is missing"),
    (change(f"{LEADER}/volumeMounts", [{"name": "m", "mountPath": "/m"}]), "/m is of volume m, and there is none"),
    (change(f"{LEADER}/volumeMounts", [{"name": "tmp"}]), f"{AT}.volumeMounts[0].mountPath: is missing"),
    (
        change(f"{LEADER}/ports", [{"containerPort": 80, "name": "http"}, {"containerPort": 9, "name": "group"}]),
        "9 (group)",
    ),
]


@pytest.mark.parametrize(("mistake", "said"), [w for w in WRONG if w[1]], ids=[w[1][:70] for w in WRONG if w[1]])
def test_mistake_is_named_with_its_path(sample: Any, mistake: Callable[[Any], None], said: str) -> None:
    mistake(sample)
    with pytest.raises(LauncherError) as raised:
        rendered(sample)
    assert said in raised.value.message
    assert raised.value.fix


def test_fewer_ranks_than_gpus_is_a_warning(sample: Any) -> None:
    container(sample)["args"] = [*BASE_ARGS[:-2], "--pp", "1"]
    (one,) = service.read(yaml.safe_dump(sample), "is.yaml")
    objects.render(one, RenderOptions())
    assert any("stay idle" in w for w in one.warnings)


def test_quoted_number_is_to_lose_its_quotes(sample: Any) -> None:
    container(sample)["ports"][0]["containerPort"] = "8080"
    with pytest.raises(ConfigError) as raised:
        rendered(sample)
    assert raised.value.fix == "leave the quotes out"


def test_what_every_pod_has_anyway_may_be_said(sample: Any) -> None:
    """Many templates set POD_IP as the launcher's own does."""
    container(sample)["env"].append({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    assert next(iter(groups(rendered(sample)))).environment(1)["POD_IP"] == "10.0.0.2"


def test_annotations_of_the_resource_are_said_to_stay_behind(sample: Any) -> None:
    sample["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    (one,) = service.read(yaml.safe_dump(sample), "is.yaml")
    assert not one.notes
    sample["metadata"]["annotations"]["team"] = "a"
    (one,) = service.read(yaml.safe_dump(sample), "is.yaml")
    assert any("metadata.annotations are not carried over" in note for note in one.notes)


def test_what_is_known_is_what_kubernetes_knows() -> None:
    """The tables of known fields against the newest schema: no name in them that the API server does not have."""
    definitions = contents(f"kubernetes-json-schema/v{NEWEST}.0-local-strict/_definitions.json", NEWEST)["$defs"]

    def schema(node: Any) -> Any:
        return definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node

    def compare(shape: Any, node: Any, path: str) -> None:
        node = schema(node)
        if isinstance(shape, list):
            compare(shape[0], node["items"], f"{path}[]")
        elif isinstance(shape, dict):
            for name, inner in shape.items():
                assert name in node["properties"], f"{path}.{name}"
                compare(inner, node["properties"][name], f"{path}.{name}")
        else:
            kinds = {"number": "integer", "flag": "boolean", "text": "string", "texts": "array", "labels": "object"}
            types = node.get("type", [])
            assert shape == "any" or kinds[shape] in types or types == [], f"{path}: {shape}, and {types}"

    compare(dict(known.POD), definitions["io.k8s.api.core.v1.PodSpec"], "pod")
    compare(dict(known.CONTAINER), definitions["io.k8s.api.core.v1.Container"], "container")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", "other:tag"),
        ("args", ["--engine", "sglang"]),
        ("securityContext", {"runAsUser": 1}),
        ("resources", {"limits": {"nvidia.com/gpu": 4}}),
        ("env", [{"name": "LAUNCHER_TP", "value": "4"}]),
    ],
)
def test_roles_that_cannot_be_one_template_are_refused(sample: Any, field: str, value: Any) -> None:
    container(sample)["securityContext"] = {"runAsUser": 2}
    split(sample)[field] = value
    with pytest.raises(ConfigError) as raised:
        rendered(sample)
    assert "spec.servers.worker.template.spec.containers[0]" in raised.value.message
    assert field in raised.value.message


def test_secret_in_plain_text_is_warned_of_and_not_shown(sample: Any) -> None:
    container(sample)["env"] += [
        {"name": "REGISTRY_PASSWORD", "value": "hunter2"},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
    ]
    (one,) = service.read(yaml.safe_dump(sample), "is.yaml")
    objects.render(one, GIVEN)
    (warning,) = one.warnings
    assert "REGISTRY_PASSWORD" in warning
    assert "hunter2" not in warning


@pytest.mark.parametrize(
    ("name", "value", "warned"),
    [
        *((name, "hunter2", True) for name in ("REGISTRY_AUTH", "REGISTRY_PASS", "PGPASSWORD", "GITHUB_PAT")),
        ("DOCKERCONFIGJSON", "hunter2", True),
        ("HTTPS_PROXY", "http://me:hunter2@proxy:3128", True),
        ("HTTPS_PROXY", "http://me:$(PROXY_SECRET)@proxy:3128", False),
        ("HTTPS_PROXY", "http://proxy:3128", False),
        ("RAY_AUTH_MODE", "token", False),
        ("PASSES", "2", False),
        ("NCCL_TOPO_PATH", "/x", False),
    ],
)
def test_every_kind_of_secret_is_warned_of(sample: Any, name: str, value: str, warned: bool) -> None:
    container(sample)["env"].append({"name": name, "value": value})
    (one,) = service.read(yaml.safe_dump(sample), "is.yaml")
    objects.render(one, GIVEN)
    assert [name in w for w in one.warnings] == [True] * warned
    assert "hunter2" not in str(one.warnings)


@pytest.mark.parametrize("place", ["env", "args"])
def test_number_that_may_be_a_secret_is_not_shown(sample: Any, place: str) -> None:
    if place == "env":
        container(sample)["env"].append({"name": "REGISTRY_PASSWORD", "value": 12345678})
    else:
        container(sample)["args"] += ["--api-key", 12345678]
    with pytest.raises(ConfigError) as raised:
        rendered(sample)
    assert "is a number, not text" in raised.value.message
    assert "12345678" not in str(raised.value)
    assert raised.value.fix == "quote it"


@pytest.mark.parametrize(("given", "warned"), [(["--api-key", "hunter2"], 1), (["--api-key=$(KEY)"], 0)])
def test_secret_among_the_arguments_is_warned_of(sample: Any, given: list[str], warned: int) -> None:
    container(sample)["args"] += given
    (one,) = service.read(yaml.safe_dump(sample), "is.yaml")
    objects.render(one, GIVEN)
    assert len(one.warnings) == warned
    assert all("--api-key" in w and "hunter2" not in w for w in one.warnings)


def test_volumes_of_the_resource_take_the_place_of_ours(sample: Any) -> None:
    """Another folder for shared memory, and a home that is no emptyDir: nothing of both kinds is left."""
    spec = sample["spec"]["servers"]["leader"]["template"]["spec"]
    spec["volumes"] = [
        {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "100Gi"}},
        {"name": "home", "persistentVolumeClaim": {"claimName": "homes"}},
    ]
    container(sample)["volumeMounts"] = [{"name": "dshm", "mountPath": "/dev/shm"}]
    (one,) = service.read(yaml.safe_dump(sample), "is.yaml")
    documents = objects.render(one, GIVEN)["group-0.yaml"]
    (pods,) = groups([d.data for d in documents])
    (mount,) = [m for m in pods.engine["volumeMounts"] if m["mountPath"] == "/dev/shm"]
    (home,) = [v for v in pods.spec["volumes"] if v["name"] == "home"]
    assert mount["name"] == "dshm"
    assert home == {"name": "home", "persistentVolumeClaim": {"claimName": "homes"}}
    (warning,) = one.warnings
    assert "128Gi, of which /dev/shm may take 100Gi" in warning
    for d in documents:
        check(d.data, NEWEST)


def test_other_ports_of_the_launcher_reach_the_probes(sample: Any) -> None:
    at = container(sample)["args"].index("--")
    container(sample)["args"][at:at] = ["--agent-port", "9990", "--group-port", "9991"]
    found = rendered(sample)
    check_names(found)
    for pods in groups(found):
        assert pods.port(pods.engine["livenessProbe"]["httpGet"]["port"]) == 9990
        assert {p["number"] for p in pods.plan(0)["ports"] if p["external"]} == {8080, 9990}
        assert pods.port("group") == 9991


def test_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'replicas' stands twice"):
        service.read(SAMPLE.replace("  replicas: 2\n", "  replicas: 2\n  replicas: 3\n"), "is.yaml")


def test_the_example_is_rendered_without_a_warning() -> None:
    (one,) = service.read((K8S / "examples/inferenceservice.yaml").read_text(), "inferenceservice.yaml")
    files = objects.render(one, replace(GIVEN, gang="volcano"))
    found = [d.data for documents in files.values() for d in documents]
    assert not one.warnings
    check_names(found)
    for o in found:
        check(o, OLDEST)
        check(o, NEWEST)
    for pods in groups(found):
        assert pods.settings(1)[0].world == pods.size * pods.gpus
        (shm,) = [v for v in pods.spec["volumes"] if v["name"] == "shm"]
        assert shm["emptyDir"]["sizeLimit"] == "16Gi"


# ------------------------------------------------------------------------------------------------- the command


def run(*arguments: str, stdin: str = SAMPLE) -> Result:
    return CliRunner().invoke(main.cli, ["render", *arguments], input=stdin, standalone_mode=False)


def test_command_prints_everything_that_it_would_write(tmp_path: Path) -> None:
    printed = run("-f", "-")
    assert printed.exception is None
    written = run("-f", "-", "-o", str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["group-0.yaml", "group-1.yaml", "shared.yaml"]
    files = [o for p in sorted(tmp_path.iterdir()) for o in read(p.read_text())]
    assert {str(o) for o in files} == {str(o) for o in read(printed.stdout)}
    assert str(tmp_path / "shared.yaml") in written.stdout


def test_command_takes_away_groups_that_are_no_more(tmp_path: Path) -> None:
    run("-f", "-", "-o", str(tmp_path))
    (tmp_path / "group-9.yaml").write_text("# somebody else's\n")
    run("-f", "-", "-o", str(tmp_path), stdin=SAMPLE.replace("replicas: 2\n", "replicas: 1\n", 1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["group-0.yaml", "group-9.yaml", "shared.yaml"]


def test_command_writes_nothing_where_something_is_wrong(tmp_path: Path) -> None:
    result = run("-f", "-", "-o", str(tmp_path / "out"), stdin=SAMPLE + "---\n" + SAMPLE.replace("image:", "picture:"))
    assert isinstance(result.exception, ConfigError)
    assert "document 2" in result.exception.message
    assert not (tmp_path / "out").exists()


def test_folder_that_is_a_file_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = run("-f", "-", "-o", str(tmp_path / "out"))
    assert isinstance(result.exception, UsageError)
    assert f"-o {tmp_path}/out cannot be written" in result.exception.message


def test_command_without_pyyaml_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    result = run("-f", "-")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.fix == f"install it for this Python: {sys.executable} -m pip install 'PyYAML>=6.0'"


def test_the_self_contained_launcher_says_where_to_render() -> None:
    """It runs with -S, so nothing that is installed beside it would help."""
    says = "import sys; sys.path[:0] = {!r}; sys.modules['yaml'] = None; from launcher.__main__ import main; main()"
    command = [sys.executable, "-S", "-c", says.format([str(K8S.parent), *sys.path]), "render", "-f", "-"]
    done = subprocess.run(command, input=SAMPLE, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "fix: run the command on your machine" in done.stderr


# ------------------------------------------------------------------------------------------------- text and layers


def test_what_is_written_reads_back(sample: Any) -> None:
    strange = [
        "yes",
        "1",
        "1.5",
        "~",
        "null",
        "a: b",
        "- x",
        "#",
        "",
        " ",
        "0x1f",
        "1e3",
        "é",
        "a\nb",
        "*",
        "&a",
        "2001-01-01",
    ]
    strange += ["12:30:45", "=", "<<", "@x", "%x", "'", '"', "\t", "a #b", "true", "off", "-", "--engine", "a:b", "{}"]
    data = {"apiVersion": "v1", "kind": "List", "list": strange, **{word: word for word in strange}}
    assert read(text.write(text.Document(data))) == [data]


def test_comments_stay_with_what_they_are_about() -> None:
    source = "# the whole\na: 1\nc:\n  # first\n  d: 4\n"
    source += "# the list\nlist:\n# one\n- name: x\n  # inside\n  b: 2\n# two\n- 3\n"
    (document,) = text.read(source)
    assert text.write(document) == source


def test_base_is_read_as_kustomize_reads_it() -> None:
    assert layers.load(["base"])
    ours = {(d.data["kind"], d.data["metadata"]["name"]): normal(d.data) for d in layers.load(["base"])}
    theirs = {(o["kind"], o["metadata"]["name"]): normal(o) for o in build(K8S / "base")}
    assert ours == theirs


def test_page_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "is.yaml"
    path.write_text(SAMPLE)
    printed, warnings = command.run(str(path), None, GIVEN)
    assert printed.startswith(command.HEAD)
    assert "--tp 8 x --pp 2 = 16 ranks over 2 pods" in printed
    assert not warnings
