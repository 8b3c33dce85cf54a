"""Whole models: tiny checkpoints, the exact run of each, and how far a float32 program may be from it.

    run = Run(folder, "tiny-mha")         # of folder/tiny-mha.bin, which is checkpoint("tiny-mha", config)
    run.operation(("logits", None, 3))    # what is expected there, and the bound
"""
import functools
import os
from collections.abc import Iterator, Sequence
from math import hypot, sqrt
from random import Random
from struct import pack

import llama2
from llama2_py.doctor.operations import Operations
from llama2_py.engine.arithmetic import ARITHMETIC
from llama2_py.engine.checkpoint import Checkpoint, Config, shapes
from llama2_py.engine.graph import NORMS, sequence
from llama2_py.engine.workers import Shard
from tools.vectorgen.inputs import normals
from tools.vectorgen.operations import DIGITS, FAILS

Place = tuple[str, int | None, int]  # operation, layer, position
Results = dict[Place, Sequence[float]]

EXACT = ARITHMETIC["exact"]
MODELS = {"tiny-mha": Config(16, 22, 2, 4, 4, 288, 32), "tiny-gqa": Config(24, 30, 2, 6, 3, 40, 32, False),
          "tiny-mqa": Config(12, 20, 2, 2, 1, 33, 32)}
COMMENTS = {"tiny-mha": "as many heads of keys as of queries; the classifier is the embedding",
            "tiny-gqa": "two heads of queries share one of keys; a classifier of its own",
            "tiny-mqa": "all heads of queries share one of keys; the classifier is the embedding"}
TOKENS = {"tiny-mha": [1, 260, 17, 270, 270, 3, 285], "tiny-gqa": [1, 17, 5, 39, 23, 17, 2, 8, 11],
          "tiny-mqa": [1, 32, 5, 5, 23, 17, 0]}
SHOWN = {"tiny-mha": (0, 3), "tiny-gqa": (1, 5), "tiny-mqa": (2,)}  # positions of which every operation is shown

# How far a correct program may be: so many times what float32 errs by, which is measured, as the root of the mean
# square over so many noisy runs. Correct programs in every order of summation stayed below 0.6 of that.
TIMES_NOISE = 16
NOISY_RUNS = 24


def checkpoint(name: str, c: Config) -> bytes:
    """A checkpoint of version 0, of weights that keep the activations near 1, with RoPE's tables."""
    parts = {}
    for tensor, (layers, rows, columns) in shapes(c).items():
        spread, mean = spread_of(tensor, columns)
        numbers = normals(f"{name}, {tensor}", layers * rows * columns, spread, mean)
        parts[tensor] = pack(f"<{len(numbers)}f", *numbers)
    own = parts.pop("classifier", b"")
    vocab = c.vocab_size if c.shared_classifier else -c.vocab_size
    head = pack("<7i", c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, vocab, c.seq_len)
    return head + b"".join(parts.values()) + rope_tables(c) + own


def spread_of(tensor: str, columns: int) -> tuple[float, float]:
    """The standard deviation of a tensor's weights, and their mean."""
    if tensor in NORMS.values():
        return 0.3, 1.0
    return (1.0 if tensor == "embedding" else 1.3 / sqrt(columns)), 0.0


def rope_tables(c: Config) -> bytes:
    """The cosines, then the sines, of every position, as older programs read them."""
    turns = [llama2.rope_angles(EXACT, pos, c) for pos in range(c.seq_len)]
    return b"".join([pack(f"<{c.head_size // 2}f", *turn[which]) for which in (0, 1) for turn in turns])


class Run:
    """A run of a model over some tokens."""
    file = "model"
    result = "valid"

    def __init__(self, folder: str, name: str):
        """folder: where the checkpoint lies."""
        self.name = name
        self.comment, self.tokens, self.shown = COMMENTS[name], TOKENS[name], SHOWN[name]
        path = os.path.join(folder, f"{name}.bin")
        self.checkpoint = Checkpoint(path)
        self.config = self.checkpoint.config
        self.shard = Shard(self.checkpoint, EXACT, llama2.forward, 0, 1, unpacked=True)
        self.exact = self.exact_run(path)

    def close(self) -> None:
        """Let go of the checkpoint."""
        self.checkpoint.close()

    def exact_run(self, path: str) -> Results:
        """The exact results of all operations."""
        results: Results = {}
        with llama2.Transformer(path) as model:
            for pos, token in enumerate(self.tokens):
                def keep(l, op, values, pos=pos):
                    results[op, l, pos] = list(values)
                results["logits", None, pos] = list(model.forward(token, pos, keep))
        return results

    def run(self, kind: type[Operations], noise: Iterator[float] | None = None) -> Results:
        """The results of all operations with a mistake; noise: what each is moved by, in its sigma. They end where a
        mistake fails."""
        results: Results = {}
        operations = kind(self.shard, self.tokens, lambda *place: results.get(place))
        for op, l, pos in self.order(kind):
            try:
                y = operations.result(op, l, pos)
            except FAILS:
                return results
            if y is None:
                return results
            if noise is not None:
                sigma, _ = operations.errors(op, l, pos, y)
                y = [v + s * next(noise) for v, s in zip(y, sigma, strict=True)]
            results[op, l, pos] = y
        return results

    def order(self, kind: type[Operations]) -> list[Place]:
        """All operations, position by position, or, where positions depend on later ones, each of all positions."""
        operations = sequence(self.config.n_layers)
        positions = range(len(self.tokens))
        if kind.sees_later:
            return [(op, l, pos) for op, l in operations for pos in positions]
        return [(op, l, pos) for pos in positions for op, l in operations]

    @functools.cached_property
    def bounds(self) -> Results:
        """TIMES_NOISE times the noise of each element, or of its operation if that is larger; nine digits."""
        runs = [self.run(Operations, standard(seed)) for seed in range(NOISY_RUNS)]
        bounds: Results = {}
        for place, exact in self.exact.items():
            errors = [[abs(v - e) for v, e in zip(run[place], exact, strict=True)] for run in runs]
            by_element = [hypot(*column) / sqrt(NOISY_RUNS) for column in zip(*errors, strict=True)]
            whole = hypot(*by_element) / sqrt(len(exact))
            bounds[place] = [TIMES_NOISE * max(own, whole) + DIGITS * abs(e)
                             for own, e in zip(by_element, exact, strict=True)]
        return bounds

    def places(self) -> list[Place]:
        """The operations that are shown, and all logits."""
        shown = [(op, l, pos) for pos in self.shown for op, l in sequence(self.config.n_layers) if op != "logits"]
        return shown + [("logits", None, pos) for pos in range(len(self.tokens))]


def standard(seed: int) -> Iterator[float]:
    """Numbers that are almost normal, without an end."""
    rng = Random(seed)
    while True:
        yield sum([rng.random() for _ in range(12)]) - 6
