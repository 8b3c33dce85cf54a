"""Proofs that need neither the log nor a model: that steps are in a log, and that a log has only grown.

    proof = prove(trace, 9)                       # step 9, as JSON
    header, steps = verify_proof(proof, head)     # checked against the head that was published

A proof of steps holds the header, the line of the step before the first one, and the steps, each with its audit path:

    {"format":"llama2.py proof 3","size":S,"root":HEX,"events":[{"index":0,"line":"...","path":[HEX,..]},..]}

What stands where follows from the header, never from the proof. So under one head no two steps at one position are
proved, nor two neighbours that contradict each other.
"""
import base64
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import merkle
from llama2_py.console import VerificationError, printable, read_source
from llama2_py.log.events import MAX_LINE, encode, read_header, read_line
from llama2_py.log.reading import Follow, Trace
from llama2_py.log.writing import head

PROOF_FORMAT, GROWTH_FORMAT = "llama2.py proof 3", "llama2.py growth 2"
MAX_PROOF = 2**24  # bytes: of some 7,000 steps
HEAD_OF_PROOF = 256  # bytes at most, of what stands before its events and behind them
LONGEST = 2 * MAX_LINE + 2  # of a line in quotes, in which quotes and backslashes take two bytes

# ----------------------------------------------------------------------------
# Making


def prove(trace: Trace, first: int, last: int | None = None) -> bytes:
    """A proof, as JSON, that steps first .. last are in the log."""
    steps = range(max(0, first - 1), (first if last is None else last) + 1)
    events: list[dict] = []
    size = 0
    for i in (0, *map(trace.step, steps)):
        path = [h.hex() for h in trace.tree.inclusion_proof(i)]
        events.append({"index": i, "line": trace.lines[i].decode(), "path": path})
        size += len(encode(events[-1]))
        if size > MAX_PROOF - len(events) - HEAD_OF_PROOF:
            raise ValueError(f"{trace.path}: a proof of these steps is larger than {MAX_PROOF} bytes: ask for fewer")
    return encode({"format": PROOF_FORMAT, "size": trace.size, "root": trace.tree_root.hex(), "events": events})


def prove_growth(trace: Trace, size: int) -> bytes:
    """A proof, as JSON, that the log has only grown since it had `size` lines (RFC 6962, 2.1.2)."""
    path = trace.tree.consistency_proof(size)
    return encode({"format": GROWTH_FORMAT, "size1": size, "root1": trace.tree.root(size).hex(),
                   "size2": trace.size, "root2": trace.tree_root.hex(), "path": [h.hex() for h in path]})


# ----------------------------------------------------------------------------
# Reading: a proof is written in one way, which these expressions are. (A parser of JSON would build whatever it is
# given before it can be looked at.)

NUMBER, HASH = rb"(0|[1-9][0-9]{0,19})", rb'"([0-9a-f]{64})"'
HASHES = rb'\[((?:"[0-9a-f]{64}"(?:,"[0-9a-f]{64}"){0,127})?)\]'
INDEX = re.compile(rb'\{"index":' + NUMBER + rb',"line":')
PATH = re.compile(rb',"path":' + HASHES + rb"\}")
LINE_END = b'","path":['  # within a string each quote has a backslash before it, so that this stands behind it
PROOF = re.compile(rb'\{"format":"' + PROOF_FORMAT.encode() + rb'","size":' + NUMBER + rb',"root":' + HASH
                   + rb',"events":\[')
GROWTH = re.compile(rb'\{"format":"' + GROWTH_FORMAT.encode() + rb'","size1":' + NUMBER + rb',"root1":' + HASH
                    + rb',"size2":' + NUMBER + rb',"root2":' + HASH + rb',"path":' + HASHES + rb"\}\n?")


@dataclass
class Opened:
    """A line of a log, its index, and its audit path."""
    where: str  # for messages
    index: int
    line: bytes
    path: list[bytes]


def read_proof(source: str | os.PathLike | bytes) -> tuple[str, bytes]:
    """A file or its bytes -> its name and its bytes. Raises ValueError if it is no proof of a format that is known."""
    path, data = read_source(source, MAX_PROOF)
    found = re.match(rb'\{"format":("[^"\\]{0,100}")', data)
    if not found:
        raise ValueError(f"{path}: not a proof: does not begin with its format")
    kind = json.loads(found[1].decode(errors="replace"))
    if kind not in (PROOF_FORMAT, GROWTH_FORMAT):
        raise ValueError(f"{path}: not a proof: format is {printable(kind, 100)}, must be {PROOF_FORMAT!r} or "
                         f"{GROWTH_FORMAT!r}")
    return path, data


def split_hashes(text: bytes) -> list[bytes]:
    """Hashes as they stand in a list -> themselves."""
    return [bytes.fromhex(part.strip('"')) for part in text.decode().split(",")] if text else []


def opened_lines(path: str, data: bytes, at: int) -> Iterator[Opened]:
    """The events of a proof that begin at a byte, one by one, to its end. Raises ValueError if one is not written as it
    must be."""
    for number in range(len(data)):
        where = f"{path}, event {number}"
        index = INDEX.match(data, at)
        begin = index.end() if index else at
        end = data.find(LINE_END, begin, begin + LONGEST + len(LINE_END)) + 1
        hashes = PATH.match(data, end)
        if not index or not end or not hashes:
            raise ValueError(f"{path}: not a proof: event {number} is not an index, a line and a path of hashes")
        yield Opened(where, int(index[1]), unquoted(where, data[begin:end]), split_hashes(hashes[1]))
        at = hashes.end() + 1
        if data[at - 1:at] != b",":
            break
    if data[at - 1:].removesuffix(b"\n") != b"]}":
        raise ValueError(f"{path}: not a proof: something else follows the events")


