"""The search for the mistakes that explain another program's wrong logits.

    by_logits(shard, tokens, steps, tell)    # ["RoPE turns halves, (i, i + hs/2), not neighbours, (2i, 2i + 1)"]

Each known mistake is made in a whole model, step by step. It is named only if its logits come within NEAR times the
noise of float32, and NEARER times nearer than those of the right model. Of a rounding to few bits (a cache in float16)
the first wrong step tells: later, float32's own noise turns some of those roundings.
"""
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import fsum, inf
from operator import mul, sub
from random import Random

from llama2_py.doctor.constants import CONSTANTS, Constant, named, nearby
from llama2_py.doctor.mistakes import FORMATS, Kind, both, known
from llama2_py.doctor.operations import Model, Operations, rms
from llama2_py.doctor.singles import SINGLE, Seen, single_logits

# A mistake's logits: within so many times the noise, and so many times nearer than the right model's. (Both were chosen
# with some 400 wrong programs at hand, of which none was named falsely.)
NEAR, NEARER = 10, 30
# If they are within rounding themselves, less is enough: what is called wrong is at 10 and more.
ROUNDING, NEARER_BY_ROUNDING = 2, 15
# A step whose logits are so far off is wrong. (Those of correct programs stay below 5.6; the verdict's own limit.)
WRONG_STEP = 12
# A mistake is dropped at the first step that is so far from it.
HOPELESS = 12 * NEAR
# So many times nearer, a mistake that is still not within NEAR may have enlarged the noise itself: that is measured.
MAY_ENLARGE = 1000
# A measured constant comes nearer than a mistake has to.
NEAR_CONSTANT = 3
# A rounding that explains the first wrong step must bring the later ones at least this near, by the right model's
# distance.
LATER_STEPS = 0.8
# Mistakes explain alike that are within this factor of the nearest, or of the noise.
ALIKE = 1.5
# A format of few bits: its results are off by half the distance of neighbours, and a little of float32's own.
A_LITTLE_MORE = 1.01

# How many steps are taken: at first, to sift; and for what is judged by the steps after the first wrong one
SIFT, SIFT_AFTER = 12, 6
LATER, LATER_AFTER = 16, 8
CONSTANT_AFTER = 3
# Newton's method on a constant: steps at most, and where to stop; by how much it is moved to see a slope
ROUNDS, CLOSE_ENOUGH = 8, 1e-9
MOVE_BY, MOVE_BY_PART = 1e-6, 1e-4
# Two mistakes are tried together if a position costs no more multiplications: some thousand steps take seconds then
SMALL_MODEL = 10**6
FAR = 1e30  # the distance of a model that overflows
FAILS = (KeyError, ValueError, OverflowError, ZeroDivisionError)  # what a wrong model can end in


def by_logits(shard, tokens: Sequence[int], steps: Sequence[Seen], tell: Callable) -> list[str]:
    """The names of the mistakes that explain logits which are not the right model's: one, or two made together. Those
    that fit alike are one name, "A; or B". tell(done, of): called from time to time."""
    simple = rounded_logits(steps) + out_of_step(steps) + single_logits(shard, tokens, steps)
    if simple:
        return ["; or ".join(simple)]
    search = Search(shard, tokens, steps, tell)
    mistakes = [mistake for mistake in known(shard.config, search.first) if mistake.in_logits]
    alike = search.best(mistakes) or search.constants()
    return ["; or ".join(alike)] if alike else pairs(search, mistakes)


# ----------------------------------------------------------------------------
# What needs no model


def bits_of(rows: Iterable[Sequence[float]]) -> str | None:
    """The format of few bits that all numbers are in."""
    rows = list(rows)
    for form in FORMATS:
        if all(tuple(form.round(row)) == tuple(row) for row in rows):
            return form.name
    return None


def rounded_logits(steps: Sequence[Seen]) -> list[str]:
    """Logits that are the right ones, rounded to few bits."""
    name = bits_of([step.theirs for step in steps])
    form = next((form for form in FORMATS if form.name == name), None)
    if form is None:
        return []
    distance = A_LITTLE_MORE * form.distance
    for step in steps:
        for a, b in zip(step.theirs, step.right, strict=True):
            if abs(a - b) > distance * abs(b) + SINGLE * step.noise:
                return []
    return [f"logits are {name}"]


def out_of_step(steps: Sequence[Seen]) -> list[str]:
    """Rows of logits that are one step early or late."""
    names = []
    for by, name in (1, "early: row t has the logits of step t + 1"), (-1, "late: row t has those of step t - 1"):
        offs = [step.off(steps[i + by].right) for i, step in enumerate(steps) if 0 <= i + by < len(steps)]
        if offs and rms(offs) <= NEAR:
            names.append(f"rows are one step {name}")
    return names


