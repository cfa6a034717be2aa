"""The objects of an InferenceService: the layers of ``k8s/`` with its names, sizes, arguments and pod filled in.

Each group gets a StatefulSet with its headless Service, a network policy and (under KEDA) a ScaledObject. All groups
share the service account, the Service that callers use and the disruption budget, as in ``k8s/groups.sh``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from launcher.cli import sources
from launcher.engines.base import PlanContext
from launcher.errors import LauncherError, UsageError
from launcher.model import Identity, NodeFacts
from launcher.render import known, layers
from launcher.render.fields import Field
from launcher.render.model import BUILT, RenderOptions, Service
from launcher.render.template import quantity
from launcher.render.text import Document
from launcher.settings import Settings

SHARED = "shared.yaml"
INSTANCE = "app.kubernetes.io/instance"
GROUP = "inference-group"
#: each pod detects these itself, so a value for all pods would be wrong
_FOUND_OUT = ("rank", "leader", "peers", "address", "group_id", "service", "namespace", "ordinal_start")


def render(service: Service, options: RenderOptions) -> dict[str, list[Document]]:
    """Objects by file name. Adds notes and warnings to ``service``. Raises ConfigError."""
    _check_options(service, options)
    documents = _layers(service, options)
    (pods,) = [d for d in documents if d.data["kind"] == "StatefulSet"]
    ours = {e["name"] for e in _env(pods)}
    layers.merge(pods, _pod(service, options))
    _check_volumes(service, pods.data["spec"]["template"]["spec"])
    _check_security(service, pods.data["spec"]["template"]["spec"])
    _head_of_theirs(pods, ours)
    _fill(service, options, pods)
    files: dict[str, list[Document]] = {SHARED: [_shared(service, d) for d in documents if not _is_of_group(d)]}
    for k in range(service.groups):
        own = [_of_group(service, options, copy.deepcopy(d), k) for d in documents if _is_of_group(d)]
        files[f"group-{k}.yaml"] = own
    for objects in files.values():
        objects.sort(key=lambda d: (d.data["kind"] != "ServiceAccount", d.data["kind"], d.data["metadata"]["name"]))
    return files


def _check_options(service: Service, options: RenderOptions) -> None:
    if options.replicas == "keep" and not options.keda:
        raise UsageError("--replicas keep with --no-keda: nobody else would write the number", "leave one of them out")
    if options.monitoring_namespace is not None:
        known.namespace(Field("--monitoring-namespace", options.monitoring_namespace))
    if options.keda and options.query is None:
        service.warnings.append(
            f'--query is not given: KEDA would ask for gateway_requests_in_flight{{model="{service.name}"}}, which is '
            "made up, and the groups would never wake; give your gateway's (k8s/README.md has two)"
        )
    if options.launcher_image == BUILT:
        service.warnings.append(
            f"--launcher-image {BUILT} is what a build calls it, and no node has it; push it and name it as it is there"
        )


def _env(pods: Document) -> list[dict[str, Any]]:
    env: list[dict[str, Any]] = pods.data["spec"]["template"]["spec"]["containers"][0]["env"]
    return env


def _head_of_theirs(pods: Document, ours: set[str]) -> None:
    """Put a comment above the resource's variables: without it the previous comment would seem to cover them."""
    theirs = [e["name"] for e in _env(pods) if e["name"] not in ours]
    if theirs:
        path = ("spec", "template", "spec", "containers", "[engine]", "env", f"[{theirs[0]}]")
        pods.comments[path] = ("--- from the InferenceService",)


def _layers(service: Service, options: RenderOptions) -> list[Document]:
    names = ["base"]
    names += ["components/launcher-copy"] if options.launcher_image else []
    names += ["components/keda"] if options.keda else []
    names += [f"components/gang/{options.gang}"] if options.gang != "none" else []
    names += ["components/queue"] if service.queue else []
    return layers.load(names)


# ------------------------------------------------------------------------------------------------------- the pod


