"""Two pods to the first completion of a real engine on CPU.

by hand    the engine's own commands on both pods at once, every address known, nothing waited for: the floor. With
           Ray: the worker's node is started as soon as the head is up, the engine as soon as both are
launcher   the same command line on both pods; everything is found out
script     vLLM over Ray by the steps of ray_script.sh

The clock starts when the two pods start, and ends with the first answer to a completion, which must be right. The
engine's code is in the page cache, as on a node that has run it before.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import plot
from benchmarks.pods import need_pods
from benchmarks.ray_bootstrap import HERE
from benchmarks.record import Budget, Record
from benchmarks.rounds import alternate, progress
from launcher.errors import ConfigError
from tests.pods import Cluster, Pod, PodProcess, until
from tests.real import by_hand, recipes
from tests.real.install import NotInstallable, cache, engine
from tests.real.launched import PORT, LaunchedGroup, engine_arguments

ROUNDS = 3
KINDS = {"vLLM mp": "vllm-mp", "vLLM Ray": "vllm-ray", "SGLang": "sglang"}
CASES = tuple(KINDS)
FLOOR = "by hand"
MEASURE = "both pods started to first completion"

BUDGETS = tuple(Budget(f"{case}, against the floor", case, MEASURE, "launcher", 1.05, against=FLOOR) for case in CASES)

Start = Callable[[str, Cluster], tuple[Pod, list[PodProcess]]]


def run(record: Record, rounds: int, cases: list[str]) -> None:
    """Every contestant of a kind once a round, one kind after the other."""
    need_pods()
    for case in cases:
        names = [name for name in CONTESTANTS if name != "script" or KINDS[case] == "vllm-ray"]
        for name in alternate(names, rounds, f"cold-start, {case}"):
            read_files(KINDS[case])
            took = first_completion(KINDS[case], CONTESTANTS[name])
            record.add(case, MEASURE, "s", name, took)
            progress(f"{case}, {name}: {took:.1f} s")


def read_files(kind: str) -> None:
    """Have the kernel hold the engine's code: else the first to start reads gigabytes for those that come after it."""
    try:
        folder = engine(kind.partition("-")[0]).python.parent.parent
    except NotInstallable:
        return  # said in a moment
    for path in folder.rglob("*"):
        if path.is_file() and (path.suffix in (".py", ".pyc", ".so") or ".so." in path.name):
            with path.open("rb") as file:
                while file.read(1 << 20):
                    pass


def first_completion(kind: str, start: Start) -> float:
    """Seconds. Raises RuntimeError with what was printed, ConfigError where the engine can't be installed."""
    try:
        expected = recipes.expected_completion(kind.partition("-")[0])
    except NotInstallable as why:
        raise ConfigError(f"{kind} cannot be installed here: {why}", "see benchmarks/README.md") from None
    with Cluster(shared=[cache()]) as cluster:
        began = time.monotonic()
        leader, processes = start(kind, cluster)
        try:
            text = until(lambda: _completion(leader, processes), recipes.READY_SECONDS, f"{kind} answers")
            took = time.monotonic() - began
            if text != expected:
                raise RuntimeError(f"{kind} said {text!r}, not {expected!r}")
        except AssertionError as error:
            raise RuntimeError(f"{error}\n{_said(processes)}") from None
        finally:
            for process in processes:
                process.kill_all()
    return took


def _completion(leader: Pod, processes: list[PodProcess]) -> str:
    """The first completion; empty as long as the engine is not healthy, which is asked 10 times a second."""
    if any(process.returncode is not None for process in processes):
        raise RuntimeError(f"a process has ended\n{_said(processes)}")
    time.sleep(0.1)
    url = f"http://{leader.ip}:{PORT}"
    if leader.http(f"{url}/health").status != 200:
        return ""
    answer = leader.http(f"{url}/v1/completions", data=recipes.REQUEST, timeout=recipes.ANSWER_SECONDS)
    return str(answer.json()["choices"][0]["text"]) if answer.status == 200 else ""


def _said(processes: list[PodProcess]) -> str:
    return "\n---\n".join(process.output()[-3000:] for process in processes)


# ----------------------------------------------------------------------------------------------------- contestants


def _by_hand(kind: str, cluster: Cluster) -> tuple[Pod, list[PodProcess]]:
    leader, worker = cluster.pod("engine-0"), cluster.pod("engine-1")
    return leader, by_hand.STARTS[kind](leader, worker)


def _launched(kind: str, cluster: Cluster) -> tuple[Pod, list[PodProcess]]:
    group = LaunchedGroup(cluster, 2, engine_arguments(kind), recipes.environment(kind.partition("-")[0]))
    group.start_all()
    return group.pods[0], list(group.processes.values())


def _script(kind: str, cluster: Cluster) -> tuple[Pod, list[PodProcess]]:
    leader, worker = cluster.pod("engine-0"), cluster.pod("engine-1")
    script, options = str(HERE / "ray_script.sh"), shlex.join(recipes.RAY_START_ARGS)
    folder = engine("vllm").python.parent

    def environment(pod: Pod) -> dict[str, str]:
        return {**by_hand.node_environment(kind, pod), "PATH": f"{folder}:{pod.environment['PATH']}"}

    first = leader.start([script, "leader", "2", "6379", options, *by_hand.serve(kind)], environment(leader))
    second = worker.start([script, "worker", leader.ip, "6379", options], environment(worker))
    return leader, [first, second]


CONTESTANTS: Mapping[str, Start] = {"by hand": _by_hand, "launcher": _launched, "script": _script}


def draw(record: Record, path: Path) -> None:
    """A panel for each engine."""
    with contextlib.suppress(IndexError):
        plot.boxes(record, path)
