"""The guard as tini is tested: the real program, every exit code, every signal, orphans, output, exec, handoff."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.guard.channel import Deadline, Deliver, Kill, Ping, Say, Spawn, Stop
from launcher.node.tree import start_time
from tests.e2e.programs.guarded import HERE, PYTHON, Launched, until

#: Catchable, and no answer to a system call of the guard's own or fault of it.
FORWARDED = sorted(
    set(map(int, signal.valid_signals()))
    - {9, 19, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTIN, signal.SIGTTOU}
    - {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
)

Launch = Callable[..., Launched]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    started: list[Launched] = []

    def start(*argv: str | Path, **options: Any) -> Launched:
        folder = tmp_path / f"launch{len(started)}"
        folder.mkdir()
        started.append(Launched(folder, *argv, **options))
        return started[-1]

    yield start
    for launched in started:
        launched.close()


# ---------------------------------------------------------------------------------------------- exit codes, signals


def codes(*scripts: str) -> list[int]:
    done = subprocess.run(
        [PYTHON, HERE / "many_codes.py", *scripts], capture_output=True, text=True, timeout=100, check=True
    )
    return [int(line) for line in done.stdout.split()]


def test_every_exit_code() -> None:
    assert codes(*(f"exit {code}" for code in range(256))) == list(range(256))


def test_every_deadly_signal_of_the_engine() -> None:
    deadly = [n for n in range(1, 32) if n not in (17, 18, 19, 20, 21, 22, 23, 28)]
    assert codes(*(f"ulimit -c 0; kill -{n} $$" for n in deadly)) == [128 + n for n in deadly]


def test_every_signal_that_reaches_the_guard_is_reported_in_order_and_kills_nothing(launch: Launch) -> None:
    launched = launch("sleep", "60", stay=1, grace=5)
    launched.reported("Started")
    sent = [n for n in FORWARDED if n != signal.SIGTERM]
    for n in sent:
        os.kill(launched.pid, n)
        launched.reported("SignalReceived", number=n)
    assert [found["number"] for found in launched.all_reported("SignalReceived")] == sent
    for n in (signal.SIGPIPE, signal.SIGTTIN, signal.SIGTTOU, signal.SIGXFSZ, signal.SIGCHLD):
        os.kill(launched.pid, n)
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.wait() == 0


def test_signals_are_passed_on_to_the_process_group(launch: Launch, tmp_path: Path) -> None:
    program = "trap 'echo got it; exit 3' USR1; sleep 60 & echo up; wait"
    launched = launch("sh", "-c", program)
    launched.reported("Output")
    os.kill(launched.pid, signal.SIGUSR1)
    assert launched.wait() == 3
    assert "got it" in launched.reported("Exited", id="main")["tail"]


def test_term_stops_with_grace_and_the_engine_may_tidy_up(launch: Launch) -> None:
    launched = launch("sh", "-c", "trap 'sleep 0.3; echo tidy; exit 9' TERM; echo up; while :; do sleep 0.05; done")
    launched.reported("Output")
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.wait() == 9
    assert launched.process.stdout.read() == b"up\ntidy\n"  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------- children and roots


def test_500_orphans_are_reaped(launch: Launch) -> None:
    program = (
        "import os\n"
        "for i in range(500):\n"
        "    if os.fork() == 0:\n"
        "        if os.fork():\n"
        "            os._exit(0)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "print('done', flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    launched = launch(sys.executable, "-c", program)
    launched.reported("Output")

    def zombies() -> list[str]:
        listing = subprocess.run(
            ["ps", "-o", "stat=", "--ppid", str(launched.pid)], stdout=subprocess.PIPE, text=True, check=False
        )
        return [line for line in listing.stdout.split() if line.startswith("Z")]

    until(lambda: not zombies(), "no zombie below the guard")


def test_a_child_starts_clean(launch: Launch) -> None:
    """Own session, no blocked or ignored signal, stdin empty, three descriptors, unbuffered Python."""
    program = "cat; cat /proc/self/status; ls -l /proc/self/fd; cut -d' ' -f6 /proc/$$/stat; echo $$; env"
    leak = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(leak, True)
    before = ("sh", "-c", f'trap "" HUP INT USR1; exec "$@" {leak}<&0', "sh")
    launched = launch("sh", "-c", program, before=before)
    out = launched.process.communicate()[0].decode()
    os.close(leak)
    assert launched.wait() == 0
    for name in ("SigIgn", "SigBlk", "SigCgt"):
        assert re.search(rf"{name}:\t0+\n", out), (name, out)
    assert re.search(r" 0 -> /dev/null", out)
    assert len(re.findall(r" -> ", out)) == 4, out  # 0, 1, 2 and the directory that ls reads
    session, pid = re.findall(r"^\d+$", out, re.M)
    assert session == pid
    assert "PYTHONUNBUFFERED=1" in out


def test_exec_failures_are_told_with_their_errno(launch: Launch, tmp_path: Path) -> None:
    plain, garbage = tmp_path / "plain", tmp_path / "garbage"
    plain.write_text("x")
    garbage.write_bytes(b"\0\1\2")
    garbage.chmod(0o755)
    launched = launch(stay=1)
    env = {"PATH": os.environ["PATH"]}
    cases: list[tuple[str, tuple[str, ...], dict[str, str], str | None, int]] = [
        ("enoent", ("no-such-program",), env, None, 2),
        ("path", ("/no/such/program",), env, None, 2),
        ("eacces", (str(plain),), env, None, 13),
        ("search", ("plain",), {"PATH": f"/nowhere:{tmp_path}"}, None, 13),
        ("enoexec", (str(garbage),), env, None, 8),
        ("cwd", ("true",), env, "/no/such/folder", 2),
        ("nul", ("tr\0ue",), env, None, 22),
        ("empty", (), env, None, 22),
    ]
    for name, argv, variables, cwd, errno in cases:
        launched.order(Spawn(name, name, argv, variables, cwd))
        report = launched.reported("NotStarted", id=name)
        assert report["errno"] == errno, report
    assert "/no/such/folder" in launched.reported("NotStarted", id="cwd")["text"]
    launched.order(Spawn("after", "after", ("true",), env))
    launched.reported("Exited", id="after", code=0)
    assert not launched.all_reported("Exited", id="enoent")


def test_roots_are_told_to_go_one_by_one_the_last_started_first(launch: Launch) -> None:
    launched = launch(stay=1)
    program = "trap 'sleep 0.2; echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done"
    for name in ("a", "b", "c"):
        launched.order(Spawn(name, name, ("sh", "-c", program), dict(os.environ)))
        launched.reported("Output", id=name)
    launched.order(Stop("s", None, 20.0))
    report = launched.reported("Stopped", id="s")
    assert report["clean"] and report["left"] == [] and 0.6 <= report["seconds"] < 20
    ends = [found["id"] for found in launched.all_reported("Exited")]
    assert ends == ["c", "b", "a"]


def test_a_stop_of_some_roots_leaves_the_others(launch: Launch) -> None:
    launched = launch(stay=1)
    for name in ("keep", "go"):
        launched.order(Spawn(name, name, ("sh", "-c", "sleep 60 & sleep 61 & wait"), dict(os.environ)))
        launched.reported("Started", id=name)
    until(lambda: len(launched.tree()) == 7, "agent, two shells, four sleeps")
    launched.order(Stop("s", ("go",), 5.0))
    assert launched.reported("Stopped", id="s")["clean"]
    assert len(launched.tree()) == 4
    assert not launched.all_reported("Exited", id="keep")


def test_a_shorter_grace_shortens_a_running_stop(launch: Launch) -> None:
    launched = launch("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done", stay=1)
    launched.reported("Output")
    launched.order(Stop("long", None, 1000.0))
    launched.order(Ping(1))
    launched.reported("Pong")
    launched.order(Spawn("new", "new", ("true",), dict(os.environ)))
    assert launched.reported("NotStarted", id="new")["text"] == "everything is being stopped"
    launched.order(Stop("longer", None, 2000.0))
    launched.order(Stop("short", None, 0.2))
    for name in ("long", "longer", "short"):
        assert launched.reported("Stopped", id=name)["clean"]
    launched.order(Kill("nothing"))
    assert launched.reported("Stopped", id="nothing")["clean"]


# ---------------------------------------------------------------------------------------------------------- output


def test_100_mb_pass_intact(launch: Launch) -> None:
    block = "(bytes(range(256)) + b'INFO 08-01 12:00:00 a line of a log\\n' * 1000) * 100"
    program = f"import os\nview = memoryview({block} * 29)\nwhile view: view = view[os.write(1, view[:1 << 20]):]\n"
    expected = eval(block) * 29
    assert len(expected) > 100_000_000
    launched = launch(sys.executable, "-c", program)
    digest = hashlib.sha256()
    length = 0
    while data := os.read(launched.process.stdout.fileno(), 1 << 20):  # type: ignore[union-attr]
        digest.update(data)
        length += len(data)
    assert launched.wait() == 0
    assert length == len(expected)
    assert digest.digest() == hashlib.sha256(expected).digest()
    assert not launched.all_reported("Dropped", stream=1)


def test_nobody_reads_our_stdout(launch: Launch) -> None:
    """The engine and the guard go on, what is lost is counted, and the end is not held up."""
    read_end, write_end = os.pipe()
    program = "head -c 20000000 /dev/zero; echo through >&2; sleep 60"
    launched = launch("sh", "-c", program, stdout=write_end, grace=5)

    def engine_is_through() -> bool:
        return any(p.comm == "sleep" for p in launched.tree())

    until(engine_is_through, "the engine past all its output")
    launched.reported("Dropped", stream=1)
    begun = time.monotonic()
    os.kill(launched.pid, signal.SIGTERM)
    assert launched.wait() == 143
    assert time.monotonic() - begun < 60
    os.close(write_end)
    os.close(read_end)


def test_captured_output_goes_to_the_agent_only(launch: Launch) -> None:
    launched = launch("sh", "-c", "echo secret; echo 'caf\\303\\251 \\377'", capture=1)
    assert launched.wait() == 0
    assert launched.process.stdout.read() == b""  # type: ignore[union-attr]
    assert launched.reported("Exited")["tail"] == "secret\ncafé \ufffd\n"
    assert "".join(r["data"] for r in launched.all_reported("Output")) == "secret\ncafé \ufffd\n"


def test_the_last_words_of_a_process_come_before_its_end(launch: Launch) -> None:
    launched = launch("sh", "-c", "head -c 60000 /dev/zero | tr '\\0' y; echo Traceback >&2; exit 4")
    assert launched.wait() == 4
    kinds = [kind for _, kind, _ in launched.log()]
    assert kinds[-1] == "Exited"
    tail = launched.reported("Exited")["tail"]
    assert len(tail) == 16384 and "Traceback" in tail


def test_say_goes_through_the_guard(launch: Launch) -> None:
    launched = launch("sleep", "60")
    launched.order(Say(1, "one\n"))
    launched.order(Say(2, "two\n"))
    launched.reported("Started")
    os.kill(launched.pid, signal.SIGTERM)
    out, err = launched.process.communicate()
    assert (out, err) == (b"one\n", b"two\n")


# --------------------------------------------------------------------------------------------------------- handoff


def test_handoff_keeps_the_pid_and_leaves_nothing_of_ours(launch: Launch) -> None:
    program = "echo $$; cat /proc/self/status; ls -l /proc/self/fd; ps -o pid= --ppid $$ | wc -l"
    launched = launch("sh", "-c", program, handoff=1)
    out = launched.process.communicate()[0].decode()
    assert launched.wait() == 0
    assert int(out.split()[0]) == launched.pid == launched.process.pid
    for name in ("SigIgn", "SigBlk", "SigCgt"):
        assert re.search(rf"{name}:\t0+\n", out), (name, out)
    assert len(re.findall(r" -> ", out)) == 4, out
    # PR_SET_CHILD_SUBREAPER would survive exec; an orphan must not fall to an engine that does not reap it.
    launched = launch("sh", "-c", "sh -c 'sleep 5 & echo $!'; read x", handoff=1)
    orphan = int(launched.process.stdout.readline())  # type: ignore[union-attr]
    parent = subprocess.run(
        ["ps", "-o", "ppid=", "-p", str(orphan)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    os.kill(orphan, signal.SIGKILL)
    assert int(parent) != launched.process.pid


def test_handoff_of_what_cannot_be_executed(launch: Launch) -> None:
    launched = launch("/no/such/engine", handoff=1)
    assert launched.wait() == 127
    assert b"/no/such/engine" in launched.process.stderr.read()  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------------- budget


def test_memory_and_idle_cost(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launched = launch("sleep", "60")
    launched.reported("Started")
    memory = Path(f"/proc/{launched.pid}/status").read_text()
    resident = int(re.findall(r"VmRSS:\s+(\d+)", memory)[0])
    bare = subprocess.run(
        [sys.executable, "-c", "print(open('/proc/self/status').read())"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    with capsys.disabled():
        print(f"\nguard: {resident} KiB resident; a bare interpreter: {re.findall(r'VmRSS:.*?([0-9]+)', bare)[0]} KiB")
    assert resident < 24 << 10
    assert start_time(launched.pid)


def test_deliver_to_chosen_roots(launch: Launch) -> None:
    launched = launch(stay=1)
    for name in ("a", "b"):
        launched.order(Spawn(name, name, ("sleep", "60"), dict(os.environ)))
        launched.reported("Started", id=name)
    launched.order(Deliver(signal.SIGINT, ("b",)))
    launched.reported("Exited", id="b", signal=2)
    assert not launched.all_reported("Exited", id="a")


# ------------------------------------------------------------------------------------------------------ examination

TWO = """
import os, signal, sys, time
def busy():
    while True:
        pass
