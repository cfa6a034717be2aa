"""What is attacked, each as a function of a random generator. A target raises if anything unforeseen comes out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from launcher.agent import health
from launcher.agent import state_file as memory
from launcher.api import server
from launcher.api.visitors import answer_of
from launcher.cli import manifest
from launcher.cli import status as show_status
from launcher.common.acceptor import Incoming
from launcher.common.files import read_text
from launcher.engines import versions
from launcher.engines.file import schema
from launcher.errors import LauncherError
from launcher.group import messages as m
from launcher.group.link import LeaderLink
from launcher.guard import channel
from launcher.identity import identify
from launcher.model import Health
from launcher.node import leftovers
from launcher.node.gpus import parse_smi, visible_gpus
from launcher.planning import steps
from launcher.render import service
from launcher.settings import Settings
from tests.fuzz import machines, values

SLOWEST = 10.0  #: seconds of this process for one input; all but a few take less than a thousandth


@contextmanager
def bounded() -> Iterator[None]:
    """Processor time of this thread: others share the machine."""
    began = time.thread_time()
    yield
    took = time.thread_time() - began
    assert took < SLOWEST, f"one input took {took:.1f} s"


# -------------------------------------------------------------------------------------------------- the group port


def messages(rng: random.Random) -> None:
    """Both directions of the link: a message within bounds or Malformed."""
    says = rng.choice((m.MEMBER_SAYS, m.LEADER_SAYS))
    text = values.dumped(rng, machines.mutated(rng, machines.sample(rng, says)))
    try:
        message = m.decode(text if rng.random() < 0.5 else text.decode("utf-8", "surrogateescape"), says)
    except m.Malformed as error:
        assert len(str(error)) < 200 and str(error).isprintable(), "it goes into the log"
        return
    assert m.decode(m.encode(message), says) == message


class Transport(asyncio.Transport):
    """The network's end of a connection that goes nowhere."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.aborted = False

    def write(self, data: Any) -> None:
        """Sent."""

    def write_eof(self) -> None:
        """Half closed."""

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True


def group_port(rng: random.Random) -> None:
    """Bytes on a connection to the leader: requests, frames and messages, whole and spoilt."""
    asyncio.run(_group_port(rng))


