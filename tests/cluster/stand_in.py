"""A stand-in for a cluster, so that the scenarios themselves are tried without one: `python -m tests.cluster.stand_in`.

Pods are the network namespaces of tests/pods.py with the real launcher in them. What Kubernetes and KEDA do with them
(StatefulSets, probes, restarts, Services, evictions, watches, scaling) is played here, in as few lines as the scenarios
need, and `kubectl` is a script that hands its arguments over. So this proves the suite's code and the launcher, and
nothing about Kubernetes. Left out: images and init containers, nodes and drains, users and read-only roots, memory
limits, network policies, validation, LeaderWorkerSet.

Needs root and Debian packages, as tests/pods.py does. Arguments go to the suite: -k scaled.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import queue
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import pods as network
from tests.cluster.inside import streams as _streams
from tests.manifests import ROOT, Pods, matches
from tests.unit.test_k8s_groups import evaluate

Object = dict[str, Any]
Key = tuple[str, str]  #: namespace, name

INSIDE = Path(_streams.__file__).parent
LAUNCHER = str(Path(sys.executable).with_name("launcher"))
TICK = 0.2
NOTHING = "!"  #: a selector that selects nothing
KINDS = {
    "pod": "Pod",
    "pods": "Pod",
    "statefulset": "StatefulSet",
    "statefulsets": "StatefulSet",
    "endpointslices": "EndpointSlice",
    "events": "Event",
    "namespace": "Namespace",
    "nodes": "Node",
}


class RefusedError(Exception):
    """What kubectl would say on standard error."""


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Container:
    """A pod: its object, its network namespace, the program that runs in it."""

    def __init__(self, world: World, o: Object, owner: Pods | None, rank: int) -> None:
        self.world, self.object, self.owner, self.rank = world, o, owner, rank
        self.name, self.namespace = o["metadata"]["name"], o["metadata"]["namespace"]
        self.sandbox = world.network.pod(f"{self.name}.{self.namespace}", hostname=self.name, resolvable=False)
        self.spec: Object = o["spec"]["containers"][0]
        self.restarts = 0
        self.last: Object = {}
        self.leaving: float | None = None
        self.termination = self.sandbox.folder / "termination"
        o["metadata"]["uid"] = f"{id(self):x}-{time.monotonic_ns():x}"
        o["status"] = {"phase": "Pending", "podIP": self.sandbox.ip}
        self.start()

    def start(self) -> None:
        self.termination.write_text("")
        self.began, self.started, self.ready = time.monotonic(), False, False
        self.next = {"startupProbe": 0.0, "readinessProbe": 0.0}
        (self.sandbox.folder / "state").mkdir(exist_ok=True)
        command = self.world.command([*self.spec["command"], *self.spec.get("args", [])])
        self.process = self.sandbox.start(command, self.environ(), cwd=str(ROOT))
        self.id = f"stand-in://{self.process.pid}-{self.restarts}"
        self.tell()

    def environ(self) -> dict[str, str]:
        if self.owner is None:
            return {"PYTHONDONTWRITEBYTECODE": "1"}
        given = self.owner.environment(self.rank)
        given |= {k: f"/tmp/home/{k}" for k in given if given[k].startswith("/home/")} | {"HOME": "/tmp/home"}
        given |= {"POD_IP": self.sandbox.ip, "LAUNCHER_STATE_DIR": str(self.sandbox.folder / "state")}
        path = given.pop("PATH")
        return {**given, "LAUNCHER_TERMINATION_LOG": str(self.termination), "PATH": path}

    def tell(self) -> None:
        """The status as the kubelet would write it."""
        code = self.process.returncode
        over = code is not None and self.owner is None
        state = {"running": {"startedAt": now()}} if code is None else {"terminated": {"exitCode": code}}
        status = {
            "phase": "Running" if not over else "Failed" if code else "Succeeded",
            "podIP": self.sandbox.ip,
            "conditions": [{"type": "Ready", "status": str(self.ready and not over)}],
            "containerStatuses": [
                {
                    "name": self.spec["name"],
                    "containerID": self.id,
                    "restartCount": self.restarts,
                    "ready": self.ready,
                    "state": state,
                    "lastState": self.last,
                }
            ],
        }
        if status != self.object["status"]:
            self.object["status"] = status
            self.world.changed("MODIFIED", self.object)

    def look(self) -> None:
        """One look of the kubelet: probes, and a container that ended."""
        if self.process.returncode is not None:
            self.ended()
            return
        if self.owner is None:
            self.ready = True
            self.tell()
            return
        for probe in ("startupProbe",) if not self.started else ("readinessProbe",):
            given = self.spec[probe]
            age = time.monotonic() - self.began
            if age < given.get("initialDelaySeconds", 0) or time.monotonic() < self.next[probe]:
                continue
            self.next[probe] = time.monotonic() + given["periodSeconds"]
            passed, said = self.probe(given)
            if not passed:
                self.world.warn(self.object, "Unhealthy", f"{probe} failed: {said}")
            if probe == "startupProbe":
                self.started = passed
            else:
                self.ready = passed
        self.tell()

    def probe(self, given: Object) -> tuple[bool, str]:
        port = next(p["containerPort"] for p in self.spec["ports"] if p["name"] == given["httpGet"]["port"])
        try:
            url = f"http://{self.sandbox.ip}:{port}{given['httpGet']['path']}"
            status = self.world.network.http(url, timeout=float(given["timeoutSeconds"])).status
        except OSError as error:
            return False, str(error)
        return status == 200, f"statuscode: {status}"

    def ended(self) -> None:
        self.ready = False
        self.tell()
        if self.owner is None or self.leaving is not None:
            return
        code = self.process.returncode
        message = self.termination.read_text()[-4096:]
        self.last = {"terminated": {"exitCode": code, "reason": "Error", "message": message}}
        self.restarts += 1
        self.start()

    def leave(self) -> None:
        if self.leaving is None:
            self.leaving = time.monotonic()
            self.object["metadata"]["deletionTimestamp"] = now()
            self.world.changed("MODIFIED", self.object)
            self.process.signal(signal.SIGTERM)

    def gone(self) -> bool:
        grace = self.object["spec"].get("terminationGracePeriodSeconds", 30)
        return self.process.returncode is not None or time.monotonic() - (self.leaving or 0) > grace


class Scaler:
    """KEDA, as far as k8s/'s ScaledObjects need it: a threshold between 0 and a number, or a formula."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.next: dict[Key, float] = {}
        self.active: dict[Key, float] = {}  #: when the load was last above the threshold
        self.above: dict[Key, float] = {}  #: when the formula last asked for as many as there are

    def look(self, o: Object) -> None:
        key = (o["metadata"]["namespace"], o["metadata"]["name"])
        spec, at = o["spec"], time.monotonic()
        if at < self.next.get(key, 0.0):
            return
        self.next[key] = at + spec["pollingInterval"]
        load = self.load(spec["triggers"][0]["metadata"])
        scaled = self.world.objects["StatefulSet", key[0], spec["scaleTargetRef"]["name"]]
        there = scaled["spec"]["replicas"]
        if load is None:  # an error of the trigger: all stays as it is
            return
        wanted = self.wanted(spec, load)
        if wanted:
            self.active[key] = at
        elif there and at - self.active.get(key, 0.0) <= spec["cooldownPeriod"]:
            wanted = min(there, spec["minReplicaCount"])
        if wanted >= there or not wanted:
            self.above[key] = at
        elif at - self.above[key] < spec["cooldownPeriod"]:
            wanted = there
        if wanted != there:
            self.world.change(key[0], scaled["metadata"]["name"], {"spec": {"replicas": wanted}})

    def load(self, trigger: Object) -> float | None:
        server = trigger["serverAddress"].replace(":9090", ".svc.cluster.local:9090")
        try:
            answer = self.world.network.http(f"{server}/api/v1/query?query=load")
        except OSError:
            return None
        found = answer.json()["data"]["result"] if answer.status == 200 else []
        return float(found[0]["value"][1]) if found else None

    def wanted(self, spec: Object, load: float) -> int:
        modifiers = spec.get("advanced", {}).get("scalingModifiers")
        if modifiers:
            return int(evaluate(modifiers["formula"], {spec["triggers"][0]["name"]: load}))
        above = load > float(spec["triggers"][0]["metadata"]["activationThreshold"])
        return int(spec["minReplicaCount"] if above else spec["idleReplicaCount"])


