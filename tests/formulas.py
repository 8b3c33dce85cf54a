"""Ports in few words, each of which does one thing wrong that the doctor has a name for: ports.Right with one or two
methods replaced.
"""
import math

from tests.ports import TOKENS, WRONG, Right, bf16, cut, f16, f32, float8, tensor_float

FORMULAS = {}  # a name, or its beginning -> the port


def formula(name, **methods):
    assert name not in FORMULAS
    FORMULAS[name] = type("Port", (Right,), methods)


# -- norms

for op, tensor in ("attention_norm", "rms_att"), ("ffn_norm", "rms_ffn"), ("final_norm", "rms_final"):
    formula(f"{op} has no weight", weights=lambda self, name, l, tensor=tensor: [
        [1.0] * self.c.dim] if name == tensor else Right.weights(self, name, l))
    formula(f"{op} is missing", norm=lambda self, name, l, x, tensor=tensor: (
        list(x) if name == tensor else Right.norm(self, name, l, x)))
    formula(f"{op} multiplies by the weight", norm=lambda self, name, l, x, tensor=tensor: (
        [w * v for w, v in zip(self.weights(name, l)[0], x, strict=True)] if name == tensor else
        Right.norm(self, name, l, x)))
    for by, text in ((1, "after"), (-1, "before")) * (op != "final_norm"):
        formula(f"{op} has the weight of the layer {text}", weights=lambda self, name, l, tensor=tensor, by=by: (
            Right.weights(self, name, (l + by) % self.c.n_layers if name == tensor else l)))
for text, other in [("ffn_norm has attention_norm's weight", {"rms_ffn": "rms_att"}),
                    ("attention_norm has ffn_norm's weight", {"rms_att": "rms_ffn"}),
                    ("the weights of attention_norm and ffn_norm are swapped", {"rms_att": "rms_ffn",
                                                                                "rms_ffn": "rms_att"})]:
    formula(text, weights=lambda self, name, l, other=other: Right.weights(self, other.get(name, name), l))
formula("norms divide by the root of the sum of squares", norm=lambda self, name, l, x: [
    v / math.sqrt(len(x)) for v in Right.norm(self, name, l, x)])
formula("epsilon is added outside of the root", norm=lambda self, name, l, x: [
    w * v / (math.sqrt(self.dot(x, x) / len(x)) + 1e-5) for w, v in zip(self.weights(name, l)[0], x, strict=True)])
formula("final_norm is applied twice", norm=lambda self, name, l, x: Right.norm(
    self, name, l, Right.norm(self, name, l, x) if name == "rms_final" else x))
formula("ffn_norm is of what entered the layer", ffn_norm_input=lambda self, entered, x: entered)
formula("LayerNorm", norm=lambda self, name, l, x: Right.norm(self, name, l, [v - sum(x) / len(x) for v in x]))


# -- RoPE

def other_angle(name, angle):
    formula(name, angle=angle)


def by_op(name, op, other):
    """RoPE that turns q or k in another way."""
    formula(name, turned=lambda self, own, x, pos: other(self, x, pos) if own == op else Right.turned(
        self, own, x, pos))


