"""What came first is kept, and the better of two explanations is told."""

from __future__ import annotations

import random

from launcher.group import messages as m
from launcher.group.budget import STEADY
from launcher.group.config import CoordinatorConfig, MemberConfig, StageLimit
from launcher.group.coordinator import Coordinator, GroupPhase
from launcher.group.events import Closed, Send, SendAll, Tick
from launcher.group.history import History
from launcher.group.member import Connected, Gone, Member
from launcher.model import Cause, CauseKind, Epoch


def cause(kind: CauseKind, rank: int = 1, text: str = "x") -> Cause:
    return Cause(kind, rank, text)


class TestFirst:
    def test_it_stays(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.EXITED), 1.0, None)
        history.record(Epoch(2, "l"), cause(CauseKind.OOM, 3), 2.0, 20.0)
        assert history.first == cause(CauseKind.EXITED)
        assert history.first_epoch == Epoch(1, "l")

    def test_a_drain_is_no_failure(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.DRAIN), 1.0, 20.0)
        assert history.first is None
        assert len(history.ended) == 1

    def test_steady_service_begins_a_new_run(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.EXITED), 1.0, None)
        history.record(Epoch(2, "l"), cause(CauseKind.OOM), 2.0, STEADY)
        assert history.first == cause(CauseKind.OOM)

    def test_twenty_endings_are_kept(self) -> None:
        history = History()
        for n in range(30):
            history.record(Epoch(n, "l"), cause(CauseKind.EXITED), float(n), None)
        assert [e.epoch.n for e in history.ended] == list(range(10, 30))


class TestInheritance:
    def test_a_member_remembers(self) -> None:
        history = History()
        history.inherit(None)
        history.inherit(cause(CauseKind.EXITED, 3))
        history.inherit(cause(CauseKind.OOM, 4))
        assert history.first == cause(CauseKind.EXITED, 3)

    def test_an_older_failure_wins_over_the_end_of_the_leader(self) -> None:
        for order in ((CauseKind.LEADER, CauseKind.EXITED), (CauseKind.EXITED, CauseKind.LEADER)):
            history = History()
            for kind in order:
                history.inherit(cause(kind))
            assert history.first == cause(CauseKind.EXITED)

    def test_how_the_leader_was_killed_says_more_than_that_it_is_gone(self) -> None:
        died = cause(CauseKind.AGENT, 0)
        for death_first in (True, False):
            history = History()
            if death_first:
                history.inherit_death(died)
            history.inherit(cause(CauseKind.LEADER, 0))
            if not death_first:
                history.inherit_death(died)
            assert history.first == died
            history.inherit(cause(CauseKind.EXITED, 2))
            assert history.first == cause(CauseKind.EXITED, 2), "and an older failure more than either"


class TestRefine:
    def test_who_was_lost_says_how(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), Cause(CauseKind.LOST, 2, "closed", tail=("last words",)), 1.0, 5.0)
        assert history.refine(2, cause(CauseKind.AGENT, 2))
        assert history.first == Cause(CauseKind.AGENT, 2, "x", tail=("last words",))
        assert history.ended[-1].cause == history.first

    def test_of_another_launcher_of_the_rank_it_explains_nothing(self) -> None:
        """A pod that took the rank since, or a launcher that never was in the epoch, was killed for its own reasons."""
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.LOST, 2), 1.0, 5.0, "first")
        assert not history.refine(2, cause(CauseKind.AGENT, 2), ("second",))
        assert history.refine(2, cause(CauseKind.AGENT, 2), ("zeroth", "first"))

    def test_who_came_back_had_not_died(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.LOST, 2), 1.0, 5.0, "first")
        history.came_back("another")
        history.came_back("first")
        assert not history.refine(2, cause(CauseKind.AGENT, 2), ("first",))

    def test_only_of_its_own_rank_and_only_of_a_loss(self) -> None:
        history = History()
        assert not history.refine(2, cause(CauseKind.AGENT, 2))
        history.record(Epoch(1, "l"), cause(CauseKind.LOST, 2), 1.0, 5.0)
        assert not history.refine(1, cause(CauseKind.AGENT, 1))
        history.record(Epoch(2, "l"), cause(CauseKind.EXITED, 2), 2.0, 5.0)
        assert not history.refine(2, cause(CauseKind.AGENT, 2))
        assert history.first == cause(CauseKind.LOST, 2)

    def test_a_later_loss_does_not_touch_the_first(self) -> None:
        history = History()
        history.record(Epoch(1, "l"), cause(CauseKind.EXITED, 3), 1.0, None)
        history.record(Epoch(2, "l"), cause(CauseKind.LOST, 2), 2.0, None)
        assert not history.refine(2, cause(CauseKind.AGENT, 2))
        assert history.first == cause(CauseKind.EXITED, 3)
        assert history.ended[-1].cause == cause(CauseKind.AGENT, 2)


