"""Tests of arithmetic.py: plain.py and exact rational numbers judge the fast code."""
import ctypes
import math
import random
import struct
import sys
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama2_py.engine import arithmetic
import llama2
import plain
from llama2_py.engine.arithmetic import C, Exact, R, bounds, certified, libm, r, running_sums
from tests.helpers import any_float, awkward, bits, command, examples, failure, ordinary, plain_c, rounded, vectors


def check_dots(rows, x):
    for A, definition in (Exact, plain), (C, plain_c):
        if x:
            got = A.dots(A.Matrix([tuple(row) for row in rows]), A.operand(tuple(x)))
            assert bits(got) == bits([definition.dot(row, x) for row in rows]), A.name
        assert bits([A.dot(row, x) for row in rows]) == bits([definition.dot(row, x) for row in rows]), A.name


@pytest.mark.parametrize("rows, columns", [(200, 64), (64, 200)])
def test_the_memory_of_a_matrix_of_dialect_c_is_estimated(rows, columns):
    matrix = C.Matrix([(1.0,) * columns] * rows)
    took = sum(map(sys.getsizeof, matrix.columns)) + sys.getsizeof(matrix.columns)
    assert 0.9 * took < matrix.memory(rows, columns) < 1.1 * took


@given(st.lists(vectors, min_size=1, max_size=4))
@examples(400)
def test_dots_are_the_definition_on_awkward_numbers(pairs):
    x = pairs[0][1]
    check_dots([(row + [0.0] * len(x))[:len(x)] for row, _ in pairs], x)


@given(vectors, st.lists(st.sampled_from([2.0**-24, 2.0**-25, 2.0**-60, -(2.0**-25), 1 + 2.0**-23, 1.0, -1.0]),
                         max_size=4))
@examples(400)
def test_dots_are_the_definition_where_all_but_little_cancels(pair, rest):
    # w.x - w.x + rest, and rests that make ties: sums half way between two binary32, or a little beside it
    w, x = pair
    check_dots([w + [-v for v in w] + rest], x + x + [1.0] * len(rest))


@given(st.integers(0, 2**32), st.sampled_from([1, 8, 64, 172, 288, 768]), st.floats(-20, 20), st.floats(-20, 20))
@examples(60)
def test_dots_are_the_definition_on_vectors_as_models_have_them(seed, d, scale, x_scale):
    rng = random.Random(seed)
    rows = [R([rng.gauss(0, 10**scale) for _ in range(d)]) for _ in range(4)]
    check_dots(rows, R([rng.gauss(0, 10**x_scale) for _ in range(d)]))


def distances(seed, d, along):
    """Random rows and x of d numbers; along: x points where the row does, which makes the guess's error largest."""
    rng = random.Random(seed)
    row = R([rng.gauss(0, 1) for _ in range(d)])
    return row, R([2 * v for v in row]) if along else R([rng.gauss(0, 2) for _ in range(d)])


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 8, 64, 172, 768]), st.booleans())
@example(9, 2, True)
@examples(200)
def test_the_exact_dot_product_lies_within_the_bounds(seed, d, along):
    row, x = distances(seed, d, along)
    matrix, operand = Exact.Matrix([row]), Exact.operand(x)
    (lowest,), width = bounds(matrix, operand)
    exact = sum(Fraction(a) * Fraction(b) for a, b in zip(row, x, strict=True))
    assert Fraction(lowest) <= exact <= Fraction(lowest) + Fraction(width)


def test_the_error_of_a_guess_keeps_to_its_derivation_and_uses_a_good_part_of_it():
    worst = 0
    for seed in range(1000):
        row, x = distances(seed, (2, 3, 8)[seed % 3], True)
        matrix, operand = Exact.Matrix([row]), Exact.operand(x)
        (lowest,), width = bounds(matrix, operand)
        guess = Fraction(lowest) + Fraction(width) / 2
        exact = sum(Fraction(a) * Fraction(b) for a, b in zip(row, x, strict=True))
        size = sum(Fraction(v)**2 for v in row) + sum(Fraction(v)**2 for v in x) / 4
        worst = max(worst, abs(guess - exact) / size * 2**53)
        assert width == 2 * 2.0**-47 * (matrix.largest + operand[2])
    assert 4 < worst < 24  # in units of 2^-53 S: a margin of 2^-51 S would not do


