"""When a drain is over: a real metrics page, which answers, answers with an error, or does not answer."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from launcher.agent.health import HealthInputs, HealthWatch
from launcher.model import Health, Plan, Port
from launcher.network import connections, probe
from launcher.settings import Settings

pytestmark = pytest.mark.timing

ANSWER = "HTTP/1.1 {}\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\nx:running {}\nx:waiting 0\n"


def drained_within(seconds: float, *answers: str | None) -> bool:
    """Whether a drain is over by then; the page gives these answers, the last again and again. None: it hangs up."""
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        answer = answers[min(asked, len(answers)) - 1]
        await reader.readuntil(b"\r\n\r\n")
        writer.write((answer or "").encode())
        writer.close()

    async def story() -> bool:
        idle = asyncio.Event()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        health = Health(metrics_url=f"http://127.0.0.1:{port}/metrics", running=("x:running",), waiting=("x:waiting",))
        watch = HealthWatch(
            0, Settings(drain_settle=0.5), health, "engine", lambda *_: None, idle.set, HealthInputs(lambda _: False)
        )
        watch.drain(lambda: None)
        try:
            await asyncio.wait_for(idle.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        finally:
            watch.stop()
            server.close()
        return True

    return asyncio.run(story())


@pytest.mark.parametrize("last", [ANSWER.format("200 OK", 0), ANSWER.format("404 Not Found", 0)])
def test_nothing_in_flight_or_no_such_page(last: str) -> None:
    assert drained_within(20.0, ANSWER.format("200 OK", 4), last)


@pytest.mark.parametrize("last", [ANSWER.format("200 OK", 4), None])
def test_requests_in_flight_or_an_engine_too_busy_to_answer(last: str | None) -> None:
    assert not drained_within(3.0, ANSWER.format("200 OK", 4), last)


SLOW = 4.0  #: seconds in which a request moves no bytes


@pytest.mark.parametrize("answered", [False, True])
def test_an_engine_that_counts_no_requests_is_not_idle_while_one_waits_for_its_answer(answered: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0 if answered else SLOW)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def story() -> float:
        idle = asyncio.Event()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        plan = Plan(0, (), ports=(Port(port, "api", external=True),))
        client, request = await asyncio.open_connection("127.0.0.1", port)
        request.write(b"POST /v1/completions HTTP/1.1\r\n\r\n")
        if answered:
            await client.readexactly(40)  # and the connection is kept for the next request
        began = time.monotonic()
        watch = HealthWatch(
            0,
            Settings(drain_settle=0.5),
            Health(),
            "engine",
            lambda *_: None,
            idle.set,
            HealthInputs(connections.traffic(plan.api_port)),
        )
        watch.drain(lambda: None)
        await asyncio.wait_for(idle.wait(), 90.0)
        took = time.monotonic() - began
        watch.stop()
        request.close()
        server.close()
        return took

    took = asyncio.run(story())
    assert answered or took >= SLOW  # a connection that is kept would hold the drain for ever


def test_a_loop_that_raises_is_heard() -> None:
    """Else the engine would never be looked at again, and nobody would know."""

    def bug(_: bool) -> bool:
        raise RuntimeError("a bug on purpose")

    async def story() -> list[Any]:
        heard: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context.get("exception")))
        watch = HealthWatch(0, Settings(), Health(), "engine", lambda *_: None, lambda: None, HealthInputs(bug))
        watch.drain(lambda: None)
        await asyncio.sleep(0.1)
        watch.stop()
        return heard

    assert [str(error) for error in asyncio.run(story())] == ["a bug on purpose"]


def test_no_thread_left_to_ask_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod's limit of processes is reached: that is an answer in words, too."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def story() -> probe.Reply:
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(threading.Thread, "start", refused)
            return await probe.ask("http://127.0.0.1:1/", 1.0)

    reply = asyncio.run(story())
    assert (reply.ok, reply.words) == (False, "can't start new thread")
