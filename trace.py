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
import hashlib
import json
import os
import re
import struct
import sys
from array import array

try:
    import merkle
except ImportError as error:
    if __name__ != "__main__":
        raise
    print(f"trace.py: error: {error}: merkle.py is to be beside trace.py (and python3 -P hides it)", file=sys.stderr)
    sys.exit(2)

FORMAT, PROOF_FORMAT = "llama2.py trace 1", "llama2.py proof 1"


class VerificationError(Exception):
    """What was checked is not as claimed: says where, which field, what was expected and what was found."""

    def __init__(self, where, field, expected, got):
        super().__init__(f"{where}: {field}: expected {printable(expected)}, got {printable(got)}")
        self.where, self.field, self.expected, self.got = where, field, expected, got


def printable(value):
    """A value from a file as one line of ASCII that is safe to print on a terminal."""
    if isinstance(value, str) and value and value.isascii() and value.isprintable():
        return value
    return json.dumps(value, default=repr)


def encode(event):
    """An event as the line it has in a log."""
    return json.dumps(event, separators=(",", ":")).encode()


def hash_values(values):
    """SHA-256 of numbers as little-endian float32, in hexadecimal."""
    values = array("f", values)
    if sys.byteorder == "big":
        values.byteswap()
    return hashlib.sha256(values).hexdigest()


def read_file(path, limit=2**28):
    """A file's bytes. Raises ValueError if they are more than the limit."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{path}: size is {size} bytes, must be at most {limit}")
        return file.read(size or limit)  # a pipe has no size


def text_of(piece):
    """The bytes of a piece as text: UTF-8, and \\xHH where they are not."""
    return piece.decode("utf-8", "backslashreplace")


# ----------------------------------------------------------------------------
# Writing and checking: a log is made line by line, and each line is either written or compared

LEVELS = ("step", "layer", "op")


class Log:
    """The lines of a run as they come about. A subclass says what is done with one: put(line)."""

    def __init__(self, header):
        """header: the first event's fields after "format", in order."""
        self.level = header["level"]
        self.pos = 0
        self.put(encode({"format": FORMAT, **header}))

    def operation(self, layer, op, values):
        """A result within the current step: what Transformer.forward calls `observe` with."""
        if self.level == "op" or self.level == "layer" and op == "ffn_residual":
            place = {} if layer is None else {"layer": layer}
            self.put(encode({"pos": self.pos, **place, "op": op, "sha256": hash_values(values)}))

    def step(self, token, next, piece, logits):
        """The end of the current step."""
        self.put(encode({"pos": self.pos, "token": token, "next": next, "text": text_of(piece),
                         "logits": hash_values(logits)}))
        self.pos += 1


class Writer(Log):
    """Writes a log to a file, every line at once, so that a run that dies leaves all lines it had made."""

    def __init__(self, path, header):
        self.path, self.tree = path, merkle.MerkleTree()
        self.file = open(path, "wb", buffering=0)
        self.written = 0
        super().__init__(header)

    def put(self, line):
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

    def finish(self):
        """Write the line that says that the run is whole, and return the root."""
        root = self.tree.root().hex()
        self._write(encode({"size": len(self.tree), "root": root}))
        self.close()
        return root

    def close(self):
        self.file.close()


class EndOfTrace(Exception):
    """All lines of an incomplete trace have been compared."""


class Checker(Log):
    """Compares a run that is made again with a trace, line by line; raises VerificationError at the first difference.

    If that is the model's hash, the run goes on to the first result that differs, so that both can be told.
    """

    def __init__(self, trace, header):
        self.trace, self.count, self.other_model = trace, 0, None
        super().__init__(header)

    def put(self, line):
        self.count += 1
        where = f"{self.trace.path}, line {self.count}"
        if self.count > len(self.trace.lines):
            if not self.trace.root:
                raise EndOfTrace
            raise VerificationError(where, "line", line.decode(), "the end of the trace")
        found = self.trace.lines[self.count - 1]
        if found != line:
            expected, got = json.loads(line), json.loads(found)
            if self.other_model:
                where = f"{self.other_model}; then {where}"
            elif {**expected, "model": None} == {**got, "model": None}:
                self.other_model = VerificationError(f"{where} (header)", "model", expected["model"], got["model"])
                return
            difference(where, expected, got)

    def end(self):
        """The run is over: is the trace?"""
        if self.count < len(self.trace.lines):
            raise VerificationError(f"{self.trace.path}, line {self.count + 1}", "line", "the end of the run",
                                    self.trace.lines[self.count].decode())

    def conclude(self):
        """What was to be compared has been."""
        if self.other_model:
            raise self.other_model


