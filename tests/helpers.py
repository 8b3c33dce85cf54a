"""What the tests share: files to test with, commands to run, and plain.py, which judges. Fixtures: conftest.py."""
import ctypes
import ctypes.util
import importlib.util
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st

import llama2
import merkle
import plain
from llama2_py import command as llama2_command
from llama2_py import console
from llama2_py.engine.checkpoint import Config
from llama2_py.log.events import encode

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the project's folder
STORIES = os.path.join(HERE, "llama2_py", "stories")
MODEL, TOKENIZER = os.path.join(STORIES, "model.bin"), os.path.join(STORIES, "tokenizer.bin")

# ----------------------------------------------------------------------------
# How many examples a property is tried on: TEST_EXAMPLES=long, as .ci/run has it, takes three times as many

SHARE = 1 if os.environ.get("TEST_EXAMPLES") == "long" else 3


def some(count, cases):
    """Cases of a test: the first few are tried by default, the others are slow."""
    return [case if i < count else pytest.param(*case if isinstance(case, tuple) else [case], marks=pytest.mark.slow)
            for i, case in enumerate(cases)]


def examples(count):
    """Settings of a property that is tried on so many examples, or by default on a third of them."""
    return settings(max_examples=count // SHARE)


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

# What the embedded model tells with seed 42; the beginnings of its logits' hashes, step by step; the root of its trace
STORY = """Once upon a time, there was a little duck. Her name was Anna. One day, Anna wanted to make a cake with \
her uncle. They put milk and eggs in a big bowl.
Anna wanted to help, but the bowl was too heavy. It fell on the floor. There was a big mess. "I am sorry," said Anna. \
She was very sad.
"Do not worry," said her uncle. "We can clean it and try again." They cleaned the floor and tried again, and Anna was \
very careful.
Soon they ate the cake with Jane. "It is so good!" said Anna.
Anna learned that it is okay to make mistakes.
"""
STORY_LOGITS = """
bce61e c0eee7 a89a92 40ac9b c892d1 491977 e2fd00 097b20 aeb587 476d7c 0aa1a7 ae0a00 e32054 13c8cc 59a45a f5bd86 18adbf
56eab3 bdff0a 0a3b6e 0a8235 9262d0 a101ad bf864f 07ba96 f148f5 721070 c7e9c3 05e6e9 7e0328 e82a48 d932dd f8cc25 e59236
7d0952 a33143 4b8724 5e7d3e df7f46 15a21c f11a6b 6ae09d 665ad5 adabf5 a3f288 8b0a30 a05821 4e111b 8433ee 7cd450 2f761e
d99707 b182f7 d23ba7 9df00c 30dc45 5a89e2 a4bb7f 6c3c4b 28c5e8 26b586 568408 6b8683 a74e9c 58a2de 42d463 501719 531e8e
64f88b 286779 f4a850 599cc0
""".split()
STORY_ROOT = "2f84ad4ab70bd25577fbebc1e96e4e45cd51afe0398cd67dd267d59cd05dc5a0"


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
        tables = bytes(4 * seq_len * (dim // n_heads))
        data = struct.pack("<7i", *fields) + b"".join(weights.values()) + tables + classifier
    else:
        norms = [weights.pop(name) for name in ("rms_att", "rms_ffn", "rms_final")]
        head = struct.pack("<Ii7iB", 0x616B3432, 1, *fields, shared)
        data = head.ljust(256, b"\0") + b"".join(norms) + b"".join(weights.values()) + classifier
    with open(path, "wb") as file:
        file.write(data)
    return str(path)


PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % i for i in range(256)] + [
    b" ", b"a", b"b", b"ab", b" a", b"ba", b"aba", b" ab", "é".encode(), "😀".encode(), b"bb", b"aa", b" b",
    b"\x1b[31m", b"c", b"d", b"cd", b"dc", b" c", b"bab", b"e"]
SCORES = [0.0] * 259 + [-10.0, -11, -12, -1, -3, -1, -0.5, -2, -9, -9, -4, -4, -5, -20, -13, -14, -2, -2, -6, -0.5, -15]


def make_tokenizer(path, pieces=PIECES, scores=SCORES):
    with open(path, "wb") as file:
        file.write(struct.pack("<i", max(map(len, pieces))))
        for piece, score in zip(pieces, scores, strict=True):
            file.write(struct.pack("<fi", score, len(piece)) + piece)
    return str(path)


# Shapes of version 1 have a twin of version 0, for plain.py, with the same weights
SHAPES = {
    "multi-head": {},
    "grouped": {"n_kv_heads": 2, "shared": False},
    "multi-query": {"n_heads": 2, "n_kv_heads": 1, "dim": 12, "hidden_dim": 20},
    "version 1": {"version": 1, "n_heads": 6, "n_kv_heads": 3, "dim": 24},
    "version 1, unshared": {"version": 1, "shared": False},
}


def edited(path, target, offset, form, *values):
    with open(path, "rb") as file:
        data = bytearray(file.read())
    struct.pack_into("<" + form, data, offset, *values)
    with open(target, "wb") as file:
        file.write(data)
    return str(target)


# ----------------------------------------------------------------------------
# Numbers

ordinary = st.floats(-8, 8, width=32)
any_float = st.floats(allow_nan=False, allow_infinity=False, width=32)
awkward = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149), 2.0**-126, 1 + 2.0**-23, 1 - 2.0**-24,
                           2.0**24,
                           2.0**24 + 2, 2.0**100, -(2.0**100), 2.0**-100, 3.4028234663852886e38, 1.5, 2.0**-24,
                           2.0**-25])
