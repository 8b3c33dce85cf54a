"""The arithmetic of a Llama, defined to the bit, in two dialects.

    A = Exact
    A.dots(A.Matrix(rows), A.operand(x))    # the product of a matrix and a vector, (n)

Every number is a binary32 value held in a Python float. An operation on two of them is done in binary64 and rounded by
R: for + - * / and sqrt that is the correctly rounded binary32 result, since 53 >= 2 * 24 + 2 bits. The dialects differ
in sums of many numbers and in exp, cos, sin and pow:

    Exact   a sum is the exact real sum, rounded once to binary64 and once to binary32; the functions are correctly
            rounded. Nothing depends on the order of a sum, on the machine or on its C library.
    C       a sum runs from left to right, each product and each partial sum rounded; the functions are the C library's.
            These are the bits of llama2.c, built without -ffast-math and without FMA contraction, and of llama2-rs.

How Exact is fast: guess a result in binary64, bound the error of the guess by a margin, and if guess - margin and
guess + margin round to the same binary32, that is the result, since rounding is monotonic. If they do not, compute the
result by its definition. (This is Ziv's test. Of the embedded model's dot products about one in 20,000 fails it, of its
exponentials hardly any.)
"""
import functools
import math
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal, localcontext
from itertools import repeat
from math import dist, exp, fsum, hypot, isfinite
from operator import add, mul
from struct import Struct, pack, unpack
from typing import Any, Protocol

# ----------------------------------------------------------------------------
# Rounding

FLOAT32 = Struct("f")
BYTE_ORDER = "" if sys.byteorder == "little" else "<"  # for struct: little endian; its native form is read faster


def R(values: Sequence[float]) -> tuple[float, ...]:
    """values (n) -> (n): each rounded to binary32, to the nearest, ties to even; inf if it is too large.

    struct does it in one C loop. Its native format "f" rounds to inf; "<f" would raise OverflowError.
    """
    form = f"{len(values)}f"
    return unpack(form, pack(form, *values))


def r(value: float) -> float:
    """One value rounded to binary32."""
    return unpack("f", pack("f", value))[0]


def to_bytes(values: Iterable[float]) -> bytes:
    """values (n) -> little-endian float32."""
    values = array("f", values)
    if BYTE_ORDER:
        values.byteswap()
    return values.tobytes()


def from_bytes(data: bytes) -> array:
    """Little-endian float32 -> (n)"""
    values = array("f", data)
    if BYTE_ORDER:
        values.byteswap()
    return values


def running_sums(values: Iterable[float]) -> Iterator[float]:
    """values (n) -> (n): the sums of the first 1, 2, ... of them, left to right, each rounded."""
    pack_one, unpack_one = FLOAT32.pack, FLOAT32.unpack  # r, without its two calls: half of the time
    total = 0.0
    for value in values:
        (total,) = unpack_one(pack_one(total + value))
        yield total


# ----------------------------------------------------------------------------
# What a dialect offers


class Matrix(Protocol):
    """Rows (n, d) as a dialect keeps them. It grows by rows (keys) or by columns (values)."""

    squares: Sequence[float]  # the rows' squared lengths, where the dialect needs them

    def __init__(self, rows: Iterable[tuple[float, ...]] = (), squares: Sequence[float] | None = None): ...

    @staticmethod
    def memory(rows: int, columns: int, shared: bool = False, group: int = 0) -> int:
        """Bytes that it takes, roughly; shared: do its rows refer to floats of one table? group: so many int8 weights
        share a scale."""

    def add_row(self, row: tuple[float, ...]) -> None:
        """Add a row (d)."""

    def add_column(self, column: Sequence[float]) -> None:
        """Add a column (n)."""