# ----------------------------------------------------------------------------
# One mistake in a whole model


@dataclass
class Fit:
    """How well a mistake explains the logits."""
    noise: float   # how far it is from them, in units of their noise: root mean square over all steps
    nearer: float  # by how many times nearer it is than the right model

    @property
    def explains(self) -> bool:
        """Is this rounding, and was it none?"""
        nearer = NEARER_BY_ROUNDING if self.noise <= ROUNDING else NEARER
        return self.noise <= NEAR and self.nearer >= nearer


class Search:
    """The search for a mistake that explains logits."""

    def __init__(self, shard, tokens: Sequence[int], steps: Sequence[Seen], tell: Callable):
        self.shard = shard
        self.tokens = tokens
        self.steps = steps
        self.tell = tell
        self.before = [step.off(step.right) for step in steps]  # how far the right model is, by step
        self.first = next((pos for pos, off in enumerate(self.before) if off > WRONG_STEP), 0)

    def model(self, mistake: type[Operations]) -> Model:
        """A model with a mistake."""
        return Model(mistake, self.shard, self.tokens)

    # -- how well a mistake fits

    def fit(self, mistake: Kind, whole: bool = True) -> Fit | None:
        """Make the mistake, step by step; None as soon as it cannot be the one. whole: take all steps, or else the
        first ones after the first wrong one."""
        if mistake.rough:
            return self.fit_first_wrong(mistake)
        count = len(self.steps) if whole else min(len(self.steps), max(SIFT, self.first + SIFT_AFTER))
        offs = self.offs(mistake, count)
        if offs is None or len(offs) <= self.first or len(offs) < min(2, count):
            return None
        noise = rms(offs)
        nearer = rms(self.before[:len(offs)]) / (noise or 1 / FAR)
        if noise > NEAR and nearer >= MAY_ENLARGE:
            noise /= self.amplification(mistake, len(offs))
        return Fit(noise, nearer)

    def fit_first_wrong(self, mistake: Kind) -> Fit | None:
        """The same of a rounding, which the first wrong step alone judges: those before are right with it."""
        offs = self.offs(mistake, self.first + 1)
        if offs is None or len(offs) <= self.first or any(off > WRONG_STEP for off in offs[:-1]):
            return None
        return Fit(offs[-1], self.before[self.first] / (offs[-1] or 1 / FAR))

    def offs(self, mistake: Kind, count: int) -> list[float] | None:
        """How far the first steps are from a mistake's, as many as it can compute; None as soon as one is hopeless."""
        model = self.model(mistake)
        offs: list[float] = []
        for step in self.steps[:count]:
            try:
                off = step.off(model.logits(len(offs)))
            except FAILS:
                break
            if not off <= HOPELESS:  # nan, too
                return None
            offs.append(off)
        return offs

    def amplification(self, mistake: Kind, count: int) -> float:
        """The noise of a model with the mistake, in units of the right one's."""
        random = Random(1)

        def moved(y, sigma):
            return [v + s * random.gauss(0, 1) for v, s in zip(y, sigma, strict=True)]

        noisy = Model(mistake, self.shard, self.tokens, moved)
        quiet = self.model(mistake)
        ratios = [rms(list(map(sub, noisy.logits(pos), quiet.logits(pos)))) / step.noise
                  for pos, step in enumerate(self.steps[:count])]
        return max(1.0, rms(ratios))

    def distance(self, mistake: Kind) -> float:
        """How far a mistake is from the logits of the later steps, too: root mean square, in units of their noise."""
        model = self.model(mistake)
        steps = self.steps[:max(LATER, self.first + LATER_AFTER)]
        return rms([step.off(model.logits(pos)) for pos, step in enumerate(steps)])

    # -- which fit best

    def best(self, mistakes: Sequence[Kind]) -> list[str]:
        """The names of the mistakes that explain the logits alike, the nearest first."""
        found = []
        for i, mistake in enumerate(mistakes):
            self.tell(i, len(mistakes))
            sifted = self.fit(mistake, whole=False)
            if sifted and sifted.explains:
                fit = sifted if mistake.rough else self.fit(mistake)
                if fit and fit.explains:
                    found.append((fit.noise, mistake))
        if any(mistake.rough for _, mistake in found):
            found = self.held_against_later_steps(found)
        found.sort(key=by_noise)
        limit = ALIKE * max(1.0, found[0][0]) if found else 0.0
        return list(dict.fromkeys(self.described(mistake) for noise, mistake in found if noise <= limit))

    def held_against_later_steps(self, found: list[tuple[float, Kind]]) -> list[tuple[float, Kind]]:
        """Roundings that explain the first wrong step, measured by the later ones, and the other mistakes."""
        right = rms(self.before[:max(LATER, self.first + LATER_AFTER)])
        kept = []
        for noise, mistake in found:
            if not mistake.rough:
                kept.append((noise, mistake))
                continue
            distance = self.distance(mistake)
            if distance < LATER_STEPS * right:
                kept.append((distance, mistake))
        return kept

    def described(self, mistake: Kind) -> str:
        """Its name, and how sure it is."""
        if mistake.rough and len(self.steps) > self.first + 1:
            return f"{mistake.name} (seen at step {self.first}; later, float32's noise turns some of these roundings)"
        return mistake.name

    # -- constants

    def constants(self) -> list[str]:
        """The names of constants that explain the logits."""
        return [name for name in map(self.constant, CONSTANTS) if name is not None]

    def constant(self, constant: Constant) -> str | None:
        """The name of a constant, if a value of it explains the logits."""
        start = min(constant.grid, key=lambda value: self.tried(constant, value)[0])
        value = self.refined(constant, start)
        for candidate in nearby(value):
            for whole in False, True:
                fit = self.fit(constant.mistake(candidate, self.shard.config), whole)
                if not (fit and fit.explains and fit.noise < NEAR_CONSTANT):
                    break
            else:
                return named(constant, candidate, value, self.shard.config)
        return None

    def tried(self, constant: Constant, value: float) -> tuple[float, list[Sequence[float]]]:
        """How far the first steps are with a value of a constant, root mean square; and their logits."""
        model = self.model(constant.mistake(value, self.shard.config))
        steps = self.steps[:self.first + CONSTANT_AFTER]
        try:
            rows = [model.logits(pos) for pos in range(len(steps))]
        except FAILS:
            return FAR, []
        return rms([step.off(row) for step, row in zip(steps, rows, strict=True)]), rows

    def refined(self, constant: Constant, value: float) -> float:
        """The value of a constant for which the logits are nearest: Newton's method (Gauss-Newton) on its value, or on
        its logarithm."""
        for _ in range(ROUNDS):
            distance, rows = self.tried(constant, value)
            move = MOVE_BY if constant.additive else MOVE_BY_PART * value
            _, moved = self.tried(constant, value + move)
            if not rows or not moved:
                return value
            change = move * self.newton(rows, moved)
            if constant.additive:
                new = max(value + change, 0.0)
            else:
                new = value * math.exp(max(-1.0, min(1.0, change / value)))
            if self.tried(constant, new)[0] >= distance:
                return value
            if abs(new - value) < CLOSE_ENOUGH * (1 if constant.additive else value):
                return new
            value = new
        return value

    def newton(self, rows: Sequence[Sequence[float]], moved: Sequence[Sequence[float]]) -> float:
        """How many times the move from rows to moved brings the logits nearest, by least squares."""
        slope, rest = [], []
        for step, row, other in zip(self.steps, rows, moved, strict=False):  # rows are of the first steps
            slope += [(b - a) / step.noise for a, b in zip(row, other, strict=True)]
            rest += [(t - a) / step.noise for a, t in zip(row, step.theirs, strict=True)]
        return fsum(map(mul, slope, rest)) / (fsum(map(mul, slope, slope)) or inf)


