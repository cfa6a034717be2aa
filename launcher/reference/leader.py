"""Rank 0: batches the running requests, sends each batch along the chain, and serves the API.

One batch is in flight at a time and contains every running request, so each step of the chain yields one token for each
of them: continuous batching.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Callable
from time import monotonic, time

from launcher.reference.chain import ACCEPTED, BYE, REFUSED, STEP, ChainFrames, frame, greeting, receive, send
from launcher.reference.http import Connection, Refused, Request, Server
from launcher.reference.options import Options
from launcher.reference.rank import Rank
from launcher.reference.reactor import READ
from launcher.reference.tokens import chat_prompt, count, seed, text, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

LAST_WORDS = 0.25  #: seconds to flush answers before the process exits
MOST_WAITING = 4096


class Sequence:
    """A request that is generating tokens."""

    def __init__(self, prompt: str, tokens: int) -> None:
        self.prompt_tokens, self.tokens = count(prompt), tokens
        self.state = seed(prompt)
        self.words: list[str] = []
        self.cancelled = False
        self.on_token: Callable[[str], None] = lambda word: None
        self.on_end: Callable[[], None] = lambda: None
        self.on_failure: Callable[[str], None] = lambda why: None

    @property
    def done(self) -> bool:
        return self.cancelled or len(self.words) >= self.tokens


class Leader(Rank):
    """Rank 0's main process."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.api = self.listen(options.host, options.port, backlog=1024)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.flight: list[Sequence] | None = None  #: the requests in the batch in flight
        self.flew_at = 0.0
        self.step = 0
        self.timed = False  #: a timer is set for the next step
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.requests = 0
        self.asleep = options.sleep_state
        self.unhealthy = False
        self.severed = ""  #: a lost neighbour, not yet acted on (--on-peer-loss ignore)
        self.failed = False
        self.draining_since: float | None = None
        self.back: socket.socket | None = None  #: connection from the last rank
        self.frames = ChainFrames()
        self.created = int(time())

    # --------------------------------------------------------------------------------------------- the chain

    def fork(self) -> None:
        self.first, source = socket.socketpair()
        if self.options.size > 1:
            self._fork(source=source, listener=None, target=None)
            return
        self.back, target = socket.socketpair()
        self._fork(source=source, listener=None, target=target)

    def leaders_own(self) -> list[socket.socket]:
        return [s for s in (self.first, self.back, self.api, self.peers) if s is not None]

    def started(self) -> None:
        self.server = Server(self.reactor, self.api, self.serve)
        if self.back is not None:
            self._take(self.back)
        elif self.peers is not None:
            self.reactor.watch(self.peers.fileno(), READ, lambda _events: self._accept())
        send(self.first, frame(STEP, 0, []))  # returns once the chain is complete

    def _accept(self) -> None:
        """Accept a connection to the peer port: the last rank, or a port probe."""
        assert self.peers is not None
        try:
            stranger, _ = self.peers.accept()
        except OSError:
            return
        stranger.setblocking(False)
        said = bytearray()

        def ready(_events: int) -> None:
            data = receive(stranger, 1024)
            if data is None:
                return
            said.extend(data)
            answer = greeting(bytes(said), self.options) if data else REFUSED
            if answer is None:
                return
            self.reactor.unwatch(stranger.fileno())
            if answer == ACCEPTED and self.back is None:
                send(stranger, ACCEPTED)
                self._take(stranger)
            else:
                send(stranger, REFUSED)
                stranger.close()

        self.reactor.watch(stranger.fileno(), READ, ready)

    def _take(self, back: socket.socket) -> None:
        self.back = back
        self.reactor.watch(back.fileno(), READ, lambda _events: self._returned())

    def _returned(self) -> None:
        assert self.back is not None
        data = receive(self.back, 1 << 16)
        if data is None:
            return
        if not data:
            self.reactor.unwatch(self.back.fileno())
            self.lost(f"lost the last rank, rank {self.options.size - 1}")
            return
        self.frames.feed(data)
        while (received := self.frames.next()) is not None:
            kind, step, states = received
            if kind == BYE:
                self._leave()
            if self.flight is not None and step == self.step:
                self._stepped(self.flight, states)
            else:
                self.serve_now()

    # ----------------------------------------------------------------------------------------------- batches

    def submit(self, sequence: Sequence) -> None:
        """Queue a request; it runs when the batch has room."""
        self.requests += 1
        self.prompt_tokens += sequence.prompt_tokens
        self.waiting.append(sequence)
        self._soon()

    def _soon(self) -> None:
        """Schedule the next batch, --token-seconds after the last one."""
        if self.timed or self.flight is not None or self.asleep or not (self.waiting or self.running):
            return
        self.timed = True
        self.reactor.after(max(0.0, self.flew_at + self.options.token_seconds - monotonic()), self._fly)

    def _fly(self) -> None:
        self.timed = False
        if self.asleep or self.failed:
            return
        self.running = [s for s in self.running if not s.done]
        while self.waiting and len(self.running) < self.options.max_num_seqs:
            sequence = self.waiting.popleft()
            if not sequence.cancelled:
                self.running.append(sequence)
        if not self.running:
            self._rest()
            return
        self.step += 1
        self.flew_at = monotonic()
        self.flight = list(self.running)
        if self.severed:
            self.broken(self.severed)
            return
        send(self.first, frame(STEP, self.step, [s.state for s in self.flight]))

    def _stepped(self, flight: list[Sequence], states: list[int]) -> None:
        self.flight = None
        for sequence, state in zip(flight, states, strict=True):
            if sequence.cancelled:
                continue
            sequence.state = state
            sequence.words.append(word(state))
            self.generation_tokens += 1
            sequence.on_token(sequence.words[-1])
            if sequence.done and not sequence.cancelled:
                sequence.on_end()
        self.running = [s for s in self.running if not s.done]
        if self.running or self.waiting:
            self._soon()
        else:
            self._rest()

    def _rest(self) -> None:
        """No request is left: a drain is over."""
        if self.draining_since is not None:
            self._farewell()

    # ---------------------------------------------------------------------------------------------- endings

    def passed(self) -> None:
        """Do nothing: rank 0 serves once a batch has come back."""

    def ready(self) -> None:
        after = self.options.unhealthy_after if self.options.faulty else None
        if after is not None:
            self.reactor.after(after, self._sicken)
        self.log(f"serving {self.options.names[0]} on {self.options.host} port {self.options.port}")

    def lost(self, why: str) -> None:
        mode = self.options.on_peer_loss
        if mode == "exit" or (mode == "ignore" and self.flight is not None):
            self.broken(why)
        elif mode == "ignore":
            self.severed = why

    def broken(self, why: str) -> None:
        """Fail every request, flush the answers and exit with 1."""
        if self.failed:
            return
        if self.draining_since is not None and not self.running and not self.waiting:
            self._leave()  # the other ranks are being stopped too, and no request is left
        self.failed = True
        self.log(why)
        for sequence in [*self.running, *self.waiting]:
            if not sequence.done:
                sequence.cancelled = True
                sequence.on_failure(why)
        self.server.close()
        self._flush()
        self.finish(1)

    def terminated(self) -> None:
        if self.failed or (self.options.ignore_term and self.options.faulty):
            return
        if self.draining_since is not None:
            self.log("terminated again")
            self.finish(0)
        self.draining_since = monotonic()
        self.server.close()
        left = len(self.running) + len(self.waiting)
        if not self.serving or not left:
            self._farewell()
            return
        self.log(f"terminated: {left} requests have {self.options.shutdown_timeout:g} s to finish")
        self.reactor.after(self.options.shutdown_timeout, self._cut)

    def _cut(self) -> None:
        self.log(f"{len(self.running) + len(self.waiting)} requests were not finished in time")
        self._farewell()

    def _farewell(self) -> None:
        """Announce a clean shutdown along the chain; the frame comes back if the chain is complete."""
        if not self.serving or self.severed:
            self.finish(0)
        self.log("shutting down")
        send(self.first, frame(BYE, 0, []))
        self.reactor.after(LAST_WORDS, self._leave)

    def _leave(self) -> NoReturn:
        self._flush()
        self.finish(0)

    def _flush(self) -> None:
        """Flush pending answers."""
        deadline = monotonic() + LAST_WORDS
        while self.server.connections and monotonic() < deadline:
            self.reactor.turn(0.01)

    def _sicken(self) -> None:
        self.log("injected failure of /health")
        self.unhealthy = True

    # ---------------------------------------------------------------------------------------------- the API

    def serve(self, request: Request, connection: Connection) -> None:
        """Answer a request, at once or token by token."""
        route = ROUTES.get(request.path)
        if route is None:
            raise Refused(404, f"no such path: {request.path[:200]}")
        method, act = route
        if request.method != method:
            raise Refused(405, f"{request.path} takes {method}")
        act(self, request, connection)

    def _health(self, _request: Request, connection: Connection) -> None:
        if self.draining_since is not None:
            raise Refused(503, "shutting down")
        if self.unhealthy:
            raise Refused(503, "injected failure")
        if not self.serving:
            raise Refused(503, "starting: the chain of ranks is not whole yet")
        connection.answer(200, b"", "text/plain")

    def _metrics(self, _request: Request, connection: Connection) -> None:
        label = json.dumps(self.options.names[0])
        lines = []
        for name, kind, text_, value in (
            ("num_requests_running", "gauge", "Requests in the batch.", len(self.running)),
            ("num_requests_waiting", "gauge", "Requests that wait for room in the batch.", len(self.waiting)),
            ("generation_tokens_total", "counter", "Tokens made.", self.generation_tokens),
            ("prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens),
            ("requests_total", "counter", "Requests taken.", self.requests),
            ("sleeping", "gauge", "1 while the engine sleeps.", int(self.asleep)),
        ):
            lines += [f"# HELP reference:{name} {text_}", f"# TYPE reference:{name} {kind}"]
            lines.append(f"reference:{name}{{model_name={label}}} {value}")
        connection.answer(200, ("\n".join(lines) + "\n").encode(), "text/plain; version=0.0.4; charset=utf-8")

    def _models(self, _request: Request, connection: Connection) -> None:
        models = [
            {"id": name, "object": "model", "created": self.created, "owned_by": "reference"}
            for name in self.options.names
        ]
        connection.answer_json(200, {"object": "list", "data": models})

    def _sleep(self, _request: Request, connection: Connection) -> None:
        self.asleep = True
        connection.answer(200, b"", "text/plain")

    def _wake(self, _request: Request, connection: Connection) -> None:
        self.asleep = False
        connection.answer(200, b"", "text/plain")
        self._soon()

    def _completions(self, request: Request, connection: Connection) -> None:
        asked = self._asked(request)
        prompt = asked.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise Refused(400, "prompt must be a string")
        Completion(self, asked, prompt, connection, chat=False)

    def _chat(self, request: Request, connection: Connection) -> None:
        asked = self._asked(request)
        messages = asked.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refused(400, "messages must be a list with at least one message")
        Completion(self, asked, chat_prompt([_message(m) for m in messages]), connection, chat=True)

    def _asked(self, request: Request) -> dict[str, object]:
        """The parsed body of a completion request, with its model checked."""
        if self.draining_since is not None:
            raise Refused(503, "shutting down")
        if not self.serving:
            raise Refused(503, "starting: the chain of ranks is not whole yet")
        if len(self.waiting) >= MOST_WAITING:
            raise Refused(503, f"{len(self.waiting)} requests wait already")
        try:
            asked = json.loads(request.body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}") from None
        if not isinstance(asked, dict):
            raise Refused(400, "the body must be a JSON object")
        model = asked.get("model")
        if model is not None and model not in self.options.names:
            raise Refused(
                404, f"the model {str(model)[:200]!r} does not exist; here is {', '.join(self.options.names)}"
            )
        return asked


class Completion:
    """The answer to a completion request in the OpenAI API's format, complete or streamed."""

    def __init__(
        self, leader: Leader, asked: dict[str, object], prompt: str, connection: Connection, chat: bool
    ) -> None:
        self.connection, self.chat = connection, chat
        tokens = asked.get("max_completion_tokens" if chat and "max_completion_tokens" in asked else "max_tokens")
        most = leader.options.max_model_len
        if tokens is None:
            tokens = 16
        if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= most:
            raise Refused(400, f"max_tokens must be a whole number from 1 to {most}, not {str(tokens)[:50]}")
        if asked.get("n", 1) != 1:
            raise Refused(400, "n must be 1")
        stream, extra = asked.get("stream") or False, asked.get("stream_options") or {}
        if not isinstance(stream, bool) or not isinstance(extra, dict):
            raise Refused(400, "stream must be true or false, stream_options an object")
        self.stream, self.with_usage = stream, bool(extra.get("include_usage"))
        self.sequence = sequence = Sequence(prompt, tokens)
        self.frame = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{leader.created:x}-{leader.requests}",
            "object": ("chat.completion" if chat else "text_completion") + (".chunk" if chat and stream else ""),
            "created": int(time()),
            "model": leader.options.names[0],
        }
        sequence.on_end, sequence.on_failure = self._end, self._fail
        connection.gone = self._gone
        if stream:
            sequence.on_token = self._token
            connection.begin_stream()
            if chat:
                self._event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        leader.submit(sequence)

    def _usage(self) -> dict[str, int]:
        made = len(self.sequence.words)
        prompt = self.sequence.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    def _event(self, choices: list[object], **more: object) -> None:
        self.connection.event(json.dumps({**self.frame, "choices": choices, **more}))

    def _token(self, token: str) -> None:
        piece = token if len(self.sequence.words) == 1 else " " + token
        finish = "length" if self.sequence.done else None
        said: dict[str, object] = {"delta": {"content": piece}} if self.chat else {"text": piece, "logprobs": None}
        self._event([{"index": 0, **said, "finish_reason": finish}])

    def _end(self) -> None:
        if self.stream:
            if self.with_usage:
                self._event([], usage=self._usage())
            self.connection.event("[DONE]")
            self.connection.end_stream()
            return
        whole = text(self.sequence.words)
        said: dict[str, object] = (
            {"message": {"role": "assistant", "content": whole}} if self.chat else {"text": whole, "logprobs": None}
        )
        choice = {"index": 0, **said, "finish_reason": "length"}
        self.connection.answer_json(200, {**self.frame, "choices": [choice], "usage": self._usage()})

    def _fail(self, why: str) -> None:
        if self.stream:
            self.connection.event(json.dumps({"error": {"message": why, "type": "InternalServerError", "code": 500}}))
            self.connection.break_off()
        else:
            self.connection.refuse(500, why)

    def _gone(self) -> None:
        self.sequence.cancelled = True


def _message(message: object) -> tuple[str, str]:
    """Role and text of a chat message."""
    role = message.get("role") if isinstance(message, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(role, str) or not isinstance(content, str):
        raise Refused(400, "each message must have a role and a content")
    return role, content


ROUTES: dict[str, tuple[str, Callable[[Leader, Request, Connection], None]]] = {
    "/health": ("GET", Leader._health),
    "/metrics": ("GET", Leader._metrics),
    "/v1/models": ("GET", Leader._models),
    "/v1/completions": ("POST", Leader._completions),
    "/v1/chat/completions": ("POST", Leader._chat),
    "/sleep": ("POST", Leader._sleep),
    "/wake_up": ("POST", Leader._wake),
}
