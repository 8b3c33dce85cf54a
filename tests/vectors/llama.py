"""A Llama in float32, as a port to numpy may be: checkpoints and tokenizers of llama2.c. harness.py tests it.

How a dot product adds up is a choice of the port's: SUMS has the orders that harness.py tries.
"""
import numpy as np

F = np.float32


def lanes(n):
    """Sums in n lanes, as vector instructions have it, then pairwise."""
    def total(terms):
        parts = [forward(terms[lane::n]) for lane in range(n)]
        return pairwise(np.array(parts, F))
    return total


def forward(terms):
    """Left to right."""
    return np.add.accumulate(terms, dtype=F)[-1] if len(terms) else F(0)


def backward(terms):
    """Right to left."""
    return forward(terms[::-1])


def pairwise(terms):
    """Halves."""
    if len(terms) < 3:
        return forward(terms)
    half = len(terms) // 2
    return F(pairwise(terms[:half]) + pairwise(terms[half:]))


def by_size(terms):
    """The largest first."""
    return forward(terms[np.argsort(-np.abs(terms), kind="stable")])


def by_size_reversed(terms):
    """The smallest first."""
    return forward(terms[np.argsort(np.abs(terms), kind="stable")])


def outside_in(terms):
    """The first, the last, the second, ..."""
    order = [i // 2 if i % 2 == 0 else len(terms) - 1 - i // 2 for i in range(len(terms))]
    return forward(terms[order])


def in_double(terms):
    """Added up in float64, and rounded once."""
    return F(np.sum(terms, dtype=np.float64))


SUMS = {"forward": forward, "backward": backward, "pairwise": pairwise, "largest first": by_size,
        "smallest first": by_size_reversed, "outside in": outside_in, "double": in_double, "numpy": np.sum,
        **{f"{n} lanes": lanes(n) for n in (2, 3, 4, 8, 16)}}
total = forward  # the order that is used
flush = False    # are denormals flushed to zero?


def r(x):
    """x, rounded to float32; and flushed."""
    x = np.asarray(x, F)
    return np.where(np.abs(x) < F(2.0**-126), np.copysign(F(0), x), x) if flush else x


def dot(a, b):
    return r(total(r(r(a) * r(b))))


def matvec(w, x):
    return np.array([dot(row, x) for row in w], F)


def residual(x, change):
    return r(r(x) + r(change))


def rmsnorm(x, weight):
    mean = r(dot(x, x) / F(len(x)))
    s = r(F(1) / r(np.sqrt(r(mean + F(1e-5)))))
    return r(weight * r(s * r(x)))


def softmax(x):
    e = r(np.exp(r(x - x.max())))
    return r(e / r(total(e)))


def frequencies(hs, theta, scaling):
    f = r(F(1) / r(np.power(F(theta), np.arange(0, hs, 2, dtype=F) / F(hs))))
    if not scaling:
        return f
    slow = r(f / F(scaling["factor"]))
    if "low_freq_factor" not in scaling:
        return slow
    low, high = F(scaling["low_freq_factor"]), F(scaling["high_freq_factor"])
    turns = r(F(scaling["original_max_position_embeddings"]) * f / F(2 * np.pi))
    s = np.clip(r((turns - low) / (high - low)), F(0), F(1))
    return r(r((F(1) - s) * slow) + r(s * f))


def rope(x, pos, hs, theta=10000.0, scaling=None):
    angles = np.tile(r(F(pos) * frequencies(hs, theta, scaling)), len(x) // hs)
    c, s = r(np.cos(angles)), r(np.sin(angles))
    a, b = r(x[0::2]), r(x[1::2])
    y = np.empty_like(x)
    y[0::2] = r(r(a * c) - r(b * s))
    y[1::2] = r(r(a * s) + r(b * c))
    return y


def attention_weights(q, keys, heads, kv_heads):
    hs = len(q) // heads
    by_head = np.repeat(keys.reshape(len(keys), kv_heads, hs), heads // kv_heads, axis=1)
    scores = [[dot(q[h * hs:(h + 1) * hs], key) for key in by_head[:, h]] for h in range(heads)]
    return np.concatenate([softmax(r(np.array(row, F) / F(np.sqrt(hs)))) for row in scores])


def attention_mix(weights, values, heads, kv_heads):
    by_head = np.repeat(values.reshape(len(values), kv_heads, -1), heads // kv_heads, axis=1)
    shares = weights.reshape(heads, -1)
    return np.concatenate([[dot(shares[h], column) for column in by_head[:, h].T] for h in range(heads)]).astype(F)


def swiglu(gate, up):
    with np.errstate(over="ignore"):
        e = r(np.exp(-r(gate)))
    return r(r(r(gate) * r(F(1) / r(F(1) + e))) * r(up))


class Model:
    """A checkpoint, version 0."""

    def __init__(self, path):
        dim, hidden, self.layers, self.heads, self.kv_heads, vocab, context = np.fromfile(path, "<i4", 7).tolist()
        self.hs, kv, rest = dim // self.heads, dim // self.heads * self.kv_heads, np.fromfile(path, "<f4", offset=28)

        def take(*shape):
            nonlocal rest
            n = int(np.prod(shape))
            part, rest = rest[:n].reshape(shape), rest[n:]
            return part
        n = self.layers
        self.embedding, self.rms_att = take(abs(vocab), dim), take(n, dim)
        self.wq, self.wk, self.wv, self.wo = take(n, dim, dim), take(n, kv, dim), take(n, kv, dim), take(n, dim, dim)
        self.rms_ffn = take(n, dim)
        self.w1, self.w2, self.w3 = take(n, hidden, dim), take(n, dim, hidden), take(n, hidden, dim)
        self.rms_final = take(dim)
        take(context, self.hs)  # the tables of RoPE
        self.classifier = take(-vocab, dim) if vocab < 0 else self.embedding
        self.keys, self.values = [[] for _ in range(n)], [[] for _ in range(n)]

    def forward(self, token, pos, see):
        """A position's logits. see(layer, op, values) -> values is shown every result."""
        x = see(-1, "embedding", self.embedding[token])
        for l in range(self.layers):
            n = see(l, "attention_norm", rmsnorm(x, self.rms_att[l]))
            q = see(l, "q", rope(matvec(self.wq[l], n), pos, self.hs))
            self.keys[l].append(see(l, "k", rope(matvec(self.wk[l], n), pos, self.hs)))
            self.values[l].append(see(l, "v", matvec(self.wv[l], n)))
            weights = see(l, "weights", attention_weights(q, np.array(self.keys[l]), self.heads, self.kv_heads))
            mix = see(l, "attention", attention_mix(weights, np.array(self.values[l]), self.heads, self.kv_heads))
            x = see(l, "attention_residual", residual(x, see(l, "attention_out", matvec(self.wo[l], mix))))
            n = see(l, "ffn_norm", rmsnorm(x, self.rms_ffn[l]))
            gate, up = see(l, "gate", matvec(self.w1[l], n)), see(l, "up", matvec(self.w3[l], n))
            out = see(l, "ffn_out", matvec(self.w2[l], see(l, "swiglu", swiglu(gate, up))))
            x = see(l, "ffn_residual", residual(x, out))
        return matvec(self.classifier, see(-1, "final_norm", rmsnorm(x, self.rms_final)))


def sample(logits, temperature, p, coin):
    if temperature == 0:
        return int(np.argmax(logits))
    probabilities = softmax(r(logits / temperature))
    order = np.arange(len(logits))
    if 0 < p < 1:
        order = np.argsort(-probabilities, kind="stable")
        sums = np.add.accumulate(probabilities[order], dtype=F)
        taken = int(np.argmax(sums > p)) + 1 if (sums > p).any() else len(order)
        order, coin = order[:taken], F(coin * sums[taken - 1])
    sums = np.add.accumulate(probabilities[order], dtype=F)
    return int(order[np.argmax(coin < sums)] if (coin < sums).any() else order[-1])


def xorshift(state):
    """A state of 64 bits -> the next one, and a coin."""
    state ^= state >> 12
    state ^= state << 25 & 2**64 - 1
    state ^= state >> 27
    return state, (state * 0x2545F4914F6CDD1D % 2**64 >> 40) / 2**24


class Tokenizer:
    """A tokenizer.bin."""

    def __init__(self, data, vocab):
        self.pieces, self.scores, at = [], [], 4
        for _ in range(vocab):
            length = int.from_bytes(data[at + 4:at + 8], "little")
            self.scores.append(np.frombuffer(data, "<f4", 1, at)[0])
            self.pieces.append(data[at + 8:at + 8 + length])
            at += 8 + length

    def encode(self, text):
        tokens = [self.pieces.index(b" ")] if text else []
        for piece in map(str.encode, text):
            tokens += [self.pieces.index(piece)] if piece in self.pieces else [byte + 3 for byte in piece]
        while True:
            pieces = [self.pieces[token] for token in tokens]
            pairs = [(i, pieces[i] + pieces[i + 1]) for i in range(len(tokens) - 1)]
            known = [(-self.scores[self.pieces.index(pair)], i, pair) for i, pair in pairs if pair in self.pieces]
            if not known:
                return [1, *tokens]
            _, i, pair = min(known)
            tokens[i:i + 2] = [self.pieces.index(pair)]

    def decode(self, previous, token):
        piece = self.pieces[token]
        if previous == 1:
            piece = piece.removeprefix(b" ")
        is_byte = len(piece) == 6 and piece.startswith(b"<0x")
        return bytes.fromhex(piece[3:5].decode()) if is_byte else piece