class Arithmetic(Protocol):
    """The operations that a forward pass is made of. They take and return binary32 values."""

    name: str
    Matrix: Any   # a class that is a Matrix
    weights: Any  # what has Matrix, operand and dots for the weights of a model; None: the arithmetic itself
    reads: str    # the method by which a checkpoint gives the rows of the weights

    def dot(self, a: Sequence[float], b: Sequence[float]) -> float:
        """a, b (d) -> their dot product."""

    def total(self, values: Sequence[float]) -> float:
        """values (n) -> their sum."""

    def operand(self, x: Sequence[float]) -> Any:
        """x (d) as dots wants it: prepared once for all matrices that it meets."""

    def dots(self, matrix: Any, operand: Any) -> Sequence[float]:
        """matrix (n, d), operand of x (d) -> their product, (n)."""

    def exps(self, values: Sequence[float]) -> Sequence[float]:
        """values (n) -> (n): exp of each."""

    def pow(self, a: float, b: float) -> float:
        """a to the power of b."""

    def cos(self, angle: float) -> float:
        """The cosine of an angle in radians."""

    def sin(self, angle: float) -> float:
        """The sine of an angle in radians."""


# ----------------------------------------------------------------------------
# The dialect `exact`


class Exact:
    """The dialect `exact`. Its functions take and return binary32 values; vectors may be any sequences."""

    name = "exact"
    weights: Any = None
    reads = "rows"

    @staticmethod
    def dot(a: Sequence[float], b: Sequence[float]) -> float:
        """a, b (d) -> their dot product, by definition.

        Each product is exact, since 24 + 24 bits fit in 53. fsum rounds their sum once, r once more. nan where
        infinities cancel.
        """
        try:
            return r(fsum(map(mul, a, b)))
        except ValueError:
            return math.nan

    @staticmethod
    def total(values: Iterable[float]) -> float:
        """values (n) -> their sum."""
        return r(fsum(values))

    class Matrix:
        """Rows (n, d), and their squared lengths (n), which dots needs. It grows by rows (keys) or columns (values)."""

        def __init__(self, rows: Iterable[tuple[float, ...]] = (), squares: Sequence[float] | None = None):
            self.rows = list(rows)
            self._measure(squares)

        def _measure(self, squares=None):
            self.squares = squares or [hypot(*row) ** 2 for row in self.rows]
            self.largest = max(self.squares, default=0.0)

        @staticmethod
        def memory(rows: int, columns: int, shared: bool = False, group: int = 0) -> int:
            """Bytes that it takes, roughly: a float 32 in CPython's allocator, unless it is shared, a pointer to it 8;
            a row's tuple and its square 104."""
            return (8 if shared else 40) * rows * columns + 104 * rows + 400

        def add_row(self, row: tuple[float, ...]) -> None:
            """Add a row (d)."""
            self.rows.append(row)
            self.squares.append(hypot(*row) ** 2)
            self.largest = max(self.largest, self.squares[-1])

        def add_column(self, column: Sequence[float]) -> None:
            """Add a column (n)."""
            rows = self.rows or [()] * len(column)
            self.rows = [(*row, value) for row, value in zip(rows, column, strict=True)]
            self._measure()  # anew, since adding value**2 to each square would add up rounding errors

    @staticmethod
    def operand(x: Sequence[float]) -> tuple:
        """x (d) -> x, -x/2 and |x/2|^2: what dots needs of a vector, prepared once for all matrices that it meets."""
        y = tuple([-0.5 * v for v in x])  # a tuple, since dist would copy a list at each call
        return x, y, hypot(*y) ** 2

    @staticmethod
    def dots(matrix: Matrix, operand: tuple) -> tuple[float, ...]:
        """matrix (n, d), operand of x (d) -> (n): tuple(dot(row, x) for row in matrix.rows)

        That line is the definition. Here bounds encloses all n results at once; where both ends of an enclosure round
        to the same binary32, that is the result, and elsewhere dot computes it. Three to four times as fast as
        sum(map(mul, row, x)) with CPython 3.11.
        """
        lowest, width = bounds(matrix, operand)
        if not isfinite(width):  # an activation overflowed
            return tuple([Exact.dot(row, operand[0]) for row in matrix.rows])
        form = f"{len(lowest)}f"
        low, high = pack(form, *lowest), pack(form, *[value + width for value in lowest])
        if low == high:  # compared as bytes, since -0.0 == 0.0
            return unpack(form, low)
        results = list(unpack(form, low))
        for i, (a, b) in enumerate(zip(memoryview(low).cast("I"), memoryview(high).cast("I"), strict=True)):
            if a != b:
                results[i] = Exact.dot(matrix.rows[i], operand[0])
        return tuple(results)

    @staticmethod
    def exps(values: Sequence[float]) -> tuple[float, ...]:
        """values (n) -> (n): exp of each, correctly rounded; inf where it is too large."""
        try:
            guesses = list(map(exp, values))
        except OverflowError:  # binary64 overflows at 709.8, binary32 already at 88.7
            guesses = list(map(exp, map(min, values, repeat(100.0))))
        form = f"{len(guesses)}f"
        low, high = pack(form, *[g * LESS for g in guesses]), pack(form, *[g * MORE for g in guesses])
        if low == high:
            return unpack(form, low)
        return tuple([certified(guess, Decimal.exp, value) for guess, value in zip(guesses, values, strict=True)])

    @staticmethod
    def pow(a: float, b: float) -> float:
        """a to the power of b, correctly rounded."""
        return certified(a**b, pow, a, b)

    @staticmethod
    def cos(angle: float) -> float:
        """The cosine of an angle in radians, correctly rounded."""
        return certified(math.cos(angle), decimal_cos, angle)

    @staticmethod
    def sin(angle: float) -> float:
        """The sine of an angle in radians, correctly rounded."""
        return certified(math.sin(angle), decimal_sin, angle)