class TestTheLeaderTakes:
    """What the coordinator makes of two words about one end, and of one."""

    def setup_method(self) -> None:
        self.actions: list[object] = []

    def told(self, *words: tuple[int, Cause, float, float]) -> Cause:
        """``words``: rank, cause, when the leader hears of it, and the age that comes with it."""
        leader = Coordinator(CoordinatorConfig("g", 3, "leader"), 0.0, random.Random(1))
        leader.stages = (StageLimit("one"),)
        for rank in range(3):
            leader.handle(m.Hello("g", rank, 3, f"i{rank}", "10.0.0.1"), rank, 0.0)
            leader.handle(m.Ping(1, leader.seats[rank].contact.mark(0.0)), rank, 0.0)
        assert leader.epoch is not None
        for rank in range(3):
            leader.handle(m.Prepared(leader.epoch), rank, 0.1)
        for rank, cause, at, age in sorted(words, key=lambda w: w[2]):
            leader.handle(m.Failed(leader.epoch, cause, age), rank, at)
        for rank in range(3):
            self.actions += leader.handle(m.Stopped(leader.epoch), rank, 4.0)
        assert leader.history.first is not None
        self.leader = leader
        return leader.history.first

    def test_a_kill_that_is_told_late_but_came_in_time(self) -> None:
        """A process that gives back a GPU's memory for 2 s before its end is seen."""
        exited = Cause(CauseKind.EXITED, 0, "ended with 1", code=1)
        killed = Cause(CauseKind.SIGNALLED, 2, "was killed", code=137)
        assert self.told((0, exited, 1.0, 0.0), (2, killed, 3.0, 1.9)).rank == 2
        assert self.told((0, exited, 1.0, 0.0), (2, killed, 3.0, 0.0)).rank == 0, "that came long after"

    def test_of_two_codes_the_earlier_whoever_is_heard_first(self) -> None:
        first = Cause(CauseKind.EXITED, 1, "ended with 41", "e", 41, ("its words",))
        second = Cause(CauseKind.EXITED, 0, "ended with 1", "e", 1, ("lost the rank after",))
        for words in ([(0, second, 1.0, 0.0), (1, first, 1.2, 0.25)], [(1, first, 1.0, 0.0), (0, second, 1.0, 0.0)]):
            told = self.told(*words)
            assert (told.rank, told.code, told.tail) == (1, 41, ("its words",))
            assert told.because == ("rank 0: ended with 1, saying: lost the rank after",)

    def test_a_worker_of_which_nobody_knows_how_it_ended(self) -> None:
        unknown = Cause(CauseKind.DIED, 2, "process 7 of the engine exited unexpectedly")
        neighbour = Cause(CauseKind.DIED, 0, "process 9 of the engine exited unexpectedly")
        assert self.told((0, neighbour, 1.0, 0.0), (2, unknown, 1.1, 0.15)).rank == 2
        assert self.told((2, unknown, 1.0, 0.0), (0, neighbour, 1.1, 0.05)).rank == 2

    def test_what_it_tells_has_a_time_and_a_next_step(self) -> None:
        self.told((1, Cause(CauseKind.EXITED, 1, "ended with 1", code=1), 1.0, 0.0))
        news = [a.message for a in self.actions if isinstance(a, SendAll) and isinstance(a.message, m.News)][-1]
        assert (news.phase, news.first_epoch, news.first_age) == ("backoff", 1, 0.0)
        assert news.text == "the engine is started again after a pause, 1 of 10 restarts used"
        assert news.wait is not None and 0 < news.wait <= 0.5

    def test_whose_lease_it_waits_out(self) -> None:
        """Rank 2 is lost while its engine may run, and another pod has its rank."""
        self.told((1, Cause(CauseKind.EXITED, 1, "ended with 1", code=1), 1.0, 0.0))
        leader = self.leader
        for rank in range(3):
            leader.handle(m.Ping(2, leader.seats[rank].contact.mark(6.0)), rank, 6.0)
        leader.handle(Tick(), 0, 6.1)
        assert leader.phase is GroupPhase.PREPARING and leader.epoch is not None
        leader.handle(Closed("reset"), 2, 6.2)
        for rank in range(2):
            leader.handle(m.Stopped(leader.epoch), rank, 6.3)
        leader.handle(m.Hello("g", 2, 3, "another", "10.0.0.9"), 7, 6.4)
        out = []
        for rank in range(3):
            seat = leader.seats[rank]
            out += leader.handle(m.Ping(3, seat.contact.mark(8.0)), seat.conn, 8.0)
        news = [a.message for a in out if isinstance(a, SendAll) and isinstance(a.message, m.News)][-1]
        assert leader.shown_phase == "fenced"
        assert news.text == "waiting for the lease of rank 2 to run out: something may still run there"
        assert news.wait is not None and 5 < news.wait < 10


class TestAMemberTellsTheNextLeader:
    def test_when_the_first_failure_was(self) -> None:
        member = Member(MemberConfig("g", 1, 3, "pod-1", "i1"), 0.0)
        member.handle(Gone(), 0.0)
        member.handle(Connected(), 0.0)
        member.handle(m.Accepted("leader", 1), 0.0)
        failure = cause(CauseKind.OOM)
        member.handle(m.News("running", first_failure=failure, first_epoch=4, first_age=100.0), 10.0)
        assert member.first_at == -90.0
        member.handle(m.News("draining", first_failure=failure, first_epoch=4, first_age=101.5), 11.0)
        assert member.first_at == -90.0, "the same failure stays where it was"
        member.handle(Closed("reset"), 20.0)
        (said,) = [a.message for a in member.handle(Connected(), 30.0) if isinstance(a, Send)]
        assert (said.first_failure, said.first_epoch, said.first_age) == (failure, 4, 120.0)
        leader = Coordinator(CoordinatorConfig("g", 3, "next"), 500.0, random.Random(1))
        (accepted, *_) = [a.message for a in leader.handle(said, 1, 500.0) if isinstance(a, Send)]
        leader.handle(m.Ping(1, accepted.mark), 1, 500.0)
        assert (leader.history.first, leader.history.first_n, leader.history.first_at) == (failure, 4, 380.0)
