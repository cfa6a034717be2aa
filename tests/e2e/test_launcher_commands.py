"""The commands that ask a running launcher: status, status --all, wait, logs, restart. And Ctrl-C, everywhere."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import all_pods
from launcher.group import proof
from tests.e2e.group import LAUNCHER, PATIENCE, Group, fetch, running, until
from tests.e2e.test_launcher_edges import local

PACE = ("--restart-backoff", "0.3", "--stop-grace", "2")


def launcher(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("LAUNCHER_")}
    command = [str(LAUNCHER), *args]
    return subprocess.run(
        command, env={**environ, **variables}, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def of(group: Group, rank: int) -> tuple[str, str]:
    return "--url", f"http://{group.addresses[rank]}:{group.agent_port}"


def test_a_restart_by_hand_ends_the_epoch_on_all_ranks_and_costs_nothing(tmp_path: Path) -> None:
    with running(tmp_path, 3, *PACE) as group:
        epoch = group.until_serving()
        before = {p.key for p in group.engines()}
        done = launcher("restart", *of(group, 0))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"epoch {epoch} ends on all 3 ranks, and a new one begins\n"
        ready = launcher("wait", "--ready", *of(group, 0), "--timeout", "2m")
        assert ready.returncode == 0, ready.stderr
        assert group.until_serving(after=epoch) == epoch + 1
        assert not before & {p.key for p in group.engines()}
        status = group.status(0)
        assert (status["first_failure"], status["restarts"]) == (None, 0)
        assert (status["latest_cause"]["cause"], status["latest_cause"]["epoch"]) == ("restart", epoch)
        for rank in range(3):
            group.until_said("serving again after ", rank)
        shown = launcher("status", *of(group, 0)).stdout
        assert f"latest end (epoch {epoch}, " in shown and "restarted by hand" in shown
        assert f"reference {status['engine_version']}, model reference, API http://{group.addresses[0]}:" in shown


def test_a_worker_names_the_leader(tmp_path: Path) -> None:
    with running(tmp_path, 2, *PACE) as group:
        group.until_serving()
        leader = f"http://{group.addresses[0]}:{group.agent_port}"
        for command in ("restart", "logs"):
            asked = launcher(command, *of(group, 1))
            assert asked.returncode == 69
            assert "this is rank 1: ask rank 0: launcher " in asked.stderr and f"--url {leader}" in asked.stderr
        assert group.epoch() == 1


def test_a_restart_from_afar_takes_the_token(tmp_path: Path) -> None:
    secret, other = tmp_path / "secret", tmp_path / "other"
    for path in (secret, other):
        path.write_text(path.name * 8)
        path.chmod(0o400)
    with running(tmp_path, 2, *PACE, "--token-file", str(secret), "--status-details", "none") as group:
        epoch = group.until_serving()
        for args in ((), ("--token-file", str(other))):
            refused = launcher("restart", *of(group, 0), *args)
            assert refused.returncode == 69 and "token" in refused.stderr, refused
            assert launcher("logs", *of(group, 0), *args).returncode == 69
        assert group.epoch() == epoch
        assert launcher("logs", *of(group, 0), "--token-file", str(secret)).returncode == 0
        token = proof.status_token(secret.read_bytes().strip())
        assert launcher("restart", *of(group, 0), LAUNCHER_STATUS_TOKEN=token).returncode == 0
        group.until_serving(after=epoch)


def test_a_request_without_the_header_or_by_get_restarts_nothing(tmp_path: Path) -> None:
    with running(tmp_path, 2, *PACE) as group:
        epoch = group.until_serving()
        host, port = group.addresses[0], group.agent_port
        assert fetch(host, port, "/restart").status == 405
        assert fetch(host, port, "/restart", {}).status == 403
        forged = {"X-Launcher-Action": "restart", "Origin": "https://evil.example"}
        assert fetch(host, port, "/restart", {}, 10.0, **forged).status == 403
        assert (group.epoch(), group.phase(0)) == (epoch, "running")


def test_a_group_that_is_not_whole_says_why_it_does_not_restart(tmp_path: Path) -> None:
    with running(tmp_path, 2, *PACE, start=False) as group:
        group.start(0)
        group.until_phase("gathering", 0)
        refused = launcher("restart", *of(group, 0))
        assert refused.returncode == 69
        assert "no epoch runs: waiting for rank 1" in refused.stderr
        late = launcher("wait", "--ready", *of(group, 0), "--timeout", "1s")
        assert late.returncode == 75
        assert "not ready after 1 s: it is gathering, waiting for rank 1" in late.stderr
        assert launcher("wait", "--phase", "gathering", "--phase", "running", *of(group, 0)).returncode == 0


def test_the_last_lines_of_a_rank_outlive_its_pod(tmp_path: Path) -> None:
    with running(tmp_path, 2, *PACE, "--lease", "3") as group:
        group.until_serving()
        command = ("logs", *of(group, 0), "--rank", "1")
        group.until("rank 0 has heard rank 1", lambda: "the chain is whole" in launcher(*command).stdout)
        group.kill_rank(1)
        group.until_phase("gathering", 0)
        told = launcher(*command)
        assert told.returncode == 0 and "the chain is whole" in told.stdout
        assert told.stderr.startswith("rank 1, epoch 1, which ended: its launcher at ")
        assert "there is no rank 2: the ranks are 0 to 1" in launcher("logs", *of(group, 0), "--rank", "2").stderr


def test_status_shows_how_every_rank_ended(tmp_path: Path) -> None:
    crash = ("--crash-after", "0.5", "--crash-code", "7", "--fault-ranks", "2", "--fault-epochs", "1")
    with running(tmp_path, 4, *PACE, "--", *crash) as group:
        group.until("it failed", lambda: group.status(0).get("first_failure"))
        group.until_serving(after=1)
        shown = launcher("status", *of(group, 0)).stdout
        assert "first failure (epoch 1, " in shown and "rank 2: " in shown
        rows = shown.partition("rank   how it ended")[2] or shown.partition("how it ended")[2]
        first = rows.splitlines()[1].split(None, 1)
        assert first[0] == "2" and "exit code 7" in first[1], shown


def test_every_pod_of_a_service_is_a_line_of_its_group(tmp_path: Path) -> None:
    with running(tmp_path, 2, *PACE) as group:
        group.until_serving()
        absent = f"{group.prefix}.9"
        pods = all_pods.ask((*group.addresses, absent), group.agent_port, None)
        assert [pod.status.get("rank") for pod in pods] == [0, 1, None]
        text = all_pods.table("engine.ns.svc", pods)
        assert text.startswith("engine.ns.svc: 1 of 1 groups serving, 3 pods, 1 without an answer\n")
        assert f"  {absent}: no connection (connection refused)" in text
        assert json.loads(all_pods.as_objects(pods))[2]["status"] is None
        alone = launcher("status", "--all", group.addresses[0], "--agent-port", str(group.agent_port))
        assert alone.returncode == 0 and "1 of 1 groups serving, 1 pod" in alone.stdout, alone
        nowhere = launcher("status", "--all", "no-such-service.invalid")
        assert nowhere.returncode == 69 and "does not resolve" in nowhere.stderr


def test_a_wrong_port_says_what_answered_there(tmp_path: Path) -> None:
    with running(tmp_path, 2, *PACE) as group:
        group.until_serving()
        api = launcher("status", "--url", f"{group.addresses[0]}:{group.port}")
        assert api.returncode == 69
        assert f"/status is not a launcher's: HTTP 404, process {group.root(0)} (python" in api.stderr
        link = launcher("wait", "--ready", "--url", f"{group.addresses[0]}:{group.group_port}")
        assert link.returncode == 69 and "the launcher's group port" in link.stderr
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        asking = subprocess.Popen(
            [str(LAUNCHER), "status", "--url", url], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"220 mail.example ESMTP\r\n")
        said = asking.communicate(timeout=PATIENCE)[1]
        assert asking.returncode == 69
        assert "is not a launcher's: no HTTP, but '220 mail.example ESMTP" in said
        assert f"process {os.getpid()} (" in said
    gone = launcher("status", "--url", url)
    assert gone.returncode == 69 and "no connection (connection refused)" in gone.stderr


# --------------------------------------------------------------------------------------------------------- local


def test_local_says_what_to_do_next_and_that_works(tmp_path: Path) -> None:
    process, group = local(2)
    lines: list[str] = []
    assert process.stdout is not None
    while not any(line.startswith("  stop ") for line in lines):
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)
    text = "".join(lines)
    assert lines[0].startswith("launcher local: starting 2 ranks; `launcher status --url http://127.0.0.1:")
    api = f"http://127.0.0.1:{group.port}"
    assert f"  API     {api}\n" in text
    words = shlex.split(next(line for line in lines if line.startswith("  try ")))[1:]
    assert words[:2] == ["curl", f"{api}/v1/completions"] and words[2:5:2] == ["-H", "-d"]
    answer = fetch("127.0.0.1", group.port, "/v1/completions", json.loads(words[5]))
    assert answer.status == 200, answer
    status = shlex.split(next(line for line in lines if line.startswith("  status ")))[1:]
    assert launcher(*status[1:]).returncode == 0
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "Traceback" not in said
    settled = [line for line in said.splitlines() if " drained of_epoch" in line]
    assert settled and float(settled[0].rpartition("seconds=")[2]) < 5.0, "the default of --drain-settle"


def test_local_heeds_a_drain_settle_that_is_given(tmp_path: Path) -> None:
    process, group = local(1, "--drain-settle", "1500ms")
    until("serving", group.serves)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert any(float(line.rpartition("seconds=")[2]) >= 1.5 for line in said.splitlines() if "drained of_epoch" in line)


# -------------------------------------------------------------------------------------------------------- Ctrl-C

NOBODY = "http://127.0.0.1:1"
ASKED = ("--size", "2", "--rank", "1", "--leader", "127.0.0.1", "--address", "127.0.0.2", "--engine", "reference")
COMMANDS = {
    "status --watch": ["-m", "launcher", "status", "--watch", "--url", NOBODY],
    "status --all --watch": ["-m", "launcher", "status", "--all", "127.0.0.1", "--agent-port", "1", "--watch"],
    "wait": ["-m", "launcher", "wait", "--ready", "--url", NOBODY],
    "run": ["-m", "launcher", "run", *ASKED],
    "doctor --group": ["-m", "launcher", "doctor", "--group", *ASKED],
    "local": ["-m", "launcher", "local", "--size", "2", "--engine", "reference", "--", "--startup-seconds", "600"],
    "run.sh worker": ["-m", "launcher.compat.ray_script", "worker", "--ray_address=no-such-head.invalid"],
    "demo": ["-m", "launcher.cli.demo", "--verbose"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_leaves_no_traceback(name: str, tmp_path: Path) -> None:
    """SIGINT to the whole foreground group, as a terminal sends it, once the command says anything."""
    ports = Group(tmp_path, 2, start=False)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("LAUNCHER_")}
    if name in ("run", "doctor --group", "local"):
        for option in ("agent_port", "group_port", "port"):
            environ[f"LAUNCHER_{option.upper()}"] = str(getattr(ports, option))
        environ["LAUNCHER_MASTER_PORT"] = str(ports.peer_port)
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *COMMANDS[name]],
            env={**environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        until(f"{name} says something", lambda: output.read_bytes() or process.poll() is not None)
        assert process.poll() is None, output.read_text()
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(PATIENCE)
    said = output.read_text()
    assert "Traceback" not in said and "KeyboardInterrupt" not in said, said
    assert code in (0, 128 + signal.SIGINT, *([1] if name.startswith("doctor") else [])), said  # 1: nothing is proven
    until("nothing is left", lambda: not ports.left())