other_angle("RoPE turns by twice the angle", lambda self, i, pos: 2 * Right.angle(self, i, pos))
other_angle("RoPE turns by half the angle", lambda self, i, pos: Right.angle(self, i, pos) / 2)
other_angle("RoPE turns by a quarter of the angle", lambda self, i, pos: Right.angle(self, i, pos) / 4)
other_angle("RoPE turns by degrees", lambda self, i, pos: math.radians(Right.angle(self, i, pos)))
other_angle("RoPE turns the other way", lambda self, i, pos: -Right.angle(self, i, pos))
other_angle("RoPE's position is always 1", lambda self, i, pos: Right.angle(self, i, 1))
other_angle("RoPE's positions are divided by 2", lambda self, i, pos: Right.angle(self, i, pos / 2))
other_angle("RoPE's positions are divided by 8", lambda self, i, pos: Right.angle(self, i, pos / 8))
other_angle("RoPE's frequency of pair i is theta^(-i/hs)", lambda self, i, pos: pos / 100.0 ** (2 * i / self.hs))
other_angle("RoPE's frequency of pair i is theta^(-4i/hs)", lambda self, i, pos: pos / 1e8 ** (2 * i / self.hs))
other_angle("RoPE's frequency of pair i is theta^(-2i/dim)", lambda self, i, pos: pos / 1e4 ** (2 * i / self.c.dim))
other_angle("RoPE's frequency of pair i is theta^(0)", lambda self, i, pos: pos)
other_angle("RoPE's frequency of pair i is theta^(-2(i + 1)/hs)", lambda self, i, pos: Right.angle(self, i + 1, pos))
other_angle("RoPE turns the first 1/4 of each head alone", lambda self, i, pos: (
    Right.angle(self, i, pos) if i < self.hs // 8 else 0.0))
other_angle("RoPE turns the first 1/4 of each head alone, with", lambda self, i, pos: (
    Right.angle(self, 4 * i, pos) if i < self.hs // 8 else 0.0))
for number, factor in ("3.1", 8), ("3.2", 32):
    def scaled_angle(self, i, pos, factor=factor):
        turns = 8192 * Right.angle(self, i, 1) / (2 * math.pi)  # in the context of the training
        kept = min(1.0, max(0.0, (turns - 1) / 3))
        return Right.angle(self, i, pos) * (kept + (1 - kept) / factor)

    other_angle(f"RoPE's frequencies are scaled as Llama {number}'s", scaled_angle)
for text, rounded in ("float16", f16), ("bfloat16", bf16):
    other_angle(f"RoPE's angles are rounded to {text}", lambda self, i, pos, rounded=rounded: rounded(
        Right.angle(self, i, pos)))
    other_angle(f"RoPE's frequencies are rounded to {text}", lambda self, i, pos, rounded=rounded: pos * rounded(
        Right.angle(self, i, 1)))
    formula(f"RoPE's cosines and sines are rounded to {text}", turn=lambda self, a, b, angle, rounded=rounded: (
        a * rounded(math.cos(angle)) - b * rounded(math.sin(angle)),
        a * rounded(math.sin(angle)) + b * rounded(math.cos(angle))))
formula("RoPE's cosines and sines are swapped", turn=lambda self, a, b, angle: Right.turn(
    self, a, b, math.pi / 2 - angle))
formula("RoPE is left out", rope=lambda self, x, pos: x)
by_op("RoPE turns q only, not k", "k", lambda self, x, pos: x)
by_op("RoPE turns k only, not q", "q", lambda self, x, pos: x)
by_op("RoPE turns v too", "v", Right.rope)
for op in "q", "k":
    by_op(f"RoPE turns {op} the other way", op, lambda self, x, pos: self.rope(x, -pos))
    by_op(f"RoPE turns {op} by position pos + 1", op, lambda self, x, pos: self.rope(x, pos + 1))
    by_op(f"RoPE turns {op} by position pos - 1", op, lambda self, x, pos: self.rope(x, pos - 1))


by_op("RoPE turns q by position pos - 1, and the first by 0", "q", lambda self, x, pos: self.rope(x, max(0, pos - 1)))


def counted(name, frequency, end=None):
    """RoPE by a frequency(self, pair, n) of pairs that are counted from head to head, up to an end."""
    def rope(self, x, pos):
        result = list(x)
        for i in range(0, end(self) if end else len(x), 2):
            result[i], result[i + 1] = self.turn(x[i], x[i + 1], pos * frequency(self, i // 2, len(x)))
        return result

    formula(name, rope=rope)


counted("RoPE's pairs are counted from head to head, not within each", lambda self, i, n: 1e-4 ** (2 * i / self.hs))
counted("RoPE's pairs are counted from head to head, over dim", lambda self, i, n: 1e-4 ** (2 * i / self.c.dim))
counted("RoPE's pairs are counted from head to head, over the length", lambda self, i, n: 1e-4 ** (2 * i / n))
counted("RoPE turns the first head alone", lambda self, i, n: 1e-4 ** (2 * i / self.hs), lambda self: self.hs)


def of_halves(self, x, pos):
    result = list(x)
    for i in range(len(x) // 2):
        first = i // (self.hs // 2) * self.hs + i % (self.hs // 2)
        second = first + self.hs // 2
        result[first], result[second] = self.turn(x[first], x[second], self.angle(i % (self.hs // 2), pos))
    return result


formula("RoPE turns halves", rope=of_halves)

# -- attention

for text, other in [
        ("0", lambda self, h: 0), ("h % kv_heads", lambda self, h: h % self.c.n_kv_heads),
        ("min(h, kv_heads - 1)", lambda self, h: min(h, self.c.n_kv_heads - 1)),
        ("h / kv_heads", lambda self, h: min(h // self.c.n_kv_heads, self.c.n_kv_heads - 1)),
        ("of query head h + 1", lambda self, h: (h + 1) % self.c.n_heads * self.c.n_kv_heads // self.c.n_heads)]:
    formula(f"query head h uses key and value head {text},", kv_head=other)
    formula(f"query head h uses key head {text},", key_head=other)
    formula(f"query head h uses value head {text},", value_head=other)


def windowed(name, visible, register=formula):
    """Attention to some positions: visible(n) is a slice of 0 .. n - 1."""
    def softmax(self, x):
        p, part = [0.0] * len(x), visible(len(x))
        if x[part]:
            p[part] = Right.softmax(self, x[part])
        return p

    register(name, softmax=softmax)


windowed("attention sees the first position only", lambda n: slice(0, 1))
for width in 1, 2, 3:
    windowed(f"attention sees the last {width} positions only", lambda n, width=width: slice(max(0, n - width), n))
windowed("later positions do not attend to the first", lambda n: slice(min(1, n - 1), n))
windowed("a position does not attend to itself", lambda n: slice(0, n - 1))
windowed("a position does not attend to itself (the first does)", lambda n: slice(0, max(1, n - 1)))
formula("softmax adds 1 to its sum", softmax=lambda self, x: [
    math.exp(v - max(x)) / (math.exp(-max(x)) + sum(math.exp(u - max(x)) for u in x)) for v in x])
formula("softmax runs over the whole context", softmax=lambda self, x: [
    math.exp(v) / (self.c.seq_len - len(x) + sum(map(math.exp, x))) for v in x])
formula("scores are not divided by sqrt(hs)", score=lambda self, s, h, t, pos: s * math.sqrt(self.hs))
formula("scores are divided by hs,", score=lambda self, s, h, t, pos: s / math.sqrt(self.hs))
formula("scores are divided by sqrt(dim)", score=lambda self, s, h, t, pos: s / math.sqrt(self.c.dim / self.hs))
formula("scores are divided by sqrt(kv_dim)", score=lambda self, s, h, t, pos: s / math.sqrt(self.c.n_kv_heads))
for cap in 30, 50:
    formula(f"scores are capped at {cap} by tanh", score=lambda self, s, h, t, pos, cap=cap: cap * math.tanh(s / cap))


def rounded_softmax(name, of_scores, of_exponentials, of_results):
    def softmax(self, x):
        x = list(map(of_scores, x))
        e = [of_exponentials(math.exp(of_scores(v - max(x)))) for v in x]
        return [of_results(v / sum(e)) for v in e]

    formula(name, softmax=softmax)


for text, rounded in ("float16", f16), ("bfloat16", bf16):
    rounded_softmax(f"softmax is in {text}", rounded, rounded, rounded)
    rounded_softmax(f"softmax's exponentials and results are {text}", float, rounded, rounded)
    rounded_softmax(f"softmax's results are {text}", float, float, rounded)
    rounded_softmax(f"scores are {text}", rounded, float, float)


def shifted(by, zero, name):
    """keys or values of position t that are those of t + by."""
    def read(self, l, t, kv, pos):
        there = t + by
        if zero and not 0 <= there <= pos:
            return [0.0] * self.hs
        return getattr(Right, name)(self, l, max(0, min(pos, there)), kv, pos)
    return read


for by, text in (-1, "late"), (1, "early"):
    for zero, edge in (True, "0 at the edge"), (False, "the edge twice"):
        key, value = shifted(by, zero, "key"), shifted(by, zero, "value")
        formula(f"the cache's keys are one position {text}, {edge}", key=key)
        formula(f"the cache's values are one position {text}, {edge}", value=value)
        formula(f"the cache's keys and values are one position {text}, {edge}", key=key, value=value)

# -- the feed-forward network, and the residual connections

for text, activation in [
        ("nothing", float), ("tanh", math.tanh), ("ReLU", lambda a: max(a, 0.0)),
        ("a sigmoid", lambda a: 1 / (1 + math.exp(-a))), ("GELU", lambda a: a * math.erfc(-a / math.sqrt(2)) / 2),
        ("GELU, by tanh,", lambda a: a / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (a + 0.044715 * a ** 3)))),
        ("quick GELU, a * sigmoid(1.702 a),", lambda a: a / (1 + math.exp(-1.702 * a)))]:
    formula(f"{text} stands for SiLU", activation=staticmethod(activation))
formula("SiLU is applied to w3 x", gated=lambda self, a, b: a * Right.activation(self, b))


def other_residual(op, text, residual):
    """residual(self, x, change, normed)"""
    formula(f"{op}_residual {text}", residual=lambda self, own, x, change, normed: (
        residual(self, x, change, normed) if own == op else Right.residual(self, own, x, change, normed)))


def plus(x, y):
    return [a + b for a, b in zip(x, y, strict=True)]


def the_embedding(self):
    return next(values for pos, l, op, values in reversed(self.records) if op == "embedding")


for op in "attention", "ffn":
    other_residual(op, "is missing", lambda self, x, change, normed: change)
    other_residual(op, "adds to the result of the norm", lambda self, x, change, normed: plus(normed, change))
    other_residual(op, "adds twice", lambda self, x, change, normed: plus(plus(x, change), change))
    other_residual(op, "adds to the embedding", lambda self, x, change, normed: plus(the_embedding(self), change))


def without_attention(self, own, x, change, normed):
    if own == "attention":
        self.entered = x
        return Right.residual(self, own, x, change, normed)
    return plus(self.entered, change)


formula("ffn_residual adds to what entered the layer", residual=without_attention)

# -- tokens and logits

for cap in 20, 50:
    formula(f"logits are capped at {cap} by tanh", logits=lambda self, x, cap=cap: [
        cap * math.tanh(v / cap) for v in Right.logits(self, x)])


def softmax_of_logits(self, x):
    y = Right.logits(self, x)
    e = [math.exp(v - max(y)) for v in y]
    return [v / sum(e) for v in e]


formula("probabilities stand for logits", logits=softmax_of_logits)
formula("log-probabilities stand for logits", logits=lambda self, x: list(map(math.log, softmax_of_logits(self, x))))
formula("logits stand one token late", logits=lambda self, x: [
    Right.logits(self, x)[-1], *Right.logits(self, x)[:-1]])
formula("logits are of the norm's input", norm=lambda self, name, l, x: (
    x if name == "rms_final" else Right.norm(self, name, l, x)))
formula("token 0 stands before the text", run=lambda self, tokens=TOKENS: Right.run(self, [0, *tokens[1:]]))
formula("EOS, token 2, stands before the text", run=lambda self, tokens=TOKENS: Right.run(self, [2, *tokens[1:]]))
formula("BOS, token 1, is there twice", run=lambda self, tokens=TOKENS: Right.run(self, [tokens[0], *tokens[:-1]]))

# -- weights

LAYER = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
for matrix in LAYER:
    for text, other in [("of layer 0 in every layer", lambda self, l: 0),
                        ("of the layer after", lambda self, l: (l + 1) % self.c.n_layers),
                        ("of the layer before", lambda self, l: (l - 1) % self.c.n_layers)]:
        formula(f"{matrix} is that {text}", weights=lambda self, name, l, matrix=matrix, other=other: Right.weights(
            self, name, other(self, l) if name == matrix else l))
for text, other in [("after", lambda self, l: (l + 1) % self.c.n_layers),
                    ("before", lambda self, l: (l - 1) % self.c.n_layers)]:
    formula(f"all weights are those of the layer {text}", weights=lambda self, name, l, other=other: Right.weights(
        self, name, other(self, l) if name in (*LAYER, "rms_att", "rms_ffn") else l))
formula("the layers run in reverse order", weights=lambda self, name, l: Right.weights(
    self, name, self.c.n_layers - 1 - l if name in (*LAYER, "rms_att", "rms_ffn") else l))
for text, skipped in ("first", lambda self: 0), ("last", lambda self: self.c.n_layers - 1):
    formula(f"the {text} layer is skipped", layer=lambda self, l, pos, x, skipped=skipped: (
        x if l == skipped(self) else Right.layer(self, l, pos, x)))
for matrix in "wq", "wo":
    formula(f"{matrix} is transposed", weights=lambda self, name, l, matrix=matrix: (
        list(zip(*Right.weights(self, name, l), strict=True)) if name == matrix else Right.weights(self, name, l)))
for one, other in ("wk", "wv"), ("w1", "w3"):
    formula(f"{one} and {other} are swapped", weights=lambda self, name, l, names={one: other, other: one}: (
        Right.weights(self, names.get(name, name), l)))
formula("the last column of every matrix is left out", matmul=lambda self, name, l, x: Right.matmul(
    self, name, l, [*x[:-1], 0.0]))
formula("the last row of every matrix is left out", matmul=lambda self, name, l, x: [
    *Right.matmul(self, name, l, x)[:-1], 0.0])

# -- numbers in few bits


def each(number):
    return lambda row: list(map(number, row))


def blocks(scale, number, size=32):
    """A row by blocks that share a scale, kept as float16: number(v / scale) times it."""
    def rounded(row):
        result = []
        for i in range(0, len(row), size):
            s = scale(row[i:i + size])
            result += [f32(f16(s) * number(v / s)) for v in row[i:i + size]]
        return result
    return rounded


def int8(size):
    def rounded(row):
        result = []
        for i in range(0, len(row), size or len(row)):
            part = row[i:i + (size or len(row))]
            s = f32(max(map(abs, part)) / 127)
            result += [f32(round(v / s) * s) for v in part]
        return result
    return rounded


def widest(x):
    return max(x, key=abs) / -8


def farthest(x):
    return max(map(abs, x)) / 127


for text, row in [
        ("rounded to float16", each(f16)), ("rounded to bfloat16", each(bf16)),
        ("cut to bfloat16, not rounded", each(cut)), ("rounded to TensorFloat-32", each(tensor_float)),
        ("rounded to float8 (e4m3)", each(float8(3, -6))), ("rounded to float8 (e5m2)", each(float8(2, -14))),
        ("in Q8_0", blocks(farthest, round)),
        ("in Q4_0", blocks(widest, lambda v: min(15, math.floor(v + 8.5)) - 8)),
        ("rounded to int8, in rows", int8(0)), ("rounded to int8, in groups of 32", int8(32))]:
    of_layers, of_matrices = (*LAYER,), (*LAYER, "classifier")
    without_norms = (*of_matrices, "embedding")
    everything = without_norms if "int8" in text else (*without_norms, "rms_att", "rms_ffn", "rms_final")
    for which, names in [("weights of the layers' matrices", of_layers), ("weights of matrices", of_matrices),
                         ("weights, without the norms',", without_norms), ("weights", everything)]:
        if "int8" not in text or which != "weights, without the norms',":
            formula(f"{which} are {text}", weights=lambda self, name, l, row=row, names=names: (
                [row(x) for x in Right.weights(self, name, l)] if name in names else Right.weights(self, name, l)))

for text, number in ("float16", f16), ("bfloat16", bf16):
    for op in "attention_norm", "q", "attention", "attention_out", "ffn_norm", "swiglu", "ffn_out", "final_norm":
        formula(f"results of {op} are {text}", keep=lambda self, pos, l, op, x, number=number, own=op: Right.keep(
            self, pos, l, op, list(map(number, x)) if op == own else x))
    formula(f"x, the residual stream, is {text}", keep=lambda self, pos, l, op, x, number=number: Right.keep(
        self, pos, l, op, list(map(number, x)) if op.endswith("residual") else x))

    def key(self, l, t, kv, pos, number=number):
        return list(map(number, Right.key(self, l, t, kv, pos)))

    def value(self, l, t, kv, pos, number=number):
        return list(map(number, Right.value(self, l, t, kv, pos)))

    formula(f"keys are {text}", key=key)
    formula(f"values are {text}", value=value)
    formula(f"keys and values are {text}", key=key, value=value)

# -- what changes no logit, has no name, or is named by more than its formula

OTHERS = {}  # a name -> the port


def further(name, **methods):
    OTHERS[name] = type("Port", (Right,), methods)


further("RoPE's positions begin at 1", angle=lambda self, i, pos: Right.angle(self, i, pos + 1))
further("RoPE's positions begin at -1", angle=lambda self, i, pos: Right.angle(self, i, pos - 1))
for theta in 500000, 9000:
    further(f"RoPE's theta is {theta}", angle=lambda self, i, pos, theta=theta: f32(
        pos * f32(1 / f32(theta ** f32(2 * i / self.hs)))))
for value in 1e-6, 0.0, 1e-3:
    further(f"epsilon is {value:g}", norm=lambda self, name, l, x, value=value: [
        f32(w * f32(v * f32(1 / f32(math.sqrt(f32(f32(self.dot(x, x) / len(x)) + f32(value)))))))
        for w, v in zip(self.weights(name, l)[0], x, strict=True)])
further("scores are multiplied by 0.5", score=lambda self, s, h, t, pos: f32(s * math.sqrt(self.hs) / 2))
further("row 7 of w1 in layer 1", weights=lambda self, name, l: [
    (row[0] + 0.5, *row[1:]) if (name, l, i) == ("w1", 1, 7) else row
    for i, row in enumerate(Right.weights(self, name, l))])
further("row 33 of the classifier", weights=lambda self, name, l: [
    (row[0] + 0.5, *row[1:]) if (name, i) == ("classifier", 33) else row
    for i, row in enumerate(Right.weights(self, name, l))])
further("logits are float16", logits=lambda self, x: list(map(f16, Right.logits(self, x))))
further("logits are pressed together by tanh", logits=lambda self, x: [
    f32(math.tanh(v)) for v in Right.logits(self, x)])
further("the logit of token 7 is off by 0.5", logits=lambda self, x: [
    f32(v + 0.5) if i == 7 else v for i, v in enumerate(Right.logits(self, x))])
further("the logit of token 7 is -1e+04", logits=lambda self, x: [
    -1e4 if i == 7 else v for i, v in enumerate(Right.logits(self, x))])
further("rows are one step late", run=lambda self, tokens=TOKENS: [
    (rows := Right.run(self, tokens))[0], *rows[:-1]])
further("rows are one step early", run=lambda self, tokens=TOKENS: [
    *(rows := Right.run(self, tokens))[1:], rows[0]])
further("BOS, token 1, is missing", run=lambda self, tokens=TOKENS: Right.run(self, [*tokens[1:], 3]))
further("the last row is never written", matmul=lambda self, name, l, x: [*Right.matmul(self, name, l, x)[:-1], 1.5])


class RepetitionPenalty(Right):
    def step(self, token, pos):
        self.fed = {*getattr(self, "fed", ()), token}
        return super().step(token, pos)

    def logits(self, x):
        return [f32(v / 1.2 if v > 0 else v * 1.2) if i in self.fed else v for i, v in enumerate(super().logits(x))]


class FusedResidual(Right):
    """Both residual connections of a layer as one sum: the same function, with other roundings."""

    def residual(self, op, x, change, normed):
        if op == "attention":
            self.entered, self.attended = x, change
            return super().residual(op, x, change, normed)
        return [f32(a + f32(b + d)) for a, b, d in zip(self.entered, self.attended, change, strict=True)]


class LessResidual(Right):
    def residual(self, op, x, change, normed):
        result = super().residual(op, x, change, normed)
        return [f32(0.99 * v) for v in result] if op == "ffn" else result


OTHERS.update({"the logit of every token that was an input is divided by 1.2": RepetitionPenalty,
               "the residual connections are one sum": FusedResidual,
               "the residual stream is 0.99 of itself": LessResidual})
windowed("attention sees the last 4 positions only", lambda n: slice(max(0, n - 4), n), further)


def port_with(path, *names, **attributes):
    """A port that does all of these things wrong, each in methods of its own."""
    every = {name: kind for name, (kind, _) in WRONG.items()} | FORMULAS | OTHERS
    return type("Port", (*[every[name] for name in names], Right), attributes)(path)
