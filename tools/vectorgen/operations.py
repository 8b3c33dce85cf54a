"""The test vectors of single operations: what an operation is given, what it must give, and which mistakes show there.

    test = Norm([0.5, -1.0], [1.0, 2.0])
    test.expected()     # (n): the exact arithmetic's result
    test.bound()        # (n): how far a correct float32 program may be from it
    test.results(kind)  # what a program gives that makes a mistake, once for each operation that the vector stands for

What is computed here is computed elsewhere: llama2.py's blocks give the results, doctor/operations.py the errors, and
doctor/mistakes/ the mistakes. An operation sees a model of one layer in which nothing is but what the vector gives. A
mistake that needs anything else cannot show in it, and has to show in a whole model.
"""
from collections.abc import Iterator, Sequence
from typing import Any

import llama2
from llama2_py.doctor.errors import FLUSHED
from llama2_py.doctor.operations import Operations
from llama2_py.engine.arithmetic import ARITHMETIC
from llama2_py.engine.checkpoint import Config
from llama2_py.engine.graph import NORMS, PRODUCTS
from llama2_py.engine.rows import Rows, split

Vector = Sequence[float]
Matrix = Sequence[Vector]
Result = Sequence[float] | None

EXACT = ARITHMETIC["exact"]
CONTEXT = 4096       # seq_len of the models: the longest position that a vector has is 2,600
DIGITS = 1e-8        # of itself: a number of nine digits is off by half of that at most
FAILS = (ValueError, OverflowError, ZeroDivisionError, IndexError)  # what a mistake can end in


class Absent:
    """A part of a model that a vector does not give."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class OneLayer(Absent):
    """A model of one layer that has these tensors only: {name: its rows}. It is its own checkpoint."""

    def __init__(self, config: Config, **given: Matrix):
        self.config, self.given = config, given
        self.group = config.n_heads // config.n_kv_heads
        self.checkpoint = self
        self.tensors = {name: (0, len(rows), len(rows[0])) for name, rows in given.items()}
        layer = Absent()
        self.layers = [layer]
        for name, rows in given.items():
            holder = self if name in ("classifier", "rms_final") else layer
            value = rows[0] if name in NORMS.values() else self.matrix(name)
            setattr(holder, name, value)

    def matrix(self, name: str) -> Rows:
        """A matrix as a model has it."""
        _, n, columns = self.tensors[name]
        return Rows(lambda first, last, check: self.rows(name, 0, first, last), self.release, EXACT, range(n), columns,
                    unpacked=True)

    def rows(self, name: str, l: int = 0, first: int = 0, last: int | None = None) -> list[tuple[float, ...]]:
        """Rows first .. last - 1 of a tensor, as Checkpoint.rows."""
        return list(map(tuple, self.given[name][first:last]))

    def release(self) -> None:
        """As Checkpoint.release."""

    def embedding(self, token: int) -> tuple[float, ...]:
        """A row of the embedding, as Shard.embedding."""
        return self.rows("embedding")[token]


class Test:
    """A test vector. A class derived from it says what is given, and as what a model would see it."""

    file = ""                         # the name of its file, without .json
    roles: tuple[str, ...] = ()       # the operations that it stands for
    pos = 0
    result = "valid"

    def __init__(self, comment: str, **fields: Any):
        """fields: as the file has them."""
        self.comment, self.fields = comment, fields
        for name, value in fields.items():
            setattr(self, name, value)

    def config(self) -> Config:
        """The shape of a model that has this operation."""
        raise NotImplementedError

    def expected(self, A: Any = EXACT) -> Vector:
        """An arithmetic's result, (n): of the exact one, what is expected."""
        raise NotImplementedError

    def tensors(self, role: str) -> dict[str, Matrix]:
        """The tensors of a model that the operation `role` of this vector reads."""
        return {}

    def inputs(self, role: str) -> dict[tuple[str, int | None, int], Vector]:
        """The results of other operations that it reads: {(operation, layer, position): values}."""
        raise NotImplementedError

    def tokens(self) -> list:
        """The tokens of the run."""
        return [None] * (self.pos + 1)

    def operations(self, kind: type[Operations], role: str) -> Operations:
        """The operations, right or with a mistake, of a model that has what this vector gives."""
        given = self.inputs(role)
        shard = OneLayer(self.config(), **self.tensors(role))
        return kind(shard, self.tokens(), lambda op, l, pos: given.get((op, l, pos)))

    def layer(self, role: str) -> int | None:
        """Where the operation stands."""
        return None if role in ("embedding", "final_norm", "logits") else 0

    def bound(self) -> list[float]:
        """How far a float32 program may be from the expected numbers, (n): from the real result as far as its bound,
        which the exact arithmetic's is from it already; and nine digits are not all."""
        role = self.roles[0]
        operations = self.operations(Operations, role)
        y = operations.result(role, self.layer(role), self.pos)
        assert y is not None
        _, bounds = operations.errors(role, self.layer(role), self.pos, y)
        here = self.expected()
        return [b + abs(e - v) + DIGITS * abs(e) + FLUSHED for b, e, v in zip(bounds, here, y, strict=True)]

    def results(self, kind: type[Operations]) -> Iterator[Result]:
        """The results of a mistake, (n) each; None where it needs what the vector does not give, or fails."""
        for role in self.roles:
            try:
                yield self.operations(kind, role).result(role, self.layer(role), self.pos)
            except FAILS:
                yield None