def test_the_margin_is_that_of_the_longest_row_also_in_a_matrix_that_has_grown():
    for grow in "rows", "columns":
        matrix = Exact.Matrix()
        if grow == "rows":
            matrix.add_row((1.0, 1.0))
            matrix.add_row((2.0**60, 2.0**60))
        else:
            matrix.add_column([1.0, 1.0])
            matrix.add_column([2.0**60, 2.0**60])
        assert matrix.largest == max(matrix.squares) >= 2.0**120
    # two guesses that rounding alone separates: by the small row's margin they would be believed
    rng = random.Random(3)
    for grow in "rows", "columns":
        for _ in range(50):
            rows = [R([rng.gauss(0, 1e-9) for _ in range(4)]), R([rng.gauss(0, 1) for _ in range(4)])]
            x = R([rng.gauss(0, 1e-7) for _ in range(4)])
            x = R([*x[:3], -sum(a * b for a, b in zip(rows[1][:3], x[:3], strict=True)) / rows[1][3]])  # cancels
            matrix = Exact.Matrix()
            for vector in (rows if grow == "rows" else zip(*rows, strict=True)):
                (matrix.add_row if grow == "rows" else matrix.add_column)(vector)
            assert bits(Exact.dots(matrix, Exact.operand(x))) == bits([plain.dot(row, x) for row in rows])


@pytest.mark.parametrize("function, angle", [
    ("cos", "0x1.6f1b7p+5"), ("cos", "0x1.8f219cp+5"), ("sin", "0x1.e35bc6p+7"), ("sin", "0x1.a88a5p+6")])
def test_angles_whose_guesses_leave_two_candidates_are_settled_in_decimal(monkeypatch, function, angle):
    angle, asked = float.fromhex(angle), []
    decimal = getattr(arithmetic, f"decimal_{function}")

    def counted(x):
        asked.append(x)
        return decimal(x)

    monkeypatch.setattr(arithmetic, f"decimal_{function}", counted)
    assert getattr(Exact, function)(angle) == getattr(plain, function)(angle)
    assert asked == [Decimal(angle)]
    for off in -1, 1:  # whatever the C library guesses within the margin
        guess = getattr(math, function)(angle) * (1 + off * 2.0**-51)
        assert certified(guess, decimal, angle) == getattr(plain, function)(angle)


@given(st.floats(0, 500, width=32))
def test_the_decimal_functions_are_those_of_the_series(angle):
    with localcontext() as context:
        context.prec = 80
        values = arithmetic.decimal_cos(Decimal(angle)), arithmetic.decimal_sin(Decimal(angle))
        assert abs(values[0]**2 + values[1]**2 - 1) < Decimal(10)**-70
        assert [plain.nearest(value) for value in values] == [plain.cos(angle), plain.sin(angle)]


