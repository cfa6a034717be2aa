"""The manifests against themselves and against the launcher: what one object says of another must be true."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.planning import steps
from launcher.settings import AGENT_PORT, GROUP_PORT
from tests.manifests import K8S, Object, Pods, build, folders, groups, matches, named, of_kind, overlay, size_patch

#: base is not applied by itself: it has no engine
GROUPS = [f for f in folders("Kustomization") if f.name != "base"]


#: other sizes of a group than the folders have
SIZES = [1, 4]


@pytest.fixture(params=[*GROUPS, *SIZES], ids=lambda p: named(p) if isinstance(p, Path) else f"size-{p}")
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> list[Object]:
    if isinstance(request.param, Path):
        return build(request.param)
    sized = {"target": {"kind": "StatefulSet"}, "patch": size_patch(request.param)}
    return overlay(["engines/reference"], ["components/launcher-copy"], tmp_path / "sized", patches=[sized])


@pytest.fixture
def pods(objects: list[Object]) -> Pods:
    found = list(groups(objects))
    assert len(found) == 1
    return found[0]


# ------------------------------------------------------------------------------------------- one object of another


def check_names(objects: list[Object]) -> None:
    """Selectors, references and ports of a whole application."""
    by_name = {(o["kind"], o["metadata"]["name"]) for o in objects}
    assert len(by_name) == len(objects)
    every = list(groups(objects))
    for pods in every:
        assert ("ServiceAccount", pods.spec["serviceAccountName"]) in by_name
        assert pods.labels["inference-group"] == pods.name
        if pods.owner["kind"] == "StatefulSet":
            spec = pods.owner["spec"]
            assert matches(spec["selector"]["matchLabels"], pods.labels)
            assert spec["serviceName"] == pods.env["LAUNCHER_SERVICE"]
            assert ("Service", spec["serviceName"]) in by_name
    for service in of_kind(objects, "Service"):
        check_service(service, every)
    for policy in of_kind(objects, "NetworkPolicy"):
        mine = [p for p in every if matches(policy["spec"]["podSelector"]["matchLabels"], p.labels)]
        assert len(mine) == 1, "a policy is for one group"
        (inside,) = policy["spec"]["ingress"][0]["from"]
        assert [p for p in every if matches(inside["podSelector"]["matchLabels"], p.labels)] == mine
        assert "ports" not in policy["spec"]["ingress"][0], "every port is open inside a group"
        check_readers(policy, mine[0])
    for budget in of_kind(objects, "PodDisruptionBudget"):
        assert all(matches(budget["spec"]["selector"]["matchLabels"], p.labels) for p in every)
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    for scaled in of_kind(objects, "ScaledObject"):
        target = scaled["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in by_name
        for trigger in scaled["spec"]["triggers"]:
            route = trigger["metadata"].get("interceptorRoute")
            assert route is None or ("InterceptorRoute", route) in by_name
    for route in of_kind(objects, "InterceptorRoute"):
        target = route["spec"]["target"]
        (service,) = [o for o in of_kind(objects, "Service") if o["metadata"]["name"] == target["service"]]
        assert target["port"] in [p["port"] for p in service["spec"]["ports"]]


def check_readers(policy: Object, pods: Pods) -> None:
    """The API is open to everybody; the agent port to the service's own pods, of any role, and to monitoring."""
    _, anybody, readers = policy["spec"]["ingress"]
    assert "from" not in anybody
    assert [pods.port(p["port"]) for p in anybody["ports"]] == [pods.port("api")]
    assert [pods.port(p["port"]) for p in readers["ports"]] == [pods.port("agent")]
    of_service, monitoring = readers["from"]
    instance = "app.kubernetes.io/instance"
    others = {k: v for k, v in pods.labels.items() if k != "inference-group"} | {"inference-group": "decode"}
    assert matches(of_service["podSelector"]["matchLabels"], others), "another role of the same service"
    assert not matches(of_service["podSelector"]["matchLabels"], {**others, instance: "another"})
    assert list(monitoring) == ["namespaceSelector"]
    assert list(monitoring["namespaceSelector"]["matchLabels"]) == ["kubernetes.io/metadata.name"]


