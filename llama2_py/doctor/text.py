"""Another program's text: can rounding alone have made it, or is there a mistake?

    walk = walk_along(model, prompt, steps, Greedy(), Written(path, data, b"Once upon a time", tokenizer))
    walk.end, walk.parted    # how it ended, and the steps that have another token than the exact program's

The text is walked along the exact model, step by step. As long as it goes on with the token that the exact program
chooses, nothing needs to be measured. If it goes on with another, its distance from being chosen is measured in units
of float32 noise (noise.py): up to LIMIT it is a tie, which rounding can turn; beyond, a mistake. A text does not say
how it was cut into tokens: where tokens that tie go on with it, and what follows one of them is impossible, the other
is tried.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Protocol

import llama2
from llama2_py.doctor.choices import Chosen, Drawn, Likeliest, Unit
from llama2_py.doctor.compare import noise_of, progress
from llama2_py.doctor.limits import ONE_LOGIT
from llama2_py.doctor.noise import NoisyRun
from llama2_py.doctor.operations import row_lengths
from llama2_py.doctor.precision import PRECISIONS
from llama2_py.doctor.written import Place, Source

# A step's choice can be another one by rounding up to so many times the noise. (What samplers in float32 and in double
# chose from noisy logits, 32,000 equal ones among them, was at most 1.34 times the noise from the coin, in 350 draws.)
LIMIT = ONE_LOGIT
ATTEMPTS = 16  # walks along a text at most, where several cuts into tokens tie
CHUNK = 16     # positions that the noisy run takes together
DRAWN = 16     # draws of noise x positions at least: one draw's luck weighs more the fewer they are
# If more of the choices are ties, the noise is as wide as the tokens' intervals, and the text says nothing
MOST_TIES = 0.5


class End(Enum):
    """How a walk ended."""
    WHOLE = "all steps were walked"
    ENDED = "the text ends where the model ends it"
    SHORT = "the text ends before the model ends it"
    LONG = "the text goes on after the last step"
    OVERRUN = "the text goes on where the model ends it"
    IMPOSSIBLE = "a step has a token that rounding cannot have chosen"
    UNSURE = "the text can be cut into tokens in too many ways"


class Verdict(Enum):
    """What a walk says of the text."""
    CONSISTENT = "rounding alone may have made it"
    WRONG = "rounding cannot have made it"
    UNTOLD = "it cannot be told"


@dataclass
class Parted:
    """A step at which the text has another token than the exact program chooses."""
    pos: int
    ours: int
    theirs: int | None  # None: no token goes on with the text
    ratio: float        # in units of noise


@dataclass
class Fork:
    """A step at which the text goes on with a token that may tie with the one that was taken."""
    pos: int
    tokens: list[int]  # up to that step, and that token
    chosen: Chosen


class Program(Protocol):
    """How the other program chooses."""

    def begin(self) -> None:
        """A walk begins."""

    def choose(self, logits: Sequence[float]) -> Chosen:
        """The next step's choice."""


class Greedy:
    """A program that takes the likeliest token."""

    def begin(self) -> None:
        """Nothing to do."""

    def choose(self, logits: Sequence[float]) -> Likeliest:
        """The next step's choice."""
        return Likeliest(logits)


class Sampling:
    """A program that samples with a seed, so that its coins are known."""

    def __init__(self, temperature: float, p_value: float, seed: int, rng: str, skipped: int = 0):
        """skipped: coins that are taken before the first choice."""
        self.options = temperature, p_value, seed, rng
        self.skipped = skipped

    def begin(self) -> None:
        """The first coin again."""
        self.sampler = llama2.Sampler(*self.options)
        for _ in range(self.skipped):
            self.sampler.coin()

    def choose(self, logits: Sequence[float]) -> Drawn:
        """The next step's choice."""
        return Drawn(logits, self.sampler)


# ----------------------------------------------------------------------------
# The noisy run beside it


