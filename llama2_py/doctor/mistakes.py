"""The mistakes that people make when they write a Llama.

    known(config)    # all of them, as replacements for methods of operations.Operations

diagnosis.py tries them on another program's numbers.
"""
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, fsum, inf, sqrt
from operator import add, mul
from struct import pack, unpack
from typing import Any

from llama2_py.engine.arithmetic import Exact, R
from llama2_py.doctor.operations import U, Operations, rms, sigmoid, softmax
from llama2_py.engine.graph import NORMS, PRODUCTS
from llama2_py.engine.rows import Rows, split


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
