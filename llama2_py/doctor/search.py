"""The search for the mistakes that explain another program's wrong logits.

    by_logits(shard, tokens, steps, PRECISIONS["float32"], Budget(20))    # ["RoPE turns halves, (i, i + hs/2), .."]

Each known mistake is made in a whole model, step by step, until a step shows that it cannot be the one. It is named
only if its logits come within NEAR times the noise, and NEARER times nearer than those of the right model. Of a
rounding to few bits (a cache in float16) the first wrong step tells: later, float32's own noise turns some of those
roundings. Constants are tried first, then formulas, then weights in other formats, one layer alone, two at once. To
sift, only some rows of a large classifier are computed.
"""
import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import fsum, inf
from operator import mul, sub
from random import Random
from typing import Any, NamedTuple

from llama2_py.doctor.budget import Budget, Spent
from llama2_py.doctor.constants import CONSTANTS, FREQUENT, Constant, named, nearby
from llama2_py.doctor.limits import ONE_STEP
from llama2_py.doctor.mistakes.known import known
from llama2_py.doctor.mistakes.mistake import Kind, both, in_layer
from llama2_py.doctor.operations import Model, Operations, rms
from llama2_py.doctor.precision import Precision
from llama2_py.doctor.simple import bits_of, constant_logits, out_of_step, rounded_logits, scaled_logits
from llama2_py.doctor.singles import Seen, single_logits
from llama2_py.engine.checkpoint import Config
from llama2_py.engine.graph import NORMS
from llama2_py.engine.rows import Rows


class Limits(NamedTuple):
    """When a mistake explains the logits, in units of the noise."""
    near: float                # within so many times the noise,
    nearer: float              # and so many times nearer than the right model's;
    rounding: float            # if they are within rounding themselves,
    nearer_by_rounding: float  # less is enough
    hopeless: float            # a mistake is dropped at the first step that is so far from it
    constant: float            # a measured constant comes nearer than a mistake has to


# In float32 these were chosen with some 400 wrong programs at hand, of which none was named falsely. What is called
# wrong there is at 10 and more. In a format of 16 bits the noise is thousands of times larger, and hides that: of 83
# wrong programs 71 were named, none falsely; two of those, and two of the embedded model, came within 2 to 4 times the
# noise, and 30 to 70 times nearer than the right model.
OF_FLOAT32 = Limits(near=10, nearer=30, rounding=2, nearer_by_rounding=15, hopeless=120, constant=3)
OF_FEW_BITS = Limits(near=4, nearer=30, rounding=2, nearer_by_rounding=3, hopeless=24, constant=2)


def limits_of(precision: Precision) -> Limits:
    """Those of a program that computes in a precision."""
    return OF_FEW_BITS if precision.form else OF_FLOAT32


# So many times nearer, a mistake that is still not near may have enlarged the noise itself: that is measured.
MAY_ENLARGE = 1000
# A rounding that explains the first wrong step must bring the later ones at least this near, by the right model's
# distance.
LATER_STEPS = 0.8
# Mistakes explain alike that are within this factor of the nearest, or of the noise.
ALIKE = 1.5

# How many steps are taken: at first, to sift; and for what is judged by the steps after the first wrong one
SIFT, SIFT_AFTER = 12, 6
LATER, LATER_AFTER = 16, 8
SAMPLE = 512  # rows of the classifier, by which a large one is sifted
# Newton's method on a constant: steps at most, and where to stop; by how much it is moved to see a slope
ROUNDS, CLOSE_ENOUGH, FASTER = 8, 1e-9, 2
MOVE_BY, MOVE_BY_PART = 1e-6, 1e-4
# A model is small if a position costs no more multiplications. Only there two mistakes are tried together, and more
# steps are looked at.
SMALL_MODEL = 10**6
SEARCHED, SEARCHED_IF_LARGE, SEARCHED_AFTER = 32, 12, 12  # steps, at least; and so many after the first wrong one
OWN_TOKENS = 12   # steps whose likeliest tokens are tried as inputs
FAR = 1e30  # the distance of a model that overflows
FAILS = (KeyError, ValueError, OverflowError, ZeroDivisionError)  # what a wrong model can end in
AT_THE_FIRST_STEP_ALONE_RIGHT = {"q", "k", "weights"}  # operations that change nothing there, mostly


