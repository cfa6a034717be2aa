"""Finds what would deadlock or break in a manifest, for `launcher plan -f`. Pure functions of objects and settings.

A `Problem` keeps the group from forming, kills its pods or makes the API server reject them; `plan` exits with 78. A
warning is about what works at a cost: requests lost at a stop, speed, a restart for each pod. A correct manifest gets
neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.cli.manifest import ManifestPod, Problem, as_list, as_mapping, as_texts, field_at
from launcher.identity import service_links
from launcher.settings import PORTS, Settings

KUBERNETES_GRACE = 30  #: the default of terminationGracePeriodSeconds
LIVENESS, READINESS = "/livez", "/readyz"
SERVED = (LIVENESS, READINESS, "/status", "/metrics")
#: Settings outside the fingerprint that must be equal for the ranks to find each other.
ALIKE = ("group_id", *(name for name in PORTS if name not in ("port", "agent_port")))
SHM_GPUS = 2  #: from this many GPUs in a pod on, NCCL shares memory between their processes


@dataclass(frozen=True)
class ManifestFindings:
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """The input of a check."""

    pod: ManifestPod
    settings: Settings
    size: int

    @property
    def kind(self) -> str:
        return str(self.pod.owner.get("kind"))

    @property
    def spec(self) -> Mapping[str, Any]:
        return as_mapping(self.pod.owner.get("spec"))

    @property
    def pod_spec(self) -> Mapping[str, Any]:
        return as_mapping(self.pod.template.get("spec"))

    @property
    def pod_at(self) -> str:
        return f"{self.pod.template_at}.spec"

    @property
    def together(self) -> bool:
        """Whether a group has several pods."""
        return self.size > 1

    def others(self, kind: str) -> Iterator[Mapping[str, Any]]:
        """Objects of one kind in the same file and namespace."""
        own = field_at(self.pod.owner, "metadata", "namespace")
        for o in self.pod.others:
            if o.get("kind") == kind and field_at(o, "metadata", "namespace") in (own, None):
                yield o


Finding = Problem | str
Check = Callable[[View], Iterator[Finding]]


def examine(pod: ManifestPod, settings: Settings) -> ManifestFindings:
    """Run every check that is possible before the pods run."""
    size = settings.size or _lws_size(pod) or 1
    view = View(pod, settings, size)
    found = [*pod.problems, *(finding for check in CHECKS for finding in check(view))]
    problems = tuple(f for f in found if isinstance(f, Problem))
    return ManifestFindings(problems, tuple(f for f in found if isinstance(f, str)))


def _lws_size(pod: ManifestPod) -> int | None:
    text = pod.environ.get("LWS_GROUP_SIZE", "")
    return int(text) if text.isdecimal() else None


def unlike(leader: ManifestPod, settings: Settings, worker: ManifestPod, own: Settings) -> Iterator[Problem]:
    """Settings that must be equal on all ranks but differ in rank 1's own pod template."""
    from launcher.model import NodeFacts
    from launcher.planning import steps

    def facts(s: Settings) -> dict[str, str]:
        found = steps.fingerprint(s, steps.engine_of(s), NodeFacts(gpus=s.gpus_per_pod))
        for name in ALIKE:
            found[name.replace("_", "-")] = str(getattr(s, name))
        return found

    one, two = facts(settings), facts(own)
    for key in (k for k in {**one, **two} if one.get(k) != two.get(k)):
        option = key if "." in key else f"--{key}"
        theirs, ours = (
            f"{option} {v}" if v not in (None, "None") else f"no {option}" for v in (two.get(key), one.get(key))
        )
        yield Problem(
            worker.container_at,
            f"{theirs}, and leaderTemplate has {ours}: the group waits as mismatched",
            f"give {option} the same value in leaderTemplate and workerTemplate",
        )


# --------------------------------------------------------------------------------------------------- the controller


