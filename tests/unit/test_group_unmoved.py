"""What a peer says that is refused, or that has not answered on its connection, changes nothing on the leader."""

from __future__ import annotations

import random
from typing import Any

import pytest

from launcher.group import coordinator as c
from launcher.group import member as mb
from launcher.group import messages as m
from launcher.group.config import CoordinatorConfig, MemberConfig, StageLimit
from launcher.group.events import Closed, Hang, Send, Tick
from launcher.group.last_words import HEARING_SECONDS
from launcher.group.roster import LOCAL
from launcher.model import Cause, CauseKind, Epoch

CAUSE = Cause(CauseKind.EXITED, 1, "it ended with 1", "engine", 1)
FORMER = Epoch(41, "former")


class Leader:
    """A coordinator, the marks that it has said on each connection, and all that it has said."""

    def __init__(self, size: int = 2, **more: Any) -> None:
        self.it = c.Coordinator(CoordinatorConfig("g", size, "leader", **more), 0.0, random.Random(1))
        self.it.stages = (StageLimit("serve"),)
        self.said: list[tuple[int, Any]] = []
        self._marks: dict[int, int] = {}
        self._seq = 0

    def hear(self, event: Any, conn: int, now: float = 0.0) -> list[Any]:
        actions: list[Any] = list(self.it.handle(event, conn, now))
        for action in actions:
            for to in (action.conn,) if isinstance(action, Send) else getattr(action, "conns", ()):
                self.said.append((to, action.message))
                self._marks[to] = getattr(action.message, "mark", self._marks.get(to, 0))
        return actions

    def ping(self, conn: int, now: float = 0.0) -> None:
        self._seq += 1
        self.hear(m.Ping(self._seq, self._marks.get(conn, 0)), conn, now)

    def join(self, rank: int, conn: int | None = None, now: float = 0.0, **more: Any) -> None:
        conn = rank if conn is None else conn
        self.hear(hello(rank, **more), conn, now)
        self.ping(conn, now)

    def told(self, conn: int, kind: type[Any]) -> list[Any]:
        return [message for to, message in self.said if to == conn and isinstance(message, kind)]

    @property
    def knows(self) -> tuple[Any, ...]:
        it = self.it
        seats = {rank: (s.conn, s.hello.incarnation) for rank, s in it.seats.items()}
        fences = (dict(it.fences.lost), dict(it.fences.foreign))
        return it.highest_n, fences, it.history.first, tuple(it.budget._charges), it.phase, seats

    def end(self, cause: Cause = CAUSE, conn: int = 1) -> None:
        """The epoch fails, and all stop."""
        assert self.it.epoch is not None
        epoch = self.it.epoch
        self.hear(m.Failed(epoch, cause), conn)
        for seat in list(self.it.seats.values()):
            self.hear(m.Stopped(epoch), seat.conn)


def hello(rank: int, incarnation: str = "", **more: Any) -> m.Hello:
    return m.Hello("g", rank, more.pop("size", 2), incarnation or f"i{rank}", f"10.0.0.{rank}", **more)


POISON: dict[str, Any] = {
    "last_epoch": Epoch(m.MOST_EPOCHS, "nobody"),
    "last_members": ("x", "y"),
    "charges": (0.0,) * 100,
    "first_failure": CAUSE,
    "died": CAUSE,
    "replaces": ("i0", "i1"),
}


@pytest.mark.parametrize(
    "refused",
    [
        hello(0, "again", **POISON),
        hello(7, "far", **POISON),
        hello(1, "old", protocol=9, **POISON),
        m.Hello("other", 1, 2, "stray", "10.9.9.9", **POISON),
    ],
    ids=["rank 0", "out of range", "another protocol", "another group"],
)
def test_a_hello_that_is_refused_changes_nothing(refused: m.Hello) -> None:
    leader = Leader()
    for rank in (0, 1):
        leader.join(rank)
    before = leader.knows
    assert any(isinstance(a, Hang) for a in leader.hear(refused, 9))
    assert leader.knows == before
    leader.end()
    leader.hear(Tick(), LOCAL, 100.0)
    assert leader.it.highest_n == 1


