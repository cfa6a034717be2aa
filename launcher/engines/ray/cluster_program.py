"""Ray, in the engine's interpreter: start this pod's node, or wait until Ray counts the nodes and GPUs needed.

    cluster_program.py start [OPTIONS] -- start ...        `ray start ...`, in this process
        --lean                                             without what an engine does not need
        --after HOST:PORT                                  first wait for the head's node (a worker)
        --count HOST:PORT NODES GPUS IP,IP...              count meanwhile, in a thread (the head)
    cluster_program.py wait HOST:PORT NODES GPUS [IP,IP...]    count, and nothing else

The launcher's interpreter has no Ray; the engine's has. Two things make this faster than the `ray` command:

- `ray start` of a worker asks for the head every 2 s; a worker here asks every 50 ms before it calls Ray (`--after`).
- The `ray` command imports the job, state and serve commands (half of its start-up time), and a head starts a
  dashboard server (which it waits for), a client server on port 10001 and an autoscaler monitor. An engine needs none
  of them, and each is another way in. `--lean` leaves them out: Ray runs without each of them when its optional
  dependencies are missing, and this makes Ray believe they are. The planner uses it only for releases that were tested.

Counting ends with a line that begins with READY. It takes one connection to the GCS, where other scripts start an
interpreter and join the cluster as a driver every 5 s. On the leader a thread of the head's process counts, because an
interpreter with Ray takes a second of CPU time and 70 MB to start.
"""

from __future__ import annotations

import os
import sys

# Started by path, Python looks for every module in this folder first: `import stages` would find ours.
if __name__ == "__main__" and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
    del sys.path[0]

import importlib
import socket
import subprocess
import threading
import time

TYPE_CHECKING = False  # typing itself costs 10 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Node = dict[str, Any]

READY = "ray-ready:"
POLL = 0.05  # seconds; a look at the GCS takes 1 ms
REMIND = 30.0
OPTIONAL = ("ray.util.state.state_cli", "ray.dashboard.modules.job.cli", "ray.serve.scripts")


def main(argv: list[str]) -> int:
    if argv[:1] == ["start"] and "--" in argv:
        split = argv.index("--")
        return start(argv[1:split], argv[split + 1 :])
    if argv[:1] == ["wait"] and len(argv) in (4, 5):
        expected = argv[4].split(",") if len(argv) == 5 else []
        return wait(argv[1], int(argv[2]), float(argv[3]), expected)
    sys.stderr.write(__doc__ or "")
    return 64


# ----------------------------------------------------------------------------------------------- start


def start(own: list[str], ray_arguments: list[str]) -> int:
    cli = lean_cli() if "--lean" in own else importlib.import_module("ray.scripts.scripts")
    if "--after" in own:
        wait_for_head(own[own.index("--after") + 1])
    if "--count" in own:
        at = own.index("--count") + 1
        threading.Thread(target=count_beside, args=(own[at : at + 4],), daemon=True).start()
    sys.argv = ["ray", *ray_arguments]
    cli.main()
    return 0


def lean_cli() -> Any:
    """Ray's command line without the parts that an inference engine does not use."""
    for name in OPTIONAL:
        # Importing it now raises ImportError, which Ray expects there and ignores.
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        cli: Any = importlib.import_module("ray.scripts.scripts")
    finally:
        for name in OPTIONAL:
            if sys.modules.get(name, 0) is None:
                del sys.modules[name]
    utils: Any = importlib.import_module("ray._private.utils")
    services: Any = importlib.import_module("ray._private.services")
    left_out = ImportError("left out by the launcher")
    answers: list[tuple[Any, str, Any]] = [
        # no client server; the second name is the one up to 2.4x
        (cli, "get_ray_client_dependency_error", lambda: left_out),
        (cli, "check_ray_client_dependencies_installed", lambda: False),
        # the minimal agent, as in `pip install ray`
        (utils, "get_dashboard_dependency_error", lambda: left_out),
        (utils, "check_dashboard_dependencies_installed", lambda: False),
        # its result when a dashboard cannot be started
        (services, "start_api_server", lambda *a, **k: (None, None)),
    ]
    for module, name, answer in answers:
        if hasattr(module, name):
            setattr(module, name, answer)
    return cli


def wait_for_head(address: str) -> None:
    """Wait until the head's own node is in the GCS: `ray start` polls every 2 s, and gives up after 40 s."""
    wait_for_port(address)
    nodes = counter(address)
    said = time.monotonic()
    while nodes is not None:
        try:
            if any(node["Alive"] for node in nodes()):
                return
        except Exception as error:
            refuse_if_unauthorised(error)
        if time.monotonic() - said > REMIND:
            said = time.monotonic()
            say(f"waiting for the node of Ray's head at {address}")
        time.sleep(POLL)


