"""A namespace of the suite's own: groups from k8s/ in it, and pods that run the programs of `inside`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.reference.tokens import expected_text
from tests import manifests
from tests.cluster import history
from tests.cluster.kubectl import PATIENCE, Kubectl, KubectlError, Object, Recorder, until, watching
from tests.cluster.options import Options, image_of
from tests.manifests import Pods, of_kind, overlay, size_patch

INSIDE = Path(__file__).with_name("inside")
OURS = {"app.kubernetes.io/part-of": "launcher-cluster-tests"}
INSTANCE = "app.kubernetes.io/instance"
LAUNCHER = "/opt/launcher/launcher"
CLIENT = "client"
ENFORCE = "pod-security.kubernetes.io/enforce"


def script(name: str) -> str:
    return (INSIDE / f"{name}.py").read_text()


class Space:
    """Made as it is entered, removed with all that it holds as it is left, unless `keep`."""

    def __init__(self, name: str, options: Options, folder: Path, level: str = "restricted") -> None:
        self.name, self.options, self.folder, self.level = name, options, folder, level
        self.kubectl = Kubectl(name)

    def __enter__(self) -> Space:
        labels = {**OURS, ENFORCE: self.level}
        scripts = {f"{p.stem}.py": p.read_text() for p in INSIDE.glob("*.py")}
        self.kubectl.apply(
            [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": labels}},
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": "scripts", "namespace": self.name},
                    "data": scripts,
                },
            ]
        )
        return self

    def __exit__(self, *error: object) -> None:
        if self.options.keep:
            print(f"kept: kubectl delete namespace {self.name}")
            return
        self.kubectl("delete", "namespace", self.name, "--wait=false")

    # ------------------------------------------------------------------------------------------------ pods of scripts

    def run(
        self,
        name: str,
        program: str,
        *arguments: str,
        labels: dict[str, str] | None = None,
        node: str = "",
        port: int | None = None,
        privileged: bool = False,
    ) -> str:
        """A pod that runs a program of `inside`, there once it runs (or has ended). Returns its name."""
        container: Object = {
            "name": name,
            "image": self.options.image,
            "command": ["python3", "-u", f"/scripts/{program}.py", *arguments],
            "volumeMounts": [{"name": "scripts", "mountPath": "/scripts", "readOnly": True}],
            "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
        }
        spec: Object = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "scripts", "configMap": {"name": "scripts"}}],
        }
        if privileged:
            spec |= {"hostPID": True, "nodeName": node, "tolerations": [{"operator": "Exists"}]}
            container["securityContext"] = {"privileged": True, "runAsUser": 0}
        else:
            spec["securityContext"] = {
                "runAsNonRoot": True,
                "runAsUser": 12345,
                "seccompProfile": {"type": "RuntimeDefault"},
            }
            container["securityContext"] = {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        if port is not None:
            container["readinessProbe"] = {"tcpSocket": {"port": port}, "periodSeconds": 1}
        metadata = {"name": name, "namespace": self.name, "labels": {**OURS, "run": name, **(labels or {})}}
        objects: list[Object] = [{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}]
        if port is not None:
            service = {"selector": {"run": name}, "ports": [{"port": port}]}
            meta = {"name": name, "namespace": self.name}
            objects.append({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service})
        self.kubectl.apply(objects)
        until(f"pod {name} runs", lambda: self.started(name, port is not None), words=lambda: self.described(name))
        return name

    def started(self, name: str, and_ready: bool = False) -> bool:
        pod = self.kubectl.get("pod", name)
        running = pod["status"].get("phase") in ("Running", "Succeeded", "Failed")
        return running and (history.ready(pod) or not and_ready)

    def described(self, name: str) -> str:
        return self.kubectl.attempt("describe", "pod", name).stdout[-4000:]

    def ended(self, name: str, patience: float = PATIENCE) -> str:
        """What a pod that ends by itself has printed."""
        over = ("Succeeded", "Failed")
        until(f"pod {name} ends", lambda: self.kubectl.get("pod", name)["status"]["phase"] in over, patience)
        return self.kubectl("logs", name)

    def client(self) -> str:
        """A pod of no group, from which one-off requests are sent."""
        if self.kubectl.attempt("get", "pod", CLIENT).returncode:
            self.run(CLIENT, "wait")
        return CLIENT

    def reaches(self, pod: str, *targets: str) -> dict[str, bool]:
        found: dict[str, bool] = json.loads(self.kubectl("exec", pod, "--", "python3", "/scripts/reach.py", *targets))
        return found

    # ------------------------------------------------------------------------------------------------ watches, groups

    @contextmanager
    def watched(self, *kinds: str) -> Iterator[dict[str, Recorder]]:
        with watching(self.kubectl, *(kinds or ("pods", "endpointslices", "statefulsets"))) as watches:
            yield watches

    def group(self, name: str, **more: Any) -> Group:
        return Group(self, name, **more)

    def nodes(self) -> list[str]:
        """Those that take pods."""
        return [
            n["metadata"]["name"]
            for n in self.kubectl.items("nodes")
            if not n["spec"].get("unschedulable")
            and not [t for t in n["spec"].get("taints") or [] if t["effect"] in ("NoSchedule", "NoExecute")]
        ]


@dataclass
class Load:
    """Streams that run in a pod of their own."""

    space: Space
    name: str

    def over(self, patience: float = PATIENCE) -> list[history.Stream]:
        """Every stream, once all have ended."""
        return history.streams(self.space.ended(self.name, patience))


class Group:
    """A kustomization over k8s/, applied: one group, or what `base` and `components` make of it."""

    def __init__(
        self,
        space: Space,
        name: str,
        *,
        size: int = 2,
        base: str = "engines/reference",
        components: Sequence[str] = (),
        patches: Sequence[Object] = (),
        engine: Sequence[str] = (),
        options: Sequence[str] = (),
        objects: list[Object] | None = None,
    ) -> None:
        self.space, self.kubectl, self.name, self.size = space, space.kubectl, name, size
        if objects is None:
            objects = self._overlay(base, components, patches, ["--engine", "reference", *options, "--", *engine])
        self.objects = objects

    def _overlay(
        self, base: str, components: Sequence[str], patches: Sequence[Object], arguments: list[str]
    ) -> list[Object]:
        folder = self.space.folder / self.name
        folder.mkdir(parents=True)
        told = {"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": arguments}
        sets = {"kind": "StatefulSet"}
        model = folder / "model"
        overlay(
            [base],
            [],
            model,
            namePrefix=f"{self.name}-",
            labels=[{"includeSelectors": True, "pairs": {INSTANCE: self.name}}],
            patches=[
                {"target": sets, "patch": size_patch(self.size)},
                {"target": sets, "patch": json.dumps([told])},
            ],
        )
        # No `namespace` here: groups.sh lays components over this, whose objects would have none. kubectl sets it.
        return overlay(
            ["model"],
            components,
            folder,
            images=[image_of(self.space.options.image, "launcher")],
            patches=list(patches),
        )

    @property
    def sets(self) -> list[Pods]:
        return list(manifests.groups(self.objects))

    @property
    def pods(self) -> Pods:
        (found,) = self.sets
        return found

    @property
    def set_name(self) -> str:
        return self.pods.name

    @property
    def leader(self) -> str:
        return f"{self.set_name}-0"

    def member(self, rank: int) -> str:
        return f"{self.set_name}-{rank}"

    @property
    def members(self) -> list[str]:
        return [f"{pods.name}-{rank}" for pods in self.sets for rank in range(pods.size)]

    @property
    def api(self) -> str:
        """The Service for callers."""
        (service,) = (s for s in of_kind(self.objects, "Service") if s["spec"].get("clusterIP") != "None")
        return str(service["metadata"]["name"])

    @property
    def url(self) -> str:
        (service,) = (s for s in of_kind(self.objects, "Service") if s["metadata"]["name"] == self.api)
        return f"http://{self.api}.{self.space.name}:{service['spec']['ports'][0]['port']}"

    # ---------------------------------------------------------------------------------------------------------- life

    def __enter__(self) -> Group:
        self.apply()
        return self

    def __exit__(self, *error: object) -> None:
        if not self.space.options.keep:
            self.kubectl.delete(self.objects)

    def apply(self) -> None:
        self.kubectl.apply(self.objects)

    def found(self) -> list[Object]:
        """Its pods as they are."""
        return self.kubectl.items("pods", "-l", f"{INSTANCE}={self.name}")

    def serves(self) -> bool:
        """Whether every pod is there and ready."""
        pods = self.found()
        return len(pods) == self.size and all(map(history.ready, pods))

    def serving(self, patience: float = PATIENCE) -> float:
        """Seconds until all of it serves."""
        began = time.monotonic()
        until(f"{self.name} serves", self.serves, patience, self.words)
        return time.monotonic() - began

    def again(self, before: set[str], patience: float = PATIENCE) -> None:
        """It serves, and none of its pods or containers is one of `before`: those of `lives`."""
        new = lambda: self.serves() and not before & self.lives()  # noqa: E731
        until(f"{self.name} serves anew", new, patience, self.words)

    def lives(self, *names: str) -> set[str]:
        """Container ids of the engines of these pods, or all."""
        pods = (p for p in self.found() if not names or p["metadata"]["name"] in names)
        return {str(history.engine_state(p).get("containerID")) for p in pods}

    def words(self) -> str:
        logs = [self.kubectl.attempt("logs", m, "--tail=15") for m in self.members]
        return self.kubectl.attempt("get", "pods", "-o", "wide").stdout + "\n".join(
            f"== {name}\n{log.stdout}{log.stderr}" for name, log in zip(self.members, logs, strict=True)
        )

    def status(self, rank: int = 0) -> dict[str, Any]:
        return self.status_of(self.member(rank))

    def status_of(self, pod: str) -> dict[str, Any]:
        """`launcher status` in a pod, which exits with 1 while the group doesn't serve. No answer: not ready."""
        with contextlib.suppress(KubectlError, ValueError):
            done = self.kubectl.attempt("exec", pod, "--", LAUNCHER, "status", "--json", timeout=60)
            found: dict[str, Any] = json.loads(done.stdout)
            return found
        return {"phase": "no answer", "ready": False, "epoch": 0}

    def epoch(self) -> int:
        """The epoch that serves; 0 while none does or the leader can't be asked."""
        status = self.status()
        return int(status["epoch"]) if status["ready"] else 0

    def next_epoch(self, before: int, patience: float = PATIENCE) -> float:
        """Seconds until a later epoch than `before` serves, seen by the pods' readiness too."""
        began = time.monotonic()
        until(f"{self.name} serves a later epoch than {before}", lambda: self.epoch() > before, patience, self.words)
        self.serving(patience)
        return time.monotonic() - began

    def warnings(self) -> list[str]:
        """Warning events of its pods and sets."""
        return history.warnings(self.kubectl.items("events"), [*self.members, *(p.name for p in self.sets)])

    # ---------------------------------------------------------------------------------------------------- its callers

    def complete(self, tokens: int = 5) -> history.Stream:
        """One completion from the client's pod, through the Service."""
        command = ["python3", "/scripts/streams.py", self.url, "--tokens", str(tokens), "--patience", "30"]
        output = self.kubectl("exec", self.space.client(), "--", *command, timeout=240)
        (found,) = history.streams(output)
        return found

    def check(self) -> None:
        """The answer is that of a whole group."""
        stream = self.complete()
        assert not history.complaints([stream], expected_text("hello", 5, size=self.size)), stream

    def load(self, *, at_once: int, tokens: int, seconds: float = 0.0, patience: float = 0.0) -> Load:
        """`at_once` streams in the background; with `seconds`, new ones all that time."""
        name = f"load-{self.name}-{int(time.time() * 10) % 10**6}"
        count = 10**6 if seconds else at_once
        given = {
            "at-once": at_once,
            "count": count,
            "seconds": seconds or 600.0,
            "tokens": tokens,
            "patience": patience,
        }
        self.space.run(name, "streams", self.url, *(f"--{k}={v}" for k, v in given.items()))
        return Load(self.space, name)

    def processes(self, rank: int) -> dict[str, int]:
        """Pids in the pod of this rank: guard, agent, engine (the one that the guard started)."""
        found = json.loads(self.kubectl.python(self.member(rank), script("processes"), "list"))
        engine = next(m["engine_pids"] for m in self.status()["members"] if m["rank"] == rank)
        return roles(found, engine)


def roles(processes: Sequence[dict[str, Any]], engine: Sequence[int], guard: int = 1) -> dict[str, int]:
    """Who is who: the guard is number 1, the engine is known, the agent is the guard's other child with its command."""
    command = next(p["command"] for p in processes if p["pid"] == guard)
    children = [p for p in processes if p["parent"] == guard and p["state"] != "Z"]
    agents = [p["pid"] for p in children if p["pid"] not in engine and p["command"] == command]
    first = [p["pid"] for p in children if p["pid"] in engine]
    assert len(agents) == 1 and first, f"no agent or no engine among {processes}; engine {engine}"
    return {"guard": guard, "agent": int(agents[0]), "engine": int(first[0])}