def place(event):
    """Where in a run an event is."""
    if "format" in event:
        return "header"
    names = {"pos": "position", "layer": "layer", "op": "operation"}
    return ", ".join(f"{name} {event[key]}" for key, name in names.items() if key in event)


def difference(where, expected, got):
    """Raise VerificationError for the first field in which two events differ."""
    for field in [*expected, *got]:
        if expected.get(field) != got.get(field) or type(expected.get(field)) != type(got.get(field)):
            raise VerificationError(f"{where} ({place(expected)})", field, expected.get(field), got.get(field))
    raise VerificationError(where, "line", encode(expected).decode(), encode(got).decode())


# ----------------------------------------------------------------------------
# Reading: strict, so that there is one way only to write a log down


class Trace:
    """A trace as read: header, steps, and all events with their lines, the leaves of the tree. root is what the file
    says, None if it lacks a last line; it has been compared with the tree's."""

    def __init__(self, path, lines, events, root):
        self.path, self.lines, self.events, self.root = path, lines, events, root
        self.header = events[0]
        self.rust = False
        self.steps = {event["pos"]: index for index, event in enumerate(events) if "next" in event}  # pos -> leaf index
        self.tree = merkle.MerkleTree()
        for line in lines:
            self.tree.append(merkle.leaf_hash(line))

    def step(self, pos):
        """The index of a step's event, which is its leaf's."""
        if pos not in self.steps:
            raise ValueError(f"{self.path}: has no step {pos}; it has {len(self.steps)}, counted from 0")
        return self.steps[pos]

    def included(self, pos):
        """The index of a step's leaf, once its inclusion proof has been checked."""
        index, size = self.step(pos), len(self.tree)
        merkle.verify_inclusion(merkle.leaf_hash(self.lines[index]), index, size, self.tree.inclusion_proof(index),
                                self.tree.root())
        return index

    def inputs(self):
        """The input tokens of all steps, as the header and the steps before say them."""
        return self.header["tokens"][:1] + [self.events[index]["next"] for index in self.steps.values()][:-1]


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


def is_hash(value):
    return type(value) is str and len(value) == 64 and not set(value) - set("0123456789abcdef")


def read_line(where, line):
    """A line of a log -> its event; ValueError if it is not the one way to write down an event of a known kind."""
    try:
        event = json.loads(line)
        canonical = encode(event) == line
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: not a line of JSON") from None
    if not isinstance(event, dict) or list(event) not in [list(schema) for schema in SCHEMAS]:
        raise ValueError(f"{where}: not an event of a trace: {printable(line[:100].decode(errors='replace'))}")
    schema = next(schema for schema in SCHEMAS if list(schema) == list(event))
    for field, kind in schema.items():
        value = event[field]
        if kind is HEX:
            valid = is_hash(value)
        elif isinstance(kind, tuple):
            valid = type(value) is str and value in kind
        elif kind is list:
            valid = type(value) is list and value and all(type(token) is int and token >= 0 for token in value)
        else:
            valid = type(value) is kind and (kind is str or 0 <= value < 2**64)
        if not valid:
            raise ValueError(f"{where}: {field} cannot be {printable(value)[:100]}")
    if not canonical:
        raise ValueError(f"{where}: not written as a trace writes it: {printable(line[:100].decode(errors='replace'))}")
    return event


def read(path):
    """A file -> a Trace or a RustTrace. Raises ValueError, naming the line, if it is neither, and VerificationError if
    its root is not that of its lines."""
    data = read_file(path)
    if data and data[4:8] == bytes(4):  # a length of less than 2**32
        return RustTrace(path, data)
    *lines, rest = data.split(b"\n")
    if not lines or rest:
        what = "does not end in a newline" if data else "the file is empty"
        raise ValueError(f"{path}, line {len(lines) + 1}: {what}")
    events, root = [], None
    pos, token, order = 0, None, None
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if root is not None:
            raise ValueError(f"{where}: follows the root")
        event = read_line(where, line)
        if ("format" in event) != (number == 1):
            raise ValueError(f"{where}: " + ("a second header" if number > 1 else "not a trace's header"))
        if "root" in event:
            root = event
            continue
        if event.get("pos", pos) != pos:
            raise ValueError(f"{where}: pos is {event['pos']}, must be {pos}")
        events.append(event)
        pos += "next" in event
    if not events:
        raise ValueError(f"{path}: has no header")
    trace = Trace(path, lines[:len(events)], events, root and root["root"])
    if root:
        where = f"{path}, line {len(lines)}"
        if root["size"] != len(events):
            raise VerificationError(where, "size", len(events), root["size"])
        if root["root"] != trace.tree.root().hex():
            raise VerificationError(where, "root", trace.tree.root().hex(), root["root"])
    return trace


