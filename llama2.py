#!/usr/bin/env python3
"""Llama 2 inference in plain Python, exact to the bit.

    python3 llama2.py                                                   # the embedded model tells a story
    python3 llama2.py stories42M.bin -i "Once upon a time" -n 100 -s 42 # any checkpoint of llama2.c; or a folder

It holds what llama2.c's run.c holds, in the same order, with the standard library alone. One thing is added, beside
generate: Drafted, which computes known tokens together. plain.py is the same model in plain loops that do nothing for
speed. What run.c lacks, or has in a few lines, is in the packages of llama2_py: engine (results defined to the bit, the
weights, processes), log (a trace to replay), doctor (another program's numbers), referee (a dispute between two logs,
and the audit); the command line is llama2_py/command.py. Differences from run.c:

- a value out of range, a prompt beyond the context or a malformed file is an error, never silently corrected (only
  -n stops at the context's end);
- some oddities of run.c are left out: chat lines cut at 511 bytes, BOS taking part in merges, a missing token " "
  encoded as -1, <0x41xyz> decoded as a byte, a read before an array's start when top-p finds no candidate;
- int8 checkpoints (version 2) are read as the float32 numbers that they stand for; --like runq computes with them as
  runq.c does.

    x        activations, (dim)                          l    layer, 0 .. n_layers - 1
    q, k, v  query, key, value                           h    head of queries, 0 .. n_heads - 1
    w        weights                                     hs   head size; dim / n_heads, mostly
    pos      position in the sequence                    A    the arithmetic: Exact or C
    logits   unnormalized log-probabilities, (vocab)     R, r rounding to binary32: a vector, a number
"""
import sys

if __name__ == "__main__":
    try:
        import llama2_py.program  # first: it watches over the imports that follow  # noqa: F401
    except ImportError:
        print("llama2.py: error: the folder llama2_py is not beside this file (or python3 -P hides it)",
              file=sys.stderr)
        sys.exit(2)

import functools
import hashlib
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, zip_longest
from math import inf, isfinite, sqrt
from operator import add, mul, sub
from struct import unpack_from
from typing import Any

from llama2_py import console
from llama2_py.engine.arithmetic import Arithmetic, R, r, running_sums
from llama2_py.engine.checkpoint import Config
from llama2_py.engine.coins import GENERATORS
from llama2_py.engine.frequencies import frequencies
from llama2_py.engine.merging import merge
from llama2_py.engine.models import arithmetic_called, open_checkpoint
from llama2_py.engine.rows import free_memory, split, unpacked_size
from llama2_py.engine.workers import Shard, Team, gather, matvec, open_shard

# ----------------------------------------------------------------------------
# Neural net blocks (run.c: rmsnorm, softmax, and what stands within forward). They take
# vectors and return new ones. (run.c's matmul is engine/workers.matvec,
# engine/rows.Rows.times and A.dots.)


def rmsnorm(A: Arithmetic, x: Sequence[float], weight: Sequence[float], epsilon: float = 1e-5) -> tuple[float, ...]:
    """x (d), weight (d) -> (d): x / sqrt(mean(x^2) + epsilon) * weight"""
    s = A.dot(x, x)
    s = r(r(s / len(x)) + r(epsilon))
    s = r(1.0 / r(sqrt(s)))
    return R([w * v for w, v in zip(weight, R([s * v for v in x]), strict=True)])