def by_logits(shard, tokens: Sequence[int], steps: Sequence[Seen], precision: Precision, budget: Budget) -> list[str]:
    """The names of the mistakes that explain logits which are not the right model's: one, or two made together. Those
    that fit alike are one name, "A; or B"."""
    steps = steps[:steps_needed(shard.config, steps)]
    formats = [] if precision.form else rounded_logits(steps)
    near = limits_of(precision).near
    simple = constant_logits(steps) or right_for_other_tokens(shard, tokens, steps, budget)
    simple += formats + out_of_step(steps, near) + scaled_logits(steps, limits_of(precision).rounding)
    simple += single_logits(shard, tokens, steps)
    if simple:
        return ["; or ".join(simple)]
    if not precision.form and (bits := bits_of([step.theirs for step in steps])):
        budget.untried.append(f"any known mistake: numbers in {bits} hide them (--precision {bits})")
        return []
    search = Search(shard, tokens, steps, precision, budget)
    mistakes = [mistake for mistake in known(shard.config, search.first)
                if mistake.in_logits and not (precision.form and mistake.is_format)]
    mistakes.sort(key=search.turn)
    alike = search.constants(mistakes) or search.best(mistakes, "known mistakes") or search.in_one_layer(mistakes)
    return ["; or ".join(alike)] if alike else pairs(search, mistakes)


def right_for_other_tokens(shard, tokens: Sequence[int], steps: Sequence[Seen], budget: Budget) -> list[str]:
    """Whether the other program's logits are right for those tokens that are its own likeliest ones."""
    steps = steps[:OWN_TOKENS]
    own = [tokens[0], *[step.theirs.index(max(step.theirs)) for step in steps[:-1]]]
    if own == list(tokens[:len(own)]) or steps[0].off(steps[0].right) >= ONE_STEP:  # the first token is the same
        return []
    model = Model(Operations, shard, own, check=budget.check)
    try:
        wrong = any(not step.off(model.logits(pos)) < ONE_STEP for pos, step in enumerate(steps))
    except Spent:
        return []
    return [] if wrong else [f"other tokens were given: the logits are right for {','.join(map(str, own))}"]


def steps_needed(c: Config, steps: Sequence[Seen]) -> int:
    """How many steps are looked at."""
    first = next((pos for pos, step in enumerate(steps) if step.off(step.right) >= ONE_STEP), 0)
    return max(SEARCHED if is_small(c) else SEARCHED_IF_LARGE, first + SEARCHED_AFTER)


# ----------------------------------------------------------------------------
# One mistake in a whole model


@dataclass
class Fit:
    """How well a mistake explains the logits."""
    noise: float   # how far it is from them, in units of their noise: root mean square over all steps
    nearer: float  # by how many times nearer it is than the right model


