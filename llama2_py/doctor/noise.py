"""Noise: a run that errs at random by as much as other programs do.

    noise = NoisyRun(model.shard, PRECISIONS["float32"], draws(20, 20))
    for position in noise.steps(tokens, 0, observed=False):
        for events, logits in position: ..     # of each draw

It goes beside the exact run, with the same tokens and the same weights; how far it strays is the unit in which another
program's logits are measured.
"""
import copy
import functools
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from itertools import cycle, repeat
from math import cos, dist, exp, fsum, sin, sqrt
from random import Random
from typing import Any

from llama2_py.doctor.errors import ROUNDED, ROUNDED_TWICE, U
from llama2_py.doctor.operations import TWICE
from llama2_py.doctor.precision import Precision
from llama2_py.engine.arithmetic import Exact
from llama2_py.engine.checkpoint import MATRICES
from llama2_py.engine.workers import Shard, run_together

SEED = 1         # fixed, so that a verdict is the same everywhere
NORMALS = 65537  # normal numbers, taken in turn; a prime, so that no two positions have the same

# The expected errors, as standard deviations. In float32, of a dot product y = w.x of n numbers, the root of
# 0.09 |w|^2 |x|^2 + 0.06 n y^2 times u; of sums of one sign, relative; of functions of one number, relative.
OF_LENGTHS, OF_RESULT, OF_SUM, OF_FUNCTION, OF_ANGLE = 0.09, 0.06, 0.24, 0.6, 0.41
# In a format of 16 bits, what is done to a result before the next operation reads it. (Products are moved by dots.)
ROUNDINGS = {**dict.fromkeys(("q", "k", "weights", "attention_residual", "ffn_residual"), ROUNDED),
             **dict.fromkeys(TWICE, ROUNDED_TWICE)}


@functools.cache
def normal_numbers() -> tuple[float, ...]:
    """(NORMALS)"""
    random = Random(SEED)
    return tuple([random.gauss(0, 1) for _ in range(NORMALS)])


class Noisy:
    """The arithmetic `exact`, with each result moved by its expected error in float32 times a normal random number.

    The errors are those of correct programs: llama2.c under several compilers, numpy, JAX, PyTorch and llama.cpp, with
    sums in their orders.
    """

    name = "noisy"
    Matrix, weights, reads = Exact.Matrix, None, "rows"
    operand = staticmethod(Exact.operand)

    def __init__(self) -> None:
        self.normals: Iterator[float] = cycle(normal_numbers())

    def relative(self, error: float) -> float:
        """1 + error u N"""
        return 1 + error * U * next(self.normals)

    def dot(self, a: Sequence[float], b: Sequence[float]) -> float:
        """As Exact.dot, of numbers of one sign."""
        return Exact.dot(a, b) * self.relative(OF_SUM * sqrt(len(a)))

    def total(self, values: Iterable[float]) -> float:
        """As Exact.total, of numbers of one sign."""
        values = list(values)
        return fsum(values) * self.relative(OF_SUM * sqrt(len(values)))

    def dots(self, matrix: Exact.Matrix, operand: tuple) -> tuple[float, ...]:
        """As Exact.dots, by the guess of arithmetic.bounds alone."""
        x, y, square = operand  # of x, -x/2 and |x/2|^2
        lengths, relative = 2 * sqrt(OF_LENGTHS * square) * U, sqrt(OF_RESULT * len(x)) * U
        guesses = map(dist, matrix.rows, repeat(y))  # of the root of |w + x/2|^2
        return tuple([(d * d - s - square) * (1 + relative * a) + lengths * sqrt(s) * b for d, s, a, b in zip(
            guesses, matrix.squares, self.normals, self.normals, strict=False)])

    def exps(self, values: Sequence[float]) -> tuple[float, ...]:
        """As Exact.exps."""
        return tuple([exp(min(v, 88.0)) * self.relative(OF_FUNCTION) for v in values])

    def pow(self, a: float, b: float) -> float:
        """As Exact.pow."""
        return a**b * self.relative(OF_FUNCTION)

    def cos(self, angle: float) -> float:
        """As Exact.cos, of an angle that errs."""
        return cos(angle * self.relative(OF_ANGLE))

    def sin(self, angle: float) -> float:
        """As Exact.sin, of an angle that errs."""
        return sin(angle * self.relative(OF_ANGLE))

    def passed_on(self, layer: int | None, op: str, values: Sequence[float]) -> Sequence[float]:
        """What becomes of an operation's result, (n), before the next one reads it: nothing."""
        return values