# ----------------------------------------------------------------------------
# What can be asked of a trace


def show(trace, out):
    """Print a trace as a table, its text escaped. Nothing is ticked off: nothing is computed again but the root."""
    for field, value in trace.header.items():
        out.write(f"{field}: {printable(value)}\n")
    out.write(f"iteration   token  {'SHA-256 of the logits':64}  text\n")
    for index in trace.steps.values():
        event = trace.events[index]
        out.write(f"{event['pos']:9}  {event['token']:6}  {event['logits']}  {json.dumps(event['text'])}\n")
    kind = "root" if trace.root else "incomplete, the run was cut short; root so far"
    out.write(f"{kind}: {trace.tree.root().hex()} ({len(trace.tree)} leaves)\n")


def show_step(trace, pos, out):
    """Draw the path of one step from its line to the root, every hash as what it is the SHA-256 of."""
    index, size = trace.step(pos), len(trace.tree)
    hashes = [merkle.leaf_hash(trace.lines[index])]
    out.write(f"{trace.lines[index].decode()}\n\nleaf {index} of {size}\n")
    out.write(f"{hashes[0].hex()} = SHA256(00, the line above)\n")
    last = size - 1
    for sibling in trace.tree.inclusion_proof(index):
        while not index & 1 and index == last:  # no sibling on this level
            index, last = index >> 1, last >> 1
        pair = (sibling, hashes[-1]) if index & 1 else (hashes[-1], sibling)
        hashes.append(merkle.node_hash(*pair))
        mine = "right" if index & 1 else "left"
        out.write(f"  | {mine:5} child, beside {sibling.hex()}\n{hashes[-1].hex()} = SHA256(01, left, right)\n")
        index, last = index >> 1, last >> 1
    out.write("  = the root\n")


def prove(trace, pos):
    """A proof, as JSON, that a step is in the log: header and step with their paths to the root."""
    index = trace.step(pos)
    return encode({"format": PROOF_FORMAT, "size": len(trace.lines), "root": trace.tree.root().hex(), "events": [
        {"index": i, "line": trace.lines[i].decode(), "path": [h.hex() for h in trace.tree.inclusion_proof(i)]}
        for i in (0, index)]})


def check(path, root):
    """Check a proof file against the root that was published; returns the header and the step that are thereby proved.

    Raises ValueError for what is not a proof, VerificationError for one that does not lead from its lines to the root.
    The size is not proved: trees of other sizes can have the same way from a leaf to the root.
    """
    line = read_file(path).removesuffix(b"\n")
    try:
        proof = json.loads(line)
        if list(proof) != ["format", "size", "root", "events"] or encode(proof) != line:
            raise ValueError("not written as a proof is")
        if proof["format"] != PROOF_FORMAT:
            raise ValueError(f"format is not {PROOF_FORMAT}")
        events, indices = [], []
        for event in proof["events"]:
            types = {"index": int, "line": str, "path": list}
            if {field: type(value) for field, value in event.items()} != types or list(event) != list(types):
                raise ValueError("not written as a proof is")
            if not all(map(is_hash, event["path"])):
                raise ValueError("a path holds something that is not a hash")
            events.append(read_line("event", event["line"].encode("ascii")))
            indices.append(event["index"])
        header, step = events
        if "format" not in header or "next" not in step or indices[0] != 0:
            raise ValueError("does not hold a header and a step")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a proof: {error}") from None
    if proof["root"] != root:
        raise VerificationError(path, "root", root, proof["root"])
    for event in proof["events"]:
        try:
            merkle.verify_inclusion(merkle.leaf_hash(event["line"].encode()), event["index"], proof["size"],
                                    [bytes.fromhex(h) for h in event["path"]], bytes.fromhex(root))
        except merkle.ProofError as error:
            raise VerificationError(path, f"path of leaf {event['index']}", "a path to the root", str(error)) from None
    return header, step


def differences(a, b):
    """The first event in which trace b differs from trace a, as a list of VerificationErrors. If that is the header,
    which does not say what came of it, the first that differs behind it as well."""
    found = []
    for number, (one, other) in enumerate(zip(a.events, b.events), 1):
        if one != other:
            try:
                difference(f"{b.path}, line {number}", one, other)
            except VerificationError as error:
                found.append(error)
            if number > 1:
                return found
    if len(a.events) != len(b.events):
        number = min(len(a.events), len(b.events)) + 1
        found.append(VerificationError(f"{b.path}, line {number}", "number of events", len(a.events), len(b.events)))
    elif not found and a.root != b.root:
        found.append(VerificationError(f"{b.path}, after line {len(b.events)}", "root", a.root, b.root))
    return found


