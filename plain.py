#!/usr/bin/env python3
"""A Llama 2 in plain loops: the definition that llama2.py, which is fast, has to equal bit for bit.

    python3 plain.py                           # the embedded model tells a story
    python3 plain.py 42 "Once upon a time"     # with another seed (1 to 2**64 - 1), and a beginning

It chooses the tokens that `python3 llama2.py -s SEED -i BEGINNING` chooses, only slowly; that one, given
`--page story.html`, shows what it thinks. A language model gives, for a text, the probabilities of what comes next; a
story is what comes of asking again and again. Shapes are in brackets: (vocab, dim) is vocab rows of dim numbers. The
embedded model: dim 64, feed-forward width (hidden) 172, layers 0 to 4, 8 query heads on 4 of keys and values, hs 8.
"""
import math
import os
import struct
import sys
from decimal import Decimal, localcontext
from pathlib import Path

# Numbers. All are float32, held in Python's floats, which have 53 bits instead of 24. To
# compute + - * / or sqrt in Python and then round gives what a float32 processor gives. A
# sum of many terms depends on their order if each partial sum is rounded; so fsum adds
# exactly and rounds once to 53 bits, r once to 24: everybody gets the same bits.

def r(x):
    """A number -> the float32 nearest to it."""
    # "f", since "<f" raises OverflowError where this gives inf
    return struct.unpack("f", struct.pack("f", x))[0]

def dot(a, b):
    """Vectors of the same length -> the sum of their products (each exact, as 24 + 24 bits
    fit in 53; the sum not)."""
    return r(math.fsum(x * y for x, y in zip(a, b, strict=True)))

def total(x):
    return r(math.fsum(x))

def nearest(number):
    """A decimal -> the float32 nearest to it. Rounded to 53 bits it can land on a midpoint
    and mislead r."""
    x = float(number)
    return min(map(r, (x, math.nextafter(x, math.inf), math.nextafter(x, -math.inf))),
               key=lambda candidate: abs(Decimal(candidate) - number))

def exp(x):
    # above 88.8 it overflows float32: 100 stands for all that is larger
    return nearest(Decimal(min(x, 100.0)).exp())

def power(a, b):
    return nearest(Decimal(a) ** Decimal(b))

def series(x, term, n):
    """term - term * x^2 / ((n + 1) (n + 2)) + ..: cosine for term 1 and n = 0, sine for
    term x and n = 1."""
    with localcontext() as context:
        context.prec = 40 + int(abs(x))  # digits, since the terms grow before they shrink
        x, term, result = Decimal(x), Decimal(term), Decimal(0)
        while result + term != result:
            result += term
            term *= -x * x / ((n + 1) * (n + 2))
            n += 2
        return nearest(result)

def cos(x):
    return series(x, 1.0, 0)
def sin(x):
    return series(x, x, 1)