class NoisyInFewBits(Noisy):
    """The same for a program that computes in a format of 16 bits. Each result is moved by its rounding; exponentials,
    sums and powers are float32."""

    def __init__(self, u: float) -> None:
        super().__init__()
        self.u = u

    def dots(self, matrix: Exact.Matrix, operand: tuple) -> tuple[float, ...]:
        """As Exact.dots, by the guess of arithmetic.bounds alone."""
        _, y, square = operand
        error = ROUNDED * self.u
        guesses = map(dist, matrix.rows, repeat(y))
        return tuple([(d * d - s - square) * (1 + error * a) for d, s, a in zip(
            guesses, matrix.squares, self.normals, strict=False)])

    def cos(self, angle: float) -> float:
        """As Exact.cos."""
        return cos(angle) * (1 + ROUNDED_TWICE * self.u * next(self.normals))

    def sin(self, angle: float) -> float:
        """As Exact.sin."""
        return sin(angle) * (1 + ROUNDED_TWICE * self.u * next(self.normals))

    def passed_on(self, layer: int | None, op: str, values: Sequence[float]) -> Sequence[float]:
        """What becomes of an operation's result, (n), before the next one reads it: it is rounded."""
        error = ROUNDINGS.get(op, 0.0) * self.u
        if not error:
            return values
        return tuple([v * (1 + error * a) for v, a in zip(values, self.normals, strict=False)])


# One draw's luck weighs more the fewer the steps: with one draw correct programs of 4 to 8 steps came to 3.25 times the
# noise overall, with twelve to 2.03. (In a model of 135M parameters the draws of a step were as far apart as in one of
# 260K, by a factor of 2 and more.) So noise is drawn for so many steps; one draw of each is enough from there on.
DRAWN = 64
MOST_PASSES = 256  # where the steps that are compared come late, draws stop here


def draws(compared: int, steps: int) -> list[int]:
    """How many steps, from the first on, each draw of noise takes, for a run of so many steps, so many of which are
    compared."""
    compared = max(compared, 1)
    if compared < steps:
        return [steps] * max(1, min(-(-DRAWN // compared), MOST_PASSES // steps))
    full, rest = divmod(max(DRAWN, steps), compared)
    return [steps] * full + ([rest] if rest else [])


class NoisyRun:
    """Noisy runs of a model beside the exact one. Each draw has a cache of its own; the weights are the model's."""

    def __init__(self, shard: Shard, precision: Precision, lengths: Sequence[int]):
        """lengths: how many steps each draw takes."""
        noisy = NoisyInFewBits(precision.u) if precision.form else Noisy()
        self.draws = [(with_arithmetic(shard, noisy), length) for length in lengths]

    def steps(self, tokens: Sequence[int], pos: int, observed: bool, skip: int = 0
              ) -> list[list[tuple[list, Sequence[float]]]]:
        """Known tokens from position pos on -> for each position, of each draw its events, if they are observed, and
        its logits; of the first `skip` positions without logits."""
        passes: list[Coroutine] = []
        places: list[int] = []
        for shard, _ in self.draws if pos == 0 else ():
            shard.begin()
        for i, token in enumerate(tokens):
            for shard, length in self.draws:
                if pos + i < length:
                    passes.append(noisy_pass(shard, token, pos + i, observed, i >= skip))
                    places.append(i)
        results: list[list] = [[] for _ in tokens]
        for i, result in zip(places, run_together(passes, list), strict=True):
            results[i].append(result)
        return results


def with_arithmetic(shard: Shard, arithmetic: Any) -> Shard:
    """A shard with the same weights, another arithmetic and a cache of its own."""
    other = copy.copy(shard)
    other.arithmetic = arithmetic
    other.layers = [copy.copy(layer) for layer in shard.layers]
    for layer in other.layers:
        for name in MATRICES:
            setattr(layer, name, getattr(layer, name).with_arithmetic(arithmetic))
    other.classifier = shard.classifier.with_arithmetic(arithmetic)
    other.caches = []
    return other


async def noisy_pass(shard: Shard, token: int, pos: int, observed: bool, wanted: bool
                     ) -> tuple[list, Sequence[float]]:
    """A pass of one draw -> its events, if they are observed, and its logits, if they are wanted."""
    noisy: Any = shard.arithmetic
    events: list = []

    def see(layer: int | None, op: str, values: Sequence[float]) -> Sequence[float]:
        values = noisy.passed_on(layer, op, values)
        if observed:
            events.append((layer, op, values))
        return values

    run_pass: Callable = shard.run_pass
    return events, await run_pass(shard, token, pos, see, wanted)
