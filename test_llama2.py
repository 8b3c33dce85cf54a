"""Tests of llama2.py and trace.py, from the smallest part to the whole.

    python3 -m pytest -q                    # the tests; they need pytest and hypothesis
    python3 test_llama2.py [PYTHON ...]     # measure, on this Python or on those given; needs nothing else
"""
import contextlib
import ctypes
import ctypes.util
import hashlib
import io
import json
import math
import os
import pickle
import random
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from array import array
from decimal import Decimal, localcontext
from itertools import repeat

import llama2
import merkle
import trace

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL, TOKENIZER = os.path.join(HERE, "stories", "model.bin"), os.path.join(HERE, "stories", "tokenizer.bin")
os.environ.pop("PYTHONUNBUFFERED", None)  # it would hide what is left in a buffer when a process of these tests ends

# ----------------------------------------------------------------------------
# Measuring. Every figure comes from a process of its own; the processes take turns, round by round, since machines are
# noisy, and the table gives the median of the rounds and their extremes.


def measure_speed(path, arithmetic, positions):
    """Steps, each beside the bare primitive over the same rows and beside the index loop over some of them."""
    with llama2.Transformer(path, arithmetic) as model:
        c, shard, A = model.config, model.shard, model.arithmetic
        weights = sum(llama2.Checkpoint(path).tensors[name][1] * llama2.Checkpoint(path).tensors[name][2] * len(layers)
                      for name, layers in shard.weights.items())
        flat, x = array("f", model.checkpoint.rows("w2")[0] * 64), [math.sin(i) for i in range(c.hidden_dim)]

        def index_loop():
            n, out = c.hidden_dim, []
            for i in range(64):
                val = 0.0
                for j in range(n):
                    val += flat[i * n + j] * x[j]
                out.append(val)

        def primitive(pos):
            vectors = {d: tuple(math.sin(i) for i in range(d)) for d in (c.dim, c.hidden_dim, c.head_size, pos + 1)}
            matrices = [matrix for layers in shard.weights.values() for blocks in layers for matrix in blocks]
            for l in range(c.n_layers):
                for h in shard.heads:
                    matrices += [part[h // shard.group] for part in shard.cache[l]]
            begin = time.perf_counter()
            for matrix in matrices:
                list(map(math.dist, matrix.rows, repeat(vectors[len(matrix.rows[0])])))
            return time.perf_counter() - begin

        forward = bound = loop = 0.0
        loops = 0
        for pos in range(positions):
            begin = time.perf_counter()
            model.forward(1 + pos * 7 % 400, pos)
            forward += time.perf_counter() - begin
            if A is llama2.Exact:
                bound += primitive(pos)
            if pos % max(1, positions // 8) == 0:
                begin = time.perf_counter()
                index_loop()
                loop, loops = loop + time.perf_counter() - begin, loops + 1
        second = forward / positions
        result = {"tok/s": 1 / second, "million multiply-adds/s": weights / second / 1e6,
                  "times the index loop's speed": loop / loops / (64 * c.hidden_dim) * weights / second}
        if bound:
            result["% of the bare math.dist"] = 100 * bound / forward
        return {**result, "peak memory, MB": peak_memory()}


def peak_memory():
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) / 1000
    return math.nan


def measure_mapped(path, arithmetic, positions):
    """Steps with the weights in the map, one by one and, as verification makes them, sixteen together."""
    llama2.free_memory = lambda: 0
    with llama2.Transformer(path, arithmetic) as model:
        model.forward(1, 0)  # which also takes the squares of the rows
        begin = time.perf_counter()
        for pos in range(1, positions):
            model.forward(1, pos)
        alone, peak = (time.perf_counter() - begin) / (positions - 1), peak_memory()
        begin = time.perf_counter()
        model.batch([1] * llama2.BATCH, positions)
        together = (time.perf_counter() - begin) / llama2.BATCH
    return {"tok/s, mapped": 1 / alone, "tok/s, mapped, tokens known": 1 / together, "peak memory, mapped, MB": peak}


def measure_trace(path, arithmetic, positions, level):
    """The part of a run's processor time that its trace takes."""
    spent = 0.0

    def timed(function):
        def call(*args):
            nonlocal spent
            begin = time.process_time()
            function(*args)
            spent += time.process_time() - begin
        return call

    with llama2.Transformer(path, arithmetic) as model, tempfile.TemporaryDirectory() as folder:
        header = {"model": "", "tokenizer": "", "level": level}
        begin = time.process_time()
        writer = trace.Writer(os.path.join(folder, "trace"), header)
        operation, step = timed(writer.operation), timed(writer.step)
        for pos in range(positions):
            logits = model.forward(1, pos, None if level == "step" else operation)
            step(1, 1, b" story", logits)
        total = time.process_time() - begin
        writer.close()
    return {f"% for a trace, {level}": 100 * spent / total}


def measure_workers(path, arithmetic, positions):
    """Two workers' speed against that of two independent runs at the same time, and what they say to each other."""
    def start(workers):
        process = subprocess.Popen([sys.executable, __file__, "--part", "worker", path, arithmetic, str(positions), str(workers)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        return process

    def finish(processes):
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return [json.loads(process.communicate()[0]) for process in processes]

    alone = finish([start(1), start(1)])
    (together,) = finish([start(2)])
    return {"2 workers: % of two runs side by side": 100 * together["rate"] / sum(run["rate"] for run in alone),
            "2 workers: round trips a token": together["trips"], "2 workers: KB a token": together["bytes"] / 1000}


def measure_worker(path, arithmetic, positions, workers):
    with llama2.Transformer(path, arithmetic, int(workers)) as model:
        trips = size = 0
        ask = model._all

        def counted(*message):
            nonlocal trips, size
            answers = ask(*message)
            trips += len(model.processes)
            size += sum(len(pickle.dumps(message)) + len(pickle.dumps(answer)) for answer in answers[1:])
            return answers

        model._all = counted
        model.forward(1, 0)
        model._all = ask
        print("ready", flush=True)
        sys.stdin.readline()
        begin = time.perf_counter()
        for pos in range(1, positions + 1):
            model.forward(1, pos)
        return {"rate": positions / (time.perf_counter() - begin), "trips": trips, "bytes": size}


def measure_start(path, arithmetic):
    """From the command to its first word."""
    like = [] if arithmetic == "exact" else ["--like", "llama2.c"]
    begin = time.perf_counter()
    command = [sys.executable, os.path.join(HERE, "llama2.py"), path, "-s", "1", "-n", "1", *like, "-i", "A"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.read(1)
    seconds = time.perf_counter() - begin
    process.communicate()
    return {"seconds to the first word": seconds}


def measure(pythons, rounds=5):
    """Print a table of what is measured, a column for each model, dialect and Python."""
    with tempfile.TemporaryDirectory() as folder:
        large = os.path.join(folder, "15M.bin")  # the shape of stories15M.bin; random weights, the tokenizer's vocabulary
        dim, hidden, layers, vocab, context = 288, 768, 6, 32000, 256
        weights = vocab * dim + 2 * layers * dim + layers * (4 * dim * dim + 3 * hidden * dim) + dim
        rng = random.Random(1)
        numbers = [rng.gauss(0, 0.06) for _ in range(1 << 20)]
        with open(large, "wb") as file:
            file.write(struct.pack("<7i", dim, hidden, layers, 6, 6, vocab, context))
            for start in range(0, weights, 1 << 20):
                rotated = numbers[start >> 13:] + numbers[:start >> 13]
                file.write(array("f", rotated[:min(1 << 20, weights - start)]).tobytes())
            file.write(bytes(4 * context * 48))
        with open(os.path.join(folder, "tokenizer.bin"), "wb") as file:
            file.write(struct.pack("<i", 6) + b"".join(struct.pack("<fi", 0, 6) + b"%06d" % i for i in range(vocab)))
        figures = {}
        for turn in range(rounds):
            for name, path, steps in ("260K", MODEL, {"exact": 200, "c": 40}), ("15M", large, {"exact": 8, "c": 2}):
                for arithmetic, n in steps.items():
                    parts = [["speed", path, arithmetic, n], ["start", path, arithmetic]]
                    if arithmetic == "exact":
                        parts += [["trace", path, arithmetic, n, level] for level in trace.LEVELS]
                        parts += [["workers", path, arithmetic, n], ["mapped", path, arithmetic, n]]
                    for part in parts:
                        for python in pythons:
                            done = subprocess.run([python, __file__, "--part", *map(str, part)], stdout=subprocess.PIPE, check=True)
                            column = figures.setdefault((name, arithmetic, python), {})
                            for figure, value in json.loads(done.stdout).items():
                                column.setdefault(figure, []).append(value)
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    versions = {python: subprocess.run([python, "-c", "import platform; print(platform.python_version())"], stdout=subprocess.PIPE,
                                       text=True).stdout.strip() for python in pythons}
    print("| | " + " | ".join(f"{name} {arithmetic}, {versions[python]}" for name, arithmetic, python in figures) + " |")
    print("|---" * (len(figures) + 1) + "|")
    for figure in dict.fromkeys(figure for column in figures.values() for figure in column):
        cells = []
        for column in figures.values():
            values = sorted(column.get(figure, []))
            cells.append(f"{statistics.median(values):.3g} ({values[0]:.3g} to {values[-1]:.3g})" if values else "")
        print(f"| {figure} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        part, path, arithmetic, *more = sys.argv[2:]
        more = [int(value) if value.isdecimal() else value for value in more]
        print(json.dumps(globals()[f"measure_{part}"](path, arithmetic, *more)))
    else:
        measure(sys.argv[1:] or [sys.executable])
    sys.exit()

import pytest
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st

settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("here")

# ----------------------------------------------------------------------------
# Data

# The first eight coins of a seed, times 2**24
COINS = {
    "xorshift64*": {
        1: [4711630, 11259814, 12177677, 5092376, 942489, 13133643, 13652658, 11301260],
        42: [5688906, 13124075, 13256299, 15838407, 12824397, 14021388, 3426238, 7378814],
        2**64 - 1: [16329929, 9434244, 3435669, 12932812, 7089509, 14526219, 15433774, 8387289]},
    "llama2-rs": {
        1: [0, 5638647, 5090651, 15337904, 9914542, 9155861, 2834368, 12525437],
        42: [0, 5638654, 8498523, 15337904, 9914747, 767253, 2834368, 12531997],
        2**64 - 1: [16777215, 5638647, 3779930, 14027184, 9914537, 767248, 11222976, 12525277]},
}

# ----------------------------------------------------------------------------
# Files to test with


def numbers(rng, n, scale):
    return struct.pack(f"<{n}f", *[rng.gauss(0, scale) for _ in range(n)])


def make_checkpoint(path, dim=16, hidden_dim=24, n_layers=2, n_heads=4, n_kv_heads=4, vocab_size=280, seq_len=32,
                    shared=True, version=0, seed=1, scale=0.4):
    """Write a checkpoint of random weights; the same seed gives the same weights in both versions."""
    kv_dim = dim // n_heads * n_kv_heads
    rng = random.Random(seed)
    sizes = [("embedding", vocab_size * dim), ("rms_att", n_layers * dim), ("wq", n_layers * dim * dim),
             ("wk", n_layers * kv_dim * dim), ("wv", n_layers * kv_dim * dim), ("wo", n_layers * dim * dim),
             ("rms_ffn", n_layers * dim), ("w1", n_layers * hidden_dim * dim), ("w2", n_layers * dim * hidden_dim),
             ("w3", n_layers * hidden_dim * dim), ("rms_final", dim)]
    weights = {name: numbers(rng, n, scale) for name, n in sizes}
    classifier = b"" if shared else numbers(rng, vocab_size * dim, scale)
    fields = [dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len]
    if version == 0:
        fields[5] *= 1 if shared else -1
        data = struct.pack("<7i", *fields) + b"".join(weights.values()) + bytes(4 * seq_len * (dim // n_heads)) + classifier
    else:
        norms = [weights.pop(name) for name in ("rms_att", "rms_ffn", "rms_final")]
        head = struct.pack("<Ii7iB", 0x616B3432, 1, *fields, shared)
        data = head.ljust(256, b"\0") + b"".join(norms) + b"".join(weights.values()) + classifier
    with open(path, "wb") as file:
        file.write(data)
    return str(path)


PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % i for i in range(256)] + [
    b" ", b"a", b"b", b"ab", b" a", b"ba", b"aba", b" ab", "é".encode(), "😀".encode(), b"bb", b"aa", b" b", b"\x1b[31m",
    b"c", b"d", b"cd", b"dc", b" c", b"bab", b"e"]
SCORES = [0.0] * 259 + [-10.0, -11, -12, -1, -3, -1, -0.5, -2, -9, -9, -4, -4, -5, -20, -13, -14, -2, -2, -6, -0.5, -15]


def make_tokenizer(path, pieces=PIECES, scores=SCORES):
    with open(path, "wb") as file:
        file.write(struct.pack("<i", max(map(len, pieces))))
        for piece, score in zip(pieces, scores):
            file.write(struct.pack("<fi", score, len(piece)) + piece)
    return str(path)


SHAPES = {
    "multi-head": {},
    "grouped": {"n_kv_heads": 2, "shared": False},
    "multi-query": {"n_heads": 2, "n_kv_heads": 1, "dim": 12, "hidden_dim": 20},
    "version 1": {"version": 1, "n_heads": 6, "n_kv_heads": 3, "dim": 24},
    "version 1, unshared": {"version": 1, "shared": False},
}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Paths of a checkpoint of every shape, and of a tokenizer for them."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: make_checkpoint(folder / f"{i}.bin", **shape) for i, (name, shape) in enumerate(SHAPES.items())}
    return {**paths, "tokenizer": make_tokenizer(folder / "tokenizer.bin")}


def command(capfdbinary, *args, program=llama2):
    """Run the command line in this process -> exit code, standard output, standard error."""
    capfdbinary.readouterr()
    code = program.main([str(arg) for arg in args])
    out, err = capfdbinary.readouterr()
    return code, out, err.decode()


def failure(capfdbinary, *args, program=llama2, code=2):
    """Run a command that must fail, with one line on standard error and nothing on standard output -> that line."""
    got, out, err = command(capfdbinary, *args, program=program)
    assert got == code and out == b"" and err.count("\n") == 1 and err.endswith("\n"), (got, out, err)
    name = os.path.basename(program.__file__)
    assert err.startswith(f"{name}: error: "), err
    return err.removeprefix(f"{name}: error: ").rstrip("\n")


def process(*args, program="llama2.py", **more):
    """Run the command line in a process of its own."""
    arguments = [str(arg).encode("utf-8", "surrogateescape") for arg in args]
    return subprocess.run([sys.executable, os.path.join(HERE, program), *arguments], capture_output=True,
                          stdin=subprocess.DEVNULL, **more)


# ----------------------------------------------------------------------------
# The definitions: what the fast code has to equal, written down as plainly as can be


def bits(values):
    return struct.pack(f"<{len(values)}f", *values)


def rounded(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def nearest(number):
    """The binary32 nearest to a decimal."""
    guess = rounded(float(number))
    if math.isinf(guess):
        return guess
    (i,) = struct.unpack("i", struct.pack("f", guess))
    candidates = [struct.unpack("f", struct.pack("i", j))[0] for j in (i - 1, i, i + 1) if 0 <= j & 0x7FFFFFFF < 0x7F800000]
    return min(candidates, key=lambda c: abs(Decimal(c) - number))


class ExactDefinition:
    @staticmethod
    def dot(a, b):
        return rounded(math.fsum(x * y for x, y in zip(a, b)))

    @staticmethod
    def total(x):
        return rounded(math.fsum(x))

    @staticmethod
    def exp(x):
        with localcontext() as context:
            context.prec = 60
            return nearest(Decimal(x).exp())

    @staticmethod
    def pow(a, b):
        with localcontext() as context:
            context.prec = 60
            return nearest(Decimal(a) ** Decimal(b))

    @staticmethod
    def taylor(a, n):
        with localcontext() as context:
            context.prec = 60 + int(abs(a))
            a, term, total = Decimal(a), Decimal(1), Decimal(0)
            term = a if n else term
            while total + term != total:
                total += term
                n += 2
                term *= -a * a / (n * (n - 1))
            return nearest(total)

    @classmethod
    def cos(cls, a):
        return cls.taylor(a, 0)

    @classmethod
    def sin(cls, a):
        return cls.taylor(a, 1)


class CDefinition:
    @staticmethod
    def dot(a, b):
        total = 0.0
        for x, y in zip(a, b):
            total = rounded(total + rounded(x * y))
        return total

    @staticmethod
    def total(x):
        total = 0.0
        for v in x:
            total = rounded(total + v)
        return total

    @staticmethod
    def call(name, *args):
        function = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
        function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * len(args)
        return function(*args)

    exp = classmethod(lambda cls, x: cls.call("expf", x))
    pow = classmethod(lambda cls, a, b: cls.call("powf", a, b))
    cos = classmethod(lambda cls, a: cls.call("cosf", a))
    sin = classmethod(lambda cls, a: cls.call("sinf", a))


def softmax_definition(A, x):
    e = [A.exp(rounded(v - max(x))) for v in x]
    return [rounded(v / A.total(e)) for v in e]


def rmsnorm_definition(A, x, w):
    R = rounded
    s = R(1.0 / R(math.sqrt(R(R(A.dot(x, x) / len(x)) + R(1e-5)))))
    return [R(a * R(s * b)) for a, b in zip(w, x)]


def forward_definition(A, checkpoint, tokens):
    """Yield for each position the list of (layer, op, values) and the logits."""
    R, c = rounded, checkpoint.config
    hs = c.dim // c.n_heads
    kv_dim = hs * c.n_kv_heads

    def matrix(name, layer=0):
        return list(checkpoint.rows(name, layer))

    def rope(x, pos):
        out = []
        for i in range(0, len(x), 2):
            f = R(1.0 / A.pow(10000.0, R((i % hs) / hs)))
            cos, sin = A.cos(R(pos * f)), A.sin(R(pos * f))
            out += [R(R(x[i] * cos) - R(x[i + 1] * sin)), R(R(x[i] * sin) + R(x[i + 1] * cos))]
        return out

    keys, values = [[] for _ in range(c.n_layers)], [[] for _ in range(c.n_layers)]
    for pos, token in enumerate(tokens):
        ops = []

        def note(layer, op, values):
            ops.append((layer, op, bits(values)))
            return values

        x = note(None, "embedding", matrix("embedding")[token])
        for l in range(c.n_layers):
            n = note(l, "attention_norm", rmsnorm_definition(A, x, matrix("rms_att", l)[0]))
            q = note(l, "q", rope([A.dot(w, n) for w in matrix("wq", l)], pos))
            k = note(l, "k", rope([A.dot(w, n) for w in matrix("wk", l)], pos))
            v = note(l, "v", [A.dot(w, n) for w in matrix("wv", l)])
            assert len(k) == kv_dim
            keys[l].append(k)
            values[l].append(v)
            weights, attention = [], []
            for h in range(c.n_heads):
                g = h // (c.n_heads // c.n_kv_heads)
                mine, theirs = slice(h * hs, h * hs + hs), slice(g * hs, g * hs + hs)
                p = softmax_definition(A, [R(A.dot(q[mine], k[theirs]) / R(math.sqrt(hs))) for k in keys[l]])
                weights += p
                attention += [A.dot(p, column) for column in zip(*[v[theirs] for v in values[l]])]
            note(l, "weights", weights)
            note(l, "attention", attention)
            out = note(l, "attention_out", [A.dot(w, attention) for w in matrix("wo", l)])
            x = note(l, "attention_residual", [R(a + b) for a, b in zip(x, out)])
            n = note(l, "ffn_norm", rmsnorm_definition(A, x, matrix("rms_ffn", l)[0]))
            gate = note(l, "gate", [A.dot(w, n) for w in matrix("w1", l)])
            up = note(l, "up", [A.dot(w, n) for w in matrix("w3", l)])
            hidden = note(l, "swiglu", [R(R(a * R(1.0 / R(1.0 + A.exp(-a)))) * b) for a, b in zip(gate, up)])
            out = note(l, "ffn_out", [A.dot(w, hidden) for w in matrix("w2", l)])
            x = note(l, "ffn_residual", [R(a + b) for a, b in zip(x, out)])
        x = note(None, "final_norm", rmsnorm_definition(A, x, matrix("rms_final")[0]))
        yield ops, bits([A.dot(w, x) for w in matrix("classifier")])


def merges_definition(tokenizer, tokens):
    """Merge the best pair, the leftmost on a tie, until none merges: as run.c does it, in quadratic time."""
    tokens = list(tokens)
    while True:
        best, at, merged = -1e10, None, None
        for i in range(len(tokens) - 1):
            pair = tokenizer.vocab[tokens[i]] + tokenizer.vocab[tokens[i + 1]]
            if pair in tokenizer.tokens and tokenizer.scores[tokenizer.tokens[pair]] > best:
                merged = tokenizer.tokens[pair]
                best, at = tokenizer.scores[merged], i
        if at is None:
            return tokens
        tokens[at:at + 2] = [merged]


# ----------------------------------------------------------------------------
# Arithmetic

ordinary = st.floats(-8, 8, width=32)
any_float = st.floats(allow_nan=False, allow_infinity=False, width=32)
awkward = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149), 2.0**-126, 1 + 2.0**-23, 1 - 2.0**-24, 2.0**24,
                           2.0**24 + 2, 2.0**100, -(2.0**100), 2.0**-100, 3.4028234663852886e38, 1.5, 2.0**-24, 2.0**-25])
vectors = st.integers(1, 12).flatmap(lambda n: st.tuples(*[st.lists(
    st.one_of(ordinary, any_float, awkward), min_size=n, max_size=n)] * 2))


def check_dots(rows, x):
    for A, definition in (llama2.Exact, ExactDefinition), (llama2.C, CDefinition):
        if x:
            got = A.dots(A.Matrix([tuple(row) for row in rows]), A.operand(tuple(x)))
            assert bits(got) == bits([definition.dot(row, x) for row in rows]), A.name
        assert bits([A.dot(row, x) for row in rows]) == bits([definition.dot(row, x) for row in rows]), A.name


@given(st.lists(vectors, min_size=1, max_size=4))
@settings(max_examples=400)
def test_dots_are_the_definition_on_awkward_numbers(pairs):
    x = pairs[0][1]
    check_dots([(row + [0.0] * len(x))[:len(x)] for row, _ in pairs], x)


@given(vectors, st.lists(st.sampled_from([2.0**-24, 2.0**-25, 2.0**-60, -(2.0**-25), 1 + 2.0**-23, 1.0, -1.0]), max_size=4))
@settings(max_examples=400)
def test_dots_are_the_definition_where_all_but_little_cancels(pair, rest):
    # w.x - w.x + rest, and rests that make ties: sums half way between two binary32, or a little beside it
    w, x = pair
    check_dots([w + [-v for v in w] + rest], x + x + [1.0] * len(rest))


@given(st.integers(0, 2**32), st.sampled_from([1, 8, 64, 172, 288, 768]), st.floats(-20, 20), st.floats(-20, 20))
@settings(max_examples=60)
def test_dots_are_the_definition_on_vectors_as_models_have_them(seed, d, scale, x_scale):
    rng = random.Random(seed)
    rows = [llama2.R([rng.gauss(0, 10**scale) for _ in range(d)]) for _ in range(4)]
    check_dots(rows, llama2.R([rng.gauss(0, 10**x_scale) for _ in range(d)]))


def test_the_fallback_is_taken_and_right():
    # sums that lie exactly between two binary32, and 2^-80 beside: no binary64 guess can tell
    tie, beside = [1.0, 2.0**-24, 2.0**-80], [1.0, 2.0**-24, -(2.0**-80)]
    one = llama2.Exact.operand((1.0, 1.0, 1.0))
    assert llama2.Exact.dots(llama2.Exact.Matrix([tuple(tie), tuple(beside)]), one) == (1.0, 1.0)  # rounded to binary64 first
    above, below = (1.0, 2.0**-24, 2.0**-50), (1.0, 2.0**-24, -(2.0**-50))
    assert llama2.Exact.dots(llama2.Exact.Matrix([above, below]), one) == (1 + 2.0**-23, 1.0)


@given(st.lists(st.one_of(ordinary, any_float, awkward), min_size=1, max_size=6), st.data())
def test_a_matrix_grown_by_rows_or_by_columns_is_the_same_matrix(x, data):
    rows = data.draw(st.lists(st.tuples(*[any_float] * len(x)), min_size=1, max_size=5))
    for A, definition in (llama2.Exact, ExactDefinition), (llama2.C, CDefinition):
        by_rows, by_columns = A.Matrix(), A.Matrix()
        for row in rows:
            by_rows.add_row(row)
        for column in zip(*rows):
            by_columns.add_column(column)
        for matrix in by_rows, by_columns:
            assert bits(A.dots(matrix, A.operand(tuple(x)))) == bits([definition.dot(row, x) for row in rows])


@given(st.lists(st.one_of(st.floats(-110, 95, width=32), any_float, awkward), min_size=1, max_size=8))
@example([88.72283935546875, 88.722839, -103.97207, -103.97208, 89.0, -1e30, 1e30])
@settings(max_examples=150)
def test_exp_is_correctly_rounded_and_inf_where_too_large(values):
    values = [rounded(v) for v in values]
    assert bits(llama2.Exact.exps(values)) == bits([ExactDefinition.exp(max(-200.0, min(v, 200.0))) for v in values])
    assert bits(llama2.C.exps(values)) == bits([CDefinition.exp(v) for v in values])


@given(st.floats(0, 300, width=32), st.floats(0, 1, width=32))
@settings(max_examples=60)
def test_cos_sin_and_pow_are_correctly_rounded(angle, exponent):
    for A, definition in (llama2.Exact, ExactDefinition), (llama2.C, CDefinition):
        assert bits([A.cos(angle), A.sin(angle), A.pow(10000.0, exponent)]) == bits(
            [definition.cos(angle), definition.sin(angle), definition.pow(10000.0, exponent)])


@given(any_float.filter(lambda v: v and 2.0**-140 < abs(v) < 2.0**127), st.integers(-3, 3), st.integers(-1, 1).filter(bool))
def test_a_number_beside_the_middle_of_two_floats_is_certified_to_its_own_side(value, ulps, side):
    (i,) = struct.unpack("i", struct.pack("f", value))
    other = struct.unpack("f", struct.pack("i", i + 1))[0]
    middle = (value + other) / 2
    guess = middle
    for _ in range(abs(ulps)):
        guess = math.nextafter(guess, math.copysign(math.inf, ulps))
    with localcontext() as context:
        context.prec = 200
        number = Decimal(middle) + side * Decimal(abs(middle)) * Decimal(10) ** -40
    expected = max(value, other) if side > 0 else min(value, other)
    assert llama2.certified(guess, lambda: number) == expected


@given(st.integers(0, 2**32), st.floats(-8, 8), st.sampled_from([1, 2, 3, 48, 64]))
@settings(max_examples=300)
def test_rmsnorm_is_the_definition(seed, scale, d):
    rng = random.Random(seed)
    x, w = (llama2.R([rng.gauss(0, s) for _ in range(d)]) for s in (10**scale, 1.0))
    for A, definition in (llama2.Exact, ExactDefinition), (llama2.C, CDefinition):
        assert bits(llama2.rmsnorm(A, x, w)) == bits(rmsnorm_definition(definition, x, w))


def test_infinities_and_nan_are_those_of_the_definition():
    inf, nan = math.inf, math.nan
    assert llama2.Exact.dots(llama2.Exact.Matrix([(inf, inf), (1.0, 2.0)]), llama2.Exact.operand((-1.0, -1.0))) == (-inf, -3.0)
    assert llama2.Exact.dots(llama2.Exact.Matrix([(1.0, 0.0)]), llama2.Exact.operand((inf, 1.0))) == (inf,)
    for row, x in (((inf, -inf), (1.0, 1.0)), ((inf, 1.0), (0.0, 1.0)), ((nan, 1.0), (1.0, 1.0))):
        assert math.isnan(llama2.Exact.dots(llama2.Exact.Matrix([row]), llama2.Exact.operand(x))[0])
    got = llama2.Exact.exps((0.0, nan, -(2.0**-25), -inf))  # the third is a hair from a tie
    assert (got[0], got[2], got[3]) == (1.0, 1.0, 0.0) and math.isnan(got[1])


def test_rounding_is_that_of_binary32():
    assert llama2.R([0.1, 1e39, -1e39, 1 + 2.0**-24, 1 + 3 * 2.0**-24, 2.0**-150, -(2.0**-150), 2.0**-150 * 1.001]) == (
        0.10000000149011612, math.inf, -math.inf, 1.0, 1 + 2.0**-22, 0.0, 0.0, 2.0**-149)
    assert math.copysign(1, llama2.r(-(2.0**-150))) == -1
    assert list(llama2.running_sums([1.0, 2.0**-24, 2.0**-24])) == [1.0, 1.0, 1.0]


# ----------------------------------------------------------------------------
# Transformer


def run_forward(path, arithmetic, tokens, workers=1):
    with llama2.Transformer(path, arithmetic, workers) as transformer:
        for pos, token in enumerate(tokens):
            ops = []
            logits = transformer.forward(token, pos, lambda layer, op, values: ops.append((layer, op, bits(values))))
            yield ops, logits.tobytes()


@pytest.mark.parametrize("arithmetic", ["exact", "c"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_operation_equals_the_definition(files, shape, arithmetic):
    tokens = [1, 7, 279, 7, 30, 4]
    checkpoint = llama2.Checkpoint(files[shape])
    definition = forward_definition({"exact": ExactDefinition, "c": CDefinition}[arithmetic], checkpoint, tokens)
    for pos, (got, expected) in enumerate(zip(run_forward(files[shape], arithmetic, tokens), definition)):
        for one, other in zip(got[0], expected[0]):
            assert one == other, (pos, one[:2], other[:2])
        assert len(got[0]) == len(expected[0]) == 2 + 14 * 2
        assert got[1] == expected[1], f"logits of position {pos}"


@pytest.mark.parametrize("arithmetic", ["exact", "c"])
@pytest.mark.parametrize("workers", [2, 3, 7])
@pytest.mark.parametrize("shape", ["grouped", "multi-query"])
def test_any_number_of_workers_gives_the_same_operations(files, shape, workers, arithmetic):
    tokens = [1, 7, 279, 30]
    alone, shared = (list(run_forward(files[shape], arithmetic, tokens, n)) for n in (1, workers))
    assert alone == shared


@pytest.mark.parametrize("workers", [1, 2])
def test_positions_together_are_positions_one_by_one(files, workers):
    tokens = [1, 7, 279, 7, 30, 4, 5]
    alone = list(run_forward(files["grouped"], "exact", tokens))
    with llama2.Transformer(files["grouped"], workers=workers) as transformer:
        for first, last in (0, 3), (3, 7):
            ops = [[] for _ in range(first, last)]
            logits = transformer.batch(tokens[first:last], first, [
                lambda layer, op, values, seen=seen: seen.append((layer, op, bits(values))) for seen in ops], skip=1)
            assert [row.tobytes() for row in logits] == [row for _, row in alone[first + 1:last]]
            assert ops == [seen for seen, _ in alone[first:last]]


@pytest.mark.parametrize("arithmetic", ["exact", "c"])
def test_weights_read_from_the_map_give_the_same_operations(files, monkeypatch, arithmetic):
    tokens = [1, 7, 279, 30, 5, 6]
    for shape in "grouped", "version 1":
        unpacked = list(run_forward(files[shape], arithmetic, tokens))
        with monkeypatch.context() as patch:
            patch.setattr(llama2, "free_memory", lambda: 0)
            for workers in 1, 2:
                assert list(run_forward(files[shape], arithmetic, tokens, workers)) == unpacked
            with llama2.Transformer(files[shape], arithmetic) as transformer:
                assert not transformer.shard.unpacked
                rows = [logits.tobytes() for first in (0, 3) for logits in transformer.batch(tokens[first:first + 3], first)]
                assert rows == [row for _, row in unpacked]


def test_a_model_larger_than_the_memory_is_read_from_the_map(tmp_path):
    import resource
    path, limit = tmp_path / "large.bin", 300 * 2**20
    dim, layers, hidden = 512, 4, 2048
    weights = 280 * dim + 2 * layers * dim + layers * (4 * dim * dim + 3 * dim * hidden) + dim
    row = numbers(random.Random(1), 1 << 16, 0.05)
    with open(path, "wb") as file:
        file.write(struct.pack("<7i", dim, hidden, layers, 8, 8, 280, 64))
        file.write((row * (weights // (1 << 16) + 1))[:4 * weights] + bytes(4 * 64 * dim // 8))
    assert weights * 40 > 2 * limit > 6 * os.path.getsize(path)
    code = (f"import llama2, resource; t = llama2.Transformer({str(path)!r});"
            "print([hash(t.forward(1, p).tobytes()) for p in (0, 1)]);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
    results = [subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, preexec_fn=limited,
                              env={**os.environ, "PYTHONHASHSEED": "1"}).stdout.split(b"\n")
               for limited in (lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)), None)]
    assert results[0][0] == results[1][0] != b""
    assert int(results[0][1]) * 1024 < 100 * 2**20 < 6 * int(results[1][1]) * 1024


def test_both_versions_of_a_checkpoint_give_the_same_logits(tmp_path):
    for shared in True, False:
        paths = [make_checkpoint(tmp_path / f"v{version}", version=version, shared=shared) for version in (0, 1)]
        one, other = ([logits for _, logits in run_forward(path, "exact", [1, 5, 9])] for path in paths)
        assert one == other


def test_positions_come_in_order_or_begin_anew(files):
    with llama2.Transformer(files["grouped"]) as transformer:
        first = [transformer.forward(token, pos) for pos, token in enumerate([1, 5, 9])]
        for pos in 1, 2, 4, -1:
            with pytest.raises(ValueError, match="position"):
                transformer.forward(9, pos)
        assert [transformer.forward(token, pos) for pos, token in enumerate([1, 5])] == first[:2]
        transformer.reset()
        with pytest.raises(ValueError, match="position"):
            transformer.forward(9, 2)
        assert transformer.forward(1, 0) == first[0]
        for token in -1, 280:
            with pytest.raises(ValueError, match="vocabulary of 280"):
                transformer.forward(token, 1)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("arithmetic", ["exact", "c"])
def test_a_step_that_was_interrupted_is_not_gone_on_from(files, arithmetic, workers):
    def interrupt(layer, op, values):
        if (layer, op) == (1, "gate"):
            raise KeyboardInterrupt

    with llama2.Transformer(files["grouped"], arithmetic, workers) as transformer:
        first = [transformer.forward(token, pos) for pos, token in enumerate([1, 5, 9])]
        with pytest.raises(KeyboardInterrupt):
            transformer.forward(7, 3, interrupt)
        with pytest.raises(ValueError, match="position"):
            transformer.forward(7, 3)
        for connection in [connection for _, connection in transformer.processes]:
            connection.send((transformer.calls, "matmul", ("wo", 0, [[0.0] * 16])))  # an answer that nobody waits for any more
        assert [transformer.forward(token, pos) for pos, token in enumerate([1, 5, 9])] == first


def test_the_context_ends(files):
    with llama2.Transformer(files["multi-query"]) as transformer:
        for pos in range(32):
            transformer.forward(1, pos)
        with pytest.raises(ValueError, match="32"):
            transformer.forward(1, 32)


def test_finite_weights_whose_activations_overflow_are_an_error(tmp_path):
    path = make_checkpoint(tmp_path / "big", scale=1e15)
    with llama2.Transformer(path) as transformer, pytest.raises(ValueError, match="not finite"):
        for pos in range(4):
            transformer.forward(pos, pos)


# ----------------------------------------------------------------------------
# Checkpoints that are none


def edited(path, target, offset, form, *values):
    with open(path, "rb") as file:
        data = bytearray(file.read())
    struct.pack_into("<" + form, data, offset, *values)
    with open(target, "wb") as file:
        file.write(data)
    return str(target)


@pytest.mark.parametrize("field, value, message", [
    (0, 0, "dim is 0"), (0, -16, "dim is -16"), (0, 2**24, "dim is 16777216"), (0, 0x46554747, "dim is 1179993927"),
    (0, 18, "dim is 18, must be a multiple of n_heads, 4"), (0, 20, "dim / n_heads is 5, must be even"),
    (1, 0, "hidden_dim is 0"), (2, -1, "n_layers is -1"), (3, 2**31 - 1, "n_heads is 2147483647"), (4, 0, "n_kv_heads is 0"),
    (4, 3, "n_heads is 4, must be a multiple of n_kv_heads, 3"), (5, 0, "vocab_size is 0"), (5, -(2**31), "vocab_size is"),
    (6, 0, "seq_len is 0"), (6, 33, "size is"), (1, 25, "size is"), (2, 2**24 - 1, "size is"), (5, -280, "size is")])
def test_a_header_that_cannot_be_is_refused(files, tmp_path, capfdbinary, field, value, message):
    for shape, offset in ("multi-head", 0), ("version 1, unshared", 8):
        if (shape, value) == ("version 1, unshared", -280):
            message = "vocab_size is -280"
        if (shape, value) == ("version 1, unshared", 33):
            continue  # it has no tables that depend on seq_len
        path = edited(files[shape], tmp_path / "bad.bin", offset + 4 * field, "i", value)
        assert failure(capfdbinary, path, "-s", 1).startswith(f"{path}: {message}")


def test_versions_and_flags_that_cannot_be_are_refused(files, tmp_path, capfdbinary):
    for offset, form, value, message in [
            (4, "i", 2, "version is 2, must be 0 or 1: int8 checkpoints are not supported"),
            (4, "i", 3, "version is 3, must be 0 or 1"), (36, "B", 2, "shared_classifier is 2, must be 0 or 1"),
            (36, "B", 0, "size is"), (0, "I", 0x616B3433, "dim is 1634415667")]:
        path = edited(files["version 1"], tmp_path / "bad.bin", offset, form, value)
        assert failure(capfdbinary, path, "-s", 1).startswith(f"{path}: {message}")


def test_a_file_of_the_wrong_size_is_refused_with_both_sizes(files, tmp_path, capfdbinary):
    for shape in "multi-head", "version 1":
        with open(files[shape], "rb") as file:
            data = file.read()
        for cut in 0, 1, 27, 28, 100, 255, 256, 300, len(data) - 4, len(data) - 1, len(data) + 1, len(data) + 4:
            path = tmp_path / "cut.bin"
            path.write_bytes((data + bytes(8))[:cut])
            message = failure(capfdbinary, path, "-s", 1)
            assert message.startswith(f"{path}: ") and str(cut) in message
            if cut >= 256:
                assert str(len(data)) in message


def test_files_that_cannot_be_read_are_named(files, tmp_path, capfdbinary):
    assert failure(capfdbinary, tmp_path / "none") == f"{tmp_path / 'none'}: No such file or directory"
    assert failure(capfdbinary, tmp_path, "-s", 1) == f"{tmp_path}: Is a directory"
    assert failure(capfdbinary, files["grouped"], "-s", 1, "-z", tmp_path) == f"{tmp_path}: Is a directory"
    assert failure(capfdbinary, files["grouped"], "-s", 1, "-z", tmp_path / "none").startswith(f"{tmp_path / 'none'}: No such")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("arithmetic", ["exact", "c"])
def test_a_weight_that_is_not_finite_is_refused_with_its_matrix_named(files, tmp_path, value, arithmetic):
    checkpoint = llama2.Checkpoint(files["grouped"])
    for name, (offset, rows, columns) in checkpoint.tensors.items():
        if name == "rope_tables":
            continue
        path = edited(files["grouped"], tmp_path / "bad.bin", offset + 4 * (rows * columns - 1), "f", value)
        with pytest.raises(ValueError, match=f"bad.bin: {name} "):
            with llama2.Transformer(path, arithmetic) as transformer:
                transformer.forward(279, 0)


# ----------------------------------------------------------------------------
# Tokenizer


@pytest.fixture(scope="session")
def tokenizer(files):
    return llama2.Tokenizer(files["tokenizer"], 280)


@given(st.text(st.sampled_from("ab cdé😀\n~"), max_size=40) | st.text(max_size=12))
@settings(max_examples=400)
def test_encoding_is_the_quadratic_definition(tokenizer, text):
    assume(not any("\ud800" <= c <= "\udfff" for c in text))
    start = [259] if text else []
    for character in text:
        piece = character.encode()
        start += [tokenizer.tokens[piece]] if piece in tokenizer.tokens else [byte + 3 for byte in piece]
    assert tokenizer.encode(text) == [1] + merges_definition(tokenizer, start)
    assert tokenizer.encode(text, bos=False) == merges_definition(tokenizer, start)


@given(st.lists(st.sampled_from([0.0, -1.0, -2.0, 1.0, -1e10, math.nan, -math.inf]), min_size=20, max_size=20),
       st.text(st.sampled_from("abcd "), max_size=30))
@settings(max_examples=200)
def test_encoding_is_the_definition_with_tied_and_odd_scores(tmp_path_factory, scores, text):
    path = make_tokenizer(tmp_path_factory.getbasetemp() / "scores.bin", scores=[0.0] * 259 + scores)
    tokenizer = llama2.Tokenizer(path, 279)
    start = [tokenizer.tokens[c.encode()] for c in (" " + text if text else "")]
    assert tokenizer.encode(text, bos=False) == merges_definition(tokenizer, start)


def test_encoding_takes_n_log_n_time(tokenizer):
    text = "ab a cd b" * 12_000
    begin = time.process_time()
    tokens = tokenizer.encode(text)
    assert time.process_time() - begin < 5
    assert b"".join(map(tokenizer.vocab.__getitem__, tokens[1:])) == b" " + text.encode()


@given(st.text(max_size=60))
def test_what_is_encoded_is_decoded(tokenizer, text):
    assume(not any("\ud800" <= c <= "\udfff" for c in text))
    tokens = tokenizer.encode(text)
    assert b"".join(tokenizer.decode(a, b) for a, b in zip(tokens, tokens[1:])) == text.encode()


def test_bytes_that_are_not_utf_8_are_encoded_as_bytes(tokenizer):
    assert tokenizer.encode("\udcff\udc80a", bos=False) == [259, 0xFF + 3, 0x80 + 3, 260]
    with pytest.raises(ValueError):
        tokenizer.encode("\ud800")


def test_decoding(tokenizer):
    assert tokenizer.decode(1, 263) == b"a" and tokenizer.decode(5, 263) == b" a"
    assert tokenizer.decode(1, 259) == b"" and tokenizer.decode(5, 3) == b"\0" and tokenizer.decode(1, 3 + 0xE9) == b"\xe9"


def test_the_first_of_equal_tokens_counts(tmp_path):
    path = make_tokenizer(tmp_path / "t", PIECES + [b" a"], SCORES + [5.0])
    assert llama2.Tokenizer(path, 281).encode("a", bos=False) == [263]


def test_a_vocabulary_without_bytes_says_so(tmp_path):
    tokenizer = llama2.Tokenizer(make_tokenizer(tmp_path / "t"), 100)
    with pytest.raises(ValueError, match="vocabulary of 100 has no token for every byte"):
        tokenizer.encode("~")


def test_tokenizers_that_are_none_are_refused(files, tmp_path, capfdbinary):
    with open(files["tokenizer"], "rb") as file:
        data = file.read()
    for cut in [0, 3, 4, 11, 12, 13, len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:cut])
        assert re.match(r".*cut: (ends within token \d+; the checkpoint has 280|token \d+ has length \d+, but \d+ bytes are left)$",
                        failure(capfdbinary, files["grouped"], "-s", 1, "-z", tmp_path / "cut"))
    for length in -1, 2**31 - 1, -(2**31):
        path = edited(files["tokenizer"], tmp_path / "bad", 8, "i", length)
        assert failure(capfdbinary, files["grouped"], "-s", 1, "-z", path).startswith(f"{path}: token 0 has length {length}")


# ----------------------------------------------------------------------------
# Sampler


@pytest.mark.parametrize("rng", COINS)
def test_the_first_coins(rng):
    for seed, coins in COINS[rng].items():
        sampler = llama2.Sampler(seed=seed, rng=rng)
        assert [sampler.coin() * 2**24 for _ in coins] == coins


@given(st.integers(1, 2**64 - 1))
def test_coins_are_in_range_and_states_stay_64_bits(seed):
    for rng in COINS:
        sampler = llama2.Sampler(seed=seed, rng=rng)
        for _ in range(4):
            assert 0 <= sampler.coin() < 1 and 0 <= sampler.state < 2**64


def sample_definition(A, logits, temperature, p, coin):
    """run.c's sample: the plain way or by top-p, with every candidate sorted."""
    R = rounded
    if R(temperature) == 0:
        return logits.index(max(logits))
    probabilities = softmax_definition(A, [R(v / R(temperature)) for v in logits])
    n = len(logits)
    if R(p) <= 0 or R(p) >= 1:
        cdf = 0.0
        for i, probability in enumerate(probabilities):
            cdf = R(cdf + probability)
            if coin < cdf:
                return i
        return n - 1
    cutoff = R(R(1.0 - R(p)) / R(n - 1))
    top = sorted((-v, i) for i, v in enumerate(probabilities) if v >= cutoff) or [(0, logits.index(max(logits)))]
    cumulative, last = 0.0, len(top) - 1
    for i, (v, _) in enumerate(top):
        cumulative = R(cumulative - v)
        if cumulative > R(p):
            last = i
            break
    target, cdf = R(coin * cumulative), 0.0
    for v, i in top[:last + 1]:
        cdf = R(cdf - v)
        if target < cdf:
            return i
    return top[last][1]


@given(st.lists(st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-20, 20, width=32), min_size=2, max_size=30),
       st.sampled_from([0.0, 1e-50, 0.1, 1.0, 3.5, 1e30]), st.sampled_from([0.0, 1e-9, 0.5, 0.9, 0.999, 1.0]) | st.floats(0, 1),
       st.integers(1, 2**64 - 1), st.sampled_from(["exact", "c"]))
@settings(max_examples=400)
def test_sampling_is_the_definition(logits, temperature, p, seed, arithmetic):
    sampler, coins = (llama2.Sampler(temperature, p, seed, arithmetic=arithmetic) for _ in range(2))
    A = {"exact": ExactDefinition, "c": CDefinition}[arithmetic]
    for _ in range(3):
        coin = coins.coin() if rounded(temperature) else 0
        assert sampler.sample(logits) == sample_definition(A, logits, temperature, p, coin)


def test_a_coin_on_the_border_of_two_tokens_takes_the_second(monkeypatch):
    rng, on_the_border = random.Random(1), 0
    for _ in range(50):
        logits = [2.0 + rng.random(), rng.random(), -3.0]
        sampler = llama2.Sampler(1.0, 0.95)
        first, second, _ = softmax_definition(ExactDefinition, logits)
        total = rounded(first + second)
        for k in range(-2, 3):  # coins whose product with the sum is, once rounded, the first probability or beside it
            coin = (round(first / total * 2**24) + k) / 2**24
            on_the_border += rounded(coin * total) == first > coin * total
            monkeypatch.setattr(sampler, "coin", lambda: coin)
            assert sampler.sample(logits) == sample_definition(ExactDefinition, logits, 1.0, 0.95, coin)
    assert on_the_border > 5


def test_sampling_follows_the_probabilities():
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    sampler, counts = llama2.Sampler(1.0, 0.0, 42), [0] * 4
    for _ in range(4000):
        counts[sampler.sample(logits)] += 1
    assert counts[0] > counts[1] > counts[2] > counts[3]
    assert abs(counts[0] - 2000) < 150 and abs(counts[3] - 200) < 70
    sampler = llama2.Sampler(1.0, 0.7, 42)
    assert {sampler.sample(logits) for _ in range(1000)} == {0, 1}


@pytest.mark.parametrize("options", [{"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf},
                                     {"p_value": -0.1}, {"p_value": 1.1}, {"p_value": math.nan}, {"seed": 0}, {"seed": 2**64}])
def test_samplers_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is .*must be"):
        llama2.Sampler(**options)


# ----------------------------------------------------------------------------
# Generation and chat


class Scripted:
    """A model whose likeliest next token is the script's."""

    def __init__(self, script, seq_len=64):
        self.script, self.calls = script, []
        self.config = llama2.Config(0, 0, 0, 0, 0, 280, seq_len)
        self.checkpoint = self
        self.path = "scripted.bin"

    def batch(self, tokens, pos, observers=(), skip=0):
        self.calls.append((list(tokens), pos, skip))
        rows = []
        for i in range(pos + skip, pos + len(tokens)):
            rows.append(llama2.array("f", bytes(4 * 280)))
            rows[-1][self.script[i]] = 1.0
        return rows

    def forward(self, token, pos, observe=None):
        return self.batch([token], pos)[0]


def tell(model, tokenizer, tokens, steps, **more):
    return [(step.pos, step.token, step.next, step.piece) for step in llama2.generate(
        model, tokenizer, llama2.Sampler(0.0), tokens, steps, **more)]


def test_the_prompt_is_forced_and_then_the_model_speaks_until_bos(tokenizer):
    model = Scripted([9, 9, 260, 261, 1, 260])
    assert tell(model, tokenizer, [1, 263, 261], 64) == [
        (0, 1, 263, b"a"), (1, 263, 261, b"b"), (2, 261, 260, b"a"), (3, 260, 261, b"b"), (4, 261, 1, b"\n<s>\n")]


def test_steps_end_a_story_and_a_prompt(tokenizer):
    assert len(tell(Scripted([260] * 64), tokenizer, [1, 263, 261], 5)) == 5
    assert [step[2] for step in tell(Scripted([9] * 64), tokenizer, [1, 263, 261, 260], 2)] == [263, 261]


def test_the_classifier_is_skipped_where_the_prompt_says_what_follows(tokenizer):
    model = Scripted([260] * 64)
    tell(model, tokenizer, [1] + [261] * 20, 24)
    assert sum(len(tokens) - skip for tokens, _, skip in model.calls) == 24 - 20
    assert sum(len(tokens) for tokens, _, _ in model.calls) == 24
    model = Scripted([260] * 64)
    tell(model, tokenizer, [1] + [261] * 20, 24, logits=True)
    assert sum(len(tokens) - skip for tokens, _, skip in model.calls) == 24


@given(st.lists(st.integers(259, 262), min_size=20, max_size=20), st.lists(st.integers(259, 262), max_size=25), st.integers(1, 20))
def test_tokens_foreseen_change_nothing_as_long_as_they_are_right(tokenizer, script, foreseen, steps):
    plain = tell(Scripted(script), tokenizer, [1, 260], steps)
    right = [step[1] for step in plain][2:]
    n = next((i for i, (a, b) in enumerate(zip(right, foreseen)) if a != b), 99)
    assert tell(Scripted(script), tokenizer, [1, 260], steps, foreseen=foreseen) == plain[:n + 2]
    assert tell(Scripted(script), tokenizer, [1, 260], steps, foreseen=right) == plain


def test_foreseeing_a_model_of_random_weights_changes_no_logits(files, tokenizer):
    with llama2.Transformer(files["grouped"]) as model:
        def run(foreseen):
            events = []
            steps = list(llama2.generate(model, tokenizer, llama2.Sampler(1.0, 0.9, 3), [1, 260], 24,
                                         lambda *event: events.append((*event[:2], bits(event[2]))), True, foreseen))
            return steps, events

        plain = run(())
        tokens = [step.token for step in plain[0][2:]]
        assert run(tokens) == plain
        assert run(tokens[:7]) == plain
        wrong = run(tokens[:7] + [5] * 9)
        assert wrong[0] == plain[0][:9] and wrong[1] == plain[1][:9 * 30]


def test_a_prompt_beyond_the_context_is_refused(files, capfdbinary):
    message = failure(capfdbinary, files["grouped"], "-z", files["tokenizer"], "-s", 1, "-i", "~" * 40)
    assert message == f"the prompt has 42 tokens, but the context of {files['grouped']} is 32"


def converse(script, lines, steps=64, tokenizer=None, **more):
    out, questions = [], []

    def read(question):
        questions.append(question)
        if not lines:
            raise EOFError
        return lines.pop(0)

    model = Scripted(script)
    with contextlib.suppress(EOFError):
        llama2.chat(model, tokenizer, llama2.Sampler(0.0), steps, read, out.append, **more)
    return b"".join(out), questions, [token for call in model.calls for token in call[0]]


def test_chat_takes_turns_as_run_c_does(tokenizer):
    turns = [tokenizer.encode("[INST] <<SYS>>\nbe\n<</SYS>>\n\na [/INST]"), tokenizer.encode("[INST] b [/INST]")]
    script = [9, 2] + [9] * (len(turns[0]) - 3) + [260, 261, 2, 261] + [9] * (len(turns[1]) - 1) + [265, 2, 260]
    out, questions, tokens = converse(script, ["be", "a", "b"], 250, tokenizer)
    assert questions == ["Enter system prompt (optional): ", "User: ", "User: ", "User: "]
    # run.c prints what the model says after its EOS, too, and a new line for an EOS where it reads a turn
    assert out == b"Assistant: \nab\nbAssistant: aba\na"
    assert tokens[:len(turns[0])] == turns[0] and tokens[len(turns[0]):len(turns[0]) + 3] == [260, 261, 2]


def test_chat_without_a_system_prompt_has_no_system_block(tokenizer):
    out, questions, tokens = converse([260] * 64, [], 30, tokenizer, user="a", system="")
    assert questions == [] and tokens[:len(tokenizer.encode("[INST] a [/INST]"))] == tokenizer.encode("[INST] a [/INST]")
    assert out.startswith(b"Assistant: a") and out.endswith(b"\n")


# ----------------------------------------------------------------------------
# Command line


@pytest.mark.parametrize("args, message", [
    (["-t", "-0.5"], "temperature is -0.5, must be 0 or more, and finite"), (["-t", "nan"], "temperature is nan"),
    (["-t", "inf"], "temperature is inf"), (["-t", "warm"], "argument -t/--temperature: invalid float value: 'warm'"),
    (["-p", "1.5"], "p_value is 1.5, must be 0 to 1"), (["-p", "-1"], "p_value is -1.0"), (["-p", "nan"], "p_value is nan"),
    (["-s", "-1"], "seed is -1, must be 1 to 2**64 - 1"), (["-s", str(2**64)], f"seed is {2**64}"), (["-s", "x"], "argument -s"),
    (["-s", "1.5"], "argument -s/--seed: invalid int value: '1.5'"), (["-n", "-1"], "argument -n/--steps: -1, must be 0 or more"),
    (["-n", "x"], "argument -n/--steps"), (["-m", "sing"], "argument -m/--mode: invalid choice: 'sing'"),
    (["--like", "gpt"], "argument --like"), (["x\n\x1b[31my", "z"], "unrecognized arguments: x\\n\\x1b[31my z"),
    (["--workers", "0"], "argument --workers: 0"), (["--nonsense"], "unrecognized"),
    (["--trace-level", "op"], "--trace-level needs --trace"), (["--verify-iteration", "3"], "--verify-iteration needs --verify"),
    (["--root", "00" * 32], "--root needs --verify"), (["--tolerance", "1"], "--tolerance needs --compare"),
    (["--verify", "x", "--root", "00"], "argument --root: not a root of 64 hexadecimal digits: 00"),
    *[([f"--{option}", "x", "--verify", "y"], f"--{option} and --verify: one at a time")
      for option in ("trace", "logits", "compare")],
    *[([f"--{option}", "x", "--explain-text", "y"], f"--{option} and --explain-text: one at a time")
      for option in ("verify", "trace", "logits", "compare")],
    (["-y", "x"], "--system_prompt belongs to mode chat"),
    (["--compare", "x", "--tolerance", "nan"], "argument --tolerance: nan"),
    (["--compare", "x", "--tolerance", "inf"], "argument --tolerance: inf, must be 0 or more, and finite"),
    (["--trace", "x", "--like", "llama2-rs", "--trace-level", "op"], "argument --trace-level: op, but llama2-rs's"),
    *[(["-m", "chat", option, "x"], f"{option} belongs to mode generate, not to chat")
      for option in ("--trace", "--verify", "--logits", "--compare")]])
def test_bad_options_get_one_line(files, capfdbinary, args, message):
    assert failure(capfdbinary, files["grouped"], "-z", files["tokenizer"], *args).startswith(message)


def test_the_clock_gives_the_seed_and_standard_error_says_which(files, tmp_path, capfdbinary):
    args = files["grouped"], "-z", files["tokenizer"], "-n", 12
    code, out, err = command(capfdbinary, *args)
    seed = re.match(r"seed: (\d+)\n", err)[1]
    assert code == 0 and command(capfdbinary, *args, "-s", seed)[1] == out
    assert command(capfdbinary, *args, "-s", 0)[2].startswith("seed: ")
    assert "seed" not in command(capfdbinary, *args, "-t", 0)[2]  # unused, but a trace would have it
    assert command(capfdbinary, *args, "-t", 0, "--trace", tmp_path / "t")[2].startswith("seed: ")


def test_steps_0_and_too_many_are_the_context(files, capfdbinary):
    args = files["grouped"], "-z", files["tokenizer"], "-t", 0
    outs = {command(capfdbinary, *args, "-n", n)[1] for n in (0, 32, 33, 10**9)}
    assert len(outs) == 1


def test_standard_output_is_the_text_alone_and_rate_and_root_go_to_standard_error(files, tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, files["grouped"], "-z", files["tokenizer"], "-s", 1, "-n", 9, "-i", "ab a",
                             "--trace", tmp_path / "t")
    assert code == 0 and out.startswith(b"ab a") and out.endswith(b"\n")
    assert re.fullmatch(r"root: [0-9a-f]{64}\nachieved tok/s: [0-9.]+\n", err)


def written(pieces, like=None):
    out = io.BytesIO()
    write = llama2.printer(out, like)
    for piece in pieces:
        write(piece)
    return out.getvalue()


def test_characters_come_out_whole_and_control_bytes_do_not():
    emoji = "😀".encode()
    assert written([emoji[i:i + 1] for i in range(4)]) == emoji
    out = io.BytesIO()
    write = llama2.printer(out, None)
    for i in range(3):
        write(emoji[i:i + 1])
        assert out.getvalue() == b""
    assert written([b"a", emoji[:2], b"b"]) == "a\ufffdb".encode()
    for like in None, "llama2.c", "llama2-rs":
        shown = written([b"\x07", b"\x1b[31mred", b"\t\n", "\x85\x9b1m".encode(), b"\x7f", bytes(range(32))], like)
        assert shown.startswith(b"[31mred\t\n1m") and not set(shown) & (set(range(9)) | set(range(14, 32)) | {127})
    assert written([emoji[i:i + 1] for i in range(4)] + [b"ok"], "llama2.c") == b"ok"  # run.c drops lone bytes it cannot print
    assert written([emoji[:2], emoji[2:]], "llama2-rs") == "\ufffd\ufffd\ufffd".encode()


def test_a_prompt_that_is_not_utf_8_works(files):
    done = process(files["grouped"], "-z", files["tokenizer"], "-t", 0, "-n", 4, "-i", "a\udcff\udcc3b")
    assert done.returncode == 0 and done.stdout.startswith("a\ufffd\ufffdb".encode())


def test_an_empty_prompt_is_no_prompt(files, capfdbinary):
    args = files["grouped"], "-z", files["tokenizer"], "-t", 0, "-n", 8
    assert command(capfdbinary, *args, "-i", "")[:2] == command(capfdbinary, *args)[:2]


def test_a_closed_pipe_ends_the_run_quietly(files):
    line = f"'{sys.executable}' '{HERE}/llama2.py' -t 0 | head -c 9"
    done = subprocess.run(["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], capture_output=True)
    assert (done.returncode, len(done.stdout), done.stderr) == (141, 9, b"")


def test_closed_standard_output_and_odd_encodings_do_not_matter(files):
    line = f"'{sys.executable}' '{HERE}/llama2.py' -t 0 -n 4 >&-"
    assert subprocess.run(["bash", "-c", line], capture_output=True).returncode == 0
    done = process("-t", 0, "-n", 12, "-i", "é😀", env={**os.environ, "PYTHONIOENCODING": "ascii", "LANG": "C"})
    assert done.returncode == 0 and done.stdout.startswith("é😀".encode())


@pytest.mark.parametrize("program, message", [("llama2.py", b"is not this project's"), ("trace.py", b"merkle.py is to be beside")])
def test_a_python_that_hides_the_folder_says_why_nothing_works(program, message):
    done = subprocess.run([sys.executable, "-I", os.path.join(HERE, program)], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert done.stderr.startswith(program.encode() + b": error: ") and message in done.stderr


def test_a_full_standard_output_is_an_error_of_one_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, os.path.join(HERE, "llama2.py"), "-s", "1", "-n", "3"], stdout=full,
                              stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, b"llama2.py: error: No space left on device\n")


def test_chat_reads_turns_from_standard_input(files):
    done = subprocess.run([sys.executable, os.path.join(HERE, "llama2.py"), files["grouped"], "-z", files["tokenizer"], "-t", "0",
                           "-m", "chat", "-n", "30"], input=b"\nhello\n", capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"Enter system prompt (optional): User: Assistant: ")
    done = subprocess.run([sys.executable, os.path.join(HERE, "llama2.py"), files["grouped"], "-z", files["tokenizer"], "-t", "0",
                           "-m", "chat", "-n", "30"], input=b"\n\xff\xc3\n", capture_output=True,
                          env={**os.environ, "LANG": "C"})
    assert done.returncode == 0 and b"Assistant: " in done.stdout
    done = process(files["grouped"], "-z", files["tokenizer"], "-t", 0, "-m", "chat")
    assert (done.returncode, done.stdout) == (0, b"Enter system prompt (optional): \n")


# ----------------------------------------------------------------------------
# Traces: writing and verifying

OPTIONS = ["-s", "7", "-n", "14", "-i", "ab 😀a"]


@pytest.fixture(scope="session")
def traces(files, tmp_path_factory):
    """Paths of traces of the same run: of each level, and of llama2-rs's kind."""
    folder = tmp_path_factory.mktemp("traces")
    paths = {}
    for name, more in {"step": [], "layer": ["--trace-level", "layer"], "op": ["--trace-level", "op"],
                       "c": ["--like", "llama2.c"], "rust": ["--like", "llama2-rs"]}.items():
        paths[name] = str(folder / f"{name}.trace")
        with contextlib.redirect_stderr(io.StringIO()):
            assert llama2.main([files["grouped"], "-z", files["tokenizer"], *OPTIONS, *more, "--trace", paths[name]]) == 0
    return paths


@pytest.fixture
def model(files):
    return files["grouped"], "-z", files["tokenizer"]


def read_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def read_lines(path):
    return read_bytes(path).splitlines()


def root_line(lines):
    tree = merkle.MerkleTree()
    for line in lines:
        tree.append(merkle.leaf_hash(line))
    return json.dumps({"size": len(lines), "root": tree.root().hex()}, separators=(",", ":")).encode()


def forge(path, lines, root=True):
    """Write a trace of these lines, with the root recomputed."""
    with open(path, "wb") as file:
        file.write(b"".join(line + b"\n" for line in [*lines, *[root_line(lines)] * root]))
    return str(path)


def edit(line, **fields):
    return trace.encode({**json.loads(line), **fields})


@pytest.mark.parametrize("level", ["step", "layer", "op"])
def test_a_trace_is_the_log_that_the_definition_gives(files, traces, tokenizer, level):
    lines = read_lines(traces[level])
    with open(files["grouped"], "rb") as m, open(files["tokenizer"], "rb") as t:
        hashes = [hashlib.sha256(file.read()).hexdigest() for file in (m, t)]
    events = [json.loads(line) for line in lines]
    tokens = tokenizer.encode("ab 😀a")
    assert events[0] == {"format": "llama2.py trace 1", "model": hashes[0], "tokenizer": hashes[1], "arithmetic": "exact",
                         "rng": "xorshift64*", "temperature": 1.0, "p_value": 0.9, "seed": 7, "steps": 14, "level": level,
                         "prompt": "ab 😀a", "tokens": tokens}
    steps = [event for event in events if "next" in event]
    inputs = [step["token"] for step in steps]
    sampler = llama2.Sampler(1.0, 0.9, 7)
    expected = [lines[0]]
    for pos, (ops, logits) in enumerate(forward_definition(ExactDefinition, llama2.Checkpoint(files["grouped"]), inputs)):
        for layer, op, values in ops:
            if level == "op" or level == "layer" and op == "ffn_residual":
                place = {} if layer is None else {"layer": layer}
                expected.append(trace.encode({"pos": pos, **place, "op": op, "sha256": hashlib.sha256(values).hexdigest()}))
        row = list(struct.unpack(f"<{len(logits) // 4}f", logits))
        following = tokens[pos + 1] if pos + 1 < len(tokens) else sample_definition(ExactDefinition, row, 1.0, 0.9, sampler.coin())
        text = tokenizer.decode(inputs[pos], following).decode(errors="backslashreplace")
        expected.append(trace.encode({"pos": pos, "token": inputs[pos], "next": following, "text": text,
                                      "logits": hashlib.sha256(logits).hexdigest()}))
    assert lines == expected + [root_line(expected)]
    assert '"text":"\\ud83d\\ude00"' in b"".join(lines).decode()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["step", "layer", "op", "c", "rust"])
def test_a_trace_verifies(traces, model, capfdbinary, kind, workers):
    root = trace.read(traces[kind]).root
    options = OPTIONS + ["--like", "llama2-rs"] if kind == "rust" else []
    code, out, err = command(capfdbinary, *model, "--verify", traces[kind], *options, "--workers", workers)
    assert (code, err) == (0, "")
    assert out.decode() == (f"verified: 14 steps computed again and found equal\nroot: {root}, only recomputed from the file "
                            "itself; compare it with the one that was published\n")
    code, out, err = command(capfdbinary, *model, "--verify", traces[kind], "--root", root, "--verify-iteration", 5, *options)
    index = {"step": 6, "layer": 18, "op": 186, "c": 6, "rust": 5}[kind]
    size = {"step": 15, "layer": 43, "op": 435, "c": 15, "rust": 14}[kind]
    assert (code, err) == (0, "")
    assert out.decode() == (f"verified: 6 steps computed again and found equal\nstep 5 is leaf {index} of {size} under the root\n"
                            f"root: {root}, as published\n")


def test_the_same_run_writes_the_same_trace_wherever_it_is(files, traces, model, tmp_path):
    for n in 2, 3:
        with contextlib.redirect_stderr(io.StringIO()):
            llama2.main([*model, *OPTIONS, "--trace-level", "op", "--trace", str(tmp_path / "t"), "--workers", str(n)])
        assert read_lines(tmp_path / "t") == read_lines(traces["op"])


def test_another_root_is_noticed_before_anything_is_computed(traces, model, capfdbinary, monkeypatch):
    monkeypatch.setattr(llama2, "Transformer", None)
    for kind in "step", "rust":
        message = failure(capfdbinary, *model, "--verify", traces[kind], "--root", "00" * 32, "-s", 7, code=1)
        assert message == (f"verification failed: {traces[kind]}: root: expected {'00' * 32}, got {trace.read(traces[kind]).root}")


@pytest.mark.parametrize("claim, field", [
    (["-s", "8"], "seed"), (["-t", "0.5"], "temperature"), (["-p", "0.5"], "p_value"), (["-n", "13"], "steps"),
    (["-i", "ab a"], "prompt"), (["--like", "llama2.c"], "arithmetic"), (["-n", "0"], "steps")])
def test_a_wrong_claim_beside_verify_is_noticed(traces, model, capfdbinary, claim, field):
    message = failure(capfdbinary, *model, "--verify", traces["step"], *claim, code=1)
    assert f"line 1 (header): {field}: expected " in message
    for claims in OPTIONS, ["-s", "0"]:  # 0: none
        assert command(capfdbinary, *model, "--verify", traces["step"], *claims)[0] == 0


def test_another_model_or_tokenizer_is_noticed_and_so_is_what_came_of_it(files, traces, model, tmp_path, capfdbinary):
    checkpoint = llama2.Checkpoint(files["grouped"])
    offset, rows, columns = checkpoint.tensors["wo"]
    at = offset + 4 * rows * columns  # the first weight of layer 1
    weight = struct.unpack_from("<I", checkpoint.data, at)[0]
    other = edited(files["grouped"], tmp_path / "other.bin", at, "I", weight ^ 1 << 22)
    message = failure(capfdbinary, other, *model[1:], "--verify", traces["op"], code=1)
    assert re.search(r"line 1 \(header\): model: expected [0-9a-f]{64}, got [0-9a-f]{64}; then .*, line \d+ "
                     r"\(position 0, layer 1, operation attention_out\): sha256: expected", message)
    other = make_tokenizer(tmp_path / "other", PIECES[:-1] + [b"f"])
    message = failure(capfdbinary, model[0], "-z", other, "--verify", traces["step"], code=1)
    assert "line 1 (header): tokenizer: expected" in message
    unused = edited(files["version 1"], tmp_path / "unused.bin", 200, "B", 1)  # the header's zeros: nothing comes of it
    with contextlib.redirect_stderr(io.StringIO()):
        llama2.main([files["version 1"], *model[1:], *OPTIONS, "--trace", str(tmp_path / "t")])
    assert failure(capfdbinary, unused, *model[1:], "--verify", tmp_path / "t", code=1).count("expected") == 1


# Tampering. Each is noticed with exit 1, or 2 where the file is no trace any more.


def noticed(capfdbinary, model, path, *more):
    code, out, err = command(capfdbinary, *model, "--verify", path, *more)
    assert code in (1, 2) and out == b"" and err.count("\n") == 1 and "Traceback" not in err, (code, out, err)
    return err


def test_any_changed_byte_is_noticed(traces):
    for kind in "step", "rust":
        with open(traces[kind], "rb") as file:
            data = file.read()
        path = traces[kind] + ".bad"
        for i in range(len(data)):
            with open(path, "wb") as file:
                file.write(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1:])
            if kind == "step":
                with pytest.raises((ValueError, trace.VerificationError)):
                    trace.read(path)
            else:  # what this format does not commit to is compared when it is verified
                with contextlib.suppress(ValueError, trace.VerificationError):
                    assert trace.read(path).events != trace.read(traces[kind]).events


@pytest.mark.parametrize("level", ["step", "op"])
@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("change", ["delete", "double", "swap", "insert", "graft"])
def test_a_line_deleted_doubled_swapped_inserted_or_grafted_is_noticed(traces, model, tmp_path, capfdbinary, level, root, change):
    lines = read_lines(traces[level])
    body, last = lines[:-1], lines[-1:]
    with contextlib.redirect_stderr(io.StringIO()):
        llama2.main([*model, "-s", "8", *OPTIONS[2:], "--trace-level", level, "--trace", str(tmp_path / "other")])
    other = read_lines(tmp_path / "other")
    for i in {0, 1, 5, len(body) // 2, len(body) - 1}:
        bad = list(body)
        if change == "delete":
            del bad[i]
        elif change == "double":
            bad.insert(i, bad[i])
        elif change == "swap":
            j = (i + 1) % len(body)
            bad[i], bad[j] = bad[j], bad[i]
        elif change == "insert":
            bad.insert(i + 1, edit(next(line for line in body if b"next" in line), pos=json.loads(body[i]).get("pos", 0) + 1))
        elif other[i] != body[i]:
            bad[i] = other[i]
        else:
            continue
        noticed(capfdbinary, model, forge(tmp_path / "bad", bad if root else bad + last, root))


@pytest.mark.parametrize("level", ["step", "op"])
def test_an_end_cut_off_is_noticed_under_a_root_and_told_without(traces, model, tmp_path, capfdbinary, level):
    lines = read_lines(traces[level])
    root = json.loads(lines[-1])["root"]
    for n in {1, 2, 3, len(lines) // 2, len(lines) - 3, len(lines) - 2}:
        noticed(capfdbinary, model, forge(tmp_path / "bad", lines[:n]))
        noticed(capfdbinary, model, forge(tmp_path / "bad", lines[:n] + lines[-1:], False))
        cut = forge(tmp_path / "cut", lines[:n], False)
        noticed(capfdbinary, model, cut, "--root", root)
        code, out, err = command(capfdbinary, *model, "--verify", cut)
        assert code == 0 and b"incomplete" in out
        with open(cut, "ab") as file:
            file.write(lines[n][:-3])
        noticed(capfdbinary, model, cut)


def test_what_follows_the_root_is_noticed(traces, model, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])
    noticed(capfdbinary, model, forge(tmp_path / "bad", lines + lines[-1:], False))
    noticed(capfdbinary, model, forge(tmp_path / "bad", lines + lines[1:2], False))


@pytest.mark.parametrize("number, fields", [
    (0, {"model": "00" * 32}), (0, {"tokenizer": "00" * 32}), (0, {"temperature": 0.3}), (0, {"p_value": 0.2}), (0, {"seed": 8}),
    (0, {"steps": 15}), (0, {"steps": 13}), (0, {"steps": 10**6}), (0, {"prompt": "ab 😀"}), (0, {"tokens": [1, 259]}),
    (0, {"arithmetic": "c"}), (0, {"rng": "llama2-rs"}), (0, {"level": "op"}), (0, {"format": "llama2.py trace 2"}),
    (1, {"token": 2}), (1, {"next": 261}), (1, {"pos": 1}), (1, {"text": "x"}), (1, {"logits": "00" * 32}),
    (12, {"token": 2}), (12, {"next": 261}), (12, {"next": 1}), (12, {"pos": 10}), (12, {"text": ""}), (14, {"next": 1}),
    (12, {"next": 5000}),
    (14, {"text": "\x1b[31m"}), (14, {"logits": "ab" * 32})])
def test_a_field_rewritten_under_a_recomputed_root_is_noticed(traces, model, tmp_path, capfdbinary, number, fields):
    lines = read_lines(traces["step"])[:-1]
    assert edit(lines[number], **fields) != lines[number]
    lines[number] = edit(lines[number], **fields)
    err = noticed(capfdbinary, model, forge(tmp_path / "bad", lines))
    options = {"temperature", "p_value", "seed", "steps", "arithmetic", "level"}  # believed until they lead to another line
    assert (options & fields.keys() or re.search(f"line {number + 1}[ :]", err)) and "\x1b" not in err
    if "token" in fields:
        assert ": token: expected" in err
    if "pos" in fields:
        with pytest.raises(ValueError, match=f"line {number + 1}: pos is {fields['pos']}, must be {number - 1}"):
            trace.read(tmp_path / "bad")


@pytest.mark.parametrize("fields", [{"model": "00" * 32}, {"model": "00" * 32, "steps": 999},
                                    {"model": "00" * 32, "tokens": [1, 2]}])
def test_a_false_header_is_noticed_however_little_is_verified(traces, model, tmp_path, capfdbinary, fields):
    lines = read_lines(traces["step"])[:-1]
    lines[0] = edit(lines[0], **fields)
    whole, part = forge(tmp_path / "whole", lines), forge(tmp_path / "part", lines[:6], False)
    for args in ([whole], [part], [whole, "--verify-iteration", 3], [part, "--verify-iteration", 3],
                 [whole, "--verify-iteration", 3, "--root", json.loads(root_line(lines))["root"]]):
        assert "line 1 (header): " in noticed(capfdbinary, model, *args)


def test_what_follows_the_end_of_the_run_is_noticed(traces, model, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])[:-1]
    more = [*lines, edit(lines[-1], pos=14, token=json.loads(lines[-1])["next"])]
    op = read_lines(traces["op"])[:-1]
    for body, root in (more, False), ([*op, edit(op[1], pos=14)], False), ([*op, edit(op[1], pos=14)], True):
        err = noticed(capfdbinary, model, forge(tmp_path / "bad", body, root))
        assert "line: expected the end of the run, got " in err


@pytest.mark.parametrize("steps", [0, 13, 15, 10**6])
def test_a_finished_trace_has_the_steps_that_its_header_says_or_ends_with_bos(traces, model, tmp_path, capfdbinary, steps):
    header, *lines = read_lines(traces["step"])[:-1]
    bad = forge(tmp_path / "bad", [edit(header, steps=steps), *lines])
    for more in [], ["--verify-iteration", 2]:
        assert f"line 1 (header): steps: expected 14, got {steps}" in noticed(capfdbinary, model, bad, *more)
    ended = forge(tmp_path / "ended", [edit(header, steps=steps), *lines[:-1], edit(lines[-1], next=1)])
    if steps > 14:
        assert len(trace.read(ended).steps) == 14
    else:
        noticed(capfdbinary, model, ended, "--verify-iteration", 2)


def test_a_prompt_that_no_context_holds_is_refused_in_no_time_and_in_few_words(traces, model, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])[:-1]
    begin = time.process_time()
    for fields in {"prompt": "ab" * 10**6}, {"tokens": [1] * 10**5}:
        err = noticed(capfdbinary, model, forge(tmp_path / "bad", [edit(lines[0], **fields), *lines[1:]]))
        assert len(err) < 2000
    assert "the prompt has 2000000 characters" in failure(capfdbinary, *model, "-s", 1, "-i", "ab" * 10**6)
    assert time.process_time() - begin < 5


def test_a_token_beyond_the_vocabulary_counts_only_where_it_is_verified(traces, model, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])[:-1]
    lines[11:13] = [edit(lines[11], next=5000), edit(lines[12], token=5000)]
    bad = forge(tmp_path / "bad", lines)
    assert "line 12 (position 10): next: expected" in noticed(capfdbinary, model, bad)
    assert command(capfdbinary, *model, "--verify", bad, "--verify-iteration", 3)[0] == 0


@pytest.mark.parametrize("option", [["-t", "1e300"], ["-t", "1e-300"], ["-p", "5e-324"], ["-s", str(2**64 - 1)], ["-n", "1"]])
def test_whatever_the_options_a_trace_verifies(model, tmp_path, capfdbinary, option):
    assert command(capfdbinary, *model, "-s", 7, *option, "--trace", tmp_path / "t")[0] == 0
    assert command(capfdbinary, *model, "--verify", tmp_path / "t")[0] == 0


def test_an_empty_file_name_is_no_missing_option(model, capfdbinary):
    for option in "--verify", "--explain-text", "--trace", "--logits", "--compare":
        code, out, err = command(capfdbinary, *model, "-s", 1, option, "")
        assert code == 2 and out == b"" and err.count("\n") == 1


def test_like_another_program_beside_a_trace_of_this_one_is_noticed(traces, model, capfdbinary):
    for kind, like in ("step", "llama2-rs"), ("step", "llama2.c"), ("c", "llama2-rs"), ("rust", "llama2.c"):
        noticed(capfdbinary, model, traces[kind], "-s", 7, "--like", like)


@pytest.mark.parametrize("line", range(0, 434, 31))
def test_a_rewritten_operation_is_noticed_at_its_line(traces, model, tmp_path, capfdbinary, line):
    lines = read_lines(traces["op"])[:-1]
    field = "sha256" if b"sha256" in lines[line] else "logits" if b"logits" in lines[line] else "model"
    lines[line] = edit(lines[line], **{field: "5a" * 32})
    assert f", line {line + 1} " in noticed(capfdbinary, model, forge(tmp_path / "bad", lines))


@pytest.mark.parametrize("change", [
    lambda line: line.replace(b",", b", ", 1), lambda line: b" " + line, lambda line: line + b" ", lambda line: line + b"\r",
    lambda line: line.replace(b'{"pos":3,"token"', b'{"token"').replace(b',"next"', b',"pos":3,"next"'),
    lambda line: line.replace(b'"pos":3', b'"pos":3,"pos":3'), lambda line: line.replace(b'"pos":3', b'"pos":3.0'),
    lambda line: line.replace(b'"pos":3', b'"pos":3e0'),
    lambda line: line.replace(b'"text":"', b'"text":"\\u0020').replace(b"0 ", b"0"),
    lambda line: line.replace(b'"pos"', b'"p\\u006fs"'), lambda line: line.replace(b'"pos":3', b'"pos":true'),
    lambda line: line.replace(b'"text":"', '"text":"é'.encode()), lambda line: line[:-1] + b',"more":1}',
    lambda line: b"[" + line + b"]", lambda line: b"3", lambda line: b"null", lambda line: b"", lambda line: b"[" * 100_000,
    lambda line: line.replace(b'"pos":3', b'"pos":' + b"3" * 10_000), lambda line: line.replace(b'"pos":3', b'"pos":-3'),
    lambda line: re.sub(rb'"logits":"(.)', rb'"logits":"A', line), lambda line: line.replace(b'"pos":3', b'"pos":NaN')])
def test_the_same_event_in_other_bytes_is_noticed(traces, model, tmp_path, capfdbinary, change):
    lines = read_lines(traces["step"])[:-1]
    changed = change(lines[4])
    assert changed != lines[4]
    lines[4] = changed
    with pytest.raises(ValueError, match="line 5: "):
        trace.read(forge(tmp_path / "bad", lines))
    assert "line 5" in noticed(capfdbinary, model, forge(tmp_path / "bad", lines))


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_file_is_noticed(traces, files, data):
    with open(traces[data.draw(st.sampled_from(["step", "layer"]))], "rb") as file:
        original = file.read()
    lines = original.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 3))):
        i, j = sorted(data.draw(st.tuples(st.integers(0, len(lines) - 1), st.integers(0, len(lines)))))
        how = data.draw(st.sampled_from(["cut", "copy", "reverse", "bytes", "digits"]))
        if how == "cut":
            lines[i:j] = []
        elif how == "copy":
            lines[j:j] = lines[i:i + 2]
        elif how == "reverse":
            lines[i:j] = lines[i:j][::-1]
        elif i < len(lines) and lines[i]:
            line, at = bytearray(lines[i]), data.draw(st.integers(0, len(lines[i]) - 1))
            line[at] = data.draw(st.integers(0, 255)) if how == "bytes" else data.draw(st.sampled_from(b"0123456789"))
            lines[i] = bytes(line)
        lines = lines or [b""]
    path = traces["step"] + ".mutated"
    root = data.draw(st.booleans())
    body = b"".join(lines)
    if root:
        body = b"".join(line + b"\n" for line in body.splitlines()[:-1])
        body += root_line(body.splitlines()) + b"\n"
    assume(body != original and body + lines[-1] != original)
    with open(path, "wb") as file:
        file.write(body)
    out, err = io.StringIO(), io.StringIO()
    out.buffer = io.BytesIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        code = llama2.main([files["grouped"], "-z", files["tokenizer"], "--verify", path])
    if code == 0:  # only what a run that was cut short, or the whole of another run, would have written
        assert original.startswith(body) and b"incomplete" in out.buffer.getvalue() or body in [
            read_bytes(traces[kind]) for kind in ("step", "layer")]
    else:
        assert code in (1, 2) and err.getvalue().count("\n") == 1


# Runs that do not end well


def interruptible():
    """For a new process, since a shell has its background jobs ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupted_run_leaves_a_trace_that_verifies_as_far_as_it_goes(tmp_path, capfdbinary):
    for kill, code in (signal.SIGINT, 130), (signal.SIGKILL, -9):
        path = tmp_path / "t"
        run = subprocess.Popen([sys.executable, os.path.join(HERE, "llama2.py"), "-s", "1", "-n", "0", "--trace", str(path),
                                "--trace-level", "op"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=interruptible)
        run.stdout.read(3)
        run.send_signal(kill)
        _, err = run.communicate()
        assert run.returncode == code and err == b""
        assert trace.read(path).root is None
        code, out, _ = command(capfdbinary, "show", path, program=trace)
        assert code == 0 and b"incomplete" in out
        code, out, _ = command(capfdbinary, "--verify", path)
        assert code == 0 and b"incomplete" in out


def children(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return list(map(int, file.read().split()))
    return []


def gone(pid, seconds=10):
    for _ in range(seconds * 50):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def start_with_workers(path, *more):
    run = subprocess.Popen([sys.executable, os.path.join(HERE, "llama2.py"), "-s", "1", "-n", "0", "--trace", str(path),
                            "--workers", "3", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           preexec_fn=interruptible)
    assert run.stdout.read(3)
    return run, children(run.pid)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks for processes in /proc")
def test_a_killed_worker_ends_the_run_with_one_line_and_leaves_nothing_running(tmp_path, capfdbinary):
    for victim in 0, 1:
        run, workers = start_with_workers(tmp_path / "t")
        assert len(workers) == 2
        os.kill(workers[victim], signal.SIGKILL)
        _, err = run.communicate(timeout=20)
        assert (run.returncode, err.decode()) == (
            2, f"llama2.py: error: worker process {workers[victim]} died with exit code -9\n")
        assert all(map(gone, workers))
        assert command(capfdbinary, "--verify", tmp_path / "t")[0] == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks for processes in /proc")
@pytest.mark.parametrize("kill, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_workers_end_with_the_run(tmp_path, kill, code):
    run, workers = start_with_workers(tmp_path / "t")
    run.send_signal(kill)
    _, err = run.communicate(timeout=20)
    assert (run.returncode, err) == (code, b"")
    assert all(map(gone, workers))


def test_a_worker_that_cannot_read_the_model_ends_the_run(files, tmp_path, capfdbinary, monkeypatch):
    checkpoint = llama2.Checkpoint(files["grouped"])
    offset, rows, columns = checkpoint.tensors["classifier"]
    path = edited(files["grouped"], tmp_path / "bad.bin", offset + 4 * (rows * columns - 1), "f", math.nan)  # the last worker's
    assert failure(capfdbinary, path, "-z", files["tokenizer"], "-s", 1, "--workers", 3) == (
        f"{path}: classifier of layer 0 holds a weight that is not finite")
    monkeypatch.setattr(llama2.multiprocessing.Process, "start", lambda self: os.stat("/nowhere"))
    assert failure(capfdbinary, files["grouped"], "-z", files["tokenizer"], "-s", 1, "--workers", 3) == (
        "/nowhere: No such file or directory")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_start_by_every_method(files, method):
    code = (f"import multiprocessing, llama2\nif __name__ == '__main__':\n multiprocessing.set_start_method({method!r})\n"
            f" with llama2.Transformer({files['grouped']!r}, workers=3) as t: print(t.forward(1, 0).tobytes().hex())")
    script = os.path.join(os.path.dirname(files["tokenizer"]), f"{method}.py")
    with open(script, "w") as file:
        file.write(code)
    done = subprocess.run([sys.executable, script], capture_output=True, env={**os.environ, "PYTHONPATH": HERE})
    assert done.stderr == b""
    with llama2.Transformer(files["grouped"]) as transformer:
        assert done.stdout.decode().strip() == transformer.forward(1, 0).tobytes().hex()


def test_a_full_disk_leaves_whole_lines_and_one_line_of_error(traces, model, tmp_path, capfdbinary):
    import resource
    path = tmp_path / "t"
    limit = len(b"\n".join(read_lines(traces["step"])[:6])) + 20
    done = process(*model, *OPTIONS, "--trace", path,
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"Traceback" not in done.stderr
    assert read_lines(path) == read_lines(traces["step"])[:6]
    assert command(capfdbinary, *model, "--verify", path)[0] == 0


def test_a_trace_whose_reader_goes_away_is_an_error(model, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reader = subprocess.Popen(["head", "-c", "10", tmp_path / "fifo"], stdout=subprocess.DEVNULL)
    done = process(*model, *OPTIONS, "--trace", tmp_path / "fifo", "--trace-level", "op")
    reader.wait()
    assert (done.returncode, done.stderr.decode()) == (2, f"llama2.py: error: {tmp_path / 'fifo'}: Broken pipe\n")


def test_a_run_that_fails_its_checks_overwrites_nothing(files, traces, model, tmp_path, capfdbinary):
    path = tmp_path / "t"
    for args in (["-i", "~" * 40], ["-t", "-1"], ["-z", tmp_path / "none"]):
        for option in "--trace", "--logits":
            path.write_bytes(b"precious")
            failure(capfdbinary, *model, "-s", 1, option, path, *args)
            assert path.read_bytes() == b"precious"
    message = failure(capfdbinary, *model, "--trace", path, "--logits", f"{tmp_path}/./t")
    assert message == f"{path}: is to be both --trace and --logits"
    for option in "--trace", "--logits":
        for source in model[0], model[2]:
            assert failure(capfdbinary, *model, "-s", 1, option, source) == f"{source}: is read, and would be overwritten"


# ----------------------------------------------------------------------------
# trace.py: show, root, prove, check, diff


def test_show_prints_every_step_and_escapes_the_text(traces, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])[:-1]
    lines[5] = edit(lines[5], text="\x1b[31m\x07")
    for path in traces["op"], traces["rust"], forge(tmp_path / "t", lines):
        for args, program in (("show", path), trace), (("--explain-text", path), llama2):
            code, out, err = command(capfdbinary, *args, program=program)
            assert code == 0 and err == "" and b"\x1b" not in out and b"\x07" not in out
            assert len(re.findall(rb"^ +\d+ +\d+  [0-9a-f]{64}  ", out, re.M)) == 14
            assert trace.read(path).tree.root().hex().encode() in out
    assert b"\\u001b[31m" in out


def test_show_step_can_be_followed_with_sha256(traces, capfdbinary):
    for kind in "step", "op":
        lines = read_lines(traces[kind])[:-1]
        for pos in 0, 5, 13:
            code, out, _ = command(capfdbinary, "show", traces[kind], "--step", pos, program=trace)
            rows = out.decode().splitlines()
            assert code == 0 and rows[0].encode() in lines and json.loads(rows[0])["pos"] == pos
            current = hashlib.sha256(b"\0" + rows[0].encode()).hexdigest()
            for row in rows[3:]:
                if match := re.match(r"  \| (left|right) +child, beside ([0-9a-f]{64})$", row):
                    pair = [current, match[2]] if match[1] == "left" else [match[2], current]
                    current = hashlib.sha256(b"\x01" + bytes.fromhex("".join(pair))).hexdigest()
                elif row.endswith("right)") or row.endswith("above)"):
                    assert row.split(" = ")[0] == current
            assert current == trace.read(traces[kind]).root


def test_every_proof_checks_and_needs_neither_trace_nor_model(traces, tmp_path, capfdbinary):
    for kind in "step", "layer", "op", "c":
        root = trace.read(traces[kind]).root
        assert command(capfdbinary, "root", traces[kind], program=trace)[1].decode() == root + "\n"
        for pos in 0, 1, 7, 13:
            code, out, err = command(capfdbinary, "prove", traces[kind], pos, program=trace)
            assert (code, err) == (0, "")
            (tmp_path / "proof").write_bytes(out)
            code, out, err = command(capfdbinary, "check", tmp_path / "proof", "--root", root, program=trace)
            assert (code, err) == (0, "") and f"  pos: {pos}\n".encode() in out and b'  prompt: "ab \\ud83d\\ude00a"\n' in out


def test_a_proof_of_a_long_trace_is_short(tmp_path):
    header = {"model": "00" * 32, "tokenizer": "00" * 32, "arithmetic": "exact", "rng": "xorshift64*", "temperature": 1.0,
              "p_value": 0.9, "seed": 1, "steps": 1000, "level": "step", "prompt": "", "tokens": [1]}
    writer = trace.Writer(tmp_path / "t", header)
    sizes = []
    for pos in range(1000):
        writer.step(300, 400, b" story", [pos])
        sizes.append(writer.written)
    writer.finish()
    writer.close()
    assert sizes[99] < 16_000
    assert max(len(trace.prove(trace.read(tmp_path / "t"), pos)) for pos in (0, 511, 999)) < 2048


@pytest.mark.parametrize("change", [
    lambda p, q: {**p, "size": p["size"] + 10}, lambda p, q: {**p, "size": 6}, lambda p, q: {**p, "root": "00" * 32},
    lambda p, q: {**p, "events": p["events"][:1]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "index": 5}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "line": q["events"][1]["line"]}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "path": p["events"][1]["path"][::-1]}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "path": p["events"][1]["path"][1:]}]},
    lambda p, q: {**p, "events": [
        {**p["events"][0], "line": p["events"][0]["line"].replace('"seed":7', '"seed":8')}, p["events"][1]]},
    lambda p, q: {**p, "events": [p["events"][1], p["events"][1]]}, lambda p, q: {**p, "events": [p["events"][0]] * 2},
    lambda p, q: {**p, "events": p["events"] + p["events"][1:]}, lambda p, q: {**p, "more": 1}, lambda p, q: [], lambda p, q: 3,
    lambda p, q: {**p, "root": [[]]}, lambda p, q: {**p, "size": "14"}, lambda p, q: {**p, "size": None}, lambda p, q: {**p, "size": 2**80},
    lambda p, q: {**p, "events": 3},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "path": [3]}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "path": ["00" * 32] * 100}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "index": "6"}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "line": 3}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "index": "\x1b[31m\n"}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "path": dict.fromkeys(p["events"][1]["path"])}]},
    lambda p, q: {**p, "format": "llama2.py proof 2"}])
def test_a_changed_proof_is_noticed(traces, tmp_path, capfdbinary, change):
    log = trace.read(traces["step"])
    proof, other = (json.loads(trace.prove(log, pos)) for pos in (6, 7))
    changed = change(proof, other)
    if changed == {**proof, "size": proof["size"] + 10}:  # the same turns to the root in a tree of 15 and of 16 leaves only
        assert log.tree.size == 15
    (tmp_path / "bad").write_bytes(trace.encode(changed))
    code, out, err = command(capfdbinary, "check", tmp_path / "bad", "--root", log.root, program=trace)
    assert code in (1, 2) and out == b"" and err.count("\n") == 1 and err.startswith("trace.py: error: ")
    assert "\x1b" not in err
    if changed == {**proof, "root": [[]]}:  # nested deeply enough it could be read and compared, but not be written
        assert "a hash is not one" in err


def test_a_header_elsewhere_than_in_the_first_line_proves_nothing(traces, tmp_path, capfdbinary):
    header, step, *_ = read_lines(traces["step"])
    lines, tree = [b"x", header, step], merkle.MerkleTree()
    for line in lines:
        tree.append(merkle.leaf_hash(line))
    root = tree.root().hex()
    (tmp_path / "proof").write_bytes(trace.encode({"format": "llama2.py proof 1", "size": 3, "root": root, "events": [
        {"index": i, "line": lines[i].decode(), "path": [h.hex() for h in tree.inclusion_proof(i)]} for i in (1, 2)]}))
    message = failure(capfdbinary, "check", tmp_path / "proof", "--root", root, program=trace)
    assert message.endswith("not a proof: does not hold a header and a step")


def test_a_proof_of_another_trace_is_noticed(traces, tmp_path, capfdbinary):
    (tmp_path / "proof").write_bytes(trace.prove(trace.read(traces["step"]), 6))
    for root in trace.read(traces["c"]).root, "00" * 32:
        assert ": root: expected" in failure(capfdbinary, "check", tmp_path / "proof", "--root", root, program=trace, code=1)
    assert "--root" in failure(capfdbinary, "check", tmp_path / "proof", program=trace)


def test_file_names_and_prompts_are_shown_without_their_escapes(traces, tmp_path, capfdbinary):
    path = tmp_path / os.fsdecode("\x1b[31mé".encode())
    path.write_bytes(read_bytes(traces["c"]))
    code, out, err = command(capfdbinary, "diff", traces["step"], path, program=trace)
    assert code == 1 and re.search(rb"/\\x1b\[31m(\\xe9|\\udcc3\\udca9), line 1 \(header\): arithmetic", out)
    assert out.isascii() and b"\x1b" not in out
    assert [trace.printable(value) for value in ("\x1b", '"\\u001b"', "", '""', "a b", 3, "é")] == [
        '"\\u001b"', '"\\"\\\\u001b\\""', '""', '"\\"\\""', "a b", "3", '"\\u00e9"']


def test_diff_names_the_first_operation_that_differs(files, traces, model, tmp_path, capfdbinary):
    assert command(capfdbinary, "diff", traces["op"], traces["op"], program=trace) == (0, b"", "")
    checkpoint = llama2.Checkpoint(files["grouped"])
    offset, rows, columns = checkpoint.tensors["w1"]
    weight = struct.unpack_from("<I", checkpoint.data, offset)[0]
    other = edited(files["grouped"], tmp_path / "other.bin", offset, "I", weight ^ 1 << 22)
    with contextlib.redirect_stderr(io.StringIO()):
        llama2.main([other, *model[1:], *OPTIONS, "--trace-level", "op", "--trace", str(tmp_path / "t")])
    code, out, err = command(capfdbinary, "diff", traces["op"], tmp_path / "t", program=trace)
    assert code == 1 and err == ""
    header, operation = out.decode().splitlines()
    assert "line 1 (header): model: expected" in header
    assert "(position 0, layer 0, operation gate): sha256: expected" in operation
    lines = read_lines(traces["op"])
    code, out, _ = command(capfdbinary, "diff", traces["op"], forge(tmp_path / "cut", lines[:-1], False), program=trace)
    assert code == 1 and b"root: expected" in out
    code, out, _ = command(capfdbinary, "diff", traces["op"], forge(tmp_path / "cut", lines[:-9], False), program=trace)
    assert code == 1 and b"number of events: expected 435, got 427" in out
    assert command(capfdbinary, "diff", traces["rust"], traces["rust"], program=trace)[0] == 0
    assert command(capfdbinary, "diff", traces["rust"], traces["step"], program=trace)[0] == 1


@pytest.mark.parametrize("args", [[], ["sing"], ["show"], ["show", "none"], ["prove", "{}", "x"], ["prove", "{}", "14"],
                                  ["prove", "{}", "-1"], ["show", "{}", "--step", "99"],
                                  ["check", "{}", "--root", "00"], ["check", "{}", "--root", "00" * 32],
                                  ["prove", "{rust}", "1"], ["show", "{rust}", "--step", "1"]])
def test_bad_questions_to_trace_get_one_line(traces, capfdbinary, args):
    failure(capfdbinary, *[arg.replace("{}", traces["step"]).replace("{rust}", traces["rust"]) for arg in args], program=trace)


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"text\n", b"{", b"\0" * 7, b"\0" * 8, b"\xff" * 100,
                                  b'{"size":0,"root":"' + b"0" * 64 + b'"}\n'])
def test_files_that_are_no_traces_get_one_line(model, tmp_path, capfdbinary, data):
    path = tmp_path / "bad"
    path.write_bytes(data)
    for args, program in (("show", path), trace), (("--explain-text", path), llama2), ((*model, "--verify", path), llama2):
        assert str(path) in failure(capfdbinary, *args, program=program)


# ----------------------------------------------------------------------------
# The format of llama2-rs

RUST = OPTIONS + ["--like", "llama2-rs"]


def rust_parts(path):
    header, *entries = trace.read(path).events
    return header, entries


def rust_file(path, header, entries, leaves=None, root=None, counts=(0, 0), tail=b""):
    """Write a trace of llama2-rs from its parts: by default with the leaves and the root that the entries have."""
    def string(text):
        return struct.pack("<Q", len(text.encode())) + text.encode()

    if leaves is None:
        leaves = [hashlib.sha256(struct.pack("<ii", e["pos"], e["token"]) + bytes.fromhex(e["logits"])).digest() for e in entries]
    if root is None:
        level = leaves
        while len(level) > 1:  # llama2-rs's own way: pair by pair, an odd node is promoted
            level = [hashlib.sha256(b"".join(level[i:i + 2])).digest() if i + 1 < len(level) else level[i]
                     for i in range(0, len(level), 2)]
        root = b"\1" + level[0] if level else b"\0"
    with open(path, "wb") as file:
        file.write(string(header["model_path"]) + string(header["prompt"]) + struct.pack("<Q", header["steps"]))
        file.write(struct.pack("<Q", len(entries) + counts[0]))
        for e in entries:
            file.write(struct.pack("<ii", e["pos"], e["token"]) + string(e["text"]) + bytes.fromhex(e["logits"]))
        file.write(struct.pack("<Q", len(leaves) + counts[1]) + b"".join(leaves) + root + tail)
    return str(path)


def test_traces_of_llama2_rs_are_written_as_it_does(files, traces, tmp_path):
    header, entries = rust_parts(traces["rust"])
    assert header == {"model_path": files["grouped"], "prompt": "ab 😀a", "steps": 14}
    own = [json.loads(line) for line in read_lines(traces["c"])[1:5]]  # the prompt's steps, in which no coin matters
    assert [e["pos"] for e in entries] == list(range(14)) and entries[:4] == own and "😀" in {e["text"] for e in own}
    rewritten = rust_file(tmp_path / "t", header, entries)
    assert read_bytes(rewritten) == read_bytes(traces["rust"])


@pytest.mark.parametrize("change", [
    {"leaf": 3}, {"root": b"\1" + bytes(32)}, {"root": b"\0"}, {"root": b"\2" + bytes(32)}, {"counts": (1, 0)}, {"counts": (-1, 0)},
    {"counts": (0, 1)}, {"counts": (0, -1)}, {"counts": (2**61, 0)}, {"counts": (0, 2**61)}, {"tail": b"\0"}, {"drop": 13},
    {"drop": 5}, {"double": 5}, {"pos": 6}, {"token": 6}, {"text": 6}, {"logits": 6}, {"model_path": "x.bin"}, {"prompt": "ab"},
    {"steps": 15}, {"steps": 13}, {"drop": slice(None)}, {"leaves": 13}, {"first byte": b"\2"}])
def test_what_llama2_rs_overlooks_is_noticed(traces, model, tmp_path, capfdbinary, change):
    header, entries = rust_parts(traces["rust"])
    ((what, value),) = change.items()
    leaves, more = None, {}
    log = trace.read(traces["rust"])
    hashes = [bytes(log.tree.levels[0][32 * i:32 * i + 32]) for i in range(14)]
    if what == "leaf":
        leaves = [*hashes[:value], bytes(32), *hashes[value + 1:]]
    elif what == "leaves":
        leaves = hashes[:value]
    elif what == "first byte":
        more = {"root": value + log.tree.root()}
    elif what in ("root", "counts", "tail"):
        more = change
    elif what == "drop":
        del entries[value]
    elif what == "double":
        entries.insert(value, entries[value])
    elif what in header:
        header[what] = value
    else:
        entries[value][what] = {"pos": 7, "token": 3, "text": "?", "logits": "00" * 32}[what]
    err = noticed(capfdbinary, model, rust_file(tmp_path / "bad", header, entries, leaves, **more), *RUST)
    if what in ("token", "pos", "text", "logits"):
        place = r"entry 5 \(position 5\): next" if what == "token" else rf"entry {value}(| \(position {value}\)): {what}"
        assert re.search(f"{place}: expected", err)
    if what == "counts" and abs(value[0] + value[1]) > 2**60:
        assert "bytes are left" in err


@pytest.mark.parametrize("option, value", [("-s", "8"), ("-t", "0.1"), ("-p", "0.1"), ("-i", "ab"), ("-n", "13")])
def test_wrong_options_beside_a_trace_of_llama2_rs_are_noticed_and_explained(traces, model, capfdbinary, option, value):
    err = noticed(capfdbinary, model, traces["rust"], *RUST, option, value)
    if option in ("-s", "-t", "-p"):
        assert "entry" in err and "does not commit to the run's options" in err


def test_a_trace_of_llama2_rs_needs_the_options_and_no_like(traces, model, capfdbinary):
    assert command(capfdbinary, *model, "--verify", traces["rust"], *OPTIONS)[0] == 0
    assert "(header): prompt: expected \"\", got" in noticed(capfdbinary, model, traces["rust"], "-s", 7)


def test_more_bytes_than_the_limit_are_an_error_and_never_cut(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 1000)
    os.mkfifo(tmp_path / "fifo")
    for limit in 1000, 1001:
        assert trace.read_file(tmp_path / "file", limit) == b"x" * 1000
    for name in "file", "fifo":
        writer = subprocess.Popen(["cp", tmp_path / "file", tmp_path / "fifo"]) if name == "fifo" else None
        with pytest.raises(ValueError, match=f"{name}: is larger than 999 bytes"):
            trace.read_file(tmp_path / name, 999)
        if writer:
            writer.wait()


@given(st.binary(max_size=120), st.integers(0, 3))
def test_any_bytes_are_a_trace_of_llama2_rs_or_an_error(tmp_path_factory, data, zeros):
    path = str(tmp_path_factory.getbasetemp() / "rust")
    for content in data, b"\1" + bytes(7) + data, bytes(8 * zeros) + data:
        with open(path, "wb") as file:
            file.write(content)
        with contextlib.suppress(ValueError, trace.VerificationError):
            trace.read(path)


def test_a_trace_of_llama2_rs_cut_anywhere_is_an_error(traces, tmp_path):
    data = read_bytes(traces["rust"])
    for n in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:n])
        with pytest.raises(ValueError):
            trace.read(tmp_path / "cut")


def test_a_prompt_that_a_trace_of_llama2_rs_cannot_hold_is_refused(model, tmp_path, capfdbinary):
    message = failure(capfdbinary, *model, "--like", "llama2-rs", "-s", 1, "-i", "a\udcff", "--trace", tmp_path / "t")
    assert message == f'{tmp_path / "t"}: prompt is "a\\udcff", must be UTF-8 for llama2-rs\'s format'


def test_a_missing_c_library_is_told_and_exact_needs_none(files, model, monkeypatch, capfdbinary):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    llama2.libm.cache_clear()
    message = failure(capfdbinary, *model, "-s", 1, "--like", "llama2.c")
    assert message == "the C library's powf is not to be found; the arithmetic `exact` needs none"
    assert command(capfdbinary, *model, "-s", 1, "-n", 3)[0] == 0


# ----------------------------------------------------------------------------
# Logits


def npy(path, rows, descr="<f4", fortran=False, shape=None, form="<{}f", version=b"\1\0"):
    """Write rows as numpy.save does."""
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape or (len(rows), len(rows[0]))})
    text = text.replace(")}", "), }").encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text)
        for row in rows:
            file.write(struct.pack(form.format(len(row)), *row))
    return path


@pytest.fixture
def run(files):
    """Options of a run, and its logits."""
    with llama2.Transformer(files["grouped"]) as model:
        tokenizer = llama2.Tokenizer(files["tokenizer"], 280)
        steps = llama2.generate(model, tokenizer, llama2.Sampler(0.0), tokenizer.encode("a"), 10, logits=True)
        return [files["grouped"], "-z", files["tokenizer"], "-t", "0", "-n", "10", "-i", "a"], [list(s.logits) for s in steps]


def test_logits_are_an_array_of_numpy(run, tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, *run[0], "--logits", tmp_path / "a.npy", "--trace", tmp_path / "t")
    data = (tmp_path / "a.npy").read_bytes()
    assert code == 0 and out.startswith(b"a") and data[:10] == b"\x93NUMPY\1\0v\0" and data[127:128] == b"\n"
    assert eval(data[10:128]) == {"descr": "<f4", "fortran_order": False, "shape": (10, 280)}
    assert data[128:] == b"".join(map(bits, run[1]))
    assert [json.loads(line)["logits"] for line in read_lines(tmp_path / "t")[1:-1]] == [
        hashlib.sha256(bits(row)).hexdigest() for row in run[1]]
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "t"]


def test_a_run_that_fails_leaves_no_array(run, tmp_path, monkeypatch, capfdbinary):
    monkeypatch.setattr(llama2.Sampler, "sample", lambda self, logits: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        llama2.main([*run[0], "--logits", str(tmp_path / "a.npy")])
    assert os.listdir(tmp_path) == []


def test_equal_logits_compare_equal(run, tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, *run[0], "--compare", npy(tmp_path / "a.npy", run[1]))
    assert code == 0 and out.decode().endswith("largest difference: 0; in ulps: 0\narg max agrees at 10 of 10 steps\n"
                                               "first step that differs: None; first beyond the tolerance: None\n")


def test_a_difference_is_shown_where_it_is(run, tmp_path, capfdbinary):
    options, rows = run
    (i,) = struct.unpack("<i", bits([rows[4][7]]))
    rows[4][7] = struct.unpack("<f", struct.pack("<i", i + 3))[0]
    best = max(rows[6])
    rows[6][9] = rounded(best + 1.0)
    path = npy(tmp_path / "a.npy", rows)
    code, out, err = command(capfdbinary, *options, "--compare", path)
    lines = out.decode().splitlines()
    assert code == 1 and len(lines) == 1 + 10 + 3
    assert lines[5].split()[2] == "3" and lines[5].endswith("beyond the tolerance") and lines[4].split()[1:3] == ["0", "0"]
    assert " here, 9 there" in lines[7]
    assert lines[-2] == "arg max agrees at 9 of 10 steps"
    assert lines[-1] == "first step that differs: 4; first beyond the tolerance: 4"
    code, out, _ = command(capfdbinary, *options, "--compare", path, "--tolerance", 0.01)
    assert code == 1 and out.decode().splitlines()[-1] == "first step that differs: 4; first beyond the tolerance: 6"
    assert command(capfdbinary, *options, "--compare", path, "--tolerance", 100)[0] == 0
    rows[3][0] = math.nan
    code, out, _ = command(capfdbinary, *options, "--compare", npy(tmp_path / "b.npy", rows), "--tolerance", 100)
    assert code == 1 and out.decode().splitlines()[4].split()[1] == "inf"


@pytest.mark.parametrize("change, message", [
    ({"descr": ">f4"}, "holds '>f4', must be '<f4'"), ({"descr": "<f8"}, "holds '<f8'"), ({"descr": [("a", "<f4")]}, "holds [("),
    ({"fortran": True}, "fortran_order is True"), ({"shape": (10, 279)}, "shape is (10, 279), this run's is (10, 280)"),
    ({"shape": (280, 10)}, "shape is (280, 10), this run's is (10, 280)"), ({"shape": (2800,)}, "shape is (2800,)"),
    ({"shape": (1, 10, 280)}, "shape is (1, 10, 280)"), ({"shape": (11, 280)}, "shape is (11, 280), this run's is (10, 280)"),
    ({"shape": (9, 280)}, "size is 11328 bytes, must be 10208 for shape (9, 280)"), ({"shape": (0, 280)}, "shape is (0, 280)"),
    ({"shape": "x"}, "not an array"), ({"shape": (True, 280)}, "not an array"), ({"shape": (10**4000, 280)}, "shape is (1000"),
    ({"version": b"\2\0"}, "not an array of numpy's format 1.0")])
def test_arrays_of_another_kind_are_refused_with_both_named(run, tmp_path, capfdbinary, change, message):
    path = npy(tmp_path / "a.npy", run[1], **change)
    assert failure(capfdbinary, *run[0], "--compare", path).startswith(f"{path}: {message}")


@pytest.mark.parametrize("header", [b"{'descr': '<f4', 'fortran_order': False, 'shape': 3if 1else 2}",
                                    b"{'descr': '\\\x1b[31m', 'fortran_order': False, 'shape': (10, 280)}"])
def test_odd_headers_of_arrays_get_one_line(run, tmp_path, capfdbinary, header):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    assert "\x1b" not in failure(capfdbinary, *run[0], "--compare", path)


def test_arrays_go_through_links_and_into_devices(run, tmp_path, capfdbinary):
    (tmp_path / "real.npy").write_bytes(b"old")
    os.symlink(tmp_path / "real.npy", tmp_path / "link.npy")
    os.mkfifo(tmp_path / "fifo")
    reader = subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE)
    for name in "link.npy", "fifo":
        assert command(capfdbinary, *run[0], "--logits", tmp_path / name)[0] == 0
    assert os.path.islink(tmp_path / "link.npy")
    assert reader.communicate()[0] == (tmp_path / "real.npy").read_bytes() != b"old"
    path = tmp_path / "none" / "a.npy"
    assert failure(capfdbinary, *run[0], "--logits", path).startswith(f"{path}: cannot be written")


@given(any_float)
def test_neighbours_are_one_ulp_apart_on_either_side_of_zero(value):
    if value == 0.0:
        assert llama2.ordered(bits([-(2.0**-149), -0.0, 0.0, 2.0**-149])) == [-1, 0, 0, 1]
    else:
        (i,) = struct.unpack("<i", bits([value]))
        (away,) = struct.unpack("<f", struct.pack("<i", i + 1))  # from zero
        assert llama2.ordered(bits([away]))[0] - llama2.ordered(bits([value]))[0] == (1 if value > 0 else -1)


def test_an_array_of_fewer_steps_than_the_run_is_refused(run, tmp_path, capfdbinary):
    path = npy(tmp_path / "a.npy", run[1][:9])
    code, out, err = command(capfdbinary, *run[0], "--compare", path)
    assert code == 2 and err == f"llama2.py: error: {path}: shape is (9, 280), but this run has more steps\n"


@given(st.binary(max_size=150))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_array_or_an_error(tmp_path_factory, data):
    path = str(tmp_path_factory.getbasetemp() / "any.npy")
    for content in data, b"\x93NUMPY\1\0" + struct.pack("<H", len(data)) + data:
        with open(path, "wb") as file:
            file.write(content)
        with pytest.raises(ValueError, match="any.npy"):
            llama2.Comparison(path, 4, 280, 0.0)


# ----------------------------------------------------------------------------
# The whole

STORY = """Once upon a time, there was a little duck. Her name was Anna. One day, Anna wanted to make a cake with her uncle. They put milk and eggs in a big bowl.
Anna wanted to help, but the bowl was too heavy. It fell on the floor. There was a big mess. "I am sorry," said Anna. She was very sad.
"Do not worry," said her uncle. "We can clean it and try again." They cleaned the floor and tried again, and Anna was very careful.
Soon they ate the cake with Jane. "It is so good!" said Anna.
Anna learned that it is okay to make mistakes.
"""
STORY_LOGITS = """bce61e c0eee7 a89a92 40ac9b c892d1 491977 e2fd00 097b20 aeb587 476d7c 0aa1a7 ae0a00 e32054 13c8cc 59a45a f5bd86 18adbf
56eab3 bdff0a 0a3b6e 0a8235 9262d0 a101ad bf864f 07ba96 f148f5 721070 c7e9c3 05e6e9 7e0328 e82a48 d932dd f8cc25 e59236 7d0952 a33143
4b8724 5e7d3e df7f46 15a21c f11a6b 6ae09d 665ad5 adabf5 a3f288 8b0a30 a05821 4e111b 8433ee 7cd450 2f761e d99707 b182f7 d23ba7 9df00c
30dc45 5a89e2 a4bb7f 6c3c4b 28c5e8 26b586 568408 6b8683 a74e9c 58a2de 42d463 501719 531e8e 64f88b 286779 f4a850 599cc0""".split()
STORY_ROOT = "4c986acbbcbd70f5ab56bccc470e7394626ca5d3054f9e9725a0f2cafb7dbf2d"


def test_the_golden_story(tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, "-i", "Once upon a time", "-s", 42, "--trace", tmp_path / "t")
    steps = [json.loads(line) for line in read_lines(tmp_path / "t") if b"next" in line]
    for step, expected in zip(steps, STORY_LOGITS):
        assert step["logits"].startswith(expected), f"step {step['pos']} is the first that differs"
    assert out.decode() == STORY
    assert json.loads(read_lines(tmp_path / "t")[-1])["root"] == STORY_ROOT
    assert trace.read(tmp_path / "t").header["model"].encode() in read_bytes(os.path.join(HERE, "README.md"))


def test_the_trace_in_the_docstring_is_that_of_its_command(tmp_path, capfdbinary):
    command(capfdbinary, "-s", 1, "-n", 2, "--trace", tmp_path / "t")
    shown = re.sub(r",\n +", ",", trace.__doc__)
    for line in read_lines(tmp_path / "t"):
        assert re.sub(r"([0-9a-f]{4})[0-9a-f]{60}", r"\1..", line.decode()) in shown


@pytest.fixture
def readme(tmp_path):
    """A copy of the files that the README's commands use, and a shell for them."""
    for name in "llama2.py", "trace.py", "merkle.py", "stories":
        os.symlink(os.path.join(HERE, name), tmp_path / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)

    def shell(line):
        return subprocess.run(["bash", "-c", line], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ.get('PATH', os.defpath)}"}).stdout

    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
        return file.read(), shell


def test_the_commands_of_the_readme_print_what_it_says(readme):
    text, shell = readme
    count = 0
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        for line, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
            got = shell(line)
            if "--compare" in line:  # what differs depends on the C library
                got, expected = (re.sub(r"[-\d.e]+|None", "N", output) for output in (got, expected))
            got, expected = (re.sub(r"tok/s: .*", "", output) for output in (got, expected))
            assert got.strip() == expected.strip(), line
            count += 1
    assert count >= 18


def test_the_example_of_the_readme_works(readme, tmp_path):
    text, shell = readme
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    with llama2.Transformer(MODEL, "c") as model:
        seen = {}
        for pos, token in enumerate([1, 406]):
            model.forward(token, pos, lambda layer, op, values: seen.update({(layer, op): list(values)}))
    values = seen[2, "attention"]
    values[11] += 0.5
    (tmp_path / "attention.f32").write_bytes(bits(values))
    (tmp_path / "example.py").write_text(code)
    assert shell("python3 example.py") == "largest difference 0.5 at element 11, head 1\n"
    assert len(code.splitlines()) <= 13
