"""`launcher plan -f`: a manifest is read as the kubelet would read it, and what cannot be known is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from launcher.cli import main, manifest
from launcher.errors import ConfigError, LauncherError, UsageError
from tests.manifests import K8S, build, folders, named

ENGINE: dict[str, Any] = {
    "name": "engine",
    "image": "vllm/vllm-openai:v0.11.2",
    "command": ["/opt/launcher/launcher"],
    "args": ["--engine", "vllm", "--backend", "mp", "--model", "/m", "--tp", "16", "--size", "$(SIZE)"],
    "env": [
        {"name": "SIZE", "value": "2"},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
    ],
    "resources": {"limits": {"nvidia.com/gpu": 8}},
}


INDEXED = {"completionMode": "Indexed", "completions": 2, "parallelism": 2}
IN_ORDER = {
    "replicas": 2,
    "serviceName": "peers",
    "podManagementPolicy": "Parallel",
    "updateStrategy": {"type": "OnDelete"},
}


def stateful_set(container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "proxy"}, container]}}
    return {
        "kind": "StatefulSet",
        "metadata": {"name": "llama", "namespace": "prod"},
        "spec": {**IN_ORDER, "template": template, **spec},
    }


def write(path: Path, *objects: Any) -> str:
    file = path / "manifest.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    return str(file)


def plan(source: str, *more: str, code: int = 0) -> list[dict[str, Any]]:
    result = CliRunner().invoke(main.cli, ["plan", "-f", source, "--json", *more], catch_exceptions=False)
    assert result.exit_code == code, result.output
    pages: list[dict[str, Any]] = json.loads(result.stdout)
    return pages


def test_a_stateful_set(tmp_path: Path) -> None:
    container = {**ENGINE, "args": [*ENGINE["args"], "--service", "peers"]}
    (page,) = plan(write(tmp_path, {"kind": "Service"}, stateful_set(container)))
    assert page["manifest"] == "StatefulSet llama, namespace prod, container engine"
    assert (page["identity"]["rank"], page["identity"]["size"], page["identity"]["source"]) == (0, 2, "statefulset")
    assert page["identity"]["leader"] == "llama-0.peers.prod.svc.cluster.local"
    assert page["engine"]["gpus_per_pod"] == 8
    assert len(page["ranks"]) == 2
    assert "--node-rank" in page["ranks"][1]["stages"][0]["processes"][0]["argv"]
    text = "\n".join(page["warnings"])
    assert "planned without: HF_TOKEN" in text
    assert "taken from the image's tag: 0.11.2" in text
    assert "is not known (say it" not in text


def test_options_on_the_command_line_win(tmp_path: Path) -> None:
    source = write(tmp_path, stateful_set({**ENGINE, "args": [*ENGINE["args"], "--service", "peers"]}))
    (page,) = plan(source, "--model", "/other", "--", "--max-model-len=10")
    argv = page["ranks"][0]["stages"][0]["processes"][0]["argv"]
    assert "/other" in argv and "--max-model-len=10" in argv


def test_replicas_that_make_no_whole_group(tmp_path: Path) -> None:
    container = {**ENGINE, "args": [*ENGINE["args"], "--service", "peers"]}
    (page,) = plan(write(tmp_path, stateful_set(container, replicas=3)), code=78)
    (problem,) = page["problems"]
    assert problem["path"] == "spec.replicas"
    assert "replicas 3 is no multiple of --size 2: the last group would never be whole" in problem["what"]


def test_a_leader_worker_set_in_a_list(tmp_path: Path) -> None:
    own = stateful_set(ENGINE)
    template = own["spec"]["template"]
    lws = {
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "llama"},
        "spec": {"leaderWorkerTemplate": {"size": 2, "workerTemplate": template, "leaderTemplate": {**template}}},
    }
    (page,) = plan(write(tmp_path, {"kind": "List", "items": [lws]}))
    assert (page["identity"]["source"], page["identity"]["leader"]) == ("lws", "llama-0.llama.default")


def test_an_indexed_job_of_an_image_whose_entrypoint_is_the_launcher(tmp_path: Path) -> None:
    container = {k: v for k, v in ENGINE.items() if k != "command"}
    job = stateful_set({**container, "args": [*container["args"], "--service", "peers"]}, **INDEXED)
    job["spec"]["template"]["spec"]["subdomain"] = "peers"
    (page,) = plan(write(tmp_path, {**job, "kind": "Job"}))
    assert page["identity"]["source"] == "job"


@pytest.mark.parametrize(
    ("objects", "error", "words"),
    [
        ([{"kind": "Deployment"}], ConfigError, "holds no StatefulSet, LeaderWorkerSet, Job"),
        ([stateful_set({"name": "other", "command": ["sleep"]})], ConfigError, "whose container starts the launcher"),
        ([stateful_set({**ENGINE, "args": ["doctor"]})], ConfigError, "runs `launcher doctor`"),
        ([stateful_set({**ENGINE, "args": ["--tpp", "1"]})], ConfigError, "No such option"),
        ([stateful_set({**ENGINE, "args": ["--tp", "x"]})], LauncherError, "x"),
    ],
)
def test_what_cannot_be_planned(tmp_path: Path, objects: list[Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        main.cli.main(["plan", "-f", write(tmp_path, *objects)], standalone_mode=False)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        manifest.read(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UsageError, match="is not YAML"):
        manifest.read(str(tmp_path / "bad.yaml"))


def test_references_are_replaced_as_kubernetes_does(tmp_path: Path) -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$$(A)-$(NONE)"}]
    (told,) = manifest.read(write(tmp_path, stateful_set({**ENGINE, "env": env, "args": ["--model", "$(B)"]})))
    assert told.args == ("--model", "1-$(A)-$(NONE)")


@pytest.mark.parametrize("folder", [f for f in folders("Kustomization") if f.parent.name == "models"], ids=named)
def test_our_own_model_templates(tmp_path: Path, folder: Path) -> None:
    assert K8S in folder.parents
    for page in plan(write(tmp_path, *build(folder))):
        assert len(page["ranks"]) == page["identity"]["size"]
        assert page["engine"]["gpus_per_pod"]
