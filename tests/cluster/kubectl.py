"""kubectl as a subprocess: plain calls, and watches that keep what they saw with the time when they saw it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests import manifests

Object = dict[str, Any]
T = TypeVar("T")

#: how long anything in a cluster may take before a scenario calls it lost: images are pulled, nodes are busy
PATIENCE = 300.0
POLL = 0.5


class KubectlError(AssertionError):
    """A call that failed, with what kubectl said."""


def program() -> str:
    """The kubectl of this machine, which fits its cluster; else the one that the tests' environment has."""
    return os.environ.get("KUBECTL") or shutil.which("kubectl") or manifests.kubectl()


@dataclass(frozen=True)
class Kubectl:
    """kubectl in one namespace."""

    namespace: str
    program: str = field(default_factory=program)

    def command(self, *arguments: str) -> list[str]:
        return [self.program, "--namespace", self.namespace, *arguments]

    def __call__(self, *arguments: str, text: str | None = None, timeout: float = 120.0) -> str:
        """What it prints. Raises KubectlError."""
        done = self.attempt(*arguments, text=text, timeout=timeout)
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def attempt(
        self, *arguments: str, text: str | None = None, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments)
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, **given)
        except subprocess.TimeoutExpired:
            raise KubectlError(f"kubectl {' '.join(arguments)}: no answer within {timeout:g} s") from None

    def get(self, *arguments: str) -> Object:
        found: Object = json.loads(self("get", *arguments, "-o", "json"))
        return found

    def items(self, *arguments: str) -> list[Object]:
        items: list[Object] = self.get(*arguments)["items"]
        return items

    def apply(self, objects: list[Object], *more: str) -> str:
        """Server-side and strictly, as the README says; --force-conflicts is not needed for what is ours alone."""
        return self("apply", "--server-side", "--validate=strict", *more, "-f", "-", text=listed(objects))

    def delete(self, objects: list[Object]) -> None:
        self("delete", "--ignore-not-found", "--wait=true", "-f", "-", text=listed(objects), timeout=PATIENCE)

    def python(self, pod: str, script: str, *arguments: str, timeout: float = 120.0) -> str:
        """Run a program of `inside` in a pod's first container, from its standard input."""
        return self("exec", "-i", pod, "--", "python3", "-", *arguments, text=script, timeout=timeout)

    def evict(self, pod: str) -> subprocess.CompletedProcess[str]:
        """What a drain asks for: refused (429, "Cannot evict pod") where a disruption budget says no."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        return self.attempt("create", "--raw", path, "-f", "-", text=json.dumps(body))


def listed(objects: list[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def until(
    what: str, true: Callable[[], T], patience: float = PATIENCE, words: Callable[[], str] = str, poll: float = POLL
) -> T:
    """Poll until ``true()`` is true; its value. ``words`` tells what was there instead."""
    end = time.monotonic() + patience
    while not (value := true()):
        if time.monotonic() > end:
            raise AssertionError(f"after {patience:g} s still not: {what}\n{words()}")
        time.sleep(poll)
    return value


# ----------------------------------------------------------------------------------------------------------- watches


class Documents:
    """JSON documents out of a stream that is cut anywhere."""

    def __init__(self) -> None:
        self._text = ""
        self._decoder = json.JSONDecoder()

    def feed(self, text: str) -> Iterator[Object]:
        self._text = (self._text + text).lstrip()
        while self._text:
            try:
                found, end = self._decoder.raw_decode(self._text)
            except ValueError:
                return  # its end has not come yet
            self._text = self._text[end:].lstrip()
            yield found


@dataclass(frozen=True)
class Event:
    """One change of an object, and when this machine heard of it."""

    at: float
    type: str  #: ADDED, MODIFIED or DELETED
    object: Object

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])


class Recorder:
    """`kubectl get KIND --watch`, kept from beginning to end; one that the server ends is begun again."""

    def __init__(self, kubectl: Kubectl, *arguments: str) -> None:
        self._command = kubectl.command("get", *arguments, "--watch", "--output-watch-events", "-o", "json")
        self._closed = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.events: list[Event] = []
        self.began = 0  #: how many times the watch was begun
        self.said = ""  #: kubectl's last words

    def __enter__(self) -> Recorder:
        self._thread.start()
        until("the watch begins", lambda: self.began, 30.0)
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        process = self._process
        if process is not None:
            with contextlib.suppress(OSError):
                process.terminate()
        self._thread.join(30.0)

    def _run(self) -> None:
        while not self._closed.is_set():
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            self.began += 1
            self._read(self._process)
            self._closed.wait(1.0)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None and process.stderr is not None
        documents = Documents()
        for line in process.stdout:
            for found in documents.feed(line):
                if found.get("type") in ("ADDED", "MODIFIED", "DELETED"):
                    self.events.append(Event(time.time(), found["type"], found["object"]))
        self.said = process.stderr.read()[-2000:]
        process.wait()


@contextlib.contextmanager
def watching(kubectl: Kubectl, *kinds: str) -> Iterator[dict[str, Recorder]]:
    """A watch of each kind."""
    with contextlib.ExitStack() as stack:
        yield {kind: stack.enter_context(Recorder(kubectl, kind)) for kind in kinds}


# ------------------------------------------------------------------------------------------------------ is there one?


def why_not(kubectl: Kubectl) -> str:
    """Why the suite can't run against what this kubectl reaches; empty if it can."""
    try:
        found = kubectl.attempt("version", "-o", "json", "--request-timeout=10s", timeout=30.0)
    except (OSError, KubectlError) as error:
        return f"no cluster: {error}"
    if found.returncode:
        lines = [line for line in found.stderr.strip().splitlines() if line.strip()]
        return f"no cluster: {lines[-1] if lines else 'kubectl says nothing'}"
    for verb, what in (("create", "namespaces"), ("delete", "namespaces"), ("create", "statefulsets.apps")):
        if kubectl.attempt("auth", "can-i", verb, what, "--request-timeout=10s").stdout.strip() != "yes":
            return f"no right to {verb} {what}"
    return ""


def has(kubectl: Kubectl, resource: str) -> bool:
    """Whether the cluster knows a resource, as `scaledobjects.keda.sh`: its CRD is installed."""
    return kubectl.attempt("get", "crd", resource).returncode == 0
