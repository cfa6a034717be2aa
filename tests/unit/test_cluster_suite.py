"""The code of `./run.sh cluster` without a cluster: its parsers, and the programs that it runs in pods, for real."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from launcher.reference.tokens import expected_text
from tests.cluster import conftest, history
from tests.cluster.inside import first_process, processes, reach
from tests.cluster.kubectl import Documents, Event, Kubectl, KubectlError, Recorder, why_not
from tests.cluster.options import Options, image_of
from tests.cluster.space import INSIDE, roles
from tests.e2e.group import Group, fetch, until

# ------------------------------------------------------------------------------------------------------------- watches


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_documents_come_whole_however_they_are_cut(step: int) -> None:
    sent = [{"type": "ADDED", "object": {"a": '}{"\n', "b": [1, {"c": None}]}}, {"type": "DELETED", "object": {}}]
    text = "\n".join(json.dumps(d, indent=4) for d in sent) + "\n"
    documents = Documents()
    found = [d for i in range(0, len(text), step) for d in documents.feed(text[i : i + step])]
    assert found == sent


def program(folder: Path, text: str) -> str:
    path = folder / "kubectl"
    path.write_text(f"#!{sys.executable}\nimport json, sys, time, os\n{text}")
    path.chmod(0o755)
    return str(path)


def test_watch_that_the_server_ends_is_begun_again(tmp_path: Path) -> None:
    counts = tmp_path / "calls"
    kubectl = Kubectl(
        "mine",
        program(
            tmp_path,
            f"""
calls = open({str(counts)!r}, "a+"); calls.write("x"); calls.flush(); calls.seek(0); n = len(calls.read())
assert sys.argv[1:4] == ["--namespace", "mine", "get"] and "--output-watch-events" in sys.argv
for kind in ("ADDED", "MODIFIED", "BOOKMARK"):
    print(json.dumps({{"type": kind, "object": {{"metadata": {{"name": "pod-%d" % n}}}}}}, indent=2), flush=True)
if n > 1:
    time.sleep(600)