@given(st.sampled_from([R([2 * i / hs])[0] for hs in (2, 6, 8, 48, 64, 128) for i in range(hs // 2)]),
       st.integers(-1, 1))
def test_a_power_is_settled_in_decimal_to_the_right_neighbour(exponent, side):
    """From a guess of the midpoint beside the power, which leaves two candidates; pow's decimals alone decide."""
    value = plain.power(10000.0, exponent)
    (i,) = struct.unpack("i", struct.pack("f", value))
    (neighbour,) = struct.unpack("f", struct.pack("i", i + (side or 1)))
    assert certified((value + neighbour) / 2, pow, 10000.0, exponent) == value


def test_the_fallback_is_taken_and_right():
    # sums that lie exactly between two binary32, and 2^-80 beside: no binary64 guess can tell
    tie, beside = [1.0, 2.0**-24, 2.0**-80], [1.0, 2.0**-24, -(2.0**-80)]
    one = Exact.operand((1.0, 1.0, 1.0))
    assert Exact.dots(Exact.Matrix([tuple(tie), tuple(beside)]), one) == (1.0, 1.0)  # rounded to binary64 first
    above, below = (1.0, 2.0**-24, 2.0**-50), (1.0, 2.0**-24, -(2.0**-50))
    assert Exact.dots(Exact.Matrix([above, below]), one) == (1 + 2.0**-23, 1.0)


@given(st.lists(st.one_of(ordinary, any_float, awkward), min_size=1, max_size=6), st.data())
def test_a_matrix_grown_by_rows_or_by_columns_is_the_same_matrix(x, data):
    rows = data.draw(st.lists(st.tuples(*[any_float] * len(x)), min_size=1, max_size=5))
    for A, definition in (Exact, plain), (C, plain_c):
        by_rows, by_columns = A.Matrix(), A.Matrix()
        for row in rows:
            by_rows.add_row(row)
        for column in zip(*rows, strict=True):
            by_columns.add_column(column)
        for matrix in by_rows, by_columns:
            assert bits(A.dots(matrix, A.operand(tuple(x)))) == bits([definition.dot(row, x) for row in rows])


@given(st.lists(st.one_of(st.floats(-110, 95, width=32), any_float, awkward), min_size=1, max_size=8))
@example([88.72283935546875, 88.722839, -103.97207, -103.97208, 89.0, -1e30, 1e30])
@examples(150)
def test_exp_is_correctly_rounded_and_inf_where_too_large(values):
    values = [rounded(v) for v in values]
    assert bits(Exact.exps(values)) == bits([plain.exp(max(-200.0, min(v, 200.0))) for v in values])
    assert bits(C.exps(values)) == bits([plain_c.exp(v) for v in values])


@given(st.floats(0, 300, width=32), st.floats(0, 1, width=32))
@examples(60)
def test_cos_sin_and_pow_are_correctly_rounded(angle, exponent):
    for A, definition in (Exact, plain), (C, plain_c):
        assert bits([A.cos(angle), A.sin(angle), A.pow(10000.0, exponent)]) == bits(
            [definition.cos(angle), definition.sin(angle), definition.power(10000.0, exponent)])


@given(any_float.filter(lambda v: v and 2.0**-140 < abs(v) < 2.0**127), st.integers(-3, 3),
       st.integers(-1, 1).filter(bool))
def test_a_number_beside_the_middle_of_two_floats_is_certified_to_its_own_side(value, ulps, side):
    (i,) = struct.unpack("i", struct.pack("f", value))
    other = struct.unpack("f", struct.pack("i", i + 1))[0]
    middle = (value + other) / 2
    guess = middle
    for _ in range(abs(ulps)):
        guess = math.nextafter(guess, math.copysign(math.inf, ulps))
    with localcontext() as context:
        context.prec = 200
        number = Decimal(middle) + side * Decimal(abs(middle)) * Decimal(10) ** -40
    expected = max(value, other) if side > 0 else min(value, other)
    assert certified(guess, lambda: number) == expected


@given(st.integers(0, 2**32), st.floats(-8, 8), st.sampled_from([1, 2, 3, 48, 64]))
@examples(300)
def test_rmsnorm_is_the_definition(seed, scale, d):
    rng = random.Random(seed)
    x, w = (R([rng.gauss(0, s) for _ in range(d)]) for s in (10**scale, 1.0))
    for A, definition in (Exact, plain), (C, plain_c):
        assert bits(llama2.rmsnorm(A, x, w)) == bits(definition.rmsnorm(x, w))


def test_infinities_and_nan_are_those_of_the_definition():
    inf, nan = math.inf, math.nan
    assert Exact.dots(Exact.Matrix([(inf, inf), (1.0, 2.0)]), Exact.operand((-1.0, -1.0))) == (-inf, -3.0)
    assert Exact.dots(Exact.Matrix([(1.0, 0.0)]), Exact.operand((inf, 1.0))) == (inf,)
    for row, x in (((inf, -inf), (1.0, 1.0)), ((inf, 1.0), (0.0, 1.0)), ((nan, 1.0), (1.0, 1.0))):
        assert math.isnan(Exact.dots(Exact.Matrix([row]), Exact.operand(x))[0])
    got = Exact.exps((0.0, nan, -(2.0**-25), -inf))  # the third is a hair from a tie
    assert (got[0], got[2], got[3]) == (1.0, 1.0, 0.0) and math.isnan(got[1])


def test_rounding_is_that_of_binary32():
    assert R([0.1, 1e39, -1e39, 1 + 2.0**-24, 1 + 3 * 2.0**-24, 2.0**-150, -(2.0**-150), 2.0**-150 * 1.001]) == (
        0.10000000149011612, math.inf, -math.inf, 1.0, 1 + 2.0**-22, 0.0, 0.0, 2.0**-149)
    assert math.copysign(1, r(-(2.0**-150))) == -1
    assert list(running_sums([1.0, 2.0**-24, 2.0**-24])) == [1.0, 1.0, 1.0]


def test_a_missing_c_library_is_told_and_exact_needs_none(files, model, monkeypatch, capfdbinary):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    libm.cache_clear()
    message = failure(capfdbinary, *model, "-s", 1, "--like", "llama2.c")
    assert message == "the C library's powf is not to be found; the arithmetic `exact` needs none"
    assert command(capfdbinary, *model, "-s", 1, "-n", 3)[0] == 0
