#!/usr/bin/env python3
"""A Llama 2 in plain loops: the definition, which the fast llama2.py equals bit for bit.

    python3 plain.py                           # the embedded model tells a story, in a minute
    python3 plain.py 42 "Once upon a time"     # with another seed (1 to 2**64 - 1), and a beginning

A language model reads a text and says how probable each token, a frequent piece of text, is to
come next. To tell a story: ask it, choose a token, append it, ask again. `python3 llama2.py -s
SEED -i BEGINNING` tells the same stories faster; its `--page story.html` shows why each token
was chosen. `python3 tools/plain_page.py plain.html` makes a page of this file, with the numbers.

Shapes are in brackets: (vocab, dim) is vocab rows of dim numbers. The embedded model has dim
64, hidden (the width of its feed-forward networks) 172, vocab 512, and layers 0 to 4. In each
layer 8 heads of queries share 4 heads of keys and values. A head has hs = 8 numbers.
"""
import math
import os
import struct
import sys
from decimal import Decimal, localcontext
from pathlib import Path

# Numbers. Each is a float32, with 24 significant bits, held in one of Python's floats, which
# have 53. Where Python does a single + - * / or sqrt and r rounds, a float32 processor gets the
# same bits. A long sum is different: if every partial sum is rounded, the order of the terms
# matters. So fsum adds exactly and rounds once, to 53 bits, and then r rounds to 24. With that
# every machine, in any order, gets the same bits.

def r(x):
    """A number -> the float32 nearest to it."""
    # "f" gives inf where "<f" would raise OverflowError.
    return struct.unpack("f", struct.pack("f", x))[0]

def dot(a, b):
    """Two vectors of the same length -> the sum of their products. It is large where they
    point the same way. (Each product is exact: 24 + 24 bits fit in 53.)"""
    return r(math.fsum(x * y for x, y in zip(a, b, strict=True)))

def total(x):
    return r(math.fsum(x))

def nearest(number):
    """A Decimal -> the float32 nearest to it. Why not r(float(number)): rounded to 53 bits,
    it can land midway between two float32s, and r may then take the wrong one. So the
    neighbours are tried, too."""
    x = float(number)
    return min(map(r, (x, math.nextafter(x, math.inf), math.nextafter(x, -math.inf))),
               key=lambda candidate: abs(Decimal(candidate) - number))

def exp(x):
    # Above 88.8 the result is inf in float32, so 100 stands for all that is larger.
    return nearest(Decimal(min(x, 100.0)).exp())

def power(a, b):
    return nearest(Decimal(a) ** Decimal(b))

def series(x, term, n):
    """The sum term - term * x^2 / ((n + 1) (n + 2)) + ..: cosine if it begins with term 1
    and n 0, sine if with term x and n 1."""
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


# The weights. All that the model has learned: a file of llama2.c, version 0. It holds seven
# integers, then one matrix after the other. The cache is kept beside them.
class Model:
    def __init__(self, path):
        data = Path(path).read_bytes()
        shape = struct.unpack_from("<7i", data)
        dim, hidden, self.n_layers, self.n_heads, self.n_kv_heads, vocab, self.seq_len = shape
        self.vocab = abs(vocab)
        self.hs = dim // self.n_heads
        # These two differ in other Llamas
        self.epsilon = 1e-5
        self.theta = 10000.0
        kv_dim = self.n_kv_heads * self.hs  # the length of a position's keys, all heads together
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
        # To scores: the embedding once more, unless vocab is negative.
        self.classifier = matrix(self.vocab, dim) if vocab < 0 else self.embedding
        # The cache: for each layer (pos + 1, kv_dim).
        self.keys = [None] * self.n_layers
        self.values = [None] * self.n_layers


# The forward pass. Its parts come first; to see what they are for, begin with forward.
def matvec(w, x):
    """w (n, d), x (d) -> (n): a matrix times a vector. Each row is a pattern; its dot
    product with x says how much of the pattern is in x."""
    return [dot(row, x) for row in w]

def add(x, y):
    return [r(a + b) for a, b in zip(x, y, strict=True)]

def rmsnorm(x, w, epsilon=1e-5):
    """x, w (dim) -> (dim): x brought to length sqrt(dim), then each number times its own w.
    Why: the stream grows from layer to layer, but a layer learns more easily from inputs of
    one size."""
    mean = r(dot(x, x) / len(x))
    scale = r(1 / r(math.sqrt(r(mean + r(epsilon)))))  # epsilon: never 1 / 0
    return [r(wi * r(scale * xi)) for wi, xi in zip(w, x, strict=True)]

def softmax(x):
    """x (n) -> (n): scores become shares, positive numbers that sum to 1. Why subtract the
    largest score: exp overflows at 89, and what is subtracted from all scores cancels out
    in the division."""
    largest = max(x)
    e = [exp(r(v - largest)) for v in x]
    sum_e = total(e)
    return [r(v / sum_e) for v in e]