class World:
    """Objects, the pods that they make, and who watches."""

    def __init__(self, made: network.Cluster) -> None:
        self.network = made
        self.lock = threading.RLock()
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.pods: dict[Key, Container] = {}
        self.watches: list[tuple[str, str, queue.SimpleQueue[Object]]] = []
        self.closed = threading.Event()
        self.scaler = Scaler(self)

    # ------------------------------------------------------------------------------------------------------- objects

    def changed(self, kind: str, o: Object) -> None:
        for what, namespace, told in self.watches:
            if what == o["kind"] and namespace == o["metadata"].get("namespace", ""):
                told.put({"type": kind, "object": copy.deepcopy(o)})

    def put(self, o: Object) -> None:
        key = (o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"])
        before = self.objects.get(key)
        metadata = o["metadata"]
        metadata["generation"] = before["metadata"]["generation"] + 1 if before else 1
        if before and "status" in before:
            o["status"] = before["status"]
        self.objects[key] = o
        self.changed("MODIFIED" if before else "ADDED", o)
        if o["kind"] == "Pod" and key[1:] not in self.pods:
            self.pods[key[1], key[2]] = Container(self, o, None, 0)

    def remove(self, kind: str, namespace: str, name: str) -> None:
        o = self.objects.pop((kind, namespace, name), None)
        if o is not None:
            self.changed("DELETED", o)

    def warn(self, o: Object, reason: str, message: str) -> None:
        name = f"{o['metadata']['name']}.{len(self.objects)}.{time.monotonic_ns()}"
        metadata = {"name": name, "namespace": o["metadata"]["namespace"], "labels": {}}
        involved = {"kind": o["kind"], "name": o["metadata"]["name"]}
        self.put({"kind": "Event", "metadata": metadata, "type": "Warning", "reason": reason, "message": message,
                  "involvedObject": involved})  # fmt: skip

    def of(self, kind: str, namespace: str, selector: str = "") -> list[Object]:
        if selector == NOTHING:
            return []
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        found = [o for (k, n, _), o in sorted(self.objects.items()) if k == kind and n == namespace]
        return [o for o in found if matches(wanted, o["metadata"].get("labels") or {})]

    # --------------------------------------------------------------------------------------------------- controllers

    def run(self) -> None:
        while not self.closed.wait(TICK):
            with self.lock:
                for pod in list(self.pods.values()):
                    pod.look()
                    if pod.leaving is not None and pod.gone():
                        self.drop(pod)
                for o in [o for (kind, _, _), o in self.objects.items() if kind == "StatefulSet"]:
                    self.control(o)
                for o in [o for (kind, _, _), o in self.objects.items() if kind == "Service"]:
                    self.route(o)
                for o in [o for (kind, _, _), o in self.objects.items() if kind == "ScaledObject"]:
                    self.scaler.look(o)

    def drop(self, pod: Container) -> None:
        pod.process.kill_all()
        pod.sandbox.close()
        del self.pods[pod.namespace, pod.name]
        self.remove("Pod", pod.namespace, pod.name)

    def control(self, o: Object) -> None:
        spec, namespace = o["spec"], o["metadata"]["namespace"]
        template = json.dumps(spec["template"], sort_keys=True)
        revision = f"{o['metadata']['name']}-{hashlib.sha256(template.encode()).hexdigest()[:8]}"
        o["status"] = {"updateRevision": revision, "observedGeneration": o["metadata"]["generation"]}
        names = {f"{o['metadata']['name']}-{i}": i for i in range(spec.get("replicas", 1))}
        mine = [p for p in self.pods.values() if p.owner and p.owner.name == o["metadata"]["name"]]
        mine = [p for p in mine if p.namespace == namespace]
        for pod in mine:
            if pod.name not in names:
                pod.leave()
        for name, ordinal in names.items():
            if (namespace, name) not in self.pods:
                self.make(o, namespace, name, ordinal, revision)
        outdated = [p for p in mine if p.object["metadata"]["labels"]["controller-revision-hash"] != revision]
        by_itself = spec["updateStrategy"]["type"] == "RollingUpdate"
        if by_itself and outdated and all(p.ready and p.leaving is None for p in mine):
            max(outdated, key=lambda p: p.rank).leave()

    def make(self, o: Object, namespace: str, name: str, ordinal: int, revision: str) -> None:
        pods = Pods(copy.deepcopy(o), copy.deepcopy(o["spec"]["template"]))
        template = pods.template["metadata"]
        labels = {
            **template["labels"],
            "apps.kubernetes.io/pod-index": str(ordinal),
            "controller-revision-hash": revision,
        }
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        metadata["annotations"] = template.get("annotations", {})
        pod: Object = {"kind": "Pod", "metadata": metadata, "spec": pods.spec}
        self.objects["Pod", namespace, name] = pod
        made = Container(self, pod, pods, ordinal)
        self.pods[namespace, name] = made
        self.changed("ADDED", pod)
        self.network.dns.set(f"{name}.{o['spec']['serviceName']}.{namespace}.svc.cluster.local", made.sandbox.ip)

    def route(self, service: Object) -> None:
        """The Service's EndpointSlice, and its name: of one of its ready pods, as no load is spread here."""
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        if service["spec"].get("clusterIP") == "None":
            return
        chosen = [p for p in self.pods.values() if p.namespace == namespace]
        chosen = [p for p in chosen if matches(service["spec"]["selector"], p.object["metadata"].get("labels") or {})]
        endpoints = [
            {
                "addresses": [p.sandbox.ip],
                "conditions": {"ready": p.ready and p.leaving is None},
                "targetRef": {"kind": "Pod", "name": p.name},
            }
            for p in sorted(chosen, key=lambda p: p.name)
        ]
        before = self.objects.get(("EndpointSlice", namespace, name), {})
        if before.get("endpoints") == endpoints:
            return
        labels = {"kubernetes.io/service-name": name}
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        self.put({"kind": "EndpointSlice", "metadata": metadata, "endpoints": endpoints})
        ready = [p.sandbox.ip for p in chosen if p.ready and p.leaving is None]
        self.network.dns.set(f"{name}.{namespace}.svc.cluster.local", *ready[:1])

    def command(self, words: Sequence[str]) -> list[str]:
        """A command of a pod as it runs here, where there is no image."""
        found = [LAUNCHER if w == "/opt/launcher/launcher" else w.replace("/scripts/", f"{INSIDE}/") for w in words]
        return [sys.executable, *found[1:]] if found[0] == "python3" else found

    # ------------------------------------------------------------------------------------------------------- kubectl

    def answer(self, words: list[str], text: str) -> Iterator[str]:
        """What kubectl prints for these arguments. Raises RefusedError."""
        namespace = words[1]
        verb, *rest = words[2:]
        if "--" in rest:
            at = rest.index("--")
            rest, tail = rest[:at], rest[at + 1 :]
        else:
            tail = []
        options, names = parsed(rest)
        if verb == "exec":
            yield from self.execute(namespace, names[0], tail, text)
            return
        if verb == "get" and "--watch" in options:
            yield from self.watch(KINDS[names[0]], namespace)
            return
        with self.lock:
            yield self.now(verb, namespace, names, options, text)

    def now(self, verb: str, namespace: str, names: list[str], options: Mapping[str, str], text: str) -> str:
        if verb == "version":
            return json.dumps({"serverVersion": {"gitVersion": "of the stand-in"}})
        if verb == "auth":
            return "yes\n"
        if verb == "apply":
            for o in items(text, namespace):
                self.put(o)
            return ""
        if verb == "get":
            return self.get(namespace, names, options)
        if verb == "delete":
            return self.delete(namespace, names, options, text)
        if verb == "scale":
            self.change(namespace, names[1], {"spec": {"replicas": int(options["--replicas"])}})
            return ""
        if verb == "patch":
            self.change(namespace, names[1], json.loads(options["-p"]))
            return ""
        if verb == "logs":
            return self.pod(namespace, names[0]).process.output()
        if verb == "describe":
            return json.dumps(self.pod(namespace, names[1]).object, indent=1).replace('"message": ', "Message: ")
        if verb == "create":
            return self.evict(namespace, json.loads(text)["metadata"]["name"])
        raise RefusedError(f"the stand-in has no {verb} {names}")

    def pod(self, namespace: str, name: str) -> Container:
        if (namespace, name) not in self.pods:
            raise RefusedError(f'pods "{name}" not found')
        return self.pods[namespace, name]

    def get(self, namespace: str, names: list[str], options: Mapping[str, str]) -> str:
        if names[:1] == ["crd"] and names[1] == "scaledobjects.keda.sh":
            return "{}"
        if "--raw" in options or names[0] not in KINDS:
            raise RefusedError("not found")
        kind = KINDS[names[0]]
        if len(names) > 1:
            one = self.objects.get((kind, namespace, names[1]))
            if one is None:
                raise RefusedError(f'{names[0]} "{names[1]}" not found')
            output = options.get("-o", "json")
            return field(one, output) if output.startswith("jsonpath=") else json.dumps(one)
        listed = self.of(kind, namespace, options.get("-l", ""))
        output = options.get("-o", "json")
        if output.startswith("jsonpath="):
            return "".join(line(o, output) for o in listed)
        return json.dumps({"kind": "List", "items": listed})

    def delete(self, namespace: str, names: list[str], options: Mapping[str, str], text: str) -> str:
        if text:
            doomed = [(o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]) for o in items(text, namespace)]
        elif names[0] == "namespace":
            doomed = [key for key in self.objects if key[1] == names[1]]
        else:
            doomed = [("Pod", namespace, name) for name in names[1:]]
            doomed += [
                ("Pod", namespace, o["metadata"]["name"]) for o in self.of("Pod", namespace, options.get("-l", NOTHING))
            ]
        for kind, space, name in doomed:
            if kind == "Pod" and (space, name) in self.pods:
                self.pods[space, name].leave()
            else:
                self.remove(kind, space, name)
            if kind == "StatefulSet":
                for pod in list(self.pods.values()):
                    if pod.namespace == space and pod.owner and pod.owner.name == name:
                        pod.leave()
        return ""

    def change(self, namespace: str, name: str, patch: Object) -> None:
        o = copy.deepcopy(self.objects["StatefulSet", namespace, name])
        self.put(merged(o, patch))

    def evict(self, namespace: str, name: str) -> str:
        """By the budget's arithmetic: one pod may be missing, and an unhealthy one may always go."""
        pod = self.pod(namespace, name)
        budgets = self.of("PodDisruptionBudget", namespace)
        for budget in budgets:
            selector = budget["spec"]["selector"]["matchLabels"]
            mine = [p for p in self.pods.values() if matches(selector, p.object["metadata"].get("labels") or {})]
            if pod not in mine or not pod.ready:
                continue
            missing = sum(not p.ready or p.leaving is not None for p in mine)
            if missing >= budget["spec"]["maxUnavailable"]:
                raise RefusedError("Cannot evict pod as it would violate the pod's disruption budget.")
        pod.leave()
        return ""

    def execute(self, namespace: str, name: str, words: list[str], text: str) -> Iterator[str]:
        with self.lock:
            pod = self.pod(namespace, name)
        if text and "-" in words:
            script = pod.sandbox.folder / f"stdin-{time.monotonic_ns()}.py"
            script.write_text(text)
            words = [str(script) if w == "-" else w for w in words]
        process = pod.sandbox._sandbox.start(
            self.command(words),
            {**pod.sandbox.environment, **pod.environ()},
            pod.sandbox.folder / f"exec-{time.monotonic_ns()}",
            cwd=str(ROOT),
            beside=pod.process,
        )
        code = process.wait(600)
        yield process.output()
        if code:
            raise RefusedError(f"command terminated with exit code {code}")

    def watch(self, kind: str, namespace: str) -> Iterator[str]:
        told: queue.SimpleQueue[Object] = queue.SimpleQueue()
        with self.lock:
            for o in self.of(kind, namespace):
                told.put({"type": "ADDED", "object": copy.deepcopy(o)})
            self.watches.append((kind, namespace, told))
        while not self.closed.is_set():
            with contextlib.suppress(queue.Empty):
                yield json.dumps(told.get(timeout=1.0), indent=2) + "\n"


