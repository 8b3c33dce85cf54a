#!/usr/bin/env python3
"""The trace of a run: a log in which every line is a leaf of a Merkle tree, so that its root commits to all of it.

    python3 llama2.py -s 1 -n 2 --trace tale.trace     # write one
    python3 trace.py show tale.trace                   # read it: also root, text, prove, check, diff, checkpoint

That trace, its hashes and the first line shortened here:

    {"format":"llama2.py trace 2","model":"HEX0..","weights":"HEX1..","config":{"dim":64,"hidden_dim":172,"n_layers":5,
     "n_heads":8,"n_kv_heads":4,"vocab_size":512,"seq_len":512,"shared_classifier":true},"tokenizer":"HEX2..",
     "arithmetic":"exact","rng":"xorshift64*","temperature":1.0,"p_value":0.9,"seed":1,"steps":2,"level":"step",
     "prompt":"","tokens":[1]}                                                                       leaf 0, one line
    {"pos":0,"token":1,"next":406,"text":"Once","logits":"HEX3.."}                                   leaf 1
    {"pos":1,"token":406,"next":407,"text":" upon","logits":"HEX4.."}                                leaf 2
    {"size":3,"root":"HEX5.."}           MTH of RFC 6962 over the leaves: a leaf is its line's bytes without "\n"

model and tokenizer are the files' SHA-256, logits that of the step's logits as little-endian float32. weights is the
root of a second tree, over the config and every row of the model (weights_root). At the levels `layer` and `op` lines
like {"pos":0,"layer":0,"op":"q","sha256":".."} stand before each step's. A line is one JSON object in ASCII without
spaces, its keys in this order; a trace without the last line is of a run that was cut short.

The head of a log is its size and root, written 3:HEX5. Where a line stands follows from the header (Layout); a check
takes it from there, so that under one head there is one step at most for a position, whoever made the log.

This module knows nothing of the model. It also reads and writes the traces of llama2-rs, at the end.
"""
import os
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    def end_quietly(*_):
        """Ctrl-C while modules load."""
        os._exit(130)

    signal.signal(signal.SIGINT, end_quietly)

import argparse
import base64
import contextlib
import io
import itertools
import json
import re
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

try:
    import console
    import llama2rs
    import merkle
except ImportError as error:
    if __name__ != "__main__":
        raise
    print(f"trace.py: error: {error}: arithmetic.py, console.py, events.py, llama2rs.py and merkle.py are to be "
          "beside trace.py (and python3 -P hides them)",
          file=sys.stderr)
    sys.exit(2)

from console import VerificationError, printable, quoted, read_file, write_whole
from events import (FORMAT, HEADER_FIELDS, HEX, LEVELS, Layout, encode, fits, hash_values, is_hash, read_header,
                    read_line)

PROOF_FORMAT, GROWTH_FORMAT = "llama2.py proof 2", "llama2.py growth 2"
MAX_PROOF = 2**24  # bytes: of some 7,000 steps


def head(size: int, root: bytes) -> str:
    """The head of a log: what one publishes."""
    return f"{size}:{root.hex()}"


