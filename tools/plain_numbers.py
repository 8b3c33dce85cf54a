"""The embedded model's own numbers, for the page of plain.py: one run of "Once upon", and what each part does in it.

An example is a function of the run that gives rows: a label, and a Vector, a Table, or a text. They call plain's
functions and watch forward with `see`: no number is typed in.
"""
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Union

import plain

TEXT = "Once upon"
CHOICE = "Once upon a time, there was a little"  # a text after which several tokens are likely
HEAD = 3         # the head of layer 0 that plain.attend works out
SHOWN = 5        # the likeliest tokens in a table
STEPS = 10       # steps of the story
SEED = 1


class Vector(NamedTuple):
    """Numbers to draw: each head's, or each position's, beside the others."""
    values: Sequence[float]
    groups: int = 1


class Table(NamedTuple):
    """Rows of cells; the first row and the first column are names."""
    rows: Sequence[Sequence[str]]


Shown = Union[Vector, Table, str]
Rows = list[tuple[str, Shown]]


class Run:
    """The model after TEXT, with every result of its last position."""

    def __init__(self, model_path: str, tokenizer_path: str):
        self.m = plain.Model(model_path)
        self.tokenizer = plain.Tokenizer(tokenizer_path, self.m.vocab)
        self.seen: dict[tuple[int | None, str], list[float]] = {}  # (layer, op) -> values
        self.tokens = self.tokenizer.encode(CHOICE)
        self.names = [self.name(token) for token in self.tokenizer.encode(TEXT)]
        self.pos = len(self.names) - 1
        for pos in range(self.pos + 1):
            self.logits = plain.forward(self.m, self.tokens[pos], pos, self.see)
        self.keys = [self.m.keys[0], self.m.values[0]]
        for pos in range(self.pos + 1, len(self.tokens)):
            self.choice = plain.forward(self.m, self.tokens[pos], pos)  # the logits after CHOICE

    def see(self, layer: int | None, op: str, values: list[float]) -> list[float]:
        self.seen[layer, op] = values
        return values

    def name(self, token: int) -> str:
        """A token's text, with its space visible."""
        if token == 1:
            return "BOS"
        piece = self.tokenizer.decode(0, token)
        return piece.decode("utf-8", "backslashreplace").replace(" ", "␣").replace("\n", "⏎")

    def layer_0(self, op: str) -> list[float]:
        return self.seen[0, op]

    def query(self) -> list[float]:
        return self.layer_0("q")[HEAD * self.m.hs:(HEAD + 1) * self.m.hs]

    def cached(self, kind: int) -> list[list[float]]:
        """The keys (0) or values (1) of the head, at each position."""
        first = HEAD // (self.m.n_heads // self.m.n_kv_heads) * self.m.hs
        return [row[first:first + self.m.hs] for row in self.keys[kind]]


def number(x: float) -> str:
    """Two decimals, with a true minus sign; more of them if the number is small."""
    digits = 2 if abs(x) >= 0.1 or x == 0 else 3
    return f"{x:.{digits}f}".replace("-", "\u2212")


def list_of(values: Sequence[float], most: int = 4) -> str:
    """The first of many numbers."""
    more = ", .." if len(values) > most else ""
    return ", ".join(map(number, values[:most])) + more


def length(x: Sequence[float]) -> float:
    return math.sqrt(plain.dot(x, x))


# ----------------------------------------------------------------------------
# What stands beside a function


def of_r(run: Run) -> Rows:
    return [("r(0.1)", str(plain.r(0.1))), ("r(1 / 3)", str(plain.r(1 / 3))), ("r(1e39)", str(plain.r(1e39)))]


def of_dot(run: Run) -> Rows:
    q, key = run.query(), run.cached(0)[-1]
    return [(f"a: a query, of {run.names[-1]}", list_of(q, 8)), ("b: its own key", list_of(key, 8)),
            ("dot(a, b)", number(plain.dot(q, key)))]


def of_exp(run: Run) -> Rows:
    return [(f"exp({x})", str(plain.exp(x))) for x in (1.0, 88.0, 89.0)]


