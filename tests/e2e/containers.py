"""A manifest's pods as real containers on a podman network: its args, variables, volumes, probes, security context."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.images import LAUNCHER
from tests.e2e.podman import MINE, podman, remove, sweep
from tests.manifests import Pods

_numbers = itertools.count(1)


@dataclass
class Network:
    """A podman network with DNS, its folders and containers; a context manager."""

    name: str = field(default_factory=lambda: f"{MINE}-{next(_numbers)}")
    containers: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def __enter__(self) -> Network:
        sweep()
        podman("network", "create", self.name)
        found = json.loads(podman("network", "inspect", self.name))[0]
        self.prefix = found["subnets"][0]["subnet"].rpartition(".")[0]
        return self

    def __exit__(self, *error: object) -> None:
        remove({"container": self.containers})
        podman("network", "rm", "-f", self.name, check=False)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def empty_dir(self, group: int) -> str:
        """As the kubelet makes an emptyDir: root's, of the pod's fsGroup; everybody may write, nobody else owns it.

        A volume of podman's own would be given to the container's user, who may then do what no pod's user may.
        """
        folder = tempfile.mkdtemp(prefix=f"{MINE}-")
        self.folders.append(folder)
        os.chown(folder, 0, group)
        Path(folder).chmod(0o2777)
        return folder


class Container:
    """Pod `rank` of a manifest as one container, the way a kubelet would start it."""

    def __init__(
        self, network: Network, pods: Pods, rank: int, image: str, host: int, more: Sequence[str] = ()
    ) -> None:
        self.network, self.pods, self.rank, self.image, self.more = network, pods, rank, image, more
        self.pod = f"{pods.name}-{rank}"
        self.name = f"{network.name}-{self.pod}"
        self.group = pods.spec["securityContext"]["fsGroup"]
        names = [v["name"] for v in pods.spec["volumes"] if v["name"] in ("launcher", "state")]
        self.volumes = {name: network.empty_dir(self.group) for name in names}
        self.host = host
        for init in pods.spec.get("initContainers", []):
            mounts = [f"-v={self.volumes[m['name']]}:{m['mountPath']}" for m in init["volumeMounts"]]
            command = ["run", "--rm", "--network=none", _memory(init), *self._security(init), *mounts]
            podman(*command, "--entrypoint", init["command"][0], LAUNCHER, *init["command"][1:])
        self.start()

    @property
    def ip(self) -> str:
        return f"{self.network.prefix}.{self.host}"

    def _security(self, container: Mapping[str, Any]) -> list[str]:
        security, pod = container["securityContext"], self.pods.spec["securityContext"]
        assert security["readOnlyRootFilesystem"] and security["capabilities"]["drop"] == ["ALL"]
        assert not security["allowPrivilegeEscalation"]
        return [
            *("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
            # podman would add the user to /etc/passwd, which no kubelet does
            "--passwd=false",
            f"--user={pod['runAsUser']}:{pod['runAsGroup']}",
            f"--group-add={pod['fsGroup']}",
        ]

    def start(self) -> None:
        """A new container with the manifest's args, variables, volumes and security context."""
        engine = self.pods.engine
        environ = {**self.pods.environment(self.rank), "POD_IP": self.ip}
        if "PATH" not in self.pods.env:
            del environ["PATH"]
        mounts = []
        for mount in engine["volumeMounts"]:
            if mount["name"] in self.volumes:
                end = ":ro" if mount.get("readOnly") else ""
                mounts.append(f"-v={self.volumes[mount['name']]}:{mount['mountPath']}{end}")
            else:
                mounts.append(f"--tmpfs={mount['mountPath']}:mode=1777,size=512m")
        names = [self.pod, f"{self.pod}.{self.pods.env['LAUNCHER_SERVICE']}.default.svc.cluster.local"]
        podman(
            *("run", "-d", f"--name={self.name}", f"--hostname={self.pod}", f"--network={self.network.name}"),
            *(f"--ip={self.ip}", *(f"--network-alias={n}" for n in names), *self._security(engine), *mounts),
            _memory(engine),
            *(f"--env={k}={v}" for k, v in environ.items()),
            *self.more,
            *("--entrypoint", engine["command"][0], self.image, *engine["args"]),
        )
        self.network.containers.append(self.name)

    def again(self, host: int) -> None:
        """The pod made anew: another address, an empty state folder."""
        podman("rm", "-f", "-t", "0", self.name)
        self.host = host
        self.volumes["state"] = self.network.empty_dir(self.group)
        self.start()

    def probe(self, name: str) -> bool:
        """What the kubelet's probe of the manifest would find."""
        asked = self.pods.engine[name]["httpGet"]
        try:
            return self.get(asked["path"], self.pods.port(asked["port"])).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def get(self, path: str, port: int) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.ip, port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse()

    def complete(self, prompt: str) -> str:
        connection = http.client.HTTPConnection(self.ip, self.pods.port("api"), timeout=10)
        body = json.dumps({"model": "reference", "prompt": prompt, "max_tokens": 5})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        return str(json.loads(text)["choices"][0]["text"])

    @property
    def exit_code(self) -> int | None:
        state = json.loads(podman("inspect", "--format", "{{json .State}}", self.name))
        return None if state["Running"] else int(state["ExitCode"])

    def wait(self, patience: float) -> int:
        """Its exit code, once it has ended."""
        try:
            return int(podman("wait", self.name, timeout=patience))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"after {patience:g} s {self.name} has not ended\n{self.logs[-4000:]}") from None

    @property
    def logs(self) -> str:
        done = subprocess.run(["podman", "logs", self.name], capture_output=True, check=False)
        return (done.stdout + done.stderr).decode(errors="replace")

    def launcher_memory(self) -> int:
        """Bytes of memory that the launcher's own two processes have for themselves (PSS), seen from the machine."""
        pid = int(podman("inspect", "--format", "{{.State.Pid}}", self.name))
        mine = [
            pid,
            *(c for c in children(pid) if b"-m\0launcher.reference" not in _cmdline(c) and b"run.py" in _cmdline(c)),
        ]
        assert len(mine) == 2, [_cmdline(p) for p in mine]
        return sum(pss(p) for p in mine)


def _memory(container: Mapping[str, Any]) -> str:
    limit: str = container["resources"]["limits"]["memory"]
    return f"--memory={limit.replace('Mi', 'm').replace('Gi', 'g')}"


def children(pid: int) -> Sequence[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def pss(pid: int) -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    assert found
    return int(found[1]) * 1024