def unquoted(where: str, written: bytes) -> bytes:
    """A line as JSON has it in quotes -> itself. Raises ValueError if it is not written as it must be."""
    try:
        text = json.loads(written)
    except (ValueError, RecursionError):
        text = None
    if type(text) is not str or encode(text) != written or not text.isascii():
        raise ValueError(f"{where}: the line is not written as JSON in ASCII is")
    return text.encode()


# ----------------------------------------------------------------------------
# Checking


def verify_proof(source: str | os.PathLike | bytes, published: str) -> tuple[dict, list[dict]]:
    """Check a proof, a file or its bytes, against the head that was published -> the header and the steps that are
    thereby proved.

    Raises ValueError for what is not a proof, VerificationError for one that does not lead from its lines to the root,
    or whose lines cannot stand in one log.
    """
    path, data = read_proof(source)
    found = PROOF.match(data)
    if not found:
        kind = "a proof of growth: give the older head, too, with --from" if GROWTH.match(data) else (
            "not a proof: size and root are not a number and a hash")
        raise ValueError(f"{path}: {kind}")
    size, root = int(found[1]), bytes.fromhex(found[2].decode())
    if head(size, root) != published:
        raise VerificationError(path, "root", published, head(size, root))
    lines = opened_lines(path, data, found.end())
    first = next(lines)
    if first.index != 0:
        raise ValueError(f"{path}: not a proof: does not hold a header and a step")
    check_inclusion(first, size, root)
    header = read_header(first.where, first.line)
    steps = list(proved_steps(header, lines, size, root))
    if steps and steps[0]["pos"] > 0:
        del steps[0]  # the step before: it shows what has to follow
    if not steps:
        raise ValueError(f"{path}: not a proof: does not hold a header and a step, with the step before it")
    return header, steps


def check_inclusion(opened: Opened, size: int, root: bytes) -> None:
    """Raise VerificationError if a line is not the leaf of its index."""
    try:
        merkle.verify_inclusion(merkle.leaf_hash(opened.line), opened.index, size, opened.path, root)
    except merkle.ProofError as error:
        raise VerificationError(opened.where, "path", f"a path from leaf {opened.index} to the root", str(error)
                                ) from None


def proved_steps(header: dict, lines: Iterator[Opened], size: int, root: bytes) -> Iterator[dict]:
    """The steps that the lines after a header prove, if they follow each other. Raises as verify_proof does."""
    follow, due = Follow(header), None
    largest = follow.layout.step(header["steps"] - 1) + 1
    if size > largest:
        raise VerificationError("the proof", "size", f"at most {largest}, for the steps of the header", size)
    for opened in lines:
        step = read_line(opened.where, opened.line)
        if "next" not in step:
            raise ValueError(f"{opened.where}: not a step, as the lines of a proof after the first must be")
        if due is not None and opened.index != due:
            raise VerificationError(opened.where, "index", due, opened.index)
        check_inclusion(opened, size, root)
        follow.check(opened.where, opened.index, opened.line, step)
        if follow.ended() and size != opened.index + 1:
            raise VerificationError(opened.where, "size", opened.index + 1, size)
        due = opened.index + follow.layout.lines
        yield step


def verify_growth(source: str | os.PathLike | bytes, published: str, earlier: str) -> None:
    """Check a proof, a file or its bytes, that the log with the earlier head is the beginning of the one with the
    published head. Raises as verify_proof does."""
    path, data = read_proof(source)
    found = GROWTH.fullmatch(data)
    if not found:
        kind = "a proof of steps, not of growth" if PROOF.match(data) else (
            f"not a proof: not written as a {GROWTH_FORMAT} is")
        raise ValueError(f"{path}: {kind}")
    sizes, roots = (int(found[1]), int(found[3])), (found[2].decode(), found[4].decode())
    for number, given in enumerate((earlier, published)):
        stated = f"{sizes[number]}:{roots[number]}"
        if stated != given:
            raise VerificationError(path, f"root{number + 1}", given, stated)
    try:
        merkle.verify_consistency(*sizes, split_hashes(found[5]), *map(bytes.fromhex, roots))
    except merkle.ProofError as error:
        raise VerificationError(path, "path", "a path from the earlier to the later root", str(error)) from None


# ----------------------------------------------------------------------------
# The formats of C2SP: tlog-checkpoint, tlog-proof. Nothing is signed here.


def checkpoint(trace: Trace, origin: str) -> str:
    """The head as the text of a checkpoint, to be signed by any tool that signs notes. Raises ValueError for an origin
    that is not a printable name in UTF-8 without white space and plus signs."""
    check_origin(origin)
    return f"{origin}\n{trace.size}\n{base64.b64encode(trace.tree_root).decode()}\n"


def check_origin(origin: str) -> None:
    """Raise ValueError if an origin cannot stand in a checkpoint."""
    if not origin or not origin.isprintable() or re.search(r"[\s+]", origin):
        raise ValueError(f"origin is {printable(origin, 100)}, must be a printable name without white space and plus "
                         "signs")


def read_note(path: str, data: bytes) -> str:
    """The bytes of a checkpoint, signed or not -> its text. Raises ValueError if it is not strict UTF-8, or does not
    end its last line."""
    try:
        note = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8, as a note must be") from None
    if not note.endswith("\n"):
        raise ValueError(f"{path}: its last line does not end in a newline, as a note's must")
    check_origin(note.split("\n")[0])
    for number, line in enumerate(note.split("\n")[:-1], 1):
        if not line.isprintable():
            raise ValueError(f"{path}, line {number}: is {printable(line, 100)}, must be printable text")
    return note


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
