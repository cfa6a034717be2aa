"""One GET or POST to a launcher or an engine, for commands: no proxy, no redirect, bounded in time and size.

HTTP_PROXY and its kin are meant for what leaves the cluster: a proxy in between would see the status token, and could
answer in a pod's name. On the event loop, ``probe`` does the same.
"""

from __future__ import annotations

import errno
import http.client
import queue
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.common.text import printable

IDENTITY = {"Accept-Encoding": "identity"}  #: what is compressed has no known size


@dataclass(frozen=True)
class HttpAnswer:
    """An HTTP answer."""

    status: int
    body: bytes
    server: str = field(default="", compare=False)  #: what the server calls itself


class TooLong(OSError):
    """The answer is larger than the caller takes."""


class NotHttp(ConnectionError):
    """A connection was made, and what came on it is no answer of HTTP; the text says what."""


def ask(
    url: str, timeout: float, most: int, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> HttpAnswer:
    """GET ``url``, or POST ``body``. All of it takes at most ``timeout`` seconds, and the answer ``most`` bytes.

    Raises OSError (TimeoutError, TooLong, ConnectionError) where there is no such answer, ValueError for a bad URL.
    """
    # The library's timeout is for each read, and a server may drip: the caller leaves the thread behind.
    answers: queue.SimpleQueue[HttpAnswer | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(_ask(url, timeout, most, {**IDENTITY, **(headers or {})}, body))
        except Exception as error:  # raised again below, in the caller's thread
            answers.put(error)

    try:
        threading.Thread(target=work, name=f"ask {url}", daemon=True).start()
    except RuntimeError as error:  # EAGAIN: the pod's limit of processes
        raise OSError(errno.EAGAIN, str(error)) from None
    try:
        found = answers.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError("no answer in time") from None
    if isinstance(found, Exception):
        raise found
    return found


def _ask(url: str, timeout: float, most: int, headers: Mapping[str, str], body: bytes | None) -> HttpAnswer:
    import requests  # it takes longer to import than most commands to run
    import urllib3

    with requests.Session() as session:
        session.trust_env = False  # no proxy, no .netrc
        try:
            request = session.prepare_request(
                requests.Request("GET" if body is None else "POST", url, headers, data=body)
            )
            # Not session.send: that reads all of a redirect's body, however long it is.
            adapter = session.get_adapter(url)
            with adapter.send(request, stream=True, timeout=timeout, verify=_authorities()) as reply:
                found = reply.raw.read(most + 1)
        except ValueError:
            raise ValueError(f"{url!r} is no http URL") from None
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise TimeoutError("no answer in time") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _no_answer(error) from None
    if len(found) > most:
        raise TooLong(f"the answer has more than {most} bytes")
    return HttpAnswer(reply.status_code, found, reply.headers.get("Server", ""))


def _no_answer(error: BaseException) -> ConnectionError:
    """What a failed request says of the other side. urllib3 wraps the reason, several times over."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            break
        if isinstance(seen, ssl.SSLError):
            return NotHttp(f"no TLS, or a certificate that is not trusted ({(seen.reason or 'SSLError').lower()})")
        if isinstance(seen, http.client.BadStatusLine) and not isinstance(seen, http.client.RemoteDisconnected):
            return NotHttp(f"no HTTP, but {printable(str(seen), 60)!r}")
        if isinstance(seen, (http.client.HTTPException, ConnectionResetError, BrokenPipeError)):
            return NotHttp("a connection that was closed without an answer")
        if isinstance(seen, OSError) and seen.errno and seen.strerror:
            return ConnectionError(seen.errno, seen.strerror)
        reasons = [getattr(seen, "reason", None), *getattr(seen, "args", ()), seen.__cause__, seen.__context__]
        seen = next((r for r in reasons if isinstance(r, BaseException)), None)
    return ConnectionError(f"no HTTP answer ({type(error).__name__})")


def _authorities() -> str | bool:
    """The system's certificate authorities (or SSL_CERT_FILE's); where there are none, those that requests brings."""
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True
