"""A group whose launchers have two versions: it forms and behaves as one, or waits and says why.

The older one is revision 70d115c of this repository: the last commit before 0.2 that speaks protocol 1 without 0.2's
additions. docs/upgrade.md tells users what these tests hold.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.e2e.group import Group, running
from tests.manifests import ROOT

OLDER = "70d115c"
ENGINE = f"""
name = "files"
[health]
path = "/"
[[stages]]
name = "worker"
on = "worker"
command = ["sleep", "3600"]
[[stages]]
name = "server"
on = "leader"
command = ["{sys.executable}", "-m", "http.server", "{{port}}", "--bind", "{{bind}}"]
"""


def git(*args: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, check=False)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the same command starts the older launcher."""
    try:
        known = git("cat-file", "-e", f"{OLDER}^{{commit}}").returncode == 0
    except FileNotFoundError:
        pytest.skip("git is not installed, so the older launcher cannot be taken from the history")
    if not known:
        pytest.skip(f"this is no clone with its history, so {OLDER} is missing: git fetch --unshallow")
    folder = tmp_path_factory.mktemp("older")
    archive = git("archive", "--format=tar", OLDER, "launcher")
    assert archive.returncode == 0, archive.stderr
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data") if sys.version_info >= (3, 12) else tar.extractall(folder)
    assert not (folder / "launcher/group/roster.py").exists(), "not the older launcher"
    return {"PYTHONPATH": str(folder)}


@pytest.fixture
def engine(tmp_path: Path) -> tuple[str, ...]:
    """Options of an engine that knows nothing of the launcher's version."""
    path = tmp_path / "engine.toml"
    path.write_text(ENGINE)
    return ("--engine", "file", "--engine-file", str(path), "--restart-backoff", "0.3", "--drain-settle", "0.2")


def versions(other: dict[str, str], which: str) -> tuple[dict[str, str], dict[str, str]]:
    """The environments of leader and worker; ``which`` of them runs the other version."""
    return (other, {}) if which == "leader" else ({}, other)


def start(group: Group, rank: int, env: dict[str, str]) -> None:
    process = group.start(rank, env=env)
    group.until(f"rank {rank} is up", lambda: process.poll() is not None or group.status(rank))
    agent = Path(f"/proc/{group.agent(rank)}/environ").read_bytes()
    assert (b"PYTHONPATH=" in agent) == ("PYTHONPATH" in env)


@pytest.mark.parametrize("old", ["leader", "worker"])
def test_two_versions_are_one_group(old: str, older: dict[str, str], engine: tuple[str, ...], tmp_path: Path) -> None:
    """It forms, restarts together after a failure that both name alike, and drains."""
    with running(tmp_path, 2, *engine, start=False) as group:
        for rank, env in enumerate(versions(older, old)):
            start(group, rank, env)
        group.until("serving", group.serves)
        os.kill(group.root(1), signal.SIGKILL)
        group.until("serving again", lambda: group.serves(after=1))
        for rank in range(2):
            failure = str(group.status(rank)["first_failure"])
            assert "SIGKILL" in failure and "1" in failure, failure
            assert group.status(rank)["restarts"] == 1
        group.terminate(0, 1)
        assert group.codes() == [0, 0]


@pytest.mark.parametrize(("way", "order"), [("forth", (0, 1)), ("back", (1, 0))])
def test_pods_are_replaced_one_by_one(
    way: str, order: tuple[int, ...], older: dict[str, str], engine: tuple[str, ...], tmp_path: Path
) -> None:
    """A group of one version, of both, of the other, with the state that the former launchers left."""
    before, after = (older, {}) if way == "forth" else ({}, older)
    state = {rank: {"LAUNCHER_STATE_DIR": str(tmp_path / f"state{rank}")} for rank in range(2)}
    with running(tmp_path, 2, *engine, start=False) as group:
        for rank in range(2):
            (tmp_path / f"state{rank}").mkdir()
            start(group, rank, {**before, **state[rank]})
        group.until("serving", group.serves)
        epoch = group.epoch()
        for rank in order:
            group.terminate(rank)
            assert group.code(rank) == 0
            group.restart(rank, env={**after, **state[rank]})
            group.until("serving again", lambda e=epoch: group.serves(after=e))  # type: ignore[misc]
            epoch = group.epoch()
        assert group.status(0)["restarts"] == 0
        assert not list(tmp_path.glob("state*/*.bad"))


@pytest.mark.parametrize("old", ["leader", "worker"])
def test_an_engine_of_the_launchers_own_waits(old: str, older: dict[str, str], tmp_path: Path) -> None:
    """The reference engine is part of the launcher: two versions of it are two engines."""
    with running(tmp_path, 2, start=False) as group:
        for rank, env in enumerate(versions(older, old)):
            start(group, rank, env)
        group.until_phase("mismatched")
        for rank in range(2):
            group.until("said why", lambda r=rank: "rank 1: engine.version 0." in group.status(r)["waiting_for"])  # type: ignore[misc]
        assert not group.engines()


@pytest.mark.parametrize("old", ["leader", "worker"])
def test_a_group_with_a_token_waits(old: str, older: dict[str, str], engine: tuple[str, ...], tmp_path: Path) -> None:
    """The exception: 0.2 binds every message to the secret, which 0.1 cannot. 0.2 says so and nothing starts."""
    secret = tmp_path / "secret"
    secret.write_text("a secret of the group that is long enough\n")
    secret.chmod(0o600)
    with running(tmp_path, 2, *engine, "--token-file", str(secret), start=False) as group:
        for rank, env in enumerate(versions(older, old)):
            start(group, rank, env)
        newer = 1 if old == "leader" else 0
        group.until_said("with --token-file every pod of a group must run launcher 0.2 or later", newer)
        waits = ("gathering", "seeking", "waiting")
        group.until("both wait", lambda: all(group.phase(rank) in waits for rank in range(2)))
        assert not group.engines()
        group.terminate(1 - newer)
        assert group.code(1 - newer) == 0
        group.restart(1 - newer)
        group.until("serving", group.serves)


@pytest.mark.parametrize("new", ["leader", "worker"])
def test_another_protocol_waits(new: str, engine: tuple[str, ...], tmp_path: Path) -> None:
    """What a release with another protocol would meet: the leader says both numbers, and nothing starts."""
    later = tmp_path / "later"
    shutil.copytree(ROOT / "launcher", later / "launcher", ignore=shutil.ignore_patterns("__pycache__"))
    messages = later / "launcher/group/messages.py"
    assert messages.read_text().count("\nPROTOCOL = 1\n") == 1
    messages.write_text(messages.read_text().replace("\nPROTOCOL = 1\n", "\nPROTOCOL = 2\n"))
    text = f"this leader speaks protocol {2 if new == 'leader' else 1}, rank 1 speaks {1 if new == 'leader' else 2}"
    with running(tmp_path, 2, *engine, start=False) as group:
        for rank, env in enumerate(versions({"PYTHONPATH": str(later)}, new)):
            start(group, rank, env)
        group.until_said(text, 1)
        group.until("the worker waits", lambda: text in group.status(1)["waiting_for"])
        group.until("the leader waits", lambda: group.status(0).get("waiting_for") == "waiting for rank 1")
        assert not group.engines()