def _stateful_set(view: View) -> Iterator[Finding]:
    if view.kind != "StatefulSet":
        return
    spec, settings, size = view.spec, view.settings, view.size
    policy = spec.get("podManagementPolicy", "OrderedReady")
    if view.together and policy != "Parallel":
        yield Problem(
            "spec.podManagementPolicy",
            f"{policy}: pod 1 is made once pod 0 is ready, and pod 0 waits for pod 1: the group never forms",
            "set podManagementPolicy: Parallel (it cannot be changed in place: delete the StatefulSet and apply anew)",
        )
    start = field_at(spec, "ordinals", "start") or 0
    said = settings.ordinal_start or 0
    if view.together and start != said:
        yield Problem(
            "spec.ordinals.start",
            f"{start}, and the launcher is given --ordinal-start {said}: ranks and leaders come out wrong",
            f"give --ordinal-start {start}",
        )
    if view.pod.replicas is not None and view.pod.replicas % size:
        yield Problem(
            "spec.replicas",
            f"replicas {view.pod.replicas} is no multiple of --size {size}: the last group would never be whole",
            f"give a multiple of {size}",
        )
    service = spec.get("serviceName")
    if view.together and settings.service and service != settings.service:
        yield Problem(
            "spec.serviceName",
            f"{service or 'absent'}, and the launcher is given --service {settings.service}: the pods' names exist "
            f"under "
            "serviceName only, so the leader never resolves",
            f"give --service {service}" if service else f"set serviceName: {settings.service}",
        )
    strategy = field_at(spec, "updateStrategy", "type") or "RollingUpdate"
    if view.together and strategy != "OnDelete":
        yield (
            f"spec.updateStrategy: {strategy} replaces pod by pod, so a rollout restarts the group {size} times: set "
            "type: OnDelete and roll out by whole groups"
        )


def _service(view: View) -> Iterator[Finding]:
    """The headless Service that names the pods, if it is in the same file."""
    name = {
        "StatefulSet": view.spec.get("serviceName"),
        "Job": view.pod_spec.get("subdomain"),
    }.get(view.kind)
    if not view.together or not isinstance(name, str):
        return
    labels = as_texts(field_at(view.pod.template, "metadata", "labels"))
    for service in view.others("Service"):
        if field_at(service, "metadata", "name") != name:
            continue
        if field_at(service, "spec", "clusterIP") != "None":
            yield Problem(
                f"Service {name}: spec.clusterIP",
                "this Service is not headless, so its pods get no DNS names and the leader never resolves",
                "set clusterIP: None",
            )
        if field_at(service, "spec", "publishNotReadyAddresses") is not True:
            yield Problem(
                f"Service {name}: spec.publishNotReadyAddresses",
                "absent: a pod gets its name once it is ready, and it becomes ready once the group has found it "
                "by name",
                "set publishNotReadyAddresses: true",
            )
        selector = as_texts(field_at(service, "spec", "selector"))
        wrong = {k: v for k, v in selector.items() if labels.get(k) != v}
        if wrong and not any(k.startswith(("apps.kubernetes.io/", "statefulset.kubernetes.io/")) for k in wrong):
            shown = ", ".join(f"{k}: {v}" for k, v in sorted(wrong.items()))
            yield Problem(
                f"Service {name}: spec.selector",
                f"{shown} matches no label of the pods, so they get no DNS names",
                "select by the labels of the pod template",
            )


def _job(view: View) -> Iterator[Finding]:
    if view.kind not in ("Job", "JobSet") or not view.together:
        return
    at = view.pod.template_at.removesuffix(".template")
    spec = as_mapping(view.pod.owner)
    for key in at.replace("[", ".[").split("."):
        spec = as_list(spec)[int(key[1:-1])] if key.startswith("[") else as_mapping(spec).get(key, {})
    mode = spec.get("completionMode", "NonIndexed" if view.kind == "Job" else "Indexed")
    if mode != "Indexed" and view.settings.rank is None:
        yield Problem(
            f"{at}.completionMode", f"{mode}: the pods have no index, so no ranks", "set completionMode: Indexed"
        )
    for key in ("completions", "parallelism"):
        count = spec.get(key, 1)
        if count != view.size:
            yield Problem(
                f"{at}.{key}",
                f"{count}, and the launcher is given --size {view.size}: "
                + (
                    "the group never becomes whole"
                    if isinstance(count, int) and count < view.size
                    else "some pods fit in no group"
                ),
                f"set {key}: {view.size}",
            )
    if view.kind == "Job" and view.settings.service and not view.settings.leader:
        subdomain = view.pod_spec.get("subdomain")
        if subdomain != view.settings.service:
            yield Problem(
                f"{view.pod_at}.subdomain",
                f"{subdomain or 'absent'}, and the launcher is given --service {view.settings.service}: the "
                f"leader's name "
                "never resolves",
                f"set subdomain: {view.settings.service}",
            )


