"""How long a search may take, and what it did not get to.

    budget = Budget(20)
    for mistake, fit in budget.trials(mistakes, "known mistakes", fit): ..
    budget.untried    # ["90 of 188 known mistakes"]
"""
from collections.abc import Callable, Iterator, Sequence
from math import inf
from time import monotonic
from typing import Any


class Spent(Exception):
    """The time is over."""


class Budget:
    """Seconds for a search. tell(done, of): called from time to time."""

    def __init__(self, seconds: float = inf, tell: Callable[[int, int], None] | None = None):
        self.seconds = seconds
        self.end = monotonic() + seconds
        self.tell = tell
        self.untried: list[str] = []

    def check(self) -> None:
        """Raise Spent if no time is left."""
        if monotonic() > self.end:
            raise Spent

    def trials(self, things: Sequence[Any], what: str, trial: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
        """(thing, trial(thing)) of each that has a result, as long as there is time. A trial may call check. What was
        not tried, or not to its end, is kept in mind."""
        for i, thing in enumerate(things):
            if self.tell:
                self.tell(i, len(things))
            try:
                self.check()
                result = trial(thing)
            except Spent:
                self.untried.append(f"{len(things) - i} of {len(things)} {what}")
                return
            if result is not None:
                yield thing, result