def check_service(service: Object, every: list[Pods]) -> None:
    selector = service["spec"]["selector"]
    headless = service["spec"].get("clusterIP") == "None"
    for pods in every:
        selected = [rank for rank in range(pods.size) if matches(selector, pods.pod_labels(rank))]
        if not headless:
            packed = pods.env.get("LAUNCHER_WORKER_READY") == "never"
            assert selected == (list(range(pods.size)) if packed else [0]), "callers go to leaders only"
            assert "publishNotReadyAddresses" not in service["spec"]
        elif service["metadata"]["name"] == pods.name:
            assert selected == list(range(pods.size))
            assert service["spec"]["publishNotReadyAddresses"] is True
        else:
            assert not selected, "the names of one group are not another's"
        for port in service["spec"]["ports"]:
            pods.port(port["targetPort"])


def test_names_and_selectors_agree(objects: list[Object]) -> None:
    check_names(objects)


def test_external_ports_are_those_that_plan_calls_external(objects: list[Object], pods: Pods) -> None:
    (policy,) = of_kind(objects, "NetworkPolicy")
    admitted = {pods.port(p["port"]) for rule in policy["spec"]["ingress"][1:] for p in rule["ports"]}
    planned = [{p["number"] for p in pods.plan(rank)["ports"] if p["external"]} for rank in range(pods.size)]
    assert admitted == planned[0], "the leader's"
    assert all(ports <= admitted for ports in planned), "and every other rank's"
    assert all(pods.port("agent") in ports for ports in planned)
    assert pods.port("agent") == AGENT_PORT
    assert pods.port("group") == GROUP_PORT
    services = [o for o in of_kind(objects, "Service") if o["spec"].get("clusterIP") != "None"]
    assert [pods.port(p["targetPort"]) for s in services for p in s["spec"]["ports"]] == [pods.port("api")]


def selectors(o: Object) -> Iterator[dict[str, str]]:
    """By what an object finds pods."""
    spec = o.get("spec", {})
    if o["kind"] == "Service":
        yield spec["selector"]
    elif o["kind"] in ("PodDisruptionBudget", "PodMonitor"):
        yield spec["selector"]["matchLabels"]
    elif o["kind"] == "NetworkPolicy":
        yield spec["podSelector"]["matchLabels"]
        peers = (peer for rule in spec["ingress"] for peer in rule.get("from", []))
        yield from (peer["podSelector"]["matchLabels"] for peer in peers if "podSelector" in peer)
    elif o["kind"] == "StatefulSet":
        yield spec["selector"]["matchLabels"]


def check_apart(one: list[Object], other: list[Object]) -> None:
    """Nothing of one application finds a pod of the other's in the same namespace."""
    strangers = [(p, p.pod_labels(rank)) for p in groups(other) for rank in range(p.size)]
    for o in one:
        for selector in selectors(o):
            met = [f"{p.name}-{labels}" for p, labels in strangers if matches(selector, labels)]
            assert not met, f"{o['kind']} {o['metadata']['name']} {selector} finds pods of another model: {met}"


def test_models_of_one_namespace_keep_apart() -> None:
    """Every folder beside every other, those straight from engines/ and lws/ too. Of one name they are one, applied."""
    built = [build(f) for f in GROUPS]
    names = [{p.name for p in groups(objects)} for objects in built]
    pairs = [(a, b) for a in range(len(built)) for b in range(len(built)) if not names[a] & names[b]]
    assert len(pairs) > len(built)
    for a, b in pairs:
        check_apart(built[a], built[b])


