"""As much of the Kubernetes API as `kubectl get`, `delete` and `apply` of pods and StatefulSets need, over HTTP.

For tests of what a script asks of the real kubectl. A deleted pod is there again at once, ready, of its set's newest
revision. Of an apply only `replicas` and the annotations are kept: `replicas` has an owner (whoever wrote it last), a
server-side apply with another number than the owner's is a conflict, and one that is taken out becomes 1, the default.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]
NAMESPACE = "inference"


def stateful_set(name: str, instance: str, update: str, replicas: int = 2) -> Object:
    """A set whose controller has seen the newest template, revision `update`."""
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/instance": instance}}
    status = {"updateRevision": update, "observedGeneration": 2}
    spec = {"replicas": replicas}
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {**metadata, "generation": 2}, "spec": spec,
            "status": status}  # fmt: skip


def pod(group: str, rank: int, revision: str) -> Object:
    labels = {"inference-group": group, "controller-revision-hash": revision}
    metadata = {"name": f"{group}-{rank}", "namespace": NAMESPACE, "labels": labels}
    conditions = [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": []},
            "status": {"phase": "Running", "conditions": conditions}}  # fmt: skip


class SmallApiServer:
    """Serves on a loopback port while it is entered; `deleted` are the names of the pods that were, in order."""

    def __init__(self, sets: list[Object], pods: list[Object]) -> None:
        self.sets = {s["metadata"]["name"]: s for s in sets}
        self.pods = {p["metadata"]["name"]: p for p in pods}
        self.deleted: list[str] = []
        self.patches: list[Object] = []
        self.owners: dict[str, str] = {}  #: set -> who wrote its `replicas`
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> SmallApiServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, query: dict[str, list[str]]) -> Object | None:
        fixed = _DISCOVERY.get(path)
        if fixed is not None:
            return fixed
        for prefix, kind, objects in (
            (f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets", "StatefulSet", self.sets),
            (f"/api/v1/namespaces/{NAMESPACE}/pods", "Pod", self.pods),
        ):
            if path == prefix:
                key, _, value = query.get("labelSelector", [""])[0].partition("=")
                found = [o for o in objects.values() if not key or o["metadata"]["labels"].get(key) == value]
                api = "v1" if kind == "Pod" else "apps/v1"
                return {"apiVersion": api, "kind": f"{kind}List", "metadata": {}, "items": found}
            name = path.removeprefix(f"{prefix}/")
            if path.startswith(f"{prefix}/") and name in objects:
                return self._delete(name) if method == "DELETE" else objects[name]
        return None

    def patch(self, path: str, query: dict[str, list[str]], body: str, content: str) -> Object:
        """A patch of a StatefulSet, by strategic merge or server-side apply."""
        change: Object = yaml.safe_load(body)
        self.patches.append(change)
        one = self.sets[path.rpartition("/")[2]]
        name, spec = one["metadata"]["name"], change.get("spec", {})
        manager = query.get("fieldManager", ["kubectl"])[0]
        if content.startswith("application/apply-patch"):
            owner = self.owners.get(name, manager)
            asked = spec.get("replicas", one["spec"]["replicas"])
            if asked != one["spec"]["replicas"] and owner != manager and query.get("force") != ["true"]:
                message = f'Apply failed with 1 conflict: conflict with "{owner}": .spec.replicas'
                cause = {
                    "reason": "FieldManagerConflict",
                    "message": f'conflict with "{owner}"',
                    "field": ".spec.replicas",
                }
                return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409,
                        "message": message, "details": {"causes": [cause]}}  # fmt: skip
            if "replicas" not in spec and owner == manager:
                spec = {**spec, "replicas": None}
        if "replicas" in spec:
            one["spec"]["replicas"] = 1 if spec["replicas"] is None else spec["replicas"]
            self.owners[name] = manager
        one["metadata"].setdefault("annotations", {}).update(change.get("metadata", {}).get("annotations") or {})
        return one

    def _delete(self, name: str) -> Object:
        old = self.pods[name]
        self.deleted.append(name)
        group, _, rank = name.rpartition("-")
        self.pods[name] = pod(group, int(rank), self.sets[group]["status"]["updateRevision"])
        return old


def _resource(name: str, kind: str) -> Object:
    return {
        "name": name,
        "singularName": kind.lower(),
        "namespaced": True,
        "kind": kind,
        "verbs": ["get", "list", "delete", "patch"],
    }


_APPS = {"groupVersion": "apps/v1", "version": "v1"}
_DISCOVERY: dict[str, Object] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1",
              "groups": [{"name": "apps", "versions": [_APPS], "preferredVersion": _APPS}]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [_resource("pods", "Pod")]},
    "/apis/apps/v1": {"kind": "APIResourceList", "groupVersion": "apps/v1",
                      "resources": [_resource("statefulsets", "StatefulSet")]},
}  # fmt: skip


def _handler(api: SmallApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            found = api.answer(self.command, parts.path, parse_qs(parts.query))
            self._say(found)

        def do_PATCH(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._say(api.patch(parts.path, parse_qs(parts.query), body, self.headers["Content-Type"]))

        def _say(self, found: Object | None) -> None:
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(missing if found is None else found).encode()
            self.send_response(404 if found is None else found.get("code", 200))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