# ----------------------------------------------------------------------------
# The format of llama2-rs, in bincode 1.3: metadata {model_path, prompt, steps}, entries [{pos, token, text,
# logits_hash}], merkle_tree {leaves [hash], root or none}. It commits to pos, token and logits of each step only.


def rust_node(left, right):
    """SHA256(left || right); an odd node is promoted, which gives trees of the shape of RFC 6962"""
    return hashlib.sha256(left + right).digest()


def rust_leaf(pos, token, logits):
    """SHA256(pos || token || logits_hash), numbers as little-endian int32"""
    return hashlib.sha256(struct.pack("<ii", pos, token) + logits).digest()


class RustWriter:
    """Collects a run's steps and writes them when it is whole, beside the file and then renamed."""

    level = "step"

    def __init__(self, path, header):
        """header: model_path, prompt and steps"""
        self.path, self.header, self.entries, self.tree = path, header, [], merkle.MerkleTree(rust_node)
        for field in "model_path", "prompt":
            if any("\ud800" <= c <= "\udfff" for c in header[field]):
                raise ValueError(f"{path}: {field} is {printable(header[field])}, must be UTF-8 for llama2-rs's format")

    def step(self, token, next, piece, logits):
        event = rust_step(len(self.entries), token, piece, logits)
        self.entries.append(event)
        self.tree.append(rust_leaf(event["pos"], token, bytes.fromhex(event["logits"])))

    def finish(self):
        def string(text):
            data = text.encode()
            return struct.pack("<Q", len(data)) + data

        parts = [string(self.header["model_path"]), string(self.header["prompt"]),
                 struct.pack("<QQ", self.header["steps"], len(self.entries))]
        for event in self.entries:
            parts += [struct.pack("<ii", event["pos"], event["token"]), string(event["text"]),
                      bytes.fromhex(event["logits"])]
        parts += struct.pack("<Q", len(self.tree)), *self.tree.levels[:1], b"\x01", self.tree.root()
        write_whole(self.path, b"".join(parts))
        return self.tree.root().hex()

    def close(self):
        pass


def rust_step(pos, token, piece, logits):
    """A step as llama2-rs records it: text decoded lossily, piece by piece."""
    return {"pos": pos, "token": token, "text": piece.decode("utf-8", "replace"), "logits": hash_values(logits)}


def write_whole(path, data):
    """Write a file so that there is all of it or nothing: beside its place, then renamed. But into a device or pipe."""
    target = os.path.realpath(path)
    beside = target if os.path.exists(target) and not os.path.isfile(target) else f"{target}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:
            file.write(data)
        if beside != target:
            os.replace(beside, target)
    except BaseException as error:
        if beside != target and os.path.exists(beside):
            os.remove(beside)
        if isinstance(error, OSError):
            raise OSError(f"{path}: {error.strerror}") from None
        raise


class RustChecker:
    """Compares a run that is made again with a trace of llama2-rs, step by step."""

    level = "step"

    def __init__(self, trace, header):
        self.trace, self.pos = trace, 0
        for field in header:
            expected, got = header[field], trace.header[field]
            if field == "model_path":  # folders may differ
                expected, got = (re.split(r"[/\\]", value)[-1] for value in (expected, got))
            if expected != got:
                raise VerificationError(f"{trace.path}, metadata", field, expected, got)

    def step(self, token, next, piece, logits):
        event, where = rust_step(self.pos, token, piece, logits), f"{self.trace.path}, entry {self.pos}"
        self.pos, self.next = self.pos + 1, next
        if self.pos == len(self.trace.events):
            raise VerificationError(where, "entry", event, "the end of the trace")
        if event != self.trace.events[self.pos]:
            difference(where, event, self.trace.events[self.pos])

    def end(self):
        if self.pos + 1 < len(self.trace.events):
            where, event = f"{self.trace.path}, entry {self.pos}", self.trace.events[self.pos + 1]
            if event["token"] != self.next:  # at which the run was not gone on with
                raise VerificationError(where, "token", self.next, event["token"])
            raise VerificationError(where, "entry", "the end of the run", event)

    def conclude(self):
        pass


