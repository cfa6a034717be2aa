"""What a peer, a file or an engine may say, value by value: each is refused in words, and costs no more than itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.agent import health, state_file
from launcher.agent.loop_errors import is_ours
from launcher.common import files
from launcher.engines.file import schema
from launcher.errors import ConfigError
from launcher.group import member as me
from launcher.group import messages as m
from launcher.group.config import MemberConfig
from launcher.group.events import Send
from launcher.guard import channel
from launcher.log import stamp
from launcher.model import Cause, CauseKind, Epoch, Health, StartProgress
from launcher.network import http_client, probe

HUGE = (
    "1" + "0" * 400,
    "-1" + "0" * 400,
    "9" * 5000,
    "NaN",
    "Infinity",
    "-Infinity",
    "-1",
    "1e10",
    "true",
    '"1"',
    "[]",
)
EPOCH = Epoch(3, "l")
CAUSE = Cause(CauseKind.EXITED, 1, "it ended", "engine", 1)


# ------------------------------------------------------------------------------------------------- the group's words


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize(
    ("message", "field", "says"),
    [
        (m.Hello("g", 1, 2, "i", "a"), "quiet", m.MEMBER_SAYS),
        (m.Hello("g", 1, 2, "i", "a", first_age=1.0), "first_age", m.MEMBER_SAYS),
        (m.Hello("g", 1, 2, "i", "a"), "rank", m.MEMBER_SAYS),
        (m.Failed(EPOCH, CAUSE), "noticed", m.MEMBER_SAYS),
        (m.Stopped(EPOCH), "seconds", m.MEMBER_SAYS),
        (m.Leaving(1.0), "grace", m.MEMBER_SAYS),
        (m.Ping(1), "seq", m.MEMBER_SAYS),
        (m.Rejected("w", "t"), "retry", m.LEADER_SAYS),
        (m.Drain(EPOCH, CAUSE, 1.0), "seconds", m.LEADER_SAYS),
        (m.Stop(EPOCH, CAUSE, 1.0), "grace", m.LEADER_SAYS),
        (m.Stop(EPOCH, CAUSE, 1.0), "autopsy", m.LEADER_SAYS),
        (m.Ack(1, 1), "mark", m.LEADER_SAYS),
        (m.News("p"), "wait", m.LEADER_SAYS),
    ],
)
def test_a_number_out_of_bounds_is_malformed(message: Any, field: str, says: dict[str, type[Any]], value: str) -> None:
    text = m.encode(message)
    body = json.loads(text)
    body[field] = "@"
    with pytest.raises(m.Malformed):
        m.decode(json.dumps(body).replace('"@"', value), says)


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize(
    "field",
    ["stage", "step", "ratio", "bytes_read", "bytes_total", "bytes_per_second", "eta", "gate", "answer", "steps"],
)
def test_progress_out_of_bounds_is_malformed(field: str, value: str) -> None:
    if (field in ("stage", "step", "gate", "answer") and value == '"1"') or (
        value == "1e10" and field in ("bytes_per_second",)
    ):
        return  # that is a value of it
    text = m.encode(m.Report(EPOCH, progress=StartProgress(step="weights")))
    body = json.loads(text)
    body["progress"][field] = "@"
    with pytest.raises(m.Malformed):
        m.decode(json.dumps(body).replace('"@"', value), m.MEMBER_SAYS)
    body["progress"] = {"steps": {"weights": "@"}}
    with pytest.raises(m.Malformed):
        m.decode(json.dumps(body).replace('"@"', value), m.MEMBER_SAYS)
    body["progress"] = "@"
    with pytest.raises(m.Malformed):
        m.decode(json.dumps(body).replace('"@"', value), m.MEMBER_SAYS)


def test_progress_has_a_bounded_number_of_steps() -> None:
    body = json.loads(m.encode(m.Report(EPOCH, progress=StartProgress())))
    body["progress"]["steps"] = {f"s{n}": 1 for n in range(m.MAX_STEPS + 1)}
    with pytest.raises(m.Malformed):
        m.decode(json.dumps(body), m.MEMBER_SAYS)


@pytest.mark.parametrize("value", ["1e308", "9" * 400, "9" * 5000])
def test_a_list_and_a_map_hold_no_such_numbers_either(value: str) -> None:
    for message, field, says in (
        (m.Hello("g", 1, 2, "i", "a"), f'"charges":[{value}]', m.MEMBER_SAYS),
        (m.Report(EPOCH), f'"pids":[{value}]', m.MEMBER_SAYS),
        (m.Prepared(EPOCH), f'"epoch":[{value},"l"]', m.MEMBER_SAYS),
        (
            m.Prepare(EPOCH, ("a",), ("b",)),
            f'"values":{{"v":{value if value[0] == "9" else "Infinity"}}}',
            m.LEADER_SAYS,
        ),
    ):
        text = m.encode(message)[:-1] + "," + field + "}"
        with pytest.raises(m.Malformed):
            m.decode(text, says)


def test_what_grew_too_old_is_sent_as_old_as_can_be() -> None:
    """A clock that was set, or charges of 1970: a hello that nobody takes would be said for ever."""
    hello = m.Hello("g", 1, 2, "i", "a", quiet=1e12, charges=(1.8e9, -5.0), first_age=float("inf"))
    read = m.decode(m.encode(hello), m.MEMBER_SAYS)
    assert (read.quiet, read.charges, read.first_age) == (m.MAX_SECONDS, (m.MAX_SECONDS, 0.0), m.MAX_SECONDS)


def test_a_hello_always_fits() -> None:
    """Its last words go first: 40 lines of control characters take six times their length."""
    words = tuple("\x01" * 500 for _ in range(40))
    failure = Cause(CauseKind.EXITED, 1, "t", "p", 1, words)
    members = tuple(f"{n:032x}" for n in range(2000))
    hello = m.Hello("g", 1, 2, "i", "a", first_failure=failure, died=failure, last_members=members)
    assert len(m.encode(hello)) > m.MAX_FROM_MEMBER
    fitted = m.hello_that_fits(hello)
    assert len(m.encode(fitted).encode()) <= m.MAX_FROM_MEMBER
    assert (fitted.last_members, fitted.first_failure) == (members, Cause(CauseKind.EXITED, 1, "t", "p", 1))
    assert m.hello_that_fits(fitted) == fitted


def seated() -> me.Member:
    machine = me.Member(MemberConfig("g", 1, 2, "pod-1", "own"), 0.0)
    machine.address = "10.0.0.2"
    for event in (me.Gone(), me.Connected(), m.Accepted("l", 1), m.Ack(1, 1)):
        machine.handle(event, 0.0)
    return machine


@pytest.mark.parametrize(
    ("incarnations", "addresses"),
    [
        ((), ()),
        (("l",), ("a",)),
        (("l", "own", "x"), ("a", "b", "c")),
        (("l", "other"), ("a", "b")),
        (("l", "own"), ("a",)),
    ],
)
def test_a_leaders_epoch_that_is_not_of_this_group_is_refused(
    incarnations: tuple[str, ...], addresses: tuple[str, ...]
) -> None:
    machine = seated()
    said = [a.message for a in machine.handle(m.Prepare(EPOCH, incarnations, addresses), 0.1) if isinstance(a, Send)]
    assert [type(one) for one in said] == [m.Unable] and not said[0].retry
    assert machine.state is me.State.SEATED


def test_a_leader_cannot_send_a_member_away_for_years() -> None:
    machine = seated()
    (dial,) = (a for a in machine.handle(m.Rejected("w", "t", 1e9), 0.1) if isinstance(a, me.Dial))
    assert dial.delay == m.MAX_RETRY


# ------------------------------------------------------------------------------------------- what is a bug of ours


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_only_our_own_code_has_bugs_of_ours() -> None:
    assert is_ours({"exception": raised(ValueError())}), "what our tasks and the queue hand on"
    assert not is_ours({"exception": raised(OSError()), "transport": object(), "protocol": object()})
    assert not is_ours({"exception": raised(OSError(24, "Too many open files")), "socket": object()})
    assert not is_ours({"message": "Task was destroyed but it is pending!", "task": object()})
    assert not is_ours({"exception": raised(ValueError()), "handle": object()}), "raised in no module of the launcher"
    try:
        m.decode("x", m.MEMBER_SAYS)
    except m.Malformed as error:
        assert is_ours({"exception": error, "handle": object()})


# ------------------------------------------------------------------------------------------------ the guard's channel


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"null",
            b"[]",
            b"[1]",
            b'["Nobody"]',
            b'["Ping"]',
            b'["Ping", 1, 2]',
            b'["Ping", "1"]',
            b'["Ping", true]',
        ),
        *(b'["Ping", 1e400]', b"[" * 100_000, b"\xff", b'[["Ping"], 1]', b'["Ping", ' + b"9" * 5000 + b"]"),
        *(b'["Deadline", NaN]', b'["Deadline", 1e300]', b'["Stop", "a", "bc", 1]', b'["Stop", "a", null, -Infinity]'),
        *(b'["Spawn", "a", "b", ["c"], {"d": 1}, null, false]', b'["Spawn", "a", "b", [1], {}, null, false]'),
        *(
            b'["Stopped", "a", true, [[1, 2, "c"]], 1]',
            b'["Say", 1, null]',
            b'["Exited", "a", null, null, "", false, "x"]',
        ),
    ],
)
def test_a_frame_that_cannot_be_read(body: bytes) -> None:
    with pytest.raises(channel.BadFrame):
        channel.Frames().feed(len(body).to_bytes(4, "big") + body)


def test_a_guard_that_talks_nonsense_is_lost() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        end = channel.GuardChannel(ours.fileno())
        theirs.sendall(channel.encode(channel.Pong(1)) + b"\0\0\0\4oops")
        assert [type(one) for one in end.receive()][-1] is channel.GuardLost
        assert end.receive() == []


# ----------------------------------------------------------------------------------------------------------- files

GOOD: dict[str, Any] = {
    "incarnation": "abc",
    "place": "here",
    "clean": False,
    "last": '[7, "abc", ["abc", "def"]]',
    "charges": [1_700_000_000],
    "first_failure": None,
    "first_epoch": 6,
    "first_at": 1.7e9,
}


def state(folder: Path, content: Any) -> state_file.StateFile:
    path = folder / "launcher-rank-0.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return state_file.StateFile(str(folder), 0)


@pytest.mark.parametrize(
    "change",
    [
        *({"charges": [float("inf")]}, {"charges": [float("nan")]}, {"charges": [-1]}, {"charges": [10**400]}),
        *({"charges": 5}, {"charges": ["x"]}, {"charges": [True]}, {"first_at": float("inf")}, {"first_at": "x"}),
        *({"first_epoch": 2**53}, {"first_epoch": 1.5}, {"first_epoch": -1}, {"incarnation": "a b"}),
        *({"incarnation": "x" * 33}, {"incarnation": ["a"]}, {"incarnation": "a,b"}, {"last": 5}, {"last": "[1]"}),
        *({"last": '[9007199254740992, "a", []]'}, {"last": '[1e400, "a", []]'}, {"last": '[1, "a", ["", "b"]]'}),
        *({"last": '[1, "a", ["b c"]]'}, {"last": '[1, "", []]'}, {"first_failure": {"kind": "x"}}, {"place": None}),
    ],
)
def test_a_state_file_that_cannot_be_true_is_set_aside(tmp_path: Path, change: dict[str, Any]) -> None:
    keeper = state(tmp_path, {**GOOD, **change})
    assert keeper.before == state_file.SavedState()
    assert "set aside as launcher-rank-0.json.bad" in keeper.set_aside
    assert (tmp_path / "launcher-rank-0.json.bad").exists()
    assert keeper.save(incarnation="new")
    keeper.settle(60)
    assert state_file.StateFile(str(tmp_path), 0).before.incarnation == "new"


def test_times_that_mean_nothing_any_more_are_left_out(tmp_path: Path) -> None:
    ahead = time.time() + 1e6
    keeper = state(tmp_path, {**GOOD, "charges": [ahead, 1_700_000_000], "first_at": ahead})
    assert (keeper.before.charges, keeper.before.first_at, keeper.set_aside) == ((1_700_000_000,), None, "")
    assert state(tmp_path, {**GOOD, "first_at": 5.0}).before.first_at is None, "older than a message may say"


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "within").touch()


def make_link(path: Path) -> None:
    (path.parent / "victim").write_text("mine")
    path.symlink_to(path.parent / "victim")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))


IN_ITS_PLACE = (make_fifo, make_folder, make_link, make_loop, make_huge, make_socket)


@pytest.mark.parametrize("make", IN_ITS_PLACE)
def test_whatever_lies_in_the_place_of_the_state_file(
    tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make(tmp_path / "launcher-rank-0.json")
    make(tmp_path / "launcher-rank-0.new")
    keeper = state_file.StateFile(str(tmp_path), 0)
    assert keeper.before == state_file.SavedState() and keeper.set_aside
    assert keeper.save(incarnation="new"), keeper.trouble
    keeper.settle(60)
    assert not keeper.trouble
    path = tmp_path / "launcher-rank-0.json"
    assert json.loads(path.read_text())["incarnation"] == "new"
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600 and stat.S_ISREG(path.lstat().st_mode)
    victim = tmp_path / "victim"
    assert not victim.exists() or victim.read_text() == "mine"


def test_a_full_disk_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    keeper = state_file.StateFile(str(tmp_path), 0)
    told = []
    for number in range(5):
        told.append(keeper.save(charges=(number,)))
        keeper.settle(60)
    told.append(keeper.save(charges=(9,)))
    assert told.count(False) == 1 and "No space left" in keeper.trouble


def test_a_disk_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    real = os.fsync

    def hang(fd: int) -> None:
        go_on.wait(60)
        real(fd)

    monkeypatch.setattr(os, "fsync", hang)
    keeper = state_file.StateFile(str(tmp_path), 0)
    began = time.monotonic()
    for number in range(50):
        assert keeper.save(charges=(number,))
    assert time.monotonic() - began < 30, "it waits once, and not for each"
    go_on.set()
    keeper.settle(60)
    assert state_file.StateFile(str(tmp_path), 0).before.charges == (49,), "the newest is what is written"


@pytest.mark.parametrize(
    "text", ["", "[", "5", "{}", "[1]", '[9007199254740993, "a", []]', "[" * 50_000, '[1, "a", 5]']
)
def test_what_the_guard_hands_on_is_believed_or_not_there(text: str) -> None:
    assert state_file.handed_on({"LAUNCHER_LAST_EPOCH": text}) == (None, None)


@pytest.mark.parametrize("value", ["1" + "0" * 400, "0x" + "F" * 5000, "0b" + "1" * 20_000, "nan", "inf", "1e308"])
@pytest.mark.parametrize(
    "line",
    ["stop_grace = @", "completes = @", "[ports]\napi = @", "[env]\nA = @", "[health]\nport = @", "versions = @"],
)
def test_a_number_of_an_engine_file_out_of_bounds(line: str, value: str) -> None:
    with pytest.raises(ConfigError):
        schema.parse(f'name = "n"\n{line}'.replace("@", value).encode(), "n.toml")


@pytest.mark.parametrize("make", IN_ITS_PLACE)
def test_a_small_file_is_read_or_refused(
    tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "it"
    make(path)
    if make is make_link:
        assert files.read_text(str(path)) == "mine", "mounted Secrets and ConfigMaps are links"
    elif make is make_fifo:
        assert files.read(str(path)) == b"", "nobody writes there: it is empty, and nobody waits"
    else:
        with pytest.raises(OSError) as error:
            files.read(str(path))
        assert error.value.strerror
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(OSError, match="a device"):
            files.read(device)


def test_a_time_out_of_all_calendars_can_be_written() -> None:
    assert stamp(1e300) == "9999-12-31T23:59:59.000Z"
    assert stamp(-5.0) == "1970-01-01T00:00:00.000Z"


# -------------------------------------------------------------------------------------------- questions to an engine


@contextmanager
def answering(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on loopback that does what it likes with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=take, args=(one,), daemon=True).start()

        def take(one: socket.socket) -> None:
            with one:
                one.settimeout(60)
                try:
                    serve(one)
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def drip_body(one: socket.socket) -> None:
    one.recv(4096)
    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    drip(one, b"x" * 100000)


def drip_head(one: socket.socket) -> None:
    drip(one, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10000)


def drip_chunks(one: socket.socket) -> None:
    one.recv(4096)
    one.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    drip(one, b"1\r\nx\r\n" * 10000)


def drip(one: socket.socket, data: bytes) -> None:
    for byte in data:
        one.sendall(bytes([byte]))
        time.sleep(0.05)


def go_on_and_on(one: socket.socket) -> None:
    one.recv(4096)
    while True:
        one.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.01)


def say_nothing(one: socket.socket) -> None:
    while one.recv(4096):
        pass


@pytest.mark.parametrize("serve", [drip_body, drip_head, drip_chunks, go_on_and_on, say_nothing])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_question_has_a_total_time(serve: Callable[[socket.socket], None], scheme: str) -> None:
    """Over TLS the handshake is what never ends."""
    with answering(say_nothing if scheme == "https" else serve) as port:
        began = time.monotonic()
        reply = asyncio.run(probe.ask(f"{scheme}://127.0.0.1:{port}/health", 0.5, insecure=True))
        assert time.monotonic() - began < 30
    assert (reply.status, reply.ok) == (0, False) and reply.error


@pytest.mark.parametrize("serve", [drip_body, drip_head, drip_chunks, go_on_and_on, say_nothing])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_so_has_a_question_of_a_command(serve: Callable[[socket.socket], None], scheme: str) -> None:
    with answering(say_nothing if scheme == "https" else serve) as port:
        began = time.monotonic()
        with pytest.raises(OSError, match=r"in time|no HTTP answer"):
            http_client.ask(f"{scheme}://127.0.0.1:{port}/status", 0.5, 1 << 20)
        assert time.monotonic() - began < 30


def endless_redirect(one: socket.socket) -> None:
    one.recv(4096)
    one.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n")
    while True:
        one.sendall(b"x" * 65536)


def test_a_command_follows_no_redirect() -> None:
    with answering(endless_redirect) as port, pytest.raises(http_client.TooLong):
        http_client.ask(f"http://127.0.0.1:{port}/status", 60.0, 1000)


def test_a_command_uses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:9")
    monkeypatch.delenv("no_proxy", raising=False)

    def serve(one: socket.socket) -> None:
        one.recv(4096)
        one.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok")

    with answering(serve) as port:
        assert http_client.ask(f"http://127.0.0.1:{port}/status", 60.0, 2) == http_client.HttpAnswer(201, b"ok")


def endless(one: socket.socket) -> None:
    one.recv(4096)
    one.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        one.sendall(b"x" * 65536)


def test_and_a_total_size() -> None:
    with answering(endless) as port:
        reply = asyncio.run(probe.ask(f"http://127.0.0.1:{port}/health", 60.0))
        assert (reply.ok, reply.error) == (False, f"an answer of more than {probe.MOST_BYTES} bytes")
        with pytest.raises(http_client.TooLong):
            http_client.ask(f"http://127.0.0.1:{port}/status", 60.0, 1000)


@pytest.mark.parametrize(
    "answer",
    [b"", b"\0" * 100, b"HTTP/1.1 999999 x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", b"x" * 100_000],
)
def test_an_answer_that_is_no_http(answer: bytes) -> None:
    def serve(one: socket.socket) -> None:
        one.recv(4096)
        one.sendall(answer)

    with answering(serve) as port:
        assert isinstance(asyncio.run(probe.ask(f"http://127.0.0.1:{port}/", 60.0)), probe.Reply)
        with contextlib.suppress(OSError):
            assert http_client.ask(f"http://127.0.0.1:{port}/", 60.0, 1000).body == b""


@pytest.mark.parametrize("url", ["", "http://", "http://[", "http://x:99999/", "http://127.0.0.1:0/\r\nX: y", "x://\0"])
def test_an_address_that_is_none(url: str) -> None:
    assert not asyncio.run(probe.ask(url, 60.0)).ok
    with pytest.raises((ValueError, OSError)):
        http_client.ask(url, 60.0, 1000)
    assert not asyncio.run(probe.reachable(url, 60.0))


def test_numbers_of_a_metrics_page_are_numbers() -> None:
    page = health.samples("a NaN\nb +Inf\nc 1e400\nd 1e3\ne -Inf\nf 1 1700000000\ng x\n", "abcdefg")
    assert page == {"d": {"": 1000.0}, "f": {"": 1.0}}


def test_a_counter_that_is_nan_is_no_progress() -> None:
    progress = health.Progress(Health(running=("r",), progress=("p",)), 10.0)
    for at in (0.0, 5.0):
        assert not progress.look(health.samples("r 1\np NaN\n", "rp"), at)
    assert "no tokens produced" in progress.look(health.samples("r 1\np NaN\n", "rp"), 11.0)


def test_a_page_of_countless_engines_is_looked_at_quickly() -> None:
    text = "\n".join(f'{name}{{engine="{n}"}} 1' for name in "rp" for n in range(30_000))
    began = time.thread_time()
    progress = health.Progress(Health(running=("r",), progress=("p",)), 10.0)
    for at in (0.0, 11.0):
        progress.look(health.samples(text, "rp"), at)
    assert time.thread_time() - began < 10
