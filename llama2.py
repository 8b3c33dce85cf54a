#!/usr/bin/env python3
"""Llama 2 inference in plain Python, exact to the bit.

    python3 llama2.py                                                   # the embedded model tells a story
    python3 llama2.py stories42M.bin -i "Once upon a time" -n 100 -s 42 # any float checkpoint of llama2.c

It holds what llama2.c's run.c holds, in its order, with the standard library alone; plain.py is the same model in 260
lines that do nothing for speed. Other files hold what run.c lacks, or has in a few lines: checkpoint.py (the file of
weights), arithmetic.py (results defined to the bit, in a dialect of our own or in run.c's), workers.py (processes;
models too large for memory), trace.py (a log to replay), compare.py (another program's numbers), page.py (a run to look
at). Differences from run.c:

- a value out of range, a prompt beyond the context or a malformed file is an error, never silently corrected (only
  -n stops at the context's end);
- some oddities of run.c are left out: chat lines cut at 511 bytes, BOS taking part in merges, a missing token " "
  encoded as -1, <0x41xyz> decoded as a byte, a read before an array's start when top-p finds no candidate;
- quantized checkpoints (version 2) are not supported.

    x        activations, (dim)                          l    layer, 0 .. n_layers - 1
    q, k, v  query, key, value                           h    head of queries, 0 .. n_heads - 1
    w        weights                                     hs   head size, dim / n_heads
    pos      position in the sequence                    A    the arithmetic: Exact or C
    logits   unnormalized log-probabilities, (vocab)     R, r rounding to binary32: a vector, a number
"""
import os
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    def end_quietly(*_):
        """Ctrl-C while modules load."""
        os._exit(130)

    signal.signal(signal.SIGINT, end_quietly)

import argparse
import contextlib
import functools
import hashlib
import io
import re
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from math import inf, isfinite, sqrt
from operator import add, mul, sub
from struct import unpack_from
from typing import Any, BinaryIO

import trace  # also the name of a module of the standard library: is this ours?

if not hasattr(trace, "Log"):
    message = (f"the module trace that Python found, {trace.__file__}, is not this project's: keep trace.py beside "
               "llama2.py, put their folder first in sys.path, and run without -P")
    if __name__ != "__main__":
        raise ImportError(message)
    print(f"llama2.py: error: {message}", file=sys.stderr)
    sys.exit(2)

import compare
import console
import page
from arithmetic import ARITHMETIC, R, r, running_sums
from checkpoint import Checkpoint
from console import VerificationError
from events import weights_root
from workers import MATRICES, Drafted, Shard, Team, free_memory, gather, matvec, split, unpacked_size

# ----------------------------------------------------------------------------
# Neural net blocks (run.c: rmsnorm, softmax, and what stands within forward). They take vectors and return new ones.
# (run.c's matmul is workers.matvec, Rows.times and A.dots.)


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


def attention_weights(A, q: Sequence[float], keys: list) -> list[float]:
    """q (heads * hs), each head's keys (pos + 1, hs) -> (heads * (pos + 1)): a head compares its query with the key of
    every position so far, and the softmax of the scores says in which proportions it takes the positions' values."""
    if not keys:  # more processes than heads
        return []
    weights, hs = [], len(q) // len(keys)
    scale = r(sqrt(hs))
    for query, k in zip(split(q, hs), keys, strict=True):
        scores = A.dots(k, A.operand(query))
        weights += softmax(A, R([s / scale for s in scores]))
    return weights