class RustTrace:
    """A trace of llama2-rs as read. That leaves are their entries' hashes and what the root is has been compared."""

    def __init__(self, path, data):
        """Raises ValueError where the data is not such a trace, VerificationError where its parts disagree."""
        self.path, self.rust, offset = path, True, 0

        def take(form):
            nonlocal offset
            if len(data) - offset < struct.calcsize(form):
                raise ValueError(f"{path}: ends at byte {len(data)}, within a field that begins at byte {offset}")
            values = struct.unpack_from(form, data, offset)
            offset += struct.calcsize(form)
            return values[0] if len(values) == 1 else values

        def count(what, size):
            n = take("<Q")
            if n * size > len(data) - offset:
                raise ValueError(f"{path}: {n} {what} at byte {offset}, but {len(data) - offset} bytes are left")
            return n

        def string(what):
            nonlocal offset
            n = count(f"bytes of {what}", 1)
            try:
                text = data[offset:offset + n].decode()
            except UnicodeDecodeError:
                raise ValueError(f"{path}: {what} at byte {offset} is not UTF-8") from None
            offset += n
            return text

        self.header = {"model_path": string("model_path"), "prompt": string("prompt"), "steps": take("<Q")}
        self.events = [self.header]
        for _ in range(count("entries", 48)):
            pos, token = take("<ii")
            self.events.append({"pos": pos, "token": token, "text": string("text"), "logits": take("32s").hex()})
        leaves = [take("32s") for _ in range(count("leaves", 32))]
        some = take("B")
        if some > 1:
            raise ValueError(f"{path}: the root begins with byte {some}, must be 0 (none) or 1")
        self.root = take("32s").hex() if some else None
        if offset != len(data):
            raise ValueError(f"{path}: {len(data) - offset} bytes follow the root")

        self.tree = merkle.MerkleTree(rust_node)
        if len(leaves) != len(self.events) - 1:
            raise VerificationError(path, "number of leaves", len(self.events) - 1, len(leaves))
        for i, (event, leaf) in enumerate(zip(self.events[1:], leaves)):
            if event["pos"] != i:
                raise VerificationError(f"{path}, entry {i}", "pos", i, event["pos"])
            expected = rust_leaf(i, event["token"], bytes.fromhex(event["logits"]))
            if leaf != expected:
                raise VerificationError(f"{path}, entry {i}", "leaf", expected.hex(), leaf.hex())
            self.tree.append(leaf)
        if self.root != (self.tree.root().hex() if leaves else None):
            raise VerificationError(path, "root", self.tree.root().hex() if leaves else None, self.root)
        self.steps = {i: i + 1 for i in range(len(leaves))}

    def included(self, pos):
        """The index of a step's leaf; all leaves have been compared."""
        return self.step(pos) - 1

    step = Trace.step

    def inputs(self):
        """The input tokens of all steps."""
        return [event["token"] for event in self.events[1:]]


# ----------------------------------------------------------------------------
# Command line


def root_argument(text):
    if not is_hash(text.lower()):
        raise argparse.ArgumentTypeError(f"not a root of 64 hexadecimal digits: {printable(text)}")
    return text.lower()


class Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message):
        raise ValueError(message)


def run(argv, out):
    parser = Parser(prog="trace.py", description="Read, prove and compare traces of llama2.py and llama2-rs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, *files, help):
        added = commands.add_parser(name, help=help, description=help)
        for file in files:
            added.add_argument(file)
        return added.add_argument

    command("show", "file", help="print a trace")(
        "--step", type=int, metavar="N", help="draw the path from this step's line to the root")
    command("root", "file", help="print a trace's root")
    command("prove", "file", help="print a proof that a step is in the trace")("step", type=int)
    command("check", "proof", help="check such a proof against the root that was published")(
        "--root", type=root_argument, required=True, metavar="HEX")
    command("diff", "a", "b", help="find the first event in which two traces differ")
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
            out.write(f"{error}\n")
        return 1 if found else 0
    return 0


def exit_code(program, command):
    """Run a command -> its exit code, or that of what ends it: with one line on standard error, 1 where a verification
    failed and 2 for bad input; quietly, 130 for Ctrl-C and 141 where nobody reads standard output any more."""
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")  # None if closed
    try:
        code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()
        return 130
    except VerificationError as error:
        code, message = 1, f"verification failed: {error}"
    except (ValueError, OSError, MemoryError) as error:
        code, message = 2, str(error) or "out of memory"
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"
    message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    print(f"{program}: error: {message}", file=sys.stderr)
    return code


def main(argv=None):
    """The command line; returns the exit code."""
    return exit_code("trace.py", lambda: run(argv, sys.stdout))


if __name__ == "__main__":
    sys.exit(main())