def rope(x, pos, hs, theta=10000.0):
    """x (heads * hs) -> the same shape: rotary position embedding. Two neighbours in a head
    are a point in a plane; it turns by the angle pos / theta^(i / hs), the first pair fast,
    the last one slowly. Why: attention by itself does not see the tokens' order. Once both
    are turned, a query times a key depends on how far apart they stand, and not on where."""
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
    """One head: q (hs), keys and values (pos + 1, hs) -> attention weights (pos + 1), which say
    how much each position counts, and the sum of the values with these weights (hs). The more
    a key points where the query does, the larger is its weight.

    Why sqrt(hs): a dot product of hs terms grows like sqrt(hs). Undivided, the largest would
    take nearly all the weight, and a head that is fixed on one position learns slowly.
    Causality: no position can look ahead, since the cache holds no later one.

    In numbers: head 3 of layer 0 reads " upon", at position 2 of "Once upon a time".
                              BOS  "Once" " upon"    sum
        dot product with q  -1.12   -0.32    2.68
        / sqrt(8)           -0.40   -0.11    0.95
        exp(.. - largest)    0.26    0.35    1.00   1.61
        weight: / sum        0.16    0.22    0.62   1.00
        value, first number -0.37   -0.39   -0.06
        weight * value      -0.06   -0.08   -0.04  -0.18
    """
    weights = softmax([r(dot(q, key) / r(math.sqrt(len(q)))) for key in keys])
    return weights, [dot(weights, column) for column in zip(*values, strict=True)]

def swiglu(gate, up):
    """gate, up (hidden) -> (hidden): up * gate * sigmoid(gate). The sigmoid runs from 0,
    closed, to 1, open. Why a gate: it decides how much of each number of up passes. Without
    it w3 and w2 would act as one matrix, which can only mix what is there."""
    return [r(r(g * r(1 / r(1 + exp(-g)))) * u) for g, u in zip(gate, up, strict=True)]

def forward(m, token, pos, see=lambda layer, op, values: values):
    """The token at position pos -> logits (vocab), a score for each token to come next.

    x (dim) is the stream. It begins as the token's embedding. Each layer adds to it twice:
    attention brings what earlier positions know, and a feed-forward network works on that.
    Why add: nothing is lost on the way, and in training every layer is corrected directly.

    (see gets each result with its name, for those who watch; what it returns is used in its
    place, except for weights. Ignore it on a first reading.)
    """
    x = see(None, "embedding", m.embedding[token])
    for l in range(m.n_layers):
        n = see(l, "attention_norm", rmsnorm(x, m.rms_att[l], m.epsilon))
        # q (dim): what each head looks for. k (kv_dim): what this position can be found by.
        # v (kv_dim): what it gives when it is found.
        q = see(l, "q", rope(matvec(m.wq[l], n), pos, m.hs, m.theta))
        k = see(l, "k", rope(matvec(m.wk[l], n), pos, m.hs, m.theta))
        v = see(l, "v", matvec(m.wv[l], n))
        # The cache: a new token changes no earlier key or value, as they never look ahead.
        # So they are kept.
        m.keys[l] = [*m.keys[l], k] if pos > 0 else [k]
        m.values[l] = [*m.values[l], v] if pos > 0 else [v]
        # Each head on its own; then wo mixes what they found, and it joins the stream.
        weights, attention = [], []
        for h in range(m.n_heads):
            # Grouped heads: several share keys and values, which keeps the cache small.
            g = h // (m.n_heads // m.n_kv_heads)
            mine = slice(h * m.hs, (h + 1) * m.hs)
            shared = slice(g * m.hs, (g + 1) * m.hs)
            keys = [key[shared] for key in m.keys[l]]
            values = [value[shared] for value in m.values[l]]
            head_weights, head_out = attend(q[mine], keys, values)
            weights = weights + head_weights
            attention = attention + head_out
        see(l, "weights", weights)  # only shown: attention has been computed
        attention = see(l, "attention", attention)
        out = see(l, "attention_out", matvec(m.wo[l], attention))
        x = see(l, "attention_residual", add(x, out))
        # The feed-forward network: from dim to hidden and back, each position by itself.
        n = see(l, "ffn_norm", rmsnorm(x, m.rms_ffn[l], m.epsilon))
        gate = see(l, "gate", matvec(m.w1[l], n))    # (hidden)
        up = see(l, "up", matvec(m.w3[l], n))        # (hidden)
        hidden = see(l, "swiglu", swiglu(gate, up))
        out = see(l, "ffn_out", matvec(m.w2[l], hidden))
        x = see(l, "ffn_residual", add(x, out))
    x = see(None, "final_norm", rmsnorm(x, m.rms_final, m.epsilon))
    return matvec(m.classifier, x)


