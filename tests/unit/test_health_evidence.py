"""What ends an epoch while health checks fail, and what does not: a real little HTTP server, slow, frozen or at work.

Deadlines count turns of the event loop, which server and watch share: on a busy machine both are late alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from launcher.agent.health import HealthInputs, HealthWatch
from launcher.model import Cause, CauseKind, Health, Plan, Port
from launcher.network import connections
from launcher.settings import Settings

TURN = 0.02
LIMIT = 0.8  #: --unresponsive-timeout
ANSWER = "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}"
SLOW = None  #: an answer that never comes


class Engine:
    """The server, and the watch that asks it."""

    def __init__(self, **settings: Any) -> None:
        self.health: str | None = "200 OK"
        self.running = 0.0
        self.tokens = 0.0
        self.works = False  #: a token is made between two looks at the metrics
        self.metrics: str | None = "200 OK"
        self.pour = False  #: bytes of an answer go out on every API connection
        self.signs = 0
        self.busy = False  #: CPU time or log lines move
        self.turns = 0
        self.lines: list[str] = []
        self.failures: Counter[str] = Counter()
        self.settings = Settings(
            **{"health_interval": 0.05, "unresponsive_timeout": LIMIT, "hang_timeout": 0.0, **settings}
        )
        self.told: asyncio.Future[tuple[Cause, float]] = asyncio.get_running_loop().create_future()

    def fair(self) -> float:
        return self.turns * TURN

    def more_signs(self) -> int:
        self.signs += self.busy
        return self.signs

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            if path == b"/v1/completions":
                await self.answer_slowly(writer)
            status = self.health if path == b"/health" else self.metrics
            if status is SLOW:
                await asyncio.sleep(600)
                return
            body = ""
            if path == b"/metrics":
                self.tokens += self.works
                body = f"x:running {self.running}\nx:waiting 0\nx:tokens {self.tokens}\n"
            writer.write(ANSWER.format(status, len(body), body).encode())
        writer.close()

    async def answer_slowly(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" if self.pour else b"")
        while True:
            await asyncio.sleep(TURN)
            if self.pour:
                writer.write(b"data: token\n\n")
                await writer.drain()

    async def turn(self) -> None:
        while True:
            await asyncio.sleep(TURN)
            self.turns += 1

    @contextlib.asynccontextmanager
    async def watched(self) -> Any:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        base = f"http://127.0.0.1:{self.port}"
        health = Health(
            url=f"{base}/health",
            metrics_url=f"{base}/metrics",
            running=("x:running",),
            waiting=("x:waiting",),
            progress=("x:tokens",),
            timeout=0.2,
        )
        plan = Plan(0, (), ports=(Port(self.port, "api", external=True),))
        self.watch = HealthWatch(
            0,
            self.settings,
            health,
            "engine",
            lambda cause, _: self.told.set_result((cause, self.fair())),
            lambda: None,
            HealthInputs(
                connections.traffic(plan.api_port),
                requests=connections.requests_on(plan.api_port),
                signs=self.more_signs,
                fair=self.fair,
                say=lambda text, fields, level: self.lines.append(text),
                failures=self.failures,
            ),
        )
        turning = asyncio.ensure_future(self.turn())
        self.watch.start()
        try:
            yield self
        finally:
            self.watch.stop()
            turning.cancel()
            self.server.close()

    async def lives(self, seconds: float) -> None:
        """For so many seconds of the fair clock nothing ends it."""
        until = self.fair() + seconds
        while self.fair() < until:
            assert not self.told.done(), self.told.result()
            await asyncio.sleep(TURN)

    async def end(self) -> tuple[Cause, float]:
        return await asyncio.wait_for(asyncio.shield(self.told), 90)

    async def call(self) -> asyncio.StreamWriter:
        """A caller of the API, who is patient."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\n\r\n")
        self.reading = asyncio.ensure_future(reader.read(-1))
        return writer


