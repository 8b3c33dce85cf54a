#!/usr/bin/env python3
"""Llama 2 inference in plain Python, exact to the bit.

    python3 llama2.py                                                   # the embedded model tells a story
    python3 llama2.py stories42M.bin -i "Once upon a time" -n 100 -s 42 # any float checkpoint of llama2.c

It holds what llama2.c's run.c holds, in its order, with the standard library alone; plain.py is the same model in 200
lines that do nothing for speed. What run.c lacks has rooms of its own: the arithmetic, which is defined to the bit, in
a dialect of its own or in run.c's (arithmetic.py); worker processes, and models too large for memory (workers.py); a
log that proves a run (trace.py); other programs' numbers beside ours (compare.py). But:

- a value out of range, a prompt beyond the context or a malformed file is an error, never silently corrected (only
  -n stops at the context's end);
- some oddities of run.c are left out: chat lines cut at 511 bytes, BOS taking part in merges, a missing token " "
  encoded as -1, <0x41xyz> decoded as a byte, a read before an array's start when top-p finds no candidate;
- quantized checkpoints (version 2) are not supported.

    x        activations, (dim)                          l    layer, 0 .. n_layers - 1
    q, k, v  query, key, value                           h    head of queries, 0 .. n_heads - 1
    w        weights                                     hs   head size, dim / n_heads
    pos      position in the sequence                    A    the arithmetic: Exact or C
    logits   unnormalized log-probabilities, (vocab)     R    rounding to binary32
"""
import argparse
import contextlib
import functools
import hashlib
import mmap
import os
import re
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from math import inf, isfinite, sqrt
from operator import add, mul, sub
from struct import iter_unpack, unpack_from
from typing import BinaryIO

import trace

if not hasattr(trace, "Log"):
    message = (f"the module trace that Python found, {trace.__file__}, is not this project's: keep trace.py beside "
               "llama2.py, put their folder first in sys.path, and run without -P")
    if __name__ != "__main__":
        raise ImportError(message)
    print(f"llama2.py: error: {message}", file=sys.stderr)
    sys.exit(2)

import compare
import console
from arithmetic import ARITHMETIC, NATIVE, R, r, running_sums
from console import VerificationError
from workers import Drafted, Shard, Team, free_memory, gather, matvec, split

# ----------------------------------------------------------------------------
# Checkpoint: the formats of llama2.c's export.py, versions 0, which run.c reads, and 1 (run.c: Config,
# TransformerWeights, memory_map_weights, read_checkpoint)


@dataclass
class Config:
    """The shape of a model."""
    dim: int         # of the activations
    hidden_dim: int  # of the feed-forward layers
    n_layers: int
    n_heads: int     # of queries
    n_kv_heads: int  # of keys and values: as many (multi-head), fewer (grouped), one (multi-query)
    vocab_size: int
    seq_len: int     # the longest sequence: the context

    @property
    def head_size(self) -> int:
        """hs: the dimensions of a head."""
        return self.dim // self.n_heads