def _leader_worker_set(view: View) -> Iterator[Finding]:
    if view.kind != "LeaderWorkerSet" or not view.together:
        return
    if view.spec.get("startupPolicy") == "LeaderReady":
        yield Problem(
            "spec.startupPolicy",
            "LeaderReady: the workers are made once the leader is ready, and the leader waits for them: the "
            "group never "
            "forms",
            "set startupPolicy: LeaderCreated",
        )
    size = _lws_size(view.pod)
    if size is not None and view.settings.size not in (None, size):
        yield Problem(
            "spec.leaderWorkerTemplate.size",
            f"{size}, and the launcher is given --size {view.settings.size}",
            "leave out --size: LeaderWorkerSet tells it",
        )


# ---------------------------------------------------------------------------------------------------------- the pod


def _host_network(view: View) -> Iterator[Finding]:
    if view.pod_spec.get("hostNetwork") is not True or not view.together:
        return
    named = any(view.pod.environ.get(v) for v in ("POD_NAME", "POD_INDEX"))
    if view.kind == "StatefulSet" and not named and view.settings.rank is None:
        yield Problem(
            f"{view.pod_at}.hostNetwork",
            "true without POD_NAME: the hostname is the node's, whose number is no ordinal",
            "set POD_NAME in env by fieldRef metadata.name",
        )
    if view.pod_spec.get("dnsPolicy") not in ("ClusterFirstWithHostNet", "None"):
        yield Problem(
            f"{view.pod_at}.dnsPolicy",
            f"{view.pod_spec.get('dnsPolicy', 'ClusterFirst')} under hostNetwork asks the node's DNS, where the "
            f"leader's name "
            "does not exist",
            "set dnsPolicy: ClusterFirstWithHostNet",
        )


def _names(view: View) -> Iterator[Finding]:
    """Variables that the pod needs to identify itself when nothing else provides them."""
    if not view.together or view.kind == "LeaderWorkerSet":
        return
    said = view.pod.environ.get("POD_NAMESPACE") or view.settings.namespace or view.settings.leader
    if view.pod_spec.get("automountServiceAccountToken") is False and not said:
        yield Problem(
            f"{view.pod.container_at}.env",
            "POD_NAMESPACE is absent and no service account is mounted: the leader's name cannot be made",
            "set POD_NAMESPACE in env by fieldRef metadata.namespace",
        )
    networks = as_texts(field_at(view.pod.template, "metadata", "annotations")).get("k8s.v1.cni.cncf.io/networks")
    if networks and not view.settings.address and not _by_field(view, "POD_IP", "status.podIP"):
        yield (
            f"{view.pod.container_at}.env: the pod has several networks ({networks}) and no POD_IP: its address "
            f"is the "
            "one by which it reaches the leader; set POD_IP by fieldRef status.podIP"
        )


def _by_field(view: View, name: str, path: str) -> bool:
    for entry in (as_mapping(e) for e in as_list(view.pod.container.get("env"))):
        if entry.get("name") == name:
            return bool(entry.get("value")) or field_at(entry, "valueFrom", "fieldRef", "fieldPath") in (
                path,
                f"{path}s",
            )
    return False


def _service_links(view: View) -> Iterator[Finding]:
    if view.pod_spec.get("enableServiceLinks") is False:
        return
    for service in view.others("Service"):
        name = str(field_at(service, "metadata", "name"))
        variable = f"{name.upper().replace('-', '_')}_PORT"
        if service_links.looks_like_a_setting(variable) and field_at(service, "spec", "clusterIP") != "None":
            yield (
                f"{view.pod_at}.enableServiceLinks: Service {name} puts {variable}=tcp://... into every pod, "
                "which looks like a setting; the launcher takes it out of its engine only: set "
                "enableServiceLinks: false"
            )