def test_monitoring_scrapes_its_own_model_only(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one = overlay(["models/llama-3.2-1b"], ["components/monitoring"], tmp_path / "one")
    other = overlay(["engines/reference"], ["components/monitoring"], tmp_path / "other")
    check_apart(one, other)
    check_apart(other, one)
    for objects in (one, other):
        (monitor,), (pods,) = of_kind(objects, "PodMonitor"), groups(objects)
        assert [matches(s, pods.labels) for s in selectors(monitor)] == [True]
    assert {o["metadata"]["name"] for o in of_kind(one, "PodMonitor")} == {"llama-1b-engine"}


def test_labels_above_a_leader_worker_set_reach_its_pods(tmp_path: Path) -> None:
    """As they reach a StatefulSet's: else the Service, which has them, finds nobody."""
    labels = [{"includeSelectors": True, "pairs": {"app.kubernetes.io/instance": "mine"}}]
    check_names(overlay(["lws/reference"], [], tmp_path, namePrefix="mine-", labels=labels))


# ------------------------------------------------------------------------------------------------- the pod itself


def test_probes_ask_the_launcher_and_kill_nobody_who_waits(pods: Pods) -> None:
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        asked = pods.engine[probe]["httpGet"]
        assert (asked["path"], pods.port(asked["port"])) == (path, AGENT_PORT)
    assert pods.engine["readinessProbe"]["periodSeconds"] == 2
    assert pods.engine["readinessProbe"]["failureThreshold"] == 1


def test_probes_of_a_normal_start_find_an_answer(pods: Pods) -> None:
    """A probe that fails leaves a Warning event. The launcher answers within 2 s and a small engine serves within 4."""
    startup, readiness = pods.engine["startupProbe"], pods.engine["readinessProbe"]
    assert startup["initialDelaySeconds"] >= 3
    assert readiness["initialDelaySeconds"] >= startup["initialDelaySeconds"] + startup["periodSeconds"]
    assert readiness["initialDelaySeconds"] + readiness["periodSeconds"] <= 6, "a new leader serves within 12 s"
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120, "a machine that is busy may take long"


def test_pod_is_fit_for_any_uid_and_a_read_only_root(pods: Pods) -> None:
    spec, container = pods.spec, pods.engine
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    for c in [*spec.get("initContainers", []), container]:
        security = c["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"]["drop"] == ["ALL"]
        assert set(security["capabilities"].get("add", [])) <= {"IPC_LOCK"}
        assert {m["name"] for m in c["volumeMounts"]} <= {v["name"] for v in spec["volumes"]}
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert {"/tmp", "/dev/shm", pods.env["HOME"], pods.env["LAUNCHER_STATE_DIR"]} <= writable
    read = {"TIKTOKEN_ENCODINGS_BASE"}
    written = {k: v for k, v in pods.env.items() if k not in read}
    places = [v for k, v in written.items() if k.startswith("XDG") or k.endswith(("_DIR", "_HOME", "_PATH", "_BASE"))]
    assert len(places) >= 6
    assert all(any(p == w or p.startswith(f"{w}/") for w in writable) for p in places)
    (shm,) = [v for v in spec["volumes"] if v["name"] == "shm"]
    assert shm["emptyDir"]["medium"] == "Memory"


def test_the_pod_has_room_for_its_shared_memory(pods: Pods) -> None:
    (shm,) = [v for v in pods.spec["volumes"] if v["name"] == "shm"]
    resources = pods.engine["resources"]
    assert quantity(shm["emptyDir"]["sizeLimit"]) <= quantity(resources["requests"]["memory"])
    assert quantity(resources["requests"]["memory"]) <= quantity(resources["limits"]["memory"])


def quantity(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMGT]i)?", text).groups()  # type: ignore[union-attr]
    return int(number) * {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]


def test_grace_and_size_are_said_once_and_alike(objects: list[Object], pods: Pods) -> None:
    settings, _, warnings = pods.settings(0)
    assert settings.grace == pods.spec["terminationGracePeriodSeconds"] == 120
    assert not warnings, "no variable that the launcher does not know"
    if pods.owner["kind"] == "LeaderWorkerSet":
        assert pods.owner["spec"]["leaderWorkerTemplate"]["size"] == settings.size
        assert pods.owner["spec"]["leaderWorkerTemplate"]["restartPolicy"] == "None"
        assert pods.owner["spec"]["startupPolicy"] == "LeaderCreated"
    else:
        scaled = of_kind(objects, "ScaledObject")
        assert pods.owner["spec"]["replicas"] == (0 if scaled else settings.size)
        assert pods.owner["spec"]["podManagementPolicy"] == "Parallel"
        assert pods.owner["spec"]["updateStrategy"] == {"type": "OnDelete"}


