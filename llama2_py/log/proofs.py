"""Proofs that need neither the log nor a model: that steps are in a log, and that a log has only grown.

    prove(trace, 9)                              # the header, the steps and their audit paths, as JSON
    header, steps = verify_proof(path, head)     # checked against the head that was published
"""
import base64
import json
import re
from typing import Any

import merkle
from llama2_py.console import VerificationError, printable, read_file
from llama2_py.log.events import HEX, Layout, encode, fits, is_hash, read_header, read_line
from llama2_py.log.reading import Trace
from llama2_py.log.writing import head

PROOF_FORMAT, GROWTH_FORMAT = "llama2.py proof 2", "llama2.py growth 2"
MAX_PROOF = 2**24  # bytes: of some 7,000 steps


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
