"""Strangers on the agent port, and where the secret may be seen: real launchers, sockets and a recording proxy."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launcher.group import proof
from launcher.node.tree import read
from tests.e2e.group import LAUNCHER, Group, fetch, running

WORD = "a long and secret word, never to be printed"
PROMPT = "the-prompt-of-a-user"
KEY = "sk-never-to-be-told"


class Recorder:
    """A server that takes every connection, keeps what is said, and answers nothing of use."""

    def __init__(self) -> None:
        self.said = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    connection.settimeout(10)
                    with contextlib.suppress(OSError):
                        self.said += connection.recv(65536)
                        connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def proxies() -> Iterator[tuple[Recorder, dict[str, str]]]:
    """A recorder, and an environment in which every variable of the kind names it as the proxy of everything."""
    recorder = Recorder()
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    clean = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy" and not k.startswith("LAUNCHER_")}
    try:
        yield recorder, {**clean, **dict.fromkeys(names, recorder.url)}
    finally:
        recorder.close()


def secret(folder: Path) -> Path:
    path = folder / "token"
    path.write_text(WORD + "\n")
    path.chmod(0o400)
    return path


def says(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(LAUNCHER), *args], capture_output=True, text=True, timeout=120, check=False, env=env)


def test_nothing_of_ours_asks_through_a_proxy(tmp_path: Path) -> None:
    """status, doctor --group and a whole start with its health checks; the demo, which is a start and more, too."""
    with proxies() as (recorder, env), running(tmp_path, 2, env=env) as group:
        group.until_serving()
        url = f"http://{group.addresses[0]}:{group.agent_port}"
        shown = says("status", "--json", "--url", url, env=env)
        assert json.loads(shown.stdout)["phase"] == "running", shown
        asked = says(
            "doctor", "--group", "--address", group.addresses[0], "--agent-port", str(group.agent_port), env=env
        )
        assert "running launchers" in asked.stdout, asked
        demo = subprocess.run(
            [sys.executable, "-m", "launcher.cli.demo"],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=env,
        )
        assert demo.returncode == 0, demo.stdout + demo.stderr
        assert recorder.said == b""


def test_status_sends_the_derived_token_and_nothing_else(tmp_path: Path) -> None:
    path = secret(tmp_path)
    printed = says("status-token", "--token-file", str(path))
    token = printed.stdout.strip()
    assert token == proof.status_token(WORD.encode()) and printed.stderr == ""
    recorder = Recorder()
    for options, env in ((["--token-file", str(path)], {}), ([], {"LAUNCHER_STATUS_TOKEN": token})):
        recorder.said = b""
        shown = says("status", "--url", recorder.url, *options, env={**os.environ, **env})
        assert shown.returncode == 69, shown
        assert f"Authorization: Bearer {token}".encode() in recorder.said
        assert WORD.encode() not in recorder.said
    recorder.close()


def test_a_secret_that_is_sent_is_refused_in_words(tmp_path: Path) -> None:
    path = secret(tmp_path)
    with running(tmp_path, 1, "--token-file", str(path), "--status-details", "none") as group:
        group.until_phase("running", 0)

        def ask(token: str) -> tuple[int, dict[str, object]]:
            answer = group.ask(0, "/status", Authorization=f"Bearer {token}")
            return answer.status, json.loads(answer.body)

        limits = Path(f"/proc/{group.agent(0)}/limits").read_text().splitlines()
        assert next(line.split()[4] for line in limits if line.startswith("Max core file size")) in ("0", "1")
        code, told = ask(WORD)
        assert code == 401 and "status-token" in str(told["error"]) and "phase" not in told
        code, told = ask(proof.status_token(WORD.encode()))
        assert code == 200 and "findings" in told
        code, told = ask("0" * 64)
        assert code == 200 and "findings" not in told and told["phase"] == "running"
        url = f"http://{group.addresses[0]}:{group.agent_port}"
        assert "note" not in json.loads(says("status", "--json", "--url", url, "--token-file", str(path)).stdout)
        assert "details only" in says("status", "--url", url).stdout
        assert "can be read" not in group.output(0)
        assert WORD not in group.output(0)


def test_a_token_file_that_all_may_read_is_warned_of(tmp_path: Path) -> None:
    path = secret(tmp_path)
    path.chmod(0o644)
    with running(tmp_path, 1, "--token-file", str(path)) as group:
        group.until_said("can be read by every user here (mode 0644)", 0)
    for command in ("plan", "status-token"):
        said = says(command, "--token-file", str(path), *(["--engine", "reference"] if command == "plan" else []))
        assert "defaultMode: 0400" in said.stdout + said.stderr, said


def failing(folder: Path) -> list[str]:
    """An engine that prints its arguments, its environment and a prompt, and ends."""
    script = f"import sys; print('args', sys.argv[1:]); print('{PROMPT}', flush=True); sys.exit(3)"
    path = folder / "engine.toml"
    path.write_text(
        f"""name = "talker"