def bounds(matrix: Exact.Matrix, operand: tuple) -> tuple[list[float], float]:
    """matrix (n, d), operand of x (d) -> lowest (n) and width: the exact dot product of row i and x lies between
    lowest[i] and lowest[i] + width.

    The guess is w.x = |w + x/2|^2 - |w|^2 - |x/2|^2. Its first term is the square of math.dist(w, -x/2), the fastest
    loop over two vectors in the standard library (about 1.5 times as fast as sumprod, which came with Python 3.12).

    Its error, with u = 2^-53 and S = |w|^2 + |x/2|^2: dist errs by 3u (the differences by u, the root of the sum of
    their squares by an ulp), and so its square, of at most 2S, by 7u, which is 14u S; the two squared lengths by 5u S,
    the four sums by 5u S. Together 24u S = 3 * 2^-50 S, and the margin is more than twice that of the longest row.
    """
    _, y, square = operand
    margin = (matrix.largest + square) * 2.0**-47
    offset = square + margin
    lowest = [d * d - s - offset for d, s in zip(map(dist, matrix.rows, repeat(y)), matrix.squares, strict=True)]
    return lowest, 2 * margin


LESS, MORE = 1 - 2.0**-50, 1 + 2.0**-50  # the margin of a guess by the C library: four ulps or more
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")


def certified(guess: float, function: Callable, *arguments: float) -> float:
    """function(*arguments) rounded to binary32, given a binary64 guess of it that is good to 2^-50.

    The guess leaves one candidate, or two neighbours. Of two, the function, computed in decimal, tells on which side of
    their midpoint it is. (It is never the midpoint itself: exp, cos, sin and pow have no ties here.)
    """
    low, high = sorted(R((guess * LESS, guess * MORE)))
    if low == high or guess != guess:  # the second: nan
        return low
    with localcontext() as context:
        context.prec = 80  # digits: far more than any number here needs to leave the midpoint
        midpoint = (Decimal(low) + Decimal(min(high, 2.0**128))) / 2  # inf stands for 2^128, the next after the largest
        return high if function(*map(Decimal, arguments)) > midpoint else low


