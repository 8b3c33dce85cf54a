"""Noise: a run that errs at random by as much as float32 programs do.

It goes beside the exact run, in a process of its own, with the same tokens; how far it strays is the unit in which
another program's logits are measured.
"""
import itertools
from collections.abc import Callable, Sequence
from math import cos, dist, exp, fsum, sin, sqrt
from random import Random
from typing import Any

from llama2_py.doctor.operations import U
from llama2_py.engine.arithmetic import Exact
from llama2_py.engine.workers import run_together


class Noisy(Exact):
    """The arithmetic `exact`, with each result moved by its expected error in float32 times a normal random number.

    Of a dot product y = w.x of n numbers that error is u sqrt(0.09 |w|^2 |x|^2 + 0.06 n y^2), with u = 2^-24; other
    constants are relative. They are those of programs that are right: llama2.c under several compilers, numpy, JAX,
    PyTorch and llama.cpp, with sums in their orders.
    """

    normals = itertools.repeat(0.0)  # an endless iterator: a process that makes noise has its own

    @staticmethod
    def dot(a: Sequence[float], b: Sequence[float]) -> float:
        """As Exact.dot, of numbers of one sign."""
        return Exact.dot(a, b) * (1 + 0.24 * sqrt(len(a)) * U * next(Noisy.normals))

    @staticmethod
    def total(values: Sequence[float]) -> float:
        """As Exact.total, of numbers of one sign."""
        return fsum(values) * (1 + 0.24 * sqrt(len(values)) * U * next(Noisy.normals))

    @staticmethod
    def dots(matrix: Exact.Matrix, operand: tuple) -> list[float]:
        """As Exact.dots, by the guess of arithmetic.bounds alone."""
        x, y, square = operand  # of x, -x/2 and |x/2|^2
        lengths, relative = 2 * sqrt(0.09 * square) * U, sqrt(0.06 * len(x)) * U
        guesses = map(dist, matrix.rows, itertools.repeat(y))  # of the root of |w + x/2|^2
        return [(d * d - s - square) * (1 + relative * a) + lengths * sqrt(s) * b for d, s, a, b in zip(
            guesses, matrix.squares, Noisy.normals, Noisy.normals, strict=False)]

    @staticmethod
    def exps(values: Sequence[float]) -> list[float]:
        """As Exact.exps."""
        return [exp(min(v, 88.0)) * (1 + 0.6 * U * next(Noisy.normals)) for v in values]

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


class Alone:
    """A whole model in a worker process, which makes noise there while the first process is exact."""

    def __init__(self, build: Callable, index: int, count: int):
        """build(index, count) makes a shard."""
        random = Random(1)
        Noisy.normals = itertools.cycle([random.gauss(0, 1) for _ in range(65537)])
        self.shard = build(0, 1)

    def passes(self, *job: Any) -> list:
        """As Shard.passes, but already run, so that the processes meet at the end only."""
        async def ended(result):
            return result

        return [ended(result) for result in run_together(self.shard.passes(*job), list)]