[leader]
command = [{json.dumps(sys.executable)}, "-c", {json.dumps(script)}, "{{args}}"]
[worker]
command = [{json.dumps(sys.executable)}, "-c", {json.dumps(script)}, "{{args}}"]
"""
    )
    return ["--engine-file", str(path), "--restart-backoff", "5", "--", "--api-key", KEY]


def test_guard_and_agent_killed_at_once(tmp_path: Path) -> None:
    """Not PID 1: what the guard started dies with it. docs/security.md says what may be left, and why."""
    with running(tmp_path, 1) as group:
        group.until_serving()
        root, both = group.root(0), (group.guard(0), group.agent(0))
        for number in (signal.SIGSTOP, signal.SIGKILL):  # so that neither can act for the other
            for pid in both:
                os.kill(pid, number)
        group.until("the engine's root is gone", lambda: (found := read(root)) is None or found.gone)
        for proc in group.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(proc.pid, signal.SIGKILL)
        group.until("all are gone", lambda: not group.left())


def local(group: Group, **headers: str) -> dict[str, object]:
    """/status of rank 0, asked on its loopback address."""
    return dict(json.loads(group.ask(0, "/status", 5.0, **headers).body))


def test_an_engines_last_lines_are_for_the_pod_itself(tmp_path: Path) -> None:
    """Not for what was forwarded, what a browser asks under another name, or other sites; and never its API key."""
    with running(tmp_path, 1, *failing(tmp_path)) as group:
        group.until("a failure", lambda: group.status(0).get("first_failure"))
        assert PROMPT in json.dumps(local(group))
        for headers in (
            {"Host": "evil.example:9471"},
            {"X-Forwarded-For": "10.0.0.9"},
            {"Forwarded": "for=10.0.0.9"},
            {"Via": "1.1 sidecar"},
            {"x-envoy-attempt-count": "1"},
            {"Origin": "https://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            told = json.dumps(local(group, **headers))
            assert PROMPT not in told and "args" not in told, headers
            assert '"cause": "exited"' in told, headers
        for path in ("/status", "/livez", "/logs"):
            with contextlib.suppress(OSError):  # a closed connection is an answer, too
                answer = fetch(group.addresses[0], group.agent_port, path, {}, 5.0, **{"X-Launcher-Action": "restart"})
                assert answer.status in (400, 404, 405), (path, answer)
        group.until_said(PROMPT, 0)
        block = [line for line in group.output(0).splitlines() if line.startswith("launcher:   | ")]
        assert any(PROMPT in line for line in block) and not any(KEY in line for line in block)
        assert "***" in "\n".join(block)
        assert KEY not in json.dumps(local(group))


def test_another_pod_gets_states_and_numbers(tmp_path: Path) -> None:
    """Asked on an address that is not loopback, the launcher sees a peer that is not: as it sees another pod."""
    found = [a.address for several in psutil.net_if_addrs().values() for a in several if a.family == socket.AF_INET]
    own = next((address for address in found if not address.startswith("127.")), None)
    if own is None:
        pytest.skip("this machine has loopback only")
    with running(tmp_path, 1, *failing(tmp_path), env={"LAUNCHER_ADDRESS": own}) as group:
        group.until("a failure", lambda: group.status(0).get("first_failure"))
        for headers in ({}, {"Host": "localhost:9471"}, {"Authorization": "Bearer of-anything"}):
            told = json.loads(fetch(own, group.agent_port, "/status", None, 5.0, **headers).body)
            assert told["first_failure"]["cause"] == "exited" and told["first_failure"]["exit_code"] == 3
            assert told["rank"] == 0 and told["ready"] is False and "details only" in told["note"]
            assert PROMPT not in json.dumps(told) and "text" not in told["first_failure"]
        shown = says("status", "--url", f"http://{own}:{group.agent_port}").stdout
        assert "first failure" in shown and "exit code 3" in shown and PROMPT not in shown
        assert PROMPT in json.dumps(local(group))


def test_last_lines_can_be_left_out_of_log_and_termination_message(tmp_path: Path) -> None:
    with running(tmp_path, 1, "--last-lines", "off", "--max-restarts", "0", *failing(tmp_path)) as group:
        assert group.code(0) == 3
        group.until("the message", lambda: group.termination(0))
        assert "first failure: rank 0" in group.termination(0) and PROMPT not in group.termination(0)
        assert not any(PROMPT in line for line in group.output(0).splitlines() if line.startswith("launcher:"))


def test_launcher_lines_stay_whole_beside_an_unfinished_one(tmp_path: Path) -> None:
    """The engine leaves its last line open; each line of the launcher's is JSON for itself."""
    script = "import sys, time; sys.stderr.write('Loading 50%'); sys.stderr.flush(); time.sleep(1); sys.exit(3)"
    path = tmp_path / "engine.toml"
    command = f'command = [{json.dumps(sys.executable)}, "-c", {json.dumps(script)}]'
    path.write_text(f'name = "open"\n[leader]\n{command}\n[worker]\n{command}\n')
    with running(tmp_path, 1, "--engine-file", str(path), "--log-format", "json", "--max-restarts", "0") as group:
        assert group.code(0) == 3
        lines = group.output(0).splitlines()
        assert [line for line in lines if not line.startswith("{")] == ["Loading 50%"]
        assert all(json.loads(line)["event"] for line in lines if line.startswith("{"))