def _pod(service: Service, options: RenderOptions) -> dict[str, Any]:
    """The resource as a patch of the layers' StatefulSet."""
    settings = _settings(service)
    grace = int(settings.grace)
    container = {
        **service.container,
        "name": "engine",
        "args": list(service.args),
        "env": [
            {"name": "LAUNCHER_SIZE", "value": str(service.size)},
            {"name": "LAUNCHER_PORT", "value": str(settings.port)},
            {"name": "LAUNCHER_GRACE", "value": str(grace)},
            *service.env,
        ],
        "ports": [
            {"name": "api", "containerPort": settings.port},
            {"name": "agent", "containerPort": settings.agent_port},
            {"name": "group", "containerPort": settings.group_port},
            *_more_ports(service, settings),
        ],
    }
    container.pop("command", None)
    spec = {**service.pod, "containers": [container], "terminationGracePeriodSeconds": grace}
    if options.launcher_image:
        spec["initContainers"] = [{"name": "launcher", "image": options.launcher_image}]
    metadata: dict[str, Any] = {"annotations": {**service.annotations}} if service.annotations else {}
    if service.queue:
        metadata.setdefault("annotations", {})["scheduling.volcano.sh/queue-name"] = service.queue
    if service.pod_labels:
        metadata["labels"] = dict(service.pod_labels)
    return {"spec": {"template": {"metadata": metadata, "spec": spec}}}


def _settings(service: Service) -> Settings:
    """Parse the arguments as the launcher would and check them against the rest of the resource."""
    place = Field(f"{service.path}.args", None)
    environ = {e["name"]: e["value"] for e in service.env if "value" in e and e["name"].startswith("LAUNCHER_")}
    environ.setdefault("LAUNCHER_SIZE", str(service.size))
    environ.setdefault("LAUNCHER_PORT", str(_api_port(service)))
    environ.setdefault("LAUNCHER_GRACE", str(service.pod.get("terminationGracePeriodSeconds", 120)))
    try:
        settings, _, warnings = sources.parse(service.args, environ)
        _check_said(service, settings, place)
        _check_engine(service, settings)
    except LauncherError as error:
        if error.message.startswith(service.path):
            raise
        raise place.error(error.message, error.fix) from None
    service.warnings += [f"{service.path}: {warning}" for warning in warnings]
    return settings


def _check_said(service: Service, settings: Settings, place: Field) -> None:
    for name in _FOUND_OUT:
        if name in settings.origins:
            raise place.error(
                f"{settings.said(name)} would be said to every pod", "leave it out: each pod finds it out"
            )
    if settings.size != service.size:
        raise place.error(
            f"{settings.said('size')} contradicts 1 leader + {service.size - 1} workers = {service.size}",
            "leave --size out: it is taken from servers.worker.replicas",
        )
    grace = service.pod.get("terminationGracePeriodSeconds")
    if grace is not None and settings.grace != grace:
        raise place.error(
            f"{settings.said('grace')} contradicts terminationGracePeriodSeconds: {grace}", "leave --grace out"
        )
    stated = {p["containerPort"] for p in service.container["ports"]}
    if stated and settings.port not in stated:
        raise place.error(
            f"{settings.said('port')} is none of the container's ports {', '.join(map(str, sorted(stated)))}",
            "add it to ports, or leave --port out",
        )


def _check_engine(service: Service, settings: Settings) -> None:
    """Run the engine's own check of its arguments, and of tp x pp x dp against the pods' GPUs."""
    from launcher.planning import steps

    gpus = _gpus(service)
    if "gpus_per_pod" in settings.origins and settings.gpus_per_pod != gpus and gpus:
        raise Field(f"{service.path}.args", None).error(
            f"{settings.said('gpus_per_pod')} contradicts the {gpus} GPUs in resources.limits", "leave it out"
        )
    settings = settings.replace(gpus_per_pod=gpus or settings.gpus_per_pod or 0)
    torch = True
    if settings.engine_file is None:
        engine = steps.engine_of(settings)
        torch = engine.requirements(settings, {}).torch
        names = tuple(f"{service.name}-{rank}" for rank in range(service.size))
        identity = Identity(service.name, 0, service.size, names[0], names[0], "statefulset", names)
        checked = engine.check(settings, identity, NodeFacts(gpus=gpus))
        context = PlanContext(settings, identity, NodeFacts(gpus=gpus), steps.sketch(identity))
        for rank in range(service.size):
            engine.plan(context, rank)
        service.notes += checked.why
        service.warnings += [w for w in checked.warnings if "--engine-version" not in w]
    if gpus == 0 and torch:
        service.warnings.append(f"{service.path}.resources.limits: no GPU is asked for")