def _grace(view: View) -> Iterator[Finding]:
    allowed = view.pod_spec.get("terminationGracePeriodSeconds", KUBERNETES_GRACE)
    if not isinstance(allowed, (int, float)):
        return
    if view.settings.grace > allowed:
        yield Problem(
            f"{view.pod_at}.terminationGracePeriodSeconds",
            f"{allowed}{'' if 'terminationGracePeriodSeconds' in view.pod_spec else ' (the default)'}, and the "
            f"launcher is given "
            f"--grace {view.settings.grace:g}: the pod is killed in the middle of its drain",
            f"set terminationGracePeriodSeconds: {view.settings.grace:g}, or give --grace {allowed}",
        )
    elif view.settings.grace < allowed and "terminationGracePeriodSeconds" in view.pod_spec:
        yield (
            f"{view.pod_at}.terminationGracePeriodSeconds: {allowed}, and the launcher uses --grace "
            f"{view.settings.grace:g} of it: give --grace {allowed}, so that requests in flight may take that long"
        )


def _shared_memory(view: View) -> Iterator[Finding]:
    gpus = view.settings.gpus_per_pod or 0
    if gpus < SHM_GPUS or view.pod_spec.get("hostIPC") is True:
        return
    mounts = {
        str(as_mapping(m).get("mountPath", "")).rstrip("/"): as_mapping(m).get("name")
        for m in as_list(view.pod.container.get("volumeMounts"))
    }
    if "/dev/shm" not in mounts:
        yield (
            f"{view.pod.container_at}.volumeMounts: /dev/shm has 64 MiB, which is too little for {gpus} GPUs: "
            f"mount an "
            "emptyDir with medium: Memory there"
        )
        return
    for i, volume in enumerate(as_mapping(v) for v in as_list(view.pod_spec.get("volumes"))):
        on_disk = "emptyDir" in volume and field_at(volume, "emptyDir", "medium") != "Memory"
        if volume.get("name") == mounts["/dev/shm"] and on_disk:
            yield f"{view.pod_at}.volumes[{i}]: /dev/shm lies on a disk: set emptyDir: {{medium: Memory}}"


def _probes(view: View) -> Iterator[Finding]:
    for key in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = as_mapping(view.pod.container.get(key))
        if probe:
            yield from _probe(view, key, probe)


def _probe(view: View, key: str, probe: Mapping[str, Any]) -> Iterator[Finding]:
    at, agent = f"{view.pod.container_at}.{key}", view.settings.agent_port
    http = probe.get("httpGet")
    target = as_mapping(http or probe.get("tcpSocket") or probe.get("grpc"))
    if not target:
        return  # an exec probe
    kind = "httpGet" if http else "tcpSocket" if "tcpSocket" in probe else "grpc"
    port = _port(view, target.get("port"))
    kills = key != "readinessProbe"
    if port is None:
        name = target.get("port")
        yield Problem(f"{at}.{kind}.port", f"no port of the container is called {name}", f"give port: {agent}")
    elif port != agent:
        what = f"port {port} is not the launcher's ({agent})"
        if kills:
            yield Problem(
                f"{at}.{kind}.port",
                f"{what}: it is closed while the group forms and the model loads, and on ranks without an API for "
                f"ever: "
                "the kubelet kills the pod",
                f"ask {LIVENESS} on port {agent}",
            )
        else:
            yield f"{at}.{kind}.port: {what}: ranks without an API never become ready; ask {READINESS} on port {agent}"
    elif kind == "httpGet":
        path = str(target.get("path") or "/").partition("?")[0]
        if path not in SERVED:
            yield Problem(f"{at}.httpGet.path", f"the launcher does not serve {path}", f"ask {_wanted(key)}")
        elif kills and path == READINESS:
            yield Problem(
                f"{at}.httpGet.path",
                f"{READINESS} is 503 until the group serves: the kubelet kills a pod that waits or loads",
                f"ask {LIVENESS}",
            )
        elif not kills and path != READINESS:
            yield f"{at}.httpGet.path: {path} is 200 before the group serves: ask {READINESS}"
        if str(target.get("scheme", "HTTP")).upper() != "HTTP":
            yield Problem(f"{at}.httpGet.scheme", "the launcher speaks HTTP, not HTTPS", "leave out scheme")


