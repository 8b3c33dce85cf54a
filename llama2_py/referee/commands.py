"""A dispute about a run, settled without the model: which of two logs is right where they part?

    python3 llama2.py -t 0 -n 4 --trace a.trace --trace-level op     # two programs log the same run, and disagree
    python3 trace.py ask a.trace b.trace                           # where, and what has to be revealed
    python3 trace.py reveal a.trace 15 model.bin > a.reveal        # by a party that has the model
    python3 trace.py rows model.bin w2 0 17 > w2.rows              # by anybody who has it
    python3 trace.py judge a.trace b.trace a.reveal b.reveal w2.rows

A and B are the two logs, in the order in which they are given. They agree up to some event, so its inputs are committed
in both; the header commits to every row of the weights; and in exact arithmetic an operation has one right result. So
the referee needs the inputs of one operation; and, of a product with a matrix, both results, and the one or two rows on
which the first element depends in which they differ. It holds each against its hash, computes that element by
definition, and says who is right: A, B or neither. If a party reveals nothing, or has invented a hash, the whole
operation is computed, from all its rows.

Messages are files of one line each: JSON in ASCII without spaces, keys in this order, numbers as base64 (RFC 4648, with
padding) of little-endian float32, hashes in hexadecimal. The referee believes nothing in them, and reads none that is
larger than what the dispute can take:

    {"format":"llama2.py reveal 1","event":15,"inputs":["BASE64",..],"output":"BASE64"}
        Of the event whose line has this index in the log (the header's is 0): its inputs, all in the order of `ask`, or
        none; and the sender's own result, or "". An input has the hash that the log has for it, a result that of the
        line in dispute. (Where a text alone is in dispute, the input is the tokenizer's file.)
    {"format":"llama2.py rows 1","config":["HEX",..],"rows":[{"tensor":"w2","layer":0,"row":17,"values":"BASE64",
     "path":["HEX",..]},..]}
        Rows of the weights, each with its audit path (RFC 6962, from the leaf up) to the header's `weights`, and the
        path of leaf 0. Leaf 0 is the header's config as it stands there; then each row is a leaf, its float32 as they
        are: embedding; of each layer rms_att (one row), wq, wk, wv, wo, rms_ffn (one row), w1, w2, w3; rms_final (one
        row); and the classifier, unless the model shares it with the embedding, whose rows then stand for its own.
        layer is 0 where there is none.

What it does not settle: whose log is right if the headers differ, for those are two runs; whether the model of the
header is the one that was meant; and in dialect c, where two C libraries can both be right, more than one machine's.
"""
import argparse
import base64
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import llama2
import merkle
from llama2_py import console
from llama2_py.console import VerificationError, need
from llama2_py.engine.arithmetic import ARITHMETIC, from_bytes, to_bytes
from llama2_py.engine.checkpoint import LAYER, Checkpoint, Config, shapes
from llama2_py.engine.graph import NORMS, PRODUCTS, inputs, place, size
from llama2_py.log.events import Layout, encode, is_hash
from llama2_py.log.formats import read
from llama2_py.log.reading import Trace

# ----------------------------------------------------------------------------
# Where the rows of a model stand in the tree over its weights


@dataclass(frozen=True)
class Row:
    """A row of the weights."""
    tensor: str
    layer: int
    row: int

    def __str__(self):
        return f"{self.tensor} {self.layer} {self.row}"


class Leaves:
    """The leaves of the tree over the weights: leaf 0 is the config, then come all tensors' rows, in this order."""

    def __init__(self, config: dict):
        c = Config.of(config)
        tensors = shapes(c)
        self.n_layers, self.shared = c.n_layers, c.shared_classifier
        self.shapes = {name: (rows, columns) for name, (_, rows, columns) in tensors.items()}
        self.shapes.setdefault("classifier", self.shapes["embedding"])
        self.first, at = {"embedding": 1}, 1 + c.vocab_size  # the index of row 0, of a layer's tensors in layer 0
        for name in LAYER:
            self.first[name], at = at, at + self.shapes[name][0]
        self.per_layer = at - self.first[LAYER[0]]
        self.first["rms_final"] = self.first[LAYER[0]] + c.n_layers * self.per_layer
        self.first["classifier"] = self.first["rms_final"] + 1
        self.size = self.first["classifier"] + c.vocab_size * (not c.shared_classifier)

    def tensor(self, name: str) -> str:
        """The tensor that serves as one: a shared classifier is the embedding."""
        return "embedding" if name == "classifier" and self.shared else name

    def index(self, row: Row) -> int:
        """The index of a row's leaf. Raises ValueError if there is no such row."""
        outside = row.tensor in ("embedding", "rms_final", "classifier")
        if (row.tensor not in self.shapes or not 0 <= row.layer < (1 if outside else self.n_layers)
                or not 0 <= row.row < self.shapes[row.tensor][0]):
            raise ValueError(f"the model has no row {row}")
        return self.first[self.tensor(row.tensor)] + row.layer * self.per_layer + row.row