class Search:
    """The search for a mistake that explains logits."""

    def __init__(self, shard, tokens: Sequence[int], steps: Sequence[Seen], precision: Precision, budget: Budget):
        self.shard = shard
        self.tokens = tokens
        self.steps = steps
        self.limits = limits_of(precision)
        self.budget = budget
        self.before = [step.off(step.right) for step in steps]  # how far the right model is, by step
        self.first = next((pos for pos, off in enumerate(self.before) if off > ONE_STEP), 0)
        self.sample = sample_of(shard, steps)

    @functools.cached_property
    def prefix(self) -> dict:
        """The right model's keys and values of position 0, which RoPE and the scores' scale leave as they are."""
        model = Model(Operations, self.shard, self.tokens)
        model.logits(0)
        return model.results

    def model(self, mistake: type[Operations], shard=None) -> Model:
        """A model with a mistake."""
        return Model(mistake, shard or self.shard, self.tokens, check=self.budget.check)

    def turn(self, mistake: Kind) -> int:
        """What mistakes are sorted by: those that the first step speaks for come first; those that convert all weights,
        which takes long, come last."""
        if mistake.converts:
            return 2
        at_first = set(mistake.changes) <= AT_THE_FIRST_STEP_ALONE_RIGHT
        return 0 if at_first == (self.before[0] <= ONE_STEP) else 1

    # -- how well a mistake fits

    def explains(self, fit: Fit) -> bool:
        """Is this rounding, and was it none?"""
        limits = self.limits
        nearer = limits.nearer_by_rounding if fit.noise <= limits.rounding else limits.nearer
        return fit.noise <= limits.near and fit.nearer >= nearer

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
        if noise > self.limits.near and nearer >= MAY_ENLARGE:
            noise /= self.amplification(mistake, len(offs))
        return Fit(noise, nearer)

    def fit_first_wrong(self, mistake: Kind) -> Fit | None:
        """The same of a rounding, which the first wrong step alone judges: those before are right with it."""
        offs = self.offs(mistake, self.first + 1)
        if offs is None or len(offs) <= self.first or any(off > ONE_STEP for off in offs[:-1]):
            return None
        return Fit(offs[-1], self.before[self.first] / (offs[-1] or 1 / FAR))

    def sifted(self, mistake: Kind) -> Fit | None:
        """How well a mistake explains the logits; None if it does not. At first some logits are looked at, of a few
        steps."""
        if self.sample and self.sample_offs(mistake, self.sample) is None:
            return None
        fit = self.fit(mistake, whole=False)
        if fit is None or not self.explains(fit):
            return None
        if not mistake.rough:
            fit = self.fit(mistake)
        return fit if fit and self.explains(fit) else None

    def offs(self, mistake: Kind, count: int) -> list[float] | None:
        """How far the first steps are from a mistake's, as many as it can compute; None as soon as one is hopeless."""
        return self.offs_of(self.model(mistake), self.steps[:count])

    def sample_offs(self, mistake: Kind, sample: "Sample") -> list[float] | None:
        """The same of the first steps up to the first wrong one, by a sample of the logits. (Where a mistake is about
        the classifier, all of them are needed: it passes.)"""
        if mistake.of_classifier:
            return []
        return self.offs_of(self.model(mistake, sample.shard), sample.steps[:self.first + 1])

    def offs_of(self, model: Model, steps: Sequence[Seen]) -> list[float] | None:
        """How far steps are from a model's."""
        offs: list[float] = []
        for step in steps:
            try:
                off = step.off(model.logits(len(offs)))
            except FAILS:
                break
            if not off <= self.limits.hopeless:  # nan, too
                return None
            offs.append(off)
        return offs

    def amplification(self, mistake: Kind, count: int) -> float:
        """The noise of a model with the mistake, in units of the right one's."""
        random = Random(1)

        def moved(y, sigma):
            return [v + s * random.gauss(0, 1) for v, s in zip(y, sigma, strict=True)]

        noisy = Model(mistake, self.shard, self.tokens, moved, self.budget.check)
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

    def best(self, mistakes: Sequence[Kind], what: str) -> list[str]:
        """The names of the mistakes that explain the logits alike, the nearest first. Once one brings them down to
        rounding, only those of its kind are tried: others do not explain alike."""
        found: list[tuple[float, Kind]] = []
        kinds: set[str] = set()

        def sifted(mistake: Kind) -> Fit | None:
            return None if kinds and not kinds & kinds_of(mistake) else self.sifted(mistake)

        for mistake, fit in self.budget.trials(mistakes, what, sifted):
            found.append((fit.noise, mistake))
            if fit.noise <= self.limits.rounding and not mistake.rough:
                kinds |= kinds_of(mistake)
        if any(mistake.rough for _, mistake in found):
            found = self.held_against_later_steps(found)
        found.sort(key=by_noise)
        limit = ALIKE * max(1.0, found[0][0]) if found else 0.0
        return list(dict.fromkeys(self.described(mistake) for noise, mistake in found if noise <= limit))

    def held_against_later_steps(self, found: list[tuple[float, Kind]]) -> list[tuple[float, Kind]]:
        """Roundings that explain the first wrong step, measured by the later ones, and the other mistakes."""
        right = rms(self.before[:max(LATER, self.first + LATER_AFTER)])
        kept = [(noise, mistake) for noise, mistake in found if not mistake.rough]
        rough = [mistake for _, mistake in found if mistake.rough]
        for mistake, distance in self.budget.trials(rough, "roundings, by the later steps", self.distance):
            if distance < LATER_STEPS * right:
                kept.append((distance, mistake))
        return kept

    def described(self, mistake: Kind) -> str:
        """Its name, and how sure it is."""
        if mistake.rough and len(self.steps) > self.first + 1:
            return f"{mistake.name} (seen at step {self.first}; later, float32's noise turns some of these roundings)"
        return mistake.name

    def in_one_layer(self, mistakes: Sequence[Kind]) -> list[str]:
        """The names of mistakes that are made in one layer alone."""
        layers = range(self.shard.config.n_layers) if self.shard.config.n_layers > 1 else ()
        tried = [in_layer(mistake, l) for l in layers for mistake in mistakes if mistake.has_layers]
        return self.best(tried, "known mistakes in a layer")

    # -- constants

    def constants(self, mistakes: Sequence[Kind]) -> list[str]:
        """The names of constants that explain the logits; or of formulas about the same operations, if they do."""
        tried = sorted(CONSTANTS, key=self.turn_of_constant)
        found = list(self.budget.trials(tried, "constants", self.constant))
        if not found:
            return []
        ops = {op for constant, _ in found for op in constant.mistake(1.0, self.shard.config).changes}
        related = [mistake for mistake in mistakes if set(mistake.changes) == ops and not mistake.converts]
        return self.best(related, "mistakes in the same operations") or [name for _, name in found]

    def turn_of_constant(self, constant: Constant) -> bool:
        """What constants are sorted by: those that the first step speaks for come first."""
        return constant.shows_at_once != (self.before[0] > ONE_STEP)

    def constant(self, constant: Constant) -> str | None:
        """The name of a constant, if a value of it explains the logits."""
        if self.before[0] > ONE_STEP and not constant.shows_at_once:
            return None
        trial = ConstantTrial(self, constant)
        value = trial.refined(trial.start())
        if trial.distance(value) > self.limits.near:
            return None
        for candidate in nearby(value):
            fit = self.fit(constant.mistake(candidate, self.shard.config))
            if fit and self.explains(fit) and fit.noise < self.limits.constant:
                return named(constant, candidate, value, self.shard.config)
        return None


