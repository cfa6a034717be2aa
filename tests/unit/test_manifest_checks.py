"""`launcher plan -f`: what would deadlock or break is found, with its path; a manifest in order is quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from launcher.cli import main, manifest_shell
from tests.unit.test_manifest import plan, write

POD_NAME = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
ARGS = ["--engine", "vllm", "--backend", "mp", "--model", "/m", "--tp", "8", "--pp", "2"]
SERVICE: dict[str, Any] = {
    "kind": "Service",
    "metadata": {"name": "peers", "namespace": "prod"},
    "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"app": "x"}},
}


def container(**more: Any) -> dict[str, Any]:
    return {
        "name": "engine",
        "image": "vllm/vllm-openai:v0.12.0",
        "command": ["launcher"],
        "args": [*ARGS, "--size", "2", "--service", "peers", "--grace", "120"],
        "env": [POD_NAME, POD_IP],
        "ports": [{"name": "agent", "containerPort": 9471}],
        "livenessProbe": {"httpGet": {"path": "/livez", "port": "agent"}},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 9471}},
        "resources": {"limits": {"nvidia.com/gpu": 8}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        **more,
    }


def template(one: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None, **pod: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"app": "x"}, **(metadata or {})},
        "spec": {
            "terminationGracePeriodSeconds": 120,
            "enableServiceLinks": False,
            "containers": [one or container()],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
            **pod,
        },
    }


def stateful_set(pods: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "opal", "namespace": "prod"},
        "spec": {
            "replicas": 2,
            "serviceName": "peers",
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "template": pods or template(),
            **spec,
        },
    }


def lws(worker: dict[str, Any], leader: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    inner = {"size": 2, "workerTemplate": worker} | ({"leaderTemplate": leader} if leader else {})
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "topaz", "namespace": "prod"},
        "spec": {"leaderWorkerTemplate": inner, **spec},
    }


def job(pods: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "kind": "Job",
        "metadata": {"name": "ruby", "namespace": "prod"},
        "spec": {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "template": pods, **spec},
    }


def of_lws(args: list[str] = ARGS, **more: Any) -> dict[str, Any]:
    return container(args=[*args, "--grace", "120"], env=[POD_IP], **more)


def test_a_manifest_in_order_is_quiet(tmp_path: Path) -> None:
    for pods in (
        stateful_set(),
        stateful_set(replicas=0),
        stateful_set(template(hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet")),
        lws(template(of_lws())),
        lws(template(of_lws()), template(of_lws(), {"labels": {"app": "x", "role": "leader"}})),
        job(template(subdomain="peers")),
    ):
        (page,) = plan(write(tmp_path, SERVICE, pods))
        assert page["problems"] == []
        assert page["warnings"] == [
            "the engine's version is taken from the image's tag: 0.12.0 (or give --engine-version)"
        ]


PROBLEMS: list[tuple[str, list[dict[str, Any]], str, str]] = [
    ("ordered", [stateful_set(podManagementPolicy="OrderedReady")], "spec.podManagementPolicy", "never forms"),
    ("replicas", [stateful_set(replicas=5)], "spec.replicas", "no multiple of --size 2"),
    ("start", [stateful_set(ordinals={"start": 20})], "spec.ordinals.start", "--ordinal-start 0"),
    ("service", [stateful_set(serviceName="opal-hl")], "spec.serviceName", "--service peers"),
    ("no service", [stateful_set(serviceName=None)], "spec.serviceName", "absent"),
    (
        "not headless",
        [stateful_set(), {**SERVICE, "spec": {**SERVICE["spec"], "clusterIP": "10.0.0.7"}}],
        "Service peers: spec.clusterIP",
        "not headless",
    ),
    (
        "not ready",
        [stateful_set(), {**SERVICE, "spec": {"clusterIP": "None", "selector": {"app": "x"}}}],
        "Service peers: spec.publishNotReadyAddresses",
        "once it is ready",
    ),
    (
        "selector",
        [stateful_set(), {**SERVICE, "spec": {**SERVICE["spec"], "selector": {"app": "y"}}}],
        "Service peers: spec.selector",
        "app: y",
    ),
    (
        "host network without a name",
        [stateful_set(template(container(env=[]), hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet"))],
        "spec.template.spec.hostNetwork",
        "POD_NAME",
    ),
    ("dns policy", [stateful_set(template(hostNetwork=True))], "spec.template.spec.dnsPolicy", "node's DNS"),
    (
        "grace",
        [stateful_set(template(terminationGracePeriodSeconds=60))],
        "spec.template.spec.terminationGracePeriodSeconds",
        "--grace 120",
    ),
    (
        "liveness of the engine",
        [stateful_set(template(container(livenessProbe={"httpGet": {"path": "/health", "port": 8000}})))],
        "spec.template.spec.containers[0].livenessProbe.httpGet.port",
        "kubelet kills",
    ),
    (
        "startup by tcp",
        [stateful_set(template(container(startupProbe={"tcpSocket": {"port": 8000}})))],
        "spec.template.spec.containers[0].startupProbe.tcpSocket.port",
        "8000",
    ),
    (
        "liveness by readiness",
        [stateful_set(template(container(livenessProbe={"httpGet": {"path": "/readyz", "port": 9471}})))],
        "spec.template.spec.containers[0].livenessProbe.httpGet.path",
        "503",
    ),
    (
        "no such path",
        [stateful_set(template(container(readinessProbe={"httpGet": {"path": "/ready", "port": 9471}})))],
        "spec.template.spec.containers[0].readinessProbe.httpGet.path",
        "/ready",
    ),
    (
        "no such port",
        [stateful_set(template(container(readinessProbe={"httpGet": {"path": "/readyz", "port": "http"}})))],
        "spec.template.spec.containers[0].readinessProbe.httpGet.port",
        "http",
    ),
    (
        "https",
        [
            stateful_set(
                template(container(livenessProbe={"httpGet": {"path": "/livez", "port": 9471, "scheme": "HTTPS"}}))
            )
        ],
        "spec.template.spec.containers[0].livenessProbe.httpGet.scheme",
        "HTTPS",
    ),
    (
        "number in args",
        [stateful_set(template(container(args=[*ARGS, "--size", 2, "--service", "peers", "--grace", "120"])))],
        "spec.template.spec.containers[0].args[11]",
        "2 is a number",
    ),
    (
        "boolean in env",
        [stateful_set(template(container(env=[POD_NAME, POD_IP, {"name": "VLLM_X", "value": True}])))],
        "spec.template.spec.containers[0].env[2].value",
        "VLLM_X: true is true or false",
    ),
    (
        "templates that differ",
        [lws(template(of_lws([*ARGS[:-4], "--tp", "4", "--pp", "4"])), template(of_lws()))],
        "spec.leaderWorkerTemplate.workerTemplate.spec.containers[0]",
        "--tp 4, and leaderTemplate has --tp 8",
    ),
    (
        "engine arguments that differ",
        [lws(template(of_lws([*ARGS, "--", "--max-model-len=4096"])), template(of_lws()))],
        "spec.leaderWorkerTemplate.workerTemplate.spec.containers[0]",
        "max-model-len",
    ),
    (
        "no launcher in the worker",
        [lws(template({"name": "engine", "command": ["sleep"]}), template(of_lws()))],
        "spec.leaderWorkerTemplate.workerTemplate",
        "never becomes whole",
    ),
    ("leader first", [lws(template(of_lws()), startupPolicy="LeaderReady")], "spec.startupPolicy", "never forms"),
    ("completions", [job(template(subdomain="peers"), completions=1)], "spec.completions", "never becomes whole"),
    ("subdomain", [job(template())], "spec.template.spec.subdomain", "never resolves"),
]


@pytest.mark.parametrize(("objects", "path", "what"), [p[1:] for p in PROBLEMS], ids=[p[0] for p in PROBLEMS])
def test_what_would_deadlock_or_break(tmp_path: Path, objects: list[Any], path: str, what: str) -> None:
    pages = plan(write(tmp_path, *objects), code=78)
    found = [p for page in pages for p in page["problems"]]
    assert any(p["path"] == path and what in p["what"] and p["fix"] for p in found), found


WARNINGS: list[tuple[str, dict[str, Any], str]] = [
    ("strategy", stateful_set(updateStrategy={"type": "RollingUpdate"}), "restarts the group 2 times"),
    ("no strategy", stateful_set(updateStrategy={}), "spec.updateStrategy"),
    ("shm", stateful_set(template(container(volumeMounts=[]))), "/dev/shm has 64 MiB"),
    (
        "shm on disk",
        stateful_set(template(volumes=[{"name": "shm", "emptyDir": {}}])),
        "/dev/shm lies on a disk",
    ),
    ("grace unused", stateful_set(template(terminationGracePeriodSeconds=600)), "give --grace 600"),
    (
        "readiness of the engine",
        stateful_set(template(container(readinessProbe={"httpGet": {"path": "/health", "port": 8000}}))),
        "never become ready",
    ),
    (
        "networks without an address",
        stateful_set(
            template(container(env=[POD_NAME]), {"annotations": {"k8s.v1.cni.cncf.io/networks": "macvlan-conf1"}})
        ),
        "POD_IP",
    ),
    ("istio", stateful_set(template(None, {"labels": {"app": "x", "sidecar.istio.io/inject": "true"}})), "Istio"),
    ("linkerd", stateful_set(template(None, {"annotations": {"linkerd.io/inject": "enabled"}})), "Linkerd"),
    ("gvisor", stateful_set(template(runtimeClassName="gvisor")), "gVisor"),
]


@pytest.mark.parametrize(("pods", "words"), [w[1:] for w in WARNINGS], ids=[w[0] for w in WARNINGS])
def test_what_works_and_costs_something(tmp_path: Path, pods: dict[str, Any], words: str) -> None:
    (page,) = plan(write(tmp_path, pods))
    assert any(words in w for w in page["warnings"]), page["warnings"]


def test_a_mesh_that_leaves_our_ports_alone_is_quiet(tmp_path: Path) -> None:
    for marks in (
        {"sidecar.istio.io/inject": "false"},
        {
            "sidecar.istio.io/inject": "true",
            "traffic.sidecar.istio.io/includeInboundPorts": "8000",
            "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
        },
        {
            "linkerd.io/inject": "enabled",
            "config.linkerd.io/skip-inbound-ports": "1024-7999,8001-65535",
            "config.linkerd.io/skip-outbound-ports": "1024-65535",
        },
        {"linkerd.io/inject": "disabled"},
    ):
        namespace = {"kind": "Namespace", "metadata": {"name": "prod", "labels": {"istio-injection": "enabled"}}}
        objects = [stateful_set(template(None, {"labels": {"app": "x"}, "annotations": marks}))]
        if "sidecar.istio.io/inject" in marks:
            objects.append(namespace)
        (page,) = plan(write(tmp_path, *objects))
        assert not any("sidecar" in w for w in page["warnings"]), marks


def test_a_namespace_that_injects_a_sidecar(tmp_path: Path) -> None:
    namespace = {"kind": "Namespace", "metadata": {"name": "prod", "labels": {"istio-injection": "enabled"}}}
    (page,) = plan(write(tmp_path, namespace, stateful_set()))
    assert any("Istio" in w for w in page["warnings"])


def test_ordinals_that_the_launcher_knows(tmp_path: Path) -> None:
    one = container(args=[*ARGS, "--size", "2", "--service", "peers", "--grace", "120", "--ordinal-start", "30"])
    (page,) = plan(write(tmp_path, stateful_set(template(one), ordinals={"start": 30})))
    assert page["identity"] == {
        **page["identity"],
        "rank": 0,
        "name": "opal-30",
        "leader": "opal-30.peers.prod.svc.cluster.local",
    }


def test_subdomains_of_lws(tmp_path: Path) -> None:
    (page,) = plan(write(tmp_path, lws(template(of_lws()), networkConfig={"subdomainPolicy": "UniquePerReplica"})))
    assert page["identity"]["leader"] == "topaz-0.topaz-0.prod"


def test_rank_1_of_lws_is_planned_from_its_own_template(tmp_path: Path) -> None:
    worker = template(of_lws([*ARGS, "--", "--max-model-len=4096"]))
    (page,) = plan(write(tmp_path, lws(worker, template(of_lws()))), code=78)
    argv = [rank["stages"][0]["processes"][0]["argv"] for rank in page["ranks"]]
    assert "--max-model-len=4096" not in argv[0] and "--max-model-len=4096" in argv[1]


def test_a_job_set(tmp_path: Path) -> None:
    one = container(
        args=[*ARGS, "--size", "2", "--service", "jade", "--grace", "120"],
    )
    spec = {"completions": 2, "parallelism": 2, "template": template(one)}
    job_set = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": "jade", "namespace": "prod"},
        "spec": {"replicatedJobs": [{"name": "w", "template": {"spec": spec}}]},
    }
    (page,) = plan(write(tmp_path, job_set))
    assert page["identity"]["leader"] == "jade-w-0-0.jade.prod.svc.cluster.local"
    assert page["problems"] == []
    spec["parallelism"] = 1
    (page,) = plan(write(tmp_path, job_set), code=78)
    assert page["problems"][0]["path"] == "spec.replicatedJobs[0].template.spec.parallelism"


@pytest.mark.parametrize(
    ("args", "image"),
    [
        (["--model", "/m", "--tp", "8", "--pp", "2", "--", "--max-model-len", "32768"], "r.example/ours:5"),
        (["--model=/m"], "r.example/ours:5"),
        (["run", "--model", "/m"], "r.example/ours:5"),
        (["--engine-file", "/etc/e.toml"], "vllm/vllm-openai:v0.12.0"),
    ],
)
def test_args_alone_of_an_image_whose_entrypoint_is_the_launcher(tmp_path: Path, args: list[str], image: str) -> None:
    from launcher.cli import manifest

    one = {"name": "engine", "image": image, "args": args}
    (told,) = manifest.read(write(tmp_path, lws(template(one))))
    assert list(told.args) == [a for a in args if a != "run"]


@pytest.mark.parametrize(
    ("args", "image"),
    [
        (["--model", "/m"], "vllm/vllm-openai:v0.12.0"),
        (["--model", "/m", "--tensor-parallel-size", "8"], "r.example/vllm:5"),
        ([], "r.example/vllm:5"),
    ],
)
def test_args_of_an_engine_are_none_of_ours(tmp_path: Path, args: list[str], image: str) -> None:
    one = {"name": "engine", "image": image, "args": args}
    result = CliRunner().invoke(main.cli, ["plan", "-f", write(tmp_path, lws(template(one)))])
    assert "whose container starts the launcher" in str(result.exception)


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("vllm/vllm-openai:v0.12.0", "0.12.0"),
        ("docker.io/vllm/vllm-openai:v0.12.0-cu130", "0.12.0"),
        ("mirror.example:5000/hub/vllm/vllm-openai:v0.18.1-x86_64", "0.18.1"),
        ("lmsysorg/sglang:v0.5.5.post3-cu129-amd64", "0.5.5.post3"),
        ("vllm/vllm-openai:v0.12.0rc1", None),
        ("vllm/vllm-openai:v0.12.0-rc2", None),
        ("vllm/vllm-openai:nightly", None),
        ("vllm/vllm-openai:latest", None),
        ("vllm/vllm-openai", None),
        ("mirror.example:5000/vllm/vllm-openai", None),
        ("vllm/vllm-openai:v0.12.0@sha256:0123", None),
        ("kvcachers/vllm-openai:v0.3.1", None),
        ("acme/vllm:0.12.0", None),
        ("r.example/team/sglang:2.1.0", None),
    ],
)
def test_only_tags_of_the_engines_own_images_are_versions(tmp_path: Path, image: str, version: str | None) -> None:
    from launcher.cli import manifest

    (told,) = manifest.read(write(tmp_path, lws(template(of_lws(image=image)))))
    assert told.environ.get("LAUNCHER_ENGINE_VERSION") == version
    asked = any("give --engine-version" in w and image in w for w in told.warnings)
    assert asked == (version is None)


# ruff: noqa: E501
SCRIPTS = [
    ("exec launcher --tp 2", ("--tp", "2"), True),
    ("ulimit -l unlimited\nexec launcher --model /m --tp 16\n", ("--model", "/m", "--tp", "16"), True),
    ("ulimit -l unlimited; launcher --tp 2", ("--tp", "2"), False),
    ("launcher --tp 2", ("--tp", "2"), True),
    ("set -e && cd /m && exec /opt/launcher/launcher \\\n  --tp 2 \\\n  -- --x 'a b'", ("--tp", "2", "--", "--x", "a b"), True),
    ("exec python3 -u -m launcher run --tp 2", ("run", "--tp", "2"), True),
    ("# launcher --tp 1\nexec launcher --tp 2 # --tp 3", ("--tp", "2"), True),
    ("export N=4\nexec launcher --tp $N --pp ${M:-2} --model \"$HOME_OF/m\"", ("--tp", "4", "--pp", "2", "--model", "/x/m"), True),
    ("exec launcher --tp 2 2>&1 >/var/log/x", ("--tp", "2"), True),
    ("launcher --tp 2 2>/dev/null | tee log", ("--tp", "2"), False),
    ("cp -r /launcher /opt; exec env A=1 launcher --tp 2", ("--tp", "2"), True),
    ("if true; then exec launcher --tp 2; fi", ("--tp", "2"), True),
    ("exec launcher \"$@\"", ("--tp", "9"), True),
    ("exec launcher $MORE", ("--tp", "2", "--pp", "4"), True),
    ("exec launcher --model=\"$MORE\" $NOTHING --tp 2", ("--model=--tp 2 --pp 4", "--tp", "2"), True),
    ("exec launcher --model '$MORE' \"\"", ("--model", "$MORE", ""), True),
    ("exec launcher --model \"a\\\"b\"", ("--model", 'a"b'), True),
]  # fmt: skip


@pytest.mark.parametrize(("script", "words", "replaces"), SCRIPTS)
def test_the_launcher_in_a_script(script: str, words: tuple[str, ...], replaces: bool) -> None:
    call = manifest_shell.find(script, ("sh", "--tp", "9"), {"HOME_OF": "/x", "MORE": "--tp 2 --pp 4", "NOTHING": ""})
    assert call is not None
    assert (call.words, call.replaces_shell, call.unknown) == (words, replaces, ())


@pytest.mark.parametrize("script", ["sleep 9", "cp /opt/launcher/launcher /x", "echo launcher --tp 2", "", "'"])
def test_a_script_without_the_launcher(script: str) -> None:
    assert manifest_shell.find(script, (), {}) is None


def test_what_only_the_shell_knows(tmp_path: Path) -> None:
    one = container(command=["bash", "-ec"], args=["exec launcher --model $(cat /etc/model) --tp 8 --pp 2 --grace 120"])
    (page,) = plan(write(tmp_path, lws(template(one))))
    assert any("$(cat /etc/model)" in w for w in page["warnings"])


def test_a_shell_that_stays(tmp_path: Path) -> None:
    script = "ulimit -l unlimited; launcher --engine sglang --model /m --tp 16 --grace 120"
    one = container(command=["sh", "-c"], args=[script], env=[POD_IP], image="lmsysorg/sglang:v0.5.5")
    (page,) = plan(write(tmp_path, lws(template(one))))
    assert page["engine"]["name"] == "sglang"
    assert any("exec launcher" in w for w in page["warnings"])


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("serving.kserve.io/v1beta1", "KServe's InferenceService"),
        ("ome.io/v1beta1", "OME's InferenceService"),
        ("system.hero.ai/v1alpha1", "launcher render -f"),
    ],
)
def test_an_inference_service_is_named_for_what_it_is(tmp_path: Path, version: str, words: str) -> None:
    source = write(tmp_path, {"apiVersion": version, "kind": "InferenceService", "metadata": {"name": "m"}})
    result = CliRunner().invoke(main.cli, ["plan", "-f", source])
    assert words in f"{result.exception} {getattr(result.exception, 'fix', '')}"


@pytest.mark.parametrize(
    "spec", [None, [], "x", {"template": []}, {"template": {"spec": {"containers": "x"}}}, {"leaderWorkerTemplate": 3}]
)
@pytest.mark.parametrize("kind", ["StatefulSet", "LeaderWorkerSet", "Job", "JobSet"])
def test_shapes_that_are_none(tmp_path: Path, kind: str, spec: Any) -> None:
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"kind": kind, "metadata": "x", "spec": spec}))
    result = CliRunner().invoke(main.cli, ["plan", "-f", str(tmp_path / "m.yaml")])
    assert "whose container starts the launcher" in str(result.exception), result.exception