# ----------------------------------------------------------------------------
# Writing and checking: a log comes about event by event, and each is either written down or compared


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
    """Writes a log to a file, each line as it comes: a run that dies leaves all the lines that it had made.

    Raises ValueError if another run is writing to the file.
    """

    def __init__(self, path: str, header: dict):
        self.path, self.tree, self.written = path, merkle.MerkleTree(), 0
        self.file = open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb", buffering=0)
        self.is_file = os.path.isfile(path)  # not a device or a pipe
        try:
            self._claim()
            super().__init__(header)
        except BaseException:
            self.close()
            raise

    def _claim(self):
        with contextlib.suppress(ImportError):
            import fcntl  # not on Windows
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path}: another run is writing this trace") from None
            except OSError:
                pass  # a file system without locks
        if self.is_file:
            self.file.truncate()

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
            if self.is_file:
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
        if self.count == len(self.trace):
            if not self.trace.root and not self.rust:
                raise EndOfTrace
            raise VerificationError(where, "line", encode(event).decode(), "the end of the trace")
        found = self.trace.event(self.count)
        self.count += 1
        if found.get("next", 0) is None:  # the last entry of llama2-rs
            event = {**event, "next": None}
        if encode(event) == encode(found):
            return
        error = difference(f"{self.other_model}; then {where}" if self.other_model else where, event, found)
        files = ("model", "weights")
        if error.field in files and {**found, **{name: event[name] for name in files}} == event:
            if event["weights"] == found["weights"]:
                error.hint = " (another file of the same weights)"
            self.other_model = error
        else:
            raise error

    def end(self) -> None:
        """The run is over: is the trace?"""
        if self.count < len(self.trace):
            line = encode(self.trace.event(self.count)).decode()
            raise VerificationError(self.trace.where(self.count), "line", "the end of the run", line)

    def conclude(self) -> None:
        """Raise the difference of the model, if nothing after it differed."""
        if self.other_model:
            raise self.other_model


def difference(where: str, expected: dict, got: dict) -> VerificationError:
    """The first field in which two events differ, as a VerificationError."""
    names = {"pos": "position", "layer": "layer", "op": "operation"}
    place = ", ".join(f"{name} {expected[key]}" for key, name in names.items() if key in expected) or "header"
    name = next(name for name in [*expected, *got] if encode(expected.get(name)) != encode(got.get(name)))
    return VerificationError(f"{where} ({place})", name, expected.get(name), got.get(name))


# ----------------------------------------------------------------------------
# Reading: strict, so that there is one way only to write a log down


class Trace:
    """A trace as read: its lines, of which the first is the header, and the tree over them. root is what the file says,
    which has been compared with the tree's, or None if the run was cut short before it was written."""

    def __init__(self, path: str, lines: Sequence[bytes], leaves: Iterable[bytes], root: str | None,
                 rust: bool = False):
        self.path, self.lines, self.root, self.rust = path, lines, root, rust
        self.header = self.event(0)
        self.per_step = 1 if rust else Layout(self.header).lines
        self.steps = range(self.per_step, len(lines), self.per_step)  # pos -> its line's index
        self.tree = merkle.MerkleTree(llama2rs.node_hash if rust else merkle.node_hash)
        for leaf in leaves:
            self.tree.append(leaf)

    def __len__(self) -> int:
        return len(self.lines)

    def event(self, index: int) -> dict:
        """What a line says."""
        return json.loads(self.lines[index])

    def where(self, index: int) -> str:
        """The place of an event in the file, for messages."""
        if self.rust:
            return f"{self.path}, entry {index - 1}" if index else self.path
        return f"{self.path}, line {index + 1}"

    def step(self, pos: int) -> int:
        """The index of a step's line."""
        if not 0 <= pos < len(self.steps):
            raise ValueError(f"{self.path}: has no step {pos}; it has {len(self.steps)}, counted from 0")
        return self.steps[pos]

    def head(self) -> str:
        """Size and root."""
        return head(len(self.tree), self.tree.root())

    def check_head(self, published: str) -> None:
        """Raise VerificationError if the head, or the root alone, that was published is not this trace's."""
        own = self.head()
        if published not in (own, own.split(":")[1]):
            cut = "" if self.root else f", of a trace that was cut short after {len(self)} lines"
            raise VerificationError(self.path, "root", published, own + cut)


class Lines(Sequence):
    """The lines of a file that is held as it is: a list of them would take twice the memory."""

    def __init__(self, data: bytes):
        self.data, self.ends = data, array("Q", [0])

    def append(self, end: int) -> None:
        """Add the line that ends before the newline at end - 1."""
        self.ends.append(end)

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, index):
        return self.data[self.ends[index]:self.ends[index + 1] - 1]