def test_a_claim_to_a_rank_whose_holder_answers_changes_nothing() -> None:
    leader = Leader()
    for rank in (0, 1):
        leader.join(rank)
    before = leader.knows
    leader.hear(hello(1, "rival", **POISON), 9)
    (challenge,) = leader.told(1, m.Challenge)
    leader.ping(9)
    leader.hear(m.Answer(challenge.nonce), 1)
    assert [r.why for r in leader.told(9, m.Rejected)] == ["duplicate"]
    assert leader.knows == before


def test_what_a_hello_remembers_counts_when_its_connection_has_answered() -> None:
    leader = Leader(3)
    told: dict[str, Any] = {"last_epoch": FORMER, "last_members": ("a", "b"), "charges": (5.0,), "first_failure": CAUSE}
    leader.hear(hello(1, size=3, **told), 1, 100.0)
    assert leader.knows[:4] == (0, ({}, {}), None, ())
    leader.ping(1, 103.0)
    assert leader.it.highest_n == 41
    assert leader.it.fences.foreign == {FORMER: (frozenset({"a", "b"}), 110.2)}, "from when it came"
    assert leader.it.history.first == CAUSE
    assert leader.it.budget.ages(103.0) == (8.0,)


def test_a_hello_that_is_refused_again_and_again_keeps_no_fence_up() -> None:
    leader = Leader()
    leader.join(0)
    leader.join(1, last_epoch=FORMER, last_members=("a", "b"))
    for beat in range(1, 60):
        now = beat / 4
        for conn in (0, 1):
            leader.ping(conn, now)
        if beat % 16 == 0:
            leader.hear(hello(0, f"liar{beat}", last_epoch=Epoch(beat, "none"), last_members=("z",)), 10 + beat, now)
        leader.hear(Tick(), LOCAL, now)
    assert leader.it.phase is c.GroupPhase.PREPARING
    assert leader.it.epoch == Epoch(42, "leader")


@pytest.mark.parametrize("n", [m.MOST_EPOCHS + 1, 2**53, 10**400, -1])
def test_the_number_of_an_epoch_is_bounded_where_it_is_taken(n: int) -> None:
    text = m.encode(hello(1, last_epoch=Epoch(5, "former"))).replace("[5,", f"[{n},")
    with pytest.raises(m.Malformed):
        m.decode(text, m.MEMBER_SAYS)


def test_after_the_highest_number_everybody_still_reads_what_the_leader_says() -> None:
    leader = Leader()
    leader.join(0)
    leader.join(1, last_epoch=Epoch(m.MOST_EPOCHS, "former"), last_members=("i0", "i1"))
    (prepare,) = leader.told(1, m.Prepare)
    assert m.decode(m.encode(prepare), m.LEADER_SAYS) == prepare
    assert prepare.epoch == Epoch(1, "leader"), "epochs are compared whole, so a number may come again"


