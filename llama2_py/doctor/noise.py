"""Noise: a run that errs at random by as much as float32 programs do.

It goes beside the exact run, in a process of its own, with the same tokens; how far it strays is the unit in which
another program's logits are measured.
"""
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import cos, dist, exp, fsum, sin, sqrt
from random import Random
from typing import Any

from llama2_py.doctor.operations import U
from llama2_py.engine.arithmetic import Exact
from llama2_py.engine.workers import run_together


class Noisy(Exact):
    """The arithmetic `exact`, with each result moved by its expected error in float32 times a normal random number.

    Of a dot product y = w.x of n numbers that error is u sqrt(0.09 |w|^2 |x|^2 + 0.06 n y^2), with u = 2^-24; other
    constants are relative. They are those of correct programs: llama2.c under several compilers, numpy, JAX,
    PyTorch and llama.cpp, with sums in their orders.
    """

    # an iterator without an end: a process that makes noise has its own
    normals: Iterator[float] = itertools.repeat(0.0)

    @staticmethod
    def dot(a: Sequence[float], b: Sequence[float]) -> float:
        """As Exact.dot, of numbers of one sign."""
        return Exact.dot(a, b) * (1 + 0.24 * sqrt(len(a)) * U * next(Noisy.normals))

    @staticmethod
    def total(values: Iterable[float]) -> float:
        """As Exact.total, of numbers of one sign."""
        values = list(values)
        return fsum(values) * (1 + 0.24 * sqrt(len(values)) * U * next(Noisy.normals))

    @staticmethod
    def dots(matrix: Exact.Matrix, operand: tuple) -> tuple[float, ...]:
        """As Exact.dots, by the guess of arithmetic.bounds alone."""
        x, y, square = operand  # of x, -x/2 and |x/2|^2
        lengths, relative = 2 * sqrt(0.09 * square) * U, sqrt(0.06 * len(x)) * U
        guesses = map(dist, matrix.rows, itertools.repeat(y))  # of the root of |w + x/2|^2
        return tuple([(d * d - s - square) * (1 + relative * a) + lengths * sqrt(s) * b for d, s, a, b in zip(
            guesses, matrix.squares, Noisy.normals, Noisy.normals, strict=False)])

    @staticmethod
    def exps(values: Sequence[float]) -> tuple[float, ...]:
        """As Exact.exps."""
        return tuple([exp(min(v, 88.0)) * (1 + 0.6 * U * next(Noisy.normals)) for v in values])

    @staticmethod
    def pow(a: float, b: float) -> float:
        """As Exact.pow."""
        return a**b * (1 + 0.6 * U * next(Noisy.normals))

    @staticmethod
    def cos(angle: float) -> float:
        """As Exact.cos, of an angle that errs."""
        return cos(angle * (1 + 0.41 * U * next(Noisy.normals)))

    @staticmethod
    def sin(angle: float) -> float:
        """As Exact.sin, of an angle that errs."""
        return sin(angle * (1 + 0.41 * U * next(Noisy.normals)))


SEED = 1        # fixed, so that a verdict is the same everywhere
NORMALS = 65537  # normal numbers, taken in turn; a prime, so that no two positions have the same
# One draw's luck weighs more the fewer the steps: with one draw correct programs of 4 to 8 steps came to 3.25 times the
# noise overall, with twelve to 2.03. From DRAWN steps on one is enough.
DRAWN = 64
MOST_PASSES = 256  # where the steps that are compared come late, draws stop here


def draws(compared: int, steps: int) -> int:
    """How often noise is drawn for a run of so many steps, so many of which are compared."""
    return max(1, min(-(-DRAWN // max(compared, 1)), MOST_PASSES // max(steps, 1)))


class Alone:
    """A whole model in a worker process, which makes noise there while the first process is exact. Each draw has a
    cache of its own, and the weights are the same."""

    def __init__(self, build: Callable, draws: int, index: int, count: int):
        """build(index, count) makes a shard."""
        random = Random(SEED)
        Noisy.normals = itertools.cycle([random.gauss(0, 1) for _ in range(NORMALS)])
        self.shard = build(0, 1)
        self.caches: list[list] = [[]] * draws  # of each draw, its layers'

    def passes(self, *job: Any) -> list:
        """As Shard.passes, of all draws, but already run, so that the processes meet at the end only. Each position
        returns its results, draw by draw: [(events, logits)]"""
        results = []
        for draw, caches in enumerate(self.caches):
            self.shard.caches = caches
            results.append(run_together(self.shard.passes(*job), list))
            self.caches[draw] = self.shard.caches
        return [ended(list(position)) for position in zip(*results, strict=True)]


async def ended(result: Any) -> Any:
    """A pass that has been run."""
    return result