def attention(A, weights: Sequence[float], values: list) -> list[float]:
    """weights (heads * (pos + 1)), each head's values (hs, pos + 1) -> (heads * hs): those proportions of the values,
    which stand in columns, so that this too is a matrix times a vector."""
    if not values:
        return []
    result = []
    for p, v in zip(split(weights, len(weights) // len(values)), values, strict=True):
        result += A.dots(v, A.operand(p))
    return result


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
    whole.) see(l, op, values) -> values shows each result to whoever observes the run. Transformer.forward leads here
    by way of Team.run and Shard.passes; workers.run_together drives the coroutine.
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
        weights = see(l, "weights", attention_weights(A, q, cache.keys))           # (n_heads * (pos + 1))
        mixed = attention(A, weights, cache.values)
        mixed = see(l, "attention", await gather(mixed))                           # (dim)
        out = see(l, "attention_out", await gather(await matvec(w.wo, mixed)))     # (dim)
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


def open_shard(path: str, identity: tuple, A, unpacked: bool, index: int, count: int) -> Shard:
    """A worker's shard, with a checkpoint that it opens itself and that must be the one with this identity. (forward is
    passed on because workers.py cannot import this file, which imports it.)"""
    checkpoint = Checkpoint(path)
    checkpoint.check_unchanged(identity)
    return Shard(checkpoint, A, forward, index, count, unpacked)


class Transformer:
    """A model: Transformer(path, arithmetic="exact", workers=1). Close it, or use it in a `with` statement.

    workers is the number of processes, this one included; any number gives the same bits. The weights are unpacked into
    Python floats, 40 bytes each (from 4 on in the dialect `c`), if three quarters of the free memory hold them; if not,
    they are read from the mapped file at every step: the same bits, up to three times as slowly, in little memory.
    Raises ValueError or OSError for a file that is not a checkpoint, and ChildProcessError if a worker dies.
    """

    def __init__(self, path: str, arithmetic: str = "exact", workers: int = 1):
        console.need("arithmetic", arithmetic, arithmetic in tuple(ARITHMETIC), "exact or c")
        console.need_integer("workers", workers, 1, 1024)
        A = ARITHMETIC[arithmetic]
        self.length = 0    # positions in the key and value cache
        self.whole = True  # False while a step changes the cache
        self.team = Team()
        self.checkpoint = Checkpoint(path)
        self.config = self.checkpoint.config
        try:
            unpacked = self.fits(A)
            self.team.start(self.builder(A, unpacked), workers)
            self.shard = Shard(self.checkpoint, A, forward, 0, workers, unpacked)
        except BaseException:
            self.close()
            raise

    def fits(self, A) -> bool:
        """Do three quarters of the free memory hold the weights, unpacked for an arithmetic?"""
        tensors = self.checkpoint.tensors
        shapes = [(self.config.n_layers, *tensors[name][1:]) for name in MATRICES]
        return unpacked_size(A, [*shapes, (1, *tensors["classifier"][1:])]) < free_memory() * 3 / 4

    def builder(self, A, unpacked: bool) -> Callable:
        """build(index, count), which makes a shard of this model in another process, in any arithmetic."""
        return functools.partial(open_shard, self.checkpoint.path, self.checkpoint.identity, A, unpacked)

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
        """What the model would say if its layers ended earlier: outputs of layers, (n, dim) -> (n, vocab). In one
        process."""
        final = [rmsnorm(self.shard.arithmetic, x, self.shard.rms_final) for x in outputs]
        return self.shard.classifier.times(final) if final else []

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

    Raises ValueError, naming the file, if the file is malformed. more tells whether it has more tokens than these.
    """

    def __init__(self, path: str, vocab_size: int, data: bytes | None = None):
        """data: the file's bytes, if they are at hand."""
        console.need_integer("vocab_size", vocab_size, 1, 2**24)
        data = console.read_file(path) if data is None else data
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
        self.more = len(data) > offset
        self.tokens = {}  # bytes -> the first such token
        for token, piece in enumerate(self.vocab):
            self.tokens.setdefault(piece, token)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Text -> tokens. Bytes in it that are not UTF-8 (surrogate escapes, PEP 383) become byte tokens.

        Adjacent tokens whose concatenation is a token merge: the best-scored pair first, the leftmost on a tie. A heap
        holds the pairs and a linked list the remaining tokens, so n characters take n log n steps.
        """
        console.need("text", text, isinstance(text, str), "a string")
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
        console.need_integer("token", token, 0, len(self.vocab) - 1)
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
        numbers = (int, float)
        console.need("temperature", temperature, type(temperature) in numbers and 0 <= temperature < inf,
                     "0 or more, and finite")
        console.need("p_value", p_value, type(p_value) in numbers and 0 <= p_value <= 1, "0 to 1")
        console.need("seed", seed, type(seed) is int and 0 < seed < 2**64, "1 to 2**64 - 1")
        console.need("rng", rng, rng in tuple(GENERATORS), " or ".join(GENERATORS))
        console.need("arithmetic", arithmetic, arithmetic in tuple(ARITHMETIC), "exact or c")
        self.temperature, self.p_value, self.seed = float(temperature), float(p_value), seed
        self.rng, self.arithmetic = rng, ARITHMETIC[arithmetic]
        self.state = seed
        # What the last sample was drawn from: the tokens to choose from, what the coin was multiplied by, the
        # probabilities of all tokens, the coin; None where the likeliest was taken
        self.drawn = None

    def coin(self) -> float:
        """A random number in [0, 1), a multiple of 2^-24 (run.c: random_f32)."""
        bits, self.state = GENERATORS[self.rng](self.state)
        return bits / 2**24

    def _choices(self, logits):
        """The tokens to choose from (n), their running sums (n), what a coin is multiplied by, all probabilities
        (vocab)."""
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
        """logits (vocab) -> a token. Raises ValueError if the temperature is so small that they overflow."""
        if r(self.temperature) == 0.0:
            return logits.index(max(logits))
        tokens, sums, total, probabilities = self._choices(logits)
        coin = self.coin()
        self.drawn = tokens, total, probabilities, coin
        return pick(tokens, sums, r(coin * total))


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
        if next_token == BOS:
            return
        token = next_token


def check_length(prompt: Sequence[int], transformer: Transformer | Drafted) -> None:
    """Raise ValueError if there is no prompt, not even BOS, or the context does not hold it."""
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
    users_turn, next_token, ended = True, None, 0
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


# ----------------------------------------------------------------------------
# Command line (run.c: main, error_usage, read_stdin)

VERSION = "2.0.0"
HERE = os.path.dirname(os.path.realpath(__file__))

# --like: the arithmetic and the generator
LIKE = {None: ("exact", "xorshift64*"), "llama2.c": ("c", "xorshift64*"), "llama2-rs": ("c", "llama2-rs")}

# Options that need another one, and those that cannot stand beside another
NEEDS = {"trace_level": "trace", "verify_iteration": "verify", "root": "verify", "text": "verify"}
WRITTEN = ("trace", "logits", "dump", "page")
APART = {"verify": (*WRITTEN, "compare"), "input_prompt": ("tokens",), "compare": WRITTEN,
         "explain_text": ("verify", *WRITTEN, "compare")}
NOT_IN_CHAT = (*WRITTEN, "verify", "compare", "tokens")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Those that a trace holds too are None if not given."""
    parser = console.Parser(prog="llama2.py", description="Llama 2 inference in plain Python, exact to the bit.",
                            epilog='Example: python3 llama2.py stories42M.bin -i "Once upon a time" -n 100 -s 42')
    add = parser.add_argument
    add("checkpoint", nargs="?", help="a float checkpoint of llama2.c (default: the embedded model)")
    add("-t", "--temperature", type=float, help="0: always the likeliest token (default: 1.0)")
    add("-p", "--p_value", type=float, help="top-p sampling; 0 or 1: from all tokens (default: 0.9)")
    add("-s", "--seed", type=int, help="1 to 2**64 - 1; 0: from the clock (default: 0, or 1 at temperature 0)")
    add("-n", "--steps", type=int, help="positions, at most the context's; 0: all of them (default: 256)")
    add("-i", "--input_prompt", type=console.utf8, help="how the text begins; -: standard input (default: nothing)")
    add("-z", "--tokenizer", help="(default: tokenizer.bin beside the checkpoint, or in the working directory)")
    add("-m", "--mode", choices=["generate", "chat"], default="generate", help="tell or talk (default: generate)")
    add("-y", "--system_prompt", type=console.utf8, help="in chat (default: asked for)")
    add("--like", choices=["llama2.c", "llama2-rs"], help="be that program, bit for bit (default: exact arithmetic)")
    add("--workers", type=int, default=1, metavar="N", help="processes that share the work (default: 1)")
    add("--trace", metavar="FILE", help="write a trace of the run")
    add("--trace-level", choices=trace.LEVELS, help="what the trace commits to (default: step)")
    add("--verify", metavar="FILE", help="make the run of a trace again and compare")
    add("--verify-iteration", type=int, metavar="N", help="only up to this step, counted from 0")
    add("--root", type=trace.root_argument, metavar="[SIZE:]HEX", help="the head that was published for that trace")
    add("--text", metavar="FILE", help="the text that it should have")
    add("--explain-text", metavar="FILE", help="print a trace; no model is needed")
    add("--tokens", type=console.tokens, metavar="LIST", help="how the text begins, as tokens: 1,403,407")
    add("--logits", metavar="FILE", help="write every step's logits as an array of numpy, float32 (steps, vocabulary)")
    add("--dump", metavar="FILE", help="write every operation and the logits, as the records of compare.py")
    add("--compare", metavar="FILE", help="another program's logits or operations: rounding, or a bug?")
    add("--page", metavar="FILE", help="write the run as a page of HTML, to look at")
    add("--version", action="version", version=f"llama2.py {VERSION}")
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
    if args.page is not None and (args.like == "llama2-rs" or args.workers > 1):
        parser.error("--page needs a trace of this program's own format, and one process: no --like llama2-rs, and no "
                     "--workers")
    if args.compare is not None and (args.temperature or args.workers > 1):
        parser.error("--compare takes the likeliest tokens, in one process: no --temperature and no --workers; give "
                     "the tokens of any other text with --tokens")
    if args.like == "llama2.c" and args.seed is not None and args.seed >= 2**31:
        parser.error(f"argument -s/--seed: {args.seed}, must be below 2**31 for --like llama2.c: atoi keeps no more")
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
        self.options = {}  # by their names in a header
        self.claims = set()  # those that were given

        def option(name, field, default):
            value = getattr(args, name)
            if value is not None and not (name == "seed" and value == 0):
                self.claims.add(field)
            else:
                value = held.get(field, default)
            self.options[field] = value
            return value

        self.like = args.like
        if log and not self.like and (log.rust or (held["arithmetic"], held["rng"]) == LIKE["llama2.c"]):
            self.like = "llama2-rs" if log.rust else "llama2.c"
        if log and log.rust != (self.like == "llama2-rs"):
            got = "llama2-rs's" if log.rust else "this program's own"
            raise VerificationError(log.path, "format", f"that of --like {self.like}", got)
        arithmetic, rng = LIKE[self.like]
        self.options.update(arithmetic=arithmetic, rng=rng)
        self.claims.update(["arithmetic", "rng"] if args.like else [])
        temperature = option("temperature", "temperature", 1.0)
        seed = option("seed", "seed", 1 if temperature == 0 else time.time_ns() % MASK + 1)
        self.sampler = Sampler(temperature, option("p_value", "p_value", 0.9), seed, rng, arithmetic)
        self.level, self.prompt = option("trace_level", "level", "step"), option("input_prompt", "prompt", "")
        self.path, tokenizer = find_files(args)
        self.transformer = Transformer(self.path, arithmetic, args.workers)
        try:
            context = self.transformer.config.seq_len
            self.steps = min(option("steps", "steps", 256) or context, context)
            self.options["steps"] = self.steps
            self.tokenizer = Tokenizer(tokenizer, self.transformer.config.vocab_size)
            if len(self.prompt) > context * max(map(len, self.tokenizer.vocab)):  # before much time goes into it
                raise ValueError(f"the prompt has {len(self.prompt)} characters, too many for {self.path}'s context of "
                                 f"{context}")
            self.tokens = option("tokens", "tokens", None)
            if args.tokens is None and (self.prompt or args.input_prompt is not None or not held):
                self.tokens = self.tokenizer.encode(self.prompt)
                del self.options["tokens"]  # they follow from the prompt
            console.need(f"token of {self.path}", max(self.tokens), max(self.tokens) < len(self.tokenizer.vocab),
                         f"in the vocabulary of {len(self.tokenizer.vocab)}")
        except BaseException:
            self.transformer.close()
            raise

    def header(self) -> dict:
        """What a trace of this run says first."""
        if self.like == "llama2-rs":
            return {"model_path": self.path, "prompt": self.prompt, "steps": self.steps}
        checkpoint, config, s = self.transformer.checkpoint, vars(self.transformer.config), self.sampler
        return {"model": checkpoint.sha256(), "weights": weights_root(config, checkpoint.tree_rows()),
                "config": config, "tokenizer": self.tokenizer.sha256, "arithmetic": s.arithmetic.name, "rng": s.rng,
                "temperature": s.temperature, "p_value": s.p_value, "seed": s.seed, "steps": self.steps,
                "level": self.level, "prompt": self.prompt, "tokens": self.tokens}

    def generate(self, observers: Sequence[Callable] = (), logits: bool = True, draft: Sequence[int] = ()
                 ) -> Iterator[Step]:
        """The steps of the run. observers see their operations; draft are the tokens after the prompt, if known."""
        observe = (lambda *operation: [observer(*operation) for observer in observers]) if observers else None
        model = Drafted(self.transformer, [*self.tokens, *draft][:self.steps], 0 if logits else len(self.tokens) - 1)
        return generate(model, self.tokenizer, self.sampler, self.tokens, self.steps, observe, logits)


def find_files(args: argparse.Namespace) -> tuple[str, str]:
    """The paths of checkpoint and tokenizer."""
    checkpoint = os.path.join(HERE, "stories", "model.bin") if args.checkpoint is None else args.checkpoint
    if not os.path.exists(checkpoint):
        is_path = os.path.splitext(checkpoint)[1] or os.sep in checkpoint
        hint = "" if is_path else " (how a text begins is given with -i)"
        raise ValueError(f"{checkpoint}: No such file or directory{hint}")
    beside = os.path.join(os.path.dirname(checkpoint), "tokenizer.bin")
    found = beside if os.path.exists(beside) else "tokenizer.bin"
    return checkpoint, found if args.tokenizer is None else args.tokenizer


def doctor(run: Run, args: argparse.Namespace, out: BinaryIO) -> int:
    """Compare another program's numbers with this one's -> the exit code."""
    check_length(run.tokens, run.transformer)
    numbers = compare.Numbers(args.compare, run.transformer.config)
    if args.steps is not None and numbers.steps > run.steps:
        raise ValueError(f"{args.compare}: has {numbers.steps} steps, this run {run.steps}")
    with contextlib.ExitStack() as models:  # the verdict is about exact arithmetic, whatever --like says
        exact = models.enter_context(Transformer(run.path)) if run.like else run.transformer
        like = run.transformer if run.like else None
        consistent = compare.compare(exact, run.tokenizer, run.tokens, numbers, out, like)
    run.transformer.checkpoint.check_unchanged()
    return 0 if consistent else 1


def tell(run: Run, args: argparse.Namespace, out: BinaryIO) -> int:
    """Generate a text, and pass each step to all that is asked for: the printed text, the files of logits and of
    operations, the trace -> the exit code."""
    check_length(run.tokens, run.transformer)  # generate would check it only after the files have been opened
    outputs = {f"--{name}": getattr(args, name) for name in WRITTEN}
    console.check_outputs(outputs, [run.path, run.tokenizer.path])
    log, sinks, observers = None, [console.Text(out, run.like)], []
    if args.logits is not None:
        sinks.append(compare.LogitsFile(args.logits, run.transformer.config.vocab_size))
    if args.dump is not None:
        sinks.append(compare.DumpFile(args.dump))
        observers.append(sinks[-1].operation)
    if args.page is not None:
        sinks.append(page.Page(args.page, run.transformer, run.tokenizer, run.sampler, run.header()))
        observers.append(sinks[-1].operation)
    with contextlib.ExitStack() as files:
        if args.trace is not None:
            Writer = trace.RustWriter if run.like == "llama2-rs" else trace.Writer
            log = files.enter_context(contextlib.closing(Writer(args.trace, run.header())))
            sinks.append(log)
            observers += [log.operation] if log.level != "step" else []
        if not args.seed and run.sampler.temperature > 0:
            console.say(f"seed: {run.sampler.seed}")
        if run.steps < len(run.tokens):
            console.say(f"warning: the prompt has {len(run.tokens)} tokens, so that {run.steps} steps (-n) generate "
                        "nothing")
        begin = time.perf_counter()
        for step in run.generate(observers, logits=len(sinks) > 1):
            for sink in sinks:
                sink.step(step)
        run.transformer.checkpoint.check_unchanged()
        for sink in sinks:
            sink.finish()
        if log:
            console.say(f"root: {trace.head(len(log.tree), log.tree.root())}")
    rate = (step.pos + 1) / (time.perf_counter() - begin)  # of all positions; run.c leaves out the first
    console.say(f"achieved tok/s: {rate:.1f}")
    return 0


MAX_INPUT = 2**20  # bytes of a line in chat, or of a prompt on standard input


def read_input(line: bool) -> str | None:
    """A line of standard input, or all of it; None at its end. Raises ValueError if it is longer than any context."""
    file = sys.stdin.buffer if sys.stdin else io.BytesIO()
    data = file.readline(MAX_INPUT + 1) if line else file.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise ValueError(f"standard input: more than {MAX_INPUT} bytes")
    return data.decode("utf-8", "surrogateescape").rstrip("\r\n") if data else None


def converse(run: Run, args: argparse.Namespace, out: BinaryIO) -> int:
    """Chat on the terminal, or with whoever writes to standard input -> the exit code."""
    if not args.seed and run.sampler.temperature > 0:
        console.say(f"seed: {run.sampler.seed}")
    write = console.printer(out, run.like)

    def read(question):
        out.write(question.encode())
        out.flush()
        line = read_input(line=True)
        if line is None:
            raise EOFError
        return line

    try:
        if not chat(run.transformer, run.tokenizer, run.sampler, run.steps, read, write, args.input_prompt,
                    args.system_prompt):
            console.say("warning: the model ended no turn by itself: is it one that was trained to chat?")
    except EOFError:
        write(b"\n")
    run.transformer.checkpoint.check_unchanged()
    return 0


def dispatch(args: argparse.Namespace, out: BinaryIO) -> int:
    """Do what the options ask for -> the exit code."""
    if args.explain_text is not None:
        trace.show(trace.read(args.explain_text), sys.stdout)
        return 0
    if args.input_prompt == "-":
        args.input_prompt = read_input(line=False) or ""
    if args.verify is not None:
        log, verdict = verify_by(args)
        trace.show_verdict(verdict, log, args.verify_iteration, sys.stdout)
        return 0
    run = Run(args)
    with run.transformer:
        if run.tokenizer.more:
            console.say(f"warning: {run.tokenizer.path} has more tokens than the {len(run.tokenizer.vocab)} of the "
                        "model: is it the model's own?")
        do = converse if args.mode == "chat" else tell if args.compare is None else doctor
        return do(run, args, out)


def verify_by(args: argparse.Namespace) -> tuple[trace.Trace, trace.Verdict]:
    """Verify the trace that the options name -> it, and the verdict."""
    log = trace.read(args.verify)
    text = None if args.text is None else console.read_file(args.text).decode(errors="surrogateescape")
    if args.root:
        log.check_head(args.root)  # before anything is computed
    if args.verify_iteration is not None:
        log.step(args.verify_iteration)
    run = Run(args, log)
    with run.transformer:
        return log, trace.verify(run, log, args.verify_iteration, args.root, text)


def verify(trace_path: str, checkpoint: str | None = None, tokenizer: str | None = None, root: str | None = None
           ) -> trace.Verdict:
    """Make the run of a trace again and compare it -> the verdict. For a trace of this program's own format.

    checkpoint and tokenizer are paths as on the command line, root the head that was published, [SIZE:]HEX. Raises
    VerificationError at the first difference, ValueError or OSError for files that cannot be used.
    """
    options = {"--verify": trace_path, "--tokenizer": tokenizer, "--root": root}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    return verify_by(parse(given + ([] if checkpoint is None else ["--", checkpoint])))[1]


def verify_many(jobs: Iterable[Sequence], executor: Any) -> Iterator[trace.Verdict | Exception]:
    """verify(*job) for each job, by any concurrent.futures.Executor (processes, Dask, Ray, MPI) -> the verdicts, in the
    jobs' order; what verify raised stands in the place of a verdict."""
    for future in [executor.submit(verify, *job) for job in jobs]:
        try:
            yield future.result()
        except (VerificationError, ValueError, OSError, MemoryError) as error:
            yield error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line -> the exit code: console.exit_code's, and 1 for a comparison beyond the tolerance."""
    return console.exit_code("llama2.py", lambda: dispatch(parse(argv), sys.stdout.buffer))


if __name__ == "__main__":
    sys.exit(main())
