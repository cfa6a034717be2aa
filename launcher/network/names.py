"""Names to addresses, anew on every try, for as long as it takes.

A pod's DNS name exists only once its pod does, NXDOMAIN is cached for up to 30 s by CoreDNS, and a recreated pod has a
new address under the old name. So nothing is remembered here, and a name that does not resolve is waited for.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from launcher.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    import asyncio

RETRY = (1.0, 2.0)  #: seconds between tries, with jitter: a thousand members do not ask DNS at once


def is_literal(name: str) -> bool:
    """Whether this is an IP address already (an IPv6 one may carry a zone: ``fe80::1%eth0``)."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, name.split("%", 1)[0])
        except OSError:
            continue
        return family == socket.AF_INET6 or "%" not in name
    return False


def resolve(name: str, family: socket.AddressFamily | None = None) -> tuple[str, ...]:
    """The IP addresses of a name, in the system's order of preference; an IP is its own.

    Raises OSError (socket.gaierror) where it does not resolve now, ConfigError where it never can.
    """
    try:
        found = socket.getaddrinfo(name, None, family=family or socket.AF_UNSPEC, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise ConfigError(
            f"{name!r} cannot be a DNS name: a part of it is empty or longer than 63 characters", "correct the name"
        ) from None
    if is_literal(name):
        return (name,)  # as it was given: the kernel's answer has lost the zone of fe80::1%eth0
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


async def wait_for_address(
    name: str,
    deadline: float | None,
    on_miss: Callable[[str], None],
    family: socket.AddressFamily | None = None,
) -> tuple[str, ...]:
    """Resolve a name, trying again every 1 to 2 s until it succeeds.

    ``deadline`` is on the event loop's clock (time.monotonic); None waits for ever. ``on_miss`` is told why the name
    does not resolve, after every try. Raises UnavailableError at the deadline.
    """
    import asyncio

    import tenacity  # imports asyncio and more: not at start-up

    loop = asyncio.get_running_loop()

    def left() -> float:
        return float("inf") if deadline is None else deadline - loop.time()

    def missing(state: tenacity.RetryCallState) -> None:
        why = _why(state.outcome.exception() if state.outcome else None)
        on_miss(f"waiting: {name} does not resolve yet: {why}")

    jitter = tenacity.wait_random(*RETRY)
    tries = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type((OSError, asyncio.TimeoutError)),
        wait=lambda state: max(0.0, min(jitter(state), left())),
        stop=lambda _: left() <= 0,
        after=missing,
        reraise=True,
    )
    try:
        return await tries(_try_once, name, family, left)
    except (OSError, asyncio.TimeoutError) as error:
        raise UnavailableError(
            f"{name} did not resolve in time: {_why(error)}",
            "check that the pod exists and that its headless Service has publishNotReadyAddresses: true; "
            "--join-timeout 0 waits for ever",
        ) from None


async def _try_once(name: str, family: socket.AddressFamily | None, left: Callable[[], float]) -> tuple[str, ...]:
    import asyncio

    # The last try starts at the deadline: half a second lets it say why it failed.
    timeout = None if left() == float("inf") else max(0.5, left())
    return await asyncio.wait_for(_in_a_thread(name, family), timeout)


def _in_a_thread(name: str, family: socket.AddressFamily | None) -> asyncio.Future[tuple[str, ...]]:
    """``resolve`` in a daemon thread of its own.

    A lookup can hang for half a minute where DNS is down. The event loop's own executor would make the launcher's exit
    wait for that; a daemon thread does not.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[str, ...]] = loop.create_future()

    def settle(addresses: tuple[str, ...], error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(addresses)
        else:
            future.set_exception(error)

    def look_up() -> None:
        addresses: tuple[str, ...] = ()
        failure: Exception | None = None
        try:
            addresses = resolve(name, family)
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now: the answer is not needed
            loop.call_soon_threadsafe(settle, addresses, failure)

    try:
        threading.Thread(target=look_up, name=f"resolve {name}", daemon=True).start()
    except RuntimeError:  # EAGAIN; the caller asks again
        settle((), OSError(errno.EAGAIN, "no thread could be started to resolve it: a limit of processes (pids.max)?"))
    return future


def _why(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "no answer from DNS" if error is not None else ""
