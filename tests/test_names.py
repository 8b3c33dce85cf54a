"""The doctor's names, on another program's numbers: a port in plain loops, and ports derived from it that each do one
thing wrong. Every name is tried on logits and, where a mistake shows in single operations, on those.
"""
import math
import struct

import pytest

import llama2
from llama2_py.doctor import report
from llama2_py.doctor.mistakes.known import known
from llama2_py.doctor.budget import Budget
from llama2_py.doctor.compare import Comparison
from llama2_py.doctor.numbers import Numbers
from llama2_py.engine.checkpoint import Checkpoint
from tests.helpers import make_checkpoint, read_bytes

TOKENS = [1, 17, 5, 40, 23, 17, 31, 8, 44, 2, 19, 36]
SHAPE = {"dim": 32, "hidden_dim": 40, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 48, "seq_len": 16}


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def f16(x):
    return struct.unpack("e", struct.pack("e", x))[0]


class Right:
    """A correct port: every result rounded to float32, sums from left to right."""

    def __init__(self, path):
        self.file = Checkpoint(path)
        self.c = self.file.config
        self.hs = self.c.head_size
        self.keys, self.values, self.records = {}, {}, []

    # -- what a mistake can replace

    def weights(self, name, l):
        return self.file.rows(name, l)

    def dot(self, a, b):
        total = 0.0
        for u, v in zip(a, b, strict=True):
            total = f32(total + f32(u * v))
        return total

    def matmul(self, name, l, x):
        return [self.dot(row, x) for row in self.weights(name, l)]

    def norm(self, name, l, x):
        s = f32(1 / f32(math.sqrt(f32(f32(self.dot(x, x) / len(x)) + f32(1e-5)))))
        return [f32(w * f32(s * v)) for w, v in zip(self.weights(name, l)[0], x, strict=True)]

    def angle(self, pair, pos):
        return f32(pos * f32(1 / f32(10000.0 ** f32(2 * pair / self.hs))))

    def turn(self, a, b, angle):
        c, s = f32(math.cos(angle)), f32(math.sin(angle))
        return f32(f32(a * c) - f32(b * s)), f32(f32(a * s) + f32(b * c))

    def rope(self, x, pos):
        result = list(x)
        for i in range(0, len(x), 2):
            result[i], result[i + 1] = self.turn(x[i], x[i + 1], self.angle(i % self.hs // 2, pos))
        return result

    def kv_head(self, h):
        return h // (self.c.n_heads // self.c.n_kv_heads)

    def key(self, l, t, kv, pos):
        return self.keys[l, t][kv * self.hs:(kv + 1) * self.hs]

    def value(self, l, t, kv, pos):
        return self.values[l, t][kv * self.hs:(kv + 1) * self.hs]

    def score(self, s, h, t, pos):
        return s

    def join(self, heads):
        return [v for head in heads for v in head]

    def activation(self, a):
        return f32(a * f32(1 / f32(1 + f32(math.exp(-a)))))

    def logits(self, x):
        return self.matmul("classifier", 0, x)

    # -- the pass

    def keep(self, pos, l, op, x):
        self.records.append((pos, l, op, list(x)))
        return x

    def softmax(self, x):
        e = [f32(math.exp(f32(v - max(x)))) for v in x]
        total = 0.0
        for v in e:
            total = f32(total + v)
        return [f32(v / total) for v in e]

    def attend(self, l, pos, q):
        weights, heads, n = [], [], pos + 1
        for h in range(self.c.n_heads):
            query = q[h * self.hs:(h + 1) * self.hs]
            scores = [f32(self.dot(query, self.key(l, t, self.kv_head(h), pos)) / f32(math.sqrt(self.hs)))
                      for t in range(n)]
            weights += self.softmax([self.score(s, h, t, pos) for t, s in enumerate(scores)])
        weights = self.keep(pos, l, "weights", weights)
        for h in range(self.c.n_heads):
            columns = zip(*[self.value(l, t, self.kv_head(h), pos) for t in range(n)], strict=True)
            heads.append([self.dot(weights[h * n:(h + 1) * n], column) for column in columns])
        return self.keep(pos, l, "attention", self.join(heads))

    def layer(self, l, pos, x):
        normed = self.keep(pos, l, "attention_norm", self.norm("rms_att", l, x))
        q = self.keep(pos, l, "q", self.rope(self.matmul("wq", l, normed), pos))
        self.keys[l, pos] = self.keep(pos, l, "k", self.rope(self.matmul("wk", l, normed), pos))
        self.values[l, pos] = self.keep(pos, l, "v", self.matmul("wv", l, normed))
        out = self.keep(pos, l, "attention_out", self.matmul("wo", l, self.attend(l, pos, q)))
        x = self.keep(pos, l, "attention_residual", [f32(a + b) for a, b in zip(x, out, strict=True)])
        normed = self.keep(pos, l, "ffn_norm", self.norm("rms_ffn", l, x))
        gate = self.keep(pos, l, "gate", self.matmul("w1", l, normed))
        up = self.keep(pos, l, "up", self.matmul("w3", l, normed))
        hidden = [f32(self.activation(a) * b) for a, b in zip(gate, up, strict=True)]
        out = self.keep(pos, l, "ffn_out", self.matmul("w2", l, self.keep(pos, l, "swiglu", hidden)))
        return self.keep(pos, l, "ffn_residual", [f32(a + b) for a, b in zip(x, out, strict=True)])

    def step(self, token, pos):
        x = self.keep(pos, -1, "embedding", self.weights("embedding", 0)[token])
        for l in range(self.c.n_layers):
            x = self.layer(l, pos, x)
        x = self.keep(pos, -1, "final_norm", self.norm("rms_final", 0, x))
        return self.keep(pos, -1, "logits", self.logits(x))

    def run(self, tokens):
        return [self.step(token, pos) for pos, token in enumerate(tokens)]


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
    def number(self, v):
        return struct.unpack("f", struct.pack("I", struct.unpack("I", struct.pack("f", v))[0] & 0xFFFF0000))[0]


@wrong("weights, without the norms', are rounded to TensorFloat-32")
class TensorFloat(Rounded):
    def number(self, v):
        (bits,) = struct.unpack("I", struct.pack("f", v))
        return struct.unpack("f", struct.pack("I", (bits + 0xFFF + (bits >> 13 & 1)) & 0xFFFFE000))[0]


@wrong("weights, without the norms', are rounded to float8 (e4m3)")
class Float8(Rounded):
    def number(self, v):
        exponent = max(math.floor(math.log2(abs(v) or 1e-9)), -6)
        return round(v / 2.0 ** (exponent - 3)) * 2.0 ** (exponent - 3)


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
        return super().attend(l, len(TOKENS) - 1, q)

    def run(self, tokens):
        """Layer by layer, since keys and values of later positions are needed."""
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
    def layer(self, l, pos, x):
        normed = self.norm("rms_att", l, x)
        late = super().rope(self.matmul("wk", l, normed), max(0, pos - 1))
        self.late = {pos: late}
        return super().layer(l, pos, x)

    def rope(self, x, pos):
        return self.late[pos] if len(x) == self.c.kv_dim else super().rope(x, pos)


# ----------------------------------------------------------------------------
# What the doctor says


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("names") / "model.bin", **SHAPE)


@pytest.fixture(scope="module")
def doctor(path, tmp_path_factory):
    """doctor(data) -> the comparison of a file with these bytes, and the names of what is wrong."""
    file = tmp_path_factory.mktemp("numbers") / "theirs"
    with llama2.Transformer(path) as model:
        def examine(data):
            file.write_bytes(data)
            comparison = Comparison(model, TOKENS, Numbers(str(file), model.config))
            comparison.run()
            return comparison, [] if comparison.consistent() else comparison.search(Budget())

        yield examine


def rows_of(port):
    return b"".join(struct.pack(f"<{len(row)}f", *row) for row in port.run(TOKENS))


def records_of(port, positions):
    return b"".join(b"%d %d %s %d\n" % (pos, l, op.encode(), len(v)) + struct.pack(f"<{len(v)}f", *v)
                    for pos, l, op, v in port.records if pos < positions)


def test_the_port_is_right(path, doctor):
    port = Right(path)
    assert doctor(rows_of(port))[0].consistent() and doctor(records_of(port, 5))[0].consistent()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if i % 80 else [])
                                  for i, name in enumerate(WRONG)])
