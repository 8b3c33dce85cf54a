"""The trace file of llama2-rs, as bincode 1.3 writes it.

    metadata    {model_path string, prompt string, steps u64}
    entries     [{pos i32, token i32, text string, logits_hash 32 bytes}]
    merkle_tree {leaves [32 bytes], root: 1 and 32 bytes, or 0}

Numbers are little endian; a string and a list stand behind their length, a u64. Here the metadata is the header, and an
entry is a step whose `next` is the next entry's token; after the last it is None.
"""
import functools
import hashlib
import re
import struct

import merkle
from llama2_py.console import VerificationError, printable, write_whole
from llama2_py.log.checker import Checker
from llama2_py.log.events import encode
from llama2_py.log.reading import Trace
from llama2_py.log.writing import Log


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA256(left || right); an odd node is promoted, which gives trees of the shape of RFC 6962."""
    return hashlib.sha256(left + right).digest()


def leaf_hash(event: dict) -> bytes:
    """SHA256(pos || token || logits_hash), numbers as little-endian int32."""
    return hashlib.sha256(struct.pack("<ii", event["pos"], event["token"]) + bytes.fromhex(event["logits"])).digest()


def dump(events: list[dict], root: bytes) -> bytes:
    """A header and steps -> the file."""
    def string(text):
        return struct.pack("<Q", len(text.encode())) + text.encode()

    header, *steps = events
    parts = [string(header["model_path"]), string(header["prompt"])]
    parts.append(struct.pack("<QQ", header["steps"], len(steps)))
    for event in steps:
        parts += [struct.pack("<ii", event["pos"], event["token"]), string(event["text"]),
                  bytes.fromhex(event["logits"])]
    parts += struct.pack("<Q", len(steps)), *map(leaf_hash, steps), b"\x01", root
    return b"".join(parts)


def parse(path: str, data: bytes) -> tuple[list[dict], list[bytes], str | None]:
    """A file's bytes -> header and steps, the leaves, and the root in hexadecimal, as they stand there. Raises
    ValueError, naming the field and its place, if they are no such file."""
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
    return events, leaves, root


# ----------------------------------------------------------------------------
# A run in this format. It commits to position, token and logits of each step only.


class RustLog(Log):
    """The events of a run as llama2-rs records them: the header is model_path, prompt and steps."""

    errors = "replace"  # bytes of a text that are not UTF-8 become U+FFFD

    def first(self, header: dict) -> dict:
        """The header as it is."""
        return header


class RustWriter(RustLog):
    """Collects a run's events and writes them once the run is complete."""

    def __init__(self, path: str, header: dict):
        """header: model_path, prompt and steps"""
        self.path, self.tree = path, merkle.MerkleTree(node_hash)
        self.events: list[dict] = []
        for name in "model_path", "prompt":
            if any("\ud800" <= c <= "\udfff" for c in header[name]):
                raise ValueError(f"{path}: {name} is {printable(header[name])}, must be UTF-8 for llama2-rs's format")
        super().__init__(header)

    def put(self, event: dict) -> None:
        """Keep an event."""
        self.events.append(event)
        if "pos" in event:
            self.tree.append(leaf_hash(event))

    def head(self) -> str:
        """Size and root."""
        return f"{len(self.tree)}:{self.tree.root().hex()}"

    def finish(self) -> None:
        """Write the file."""
        write_whole(self.path, dump(self.events, self.tree.root()))

    def close(self) -> None:
        """There is no file yet, or it is whole."""


class RustChecker(RustLog, Checker):
    """Compares a run with such a trace. The model may be in another folder, and what follows the last entry's token is
    not recorded."""

    def comparable(self, event: dict, found: dict) -> dict:
        """An event of the run, less what the format leaves open."""
        if "model_path" in event:
            names = [re.split(r"[/\\]", path)[-1] for path in (event["model_path"], found["model_path"])]
            return {**event, "model_path": found["model_path"]} if names[0] == names[1] else event
        return {**event, "next": None} if found["next"] is None else event


class RustTrace(Trace):
    """A trace of llama2-rs as read."""

    kind = "llama2-rs's"
    provable = False
    may_be_cut = False
    prints_bos = True
    leaf_offset = 1  # the header is no leaf
    chosen_by = "these were not given, and taken as they are by default:"
    like = "llama2-rs"

    def __init__(self, path: str, events: list[dict], leaves: list[bytes], root: str | None):
        self.leaves = leaves
        super().__init__(path, [encode(event) for event in events], self.tree.root(), root)

    @property
    def options(self) -> dict:
        """The header holds none."""
        return {}

    def hint(self, field: str) -> str:
        """Options that are not in the file may have been others."""
        return " (the format does not commit to the run's options: are -s -t -p -i -n as they were?)"

    def lines_per_step(self) -> int:
        """An entry is a step."""
        return 1

    @functools.cached_property
    def tree(self) -> merkle.MerkleTree:
        """The tree over the entries."""
        tree = merkle.MerkleTree(node_hash)
        for leaf in self.leaves:
            tree.append(leaf)
        return tree

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self.leaves)

    def where(self, index: int) -> str:
        """The place of an event in the file, for messages."""
        return f"{self.path}, entry {index - 1}" if index else self.path


def read_rust(path: str, data: bytes) -> RustTrace:
    """The bytes of a trace of llama2-rs -> a Trace. Raises ValueError if they are not one, and VerificationError if its
    positions are not in order, a leaf is not its entry's hash, or the root is not that of the leaves."""
    events, leaves, root = parse(path, data)
    trace = RustTrace(path, events, leaves, root)
    if len(leaves) != len(events) - 1:
        raise VerificationError(path, "number of leaves", len(events) - 1, len(leaves))
    for i, (event, leaf) in enumerate(zip(events[1:], leaves, strict=True)):
        if event["pos"] != i:
            raise VerificationError(f"{path}, entry {i}", "pos", i, event["pos"])
        if leaf != leaf_hash(event):
            raise VerificationError(f"{path}, entry {i}", "leaf", leaf_hash(event).hex(), leaf.hex())
    computed = trace.tree_root.hex() if leaves else None
    if root != computed:
        raise VerificationError(path, "root", computed, root)
    return trace
