#!/usr/bin/env python3
"""Llama 2 inference in plain Python, exact to the bit.

    python3 llama2.py                                                   # the embedded model tells a story
    python3 llama2.py stories42M.bin -i "Once upon a time" -n 100 -s 42 # any float checkpoint of llama2.c

It follows llama2.c's run.c section by section, with the standard library alone, but:

- its arithmetic is defined to the bit (below), in a dialect of its own or in run.c's (--like llama2.c);
- worker processes can share the work (--workers), and a model too large for memory is read from the mapped file;
- a run can leave a log that proves it (trace.py);
- a value out of range, a prompt beyond the context or a malformed file is an error, never silently corrected (only
  -n stops at the context's end);
- some oddities of run.c are left out: chat lines cut at 511 bytes, BOS taking part in merges, a missing token " "
  encoded as -1, <0x41xyz> decoded as a byte, a read before an array's start when top-p finds no candidate;
- quantized checkpoints (version 2) are not supported.

    x        activations, a tuple of dim floats          l    layer, 0 .. n_layers - 1
    q, k, v  query, key, value                           h    query head, 0 .. n_heads - 1
    w        weights                                     hs   head size, dim / n_heads
    pos      position in the sequence                    g    key and value head, of n_heads / n_kv_heads query heads
    logits   unnormalized log-probabilities, (vocab)     R    rounding to binary32, to the nearest, ties to even
"""
import codecs
import contextlib
import functools
import hashlib
import mmap
import multiprocessing
import os
import re
import signal
import sys
import time
from array import array
from dataclasses import dataclass
from decimal import Decimal, localcontext
from heapq import heappop, heappush
from itertools import chain, repeat, takewhile
from math import cos, dist, exp, fsum, hypot, inf, isfinite, nan, sin, sqrt
from operator import add, mul, sub
from struct import Struct, iter_unpack, pack, unpack, unpack_from

import trace

if not hasattr(trace, "Log"):
    message = (f"the module trace that Python found, {trace.__file__}, is not this project's: keep trace.py beside "
               "llama2.py, put their folder first in sys.path, and run without -P")
    if __name__ != "__main__":
        raise ImportError(message)
    print(f"llama2.py: error: {message}", file=sys.stderr)
    sys.exit(2)

# ----------------------------------------------------------------------------
# Arithmetic (run.c: C's float, and softmax, rmsnorm)
#
# Every number is a binary32 value held in a Python float. An operation on two of them is done in binary64 and rounded
# by R: for + - * / and sqrt that is the correctly rounded binary32 result, since 53 >= 2 * 24 + 2 bits.


def R(values):
    """values (n) -> (n), a tuple: each rounded to binary32, inf if too large (where "<f" would raise). struct does
    this as one loop in C."""
    form = f"{len(values)}f"
    return unpack(form, pack(form, *values))


def r(value):
    """One value rounded to binary32."""
    return unpack("f", pack("f", value))[0]


class Exact:
    """The dialect `exact`: a sum is the exact real sum, rounded to binary64 and then to binary32; exp, cos, sin and pow
    are correctly rounded to binary32. So no result of the model depends on the order of a sum or on a C library. (The
    sampler's running sums go left to right in both dialects.)

    Ziv's test makes it fast: guess in binary64, bound the guess's error by a margin, and if guess - margin and guess +
    margin round to the same binary32, that is the result, since rounding never swaps two numbers. If not, which happens
    about once in 20,000 dot products of the embedded model and hardly ever in exp, compute it by the definition.
    """

    name = "exact"
    weight_size = 40  # bytes: a float takes 32 in CPython's allocator, a tuple's pointer to it 8

    @staticmethod
    def dot(a, b):
        """a, b (d) -> their dot product, by definition: every product is exact, as 24 + 24 bits fit 53; fsum rounds
        the sum of them once, r once more. nan where infinities cancel."""
        try:
            return r(fsum(map(mul, a, b)))
        except ValueError:
            return nan

    @staticmethod
    def total(values):
        """values (n) -> their sum."""
        return r(fsum(values))

    class Matrix:
        """Rows (n, d) and their squared lengths (n), as dots needs them. Grows by rows (keys) or columns (values)."""

        def __init__(self, rows=(), squares=None):
            self.rows = list(rows)
            self._measure(squares)

        def _measure(self, squares=None):
            self.squares = squares or [hypot(*row) ** 2 for row in self.rows]
            self.largest = max(self.squares, default=0.0)

        def add_row(self, row):
            self.rows.append(row)
            self.squares.append(hypot(*row) ** 2)
            self.largest = max(self.largest, self.squares[-1])

        def add_column(self, column):
            self.rows = [(*row, value) for row, value in zip(self.rows or repeat(()), column)]
            self._measure()  # anew, since adding value**2 to a square would add up errors

    @staticmethod
    def operand(x):
        """x (d) as dots wants it, prepared once for all rows that it meets: x, -x/2 and |x/2|^2."""
        y = tuple([-0.5 * v for v in x])  # since dist copies what is no tuple
        return x, y, hypot(*y) ** 2

    @staticmethod
    def dots(matrix, operand):
        """matrix (n, d), operand of x (d) -> (n): the dot product of every row w with x.

        The guess is w.x = |w + x/2|^2 - |w|^2 - |x/2|^2. Its first term is the square of math.dist(w, -x/2), the
        fastest loop over two vectors in the standard library: four to six times as fast as sum(map(mul, w, x)), and
        about 1.5 times as fast as sumprod, which came with Python 3.12.

        Its error, with u = 2^-53 and S = |w|^2 + |x/2|^2: dist errs by 3u (the differences by u, the root of the sum of
        their squares by an ulp), and so its square, of at most 2S, by 7u, which is 14u S; the two squared lengths by 5u
        S, the four sums by 5u S. Together 24u S = 3 * 2^-50 S, and the margin is more than twice that of the longest
        row.
        """
        x, y, square = operand
        margin = (matrix.largest + square) * 2.0**-47
        if not isfinite(margin):  # an activation overflowed
            return tuple([Exact.dot(row, x) for row in matrix.rows])
        offset = square + margin
        lowest = [d * d - s - offset for d, s in zip(map(dist, matrix.rows, repeat(y)), matrix.squares)]
        form, width = f"{len(lowest)}f", 2 * margin
        low, high = pack(form, *lowest), pack(form, *[value + width for value in lowest])
        if low == high:  # compared as bytes, since -0.0 == 0.0
            return unpack(form, low)
        result = list(unpack(form, low))
        for i, (a, b) in enumerate(zip(memoryview(low).cast("I"), memoryview(high).cast("I"))):
            if a != b:
                result[i] = Exact.dot(matrix.rows[i], x)
        return tuple(result)

    @staticmethod
    def exps(values):
        """values (n) -> (n): exp of each, inf where it is too large."""
        try:
            guess = list(map(exp, values))
        except OverflowError:  # binary64 overflows at 709.8, binary32 at 88.7
            guess = list(map(exp, map(min, values, repeat(100.0))))
        form = f"{len(guess)}f"
        low, high = pack(form, *[g * LESS for g in guess]), pack(form, *[g * MORE for g in guess])
        if low == high:
            return unpack(form, low)
        return tuple([certified(g, lambda: Decimal(v).exp()) for g, v in zip(guess, values)])

    @staticmethod
    def pow(a, b):
        return certified(a**b, lambda: Decimal(a) ** Decimal(b))

    @staticmethod
    def cos(a):
        return certified(cos(a), lambda: decimal_cos(Decimal(a)))

    @staticmethod
    def sin(a):
        return certified(sin(a), lambda: decimal_cos(Decimal(a) - PI / 2))


