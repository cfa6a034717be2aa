"""What surrounds a launcher may be strange: logs that cannot be written, output that nobody reads, handoff, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from launcher.node.tree import descendants
from tests.e2e.group import LAUNCHER, PATIENCE, Group, fetch, running, until


def test_a_termination_log_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder, a missing folder, a full disk: the pod ends with the code all the same."""
    places = (str(tmp_path), "/no/such/folder/log", "/dev/full")
    crash = ("--max-restarts", "0", "--", "--crash-after", "0", "--crash-code", "9")
    with running(tmp_path, 3, *crash, start=False) as group:
        for rank, place in enumerate(places):
            group.start(rank, env={"LAUNCHER_TERMINATION_LOG": place})
        codes = set(group.codes())
        assert codes <= {9, 1} and len(codes) == 1
        for rank in (0, 2):
            group.until_said("the termination message could not be written", rank)


def test_the_termination_message_is_short_and_keeps_the_end(tmp_path: Path) -> None:
    noise = ("--output-rate", "5000", "--crash-after", "0.5")
    with running(tmp_path, 1, "--max-restarts", "0", "--", *noise) as group:
        assert group.code(0) == 1
        told = group.termination(0)
        assert len(told.encode()) <= 4096
        assert told.startswith("exit code 1")
        assert "RuntimeError: injected crash of rank 0" in told.splitlines()[-1]


def test_a_launcher_that_ended_well_leaves_nothing_to_wait_for(tmp_path: Path) -> None:
    """Stopped and started again by hand, with --state-dir: the lease of the one before is not waited out."""
    more = ("--lease", "120s", "--drain-settle", "0", "--state-dir", str(tmp_path / "state"))
    with running(tmp_path, 2, *more) as group:
        epoch = group.until_serving()
        group.terminate()
        assert group.codes() == [0, 0]
        for rank in range(2):
            group.restart(rank)
        assert group.until_serving(after=epoch) == epoch + 1


def test_nobody_reads_our_output(tmp_path: Path) -> None:
    """A pipe that is full from the start: the group forms, serves and drains."""
    reader, writer = os.pipe()
    noise = ("--drain-settle", "0", "--", "--output-rate", "3000")
    with running(tmp_path, 2, *noise, start=False) as group:
        group.start(0)
        group.start(1, stdout=writer)
        epoch = group.until_serving()
        os.set_blocking(writer, False)

        def full() -> bool:
            try:
                os.write(writer, b"x" * 4096)
            except BlockingIOError:
                return True
            return False

        group.until("the pipe is full", full)
        os.kill(group.root(1), signal.SIGKILL)
        group.until_serving(after=epoch)
        group.terminate()
        assert group.codes() == [0, 0]
    os.close(reader)
    os.close(writer)


def test_our_output_is_closed(tmp_path: Path) -> None:
    """Whoever read it is gone (EPIPE)."""
    reader, writer = os.pipe()
    os.close(reader)
    with running(tmp_path, 1, "--drain-settle", "0", start=False) as group:
        group.start(0, stdout=writer)
        os.close(writer)
        group.until_serving()
        group.terminate()
        assert group.code(0) == 0


def test_json_logs(tmp_path: Path) -> None:
    with running(tmp_path, 1, "--log-format", "json", "--max-restarts", "0", "--", "--crash-after", "0") as group:
        assert group.code(0) == 1
        ours = [json.loads(line) for line in group.output(0).splitlines() if line.startswith("{")]
        assert [each["event"] for each in ours][-1] == "exits"
        assert all({"time", "level", "event", "rank"} <= each.keys() for each in ours)
        (block,) = [each for each in ours if each.get("detail")]
        assert any("injected crash of rank 0" in line for line in block["detail"])


@pytest.mark.parametrize("size", [1, 2])
def test_handoff(tmp_path: Path, size: int) -> None:
    """The engine takes the launcher's process: same pid, its own exit code, nothing of ours left."""
    with running(tmp_path, size, "--handoff") as group:
        address = (group.addresses[0], group.port)

        def healthy() -> bool:
            try:
                return fetch(*address, "/health").status == 200
            except OSError:
                return False

        group.until("the engine serves", healthy)
        group.complete("handed off", 5)
        for rank in range(size):
            command = Path(f"/proc/{group.guard(rank)}/cmdline").read_bytes().split(b"\0")
            assert b"--epoch-token" in command
            assert all(LAUNCHER.name.encode() not in part for part in (p.comm.encode() for p in group.tree(rank)))
        assert len(group.left()) == 2 * size
        group.terminate(0)
        assert group.code(0) == 0


