#!/usr/bin/env python3
"""The trace of a run: a log in which every line is a leaf of a Merkle tree, so that its root commits to all of it.

    python3 llama2.py -s 1 -n 2 --trace tale.trace     # write one
    python3 trace.py show tale.trace                   # read it: also root, prove, check, diff

That trace, its hashes and the first line shortened here:

    {"format":"llama2.py trace 1","model":"bae5..","tokenizer":"bbb2..","arithmetic":"exact","rng":"xorshift64*",
     "temperature":1.0,"p_value":0.9,"seed":1,"steps":2,"level":"step","prompt":"","tokens":[1]}     leaf 0, one line
    {"pos":0,"token":1,"next":406,"text":"Once","logits":"bce6.."}                                   leaf 1
    {"pos":1,"token":406,"next":407,"text":" upon","logits":"c0ee.."}                                leaf 2
    {"size":3,"root":"68d5.."}           MTH of RFC 6962 over the leaves: a leaf is its line's bytes without "\n"

model and tokenizer are the files' SHA-256, logits that of the step's logits as little-endian float32. At the levels
`layer` and `op` lines like {"pos":0,"layer":0,"op":"q","sha256":".."} stand before each step's. A line is one JSON
object in ASCII without spaces, its keys in this order; a trace without the last line is of a run that was cut short.

This module knows nothing of the model. It also reads and writes the traces of llama2-rs, at the end.
"""
import argparse
import contextlib
import hashlib
import io
import itertools
import json
import math
import re
import struct
import sys
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TextIO

try:
    import console
    import merkle
except ImportError as error:
    if __name__ != "__main__":
        raise
    print(f"trace.py: error: {error}: console.py and merkle.py are to be beside trace.py (and python3 -P hides them)",
          file=sys.stderr)
    sys.exit(2)

from console import VerificationError, printable, read_file, write_whole

FORMAT, PROOF_FORMAT = "llama2.py trace 1", "llama2.py proof 1"


def encode(event: Any) -> bytes:
    """An event as the line it has in a log."""
    return json.dumps(event, separators=(",", ":")).encode()


def hash_values(values: Sequence[float]) -> str:
    """values (n) -> the SHA-256 of them as little-endian float32, in hexadecimal."""
    values = array("f", values)
    if sys.byteorder == "big":
        values.byteswap()
    return hashlib.sha256(values).hexdigest()


# ----------------------------------------------------------------------------
# Writing and checking: a log comes about event by event, and each is either written down or compared

LEVELS = ("step", "layer", "op")


class Log:
    """The events of a run, in their order. A subclass says what becomes of one: put(event)."""

    rust = False  # as llama2-rs records a run?

    def __init__(self, header: dict):
        """header: the fields of the first event, in order"""
        self.level, self.pos = header.get("level", "step"), 0
        self.put(header if self.rust else {"format": FORMAT, **header})

    def operation(self, layer: int | None, op: str, values: Sequence[float]) -> None:
        """A result within the current step: what Transformer.forward calls `observe` with."""
        if self.level == "op" or self.level == "layer" and op == "ffn_residual":
            place = {} if layer is None else {"layer": layer}
            self.put({"pos": self.pos, **place, "op": op, "sha256": hash_values(values)})

    def step(self, step: Any) -> None:
        """The end of a step (llama2.Step). Bytes of its piece that are not UTF-8 become \\xHH, in llama2-rs U+FFFD."""
        text = step.piece.decode("utf-8", "replace" if self.rust else "backslashreplace")
        self.put({"pos": self.pos, "token": step.token, "next": step.next, "text": text,
                  "logits": hash_values(step.logits)})
        self.pos += 1


class Writer(Log):
    """Writes a log to a file, each line as it comes: a run that dies leaves all the lines that it had made."""

    def __init__(self, path: str, header: dict):
        self.path, self.tree = path, merkle.MerkleTree()
        self.file, self.written = open(path, "wb", buffering=0), 0
        super().__init__(header)

    def put(self, event: dict) -> None:
        """Write an event's line."""
        line = encode(event)
        self._write(line)
        self.tree.append(merkle.leaf_hash(line))

    def _write(self, line):
        line += b"\n"
        try:
            if self.file.write(line) != len(line):
                raise OSError
        except OSError as error:
            if self.file.seekable():
                self.file.truncate(self.written)  # a part of a line would not be a log
            raise OSError(f"{self.path}: {error.strerror or 'the disk is full'}") from None
        self.written += len(line)

    def finish(self) -> None:
        """Write the line that says that the run is whole."""
        self._write(encode({"size": len(self.tree), "root": self.tree.root().hex()}))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class EndOfTrace(Exception):
    """All lines of an incomplete trace have been compared."""


