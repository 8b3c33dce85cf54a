"""A log is read strictly, so that there is one way only to write it down, and line by line, so that its length does
not matter.

    trace = read_trace("tale.trace", data)    # formats.read also knows the traces of llama2-rs
    trace.event(trace.step(7))                # the line of step 7
"""
import functools
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import merkle
from llama2_py.console import VerificationError
from llama2_py.log.events import MAX_LINE, Layout, commitment_of, read_header, read_line, too_long
from llama2_py.log.writing import head


class Lines(Sequence):
    """The lines of a file, or of bytes, found once and read again whenever one is asked for: what is kept of a line is
    where it ends. Raises ValueError if the file is no longer as it was."""

    def __init__(self, path: str, file: BinaryIO):
        """file: whose lines are to be read from its beginning on, and which can be read anywhere."""
        self.path, self.file = path, file
        self.ends = array("Q", [0])
        self.identity = self._identity()

    def _identity(self) -> tuple:
        try:
            stat = os.fstat(self.file.fileno())
        except OSError:  # bytes in memory have no number
            return ()
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime_ns

    def scan(self) -> Iterator[bytes]:
        """The lines one by one, with their newlines: each one that is taken into the log is to be appended."""
        self.file.seek(0)
        while line := self.file.readline(MAX_LINE + 2):
            yield line

    def __del__(self) -> None:
        self.file.close()

    def append(self, line: bytes) -> None:
        """Take a line, with its newline, into the log."""
        self.ends.append(self.ends[-1] + len(line))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        self.file.seek(self.ends[at])
        line = self.file.read(self.ends[at + 1] - self.ends[at] - 1)
        if self._identity() != self.identity:
            raise ValueError(f"{self.path}: the file was changed while it was being read")
        return line


class Trace:
    """A trace as read: its lines, of which the first is the header, and the tree over them. root is what the file says,
    which has been compared with the tree's, or None if the run was cut short before it was written.

    llama2rs.RustTrace is the other kind. What differs between the two stands here as attributes.
    """

    kind = "this program's own"  # in messages
    provable = True              # has it lines that are leaves of an RFC 6962 tree?
    may_be_cut = True            # is a trace without a root one of a run that was cut short?
    prints_bos = False           # does its program print the token that ends a run?
    leaf_offset = 0              # the index of a step's line, less that of its leaf
    chosen_by = "these options were chosen by the log's author:"

    def __init__(self, path: str, lines: Sequence[bytes], tree_root: bytes, root: str | None):
        self.path, self.lines, self.tree_root, self.root = path, lines, tree_root, root
        self.header = self.event(0)
        self.per_step = self.lines_per_step()
        self.steps = range(self.per_step, len(lines), self.per_step)  # pos -> its line's index

    @property
    def options(self) -> dict:
        """What the header says of how the run was made."""
        return self.header

    @property
    def like(self) -> str | None:
        """The program whose run it is of, as --like names it; None: this program's own, in exact arithmetic."""
        return "llama2.c" if (self.header["arithmetic"], self.header["rng"]) == ("c", "xorshift64*") else None

    def hint(self, field: str) -> str:
        """What a difference in a field may only be."""
        if self.header["arithmetic"] == "c" and field in ("logits", "sha256"):
            return " (in the arithmetic `c` this may only be another C library)"
        return ""

    def lines_per_step(self) -> int:
        """How many lines a step has."""
        return Layout(self.header).lines

    def __len__(self) -> int:
        return len(self.lines)

    def leaf(self, line: bytes) -> bytes:
        """The leaf of a line."""
        return merkle.leaf_hash(line)

    @functools.cached_property
    def tree(self) -> merkle.MerkleTree:
        """The tree over the lines."""
        tree = merkle.MerkleTree()
        for line in self.lines:
            tree.append(self.leaf(line))
        return tree

    def event(self, index: int) -> dict:
        """What a line says."""
        return json.loads(self.lines[index])

    def where(self, index: int) -> str:
        """The place of an event in the file, for messages."""
        return f"{self.path}, line {index + 1}"

    def step(self, pos: int) -> int:
        """The index of a step's line."""
        if not 0 <= pos < len(self.steps):
            raise ValueError(f"{self.path}: has no step {pos}; it has {len(self.steps)}, counted from 0")
        return self.steps[pos]

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self.lines)

    def head(self) -> str:
        """Size and root."""
        return head(self.size, self.tree_root)

    def check_head(self, published: str) -> None:
        """Raise VerificationError if the head, or the root alone, that was published is not this trace's."""
        own = self.head()
        if published not in (own, own.split(":")[1]):
            cut = "" if self.root else f", of a trace without its last line, after {len(self)} lines"
            raise VerificationError(self.path, "root", published, own + cut)

    def check_claims(self, nonce: str | None, commitment: str | None) -> None:
        """Raise VerificationError if the nonce, or the commitment, that was given for this run is not the header's."""
        if nonce not in (None, self.header.get("nonce")):
            raise VerificationError(self.where(0), "nonce", nonce, self.header.get("nonce"))
        if commitment is not None and commitment != commitment_of(self.header):
            raise VerificationError(self.where(0), "commitment", commitment, commitment_of(self.header))