def read(path: str) -> Trace:
    """A file -> its Trace. Raises ValueError, naming the line, if it is not a trace, and VerificationError if a line
    does not stand where its header says, or the root is not that of the lines."""
    data = read_file(path)
    if data[4:8] == bytes(4):  # llama2-rs begins with a length in 8 bytes; JSON has no zero bytes
        return read_rust(path, data)
    lines, leaves, layout, token, start = Lines(data), bytearray(), None, None, 0
    while start < len(data):
        where = f"{path}, line {len(lines) + 1}"
        end = data.find(b"\n", start) + 1
        if not end:
            raise ValueError(f"{where}: does not end in a newline")
        line = data[start:end - 1]
        if not layout:
            layout = Layout(read_header(where, line))
        else:
            event = read_line(where, line)
            if "format" in event:
                raise ValueError(f"{where}: a second header")
            if "root" in event:
                break
            if token == 1 and "pos" in event:
                raise VerificationError(where, "line", "the end of the run", line.decode())
            layout.check(where, len(lines), event)
            if event.get("token", token) != token and token is not None:
                raise VerificationError(where, "token", token, event["token"])
            token = event.get("next", token)
        lines.append(end)
        leaves += merkle.leaf_hash(line)
        start = end
    if not lines:
        raise ValueError(f"{path}: " + ("not a trace's header" if data else "the file is empty"))
    finished = start < len(data)
    trace = Trace(path, lines, (bytes(leaves[i:i + 32]) for i in range(0, len(leaves), 32)),
                  event["root"] if finished else None)
    if finished:
        if end != len(data):
            raise ValueError(f"{path}, line {len(lines) + 2}: follows the root")
        computed = {"size": len(lines), "root": trace.tree.root().hex()}
        for name, value in computed.items():
            if event[name] != value:
                raise VerificationError(where, name, value, event[name])
        done, goal = len(trace.steps), trace.header["steps"]
        if done != goal and token != 1:  # BOS ends a run early
            raise VerificationError(f"{path}, line 1 (header)", "steps", done, goal)
    return trace


# ----------------------------------------------------------------------------
# Verifying: the run is made again


@dataclass
class Verdict:
    """What a verification found to be so."""
    path: str
    steps: int                # computed again and found equal
    whole: bool               # is the trace of a run that ended, and all of it compared?
    head: str                 # SIZE:ROOT
    published: bool           # was this head given by the caller? if not, it was computed from the file alone
    text: str                 # of these steps
    claimed: dict = field(default_factory=dict)  # options that the caller gave: they are the run's
    chosen: dict = field(default_factory=dict)   # options that stand in the log, and that its author chose


def verify(run: Any, trace: Trace, last: int | None = None, published: str | None = None, text: str | None = None
           ) -> Verdict:
    """Make the run of a trace again and compare, up to step `last` or, if it is None, to the end.

    run is the run that the trace should be of (llama2.Run): its header, its prompt's tokens, its steps. published is
    the head, or the root, and text the text that it should have. Raises VerificationError at the first difference.
    """
    if published is not None:
        trace.check_head(published)
    steps = len(trace.steps) if last is None else trace.step(last) // trace.per_step
    told = text_of(trace, run.like, steps)
    if text is not None and text not in (told, told + "\n"):
        raise VerificationError(trace.path, "text", text, told)
    events = map(trace.event, trace.steps)
    draft = [event["next"] for event in itertools.islice(events, len(run.tokens) - 1, max(0, len(trace.steps) - 1))]
    header = run.header()
    try:
        checker = Checker(trace, header)
        observers = [checker.operation] if checker.level != "step" else []
        with contextlib.suppress(EndOfTrace), contextlib.closing(
                progress(run.generate(observers, draft=draft), steps)) as steps_again:
            for step in steps_again:
                checker.step(step)
                if step.pos == last:
                    break
            else:
                checker.end()
        checker.conclude()
        run.transformer.checkpoint.check_unchanged()
    except VerificationError as error:
        if trace.rust:
            error.hint += " (the format does not commit to the run's options: are -s -t -p -i -n as they were?)"
        elif header["arithmetic"] == "c" and error.field in ("logits", "sha256"):
            error.hint += " (in the arithmetic `c` this may only be another C library)"
        raise
    options = sorted(run.options.items(), key=lambda option: HEADER_FIELDS.index(option[0]))
    claimed, chosen = ({name: value for name, value in options if (name in run.claims) == is_claimed}
                       for is_claimed in (True, False))
    return Verdict(trace.path, steps, bool(trace.root) and last is None, trace.head(), published is not None, told,
                   claimed, chosen)