# The tokenizer. Text to the numbers of tokens, and back. Token 1 is BOS, "beginning of
# sequence"; it comes before every text. Why: the first token needs something to follow, and
# a head that finds nothing, whose weights sum to 1 all the same, can rest there. Tokens 3 to
# 258 are the bytes 0 to 255, for characters that have no token of their own.
class Tokenizer:
    def __init__(self, path, vocab):
        data = Path(path).read_bytes()
        # The file begins with the length of the longest token, which is not needed
        self.pieces, self.scores, offset = [], [], 4
        for _ in range(vocab):
            score, length = struct.unpack_from("<fi", data, offset)
            self.scores.append(score)
            self.pieces.append(data[offset + 8:offset + 8 + length])
            offset += 8 + length

    def encode(self, text):
        """Text -> tokens. First BOS; a space, so that the first word is the same token as
        within a text; and a token for each character, or for each of its bytes. Then, of all
        neighbours that make a token together, those whose token has the best score merge; and
        so on until none are left."""
        tokens = [self.pieces.index(b" ")] if text and b" " in self.pieces else []
        for character in text:
            piece = character.encode()
            known = piece in self.pieces
            tokens += [self.pieces.index(piece)] if known else [byte + 3 for byte in piece]
        while True:
            best, at = -1e10, None  # the scores of tokens are higher
            for i in range(len(tokens) - 1):
                pair = self.pieces[tokens[i]] + self.pieces[tokens[i + 1]]
                if pair in self.pieces and self.scores[self.pieces.index(pair)] > best:
                    at, merged = i, self.pieces.index(pair)
                    best = self.scores[merged]
            if at is None:
                return [1, *tokens]
            tokens[at:at + 2] = [merged]

    def decode(self, previous, token):
        """The bytes of a token, given the one before: after BOS the space is left out."""
        piece = self.pieces[token]
        if previous == 1 and piece[:1] == b" ":
            piece = piece[1:]
        if len(piece) == 6 and piece[:3] == b"<0x":
            return bytes([int(piece[3:5], 16)])
        return piece


# The sampler. The likeliest tokens alone tell one story, and a dull one. So chance decides.
def random(state):
    """The generator xorshift64*: a state of 64 bits -> a number in [0, 1), and the next
    state. The same seed gives the same numbers, and so the same story."""
    state ^= state >> 12
    state ^= (state << 25) & (2**64 - 1)
    state ^= state >> 27
    return ((state * 0x2545F4914F6CDD1D) % 2**64 >> 40) / 2**24, state

def pick(tokens, probabilities, coin):
    """Lay the tokens side by side, each as long as it is probable -> the token on which the
    coin, in [0, 1), falls."""
    running_sum = 0.0
    for token, probability in zip(tokens, probabilities, strict=True):
        running_sum = r(running_sum + probability)
        if coin < running_sum:
            return token
    return token  # the rounded sums can stay below the coin

def sample(logits, temperature, p, coin):
    """logits (vocab) -> a token. A temperature below 1 makes likely tokens likelier, one
    above 1 less so; 0 takes the likeliest. p, called top-p: only the likeliest tokens take
    part, as few as have more than p together; with p 0 or 1 all do. Why: an unlikely token is
    rare, but there are hundreds of them; without top-p one is drawn again and again, and
    spoils the text."""
    if r(temperature) == 0:
        return logits.index(max(logits))
    n, p = len(logits), r(p)
    probabilities = softmax([r(v / r(temperature)) for v in logits])
    if p <= 0 or p >= 1:
        return pick(range(n), probabilities, coin)
    # All tokens below the cutoff have at most 1 - p together: none is in the top.
    cutoff = r(r(1 - p) / max(1, n - 1))
    top = [token for token in range(n) if probabilities[token] >= cutoff]
    top = top or [logits.index(max(logits))]
    top.sort(key=lambda token: -probabilities[token])
    mass, likeliest = 0.0, []
    while top and mass <= p:
        likeliest.append(top.pop(0))
        mass = r(mass + probabilities[likeliest[-1]])
    return pick(likeliest, [probabilities[token] for token in likeliest], r(coin * mass))


# The story. One forward pass and one choice a token, until BOS comes or the steps are used up.
def generate(model, tokenizer, prompt, seed, steps=256, temperature=1.0, p=0.9):
    """Yield (token, next token, logits) for each position. The prompt's tokens are known, and
    are read all the same: that fills the cache. Then tokens are sampled."""
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

# The command line, and its errors. Skip it.
def run(arguments):
    """Do what the command line says -> the exit code. An error is one line."""
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
        # or Python, at its end, would try once more to write what is left, and fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (ArithmeticError, ValueError, OSError) as error:
        print(f"plain.py: error: {error or 'numbers too large'}", file=sys.stderr)
        return 2
    return 0

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