def softmax(A: Arithmetic, x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n): exp(x) / sum(exp(x)), shifted so that the largest exponent is 0"""
    highest = max(x)
    e = A.exps(R([v - highest for v in x]))
    total = A.total(e)
    return R([v / total for v in e])


def rope_angles(A: Arithmetic, pos: int, config: Config, pairs: Sequence[int] | None = None
                ) -> tuple[list[float], list[float]]:
    """The cosines and sines, (hs / 2) each, of the angles by which a position turns the
    pairs of a head: pos / theta^(2i / hs), where theta is 10000, unless the config says
    otherwise. pairs: of these alone."""
    angles = [r(pos * f) for f in frequencies(A, config, pairs)]
    return [A.cos(a) for a in angles], [A.sin(a) for a in angles]


def rope(x: Sequence[float], cos: list[float], sin: list[float]) -> tuple[float, ...]:
    """x (heads * hs), cos and sin (hs / 2) -> (heads * hs): rotary position embedding.
    In each head the neighbours (2i, 2i + 1) are turned by angle i."""
    heads = len(x) // (2 * len(cos))
    a, b, cos, sin = x[0::2], x[1::2], cos * heads, sin * heads
    evens = map(sub, R(list(map(mul, a, cos))), R(list(map(mul, b, sin))))
    odds = map(add, R(list(map(mul, a, sin))), R(list(map(mul, b, cos))))
    return R(list(chain(*zip(evens, odds, strict=True))))


def attention_weights(A: Arithmetic, q: Sequence[float], keys: list) -> list[float]:
    """q (heads * hs), each head's keys (pos + 1, hs) -> (heads * (pos + 1)): a head
    compares its query with the key of every position so far, and the softmax of the
    scores says in which proportions it takes the positions' values."""
    if not keys:  # more processes than heads
        return []
    weights: list[float] = []
    hs = len(q) // len(keys)
    scale = r(sqrt(hs))
    for query, k in zip(split(q, hs), keys, strict=True):
        scores = A.dots(k, A.operand(query))
        weights += softmax(A, R([s / scale for s in scores]))
    return weights