def asleep():
    print("up", flush=True)
    time.sleep(1000)
if os.fork():
    asleep()
else:
    if len(sys.argv) > 1:
        os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    busy()
"""
STACKS = {**os.environ, "PYTHONFAULTHANDLER": "1"}
EXAMINE = 8.0  #: seconds: a quarter of it passes before the first abort, the rest is for a busy machine


def examined(launched: Launched) -> dict[int, str]:
    """What each process printed, in the order in which they were aborted."""
    printed: dict[int, str] = {}
    pid = 0
    for _, kind, found in launched.log():
        if kind == "Aborting":
            pid = found["pid"]
            printed[pid] = ""
        elif kind == "Output" and pid:
            printed[pid] += found["data"]
    return printed


def test_an_engine_is_examined_before_it_is_killed(launch: Launch) -> None:
    launched = launch(stay=1)
    launched.order(Spawn("two", "two", (PYTHON, "-c", TWO), STACKS))
    root = launched.reported("Started", id="two")["pid"]
    launched.reported("Output", id="two")
    launched.order(Stop("s", None, 1000.0, EXAMINE))
    assert launched.reported("Stopped", id="s")["clean"]
    (child, child_said), (parent, parent_said) = examined(launched).items()
    assert parent == root != child, "children first: the others go with their parent"
    assert "in busy" in child_said and "in asleep" not in child_said
    assert "in asleep" in parent_said and "in busy" not in parent_said
    states = {found["pid"]: found["state"] for found in launched.all_reported("Aborting")}
    assert states == {root: "S", child: "R"}
    assert launched.reported("Exited", id="two")["told"]


def test_stacks_are_read_from_a_file_too(launch: Launch, tmp_path: Path) -> None:
    launched = launch(stay=1)
    (tmp_path / "worker.err").write_text("from before\n")
    launched.order(Spawn("two", "two", (PYTHON, "-c", TWO, str(tmp_path / "worker.err")), STACKS))
    launched.reported("Output", id="two")
    until(lambda: len(launched.tree()) == 3, "agent, parent, child")
    launched.order(Stop("s", None, 1000.0, EXAMINE))
    assert launched.reported("Stopped", id="s")["clean"]
    child_said, _ = examined(launched).values()
    assert "in busy" in child_said and "from before" not in child_said


def test_one_that_is_stopped_is_examined_and_so_is_what_prints_nothing(launch: Launch) -> None:
    launched = launch(stay=1)
    program = "import os, signal; print('up', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    launched.order(Spawn("stops", "stops", (PYTHON, "-c", program), STACKS))
    pid = launched.reported("Started", id="stops")["pid"]
    launched.order(Spawn("mute", "mute", ("sh", "-c", "trap '' ABRT; echo up; while :; do sleep 1; done"), STACKS))
    launched.reported("Output", id="stops")
    launched.reported("Output", id="mute")
    until(lambda: any(p.pid == pid and p.stopped for p in launched.tree()), "it has stopped itself")
    launched.order(Stop("s", None, 1000.0, EXAMINE))
    stopped = launched.reported("Stopped", id="s")
    assert stopped["clean"], "what takes no notice of an abort is killed"
    states = {found["pid"]: found["state"] for found in launched.all_reported("Aborting")}
    assert states[pid] == "T"
    assert 'File "<string>", line 1 in <module>' in examined(launched)[pid]


@pytest.mark.parametrize("order", [Deadline(0.0), Kill("k"), Stop("short", None, 0.0)], ids=lambda o: type(o).__name__)
def test_nothing_waits_for_an_examination(launch: Launch, order: Any) -> None:
    """Not the deadline, and no order to be quicker."""
    launched = launch("sh", "-c", "trap '' ABRT TERM; echo up; while :; do sleep 0.05; done", stay=1)
    launched.reported("Output")
    launched.order(Stop("s", None, 1000.0, 1000.0))
    launched.order(Ping(1))
    launched.reported("Pong")
    launched.order(order)
    assert launched.reported("Stopped", id="s")["clean"]
    assert launched.reported("Stopped", id="s")["seconds"] < 100


def test_an_examination_leaves_no_core(launch: Launch) -> None:
    """Its limit is seen by the process that is aborted: a handler of its own looks."""
    program = (
        "import os, resource, signal\n"
        "def look(*_):\n"
        "    print('limit', resource.getrlimit(resource.RLIMIT_CORE)[0], open('/proc/self/coredump_filter').read())\n"
        "    os._exit(0)\n"
        "signal.signal(signal.SIGABRT, look)\n"
        "print('up', flush=True)\n"
        "while True:\n"
        "    signal.pause()\n"
    )
    launched = launch(stay=1)
    launched.order(Spawn("a", "a", (PYTHON, "-c", program), dict(os.environ)))
    launched.reported("Output", id="a")
    launched.order(Stop("s", None, 1000.0, EXAMINE))
    assert launched.reported("Stopped", id="s")["clean"]
    (said,) = examined(launched).values()
    limit, mask = said.split()[1:3]
    assert int(limit) in (0, 1) and int(mask, 16) == 0
