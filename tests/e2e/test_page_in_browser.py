"""The page at `/` in headless Chromium: real groups in each state, at both sizes, in both schemes; then hostile texts,
fields that are absent or of a wrong type, and the status token.

With LAUNCHER_PAGE_PICTURES=FOLDER the screenshots stay there: docs/page.md shows some of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from launcher.api.server import Pages, listen
from launcher.group.proof import status_token
from launcher.network.listening import bind
from tests.browser import TEST_NAME, Browser, browsing, why_not
from tests.e2e.group import Group, running
from tests.e2e.test_autopsy import TURNS, hung
from tests.e2e.test_launcher_start import FILES, SIZE, all_load, model, rows

pytestmark = pytest.mark.browser

WIDTHS = (400, 1600)
SECRET = b"0123456789abcdef0123456789abcdef"
LAYOUT = """
const wide = document.documentElement.clientWidth;
const out = [...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > wide + 1);
const called = (e) => `${e.tagName}.${e.id || e.className}: ${e.textContent.slice(0, 80)}`;
return [document.documentElement.scrollWidth, out.map(called)];
"""
COLOURS = """
const of = (e, name) => getComputedStyle(e)[name].match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = (c) => c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => (/, 0\\)$/.test(getComputedStyle(e).backgroundColor) ? behind(e.parentElement) : e);
return [...document.querySelectorAll('h1, h1 span, h2, p, a, dt, dd, td, th, pre, .tile b, .legend span, small')]
  .filter((e) => e.checkVisibility() && e.textContent.trim()).map((e) => {
    const [a, b] = [light(of(e, 'color')), light(of(behind(e), 'backgroundColor'))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${e.tagName}: ${e.textContent.slice(0, 60)}`];
  }).filter(([ratio]) => ratio < 4.5);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if reason := why_not():
        pytest.skip(f"no headless Chromium here: {reason}")
    with browsing(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("LAUNCHER_PAGE_PICTURES") or tmp_path / "pictures")
    folder.mkdir(exist_ok=True)
    return folder


def inspect(browser: Browser, name: str, pictures: Path) -> None:
    """What holds in every state: nothing sticks out, all text can be read, the console is silent."""
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            browser.look(width, scheme)
            across, out = browser.run(LAYOUT)
            assert across <= width and not out, (name, width, out)
            assert not (pale := browser.run(COLOURS)), (name, scheme, pale)
            browser.picture(pictures / f"{name}-{width}-{scheme}.png")
    assert not browser.complaints()
    assert not browser.run("return document.querySelectorAll('[style]').length")


def url(group: Group, rank: int = 0) -> str:
    return f"http://{group.addresses[rank]}:{group.agent_port}/"


def group_of(folder: Path, size: int, *args: str, **options: Any) -> contextlib.AbstractContextManager[Group]:
    """A group with a name as on Kubernetes."""
    return running(folder, size, *args, group_id="default/llama-0", **options)


def tiles(browser: Browser) -> list[str]:
    return list(browser.run("return [...document.querySelectorAll('.tile')].map((e) => e.innerText)"))


# ---------------------------------------------------------------------------------------------------------- real groups


def test_forming(browser: Browser, tmp_path: Path, pictures: Path) -> None:
    with group_of(tmp_path, 2, start=False) as group:
        group.start(0)
        group.until_phase("gathering", 0)
        browser.open(url(group))
        browser.until_reads("forming", "h1")
        browser.until_reads("1 of 2 ranks connected", "#verdict")
        browser.until_reads("1 absent (rank 1)", "#counts")
        assert "absent" in tiles(browser)[1] and "never seen" in tiles(browser)[1]
        inspect(browser, "forming", pictures)
        group.start(1)  # the page follows
        browser.until_reads("serving", "h1")
        assert not browser.complaints()


def test_loading(browser: Browser, tmp_path: Path, pictures: Path) -> None:
    """Two ranks that read real files for minutes."""
    folder = model(tmp_path / "model")
    slow = ("--load-rate", str(FILES * SIZE // 150))
    with group_of(tmp_path, 2, "--model", folder, "--stop-grace", "1", "--", *slow) as group:
        group.until("both ranks load", lambda: all_load(group))
        group.until("a part is read", lambda: all((row["ratio"] or 0) > 0.05 for row in rows(group)))
        browser.open(url(group))
        browser.until_reads("loading", "h1")
        browser.until_reads("epoch 1", "#timeline")
        browser.until_reads("% of weights", "#verdict")
        assert "0 of 2 ranks loaded, slowest rank " in browser.text("#verdict")
        for tile in browser.until(
            "both tiles", lambda: (t := tiles(browser)) and all("weights, " in one for one in t) and t
        ):
            assert "starting" in tile and "of 4.0 MiB" in tile
            assert "waits for GET http://" in tile or "loading weights" in tile or "reference rank" in tile
        assert browser.run("return document.querySelectorAll('.tile svg rect').length") == 2
        inspect(browser, "loading", pictures)


def test_serving_on_the_leader_and_on_a_worker(browser: Browser, tmp_path: Path, pictures: Path) -> None:
    folder = model(tmp_path / "model")
    slow = ("--load-rate", str(FILES * SIZE // 3), "--compile-seconds", "1", "--graph-seconds", "0.5")
    with group_of(tmp_path, 2, "--model", folder, "--", *slow) as group:
        group.until_serving()
        browser.open(url(group))
        browser.until_reads("serving", "h1")
        browser.until_reads("epoch 1", "#timeline")
        browser.until("tiles", lambda: all("running" in tile and "seen now" in tile for tile in tiles(browser)))
        assert f"{browser.run('return document.title')}".startswith("serving")
        told = browser.text("#ledger")
        assert "Where the latest start went (epoch 1: " in told and "the slowest" in told
        for step in ("imports", "weights", "compile", "graphs"):
            assert re.search(rf"{step} \d", told), told
        assert not browser.text("#leader") and not browser.text("#access") and not browser.text("#failures")
        inspect(browser, "serving", pictures)
        browser.open(url(group, 1))
        browser.until_reads("This pod is a worker", "#leader")
        assert f"curl {group.addresses[0]}:{group.agent_port}/status" in browser.text("#leader")
        inspect(browser, "worker", pictures)


def test_hung(browser: Browser, tmp_path: Path, pictures: Path) -> None:
    faults = ("--hang-after", "0.1", "--hang-mode", "busy", "--fault-ranks", "1", "--fault-epochs", "1")
    with group_of(tmp_path, 2, *TURNS, "--", *faults) as group:
        verdict = hung(group)["verdict"]
        group.until_serving(after=1)
        browser.open(url(group))
        browser.until_reads(verdict, "#autopsy")
        browser.until_reads("_compute", "#autopsy pre")
        assert verdict in browser.text("#failures")
        browser.until_reads("epoch 2", "#timeline")
        inspect(browser, "hung", pictures)
        browser.click("#autopsy a")
        browser.until_reads("most recent call first")


def test_draining(browser: Browser, tmp_path: Path, pictures: Path) -> None:
    with group_of(tmp_path, 2, "--drain-settle", "600", "--stop-grace", "600") as group:
        group.until_serving()
        group.terminate(1)
        group.until_phase("draining", 0)
        browser.open(url(group))
        browser.until_reads("draining", "h1")
        inspect(browser, "draining", pictures)


def test_failed(browser: Browser, tmp_path: Path, pictures: Path) -> None:
    """An engine that crashes in each epoch: the pauses before its restarts double, and the page sees one of them."""
    faults = ("--fault-ranks", "1", "--crash-after", "0.5", "--crash-signal", "9")
    with group_of(tmp_path, 2, "--restart-backoff", "600", "--", *faults) as group:
        group.until("an answer", lambda: group.status(0))
        browser.open(url(group))
        browser.until_reads("failed", "h1")
        group.until(
            "a long pause", lambda: re.search(r"; (2[5-9]|[3-9]\d|\d{3,}) s left", group.status(0)["waiting_for"])
        )
        browser.until_reads("2 s", "footer")
        browser.until_reads("Latest failure", "#failures")
        told = browser.text("#failures")
        assert "First failure" in told and "rank 1: " in told and "SIGKILL" in told and "epoch 1, " in told
        assert browser.run("return document.querySelectorAll('#failures pre').length") >= 1, "last lines"
        ends = browser.run("return [...document.querySelectorAll('#failures td')].map((e) => e.textContent)")
        assert "rank 0" in ends and "rank 1" in ends
        inspect(browser, "failed", pictures)
        group.terminate()
        group.codes()
        browser.until_reads("does not answer since", "#offline")


def test_mismatched(browser: Browser, tmp_path: Path, pictures: Path) -> None:
    with group_of(tmp_path, 2, start=False) as group:
        group.start(0)
        group.start(1, "--", "--max-num-seqs", "7")
        group.until_phase("mismatched", 0)
        browser.open(url(group))
        browser.until_reads("mismatched", "h1")
        browser.until_reads("Rank 1: engine.args.max-num-seqs", "#verdict")
        inspect(browser, "mismatched", pictures)


def test_other_pods_are_asked_for_the_status_token(browser: Browser, tmp_path: Path, pictures: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(SECRET)
    file.chmod(0o600)
    with group_of(tmp_path, 1, "--token-file", str(file), "--status-details", "none") as group:
        group.until_serving()
        browser.open(url(group))
        browser.until_reads("Status token", "#access")
        assert "serving" in browser.text("h1") and "ENGINE" not in browser.text("#verdict").upper().split()
        inspect(browser, "token", pictures)
        browser.type("#token", "not a token")
        browser.click("#access button")
        browser.until_reads("it was not sent", "#access")
        browser.type("#token", "f" * 64)
        browser.click("#access button")
        browser.until_reads("this is not the status token", "#note")
        browser.type("#token", status_token(SECRET))
        browser.click("#access button")
        browser.until_reads("reference", "#verdict")
        browser.until("no form", lambda: not browser.text("#access"))
        assert not browser.complaints()


# --------------------------------------------------------------------------------------------------- any /status at all


@contextlib.contextmanager
def serving(status: Callable[[], Mapping[str, Any]], secrets: Callable[[], Collection[bytes]] = tuple) -> Iterator[int]:
    """The real pages of a pod whose /status is given; their port."""
    sockets = bind("127.0.0.1", 0)
    stop, loop = asyncio.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        visitors = listen(Pages(lambda: (False, ""), lambda: "", status, secrets=secrets), sockets, 64)
        await stop.wait()
        visitors.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def failure(rank: int, text: str, epoch: int = 3, **more: Any) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "at": "2026-01-01T10:00:30.000Z",
        "age_s": 250.0,
        "rank": rank,
        "cause": "exited",
        "process": "engine",
        "exit_code": 1,
        "text": text,
        "tail": ["Traceback (most recent call last):", "RuntimeError: CUDA error: an illegal memory access"],
        "probably": False,
        "or_rank": [],
        "because_of_it": [],
        **more,
    }


def full(size: int = 16) -> dict[str, Any]:
    """A group that loads for the fourth time, with every field that the page knows."""
    members = []
    for rank in range(size):
        ratio = 0.45 if rank == 7 else min(1.0, 0.7 + rank * 0.02)
        progress = {
            "stage": "engine",
            "step": "weights",
            "ratio": ratio,
            "bytes_read": int(27e9 * ratio),
            "seconds": 61.2,
        }
        progress |= {"bytes_total": int(27e9), "bytes_per_second": 1.3e9, "eta_s": (1 - ratio) * 700}
        progress |= {"gate": "GET http://127.0.0.1:8000/health", "gate_answer": "connection refused", "line": "Loading"}
        facts = {"gpu.count": "8", "gpu.model": "NVIDIA H200"}
        row = {"rank": rank, "state": "starting", "address": f"10.0.0.{rank}", "last_seen_s": 0.3}
        members.append({**row, "facts": facts, "progress": progress})
    steps = {
        "peers": 12.0,
        "preparing": 0.2,
        "imports": 21.0,
        "weights": 140.0,
        "compile": 35.0,
        "graphs": 18.0,
        "rest": 3.0,
    }
    slow = {**steps, "peers": 0.0, "weights": 152.0}
    one = {"epoch": 2, "at": 1767261600, "seconds": 229.2, "ranks": []}
    one["ranks"] = [
        {"rank": 0, "slowest": False, "steps": steps, "bytes": int(27e9), "bytes_per_second": 193e6},
        {"rank": 7, "slowest": True, "steps": slow, "bytes": int(27e9), "bytes_per_second": 178e6},
    ]
    ends = [
        {"rank": r, "cause": "exited", "exit_code": 1, "text": f"rank {r} ended", "stopped_by_us": r != 3, "tail": []}
        for r in range(size)
    ]
    first, latest = failure(3, "engine exited with code 1"), failure(5, "engine was ended by SIGKILL", 4)
    return {
        "phase": "starting",
        "ready": False,
        "why": "not serving: starting",
        "epoch": 5,
        "rank": 0,
        "size": size,
        "group": "default/llama-0",
        "name": "llama-0",
        "source": "statefulset",
        "agent_port": 9471,
        "engine": "vllm",
        "engine_version": "0.33.0",
        "model": "/models/llama",
        "api_url": "10.0.0.0:8000/v1",
        "waiting_for": "",
        "members": members,
        "members_present": size,
        "restarts": 2,
        "timeline": [
            {"phase": phase, "at": f"2026-01-01T10:0{i}:00.000Z", "seconds": 60.0}
            for i, phase in enumerate(
                (
                    "setup",
                    "gathering",
                    "preparing",
                    "starting",
                    "running",
                    "stopping",
                    "backoff",
                    "preparing",
                    "starting",
                )
            )
        ],
        "findings": [
            {"check": "shm", "level": "warn", "what": "64 MiB", "why": "NCCL needs more", "fix": "an emptyDir"}
        ],
        "first_failure": first,
        "latest_cause": latest,
        "failures": [{**first, "served_s": 3600.0, "ends": []}, {**latest, "served_s": None, "ends": ends}],
        "starts": [one, {**one, "epoch": 4}],
        "autopsy": {
            "epoch": 4,
            "at": 1767261700,
            "verdict": "rank 3 is in `forward`, the other 15 wait in `all_reduce`",
            "rank": 3,
            "ranks": [{"rank": r, "state": "D (io_wait)", "frames": ["forward (model.py:42)"]} for r in range(size)],
        },
    }


def test_everything_that_a_status_can_tell(browser: Browser, pictures: Path) -> None:
    with serving(full) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        browser.until_reads("loading", "h1")
        inspect(browser, "full", pictures)
        assert "0 of 16 ranks loaded, slowest rank 7 at 45 % of weights, about 6 min left." in browser.text("#verdict")
        for words in ("vllm 0.33.0", "/models/llama", "10.0.0.0:8000/v1"):
            assert words in browser.text("#verdict")
        assert len(tiles(browser)) == 16
        for words in (
            "rank 7",
            "8 \u00d7 NVIDIA H200",
            "weights, 45 %",
            "11 GiB of 25 GiB, 1.2 GiB/s",
            "connection refused",
            "Loading",
        ):
            assert words in tiles(browser)[7]
        assert "all_reduce" in browser.text("#autopsy")
        assert "Where the latest start went (epoch 4" in browser.text("#ledger")
        assert "rank 7, the slowest" in browser.text("#ledger") and "weights 3 min" in browser.text("#ledger")
        told = browser.text("#failures")
        assert "First failure" in told and "Latest failure" in told and "illegal memory access" in told
        folded = browser.run("return [...document.querySelectorAll('#failures td')].map((e) => e.textContent)")
        assert "ranks 0\u20132, 4\u201315" in folded and "stopped by the group" in folded and "rank 3" in folded
        bars = browser.run(
            "return [...document.querySelectorAll('#ledger svg')].map((e) => e.getAttribute('aria-label'))"
        )
        assert "weights 140 s" in bars[0] or "weights 2 min" in bars[0]


def test_hostile_texts_are_texts(browser: Browser, pictures: Path) -> None:
    evil = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\" onload=\"hacked=3 '"
    evil += "</pre></section>"
    spelled = evil.replace("=", "&#61;") + "javascript:window.hacked=4 \u202etxt.exe\u0000"
    status: dict[str, Any] = full(3)

    def spoilt(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoilt(one) for key, one in value.items()} | {evil: evil}
        if isinstance(value, list):
            return [spoilt(one) for one in value] + [evil]
        return evil + spelled if isinstance(value, str) else value

    hostile = spoilt(status)
    hostile["members"][1]["rank"] = evil
    hostile["members"][2]["state"] = "constructor"
    worker = {**spoilt(status), "rank": 1, "phase": "__proto__"}
    for shown in (hostile, worker, {**hostile, "phase": "running", "ready": True}):
        shown["members"][0]["rank"] = 0
        with serving(lambda shown=shown: shown) as port:  # type: ignore[misc]
            browser.open(f"http://127.0.0.1:{port}/")
            browser.until_reads("<script>window.hacked = 1</script>", "#verdict")
            browser.until_reads("<script>window.hacked = 1</script>", "#members")
            if shown is hostile:
                inspect(browser, "hostile", pictures)
            assert not browser.complaints()
            assert browser.run("return [typeof window.hacked, document.images.length, document.scripts.length]") == [
                "undefined",
                0,
                1,
            ]
            assert "cannot be shown" not in browser.text()
            assert "\u202e" not in browser.text() and "\ufffd" in browser.text()
    assert "cannot be put into a command" in browser.text("#leader") or not browser.text("#leader")


def test_no_field_and_no_type_breaks_it(browser: Browser) -> None:
    shown: dict[str, Any] = {}
    wrong: tuple[Any, ...] = (None, [], {}, "x", -1, 1e300, True, [None, 1, "x", [], {}], {"a": None})
    with serving(lambda: shown) as port:
        for case in range(-1, len(wrong) * 2):
            shown.clear()
            if case >= len(wrong):  # every field of every object but the kind of phase
                deep = {k: _replaced(v, wrong[case - len(wrong)]) for k, v in full(2).items()}
                shown.update({**deep, "phase": "running"})
            elif case >= 0:
                shown.update(dict.fromkeys(full(2), wrong[case]))
            browser.open(f"http://127.0.0.1:{port}/")
            browser.until("an answer", lambda: "Asked every" in browser.text("footer"))
            assert "cannot be shown" not in browser.text(), case
            assert not browser.text("#offline"), case
            assert not browser.complaints(), case


def _replaced(value: Any, by: Any) -> Any:
    """Containers as they are, and ``by`` for all that they hold."""
    if isinstance(value, dict):
        return {key: _replaced(one, by) for key, one in value.items()}
    return [_replaced(one, by) for one in value] if isinstance(value, list) else by


@pytest.mark.parametrize(
    ("source", "address", "command"),
    [
        (
            "statefulset",
            "llama-0.llama-peers.prod.svc.cluster.local",
            "kubectl port-forward -n prod pod/llama-0 9471:9471",
        ),
        ("lws", "vllm-1.vllm.default", "kubectl port-forward -n default pod/vllm-1 9471:9471"),
        ("slurm", "node17", "ssh -L 9471:localhost:9471 node17"),
        (
            "explicit",
            "10.1.2.3",
            'kubectl port-forward "$(kubectl get pod -o name --field-selector status.podIP=10.1.2.3)" 9471:9471',
        ),
        (
            "job",
            "train-0.train.ml.svc.cluster.local",
            'kubectl port-forward -n ml "$(kubectl get pod -n ml -o name -l '
            'batch.kubernetes.io/job-name=train,batch.kubernetes.io/job-completion-index=0)" 9471:9471',
        ),
        ("explicit", "a; rm -rf ~", "Its name cannot be put into a command."),
        ("explicit", "$(reboot)", "Its name cannot be put into a command."),
        ("explicit", "--kubeconfig=x", "Its name cannot be put into a command."),
    ],
)
def test_a_worker_tells_the_way_to_its_leader(browser: Browser, source: str, address: str, command: str) -> None:
    members = [
        {"rank": 0, "state": "leader", "address": address},
        {"rank": 1, "state": "running", "address": "10.0.0.1"},
    ]
    status = {"phase": "running", "rank": 1, "size": 2, "source": source, "agent_port": 9471, "members": members}
    with serving(lambda: status) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        browser.until_reads(command, "#leader")


def test_a_large_group_shows_the_odd_ranks_first(browser: Browser) -> None:
    members = [{"rank": r, "state": "running", "address": f"10.0.0.{r}", "last_seen_s": 0.1} for r in range(1024)]
    members[700]["state"], members[900]["last_seen_s"] = "absent", 30.0
    status = {"phase": "running", "ready": True, "rank": 0, "size": 1024, "members": members}
    with serving(lambda: status) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        browser.until_reads("1023 running, 1 absent (rank 700)", "#counts")
        first = browser.run(
            "return [...document.querySelectorAll('.tile')].slice(0, 3).map((e) => e.innerText.split('\\n')[0])"
        )
        assert first == ["rank 700", "rank 900", "rank 0 (this pod)"]
        assert not browser.complaints()


def test_under_another_name_the_token_is_asked_for_and_the_secret_refused(browser: Browser) -> None:
    """As through an Ingress: a name that is no loopback name. A secret of hexadecimal digits looks like a token."""
    secret = b"a1" * 32
    with serving(lambda: full(2), lambda: (secret,)) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        browser.until_reads("vllm", "#verdict")
        assert not browser.text("#access"), "on loopback nothing is asked for"
        browser.open(f"http://{TEST_NAME}:{port}/")
        browser.until_reads("Status token", "#access")
        assert "vllm" not in browser.text()
        browser.type("#token", secret.decode())
        browser.click("#access button")
        browser.until_reads("group's secret itself", "#refused")
        browser.complaints()  # Chromium logs the 401
        browser.until_reads("loading", "h1")
        assert "vllm" not in browser.text()
        browser.type("#token", status_token(secret))
        browser.click("#access button")
        browser.until_reads("vllm", "#verdict")
        assert not browser.text("#access")
        assert not browser.complaints()
