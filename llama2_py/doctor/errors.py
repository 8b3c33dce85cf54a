"""How far float32 may stray in one operation: for each element of its result, sigma and bound.

    sigma, bound = dot_errors(squares, lengths, square, n, y)

    u        2^-24: a float32 operation errs by at most u times its result
    gamma(k) k u / (1 - k u): what k such errors, one upon the other, come to at most (Higham, lemma 3.1)
    sigma    the error that float32 programs make, as a standard deviation; measured
    bound    the error that none exceeds, in any order of summation, with or without FMA; proved, given two premises

The premises: exp, pow, log, tanh, cos, sin err by at most one unit in the last place, 2u; a program may flush numbers
below the smallest normal one to zero, inputs and results alike. With -ffast-math a division is a multiplication by the
reciprocal: one rounding more, for which there is room. y is the result in real numbers.
"""
from collections.abc import Callable, Iterable, Sequence
from math import expm1, fsum, hypot, inf, log1p, sqrt
from operator import mul

U = 2.0**-24
SMALLEST = 2.0**-126  # of the normal float32: some programs flush what is smaller to zero
FLUSHED = 4 * SMALLEST  # how far a sum of two products is off, at most, if all that is so small is flushed
ROUNDED, ROUNDED_TWICE = 0.42, 0.6  # a rounding to 16 bits, or two, in their u: the root of the mean square
WIDEST = 300.0        # of an exponent's error: beyond it a bound says nothing
Errors = tuple[list[float], list[float]]  # sigma, bound


def gamma(k: float) -> float:
    """What k roundings come to at most, relatively; infinite where they leave no digit."""
    return k * U / (1 - k * U) if k * U < 1 else inf


def residual_errors(a: Sequence[float], b: Sequence[float], y: Sequence[float]) -> Errors:
    """a, b, y (n), y = a + b. One rounding of the sum, u |y|; those of a and b when they
    were written, u |a| and u |b|. Flushed are a, b and y."""
    sigma = [0.41 * U * hypot(v, p, q) for v, p, q in zip(y, a, b, strict=True)]
    bound = [U * (abs(v) + abs(p) + abs(q)) + FLUSHED for v, p, q in zip(y, a, b, strict=True)]
    return sigma, bound


def norm_errors(x: Sequence[float], weight: Sequence[float], s: float, y: Sequence[float]) -> Errors:
    """x, weight, y (n), y = weight s x, s = 1 / sqrt(mean(x^2) + epsilon).

    Each of the n squares goes through n roundings at most, all of one sign: the sum errs by
    gamma(n). Its division by n adds 2 (by way of 1/n), epsilon and its addition 2: the mean
    errs by gamma(n + 4), its root by half of that and 1 more, the reciprocal by 1 (2 if it
    is a rsqrt that errs by one unit), two products by 2: n/2 + 7 in all. 12 leave room for
    a rsqrt of two steps. A number of x that is flushed is off by s |w| times the smallest,
    s x by |w| times it, a weight by |s x| times it, and y by the smallest itself. (A
    flushed square is nothing beside epsilon.)
    """
    n = len(y)
    of_sigma, of_bound = (0.12 * sqrt(n) + 1) * U, gamma(n / 2 + 12)
    flushed = [SMALLEST * (1 + (1 + s) * abs(w) + abs(s * v)) for w, v in zip(weight, x, strict=True)]
    return ([of_sigma * abs(v) + f for v, f in zip(y, flushed, strict=True)],
            [of_bound * abs(v) + f for v, f in zip(y, flushed, strict=True)])


def swiglu_errors(gates: Sequence[float], ups: Sequence[float], y: Sequence[float]) -> Errors:
    """gates, ups, y (n), y = gate sigmoid(gate) up.

    exp(-gate) errs by 2u, by 2 |gate| u more where it is 2 to the power of a product. For
    positive gates this counts less than |gate| exp(-gate) u; for negative ones the sigmoid
    errs by as much, and two roundings of its own. Two products: (6 + 2 |gate|) u |y|, of
    which u |gate up| covers what (19 + |gate|) u |y| does not: beyond -13, where |gate y|
    is far less than |gate up|. By way of tanh, (1 + tanh(gate / 2)) / 2 stands for the
    sigmoid; where it is all but 0 it errs by one unit of tanh, which is u or 2u near 1, and
    u |gate up| more covers the products. exp(-gate) overflows beyond 88 and is flushed to
    zero below -88: then y is 0, or off by |gate up| times the smallest. Flushed are also
    gate, up, the sigmoid, silu and y.
    """
    sigma, bound = [], []
    for gate, up, v in zip(gates, ups, y, strict=True):
        g, product = abs(gate), abs(gate * up)
        flushed = SMALLEST * (1 + 2 * abs(up) + 2 * product)
        sigma.append(U * hypot((1 + 0.4 * g) * v, 0.25 * product) + flushed)
        bound.append(U * ((19 + g) * abs(v) + 2 * product) + flushed + SMALLEST * g)
    return sigma, bound