def show_verdict(verdict: Verdict, trace: Trace, last: int | None, out: TextIO) -> None:
    """Print what was verified, and what of it was claimed by whom."""
    out.write(f"verified: {verdict.steps} steps computed again and found equal\n")
    if last is not None:
        out.write(f"step {last} is leaf {trace.step(last) - trace.rust} of {len(trace.tree)} under the root\n")
    if not trace.root:
        out.write("the trace is incomplete: its run was cut short, and it is verified as far as it goes\n")
    by_others = "these were not given, and taken as they are by default:" if trace.rust else (
        "these options were chosen by the log's author:")
    for title, options in ("these options were claimed by the caller:", verdict.claimed), (by_others, verdict.chosen):
        if options:
            out.write(f"{title}\n")
            show_fields(options, out)
    out.write(f"the text of these steps:\n    {quoted(verdict.text, 4)}\n")
    basis = "as published" if verdict.published else (
        "only recomputed from the file itself; compare it with the one that was published")
    out.write(f"root: {verdict.head}, {basis}\n")


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
                console.say(f"\r{done} of {goal} steps, {rate:.1f} steps/s, {(goal - done) / rate:.0f} s left  ",
                            end="")
    finally:
        if shown > begin:
            console.say("")


# ----------------------------------------------------------------------------
# What can be asked of a trace


def show_fields(fields: dict, out: TextIO) -> None:
    """Print names and values from a log, a line each; a string in quotes, in several lines if it is long."""
    for name, value in fields.items():
        free = isinstance(value, str) and name in ("prompt", "text", "model_path")
        shown = quoted(value, len(name) + 4) if free else printable(value, 1000)
        out.write(f"  {name}: {shown}\n")


def show(trace: Trace, out: TextIO) -> None:
    """Print a trace as a table, its text escaped. It marks nothing as verified: only the root is computed again."""
    show_fields(trace.header, out)
    out.write("iteration   token  logits' SHA-256    text\n")
    for index in trace.steps:
        event = trace.event(index)
        text = json.dumps(event["text"]).replace(" ", r"\u0020") if "  " in event["text"] else json.dumps(event["text"])
        text = text if len(text) <= 40 else text[:36] + "\".."
        out.write(f"{event['pos']:9}  {event['token']:6}  {event['logits'][:16]}..  {text}\n")
    kind = "root" if trace.root else "incomplete, the run was cut short; root so far"
    out.write(f"{kind}: {trace.head()}\n")


def show_step(trace: Trace, pos: int, out: TextIO) -> None:
    """Draw the path of one step from its line to the root, saying of each hash what it is the SHA-256 of."""
    index, size = trace.step(pos), len(trace.tree)
    line = trace.lines[index]
    computed = merkle.leaf_hash(line)
    out.write(f"line {index + 1} of the file:\n")
    show_fields(trace.event(index), out)
    out.write(f"leaf {index} of {size}\n{computed.hex()} = SHA256(00, that line)\n")
    for left, sibling in zip(merkle.sides(index, size - 1), trace.tree.inclusion_proof(index), strict=True):
        computed = merkle.node_hash(sibling, computed) if left else merkle.node_hash(computed, sibling)
        mine = "right" if left else "left"
        out.write(f"  | {mine:5} child, beside {sibling.hex()}\n{computed.hex()} = SHA256(01, left, right)\n")
    out.write("  = the root\n")


def text_of(trace: Trace, like: str | None = None, steps: int | None = None) -> str:
    """The text of a trace's first steps, or of all, as the run prints it. like: the program whose habits it has."""
    out = io.BytesIO()
    write = console.printer(out, like)
    for index in trace.steps[:steps]:
        event = trace.event(index)
        if event["next"] != 1 or trace.rust:
            piece = event["text"].encode(errors="replace")
            write(re.sub(rb"\\x([89a-f][0-9a-f])", lambda byte: bytes.fromhex(byte[1].decode()), piece))
    return out.getvalue().decode(errors="replace")