def _check_volumes(service: Service, pod: Mapping[str, Any]) -> None:
    """Check that each mount has a volume; warn if the memory limit is below twice /dev/shm, which counts against it."""
    volumes = {v["name"]: v for v in pod["volumes"]}
    (container,) = pod["containers"]
    for mount in container["volumeMounts"]:
        if mount["name"] not in volumes:
            raise Field(f"{service.path}.volumeMounts", None).error(
                f"{mount['mountPath']} is of volume {mount['name']}, and there is none of that name",
                "add it to the template's spec.volumes",
            )
    limits = service.container["resources"].get("limits", {})
    (shm,) = [volumes[m["name"]] for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
    most = shm.get("emptyDir", {}).get("sizeLimit")
    if "memory" in limits and most:
        path = f"{service.path}.resources.limits.memory"
        if quantity(Field(path, limits["memory"])) < quantity(Field(path, most)) * 2:
            service.warnings.append(
                f"{path}: {limits['memory']}, of which /dev/shm may take {most}: an engine wants more"
            )


def _check_security(service: Service, pod: Mapping[str, Any]) -> None:
    """Reject what the API server or the kubelet would, once the resource's security context is merged over ours."""
    (container,) = pod["containers"]
    own, whole = container.get("securityContext", {}), pod.get("securityContext", {})
    place = Field(f"{service.path}.securityContext", None)
    effective = {**whole, **own}
    if effective.get("runAsUser") == 0 and effective.get("runAsNonRoot"):
        raise place.error(
            "runAsUser: 0 is root, and the pods have runAsNonRoot: true", "write runAsNonRoot: false beside it"
        )
    more = [
        *(["privileged: true"] if own.get("privileged") else []),
        *(
            ["CAP_SYS_ADMIN"]
            if {"CAP_SYS_ADMIN", "SYS_ADMIN"} & set(own.get("capabilities", {}).get("add", []))
            else []
        ),
    ]
    if more and own.get("allowPrivilegeEscalation") is False:
        raise place.error(
            f"{more[0]} and allowPrivilegeEscalation: false can't both be",
            "write allowPrivilegeEscalation: true beside it",
        )


def _gpus(service: Service) -> int:
    """GPUs of a pod, of any vendor."""
    limits: Mapping[str, Any] = service.container["resources"].get("limits", {})
    places = [Field(f"{service.path}.resources.limits.{k}", v) for k, v in limits.items() if k.endswith("/gpu")]
    return int(sum(quantity(place) for place in places))


def _api_port(service: Service) -> int:
    """The resource's only port, or of several the one named http or api; else 8000."""
    ports = service.container["ports"]
    called = [p["containerPort"] for p in ports if p.get("name") in ("http", "api")]
    numbers = [p["containerPort"] for p in ports]
    if len(called) == 1:
        return int(called[0])
    if len(numbers) > 1:
        raise Field(f"{service.path}.ports", None).error(
            f"{len(numbers)} ports, and which is the API's is not said", "name it http"
        )
    return int(numbers[0]) if numbers else 8000


def _more_ports(service: Service, settings: Settings) -> list[dict[str, Any]]:
    found = []
    for entry in service.container["ports"]:
        number = entry["containerPort"]
        if number == settings.port:
            if entry.get("protocol", "TCP") != "TCP":
                raise Field(f"{service.path}.ports", None).error(
                    f"{number} is the API's port, and {entry['protocol']} is not HTTP's", "write protocol: TCP"
                )
            continue
        if number in (settings.agent_port, settings.group_port) or entry.get("name") in ("agent", "group", "api"):
            raise Field(f"{service.path}.ports", None).error(
                f"{number} ({entry.get('name', 'no name')}) takes a number or name of the launcher's own: agent, "
                f"{settings.agent_port}; group, {settings.group_port}; api, {settings.port}",
                "give another number and name, or --agent-port and --group-port",
            )
        found.append({"name": f"port-{number}", **entry})
        service.notes.append(f"port {number} is open inside of the group only: callers come by the API port")
    return found


def _fill(service: Service, options: RenderOptions, pods: Document) -> None:
    """Set the replicas, the size of the gang and the queue, which the layers leave open."""
    spec, metadata = pods.data["spec"], pods.data["metadata"]
    if options.replicas == "keep":
        del spec["replicas"]
    elif spec["replicas"] != 0:
        spec["replicas"] = service.size
    if "scheduling.volcano.sh/group-min-member" in metadata.get("annotations", {}):
        metadata["annotations"]["scheduling.volcano.sh/group-min-member"] = str(service.size)
    if service.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = service.queue


# --------------------------------------------------------------------------------------------------- names and labels


def _is_of_group(document: Document) -> bool:
    kind = document.data["kind"]
    return kind in ("StatefulSet", "NetworkPolicy", "ScaledObject") or (
        kind == "Service" and document.data["spec"].get("clusterIP") == "None"
    )


def _named(service: Service, document: Document, suffix: str) -> Document:
    """The object with its own name, its namespace and the labels of this service."""
    metadata = document.data["metadata"]
    metadata["name"] = f"{service.name}-{metadata['name']}{suffix}"
    if service.namespace:
        metadata["namespace"] = service.namespace
    metadata.setdefault("labels", {}).update({**service.labels, INSTANCE: service.name})
    return document


def _shared(service: Service, document: Document) -> Document:
    document = _named(service, document, "")
    spec = document.data.get("spec", {})
    if document.data["kind"] == "Service":
        spec["selector"][INSTANCE] = service.name
        spec["ports"][0]["port"] = _settings_port(service)
    elif document.data["kind"] == "PodDisruptionBudget":
        spec["selector"]["matchLabels"][INSTANCE] = service.name
    return document


def _settings_port(service: Service) -> int:
    port = _settings(copy.deepcopy(service)).port
    assert port is not None
    return port


def _of_group(service: Service, options: RenderOptions, document: Document, k: int) -> Document:
    account = f"{service.name}-engine"
    document = _named(service, document, f"-{k}")
    name, spec = document.data["metadata"]["name"], document.data["spec"]
    own = {GROUP: f"{account}-{k}", INSTANCE: service.name}
    kind = document.data["kind"]
    if kind == "Service":
        spec["selector"].update(own)
    elif kind == "NetworkPolicy":
        spec["podSelector"]["matchLabels"].update(own)
        inside, _, readers = spec["ingress"]
        inside["from"][0]["podSelector"]["matchLabels"].update(own)
        service_pods, monitoring = readers["from"]
        service_pods["podSelector"]["matchLabels"][INSTANCE] = service.name
        if options.monitoring_namespace:
            monitoring["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] = options.monitoring_namespace
    elif kind == "StatefulSet":
        spec["serviceName"] = name
        spec["selector"]["matchLabels"].update(own)
        template = spec["template"]
        template["metadata"]["labels"].update(own)
        template["spec"]["serviceAccountName"] = account
        for entry in template["spec"]["containers"][0]["env"]:
            if entry["name"] == "LAUNCHER_SERVICE":
                entry["value"] = name
    elif kind == "ScaledObject":
        _scale(service, options, spec, name, k)
    return document


def _scale(service: Service, options: RenderOptions, spec: dict[str, Any], name: str, k: int) -> None:
    spec["scaleTargetRef"]["name"] = name
    spec["minReplicaCount"] = spec["maxReplicaCount"] = service.size
    metadata = spec["triggers"][0]["metadata"]
    metadata["activationThreshold"] = str(k * options.load)
    metadata["serverAddress"] = options.prometheus or metadata["serverAddress"]
    metadata["query"] = options.query or metadata["query"].replace('"engine"', f'"{service.name}"')