def of_series(run: Run) -> Rows:
    return [("cos(2.0)", str(plain.cos(2.0))), ("sin(2.0)", str(plain.sin(2.0)))]


def of_model(run: Run) -> Rows:
    m = run.m
    of_layers = itertools.chain(m.wq, m.wk, m.wv, m.wo, m.w1, m.w2, m.w3)
    matrices = [m.embedding, m.rms_att, m.rms_ffn, [m.rms_final], *of_layers]
    if m.classifier is not m.embedding:
        matrices.append(m.classifier)
    count = sum(len(row) for matrix in matrices for row in matrix)
    named = {"embedding": m.embedding, "wq, one layer": m.wq[0], "wk, one layer": m.wk[0], "w1, one layer": m.w1[0]}
    shapes: Rows = [(name, f"({len(matrix)}, {len(matrix[0])})") for name, matrix in named.items()]
    return [*shapes, ("all weights", f"{count:,} numbers")]


def of_matvec(run: Run) -> Rows:
    n = run.layer_0("attention_norm")
    return [("x: n of layer 0", Vector(n)), ("matvec(wq, x)", Vector(plain.matvec(run.m.wq[0], n)))]


def of_rmsnorm(run: Run) -> Rows:
    stream, n = run.seen[0, "ffn_residual"], plain.rmsnorm(run.seen[0, "ffn_residual"], [1.0] * len(run.m.rms_final))
    return [("x: the stream after layer 0", Vector(stream)), ("its length", number(length(stream))),
            ("with all w = 1", Vector(n)), ("its length", number(length(n)))]


def scores(run: Run) -> list[float]:
    return [plain.r(plain.dot(run.query(), key) / plain.r(math.sqrt(run.m.hs))) for key in run.cached(0)]


def of_softmax(run: Run) -> Rows:
    x = scores(run)
    return [("x: scores of a head", list_of(x)), ("softmax(x)", list_of(plain.softmax(x)))]