def test_service_links(tmp_path: Path) -> None:
    """A Service named launcher puts LAUNCHER_PORT=tcp://... into every pod of its namespace."""
    links = {
        "LAUNCHER_SERVICE_HOST": "10.0.0.7",
        "LAUNCHER_SERVICE_PORT": "9470",
        "LAUNCHER_PORT_9470_TCP": "tcp://10.0.0.7:9470",
        "LAUNCHER_PORT_9470_TCP_PROTO": "tcp",
        "LAUNCHER_PORT_9470_TCP_PORT": "9470",
        "LAUNCHER_PORT_9470_TCP_ADDR": "10.0.0.7",
        "LAUNCHER_PORT": "tcp://10.0.0.7:9470",
    }
    with running(tmp_path, 1, env=links) as group:
        group.until_serving()
        assert re.search(r"WARNING .*LAUNCHER_PORT", group.output(0))


def test_a_process_of_the_engine_that_left_the_family(tmp_path: Path) -> None:
    """A daemon in its own session, renamed, its environment wiped: it goes with its epoch."""
    args = ("--restart-backoff", "0.3", "--", "--fork-daemon", "--orphans-live")
    with running(tmp_path, 2, *args) as group:
        epoch = group.until_serving()
        old = {p.key for p in group.engines()}
        assert len(old) == 6
        os.kill(group.root(1), signal.SIGKILL)
        group.until_serving(after=epoch)
        assert not old & {p.key for p in group.engines()}
        old = {p.key for p in group.engines()}
        os.kill(group.guard(1), signal.SIGKILL)
        group.until("all of rank 1 gone", lambda: len(old & {p.key for p in group.engines()}) <= 3)


def local(
    size: int, *args: str, engine: tuple[str, ...] = ("--engine", "reference")
) -> tuple[subprocess.Popen[str], Group]:
    """`launcher local`; the group lends its free ports."""
    ports = Group(Path(), size, start=False)
    command = [str(LAUNCHER), "local", "--size", str(size), *engine, "--port", str(ports.port)]
    command += ["--agent-port", str(ports.agent_port), "--group-port", str(ports.group_port)]
    command += ["--master-port", str(ports.peer_port), *args]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    ports.addresses = [f"127.0.0.{rank + 1}" for rank in range(size)]
    return process, ports


def test_local_and_ctrl_c(tmp_path: Path) -> None:
    process, group = local(2, "--drain-settle", "0")
    until("serving", group.serves)
    group.complete("local", 5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "[0] " in said and "[1] " in said
    assert not group.left()


def test_local_says_the_code_of_the_engine(tmp_path: Path) -> None:
    process, group = local(
        2, "--max-restarts", "0", "--", "--crash-after", "0", "--crash-code", "5", "--fault-ranks", "0"
    )
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode in (5, 1), said
    assert "first failure: rank" in said
    assert not group.left()


def test_local_is_killed(tmp_path: Path) -> None:
    """kill -9 of `launcher local` itself: its ranks are sessions of their own; they must not live on unseen."""
    process, group = local(2, "--lease", "3")
    until("serving", group.serves)
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()
    until("nothing is left", lambda: not group.left(), words=lambda: str(descendants(os.getpid())))


def test_an_engine_whose_work_is_done(tmp_path: Path) -> None:
    """`completes = true`: when all ranks have ended with 0, every launcher exits with 0; a failure is one."""
    file = tmp_path / "job.toml"
    script = 'sleep 0.{rank}; if ! test -e "$0"; then touch "$0"; exit 3; fi; sleep 0.3'
    command = ["sh", "-c", script, str(tmp_path / "tried-{rank}")]
    file.write_text(f'name = "job"\ncompletes = true\n[all]\ncommand = {json.dumps(command)}\n')
    process, _ = local(2, "--restart-backoff", "0.3s", "--engine-file", str(file), engine=())
    text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, text
    assert "job ended with exit code 3" in text or "engine ended with exit code 3" in text
    assert text.count('exits code=0 why="the work is done"') == 2
