"""A trace for people: as a table, as a text, one step's path drawn. Strings from a file are quoted or escaped, so that
nothing in a trace can pass for a line of ours on a terminal."""
import io
import json
import re
from collections.abc import Callable
from typing import Any, TextIO

import merkle
from llama2_py.console import printable, printer, quoted
from llama2_py.engine.checkpoint import Config
from llama2_py.log.reading import Trace

FREE = ("prompt", "text", "model_path")  # fields that hold any text


def show_fields(fields: dict, out: TextIO) -> None:
    """Print names and values from a log, a line each; a string in quotes, in several lines if it is long."""
    for name, value in fields.items():
        free = isinstance(value, str) and name in FREE
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
    kind = "root" if trace.root else "without its last line, so the run may have been cut short; root so far"
    out.write(f"{kind}: {trace.head()}\n")


def show_options(claimed: dict[str, Any], chosen: dict[str, Any], chosen_by: str, out: TextIO) -> None:
    """Print who named the options of a run: its verifier, nobody, or its author. claimed, chosen: options by name;
    chosen_by: what is said of the latter."""
    options = {**claimed, **chosen}
    following = {"seed": options["seed"]} if "nonce" in options else {}
    for title, group in (("these options were claimed by the caller:", claimed),
                         ("this option follows from the nonce and all others:", following), (chosen_by, chosen)):
        shown = {name: value for name, value in group.items() if group is following or name not in following}
        if shown:
            out.write(f"{title}\n")
            show_fields(shown, out)


def show_commitment(nonce: str | None, commitment: str | None, out: TextIO) -> None:
    """Print whether the author was bound before the nonce was known. nonce, commitment: those that the caller gave."""
    if commitment is not None:
        out.write(f"commitment: {commitment}, as the caller has it\n")
    elif nonce is not None:
        out.write("no commitment was given: the author may have chosen the other options when he knew the nonce\n")


def show_step(trace: Trace, pos: int, out: TextIO) -> None:
    """Draw the path of one step from its line to the root, saying of each hash what it is the SHA-256 of."""
    index, size = trace.step(pos), trace.size
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


def text_of(trace: Trace, like: str | None = None, steps: int | None = None, beginning: bytes = b"",
            decode: Callable[[int, int], bytes] | None = None) -> str:
    """The text of a trace's first steps, or of all, as the run prints it. like: the program whose habits it has;
    beginning: what the first token adds to the text, which is not in the log. decode: a tokenizer's, from whose tokens
    the text is made; without it from what the log shows for the eye, in which \\xHH may be a byte or four characters.
    """
    out = io.BytesIO()
    write = printer(out, like)
    write(beginning)
    silent = () if trace.prints_bos else Config.of(trace.header["config"]).must_end
    for index in trace.steps[:steps]:
        event = trace.event(index)
        if event["next"] in silent:
            continue
        if decode:
            write(decode(event["token"], event["next"]))
        else:
            piece = event["text"].encode(errors="replace")
            write(re.sub(rb"\\x([89a-f][0-9a-f])", lambda byte: bytes.fromhex(byte[1].decode()), piece))
    return out.getvalue().decode(errors="replace")