def of_rope(run: Run) -> Rows:
    """The angles of a head's pairs, which are read off from what rope makes of the points (1, 0)."""
    ones = [1.0, 0.0] * (run.m.hs // 2)
    before = plain.matvec(run.m.wq[0], run.layer_0("attention_norm"))[:run.m.hs]
    after = plain.rope(before, run.pos, run.m.hs, run.m.theta)
    turned = plain.rope(ones, run.pos, run.m.hs, run.m.theta)
    angles = [math.degrees(math.atan2(s, c)) for c, s in zip(turned[::2], turned[1::2], strict=True)]
    pairs = [[str(i), number(angles[i]) + "°", *[", ".join(map(number, x[2 * i:2 * i + 2])) for x in (before, after)]]
             for i in range(len(angles))]
    return [(f"head 0 of q, position {run.pos}", Table([["pair", "angle", "before", "after"], *pairs]))]


def of_attend(run: Run) -> Rows:
    q, keys, values = run.query(), run.cached(0), run.cached(1)
    weights, out = plain.attend(q, keys, values)
    flat = [[x for row in rows for x in row] for rows in (keys, values)]
    return [("q", Vector(q)), ("keys, one after another: " + ", ".join(run.names), Vector(flat[0], len(keys))),
            ("weights", Table([run.names, [f"{100 * w:.1f} %" for w in weights]])),
            ("values", Vector(flat[1], len(values))), ("result", Vector(out))]


def of_swiglu(run: Run) -> Rows:
    gate, up, hidden = (run.layer_0(op) for op in ("gate", "up", "swiglu"))
    opened = [plain.r(1 / plain.r(1 + plain.exp(-g))) for g in gate]
    rows = [[number(x) for x in column] for column in itertools.islice(zip(gate, opened, up, hidden, strict=True), 4)]
    half = sum(share < 0.5 for share in opened)
    return [("the first four", Table([["gate", "sigmoid", "up", "result"], *rows])),
            ("less than half open", f"{half} of {len(gate)} gates")]


def of_tokenizer(run: Run) -> Rows:
    tokens = [1, 2, 68, 259, *run.tokens[1:3]]
    return [(str(token), run.tokenizer.pieces[token].decode().replace(" ", "␣").replace("\n", "⏎")) for token in tokens]


def of_encode(run: Run) -> Rows:
    texts = [CHOICE, "Anna", "ü"]
    return [(text, " ".join(map(str, run.tokenizer.encode(text)))) for text in texts]


def of_decode(run: Run) -> Rows:
    first = run.tokens[1]
    return [(f"decode({before}, {first})", repr(run.tokenizer.decode(before, first))) for before in (1, first)]


def of_random(run: Run) -> Rows:
    coin, state = plain.random(SEED)
    second, _ = plain.random(state)
    return [("seed", str(SEED)), ("first number", f"{coin:.4f}"), ("second", f"{second:.4f}")]


def likeliest(logits: list[float], temperature: float = 1.0) -> list[tuple[int, float]]:
    p = plain.softmax([plain.r(x / temperature) for x in logits])
    best = sorted(range(len(p)), key=lambda token: -p[token])[:SHOWN]
    return [(token, p[token]) for token in best]


def of_sample(run: Run) -> Rows:
    """The likeliest tokens at three temperatures, and what the seed's first coin takes."""
    heats = [0.5, 1.0, 2.0]
    columns = [likeliest(run.choice, heat) for heat in heats]
    rows = [[run.name(columns[0][i][0]), *[f"{100 * column[i][1]:.1f} %" for column in columns]] for i in range(SHOWN)]
    coin, _ = plain.random(SEED)
    taken = [run.name(plain.sample(run.choice, heat, 0.9, coin)) for heat in heats]
    return [(f"after “{CHOICE}”", Table([["temperature", *map(str, heats)], *rows,
                                           [f"coin {coin:.4f} takes", *taken]]))]


def of_generate(run: Run) -> Rows:
    model = run.m
    story = list(itertools.islice(plain.generate(model, run.tokenizer, TEXT, SEED), STEPS))
    rows = [[str(pos), run.name(token), run.name(chosen), "given" if pos < run.pos else "chosen"]
            for pos, (token, chosen, _) in enumerate(story)]
    return [(f"seed {SEED}, “{TEXT}”", Table([["pos", "token", "next token", ""], *rows]))]


EXAMPLES: dict[str, Callable[[Run], Rows]] = {
    "r": of_r, "dot": of_dot, "exp": of_exp, "series": of_series, "Model": of_model, "matvec": of_matvec,
    "rmsnorm": of_rmsnorm, "softmax": of_softmax, "rope": of_rope, "attend": of_attend, "swiglu": of_swiglu,
    "Tokenizer": of_tokenizer, "encode": of_encode, "decode": of_decode, "random": of_random, "sample": of_sample,
    "generate": of_generate,
}


# ----------------------------------------------------------------------------
# What stands beside the lines of forward


def seen_by(run: Run, ops: Sequence[tuple[str, str]]) -> Rows:
    """What forward computed under these names: (variable, op). In layer 0, if it is a layer's."""
    m = run.m
    rows: Rows = []
    heads = {"q": m.n_heads, "k": m.n_kv_heads, "v": m.n_kv_heads, "weights": m.n_heads, "attention": m.n_heads}
    for variable, op in ops:
        layer = 0 if (0, op) in run.seen else None
        label = op if variable == op else f"{variable}: {op}"
        rows.append((label, Vector(run.seen[layer, op], heads.get(op, 1))))
    return rows


def after_layers(run: Run) -> Rows:
    """The stream after each layer, and what comes of the last."""
    rows: Rows = []
    for l in range(run.m.n_layers):
        x = run.seen[l, "ffn_residual"]
        rows.append((f"x after layer {l}, length {number(length(x))}", Vector(x)))
    best = [[run.name(token), number(run.logits[token]), f"{100 * p:.2f} %"] for token, p in likeliest(run.logits)]
    table = Table([["token", "logit", "softmax"], *best])
    return [*rows, *seen_by(run, [("x", "final_norm")]), ("logits", Vector(run.logits)), ("the largest", table)]