LESS, MORE = 1 - 2.0**-50, 1 + 2.0**-50  # the margin of a guess by the C library: four ulps or more
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")


def decimal_cos(a):
    """The cosine of a decimal, to the context's precision: Taylor's series after taking off whole turns."""
    a -= (a / (2 * PI)).to_integral_value() * 2 * PI
    term, result, n = Decimal(1), Decimal(0), 0
    while result + term != result:
        result, n = result + term, n + 2
        term = -term * a * a / (n * (n - 1))
    return result


def certified(guess, exactly):
    """The binary32 nearest to a number, from a binary64 guess good to 2^-50 and a function that computes the number in
    decimal. The guess leaves one candidate, or two neighbours: then, on which side of their middle is the number? (It
    is never the middle itself: exp, cos, sin and pow have no ties here.)
    """
    low, high = sorted(R((guess * LESS, guess * MORE)))
    if low == high or guess != guess:  # the second: nan
        return low
    with localcontext() as context:
        context.prec = 80  # digits: far more than any number here needs to leave the middle
        middle = (Decimal(low) + Decimal(min(high, 2.0**128))) / 2  # inf stands for 2^128, the next after the largest
        return high if exactly() > middle else low


class C:
    """The dialect `c`: sums run left to right, with every product and every partial sum rounded, and exp, cos, sin and
    pow are the C library's. These are the bits of llama2.c, built without -ffast-math and without FMA contraction, and
    of llama2-rs.
    """

    name = "c"
    weight_size = 4  # bytes

    class Matrix:
        """Columns: dots advances the partial sums of all rows together, 2.5 times as fast as row by row."""

        squares = ()  # Exact's rows have some

        def __init__(self, rows=(), squares=()):
            self.columns = [array("f", column) for column in zip(*rows)]

        def add_row(self, row):
            self.columns = self.columns or [array("f") for _ in row]
            for column, value in zip(self.columns, row):
                column.append(value)

        def add_column(self, column):
            self.columns.append(column)

    @staticmethod
    def dot(a, b):
        """a, b (d) -> their dot product."""
        return C.total(R([u * v for u, v in zip(a, b)]))

    @staticmethod
    def total(values):
        """values (n) -> their sum."""
        return [0.0, *running_sums(values)][-1]

    @staticmethod
    def operand(x):
        return x

    @staticmethod
    def dots(matrix, x):
        """matrix (n, d), x (d) -> (n): the dot product of every row with x."""
        n = len(matrix.columns[0])
        form, sums = Struct(f"{n}f"), (0.0,) * n
        for column, v in zip(matrix.columns, x):
            products = form.unpack(form.pack(*[w * v for w in column]))
            sums = form.unpack(form.pack(*map(add, sums, products)))
        return sums

    @staticmethod
    def exps(values):
        """values (n) -> (n): exp of each."""
        return tuple(map(libm("expf", 1), values))

    @staticmethod
    def pow(a, b):
        return libm("powf", 2)(a, b)

    @staticmethod
    def cos(a):
        return libm("cosf", 1)(a)

    @staticmethod
    def sin(a):
        return libm("sinf", 1)(a)


@functools.cache
def libm(name, arguments):
    """A function of the C library on binary32 values."""
    import ctypes  # here, since `exact` needs none
    import ctypes.util
    try:
        function = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
    except (OSError, AttributeError):
        raise ValueError(f"the C library's {name} is not to be found; the arithmetic `exact` needs none") from None
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * arguments
    return function


ARITHMETIC = {"exact": Exact, "c": C}


def running_sums(values):
    """values (n) -> (n): the sums of the first 1, 2, ... of them, left to right, each rounded."""
    total = 0.0
    for value in values:
        total = r(total + value)
        yield total


def softmax(arithmetic, x):
    """x (n) -> (n): exp(x) / sum(exp(x)), shifted so that the largest exponent is 0"""
    highest = max(x)
    e = arithmetic.exps(R([v - highest for v in x]))
    total = arithmetic.total(e)
    return R([v / total for v in e])


def rmsnorm(arithmetic, x, weight):
    """x (d), weight (d) -> (d): x / sqrt(mean(x^2) + 1e-5) * weight"""
    s = arithmetic.dot(x, x)
    s = r(r(s / len(x)) + r(1e-5))
    s = r(1.0 / r(sqrt(s)))
    return R([w * v for w, v in zip(weight, R([s * v for v in x]))])