print("the server ended it", file=sys.stderr)
""",
        ),
    )
    with Recorder(kubectl, "pods") as seen:
        until("the second watch has said what it has", lambda: len(seen.events) == 4)
        assert "the server ended it" in seen.said
    assert [(e.name, e.type) for e in seen.events] == [
        (name, kind) for name in ("pod-1", "pod-2") for kind in ("ADDED", "MODIFIED")
    ]
    assert seen.events[0].at <= seen.events[-1].at
    assert not seen._thread.is_alive(), "kubectl was ended with the watch"


def test_call_that_fails_says_what_kubectl_said(tmp_path: Path) -> None:
    kubectl = Kubectl("mine", program(tmp_path, 'sys.exit("pods is forbidden")'))
    with pytest.raises(KubectlError, match=r"kubectl get pods -o json: pods is forbidden"):
        kubectl.get("pods")
    slow = Kubectl("mine", program(tmp_path, "time.sleep(600)"))
    with pytest.raises(KubectlError, match="no answer within 1 s"):
        slow("get", "pods", timeout=1.0)


def test_eviction_is_what_a_drain_asks_for(tmp_path: Path) -> None:
    told = Kubectl("mine", program(tmp_path, "print(sys.argv[3:], sys.stdin.read())")).evict("a-1")
    assert "'/api/v1/namespaces/mine/pods/a-1/eviction'" in told.stdout
    assert '"kind": "Eviction"' in told.stdout and '"name": "a-1"' in told.stdout


# ------------------------------------------------------------------------------------------------------------- history


def pod(name: str, at: float, *, ready: bool = False, restarts: int = 0, kind: str = "MODIFIED", **more: Any) -> Event:
    status = {
        "conditions": [{"type": "Ready", "status": str(ready)}],
        "containerStatuses": [{"name": "engine", "restartCount": restarts, "state": more.pop("state", {})}],
    }
    return Event(at, kind, {"metadata": {"name": name, **more}, "status": status})


def a_set(name: str, at: float, replicas: int, kind: str = "MODIFIED") -> Event:
    return Event(at, kind, {"metadata": {"name": name}, "spec": {"replicas": replicas}})


def test_readiness_tells_each_turn_once() -> None:
    events = [
        Event(1.0, "ADDED", {"metadata": {"name": "a-0"}, "spec": {}}),  # no status yet
        pod("a-0", 2.0),
        pod("a-1", 2.5, ready=True),
        pod("a-0", 3.0, ready=True),
        pod("a-0", 4.0, ready=True),
        pod("a-0", 5.0, ready=True, deletionTimestamp="2026-01-01T00:00:00Z"),
        pod("a-0", 6.0, ready=True, kind="DELETED"),
        pod("a-0", 7.0, ready=True, kind="ADDED"),
    ]
    turns = history.readiness(events, "a-0")
    assert [(t.at, t.ready) for t in turns] == [(1.0, False), (3.0, True), (5.0, False), (7.0, True)]
    assert history.readiness(events, "a-2") == []


def test_restarts_are_the_most_that_were_seen() -> None:
    events = [pod("a-0", 1.0), pod("a-1", 2.0, restarts=2), pod("a-1", 3.0, restarts=1)]
    assert history.restarts(events) == {"a-1": 2}


def test_fewest_pods_count_from_when_all_were_ready() -> None:
    events = [
        pod("a-0", 1.0),
        pod("b-0", 2.0, ready=True),
        pod("a-0", 3.0, ready=True),
        pod("a-0", 4.0, ready=True, kind="DELETED"),
        pod("a-0", 5.0, ready=True),
    ]
    assert history.least_ready(events, ["a-0", "b-0"]) == 1
    assert history.least_ready(events[2:3], ["a-0"]) == 1
    assert history.least_ready(events, ["a-0", "b-0", "c-0"]) == 0, "they never were all ready"


def test_behind_a_service_is_who_was_ever_ready() -> None:
    def slices(kind: str, *endpoints: dict[str, Any]) -> Event:
        labels = {"kubernetes.io/service-name": "engine-api"}
        return Event(1.0, kind, {"metadata": {"name": "x", "labels": labels}, "endpoints": list(endpoints)})

    def to(name: str, **conditions: bool) -> dict[str, Any]:
        return {"conditions": conditions, "targetRef": {"kind": "Pod", "name": name}}

    events = [
        slices("ADDED"),
        Event(1.0, "ADDED", {"metadata": {"name": "y"}, "endpoints": None}),
        slices("MODIFIED", to("a-0", ready=True), to("a-1", ready=False), to("b-0")),
        slices("DELETED", to("c-0", ready=True)),
    ]
    assert history.behind(events, "engine-api") == {"a-0", "b-0"}
    assert history.behind(events, "another") == set()


def test_scaling_is_summed_over_the_sets() -> None:
    events = [a_set("a", 1.0, 0), a_set("b", 1.5, 0), a_set("a", 2.0, 2), a_set("a", 2.5, 2), a_set("b", 3.0, 2)]
    events += [a_set("b", 4.0, 1), a_set("b", 5.0, 2, "DELETED")]
    assert history.wanted(events) == [(1.0, 0), (2.0, 2), (3.0, 4), (4.0, 3), (5.0, 2)]
    assert history.wanted(events, "a") == [(1.0, 0), (2.0, 2)]
    assert history.off_a_multiple(events, 2) == ["b: 1 at 4.0"]


def test_a_wake_up_is_split_where_it_was_spent() -> None:
    running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    began = history.parsed("2026-01-01T00:00:00Z")
    sets = [a_set("a", began - 50, 0), a_set("a", began + 4, 2)]
    pods = [
        pod("a-0", began - 60, ready=True, state=running),  # of the last time that it was awake
        pod("a-0", began + 6, state=running),
        pod("a-1", began + 9, state=running),
        pod("a-0", began + 20, ready=True, state=running),
    ]
    timeline = [
        {"phase": "setup", "at": "2026-01-01T00:00:07Z"},
        {"phase": "starting", "at": "2026-01-01T00:00:10.500Z"},
        {"phase": "running", "at": "2026-01-01T00:00:18Z"},
    ]
    woke = history.wake_up(began, sets, pods, "a-0", timeline)
    assert woke == history.WakeUp(4.0, 5.0, 1.5, 7.5, 2.0)
    assert woke.total == 20.0


def test_warnings_are_those_of_the_groups_own_objects() -> None:
    def event(name: str, kind: str, reason: str, count: int | None = None) -> dict[str, Any]:
        return {"type": kind, "reason": reason, "message": "m", "count": count, "involvedObject": {"name": name}}

    events = [event("a-0", "Normal", "Pulled"), event("a-0", "Warning", "Unhealthy", 3), event("b-0", "Warning", "X")]
    assert history.warnings(events, ["a-0", "a"]) == ["a-0: Unhealthy: m (x3)"]


# ------------------------------------------------------------------------------------------------- programs in pods


def inside(name: str, *arguments: str) -> list[str]:
    """As it runs in a pod: alone, without this project."""
    return [sys.executable, "-I", str(INSIDE / f"{name}.py"), *arguments]


def client(url: str, *arguments: str) -> list[history.Stream]:
    done = subprocess.run(inside("streams", url, *arguments), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return history.streams(done.stdout)


def test_streams_of_a_group_are_whole_or_cut_or_none(tmp_path: Path) -> None:
    """A real group: all streams are done; its engine killed under them: all are cut, and the complaints say so."""
    with closing(Group(tmp_path, 2, "--", "--token-seconds", "0.02")) as group:
        group.until_serving()
        url = f"http://{group.addresses[0]}:{group.port}"
        found = client(url, "--at-once", "3", "--count", "6", "--tokens", "8")
        assert len(found) == 6
        assert history.complaints(found, expected_text("hello", 8, size=2)) == []
        assert history.complaints(found, "something else")
        (refused,) = client(url.rpartition(":")[0] + ":1", "--patience", "0.5")
        assert (refused.end, refused.tokens) == ("none", 0) and refused.tries > 1
        command = inside("streams", url, "--tokens", "5000", "--at-once", "2", "--count", "2")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            until("both streams run", lambda: requests_running(group) == 2)
            os.kill(group.root(0), signal.SIGKILL)
            output, _ = running.communicate(timeout=300)
        cut = history.streams(output)
        assert [s.end for s in cut] == ["cut", "cut"]
        assert all("cut after" in c for c in history.complaints(cut))


def requests_running(group: Group) -> float:
    page = fetch(group.addresses[0], group.port, "/metrics").text
    found = re.search(r"^\S*num_requests_running\S* (\S+)$", page, re.M)
    return float(found[1]) if found else 0.0


@pytest.fixture
def source() -> Iterator[str]:
    """The metric source on a loopback port of its own."""
    with subprocess.Popen(
        inside("prometheus", "serve", "--host", "127.0.0.1", "--port", "0"), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def ask(port: str, body: bytes | None = None) -> Any:
    query = "" if body else "?query=sum(load)&time=1"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query{query}", body, timeout=30) as answer:
        return json.load(answer)["data"]


def test_metric_source_answers_as_prometheus_does(source: str) -> None:
    def tell(*arguments: str) -> str:
        command = inside("prometheus", *arguments, "--port", source)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout

    for value in ("0", "2.5", "150"):
        tell("set", value)
        for found in (ask(source), ask(source, b"query=sum(load)")):
            assert found["resultType"] == "vector"
            ((moment, text),) = [r["value"] for r in found["result"]]
            assert isinstance(moment, float) and text == value
    tell("set", "nothing")
    assert ask(source)["result"] == []
    tell("set", "down")
    with pytest.raises(urllib.error.HTTPError, match="503"):
        ask(source)
    assert tell("set", "many") == "", "it says what is wrong on standard error"
    asked = json.loads(tell("asked"))
    assert {a["query"] for a in asked} == {"sum(load)"} and asked[-1]["value"] == "down"


def test_processes_of_a_launcher_are_told_apart(tmp_path: Path) -> None:
    with closing(Group(tmp_path, 1)) as group:
        group.until_serving()
        done = subprocess.run(inside("processes", "list"), capture_output=True, text=True, check=True, timeout=60)
        engine = group.status(0)["members"][0]["engine_pids"]
        found = roles(json.loads(done.stdout), engine, group.guard(0))
        assert found == {"guard": group.guard(0), "agent": group.agent(0), "engine": group.root(0)}
        subprocess.run(inside("processes", "kill", str(found["agent"])), check=True, timeout=60)
        until("the process is gone", lambda: not Path(f"/proc/{found['agent']}").exists())


def test_memory_is_taken_until_the_marked_process_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["sleep", "600"]) as marked:
        own = Path("/proc/self/oom_score_adj").read_text()
        threading.Timer(0.2, marked.kill).start()
        reaper = threading.Thread(target=marked.wait)
        reaper.start()
        try:
            processes.starve(marked.pid, 2**30)
        finally:
            Path("/proc/self/oom_score_adj").write_text(own)
        reaper.join()
    assert "is gone" in capsys.readouterr().out


def test_first_process_of_a_pod_is_found_from_the_node(tmp_path: Path) -> None:
    uid = "0a1b2c3d-1111-2222-3333-444455556666"

    def process(pid: int, cgroup: str, inner: str, command: str) -> None:
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "cgroup").write_text(f"0::{cgroup}\n")
        (folder / "status").write_text(f"Name:\tx\nNSpid:\t{pid}{inner}\n")
        (folder / "cmdline").write_bytes(command.encode() + b"\0--engine\0reference\0")

    under = uid.replace("-", "_")
    process(1, "/init.scope", "", "/opt/launcher/launcher")
    process(10, f"/kubepods.slice/kubepods-pod{under}.slice/a.scope", "\t1", "/opt/launcher/launcher")
    process(11, f"/kubepods.slice/kubepods-pod{under}.slice/a.scope", "\t7", "/opt/launcher/launcher")
    process(12, f"/kubepods/pod{uid}/b", "\t1", "/pause")
    process(13, "/kubepods/podanother/b", "\t1", "/opt/launcher/launcher")
    (tmp_path / "14").mkdir()  # ended meanwhile
    assert first_process.first_processes(uid, "launcher", str(tmp_path)) == [10]
    assert first_process.first_processes(uid, "pause", str(tmp_path)) == [12]


def test_ports_are_reached_or_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reach.reaches(f"127.0.0.1:{port}", 30.0)
    assert not reach.reaches(f"127.0.0.1:{port}", 30.0)


@pytest.mark.parametrize("path", sorted(INSIDE.glob("*.py")), ids=lambda p: p.stem)
def test_programs_in_pods_need_the_standard_library_only(path: Path) -> None:
    words = path.read_text()
    imported = {
        line.split()[1].partition(".")[0] for line in words.splitlines() if line.startswith(("import ", "from "))
    }
    assert imported <= set(sys.stdlib_module_names)


# ------------------------------------------------------------------------------------------------- options, skipping


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("launcher:dev", {"newName": "launcher", "newTag": "dev"}),
        ("launcher", {"newName": "launcher", "newTag": "latest"}),
        ("host:5000/me/launcher", {"newName": "host:5000/me/launcher", "newTag": "latest"}),
        ("host:5000/me/launcher:1", {"newName": "host:5000/me/launcher", "newTag": "1"}),
        ("me/launcher@sha256:abc", {"newName": "me/launcher", "digest": "sha256:abc"}),
    ],
)
def test_image_is_one_that_kustomize_takes(reference: str, expected: dict[str, str]) -> None:
    assert image_of(reference, "launcher") == {"name": "launcher", **expected}


def test_options_come_through_the_environment() -> None:
    given = Options("me/launcher:1", engine_image="vllm:1", engine_args="--engine vllm --model '/a b'", keep="1")
    assert Options.of(given.environ()) == given
    assert given.engine == ["--engine", "vllm", "--model", "/a b"]
    assert Options.of({}) == Options()


CONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:PORT"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
users: [{name: u, user: {}}]
"""