class Embedding(Test):
    """table (vocab, dim), token -> its row. It stands at position 1, so that no mistake about BOS shows."""
    file = "embedding"
    roles = ("embedding",)
    pos = 1
    table: Matrix
    token: int

    def config(self):
        dim = len(self.table[0])
        return Config(dim, dim, 1, 1, 1, len(self.table), CONTEXT)

    def expected(self, A=EXACT):
        return self.table[self.token]

    def tensors(self, role):
        return {"embedding": self.table}

    def inputs(self, role):
        return {}

    def tokens(self):
        return [None, self.token]


class Norm(Test):
    """x (n), weight (n) -> (n)"""
    file = "rmsnorm"
    roles = tuple(NORMS)
    x: Vector
    weight: Vector

    def config(self):
        return Config(len(self.x), len(self.x), 1, 1, 1, 1, CONTEXT)

    def expected(self, A=EXACT):
        return llama2.rmsnorm(A, self.x, self.weight)

    def tensors(self, role):
        return {NORMS[role]: [self.weight]}

    def inputs(self, role):
        read = {"attention_norm": ("embedding", None), "ffn_norm": ("attention_residual", 0),
                "final_norm": ("ffn_residual", 0)}
        return {(*read[role], 0): self.x}


class Product(Test):
    """w (rows, n), x (n) -> (rows). q and k are no roles: RoPE has vectors of its own."""
    file = "matvec"
    roles = tuple([op for op in PRODUCTS if op not in ("q", "k")])
    w: Matrix
    x: Vector

    def config(self):
        n = len(self.x)  # also of what is hidden: mistakes look for what n leaves over
        return Config(n, n, 1, 1, 1, len(self.w), CONTEXT)

    def expected(self, A=EXACT):
        return A.dots(A.Matrix(list(map(tuple, self.w))), A.operand(self.x))

    def tensors(self, role):
        return {PRODUCTS[role][0]: self.w}

    def inputs(self, role):
        return {(PRODUCTS[role][1], self.layer(role), 0): self.x}


class Rope(Test):
    """x (heads * head_size), pos, head_size, theta -> the same shape"""
    file = "rope"
    roles = ("q", "k")
    x: Vector
    head_size: int
    theta: float
    scaling: dict | None = None

    def config(self):
        heads = len(self.x) // self.head_size
        return Config(len(self.x), len(self.x), 1, heads, heads, 1, CONTEXT, rope_theta=self.theta,
                      rope_scaling=self.scaling)

    def expected(self, A=EXACT):
        return llama2.rope(self.x, *llama2.rope_angles(A, self.pos, self.config()))

    def inputs(self, role):
        return {}

    def operations(self, kind, role):
        return super().operations(given_product(kind, self.x), role)


def given_product(kind: type[Operations], x: Vector) -> type[Operations]:
    """Operations for which the product before RoPE is given, without an error."""
    def product(self, op, l, pos):
        self.products[op, l] = list(x)
        return list(x)

    def exact(self, op, l, pos, y):
        return [0.0] * len(y), [0.0] * len(y)
    return type(kind.__name__, (kind,), {"product": product, "_product_errors": exact})