# ----------------------------------------------------------------------------
# What decides an event


@dataclass
class Input:
    """A vector (n), or a file, on which a result depends."""
    name: str
    event: int        # whose line commits to it; 0: the header
    n: int            # numbers; of a file, at most so many bytes
    committed: str    # its SHA-256
    is_file: bool = False


@dataclass
class Task:
    """How the result of an event is computed."""
    op: str           # an operation's name; logits; next or text, of a step's line
    layer: int | None
    pos: int
    n: int            # numbers of the result; 0 for next and text
    inputs: list[Input]
    tensor: Row | None  # the first row of the tensor that it needs
    rows: int         # how many of them there are; an embedding needs one alone
    single: bool      # can one element be computed by itself?


class Event:
    """An event of a log, and what its result follows from."""

    def __init__(self, log: Trace, index: int, kind: str = "logits"):
        """kind: what is asked of a step's line: logits, next or text. Raises ValueError if there is no such event."""
        if not log.provable or log.header["level"] != "op":
            raise VerificationError(log.path, "level", "op", "llama2-rs" if not log.provable else log.header["level"])
        if not 0 < index < len(log):
            raise ValueError(f"{log.path}: has no event {index}; it has 1 to {len(log) - 1}")
        self.log, self.index, self.header, self.layout = log, index, log.header, Layout(log.header)
        self.config, self.leaves = Config.of(self.header["config"]), Leaves(self.header["config"])
        self.arithmetic = ARITHMETIC[self.header["arithmetic"]]
        self.task = self._task(kind)

    def where(self) -> str:
        """The event's place, for the eye."""
        return place(self.task.op, self.task.layer, self.task.pos)

    def _input(self, op, pos, l):
        """The result of another operation."""
        index = self.layout.operation(pos, op, l)
        event = self.log.event(index)
        return Input(place(op, l, pos), index, size(self.config, op, pos), event.get("sha256") or event["logits"])

    def _task(self, kind):
        where = self.layout.place(self.index)
        pos, l, op = where["pos"], where.get("layer"), where.get("op", kind)
        if op == "next":
            return Task(op, l, pos, 0, [self._input("logits", pos, None)], None, 0, False)
        if op == "text":
            tokenizer = Input("the tokenizer's file", 0, 2**24, self.header["tokenizer"], True)
            return Task(op, l, pos, 0, [tokenizer], None, 0, False)
        n, single = size(self.config, op, pos), op in PRODUCTS
        vectors = [self._input(name, t, layer) for name, layer, positions in inputs(op, l, pos, self.config.n_layers)
                   for t in positions]
        if op == "embedding":
            token = self.log.event(self.layout.step(pos - 1))["next"] if pos else self.header["tokens"][0]
            return Task(op, l, pos, n, vectors, Row("embedding", 0, token), 1, single)
        tensor = PRODUCTS[op][0] if single else NORMS.get(op)
        first = tensor and Row(tensor, l or 0, 0)
        return Task(op, l, pos, n, vectors, first, n if single else 1 if tensor else 0, single)

    # -- the operations, by the blocks of llama2.py

    def compute(self, inputs: Sequence, rows: Sequence[Sequence[float]], element: int | None) -> Any:
        """inputs as in task, the rows that needed() names -> the result: of an operation the numbers, of which those
        that the rows give; else the next token, or the text."""
        t, A, hs = self.task, self.arithmetic, self.config.head_size
        if t.op == "next":
            return self._next(inputs[0])
        if t.op == "text":
            return self._text(inputs[0])
        if t.op == "embedding":
            return rows[0]
        if t.op in NORMS:
            return llama2.rmsnorm(A, inputs[0], rows[0], self.config.norm_epsilon)
        if t.op in ("attention_residual", "ffn_residual"):
            return llama2.residual(*inputs)
        if t.op == "swiglu":
            return llama2.swiglu(A, *inputs)
        if t.op in ("weights", "attention"):
            heads = [[x[h * hs:(h + 1) * hs] for x in inputs[1:]] for h in range(self.config.n_kv_heads)]
            group = self.config.n_heads // self.config.n_kv_heads
            if t.op == "weights":
                matrices = [A.Matrix(keys) for keys in heads]
            else:
                matrices = [A.Matrix(list(zip(*values, strict=True))) for values in heads]
            block = llama2.attention_weights if t.op == "weights" else llama2.attention
            return block(A, inputs[0], [matrix for matrix in matrices for _ in range(group)])
        product = A.dots(A.Matrix(rows), A.operand(inputs[0]))
        if t.op not in ("q", "k"):
            return product
        cos, sin = llama2.rope_angles(A, t.pos, self.config)
        if element is not None:
            pair = element % hs // 2
            cos, sin = [cos[pair]], [sin[pair]]
        return llama2.rope(product, cos, sin)

    def _next(self, logits):
        h, forced = self.header, self.header["tokens"]
        if self.task.pos + 1 < len(forced):
            return forced[self.task.pos + 1]
        sampler = llama2.Sampler(h["temperature"], h["p_value"], h["seed"], h["rng"], h["arithmetic"])
        if sampler.temperature:
            for _ in range(self.task.pos + 1 - len(forced)):  # the coins of the steps before
                sampler.coin()
        return sampler.sample(logits)

    def _text(self, data):
        event = self.log.event(self.index)
        piece = llama2.Tokenizer("the tokenizer's file", self.config.vocab_size, data).decode(event["token"],
                                                                                            event["next"])
        return piece.decode("utf-8", "backslashreplace")

    def needed(self, element: int | None) -> list[Row]:
        """The rows on which an element depends, or, if it is None, the whole result."""
        t = self.task
        if t.tensor is None:
            return []
        if not t.single or element is None:
            return [Row(t.tensor.tensor, t.tensor.layer, t.tensor.row + i) for i in range(t.rows)]
        elements = [element // 2 * 2, element // 2 * 2 + 1] if t.op in ("q", "k") else [element]
        return [Row(t.tensor.tensor, t.tensor.layer, i) for i in elements]

    def limit(self) -> int:
        """Bytes that a message may have."""
        t = self.task
        columns = self.leaves.shapes[t.tensor.tensor][1] if t.tensor else 0
        size = sum(i.n if i.is_file else 4 * i.n for i in t.inputs) + 4 * t.n + 4 * t.rows * columns
        return 2**16 + size * 3 // 2 + max(t.rows, 4) * (200 + 80 * self.leaves.size.bit_length())


class Dispute(Event):
    """Two logs of one run, and the event in which they part."""

    def __init__(self, a: Trace, b: Trace):
        """Raises VerificationError if they cannot be compared, or do not part."""
        if a.lines[0] != b.lines[0]:
            name = next((name for name in a.header if a.header[name] != b.header.get(name)), "format")
            error = VerificationError(f"{b.path}, line 1 (header)", name, a.header[name], b.header.get(name))
            error.hint = "; with two headers these are two runs, between which the referee cannot choose"
            raise error
        count = min(len(a), len(b))
        index = next((i for i in range(count) if a.lines[i] != b.lines[i]), 0)
        if not index:
            raise VerificationError(b.path, "lines", "a difference", f"none in {count}")
        events = [log.event(index) for log in (a, b)]
        kind = next((kind for kind in ("logits", "next", "text") if events[0].get(kind) != events[1].get(kind)), "")
        super().__init__(a, index, kind)
        self.claims = [event.get("sha256") or event[kind] for event in events]  # what A and B say


# ----------------------------------------------------------------------------
# Messages


def base64_of(data: bytes) -> str:
    """RFC 4648, with padding."""
    return base64.b64encode(data).decode()


REVEAL = {"format": "llama2.py reveal 1", "event": int, "inputs": list, "output": str}
ROWS = {"format": "llama2.py rows 1", "config": list, "rows": list}
ONE_ROW = {"tensor": str, "layer": int, "row": int, "values": str, "path": list}


def fits(value: Any, schema: dict) -> bool:
    """Whether a value is an object with a schema's keys, in order, and kinds of values."""
    return type(value) is dict and list(value) == list(schema) and all(
        value[name] == kind if type(kind) is str else type(value[name]) is kind for name, kind in schema.items())


def parse(path: str, data: bytes, parts: int = 10**6) -> dict:
    """A message's bytes -> the message, its base64 decoded. Raises ValueError if it is not the one way to write it, or
    has more than so many parts (which would take much memory)."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > parts:
        raise ValueError(f"{path}: not a message: more than {parts} parts")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not a message: not JSON") from None
    if not (fits(message, REVEAL) or fits(message, ROWS)):
        raise ValueError(f"{path}: neither a message of values, {REVEAL['format']!r}, nor one of rows, "
                         f"{ROWS['format']!r}")
    rows = message.get("rows", [])
    paths = [message.get("config", []), *[row["path"] for row in rows if fits(row, ONE_ROW)]]
    encoded = [*message.get("inputs", []), message.get("output", ""), *[row["values"] for row in rows
                                                                       if fits(row, ONE_ROW)]]
    if not all(fits(row, ONE_ROW) for row in rows):
        raise ValueError(f"{path}: rows: must be objects of {', '.join(ONE_ROW)}")
    if not all(is_hash(h) for hashes in paths for h in hashes):
        raise ValueError(f"{path}: path: must be hashes of 64 hexadecimal digits")
    decoded = []
    for text in encoded:
        try:
            decoded.append(base64.b64decode(text, validate=True) if type(text) is str else None)
        except ValueError:
            decoded.append(None)
        if decoded[-1] is None or base64_of(decoded[-1]) != text:
            raise ValueError(f"{path}: not base64 (RFC 4648): {console.printable(text, 60)}")
    try:
        whole = encode(message)
    except RecursionError:
        whole = b""
    if whole + b"\n" != data:
        raise ValueError(f"{path}: not written as a message is: JSON in ASCII without spaces, on one line")
    if "rows" in message:
        for row, values in zip(rows, decoded[1:], strict=True):
            row["values"] = values
    else:
        message["inputs"], message["output"] = decoded[:-1], decoded[-1]
    return message


def reveal_message(event: int, inputs: Sequence[bytes], output: bytes) -> bytes:
    """A message of values."""
    return encode({"format": REVEAL["format"], "event": event, "inputs": list(map(base64_of, inputs)),
                   "output": base64_of(output)}) + b"\n"


def rows_message(tree: merkle.MerkleTree, config: dict, checkpoint: Checkpoint, rows: Iterable[Row]) -> bytes:
    """A message of rows; tree: the one over the weights (weights_tree)."""
    leaves = Leaves(config)

    def one(row):
        index = leaves.index(row)
        (values,) = checkpoint.rows(leaves.tensor(row.tensor), row.layer, row.row, row.row + 1)
        return {"tensor": row.tensor, "layer": row.layer, "row": row.row, "values": base64_of(to_bytes(values)),
                "path": [h.hex() for h in tree.inclusion_proof(index)]}

    return encode({"format": ROWS["format"], "config": [h.hex() for h in tree.inclusion_proof(0)],
                   "rows": list(map(one, rows))}) + b"\n"


def weights_tree(checkpoint: Checkpoint) -> merkle.MerkleTree:
    """The tree over a model's config and rows."""
    tree = merkle.MerkleTree()
    tree.append(merkle.leaf_hash(encode(checkpoint.config.described())))
    for row in checkpoint.tree_rows():
        tree.append(merkle.leaf_hash(row))
    return tree


# ----------------------------------------------------------------------------
# The judge


@dataclass
class Evidence:
    """What the messages say and the logs commit to."""
    inputs: list | None = None  # vectors, or the tokenizer's file
    outputs: list = field(default_factory=lambda: [None, None])  # of A and B, as bytes
    rows: dict = field(default_factory=dict)                     # Row -> values

    def take(self, dispute: Dispute, path: str, data: bytes) -> str:
        """Check a message and add what it opens -> a word on that. Raises ValueError for what is not a message, and
        VerificationError for one that is not what was committed to."""
        task = dispute.task
        parts = 100 + len(task.inputs) + max(task.rows, 4) * (10 + dispute.leaves.size.bit_length())
        message = parse(path, data, parts)
        return self._rows(dispute, path, message) if "rows" in message else self._values(dispute, path, message)

    def _values(self, dispute, path, message):
        task, opened = dispute.task, []
        if message["event"] != dispute.index:
            raise VerificationError(path, "event", dispute.index, message["event"])
        if message["inputs"]:
            if len(message["inputs"]) != len(task.inputs):
                raise VerificationError(path, "inputs", len(task.inputs), len(message["inputs"]))
            for wanted, data in zip(task.inputs, message["inputs"], strict=True):
                self._check(path, wanted.name, data, None if wanted.is_file else wanted.n, wanted.committed)
            self.inputs = [data if wanted.is_file else from_bytes(data)
                           for wanted, data in zip(task.inputs, message["inputs"], strict=True)]
            opened.append("the inputs")
        if message["output"]:
            digest = hashlib.sha256(message["output"]).hexdigest()
            claims = dispute.claims
            if digest not in claims or not task.n:
                raise VerificationError(path, "output", " or ".join(map(str, claims)), digest)
            self._check(path, "output", message["output"], task.n, digest)
            self.outputs[claims.index(digest)] = message["output"]
            opened.append(f"the result of {'AB'[claims.index(digest)]}")
        return " and ".join(opened) or "nothing"

    @staticmethod
    def _check(path, name, data, n, committed):
        if n is not None and len(data) != 4 * n:
            raise VerificationError(path, f"{name}: size", 4 * n, len(data))
        digest = hashlib.sha256(data).hexdigest()
        if digest != committed:
            raise VerificationError(path, name, committed, digest)

    def _rows(self, dispute, path, message):
        root, leaves = bytes.fromhex(dispute.header["weights"]), dispute.leaves

        def check(name, leaf, index, hashes):
            try:
                merkle.verify_inclusion(merkle.leaf_hash(leaf), index, leaves.size, list(map(bytes.fromhex, hashes)),
                                        root)
            except merkle.ProofError as error:
                raise VerificationError(path, name, f"leaf {index} of the header's weights", str(error)) from None

        check("config", encode(dispute.header["config"]), 0, message["config"])
        names = []
        for entry in message["rows"]:
            row = Row(entry["tensor"], entry["layer"], entry["row"])
            try:
                index = leaves.index(row)
            except ValueError as error:
                raise VerificationError(path, "row", "one of the model", str(error)) from None
            check(f"row {row}", entry["values"], index, entry["path"])
            self.rows[row] = from_bytes(entry["values"])
            names.append(str(row))
        return f"rows: {len(names)}" if len(names) > 3 else f"rows {', '.join(names)}"


def first_difference(a: bytes, b: bytes) -> int:
    """The first element in which two results differ, in their bits."""
    return next(i for i in range(len(a) // 4) if a[4 * i:4 * i + 4] != b[4 * i:4 * i + 4])


def missing_rows(dispute: Dispute, evidence: Evidence) -> tuple[int | None, list[Row]]:
    """The element that decides, None for the whole result, and the rows for it that have not been opened."""
    a, b = evidence.outputs
    element = first_difference(a, b) if dispute.task.single and a and b else None
    return element, [row for row in dispute.needed(element) if row not in evidence.rows]


def reveal_command(dispute: Dispute) -> str:
    """The command by which a party reveals what a dispute takes."""
    option = {"next": " --of next", "text": " --of text -z TOKENIZER"}.get(dispute.task.op, "")
    return f"trace.py reveal LOG {dispute.index} CHECKPOINT{option}"


def judge(dispute: Dispute, evidence: Evidence) -> list[str]:
    """What the evidence decides: the lines of the verdict, of which the last is `A is right`, `B is right`, `neither is
    right`, or what is still needed."""
    task, lines = dispute.task, []
    if evidence.inputs is None and task.inputs:
        return [f"needed: the inputs of event {dispute.index}: {reveal_command(dispute)}"]
    element, missing = missing_rows(dispute, evidence)
    if missing:
        silent = [name for name, output in zip("AB", evidence.outputs, strict=True) if task.single and not output]
        first = missing[0]
        which = " ".join(str(row.row) for row in missing) if len(missing) < 3 else ""
        shorter = f" (or the result of {' and '.join(silent)}, and fewer rows)" if silent else ""
        return [f"needed: {len(missing)} {'row' if len(missing) == 1 else 'rows'} of {first.tensor}: trace.py rows "
                + f"CHECKPOINT {first.tensor} {first.layer} {which}".strip() + shorter]
    rows = [evidence.rows[row] for row in dispute.needed(element)]
    try:
        result = dispute.compute(evidence.inputs or [], rows, element)
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise VerificationError(dispute.log.path, "inputs", "numbers that a run can have", str(error)) from None
    if element is not None:
        own = result[element % 2] if task.op in ("q", "k") else result[0]
        claimed = [output[4 * element:4 * element + 4] for output in evidence.outputs]
        (of_a,), (of_b,) = map(from_bytes, claimed)
        lines.append(f"element {element} of {task.n}: A {of_a!r}, B {of_b!r}, by definition {own!r}")
        right = [to_bytes([own]) == bits for bits in claimed]
    else:
        claimed = hashlib.sha256(to_bytes(result)).hexdigest() if task.n else result
        lines.append(f"A {console.printable(dispute.claims[0], 100)}, B {console.printable(dispute.claims[1], 100)}, "
                     f"by definition {console.printable(claimed, 100)}")
        right = [claimed == claim for claim in dispute.claims]
    if dispute.header["arithmetic"] == "c":
        lines.append("in dialect c this holds for the C library of the machine that judged")
    return [*lines, "A is right" if right[0] else "B is right" if right[1] else "neither is right"]


# ----------------------------------------------------------------------------
# The parties


class Party:
    """Somebody who has a model, and makes the run of a log again up to an event."""

    def __init__(self, event: Event, checkpoint: str, tokenizer: str | None = None):
        self.event, self.tokenizer, self.results = event, tokenizer, {}  # results: index of an event -> its bytes
        log, layout = event.log, event.layout
        with llama2.Transformer(checkpoint, log.header["arithmetic"]) as model:
            if model.config.described() != log.header["config"]:
                raise VerificationError(f"{log.path}, line 1 (header)", "config", model.config.described(),
                                        log.header["config"])
            token = log.header["tokens"][0]
            for pos in range(event.task.pos + 1):
                seen = []
                row = model.forward(token, pos, lambda layer, op, values, seen=seen: seen.append(values))
                for i, values in enumerate([*seen, row], pos * layout.lines + 1):
                    self.results[i] = to_bytes(values)
                if pos < event.task.pos:
                    token = log.event(layout.step(pos))["next"]

    def inputs(self) -> list[bytes]:
        """The inputs of the event. Raises VerificationError if they are not those of the log."""
        found = []
        for wanted in self.event.task.inputs:
            if wanted.is_file and self.tokenizer is None:
                raise ValueError("the event is settled by the tokenizer's file: give it with -z")
            found.append(console.read_file(self.tokenizer) if wanted.is_file else self.results[wanted.event])
            digest = hashlib.sha256(found[-1]).hexdigest()
            if digest != wanted.committed:
                raise VerificationError(self.event.log.path, wanted.name, wanted.committed, digest)
        return found

    def output(self) -> bytes:
        """The numbers that the model has for the event; none where it has no numbers of its own."""
        return self.results[self.event.index] if self.event.task.n else b""


# ----------------------------------------------------------------------------
# Command line


def read_dispute(args: argparse.Namespace) -> Dispute:
    """The dispute of two log files, held against the heads that were published."""
    logs = [read(args.a), read(args.b)]
    for log, published in zip(logs, args.roots or [], strict=False):
        log.check_head(published)
    return Dispute(*logs)


def ask(args: argparse.Namespace, out: TextIO) -> int:
    """Where two logs part, and what has to be revealed."""
    show(read_dispute(args), out)
    return 0


def show(dispute: Dispute, out: TextIO) -> None:
    """Print what a dispute is about, and what it takes to settle it."""
    task = dispute.task
    print(f"the logs part at event {dispute.index}: {dispute.where()}", file=out)
    for name, claim in zip("AB", dispute.claims, strict=True):
        print(f"  {name}: {console.printable(claim, 100)}", file=out)
    print("to be revealed: " + (", ".join(wanted.name for wanted in task.inputs[:3])
                                + (f", .. ({len(task.inputs)} in all)" if len(task.inputs) > 3 else "")
                                or "no inputs")
          + (", and the results of both" if task.single else ""), file=out)
    print(f"  {reveal_command(dispute)}", file=out)
    if task.tensor:
        what = "ROW, without a ROW all of them" if task.single else str(task.tensor.row)
        print(f"  trace.py rows CHECKPOINT {task.tensor.tensor} {task.tensor.layer} {what}", file=out)


def reveal(args: argparse.Namespace, out: TextIO) -> int:
    """A message of values."""
    event = Event(read(args.trace), args.event, args.of)
    party = Party(event, args.checkpoint, args.tokenizer)
    inputs, output = ([] if args.output else party.inputs()), party.output()
    said = event.log.event(event.index)
    claim = said.get("sha256") or said["logits"]
    if output and hashlib.sha256(output).hexdigest() != claim:
        if args.output:
            raise VerificationError(event.log.path, event.where(), claim, hashlib.sha256(output).hexdigest())
        output = b""
        console.say("the model does not give what the log says for this event: only its inputs are revealed")
    out.write(reveal_message(event.index, inputs, output).decode())
    return 0


def rows(args: argparse.Namespace, out: TextIO) -> int:
    """A message of rows."""
    with contextlib.closing(Checkpoint(args.checkpoint)) as checkpoint:
        config = checkpoint.config.described()
        leaves = Leaves(config)
        need("tensor", args.tensor, args.tensor in leaves.shapes, ", ".join(leaves.shapes))
        wanted = [Row(args.tensor, args.layer, row) for row in args.row or range(leaves.shapes[args.tensor][0])]
        for row in wanted:
            leaves.index(row)  # refuses what is not there
        out.write(rows_message(weights_tree(checkpoint), config, checkpoint, wanted).decode())
    return 0


def take_all(dispute: Dispute, evidence: Evidence, paths: Sequence[str], taken: Callable) -> list[Exception]:
    """Check the messages of files; taken(path, data, what it opened) is called for each -> why others were left out."""
    refused = []
    for path in paths:
        try:
            data = console.read_file(path, dispute.limit())
            taken(path, data, evidence.take(dispute, path, data))
        except (VerificationError, ValueError) as error:
            refused.append(error)
    return refused


def conclude(dispute: Dispute, evidence: Evidence, refused: list[Exception], args, out: TextIO) -> int:
    """Print the verdict. A message that was refused does not stand in its way; if one is missing, it is the error."""
    lines = judge(dispute, evidence)
    if not args.roots:
        lines.insert(0, "the logs were not held against heads that were published (--roots)")
    if refused and lines[-1].startswith("needed"):
        raise refused[0]
    for error in refused:
        console.say(f"trace.py: not taken into account: {error}")
    print(*lines, sep="\n", file=out)
    return 0


def decide(args: argparse.Namespace, out: TextIO) -> int:
    """The verdict over messages."""
    dispute, evidence = read_dispute(args), Evidence()
    refused = take_all(dispute, evidence, args.messages, lambda *message: None)
    return conclude(dispute, evidence, refused, args, out)


def settle(args: argparse.Namespace, out: TextIO) -> int:
    """Play the referee, and every party whose log the model reproduces."""
    dispute, evidence = read_dispute(args), Evidence()
    show(dispute, out)
    print(f"{'message':14}{'from':22}{'bytes':>10}  opens", file=out)

    def take(kind, source, name, data):
        opened = evidence.take(dispute, name, data)
        print(f"{kind:14}{source:22}{len(data):10}  {opened}", file=out)

    def taken(path, data, opened):
        print(f"{'rows' if opened.startswith('rows') else 'values':14}{'a file':22}{len(data):10}  {opened}", file=out)

    refused = take_all(dispute, evidence, args.messages, taken)
    party = Party(dispute, args.checkpoint, args.tokenizer)
    output = party.output()
    digest = hashlib.sha256(output).hexdigest()
    side = dispute.claims.index(digest) if output and digest in dispute.claims else None
    wanted = [] if evidence.inputs is not None else party.inputs()
    if wanted or side is not None and evidence.outputs[side] is None:
        take("values", "whoever has the model" if side is None else "AB"[side], "the model's values", reveal_message(
            dispute.index, wanted, b"" if side is None else output))
    _, missing = missing_rows(dispute, evidence)
    if missing:
        with contextlib.closing(Checkpoint(args.checkpoint)) as checkpoint:
            take("rows", "whoever has the model", "the model's rows", rows_message(
                weights_tree(checkpoint), dispute.header["config"], checkpoint, missing))
    return conclude(dispute, evidence, refused, args, out)