class Checker(Log):
    """Compares a run that is made again with a trace, event by event: VerificationError at the first difference.

    If that is the model's hash, the run goes on to the first result that differs, so that both can be told.
    """

    def __init__(self, trace: "Trace", header: dict):
        self.trace, self.rust, self.count, self.other_model = trace, trace.rust, 0, None
        if self.rust:  # the model may be in another folder
            paths = header["model_path"], trace.header["model_path"]
            if len({re.split(r"[/\\]", path)[-1] for path in paths}) == 1:
                header = {**header, "model_path": paths[1]}
        super().__init__(header)

    def put(self, event: dict) -> None:
        """Compare an event with the next one of the trace."""
        where = self.trace.where(self.count)
        if self.count == len(self.trace.events):
            if not self.trace.root and not self.rust:
                raise EndOfTrace
            raise VerificationError(where, "line", encode(event).decode(), "the end of the trace")
        found = self.trace.events[self.count]
        self.count += 1
        if found.get("next", 0) is None:  # the last entry of llama2-rs
            event = {**event, "next": None}
        if encode(event) == encode(found):
            return
        error = difference(f"{self.other_model}; then {where}" if self.other_model else where, event, found)
        if error.field == "model" and {**found, "model": event["model"]} == event:
            self.other_model = error
        else:
            raise error

    def end(self) -> None:
        """The run is over: is the trace?"""
        if self.count < len(self.trace.events):
            line = encode(self.trace.events[self.count]).decode()
            raise VerificationError(self.trace.where(self.count), "line", "the end of the run", line)

    def conclude(self) -> None:
        """Raise the difference of the model, if nothing after it differed."""
        if self.other_model:
            raise self.other_model


def verify(run: Any, log: "Trace", last: int | None, published: bool, out: BinaryIO) -> int:
    """Make the run of a trace again and compare, up to step `last` or, if it is None, to the end -> the exit code, 0.

    run is the run that the trace should be of (llama2.Run): its header, its prompt's tokens, its steps. published: is
    the trace's root the one that was published? Raises VerificationError at the first difference.
    """
    goal = len(log.steps) if last is None else last + 1
    next_tokens = [log.events[index]["next"] for index in log.steps][len(run.tokens) - 1:-1]
    draft = list(itertools.takewhile(range(run.transformer.config.vocab_size).__contains__, next_tokens))
    header = run.header()
    try:
        checker = Checker(log, header)
        with contextlib.suppress(EndOfTrace), contextlib.closing(
                progress(run.generate(checker, draft=draft), goal)) as steps:
            for step in steps:
                checker.step(step)
                if step.pos == last:
                    break
            else:
                checker.end()
        checker.conclude()
    except VerificationError as error:
        hint = ""
        if log.rust:
            hint = " (the format does not commit to the run's options: are -s -t -p -i -n as they were?)"
        elif header["arithmetic"] == "c":
            hint = " (in the arithmetic `c` this may only be another C library)"
        error.args = (f"{error}{hint}",)
        raise
    out.write(f"verified: {goal} steps computed again and found equal\n".encode())
    if last is not None:
        index = log.step(last) - (1 if log.rust else 0)  # llama2-rs's tree has no leaf for the header
        out.write(f"step {last} is leaf {index} of {len(log.tree)} under the root\n".encode())
    if not log.root:
        out.write(b"the trace is incomplete: its run was cut short, and it is verified as far as it goes\n")
    basis = "as published" if published else (
        "only recomputed from the file itself; compare it with the one that was published")
    out.write(f"root: {log.tree.root().hex()}, {basis}\n".encode())
    return 0


def progress(steps: Iterable, goal: int) -> Iterator:
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


