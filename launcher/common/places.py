"""Which connections stay when there are too many. Pure bookkeeping: nothing is closed here.

A new connection is always admitted. When there is no place left, another is displaced: the oldest of the address that
holds the most. So one address displaces only its own while others hold less. Known addresses, those of members, are
spared while there is any other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Places(Generic[T]):
    """At most ``most`` at a time, and at most ``most_of_one`` of one address."""

    def __init__(self, most: int, most_of_one: int, known: Callable[[str], bool] = lambda address: False) -> None:
        self.most = max(1, most)
        self.most_of_one = max(1, min(most_of_one, self.most))
        self._known = known
        self._address: dict[T, str] = {}  # in the order of arrival
        self._of: dict[str, dict[T, None]] = {}
        self._by_count: dict[int, dict[str, None]] = {}  # how many an address holds -> such addresses

    def __len__(self) -> int:
        return len(self._address)

    def __iter__(self) -> Iterator[T]:
        return iter(self._address)

    def __contains__(self, who: object) -> bool:
        return who in self._address

    def enter(self, who: T, address: str) -> T | None:
        """``who`` has come. Returns who has lost its place for it, if anybody."""
        victim: T | None = None
        held = self._of.get(address, {})
        if len(held) >= self.most_of_one:
            victim = next(iter(held))
        elif len(self._address) >= self.most:
            victim = self._least_deserving()
        if victim is not None:
            self.leave(victim)
        self._address[who] = address
        mine = self._of.setdefault(address, {})
        mine[who] = None
        self._counted(address, len(mine) - 1, len(mine))
        return victim

    def leave(self, who: T) -> bool:
        """``who`` needs its place no more. False: it had none."""
        address = self._address.pop(who, None)
        if address is None:
            return False
        mine = self._of[address]
        del mine[who]
        self._counted(address, len(mine) + 1, len(mine))
        if not mine:
            del self._of[address]
        return True

    def oldest(self) -> T | None:
        """Who has been here longest."""
        return next(iter(self._address), None)

    def most_deserving(self) -> T | None:
        """The newest of the address that holds the fewest, the latest such address."""
        if not self._by_count:
            return None
        address = next(reversed(self._by_count[min(self._by_count)]))
        return next(reversed(self._of[address]))

    def expel(self) -> T | None:
        """Make one leave, as :meth:`enter` would for want of a place. None: there is none."""
        victim = self._least_deserving()
        if victim is not None:
            self.leave(victim)
        return victim

    def _least_deserving(self) -> T | None:
        for count in sorted(self._by_count, reverse=True):  # few: their sum is at most `most`
            for address in self._by_count[count]:
                if not self._known(address):
                    return next(iter(self._of[address]))
        return self.oldest()

    def _counted(self, address: str, before: int, now: int) -> None:
        if before:
            same = self._by_count[before]
            del same[address]
            if not same:
                del self._by_count[before]
        if now:
            self._by_count.setdefault(now, {})[address] = None