# The weights: a file of llama2.c, version 0. Seven integers, then one matrix after the
# other.
class Model:
    def __init__(self, path):
        data = Path(path).read_bytes()
        shape = struct.unpack_from("<7i", data)
        dim, hidden, self.n_layers, self.n_heads, self.n_kv_heads, vocab, self.seq_len = shape
        self.vocab = abs(vocab)
        self.hs = dim // self.n_heads
        self.epsilon = 1e-5    # other families of Llamas have other ones
        self.theta = 10000.0
        kv_dim = self.n_kv_heads * self.hs  # of all heads' keys together
        numbers = iter(struct.unpack_from(f"<{len(data) // 4 - 7}f", data, 28))
        def matrix(rows, columns):
            return [[next(numbers) for _ in range(columns)] for _ in range(rows)]
        def layers(rows, columns):
            return [matrix(rows, columns) for _ in range(self.n_layers)]
        self.embedding = matrix(self.vocab, dim)     # a vector for each token
        self.rms_att = matrix(self.n_layers, dim)    # scales, before attention
        self.wq = layers(dim, dim)                   # to queries
        self.wk = layers(kv_dim, dim)                # to keys
        self.wv = layers(kv_dim, dim)                # to values
        self.wo = layers(dim, dim)                   # from the heads' results back into the stream
        self.rms_ffn = matrix(self.n_layers, dim)    # scales, before the feed-forward network
        self.w1 = layers(hidden, dim)                # to its gates
        self.w2 = layers(dim, hidden)                # back into the stream
        self.w3 = layers(hidden, dim)                # to the values that are gated
        self.rms_final = matrix(1, dim)[0]           # scales, at the end
        matrix(2 * self.seq_len, self.hs // 2)       # tables of cosines and sines, unused
        # to scores; a negative vocab says that it is not the embedding
        self.classifier = matrix(self.vocab, dim) if vocab < 0 else self.embedding
        # the cache: (pos + 1, kv_dim) for each layer
        self.keys = [None] * self.n_layers
        self.values = [None] * self.n_layers


# The forward pass, and what it is made of
def matvec(w, x):
    """w (n, d), x (d) -> (n): a matrix times a vector, which is the dot product of each row
    with it."""
    return [dot(row, x) for row in w]

def add(x, y):
    return [r(a + b) for a, b in zip(x, y, strict=True)]

def rmsnorm(x, w, epsilon=1e-5):
    """x, w (dim) -> (dim): x brought to length sqrt(dim), then scaled by w. Why: the stream
    grows from layer to layer; a layer learns more easily from inputs that are always of the
    same size."""
    mean = r(dot(x, x) / len(x))
    scale = r(1 / r(math.sqrt(r(mean + r(epsilon)))))  # epsilon: so that it is never 1 / 0
    return [r(wi * r(scale * xi)) for wi, xi in zip(w, x, strict=True)]

def softmax(x):
    """x (n) -> (n): positive numbers that sum to 1, larger where x is. Why the maximum is
    taken off: exp overflows at 89, and a constant taken off all of them does not change the
    result."""
    largest = max(x)
    e = [exp(r(v - largest)) for v in x]
    sum_e = total(e)
    return [r(v / sum_e) for v in e]

def rope(x, pos, hs, theta=10000.0):
    """x (heads * hs) -> the same shape: rotary position embedding. In each head, pair i / 2
    of neighbours turns by the angle pos / 10000^(i / hs): the first pair fast, the last one
    slowly. Why: positions then enter the dot product of a query and a key only through the
    distance between them."""
    turned = list(x)
    for i in range(0, hs, 2):
        angle = r(pos * r(1 / power(theta, r(i / hs))))
        c, s = cos(angle), sin(angle)
        for j in range(i, len(x), hs):  # this pair in every head
            a, b = x[j], x[j + 1]
            turned[j] = r(r(a * c) - r(b * s))
            turned[j + 1] = r(r(a * s) + r(b * c))
    return turned

def attend(q, keys, values):
    """One head: q (hs), keys and values (pos + 1, hs) -> weights (pos + 1), how much each
    position so far counts, and the values' sum with these weights (hs). A key that points
    where the query does gets a large weight."""
    weights = softmax([r(dot(q, key) / r(math.sqrt(len(q)))) for key in keys])
    return weights, [dot(weights, column) for column in zip(*values, strict=True)]

def swiglu(gate, up):
    """gate, up (hidden) -> (hidden): gate * sigmoid(gate) * up. Why: the gate softly
    decides which numbers pass, and without something that is not linear w1 and w2 would
    amount to one matrix."""
    return [r(r(g * r(1 / r(1 + exp(-g)))) * u) for g, u in zip(gate, up, strict=True)]

def forward(m, token, pos, see=lambda layer, op, values: values):
    """The token at position pos -> logits (vocab), a score for each token that could come
    next. x, the stream, is a vector of dim numbers to which every layer adds something,
    twice: attention, by which a position takes up what earlier positions know, and a
    feed-forward network, which works on that. (see gets every result by its name; what it
    returns takes its place, except for weights. It is for those who watch: ignore it on a
    first reading.)"""
    x = see(None, "embedding", m.embedding[token])
    for l in range(m.n_layers):
        n = see(l, "attention_norm", rmsnorm(x, m.rms_att[l], m.epsilon))
        # q (dim): what each head looks for. k (kv_dim): what this position offers to be
        # found by. v (kv_dim): what it gives if it is found.
        q = see(l, "q", rope(matvec(m.wq[l], n), pos, m.hs, m.theta))
        k = see(l, "k", rope(matvec(m.wk[l], n), pos, m.hs, m.theta))
        v = see(l, "v", matvec(m.wv[l], n))
        # The cache: keys and values of earlier positions do not change when a token is
        # added, so they are kept.
        m.keys[l] = [*m.keys[l], k] if pos > 0 else [k]
        m.values[l] = [*m.values[l], v] if pos > 0 else [v]
        weights, attention = [], []
        for h in range(m.n_heads):
            # Grouped heads: several heads of queries share one of keys and values, to keep
            # the cache small.
            g = h // (m.n_heads // m.n_kv_heads)
            mine = slice(h * m.hs, (h + 1) * m.hs)
            shared = slice(g * m.hs, (g + 1) * m.hs)
            keys = [key[shared] for key in m.keys[l]]
            values = [value[shared] for value in m.values[l]]
            of_head, out = attend(q[mine], keys, values)
            weights = weights + of_head
            attention = attention + out
        see(l, "weights", weights)  # only shown: what they lead to is computed already
        attention = see(l, "attention", attention)
        out = see(l, "attention_out", matvec(m.wo[l], attention))
        x = see(l, "attention_residual", add(x, out))
        n = see(l, "ffn_norm", rmsnorm(x, m.rms_ffn[l], m.epsilon))
        gate = see(l, "gate", matvec(m.w1[l], n))    # (hidden)
        up = see(l, "up", matvec(m.w3[l], n))        # (hidden)
        hidden = see(l, "swiglu", swiglu(gate, up))
        out = see(l, "ffn_out", matvec(m.w2[l], hidden))
        x = see(l, "ffn_residual", add(x, out))
    x = see(None, "final_norm", rmsnorm(x, m.rms_final, m.epsilon))
    return matvec(m.classifier, x)


# The tokenizer: text <-> the numbers of tokens, which are frequent pieces of text. 1, BOS,
# begins every text. 3 to 258 are the 256 bytes, for what has no token of its own.
class Tokenizer:
    def __init__(self, path, vocab):
        data = Path(path).read_bytes()
        self.pieces, self.scores, offset = [], [], 4
        for _ in range(vocab):
            score, length = struct.unpack_from("<fi", data, offset)
            self.scores.append(score)
            self.pieces.append(data[offset + 8:offset + 8 + length])
            offset += 8 + length

    def encode(self, text):
        """Text -> tokens: a space, one for each character or byte; then the best-scored
        pair merges, repeatedly."""
        tokens = [self.pieces.index(b" ")] if text and b" " in self.pieces else []
        for character in text:
            piece = character.encode()
            known = piece in self.pieces
            tokens += [self.pieces.index(piece)] if known else [byte + 3 for byte in piece]
        while True:
            best, at = -1e10, None
            for i in range(len(tokens) - 1):
                pair = self.pieces[tokens[i]] + self.pieces[tokens[i + 1]]
                if pair in self.pieces and self.scores[self.pieces.index(pair)] > best:
                    at, merged = i, self.pieces.index(pair)
                    best = self.scores[merged]
            if at is None:
                return [1, *tokens]
            tokens[at:at + 2] = [merged]

    def decode(self, previous, token):
        """The bytes of a token that follows another one."""
        piece = self.pieces[token]
        if previous == 1 and piece[:1] == b" ":
            piece = piece[1:]
        if len(piece) == 6 and piece[:3] == b"<0x":
            return bytes([int(piece[3:5], 16)])
        return piece


# The sampler: always the likeliest token would tell the same story each time, and a dull
# one; so chance decides.
def random(state):
    """The generator xorshift64*: a state of 64 bits -> a number in [0, 1) and the next
    state."""
    state ^= state >> 12
    state ^= (state << 25) & (2**64 - 1)
    state ^= state >> 27
    return ((state * 0x2545F4914F6CDD1D) % 2**64 >> 40) / 2**24, state

def pick(tokens, probabilities, coin):
    """The token on which a coin in [0, 1) falls, if each has a stretch as long as its
    probability."""
    running_sum = 0.0
    for token, probability in zip(tokens, probabilities, strict=True):
        running_sum = r(running_sum + probability)
        if coin < running_sum:
            return token
    return token  # the rounded sums can stay below the coin

def sample(logits, temperature, p, coin):
    """logits (vocab) -> a token. Temperature below 1 sharpens the differences, above 1 it
    flattens them; at 0 the likeliest token is taken. p, "top-p": only the likeliest tokens
    that together have more than p take part. Why: each unlikely token is rare, but there
    are so many that one would often be drawn and spoil the text."""
    if r(temperature) == 0:
        return logits.index(max(logits))
    n, p = len(logits), r(p)
    probabilities = softmax([r(v / r(temperature)) for v in logits])
    if p <= 0 or p >= 1:
        return pick(range(n), probabilities, coin)
    # tokens below the cutoff total at most 1 - p: never in the top
    cutoff = r(r(1 - p) / max(1, n - 1))
    top = [token for token in range(n) if probabilities[token] >= cutoff]
    top = top or [logits.index(max(logits))]
    top.sort(key=lambda token: -probabilities[token])
    mass, likeliest = 0.0, []
    while top and mass <= p:
        likeliest.append(top.pop(0))
        mass = r(mass + probabilities[likeliest[-1]])
    return pick(likeliest, [probabilities[token] for token in likeliest], r(coin * mass))

def generate(model, tokenizer, prompt, seed, steps=256, temperature=1.0, p=0.9):
    """Yield (token, next token, logits) for each position: the prompt's tokens, then
    sampled ones."""
    tokens, state = tokenizer.encode(prompt), seed
    for pos in range(steps):
        logits = forward(model, tokens[pos], pos)
        if pos + 1 == len(tokens):  # no token follows yet: choose one
            coin, state = random(state)
            tokens.append(sample(logits, temperature, p, coin))
        if tokens[pos + 1] == 1:  # BOS: another text would begin
            return
        yield tokens[pos], tokens[pos + 1], logits

def main(seed="1", prompt="", **options):
    stories = Path(__file__).resolve().parent / "llama2_py" / "stories"
    model = Model(stories / "model.bin")
    tokenizer = Tokenizer(stories / "tokenizer.bin", model.vocab)
    for token, next_token, _ in generate(model, tokenizer, prompt, int(seed), **options):
        sys.stdout.buffer.write(tokenizer.decode(token, next_token))
        sys.stdout.buffer.flush()
    print()

def run(arguments):
    """What the command line asks for -> the exit code. What cannot be done is said in one
    line."""
    if sys.stdout is None:  # it was closed before this program began
        return 141
    try:
        if len(arguments) > 2 or arguments and not (arguments[0].isdecimal() and 0 < int(arguments[0]) < 2**64):
            raise ValueError(f"a seed from 1 to 2**64 - 1 and a beginning are wanted, not {' '.join(arguments)!r}")
        main(*arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # for Python writes what is left once more, at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (ArithmeticError, ValueError, OSError) as error:
        print(f"plain.py: error: {error or 'numbers too large'}", file=sys.stderr)
        return 2
    return 0

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