def test_what_real_ports_do_wrong_has_its_name(path, doctor, name):
    kind, in_operations = WRONG[name]
    port = kind(path)
    comparison, names = doctor(rows_of(port))
    assert not comparison.consistent() and len(names) == 1 and name in names[0], names
    if in_operations:
        comparison, names = doctor(records_of(port, 5))
        assert not comparison.consistent() and len(names) == 1 and name in names[0], names


@pytest.mark.slow
def test_a_classifier_that_begins_with_the_tables_has_its_name(tmp_path):
    path = make_checkpoint(tmp_path / "model.bin", **{**SHAPE, "vocab_size": 64}, shared=False)
    data = bytearray(read_bytes(path))
    c = Checkpoint(path).config
    size, tables = 4 * c.vocab_size * c.dim, 4 * c.seq_len * c.head_size
    begin = len(data) - size - tables
    for i in range(tables // 4):  # cosines and sines, as llama2.c writes them
        struct.pack_into("<f", data, begin + 4 * i, math.cos(i))
    (tmp_path / "model.bin").write_bytes(data)

    class TooEarly(Right):
        def weights(self, name, l):
            if name != "classifier":
                return super().weights(name, l)
            numbers = struct.unpack_from(f"<{size // 4}f", data, begin)
            return [numbers[i:i + c.dim] for i in range(0, len(numbers), c.dim)]

    (tmp_path / "theirs").write_bytes(rows_of(TooEarly(path)))
    with llama2.Transformer(path) as model:
        comparison = Comparison(model, TOKENS, Numbers(str(tmp_path / "theirs"), model.config))
        comparison.run()
        assert comparison.search(Budget()) == [
            "the classifier is read where RoPE's tables stand, which were not skipped"]


def test_logits_of_other_tokens_and_logits_that_nobody_computed_are_told(path, doctor):
    port, token, rows = Right(path), TOKENS[0], []
    for pos in range(6):  # takes its own likeliest tokens
        rows.append(port.step(token, pos))
        token = rows[-1].index(max(rows[-1]))
    tokens = [TOKENS[0], *[row.index(max(row)) for row in rows[:-1]]]
    comparison, names = doctor(b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows))
    assert not comparison.consistent()
    assert names == [f"other tokens were given: the logits are right for {','.join(map(str, tokens))}"]
    comparison, names = doctor(bytes(4 * SHAPE["vocab_size"] * 3))
    assert names == ["every logit of a step is the same number, 0 at the first: nothing was written there"]
    assert not any("computes in that format" in line for line in report.reasons(comparison))


def test_no_two_mistakes_have_one_name():
    config = Checkpoint(llama2.__file__.replace("llama2.py", "llama2_py/stories/model.bin")).config
    names = [mistake.name for mistake in known(config, 4)]
    assert len(names) == len(set(names))


class OrderOfHuggingFace(Right):
    """A correct program whose q and k stand in halves' order."""

    def keep(self, pos, l, op, x):
        if op not in ("q", "k"):
            return super().keep(pos, l, op, x)
        halves = [v for h in range(0, len(x), self.hs) for v in x[h:h + self.hs][0::2] + x[h:h + self.hs][1::2]]
        self.records.append((pos, l, op, halves))
        return x


@pytest.mark.slow
def test_another_order_of_q_and_k_is_hinted_at_where_the_logits_are_right(path, doctor):
    port = OrderOfHuggingFace(path)
    port.run(TOKENS)
    comparison, names = doctor(records_of(port, 5))
    assert comparison.first_wrong.op == "q" and not comparison.logits_wrong
    assert any("does the file have q and k in another order?" in line for line in report.advice(comparison, names))