class ScaledRope(Rope):
    """The same with scaling, as a trace's header has it."""
    file = "rope_scaled"


class OfHeads(Test):
    """An operation of attention."""
    n_heads: int
    n_kv_heads: int

    def head_size(self) -> int:
        """hs"""
        raise NotImplementedError

    def config(self):
        dim = self.n_heads * self.head_size()
        return Config(dim, dim, 1, self.n_heads, self.n_kv_heads, 1, CONTEXT, head_dim=self.head_size())

    def by_head(self, rows: Matrix) -> list[list[Vector]]:
        """rows (pos + 1, kv heads * hs) -> for each query head (pos + 1, hs)."""
        group = self.n_heads // self.n_kv_heads
        parts = [split(row, self.head_size()) for row in rows]
        return [[tuple(part[h // group]) for part in parts] for h in range(self.n_heads)]


class AttentionWeights(OfHeads):
    """q (n_heads * hs), keys (pos + 1, n_kv_heads * hs) -> (n_heads * (pos + 1))"""
    file = "attention_weights"
    roles = ("weights",)
    q: Vector
    keys: Matrix

    def __init__(self, comment, **fields):
        super().__init__(comment, **fields)
        self.pos = len(self.keys) - 1

    def head_size(self):
        return len(self.q) // self.n_heads

    def expected(self, A=EXACT):
        return llama2.attention_weights(A, self.q, list(map(A.Matrix, self.by_head(self.keys))))

    def inputs(self, role):
        keys = {("k", 0, t): key for t, key in enumerate(self.keys)}
        return {("q", 0, self.pos): self.q, **keys}


class AttentionMix(OfHeads):
    """weights (n_heads * (pos + 1)), values (pos + 1, n_kv_heads * hs) -> (n_heads * hs)"""
    file = "attention_mix"
    roles = ("attention",)
    weights: Vector
    values: Matrix

    def __init__(self, comment, **fields):
        super().__init__(comment, **fields)
        self.pos = len(self.values) - 1

    def head_size(self):
        return len(self.values[0]) // self.n_kv_heads

    def expected(self, A=EXACT):
        columns = [list(zip(*rows, strict=True)) for rows in self.by_head(self.values)]
        return llama2.attention(A, self.weights, list(map(A.Matrix, columns)))

    def inputs(self, role):
        values = {("v", 0, t): value for t, value in enumerate(self.values)}
        return {("weights", 0, self.pos): self.weights, **values}


class Swiglu(Test):
    """gate, up (n) -> (n)"""
    file = "swiglu"
    roles = ("swiglu",)
    gate: Vector
    up: Vector

    def config(self):
        return Config(len(self.gate), len(self.gate), 1, 1, 1, 1, CONTEXT)

    def expected(self, A=EXACT):
        return llama2.swiglu(A, self.gate, self.up)

    def inputs(self, role):
        return {("gate", 0, 0): self.gate, ("up", 0, 0): self.up}


class Undefined(Swiglu):
    """The same where exp overflows, of which -ffast-math makes what it will."""
    result = "acceptable"


class Residual(Test):
    """x, change (n) -> (n)"""
    file = "residual"
    roles = ("attention_residual", "ffn_residual")
    x: Vector
    change: Vector

    def config(self):
        return Config(len(self.x), len(self.x), 1, 1, 1, 1, CONTEXT)

    def expected(self, A=EXACT):
        return llama2.residual(self.x, self.change)

    def inputs(self, role):
        if role == "attention_residual":
            return {("embedding", None, 0): self.x, ("attention_out", 0, 0): self.change}
        return {("attention_residual", 0, 0): self.x, ("ffn_out", 0, 0): self.change}


def distance(theirs: Result, expected: Vector, bound: Vector) -> float:
    """How far a result is from the expected one, in bounds, in its worst element; infinite for another length."""
    if theirs is None:
        return 0.0
    if len(theirs) != len(expected):
        return float("inf")
    off = [abs(t - e) / b if b else float("inf") * (t != e) for t, e, b in zip(theirs, expected, bound, strict=True)]
    return float("inf") if any([v != v for v in off]) else max(off)


def differs(theirs: Result, right: Result) -> bool:
    """Is a result of a mistake another one than the right one's?"""
    return theirs is not None and right is not None and list(theirs) != list(right)