def difference(where: str, expected: dict, got: dict) -> VerificationError:
    """The first field in which two events differ, as a VerificationError."""
    names = {"pos": "position", "layer": "layer", "op": "operation"}
    place = ", ".join(f"{name} {expected[key]}" for key, name in names.items() if key in expected) or "header"
    field = next(field for field in [*expected, *got] if encode(expected.get(field)) != encode(got.get(field)))
    return VerificationError(f"{where} ({place})", field, expected.get(field), got.get(field))


# ----------------------------------------------------------------------------
# Reading: strict, so that there is one way only to write a log down


class Trace:
    """A trace as read: its events, of which the first is the header, and the tree over them. root is what the file
    says, which has been compared with the tree's, or None if the run was cut short before it was written."""

    def __init__(self, path: str, events: list[dict], leaves: list[bytes], root: str | None, rust: bool = False):
        self.path, self.events, self.header, self.root, self.rust = path, events, events[0], root, rust
        self.steps = [i for i, event in enumerate(events) if "next" in event]  # pos -> its event's index
        self.tree = merkle.MerkleTree(rust_node if rust else merkle.node_hash)
        for leaf in leaves:
            self.tree.append(leaf)

    def where(self, index: int) -> str:
        """The place of an event in the file, for messages."""
        if self.rust:
            return f"{self.path}, entry {index - 1}" if index else self.path
        return f"{self.path}, line {index + 1}"

    def step(self, pos: int) -> int:
        """The index of a step's event."""
        if not 0 <= pos < len(self.steps):
            raise ValueError(f"{self.path}: has no step {pos}; it has {len(self.steps)}, counted from 0")
        return self.steps[pos]

    def line(self, index: int) -> bytes:
        """The line of an event in this project's format: what its leaf is the hash of."""
        return encode(self.events[index])


HEX = object()  # 64 hexadecimal digits
SCHEMAS = [  # the fields of every kind of event: the type, or the values to choose from
    {"format": (FORMAT,), "model": HEX, "tokenizer": HEX, "arithmetic": ("exact", "c"),
     "rng": ("xorshift64*", "llama2-rs"), "temperature": float, "p_value": float, "seed": int, "steps": int,
     "level": LEVELS, "prompt": str, "tokens": list},
    {"pos": int, "op": ("embedding", "final_norm"), "sha256": HEX},
    {"pos": int, "layer": int, "op": (
        "attention_norm", "q", "k", "v", "weights", "attention", "attention_out", "attention_residual",
        "ffn_norm", "gate", "up", "swiglu", "ffn_out", "ffn_residual"), "sha256": HEX},
    {"pos": int, "token": int, "next": int, "text": str, "logits": HEX},
    {"size": int, "root": HEX},
]


def is_hash(value: Any) -> bool:
    """Whether a value is a hash as it is written: 64 hexadecimal digits, in lower case."""
    return type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a schema's kind; integers are from 0 to 2**64 - 1, floats 0 or more, and finite."""
    if kind is HEX:
        return is_hash(value)
    if isinstance(kind, tuple):
        return value in kind
    if kind is list:
        return type(value) is list and value != [] and all(fits(token, int) for token in value)
    return type(value) is kind and (kind is str or 0 <= value < (2**64 if kind is int else math.inf))


def read_line(where: str, line: bytes) -> dict:
    """A line of a log -> its event; ValueError if it is not the one way to write down an event of a known kind."""
    shown = printable(line.decode(errors="replace"), 100)
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: not a line of JSON: {shown}") from None
    schema = next((s for s in SCHEMAS if isinstance(event, dict) and list(s) == list(event)), None)
    if schema is None:
        raise ValueError(f"{where}: not an event of a trace: {shown}")
    for field, kind in schema.items():
        if not fits(event[field], kind):
            raise ValueError(f"{where}: {field} cannot be {printable(event[field], 100)}")
    if encode(event) != line:
        raise ValueError(f"{where}: not written as a trace writes it: {shown}")
    return event