def rope_errors(turned: Sequence[tuple[int, int, int]], turns: Callable, y: Sequence[float], errors: Errors,
                coarse: float = 0.0) -> Errors:
    """y (n) before it is turned, the sigma and the bound of each of its elements; turned:
    the pairs, as Operations.pairs; turns(i) -> of pair i cosine, sine, angle, all absolute,
    and by how many u the angle errs. coarse: u of the 16 bits to which results within are
    rounded, or 0.

    a c - b s errs by c and s times what a and b do; by 2u of the cosine or the sine, u of
    each product and u of the sum: 4 (c|a| + s|b|), and 2 (|a| + |b|) for what an argument
    that is reduced in float32 costs near a zero. An angle that errs by d turns the pair by
    d more: d (s|a| + c|b|).
    """
    sigma, bound = map(list, errors)
    for first, second, i in turned:
        c, s, angle, of_angle = turns(i)
        a, b = abs(y[first]), abs(y[second])
        sa, sb, ba, bb = sigma[first], sigma[second], bound[first], bound[second]
        for at, f, g in (first, c, s), (second, s, c):  # what a and b are multiplied by
            near, far = f * a + g * b, g * a + f * b
            sigma[at] = hypot(f * sa, g * sb, 0.5 * U * near, 0.8 * U * angle * far)
            bound[at] = f * ba + g * bb + U * (5 * near + of_angle * angle * far + 2 * (a + b)) + FLUSHED
            if coarse:
                sigma[at] = hypot(sigma[at], ROUNDED * sqrt(3) * coarse * hypot(f * a, g * b))
                bound[at] += 3 * coarse * near
    return sigma, bound


def angle_error(exponent: float, log_theta: float, scaling: dict | None) -> float:
    """By how many u an angle pos / theta^exponent errs. pow errs by 2, the reciprocal and
    the product by 2; the exponent, a rounded quotient, by one, which is log(theta) exponent
    in the power; four times that if the power is computed as exp(exponent log(theta)). Of
    theta^0 nothing errs but the reciprocal and the product.

    Llama 3's scaling is a straight line between two wavelengths, on which a relative error
    grows by (factor - 1) max(low, high / factor) / (high - low) at most, and some ten
    roundings of its own.
    """
    direct = 6 + 4 * abs(log_theta) * exponent
    if scaling is None:
        return direct
    if "low_freq_factor" not in scaling:
        return direct + 2
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    growth = (factor - 1) * max(low, high / factor) / (high - low)
    return direct + (direct + 6) * growth + 6


def softmax_errors(p: Sequence[float], scores: Sequence[float], highest: float, of_scores: Errors,
                   coarse: float = 0.0) -> Errors:
    """p, scores (n): the weights of a head; of_scores: what the scores err by, before they
    are rounded.

    A score errs by d: the dot product's error, 3 |score| for the root, its quotient or
    reciprocal and the product, and 3 |score - highest| for the subtraction and an exp that
    is 2 to the power of a product. If each exponent errs by d_t at most, p_t is multiplied
    by exp(d_t) / sum p exp(-d) at most, by exp(-d_t) / sum p exp(d) at least; and 1 / sum p
    exp(-d) <= sum p exp(d) (Jensen). So its relative error is at most exp(d_t + log sum p
    exp(d)) - 1. exp errs by 2u in e_t and in the sum, the sum of n numbers of one sign by n
    - 1, the division by 2 at most: (n + 5) u, and one to write. An exponential or a weight
    that is flushed is off by the smallest, and the sum by nothing, since it is 1 or more.
    """
    n = len(p)
    away = [abs(s - highest) for s in scores]
    sigmas = [hypot(d, 0.6 * U * s, 0.4 * U * a) for d, s, a in zip(of_scores[0], scores, away, strict=True)]
    bounds = [d + U * 3 * (abs(s) + a) for d, s, a in zip(of_scores[1], scores, away, strict=True)]
    if coarse:  # a score is rounded before and after it is scaled
        sigmas = [hypot(d, ROUNDED_TWICE * coarse * s) for d, s in zip(sigmas, scores, strict=True)]
        bounds = [d + 2 * coarse * abs(s) for d, s in zip(bounds, scores, strict=True)]
    common = hypot(*map(mul, p, sigmas))
    spread = fsum([abs(v) * expm1(min(d, WIDEST)) for v, d in zip(p, bounds, strict=True)])
    total = log1p(spread) + gamma(n + 6)
    return ([v * hypot(d, common, (0.24 * sqrt(n) + 0.8) * U) for v, d in zip(p, sigmas, strict=True)],
            [abs(v) * expm1(min(d + total, WIDEST)) + 2 * SMALLEST for v, d in zip(p, bounds, strict=True)])


def dot_errors(squares: Sequence[float], lengths: Iterable[float], square: float, n: int, y: Sequence[float]) -> Errors:
    """The sigma and the bound of dot products y (m) of rows, whose squares and lengths (m
    each) are given, and a vector; n: its length, square: its own.

    A dot product w.x errs by sigma = u sqrt(0.09 |w|^2 |x|^2 + 0.06 n y^2), measured over
    every summation order we tried. Each product goes through n roundings at most, in
    whatever order, so that no sum errs by more than gamma(n) |w| |x| (Cauchy-Schwarz;
    Higham, 3.1). Two u more are for a factor that is multiplied in before the sum, and for
    a result that was kept in more digits and rounded when it was written. Flushed numbers
    of w and x leave it off by sqrt(n) (|w| + |x|) times the smallest, products and partial
    sums by 2n times; 3n, since these go through the roundings that follow.
    """
    length_of_x = sqrt(square)
    flushed = SMALLEST * (sqrt(n) * length_of_x + 3 * n)
    flushed_by_row = SMALLEST * sqrt(n)
    by_square, by_result = 0.09 * square * U * U + flushed_by_row**2, (0.06 * n + 0.1) * U * U
    by_length = gamma(n + 2) * length_of_x + flushed_by_row
    return ([sqrt(by_square * s + by_result * v * v) + flushed for s, v in zip(squares, y, strict=True)],
            [by_length * length + U * abs(v) + flushed for length, v in zip(lengths, y, strict=True)])