def _wanted(key: str) -> str:
    return READINESS if key == "readinessProbe" else LIVENESS


def _port(view: View, port: Any) -> int | None:
    if isinstance(port, int):
        return port
    if isinstance(port, str) and port.isdecimal():
        return int(port)
    for entry in (as_mapping(p) for p in as_list(view.pod.container.get("ports"))):
        if entry.get("name") == port and isinstance(entry.get("containerPort"), int):
            return int(entry["containerPort"])
    return None


# ------------------------------------------------------------------------------------------ meshes and other runtimes


def _mesh(view: View) -> Iterator[Finding]:
    """A sidecar proxy intercepts connections whose protocols it does not understand: the group's link and NCCL's."""
    if not view.together:
        return
    metadata = as_mapping(view.pod.template.get("metadata"))
    marks = {**as_texts(metadata.get("annotations")), **as_texts(metadata.get("labels"))}
    of_namespace = _of_namespace(view)
    port = str(view.settings.group_port)
    if _istio(marks, of_namespace):
        prefix = "traffic.sidecar.istio.io/"
        inbound = "includeInboundPorts" if f"{prefix}includeInboundPorts" in marks else "excludeInboundPorts"
        listed = [p.strip() for p in marks.get(f"{prefix}{inbound}", "").split(",") if p.strip()]
        free = port not in listed and "*" not in listed if inbound.startswith("include") else port in listed
        out = marks.get(f"{prefix}excludeOutboundIPRanges") or marks.get(f"{prefix}includeOutboundIPRanges") is not None
        out = bool(out) or port in marks.get(f"{prefix}excludeOutboundPorts", "").split(",")
        if not (free and out):
            yield (
                f"{view.pod.template_at}.metadata: Istio's sidecar would take over the group's connections and "
                f"those of "
                f'the collectives: annotate the pods with sidecar.istio.io/inject: "false", or as docs/network.md says'
            )
    if marks.get("linkerd.io/inject", of_namespace.get("linkerd.io/inject")) in ("enabled", "ingress"):
        skipped = [marks.get(f"config.linkerd.io/skip-{way}-ports", "") for way in ("inbound", "outbound")]
        if not all(_covers(ports, view.settings.group_port) for ports in skipped):
            yield (
                f"{view.pod.template_at}.metadata: Linkerd's sidecar would take over the group's connections and "
                f"those of "
                "the collectives: annotate the pods with linkerd.io/inject: disabled, or as docs/network.md says"
            )


def _istio(marks: Mapping[str, str], of_namespace: Mapping[str, str]) -> bool:
    own = marks.get("sidecar.istio.io/inject")
    if own is not None:
        return own == "true"
    return "istio.io/rev" in marks or of_namespace.get("istio-injection") == "enabled" or "istio.io/rev" in of_namespace


def _of_namespace(view: View) -> dict[str, str]:
    """Labels and annotations of the pods' namespace, if it is in the same file."""
    own = field_at(view.pod.owner, "metadata", "namespace")
    for o in view.pod.others:
        if o.get("kind") == "Namespace" and field_at(o, "metadata", "name") == own:
            return {**as_texts(field_at(o, "metadata", "annotations")), **as_texts(field_at(o, "metadata", "labels"))}
    return {}


def _covers(ports: str, port: int) -> bool:
    """Whether a list such as ``9470,29500-29600`` includes a port."""
    for part in ports.split(","):
        low, _, high = part.strip().partition("-")
        if low.isdecimal() and int(low) <= port <= (int(high) if high.isdecimal() else int(low)):
            return True
    return False


def _runtime(view: View) -> Iterator[Finding]:
    name = str(view.pod_spec.get("runtimeClassName") or "").lower()
    if name in ("gvisor", "runsc") or "gvisor" in name:
        yield (
            f"{view.pod_at}.runtimeClassName: gVisor has neither pidfd nor PSI: the end of an engine process is "
            f"noticed "
            "within seconds, not at once"
        )


CHECKS: tuple[Check, ...] = (
    _stateful_set,
    _service,
    _job,
    _leader_worker_set,
    _host_network,
    _names,
    _service_links,
    _grace,
    _shared_memory,
    _probes,
    _mesh,
    _runtime,
)
