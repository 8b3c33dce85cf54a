"""The messages of a dispute: their format, how they are written, how they are read.

A message is a file of one line: JSON in ASCII without spaces, keys in this order, numbers as base64 (RFC 4648, with
padding) of little-endian float32, hashes in hexadecimal. There is one way only to write it.

    {"format":"llama2.py reveal 1","event":15,"inputs":["BASE64",..],"output":"BASE64"}
        Values, of the event whose line has this index in the log (the header's is 0): its inputs, all in the order of
        `ask`, or none; and the sender's own result, or "". An input has the hash that the log has for it, a result that
        of the line in dispute. (Where a text alone is in dispute, the input is the tokenizer's file.)
    {"format":"llama2.py rows 1","config":["HEX",..],"rows":[{"tensor":"w2","layer":0,"row":17,"values":"BASE64",
     "path":["HEX",..]},..]}
        Rows of the weights, each with its audit path (RFC 6962, from the leaf up) to the header's `weights`, and the
        path of leaf 0, the config (llama2_py/log/weights.py has the order of the leaves). A shared classifier's rows
        are those of the embedding. layer is 0 where there is none.

A message can be larger than memory: all rows of a 7B model's largest matrix take 250 MB. So it is read piece by piece,
no piece larger than what the header allows, and a row is gone when the next one is read. Values are held, and computed
with: a vector of 2^20 numbers takes some 250 MB, and a header may allow more.
"""
import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import merkle
from llama2_py.console import VerificationError, printable
from llama2_py.engine.arithmetic import to_bytes
from llama2_py.engine.models import AnyCheckpoint
from llama2_py.log.events import encode
from llama2_py.log.weights import Leaves, Row
from llama2_py.referee.dispute import Input

VALUES = b'{"format":"llama2.py reveal 1",'  # how a message of values begins
ROWS = b'{"format":"llama2.py rows 1",'      # and one of rows

CHUNK = 2**16          # bytes that are read at once
MOST_DIGITS = 20       # of an integer: 2**64 has as many
MOST_NAME = 40         # characters of a tensor's name
MOST_PATH = 67 * 64    # characters of a path, of 64 hashes: a tree has fewer than 2**64 leaves
HASHES = re.compile(rb'(?:"[0-9a-f]{64}"(?:,"[0-9a-f]{64}")*)?')
INTEGER = re.compile(rb"0|[1-9][0-9]*")

# ----------------------------------------------------------------------------
# Writing


def base64_of(data: bytes) -> str:
    """RFC 4648, with padding."""
    return base64.b64encode(data).decode()


def write_values(event: int, inputs: Sequence[bytes], output: bytes) -> bytes:
    """A message of values."""
    return encode({"format": "llama2.py reveal 1", "event": event, "inputs": list(map(base64_of, inputs)),
                   "output": base64_of(output)}) + b"\n"


def write_rows(tree: merkle.MerkleTree, checkpoint: AnyCheckpoint, rows: Iterable[Row]) -> Iterator[bytes]:
    """A message of rows, in pieces; tree: the one over the weights (weights_tree)."""
    leaves = Leaves(checkpoint.config.described())
    yield ROWS + b'"config":' + encode([h.hex() for h in tree.inclusion_proof(0)]) + b',"rows":['
    between = b""
    for row in rows:
        path = [h.hex() for h in tree.inclusion_proof(leaves.index(row))]
        (values,) = checkpoint.rows(leaves.tensor(row.tensor), row.layer, row.row, row.row + 1)
        yield between + encode({"tensor": row.tensor, "layer": row.layer, "row": row.row,
                                "values": base64_of(to_bytes(values)), "path": path})
        between = b","
    yield b"]}\n"


# ----------------------------------------------------------------------------
# Reading


class Readable(Protocol):
    """A file, or what can be read like one."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, none at the end."""