class TestAMemberThatCannotReadItsLeader:
    WHY = "prepare.epoch is not an epoch"

    @pytest.mark.parametrize("begun", [False, True])
    def test_the_group_gives_up_in_words(self, begun: bool) -> None:
        leader = Leader(2 if begun else 3)
        for rank in (0, 1):
            leader.join(rank, size=leader.it.config.size)
        assert (leader.it.phase is c.GroupPhase.PREPARING) is begun
        leader.hear(m.Unread(self.WHY), 1)
        leader.hear(Closed(), 1)
        if begun:
            assert leader.it.epoch is not None
            leader.hear(m.Stopped(leader.it.epoch), 0)
        (abort,) = leader.told(0, m.Abort)
        assert abort.code == 78
        assert "rank 1 cannot read what this leader says" in abort.text
        assert self.WHY in abort.text

    def test_one_that_has_not_answered_ends_nothing(self) -> None:
        leader = Leader(3)
        leader.join(0, size=3)
        leader.hear(hello(1, size=3), 1)
        leader.hear(m.Unread(self.WHY), 1)
        leader.hear(m.Unread(self.WHY), 99)
        assert leader.it.phase is c.GroupPhase.WAITING

    def test_it_says_so_and_looks_the_leader_up_anew(self) -> None:
        member = mb.Member(MemberConfig("g", 1, 2, "n", "inc"), 0.0)
        for event in (mb.Gone(), mb.Connected(), m.Accepted("L", 1)):
            member.handle(event, 0.0)
        acts: list[Any] = member.handle(mb.Unreadable(self.WHY), 1.0)
        said, hang, dial = (a for a in acts if type(a) in (Send, Hang, mb.Dial))
        assert said.message == m.Unread(self.WHY)
        assert (type(hang), type(dial)) == (Hang, mb.Dial)
        assert member.state is mb.State.SEEKING
        assert self.WHY in member.refusal


# ------------------------------------------------------------------------------------------------ the last words


def test_members_are_told_who_may_still_run_something() -> None:
    leader = Leader(3)
    for rank in range(3):
        leader.join(rank, size=3)
    epoch = leader.it.epoch
    leader.hear(Closed("reset"), 2)
    for conn in (0, 1):
        leader.hear(m.Stopped(epoch), conn)  # type: ignore[arg-type]
    news = leader.told(1, m.News)[-1]
    assert (news.over, news.lost) == (epoch, ("i2",))
    leader.join(2, 5, 1.0, size=3)
    assert leader.told(1, m.News)[-1].lost == (), "it is back, and clean"


def test_a_member_tells_the_next_leader_of_nobody_who_has_stopped() -> None:
    member = mb.Member(MemberConfig("g", 1, 3, "n", "i1"), 0.0)
    epoch = Epoch(3, "L")
    for event in (mb.Gone(), mb.Connected(), m.Accepted("L", 1)):
        member.handle(event, 0.0)
    member.handle(m.Prepare(epoch, ("i0", "i1", "i2"), ("a", "b", "c")), 0.0)
    member.handle(m.Stop(epoch, CAUSE, 1.0), 0.0)
    member.handle(mb.Gone(), 0.0)
    member.handle(m.News("gathering", over=Epoch(2, "L"), lost=()), 0.0)
    assert member.epoch_members == ("i0", "i1", "i2"), "that was another epoch"
    member.handle(m.News("gathering", over=epoch, lost=("i2",)), 0.0)
    member.handle(Closed(), 0.0)
    (said,) = [a.message for a in member.handle(mb.Connected(), 1.0) if isinstance(a, Send)]
    assert (said.last_epoch, said.last_members) == (epoch, ("i2",))


def test_a_leader_told_to_go_while_it_prepares_waits_for_the_others() -> None:
    member = mb.Member(MemberConfig("g", 0, 2, "n", "i0"), 0.0)
    for event in (mb.Gone(), mb.Connected(), m.Accepted("L", 1)):
        member.handle(event, 0.0)
    member.handle(m.Prepare(Epoch(1, "L"), ("i0", "i1"), ("a", "b")), 0.0)
    assert not any(isinstance(a, mb.Exit) for a in member.handle(mb.Terminate(30.0), 0.0))