def read(path: str) -> Trace:
    """A file -> its Trace. Raises ValueError, naming the line, if it is not a trace, and VerificationError if the root
    is not that of its lines, or a finished run has not as many steps as its header says."""
    data = read_file(path)
    if data[4:8] == bytes(4):  # llama2-rs begins with a length in 8 bytes; JSON has no zero bytes
        return read_rust(path, data)
    events, leaves, end, pos = [], [], None, 0
    for number, line in enumerate(io.BytesIO(data), 1):
        where = f"{path}, line {number}"
        if end is not None:
            raise ValueError(f"{where}: follows the root")
        if not line.endswith(b"\n"):
            raise ValueError(f"{where}: does not end in a newline")
        line = line[:-1]
        event = read_line(where, line)
        if ("format" in event) != (number == 1):
            raise ValueError(f"{where}: " + ("a second header" if number > 1 else "not a trace's header"))
        if event.get("pos", pos) != pos:
            raise ValueError(f"{where}: pos is {event['pos']}, must be {pos}")
        pos += "next" in event
        if "root" in event:
            end = event
        else:
            events.append(event)
            leaves.append(merkle.leaf_hash(line))
    if not events:
        raise ValueError(f"{path}: the file is empty")
    trace = Trace(path, events, leaves, end and end["root"])
    computed = {"size": len(events), "root": trace.tree.root().hex()}
    for field in end or ():
        if end[field] != computed[field]:
            raise VerificationError(where, field, computed[field], end[field])
    done, goal = len(trace.steps), trace.header["steps"]
    if end and done != goal and not (done < goal and events[-1].get("next") == 1):  # BOS ends a run before its goal
        raise VerificationError(f"{path}, line 1 (header)", "steps", done, goal)
    return trace


# ----------------------------------------------------------------------------
# What can be asked of a trace


def show(trace: Trace, out: TextIO) -> None:
    """Print a trace as a table, its text escaped. It marks nothing as verified: only the root is computed again."""
    for field, value in trace.header.items():
        out.write(f"{field}: {printable(value)}\n")
    out.write(f"iteration   token  {'SHA-256 of the logits':64}  text\n")
    for index in trace.steps:
        event = trace.events[index]
        out.write(f"{event['pos']:9}  {event['token']:6}  {event['logits']}  {json.dumps(event['text'])}\n")
    kind = "root" if trace.root else "incomplete, the run was cut short; root so far"
    out.write(f"{kind}: {trace.tree.root().hex()} ({len(trace.tree)} leaves)\n")


def show_step(trace: Trace, pos: int, out: TextIO) -> None:
    """Draw the path of one step from its line to the root, saying of each hash what it is the SHA-256 of."""
    index, size = trace.step(pos), len(trace.tree)
    line = trace.line(index)
    computed = merkle.leaf_hash(line)
    out.write(f"{line.decode()}\n\nleaf {index} of {size}\n{computed.hex()} = SHA256(00, the line above)\n")
    for left, sibling in zip(merkle.sides(index, size - 1), trace.tree.inclusion_proof(index), strict=True):
        computed = merkle.node_hash(sibling, computed) if left else merkle.node_hash(computed, sibling)
        mine = "right" if left else "left"
        out.write(f"  | {mine:5} child, beside {sibling.hex()}\n{computed.hex()} = SHA256(01, left, right)\n")
    out.write("  = the root\n")


def prove(trace: Trace, pos: int) -> bytes:
    """A proof, as JSON, that a step is in the log: header and step with their paths to the root."""
    return encode({"format": PROOF_FORMAT, "size": len(trace.tree), "root": trace.tree.root().hex(), "events": [
        {"index": i, "line": trace.line(i).decode(), "path": [h.hex() for h in trace.tree.inclusion_proof(i)]}
        for i in (0, trace.step(pos))]})