def run_suite(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LAUNCHER_")}
    command = [sys.executable, "-m", "tests.cluster", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, cwd=root, env={**clean, **environ}, capture_output=True, text=True, check=False, timeout=300
    )


def test_suite_is_skipped_with_the_reason_where_no_cluster_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "config").write_text(CONFIG.replace("PORT", str(port)))
    done = run_suite(
        "--kubeconfig", "config", "-k", "describe or lws", "-p", "no:cacheprovider", LAUNCHER_CLUSTER_FROM=str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"no cluster: The connection to the server 127.0.0.1:{port} was refused" in done.stdout
    assert " skipped" in done.stdout and " passed" not in done.stdout and " failed" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kubeconfig", "/nowhere/config"], "--kubeconfig /nowhere/config: there is no such file"),
        (["--engine-image", "vllm:1"], "--engine-image and --engine-args belong together"),
    ],
)
def test_suite_says_which_option_is_wrong(arguments: list[str], said: str) -> None:
    done = run_suite(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_cluster_is_left_alone_by_a_plain_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs all tests must not find groups in the cluster that kubectl happens to reach."""
    command = [sys.executable, "-m", "pytest", "tests/cluster", "-k", "describe", "-rs", "-p", "no:cacheprovider"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LAUNCHER_")}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=clean, capture_output=True, text=True, check=False, timeout=300)
    assert "the cluster is used when asked for: ./run.sh cluster" in done.stdout


def test_missing_rights_are_a_reason(tmp_path: Path) -> None:
    text = 'print("no") if "can-i" in sys.argv else print("{}")'
    assert why_not(Kubectl("default", program(tmp_path, text))) == "no right to create namespaces"
    assert why_not(Kubectl("default", program(tmp_path, text.replace('"no"', '"yes"')))) == ""
    assert "no cluster" in why_not(Kubectl("default", str(tmp_path / "nothing")))


def test_table_has_a_line_for_each_measurement() -> None:
    class Report:
        def __init__(self, *properties: tuple[str, object]) -> None:
            self.user_properties = properties

    reports = [
        Report((conftest.ROW, ["worker's pod deleted: serving again", "8.1 s", "at most 12 s"])),
        Report(("another", "property")),
        Report((conftest.ROW, ["Kubernetes", "v1.36.0, 2 nodes", ""])),
    ]
    assert conftest.lines(conftest.rows(reports)) == [
        "worker's pod deleted: serving again             8.1 s  at most 12 s",
        "Kubernetes                           v1.36.0, 2 nodes",
    ]