def items(text: str, namespace: str) -> list[Object]:
    """The objects of a list; one that names no namespace is of the call's, as with kubectl."""
    found: list[Object] = json.loads(text)["items"]
    for o in found:
        if o["kind"] != "Namespace":
            o["metadata"].setdefault("namespace", namespace)
    return found


def parsed(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options and names of kubectl's arguments, as far as the suite and rollout.sh use them."""
    options, names = {}, []
    takes = {"-o", "-l", "-n", "-p", "-f", "--raw"}
    waiting = ""
    for word in words:
        if waiting:
            options[waiting], waiting = word, ""
        elif word in takes:
            waiting = word
        elif word.startswith("-") and word != "-":
            key, _, value = word.partition("=")
            options[key] = value
        else:
            names.append(word)
    return options, names


def merged(o: Any, patch: Any) -> Any:
    """A strategic merge: objects by field, lists of named things by name."""
    if isinstance(o, dict) and isinstance(patch, dict):
        return {**o, **{k: merged(o.get(k), v) for k, v in patch.items()}}
    if (
        isinstance(o, list)
        and isinstance(patch, list)
        and all(isinstance(e, dict) and "name" in e for e in [*o, *patch])
    ):
        named = {e["name"]: e for e in o}
        return list({**named, **{e["name"]: merged(named.get(e["name"]), e) for e in patch}}.values())
    return patch


def field(o: Object, output: str) -> str:
    """`jsonpath={.a.b}`."""
    value: Any = o
    for key in output.removeprefix("jsonpath=").strip("{}.").split("."):
        value = value.get(key, "") if isinstance(value, dict) else ""
    return str(value)


def line(o: Object, output: str) -> str:
    """The two lists that k8s/rollout.sh asks for."""
    metadata = o["metadata"]
    if "controller-revision-hash" not in output:
        return f"{metadata['name']}\n"
    ready = next((c["status"] for c in o["status"].get("conditions", []) if c["type"] == "Ready"), "")
    revision = metadata["labels"].get("controller-revision-hash", "")
    return f"{metadata['name']} {revision} {ready} {metadata.get('deletionTimestamp', '')}\n"


# ------------------------------------------------------------------------------------------------------------- kubectl

CLIENT = """#!{python} -IS
import json, select, socket, sys
words = sys.argv[1:]
if words[0] != "--namespace":  # as k8s/rollout.sh writes it
    at = words.index("-n")
    words = ["--namespace", words[at + 1], *words[:at], *words[at + 2:]]
text = sys.stdin.read() if "-" in words or words[-1] == "-" else ""
connection = socket.socket(socket.AF_UNIX)
connection.connect({path!r})
connection.sendall(json.dumps([words, text]).encode() + b"\\n")
for line in connection.makefile():
    stream, said = json.loads(line)
    if stream == "end":
        sys.exit(said)
    print(said, end="", flush=True, file=sys.stderr if stream == "error" else sys.stdout)
sys.exit(1)
"""


class Handler(socketserver.StreamRequestHandler):
    """One call of kubectl."""

    def handle(self) -> None:
        words, text = json.loads(self.rfile.readline())
        code = 0
        with contextlib.suppress(OSError):
            try:
                for said in self.server.world.answer(words, text):  # type: ignore[attr-defined]
                    self.say("output", said)
            except RefusedError as error:
                code = 1
                self.say("error", f"{error}\n")
            except Exception as error:
                code = 1
                self.say("error", f"the stand-in broke over {words}: {type(error).__name__}: {error}\n")
                raise
            finally:
                self.say("end", code)

    def say(self, stream: str, said: object) -> None:
        self.wfile.write(json.dumps([stream, said]).encode() + b"\n")


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


@contextlib.contextmanager
def stand_in() -> Iterator[str]:
    """The path of a `kubectl` that reaches the stand-in."""
    with tempfile.TemporaryDirectory(prefix="launcher-stand-in-") as folder, network.Cluster() as made:
        world = World(made)
        path = f"{folder}/socket"
        kubectl = Path(folder, "kubectl")
        kubectl.write_text(CLIENT.format(python=sys.executable, path=path))
        kubectl.chmod(0o755)
        with Server(path, Handler) as server:
            server.world = world  # type: ignore[attr-defined]
            threads = [threading.Thread(target=t) for t in (server.serve_forever, world.run)]
            for thread in threads:
                thread.start()
            try:
                yield str(kubectl)
            finally:
                world.closed.set()
                server.shutdown()
                for thread in threads:
                    thread.join()


def main(arguments: Sequence[str]) -> int:
    reason = network.why_not()
    if reason:
        print(f"no stand-in: {reason}", file=sys.stderr)
        return 69
    with stand_in() as kubectl:
        environ = {**os.environ, "KUBECTL": kubectl}
        return subprocess.run([sys.executable, "-m", "tests.cluster", *arguments], env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