async def _group_port(rng: random.Random) -> None:
    heard: list[Any] = []
    trouble: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
    secret = b"s" * 32 if rng.random() < 0.2 else None
    link = LeaderLink("g", secret, 64, lambda _, message: heard.append(message), lambda *_: None, lambda *_: None)
    for _ in range(5):
        ours, theirs = socket.socketpair()
        wire, transport = link._guest(Incoming(ours, "127.0.0.1", 1)), Transport()
        ours.close()
        theirs.close()
        wire.connection_made(transport)
        client = ClientProtocol(parse_uri("ws://h:1/group"))
        client.send_request(client.connect())
        pieces = [b"".join(client.data_to_send())]
        for _ in range(rng.randrange(4)):
            body = values.dumped(rng, machines.mutated(rng, machines.sample(rng, m.MEMBER_SAYS)))
            opcode = rng.choice((Opcode.TEXT, Opcode.TEXT, Opcode.TEXT, *Opcode))
            data = body if opcode < Opcode.CLOSE else body[:125]
            pieces.append(Frame(opcode, data, fin=opcode >= Opcode.CLOSE or rng.random() < 0.9).serialize(mask=True))
        for piece in pieces:
            sent = values.spoilt(rng, piece) if rng.random() < 0.2 else piece
            size = rng.choice((max(1, len(sent) // 200), 5000, 65536))
            for at in range(0, len(sent), size):
                if not transport.aborted:
                    part = sent[at : at + size]
                    wire.get_buffer(-1)[: len(part)] = part
                    wire.buffer_updated(len(part))
        if rng.random() < 0.5:
            wire.eof_received()
        wire.connection_lost(None)
    assert not trouble, trouble
    assert not link.errors.unexpected, "an error that nobody foresaw"


REQUEST = b"GET /status HTTP/1.1\r\nHost: localhost:9471\r\nAuthorization: Bearer abc\r\nOrigin: http://localhost\r\n"


def agent_port(rng: random.Random) -> None:
    """Requests for a page, by anybody."""
    words = ("127.0.0.1", "127.²5.0.1", "127.0.0." + "9" * 5000, "::1", "[::1]", "localhost", "[", "a:b:c", "null", "é")
    head = REQUEST.replace(b"localhost", rng.choice(words).encode(), rng.randrange(3))
    head = head.replace(
        b"GET /status", rng.choice((b"GET /", b"GET /livez", b"POST /metrics", b"GET /status?%ff", b"GET //["))
    )
    if rng.random() < 0.7:
        head = values.spoilt(rng, head)
    pages = server.Pages(lambda: (True, ""), lambda: "", lambda: STATUS, lambda: (b"s" * 32,), "loopback")
    reply = answer_of(
        lambda method, target, headers, peer: server.respond(pages, target, headers, peer, method),
        head.rstrip(b"\r\n"),
        rng.choice(("127.0.0.1", "::ffff:127.0.0.1", "10.0.0.1", "")),
    )
    assert reply.status_code != 500, reply.body
    assert reply.serialize()


# ------------------------------------------------------------------------------------------------ the guard's channel


def guard_channel(rng: random.Random) -> None:
    """Frames between the guard and the agent."""
    sample = rng.choice(
        (
            channel.Spawn("a", "b", ("c", "d"), {"e": "f"}, None, True),
            channel.Stop("a", rng.choice((None, ("a",))), 1.5, 2.0),
            channel.Aborting("a", 5, "worker", "S", "poll", "7"),
            channel.Deadline(rng.choice((None, 5.0))),
            channel.Exited("a", 1, None, "tail", False, 7.5),
            channel.Stopped("a", False, ((1, 2, "c", "Z"),), 0.1),
            channel.Output("a", 1, "\udcff"),
            channel.Ping(3),
        )
    )
    frame = channel.encode(sample)
    body = values.dumped(rng, values.changed(rng, json.loads(frame[4:].decode("utf-8", "surrogatepass"))))
    frames = channel.Frames()
    stream = len(body).to_bytes(4, "big") + body if rng.random() < 0.8 else values.spoilt(rng, frame)
    try:
        for at in range(0, len(stream), 4096):
            for message in frames.feed(stream[at : at + 4096]):
                channel.encode(message)
    except channel.BadFrame:
        return


# --------------------------------------------------------------------------------------------------------- files


FILE = {
    "incarnation": "abc",
    "place": "boot/host/10.0.0.1",
    "clean": False,
    "handed_off": False,
    "last": '[7, "abc", ["abc", "def"], [["/dev/shm/a", 7]]]',
    "charges": [1_700_000_000, 1_600_000_000],
    "first_failure": {"kind": "exited", "rank": 1, "text": "t", "process": "p", "code": 1, "tail": ["l"]},
    "first_epoch": 6,
    "first_at": 1.7e9,
}


def state_file(rng: random.Random) -> None:
    """A state file: believed or set aside; the hello that follows from it can be read by a leader."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "launcher-rank-1.json")
        body = dict(FILE) if rng.random() < 0.1 else values.changed(rng, dict(FILE))
        if isinstance(body, dict) and rng.random() < 0.2:
            body = {
                **body,
                "last": values.dumped(rng, values.changed(rng, [7, "abc", ["a", "b"]])).decode("utf-8", "replace"),
            }
        with open(path, "wb") as file:
            file.write(values.dumped(rng, body))
        keeper = memory.StateFile(folder, 1)
        machines.check_hello(keeper.before)
        assert keeper.save(incarnation="new", clean=False), keeper.trouble
        keeper.settle(60)
        after = memory.StateFile(folder, 1)
        assert after.before.incarnation == "new" and not after.set_aside, "what we write we believe"


def handed_on(rng: random.Random) -> None:
    """What the guard hands on to a later agent, spoilt."""
    sample = [7, "abc", ["abc", "def"], rng.choice((None, [["/dev/shm/a", 7]]))]
    text = values.dumped(rng, values.changed(rng, sample)).decode("utf-8", "surrogateescape")
    last, shm = memory.handed_on({"LAUNCHER_LAST_EPOCH": text})
    machines.check_hello(memory.SavedState(incarnation="a", last=last))
    assert shm is None or all(isinstance(path, str) for path, _ in shm)


ENGINE_FILE = {
    "name": "mine",
    "ports": {"api": 8000, "peer": {"number": 5000, "external": True, "on": "leader"}},
    "env": {"A": "b"},
    "health": {"path": "/health", "metrics": "http://127.0.0.1:{api}/metrics", "running": ["r"], "progress": ["p"]},
    "leader": {"command": ["run", "{model}", "{address:7777}"], "env": {"B": "{rank}"}, "gate": {"kind": "started"}},
    "worker": {"command": ["join", "{leader:7777}"], "gate": {"kind": "tcp", "target": "{address:7777}"}},
    "completes": False,
    "stop_grace": 3,
    "versions": ["torch"],
}


def engine_toml(rng: random.Random) -> None:
    """An engine file: read, or refused in words."""
    changed = values.changed(rng, ENGINE_FILE)
    lines = []
    for key, entry in (changed if isinstance(changed, dict) else {"x": changed}).items():
        lines.append(f"{json.dumps(key)} = {_toml(entry)}")
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    try:
        schema.parse(values.spoilt(rng, raw) if rng.random() < 0.3 else raw, "file.toml")
    except LauncherError:
        return


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


CONTAINER = {
    "name": "engine",
    "image": "engine:tag",
    "command": ["launcher"],
    "args": ["--engine", "vllm", "--backend", "mp", "--model", "/m", "--tp", "8", "--pp", "2"],
    "env": [{"name": "LAUNCHER_SIZE", "value": "2"}, {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
    "resources": {"limits": {"nvidia.com/gpu": 8}},
    "ports": [{"containerPort": 8000, "name": "http"}],
}
POD = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [CONTAINER], "terminationGracePeriodSeconds": 60}}
MANIFESTS: tuple[dict[str, Any], ...] = (
    {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "vllm", "namespace": "ns"},
        "spec": {"replicas": 2, "serviceName": "vllm", "selector": {"matchLabels": {"a": "b"}}, "template": POD},
    },
    {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "vllm"},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 2, "leaderTemplate": POD, "workerTemplate": POD}},
    },
    {
        "apiVersion": "system.hero.ai/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "simple", "namespace": "default"},
        "spec": {
            "deploymentMode": "DistributeInference",
            "replicas": 2,
            "servers": {"leader": {"replicas": 1, "template": POD}, "worker": {"replicas": 1, "template": POD}},
        },
    },
)
ODD_YAML = ("", "&a [*a]", "{[1]: 2}", "{{a: b}: c}", "2024-99-99", "0x" + "F" * 5000, "!!python/none x", "[" * 3000)


def manifests(rng: random.Random) -> None:
    """YAML for `plan -f` and `render`: read, or refused in words."""
    body = values.changed(rng, rng.choice(MANIFESTS))
    for _ in range(rng.randrange(3)):
        body = values.changed(rng, body)
    said = json.dumps(body)[: 1 << 16]
    if rng.random() < 0.3:
        said = said.replace(rng.choice(('"ns"', "2", '"vllm"', "[")), rng.choice(ODD_YAML), 1)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "it.yaml")
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            file.write(said)
        with contextlib.suppress(LauncherError):
            manifest.read(path)
    with contextlib.suppress(LauncherError):
        service.read(said, "it.yaml")


def any_file(rng: random.Random) -> None:
    """Whatever lies where a small file should."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "it")
        kind = rng.randrange(6)
        if kind == 0:
            os.mkdir(path)
        elif kind == 1:
            os.mkfifo(path)
        elif kind == 2:
            os.symlink(rng.choice((path, "/dev/zero", "/dev/full", "/proc/self/mem", "/nowhere", folder)), path)
        else:
            with open(path, "wb") as file:
                file.write(values.dumped(rng, values.value(rng)) if kind < 5 else b"x")
                file.truncate(rng.choice((0, 10, 5000, 1 << 40))) if kind == 5 else None
        try:
            read_text(path)
        except OSError as error:
            assert error.strerror


# -------------------------------------------------------------------------------------------------- an engine's words

METRIC_WORDS = (
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:generation_tokens_total", "# HELP", "# TYPE"),
    *('{engine="0"}', '{engine="1",model_name="m"}', '{engine="', "}", "{", "NaN", "+Inf", "-Inf", "1", "0", "1e400"),
    *("1E+03", "10" * 200, "-1", "0x10", "1_000", "1 1700000000000", ' 5 # {trace_id="a"} 1'),
)


def metrics(rng: random.Random) -> None:
    """A metrics page, and what is concluded from several of them."""
    one = Health(
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        progress=("vllm:generation_tokens_total",),
        sleeping=('vllm:engine_sleep_state{sleep_state="awake"}',),
    )
    names = (*one.running, *one.waiting, *one.progress, *one.sleeping)
    progress, now = health.Progress(one, 10.0), 0.0
    for _ in range(3):
        text = "\n".join(values.line(rng, METRIC_WORDS) for _ in range(rng.choice((0, 5, 30))))
        page = health.samples(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), names)
        assert isinstance(progress.look(page, now), str)
        total = health.in_flight(one, page)
        assert not math.isnan(total)
        now += rng.choice((0.0, 1.0, 100.0))


STATUS = {
    "phase": "running",
    "ready": True,
    "why": "serving",
    "epoch": 1,
    "rank": 0,
    "size": 2,
    "group": "g",
    "waiting_for": "",
    "first_failure": {"epoch": 1, "at": "x", "age_s": 5.0, "rank": 1, "text": "t", "tail": ["a"]},
    "members_present": 2,
    "members": [{"rank": 0, "state": "running", "address": "a", "engine_pids": [1], "last_seen_s": 0.1}] * 2,
    "restarts": 0,
    "timeline": [{"phase": "setup", "at": "x", "seconds": 1.5}],
    "findings": [{"check": "c", "level": "warn", "what": "w"}],
}


def status_answer(rng: random.Random) -> None:
    """The answer that `launcher status` shows."""
    status = values.changed(rng, STATUS)
    for _ in range(rng.randrange(3)):
        status = values.changed(rng, status)
    if not isinstance(status, dict):
        return
    table = show_status.table(status)
    assert all(line.isprintable() for line in table.split("\n")), "it goes to a terminal"


SMI = (
    *(
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0b0b)",
        "  MIG 1g.10gb Device 0: (UUID: MIG-1)",
        "GPU",
        "MIG",
        "(UUID: ",
    ),
    *("0, 5", "GPU-1, 100", "GPU-1, [N/A]", "GPU-2, ²", "x, " + "9" * 6000, "nvidia-smi: command not found"),
)


def programs(rng: random.Random) -> None:
    """What nvidia-smi and the engine's interpreter answer."""
    text = "\n".join(rng.choice(SMI) if rng.random() < 0.7 else values.line(rng, SMI) for _ in range(rng.randrange(9)))
    parse_smi(text)
    leftovers.gpu_memory_kept(leftovers.gpu_memory(text), leftovers.gpu_memory(text))
    mask = rng.choice((None, values.text(rng), "0,1", "9" * 5000, "GPU-0b0b,MIG-1", "²"))
    visible_gpus({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}, "/nowhere", rng.choice((None, text)))
    sample = json.dumps({"torch": "2.9.0", "vllm": "0.33.0"})
    answer = rng.choice(
        (text, sample, values.dumped(rng, values.changed(rng, json.loads(sample))).decode("utf-8", "replace"))
    )
    try:
        for version in versions.parse(answer, "python3").values():
            versions.release(version)
    except LauncherError:
        return


# --------------------------------------------------------------------------------------------------- the environment

VARIABLES = (
    *("POD_NAME", "POD_NAMESPACE", "POD_IP", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX", "LWS_LEADER_ADDRESS"),
    *("JOB_COMPLETION_INDEX", "JOB_NAME", "JOBSET_NAME", "REPLICATED_JOB_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID"),
    *("SLURM_NODEID", "SLURM_NNODES", "SLURM_JOB_NODELIST", "SLURM_LOCALID", "SLURM_PROCID", "KUBERNETES_SERVICE_HOST"),
    *("LAUNCHER_SIZE", "LAUNCHER_RANK", "LAUNCHER_LEASE", "LAUNCHER_TP", "LAUNCHER_PORT", "LAUNCHER_GRACE"),
    *("LAUNCHER_RESTART_WINDOW", "LAUNCHER_MAX_RESTARTS", "LAUNCHER_HEALTH_INTERVAL", "LAUNCHER_ENGINE_ARGS"),
    *("LAUNCHER_PEERS", "LAUNCHER_GROUP_ID", "LAUNCHER_ADDRESS", "LAUNCHER_LEADER", "LAUNCHER_LOG_LEVEL"),
    *("LAUNCHER_STOP_GRACE", "LAUNCHER_JOIN_TIMEOUT", "LAUNCHER_STARTUP_STALL_TIMEOUT", "LAUNCHER_HANDOFF"),
)
WORDS = (
    "vllm-0",
    "vllm-1.vllm.ns.svc",
    "node[001-003],gpu1",
    "node[1-999999999]",
    "0",
    "1",
    "2",
    "10s",
    "nan",
    "inf",
    "1e9",
)


def variables(rng: random.Random) -> None:
    """Variables of the platform and of the user: an identity and settings, or an error in words."""
    environ = {}
    for _ in range(rng.randrange(9)):
        text = rng.choice(WORDS) if rng.random() < 0.6 else str(values.value(rng, 3))
        environ[rng.choice(VARIABLES)] = text.replace("\0", "")
    try:
        settings, clean, _ = machines.read_settings(environ)
        identity, _, _ = identify(settings, clean, rng.choice(("vllm-0", "box", values.text(rng))), "")
    except LauncherError as error:
        assert error.message
        return
    assert 0 <= identity.rank < identity.size
    machines.check_settings(settings)
    steps.engine_environment(clean, identity.rank)
    if not identity.alone:
        m.decode(
            m.encode(m.Hello(identity.group, identity.rank, identity.size, "abc", "1.2.3.4", identity.name)),
            m.MEMBER_SAYS,
        )


TARGETS: dict[str, Callable[[random.Random], None]] = {
    target.__name__: target
    for target in (
        *(messages, group_port, agent_port, machines.coordinator, machines.member, guard_channel),
        *(state_file, handed_on, engine_toml, any_file, metrics, status_answer, programs, variables, manifests),
    )
}


def attack(name: str, rng: random.Random) -> None:
    """One input of a target."""
    with bounded():
        TARGETS[name](rng)


__all__ = ["TARGETS", "Settings", "attack"]
