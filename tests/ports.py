"""A port of Llama in plain loops, and ports derived from it that each do one thing wrong, by what the doctor says of
them. They are written as somebody who does not know this project would write them.
"""
import math
import struct

from llama2_py.engine.checkpoint import Checkpoint

TOKENS = [1, 17, 5, 40, 23, 17, 31, 8, 44, 2, 19, 36]
SHAPE = {"dim": 32, "hidden_dim": 40, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 48, "seq_len": 16}


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def f16(x):
    return struct.unpack("e", struct.pack("e", x))[0]


def bf16(x):
    (bits,) = struct.unpack("I", struct.pack("f", x))
    return struct.unpack("f", struct.pack("I", (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000))[0]


def cut(x):
    """To bfloat16, towards zero."""
    return struct.unpack("f", struct.pack("I", struct.unpack("I", struct.pack("f", x))[0] & 0xFFFF0000))[0]


def tensor_float(x):
    (bits,) = struct.unpack("I", struct.pack("f", x))
    return struct.unpack("f", struct.pack("I", (bits + 0xFFF + (bits >> 13 & 1)) & 0xFFFFE000))[0]


def float8(bits, least):
    """To so many bits behind the first, of numbers from 2^least on."""
    def rounded(x):
        exponent = max(math.floor(math.log2(abs(x) or 1e-30)), least)
        return round(x / 2.0 ** (exponent - bits)) * 2.0 ** (exponent - bits)
    return rounded


class Right:
    """A correct port: every result rounded to float32, or to what r rounds to; sums from left to right, or as add has
    them."""

    r = staticmethod(f32)
    fma = False

    def __init__(self, path):
        self.file = Checkpoint(path)
        self.c = self.file.config
        self.hs = self.c.head_size
        self.keys, self.values, self.records = {}, {}, []

    # -- what a mistake can replace

    def weights(self, name, l):
        return self.file.rows(name, l)

    def add(self, terms):
        total = 0.0
        for term in terms:
            total = self.r(total + term)
        return total

    def dot(self, a, b):
        if not self.fma:
            return self.add([self.r(u * v) for u, v in zip(a, b, strict=True)])
        total = 0.0
        for u, v in zip(a, b, strict=True):
            total = self.r(total + u * v)
        return total

    def matmul(self, name, l, x):
        return [self.dot(row, x) for row in self.weights(name, l)]

    def norm(self, name, l, x):
        s = self.r(1 / self.r(math.sqrt(self.r(self.r(self.dot(x, x) / len(x)) + self.r(1e-5)))))
        return [self.r(w * self.r(s * v)) for w, v in zip(self.weights(name, l)[0], x, strict=True)]

    def angle(self, pair, pos):
        return self.r(pos * self.r(1 / self.r(10000.0 ** self.r(2 * pair / self.hs))))

    def turn(self, a, b, angle):
        c, s = self.r(math.cos(angle)), self.r(math.sin(angle))
        return self.r(self.r(a * c) - self.r(b * s)), self.r(self.r(a * s) + self.r(b * c))

    def rope(self, x, pos):
        result = list(x)
        for i in range(0, len(x), 2):
            result[i], result[i + 1] = self.turn(x[i], x[i + 1], self.angle(i % self.hs // 2, pos))
        return result

    def turned(self, op, x, pos):
        return x if op == "v" else self.rope(x, pos)

    def kv_head(self, h):
        return h // (self.c.n_heads // self.c.n_kv_heads)

    def key_head(self, h):
        return self.kv_head(h)

    def value_head(self, h):
        return self.kv_head(h)

    def key(self, l, t, kv, pos):
        return self.keys[l, t][kv * self.hs:(kv + 1) * self.hs]

    def value(self, l, t, kv, pos):
        return self.values[l, t][kv * self.hs:(kv + 1) * self.hs]

    def score(self, s, h, t, pos):
        return s

    def join(self, heads):
        return [v for head in heads for v in head]

    def activation(self, a):
        return self.r(a * self.r(1 / self.r(1 + self.r(math.exp(min(-a, 88.0))))))

    def gated(self, a, b):
        return self.r(self.activation(a) * b)

    def residual(self, op, x, change, normed):
        return [self.r(a + b) for a, b in zip(x, change, strict=True)]

    def ffn_norm_input(self, entered, x):
        return x

    def logits(self, x):
        return self.matmul("classifier", 0, x)

    # -- the pass

    def keep(self, pos, l, op, x):
        self.records.append((pos, l, op, list(x)))
        return x

    def softmax(self, x):
        e = [self.r(math.exp(self.r(v - max(x)))) for v in x]
        total = self.add(e)
        return [self.r(v / total) for v in e]

    def attend(self, l, pos, q):
        weights, heads, n = [], [], pos + 1
        for h in range(self.c.n_heads):
            query = q[h * self.hs:(h + 1) * self.hs]
            scores = [self.r(self.dot(query, self.key(l, t, self.key_head(h), pos)) / self.r(math.sqrt(self.hs)))
                      for t in range(n)]
            weights += self.softmax([self.score(s, h, t, pos) for t, s in enumerate(scores)])
        weights = self.keep(pos, l, "weights", weights)
        for h in range(self.c.n_heads):
            columns = zip(*[self.value(l, t, self.value_head(h), pos) for t in range(n)], strict=True)
            heads.append([self.dot(weights[h * n:(h + 1) * n], column) for column in columns])
        return self.keep(pos, l, "attention", self.join(heads))

    def layer(self, l, pos, x):
        normed = self.keep(pos, l, "attention_norm", self.norm("rms_att", l, x))
        q = self.keep(pos, l, "q", self.turned("q", self.matmul("wq", l, normed), pos))
        self.keys[l, pos] = self.keep(pos, l, "k", self.turned("k", self.matmul("wk", l, normed), pos))
        self.values[l, pos] = self.keep(pos, l, "v", self.turned("v", self.matmul("wv", l, normed), pos))
        out = self.keep(pos, l, "attention_out", self.matmul("wo", l, self.attend(l, pos, q)))
        entered = x
        x = self.keep(pos, l, "attention_residual", self.residual("attention", x, out, normed))
        normed = self.keep(pos, l, "ffn_norm", self.norm("rms_ffn", l, self.ffn_norm_input(entered, x)))
        gate = self.keep(pos, l, "gate", self.matmul("w1", l, normed))
        up = self.keep(pos, l, "up", self.matmul("w3", l, normed))
        hidden = self.keep(pos, l, "swiglu", list(map(self.gated, gate, up)))
        out = self.keep(pos, l, "ffn_out", self.matmul("w2", l, hidden))
        return self.keep(pos, l, "ffn_residual", self.residual("ffn", x, out, normed))

    def step(self, token, pos):
        x = self.keep(pos, -1, "embedding", self.weights("embedding", 0)[token])
        for l in range(self.c.n_layers):
            x = self.layer(l, pos, x)
        x = self.keep(pos, -1, "final_norm", self.norm("rms_final", 0, x))
        return self.keep(pos, -1, "logits", self.logits(x))

    def run(self, tokens=TOKENS):
        return [self.step(token, pos) for pos, token in enumerate(tokens)]


def rows_of(port):
    return b"".join(struct.pack(f"<{len(row)}f", *row) for row in port.run(TOKENS))


def records_of(port, positions):
    return b"".join(b"%d %d %s %d\n" % (pos, l, op.encode(), len(v)) + struct.pack(f"<{len(v)}f", *v)
                    for pos, l, op, v in port.records if pos < positions)


# ----------------------------------------------------------------------------
# Ports that do one thing wrong, by what the doctor says of them

WRONG = {}  # name -> (the port, is it seen in single operations?)


def wrong(name, in_operations=True):
    def add(kind):
        assert name not in WRONG
        WRONG[name] = kind, in_operations
        return kind
    return add


@wrong("logits are divided by 0.7: a temperature", False)
class Temperature(Right):
    def logits(self, x):
        return [f32(v / f32(0.7)) for v in super().logits(x)]


@wrong("logits are capped at 30 by tanh")
class CappedLogits(Right):
    def logits(self, x):
        return [f32(30 * math.tanh(v / 30)) for v in super().logits(x)]


@wrong("the largest logit is subtracted from all")
class LessTheLargest(Right):
    def logits(self, x):
        y = super().logits(x)
        return [f32(v - max(y)) for v in y]


@wrong("logits stand in reverse order")
class ReversedLogits(Right):
    def logits(self, x):
        return super().logits(x)[::-1]


@wrong("logits stand one token early: token i has the logit of token i + 1")
class EarlyLogits(Right):
    def logits(self, x):
        y = super().logits(x)
        return [*y[1:], y[0]]


@wrong("q and k are normalized, head by head")
class NormalizedHeads(Right):
    def rope(self, x, pos):
        heads = [x[i:i + self.hs] for i in range(0, len(x), self.hs)]
        unit = [[f32(v * f32(1 / f32(math.sqrt(f32(f32(self.dot(h, h) / self.hs) + f32(1e-5)))))) for v in h]
                for h in heads]
        return super().rope(self.join(unit), pos)

    def join(self, heads):
        return [v for head in heads for v in head]


@wrong("scores are capped at 20 by tanh")
class CappedScores(Right):
    def score(self, s, h, t, pos):
        return f32(20 * f32(math.tanh(f32(s / 20))))


@wrong("ALiBi: scores lose by distance")
class ALiBi(Right):
    def score(self, s, h, t, pos):
        return f32(s - 2.0 ** (-8 * (h + 1) / self.c.n_heads) * (pos - t))


@wrong("heads are joined in reverse order")
class ReversedHeads(Right):
    def join(self, heads):
        return super().join(heads[::-1])


@wrong("heads are joined element by element")
class InterleavedHeads(Right):
    def join(self, heads):
        return super().join(zip(*heads, strict=True))


@wrong("the last head is left out")
class LastHeadMissing(Right):
    def join(self, heads):
        return super().join([*heads[:-1], [0.0] * self.hs])


@wrong("only as many query heads are computed as there are key heads")
class HeadsOfKeysAlone(Right):
    def join(self, heads):
        n = self.c.n_kv_heads
        return super().join([*heads[:n], *[[0.0] * self.hs] * (len(heads) - n)])


@wrong("all layers share one cache")
class OneCache(Right):
    def key(self, l, t, kv, pos):
        return super().key(l if t == pos else self.c.n_layers - 1, t, kv, pos)

    def value(self, l, t, kv, pos):
        return super().value(l if t == pos else self.c.n_layers - 1, t, kv, pos)


@wrong("RoPE overwrites the first of a pair before it turns the second")
class InPlace(Right):
    def turn(self, a, b, angle):
        c, s = f32(math.cos(angle)), f32(math.sin(angle))
        a = f32(f32(a * c) - f32(b * s))
        return a, f32(f32(a * s) + f32(b * c))


@wrong("RoPE turns the first 1/2 of each head alone")
class Partial(Right):
    def angle(self, pair, pos):
        return super().angle(pair, pos) if pair < self.hs // 4 else 0.0


@wrong("RoPE turns the first 1/2 of each head alone, with the frequencies of a head of that size")
class PartialOfItsOwn(Right):
    def angle(self, pair, pos):
        return super().angle(2 * pair, pos) if pair < self.hs // 4 else 0.0


@wrong("RoPE's positions are divided by 4")
class Interpolated(Right):
    def angle(self, pair, pos):
        return f32(super().angle(pair, pos) / 4)


@wrong("RoPE turns keys twice")
class KeysTwice(Right):
    def key(self, l, t, kv, pos):
        return self.rope(super().key(l, t, kv, pos), t)


@wrong("RoPE turns the keys in the cache again at each later step")
class KeysAgain(Right):
    def key(self, l, t, kv, pos):
        x = super().key(l, t, kv, pos)
        for _ in range(pos - t):
            x = self.rope(x, t)
        return x


@wrong("all weights are those of layer 0, in every layer")
class FirstLayerAlone(Right):
    def weights(self, name, l):
        return super().weights(name, 0)


@wrong("wv is that of layer 0 in every layer")
class FirstValues(Right):
    def weights(self, name, l):
        return super().weights(name, 0 if name == "wv" else l)


@wrong("w2 and w3 are read in each other's place in the file")
class MisreadFile(Right):
    def weights(self, name, l):
        other = {"w2": "w3", "w3": "w2"}.get(name)
        if other is None:
            return super().weights(name, l)
        numbers = self.join(super().weights(other, l))
        columns = len(super().weights(name, l)[0])
        return [tuple(numbers[i:i + columns]) for i in range(0, len(numbers), columns)]


@wrong("the norms' weights are read layer by layer")
class NormsOneAfterTheOther(Right):
    def weights(self, name, l):
        if name not in ("rms_att", "rms_ffn"):
            return super().weights(name, l)
        number, layers = 2 * l + (name == "rms_ffn"), self.c.n_layers
        return super().weights("rms_att" if number < layers else "rms_ffn", number % layers)


@wrong("wk and wv are read a layer dim * dim numbers apart")
class WideStrides(Right):
    def weights(self, name, l):
        if name not in ("wk", "wv"):
            return super().weights(name, l)
        behind = [row for tensor in ("wk", "wv", "wo")[name == "wv":] for m in range(self.c.n_layers)
                  for row in self.file.rows(tensor, m)]
        return behind[l * self.c.dim:l * self.c.dim + self.c.n_kv_heads * self.hs]


@wrong("products end at a multiple of 16 numbers")
class VectorTail(Right):
    def dot(self, a, b):
        end = len(a) // 16 * 16 if len(a) in (self.c.dim, self.c.hidden_dim) else len(a)
        return super().dot(a[:end], b[:end])


class Rounded(Right):
    def number(self, v):
        return v

    def weights(self, name, l):
        rows = super().weights(name, l)
        if name.startswith("rms"):
            return rows
        return [tuple(map(self.number, row)) for row in rows]


@wrong("the embedding is multiplied by sqrt(dim)")
class TimesRootOfDim(Right):
    def weights(self, name, l):
        rows = super().weights(name, l)
        if name != "embedding":
            return rows
        return [tuple(f32(v * f32(math.sqrt(self.c.dim))) for v in row) for row in rows]


@wrong("weights, without the norms', are cut to bfloat16, not rounded")
class Truncated(Rounded):
    number = staticmethod(cut)


@wrong("weights, without the norms', are rounded to TensorFloat-32")
class TensorFloat(Rounded):
    number = staticmethod(tensor_float)


@wrong("weights, without the norms', are rounded to float8 (e4m3)")
class Float8(Rounded):
    number = staticmethod(float8(3, -6))


@wrong("weights of the layers' matrices are rounded to float16; or weights of the layers' matrices are rounded to "
       "TensorFloat-32")
class LayersInFloat16(Right):
    def weights(self, name, l):
        rows = super().weights(name, l)
        if name in ("embedding", "classifier") or name.startswith("rms"):
            return rows
        return [tuple(map(f16, row)) for row in rows]


@wrong("weights of matrices are in Q8_0")
class Q8(Right):
    def weights(self, name, l):
        rows = super().weights(name, l)
        if name.startswith("rms") or name == "embedding":
            return rows
        return [tuple(self.block(row[:32]) + self.block(row[32:])) for row in rows]

    def block(self, x):
        scale = max(map(abs, x), default=0) / 127
        return [f32(f16(scale) * round(v / scale)) for v in x]


@wrong("hard swish")
class HardSwish(Right):
    def activation(self, a):
        return f32(a * f32(max(0.0, min(6.0, f32(a + 3))) / 6))


@wrong("Mish, a * tanh(log(1 + exp(a))), stands for SiLU")
class Mish(Right):
    def activation(self, a):
        return f32(a * f32(math.tanh(f32(math.log1p(math.exp(a))))))


@wrong("the square of ReLU stands for SiLU")
class SquaredReLU(Right):
    def activation(self, a):
        return f32(max(a, 0.0) * max(a, 0.0))


@wrong("(in layer 1 alone)")
class ReLUInOneLayer(Right):
    def layer(self, l, pos, x):
        self.now = l
        return super().layer(l, pos, x)

    def activation(self, a):
        return max(a, 0.0) if self.now == 1 else super().activation(a)


@wrong("there is no mask: each position attends to all later ones as well", False)
class NoMask(Right):
    def attend(self, l, pos, q):
        return super().attend(l, self.last, q)

    def run(self, tokens):
        """Layer by layer, since keys and values of later positions are needed."""
        self.last = len(tokens) - 1
        xs = [self.weights("embedding", 0)[token] for token in tokens]
        for l in range(self.c.n_layers):
            for pos, x in enumerate(xs):
                normed = self.norm("rms_att", l, x)
                self.keys[l, pos] = self.rope(self.matmul("wk", l, normed), pos)
                self.values[l, pos] = self.matmul("wv", l, normed)
            xs = [self.layer(l, pos, x) for pos, x in enumerate(xs)]
        self.records = []
        return [self.logits(self.norm("rms_final", 0, x)) for x in xs]


@wrong("softmax is missing: the scores are the weights")
class WithoutSoftmax(Right):
    def softmax(self, x):
        return list(x)


@wrong("softmax has no exp: the scores are divided by their sum")
class SoftmaxWithoutExp(Right):
    def softmax(self, x):
        total = 0.0
        for v in x:
            total = f32(total + v)
        return [f32(v / total) for v in x]


@wrong("w3 x is left out")
class WithoutUp(Right):
    def keep(self, pos, l, op, x):
        super().keep(pos, l, op, x)
        return [1.0] * len(x) if op == "up" else x


@wrong("the norms' weights are missing")
class NormsWithoutWeights(Right):
    def norm(self, name, l, x):
        ones = [1.0] * len(x)
        s = f32(1 / f32(math.sqrt(f32(f32(self.dot(x, x) / len(x)) + f32(1e-5)))))
        return [f32(w * f32(s * v)) for w, v in zip(ones, x, strict=True)]


@wrong("the norms' weights are 1 + weight")
class OnePlusWeight(Right):
    def norm(self, name, l, x):
        s = f32(1 / f32(math.sqrt(f32(f32(self.dot(x, x) / len(x)) + f32(1e-5)))))
        return [f32(f32(1 + w) * f32(s * v)) for w, v in zip(self.weights(name, l)[0], x, strict=True)]


@wrong("wq and wo are swapped")
class SwappedMatrices(Right):
    def matmul(self, name, l, x):
        return super().matmul({"wq": "wo", "wo": "wq"}.get(name, name), l, x)


@wrong("final_norm has the last layer's ffn_norm's weight")
class RowTooEarly(Right):
    def weights(self, name, l):
        return super().weights("rms_ffn", self.c.n_layers - 1) if name == "rms_final" else super().weights(name, l)


@wrong("RoPE turns k by position pos - 1, and the first by 0")
class LateKeys(Right):
    def turned(self, op, x, pos):
        return super().turned(op, x, max(0, pos - 1) if op == "k" else pos)


# ----------------------------------------------------------------------------
# Others in few words, for what a name stands for alone

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


def windowed(name, visible):
    """Attention to some positions: visible(n) is a slice of 0 .. n - 1."""
    def softmax(self, x):
        p, part = [0.0] * len(x), visible(len(x))
        if x[part]:
            p[part] = Right.softmax(self, x[part])
        return p

    formula(name, softmax=softmax)


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


def other(name, **methods):
    OTHERS[name] = type("Port", (Right,), methods)


other("RoPE's positions begin at 1", angle=lambda self, i, pos: Right.angle(self, i, pos + 1))
other("RoPE's positions begin at -1", angle=lambda self, i, pos: Right.angle(self, i, pos - 1))
for theta in 500000, 9000:
    other(f"RoPE's theta is {theta}", angle=lambda self, i, pos, theta=theta: f32(
        pos * f32(1 / f32(theta ** f32(2 * i / self.hs)))))
for value in 1e-6, 0.0, 1e-3:
    other(f"epsilon is {value:g}", norm=lambda self, name, l, x, value=value: [
        f32(w * f32(v * f32(1 / f32(math.sqrt(f32(f32(self.dot(x, x) / len(x)) + f32(value)))))))
        for w, v in zip(self.weights(name, l)[0], x, strict=True)])
other("scores are multiplied by 0.5", score=lambda self, s, h, t, pos: f32(s * math.sqrt(self.hs) / 2))
other("row 7 of w1 in layer 1", weights=lambda self, name, l: [
    (row[0] + 0.5, *row[1:]) if (name, l, i) == ("w1", 1, 7) else row
    for i, row in enumerate(Right.weights(self, name, l))])
other("row 33 of the classifier", weights=lambda self, name, l: [
    (row[0] + 0.5, *row[1:]) if (name, i) == ("classifier", 33) else row
    for i, row in enumerate(Right.weights(self, name, l))])
other("logits are float16", logits=lambda self, x: list(map(f16, Right.logits(self, x))))
other("logits are pressed together by tanh", logits=lambda self, x: [f32(math.tanh(v)) for v in Right.logits(self, x)])
other("the logit of token 7 is off by 0.5", logits=lambda self, x: [
    f32(v + 0.5) if i == 7 else v for i, v in enumerate(Right.logits(self, x))])
other("the logit of token 7 is -1e+04", logits=lambda self, x: [
    -1e4 if i == 7 else v for i, v in enumerate(Right.logits(self, x))])
other("rows are one step late", run=lambda self, tokens=TOKENS: [
    (rows := Right.run(self, tokens))[0], *rows[:-1]])
other("rows are one step early", run=lambda self, tokens=TOKENS: [
    *(rows := Right.run(self, tokens))[1:], rows[0]])
other("BOS, token 1, is missing", run=lambda self, tokens=TOKENS: Right.run(self, [*tokens[1:], 3]))
other("the last row is never written", matmul=lambda self, name, l, x: [*Right.matmul(self, name, l, x)[:-1], 1.5])


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
windowed("attention sees the last 4 positions only", lambda n: slice(max(0, n - 4), n))
OTHERS["attention sees the last 4 positions only"] = FORMULAS.pop("attention sees the last 4 positions only")


def port_with(path, *names, **attributes):
    """A port that does all of these things wrong, each in methods of its own."""
    every = {**{name: kind for name, (kind, _) in WRONG.items()}, **FORMULAS, **OTHERS}
    return type("Port", (*[every[name] for name in names], Right), attributes)(path)
