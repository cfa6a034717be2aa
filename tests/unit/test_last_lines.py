"""Last lines: what a person needs to see why an engine ended, in real engines' own formats."""

from __future__ import annotations

import re
import time

import pytest

from launcher.common import last_lines
from launcher.common.last_lines import (
    GAP,
    TAIL_LINES,
    TRACEBACK_CHARACTERS,
    TRACEBACK_LINES,
    LastLines,
    Lines,
    probes_of,
)

PROBES = probes_of(["http://127.0.0.1:8000/health", "http+unix://%2Ftmp%2Fs/own/metrics", None, "http://h:1/"])

VLLM = "(EngineCore_DP0 pid=71) ERROR 11-28 17:00:00 [core.py:700] "
RAY = "\x1b[36m(RayWorkerWrapper pid=9, ip=10.0.0.2)\x1b[0m "


def traceback(prefix: str = "", frames: int = 3, error: str = "ValueError: no", chained: bool = False) -> list[str]:
    found = [f"{prefix}Traceback (most recent call last):"]
    for n in range(frames):
        found += [f'{prefix}  File "x.py", line {n}, in f', f"{prefix}    call({n})"]
    found.append(prefix + error)
    if chained:
        text = f"{prefix}During handling of the above exception, another exception occurred:"
        found += [prefix, text, prefix, *traceback(prefix, frames, "RuntimeError: worker failed")]
    return found


def kept(*lines: str) -> tuple[str, ...]:
    found = LastLines(PROBES)
    found.add(lines)
    return found.telling


def noise(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}INFO {n} shutting down" for n in range(count)]


@pytest.mark.parametrize(
    "line",
    [
        'INFO:     127.0.0.1:34658 - "GET /health HTTP/1.1" 200 OK',
        '(APIServer pid=7) INFO:     127.0.0.1:34658 - "GET /metrics HTTP/1.1" 200 OK',
        '[2026-11-28 17:00:00] INFO:     127.0.0.1:1 - "GET /health_generate HTTP/1.1" 200 OK',
        '\x1b[32mINFO\x1b[0m:     10.0.0.1:1 - "\x1b[1mGET /metrics?x=1 HTTP/1.1\x1b[0m" \x1b[32m200 OK\x1b[0m',
        '10.0.0.1 - - [28/Nov/2026:17:00:00 +0000] "GET /healthz HTTP/1.1" 204 0 "-" "kube-probe/1.37"',
        "srv  log_server_r: request: GET /health 127.0.0.1 200",
        '{"level": "INFO", "message": "127.0.0.1:1 - \\"GET /ready HTTP/1.1\\" 200"}',
        'INFO:     127.0.0.1:1 - "GET /own/metrics HTTP/1.1" 200 OK',
        'INFO:     127.0.0.1:1 - "HEAD /ping/ HTTP/1.1" 200 OK',
    ],
)
def test_lines_of_probes_are_left_out(line: str) -> None:
    found = LastLines(PROBES)
    assert found.add([line, "why it ended"]) == len(line) + 1
    assert found.last == found.telling == ("why it ended",)


@pytest.mark.parametrize(
    "line",
    [
        'INFO:     127.0.0.1:1 - "GET /health HTTP/1.1" 503 Service Unavailable',
        'INFO:     127.0.0.1:1 - "POST /v1/completions HTTP/1.1" 200 OK',
        'INFO:     127.0.0.1:1 - "GET /healthy-models HTTP/1.1" 200 OK',
        "Route: /health, Methods: GET",
        "the health check of 200 workers failed: GET timed out",
        'INFO:     127.0.0.1:1 - "GET / HTTP/1.1" 200 OK',
    ],
)
def test_other_lines_are_not(line: str) -> None:
    assert kept(line) == (line,)


@pytest.mark.parametrize("prefix", ["", VLLM, RAY, "[rank0]: "])
@pytest.mark.parametrize("chained", [False, True])
def test_a_traceback_is_kept_whole_whatever_follows(prefix: str, chained: bool) -> None:
    whole = traceback(prefix, 20, chained=chained)
    after = noise(300, prefix)
    shown = kept(*noise(100), *whole, *after)
    assert shown == (*(line for line in whole if line.strip()), GAP, *after[-TAIL_LINES:])


def test_a_traceback_among_the_last_lines_stands_there_once() -> None:
    whole = traceback(VLLM, 2)
    assert kept(*noise(3), *whole, *noise(2)) == (*noise(3), *whole, *noise(2))


