"""Many members in one process: each a real connection and a real member state machine, with nothing behind them.

    python -m benchmarks.scale_members '{"ranks": [1, 2, 3], "size": 4, "leader": "127.0.0.1", ...}'

What an agent would do with processes (prepare, start, stop) is answered at once. Commands come as JSON lines on stdin,
each is answered with one JSON line. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any

from launcher.group import member as me
from launcher.group import messages as m
from launcher.group.config import MemberConfig
from launcher.group.events import Closed, Hang, Note, Send, Tick
from launcher.group.lease import Terms
from launcher.group.link import LinkEvents, MemberLink
from launcher.model import Cause, CauseKind


class One:
    """One simulated member."""

    def __init__(self, rank: int, spec: dict[str, Any], seen: Seen) -> None:
        self.rank = rank
        self._seen = seen
        self._leader: str = spec["leader"]
        terms = Terms(spec["lease"])
        config = MemberConfig(
            group=spec["group"],
            rank=rank,
            size=spec["size"],
            name=f"member-{rank}",
            incarnation=secrets.token_hex(6),
            terms=terms,
        )
        self.member = me.Member(config, time.monotonic())
        self.member.address = f"10.{rank >> 16}.{rank >> 8 & 255}.{rank & 255}"
        self.member.fingerprint = spec["fingerprint"]
        self._beat = terms.beat / 2
        self._link = MemberLink(
            spec["group"],
            None,
            spec["port"],
            self._resolve,
            LinkEvents(
                connected=lambda _: self._handle(me.Connected()),
                heard=self._handle,
                closed=lambda why: self._handle(Closed(why)),
                failed=seen.failed,
            ),
            task=lambda work: asyncio.get_running_loop().create_task(work),
        )
        self._greeted = 0.0

    async def _resolve(self) -> Sequence[str]:
        return (self._leader,)

    def dial(self) -> None:
        """Clean, so it looks for the leader; from now on it ticks."""
        self._seen.mark("dialled")
        asyncio.get_running_loop().call_later(random.random() * self._beat, self._tick)
        self._handle(me.Gone())

    def reconnect(self) -> None:
        """The connection breaks under it, and it dials anew."""
        if self.member.state is me.State.SEATED:
            self._link.hang()
            self._handle(Closed("cut by the benchmark"))

    def fail(self) -> None:
        """Its engine breaks."""
        assert self.member.epoch is not None
        cause = Cause(CauseKind.EXITED, self.rank, "it ended with exit code 1", "engine", 1)
        self._seen.mark("failed")
        self._handle(me.Broke(self.member.epoch, cause))

    def _tick(self) -> None:
        asyncio.get_running_loop().call_later(self._beat, self._tick)
        self._handle(Tick())

    def _handle(self, event: Any) -> None:
        if isinstance(event, m.Accepted):
            self._seen.mark("accepted")
            self._seen.waits.append(time.monotonic() - self._greeted)
        for action in self.member.handle(event, time.monotonic()):
            self._act(action)

    def _act(self, action: Any) -> None:
        if isinstance(action, Send):
            if isinstance(action.message, m.Hello):
                self._greeted = time.monotonic()
            self._link.say(action.message)
        elif isinstance(action, Hang):
            self._link.hang()
        elif isinstance(action, me.Dial):
            self._link.dial(action.delay)
        elif isinstance(action, me.DoPrepare):
            self._seen.mark("prepared")
            self._handle(me.Able(action.shared.epoch))
        elif isinstance(action, me.DoStage):
            self._seen.mark("started")
            self._handle(me.Done(action.epoch, action.stage))
        elif isinstance(action, me.DoServe):
            self._seen.mark("serving")
        elif isinstance(action, me.DoStop):
            self._seen.mark("stopped")
            self._handle(me.Gone())
        elif isinstance(action, me.Exit):
            self._seen.failures.append(f"rank {self.rank} exits with {action.code}: {action.text}")
        else:
            assert isinstance(action, (Note, me.SetDeadline)), action


class Seen:
    """What happened to how many members since the last reset, when first and when last."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.marks: dict[str, list[float]] = {}
        self.waits: list[float] = []
        self.failures: list[str] = []

    def mark(self, what: str) -> None:
        now = time.monotonic()
        found = self.marks.setdefault(what, [0, now, now])
        found[0] += 1
        found[2] = now

    def failed(self, why: str) -> None:
        self.failures.append(why)

    def told(self) -> dict[str, Any]:
        return {"marks": self.marks, "waits": self.waits, "failures": self.failures[-5:]}


async def churn(members: list[One], share: float, seconds: float) -> None:
    """Each second ``share`` of the members reconnect, spread over it."""
    until = time.monotonic() + seconds
    pause = 1 / max(1.0, share * len(members))
    turn = random.sample(members, len(members))
    at = time.monotonic()
    while time.monotonic() < until:
        turn.append(turn.pop(0))
        turn[-1].reconnect()
        at += pause
        await asyncio.sleep(max(0.0, at - time.monotonic()))


async def main(spec: dict[str, Any]) -> None:
    seen = Seen()
    members = {rank: One(rank, spec, seen) for rank in spec["ranks"]}
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    churning: asyncio.Task[None] | None = None
    print(json.dumps({"ready": True}), flush=True)
    while line := await reader.readline():
        order = json.loads(line)
        word = order["do"]
        if word == "dial":
            for rank in order["ranks"]:
                members[rank].dial()
        elif word == "fail":
            members[order["rank"]].fail()
        elif word == "churn":
            churning = loop.create_task(churn([members[r] for r in order["ranks"]], order["share"], order["seconds"]))
        elif word == "reset":
            seen.reset()
        assert churning is None or not churning.done() or churning.exception() is None, churning
        print(json.dumps(seen.told()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
