"""When a drain is over: a real metrics page, which answers, answers with an error, or does not answer."""

from __future__ import annotations

import asyncio

import pytest

from launcher.health import HealthWatch
from launcher.settings import Settings
from launcher.words import Health

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
            0, Settings(drain_settle=0.5), health, "engine", lambda *_: None, idle.set, moving=lambda _: False
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