vectors = st.integers(1, 12).flatmap(lambda n: st.tuples(*[st.lists(
    st.one_of(ordinary, any_float, awkward), min_size=n, max_size=n)] * 2))


# ----------------------------------------------------------------------------
# Commands

def command(capfdbinary, *args, program=llama2_command):
    """Run the command line in this process -> exit code, standard output, standard error."""
    capfdbinary.readouterr()
    code = program.main([str(arg) for arg in args])
    out, err = capfdbinary.readouterr()
    return code, out, err.decode()


def failure(capfdbinary, *args, program=llama2_command, code=2):
    """Run a command that must fail, with one line on standard error and nothing on standard output -> that line."""
    got, out, err = command(capfdbinary, *args, program=program)
    assert got == code and out == b"" and err.count("\n") == 1 and err.endswith("\n"), (got, out, err)
    name = program.PROGRAM
    assert err.startswith(f"{name}: error: "), err
    return err.removeprefix(f"{name}: error: ").rstrip("\n")


def process(*args, program="llama2.py", **more):
    """Run the command line in a process of its own."""
    arguments = [str(arg).encode("utf-8", "surrogateescape") for arg in args]
    return subprocess.run([sys.executable, os.path.join(HERE, program), *arguments], capture_output=True,
                          stdin=subprocess.DEVNULL, **more)


def written(pieces, like=None):
    out = io.BytesIO()
    write = console.printer(out, like)
    for piece in pieces:
        write(piece)
    return out.getvalue()


def interruptible():
    """For a new process, since a shell has its background jobs ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def door(name):
    """A file of the top level as a module, whatever other module has its name."""
    spec = importlib.util.spec_from_file_location(f"the_{name.removesuffix('.py')}", os.path.join(HERE, name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ----------------------------------------------------------------------------
# Judges: plain.py as it is, and with the sums and functions of the dialect `c`

def bits(values):
    return struct.pack(f"<{len(values)}f", *values)


def rounded(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def c_function(name, *types):
    function = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * len(types)
    return function


def c_total(x):
    result = 0.0
    for v in x:
        result = rounded(result + v)
    return result


def c_dot(a, b):
    return c_total(rounded(x * y) for x, y in zip(a, b, strict=True))


def plain_with(name, **functions):
    """A second plain.py, with other functions in place of its own."""
    spec = importlib.util.spec_from_file_location(name, plain.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for function in functions:
        assert hasattr(module, function)
    vars(module).update(functions)
    return module


plain_c = plain_with("plain_c", dot=c_dot, total=c_total, exp=c_function("expf", 1), power=c_function("powf", 1, 2),
                     cos=c_function("cosf", 1), sin=c_function("sinf", 1))
JUDGES = {"exact": plain, "c": plain_c}


def forward_definition(arithmetic, path, tokens):
    """path: a checkpoint, version 0. Yield for each position the list of (layer, op, values) and the logits."""
    judge = JUDGES[arithmetic]
    model = judge.Model(path)
    for pos, token in enumerate(tokens):
        ops = []

        def see(layer, op, values, ops=ops):
            ops.append((layer, op, bits(values)))
            return values

        logits = judge.forward(model, token, pos, see)
        yield ops, bits(logits)


def run_forward(path, arithmetic, tokens, workers=1):
    with llama2.Transformer(path, arithmetic, workers) as transformer:
        for pos, token in enumerate(tokens):
            ops = []
            logits = transformer.forward(
                token, pos, lambda layer, op, values, ops=ops: ops.append((layer, op, bits(values))))
            yield ops, logits.tobytes()


# ----------------------------------------------------------------------------
# A model that says what it is told to


class Scripted:
    """A model whose likeliest next token is the script's."""

    def __init__(self, script, seq_len=64):
        self.script, self.calls = script, []
        self.config = Config(0, 0, 0, 0, 0, 280, seq_len)
        self.checkpoint = self
        self.path, self.ends = "scripted.bin", (1,)

    def forward_chunk(self, tokens, pos, observers=(), skip=0):
        self.calls.append((list(tokens), pos, skip))
        rows = []
        for i in range(pos + skip, pos + len(tokens)):
            rows.append(array("f", bytes(4 * 280)))
            rows[-1][self.script[i]] = 1.0
        return rows

    def forward(self, token, pos, observe=None, logits=True):
        return (self.forward_chunk([token], pos, skip=0 if logits else 1) or [None])[0]


def tell(model, tokenizer, tokens, steps, **more):
    return [(step.pos, step.token, step.next, step.piece) for step in llama2.generate(
        model, tokenizer, llama2.Sampler(0.0), tokens, steps, **more)]


# ----------------------------------------------------------------------------
# Traces

OPTIONS = ["-s", "7", "-n", "14", "-i", "ab 😀a"]


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
    return encode({**json.loads(line), **fields})


def noticed(capfdbinary, model, path, *more):
    code, out, err = command(capfdbinary, *model, "--verify", path, *more)
    assert code in (1, 2) and out == b"" and err.count("\n") == 1 and "Traceback" not in err, (code, out, err)
    return err
