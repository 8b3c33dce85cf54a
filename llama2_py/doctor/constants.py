"""The constants of a Llama, measured from another program's numbers: epsilon, theta, and the scale of the scores.

    value = EPSILON.measure(operations, "ffn_norm", places)    # 9.8e-07
    for candidate in nearby(value):                            # 0, 1e-06, 1e-06, 9.8e-07
        mistake = EPSILON.mistake(candidate, config)           # to be tried, like any other
"""
import math
from collections.abc import Callable, Iterable, Sequence
from math import fsum, inf
from operator import mul
from typing import NamedTuple

from llama2_py.doctor.mistakes.mistake import NORM_OPS, Kind, Mistake
from llama2_py.engine.graph import ROTATED
from llama2_py.doctor.operations import Operations
from llama2_py.engine.checkpoint import Config
from llama2_py.engine.rows import split

Places = Iterable[tuple[int | None, int, Sequence[float]]]  # (layer, position, another program's result)

# A name says "about" if the number that fits is farther than this part of itself from what was measured.
ABOUT = 0.2
DIGITS = 9               # that a float32 has at most
SMALLEST_ANGLE = 1e-6    # radians: of a smaller one too few digits are left
SMALLEST_WEIGHT = 1e-3   # of a smaller one the logarithm errs by more than the scores do


def nearby(value: float) -> list[float]:
    """A measured constant -> the numbers that it may stand for: 0, a power of ten, those with the fewest digits."""
    if value <= 0:
        return [0.0]
    power = 10.0**round(math.log10(value))
    shorter = [float(f"{value:.{n}g}") for n in range(1, DIGITS + 1)]
    return list(dict.fromkeys([0.0, power, *shorter]))


# ----------------------------------------------------------------------------
# Mistakes with a constant


def epsilon_is(value: float, config: Config) -> Kind:
    """Another epsilon."""
    small = "" if value else ", or so small that it makes no difference here"

    class Epsilon(Mistake):
        name = f"epsilon is {value:g}{small}, not {config.norm_epsilon:g}"
        changes = NORM_OPS
        epsilon = value
    return Epsilon


def theta_is(value: float, config: Config) -> Kind:
    """Another base of RoPE's frequencies."""
    class Theta(Mistake):
        name = f"RoPE's theta is {value:g}, not {config.rope_theta:g}"
        changes = ROTATED
        theta = value
    return Theta


def scale_is(value: float, config: Config) -> Kind:
    """Another factor of the scores."""
    class Scale(Mistake):
        name = f"scores are multiplied by {value:g}, not by 1/sqrt(hs)"
        changes = ("weights",)

        def scale(self):
            return value
    return Scale


# ----------------------------------------------------------------------------
# Measured from one operation


def measure_epsilon(operations: Operations, op: str, places: Places) -> float | None:
    """From the scale of a norm's results: s = 1 / sqrt(mean(x^2) + epsilon)."""
    smallest = inf  # the smaller the mean, the more digits epsilon has
    epsilon = None
    for l, pos, y in places:
        x = operations.norm_input(op, l, pos)
        unscaled = list(map(mul, x, operations.norm_weight(op, l)))
        s = fsum(map(mul, unscaled, y)) / (fsum(map(mul, unscaled, unscaled)) or inf)
        mean = fsum(map(mul, x, x)) / len(x)
        if s > 0 and mean < smallest:
            smallest = mean
            epsilon = max(1 / s**2 - mean, 0.0)
    return epsilon


def measure_theta(operations: Operations, op: str, places: Places) -> float | None:
    """From the angles by which pair 1 of each head is turned at position 1: theta^(-2/hs). Of later pairs the angles
    are too small to be exact."""
    hs = operations.hs
    longest = 0.0
    theta = None
    for l, pos, y in places:
        if pos != 1 or hs < 4:
            continue
        x = operations.product(op, l, pos)
        for first, second, i in operations.pairs(len(y)):
            if i != 1:
                continue
            a, b, c, d = x[first], x[second], y[first], y[second]
            angle = math.atan2(a * d - b * c, a * c + b * d)
            if angle > SMALLEST_ANGLE and a * a + b * b > longest:
                longest = a * a + b * b
                theta = angle ** (-hs / 2)
    return theta


def measure_scale(operations: Operations, op: str, places: Places) -> float | None:
    """From the weights of two positions: log(p0 / p1) is the difference of their scores."""
    largest = 0.0
    scale = None
    for l, pos, y in places:
        for h, p in enumerate(split(y, pos + 1)):
            visible = operations.visible(pos)
            seen = list(zip([p[t] for t in visible], operations.scores(l, pos, h), strict=True))
            for weight, score in seen[1:]:
                first, first_score = seen[0]
                difference = (first_score - score) / operations.scale()
                if min(first, weight) > SMALLEST_WEIGHT and abs(difference) > largest:
                    largest = abs(difference)
                    scale = math.log(first / weight) / difference
    return scale


# ----------------------------------------------------------------------------
# The constants


class Constant(NamedTuple):
    """A constant."""
    mistake: Callable[[float, Config], Kind]   # a value, and the model's config -> the mistake
    measure: Callable[[Operations, str, Places], float | None]  # None: these places do not show it
    grid: Sequence[float]                      # where to look for it, the most frequent values first
    additive: bool                             # is it searched by differences, or else by ratios?
    shows_at_once: bool                        # does it change the logits of position 0?


EPSILONS = (1e-6, 1e-5, 0.0, 1e-8, 1e-4, 1e-3, 1e-2)
THETAS = (10000.0, 500000.0, 1e6, 100000.0, 1000.0, 20000.0, 5000.0, 100.0, 1e7)
SCALES = tuple([2.0**k for k in range(-7, 3)])
EPSILON = Constant(epsilon_is, measure_epsilon, EPSILONS, additive=True, shows_at_once=True)
THETA = Constant(theta_is, measure_theta, THETAS, additive=False, shows_at_once=False)
SCALE = Constant(scale_is, measure_scale, SCALES, additive=False, shows_at_once=False)
CONSTANTS = (EPSILON, THETA, SCALE)
# Those of other families of models: what is tried together with a formula
FREQUENT = ((EPSILON, 0.0), (EPSILON, 1e-6), (EPSILON, 1e-5), (THETA, 10000.0), (THETA, 100000.0), (THETA, 500000.0),
            (THETA, 1e6))
CONSTANT_OF = {**dict.fromkeys(NORM_OPS, EPSILON), **dict.fromkeys(ROTATED, THETA), "weights": SCALE}


def named(constant: Constant, candidate: float, value: float, config: Config) -> str:
    """The name of a constant of a model, by a number that fits; "about" if what was measured is not that near."""
    name = constant.mistake(candidate, config).name
    near = not candidate or abs(candidate - value) < ABOUT * candidate
    return name if near else name.replace("is ", "is about ", 1)