def prove(trace: Trace, first: int, last: int | None = None) -> bytes:
    """A proof, as JSON, that steps first .. last are in the log: the header and the steps with their audit paths."""
    indices = [0, *map(trace.step, range(first, (first if last is None else last) + 1))]
    return encode({"format": PROOF_FORMAT, "size": len(trace.tree), "root": trace.tree.root().hex(), "events": [
        {"index": i, "line": trace.lines[i].decode(), "path": [h.hex() for h in trace.tree.inclusion_proof(i)]}
        for i in indices]})


def prove_growth(trace: Trace, size: int) -> bytes:
    """A proof, as JSON, that the log has only grown since it had `size` lines (RFC 6962, 2.1.2)."""
    path = trace.tree.consistency_proof(size)
    return encode({"format": GROWTH_FORMAT, "size1": size, "root1": trace.tree.root(size).hex(),
                   "size2": len(trace.tree), "root2": trace.tree.root().hex(), "path": [h.hex() for h in path]})


def parse_proof(path: str) -> dict:
    """A file -> the proof that it holds, of a format and types that are known. Raises ValueError if it holds none."""
    line = read_file(path, MAX_PROOF).removesuffix(b"\n")
    hashes = {"size": int, "root": HEX, "size1": int, "root1": HEX, "size2": int, "root2": HEX}
    try:
        proof = json.loads(line)
        kind = proof["format"]
        if kind not in (PROOF_FORMAT, GROWTH_FORMAT):
            raise ValueError(f"format is {printable(kind, 100)}, must be {PROOF_FORMAT!r} or {GROWTH_FORMAT!r}")
        names = ("size", "root", "events") if kind == PROOF_FORMAT else ("size1", "root1", "size2", "root2", "path")
        if list(proof) != ["format", *names] or encode(proof) != line:
            raise ValueError(f"not written as a {kind} is")
        for name in names:
            if name in hashes and not fits(proof[name], hashes[name]):
                raise ValueError(f"{name} cannot be {printable(proof[name], 100)}")
        paths = [proof["path"]] if kind == GROWTH_FORMAT else [event["path"] for event in proof["events"]]
        if not all(type(hashes) is list and all(map(is_hash, hashes)) for hashes in paths):
            raise ValueError("a path is not a list of hashes")
        for event in proof.get("events", ()):
            if list(event) != ["index", "line", "path"] or not fits(event["index"], int):
                raise ValueError("an event is not an index, a line and a path")
            event["line"] = event["line"].encode("ascii")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = error if isinstance(error, ValueError) else "a field is missing or of another type"
        raise ValueError(f"{path}: not a proof: {reason}") from None
    return proof


def verify_proof(path: str, published: str) -> tuple[dict, list[dict]]:
    """Check a proof file against the head that was published -> the header and the steps that are thereby proved.

    Raises ValueError for what is not a proof, VerificationError for one that does not lead from its lines to the root,
    or whose lines cannot stand in one log. index, position and size all follow from the header, and the tree's shape
    from the size, so no two proofs of different steps at one position pass under one head, whoever made the log.
    """
    proof = parse_proof(path)
    if "events" not in proof:
        raise ValueError(f"{path}: a proof of growth: give the older head, too, with --from")
    size, root = proof["size"], bytes.fromhex(proof["root"])
    if head(size, root) != published:
        raise VerificationError(path, "root", published, head(size, root))
    if len(proof["events"]) < 2 or proof["events"][0]["index"] != 0:
        raise ValueError(f"{path}: not a proof: does not hold a header and a step")
    header, *steps = [read_line(f"{path}, event {i}", event["line"]) for i, event in enumerate(proof["events"])]
    read_header(f"{path}, event 0", proof["events"][0]["line"])
    layout = Layout(header)
    for i, event in enumerate(proof["events"]):
        where, index, step = f"{path}, event {i}", event["index"], ([header] + steps)[i]
        try:
            hashes = [bytes.fromhex(h) for h in event["path"]]
            merkle.verify_inclusion(merkle.leaf_hash(event["line"]), index, size, hashes, root)
        except merkle.ProofError as error:
            raise VerificationError(where, "path", f"a path from leaf {index} to the root", str(error)) from None
        if i == 0:
            continue
        if "next" not in step:
            raise ValueError(f"{path}: not a proof: event {i} is not a step")
        layout.check(where, index, step)
        if i > 1:
            due = {"index": proof["events"][i - 1]["index"] + layout.lines, "token": steps[i - 2]["next"]}
            for name, got in ("index", index), ("token", step["token"]):
                if got != due[name]:
                    raise VerificationError(where, name, due[name], got)
        if step["next"] == 1 and size != index + 1:  # BOS ends the run
            raise VerificationError(where, "size", index + 1, size)
    largest = layout.step(header["steps"] - 1) + 1
    if size > largest:
        raise VerificationError(path, "size", f"at most {largest}, for the steps of the header", size)
    return header, steps


