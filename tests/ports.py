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


@wrong("the embedding is multiplied by sqrt(dim)")
class TimesRootOfDim(Right):
    def weights(self, name, l):
        rows = super().weights(name, l)
        if name != "embedding":
            return rows
        return [tuple(f32(v * f32(math.sqrt(self.c.dim))) for v in row) for row in rows]


@wrong("weights of the layers' matrices are rounded to float16; or weights of the layers' matrices are rounded to "
       "TensorFloat-32")
class LayersInFloat16(Right):
    def weights(self, name, l):
        rows = super().weights(name, l)
        if name in ("embedding", "classifier") or name.startswith("rms"):
            return rows
        return [tuple(map(f16, row)) for row in rows]


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
