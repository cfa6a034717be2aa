"""Streams completions from a Service and writes one line of JSON for each: what a client of the engine lives through.

streams.py URL [--at-once N] [--count N] [--seconds S] [--tokens N] [--prompt TEXT] [--model NAME] [--patience S]
           [--host NAME] [--timeout S]

`--at-once` streams run at any time. No new one begins after `--count` of them, or after `--seconds`; those that run are
finished. A stream that got no answer (refused, 503) may be tried again for `--patience` seconds: a client that waits.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlsplit


def stream(url: str, request: dict[str, object], timeout: float, host: str = "") -> dict[str, object]:
    """One request. `end` is done, cut (the answer began and did not end), or none (there was no answer)."""
    parts = urlsplit(url)
    told: dict[str, object] = {"at": time.time(), "first": None, "tokens": 0, "end": "none", "why": "", "text": ""}
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout)
    text = []
    try:
        headers = {"Content-Type": "application/json", **({"Host": host} if host else {})}
        connection.request("POST", "/v1/completions", json.dumps(request), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            told["why"] = f"status {answer.status}"
            return told
        told["end"] = "cut"
        for line in answer:
            data = line.decode(errors="replace").strip().removeprefix("data: ")
            if data == "[DONE]":
                told["end"] = "done"
                break
            if not data:
                continue
            piece = json.loads(data)
            if "choices" not in piece:
                told["why"] = data[:300]
                break
            told["first"] = told["first"] or time.time()
            text.append(piece["choices"][0]["text"])
    except (OSError, http.client.HTTPException, ValueError) as error:
        told["why"] = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
        told.update(seconds=round(time.time() - float(str(told["at"])), 3), tokens=len(text), text="".join(text))
    return told


class Load:
    """Streams side by side, bounded by number and by time."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.begun = 0
        self.last = time.monotonic() + given.seconds
        self.lock = threading.Lock()

    def next(self) -> int | None:
        """The number of the next stream, or None when there are to be no more."""
        with self.lock:
            if self.begun >= self.given.count or time.monotonic() > self.last:
                return None
            self.begun += 1
            return self.begun - 1

    def run(self) -> None:
        while (number := self.next()) is not None:
            self.one(number)

    def one(self, number: int) -> None:
        given, began, tries = self.given, time.monotonic(), 0
        request = {"model": given.model, "prompt": given.prompt, "max_tokens": given.tokens, "stream": True}
        request["temperature"] = 0
        while True:
            tries += 1
            told = stream(given.url, request, given.timeout, given.host)
            if told["end"] != "none" or time.monotonic() - began > given.patience:
                break
            time.sleep(0.2)
        told.update(number=number, tries=tries)
        with self.lock:
            print(json.dumps(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--prompt", default="hello")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--timeout", type=float, default=120.0)
    parser.add_argument("--patience", type=float, default=0.0)
    parser.add_argument("--host", default="", help="the Host header, where a proxy goes by it")
    load = Load(parser.parse_args())
    socket.setdefaulttimeout(load.given.timeout)
    threads = [threading.Thread(target=load.run) for _ in range(load.given.at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