def verify_growth(path: str, published: str, earlier: str) -> None:
    """Check a proof file that the log with the earlier head is the beginning of the one with the published head."""
    proof = parse_proof(path)
    if "events" in proof:
        raise ValueError(f"{path}: a proof of steps, not of growth")
    for number, given in (1, earlier), (2, published):
        found = f"{proof[f'size{number}']}:{proof[f'root{number}']}"
        if found != given:
            raise VerificationError(path, f"root{number}", given, found)
    try:
        merkle.verify_consistency(proof["size1"], proof["size2"], [bytes.fromhex(h) for h in proof["path"]],
                                  bytes.fromhex(proof["root1"]), bytes.fromhex(proof["root2"]))
    except merkle.ProofError as error:
        raise VerificationError(path, "path", "a path from the earlier to the later root", str(error)) from None


def checkpoint(trace: Trace, origin: str) -> str:
    """The head as the text of a checkpoint (C2SP, tlog-checkpoint), to be signed by any tool that signs notes."""
    if not re.fullmatch(r"[^\s+]+", origin):
        raise ValueError(f"origin is {printable(origin, 100)}, must be a name without white space and plus signs")
    return f"{origin}\n{len(trace.tree)}\n{base64.b64encode(trace.tree.root()).decode()}\n"


def tlog_proof(trace: Trace, pos: int, note: str) -> str:
    """A proof that a step is in the log as C2SP's tlog-proof: for the leaf that is the step's line.

    note: the checkpoint, signed or not. Raises VerificationError if it is not this log's.
    """
    index = trace.step(pos)
    origin, *rest = note.split("\n")
    expected = checkpoint(trace, origin).split("\n")[1:3]
    if rest[:2] != expected:
        raise VerificationError("the checkpoint", "size and root", " ".join(expected), " ".join(rest[:2]))
    hashes = "".join(base64.b64encode(h).decode() + "\n" for h in trace.tree.inclusion_proof(index))
    return f"c2sp.org/tlog-proof@v1\nindex {index}\n{hashes}\n{note}"


def differences(a: Trace, b: Trace) -> list[VerificationError]:
    """The first difference of trace b from trace a, as a list of VerificationErrors, empty if there is none. After a
    difference of the headers, which say nothing about results, the first of the other events follows. Of traces of
    different levels that is compared which both have."""
    found, level = [], None
    if a.rust == b.rust and not a.rust and a.header["level"] != b.header["level"]:
        level = min(a.header["level"], b.header["level"], key=LEVELS.index)
    places = [[i for i in range(len(trace)) if level is None or is_of_level(trace.event(i), level)] for trace in (a, b)]
    for i, j in zip(*places, strict=False):
        one, other = a.event(i), b.event(j)
        if i == 0 and level:
            one["level"] = other["level"]
        if encode(one) != encode(other):
            found.append(difference(b.where(j), one, other))
            if i > 0:
                return found
    if len(places[0]) != len(places[1]):
        i = min(map(len, places))
        where = b.where(places[1][i] if i < len(places[1]) else len(b))
        found.append(VerificationError(where, "number of events", *map(len, places)))
    elif not found and (a.root is None) != (b.root is None):
        found.append(VerificationError(f"{b.path}, at its end", "root", a.root, b.root))
    return found