def attention(A: Arithmetic, weights: Sequence[float], values: list) -> list[float]:
    """weights (heads * (pos + 1)), each head's values (hs, pos + 1) -> (heads * hs):
    those proportions of the values, which stand in columns, so that this too is a
    matrix times a vector."""
    if not values:
        return []
    result: list[float] = []
    for p, v in zip(split(weights, len(weights) // len(values)), values, strict=True):
        result += A.dots(v, A.operand(p))
    return result


def swiglu(A: Arithmetic, gate: Sequence[float], up: Sequence[float]) -> tuple[float, ...]:
    """gate, up (hidden) -> (hidden): silu(gate) * up, where silu(a) = a * 1 / (1 +
    exp(-a))"""
    e = A.exps([-a for a in gate])
    sigmoid = R([1.0 / v for v in R([1.0 + v for v in e])])
    silu = R(list(map(mul, gate, sigmoid)))
    return R(list(map(mul, silu, up)))


def residual(x: Sequence[float], change: Sequence[float]) -> tuple[float, ...]:
    """x, change (dim) -> (dim): their sum"""
    return R(list(map(add, x, change)))


# ----------------------------------------------------------------------------
# Transformer (run.c: TransformerWeights, RunState, malloc_run_state, forward,
# build_transformer, free_transformer)


async def forward(shard: Shard, token: int, pos: int, see: Callable, wanted: bool = True) -> Sequence[float]:
    """The token at position pos -> the logits of what follows it, (vocab); () if they are not wanted.

    On a first reading skip every `await`: matvec(w, x) is w times x, gather(part) is part, see(l, op, values) is
    values. This is a coroutine, so that it can stop in two places and go on later:

    - at `await matvec`, until the passes of other positions have come to the same matrix, whose rows are then read from
      the file once for all of them;
    - at `await gather`, until the other processes have come there. Each has some heads and some rows of every matrix,
      hence a part of each vector; what it gets back is the whole.

    It is called in three steps: Transformer.forward, Team.run, and Shard.passes, which makes a coroutine for each
    position; workers.run_together takes them from stop to stop. see shows each result to whoever observes the run.
    Shapes are those in one process.
    """
    A = shard.arithmetic
    cos, sin = rope_angles(A, pos, shard.config)                                   # (hs / 2)
    epsilon = shard.config.norm_epsilon
    x = see(None, "embedding", shard.embedding(token))                             # (dim)
    for l, (w, cache) in enumerate(zip(shard.layers, shard.caches, strict=True)):
        # attention, and the residual connection around it
        normed = see(l, "attention_norm", rmsnorm(A, x, w.rms_att, epsilon))       # (dim)
        q = see(l, "q", rope(await matvec(w.wq, normed), cos, sin))                # (dim)
        k = see(l, "k", rope(await matvec(w.wk, normed), cos, sin))                # (kv_dim)
        v = see(l, "v", await matvec(w.wv, normed))                                # (kv_dim)
        cache.append(k, v)
        weights = see(l, "weights", attention_weights(A, q, cache.keys))           # (n_heads * (pos + 1))
        heads = attention(A, weights, cache.values)
        heads = see(l, "attention", await gather(heads))                           # (dim)
        out = see(l, "attention_out", await gather(await matvec(w.wo, heads)))     # (dim)
        x = see(l, "attention_residual", residual(x, out))                         # (dim)
        # the feed-forward network, and the residual connection around it
        normed = see(l, "ffn_norm", rmsnorm(A, x, w.rms_ffn, epsilon))             # (dim)
        gate = see(l, "gate", await matvec(w.w1, normed))                          # (hidden_dim)
        up = see(l, "up", await matvec(w.w3, normed))                              # (hidden_dim)
        hidden = see(l, "swiglu", await gather(swiglu(A, gate, up)))               # (hidden_dim)
        out = see(l, "ffn_out", await gather(await matvec(w.w2, hidden)))          # (dim)
        x = see(l, "ffn_residual", residual(x, out))                               # (dim)
    x = see(None, "final_norm", rmsnorm(A, x, shard.rms_final, epsilon))           # (dim)
    return await matvec(shard.classifier, x) if wanted else ()                     # (vocab)


class Transformer:
    """A model: Transformer(path, arithmetic="exact", workers=1). Close it, or use it in a `with` statement.

    workers is the number of processes, this one included; any number gives the same bits. The weights are unpacked into
    Python floats, 40 bytes each (8 if they have 16 bits; 4 in the dialect `c`), if three quarters of the free memory
    hold them; if not, they are read from the mapped file at every step: the same bits, three to four times as slowly,
    in little memory. opened(path) gives the checkpoint. Raises ValueError or OSError for a file that is not one, and
    ChildProcessError if a worker dies.
    """

    def __init__(self, path: str, arithmetic: str = "exact", workers: int = 1, opened: Callable = open_checkpoint):
        A = arithmetic_called(arithmetic)
        console.need_integer("workers", workers, 1, 1024)
        self.length = 0    # positions in the key and value cache
        self.whole = True  # False while a step changes the cache
        self.team = Team()
        self.checkpoint = opened(path)
        self.config = self.checkpoint.config
        try:
            self.checkpoint.check_for(A)
            unpacked = self.fits(A)
            self.team.start(self.builder(A, unpacked), workers)
            self.shard = Shard(self.checkpoint, A, forward, 0, workers, unpacked)
        except BaseException:
            self.close()
            raise

    def fits(self, A: Arithmetic) -> bool:
        """Do three quarters of the free memory hold the weights, unpacked for an
        arithmetic?"""
        return unpacked_size(A, self.checkpoint) < free_memory() * 3 / 4

    def builder(self, A: Arithmetic, unpacked: bool) -> Callable:
        """build(index, count), which makes a shard of this model in another process, in
        any arithmetic."""
        return functools.partial(open_shard, self.checkpoint.path, self.checkpoint.identity, A, forward, unpacked)

    def forward(self, token: int, pos: int, observe: Callable | None = None, logits: bool = True) -> array:
        """One step: the token at position pos -> its logits, an array("f") of vocab_size; None if logits is False.

        Positions come in order; 0 begins anew. observe(layer, op, values) is called with the result of every operation,
        in order, by the names in the function forward; layer is None outside the layers.
        """
        result = self.forward_chunk([token], pos, [observe] if observe is not None else [], 0 if logits else 1)
        return result[0] if logits else None  # type: ignore[return-value]  # nobody asks for what is not there

    def forward_chunk(self, tokens: Sequence[int], pos: int, observers: Sequence[Callable] = (), skip: int = 0
                      ) -> list[array]:
        """Steps whose tokens are known, from position pos on, taken together -> the logits of all but the first `skip`.

        It gives what forward gives, and a model that is read from the file is read once for all of them. observers: a
        function for each position, or none.
        """
        c = self.config
        console.need_integer("position", pos, 0, 2**63)
        if pos != 0 and not (self.whole and pos == self.length):
            raise ValueError(f"position {pos} is neither 0 nor the next, {self.length if self.whole else 'unknown'}")
        if pos + len(tokens) > c.seq_len:
            raise ValueError(f"position {pos + len(tokens) - 1} is beyond the context of {c.seq_len}")
        for token in tokens:
            console.need(f"token of {self.checkpoint.path}", token, type(token) is int and 0 <= token < c.vocab_size,
                         f"in the vocabulary of {c.vocab_size}")
        self.whole = False
        results = self.team.run(self.shard, tokens, pos, skip, bool(observers))
        for observe, (events, _) in zip(observers, results, strict=False):
            for event in events:
                observe(*event)
        logits = [row for _, row in results[skip:]]
        for row in logits:
            if not isfinite(sum(row)):
                raise ValueError(f"{self.checkpoint.path}: the logits are not finite: the checkpoint is corrupt")
        self.length, self.whole = pos + len(tokens), True
        return logits

    def logits_after(self, outputs: Sequence[Sequence[float]]) -> list[Sequence[float]]:
        """What the model would say if its layers ended earlier: outputs of layers, (n,
        dim) -> (n, vocab). In one process."""
        shard, epsilon = self.shard, self.config.norm_epsilon
        final = [rmsnorm(shard.arithmetic, x, shard.rms_final, epsilon) for x in outputs]
        return shard.classifier.times(final) if final else []

    def close(self) -> None:
        """End the workers and let go of the file."""
        self.team.close()
        self.checkpoint.close()

    def __enter__(self) -> "Transformer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


# ----------------------------------------------------------------------------
# Tokenizer: byte-pair encoding, with single bytes for what the vocabulary lacks (run.c:
# Tokenizer, build_tokenizer, str_lookup, encode, decode)

BOS, EOS = 1, 2
START = -1  # decode's previous token, where there is none


class Tokenizer:
    """Text to tokens and back: Tokenizer("tokenizer.bin", vocab_size).

    Raises ValueError, naming the file, if the file is malformed. more tells whether it has more tokens than these.
    """

    def __init__(self, path: str, vocab_size: int | None, data: bytes | None = None):
        """vocab_size: the model's; None: all tokens of the file. data: the file's
        bytes, if they are at hand."""
        if vocab_size is not None:
            console.need_integer("vocab_size", vocab_size, 1, 2**24)
        data = console.read_file(path) if data is None else data
        self.path, self.sha256 = path, hashlib.sha256(data).hexdigest()
        if kind := console.kind_of(data):
            raise ValueError(f"{path}: is {kind}")
        self.vocab, self.scores = [], []  # token -> its bytes, its score
        offset = 4                        # the length of the longest token comes first; it is not needed
        for token in count():
            if token == vocab_size or vocab_size is None and offset == len(data):
                break
            if len(data) < offset + 8:
                raise ValueError(f"{path}: ends within token {token}; the checkpoint has {vocab_size}")
            score, length = unpack_from("<fi", data, offset)
            offset += 8
            if not 0 <= length <= len(data) - offset:
                raise ValueError(f"{path}: token {token} has length {length}, but {len(data) - offset} bytes are left")
            self.vocab.append(data[offset:offset + length])
            self.scores.append(score)
            offset += length
        self.more = len(data) > offset
        self.tokens: dict[bytes, int] = {}  # bytes -> the first such token
        for token, piece in enumerate(self.vocab):
            self.tokens.setdefault(piece, token)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Text -> tokens. Bytes in it that are not UTF-8 (surrogate escapes, PEP 383) become byte tokens.

        Adjacent tokens whose concatenation is a token merge: the best-scored pair first, the leftmost on a tie.
        """
        console.need("text", text, isinstance(text, str), "a string")
        tokens = [self.tokens[b" "]] if text and b" " in self.tokens else []
        for character in text:
            piece = character.encode("utf-8", "surrogateescape")
            tokens += [self.tokens[piece]] if piece in self.tokens else [byte + 3 for byte in piece]
        if max(tokens, default=0) >= len(self.vocab):
            raise ValueError(f"{self.path}: a vocabulary of {len(self.vocab)} has no token for every byte of the text")
        return [BOS] * bos + merge(tokens, self._pair)

    def _pair(self, first: int, second: int) -> tuple[float, int] | None:
        """Of two neighbours, the order in which they merge and the token that they
        become; None: they do not merge."""
        token = self.tokens.get(self.vocab[first] + self.vocab[second])
        if token is None or not self.scores[token] > -1e10:  # as low as run.c looks
            return None
        return -self.scores[token], token

    def decode(self, previous: int, token: int) -> bytes:
        """The bytes of a token after the previous one: a space after BOS is dropped,
        <0xHH> is a byte."""
        console.need_integer("token", token, 0, len(self.vocab) - 1)
        piece = self.vocab[token]
        if previous == BOS and piece.startswith(b" "):
            piece = piece[1:]
        if match := re.fullmatch(rb"<0x([0-9A-Fa-f]{2})>", piece):
            return bytes.fromhex(match[1].decode())
        return piece


def load_tokenizer(path: str, vocab_size: int | None = None, data: bytes | None = None) -> Any:
    """The tokenizer of a file of llama2.c, or of a folder of Hugging Face or its tokenizer.json (bpe.AnyTokenizer).

    vocab_size: the model's; None: all tokens of the file. data: the file's bytes, if they are at hand. Raises
    ValueError or OSError for what is no tokenizer.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "tokenizer.json")
    if data is None:
        data = console.read_file(path)
    if not data.lstrip()[:1] == b"{":
        return Tokenizer(path, vocab_size, data)
    from llama2_py.engine.bpe import BytePairTokenizer  # here, since most runs need none of it
    return BytePairTokenizer(path, vocab_size, data)


# ----------------------------------------------------------------------------
# Sampler: from logits to the next token (run.c: Sampler, build_sampler, sample_argmax,
# sample_mult, sample_topp, sample)

class Sampler:
    """Chooses tokens: Sampler(temperature, p_value, seed, rng, arithmetic). Raises ValueError for values out of range.

    temperature 0 takes the likeliest token. p_value 0 or 1 samples from all tokens, anything between from the likeliest
    ones, as few as together exceed it.
    """

    def __init__(self, temperature: float = 1.0, p_value: float = 0.9, seed: int = 1, rng: str = "xorshift64*",
                 arithmetic: str = "exact"):
        numbers = (int, float)
        console.need("temperature", temperature, type(temperature) in numbers and 0 <= temperature < inf,
                     "0 or more, and finite")
        console.need("p_value", p_value, type(p_value) in numbers and 0 <= p_value <= 1, "0 to 1")
        console.need("seed", seed, type(seed) is int and 0 < seed < 2**64, "1 to 2**64 - 1")
        console.need("rng", rng, rng in tuple(GENERATORS), " or ".join(GENERATORS))
        A = arithmetic_called(arithmetic)
        self.temperature, self.p_value = temperature + 0.0, p_value + 0.0  # floats, and never -0.0
        self.seed = seed
        self.rng, self.arithmetic = rng, A
        self.state = seed
        # What the last sample was drawn from: the tokens to choose from, what the coin
        # was multiplied by, the probabilities of all tokens, the coin; None where the
        # likeliest was taken
        self.drawn: tuple | None = None

    def coin(self) -> float:
        """A random number in [0, 1), a multiple of 2^-24 (run.c: random_f32)."""
        bits, self.state = GENERATORS[self.rng](self.state)
        return bits / 2**24

    def _choices(self, logits):
        """The tokens to choose from (n), their running sums (n), what a coin is
        multiplied by, all probabilities (vocab)."""
        temperature, p = r(self.temperature), r(self.p_value)
        scaled = R([v / temperature for v in logits])
        if not isfinite(sum(scaled)):
            raise ValueError(f"temperature is {self.temperature}, so small that logits / temperature overflow")
        probabilities = softmax(self.arithmetic, scaled)
        if p <= 0.0 or p >= 1.0:
            return range(len(probabilities)), running_sums(probabilities), 1.0, probabilities
        # top-p: drop what is too improbable to be among the top, then sort
        cutoff = r(r(1.0 - p) / max(1, len(probabilities) - 1))
        tokens = [token for token, v in enumerate(probabilities) if v >= cutoff]
        tokens = tokens or [logits.index(max(logits))]  # flat probabilities and a small p may leave none
        tokens.sort(key=probabilities.__getitem__, reverse=True)  # stable, unlike qsort: equal ones stay in order
        sums = []
        for total in running_sums(map(probabilities.__getitem__, tokens)):
            sums.append(total)
            if total > p:
                break
        return tokens[:len(sums)], sums, sums[-1], probabilities

    def sample(self, logits: Sequence[float]) -> int:
        """logits (vocab) -> a token. Raises ValueError if the temperature is so small
        that they overflow."""
        if r(self.temperature) == 0.0:
            return logits.index(max(logits))
        tokens, sums, total, probabilities = self._choices(logits)
        coin = self.coin()
        self.drawn = tokens, total, probabilities, coin
        return pick(tokens, sums, r(coin * total))


def pick(tokens: Sequence[int], sums: Iterable[float], coin: float) -> int:
    """tokens (n), their running sums (n) -> the first token whose sum exceeds the coin,
    or else the last one."""
    for token, total in zip(tokens, sums, strict=False):
        if coin < total:
            return token
    return token


# ----------------------------------------------------------------------------
# Generation (run.c: generate, chat)


@dataclass
class Step:
    """What happened at one position."""
    pos: int
    token: int            # the input
    next: int             # the token that follows: the prompt's or a sampled one
    piece: bytes          # what next decodes to
    logits: array | None  # (vocab); None within the prompt, unless asked for


# Positions taken together. A model that is read from the file is read once for all of
# them, which makes it three to four times as fast at 15M parameters.
CHUNK = 16


class Events(list):
    """An observer that keeps what it sees: (layer, operation, values)."""

    def __call__(self, *event: Any) -> None:
        self.append(event)


class Drafted:
    """Stands for a transformer whose next tokens are known: it computes CHUNK positions
    at once and hands them out one by one. Tokens after the draft are computed as they
    come."""

    def __init__(self, transformer, draft: Sequence[int], skip: int = 0):
        """draft: the tokens of positions 0, 1, ...; skip: so many of them whose logits
        nobody wants."""
        self.transformer, self.draft, self.skip = transformer, draft, skip
        self.config, self.checkpoint = transformer.config, transformer.checkpoint
        self.ahead: dict[int, tuple] = {}  # position -> its token, events and logits, computed and not yet asked for

    def forward(self, token: int, pos: int, observe: Callable | None = None, logits: bool = True) -> array:
        """As Transformer.forward. Raises ValueError if the token is not the drafted
        one."""
        if pos not in self.ahead:
            tokens = self.draft[pos:pos + CHUNK] or [token]
            recorders = [Events() for _ in tokens] if observe is not None else []
            skip = min(len(tokens), max(0, self.skip - pos))
            rows = [None] * skip + self.transformer.forward_chunk(tokens, pos, recorders, skip)
            self.ahead = dict(enumerate(zip_longest(tokens, recorders, rows), pos))
        drafted, events, row = self.ahead.pop(pos)
        if token != drafted:
            raise ValueError(f"token {token} at position {pos} is not the drafted one, {drafted}")
        if observe is not None:
            for event in events or ():
                observe(*event)
        return row


def generate(transformer: Transformer | Drafted, tokenizer: Tokenizer, sampler: Sampler, prompt: Sequence[int],
             steps: int, observe: Callable | None = None, logits: bool = False) -> Iterator[Step]:
    """Yield a Step for each position, until there are `steps` of them or a token comes that ends a text: BOS, if the
    model is a file of llama2.c.

    prompt is encoded, and has one token at least. observe sees every operation before its step is yielded; logits=True
    asks for the logits within the prompt too.
    """
    check_length(prompt, transformer)
    token = prompt[0]
    for pos in range(steps):
        forced = pos + 1 < len(prompt)
        row = transformer.forward(token, pos, observe, logits or not forced)
        next_token = prompt[pos + 1] if forced else sampler.sample(row)
        yield Step(pos, token, next_token, tokenizer.decode(token, next_token), row)
        if next_token in transformer.checkpoint.ends:
            return
        token = next_token


def check_length(prompt: Sequence[int], transformer: Transformer | Drafted) -> None:
    """Raise ValueError if there is no prompt, not even BOS, or the context does not
    hold it."""
    if not prompt:
        raise ValueError("the prompt has no token; the encoded empty text has one, BOS")
    if len(prompt) > transformer.config.seq_len:
        raise ValueError(f"the prompt has {len(prompt)} tokens, but the context of {transformer.checkpoint.path} is "
                         f"{transformer.config.seq_len}")


def chat(transformer: Transformer, tokenizer: Tokenizer, sampler: Sampler, steps: int, read: Callable[[str], str],
         write: Callable[[bytes], None], user: str | None = None, system: str | None = None) -> int:
    """User and model take turns until there are `steps` positions or no more input -> how many turns the model ended.

    read(question) returns a line or raises EOFError; write(piece) receives what the model says. user and system are the
    first prompts; if None, they are read.
    """
    users_turn, next_token, ended = True, BOS, 0
    for pos in range(steps):
        if users_turn:
            if pos == 0 and system is None:
                system = read("Enter system prompt (optional): ")
            if pos > 0 or user is None:
                user = read("User: ")
            prompt = f"<<SYS>>\n{system}\n<</SYS>>\n\n{user}" if pos == 0 and system else user
            tokens, index = tokenizer.encode(f"[INST] {prompt} [/INST]"), 0
            left = transformer.config.seq_len - pos
            if len(tokens) > left:
                raise ValueError(f"the turn has {len(tokens)} tokens, but {left} positions are left")
            write(b"Assistant: ")
        if index < len(tokens):
            token, index = tokens[index], index + 1
        else:
            token = next_token
        users_turn = token == EOS  # the model ends its turn with it
        next_token = sampler.sample(transformer.forward(token, pos))
        if index == len(tokens) and next_token != EOS:
            write(tokenizer.decode(token, next_token))
        if next_token == EOS:
            ended += index == len(tokens)
            write(b"\n")
    write(b"\n")
    return ended


def __getattr__(name: str) -> Any:
    """verify, verify_many and audit, which need more than the engine: they are loaded
    when they are asked for."""
    if name == "audit":
        from llama2_py.referee.audit import audit
        return audit
    if name not in ("verify", "verify_many"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llama2_py import command
    return getattr(command, name)


if __name__ == "__main__":
    sys.modules["llama2"] = sys.modules["__main__"]  # the command line imports llama2: it gets this module, once loaded
    from llama2_py.command import main
    sys.exit(main())