def test_lines_of_others_in_between_do_not_end_it() -> None:
    one, two = traceback(VLLM, 10), traceback("(Worker pid=9) ", 10, "OSError: gone")
    mixed = [line for pair in zip(one, two, strict=True) for line in (pair[0], "INFO something else", pair[1])]
    shown = kept(*mixed, *noise(30))
    assert [line for line in shown if line in one] == one
    assert [line for line in shown if line in two] == two
    plain = traceback(frames=10)
    mixed = [line for frame in plain for line in (frame, "INFO:     127.0.0.1:1 - a request", "(other pid=1) x")]
    assert [line for line in kept(*mixed, *noise(30)) if line in plain] == plain


def test_the_first_and_the_newest_of_many_tracebacks_are_kept() -> None:
    every = [traceback(f"(p pid={n}) ", 20, f"ValueError: {n}") for n in range(10)]
    shown = kept(*(line for one in every for line in one), *noise(30))
    assert set(every[0]) <= set(shown) and set(every[9]) <= set(shown)
    assert len(shown) <= TRACEBACK_LINES + 2 * TAIL_LINES


@pytest.mark.parametrize(("frames", "width"), [(5000, 10), (100, 380)])
def test_a_huge_traceback_keeps_where_it_came_from_and_what_was_raised(frames: int, width: int) -> None:
    whole = traceback("", frames, "RecursionError: " + "x" * width)
    whole = [line if "File" not in line else line.ljust(width) for line in whole]
    shown = kept(*whole, *noise(30))
    assert shown[:5] == tuple(whole[:5]) and whole[-1] in shown
    assert len(shown) <= TRACEBACK_LINES + TAIL_LINES + 2
    assert sum(map(len, shown[:-TAIL_LINES])) <= TRACEBACK_CHARACTERS + 10


def test_a_message_of_several_lines_is_kept() -> None:
    message = [
        "torch.AcceleratorError: CUDA error: an illegal memory access",
        "CUDA kernel errors might be asynchronous",
        "For debugging consider passing CUDA_LAUNCH_BLOCKING=1",
    ]
    whole = [*traceback("", 3)[:-1], *message]
    assert kept(*whole, *noise(100))[: len(whole)] == tuple(whole)


def test_the_stacks_of_a_fatal_error_are_kept() -> None:
    whole = ["Fatal Python error: Segmentation fault", "", "Current thread 0x00007f (most recent call first):"]
    whole += [f'  File "x.py", line {n} in f' for n in range(40)]
    whole += ["", "Thread 0x00007e (most recent call first):", '  File "y.py", line 1 in g', "Extension modules: numpy"]
    shown = kept(*whole, *noise(100))
    assert shown[: len(whole) - 2] == tuple(line for line in whole if line)


def test_an_old_traceback_explains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = LastLines()
    found.add([*traceback(), *noise(100)])
    assert "Traceback (most recent call last):" in found.telling
    later = time.monotonic() + last_lines.FRESH + 1
    monkeypatch.setattr("launcher.common.last_lines.time.monotonic", lambda: later)
    assert found.telling == found.last == tuple(noise(100)[-TAIL_LINES:])


def test_what_has_no_line_end_yet_counts_as_a_line() -> None:
    out, err = Lines(), Lines()
    found = LastLines()
    found.follow(out)
    found.follow(err)
    found.add(out.feed("".join(f"{n}\n" for n in range(50)) + "10 %\r20 %"))
    found.add(err.feed("terminate called"))
    assert found.last == found.telling == (*map(str, range(32, 50)), "20 %", "terminate called")
    assert len(found.last) == TAIL_LINES
    assert Lines().feed("a\r\nb\rc\n" + "x" * 500 + "\n") == ["a", "c", "x" * 400]


@pytest.mark.timeout(60)
def test_hostile_lines_cost_little() -> None:
    """Whatever an engine prints, 400 characters at a time."""
    found = LastLines(PROBES)
    for line in ("GET " * 100, "GET /health " * 33, "\x1b[" * 200, "\x1b]" * 200, "Traceback (" * 30, "A." * 200):
        found.add([line[:400]] * 200)
    assert len(found.telling) <= TAIL_LINES


def test_the_pattern_of_probes_names_each_path_once() -> None:
    assert re.search(probes_of([]), 'GET /metrics HTTP/1.1" 200')
    assert not re.search(probes_of(["http://x:1/"]), 'GET / HTTP/1.1" 200')