class ConstantTrial:
    """The search for a constant's value, by the steps up to the first wrong one."""

    def __init__(self, search: Search, constant: Constant):
        self.search = search
        self.constant = constant
        of = search.sample or Sample(search.shard, search.steps)
        self.shard = of.shard
        self.steps = of.steps[:search.first + 1]
        self.tried = functools.cache(self.try_value)

    def start(self) -> float:
        """Where to look: the first value of the grid that fits, or else the nearest."""
        for value in self.constant.grid:
            if self.tried(value)[0] <= self.search.limits.constant:
                return value
        return min(self.constant.grid, key=self.distance)

    def distance(self, value: float) -> float:
        """How far the steps are with a value, root mean square."""
        return self.tried(value)[0]

    def try_value(self, value: float) -> tuple[float, list[Sequence[float]]]:
        """How far the steps are with a value; and their logits."""
        mistake = self.constant.mistake(value, self.search.shard.config)
        model = self.search.model(mistake, self.shard)
        skipped = 0 if self.constant.shows_at_once or len(self.steps) < 2 else 1
        if skipped:
            model.results.update(self.search.prefix)
        try:
            rows = [model.logits(pos) for pos in range(skipped, len(self.steps))]
        except FAILS:
            return FAR, []
        return rms([step.off(row) for step, row in zip(self.steps[skipped:], rows, strict=True)]), rows

    def refined(self, value: float) -> float:
        """The value for which the logits are nearest: Newton's method (Gauss-Newton) on it, or on its logarithm."""
        additive = self.constant.additive
        for _ in range(ROUNDS):
            distance, rows = self.tried(value)
            move = MOVE_BY if additive else MOVE_BY_PART * value
            _, moved = self.tried(value + move)
            if not rows or not moved:
                return value
            change = move * self.newton(rows, moved)
            if additive:
                new = max(value + change, 0.0)
            else:
                new = value * math.exp(max(-1.0, min(1.0, change / value)))
            if self.distance(new) > distance / FASTER:  # it converges at least so fast where the constant is the cause
                return value
            if abs(new - value) < CLOSE_ENOUGH * (1 if additive else value):
                return new
            value = new
        return value

    def newton(self, rows: Sequence[Sequence[float]], moved: Sequence[Sequence[float]]) -> float:
        """How many times the move from rows to moved brings the logits nearest, by least squares."""
        slope, rest = [], []
        for step, row, other in zip(self.steps[-len(rows):], rows, moved, strict=True):
            slope += [(b - a) / step.noise for a, b in zip(row, other, strict=True)]
            rest += [(t - a) / step.noise for a, t in zip(row, step.theirs, strict=True)]
        return fsum(map(mul, slope, rest)) / (fsum(map(mul, slope, slope)) or inf)