def is_of_level(event: dict, level: str) -> bool:
    """Whether a trace of a level has this event."""
    return "op" not in event or level == "layer" and event["op"] == "ffn_residual"


# ----------------------------------------------------------------------------
# Traces of llama2-rs. It commits to position, token and logits of each step only.


class RustWriter(Log):
    """Collects a run's events and writes them once the run is complete."""

    rust = True

    def __init__(self, path: str, header: dict):
        """header: model_path, prompt and steps"""
        self.path, self.events, self.tree = path, [], merkle.MerkleTree(llama2rs.node_hash)
        for name in "model_path", "prompt":
            if any("\ud800" <= c <= "\udfff" for c in header[name]):
                raise ValueError(f"{path}: {name} is {printable(header[name])}, must be UTF-8 for llama2-rs's format")
        super().__init__(header)

    def put(self, event: dict) -> None:
        """Keep an event."""
        self.events.append(event)
        if "pos" in event:
            self.tree.append(llama2rs.leaf_hash(event))

    def finish(self) -> None:
        """Write the file."""
        write_whole(self.path, llama2rs.dump(self.events, self.tree.root()))

    def close(self) -> None:
        """There is no file yet, or it is whole."""


def read_rust(path: str, data: bytes) -> Trace:
    """The bytes of a trace of llama2-rs -> a Trace. Raises ValueError if they are not one, and VerificationError if its
    positions are not in order, a leaf is not its entry's hash, or the root is not that of the leaves."""
    events, leaves, root = llama2rs.parse(path, data)
    trace = Trace(path, [encode(event) for event in events], leaves, root, rust=True)
    if len(leaves) != len(events) - 1:
        raise VerificationError(path, "number of leaves", len(events) - 1, len(leaves))
    for i, (event, leaf) in enumerate(zip(events[1:], leaves, strict=True)):
        if event["pos"] != i:
            raise VerificationError(f"{path}, entry {i}", "pos", i, event["pos"])
        if leaf != llama2rs.leaf_hash(event):
            raise VerificationError(f"{path}, entry {i}", "leaf", llama2rs.leaf_hash(event).hex(), leaf.hex())
    computed = trace.tree.root().hex() if leaves else None
    if root != computed:
        raise VerificationError(path, "root", computed, root)
    return trace


# ----------------------------------------------------------------------------
# Command line


def root_argument(text: str) -> str:
    """A head, SIZE:ROOT, or a root alone, as an option gives it."""
    if not re.fullmatch("((0|[1-9][0-9]{0,19}):)?[0-9a-f]{64}", text.lower()):
        raise argparse.ArgumentTypeError(f"not a root of 64 hexadecimal digits, or SIZE:ROOT: {printable(text, 200)}")
    return text.lower()


def head_argument(text: str) -> str:
    """A head, SIZE:ROOT, as an option gives it."""
    if ":" not in root_argument(text):
        raise argparse.ArgumentTypeError(f"the size is needed, too, as SIZE:ROOT: {printable(text, 200)}")
    return text.lower()


def steps_argument(text: str) -> tuple[int, int]:
    """N or N-M: a step, or the first and the last of some."""
    match = re.fullmatch("([0-9]{1,18})(?:-([0-9]{1,18}))?", text)
    if not match or match[2] and int(match[2]) < int(match[1]):
        raise argparse.ArgumentTypeError(f"not a step, or steps as N-M: {printable(text, 100)}")
    return int(match[1]), int(match[2] or match[1])


