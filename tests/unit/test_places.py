"""Who may stay when there is not room for all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.common.places import Places

ADDRESSES = st.sampled_from("abcdef")


@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.lists(st.tuples(ADDRESSES, st.booleans()), max_size=60),
    st.sets(ADDRESSES, max_size=2),
)
def test_a_newcomer_always_finds_a_place(
    most: int, most_of_one: int, visits: list[tuple[str, bool]], known: set[str]
) -> None:
    places: Places[int] = Places(most, most_of_one, known.__contains__)
    there: dict[int, str] = {}  # by age
    for number, (address, leaves) in enumerate(visits):
        counts = {a: list(there.values()).count(a) for a in set(there.values())}
        victim = places.enter(number, address)
        if victim is not None:
            lost = there.pop(victim)
            assert victim == min(who for who, a in [*there.items(), (victim, lost)] if a == lost), (
                "the oldest of its own"
            )
            full = counts.get(address, 0) >= places.most_of_one
            assert lost == address if full else sum(counts.values()) == most
            strangers = {a: n for a, n in counts.items() if a not in known}
            if not full and strangers:
                assert strangers.get(lost) == max(strangers.values()), "of the address that holds most"
        there[number] = address
        assert number in places
        if leaves and there:
            gone = next(iter(there))
            del there[gone]
            assert places.leave(gone) and not places.leave(gone)
        assert dict.fromkeys(there) == dict.fromkeys(places)
        assert places.oldest() == next(iter(there), None)
        assert len(places) <= most
        assert all(list(there.values()).count(a) <= most_of_one for a in there.values())


def test_one_address_can_push_out_only_itself() -> None:
    places: Places[str] = Places(10, 10)
    for name in ("member 1", "member 2"):
        assert places.enter(name, name) is None
    for number in range(1000):
        assert places.enter(f"{number}", "stranger") not in ("member 1", "member 2")


def test_members_are_spared_while_there_are_strangers() -> None:
    places: Places[int] = Places(4, 4, lambda address: address == "member")
    for number in range(3):
        places.enter(number, "member")
    places.enter(3, "x")
    assert [places.enter(number, "x") for number in range(4, 8)] == [3, 4, 5, 6]
    assert places.expel() == 7
    assert places.expel() == 0, "nobody else is left"


def test_the_newest_of_the_address_that_holds_the_fewest_is_served_first() -> None:
    places: Places[str] = Places(10, 10)
    assert places.most_deserving() is None
    for name in ("crowd 1", "crowd 2", "probe 1", "crowd 3", "probe 2", "other 1"):
        places.enter(name, name.split()[0])
    order = []
    while (one := places.most_deserving()) is not None:
        order.append(one)
        places.leave(one)
    assert order == ["other 1", "probe 2", "probe 1", "crowd 3", "crowd 2", "crowd 1"]