# ----------------------------------------------------------------------------
# A sample of the logits


@dataclass
class Sample:
    """A model that computes some logits alone, and the steps' logits of the same tokens."""
    shard: Any
    steps: Sequence[Seen]


def sample_of(shard, steps: Sequence[Seen]) -> Sample | None:
    """Some rows of a large classifier, all over it; None if it is small."""
    vocab_size, dim = shard.config.vocab_size, shard.config.dim
    if vocab_size <= 2 * SAMPLE:
        return None
    chosen = range(0, vocab_size, vocab_size // SAMPLE)

    def read(first, last, check):
        return [shard.checkpoint.rows("classifier", 0, i, i + 1, check=check)[0] for i in chosen[first:last]]

    other = copy.copy(shard)
    other.classifier = Rows(read, shard.checkpoint.release, shard.arithmetic, range(len(chosen)), dim, unpacked=True)
    some = slice(None, None, chosen.step)
    return Sample(other, [Seen(step.theirs[some], step.right[some], step.noise) for step in steps])


KINDS = {**dict.fromkeys(("q", "k", "v", "weights", "attention"), "attention"), **dict.fromkeys(NORMS, "norms"),
         **dict.fromkeys(("gate", "up", "swiglu", "ffn_out"), "feed-forward")}


def kinds_of(mistake: Kind) -> set[str]:
    """What a mistake is about."""
    return {KINDS.get(op, op) for op in mistake.changes}


def by_noise(found: tuple[float, Kind]) -> float:
    """What found mistakes are sorted by."""
    return found[0]


# ----------------------------------------------------------------------------
# Two mistakes together


def is_small(c: Config) -> bool:
    """Are some thousand steps soon made?"""
    return c.n_layers * c.dim * (2 * c.dim + 3 * c.hidden_dim) + c.vocab_size * c.dim <= SMALL_MODEL


def pairs(search: Search, mistakes: Sequence[Kind]) -> list[str]:
    """Two mistakes made together, in a small model."""
    c = search.shard.config
    if not is_small(c):
        search.budget.untried.append("two mistakes at once, in a model of this size")
        return []
    single = [mistake for mistake in mistakes if not (mistake.rough or mistake.alone)]
    constants = [constant.mistake(value, c) for constant, value in FREQUENT]
    tried = possible_pairs(search, single + constants)

    def fits(pair: tuple[Kind, Kind]) -> Fit | None:
        a, b = pair
        fit = None if a.replaces & b.replaces else search.fit(both(a, b))
        if fit is None or not search.explains(fit):
            return None
        return fit if b not in constants or fit.noise <= search.limits.constant else None

    for (a, b), _ in search.budget.trials(tried, "pairs of known mistakes", fits):
        return [a.name, b.name]
    return []


def possible_pairs(search: Search, mistakes: Sequence[Kind]) -> list[tuple[Kind, Kind]]:
    """The pairs that the first step allows: RoPE and attention leave it as it is, so what explains it alone is one of
    the two, and the other is among those that leave it."""
    step = search.steps[0]
    near = search.limits.near
    right = Model(Operations, search.shard, search.tokens).logits(0)
    explain, keep, change = [], [], []  # what they do to the first step

    def first_logits(mistake: Kind) -> Sequence[float] | None:
        try:
            return search.model(mistake).logits(0)
        except FAILS:
            return None

    for mistake, logits in search.budget.trials(mistakes, "known mistakes, in pairs", first_logits):
        if rms(list(map(sub, logits, right))) <= near * step.noise:
            keep.append(mistake)
        elif step.off(logits) <= near:
            explain.append(mistake)
        else:
            change.append(mistake)
    if search.before[0] <= near:
        return list(combinations(keep, 2))
    if explain:
        return [(a, b) for a in explain for b in keep]
    return list(combinations(change, 2))