def by_noise(found: tuple[float, Kind]) -> float:
    """What found mistakes are sorted by."""
    return found[0]


# ----------------------------------------------------------------------------
# Two mistakes together


def pairs(search: Search, mistakes: Sequence[Kind]) -> list[str]:
    """Two mistakes made together, in a model so small that some thousand steps are soon made."""
    c = search.shard.config
    if c.n_layers * c.dim * (2 * c.dim + 3 * c.hidden_dim) + c.vocab_size * c.dim > SMALL_MODEL:
        return []
    tried = possible_pairs(search, [mistake for mistake in mistakes if not (mistake.rough or mistake.alone)])
    for i, (a, b) in enumerate(tried):
        search.tell(i, len(tried))
        if a.replaces & b.replaces:
            continue
        fit = search.fit(both(a, b))
        if fit and fit.explains:
            return [a.name, b.name]
    return []


def possible_pairs(search: Search, mistakes: Sequence[Kind]) -> list[tuple[Kind, Kind]]:
    """The pairs that the first step allows: RoPE and attention leave it as it is, so what explains it alone is one of
    the two, and the other is among those that leave it."""
    step = search.steps[0]
    right = search.model(Operations).logits(0)
    explain, keep, change = [], [], []  # what they do to the first step
    for mistake in mistakes:
        try:
            logits = search.model(mistake).logits(0)
        except FAILS:
            continue
        if rms(list(map(sub, logits, right))) <= NEAR * step.noise:
            keep.append(mistake)
        elif step.off(logits) <= NEAR:
            explain.append(mistake)
        else:
            change.append(mistake)
    if search.before[0] <= NEAR:
        return list(combinations(keep, 2))
    if explain:
        return [(a, b) for a in explain for b in keep]
    return list(combinations(change, 2))
