"""The operations of a Llama one by one, and how far float32 may stray in each.

    right = Operations(shard, tokens, get)              # get(op, layer, pos): the results of another program
    y = right.result("q", 2, 7)                         # q of layer 2 at position 7, from that program's own inputs
    sigma, bound = right.errors("q", 2, 7, y)           # what a float32 program may differ from it

Each operation is a method that asks for its inputs: from another program's numbers, so that it inherits nothing of what
went wrong before, or from its own earlier results, which makes it a model (class Model). mistakes/ replaces one or
two of these methods to make a known mistake.

Results are those of real numbers, computed in binary64; their bits are defined by llama2.py, not here.

    u        2^-24: a float32 operation errs by at most u times its result
    n        the length of a sum
    sigma    for each element of a result: the error that float32 programs make, as a standard deviation
    bound    for each element: the error that none exceeds, in any order of summation, with or without FMA
"""
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import exp, fsum, hypot, sqrt
from operator import add, mul, sub
from typing import Any

from llama2_py.doctor.errors import (FLUSHED, ROUNDED, ROUNDED_TWICE, Errors, angle_error, dot_errors, norm_errors,
                                     residual_errors, rope_errors, softmax_errors, swiglu_errors)
from llama2_py.doctor.precision import PRECISIONS, Precision
from llama2_py.engine.frequencies import scaled
from llama2_py.engine.graph import NORMS, PRODUCTS, ROTATED, sequence
from llama2_py.engine.rows import split

TWICE = (*NORMS, "swiglu")  # whose results are rounded twice, if they are rounded to 16 bits

# How far a result may be from its definition: beyond the bound it is impossible, beyond these it is unlikely. (Right
# programs were seen to stay below 2.3 sigma in the root mean square, and 7.5 sigma in one element.)
UNLIKELY, UNLIKELY_ONE = 4.0, 16.0


@dataclass
class Judgement:
    """How far another program's result of one operation is from its definition."""
    sigmas: float      # root mean square of the differences, each in its sigma
    worst: float       # the largest of them
    at: int            # its element
    bounds: float      # the largest difference in its bound

    @property
    def impossible(self) -> bool:
        """Beyond what any order of summation gives?"""
        return self.bounds > 1

    @property
    def wrong(self) -> bool:
        """Impossible or unlikely?"""
        return self.impossible or self.sigmas > UNLIKELY or self.worst > UNLIKELY_ONE


def judge(theirs: Sequence[float], y: Sequence[float], errors: Errors) -> Judgement:
    """Another program's result (n), what it should be (n), its sigmas and bounds (n each) -> the judgement."""
    off = list(map(abs, map(sub, theirs, y)))
    sigmas, bounds = ([d / (e + FLUSHED) for d, e in zip(off, error, strict=True)] for error in errors)
    worst = max(sigmas)
    return Judgement(rms(sigmas), worst, sigmas.index(worst), max(bounds))


def rms(x: Sequence[float]) -> float:
    """The root of the mean square."""
    return hypot(*x) / sqrt(len(x))


NO_LENGTH = 1e-30  # stands for the length of a row of zeros


def row_lengths(classifier: Any) -> list[float]:
    """A classifier -> the length of each of its rows / the root mean square of all: so logits share in the noise."""
    lengths = [sqrt(square) or NO_LENGTH for block in classifier.blocks for square in block.squares]
    unit = rms(lengths)
    return [length / unit for length in lengths]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """a, b (n) -> their dot product."""
    return fsum(map(mul, a, b))


def softmax(x: Sequence[float]) -> list[float]:
    """x (n) -> (n)"""
    highest = max(x)
    e = [exp(v - highest) for v in x]
    total = fsum(e)
    return [v / total for v in e]


def sigmoid(a: float) -> float:
    """1 / (1 + exp(-a))"""
    return 1 / (1 + exp(min(-a, 700.0)))


