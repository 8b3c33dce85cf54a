"""The mistakes that people make when they write a Llama, and the search for the one that explains wrong numbers.

    known(config)               # all of them, as replacements for methods of operations.Operations
    by_operations(...)          # which of them turn wrong operations into right ones, given each one's own inputs
    by_logits(...)              # which of them, made in a whole model, give the other program's logits

A mistake is named only if with it the numbers come down to rounding: every operation that it is about is right then,
in every layer and at every position; or the logits come within 10 times the noise of float32, and 30 times nearer than
those of the right model. Constants are measured from the numbers first. Of a rounding to few bits (a cache in float16)
the first wrong step tells: later, float32's own noise turns some of those roundings.
"""
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp, fsum, inf, isfinite, sqrt
from operator import add, mul, sub
from random import Random
from struct import pack, unpack
from typing import Any

from arithmetic import Exact, R
from operations import NORMS, PRODUCTS, U, Model, Operations, judge, rms, sigmoid, softmax
from workers import Rows, split


@dataclass
class Mistake:
    """A mistake."""
    name: str
    ops: tuple[str, ...]      # whose results it changes
    methods: dict[str, Any]   # of Operations, replaced
    only: str = ""            # "logits" or "operations": where alone it is tried
    rough: bool = False       # does it round to few bits?
    rare: bool = False        # is it tried by itself alone, not beside a second mistake?

    def kind(self) -> type:
        """Operations with the mistake."""
        return type("Mistaken", (Operations,), self.methods)


# ----------------------------------------------------------------------------
# What replaces a method


def within(method: str, which: str, other: Callable) -> dict:
    """The method, replaced for one operation or matrix, its first argument, alone."""
    def replaced(self, name, *arguments):
        return (other if name == which else getattr(Operations, method))(self, name, *arguments)

    return {method: replaced}


def renamed(method: str, names: dict) -> dict:
    """The method, asked for another operation or matrix than its first argument."""
    return {method: lambda self, name, *rest: getattr(Operations, method)(self, names.get(name, name), *rest)}


def halves(self, n):
    """Operations.pairs: (i, i + hs / 2) of each head."""
    half = self.hs // 2
    return [(h + i, h + i + half, i) for h in range(0, n, self.hs) for i in range(half)]