def run(argv: Sequence[str] | None, out: TextIO) -> int:
    """Do what the command line asks for -> the exit code."""
    parser = console.Parser(prog="trace.py", description="Read, prove and compare traces of llama2.py and llama2-rs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, help, *files):
        added = commands.add_parser(name, help=help, description=help)
        for file in files:
            added.add_argument(file)
        return added.add_argument

    command("show", "print a trace", "file")(
        "--step", type=int, metavar="N", help="draw the path from this step's line to the root")
    command("root", "print a trace's head, SIZE:ROOT", "file")
    command("text", "print a trace's text alone", "file")
    add = command("prove", "print a proof that steps are in the trace, or that it has only grown", "file")
    add("steps", nargs="?", type=steps_argument, metavar="N[-M]", help="a step, or several")
    add("--from", dest="earlier", type=int, metavar="SIZE", help="since the trace had this size")
    add("--tlog", nargs="?", const="", metavar="CHECKPOINT", help="as C2SP's tlog-proof, with this checkpoint, signed "
        "(default: one without a signature)")
    add = command("check", "check such a proof against the head that was published", "proof")
    add("--root", type=head_argument, required=True, metavar="SIZE:HEX")
    add("--from", dest="earlier", type=head_argument, metavar="SIZE:HEX", help="the head that it had before")
    command("diff", "find the first event in which two traces differ", "a", "b")
    command("page", "print a trace as a page of HTML, to look at", "file")
    command("checkpoint", "print the head as a C2SP checkpoint, to be signed", "file", "origin")
    args = parser.parse_args(argv)
    if args.command == "check":
        return run_check(args, out)
    if args.command == "diff":
        return run_diff(read(args.a), read(args.b), out)
    trace, step = read(args.file), getattr(args, "step", None)
    if trace.rust and (args.command in ("prove", "checkpoint", "page") or step is not None):
        parser.error(f"{args.file}: a trace of llama2-rs has no paths as in RFC 6962 that could be drawn or proved")
    if args.command == "show":
        show(trace, out) if step is None else show_step(trace, step, out)
    elif args.command == "root":
        out.write(trace.head() + "\n")
    elif args.command == "text":
        out.write(text_of(trace, "llama2-rs" if trace.rust else None) + "\n")
    elif args.command == "page":
        import page  # here, since it imports this module
        out.write(page.of_trace(trace).decode())
    elif args.command == "checkpoint":
        out.write(checkpoint(trace, args.origin))
    elif args.earlier is not None:
        if args.steps or args.tlog is not None:
            parser.error("--from: a proof of growth stands alone, without steps and --tlog")
        out.write(prove_growth(trace, args.earlier).decode() + "\n")
    elif not args.steps:
        parser.error("prove needs a step, steps as N-M, or --from")
    elif args.tlog is not None:
        if args.steps[0] != args.steps[1]:
            parser.error("--tlog proves one step")
        note = read_file(args.tlog).decode(errors="replace") if args.tlog else checkpoint(trace, "llama2.py")
        out.write(tlog_proof(trace, args.steps[0], note))
    else:
        out.write(prove(trace, *args.steps).decode() + "\n")
    return 0


def run_check(args: argparse.Namespace, out: TextIO) -> int:
    """Check a proof, and print what it proves."""
    if args.earlier is not None:
        verify_growth(args.proof, args.root, args.earlier)
        out.write(f"proved: the log with the head\n  {args.root}\nbegins with the one that had the head\n"
                  f"  {args.earlier}\n")
        return 0
    header, steps = verify_proof(args.proof, args.root)
    out.write("proved to be in the log with this root:\n")
    show_fields(header, out)
    for step in steps:
        show_fields(step, out)
    return 0


def run_diff(a: Trace, b: Trace, out: TextIO) -> int:
    """Print where two traces differ, or that they do not."""
    found = differences(a, b)
    for error in found:
        out.write(console.escaped(str(error)).encode("ascii", "backslashreplace").decode() + "\n")
    if not found:
        of = f" in what both have: {a.header['level']} and {b.header['level']} are their levels" if (
            not a.rust and a.header["level"] != b.header["level"]) else ""
        out.write(f"the two traces are equal{of}\n")
    return 1 if found else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return console.exit_code("trace.py", lambda: run(argv, sys.stdout))


if __name__ == "__main__":
    sys.exit(main())