def check(path: str, root: str) -> tuple[dict, dict]:
    """Check a proof file against the root that was published; returns the header and the step that are thereby proved.

    Raises ValueError for what is not a proof, VerificationError for one that does not lead from its lines to the root.
    The size is not proved: trees of other sizes can have the same way from a leaf to the root.
    """
    line = read_file(path).removesuffix(b"\n")
    try:
        proof = json.loads(line)
        events = [{"index": e["index"], "line": e["line"], "path": [*e["path"]]} for e in proof["events"]]
        if encode({"format": PROOF_FORMAT, "size": proof["size"], "root": proof["root"], "events": events}) != line:
            raise ValueError(f"not written as a {PROOF_FORMAT} is")
        if not all(map(is_hash, [proof["root"], *events[0]["path"], *events[-1]["path"]])):
            raise ValueError("a hash is not one")
        parsed = [read_line("event", event["line"].encode("ascii")) for event in events]
        header, step = parsed if len(parsed) == 2 else ({}, {})
        if "format" not in header or "next" not in step or events[0]["index"] != 0:
            raise ValueError("does not hold a header and a step")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = error if isinstance(error, ValueError) else "a field is missing or of another type"
        raise ValueError(f"{path}: not a proof: {reason}") from None
    if proof["root"] != root:
        raise VerificationError(path, "root", root, proof["root"])
    for event in events:
        try:
            merkle.verify_inclusion(merkle.leaf_hash(event["line"].encode()), event["index"], proof["size"],
                                    [bytes.fromhex(h) for h in event["path"]], bytes.fromhex(root))
        except merkle.ProofError as error:
            raise VerificationError(path, f"path of leaf {event['index']}", "a path to the root", str(error)) from None
    return header, step


def differences(a: Trace, b: Trace) -> list[VerificationError]:
    """The first difference of trace b from trace a, as a list of VerificationErrors, empty if there is none. After a
    difference of the headers, which say nothing about results, the first of the other events follows."""
    found = []
    for index, (one, other) in enumerate(zip(a.events, b.events, strict=False)):
        if encode(one) != encode(other):
            found.append(difference(b.where(index), one, other))
            if index > 0:
                return found
    if len(a.events) != len(b.events):
        where = b.where(min(len(a.events), len(b.events)))
        found.append(VerificationError(where, "number of events", len(a.events), len(b.events)))
    elif not found and a.root != b.root:
        found.append(VerificationError(f"{b.path}, at its end", "root", a.root, b.root))
    return found


# ----------------------------------------------------------------------------
# The format of llama2-rs, in bincode 1.3: metadata {model_path, prompt, steps}, entries [{pos, token, text,
# logits_hash}], merkle_tree {leaves [hash], root or none}. It commits to pos, token and logits of each step only. Here
# the metadata is the header, and an entry is a step whose `next` is the next entry's token; after the last it is None.


def rust_node(left: bytes, right: bytes) -> bytes:
    """SHA256(left || right); an odd node is promoted, which gives trees of the shape of RFC 6962"""
    return hashlib.sha256(left + right).digest()


def rust_leaf(event: dict) -> bytes:
    """SHA256(pos || token || logits_hash), numbers as little-endian int32"""
    return hashlib.sha256(struct.pack("<ii", event["pos"], event["token"]) + bytes.fromhex(event["logits"])).digest()


class RustWriter(Log):
    """Collects a run's events and writes them once the run is complete."""

    rust = True

    def __init__(self, path: str, header: dict):
        """header: model_path, prompt and steps"""
        self.path, self.events, self.tree = path, [], merkle.MerkleTree(rust_node)
        for field in "model_path", "prompt":
            if any("\ud800" <= c <= "\udfff" for c in header[field]):
                raise ValueError(f"{path}: {field} is {printable(header[field])}, must be UTF-8 for llama2-rs's format")
        super().__init__(header)

    def put(self, event: dict) -> None:
        """Keep an event."""
        self.events.append(event)
        if "pos" in event:
            self.tree.append(rust_leaf(event))

    def finish(self) -> None:
        """Write the file."""
        def string(text):
            return struct.pack("<Q", len(text.encode())) + text.encode()

        header, *steps = self.events
        parts = [string(header["model_path"]), string(header["prompt"])]
        parts.append(struct.pack("<QQ", header["steps"], len(steps)))
        for event in steps:
            parts += [struct.pack("<ii", event["pos"], event["token"]), string(event["text"]),
                      bytes.fromhex(event["logits"])]
        parts += struct.pack("<Q", len(steps)), *map(rust_leaf, steps), b"\x01", self.tree.root()
        write_whole(self.path, b"".join(parts))

    def close(self) -> None:
        """There is no file yet, or it is whole."""


