"""When a health endpoint ends an epoch: after some failures in a row, or at once where it says that all is over."""

from __future__ import annotations

import asyncio

import pytest

from launcher.agent.health import HealthInputs, HealthWatch
from launcher.model import Cause, Health
from launcher.settings import Settings

ANSWER = "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}"


@pytest.mark.parametrize(
    ("status", "body", "dead", "asked", "words"),
    [
        ("503 Service Unavailable", "", 503, 1, "says that its engine is dead: HTTP 503"),
        ("503 Service Unavailable", "scaling", 503, 3, "failed its health check 3 times in a row: HTTP 503"),
        ("500 Internal Server Error", "", 503, 3, "failed its health check 3 times in a row: HTTP 500"),
        ("503 Service Unavailable", "", 0, 3, "failed its health check 3 times in a row: HTTP 503"),
    ],
)
def test_what_ends_an_epoch(status: str, body: str, dead: int, asked: int, words: str) -> None:
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER.format(status, len(body), body).encode())
        writer.close()

    async def story() -> Cause:
        told: asyncio.Future[Cause] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        health = Health(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health", dead=dead)
        settings = Settings(health_interval=0.05, health_failures=3)
        watch = HealthWatch(
            0,
            settings,
            health,
            "vllm",
            lambda cause, _: told.set_result(cause),
            lambda: None,
            HealthInputs(lambda _: False),
        )
        watch.start()
        try:
            return await asyncio.wait_for(told, 90)
        finally:
            watch.stop()
            server.close()

    cause = asyncio.run(story())
    assert words in cause.text
    assert count == asked