def decimal_cos(angle: Decimal) -> Decimal:
    """The cosine to the context's precision: Taylor's series, after taking off whole turns."""
    angle -= (angle / (2 * PI)).to_integral_value() * 2 * PI
    term, result, n = Decimal(1), Decimal(0), 0
    while result + term != result:
        result, n = result + term, n + 2
        term = -term * angle * angle / (n * (n - 1))
    return result


def decimal_sin(angle: Decimal) -> Decimal:
    """The sine to the context's precision."""
    return decimal_cos(angle - PI / 2)


# ----------------------------------------------------------------------------
# The dialect `c`


class C:
    """The dialect `c`, with the same functions as Exact."""

    name = "c"
    weights: Any = None
    reads = "rows"

    class Matrix:
        """Rows (n, d), kept as columns (d, n): dots advances the sums of all rows together, 2.5 times as fast as row by
        row."""

        squares = ()  # Exact's rows have some

        def __init__(self, rows: Iterable[Sequence[float]] = (), squares: Sequence[float] = ()):
            self.columns = [array("f", column) for column in zip(*rows, strict=True)]

        @staticmethod
        def memory(rows: int, columns: int, shared: bool = False, group: int = 0) -> int:
            """Bytes that it takes, roughly: a number 4, an array 100."""
            return 4 * rows * columns + 100 * columns + 400

        def add_row(self, row: Sequence[float]) -> None:
            """Add a row (d)."""
            self.columns = self.columns or [array("f") for _ in row]
            for column, value in zip(self.columns, row, strict=True):
                column.append(value)

        def add_column(self, column: Sequence[float]) -> None:
            """Add a column (n)."""
            self.columns.append(array("f", column))

    @staticmethod
    def dot(a: Sequence[float], b: Sequence[float]) -> float:
        """a, b (d) -> their dot product."""
        return C.total(R([u * v for u, v in zip(a, b, strict=True)]))

    @staticmethod
    def total(values: Iterable[float]) -> float:
        """values (n) -> their sum."""
        return [0.0, *running_sums(values)][-1]

    @staticmethod
    def operand(x: Sequence[float]) -> Sequence[float]:
        """x as dots wants it: as it is."""
        return x

    @staticmethod
    def dots(matrix: Matrix, x: Sequence[float]) -> tuple[float, ...]:
        """matrix (n, d), x (d) -> (n): tuple(dot(row, x) for row in the matrix)"""
        n = len(matrix.columns[0])
        form, sums = Struct(f"{n}f"), (0.0,) * n
        for column, v in zip(matrix.columns, x, strict=True):
            products = form.unpack(form.pack(*[w * v for w in column]))
            sums = form.unpack(form.pack(*map(add, sums, products)))
        return sums

    @staticmethod
    def exps(values: Sequence[float]) -> tuple[float, ...]:
        """values (n) -> (n): expf of each."""
        return tuple(map(libm("expf", 1), values))

    @staticmethod
    def pow(a: float, b: float) -> float:
        """powf"""
        return libm("powf", 2)(a, b)

    @staticmethod
    def cos(angle: float) -> float:
        """cosf"""
        return libm("cosf", 1)(angle)

    @staticmethod
    def sin(angle: float) -> float:
        """sinf"""
        return libm("sinf", 1)(angle)


@functools.cache
def libm(name: str, arguments: int) -> Callable:
    """A function of the C library on binary32 values. Raises ValueError if it is not to be found."""
    import ctypes.util  # here, since `exact` needs none
    try:
        function = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
    except (OSError, AttributeError):
        raise ValueError(f"the C library's {name} is not to be found; the arithmetic `exact` needs none") from None
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * arguments
    return function


ARITHMETIC: dict[str, Arithmetic] = {"exact": Exact, "c": C}  # type: ignore[dict-item]  # classes of static methods