def read_rust(path: str, data: bytes) -> Trace:
    """The bytes of a trace of llama2-rs -> a Trace. Raises ValueError if they are not one, and VerificationError if its
    positions are not in order, a leaf is not its entry's hash, or the root is not that of the leaves."""
    offset = 0

    def take(size, what):
        nonlocal offset
        left = len(data) - offset
        if size > left:
            raise ValueError(f"{path}: {what} at byte {offset} has {size} bytes, but {left} bytes are left")
        offset += size
        return data[offset - size:offset]

    def number(what, form="<Q"):
        return struct.unpack(form, take(struct.calcsize(form), what))[0]

    def string(what):
        try:
            return take(number(f"the length of {what}"), what).decode()
        except UnicodeDecodeError:
            raise ValueError(f"{path}: {what} before byte {offset} is not UTF-8") from None

    events = [{"model_path": string("model_path"), "prompt": string("prompt"), "steps": number("steps")}]
    for i in range(number("the number of entries")):
        pos, token = number("pos", "<i"), number("token", "<i")
        if i > 0:
            events[i]["next"] = token
        events.append({"pos": pos, "token": token, "next": None, "text": string("text"),
                       "logits": take(32, "logits_hash").hex()})
    leaves = [take(32, "a leaf") for _ in range(number("the number of leaves"))]
    some = number("the root's presence", "<B")
    if some > 1:
        raise ValueError(f"{path}: the root begins with byte {some}, must be 0 (none) or 1")
    root = take(32, "the root").hex() if some else None
    if offset != len(data):
        raise ValueError(f"{path}: {len(data) - offset} bytes follow the root")

    trace = Trace(path, events, leaves, root, rust=True)
    if len(leaves) != len(events) - 1:
        raise VerificationError(path, "number of leaves", len(events) - 1, len(leaves))
    for i, (event, leaf) in enumerate(zip(events[1:], leaves, strict=True)):
        if event["pos"] != i:
            raise VerificationError(f"{path}, entry {i}", "pos", i, event["pos"])
        if leaf != rust_leaf(event):
            raise VerificationError(f"{path}, entry {i}", "leaf", rust_leaf(event).hex(), leaf.hex())
    computed = trace.tree.root().hex() if leaves else None
    if root != computed:
        raise VerificationError(path, "root", computed, root)
    return trace


# ----------------------------------------------------------------------------
# Command line


def root_argument(text: str) -> str:
    """A root as an option gives it."""
    if not is_hash(text.lower()):
        raise argparse.ArgumentTypeError(f"not a root of 64 hexadecimal digits: {printable(text)}")
    return text.lower()


def run(argv: Sequence[str] | None, out: TextIO) -> int:
    """Do what the command line asks for -> the exit code."""
    parser = console.Parser(prog="trace.py", description="Read, prove and compare traces of llama2.py and llama2-rs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, help, *files):
        added = commands.add_parser(name, help=help, description=help)
        for file in files:
            added.add_argument(file)
        return added

    command("show", "print a trace", "file").add_argument(
        "--step", type=int, metavar="N", help="draw the path from this step's line to the root")
    command("root", "print a trace's root", "file")
    command("prove", "print a proof that a step is in the trace", "file").add_argument("step", type=int)
    command("check", "check such a proof against the root that was published", "proof").add_argument(
        "--root", type=root_argument, required=True, metavar="HEX")
    command("diff", "find the first event in which two traces differ", "a", "b")
    args = parser.parse_args(argv)
    if args.command in ("show", "root", "prove"):
        trace = read(args.file)
        step = getattr(args, "step", None)
        if trace.rust and step is not None:
            parser.error(f"{args.file}: a trace of llama2-rs has no paths as in RFC 6962 that could be drawn or proved")
    if args.command == "show":
        show(trace, out) if step is None else show_step(trace, step, out)
    elif args.command == "root":
        out.write(trace.tree.root().hex() + "\n")
    elif args.command == "prove":
        out.write(prove(trace, step).decode() + "\n")
    elif args.command == "check":
        header, step = check(args.proof, args.root)
        out.write("proved to be in the log with this root:\n")
        for field, value in {**header, **step}.items():
            out.write(f"  {field}: {printable(value)}\n")
    else:
        found = differences(read(args.a), read(args.b))
        for error in found:
            out.write(console.escaped(str(error)).encode("ascii", "backslashreplace").decode() + "\n")
        return 1 if found else 0
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return console.exit_code("trace.py", lambda: run(argv, sys.stdout))


if __name__ == "__main__":
    sys.exit(main())
