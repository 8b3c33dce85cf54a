"""How a step's token is chosen, and how far another one is from being chosen, in units of float32 noise.

    chosen = Likeliest(logits)                  # greedy; Drawn(logits, sampler): by a coin
    chosen.token                                # what the exact program takes
    chosen.ratio(17, Unit(noise, lengths))      # by how many times the noise token 17 misses
"""
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from math import exp, fsum, hypot, inf, sqrt
from operator import neg
from typing import NamedTuple, Protocol

from llama2_py.doctor.errors import U
from llama2_py.engine.arithmetic import running_sums

# A token may be a tie with the chosen one only if it is as near as this: the difference of their logits, by the largest
# logit; or the coin's distance from its interval. (Noise was at most 2^-17 of a logit, and 32 times it is a tie.)
NEAR = 2.0**-10


@dataclass
class Unit:
    """In what a step's logits are measured."""
    noise: float              # root mean square of the noise of its logits
    lengths: Sequence[float]  # of the classifier's rows, by which logits share in it (operations.row_lengths)

    def of(self, token: int) -> float:
        """The noise of one logit."""
        return self.noise * self.lengths[token]


class Chosen(Protocol):
    """A step's choice."""
    logits: Sequence[float]
    token: int

    def gap(self, token: int) -> float:
        """How far another token is from being chosen."""

    def is_near(self, token: int) -> bool:
        """Might noise make it another token?"""

    def ratio(self, token: int, unit: Unit) -> float:
        """How many times the noise would make it another token."""

    def second(self) -> int:
        """The token that is nearest to being chosen in its place."""


# ----------------------------------------------------------------------------
# Greedy


class Likeliest:
    """The choice of a greedy run: the first of the largest logits."""

    def __init__(self, logits: Sequence[float]):
        """logits: (vocab)"""
        self.logits = logits
        self.highest = max(logits)
        self.near = NEAR * max(self.highest, -min(logits))
        self.token = logits.index(self.highest)

    def gap(self, token: int) -> float:
        """By how much a token's logit is below the largest."""
        return self.highest - self.logits[token]

    def is_near(self, token: int) -> bool:
        """Might noise make it the largest?"""
        return self.gap(token) <= self.near

    def ratio(self, token: int, unit: Unit) -> float:
        """That gap, in the noise of the two logits."""
        noise = hypot(unit.of(token), unit.of(self.token)) / sqrt(2)
        return self.gap(token) / noise

    def second(self) -> int:
        """The likeliest of the other tokens."""
        others = (token for token in range(len(self.logits)) if token != self.token)
        return max(others, key=self.logits.__getitem__, default=self.token)


# ----------------------------------------------------------------------------
# By a coin

# A running sum of n numbers errs by chance by this times sqrt(n), in units of u (noise.Noisy.total has a little less)
BY_CHANCE = 0.3
# Where to look for a ratio, and how finely: powers of 2
LEAST, MOST, HALVINGS = -10.0, 60.0, 40


class Range(NamedTuple):
    """Where a number may be."""
    low: float
    high: float


