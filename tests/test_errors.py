"""Tests of errors.py: programs in which every rounding is as bad as float32 allows stay within the bounds.

Results are computed in float64, and each operation's is moved by u, or a function's by one unit in the last place, up
or down; which, a seed decides, or all go one way. That is worse than any processor.
"""
import math
import random

import pytest

from llama2_py.doctor import errors
from llama2_py.doctor.errors import SMALLEST, U
from llama2_py.doctor.operations import dot, rms, softmax
from llama2_py.engine.frequencies import scaled
from tests.ports import f32

WAYS = ["up", "down", *range(8)]


class Worst:
    """Roundings that go one way, or at random."""

    def __init__(self, way):
        self.fixed = {"up": 1, "down": -1}.get(way)
        self.random = random.Random(way)

    def sign(self):
        return self.fixed or self.random.choice((-1, 1))

    def __call__(self, value, units=1):
        return value * (1 + self.sign() * units * U)

    def last_place(self, value):
        """A function's result, moved by one unit in its last place."""
        return value + self.sign() * 2 * U * 2.0 ** math.floor(math.log2(abs(value)))

    def add_up(self, terms):
        total = 0.0
        for term in terms:
            total = self(total + term)
        return total

    def dot(self, a, b):
        return self.add_up([self(u * v) for u, v in zip(a, b, strict=True)])


def within(theirs, y, bound):
    """The largest part of a bound that is used; at most 1."""
    used = max([abs(t - v) / (b + 1e-14 * abs(v)) for t, v, b in zip(theirs, y, bound, strict=True)])
    assert used <= 1, used
    return used


def numbers(seed, n, scale=1.0):
    rng = random.Random(seed)
    return [rng.gauss(0, scale) for _ in range(n)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [1, 2, 7, 64, 500])
def test_dot_products_stay_within_their_bound(way, n):
    worst = Worst(way)
    for x in numbers("x", n), [1.0] * n:
        w = x if x[0] == 1.0 else numbers("w", n)
        y = [dot(w, x)]
        _, bound = errors.dot_errors([dot(w, w)], [math.sqrt(dot(w, w))], dot(x, x), n, y)
        used = within([worst.dot(w, x)], y, bound)
        within([worst(worst.dot(list(map(worst, w)), x))], y, bound)  # a factor before, a rounding when it is written
    if worst.fixed:  # equal terms, all rounded one way: the bound is no larger than it has to be
        assert used > 0.3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_norms_stay_within_their_bound(way, scale):
    worst = Worst(way)
    for n in 1, 8, 300:
        x, w = numbers(n, n, scale), numbers(-n, n)
        mean = worst(worst(worst.dot(x, x) / n) + 1e-5 * (1 + U))
        s = worst(1 / worst(math.sqrt(mean)), 2)
        theirs = [worst(b * worst(s * a)) for a, b in zip(x, w, strict=True)]
        right = 1 / math.sqrt(dot(x, x) / n + 1e-5)
        y = [b * right * a for a, b in zip(x, w, strict=True)]
        within(theirs, y, errors.norm_errors(x, w, right, y)[1])


def silu_by_exp(worst, a):
    return worst(a * worst(1 / worst(1 + worst(math.exp(-a), 2))))


def silu_by_power_of_two(worst, a):
    exponent = worst(-a * worst(math.log2(math.e)))
    return worst(a / worst(1 + worst(2.0**exponent, 2)))


