"""The lease is arithmetic: who counts from when, and what follows."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.group.lease import Contact, Pings, Terms

TEN = Terms(10.0)


def test_the_terms_of_ten_seconds() -> None:
    assert (TEN.beat, TEN.kill_after, TEN.lost_after, TEN.fence) == (0.5, 8.0, 6.75, 10.2)


@settings(deadline=None)
@given(st.floats(min_value=1.0, max_value=600.0))
def test_the_order_of_things(lease: float) -> None:
    """Lost before killed before dead before counted on, for every lease, with 1 % of drift each way."""
    terms = Terms(lease)
    fast, slow = 1.01, 0.99
    dead = terms.kill_after / slow + lease * 0.2  # the kill itself is timed by nobody
    assert dead < terms.fence / fast, "a slow clock there, a fast one here"
    for speed in (slow, 1.0, fast):  # a new leader's clock; a member last spoke to the old one so long ago
        for ago in (0.0, 0.3 * lease, 0.9 * lease, 1.009 * lease):
            assert dead < ago + (terms.fence - fast * ago) / speed, "an age by a fast clock, the rest by any"
    verdict = (terms.lost_after + terms.beat / 2) / slow  # after the oldest contact, at the next tick
    first_guard = terms.kill_after / fast - 1.5 * terms.beat / slow  # a good ping may have been sent so long before it
    assert verdict < first_guard, "the leader speaks first"


class TestPings:
    def test_without_an_ack_there_is_no_lease(self) -> None:
        pings = Pings(TEN)
        pings.send(100.0)
        assert pings.deadline is None
        assert not pings.valid(100.0)

    def test_a_lease_runs_from_the_sending_of_the_ping(self) -> None:
        pings = Pings(TEN)
        first = pings.send(100.0)
        pings.send(100.5)
        assert pings.acked(first, 1)
        assert pings.deadline == 108.0
        assert pings.valid(107.9)
        assert not pings.valid(108.0)

    def test_an_ack_grows_the_lease_or_changes_nothing(self) -> None:
        pings = Pings(TEN)
        one, two = pings.send(1.0), pings.send(2.0)
        assert pings.acked(two, 7)
        assert not pings.acked(one, 5), "an older good"
        assert not pings.acked(two, 7), "the same again"
        assert not pings.acked(0, 8), "none good"
        assert (pings.deadline, pings.echo) == (10.0, 8)

    def test_what_was_never_sent_is_never_granted(self) -> None:
        pings = Pings(TEN)
        pings.send(5.0)
        pings.acked(10**9, 1)
        assert pings.deadline == 13.0
        pings.send(6.0)
        assert not pings.acked(0, 2)
        assert pings.deadline == 13.0

    def test_silence_of_an_hour_costs_no_memory(self) -> None:
        pings = Pings(TEN)
        for n in range(10_000):
            pings.send(float(n))
        assert len(pings._sent) <= 256
        assert pings.acked(10_000, 1), "the newest are the ones that are kept"
        assert pings.since == 9_999.0


class TestContact:
    def test_contact_is_when_the_echoed_mark_was_sent(self) -> None:
        contact = Contact(100.0)
        assert (contact.at, contact.proven) == (100.0, None)
        first, _ = contact.mark(101.0), contact.mark(102.0)
        contact.heard(1, 0, 103.0)
        assert contact.proven is None, "a ping without an echo proves one way only"
        contact.heard(2, first, 104.0)
        assert contact.at == 101.0
        assert contact.silent_for(108.0) == 7.0

    def test_good_is_what_came_before_the_limit(self) -> None:
        contact = Contact(0.0)
        for seq, at in ((1, 10.0), (2, 11.0), (3, 12.0)):
            contact.heard(seq, 0, at)
        assert contact.good(11.5) == 2
        assert contact.granted == 11.0
        assert contact.good(11.5) == 2, "asked again, the answer stays"
        assert contact.owed
        assert contact.good(12.0) == 3
        assert not contact.owed

    def test_a_repeated_ping_does_not_count_twice(self) -> None:
        contact = Contact(0.0)
        contact.heard(4, 0, 10.0)
        contact.heard(4, 0, 20.0)
        contact.heard(3, 0, 21.0)
        assert contact.good(15.0) == 4
        assert contact.good(99.0) == 4

    def test_fresh_is_proven_within_half_a_lease(self) -> None:
        contact = Contact(0.0)
        assert not contact.fresh(0.0, TEN)
        contact.heard(1, contact.mark(1.0), 2.0)
        assert contact.fresh(5.9, TEN)
        assert not contact.fresh(6.0, TEN)

    def test_a_frozen_limit_of_an_hour_costs_no_memory(self) -> None:
        contact = Contact(0.0)
        for n in range(1, 10_000):
            contact.mark(float(n))
            contact.heard(n, 0, float(n))
        assert len(contact._marks) <= 256
        assert len(contact._pings) <= 256


steps = st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 3.0), st.booleans()), min_size=1, max_size=120)


@settings(deadline=None)
@given(steps)
def test_no_engine_outlives_the_oldest_contact_by_more_than_a_lease(script: list[tuple[int, float, bool]]) -> None:
    """Three members, one clock, words lost at random: every deadline stays within F + kill_after."""
    now = 0.0
    members = [Pings(TEN) for _ in range(3)]
    contacts = [Contact(0.0) for _ in range(3)]
    for who, passed, arrives in script:
        now += passed
        pings, contact = members[who], contacts[who]
        seq = pings.send(now)
        if arrives:
            contact.heard(seq, pings.echo, now)
            oldest = min(c.at for c in contacts)
            pings.acked(contact.good(oldest), contact.mark(now))
        for member in members:
            if member.since is not None:
                assert member.since <= min(c.at for c in contacts)
