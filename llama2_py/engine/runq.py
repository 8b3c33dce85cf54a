"""The arithmetic of llama2.c's runq.c: products of int8 weights with activations that are quantized as well, in groups.

    val = 0
    for each group: val += (float)(sum of its integer products) * weights' scale * activations' scale

from left to right, each step rounded (runq.c: quantize, matmul). All else is the dialect `c`, as in runq.c.
"""
from collections.abc import Sequence
from math import copysign, floor
from operator import add, mul

from llama2_py.engine.arithmetic import C, R, r
from llama2_py.engine.checkpoint import QuantizedRows
from llama2_py.engine.rows import split

LARGEST = 127  # of the int8 numbers that are used


def rounded_away(value: float) -> int:
    """C's round: to the nearest integer, ties away from zero."""
    return int(copysign(floor(abs(value) + 0.5), value))


def quantize(x: Sequence[float], group: int) -> list[tuple[list[int], float]]:
    """x (n) -> for each group its integers and its scale (runq.c: quantize). A group of zeros has the scale 0; runq.c
    divides by it there, and what it makes of that has no effect."""
    result = []
    for part in split(x, group):
        scale = r(max(map(abs, part)) / LARGEST)
        integers = [rounded_away(r(v / scale)) for v in part] if scale else [0] * len(part)
        result.append((integers, scale))
    return result


class QuantizedMatrix:
    """Rows (n, d) of int8 weights, by groups: of each group the integers of all rows, and their scales."""

    squares = ()  # Exact's rows have some

    def __init__(self, rows: QuantizedRows, squares: Sequence[float] | None = None):
        self.group = rows.group
        self.groups = []  # (integers of each row, scales (n))
        for integers, scales in zip(zip(*[split(row, rows.group) for row in rows.integers], strict=True),
                                    zip(*rows.scales, strict=True), strict=True):
            self.groups.append((integers, scales))

    @staticmethod
    def memory(rows: int, columns: int, shared: bool = False, group: int = 0) -> int:
        """Bytes that it takes, roughly: an integer 1; a group's array 80, its scale 32, a pointer to each 8."""
        return rows * (columns // group) * (group + 128) + 400


class QuantizedProducts:
    """What Rows needs of an arithmetic, for the weights alone."""

    Matrix = QuantizedMatrix

    @staticmethod
    def operand(x: Sequence[float]) -> Sequence[float]:
        """x as dots wants it: as it is."""
        return x

    @staticmethod
    def dots(matrix: QuantizedMatrix, x: Sequence[float]) -> tuple[float, ...]:
        """matrix (n, d), x (d) -> (n) (runq.c: matmul)"""
        sums: tuple[float, ...] = (0.0,) * len(matrix.groups[0][1])
        for (integers, scales), (own, scale) in zip(matrix.groups, quantize(x, matrix.group), strict=True):
            products = R([float(sum(map(mul, row, own))) for row in integers])
            products = R(list(map(mul, products, scales)))
            products = R([product * scale for product in products])
            sums = R(list(map(add, sums, products)))
        return sums


class Runq(C):
    """The dialect of runq.c. It reads checkpoints of version 2 alone."""

    name = "runq"
    weights = QuantizedProducts
    reads = "quantized"