def silu_by_tanh(worst, a):
    return worst(0.5 * a * worst(1 + (worst.last_place(math.tanh(0.5 * a)) if a else 0.0)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("silu", [silu_by_exp, silu_by_power_of_two, silu_by_tanh])
def test_swiglu_stays_within_its_bound(way, silu):
    worst = Worst(way)
    gates = [i / 4 for i in range(-320, 321)]
    ups = [1.7] * len(gates)
    y = [a / (1 + math.exp(-a)) * b for a, b in zip(gates, ups, strict=True)]
    theirs = [worst(silu(worst, a) * b) for a, b in zip(gates, ups, strict=True)]
    within(theirs, y, errors.swiglu_errors(gates, ups, y)[1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("theta", [100.0, 10000.0, 500000.0, 1e7])
@pytest.mark.parametrize("by_exp", [True, False])
def test_rope_stays_within_its_bound(way, theta, by_exp):
    worst = Worst(way)
    hs = 16
    x = numbers("rope", hs)
    pairs = [(i, i + 1, i // 2) for i in range(0, hs, 2)]
    for pos in 0, 1, 100, 5000:
        y, theirs, turns = list(x), list(x), {}
        for first, second, i in pairs:
            exponent = worst(2 * i / hs)
            if by_exp:
                f = worst(math.exp(-worst(exponent * worst(math.log(theta), 2))), 2)
            else:
                f = worst(1 / worst(theta**exponent, 2))
            right = pos * theta ** (-2 * i / hs)
            for angle, out, moved in (right, y, float), (worst(pos * f), theirs, worst):
                c, s = math.cos(angle), math.sin(angle)
                c, s = (worst(c, 2), worst(s, 2)) if moved is worst else (c, s)
                a, b = x[first], x[second]
                out[first] = moved(moved(a * c) - moved(b * s))
                out[second] = moved(moved(a * s) + moved(b * c))
            of_angle = errors.angle_error(2 * i / hs, math.log(theta), None)
            turns[i] = abs(math.cos(right)), abs(math.sin(right)), right, of_angle
        none = [0.0] * hs, [0.0] * hs
        within(theirs, y, errors.rope_errors(pairs, turns.__getitem__, x, none)[1])


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("positions", [range(1), range(1, 40), range(1000, 1040)])
def test_what_rope_is_expected_to_err_by_is_what_float32_errs_by(size, positions):
    """At position 0 nothing is rounded; at a late one the angles are."""
    hs, sigmas = 16, []
    pairs = [(i, i + 1, i // 2) for i in range(0, hs, 2)]
    for pos in positions:
        x, y, theirs, turns = [f32(v) for v in numbers(pos, hs, size)], [0.0] * hs, [0.0] * hs, {}
        for first, second, i in pairs:
            right = pos * 10000.0 ** (-2 * i / hs)
            angle = f32(pos * f32(1 / f32(10000.0 ** f32(2 * i / hs))))
            for out, turn, moved in (y, right, float), (theirs, angle, f32):
                a, b, c, s = x[first], x[second], moved(math.cos(turn)), moved(math.sin(turn))
                out[first], out[second] = (moved(moved(u) + moved(v)) for u, v in ((a * c, -b * s), (a * s, b * c)))
            turns[i] = abs(math.cos(right)), abs(math.sin(right)), right, errors.angle_error(2 * i / hs, 9.2, None)
        sigma, _ = errors.rope_errors(pairs, turns.__getitem__, x, ([0.0] * hs, [0.0] * hs))
        sigmas += [abs(a - b) / s for a, b, s in zip(theirs, y, sigma, strict=True)]
    assert positions == range(1) and max(sigmas) == 0 or 0.3 < rms(sigmas) < 1.5 and max(sigmas) < 8


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize("way", WAYS)
def test_scaled_frequencies_stay_within_their_bound(way):
    worst = Worst(way)
    low, high, factor, original = 1.0, 4.0, 8.0, 8192
    for exponent in [i / 512 for i in range(513)]:
        f = 500000.0**-exponent
        power = worst(worst(exponent) * worst.last_place(math.log(500000.0)))
        theirs = worst.last_place(math.exp(-power))
        results = []
        for value, moved in (f, float), (theirs, worst):
            turns = moved(original / moved(moved(2 * math.pi) / value))
            s = min(max(moved(moved(turns - low) / moved(high - low)), 0.0), 1.0)
            results.append(moved(moved(moved(moved(1 - s) * value) / factor) + moved(s * value)))
        allowed = errors.angle_error(exponent, math.log(500000.0), LLAMA3) * U * results[0]
        within(results[1:], results[:1], [allowed])


@pytest.mark.parametrize("factor, low, high", [(8.0, 1.0, 4.0), (32.0, 1.0, 4.0), (2.0, 1.0, 8.0), (8.0, 3.0, 4.0)])
def test_a_frequency_on_the_line_errs_by_as_much_as_its_steepest_part_lets_it(factor, low, high):
    scaling = {**LLAMA3, "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    waves = [low + (high - low) * (i + 1e-3) / 999.01 for i in range(1000)]  # in the context of the training
    steepest = 0.0
    for turns in waves:
        f = turns * 2 * math.pi / LLAMA3["original_max_position_embeddings"]
        a, b = (scaled(f * way, scaling, float) for way in (1 - 1e-7, 1 + 1e-7))
        steepest = max(steepest, math.log(b / a) / 2e-7)
    grown = (errors.angle_error(0.0, 0.0, scaling) - 12) / (errors.angle_error(0.0, 0.0, None) + 6)
    assert grown + 1 == pytest.approx(steepest, rel=1e-3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1000.0])
def test_softmax_stays_within_its_bound(way, scale):
    worst = Worst(way)
    for n in 1, 2, 50:
        scores = numbers(n, n, scale)
        theirs = [worst(v, 3) for v in scores]
        highest = max(theirs)
        e = [worst(math.exp(worst(v - highest)), 2) for v in theirs]
        total = worst.add_up(e)
        p = softmax(scores)
        none = [0.0] * n, [0.0] * n
        within([worst(v / total) for v in e], p, errors.softmax_errors(p, scores, max(scores), none)[1])


def test_residuals_stay_within_their_bound_and_so_do_flushed_numbers():
    a, b = [1.5, TINY := SMALLEST / 3], [-2.5, SMALLEST / 2]
    y = [u + v for u, v in zip(a, b, strict=True)]
    bound = errors.residual_errors(a, b, y)[1]
    within([y[0] * (1 + U), 0.0], y, bound)
    within([y[0] * (1 - U), TINY], y, bound)


def test_a_bound_of_endless_sums_is_infinite():
    assert errors.gamma(2.0**24) == math.inf and errors.gamma(2.0**23) == 1.0