class TestAGroupThatHasGivenUp:
    def gave_up(self, linger: float) -> Leader:
        """Of three ranks one is away when the budget is spent."""
        leader = Leader(3, max_restarts=0, linger=linger)
        for rank in range(3):
            leader.join(rank, size=3)
        epoch = leader.it.epoch
        assert epoch is not None
        for rank in range(3):
            leader.hear(m.Prepared(epoch), rank)
        leader.hear(Closed("reset"), 2)
        for rank in (0, 1):
            leader.hear(m.Stopped(epoch), rank)
        assert leader.it.phase is c.GroupPhase.ABORTED
        return leader

    def test_its_leader_stays_until_the_others_have_hung_up(self) -> None:
        leader = self.gave_up(linger=0.0)
        assert leader.it.lingers(0.0)
        leader.hear(Closed(""), 1)
        assert not leader.it.lingers(0.0)

    def test_but_not_for_ever(self) -> None:
        assert not self.gave_up(linger=0.0).it.lingers(HEARING_SECONDS)
        assert not self.gave_up(linger=30.0).it.lingers(30.0)

    @pytest.mark.parametrize("closes", ["", "reset"])
    def test_one_that_comes_late_is_told(self, closes: str) -> None:
        leader = self.gave_up(linger=30.0)
        leader.hear(Closed(""), 1)
        assert leader.it.lingers(10.0), "rank 2 has not heard it"
        leader.hear(hello(2, size=3), 7, 10.0)
        assert leader.told(7, m.Abort) == leader.told(1, m.Abort)
        assert leader.it.lingers(10.0), "until it hangs up"
        leader.hear(Closed(closes), 7, 10.1)
        assert leader.it.lingers(10.1) is bool(closes), "a connection that broke may have taken the words along"

    def test_one_that_lost_the_words_comes_again(self) -> None:
        leader = self.gave_up(linger=30.0)
        leader.hear(hello(1, size=3, attempt=2), 8)  # its old connection has not been missed yet
        assert len(leader.told(8, m.Abort)) == 1
        leader.hear(Closed("reset"), 1)
        leader.hear(Closed(""), 8)
        leader.hear(hello(2, size=3), 9)
        leader.hear(Closed(""), 9)
        assert not leader.it.lingers(1.0)


class TestALeaderThatIsGoneForGood:
    @pytest.mark.parametrize(("limit", "exits"), [(60.0, [69]), (None, [])], ids=["explicit", "StatefulSet"])
    @pytest.mark.parametrize("before", [False, True], ids=["epoch here", "epoch before us"])
    def test_it_is_waited_for_as_long_as_for_the_first_gathering(
        self, limit: float | None, exits: list[int], before: bool
    ) -> None:
        last = (Epoch(1, "L"), ("i0", "i1")) if before else None
        member = mb.Member(MemberConfig("g", 1, 2, "n", "inc", join_timeout=60.0, rejoin_timeout=limit, last=last), 0.0)
        actions: list[Any] = member.handle(mb.Gone(), 0.0)
        if not before:
            epoch = Epoch(1, "L")
            for event in (
                *(mb.Connected(), m.Accepted("L", 1), m.Prepare(epoch, ("i0", "inc"), ("a", "b"))),
                *(Closed("reset"), mb.Gone()),
            ):
                actions += member.handle(event, 100.0)
        since = 0.0 if before else 100.0
        for tick in range(1, 59):
            actions += member.handle(Tick(), since + tick)
        assert not any(isinstance(a, mb.Exit) for a in actions)
        for tick in range(59, 1000):
            actions += member.handle(Tick(), since + tick)
        assert [a.code for a in actions if isinstance(a, mb.Exit)] == exits

    def test_a_leader_that_came_back_is_not_given_up(self) -> None:
        last = (Epoch(1, "L"), ("i0", "i1"))
        member = mb.Member(MemberConfig("g", 1, 2, "n", "inc", join_timeout=60.0, rejoin_timeout=60.0, last=last), 0.0)
        actions: list[Any] = []
        for event in (mb.Gone(), mb.Connected(), m.Accepted("M", 1)):
            actions += member.handle(event, 0.0)
        for now in range(1, 300):
            actions += member.handle(m.Ack(0, now), float(now))
            actions += member.handle(Tick(), float(now))
        assert not any(isinstance(a, mb.Exit) for a in actions)