class Operations:
    """Each operation of a model, from its inputs.

    get(op, layer, pos) gives the result of another operation, or None if there is none; then this one has none either.
    """

    epsilon: float | None = None  # another one than the model's
    theta: float | None = None
    precision: Precision = PRECISIONS["float32"]  # what the other program computes in
    sees_later = False            # does a position depend on later ones?

    def __init__(self, shard, tokens: Sequence[int], get: Callable):
        self.shard, self.config, self.tokens, self.given = shard, shard.config, tokens, get
        self.hs, self.group = shard.config.head_size, shard.group
        if self.epsilon is None:
            self.epsilon = shard.config.norm_epsilon
        if self.theta is None:
            self.theta = shard.config.rope_theta
        self.products: dict = {}  # of the current position, before RoPE: (op, layer) -> values
        self.dots: dict = {}      # of the current position: (layer, head) -> position, query times each visible key
        self.kept: dict = {}      # of the current position: ("k" or "v", layer, head) -> position, and history's result
        self.squares: dict = {}   # (layer, position, key head) -> a key times itself
        self.rows: dict = {}      # (matrix, layer) -> the squares of its rows, and their lengths

    def get(self, op, l, pos):
        """Another operation's result. Raises KeyError if there is none."""
        values = self.given(op, l, pos)
        if values is None:
            raise KeyError(op, l, pos)
        return values

    def result(self, op: str, l: int | None, pos: int) -> list[float] | None:
        """The result of an operation, (n); None if an input is not to be had."""
        try:
            if op in NORMS:
                return self.norm(op, l, self.norm_input(op, l, pos))
            return getattr(self, op)(l, pos)
        except KeyError:
            return None

    # -- what enters a layer, and its norms

    def token(self, pos):
        """The token at a position; None if it is not known."""
        return self.tokens[pos]

    def embedding(self, l, pos):
        """(dim)"""
        token = self.token(pos)
        if token is None:
            raise KeyError("token", pos)
        return self.shard.embedding(token)

    def x(self, l, pos):
        """What enters layer l, (dim)."""
        return self.get("ffn_residual", l - 1, pos) if l else self.get("embedding", None, pos)

    def norm_input(self, op, l, pos):
        """What a norm is of, (dim)."""
        if op == "ffn_norm":
            return self.get("attention_residual", l, pos)
        return self.x(self.config.n_layers if op == "final_norm" else l, pos)

    def norm(self, op, l, x):
        """x (dim) -> (dim)"""
        return list(map(mul, self.norm_weight(op, l), self.normalized(x)))

    def normalized(self, x):
        """x (dim) -> (dim): divided by its root mean square."""
        s = self.inverse_root(dot(x, x) / len(x))
        return [s * v for v in x]

    def inverse_root(self, mean):
        """What x is multiplied by, given the mean of x^2."""
        return 1 / sqrt(mean + self.epsilon)

    def norm_weight(self, op, l):
        """(dim)"""
        return self.shard.rms_final if op == "final_norm" else getattr(self.shard.layers[l], NORMS[op])

    # -- products with a matrix

    def matrix(self, name, l):
        """A matrix of the model, as workers.Rows."""
        return self.shard.classifier if name == "classifier" else getattr(self.shard.layers[l], name)

    def product(self, op, l, pos):
        """The product that an operation begins with, (rows)."""
        name, operand = PRODUCTS[op]
        self.products[op, l] = result = self.matrix(name, l).times([self.get(operand, l, pos)])[0]
        return result

    def v(self, l, pos):
        """(kv_dim)"""
        return self.product("v", l, pos)

    def gate(self, l, pos):
        """(hidden_dim)"""
        return self.product("gate", l, pos)

    def up(self, l, pos):
        """(hidden_dim)"""
        return self.product("up", l, pos)

    def attention_out(self, l, pos):
        """(dim)"""
        return self.product("attention_out", l, pos)

    def ffn_out(self, l, pos):
        """(dim)"""
        return self.product("ffn_out", l, pos)

    def logits(self, l, pos):
        """(vocab)"""
        return self.product("logits", l, pos)

    # -- RoPE

    def q(self, l, pos):
        """(dim)"""
        return self.rotated("q", self.product("q", l, pos), pos)

    def k(self, l, pos):
        """(kv_dim)"""
        return self.rotated("k", self.product("k", l, pos), pos)

    def pairs(self, n):
        """The indices of the pairs that turn, of a vector of n: [(first, second, number of the pair in its head)]"""
        return [(i, i + 1, i % self.hs // 2) for i in range(0, n, 2)]

    def frequency(self, i):
        """By how much pair i turns from one position to the next."""
        return scaled(self.theta ** (-2 * i / self.hs), self.config.rope_scaling, float)

    def position(self, pos):
        """The position that RoPE turns by."""
        return pos

    def angle(self, i, pos):
        """By how much pair i turns at a position, in radians."""
        return self.position(pos) * self.frequency(i)

    def turn(self, i, pos):
        """The cosine and sine of that."""
        angle = self.angle(i, pos)
        return math.cos(angle), math.sin(angle)

    def rotated(self, op, y, pos):
        """y (heads * hs) -> (heads * hs)"""
        turns = functools.cache(lambda i: self.turn(i, pos))
        result = list(y)
        for first, second, i in self.pairs(len(y)):
            a, b = y[first], y[second]
            c, s = turns(i)
            result[first], result[second] = a * c - b * s, a * s + b * c
        return result

    # -- attention

    def kv_head(self, h, op):
        """The key head (op: k) or value head (v) of query head h."""
        return h // self.group

    def visible(self, pos):
        """The positions that a position attends to."""
        return range(pos + 1)

    def cached(self, op, l, t, kv, pos):
        """The key or value (op: k or v) of position t in the cache, of one head, at the time of a position."""
        return self.get(op, l, t)[kv * self.hs:(kv + 1) * self.hs]

    def history(self, op, l, kv, pos):
        """The keys of a head, (pos + 1, hs), or its values in columns, (hs, pos + 1), at the time of a position."""
        at, found = self.kept.get((op, l, kv), (None, None))
        if at != pos:
            found = [self.cached(op, l, t, kv, pos) for t in range(pos + 1)]
            found = list(zip(*found, strict=True)) if op == "v" else found
            self.kept[op, l, kv] = pos, found
        return found

    def scale(self):
        """What scores are multiplied by."""
        return 1 / sqrt(self.hs)

    def scores(self, l, pos, h):
        """The scores of a head, (visible positions)."""
        q, kv, scale = self.get("q", l, pos)[h * self.hs:(h + 1) * self.hs], self.kv_head(h, "k"), self.scale()
        keys = self.history("k", l, kv, pos)
        dots = [dot(q, keys[t]) for t in self.visible(pos)]
        self.dots[l, h] = pos, dots
        return [scale * product for product in dots]

    def key_square(self, l, t, kv, pos):
        """A key times itself."""
        if (l, t, kv) not in self.squares or type(self).cached is not Operations.cached:  # which may depend on pos
            key = self.history("k", l, kv, pos)[t]
            self.squares[l, t, kv] = dot(key, key)
        return self.squares[l, t, kv]

    def probabilities(self, scores):
        """(n) -> (n)"""
        return softmax(scores)

    def weights(self, l, pos):
        """(n_heads * (pos + 1))"""
        result = []
        for h in range(self.config.n_heads):
            p = [0.0] * (pos + 1)
            visible = self.visible(pos)
            if len(visible):
                p[visible.start:visible.stop] = self.probabilities(self.scores(l, pos, h))
            result += p
        return result

    def attention(self, l, pos):
        """(dim)"""
        result = []
        for h, p in enumerate(split(self.get("weights", l, pos), pos + 1)):
            result += [dot(p, column) for column in self.history("v", l, self.kv_head(h, "v"), pos)]
        return result

    # -- feed-forward network and residual connections

    def activation(self, a):
        """SiLU of one number."""
        return a * sigmoid(a)

    def swiglu(self, l, pos):
        """(hidden_dim)"""
        return list(map(mul, map(self.activation, self.get("gate", l, pos)), self.get("up", l, pos)))

    def attention_residual(self, l, pos):
        """(dim)"""
        return list(map(add, self.x(l, pos), self.get("attention_out", l, pos)))

    def ffn_residual(self, l, pos):
        """(dim)"""
        return list(map(add, self.get("attention_residual", l, pos), self.get("ffn_out", l, pos)))

    # -- errors

    def errors(self, op: str, l: int | None, pos: int, y: Sequence[float]) -> Errors:
        """The sigma and the bound of each element of a result y (n), computed in the precision from these inputs."""
        sigma, bound = self._float32_errors(op, l, pos, y)
        u, smallest = self.precision.u, self.precision.smallest
        if not u or op == "embedding":
            return sigma, bound
        roundings, of_sigma = (2, ROUNDED_TWICE) if op in TWICE else (1, ROUNDED)
        return ([hypot(s, of_sigma * u * v, smallest) for s, v in zip(sigma, y, strict=True)],
                [b + roundings * (u * abs(v) + smallest) for b, v in zip(bound, y, strict=True)])

    def _float32_errors(self, op, l, pos, y):
        """The same of float32 arithmetic; of RoPE and softmax with the roundings within them."""
        if op == "embedding":
            return [0.0] * len(y), [0.0] * len(y)
        if op in NORMS:
            return self._norm_errors(op, l, pos, y)
        if op in ("attention_residual", "ffn_residual"):
            return residual_errors(*self.parts(op, l, pos), y)
        if op == "swiglu":
            return swiglu_errors(self.get("gate", l, pos), self.get("up", l, pos), y)
        if op == "weights":
            return self._softmax_errors(l, pos, y)
        if op == "attention":
            return self._attention_errors(l, pos, y)
        products = self.products.get((op, l), y)
        errors = self._product_errors(op, l, pos, products)
        return self._rope_errors(op, pos, products, *errors) if op in ROTATED else errors

    def _norm_errors(self, op, l, pos, y):
        x = self.norm_input(op, l, pos)
        s = self.inverse_root(dot(x, x) / len(x))
        return norm_errors(x, self.norm_weight(op, l), s, y)

    def _product_errors(self, op, l, pos, y):
        """Dot products."""
        name, operand = PRODUCTS[op]
        x = self.get(operand, l, pos)
        if (name, l) not in self.rows:
            squares = list(chain.from_iterable(block.squares for block in self.matrix(name, l).blocks))
            self.rows[name, l] = squares, list(map(sqrt, squares))
        return dot_errors(*self.rows[name, l], dot(x, x), len(x), y)

    def parts(self, op, l, pos):
        """What a residual connection adds up, (dim) each."""
        if op == "attention_residual":
            return self.x(l, pos), self.get("attention_out", l, pos)
        return self.get("attention_residual", l, pos), self.get("ffn_out", l, pos)

    def _rope_errors(self, op, pos, y, sigma, bound):
        """Those of the products before they are turned, and of the turn."""
        log_theta = math.log(self.theta)

        @functools.cache
        def turns(i):
            of_angle = angle_error(2 * i / self.hs, log_theta, self.config.rope_scaling)
            return *map(abs, self.turn(i, pos)), abs(self.angle(i, pos)), of_angle
        return rope_errors(self.pairs(len(y)), turns, y, (sigma, bound), self.precision.u)

    def _softmax_errors(self, l, pos, y):
        sigma, bound = [], []
        for h, p in enumerate(split(y, pos + 1)):
            q, scale, visible = self.get("q", l, pos)[h * self.hs:(h + 1) * self.hs], self.scale(), self.visible(pos)
            kv = self.kv_head(h, "k")
            at, dots = self.dots.get((l, h), (None, ()))
            if at != pos or len(dots) <= pos:
                dots = [dot(q, key) for key in self.history("k", l, kv, pos)]
            squares = [self.key_square(l, t, kv, pos) for t in range(pos + 1)]
            of_dots = dot_errors(squares, map(sqrt, squares), dot(q, q), self.hs, dots)
            of_scores = [scale * d for d in of_dots[0]], [scale * d for d in of_dots[1]]
            scores = [scale * product for product in dots]
            highest = max([scores[t] for t in visible], default=0.0)
            ds, db = self.head_errors(p, scores, highest, of_scores)
            sigma += ds
            bound += db
        return sigma, bound

    def head_errors(self, p, scores, highest, of_scores):
        """Those of a head's weights, p (n), by those of its scores (errors.softmax_errors)."""
        return softmax_errors(p, scores, highest, of_scores, self.precision.u)

    def _attention_errors(self, l, pos, y):
        sigma, bound = [], []
        for h, p in enumerate(split(self.get("weights", l, pos), pos + 1)):
            squares = [dot(column, column) for column in self.history("v", l, self.kv_head(h, "v"), pos)]
            ds, db = dot_errors(squares, map(sqrt, squares), dot(p, p), pos + 1, y[h * self.hs:(h + 1) * self.hs])
            sigma += ds
            bound += db
        return sigma, bound


def in_precision(kind: type[Operations], precision: Precision) -> type[Operations]:
    """Operations of a program that computes in a precision: the same results, other errors."""
    return type(kind.__name__, (kind,), {"precision": precision}) if precision.form else kind


class Model:
    """A model of such operations, each from the results of those before: Model(Operations, shard, tokens)."""

    def __init__(self, kind: type, shard, tokens: Sequence[int], moved: Callable | None = None,
                 check: Callable | None = None):
        """kind: Operations, or a class derived from it. moved(values, sigma) -> values: what is to become of each
        result, given the error that float32 makes; None: nothing. check(): called before each operation."""
        self.results: dict = {}  # (op, layer, pos) -> values
        self.operations = kind(shard, tokens, lambda *place: self.results.get(place))
        self.sequence, self.moved, self.check = sequence(shard.config.n_layers), moved, check

    def logits(self, pos: int) -> Sequence[float]:
        """The logits of a position, (vocab); positions come in order. Raises KeyError if its token is not known."""
        if self.operations.sees_later:
            return self.all_at_once(pos)
        for op, l in self.sequence:
            y = self.compute(op, l, pos)
        for place in list(self.results):
            if place[0] not in ("k", "v"):
                del self.results[place]
        return y

    def compute(self, op: str, l: int | None, pos: int) -> Sequence[float]:
        """An operation of a position, from the results so far."""
        if self.check:
            self.check()
        y = self.operations.result(op, l, pos)
        if y is None:
            raise KeyError(op, l, pos)
        if self.moved:
            y = self.moved(y, self.operations.errors(op, l, pos, y)[0])
        self.results[op, l, pos] = y
        return y

    def all_at_once(self, pos: int) -> Sequence[float]:
        """The same of a model whose positions depend on later ones: each operation of all positions, before the
        next."""
        if not self.results:
            for op, l in self.sequence:
                for t in range(len(self.operations.tokens)):
                    self.compute(op, l, t)
        return self.results["logits", None, pos]
