"""Whether a product with a matrix is right, told without the matrix (R. Freivalds, 1979).

    part_of_limit(probe, x, y, ROUNDINGS)    # y = W x, but for rounding, if it is at most 1

A probe is a vector s and s W. If y = W x, then s y is (s W) x, but for the rounding of y. Whoever changes y without
knowing s changes s y. Each element of s is 1 to 1.25, its sign a coin's and its size one of 65,536: so a change of one
element is always seen, and changes of several cancel by chance alone. (With signs only, half of all pairs of equal
changes would.)

The limit. Each element of y errs by up to u |y_i|, u = 2^-24; turned and turned back, a pair errs by up to 5 u times
its length. Since the signs of s are independent coins, the errors' sum exceeds 8 times their root of squares with a
probability of 2 exp(-32) = 3e-14 (Hoeffding's inequality), and never the root of n times it. So the limit is u |y|
times the smaller of both, and what float64 adds. A change of one element by more than twice that is always seen;
changes of several pass by chance, with a probability of up to some four limits over their size, and of 2^-17 at least,
since there are 65,536 sizes; of K probes, that to the power of K.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, inf, isfinite, sqrt
from operator import mul

LARGEST = 1.25             # of the sizes of s
U = 2.0**-24               # the relative error of one rounding
DEVIATIONS = 8             # roots of squares that a sum with random signs exceeds with a probability of 3e-14
ROUNDINGS = 1              # of an element of a product
ROUNDINGS_ROTATED = 5      # of one that was turned, turned back, and shares the errors of its pair
SLACK = 1 + 2.0**-20       # for errors of errors
SUM = 2.0**-51             # what a float64 sum of n errs by at most, over n and its parts
TINY = 2.0**-147           # more than the rounding of a subnormal number, turned and turned back


@dataclass
class Probe:
    """s and s W of a matrix W (n, d)."""
    s: tuple[float, ...]      # (n)
    image: tuple[float, ...]  # s W, (d)
    size: float               # no element of s W has parts whose sizes add up to more


def part_of_limit(probe: Probe, x: Sequence[float], y: Sequence[float], roundings: int) -> float:
    """x (d), y (n), as if W x: the difference of s y and (s W) x, over its limit; inf if a number is not finite."""
    difference = sum(map(mul, probe.s, y)) - sum(map(mul, probe.image, x))
    n, d, length = len(y), len(x), hypot(*y)
    rounding = LARGEST * roundings * U * SLACK * min(DEVIATIONS, sqrt(n)) * length
    sums = SUM * (LARGEST * n**1.5 * length + probe.size * d**1.5 * hypot(*x))
    limit = rounding + sums + TINY * n
    if not isfinite(limit) or not isfinite(difference):
        return inf
    return abs(difference) / limit


def turned_back(x: Sequence[float], cos: Sequence[float], sin: Sequence[float]) -> list[float]:
    """x (heads * hs), cos and sin (hs / 2), as in llama2.rope -> (heads * hs), float64: what was turned."""
    heads = len(x) // (2 * len(cos))
    squares = [c * c + s * s for c, s in zip(cos, sin, strict=True)]  # not quite 1, since both are rounded
    cosines = [c / v for c, v in zip(cos, squares, strict=True)] * heads
    sines = [s / v for s, v in zip(sin, squares, strict=True)] * heads
    result = [0.0] * len(x)
    quads = list(zip(x[0::2], x[1::2], cosines, sines, strict=True))
    result[0::2] = [a * c + b * s for a, b, c, s in quads]
    result[1::2] = [b * c - a * s for a, b, c, s in quads]
    return result