def story(act: Callable[[Engine], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        async with Engine(**settings).watched() as engine:
            await act(engine)

    asyncio.run(run())


@pytest.mark.parametrize("unready", [False, True])
def test_slow_health_and_moving_tokens(unready: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For many times the limit; when the tokens stop the time starts at the last of them."""
    monkeypatch.setattr("launcher.agent.health.SAY_EVERY", 0.0)

    async def act(engine: Engine) -> None:
        engine.running, engine.works, engine.health = 1, True, SLOW
        await engine.lives(2.5 * LIMIT)
        assert engine.watch.slow and engine.watch.ok is not unready
        assert "timed out after 0.2 s" in engine.watch.words
        assert engine.lines[-1].startswith("engine is slow")
        engine.works, stopped = False, engine.fair()
        cause, at = await engine.end()
        assert at - stopped >= LIMIT - 1 and cause.kind is CauseKind.HEALTH
        assert "no request made progress in the last" in cause.text, cause.text
        assert not engine.watch.ok and not engine.watch.slow

    story(act, unready_when_slow=unready)


def test_slow_health_and_frozen_tokens() -> None:
    async def act(engine: Engine) -> None:
        engine.running, engine.tokens, engine.health = 1, 7, SLOW
        began = engine.fair()
        cause, at = await engine.end()
        assert at - began >= LIMIT
        assert cause.text.startswith("engine: GET /health failed for ") and "(timed out after 0.2 s " in cause.text
        assert cause.text.endswith(" and no request made progress in that time")
        assert engine.failures["timeout"] > 1 and not engine.failures["error"]

    story(act)


def test_cpu_time_or_log_lines_put_it_off_once() -> None:
    """A worker that spins, or a server that writes a line about each of our checks, is not at work."""

    async def act(engine: Engine) -> None:
        engine.running, engine.health, engine.busy = 1, SLOW, True
        began = engine.fair()
        _, at = await engine.end()
        assert at - began >= 2 * LIMIT

    story(act)


@pytest.mark.parametrize("metrics", ["404 Not Found", "500 Internal Server Error", SLOW])
def test_slow_health_and_no_metrics(metrics: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.agent.health.PATIENT_TIMEOUT", 0.3)

    async def act(engine: Engine) -> None:
        engine.metrics, engine.health = metrics, SLOW
        began = engine.fair()
        cause, at = await engine.end()
        assert at - began >= LIMIT and "no request made progress" in cause.text

    story(act)


@pytest.mark.parametrize("health", [SLOW, "503 Service Unavailable"])
@pytest.mark.parametrize("metrics", ["404 Not Found", SLOW])
def test_bytes_on_api_connections_only(
    metrics: str | None, health: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.agent.health.PATIENT_TIMEOUT", 0.3)

    async def act(engine: Engine) -> None:
        engine.metrics, engine.pour = metrics, True
        writer = await engine.call()
        await engine.lives(0.5)
        engine.health = health
        await engine.lives(2.5 * LIMIT)
        engine.pour, stopped = False, engine.fair()
        _, at = await engine.end()
        assert at - stopped >= LIMIT / 2
        writer.close()

    story(act)


def test_what_callers_send_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.agent.health.PATIENT_TIMEOUT", 0.3)

    async def act(engine: Engine) -> None:
        engine.metrics, engine.health = SLOW, SLOW
        writer = await engine.call()
        until = time.monotonic() + 60
        while not engine.told.done() and time.monotonic() < until:
            writer.write(b"more ")
            await asyncio.sleep(0.1)
        assert "no request made progress in that time" in (await engine.end())[0].text
        writer.close()

    story(act)


def test_a_scraper_on_a_connection_of_its_own_is_no_request() -> None:
    """Prometheus keeps its connection: with counters that can be read, bytes on it say nothing."""

    async def act(engine: Engine) -> None:
        engine.pour = True
        writer = await engine.call()
        await engine.lives(0.5)
        engine.health = SLOW
        assert "no request made progress in that time" in (await engine.end())[0].text
        writer.close()

    story(act)


def test_errors_end_an_idle_engine_and_not_one_whose_requests_move() -> None:
    async def act(engine: Engine) -> None:
        engine.running, engine.works, engine.health = 1, True, "503 Service Unavailable"
        await engine.lives(2.5 * LIMIT)
        assert not engine.watch.ok, "it says itself that it is not well"
        engine.running, engine.works = 0, False
        cause, _ = await engine.end()
        assert "times in a row: HTTP 503" in cause.text

    story(act)


def test_requests_that_hang_have_their_time_also_where_health_says_no() -> None:
    async def act(engine: Engine) -> None:
        engine.running, engine.health = 2, "500 Internal Server Error"
        began = engine.fair()
        cause, at = await engine.end()
        assert at - began >= LIMIT and "(HTTP 500 " in cause.text

    story(act)


def test_a_refused_connection_ends_an_idle_engine_at_once() -> None:
    async def act(engine: Engine) -> None:
        await engine.lives(0.5)
        engine.server.close()
        cause, _ = await engine.end()
        assert cause.text == "engine failed its health check 3 times in a row: connection refused"

    story(act)


def test_time_outs_never_end_it_with_0() -> None:
    async def act(engine: Engine) -> None:
        engine.running, engine.health = 1, SLOW
        await engine.lives(2.5 * LIMIT)

    story(act, unresponsive_timeout=0.0)


def test_requests_without_a_token_end_it_although_health_is_fine() -> None:
    async def act(engine: Engine) -> None:
        engine.running = 1
        cause, at = await engine.end()
        assert cause.kind is CauseKind.HANG and at >= 1 and "1 requests running, no tokens produced" in cause.text

    story(act, hang_timeout=1.0)


def test_a_check_that_could_not_be_asked_says_nothing() -> None:
    """No descriptor is left on our side: the engine is not to blame."""
    import resource

    async def act(engine: Engine) -> None:
        await engine.lives(0.3)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            await engine.lives(2 * LIMIT)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await engine.lives(LIMIT)
        assert not engine.failures

    story(act)