class Pieces:
    """Pieces of bytes that can be read like a file. size is how many bytes were read."""

    def __init__(self, pieces: Iterable[bytes]):
        self.pieces = iter(pieces)
        self.size = 0

    def read(self, size: int, /) -> bytes:
        """The next piece, whatever its size."""
        piece = next(self.pieces, b"")
        self.size += len(piece)
        return piece


class Scanner:
    """Reads a message from its beginning to its end. Raises ValueError for what cannot stand there."""

    def __init__(self, path: str, file: Readable):
        self.path = path
        self.file = file
        self.buffer = b""  # bytes that were read
        self.at = 0        # how many of these are done with
        self.dropped = 0   # bytes that stood before them

    @property
    def size(self) -> int:
        """Bytes that were passed."""
        return self.dropped + self.at

    def _fill(self, n: int) -> None:
        """Have the next n bytes in the buffer, or all that there are."""
        have = len(self.buffer) - self.at
        if have >= n:
            return
        goal = max(n, 2 * have)  # as much again as is there, so that a long piece is not copied once a chunk
        pieces = [self.buffer[self.at:]]
        while have < goal:
            piece = self.file.read(max(CHUNK, goal - have))
            if not piece:
                break
            pieces.append(piece)
            have += len(piece)
        self.buffer = b"".join(pieces)
        self.dropped += self.at
        self.at = 0

    def wrong(self, wanted: str) -> ValueError:
        """The error of a message that has something else than it must have, here."""
        self._fill(1)
        found = self.buffer[self.at:self.at + 30].decode("ascii", "replace")
        return ValueError(f"{self.path}: not a message: byte {self.size} must be {wanted}, found "
                          f"{printable(found, 60)}")

    def follows(self, text: bytes) -> bool:
        """Whether a text comes next."""
        self._fill(len(text))
        return self.buffer.startswith(text, self.at)

    def accept(self, text: bytes) -> bool:
        """Pass a text, if it comes next -> whether it did."""
        found = self.follows(text)
        if found:
            self.at += len(text)
        return found

    def expect(self, text: bytes) -> None:
        """Pass a text that must come next."""
        if not self.accept(text):
            raise self.wrong(printable(text.decode()))

    def until(self, end: bytes, most: int) -> bytes | None:
        """Pass the bytes before the next `end` (one byte), and that -> those bytes, None if they are more than most."""
        searched = 0
        while True:
            available = len(self.buffer) - self.at
            found = self.buffer.find(end, self.at + searched, self.at + most + 1)
            if found >= 0:
                piece = self.buffer[self.at:found]
                self.at = found + 1
                return piece
            if available > most:
                return None
            self._fill(available + 1)
            if len(self.buffer) - self.at == available:
                raise ValueError(f"{self.path}: not a message: ends after {self.size + available} bytes")
            searched = available

    def finish(self) -> None:
        """The end must come next."""
        self.expect(b"}\n")
        self._fill(1)
        if self.at < len(self.buffer):
            raise self.wrong("the end")

    # -- values

    def integer(self, end: bytes) -> int:
        """An integer from 0 on, and what ends it."""
        begin = self.size
        digits = self.until(end, MOST_DIGITS)
        if digits is None or not INTEGER.fullmatch(digits):
            raise ValueError(f"{self.path}: not a message: an integer must stand at byte {begin}")
        return int(digits)

    def data(self, name: str, most: int) -> bytes:
        """A text in quotes, base64 of at most so many bytes -> the bytes. Raises VerificationError if it has more."""
        self.expect(b'"')
        text = self.until(b'"', (most + 2) // 3 * 4)
        if text is None:
            raise VerificationError(self.path, f"{name}: size", f"at most {most} bytes", "more")
        try:
            found = base64.b64decode(text, validate=True)
        except ValueError:
            found = b""
        if base64.b64encode(found) != text:
            shown = printable(text[:60].decode("ascii", "replace"), 60)
            raise ValueError(f"{self.path}: {name}: not base64 (RFC 4648): {shown}")
        return found

    def hashes(self) -> list[bytes]:
        """A list of hashes."""
        self.expect(b"[")
        text = self.until(b"]", MOST_PATH)
        if text is None or not HASHES.fullmatch(text):
            raise ValueError(f"{self.path}: path: must be hashes of 64 hexadecimal digits")
        return [bytes.fromhex(item[1:-1].decode()) for item in text.split(b",")] if text else []


def begins_with_rows(scanner: Scanner) -> bool:
    """Whether it is a message of rows, and not one of values. Raises ValueError if it is neither."""
    if scanner.follows(ROWS):
        return True
    if not scanner.follows(VALUES):
        raise ValueError(f"{scanner.path}: neither a message of values, 'llama2.py reveal 1', nor one of rows, "
                         "'llama2.py rows 1'")
    return False


@dataclass
class Values:
    """A message of values, as its sender has them."""
    event: int
    inputs: list[bytes]  # all, or none
    output: bytes        # b"" if there is none


def read_values(scanner: Scanner, wanted: Sequence[Input], n: int) -> Values:
    """A message of values of an event that has these inputs and a result (n). Raises VerificationError if it has other
    inputs, or larger values."""
    scanner.expect(VALUES + b'"event":')
    event = scanner.integer(b",")
    scanner.expect(b'"inputs":[')
    inputs: list[bytes] = []
    while not scanner.accept(b"]"):
        if inputs:
            scanner.expect(b",")
        if len(inputs) == len(wanted):
            raise VerificationError(scanner.path, "inputs", len(wanted), "more")
        due = wanted[len(inputs)]
        inputs.append(scanner.data(due.name, due.most))
    scanner.expect(b',"output":')
    output = scanner.data("output", 4 * n)
    scanner.finish()
    if inputs and len(inputs) != len(wanted):
        raise VerificationError(scanner.path, "inputs", len(wanted), len(inputs))
    return Values(event, inputs, output)


@dataclass
class OpenedRow:
    """A row of the weights, as its sender has it."""
    row: Row
    values: bytes
    path: list[bytes]


class RowsReader:
    """A message of rows: config, the path of leaf 0, and the rows one by one."""

    def __init__(self, scanner: Scanner, leaves: Leaves):
        """leaves: those of the header's model. Raises VerificationError, here and from rows(), for rows that this model
        does not have."""
        self.scanner = scanner
        self.leaves = leaves
        scanner.expect(ROWS + b'"config":')
        self.config = scanner.hashes()
        scanner.expect(b',"rows":[')

    def rows(self) -> Iterator[OpenedRow]:
        """The rows."""
        first = True
        while not self.scanner.accept(b"]"):
            if not first:
                self.scanner.expect(b",")
            yield self._row()
            first = False
        self.scanner.finish()

    def _row(self) -> OpenedRow:
        scanner = self.scanner
        scanner.expect(b'{"tensor":"')
        name = scanner.until(b'"', MOST_NAME)
        if name is None or not name.isascii():
            raise ValueError(f"{scanner.path}: not a message: no tensor's name before byte {scanner.size}")
        scanner.expect(b',"layer":')
        layer = scanner.integer(b",")
        scanner.expect(b'"row":')
        row = Row(name.decode(), layer, scanner.integer(b","))
        if not self.leaves.has(row):
            raise VerificationError(scanner.path, "row", "one of the model", f"the model has no row {row}")
        columns = self.leaves.shapes[row.tensor][1]
        scanner.expect(b'"values":')
        values = scanner.data(f"row {row}", 4 * columns)
        if len(values) != 4 * columns:
            raise VerificationError(scanner.path, f"row {row}: size", 4 * columns, len(values))
        scanner.expect(b',"path":')
        path = scanner.hashes()
        scanner.expect(b"}")
        return OpenedRow(row, values, path)