def through(self, n):
    """Operations.pairs: numbered from head to head."""
    return [(i, i + 1, i // 2) for i in range(0, n, 2)]


def backwards(self, i, pos):
    """Operations.turn, by the opposite angle."""
    c, s = Operations.turn(self, i, pos)
    return c, -s


def backwards_rotated(self, op, y, pos):
    """Operations.rotated, by the opposite angles."""
    return Operations.rotated(self, op, y, -pos)


def over_length(self, op, y, pos):
    """Operations.rotated, with pairs numbered from head to head and frequencies theta^(-2i/n), n the length of y."""
    result, n = list(y), len(y)
    for i in range(n // 2):
        angle = pos * self.theta ** (-2 * i / n)
        a, b, c, s = y[2 * i], y[2 * i + 1], math.cos(angle), math.sin(angle)
        result[2 * i], result[2 * i + 1] = a * c - b * s, a * s + b * c
    return result


def exponent(formula: Callable) -> dict:
    """RoPE's frequency theta^formula(i, hs, dim)."""
    return {"frequency": lambda self, i: self.theta ** formula(i, self.hs, self.config.dim)}


def shifted(kinds: str, by: int, beyond: str) -> Callable:
    """Operations.cached of a cache whose keys or values (kinds: k, v) at position t are those of t + by. Beyond the
    edge there are zeros, or what is at the edge."""
    def cached(self, op, l, t, kv, pos):
        if op in kinds:
            t += by
            if beyond == "zeros" and not 0 <= t <= pos:
                return (0.0,) * self.hs
            t = min(max(t, 0), pos)
        return Operations.cached(self, op, l, t, kv, pos)

    return cached


def rounded_cache(kinds: str, to: Callable) -> dict:
    """A cache whose keys or values are rounded."""
    def cached(self, op, *place):
        x = Operations.cached(self, op, *place)
        return to(x) if op in kinds else x

    return {"cached": cached}


def rounded_softmax(scores: Callable, exponentials: Callable, results: Callable) -> dict:
    """A softmax whose numbers are rounded."""
    def probabilities(self, x):
        x = scores(x)
        highest = max(x)
        e = exponentials([exp(v) for v in scores([v - highest for v in x])])
        total = fsum(e)
        return results([v / total for v in e])

    return {"probabilities": probabilities}


def widened(ops: Sequence[str], extra: Callable) -> dict:
    """Operations.errors, with room for a formula in which numbers cancel: u extra(self, op, l, pos, y) (n) more."""
    def errors(self, op, l, pos, y):
        sigma, bound = Operations.errors(self, op, l, pos, y)
        if op not in ops:
            return sigma, bound
        more = [U * abs(v) for v in extra(self, op, l, pos, y)]
        return list(map(add, sigma, more)), [b + 8 * m for b, m in zip(bound, more, strict=True)]

    return {"errors": errors}


def layer_normalized(self, x):
    """Operations.normalized, less the mean."""
    mean = fsum(x) / len(x)
    return Operations.normalized(self, [v - mean for v in x])


def around_mean(self, op, l, pos, y):
    """What a LayerNorm subtracts, in the units of its result."""
    x = self.norm_input(op, l, pos)
    mean = fsum(x) / len(x)
    deviation = rms([v - mean for v in x]) or inf
    return [8 * (abs(v) + abs(w * mean) / deviation) for v, w in zip(y, self.norm_weight(op, l), strict=True)]


def log_softmax(x: Sequence[float]) -> list[float]:
    """x (n) -> (n)"""
    highest = max(x)
    total = highest + math.log(fsum([exp(v - highest) for v in x]))
    return [v - total for v in x]


def other_matrices(rows: Callable, chosen: Iterable[str]) -> dict:
    """Matrices whose rows are others: rows(shard, name, layer, first, last)."""
    chosen = tuple(chosen)

    @functools.cache
    def built(shard, name, l):
        _, n, columns = shard.checkpoint.tensors[name]
        return Rows(lambda first, last, check: rows(shard, name, l or 0, first, last), shard.checkpoint.release, Exact,
                    range(n), columns, unpacked=n * columns < 2**16)

    return {"matrix": lambda self, name, l: (built(self.shard, name, l) if name in chosen
                                             else Operations.matrix(self, name, l))}


def transposed(shard, name, l, first, last):
    """Rows of a matrix that was taken for its transpose."""
    return list(zip(*shard.checkpoint.rows(name, l), strict=True))[first:last]


def rounded_weights(to: Callable, embedding: bool, norms: bool) -> dict:
    """Weights that are rounded, a row by to(row)."""
    def rows(shard, name, l, first, last):
        return [tuple(to(row)) for row in shard.checkpoint.rows(name, l, first, last)]

    methods = other_matrices(rows, MATRICES)
    if embedding:
        methods["embedding"] = lambda self, l, pos: tuple(to(Operations.embedding(self, l, pos)))
    if norms:
        methods["norm_weight"] = lambda self, op, l: tuple(to(Operations.norm_weight(self, op, l)))
    return methods


def float16(x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n), rounded to float16; what is too large becomes the largest."""
    form = f"{len(x)}e"
    return unpack(form, pack(form, *[max(-65504.0, min(65504.0, v)) for v in x]))


def bfloat16(x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n), rounded to bfloat16, the upper half of a float32."""
    n = len(x)
    bits = [(i + 0x7FFF + (i >> 16 & 1)) & 0xFFFF0000 for i in unpack(f"{n}I", pack(f"{n}f", *x))]
    return unpack(f"{n}f", pack(f"{n}I", *bits))


def int8(group: int) -> Callable:
    """Rounding to 8 bits, in groups of so many numbers with a scale each; 0: a row is a group."""
    def rounded(x):
        result = []
        for part in split(x, group or len(x)):
            (scale,) = R([max(map(abs, part)) / 127])
            result += [round(v / scale) * scale for v in part] if scale else part
        return R(result)

    return rounded


# The one with fewer bits first, since its numbers are in the other as well; half the distance of neighbours at 1
FORMATS = {"bfloat16": (bfloat16, 2.0**-8), "float16": (float16, 2.0**-11)}
ACTIVATIONS = {
    "GELU": lambda self, a: a * (1 + math.erf(a / sqrt(2))) / 2,
    "GELU, by tanh,": lambda self, a: a * (1 + math.tanh(sqrt(2 / math.pi) * (a + 0.044715 * a**3))) / 2,
    "quick GELU, a * sigmoid(1.702 a),": lambda self, a: a * sigmoid(1.702 * a),
    "ReLU": lambda self, a: max(a, 0.0),
    "a sigmoid": lambda self, a: sigmoid(a),
    "tanh": lambda self, a: math.tanh(a),
    "nothing": lambda self, a: a,
}
MATRICES = [name for name, _ in PRODUCTS.values()]
MATMULS, ROPE, HEADS = tuple(PRODUCTS), ("q", "k"), ("weights", "attention")

# ----------------------------------------------------------------------------
# The known mistakes


def known(config, first_wrong: int = 0) -> list[Mistake]:
    """The mistakes that can be made with a model, those with a constant to be measured aside. first_wrong: the first
    step that is wrong, from which attention's window is guessed."""
    found = []

    def know(name, ops, only="", rough=False, rare=False, **methods):
        found.append(Mistake(name, (ops,) if isinstance(ops, str) else ops, methods, only, rough, rare))

    know_rope(know)
    know_attention(know, first_wrong)
    know_norms(know, config.n_layers)
    know_feed_forward(know)
    know_weights(know, config)
    know_tokens(know)
    for name, (to, _) in FORMATS.items():
        for op in ("attention_norm", "q", "attention", "attention_out", "ffn_norm", "swiglu", "ffn_out", "final_norm"):
            know(f"results of {op} are {name}", op, "logits", rough=True, **within(
                "result", op, lambda self, op, l, pos, to=to: to(Operations.result(self, op, l, pos))))
        know(f"x, the residual stream, is {name}", ("attention_residual", "ffn_residual"), "logits", rough=True,
             result=lambda self, op, l, pos, to=to: (to if op.endswith("residual") else list)(
                 Operations.result(self, op, l, pos)))
        know(f"keys and values are {name}", HEADS, rough=True, **rounded_cache("kv", to))
        know(f"keys are {name}", "weights", rough=True, **rounded_cache("k", to))
        know(f"values are {name}", "attention", rough=True, **rounded_cache("v", to))
    return found


def know_rope(know: Callable) -> None:
    """Rotary position embedding."""
    know("RoPE turns halves, (i, i + hs/2), not neighbours, (2i, 2i + 1)", ROPE, pairs=halves)
    know("RoPE is left out", ROPE, rotated=lambda self, op, y, pos: y)
    know("RoPE turns q only, not k", "k", **within("rotated", "k", lambda self, op, y, pos: y))
    know("RoPE turns k only, not q", "q", **within("rotated", "q", lambda self, op, y, pos: y))
    know("RoPE turns the other way", ROPE, turn=backwards)
    for op in ROPE:
        know(f"RoPE turns {op} the other way", op, rare=True, **within("rotated", op, backwards_rotated))
    know("RoPE's cosines and sines are swapped", ROPE, rare=True, turn=lambda self, i, pos: (
        Operations.turn(self, i, pos)[::-1]))
    for factor, text in [(2, "twice the angle: is it applied twice?"), (0.5, "half the angle"),
                         (0.25, "a quarter of the angle"), (math.pi / 180, "degrees taken for radians")]:
        know(f"RoPE turns by {text}", ROPE, rare=True, angle=lambda self, i, pos, by=factor: (
            by * Operations.angle(self, i, pos)))
    know("RoPE turns the first head alone", ROPE, rare=True, pairs=lambda self, n: Operations.pairs(self, self.hs))
    know("RoPE's pairs are counted from head to head, over the length of q or k", ROPE, rare=True, rotated=over_length)
    know("RoPE turns v too", "v", v=lambda self, l, pos: self.rotated("v", Operations.v(self, l, pos), pos))
    for wrong, formula in [("-i/hs", lambda i, hs, dim: -i / hs), ("-4i/hs", lambda i, hs, dim: -4 * i / hs),
                           ("-2i/dim", lambda i, hs, dim: -2 * i / dim), ("0", lambda i, hs, dim: 0),
                           ("-2(i + 1)/hs", lambda i, hs, dim: -2 * (i + 1) / hs)]:
        know(f"RoPE's frequency of pair i is theta^({wrong}), not theta^(-2i/hs)", ROPE, **exponent(formula))
    know("RoPE's pairs are counted from head to head, not within each", ROPE, pairs=through)
    know("RoPE's pairs are counted from head to head, over dim", ROPE, pairs=through,
         **exponent(lambda i, hs, dim: -2 * i / dim))
    for name, (to, _) in FORMATS.items():
        know(f"RoPE's frequencies are rounded to {name}", ROPE, frequency=lambda self, i, to=to: to(
            [Operations.frequency(self, i)])[0])
        know(f"RoPE's angles are rounded to {name}", ROPE, angle=lambda self, i, pos, to=to: to(
            [Operations.angle(self, i, pos)])[0])
        know(f"RoPE's cosines and sines are rounded to {name}", ROPE, turn=lambda self, i, pos, to=to: to(
            Operations.turn(self, i, pos)))
    know("RoPE's positions begin at 1, not at 0", ROPE, "operations", position=lambda self, pos: pos + 1)
    know("RoPE's positions begin at -1, not at 0", ROPE, "operations", position=lambda self, pos: pos - 1)
    know("RoPE's position is always 1", ROPE, "operations", position=lambda self, pos: 1)
    for op, by in ("q", 1), ("q", -1), ("k", 1), ("k", -1):
        know(f"RoPE turns {op} by position {'pos + 1' if by > 0 else 'pos - 1'}", op, **within(
            "rotated", op, lambda self, op, y, pos, by=by: Operations.rotated(self, op, y, pos + by)))


def know_attention(know: Callable, first_wrong: int) -> None:
    """Attention."""
    for kinds, name, ops in ("kv", "key and value head", HEADS), ("k", "key head", "weights"), ("v", "value head",
                                                                                             "attention"):
        for text, other in [("h % kv_heads", lambda self, h: h % self.config.n_kv_heads), ("0", lambda self, h: 0),
                            ("min(h, kv_heads - 1)", lambda self, h: min(h, self.config.n_kv_heads - 1)),
                            ("of query head h + 1", lambda self, h: (h + 1) // self.group % self.config.n_kv_heads)]:
            know(f"query head h uses {name} {text}, not h / (heads / kv_heads)", ops,
                 rare=kinds != "kv" or "+ 1" in text, kv_head=lambda self, h, op, kinds=kinds, other=other: (
                     other(self, h) if op in kinds else Operations.kv_head(self, h, op)))
    know("scores are not divided by sqrt(hs)", "weights", scale=lambda self: 1.0)
    know("scores are divided by hs, not by sqrt(hs)", "weights", scale=lambda self: 1 / self.hs)
    know("scores are divided by sqrt(dim), not by sqrt(hs)", "weights", scale=lambda self: 1 / sqrt(self.config.dim))
    know("a position does not attend to itself (the first does)", "weights",
         visible=lambda self, pos: range(max(pos, 1)))
    know("a position does not attend to itself", "weights", visible=range_before)
    for width in range(max(1, first_wrong - 1), first_wrong + 2):
        know(f"attention sees the last {width} positions only", "weights",
             visible=lambda self, pos, width=width: range(max(0, pos + 1 - width), pos + 1))
    know("scores are divided by sqrt(kv_dim), not by sqrt(hs)", "weights", rare=True,
         scale=lambda self: 1 / sqrt(self.config.n_kv_heads * self.hs))
    know("later positions do not attend to the first", "weights", rare=True,
         visible=lambda self, pos: range(min(pos, 1), pos + 1))
    know("softmax runs over the whole context, zeros included", "weights", rare=True, probabilities=lambda self, x: (
        softmax([*x, *[0.0] * (self.config.seq_len - len(x))])[:len(x)]))
    know("softmax adds 1 to its sum", "weights", rare=True, probabilities=lambda self, x: softmax([*x, 0.0])[:-1])
    know("attention sees the first position only", "weights", visible=lambda self, pos: range(1))
    for kinds, name, ops in ("k", "keys", ("weights",)), ("v", "values", ("attention",)), ("kv", "keys and values",
                                                                                         HEADS):
        for by, time in (-1, "late"), (1, "early"):
            for beyond in "zeros", "the edge":
                know(f"the cache's {name} are one position {time}", ops, cached=shifted(kinds, by, beyond))
    know("softmax is missing: the scores are the weights", "weights", probabilities=lambda self, x: x)
    know("softmax has no exp: the scores are divided by their sum", "weights",
         probabilities=lambda self, x: [v / (fsum(x) or inf) for v in x])
    for name, (to, _) in FORMATS.items():
        know(f"softmax is in {name}", "weights", rough=True, **rounded_softmax(to, to, to))
        know(f"softmax's exponentials and results are {name}", "weights", rough=True, **rounded_softmax(list, to, to))
        know(f"softmax's results are {name}", "weights", rough=True, **rounded_softmax(list, list, to))
        know(f"scores are {name}", "weights", rough=True, **rounded_softmax(to, list, list))


def range_before(self, pos):
    """Operations.visible, without the position itself."""
    return range(pos)


def know_norms(know: Callable, L: int) -> None:
    """The norms."""
    know("epsilon is added outside of the root", tuple(NORMS),
         inverse_root=lambda self, mean: 1 / (sqrt(mean) + self.epsilon))
    know("LayerNorm, which takes off the mean, stands for RMSNorm", tuple(NORMS), normalized=layer_normalized,
         **widened(tuple(NORMS), around_mean))
    know("norms divide by the root of the sum of squares, not of their mean", tuple(NORMS),
         normalized=lambda self, x: [v / sqrt(len(x)) for v in Operations.normalized(self, x)])
    know("the norms' weights are missing", tuple(NORMS), norm_weight=lambda self, op, l: (1.0,) * self.config.dim)
    know("the norms' weights are 1 + weight", tuple(NORMS), norm_weight=lambda self, op, l: [
        1 + w for w in Operations.norm_weight(self, op, l)])
    for op in NORMS:
        know(f"{op} has no weight", op, **within("norm_weight", op, lambda self, op, l: (1.0,) * self.config.dim))
        know(f"{op} is missing", op, **within("norm", op, lambda self, op, l, x: list(x)))
        know(f"{op} multiplies by the weight and does not divide", op, **within(
            "norm", op, lambda self, op, l, x: list(map(mul, x, self.norm_weight(op, l)))))
        for by in (1, -1) if op != "final_norm" and L > 1 else ():
            know(f"{op} has the weight of the layer {'after' if by > 0 else 'before'}", op, rare=True, **within(
                "norm_weight", op, lambda self, op, l, by=by: Operations.norm_weight(self, op, (l + by) % L)))
    swap = {"attention_norm": "ffn_norm", "ffn_norm": "attention_norm"}
    know("the weights of attention_norm and ffn_norm are swapped", tuple(swap), **renamed("norm_weight", swap))
    know("ffn_norm has attention_norm's weight", "ffn_norm", **renamed("norm_weight", {"ffn_norm": "attention_norm"}))
    know("attention_norm has ffn_norm's weight", "attention_norm", **renamed(
        "norm_weight", {"attention_norm": "ffn_norm"}))
    know("final_norm is applied twice", "final_norm", rare=True, **within("norm", "final_norm", lambda self, op, l, x: (
        Operations.norm(self, op, l, Operations.norm(self, op, l, x)))))
    know("ffn_norm is of what entered the layer, before attention", "ffn_norm", **within(
        "norm_input", "ffn_norm", lambda self, op, l, pos: self.x(l, pos)))


def product_of_both(self, op, l, pos, y):
    """gate * up, (hidden_dim)"""
    return list(map(mul, self.get("gate", l, pos), self.get("up", l, pos)))


def know_feed_forward(know: Callable) -> None:
    """The feed-forward network, and the residual connections."""
    for name, function in ACTIVATIONS.items():
        know(f"{name} stands for SiLU", "swiglu", activation=function, **widened(["swiglu"], product_of_both))
    swap = {"w1": "w3", "w3": "w1"}
    know("w1 and w3 are swapped", ("gate", "up"), **renamed("matrix", swap))
    know("SiLU is applied to w3 x, not to w1 x", "swiglu", "operations", swiglu=lambda self, l, pos: list(map(
        mul, map(self.activation, self.get("up", l, pos)), self.get("gate", l, pos))))
    know("w3 x is left out", "swiglu", swiglu=lambda self, l, pos: list(map(
        self.activation, self.get("gate", l, pos))))
    for op, out, norm in ("attention_residual", "attention_out", "attention_norm"), ("ffn_residual", "ffn_out",
                                                                                  "ffn_norm"):
        know(f"{op} is missing: x is not added", op, **{op: lambda self, l, pos, out=out: self.get(out, l, pos)})
        know(f"{op} adds to the result of the norm, not to x", op, **{
            op: lambda self, l, pos, out=out, norm=norm: list(map(
                add, self.get(norm, l, pos), self.get(out, l, pos)))})
        know(f"{op} adds to the embedding, not to x", op, rare=True, **{
            op: lambda self, l, pos, out=out: list(map(
                add, self.get("embedding", None, pos), self.get(out, l, pos)))})
        know(f"{op} adds twice", op, rare=True, **{op: lambda self, l, pos, op=op: [
            a + 2 * b for a, b in zip(*self.parts(op, l, pos), strict=True)]})
    know("ffn_residual adds to what entered the layer, without attention", "ffn_residual",
         ffn_residual=lambda self, l, pos: list(map(add, self.x(l, pos), self.get("ffn_out", l, pos))))


def know_weights(know: Callable, config) -> None:
    """The weights: which, in which order, in which precision."""
    L = config.n_layers
    square = ("wq", "wo", "wk", "wv") if config.n_heads == config.n_kv_heads else ("wq", "wo")
    layers = {op: name for op, (name, _) in PRODUCTS.items() if name != "classifier"}
    for op, name in layers.items():
        if name in square:
            know(f"{name} is transposed", op, **other_matrices(transposed, [name]))
        for by in (1, -1) if L > 1 else ():
            know(f"{name} is that of the layer {'after' if by > 0 else 'before'}", op, rare=True, **within(
                "matrix", name, lambda self, name, l, by=by: Operations.matrix(self, name, (l + by) % L)))
    for one, other, ops in ("wk", "wv", ("k", "v")), ("wq", "wo", ("q", "attention_out")):
        know(f"{one} and {other} are swapped", ops, **renamed("matrix", {one: other, other: one}))
    if L > 1:
        know("the layers run in reverse order", (*layers, "attention_norm", "ffn_norm"), rare=True,
             matrix=lambda self, name, l: Operations.matrix(self, name, None if l is None else L - 1 - l),
             norm_weight=lambda self, op, l: Operations.norm_weight(self, op, None if l is None else L - 1 - l))
        for skipped, name in (0, "first"), (L - 1, "last"):
            know(f"the {name} layer is skipped", "ffn_residual", "logits", rare=True,
                 ffn_residual=lambda self, l, pos, skipped=skipped: (
                     self.x(l, pos) if l == skipped else Operations.ffn_residual(self, l, pos)))
    for by in (1, -1) if L > 1 else ():
        know(f"all weights are those of the layer {'after' if by > 0 else 'before'}",
             (*layers, "attention_norm", "ffn_norm"), rare=True,
             matrix=lambda self, name, l, by=by: Operations.matrix(self, name, None if l is None else (l + by) % L),
             norm_weight=lambda self, op, l, by=by: (
                 Operations.norm_weight(self, op, None if l is None else (l + by) % L)))
    if not config.shared_classifier:
        know("the classifier is the embedding, but this model has one of its own", "logits", **other_matrices(
            lambda shard, name, l, first, last: shard.checkpoint.rows("embedding", 0, first, last), ["classifier"]))
    matrices = ("embedding", *MATMULS)
    for name, (to, _) in FORMATS.items():
        know(f"weights are rounded to {name}", (*matrices, *NORMS), **rounded_weights(to, True, True))
        know(f"weights, without the norms', are rounded to {name}", matrices, **rounded_weights(to, True, False))
        know(f"weights of matrices are rounded to {name}", MATMULS, **rounded_weights(to, False, False))
    for group in [0] + [n for n in (32, 64, 128) if n < config.dim]:
        size = f"groups of {group}" if group else "rows"
        know(f"weights are rounded to int8, in {size}", matrices, **rounded_weights(int8(group), True, False))
        know(f"weights of matrices are rounded to int8, in {size}", MATMULS, **rounded_weights(
            int8(group), False, False))


def errors_of_log_softmax(self, op, l, pos, y):
    """Operations.errors, with that of the sum, which all elements share."""
    sigma, bound = Operations.errors(self, op, l, pos, y)
    if op != "logits":
        return sigma, bound
    return [s + max(sigma) for s in sigma], [b + max(bound) for b in bound]


def know_tokens(know: Callable) -> None:
    """What goes in and comes out."""
    know("BOS, token 1, is missing before the text", "embedding", token=lambda self, pos: (
        self.tokens[pos + 1] if pos + 1 < len(self.tokens) else None))
    know("BOS, token 1, is there twice before the text", "embedding", token=lambda self, pos: (
        self.tokens[max(0, pos - 1)]))
    for token, name in (2, "EOS, token 2,"), (0, "token 0"):
        know(f"{name} stands before the text, not BOS, token 1", "embedding",
             token=lambda self, pos, token=token: self.tokens[pos] if pos else token)
    know("the embedding is multiplied by sqrt(dim)", "embedding", embedding=lambda self, l, pos: [
        sqrt(self.config.dim) * v for v in Operations.embedding(self, l, pos)])
    know("log-probabilities stand for logits", "logits", errors=errors_of_log_softmax, logits=lambda self, l, pos: (
        log_softmax(Operations.logits(self, l, pos))))
    know("probabilities stand for logits", "logits", logits=lambda self, l, pos: softmax(
        Operations.logits(self, l, pos)))
    know("logits are of the norm's input, without its result", "logits", "operations", logits=lambda self, l, pos: (
        self.shard.classifier.times([self.norm_input("final_norm", None, pos)])[0]))


# ----------------------------------------------------------------------------
# Constants, measured


def nearby(value: float) -> list[float]:
    """A measured constant -> the numbers that it may stand for: 0, a power of ten, those with the fewest digits."""
    if value <= 0:
        return [0.0]
    return list(dict.fromkeys([0.0, 10.0**round(math.log10(value)), *[float(f"{value:.{n}g}") for n in range(1, 10)]]))


def epsilon(value: float) -> Mistake:
    """Another epsilon."""
    small = "" if value else ", or so small that it makes no difference here"
    return Mistake(f"epsilon is {value:g}{small}, not 1e-05", tuple(NORMS), {"epsilon": value})


def theta(value: float) -> Mistake:
    """Another base of RoPE's frequencies."""
    return Mistake(f"RoPE's theta is {value:g}, not 10000", ROPE, {"theta": value})


def scale(value: float) -> Mistake:
    """Another factor of the scores."""
    return Mistake(f"scores are multiplied by {value:g}, not by 1/sqrt(hs)", ("weights",), {
        "scale": lambda self: value})


# The constants: where to look for them, on a scale that makes steps even
CONSTANTS = [
    (epsilon, [0.0, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2]),
    (theta, [100.0, 1000.0, 5000.0, 10000.0, 20000.0, 100000.0, 500000.0, 1e6, 1e7]),
    (scale, [2.0**k for k in range(-7, 3)]),
]


def measure_epsilon(operations: Operations, op: str, places: Iterable[tuple]) -> float | None:
    """From the scale of a norm's results: s = 1 / sqrt(mean(x^2) + epsilon). places: (layer, pos, result)."""
    best = None
    for l, pos, y in places:
        x, weight = operations.norm_input(op, l, pos), operations.norm_weight(op, l)
        unscaled = list(map(mul, x, weight))
        s = fsum(map(mul, unscaled, y)) / (fsum(map(mul, unscaled, unscaled)) or inf)
        mean = fsum(map(mul, x, x)) / len(x)
        if s > 0 and (best is None or mean < best[0]):  # the smaller the mean, the more digits epsilon has
            best = mean, 1 / s**2 - mean
    return best and max(best[1], 0.0)


def measure_theta(operations: Operations, op: str, places: Iterable[tuple]) -> float | None:
    """From the angles by which the last pairs of position 1 are turned: theta^(-2i/hs) for pair i."""
    hs, found = operations.hs, []
    for l, pos, y in places:
        if pos != 1 or hs < 4:
            continue
        x, i = operations.product(op, l, pos), 1  # of the later pairs the angles are too small to be exact
        for at in range(2 * i, len(y), hs):
            a, b, c, d = x[at], x[at + 1], y[at], y[at + 1]
            angle = math.atan2(a * d - b * c, a * c + b * d)
            if angle > 1e-6:
                found.append((a * a + b * b, angle ** (-hs / (2 * i))))
    return max(found)[1] if found else None


def measure_scale(operations: Operations, op: str, places: Iterable[tuple]) -> float | None:
    """From the weights of two positions: log(p0 / p1) is the difference of their scores."""
    found = []
    for l, pos, y in places:
        for h, p in enumerate(split(y, pos + 1)):
            scores = operations.scores(l, pos, h)
            for t in range(1, pos + 1):
                difference = (scores[0] - scores[t]) / operations.scale()
                if min(p[0], p[t]) > 1e-3 and difference:
                    found.append((abs(difference), math.log(p[0] / p[t]) / difference))
    return max(found)[1] if found else None


MEASURES = {**{op: (epsilon, measure_epsilon) for op in NORMS}, **{op: (theta, measure_theta) for op in ROPE},
            "weights": (scale, measure_scale)}

# ----------------------------------------------------------------------------
# The search among operations


def by_operations(shard, tokens: Sequence[int], get: Callable, judged: dict[str, list], tell: Callable) -> list[str]:
    """The names of the mistakes that explain the wrong operations.

    get(op, layer, pos): another program's results, as for Operations. judged: op -> [(wrong, layer, pos)], all that
    could be judged. tell(done, of): called from time to time.
    """
    wrong = {op: sorted(places, key=lambda place: not place[0]) for op, places in judged.items()
             if any(place[0] for place in places)}

    def explains(mistake, op, layers=None):
        operations = mistake.kind()(shard, tokens, get)
        for _, l, pos in wrong.get(op, judged[op]):
            try:
                if layers and l not in layers:
                    continue
                y = operations.result(op, l, pos)
                if y is None or judge(get(op, l, pos), y, operations.errors(op, l, pos, y)).wrong:
                    return False
            except (ValueError, OverflowError, ZeroDivisionError):
                return False
        return True

    candidates = [m for m in known(shard.config, first_window(wrong)) if m.only != "logits"]
    explained = {}  # mistake's name -> the wrong operations that it explains
    complete = {}   # those of them whose mistake spoils nothing and leaves nothing of it
    for i, mistake in enumerate(candidates):
        tell(i, len(candidates))
        ops = [op for op in mistake.ops if op in judged]
        mended = [op for op in ops if op in wrong and explains(mistake, op)]
        if mended:
            explained.setdefault(mistake.name, mended)
            if all(op in mended or op not in wrong and explains(mistake, op) for op in ops):
                complete.setdefault(mistake.name, mended)
    for op in wrong:
        if any(op in ops for ops in [*complete.values(), *explained.values()]):
            continue
        few_bits = format_of(shard, tokens, get, op, wrong[op])
        if few_bits:
            explained.setdefault(f"results are {few_bits}", []).append(op)
            continue
        constant = measured(shard, tokens, get, op, wrong, judged, explains)
        if constant:
            complete[constant[0]] = constant[1]
            continue
        texts = peculiar(shard, tokens, get, op, wrong[op])
        own = [mistake for mistake in candidates if op in mistake.ops]
        layers = {l for is_wrong, l, _ in wrong[op] if is_wrong}
        if not texts and len(layers) < len({l for _, l, _ in wrong[op]}):
            texts = [f"{mistake.name} (in layer {', '.join(map(str, sorted(layers)))} alone)"
                     for mistake in own if explains(mistake, op, layers)]
        if not texts:
            texts = [f"{a.name}; and {b.name}" for a, b in combinations(own, 2) if not set(a.methods) & set(b.methods)
                     and explains(Mistake("", (op,), a.methods | b.methods), op)]
        for text in texts:
            complete.setdefault(text, []).append(op)
    return cover(complete, explained, wrong)


def first_window(wrong: dict) -> int:
    """The first position at which the weights of attention are wrong."""
    return min([pos for is_wrong, _, pos in wrong.get("weights", []) if is_wrong], default=0)


def cover(complete: dict, explained: dict, wrong: dict) -> list[str]:
    """The fewest names that explain all wrong operations: whole mistakes, then parts of some, then what is left."""
    names, left = [], set(wrong)
    for table, whole in (complete, True), (explained, False):
        while best := max([set(ops) & left for ops in table.values()], key=len, default=None):
            same = [name for name, ops in table.items() if set(ops) & left == best]
            same = [name for name in same if len(table[name]) == min(len(table[n]) for n in same)]
            text = "; or ".join(same[:3]) + ("; or .." if len(same) > 3 else "")
            names.append(text if whole else f"{text} (in {', '.join(sorted(best))} alone)")
            left -= best
    if names and left:
        names.append(f"one that is not known, in {', '.join(op for op in wrong if op in left)}")
    return names


def measured(shard, tokens, get, op, wrong, judged, explains) -> tuple[str, list[str]] | None:
    """The name of a constant that makes an operation right, with all others of its kind that are wrong if it can, and
    which they are."""
    if op not in MEASURES:
        return None
    constant, measure = MEASURES[op]
    operations = Operations(shard, tokens, get)
    alike = [other for other in judged if MEASURES.get(other, [None])[0] is constant]
    found = []
    for other in alike:
        if other in wrong:
            value = measure(operations, other, [(l, pos, get(other, l, pos)) for _, l, pos in wrong[other]])
            found += [] if value is None or not isfinite(value) else [(other != op, value)]
    for _, value in sorted(found):
        candidates = nearby(value)
        for ops in [other for other in alike if other in wrong], [op]:
            fit = [candidate for candidate in candidates if all(explains(constant(candidate), other) for other in ops)]
            if fit:
                text = constant(fit[0]).name
                if constant is epsilon and fit[0] == 0.0 and len(fit) > 1:
                    text = f"epsilon is smaller than 1e-05, 0 to {max(fit):g}"
                if len(ops) < sum(other in wrong for other in alike):  # more than one value is there
                    text += f" (in {op} alone)"
                elif not all(other in wrong or explains(constant(fit[0]), other) for other in alike):
                    text += f" (in {', '.join(ops)} alone)"
                return text, ops
    return None


def format_of(shard, tokens, get, op, places) -> str | None:
    """The format of few bits that all values of an operation are in, if they are right but for that."""
    operations = Operations(shard, tokens, get)
    for name, (to, distance) in FORMATS.items():
        for _, l, pos in places:
            row, y = get(op, l, pos), operations.result(op, l, pos)
            if tuple(to(row)) != tuple(row):
                break
            rounding = [4 * distance * abs(v) + 2.0**-24 for v in y]  # of the result, and of what it is made of
            _, bound = operations.errors(op, l, pos, y)
            if judge(row, y, (rounding, list(map(add, bound, rounding)))).impossible:
                break
        else:
            return name
    return None


def peculiar(shard, tokens, get, op, places) -> list[str]:
    """What is wrong with the values of an operation by themselves: single elements, or another token's embedding."""
    operations = Operations(shard, tokens, get)
    rows = {(l, pos): get(op, l, pos) for _, l, pos in places}
    if op == "embedding":
        return other_tokens(shard, tokens, rows)
    off = set()
    for _, l, pos in [place for place in places if place[2] == 0] or places:  # there RoPE mixes no two rows
        y = operations.result(op, l, pos)
        sigma, _ = operations.errors(op, l, pos, y)
        off |= {(l, i) for i, (a, b, s) in enumerate(zip(rows[l, pos], y, sigma, strict=True))
                if abs(a - b) > 16 * s + 2.0**-126}
    if 0 < len(off) <= 2 * len({l for l, _ in off}) and (op in PRODUCTS or op in NORMS):
        what, tensor = ("row", PRODUCTS[op][0]) if op in PRODUCTS else ("weight", op)
        where = [f"{what} {i} of " + (f"the {tensor}" if l is None else f"{tensor} in layer {l}")
                 for l, i in sorted(off, key=repr)]
        return [" and ".join(where[:4]) + (" and others are" if len(where) > 4 else " are" if len(where) > 1 else " is")
                + " not the checkpoint's"]
    return []


def other_tokens(shard, tokens, rows) -> list[str]:
    """Embeddings that are those of other tokens."""
    for (_, pos), row in rows.items():
        row = tuple(row)
        if row == tuple(shard.embedding(tokens[pos])):
            continue
        for first in range(0, shard.config.vocab_size, 4096):
            block = shard.checkpoint.rows("embedding", 0, first, min(first + 4096, shard.config.vocab_size))
            if row in block:
                return [f"position {pos} has the embedding of token {first + block.index(row)}, not of {tokens[pos]}"]
        close = [i for i, (a, b) in enumerate(zip(row, shard.embedding(tokens[pos]), strict=True)) if a != b]
        if len(close) <= 2:
            return [f"row {tokens[pos]} of the embedding, element {close[0]}, is not the checkpoint's"]
    return []


# ----------------------------------------------------------------------------
# The search among logits

NEAR, NEARER = 10, 30  # a mistake's logits: within so many times the noise, so many times nearer than the right model's


@dataclass
class Seen:
    """One step: another program's logits, the right ones (vocab each), the root mean square of their noise."""
    theirs: Sequence[float]
    right: Sequence[float]
    noise: float

    def off(self, logits: Sequence[float]) -> float:
        """How far logits are from the other program's: root mean square, in units of the noise."""
        return rms(list(map(sub, self.theirs, logits))) / self.noise


@dataclass
class Fit:
    """How well a mistake explains the logits."""
    noise: float   # how far it is from them, in units of their noise: root mean square over all steps
    nearer: float  # by how many times nearer it is than the right model
    rough: bool    # is it judged by the first wrong step alone?

    @property
    def explains(self) -> bool:
        """Is this rounding, and was it none?"""
        return self.noise <= NEAR and self.nearer >= NEARER


class Search:
    """The search for a mistake that explains logits."""

    def __init__(self, shard, tokens: Sequence[int], steps: Sequence[Seen], tell: Callable):
        self.shard, self.tokens, self.steps, self.tell = shard, tokens, steps, tell
        self.before = [step.off(step.right) for step in steps]  # how far the right model is, by step
        self.first = next((pos for pos, off in enumerate(self.before) if off > 12), 0)

    def fit(self, mistake: Mistake, whole: bool = True) -> Fit | None:
        """Make the mistake, step by step; None as soon as it cannot be the one. whole: take all steps, or else the
        first ones after the first wrong one."""
        model, offs = Model(mistake.kind(), self.shard, self.tokens), []
        count = len(self.steps) if whole else min(len(self.steps), max(12, self.first + 6))
        for pos in range(self.first + 1 if mistake.rough else count):
            try:
                logits = model.logits(pos)
            except (KeyError, ValueError, OverflowError, ZeroDivisionError):
                break
            offs.append(self.steps[pos].off(logits))
            if not offs[-1] <= 12 * NEAR or mistake.rough and pos < self.first and offs[-1] > 12:
                return None
        if len(offs) <= self.first or not mistake.rough and len(offs) < min(2, count):
            return None
        if mistake.rough:
            return Fit(offs[-1], self.before[self.first] / (offs[-1] or 1e-9), True)
        noise, nearer = rms(offs), rms(self.before[:len(offs)]) / (rms(offs) or 1e-9)
        if noise > NEAR and nearer >= 1000:  # the mistake may enlarge float32's noise
            noise /= self.amplification(mistake, len(offs))
        return Fit(noise, nearer, False)

    def amplification(self, mistake: Mistake, count: int) -> float:
        """The noise of a model with the mistake, in units of the right one's."""
        random = Random(1)
        noisy = Model(mistake.kind(), self.shard, self.tokens, lambda y, sigma: [
            v + s * random.gauss(0, 1) for v, s in zip(y, sigma, strict=True)])
        quiet = Model(mistake.kind(), self.shard, self.tokens)
        return max(1.0, rms([rms(list(map(sub, noisy.logits(pos), quiet.logits(pos)))) / self.steps[pos].noise
                             for pos in range(count)]))

    def best(self, mistakes: Sequence[Mistake]) -> list[str]:
        """The names of the mistakes that explain the logits alike."""
        found = []
        for i, mistake in enumerate(mistakes):
            self.tell(i, len(mistakes))
            fit = self.fit(mistake, whole=False)
            if fit and fit.explains:
                fit = self.fit(mistake)
                if fit and fit.explains:
                    found.append((fit.noise, mistake))
        if any(mistake.rough for _, mistake in found):  # the first wrong step is explained: what do the others say?
            right = rms(self.before[:max(16, self.first + 8)])
            found = [(self.distance(mistake), mistake) for _, mistake in found]
            found = [(noise, mistake) for noise, mistake in found if noise < 0.8 * right or not mistake.rough]
        limit = 1.5 * max(1.0, min([noise for noise, _ in found], default=0.0))
        return list(dict.fromkeys(self.described(m) for noise, m in sorted(found, key=lambda pair: pair[0])
                                  if noise <= limit))

    def distance(self, mistake: Mistake) -> float:
        """How far it is from the logits of all steps, root mean square, in units of their noise."""
        model = Model(mistake.kind(), self.shard, self.tokens)
        return rms([step.off(model.logits(pos)) for pos, step in enumerate(self.steps[:max(16, self.first + 8)])])

    def described(self, mistake: Mistake) -> str:
        """Its name, and how sure it is."""
        if mistake.rough and len(self.steps) > self.first + 1:
            return f"{mistake.name} (seen at step {self.first}; later, float32's noise turns some of these roundings)"
        return mistake.name

    def constants(self) -> list[str]:
        """The names of constants that explain the logits."""
        found = []
        for constant, grid in CONSTANTS:
            def off(value, constant=constant, far=1e30):
                model = Model(constant(value).kind(), self.shard, self.tokens)
                try:
                    rows = [model.logits(pos) for pos in range(min(len(self.steps), self.first + 3))]
                except (ValueError, OverflowError, ZeroDivisionError):
                    return far, []
                return rms([step.off(row) for step, row in zip(self.steps, rows)]), rows  # noqa: B905

            value = min(grid, key=lambda v: off(v)[0])
            value = self.refined(off, value, linear=constant is epsilon)
            for candidate in nearby(value):
                fit = self.fit(constant(candidate), whole=False)
                if fit and fit.explains and fit.noise < 3:
                    fit = self.fit(constant(candidate))
                if fit and fit.explains and fit.noise < 3:
                    found.append(constant(candidate).name)
                    break
        return found

    def refined(self, off: Callable, value: float, linear: bool) -> float:
        """The value of a constant for which the logits are nearest: Newton's method (Gauss-Newton) on its value, or on
        its logarithm."""
        for _ in range(8):
            step = 1e-6 if linear else 1e-4 * value
            distance, rows = off(value)
            _, moved = off(value + step)
            if not rows or not moved:
                return value
            slope = [(b - a) / s.noise for s, r, m in zip(self.steps, rows, moved) for a, b in zip(r, m)]  # noqa: B905
            rest = [(t - a) / s.noise for s, r in zip(self.steps, rows) for a, t in zip(r, s.theirs)]  # noqa: B905
            change = step * fsum(map(mul, slope, rest)) / (fsum(map(mul, slope, slope)) or inf)
            new = max(value + change, 0.0) if linear else value * math.exp(max(-1.0, min(1.0, change / value)))
            if abs(new - value) < 1e-9 * (1 if linear else value) or off(new)[0] >= distance:
                return value if off(new)[0] >= distance else new
            value = new
        return value


def by_logits(shard, tokens: Sequence[int], steps: Sequence[Seen], tell: Callable) -> list[str]:
    """The names of the mistakes that explain logits which are not the right model's: alternatives, which fit alike."""
    search = Search(shard, tokens, steps, tell)
    simple = rounded_logits(steps) + out_of_step(steps) + one_row(shard, tokens, steps)
    if simple:
        return simple
    mistakes = [m for m in known(shard.config, search.first) if m.only != "operations"]
    return search.best(mistakes) or search.constants() or pairs(search, mistakes)


def bits_of(rows: Iterable[Sequence[float]]) -> str | None:
    """The format of few bits that all numbers are in."""
    rows = list(rows)
    return next((name for name, (to, _) in FORMATS.items() if all(tuple(to(row)) == tuple(row) for row in rows)), None)


def rounded_logits(steps: Sequence[Seen]) -> list[str]:
    """Logits that are the right ones, rounded to few bits."""
    name = bits_of([step.theirs for step in steps])
    if name is None:
        return []
    distance = 1.01 * FORMATS[name][1]
    right = all(abs(a - b) <= distance * abs(b) + 16 * step.noise for step in steps
                for a, b in zip(step.theirs, step.right, strict=True))
    return [f"logits are {name}"] * right


def out_of_step(steps: Sequence[Seen]) -> list[str]:
    """Rows of logits that are one step early or late."""
    names = []
    for by, name in (1, "early: row t has the logits of step t + 1"), (-1, "late: row t has those of step t - 1"):
        pairs = [(step, steps[i + by]) for i, step in enumerate(steps) if 0 <= i + by < len(steps)]
        if pairs and rms([step.off(other.right) for step, other in pairs]) <= NEAR:
            names.append(f"rows are one step {name}")
    return names


def one_row(shard, tokens: Sequence[int], steps: Sequence[Seen]) -> list[str]:
    """One or two logits that are wrong while all others are right."""
    norms = [sqrt(s) for block in shard.classifier.blocks for s in block.squares]
    unit = rms(norms)
    off, before = set(), []  # tokens whose logits are off; the steps before the first of them enters the model
    for pos, step in enumerate(steps):
        if tokens[pos] in off:
            break
        before.append(step)
        for i, (a, b, w) in enumerate(zip(step.theirs, step.right, norms, strict=True)):
            if abs(a - b) * unit > 16 * w * step.noise:
                off.add(i)
        if len(off) > 2:
            return []
    rest = [rms([a - b for i, (a, b) in enumerate(zip(s.theirs, s.right, strict=True)) if i not in off]) / s.noise
            for s in before]
    if not off or rms(rest) > 2:
        return []
    return ["; and ".join(f"row {i} of the classifier is not the checkpoint's: the logit of token {i} alone is wrong"
                          for i in sorted(off)) + ("" if len(before) == len(steps) else
                                                  ", until that token, whose embedding it is, is an input")]


def pairs(search: Search, mistakes: Sequence[Mistake]) -> list[str]:
    """Two mistakes made together, in a model so small that some thousand steps are soon made.

    The first step needs no search over all pairs: RoPE and attention leave it as it is. So what explains it alone is
    one of the two, and the other is among those that leave it.
    """
    c = search.shard.config
    if c.n_layers * c.dim * (2 * c.dim + 3 * c.hidden_dim) + c.vocab_size * c.dim > 10**6:
        return []
    step, right = search.steps[0], Model(Operations, search.shard, search.tokens).logits(0)
    explain, keep, change = [], [], []  # what they do to the first step
    for mistake in mistakes:
        if mistake.rough or mistake.rare or "rounded" in mistake.name:
            continue
        try:
            logits = Model(mistake.kind(), search.shard, search.tokens).logits(0)
        except (KeyError, ValueError, OverflowError, ZeroDivisionError):
            continue
        kept = rms(list(map(sub, logits, right))) <= NEAR * step.noise
        (keep if kept else explain if step.off(logits) <= NEAR else change).append(mistake)
    if search.before[0] <= NEAR:
        both = list(combinations(keep, 2))
    elif explain:
        both = [(a, b) for a in explain for b in keep]
    else:
        both = list(combinations(change, 2))
    for i, (a, b) in enumerate(both):
        search.tell(i, len(both))
        if set(a.methods) & set(b.methods):
            continue
        name = f"two mistakes: {a.name}; and {b.name}"
        fit = search.fit(Mistake(name, (), a.methods | b.methods))
        if fit and fit.explains:
            return [name]
    return []