# ----------------------------------------------------------------------------
# Checkpoint: the formats of llama2.c's export.py, versions 0, which run.c reads, and 1 (run.c: Config,
# TransformerWeights, memory_map_weights, read_checkpoint)


@dataclass
class Config:
    dim: int         # of the activations
    hidden_dim: int  # of the feed-forward layers
    n_layers: int
    n_heads: int     # of queries
    n_kv_heads: int  # of keys and values: as many (multi-head), fewer (grouped), one (multi-query)
    vocab_size: int
    seq_len: int     # the longest sequence: the context

    @property
    def head_size(self):
        return self.dim // self.n_heads


NATIVE = "" if sys.byteorder == "little" else "<"  # the machine's own order is read faster by struct


class Checkpoint:
    """A checkpoint file, mapped into memory: its config, and its weights when asked for.

    Raises ValueError, naming the file, the field and the values, if the file is not a whole checkpoint.
    """

    MAGIC = 0x616B3432  # "ak42": version 1 or later; version 0 has no magic

    def __init__(self, path):
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
            "rope_tables": (2, c.seq_len, c.head_size // 2),  # read by nobody
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

    def rows(self, name, layer=0, first=0, last=None, check=True):
        """Rows first .. last - 1 of a layer's matrix: a list of tuples of floats. ValueError if one is not finite."""
        offset, rows, columns = self.tensors[name]
        start = offset + 4 * columns * (layer * rows + first)
        stop = offset + 4 * columns * (layer * rows + (rows if last is None else last))
        with memoryview(self.data)[start:stop] as window:
            result = list(iter_unpack(f"{NATIVE}{columns}f", window))
        if check and not all(map(isfinite, map(sum, result))):  # finite binary32 numbers never overflow a binary64 sum
            raise ValueError(f"{self.path}: {name} of layer {layer} holds a weight that is not finite")
        return result

    def release(self):
        """Let the system drop the pages that were read; it reads them from the file again when they are needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)

    def sha256(self):
        digest = hashlib.sha256()
        for start in range(0, self.size, 2**24):
            digest.update(self.data[start:start + 2**24])
            self.release()
        return digest.hexdigest()

    def close(self):
        with contextlib.suppress(BufferError):  # interrupted within rows(): closed when its view is dropped
            self.data.close()


# ----------------------------------------------------------------------------
# Transformer: the part of one process, and the forward pass over all parts (run.c: RunState, malloc_run_state, matmul,
# forward, build_transformer, free_transformer)


def free_memory():
    """Bytes that this process may use, roughly: what the system has available, or the limit of the cgroup (version 2)
    or of the process's address space if that is lower."""
    limits = []
    for path, pattern, unit in [("/proc/meminfo", "MemAvailable: +([0-9]+)", 1024),
                                ("/sys/fs/cgroup/memory.max", "([0-9]+)", 1)]:
        with contextlib.suppress(OSError, TypeError), open(path) as file:
            limits.append(int(re.search(pattern, file.read())[1]) * unit)
    with contextlib.suppress(ImportError):
        import resource
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    if not limits:  # not on Linux: half of the memory there is, or of 8 GiB
        with contextlib.suppress(AttributeError, ValueError, OSError):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return min(limits, default=2**32)


def share(n, index, count):
    """The part of range(n) that falls to the process `index` of `count`."""
    return range(n * index // count, n * (index + 1) // count)


# Weights in a block, few enough to stay in the processor's cache once unpacked: larger ones make dialect c a tenth
# slower on Python 3.13, smaller ones cost calls. The bits are the same, since each row is computed by itself.
BLOCK = 2**15


class Block:
    """Some rows of a layer's matrix in the mapped file, unpacked whenever their matrix is asked for."""

    def __init__(self, checkpoint, arithmetic, name, layer, first, last):
        self.checkpoint, self.arithmetic, self.place = checkpoint, arithmetic, (name, layer, first, last)
        self.squares = None  # of the rows, once they have been read and checked

    def matrix(self):
        rows = self.checkpoint.rows(*self.place, check=self.squares is None)
        matrix = self.arithmetic.Matrix(rows, self.squares)
        self.squares = self.squares or array("d", matrix.squares)
        return matrix


class Shard:
    """One process's part of the model: in every layer some heads, with their keys and values, and some rows of every
    other matrix. A model in one process is shard 0 of 1. The methods take the vectors of consecutive positions at once.
    """

    def __init__(self, checkpoint, arithmetic, index=0, count=1, unpacked=True):
        self.checkpoint, self.arithmetic, self.config = checkpoint, arithmetic, checkpoint.config
        self.unpacked = unpacked
        c, hs = self.config, self.config.head_size
        self.group = c.n_heads // c.n_kv_heads  # query heads that share a key and value head
        self.heads = heads = share(c.n_heads, index, count)
        self.kv_heads = range(heads.start // self.group, (heads.stop - 1) // self.group + 1) if heads else range(0)
        kv_rows = range(self.kv_heads.start * hs, self.kv_heads.stop * hs)
        parts = {"wq": range(heads.start * hs, heads.stop * hs), "wk": kv_rows, "wv": kv_rows}
        for name in "wo", "w1", "w2", "w3", "classifier":
            parts[name] = share(checkpoint.tensors[name][1], index, count)
        self.weights = {}  # name -> for each layer, the matrices or the blocks that its rows are kept in
        for name, rows in parts.items():
            self.weights[name] = []
            step = max(1, BLOCK // checkpoint.tensors[name][2])
            for l in range(1 if name == "classifier" else c.n_layers):
                blocks = [Block(checkpoint, arithmetic, name, l, i, min(rows.stop, i + step)) for i in rows[::step]]
                self.weights[name].append([block.matrix() for block in blocks] if unpacked else blocks)
                checkpoint.release()
        self.cache = [None] * c.n_layers  # a layer's keys (pos, hs) and values (hs, pos), by key and value head
        self.turns = []  # of each position: the cosines and the sines of its angles, (hs / 2) each

    def matmul(self, name, l, xs):
        """xs (positions, d) -> (positions, rows of this part): a matrix times each vector."""
        operands = [self.arithmetic.operand(x) for x in xs]
        results = [[] for _ in xs]
        for block in self.weights[name][l] if xs else ():
            matrix = block if self.unpacked else block.matrix()
            for result, operand in zip(results, operands):
                result += self.arithmetic.dots(matrix, operand)
        if not self.unpacked:
            self.checkpoint.release()
        return results

    def rope(self, x, pos):
        """x (heads * hs) -> the same shape, by rotary position embedding: in each head the neighbours (2i, 2i + 1) turn
        by the angle pos / 10000^(2i / hs)."""
        A, hs = self.arithmetic, self.config.head_size
        while len(self.turns) <= pos:
            angles = [r(len(self.turns) * r(1.0 / A.pow(10000.0, r(2 * i / hs)))) for i in range(hs // 2)]
            self.turns.append(([A.cos(a) for a in angles], [A.sin(a) for a in angles]))
        c, s = (part * (len(x) // hs) for part in self.turns[pos])
        a, b = x[0::2], x[1::2]

        def times(u, v):
            return R(list(map(mul, u, v)))

        evens, odds = map(sub, times(a, c), times(b, s)), map(add, times(a, s), times(b, c))
        return R(list(chain(*zip(evens, odds))))

    def attention(self, l, pos, xs, observed):
        """xs (positions, dim), the normalized activations from pos on -> q, k, v, weights and attention by name,
        (positions, n) each, for this part's heads; attention alone if nobody observes, so that workers send less."""
        A, hs = self.arithmetic, self.config.head_size
        results = {"q": [], "k": [], "v": [], "weights": [], "attention": []}
        if pos == 0:
            self.cache[l] = [{g: A.Matrix() for g in self.kv_heads} for _ in ("keys", "values")]
        keys, values = self.cache[l]
        scale = r(sqrt(hs))
        # so many numbers of k and v are not reported: those of a first head that the shard before has, too
        shared = hs if self.heads.start % self.group else 0
        for pos, (q, k, v) in enumerate(zip(*[self.matmul(name, l, xs) for name in ("wq", "wk", "wv")]), pos):
            q, k = self.rope(q, pos), self.rope(k, pos)
            for i, g in enumerate(self.kv_heads):
                keys[g].add_row(k[i * hs:(i + 1) * hs])
                values[g].add_column(v[i * hs:(i + 1) * hs])
            weights, attention = [], []
            for i, h in enumerate(self.heads):
                g = h // self.group
                scores = A.dots(keys[g], A.operand(q[i * hs:(i + 1) * hs]))
                p = softmax(A, R([s / scale for s in scores]))
                weights += p
                attention += A.dots(values[g], A.operand(p))
            for op, vector in zip(results, (q, k[shared:], v[shared:], weights, attention)):
                results[op].append(vector)
        return results if observed else {"attention": results["attention"]}

    def swiglu(self, l, xs, observed):
        """xs (positions, dim) -> gate, up and swiglu = silu(gate) * up by name, (positions, n) each, for this part's
        rows of w1 and w3; swiglu alone if nobody observes."""
        gates, ups, results = self.matmul("w1", l, xs), self.matmul("w3", l, xs), []
        for gate, up in zip(gates, ups):
            e = self.arithmetic.exps([-a for a in gate])
            sigmoid = R([1.0 / v for v in R([1.0 + v for v in e])])
            results.append(R([v * u for v, u in zip(R([a * s for a, s in zip(gate, sigmoid)]), up)]))
        return {"gate": gates, "up": ups, "swiglu": results} if observed else {"swiglu": results}


def join(parts):
    """parts (shards, positions, n of each shard) -> (positions, sum of n): the parts of each vector put together."""
    return [tuple(chain(*vectors)) for vectors in zip(*parts)]


def work(connection, other_end, path, *part):
    """A worker process: answers calls of its shard's methods until the connection's other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    other_end.close()  # or this process would keep its own connection open

    def answer(function, *args):
        try:
            return function(*args)
        except (ValueError, OSError, MemoryError) as error:
            return error

    with contextlib.suppress(EOFError, OSError):
        shard = answer(lambda: Shard(Checkpoint(path), *part))
        while True:
            call, method, args = connection.recv()
            connection.send((call, shard if isinstance(shard, Exception) else answer(getattr(shard, method), *args)))


@contextlib.contextmanager
def uninterrupted():
    """Hold Ctrl-C back for a while, so that no process is started and lost."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Transformer:
    """A model: Transformer(path, arithmetic="exact", workers=1). Close it, or use it in a `with` statement.

    workers is the number of processes, this one included; any number gives the same bits. The weights are unpacked into
    Python floats, 40 bytes each (4 in the dialect `c`), if three quarters of the free memory hold them; if not, they
    are read from the mapped file at every step: the same bits, up to three times as slowly, in little memory.
    Raises ValueError or OSError for a file that is not a checkpoint, and ChildProcessError if a worker dies.
    """

    def __init__(self, path, arithmetic="exact", workers=1):
        self.arithmetic = ARITHMETIC[arithmetic]
        self.processes = []
        self.length = 0  # positions in the key and value cache; None while a step changes it
        self.calls = 0   # so far; the number of a call tells its answers from late ones to an interrupted call
        self.checkpoint = Checkpoint(path)
        self.config = self.checkpoint.config
        unpacked = self.checkpoint.n_weights * self.arithmetic.weight_size < free_memory() * 3 / 4
        try:
            with uninterrupted():
                for index in range(1, workers):
                    self._start_worker(index, workers, unpacked)
            self.shard = Shard(self.checkpoint, self.arithmetic, 0, workers, unpacked)
            layers = range(self.config.n_layers)
            self.rms_att = [self.checkpoint.rows("rms_att", l)[0] for l in layers]  # (n_layers, dim)
            self.rms_ffn = [self.checkpoint.rows("rms_ffn", l)[0] for l in layers]  # (n_layers, dim)
            self.rms_final = self.checkpoint.rows("rms_final")[0]                   # (dim)
        except BaseException:
            self.close()
            raise

    def _start_worker(self, index, count, unpacked):
        here, there = multiprocessing.Pipe()
        process = multiprocessing.Process(target=work, daemon=True, args=(
            there, here, self.checkpoint.path, self.arithmetic, index, count, unpacked))
        process.start()
        there.close()
        self.processes.append((process, here))

    def _all(self, method, *args):
        """Call a method of every shard, all at the same time -> the answers in the shards' order."""
        self.calls += 1
        try:
            for index, (_, connection) in enumerate(self.processes):
                connection.send((self.calls, method, args))
            answers = [getattr(self.shard, method)(*args)]
            for index, (_, connection) in enumerate(self.processes):
                call = None
                while call != self.calls:
                    call, answer = connection.recv()
                answers.append(answer)
        except (EOFError, ConnectionError):
            process, _ = self.processes[index]
            process.join(1)
            raise ChildProcessError(f"worker process {process.pid} died with exit code {process.exitcode}") from None
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def forward(self, token, pos, observe=None):
        """One step: the token at position pos -> logits, an array("f") of vocab_size.

        Positions come in order; 0 begins anew. observe(layer, op, values) is called with the result of every operation,
        in order, by the names in batch and Shard (q and k after RoPE); layer is None outside the layers.
        """
        return self.batch([token], pos, [observe] if observe else [])[0]

    def batch(self, tokens, pos, observers=(), skip=0):
        """run.c's forward, over the tokens of consecutive positions from pos on.

        Returns the logits of each position but the first `skip`, a list of array("f") of vocab_size. observers: a
        function for each position, or none.
        """
        A, c, observed = self.arithmetic, self.config, bool(observers)
        if pos != 0 and pos != self.length:
            raise ValueError(f"position {pos} is neither 0 nor the next, {self.length}")
        if pos + len(tokens) > c.seq_len:
            raise ValueError(f"position {pos + len(tokens) - 1} is beyond the context of {c.seq_len}")
        for token in tokens:
            if not 0 <= token < c.vocab_size:
                raise ValueError(f"token {token} is not in {self.checkpoint.path}'s vocabulary of {c.vocab_size}")

        self.length = None

        def see(l, op, vectors):
            for observe, vector in zip(observers, vectors):
                observe(l, op, vector)
            return vectors

        def see_all(l, answers):
            """Put the shards' results of each operation together; return the last one's."""
            for op in answers[0]:
                vectors = see(l, op, join([answer[op] for answer in answers]))
            return vectors

        xs = [self.checkpoint.rows("embedding", 0, token, token + 1)[0] for token in tokens]  # (positions, dim)
        see(None, "embedding", xs)
        for l in range(c.n_layers):
            # attention, and the residual connection around it
            normed = see(l, "attention_norm", [rmsnorm(A, x, self.rms_att[l]) for x in xs])
            heads = see_all(l, self._all("attention", l, pos, normed, observed))
            out = see(l, "attention_out", join(self._all("matmul", "wo", l, heads)))
            xs = see(l, "attention_residual", [R(list(map(add, x, y))) for x, y in zip(xs, out)])
            # the feed-forward network, and the residual connection around it
            normed = see(l, "ffn_norm", [rmsnorm(A, x, self.rms_ffn[l]) for x in xs])
            hidden = see_all(l, self._all("swiglu", l, normed, observed))
            out = see(l, "ffn_out", join(self._all("matmul", "w2", l, hidden)))
            xs = see(l, "ffn_residual", [R(list(map(add, x, y))) for x, y in zip(xs, out)])
        xs = see(None, "final_norm", [rmsnorm(A, x, self.rms_final) for x in xs])
        self.length = pos + len(tokens)
        logits = [array("f", row) for row in join(self._all("matmul", "classifier", 0, xs[skip:]))]
        for row in logits:
            if not isfinite(sum(row)):
                raise ValueError(f"{self.checkpoint.path}: the logits are not finite: the checkpoint is corrupt")
        return logits

    def reset(self):
        """Forget all positions."""
        self.length = 0

    def close(self):
        """End the workers and let go of the file."""
        for process, connection in self.processes:
            connection.close()  # at which a worker ends
        for process, connection in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
        self.processes = []
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

    def __init__(self, path, vocab_size):
        data = trace.read_file(path)
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

    def encode(self, text, bos=True):
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

    def decode(self, previous, token):
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


def xorshift(state):
    """xorshift64*, llama2.c's generator (run.c: random_u32): the state -> 24 random bits and the next state."""
    state ^= state >> 12
    state ^= state << 25 & MASK
    state ^= state >> 27
    return (state * 0x2545F4914F6CDD1D & MASK) >> 40, state


def llama2_rs(state):
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

    def __init__(self, temperature=1.0, p_value=0.9, seed=1, rng="xorshift64*", arithmetic="exact"):
        if not 0 <= temperature < inf:
            raise ValueError(f"temperature is {temperature}, must be 0 or more, and finite")
        if not 0 <= p_value <= 1:
            raise ValueError(f"p_value is {p_value}, must be 0 to 1")
        if not 0 < seed < 2**64:
            raise ValueError(f"seed is {seed}, must be 1 to 2**64 - 1")
        self.temperature, self.p_value, self.seed = temperature, p_value, seed
        self.rng, self.arithmetic = rng, ARITHMETIC[arithmetic]
        self.state = seed

    def coin(self):
        """A random number in [0, 1), a multiple of 2^-24 (run.c: random_f32)."""
        bits, self.state = GENERATORS[self.rng](self.state)
        return bits / 2**24

    def sample(self, logits):
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


def pick(tokens, sums, coin):
    """tokens (n), their running sums (n) -> the first token whose sum exceeds the coin, or else the last one."""
    for token, total in zip(tokens, sums):
        if coin < total:
            break
    return token


# ----------------------------------------------------------------------------
# Generation (run.c: generate, chat)


@dataclass
class Step:
    """What happened at one position."""
    pos: int
    token: int      # the input
    next: int       # the token that follows: the prompt's or a sampled one
    piece: bytes    # what next decodes to
    logits: object  # array("f") of vocab_size; None within the prompt, unless asked for


# Positions computed together where their tokens are known. A model read from the map is unpacked once for all of them,
# which makes it two to three times as fast at 15M parameters.
BATCH = 16


def generate(transformer, tokenizer, sampler, tokens, steps, observe=None, logits=False, foreseen=()):
    """Yield a Step for each position, until there are `steps` of them or BOS is sampled.

    tokens is the encoded prompt. observe sees every operation before its step is yielded; logits=True asks for the
    logits within the prompt too. foreseen are the inputs that follow the prompt according to a log: their positions are
    computed together, as the prompt's are, and the first that the sampler does not choose ends the run.
    """
    check_length(tokens, transformer)
    inputs = [*tokens, *foreseen]
    pos = 0
    while pos < steps:
        batch = inputs[pos:min(steps, pos + BATCH)]
        skip = 0 if logits else min(len(batch), max(0, len(tokens) - 1 - pos))  # the prompt says what follows them
        events = [[] for _ in batch]  # by position, since batch goes through them layer by layer
        observers = [lambda *event, seen=seen: seen.append(event) for seen in events if observe]
        results = transformer.batch(batch, pos, observers, skip)
        for i, token in enumerate(batch):
            for event in events[i]:
                observe(*event)
            row = results[i - skip] if i >= skip else None
            following = tokens[pos + 1] if pos + 1 < len(tokens) else sampler.sample(row)
            yield Step(pos, token, following, tokenizer.decode(token, following), row)
            if following == BOS:
                return
            pos += 1
            if pos == len(inputs):
                inputs.append(following)
            elif inputs[pos] != following:
                return


def check_length(tokens, transformer):
    if len(tokens) > transformer.config.seq_len:
        raise ValueError(f"the prompt has {len(tokens)} tokens, but the context of {transformer.checkpoint.path} is "
                         f"{transformer.config.seq_len}")


def chat(transformer, tokenizer, sampler, steps, read, write, user=None, system=None):
    """User and model take turns until there are `steps` positions or no more input.

    read(question) returns a line or raises EOFError; write(piece) receives what the model says. user and system are the
    first prompts; if None, they are read.
    """
    users_turn, following = True, None
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
        token, index = (tokens[index], index + 1) if index < len(tokens) else (following, index)
        users_turn = token == EOS  # the model ends its turn with it
        following = sampler.sample(transformer.forward(token, pos))
        if index == len(tokens) and following != EOS:
            write(tokenizer.decode(token, following))
        if following == EOS:
            write(b"\n")
    write(b"\n")


# ----------------------------------------------------------------------------
# Logits as numpy's arrays (format 1.0), to compare programs with; run.c has no counterpart


def write_array(path, numbers, columns):
    """Write numbers, an array("f"), as a .npy file of shape (n / columns, columns)."""
    head = repr({"descr": "<f4", "fortran_order": False, "shape": (len(numbers) // columns, columns)}).encode()
    if NATIVE:
        numbers.byteswap()
    head = b"\x93NUMPY\x01\x00" + pack("<H", 118) + head.ljust(117) + b"\n"  # 128 bytes, a multiple of 64
    trace.write_whole(path, head + numbers.tobytes())


class Comparison:
    """Another program's logits, a .npy file of float32 (steps, vocabulary), beside this run's, step by step.

    Raises ValueError for another type, byte order, shape or order of dimensions, naming both.
    """

    def __init__(self, path, steps, vocab_size, tolerance):
        self.path, self.vocab_size, self.tolerance = path, vocab_size, tolerance
        self.data = trace.read_file(path, 2**30)
        header = re.match(rb"\x93NUMPY\x01\x00(..)\{'descr': ('.*?'|\[.*?\]), 'fortran_order': (True|False), "
                          rb"'shape': (\([0-9, ]*\)),? ?\} *\n", self.data[:2**16 + 10], re.S)
        if not header or unpack("<H", header[1])[0] != header.end() - 10:
            raise ValueError(f"{path}: not an array of numpy's format 1.0")
        kind, fortran, shape = (value.decode("latin-1") for value in header.groups()[1:])
        if kind != "'<f4'":
            raise ValueError(f"{path}: holds {kind}, must be '<f4', float32 in little-endian order")
        if fortran != "False":
            raise ValueError(f"{path}: fortran_order is {fortran}, must be False")
        rows = re.fullmatch(rf"\(([1-9][0-9]{{0,8}}), {vocab_size}\)", shape)
        if not rows or int(rows[1]) > steps:
            raise ValueError(f"{path}: shape is {shape}, this run's is ({steps}, {vocab_size}), or fewer steps if it "
                             "ends by itself")
        self.rows, self.shape, self.begin = int(rows[1]), shape, header.end()
        size = self.begin + 4 * self.rows * vocab_size
        if len(self.data) != size:
            raise ValueError(f"{path}: size is {len(self.data)} bytes, must be {size} for shape {shape}")
        self.count, self.agree, self.ulps, self.largest = 0, 0, 0, (0.0, None)  # the last: with its step
        self.started = self.parted = None  # the first step that differs at all, and beyond the tolerance

    def step(self, logits):
        """This run's logits of the next step -> a line of the report."""
        if self.count == self.rows:
            raise ValueError(f"{self.path}: shape is {self.shape}, but this run has more steps")
        n, step = self.vocab_size, self.count
        start = self.begin + 4 * n * step
        data = self.data[start:start + 4 * n]
        other = unpack(f"<{n}f", data)
        difference = max(map(abs, map(sub, logits, other))) if isfinite(sum(other)) else inf
        ulps = max(map(abs, map(sub, ordered(pack(f"<{n}f", *logits)), ordered(data))))
        mine, others = logits.index(max(logits)), other.index(max(other))
        self.count, self.agree, self.ulps = step + 1, self.agree + (mine == others), max(self.ulps, ulps)
        if difference > self.largest[0]:
            self.largest = difference, step
        if ulps and self.started is None:
            self.started = step
        if difference > self.tolerance and self.parted is None:
            self.parted = step
        title = "" if step else f"{'step':>5}  {'largest difference':>18}  {'in ulps':>10}  arg max\n"
        agreement = f"{mine}" if mine == others else f"{mine} here, {others} there"
        beyond = " beyond the tolerance" if difference > self.tolerance else ""
        return f"{title}{step:5}  {difference:18.3g}  {ulps:10}  {agreement}{beyond}\n"

    def end(self):
        """The end of the report."""
        if self.count != self.rows:
            raise ValueError(f"{self.path}: shape is {self.shape}, but this run's is ({self.count}, {self.vocab_size})")
        size, step = self.largest
        return (f"largest difference: {size:.3g}{'' if step is None else f' at step {step}'}; in ulps: {self.ulps}\n"
                f"arg max agrees at {self.agree} of {self.count} steps\n"
                f"first step that differs: {self.started}; first beyond the tolerance: {self.parted}\n")


def ordered(data):
    """Bytes of little-endian float32 -> integers in the order of the numbers: neighbours are 1 apart."""
    return [i if i >= 0 else -(i & 0x7FFFFFFF) for i in unpack(f"<{len(data) // 4}i", data)]


# ----------------------------------------------------------------------------
# Command line (run.c: main, error_usage, read_stdin)

HERE = os.path.dirname(os.path.abspath(__file__))


def printer(out, like):
    """A function that writes pieces as their UTF-8 completes (run.c: safe_printf), without control characters other
    than white space."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(piece):
        if like == "llama2.c" and len(piece) == 1 and piece > b"\x7e":
            return  # run.c's safe_printf drops a byte that the C locale cannot print
        text = piece.decode(errors="replace") if like == "llama2-rs" else decoder.decode(piece)
        out.write(re.sub("[\x00-\x08\x0e-\x1f\x7f-\x9f]", "", text).encode())
        out.flush()

    return write


# --like: the arithmetic and the generator
LIKE = {None: ("exact", "xorshift64*"), "llama2.c": ("c", "xorshift64*"), "llama2-rs": ("c", "llama2-rs")}


def utf8(argument):
    """An argument that the locale could not decode, decoded as UTF-8; bytes that are not UTF-8 stay escaped."""
    if any("\ud800" <= c <= "\udfff" for c in argument):
        return os.fsencode(argument).decode("utf-8", "surrogateescape")
    return argument


def parse(argv):
    """The options. Those that a trace holds too are None if not given."""
    parser = trace.Parser(prog="llama2.py", description="Llama 2 inference in plain Python, exact to the bit.",
                          epilog='Example: python3 llama2.py stories42M.bin -i "Once upon a time" -n 100 -s 42')
    add = parser.add_argument
    add("checkpoint", nargs="?", help="a float checkpoint of llama2.c (default: the embedded model)")
    add("-t", "--temperature", type=float, help="0: always the likeliest token (default: 1.0)")
    add("-p", "--p_value", type=float, help="top-p sampling; 0 or 1: from all tokens (default: 0.9)")
    add("-s", "--seed", type=int, help="1 to 2**64 - 1; 0: from the clock (default: 0)")
    add("-n", "--steps", type=int, help="positions, at most the context's; 0: all of them (default: 256)")
    add("-i", "--input_prompt", type=utf8, help="how the text begins (default: nothing)")
    add("-z", "--tokenizer", help="(default: tokenizer.bin beside the checkpoint, or in the working directory)")
    add("-m", "--mode", choices=["generate", "chat"], default="generate", help="tell or talk (default: generate)")
    add("-y", "--system_prompt", type=utf8, help="in chat (default: asked for)")
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
    for option, needs in [("trace_level", "trace"), ("verify_iteration", "verify"), ("root", "verify"),
                          ("tolerance", "compare")]:
        if getattr(args, option) is not None and getattr(args, needs) is None:
            parser.error(f"--{option.replace('_', '-')} needs --{needs}")
    if args.trace_level not in (None, "step") and args.like == "llama2-rs":
        parser.error(f"argument --trace-level: {args.trace_level}, but llama2-rs's format has steps alone")
    for option in "verify", "trace", "logits", "compare":
        for other in "verify", "explain_text":
            if option != other and getattr(args, option) is not None and getattr(args, other) is not None:
                parser.error(f"--{option} and --{other.replace('_', '-')}: one at a time")
    for option in "trace", "verify", "logits", "compare":
        if getattr(args, option) is not None and args.mode == "chat":
            parser.error(f"--{option} belongs to mode generate, not to chat")
    if args.system_prompt is not None and args.mode != "chat":
        parser.error("--system_prompt belongs to mode chat")
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

    def __init__(self, args, log=None):
        held = log.header if log and not log.rust else {}

        def option(name, field, default):
            value = getattr(args, name)
            return held.get(field, default) if value is None else value

        self.like = args.like
        if log and not self.like and (log.rust or (held["arithmetic"], held["rng"]) == LIKE["llama2.c"]):
            self.like = "llama2-rs" if log.rust else "llama2.c"
        if log and log.rust != (self.like == "llama2-rs"):
            got = "llama2-rs's" if log.rust else "this program's own"
            raise trace.VerificationError(log.path, "format", f"that of --like {self.like}", got)
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

    def header(self):
        """What a trace of this run says first."""
        if self.like == "llama2-rs":
            return {"model_path": self.path, "prompt": self.prompt, "steps": self.steps}
        return {"model": self.transformer.checkpoint.sha256(), "tokenizer": self.tokenizer.sha256,
                "arithmetic": self.sampler.arithmetic.name, "rng": self.sampler.rng,
                "temperature": self.sampler.temperature, "p_value": self.sampler.p_value, "seed": self.sampler.seed,
                "steps": self.steps, "level": self.level, "prompt": self.prompt, "tokens": self.tokens}

    def generate(self, log=None, logits=False, foreseen=()):
        """The steps of the run; log sees their operations if its level asks for them."""
        observe = log.operation if log and log.level != "step" else None
        return generate(self.transformer, self.tokenizer, self.sampler, self.tokens, self.steps, observe,
                        logits or log is not None, foreseen)


def find_files(args):
    """The paths of checkpoint and tokenizer."""
    checkpoint = os.path.join(HERE, "stories", "model.bin") if args.checkpoint is None else args.checkpoint
    beside = os.path.join(os.path.dirname(checkpoint), "tokenizer.bin")
    found = beside if os.path.exists(beside) else "tokenizer.bin"
    return checkpoint, found if args.tokenizer is None else args.tokenizer


def check_output(path, *sources):
    """Raise ValueError if a file cannot be written, or would overwrite what the run reads."""
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path or ".") or not os.access(folder, os.W_OK):
        raise ValueError(f"{path}: cannot be written, in {folder}")
    for source in sources:
        if source is not None and os.path.exists(path) and os.path.samefile(path, source):
            raise ValueError(f"{path}: is read, and would be overwritten")


def tell(run, args, out):
    """Generate text, and beside it what is asked for: a trace, the logits, a comparison of them."""
    check_length(run.tokens, run.transformer)
    for path in args.trace, args.logits:
        if path is not None:
            check_output(path, run.path, run.tokenizer.path, args.compare)
    if None not in (args.trace, args.logits) and os.path.realpath(args.trace) == os.path.realpath(args.logits):
        raise ValueError(f"{args.trace}: is to be both --trace and --logits")
    write, vocab_size = printer(out, run.like), run.transformer.config.vocab_size
    comparison = log = None
    if args.compare is not None:
        comparison = Comparison(args.compare, run.steps, vocab_size, args.tolerance or 0.0)
    with contextlib.ExitStack() as files:
        if args.trace is not None:
            Writer = trace.RustWriter if run.like == "llama2-rs" else trace.Writer
            log = files.enter_context(contextlib.closing(Writer(args.trace, run.header())))
        if not args.seed and (log or run.sampler.temperature > 0):
            print(f"seed: {run.sampler.seed}", file=sys.stderr)
        begin, logits = time.perf_counter(), array("f")
        for step in run.generate(log, logits=args.logits is not None or comparison is not None):
            if log:
                log.step(step.token, step.next, step.piece, step.logits)
            if args.logits is not None:
                logits += step.logits
            if comparison:
                out.write(comparison.step(step.logits).encode())
            elif step.next != BOS or run.like == "llama2-rs":
                write(step.piece)
        if comparison:
            out.write(comparison.end().encode())
        else:
            write(b"\n")
        if args.logits is not None:
            write_array(args.logits, logits, vocab_size)
        if log:
            print(f"root: {log.finish()}", file=sys.stderr)
    rate = (step.pos + 1) / (time.perf_counter() - begin)  # of all positions; run.c leaves out the first
    print(f"achieved tok/s: {rate:.1f}", file=sys.stderr)
    return 1 if comparison and comparison.parted is not None else 0


def progress(steps, goal):
    """Pass steps on, and on a terminal show how far they are."""
    begin = shown = time.perf_counter()
    try:
        for step in steps:
            yield step
            now = time.perf_counter()
            if sys.stderr.isatty() and now - shown > 0.2:
                done, shown = step.pos + 1, now
                rate = done / (now - begin)
                print(f"\r{done} of {goal} steps, {rate:.1f} steps/s, {(goal - done) / rate:.0f} s left  ", end="",
                      file=sys.stderr, flush=True)
    finally:
        if shown > begin:
            print(file=sys.stderr)


def verify(run, log, args, out):
    """Make the run of a trace again and compare. Raises trace.VerificationError at the first difference."""
    last = args.verify_iteration
    goal = len(log.steps) if last is None else last + 1
    nexts = [log.events[index]["next"] for index in log.steps][len(run.tokens) - 1:-1]
    foreseen = list(takewhile(range(run.transformer.config.vocab_size).__contains__, nexts))
    try:
        checker = trace.Checker(log, run.header())
        with contextlib.suppress(trace.EndOfTrace), contextlib.closing(
                progress(run.generate(checker, foreseen=foreseen), goal)) as steps:
            for step in steps:
                checker.step(step.token, step.next, step.piece, step.logits)
                if step.pos == last:
                    break
            else:
                checker.end()
        checker.conclude()
    except trace.VerificationError as error:
        hint = ""
        if log.rust:
            hint = " (the format does not commit to the run's options: are -s -t -p -i -n as they were?)"
        elif run.sampler.arithmetic is C:
            hint = " (in the arithmetic `c` this may only be another C library)"
        error.args = (f"{error}{hint}",)
        raise
    out.write(f"verified: {goal} steps computed again and found equal\n".encode())
    if last is not None:
        out.write(f"step {last} is leaf {log.included(last)} of {len(log.tree)} under the root\n".encode())
    if not log.root:
        out.write(b"the trace is incomplete: its run was cut short, and it is verified as far as it goes\n")
    basis = "as published" if args.root else (
        "only recomputed from the file itself; compare it with the one that was published")
    out.write(f"root: {log.tree.root().hex()}, {basis}\n".encode())
    return 0


def converse(run, args, out):
    """Chat on the terminal, or with whoever writes to standard input."""
    if not args.seed:
        print(f"seed: {run.sampler.seed}", file=sys.stderr)
    write = printer(out, run.like)

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


def dispatch(args, out):
    """Do what the options ask for -> the exit code."""
    if args.explain_text is not None:
        trace.show(trace.read(args.explain_text), sys.stdout)
        return 0
    log = None
    if args.verify is not None:
        log = trace.read(args.verify)
        if args.root and args.root != log.root:
            raise trace.VerificationError(log.path, "root", args.root, log.root)
        if args.verify_iteration is not None:
            log.step(args.verify_iteration)
    run = Run(args, log)
    with run.transformer:
        if log:
            return verify(run, log, args, out)
        return converse(run, args, out) if args.mode == "chat" else tell(run, args, out)


def main(argv=None):
    """The command line; returns the exit code, as trace.exit_code, and 1 for a comparison beyond the tolerance."""
    return trace.exit_code("llama2.py", lambda: dispatch(parse(argv), sys.stdout.buffer))


if __name__ == "__main__":
    sys.exit(main())