class Follow:
    """What a log may say next, given what it has said: each event of line after line is checked against it."""

    def __init__(self, header: dict):
        self.layout = Layout(header)
        self.token: int | None = None  # the one that has to be the next step's

    def ended(self) -> bool:
        """Is the run over, because of the token that was chosen last?"""
        return self.token in self.layout.must_end

    def is_operation(self, index: int, line: bytes) -> bool:
        """Is a line, without doubt, the operation that has to stand at an index? (check would find the same, but takes
        ten times as long, and a log has some hundred operations a step.)"""
        return not self.ended() and self.layout.is_operation(index, line)

    def check(self, where: str, index: int, line: bytes, event: dict) -> None:
        """Raise VerificationError if an event cannot stand at an index of the log."""
        if "format" in event:
            raise ValueError(f"{where}: a second header")
        if self.ended() and "pos" in event:
            raise VerificationError(where, "line", "the end of the run", line.decode())
        self.layout.check(where, index, event)
        if self.token is not None and event.get("token", self.token) != self.token:
            raise VerificationError(where, "token", self.token, event["token"])
        self.token = event.get("next", self.token)


class Reader:
    """Reads a log from its beginning to its end, or to its first fault."""

    def __init__(self, path: str, file: BinaryIO):
        self.path, self.lines = path, Lines(path, file)
        self.follow: Follow | None = None
        self.last: dict | None = None  # the line of the root
        self.after = b""               # what follows it

    def leaves(self) -> Iterator[bytes]:
        """The leaves, line by line. Raises as read_trace does."""
        scanned = self.lines.scan()
        for line in scanned:
            where = f"{self.path}, line {len(self.lines) + 1}"
            if len(line) > MAX_LINE + 1:
                raise too_long(where, line)
            if not line.endswith(b"\n"):
                raise ValueError(f"{where}: does not end in a newline")
            self.last = self._taken(where, line[:-1])
            if self.last:
                self.after = next(scanned, b"")
                return
            self.lines.append(line)
            yield merkle.leaf_hash(line[:-1])

    def _taken(self, where: str, line: bytes) -> dict | None:
        """Check a line -> the event of the line of the root, and None for all others."""
        if self.follow is None:
            self.follow = Follow(read_header(where, line))
            return None
        if self.follow.is_operation(len(self.lines), line):
            return None
        event = read_line(where, line)
        if "root" in event:
            return event
        self.follow.check(where, len(self.lines), line, event)
        return None


def read_trace(path: str, file: BinaryIO) -> Trace:
    """A file, open -> its Trace. Raises ValueError, naming the line, if it is not a trace, and VerificationError if a
    line does not stand where its header says, or the root is not that of the lines."""
    reader = Reader(path, file)
    tree_root = merkle.tree_head(reader.leaves())
    if reader.follow is None:
        raise ValueError(f"{path}: the file is empty")
    trace = Trace(path, reader.lines, tree_root, reader.last["root"] if reader.last else None)
    if reader.last:
        check_end(trace, reader.last, reader.after, reader.follow)
    return trace


def check_end(trace: Trace, last: dict, after: bytes, follow: Follow) -> None:
    """Raise ValueError or VerificationError if the line of the root is not what the lines before it make true."""
    if after:
        raise ValueError(f"{trace.path}, line {len(trace) + 2}: follows the root")
    computed = {"size": len(trace), "root": trace.tree_root.hex()}
    for name, value in computed.items():
        if last[name] != value:
            raise VerificationError(trace.where(len(trace)), name, value, last[name])
    done, goal = len(trace.steps), trace.header["steps"]
    if done != goal and follow.token not in follow.layout.may_end:
        raise VerificationError(f"{trace.path}, line 1 (header)", "steps", done, goal)