def wait_for_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    said = time.monotonic()
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), 2.0).close()
            return
        except OSError as error:
            if time.monotonic() - said > REMIND:
                said = time.monotonic()
                say(f"waiting for Ray's head at {address}: {error}")
        time.sleep(POLL)


# ----------------------------------------------------------------------------------------------- count


def count_beside(what: list[str]) -> None:
    """`wait`, beside `ray start`: if it fails, the whole process exits, for nothing else would count."""
    try:
        wait_for_port(what[0])
        if counter(what[0]) is None:  # that takes `ray.init`, which must not run in a process that starts a head
            code = subprocess.call([sys.executable, os.path.abspath(__file__), "wait", *what])
        else:
            code = wait(what[0], int(what[1]), float(what[2]), what[3].split(","))
    except Exception as error:
        say(f"Ray's nodes cannot be counted: {type(error).__name__}: {first_line(error)}")
        code = 70
    if code:
        os._exit(code)


def wait(address: str, size: int, gpus: float, expected: list[str]) -> int:
    """Wait until `size` nodes with `gpus` GPUs in all are alive; print what is missing whenever that changes."""
    importlib.import_module("ray")  # 1 s, while the head comes up
    wait_for_port(address)
    nodes = counter(address) or public_counter(address)
    told, since = "", time.monotonic()
    while True:
        try:
            alive = [node for node in nodes() if node["Alive"]]
        except Exception as error:
            refuse_if_unauthorised(error)
            news = f"Ray's head at {address} does not answer: {first_line(error)}"
        else:
            have = sum(node.get("Resources", {}).get("GPU", 0) for node in alive)
            if len(alive) >= size and have >= gpus:
                say(f"{READY} {len(alive)} nodes, {have:g} GPUs")
                return 0
            news = missing(alive, size, have, gpus, expected)
        if news != told or time.monotonic() - since > REMIND:
            told, since = news, time.monotonic()
            say(news)
        time.sleep(POLL)


def missing(alive: list[Node], size: int, have: float, gpus: float, expected: list[str]) -> str:
    """What Ray still lacks, in one line."""
    text = f"waiting for Ray: {len(alive)} of {size} nodes"
    absent = [ip for ip in expected if ip not in {node.get("NodeManagerAddress") for node in alive}]
    if len(alive) < size and len(absent) == size - len(alive):
        text += " (missing {})".format(", ".join(absent))
    if gpus:
        text += f", {have:g} of {gpus:g} GPUs"
        if have < gpus and len(alive) >= size:
            each = ["{} {:g}".format(n.get("NodeManagerAddress"), n.get("Resources", {}).get("GPU", 0)) for n in alive]
            text += " (" + ", ".join(each) + ")"
    return text


# ---------------------------------------------------------------------------------------- asking the GCS


def counter(address: str) -> Callable[[], list[Node]] | None:
    """A function that lists the nodes without joining the cluster; None if this Ray has other internals."""
    try:
        raylet = importlib.import_module("ray._raylet")
        check_token(raylet.GcsClient, address)
        create = getattr(raylet.GcsClientOptions, "create", None)
        if create is None:
            options = raylet.GcsClientOptions.from_gcs_address(address)
        else:
            options = create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
        state = importlib.import_module("ray._private.state").GlobalState()
        state._initialize_global_state(options)
        table: Callable[[], list[Node]] = state.node_table
        return table
    except (ImportError, AttributeError, TypeError):
        return None


def check_token(client: Any, address: str) -> None:
    """Ask once in a way that tells a refused token from a GCS that is not up; to GlobalState both look the same."""
    try:
        client(address=address)
    except Exception as error:
        refuse_if_unauthorised(error)


def public_counter(address: str) -> Callable[[], list[Node]]:
    """The same by Ray's public API: two seconds slower, and a driver of the cluster while it waits."""
    ray = importlib.import_module("ray")
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    table: Callable[[], list[Node]] = ray.nodes
    return table


def refuse_if_unauthorised(error: Exception) -> None:
    if "authentication" in type(error).__name__.lower() or "unauthenticated" in str(error).lower():
        say("Ray refused this pod's token: another cluster listens there, or RAY_AUTH_TOKEN is set differently here")
        say(first_line(error))
        sys.stdout.flush()
        os._exit(77)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    if sys.argv[1:2] == ["wait"]:
        sys.stdout.flush()
        os._exit(code or 0)  # Ray's threads are slow to end
    sys.exit(code)