def test_launcher_finds_every_rank_and_plans_it(pods: Pods) -> None:
    leaders = set()
    for rank in range(pods.size):
        settings, environ, _ = pods.settings(rank)
        identity, _, warnings = steps.identity_of(settings, environ)
        assert (identity.rank, identity.size, warnings) == (rank, pods.size, ())
        lws, alone = pods.owner["kind"] == "LeaderWorkerSet", pods.size == 1
        assert identity.source == ("lws" if lws else "alone" if alone else "statefulset")
        leaders.add(identity.leader)
        page = pods.plan(rank)
        assert [r["rank"] for r in page["ranks"]] == list(range(pods.size))
        assert not [w for w in page["warnings"] if "stay idle" in w], "the GPUs of a pod are all used"
    assert len(leaders) == 1
    if pods.owner["kind"] == "StatefulSet" and pods.size > 1:
        assert leaders == {f"{pods.name}-0.{pods.env['LAUNCHER_SERVICE']}.{pods.namespace}.svc.cluster.local"}


def test_the_gpus_are_those_that_the_engine_uses(pods: Pods) -> None:
    settings, _, _ = pods.settings(0)
    if settings.engine == "reference":
        assert pods.gpus == 0
    else:
        assert settings.world == pods.size * pods.gpus


def test_model_in_one_pod_needs_no_peers(tmp_path: Path) -> None:
    """What gpt-oss-120b's comment says of groups of one pod."""
    args = [a for a in next(groups(build(K8S / "models/gpt-oss-120b"))).engine["args"] if a not in ("--dp=2", "--ep")]
    whole = {"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}
    changes = [size_patch(1), yaml.safe_dump([whole])]
    patches = [{"target": {"kind": "StatefulSet"}, "patch": change} for change in changes]
    objects = overlay(["models/gpt-oss-120b"], [], tmp_path, patches=patches)
    check_names(objects)
    (pods,) = groups(objects)
    page = pods.plan(0)
    assert (page["identity"]["rank"], page["identity"]["size"]) == (0, 1)
    assert pods.settings(0)[0].world == pods.gpus


# ------------------------------------------------------------------------------------------------- scaling


@pytest.mark.parametrize("component", ["components/keda", "components/keda-http"])
@pytest.mark.parametrize("size", [2, 4])
def test_one_group_goes_from_nothing_to_whole(component: str, size: int, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    bigger = {"target": {"kind": "StatefulSet"}, "patch": size_patch(size)}
    overlay(["models/llama-3.2-1b"], [], tmp_path / "model", patches=[bigger])
    objects = overlay(["model"], [component], tmp_path)
    check_names(objects)
    (pods,) = groups(objects)
    (scaled,) = of_kind(objects, "ScaledObject")
    spec = scaled["spec"]
    assert pods.owner["spec"]["replicas"] == 0
    assert (spec["idleReplicaCount"], spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, size, size)
    assert pods.size == size


#: groups that the formula of components/keda-packed gives at most
MOST = 4


@pytest.fixture(scope="module", params=[2, 3, 5])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    folder = tmp_path_factory.mktemp("packed")
    sized = {"target": {"kind": "StatefulSet"}, "patch": size_patch(request.param)}
    overlay(["models/llama-3.2-1b"], [], folder / "model", patches=[sized])
    return overlay(["model"], ["components/packed", "components/keda-packed"], folder)


def test_packed_groups_scale_by_whole_groups(packed: list[Object]) -> None:
    check_names(packed)
    (pods,) = groups(packed)
    (scaled,) = of_kind(packed, "ScaledObject")
    spec = scaled["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    numbers = [spec["idleReplicaCount"], spec["minReplicaCount"], spec["fallback"]["replicas"]]
    numbers += [p["value"] for way in behavior.values() for p in way["policies"]]
    assert [n % pods.size for n in numbers] == [0] * len(numbers)
    assert spec["minReplicaCount"] == pods.size
    assert spec["maxReplicaCount"] >= MOST * pods.size, (
        "the formula says how many, not a limit that cuts a group in two"
    )
    assert pods.owner["spec"]["replicas"] == 0
    assert spec["advanced"]["scalingModifiers"]["metricType"] == "AverageValue"


def test_formula_gives_whole_groups_for_every_load(packed: list[Object]) -> None:
    (pods,) = groups(packed)
    (scaled,) = of_kind(packed, "ScaledObject")
    modifiers = scaled["spec"]["advanced"]["scalingModifiers"]
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["name"].isidentifier()
    before = 0
    for load in range(1001):
        wanted = evaluate(modifiers["formula"], {trigger["name"]: load}) / int(modifiers["target"])
        assert wanted == (min(MOST, max(1, math.ceil(load / 100))) * pods.size if load else 0)
        assert wanted % pods.size == 0
        assert wanted >= before
        before = int(wanted)
    assert evaluate(modifiers["formula"], {trigger["name"]: 0.4}) == pods.size


_WORDS = re.compile(r"\s*(\d+(?:\.\d+)?|[a-z]\w*|[-+*/(),?:<>])")


def evaluate(formula: str, names: dict[str, float]) -> float:
    """KEDA's expression language, as far as the formula goes: calls, * and /, comparisons, one `a ? b : c`."""
    words = _WORDS.findall(formula)
    assert "".join(words) == formula.replace(" ", ""), formula

    def take(expected: str | None = None) -> str:
        word = str(words.pop(0))
        assert expected in (None, word), (expected, word)
        return word

    def value() -> float:
        word = take()
        if word[0].isdigit():
            return float(word)
        if word == "(":
            inner = choice()
            take(")")
            return inner
        if words[:1] != ["("]:
            return names[word]
        take("(")
        given = [choice()]
        while words[0] == ",":
            take(",")
            given.append(choice())
        take(")")
        return float({"min": min, "max": max, "ceil": math.ceil}[word](*given))  # type: ignore[operator]

    def product() -> float:
        result = value()
        while words[:1] in (["*"], ["/"]):
            result = result * value() if take() == "*" else result / value()
        return result

    def choice() -> float:
        left = product()
        if words[:1] in (["<"], [">"]):
            left = float(left > product()) if take() == ">" else float(left < product())
        if words[:1] != ["?"]:
            return left
        take("?")
        then = choice()
        take(":")
        otherwise = choice()
        return then if left else otherwise

    result = choice()
    assert not words, words
    return result


def test_packed_set_without_keda_is_one_whole_group(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    sized = {"target": {"kind": "StatefulSet"}, "patch": size_patch(3)}
    overlay(["models/llama-3.2-1b"], [], tmp_path / "model", patches=[sized])
    (pods,) = groups(overlay(["model"], ["components/packed"], tmp_path))
    assert pods.owner["spec"]["replicas"] == pods.size


def test_packed_under_any_prefix(tmp_path: Path) -> None:
    """What is called -api is not all of the API's."""
    (tmp_path / "model").mkdir()
    overlay(["engines/reference"], [], tmp_path / "model", namePrefix="my-api-")
    check_names(overlay(["model"], ["components/packed"], tmp_path))


def test_packed_pods_know_their_group(packed: list[Object]) -> None:
    (pods,) = groups(packed)
    size = pods.size
    for ordinal in range(3 * size):
        environ = pods.environment(ordinal)
        settings, environ, _ = pods.settings(ordinal)
        identity, _, _ = steps.identity_of(settings, environ)
        first = ordinal - ordinal % size
        assert (identity.rank, identity.size) == (ordinal % size, size)
        assert identity.leader.startswith(f"{pods.name}-{first}.")
        assert settings.worker_ready == "never"


def test_lws_scales_by_groups(tmp_path: Path) -> None:
    components = ["lws/as-lws", "lws/keda", "lws/topology"]
    objects = overlay(["models/llama-3.1-405b"], components, tmp_path, nameSuffix="-x")
    check_names(objects)
    (scaled,) = of_kind(objects, "ScaledObject")
    assert "idleReplicaCount" not in scaled["spec"]
    assert scaled["spec"]["minReplicaCount"] == 0
    assert "advanced" not in scaled["spec"], "the unit is a group: no formula"


# -------------------------------------------------------------------------------------------- several groups


def test_groups_script_makes_one_set_a_group(tmp_path: Path) -> None:
    out = tmp_path / "three"
    command = [str(K8S / "groups.sh"), str(K8S / "models/llama-3.1-405b"), "3", str(out), "100", "keda", "topology"]
    for _ in range(2):  # again over what is there
        subprocess.run(command, check=True, capture_output=True)
    objects = build(out)
    check_names(objects)
    every = list(groups(objects))
    assert [p.name for p in every] == [f"llama-405b-engine-{k}" for k in range(3)]
    assert len(of_kind(objects, "PodDisruptionBudget")) == 1
    assert len([s for s in of_kind(objects, "Service") if s["spec"].get("clusterIP") != "None"]) == 1
    wake = [s["spec"]["triggers"][0]["metadata"]["activationThreshold"] for s in of_kind(objects, "ScaledObject")]
    assert wake == ["0", "100", "200"]
    for pods in every:
        check_rack(pods)


def check_rack(pods: Pods) -> None:
    affinity: Any = pods.spec["affinity"]
    (own,) = affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (others,) = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert own["labelSelector"]["matchLabels"] == {"inference-group": pods.name}
    not_in = {"key": "inference-group", "operator": "NotIn", "values": [pods.name]}
    assert not_in in others["labelSelector"]["matchExpressions"]
    assert own["topologyKey"] == others["topologyKey"]
    assert others["namespaceSelector"] == {}, "other namespaces' groups too"


LLAMA = str(K8S / "models/llama-3.1-405b")


def grouped(model: Path, out: Path, *more: str) -> list[Object]:
    subprocess.run([str(K8S / "groups.sh"), str(model), "3", str(out), *more], check=True, capture_output=True)
    return build(out)


def test_groups_are_monitored_once(tmp_path: Path) -> None:
    """Whether groups.sh or the model brings monitoring: one PodMonitor over all groups, one set of rules."""
    overlay(["models/llama-3.1-405b"], ["components/monitoring"], model := tmp_path / "model")
    for objects in (grouped(Path(LLAMA), tmp_path / "a", "0", "monitoring"), grouped(model, tmp_path / "b")):
        (monitor,) = of_kind(objects, "PodMonitor")
        assert len(of_kind(objects, "PrometheusRule")) == len(of_kind(objects, "ConfigMap")) == 1
        assert [matches(s, p.labels) for p in groups(objects) for s in selectors(monitor)] == [True] * 3


def test_groups_of_a_model_with_keda_inside_wake_one_after_another(tmp_path: Path) -> None:
    overlay(["models/llama-3.1-405b"], ["components/keda"], tmp_path / "model")
    scaled = of_kind(grouped(tmp_path / "model", tmp_path / "out", "100"), "ScaledObject")
    assert [s["spec"]["triggers"][0]["metadata"]["activationThreshold"] for s in scaled] == ["0", "100", "200"]


@pytest.mark.parametrize("mine", ["group-photos/a.jpeg", "shared/notes", "kustomization.yaml"])
def test_groups_script_takes_nothing_that_it_did_not_write(mine: str, tmp_path: Path) -> None:
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    command = [str(K8S / "groups.sh"), LLAMA, "2", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 73, done.stderr
    assert (tmp_path / mine).read_text() == "mine"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / mine]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nowhere", "2", "out"],
        [LLAMA, "0", "out"],
        [LLAMA, "2", "out", "many"],
        [LLAMA, "2", "out", "0", "keda-http"],
        [LLAMA, "2", "out", "0", "packed"],
        [LLAMA, "2", "out", "0", "nonsense"],
    ],
)
def test_groups_script_says_what_is_wrong(arguments: list[str], tmp_path: Path) -> None:
    command = [str(K8S / "groups.sh"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (64, 66)
    assert done.stderr
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- other components


def test_components_for_scheduling_say_the_size(tmp_path: Path) -> None:
    objects = overlay(["models/llama-3.1-405b"], ["components/gang/volcano", "components/queue"], tmp_path)
    (pods,) = groups(objects)
    metadata = pods.owner["metadata"]
    assert metadata["annotations"]["scheduling.volcano.sh/group-min-member"] == str(pods.size)
    assert pods.spec["schedulerName"] == "volcano"
    queue = pods.template["metadata"]["annotations"]["scheduling.volcano.sh/queue-name"]
    assert queue == metadata["labels"]["kueue.x-k8s.io/queue-name"]


def test_roce_adds_the_card_and_leaves_the_rest(tmp_path: Path) -> None:
    (pods,) = groups(overlay(["engines/vllm-mp"], ["components/roce"], tmp_path))
    assert not [name for name in pods.env if name.startswith("NCCL_")], "the launcher finds out what fits this pod"
    assert pods.settings(0)[0].rdma == "require"
    assert pods.engine["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert any(name.startswith("rdma/") for name in pods.engine["resources"]["limits"])
    assert pods.engine["resources"]["limits"]["nvidia.com/gpu"] == "8"


@pytest.mark.parametrize("cards", ["components/roce", "components/roce-dra"])
def test_memory_is_locked_by_root_only(cards: str, tmp_path: Path) -> None:
    """IPC_LOCK of a user who is not root is never effective: whoever adds it must run as root."""
    (pods,) = groups(overlay(["engines/vllm-mp"], [cards, "components/roce-root"], tmp_path))
    assert pods.engine["securityContext"]["capabilities"] == {"add": ["IPC_LOCK"], "drop": ["ALL"]}
    user = {k: v for k, v in pods.spec["securityContext"].items() if k.startswith("runAs")}
    assert user == {"runAsNonRoot": False, "runAsUser": 0, "runAsGroup": 0}


@pytest.mark.parametrize("above", [[], ["lws/as-lws"]])
def test_cards_by_dra_come_with_a_claim_of_each_pod(above: list[str], tmp_path: Path) -> None:
    objects = overlay(["models/llama-3.1-405b"], ["components/roce-dra", *above], tmp_path, nameSuffix="-x")
    check_names(objects)
    (pods,) = groups(objects)
    (template,) = of_kind(objects, "ResourceClaimTemplate")
    (claim,) = pods.spec["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"] == pods.name
    assert pods.engine["resources"]["claims"] == [{"name": claim["name"]}]
    assert pods.settings(0)[0].rdma == "require"
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["count"] == pods.gpus, "one rail a GPU"


def test_groups_have_claims_of_their_own(tmp_path: Path) -> None:
    objects = grouped(Path(LLAMA), tmp_path / "out", "0", "roce-dra")
    assert [p.spec["resourceClaims"][0]["resourceClaimTemplateName"] for p in groups(objects)] == [
        t["metadata"]["name"] for t in of_kind(objects, "ResourceClaimTemplate")
    ]


#: what PodSecurity's "restricted" refuses, and "baseline" too
REFUSED_BY_POD_SECURITY = {"components/roce-root", "components/model-cache/node"}


@pytest.mark.parametrize("folder", folders("Component"), ids=named)
def test_what_pod_security_refuses_says_so(folder: Path, tmp_path: Path) -> None:
    if (name := named(folder)).startswith("lws/") or name == "components/shared-by-groups":
        pytest.skip("no pod of its own")
    below = ["components/packed"] if name == "components/keda-packed" else []
    (pods,) = groups(overlay(["engines/vllm-mp"], [*below, name], tmp_path))
    assert restricted(pods.spec) == (name not in REFUSED_BY_POD_SECURITY)
    said = (folder / "kustomization.yaml").read_text()
    assert ('PodSecurity "baseline" and "restricted" refuse it' in said) == (name in REFUSED_BY_POD_SECURITY)


def restricted(spec: Object) -> bool:
    """Whether a pod passes the parts of PodSecurity's "restricted" profile that a component here could break."""
    pod = spec["securityContext"]
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    contexts = [{**pod, **c["securityContext"]} for c in containers]
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    return (
        not any(spec.get(k) for k in ("hostNetwork", "hostPID", "hostIPC"))
        and all(set(v) - {"name"} <= allowed for v in spec["volumes"])
        and pod.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost")
        and all(c["runAsNonRoot"] and c.get("runAsUser") != 0 for c in contexts)
        and all(c["allowPrivilegeEscalation"] is False and not c.get("privileged") for c in contexts)
        and all(c["capabilities"]["drop"] == ["ALL"] for c in contexts)
        and all(set(c["capabilities"].get("add", [])) <= {"NET_BIND_SERVICE"} for c in contexts)
    )


def test_cluster_may_choose_the_user(tmp_path: Path) -> None:
    """No number is asked for, of the containers either; root stays refused."""
    (pods,) = groups(overlay(["engines/vllm-mp"], ["components/any-uid"], tmp_path))
    contexts = [pods.spec["securityContext"], *(c["securityContext"] for c in pods.spec["containers"])]
    contexts += [c["securityContext"] for c in pods.spec["initContainers"]]
    assert not [key for c in contexts for key in c if key in ("runAsUser", "runAsGroup", "fsGroup")]
    assert pods.spec["securityContext"]["runAsNonRoot"] is True


MODELS = [f for f in GROUPS if f.parent.name == "models"]


@pytest.mark.parametrize("folder", MODELS, ids=named)
def test_model_says_what_must_be_in_the_claim(folder: Path) -> None:
    (pods,) = groups(build(folder))
    model = pods.settings(0)[0].model
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pods.spec["volumes"] if "persistentVolumeClaim" in v]
    said = (folder / "kustomization.yaml").read_text()
    assert bool(claims) == str(model).startswith("/models/")
    for claim in claims:
        assert f"Needs the claim `{claim}` (components/model-cache/pvc/claim.yaml)" in said
        assert re.search(rf"weights in it: {model}$", said, re.M)


def test_gpt_oss_finds_its_encodings_offline() -> None:
    """Its parser would download them, whatever HF_HUB_OFFLINE says (vLLM's issue 22525)."""
    (pods,) = groups(build(K8S / "models/gpt-oss-120b"))
    assert pods.env["TIKTOKEN_ENCODINGS_BASE"].startswith("/models/")
    assert pods.env["TIKTOKEN_ENCODINGS_BASE"] in (K8S / "models/gpt-oss-120b/kustomization.yaml").read_text()


def test_token_is_where_the_launcher_looks(tmp_path: Path) -> None:
    (pods,) = groups(overlay(["engines/vllm-mp"], ["components/token"], tmp_path))
    mount = next(m for m in pods.engine["volumeMounts"] if m["name"] == "token")
    assert pods.env["LAUNCHER_TOKEN_FILE"].startswith(mount["mountPath"] + "/")


def test_launcher_in_the_image_needs_no_copy(tmp_path: Path) -> None:
    (pods,) = groups(overlay(["engines/vllm-mp"], ["components/launcher-in-image"], tmp_path))
    assert not pods.spec.get("initContainers")
    assert not [m for m in pods.engine["volumeMounts"] if m["name"] == "launcher"]
    (copied,) = groups(build(K8S / "engines/vllm-mp"))
    (init,) = copied.spec["initContainers"]
    mount = next(m for m in copied.engine["volumeMounts"] if m["name"] == "launcher")
    assert copied.engine["command"] == [f"{mount['mountPath']}/launcher"] == pods.engine["command"]
    assert init["command"][-1].rstrip("/") == init["volumeMounts"][0]["mountPath"]


def copy_command() -> list[str]:
    (pods,) = groups(build(K8S / "engines/vllm-mp"))
    command: list[str] = pods.spec["initContainers"][0]["command"]
    return command


def test_launcher_is_copied_without_times_and_owners() -> None:
    """Both are refused to a user who does not own the folder, and the kubelet makes an emptyDir root's."""
    program, options, *_ = copy_command()
    assert program == "cp"
    assert not set(options) & set("pa"), "the init container would crash"


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_launcher_is_copied_into_a_folder_as_the_kubelet_makes_it(tmp_path: Path) -> None:
    """Of root and the pod's fsGroup, mode 2777; by the pod's user, who has no capability. Modes and links stay."""
    source, copy = tmp_path / "opt", tmp_path / "copy"
    for folder in (source / "bin", copy):
        folder.mkdir(parents=True)
    (source / "launcher").write_text("#!/bin/sh\necho it runs\n")
    (source / "launcher").chmod(0o755)
    (source / "bin/launcher").symlink_to("../launcher")
    (pods,) = groups(build(K8S / "engines/vllm-mp"))
    security = pods.spec["securityContext"]
    os.chown(copy, 0, security["fsGroup"])
    copy.chmod(0o2777)
    user = [f"--reuid={security['runAsUser']}", f"--regid={security['runAsGroup']}", f"--groups={security['fsGroup']}"]
    with opened(tmp_path):
        command = [w.replace("/opt/launcher", str(source)).replace("/copy", str(copy)) for w in copy_command()]
        limits = ["setpriv", *user, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        done = subprocess.run([*limits, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (copy / "bin/launcher").is_symlink()
        ran = subprocess.run([*limits, str(copy / "bin/launcher")], capture_output=True, text=True, check=False)
    assert ran.stdout == "it runs\n", ran.stderr


@contextlib.contextmanager
def opened(path: Path) -> Iterator[None]:
    """Other users may pass through the folders above, which pytest makes its user's own."""
    above = [p for p in path.parents if p.stat().st_uid == os.geteuid() and not p.stat().st_mode & 0o001]
    modes = {p: p.stat().st_mode for p in [path, *above]}
    try:
        for p, mode in modes.items():
            p.chmod(mode | 0o011)
        yield
    finally:
        for p, mode in modes.items():
            p.chmod(mode)
