"""What decides an event of a log: the inputs of its operation, the rows of the weights, and the operation itself.

    dispute = Dispute(a, b)      # two logs of one run -> the first event in which they part
    dispute.task.inputs          # what its result follows from, each with the hash that both logs have for it
    compute(A, config, "swiglu", 3, [gate, up])    # an operation, by definition

Nothing here believes anybody, and nothing is built from a header's shapes: they cost nothing until numbers arrive.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import llama2
from llama2_py.console import VerificationError
from llama2_py.engine.arithmetic import ARITHMETIC, Arithmetic
from llama2_py.engine.checkpoint import Config
from llama2_py.engine.graph import NORMS, PRODUCTS, RESIDUALS, ROTATED, inputs, place, size
from llama2_py.log.events import Layout
from llama2_py.log.reading import Trace
from llama2_py.log.weights import Leaves, Row

CLAIMS = ("sha256", "logits", "next", "text")  # the fields of a line that follow from something
MOST_TOKENIZER = 2**25  # bytes of a tokenizer's file: that of Llama 3 has 9 million

# ----------------------------------------------------------------------------
# Operations, by the blocks of llama2.py


def compute(A: Arithmetic, config: Config, op: str, pos: int, vectors: Sequence[Sequence[float]],
            rows: Sequence[Sequence[float]] = ()) -> Sequence[float]:
    """The result of an operation at a position, by definition.

    vectors: its inputs in the order of graph.inputs; rows: the token's row of the embedding, the one row of a norm, all
    rows of a matrix. Raises ValueError, OverflowError or ZeroDivisionError for numbers that no run has.
    """
    if op == "embedding":
        return rows[0]
    if op in NORMS:
        return llama2.rmsnorm(A, vectors[0], rows[0], config.norm_epsilon)
    if op in RESIDUALS:
        return llama2.residual(*vectors)
    if op == "swiglu":
        return llama2.swiglu(A, *vectors)
    if op in ("weights", "attention"):
        return by_heads(A, config, op, vectors[0], vectors[1:])
    product = A.dots(A.Matrix(rows), A.operand(vectors[0]))
    return llama2.rope(product, *llama2.rope_angles(A, pos, config)) if op in ROTATED else product


def element_of(A: Arithmetic, config: Config, op: str, pos: int, element: int, products: Sequence[float]) -> float:
    """One element of a matrix times a vector, by the products of the rows on which it depends (Task.rows_of). q and k
    are turned by RoPE."""
    if op not in ROTATED:
        return products[0]
    pair = element % config.head_size // 2
    cos, sin = llama2.rope_angles(A, pos, config, [pair])
    return llama2.rope(products, cos, sin)[element % 2]


def by_heads(A: Arithmetic, config: Config, op: str, x: Sequence[float], cache: Sequence[Sequence[float]]
             ) -> list[float]:
    """weights from q and the keys, or attention from weights and the values: x (heads * n), cache (pos + 1, kv_dim).

    One head of keys or values is unpacked at a time, since all of them take much memory.
    """
    hs = config.head_size
    group = config.n_heads // config.n_kv_heads  # heads of queries that share a head of keys
    part = len(x) // config.n_kv_heads           # numbers of x that belong to them
    result: list[float] = []
    for head in range(config.n_kv_heads):
        own = x[head * part:(head + 1) * part]
        rows = [vector[head * hs:(head + 1) * hs] for vector in cache]
        if op == "weights":
            result += llama2.attention_weights(A, own, [A.Matrix(rows)] * group)
        else:
            columns = list(zip(*rows, strict=True))
            result += llama2.attention(A, own, [A.Matrix(columns)] * group)
    return result


# ----------------------------------------------------------------------------
# Events


@dataclass
class Input:
    """A vector (n), or a file, on which a result depends."""
    name: str
    event: int        # whose line commits to it; 0: the header
    n: int            # numbers; of a file, at most so many bytes
    committed: str    # its SHA-256
    is_file: bool = False

    @property
    def most(self) -> int:
        """Bytes that it may have."""
        return self.n if self.is_file else 4 * self.n


@dataclass
class Task:
    """How the result of an event is computed."""
    op: str             # an operation's name; logits; next or text, of a step's line
    layer: int | None
    pos: int
    n: int              # numbers of the result; 0 for next and text
    inputs: list[Input]
    tensor: Row | None = None  # the first row that it needs
    rows: int = 0              # how many rows it needs, from that one on

    @property
    def is_product(self) -> bool:
        """Is it a matrix times a vector, so that an element can be computed by itself?"""
        return self.op in PRODUCTS

    def rows_of(self, element: int) -> range:
        """The rows on which an element of a product depends."""
        if self.op not in ROTATED:
            return range(element, element + 1)
        even = element - element % 2
        return range(even, even + 2)


class LoggedEvent:
    """An event of a log, and what its result follows from."""

    def __init__(self, log: Trace, index: int, kind: str = "logits"):
        """kind: what is asked of a step's line: logits, next or text. Raises ValueError if there is no such event, and
        VerificationError if the log is not of the level op."""
        level = log.header["level"] if log.provable else "llama2-rs"
        if level != "op":
            raise VerificationError(log.path, "level", "op", level)
        if not 0 < index < len(log):
            raise ValueError(f"{log.path}: has no event {index}; it has 1 to {len(log) - 1}")
        self.log = log
        self.index = index
        self.header = log.header
        self.layout = Layout(log.header)
        self.config = Config.of(log.header["config"])
        self.leaves = Leaves(log.header["config"])
        self.arithmetic = ARITHMETIC[log.header["arithmetic"]]
        self.task = self._task(kind)

    def where(self) -> str:
        """The event's place, for the eye."""
        return place(self.task.op, self.task.layer, self.task.pos)

    def claim(self) -> str:
        """The hash that the log has for the event's numbers."""
        event = self.log.event(self.index)
        return event.get("sha256") or event["logits"]

    def _input(self, op: str, pos: int, layer: int | None) -> Input:
        """The result of another operation."""
        index = self.layout.operation(pos, op, layer)
        event = self.log.event(index)
        committed = event.get("sha256") or event["logits"]
        return Input(place(op, layer, pos), index, size(self.config, op, pos), committed)

    def _task(self, kind: str) -> Task:
        where = self.layout.place(self.index)
        pos, layer, op = where["pos"], where.get("layer"), where.get("op", kind)
        if op == "next":
            return Task(op, layer, pos, 0, [self._input("logits", pos, None)])
        if op == "text":
            tokenizer = Input("the tokenizer's file", 0, MOST_TOKENIZER, self.header["tokenizer"], is_file=True)
            return Task(op, layer, pos, 0, [tokenizer])
        vectors = [self._input(name, t, l) for name, l, positions in inputs(op, layer, pos, self.config.n_layers)
                   for t in positions]
        task = Task(op, layer, pos, size(self.config, op, pos), vectors)
        if op == "embedding":
            task.tensor, task.rows = Row("embedding", 0, self._token(pos)), 1
        elif op in NORMS:
            task.tensor, task.rows = Row(NORMS[op], layer or 0, 0), 1
        elif op in PRODUCTS:
            task.tensor, task.rows = Row(PRODUCTS[op][0], layer or 0, 0), task.n
        return task

    def _token(self, pos: int) -> int:
        """The token at a position."""
        return self.log.event(self.layout.step(pos - 1))["next"] if pos else self.header["tokens"][0]

    # -- what a step's line says, by definition

    def chosen(self, logits: Sequence[float]) -> int:
        """The token that follows from the logits of a step."""
        h, pos = self.header, self.task.pos
        prompt = h["tokens"]
        if pos + 1 < len(prompt):
            return prompt[pos + 1]
        sampler = llama2.Sampler(h["temperature"], h["p_value"], h["seed"], h["rng"], h["arithmetic"])
        if sampler.temperature:
            for _ in range(pos + 1 - len(prompt)):  # the coins of the steps before
                sampler.coin()
        return sampler.sample(logits)

    def decoded(self, tokenizer: bytes, following: int) -> str:
        """The text of a step, by a tokenizer's file and the token that follows."""
        token = self.log.event(self.index)["token"]
        loaded = llama2.load_tokenizer("the tokenizer's file", self.config.vocab_size, tokenizer)
        return loaded.decode(token, following).decode("utf-8", "backslashreplace")