class Checkpoint:
    """A checkpoint file, mapped into memory: its config, and its weights when asked for.

    Raises ValueError, naming the file, the field and the values, if the file is not a whole checkpoint.
    """

    MAGIC = 0x616B3432  # "ak42": version 1 or later; version 0 has no magic

    def __init__(self, path: str):
        self.path = path
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            if self.size < 28:
                raise ValueError(f"{path}: {self.size} bytes are too few for a checkpoint's header of 28")
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._read_header()
        except ValueError:
            self.close()
            raise

    def _read_header(self):
        def need(condition, field, value, wanted):
            if not condition:
                raise ValueError(f"{self.path}: {field} is {value}, must be {wanted}")

        magic, version = unpack_from("<Ii", self.data)
        if magic == self.MAGIC:
            need(version == 1, "version", version, "0 or 1: int8 checkpoints are not supported")
            need(self.size >= 256, "size", f"{self.size} bytes", "at least the header's 256")
            *fields, shared = unpack_from("<7iB", self.data, 8)
            need(shared in (0, 1), "shared_classifier", shared, "0 or 1")
        else:
            fields = list(unpack_from("<7i", self.data))
            shared, fields[5] = fields[5] > 0, abs(fields[5])
        self.config = c = Config(*fields)
        for field, value in vars(c).items():
            need(0 < value < 2**24, field, value, "1 to 16777215 (is this a checkpoint of llama2.c?)")
        need(c.dim % c.n_heads == 0, "dim", c.dim, f"a multiple of n_heads, {c.n_heads}")
        need(c.n_heads % c.n_kv_heads == 0, "n_heads", c.n_heads, f"a multiple of n_kv_heads, {c.n_kv_heads}")
        need(c.head_size % 2 == 0, "dim / n_heads", c.head_size, "even")

        kv_dim = c.n_kv_heads * c.head_size
        shapes = {  # (layers, rows, columns)
            "embedding": (1, c.vocab_size, c.dim),
            "rms_att": (c.n_layers, 1, c.dim),
            "wq": (c.n_layers, c.dim, c.dim),
            "wk": (c.n_layers, kv_dim, c.dim),
            "wv": (c.n_layers, kv_dim, c.dim),
            "wo": (c.n_layers, c.dim, c.dim),
            "rms_ffn": (c.n_layers, 1, c.dim),
            "w1": (c.n_layers, c.hidden_dim, c.dim),
            "w2": (c.n_layers, c.dim, c.hidden_dim),
            "w3": (c.n_layers, c.hidden_dim, c.dim),
            "rms_final": (1, 1, c.dim),
            "rope_tables": (2, c.seq_len, c.head_size // 2),  # unused
            "classifier": (1, c.vocab_size, c.dim),
        }
        order, offset = list(shapes), 28  # of version 0
        if magic == self.MAGIC:           # version 1: the norms come first, and no tables
            order = "rms_att rms_ffn rms_final embedding wq wk wv wo w1 w2 w3 classifier".split()
            offset = 256
        if shared:
            order.remove("classifier")
        self.tensors = {}  # name -> where it begins in the file, rows and columns of each layer
        for name in order:
            layers, rows, columns = shapes[name]
            self.tensors[name] = offset, rows, columns
            offset += 4 * layers * rows * columns
        need(self.size == offset, "size", f"{self.size} bytes", f"{offset} for " + ", ".join(
            f"{field} {value}" for field, value in vars(c).items()))
        self.tensors.setdefault("classifier", self.tensors["embedding"])
        self.n_weights = offset // 4  # at most: header and tables are counted as well

    def rows(self, name: str, layer: int = 0, first: int = 0, last: int | None = None, check: bool = True
             ) -> list[tuple[float, ...]]:
        """Rows first .. last - 1 of a layer's matrix. Raises ValueError if a weight is not finite."""
        offset, rows, columns = self.tensors[name]
        start = offset + 4 * columns * (layer * rows + first)
        stop = offset + 4 * columns * (layer * rows + (rows if last is None else last))
        with memoryview(self.data)[start:stop] as window:
            result = list(iter_unpack(f"{NATIVE}{columns}f", window))
        if check and not all(map(isfinite, map(sum, result))):  # finite binary32 numbers never overflow a binary64 sum
            raise ValueError(f"{self.path}: {name} of layer {layer} holds a weight that is not finite")
        return result

    def release(self) -> None:
        """Let the system drop the pages that were read; it reads them from the file again when they are needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)

    def sha256(self) -> str:
        """The file's hash, in hexadecimal."""
        digest = hashlib.sha256()
        for start in range(0, self.size, 2**24):
            digest.update(self.data[start:start + 2**24])
            self.release()
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(BufferError):  # interrupted within rows(): closed when its view is dropped
            self.data.close()


# ----------------------------------------------------------------------------
# Neural net blocks (run.c: rmsnorm, softmax, and what stands within forward). They take vectors and return new ones.


def rmsnorm(A, x: Sequence[float], weight: Sequence[float]) -> tuple[float, ...]:
    """x (d), weight (d) -> (d): x / sqrt(mean(x^2) + 1e-5) * weight"""
    s = A.dot(x, x)
    s = r(r(s / len(x)) + r(1e-5))
    s = r(1.0 / r(sqrt(s)))
    return R([w * v for w, v in zip(weight, R([s * v for v in x]), strict=True)])


def softmax(A, x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n): exp(x) / sum(exp(x)), shifted so that the largest exponent is 0"""
    highest = max(x)
    e = A.exps(R([v - highest for v in x]))
    total = A.total(e)
    return R([v / total for v in e])


def rope_angles(A, pos: int, hs: int) -> tuple[list[float], list[float]]:
    """The cosines and sines, (hs / 2) each, of the angles by which a position turns the pairs of a head:
    pos / 10000^(2i / hs)."""
    angles = [r(pos * r(1.0 / A.pow(10000.0, r(2 * i / hs)))) for i in range(hs // 2)]
    return [A.cos(a) for a in angles], [A.sin(a) for a in angles]


def rope(x: Sequence[float], cos: list[float], sin: list[float]) -> tuple[float, ...]:
    """x (heads * hs), cos and sin (hs / 2) -> (heads * hs): rotary position embedding. In each head the neighbours
    (2i, 2i + 1) are turned by angle i."""
    heads = len(x) // (2 * len(cos))
    a, b, cos, sin = x[0::2], x[1::2], cos * heads, sin * heads
    evens = map(sub, R(list(map(mul, a, cos))), R(list(map(mul, b, sin))))
    odds = map(add, R(list(map(mul, a, sin))), R(list(map(mul, b, cos))))
    return R(list(chain(*zip(evens, odds, strict=True))))


def attend(A, q: Sequence[float], keys: list, values: list) -> tuple[Sequence[float], Sequence[float]]:
    """q (heads * hs), each head's keys (pos + 1, hs) and values (hs, pos + 1) -> weights (heads * (pos + 1)) and
    attention (heads * hs).

    A head compares its query with the key of every position so far; the softmax of the scores says in which
    proportions it takes the positions' values.
    """
    if not keys:  # more processes than heads
        return (), ()
    hs = len(q) // len(keys)
    scale = r(sqrt(hs))
    weights, attention = [], []
    for query, k, v in zip(split(q, hs), keys, values, strict=True):
        scores = A.dots(k, A.operand(query))
        p = softmax(A, R([s / scale for s in scores]))
        weights += p
        attention += A.dots(v, A.operand(p))
    return weights, attention


def swiglu(A, gate: Sequence[float], up: Sequence[float]) -> tuple[float, ...]:
    """gate, up (hidden) -> (hidden): silu(gate) * up, where silu(a) = a * 1 / (1 + exp(-a))"""
    e = A.exps([-a for a in gate])
    sigmoid = R([1.0 / v for v in R([1.0 + v for v in e])])
    silu = R(list(map(mul, gate, sigmoid)))
    return R(list(map(mul, silu, up)))


def residual(x: Sequence[float], change: Sequence[float]) -> tuple[float, ...]:
    """x, change (dim) -> (dim): their sum"""
    return R(list(map(add, x, change)))


# ----------------------------------------------------------------------------
# Transformer (run.c: TransformerWeights, RunState, malloc_run_state, forward, build_transformer, free_transformer)


async def forward(shard: Shard, token: int, pos: int, see: Callable, wanted: bool = True) -> Sequence[float]:
    """The token at position pos -> the logits of what follows it, (vocab); () if they are not wanted.

    Several processes can share the work. Each has some heads, and some rows of every matrix: `await matvec` gives its
    rows of a product, `await gather` the whole vector, from the parts of all processes. (In one process, a part is the
    whole.) see(l, op, values) -> values shows each result to whoever observes the run.
    """
    A = shard.arithmetic
    cos, sin = rope_angles(A, pos, shard.config.head_size)                         # (hs / 2)
    x = see(None, "embedding", shard.embedding(token))                             # (dim)
    for l, (w, cache) in enumerate(zip(shard.layers, shard.caches, strict=True)):
        # attention, and the residual connection around it
        normed = see(l, "attention_norm", rmsnorm(A, x, w.rms_att))                # (dim)
        q = see(l, "q", rope(await matvec(w.wq, normed), cos, sin))                # (dim)
        k = see(l, "k", rope(await matvec(w.wk, normed), cos, sin))                # (kv_dim)
        v = see(l, "v", await matvec(w.wv, normed))                                # (kv_dim)
        cache.append(k, v)
        weights, heads = attend(A, q, cache.keys, cache.values)                    # (n_heads * (pos + 1)), (dim)
        see(l, "weights", weights)
        heads = see(l, "attention", await gather(heads))                           # (dim)
        out = see(l, "attention_out", await gather(await matvec(w.wo, heads)))     # (dim)
        x = see(l, "attention_residual", residual(x, out))                         # (dim)
        # the feed-forward network, and the residual connection around it
        normed = see(l, "ffn_norm", rmsnorm(A, x, w.rms_ffn))                      # (dim)
        gate = see(l, "gate", await matvec(w.w1, normed))                          # (hidden_dim)
        up = see(l, "up", await matvec(w.w3, normed))                              # (hidden_dim)
        hidden = see(l, "swiglu", await gather(swiglu(A, gate, up)))               # (hidden_dim)
        out = see(l, "ffn_out", await gather(await matvec(w.w2, hidden)))          # (dim)
        x = see(l, "ffn_residual", residual(x, out))                               # (dim)
    x = see(None, "final_norm", rmsnorm(A, x, shard.rms_final))                    # (dim)
    return await matvec(shard.classifier, x) if wanted else ()                     # (vocab)


def open_shard(path: str, A, unpacked: bool, index: int, count: int) -> Shard:
    """A shard of a checkpoint, in the process that works on it."""
    return Shard(Checkpoint(path), A, forward, index, count, unpacked)


class Transformer:
    """A model: Transformer(path, arithmetic="exact", workers=1). Close it, or use it in a `with` statement.

    workers is the number of processes, this one included; any number gives the same bits. The weights are unpacked into
    Python floats, 40 bytes each (4 in the dialect `c`), if three quarters of the free memory hold them; if not, they
    are read from the mapped file at every step: the same bits, up to three times as slowly, in little memory.
    Raises ValueError or OSError for a file that is not a checkpoint, and ChildProcessError if a worker dies.
    """

    def __init__(self, path: str, arithmetic: str = "exact", workers: int = 1):
        A = ARITHMETIC[arithmetic]
        self.length = 0    # positions in the key and value cache
        self.whole = True  # False while a step changes the cache
        self.team = Team()
        self.checkpoint = Checkpoint(path)
        self.config = self.checkpoint.config
        unpacked = self.checkpoint.n_weights * A.weight_size < free_memory() * 3 / 4
        try:
            self.team.start(functools.partial(open_shard, path, A, unpacked), workers)
            self.shard = Shard(self.checkpoint, A, forward, 0, workers, unpacked)
        except BaseException:
            self.close()
            raise

    def forward(self, token: int, pos: int, observe: Callable | None = None, logits: bool = True) -> array | None:
        """One step: the token at position pos -> its logits, an array("f") of vocab_size; None if logits is False.

        Positions come in order; 0 begins anew. observe(layer, op, values) is called with the result of every operation,
        in order, by the names in the function forward; layer is None outside the layers.
        """
        result = self.forward_chunk([token], pos, [observe] if observe else [], 0 if logits else 1)
        return result[0] if logits else None

    def forward_chunk(self, tokens: Sequence[int], pos: int, observers: Sequence[Callable] = (), skip: int = 0
                      ) -> list[array]:
        """Steps whose tokens are known, from position pos on, taken together -> the logits of all but the first `skip`.

        It gives what forward gives, and a model that is read from the file is read once for all of them. observers: a
        function for each position, or none.
        """
        c = self.config
        if pos != 0 and not (self.whole and pos == self.length):
            raise ValueError(f"position {pos} is neither 0 nor the next, {self.length if self.whole else 'unknown'}")
        if pos + len(tokens) > c.seq_len:
            raise ValueError(f"position {pos + len(tokens) - 1} is beyond the context of {c.seq_len}")
        for token in tokens:
            if not 0 <= token < c.vocab_size:
                raise ValueError(f"token {token} is not in {self.checkpoint.path}'s vocabulary of {c.vocab_size}")
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

    def close(self) -> None:
        """End the workers and let go of the file."""
        self.team.close()
        self.checkpoint.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ----------------------------------------------------------------------------
# Tokenizer: byte-pair encoding, with single bytes for what the vocabulary lacks (run.c: Tokenizer,
# build_tokenizer, str_lookup, encode, decode)

BOS, EOS = 1, 2


class Tokenizer:
    """Text to tokens and back: Tokenizer("tokenizer.bin", vocab_size).

    Raises ValueError, naming the file, if the file is malformed. Bytes after the last token are ignored.
    """

    def __init__(self, path: str, vocab_size: int):
        data = console.read_file(path)
        self.path, self.sha256 = path, hashlib.sha256(data).hexdigest()
        self.vocab, self.scores = [], []  # token -> its bytes, its score
        offset = 4                        # the length of the longest token comes first; it is not needed
        for token in range(vocab_size):
            if len(data) < offset + 8:
                raise ValueError(f"{path}: ends within token {token}; the checkpoint has {vocab_size}")
            score, length = unpack_from("<fi", data, offset)
            offset += 8
            if not 0 <= length <= len(data) - offset:
                raise ValueError(f"{path}: token {token} has length {length}, but {len(data) - offset} bytes are left")
            self.vocab.append(data[offset:offset + length])
            self.scores.append(score)
            offset += length
        self.tokens = {}  # bytes -> the first such token
        for token, piece in enumerate(self.vocab):
            self.tokens.setdefault(piece, token)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Text -> tokens. Bytes in it that are not UTF-8 (surrogate escapes, PEP 383) become byte tokens.

        Adjacent tokens whose concatenation is a token merge: the best-scored pair first, the leftmost on a tie. A heap
        holds the pairs and a linked list the remaining tokens, so n characters take n log n steps.
        """
        tokens = [self.tokens[b" "]] if text and b" " in self.tokens else []
        for character in text:
            piece = character.encode("utf-8", "surrogateescape")
            tokens += [self.tokens[piece]] if piece in self.tokens else [byte + 3 for byte in piece]
        if max(tokens, default=0) >= len(self.vocab):
            raise ValueError(f"{self.path}: a vocabulary of {len(self.vocab)} has no token for every byte of the text")
        right = list(range(1, len(tokens) + 1))  # the index of the next remaining token
        left = list(range(-1, len(tokens) - 1))
        heap = []

        def consider(i, j):
            pair = self.tokens.get(self.vocab[tokens[i]] + self.vocab[tokens[j]])
            if pair is not None and self.scores[pair] > -1e10:  # as low as run.c looks
                heappush(heap, (-self.scores[pair], i, j, tokens[i], tokens[j], pair))

        for i in range(len(tokens) - 1):
            consider(i, i + 1)
        while heap:
            _, i, j, first, second, pair = heappop(heap)
            if tokens[i] != first or tokens[j] != second or right[i] != j:
                continue  # one of the two has merged since
            tokens[i], tokens[j] = pair, None
            right[i] = right[j]
            if right[i] < len(tokens):
                left[right[i]] = i
                consider(i, right[i])
            if left[i] >= 0:
                consider(left[i], i)
        return [BOS] * bos + [token for token in tokens if token is not None]

    def decode(self, previous: int, token: int) -> bytes:
        """The bytes of a token after the previous one: a space after BOS is dropped, <0xHH> is a byte."""
        piece = self.vocab[token]
        if previous == BOS and piece.startswith(b" "):
            piece = piece[1:]
        if match := re.fullmatch(rb"<0x([0-9A-Fa-f]{2})>", piece):
            return bytes.fromhex(match[1].decode())
        return piece


# ----------------------------------------------------------------------------
# Sampler: from logits to the next token (run.c: Sampler, build_sampler, sample_argmax,
# sample_mult, sample_topp, sample)

MASK = 2**64 - 1


def xorshift(state: int) -> tuple[int, int]:
    """xorshift64*, llama2.c's generator (run.c: random_u32): the state -> 24 random bits and the next state."""
    state ^= state >> 12
    state ^= state << 25 & MASK
    state ^= state >> 27
    return (state * 0x2545F4914F6CDD1D & MASK) >> 40, state


def llama2_rs(state: int) -> tuple[int, int]:
    """llama2-rs's generator: the state -> 24 random bits and the next state."""
    def rotate(value, by):
        return (value << by | value >> (64 - by)) & MASK

    return rotate(rotate(state, 5) * 5 & MASK, 7) >> 40, rotate(state, 23) + 0x9E3779B97F4A7C15 & MASK


GENERATORS = {"xorshift64*": xorshift, "llama2-rs": llama2_rs}


class Sampler:
    """Chooses tokens: Sampler(temperature, p_value, seed, rng, arithmetic). Raises ValueError for values out of range.

    temperature 0 takes the likeliest token. p_value 0 or 1 samples from all tokens, anything between from the likeliest
    ones that together exceed it.
    """

    def __init__(self, temperature: float = 1.0, p_value: float = 0.9, seed: int = 1, rng: str = "xorshift64*",
                 arithmetic: str = "exact"):
        if not 0 <= temperature < inf:
            raise ValueError(f"temperature is {temperature}, must be 0 or more, and finite")
        if not 0 <= p_value <= 1:
            raise ValueError(f"p_value is {p_value}, must be 0 to 1")
        if not 0 < seed < 2**64:
            raise ValueError(f"seed is {seed}, must be 1 to 2**64 - 1")
        self.temperature, self.p_value, self.seed = temperature, p_value, seed
        self.rng, self.arithmetic = rng, ARITHMETIC[arithmetic]
        self.state = seed

    def coin(self) -> float:
        """A random number in [0, 1), a multiple of 2^-24 (run.c: random_f32)."""
        bits, self.state = GENERATORS[self.rng](self.state)
        return bits / 2**24

    def sample(self, logits: Sequence[float]) -> int:
        """logits (vocab) -> a token"""
        temperature, p = r(self.temperature), r(self.p_value)
        if temperature == 0.0:
            return logits.index(max(logits))
        probabilities = softmax(self.arithmetic, R([v / temperature for v in logits]))
        coin = self.coin()
        if p <= 0.0 or p >= 1.0:
            return pick(range(len(probabilities)), running_sums(probabilities), coin)
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
        return pick(tokens, sums, r(coin * sums[-1]))


def pick(tokens: Sequence[int], sums: Iterable[float], coin: float) -> int:
    """tokens (n), their running sums (n) -> the first token whose sum exceeds the coin, or else the last one."""
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


def generate(transformer: Transformer | Drafted, tokenizer: Tokenizer, sampler: Sampler, prompt: Sequence[int],
             steps: int, observe: Callable | None = None, logits: bool = False) -> Iterator[Step]:
    """Yield a Step for each position, until there are `steps` of them or BOS is sampled.

    prompt is encoded. observe sees every operation before its step is yielded; logits=True asks for the logits within
    the prompt too.
    """
    check_length(prompt, transformer)
    token = prompt[0]
    for pos in range(steps):
        forced = pos + 1 < len(prompt)
        row = transformer.forward(token, pos, observe, logits or not forced)
        next_token = prompt[pos + 1] if forced else sampler.sample(row)
        yield Step(pos, token, next_token, tokenizer.decode(token, next_token), row)
        if next_token == BOS:
            return
        token = next_token


def check_length(prompt: Sequence[int], transformer: Transformer | Drafted) -> None:
    """Raise ValueError if the context does not hold the prompt."""
    if len(prompt) > transformer.config.seq_len:
        raise ValueError(f"the prompt has {len(prompt)} tokens, but the context of {transformer.checkpoint.path} is "
                         f"{transformer.config.seq_len}")


def chat(transformer: Transformer, tokenizer: Tokenizer, sampler: Sampler, steps: int, read: Callable[[str], str],
         write: Callable[[bytes], None], user: str | None = None, system: str | None = None) -> None:
    """User and model take turns until there are `steps` positions or no more input.

    read(question) returns a line or raises EOFError; write(piece) receives what the model says. user and system are the
    first prompts; if None, they are read.
    """
    users_turn, next_token = True, None
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
            write(b"\n")
    write(b"\n")


# ----------------------------------------------------------------------------
# Command line (run.c: main, error_usage, read_stdin)

HERE = os.path.dirname(os.path.abspath(__file__))

# --like: the arithmetic and the generator
LIKE = {None: ("exact", "xorshift64*"), "llama2.c": ("c", "xorshift64*"), "llama2-rs": ("c", "llama2-rs")}

# Options that need another one, and those that cannot stand beside another
NEEDS = {"trace_level": "trace", "verify_iteration": "verify", "root": "verify", "tolerance": "compare"}
APART = {"verify": ("trace", "logits", "compare"), "explain_text": ("verify", "trace", "logits", "compare")}
NOT_IN_CHAT = ("trace", "verify", "logits", "compare")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Those that a trace holds too are None if not given."""
    parser = console.Parser(prog="llama2.py", description="Llama 2 inference in plain Python, exact to the bit.",
                            epilog='Example: python3 llama2.py stories42M.bin -i "Once upon a time" -n 100 -s 42')
    add = parser.add_argument
    add("checkpoint", nargs="?", help="a float checkpoint of llama2.c (default: the embedded model)")
    add("-t", "--temperature", type=float, help="0: always the likeliest token (default: 1.0)")
    add("-p", "--p_value", type=float, help="top-p sampling; 0 or 1: from all tokens (default: 0.9)")
    add("-s", "--seed", type=int, help="1 to 2**64 - 1; 0: from the clock (default: 0)")
    add("-n", "--steps", type=int, help="positions, at most the context's; 0: all of them (default: 256)")
    add("-i", "--input_prompt", type=console.utf8, help="how the text begins (default: nothing)")
    add("-z", "--tokenizer", help="(default: tokenizer.bin beside the checkpoint, or in the working directory)")
    add("-m", "--mode", choices=["generate", "chat"], default="generate", help="tell or talk (default: generate)")
    add("-y", "--system_prompt", type=console.utf8, help="in chat (default: asked for)")
    add("--like", choices=["llama2.c", "llama2-rs"], help="be that program, bit for bit (default: exact arithmetic)")
    add("--workers", type=int, default=1, metavar="N", help="processes that share the work (default: 1)")
    add("--trace", metavar="FILE", help="write a trace of the run")
    add("--trace-level", choices=trace.LEVELS, help="what the trace commits to (default: step)")
    add("--verify", metavar="FILE", help="make the run of a trace again and compare")
    add("--verify-iteration", type=int, metavar="N", help="only up to this step, counted from 0")
    add("--root", type=trace.root_argument, metavar="HEX", help="the root that was published for that trace")
    add("--explain-text", metavar="FILE", help="print a trace; no model is needed")
    add("--logits", metavar="FILE", help="write every step's logits as an array of numpy, float32 (steps, vocabulary)")
    add("--compare", metavar="FILE", help="compare such an array with this run's logits")
    add("--tolerance", type=float, metavar="X", help="the largest difference to allow (default: 0)")
    args = parser.parse_args(argv)

    parser.check(args, NEEDS, APART)
    for option in NOT_IN_CHAT:
        if getattr(args, option) is not None and args.mode == "chat":
            parser.error(f"--{option} belongs to mode generate, not to chat")
    if args.system_prompt is not None and args.mode != "chat":
        parser.error("--system_prompt belongs to mode chat")
    if args.trace_level not in (None, "step") and args.like == "llama2-rs":
        parser.error(f"argument --trace-level: {args.trace_level}, but llama2-rs's format has steps alone")
    if args.steps is not None and args.steps < 0:
        parser.error(f"argument -n/--steps: {args.steps}, must be 0 or more")
    if args.tolerance is not None and not 0 <= args.tolerance < inf:
        parser.error(f"argument --tolerance: {args.tolerance}, must be 0 or more, and finite")
    if not 1 <= args.workers <= 1024:
        parser.error(f"argument --workers: {args.workers}, must be 1 to 1024")
    return args


class Run:
    """What the options ask for: the model, the tokenizer, the sampler, the encoded prompt, the number of steps.

    log is a trace to verify. Options that are not given are taken from it; those that are given are claims: the run is
    made with them and differs from the trace where they are wrong. (A trace of llama2-rs holds no options.)
    """

    def __init__(self, args: argparse.Namespace, log: trace.Trace | None = None):
        held = log.header if log and not log.rust else {}

        def option(name, field, default):
            value = getattr(args, name)
            return held.get(field, default) if value is None else value

        self.like = args.like
        if log and not self.like and (log.rust or (held["arithmetic"], held["rng"]) == LIKE["llama2.c"]):
            self.like = "llama2-rs" if log.rust else "llama2.c"
        if log and log.rust != (self.like == "llama2-rs"):
            got = "llama2-rs's" if log.rust else "this program's own"
            raise VerificationError(log.path, "format", f"that of --like {self.like}", got)
        arithmetic, rng = LIKE[self.like]
        self.sampler = Sampler(option("temperature", "temperature", 1.0), option("p_value", "p_value", 0.9),
                               args.seed or held.get("seed") or time.time_ns() % MASK + 1, rng, arithmetic)
        self.level, self.prompt = option("trace_level", "level", "step"), option("input_prompt", "prompt", "")
        self.path, tokenizer = find_files(args)
        self.transformer = Transformer(self.path, arithmetic, args.workers)
        try:
            context = self.transformer.config.seq_len
            self.steps = min(option("steps", "steps", 256) or context, context)
            self.tokenizer = Tokenizer(tokenizer, self.transformer.config.vocab_size)
            if len(self.prompt) > context * max(map(len, self.tokenizer.vocab)):  # before much time goes into it
                raise ValueError(f"the prompt has {len(self.prompt)} characters, too many for {self.path}'s context of "
                                 f"{context}")
            self.tokens = self.tokenizer.encode(self.prompt)
        except BaseException:
            self.transformer.close()
            raise

    def header(self) -> dict:
        """What a trace of this run says first."""
        if self.like == "llama2-rs":
            return {"model_path": self.path, "prompt": self.prompt, "steps": self.steps}
        return {"model": self.transformer.checkpoint.sha256(), "tokenizer": self.tokenizer.sha256,
                "arithmetic": self.sampler.arithmetic.name, "rng": self.sampler.rng,
                "temperature": self.sampler.temperature, "p_value": self.sampler.p_value, "seed": self.sampler.seed,
                "steps": self.steps, "level": self.level, "prompt": self.prompt, "tokens": self.tokens}

    def generate(self, log: trace.Log | None = None, logits: bool = False, draft: Sequence[int] = ()) -> Iterator[Step]:
        """The steps of the run. log sees their operations, if its level asks for them; draft are the tokens that follow
        the prompt, if they are known."""
        observe = log.operation if log and log.level != "step" else None
        logits = logits or log is not None
        model = Drafted(self.transformer, [*self.tokens, *draft][:self.steps], 0 if logits else len(self.tokens) - 1)
        return generate(model, self.tokenizer, self.sampler, self.tokens, self.steps, observe, logits)


def find_files(args: argparse.Namespace) -> tuple[str, str]:
    """The paths of checkpoint and tokenizer."""
    checkpoint = os.path.join(HERE, "stories", "model.bin") if args.checkpoint is None else args.checkpoint
    beside = os.path.join(os.path.dirname(checkpoint), "tokenizer.bin")
    found = beside if os.path.exists(beside) else "tokenizer.bin"
    return checkpoint, found if args.tokenizer is None else args.tokenizer


def tell(run: Run, args: argparse.Namespace, out: BinaryIO) -> int:
    """Generate a text, and pass each step to all that is asked for: the printed text or a comparison, the file of
    logits, the trace -> the exit code."""
    check_length(run.tokens, run.transformer)
    outputs = {"--trace": args.trace, "--logits": args.logits}
    console.check_outputs(outputs, [run.path, run.tokenizer.path, args.compare])
    vocab_size, log, sinks = run.transformer.config.vocab_size, None, [console.Text(out, run.like)]
    if args.compare is not None:
        sinks = [compare.Comparison(args.compare, run.steps, vocab_size, args.tolerance or 0.0, out)]
    if args.logits is not None:
        sinks.append(compare.LogitsFile(args.logits, vocab_size))
    with contextlib.ExitStack() as files:
        if args.trace is not None:
            Writer = trace.RustWriter if run.like == "llama2-rs" else trace.Writer
            log = files.enter_context(contextlib.closing(Writer(args.trace, run.header())))
            sinks.append(log)
        if not args.seed and (log or run.sampler.temperature > 0):
            print(f"seed: {run.sampler.seed}", file=sys.stderr)
        begin = time.perf_counter()
        for step in run.generate(log, logits=args.logits is not None or args.compare is not None):
            for sink in sinks:
                sink.step(step)
        for sink in sinks:
            sink.finish()
        if log:
            print(f"root: {log.tree.root().hex()}", file=sys.stderr)
    rate = (step.pos + 1) / (time.perf_counter() - begin)  # of all positions; run.c leaves out the first
    print(f"achieved tok/s: {rate:.1f}", file=sys.stderr)
    return 1 if args.compare is not None and sinks[0].parted is not None else 0


def converse(run: Run, args: argparse.Namespace, out: BinaryIO) -> int:
    """Chat on the terminal, or with whoever writes to standard input -> the exit code."""
    if not args.seed:
        print(f"seed: {run.sampler.seed}", file=sys.stderr)
    write = console.printer(out, run.like)

    def read(question):
        out.write(question.encode())
        out.flush()
        line = sys.stdin.buffer.readline() if sys.stdin else b""
        if not line:
            raise EOFError
        return line.decode("utf-8", "surrogateescape").rstrip("\r\n")

    try:
        chat(run.transformer, run.tokenizer, run.sampler, run.steps, read, write, args.input_prompt, args.system_prompt)
    except EOFError:
        write(b"\n")
    return 0


def dispatch(args: argparse.Namespace, out: BinaryIO) -> int:
    """Do what the options ask for -> the exit code."""
    if args.explain_text is not None:
        trace.show(trace.read(args.explain_text), sys.stdout)
        return 0
    log = None
    if args.verify is not None:
        log = trace.read(args.verify)
        if args.root and args.root != log.root:
            raise VerificationError(log.path, "root", args.root, log.root)
        if args.verify_iteration is not None:
            log.step(args.verify_iteration)
    run = Run(args, log)
    with run.transformer:
        if log:
            return trace.verify(run, log, args.verify_iteration, args.root is not None, out)
        return converse(run, args, out) if args.mode == "chat" else tell(run, args, out)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line -> the exit code: console.exit_code's, and 1 for a comparison beyond the tolerance."""
    return console.exit_code("llama2.py", lambda: dispatch(parse(argv), sys.stdout.buffer))


if __name__ == "__main__":
    sys.exit(main())