class Noise:
    """The noisy run beside a walk. It is made only where something is to be measured."""

    def __init__(self, model):
        self.model = model
        self.lengths = row_lengths(model.shard.classifier)
        self.noisy: NoisyRun | None = None
        self.draws = 0               # how often it is made at once
        self.tokens: list[int] = []  # those that it was given
        self.last = Unit(inf, self.lengths)  # of the last of them

    def unit(self, tokens: Sequence[int], pos: int, right: Sequence[float]) -> Unit:
        """What the logits of a position are measured in. tokens: up to it at least; right: its exact logits."""
        known = list(tokens[:pos + 1])
        if known == self.tokens:
            return self.last
        draws = max(1, DRAWN // len(known))
        if known[:len(self.tokens)] != self.tokens or self.noisy is None or self.draws > 2 * draws:
            self.noisy = NoisyRun(self.model.shard, PRECISIONS["float32"], [self.model.config.seq_len] * draws)
            self.draws = draws
            self.tokens = []
        for first in range(len(self.tokens), len(known), CHUNK):
            chunk = known[first:first + CHUNK]
            results = self.noisy.steps(chunk, first, False, len(chunk) - 1)
        self.tokens = known
        noisy = [logits for _, logits in results[-1]]
        self.last = Unit(noise_of(noisy, right), self.lengths)
        return self.last


# ----------------------------------------------------------------------------
# Walking


def walk_along(model, prompt: Sequence[int], steps: int, program: Program, source: Source) -> "Walk":
    """Walk along a text or tokens -> the walk. If a step is impossible, walk again behind each tie that the text
    leaves open; if it is impossible behind all of them, the walk that came farthest tells most.

    model: in exact arithmetic; steps: positions at most.
    """
    noise = Noise(model)
    farthest = walk = Walk(model, prompt, steps, program, source, noise, [])
    tried: set[tuple[int, ...]] = set()
    for _ in range(ATTEMPTS):
        if walk.end is not End.IMPOSSIBLE:
            return walk
        fork = open_fork(walk, tried)
        if fork is None:
            return farthest
        walk = Walk(model, prompt, steps, program, source, noise, fork)
        if walk.walked > farthest.walked:
            farthest = walk
    farthest.end = End.UNSURE
    return farthest


def open_fork(walk: "Walk", tried: set[tuple[int, ...]]) -> list[int] | None:
    """The tokens up to the last tie that was not tried, and its other token; None: there is none."""
    for fork in reversed(walk.forks):
        key = tuple(fork.tokens)
        if key in tried:
            continue
        tried.add(key)
        unit = walk.noise.unit(fork.tokens, fork.pos, fork.chosen.logits)
        if fork.chosen.ratio(fork.tokens[-1], unit) <= LIMIT:
            return fork.tokens
    return None


class Walk:
    """One walk along a text or tokens."""

    def __init__(self, model, prompt: Sequence[int], steps: int, program: Program, source: Source, noise: Noise,
                 forced: Sequence[int]):
        """forced: the tokens at its beginning, as far as they are known."""
        self.prompt = prompt
        self.steps = steps
        self.source = source
        self.noise = noise
        self.ends = model.checkpoint.ends
        self.tokens = list(prompt)       # the text's, as far as it was walked
        self.place: Place = source.start
        self.parted: list[Parted] = []
        self.forks: list[Fork] = []
        self.end: End | None = None
        self.closest: tuple[float, int, Chosen] | None = None  # the least decided choice: gap, position, choice
        program.begin()
        pos = len(prompt) - 1
        (row,) = model.forward_chunk(self.tokens, 0, skip=pos)
        self.last = program.choose(row)  # what the exact program chooses
        if pos >= steps:
            self.end = End.WHOLE
        while self.end is None:
            progress("walking along the text", pos, steps)
            self._step(pos, self.last, forced[pos + 1] if pos + 1 < len(forced) else None)
            if self.end is None:
                pos += 1
                row = model.forward(self.tokens[-1], pos)
                self.last = program.choose(row)
        progress("walking along the text", steps, steps)

    @property
    def walked(self) -> int:
        """How many choices were judged, and are right or ties."""
        return len(self.tokens) - len(self.prompt)

    @property
    def verdict(self) -> Verdict:
        """Can rounding alone have made the text?"""
        if self.end in (End.IMPOSSIBLE, End.OVERRUN):
            return Verdict.WRONG
        if self.end is End.UNSURE or len(self.parted) >= MOST_TIES * self.walked:
            return Verdict.UNTOLD
        return Verdict.CONSISTENT

    def _step(self, pos: int, chosen: Chosen, forced: int | None) -> None:
        """Judge a step, and go on behind its token, unless the walk ends here."""
        options = self.source.options(self.place)
        if self.source.is_done(self.place) and options.get(chosen.token, self.place) == self.place:
            self.end = End.ENDED if chosen.token in self.ends else End.SHORT
            return
        possible = {token: place for token, place in options.items()
                    if token not in self.ends or self.source.is_done(place)}
        if forced is not None:
            token = forced
        elif chosen.token in possible:
            token = chosen.token
        else:
            token = self._nearest(pos, chosen, possible)
        if token == chosen.token or self._is_tie(pos, chosen, token):
            self._take(pos, chosen, token, possible)
        elif chosen.token in self.ends:
            self.end = End.OVERRUN
        else:
            self.end = End.IMPOSSIBLE

    def _nearest(self, pos, chosen, possible):
        """Of the tokens with which the text goes on, the one that is nearest to being chosen; None: there is none."""
        if not possible:
            return None
        unit = self.noise.unit(self.tokens, pos, chosen.logits)
        ratios = {token: chosen.ratio(token, unit) for token in possible}
        nearest = min(ratios, key=ratios.__getitem__)
        for token, ratio in ratios.items():
            if ratio <= LIMIT and token != nearest:
                self.forks.append(Fork(pos, [*self.tokens, token], chosen))
        return nearest

    def _is_tie(self, pos, chosen, token):
        """Note a token that is not the chosen one: can rounding have made it that?"""
        ratio = inf
        if token is not None:
            ratio = chosen.ratio(token, self.noise.unit(self.tokens, pos, chosen.logits))
        self.parted.append(Parted(pos, chosen.token, token, ratio))
        return ratio <= LIMIT

    def _take(self, pos, chosen, token, possible):
        """Go on behind a token."""
        for other in possible:
            if token == chosen.token != other and chosen.is_near(other):
                self.forks.append(Fork(pos, [*self.tokens, other], chosen))
        gap = chosen.gap(chosen.second())
        if self.closest is None or gap < self.closest[0]:
            self.closest = gap, pos, chosen
        self.tokens.append(token)
        self.place = possible[token]
        if token in self.ends:
            self.end = End.ENDED
        elif pos + 1 == self.steps:
            self.end = End.WHOLE if self.source.is_done(self.place) else End.LONG