class Dispute(LoggedEvent):
    """Two logs of one run, and the event in which they part."""

    def __init__(self, a: Trace, b: Trace):
        """Raises VerificationError if they cannot be compared, or do not part."""
        if a.lines[0] != b.lines[0]:
            raise two_headers(a, b)
        count = min(len(a), len(b))
        index = next((i for i in range(count) if a.lines[i] != b.lines[i]), 0)
        if not index:
            raise VerificationError(b.path, "lines", "a difference", f"none in {count}")
        self.events = [log.event(index) for log in (a, b)]  # what A and B say
        first, second = self.events
        kind = next((kind for kind in CLAIMS if first.get(kind) != second.get(kind)), "")
        super().__init__(a, index, kind)
        self.kind = kind  # the first field in which they differ
        self.claims = [event[kind] for event in self.events]

    def undecided(self, computed: Sequence[str]) -> list[str]:
        """The fields in which the two lines differ and that are not among those that were computed."""
        first, second = self.events
        return [name for name in CLAIMS if first.get(name) != second.get(name) and name not in computed]


def two_headers(a: Trace, b: Trace) -> VerificationError:
    """The error of two logs that have not one header."""
    name = next((name for name in a.header if a.header[name] != b.header.get(name)), "format")
    error = VerificationError(f"{b.path}, line 1 (header)", name, a.header[name], b.header.get(name))
    error.hint = "; with two headers these are two runs, between which the referee cannot choose"
    return error