class Drawn:
    """The choice of a run that samples: the token in whose interval the coin falls.

    The intervals are the tokens' probabilities, one after the other: in the order of the vocabulary or, with top-p,
    from the likeliest on, up to a sum beyond p, by which the coin is multiplied. Noise moves them in three ways:

        the logits err, so that the sum S before a token moves by S (1 - S) times the errors' difference, and tokens
            that are almost equally likely change places
        running sums err, by chance, and all in one direction where the numbers are almost equal: by as much as the sums
            here are off the true ones, some 30 tokens' intervals for 32,000 equal numbers
        the sum of all exponentials errs in the same way

    At so many times the noise a token is possible if an interval that it may have then holds a place where the coin may
    be then.
    """

    def __init__(self, logits: Sequence[float], sampler):
        """logits: (vocab). Takes a coin from the sampler."""
        self.logits = logits
        self.temperature = sampler.temperature
        self.p = sampler.p_value
        self.token = sampler.sample(logits)
        _, total, probabilities, coin = sampler.drawn
        self.probabilities = array("d", probabilities)
        self.coin = coin
        self.place = coin * total  # of the coin among the running sums

    @property
    def is_sorted(self) -> bool:
        """Do the intervals stand from the likeliest on (top-p)?"""
        return 0 < self.p < 1

    @cached_property
    def order(self) -> Sequence[int]:
        """All tokens in the order of their intervals."""
        tokens = range(len(self.probabilities))
        if not self.is_sorted:
            return tokens
        return array("i", sorted(tokens, key=self.probabilities.__getitem__, reverse=True))

    @cached_property
    def ranks(self) -> Sequence[int]:
        """The place of each token in that order."""
        ranks = array("i", bytes(4 * len(self.order)))
        for rank, token in enumerate(self.order):
            ranks[token] = rank
        return ranks

    @cached_property
    def falling(self) -> Sequence[float]:
        """The negative probabilities in that order, which rise if they are sorted."""
        return array("d", map(neg, map(self.probabilities.__getitem__, self.order)))

    @cached_property
    def sums(self) -> Sequence[float]:
        """The sums of the first 0, 1, 2, ... probabilities in that order."""
        return array("d", chain([0.0], accumulate(map(neg, self.falling))))

    @cached_property
    def drifts(self) -> Sequence[float]:
        """How far the same sums are off, if each is rounded."""
        rounded = chain([0.0], running_sums(map(neg, self.falling)))
        return array("d", [abs(a - b) for a, b in zip(rounded, self.sums, strict=True)])

    @cached_property
    def drift_of_all(self) -> float:
        """How far the sum of all exponentials is off, if each partial sum is rounded: relative."""
        largest = max(self.probabilities)
        exponentials = [v / largest for v in self.probabilities]
        total = fsum(exponentials)
        *_, rounded = running_sums(exponentials)
        return abs(rounded - total) / total

    def gap(self, token: int) -> float:
        """The coin's distance from a token's interval."""
        rank = self.ranks[token]
        return max(0.0, self.sums[rank] - self.place, self.place - self.sums[rank + 1])

    def is_near(self, token: int) -> bool:
        """Might noise move its interval to the coin?"""
        return self.gap(token) <= NEAR

    def second(self) -> int:
        """The token whose interval is nearest to the coin, but for the chosen one's."""
        rank = self.ranks[self.token]
        neighbours = [self.order[at] for at in (rank - 1, rank + 1) if 0 <= at < len(self.order)]
        return min(neighbours, key=self.gap, default=self.token)

    def ratio(self, token: int, unit: Unit) -> float:
        """At how many times the noise a token is possible."""
        largest = max(map(abs, self.logits)) / self.temperature
        noise = max(unit.noise, unit.of(token)) / self.temperature
        sigma = hypot(noise, U * largest, U)  # of a probability, relative
        if not self._is_possible(token, sigma, 2**MOST):
            return inf
        low, high = LEAST, MOST
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self._is_possible(token, sigma, 2**middle):
                high = middle
            else:
                low = middle
        return 2**high

    def _is_possible(self, token, sigma, times):
        """Can a token be chosen at so many times the noise? sigma: the relative error of a probability."""
        before = self._before(token, sigma, times)
        rank = self.ranks[token]
        low = self.sums[before.low] - self._error(before.low, sigma, times)
        end = before.high + 1
        high = self.sums[end] + self._error(end, sigma, times)
        total = self._total(sigma, times)
        if self.is_sorted and low > self.p + self._error(rank, sigma, times):
            return False  # those before it are enough for p
        return low <= self.coin * total.high and self.coin * total.low <= high

    def _before(self, token, sigma, times):
        """How many tokens stand before it, at least and at most."""
        rank = self.ranks[token]
        if not self.is_sorted:
            return Range(rank, rank)
        spread = exp(min(2 * times * sigma, 700.0))  # of the ratio of two probabilities
        negative = self.falling[rank]
        first = bisect_left(self.falling, negative * spread)
        last = bisect_right(self.falling, negative / spread)
        return Range(min(first, rank), max(last - 1, rank))

    def _total(self, sigma, times):
        """By what the coin is multiplied."""
        if not self.is_sorted:
            return Range(1.0, 1.0)
        last = len(self.sums) - 1
        cut = min(bisect_right(self.sums, self.p), last)
        error = self._error(cut, sigma, times)
        first = max(1, min(bisect_right(self.sums, self.p - error), last))
        final = min(bisect_right(self.sums, self.p + error), last)
        return Range(self.sums[first] - error, self.sums[final] + error)

    def _error(self, count, sigma, times):
        """How far the sum of the first so many probabilities may be off."""
        total = min(self.sums[count], 1.0)
        by_logits = sqrt(2) * sigma * total * (1 - total)
        by_chance = U * (1 + BY_CHANCE * sqrt(count)) * total
        return times * (by_logits + by_chance + self.drifts[count] + self.drift_of_all * total)
