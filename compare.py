"""Another program's numbers beside this one's: written, read, measured, shown.

    python3 llama2.py -t 0 -n 50 --logits ours.npy       # write every step's logits
    python3 llama2.py -t 0 -n 50 --dump ours.dump        # write every operation, too
    python3 llama2.py -t 0 --compare theirs              # compare: how many steps there are, the file says

Three kinds of files are read, and told apart by how they begin:

    numpy's .npy, format 1.0: float16, 32 or 64, little endian, of shape (steps, vocab) or (1, steps, vocab)
    records: a line of ASCII, `POS LAYER OP N`, then N little-endian float32; LAYER is -1 outside the layers, OP a name
        of events.OPERATIONS, embedding, final_norm or logits. They come in any order; the same line again appends, as
        run.c's att does, head by head.
    anything else: bare little-endian float32, in rows of the vocabulary
"""
import mmap
import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from operator import sub
from struct import iter_unpack, pack, unpack
from typing import Any, BinaryIO

from arithmetic import BYTE_ORDER
from console import printable, write_whole
from events import OPERATIONS

OUTSIDE = ("embedding", "final_norm", "logits")  # operations outside the layers

# ----------------------------------------------------------------------------
# Writing


class LogitsFile:
    """Collects a run's logits and writes them, once the run is complete, as an array of shape (steps, vocabulary)."""

    def __init__(self, path: str, vocab_size: int):
        self.path, self.vocab_size, self.numbers = path, vocab_size, array("f")

    def step(self, step: Any) -> None:
        """Take a step's logits."""
        self.numbers += step.logits

    def finish(self) -> None:
        """Write the file."""
        shape = len(self.numbers) // self.vocab_size, self.vocab_size
        head = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
        head = b"\x93NUMPY\x01\x00" + pack("<H", 118) + head.ljust(117) + b"\n"  # 128 bytes, a multiple of 64
        write_whole(self.path, head + little_endian(self.numbers))


class DumpFile:
    """Collects a run's operations and logits, and writes them as records once the run is complete."""

    def __init__(self, path: str):
        self.path, self.pos, self.records = path, 0, bytearray()

    def operation(self, layer: int | None, op: str, values: Sequence[float]) -> None:
        """Take an operation of the current step."""
        self.records += f"{self.pos} {-1 if layer is None else layer} {op} {len(values)}\n".encode()
        self.records += little_endian(array("f", values))

    def step(self, step: Any) -> None:
        """Take a step's logits."""
        self.operation(None, "logits", step.logits)
        self.pos += 1

    def finish(self) -> None:
        """Write the file."""
        write_whole(self.path, self.records)


def little_endian(values: array) -> bytes:
    """The bytes of an array("f")."""
    if BYTE_ORDER:
        values = array("f", values)
        values.byteswap()
    return values.tobytes()


# ----------------------------------------------------------------------------
# Reading: the file is mapped, and read step by step


class Numbers:
    """Another program's numbers: operations and logits by position.

    Raises ValueError, naming what is wrong, for a file that is none of the three kinds, of another vocabulary, or with
    more positions than the context has.
    """

    def __init__(self, path: str, vocab_size: int, n_layers: int, context: int):
        self.path, self.vocab_size, self.n_layers = path, vocab_size, n_layers
        self.form = "f"      # of a number, for struct
        self.records = None  # (pos, layer or None, op) -> [(offset, how many numbers)], in a file of records
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError(f"{path}: the file is empty")
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self.data[:6] == b"\x93NUMPY":
            self.steps = self._read_npy_header()
        elif re.match(rb"\d+ -?\d+ [a-z_]+ \d+\n", self.data):
            self.steps = self._index_records()
        else:
            self.begin = 0
            self.steps, rest = divmod(len(self.data), 4 * vocab_size)
            if rest:
                raise ValueError(f"{path}: size is {len(self.data)} bytes: neither an array of numpy's, nor records, "
                                 f"nor rows of {vocab_size} float32, {4 * vocab_size} bytes each")
        if self.steps > context:
            raise ValueError(f"{path}: has {self.steps} steps, more than the context of {context}")

    def _read_npy_header(self):
        path = self.path
        header = re.match(rb"\x93NUMPY\x01\x00(..)\{'descr': ('.*?'|\[.*?\]), 'fortran_order': (True|False), "
                          rb"'shape': (\([0-9, ]*\)),? ?\} *\n", self.data[:2**16 + 10], re.S)
        if not header or unpack("<H", header[1])[0] != header.end() - 10:
            raise ValueError(f"{path}: not an array of numpy's format 1.0")
        kind, fortran, shape = (value.decode("latin-1") for value in header.groups()[1:])
        forms = {"'<f2'": "e", "'<f4'": "f", "'<f8'": "d"}
        if kind not in forms:
            raise ValueError(f"{path}: holds {kind}, must be float16, 32 or 64 in little-endian order, '<f2' to '<f8'")
        if fortran != "False":
            raise ValueError(f"{path}: fortran_order is {fortran}, must be False")
        rows = re.fullmatch(rf"\((?:1, )?([1-9][0-9]{{0,8}}), {self.vocab_size}\)", shape)
        if not rows:
            raise ValueError(f"{path}: shape is {shape}, must be (steps, {self.vocab_size}), the vocabulary")
        self.form, self.begin = forms[kind], header.end()
        size = self.begin + {"e": 2, "f": 4, "d": 8}[self.form] * int(rows[1]) * self.vocab_size
        if len(self.data) != size:
            raise ValueError(f"{path}: size is {len(self.data)} bytes, must be {size} for shape {shape}")
        return int(rows[1])

    def _index_records(self):
        self.records, at, steps = {}, 0, 0
        while at < len(self.data):
            where, end = f"{self.path}, record at byte {at}", self.data.find(b"\n", at, at + 100)
            line = self.data[at:end if end >= 0 else at + 100].decode("latin-1")
            match = re.fullmatch(r"(\d{1,9}) (-?\d{1,9}) ([a-z_]{1,30}) (\d{1,12})", line)
            if end < 0 or not match:
                raise ValueError(f"{where}: not a line `POS LAYER OP N`: {printable(line, 60)}")
            pos, layer, op, n = int(match[1]), int(match[2]), match[3], int(match[4])
            if op not in (OUTSIDE if layer == -1 else OPERATIONS) or not -1 <= layer < self.n_layers:
                raise ValueError(f"{where}: no operation is called {op} in layer {layer}, of {self.n_layers}")
            if n == 0 or end + 1 + 4 * n > len(self.data):
                raise ValueError(f"{where}: {op} has {n} numbers, but {(len(self.data) - end - 1) // 4} are left")
            key = pos, None if layer == -1 else layer, op
            self.records.setdefault(key, []).append((end + 1, n))
            at, steps = end + 1 + 4 * n, max(steps, pos + 1)
        return steps

    def values(self, pos: int, layer: int | None, op: str, n: int) -> tuple[float, ...] | None:
        """The results of an operation, which has n numbers; None if the file does not have them."""
        if self.records is None:
            return self._row(pos) if op == "logits" else None
        parts = self.records.get((pos, layer, op))
        if parts is None:
            return None
        found = sum(size for _, size in parts)
        if found != n:
            place = f"{op} of position {pos}" + ("" if layer is None else f", layer {layer}")
            raise ValueError(f"{self.path}: {place} has {found} numbers, must have {n}")
        data = b"".join(self.data[offset:offset + 4 * size] for offset, size in parts)
        return unpack(f"<{n}f", data)

    def _row(self, pos):
        size = {"e": 2, "f": 4, "d": 8}[self.form] * self.vocab_size
        data = self.data[self.begin + pos * size:self.begin + (pos + 1) * size]
        (row,) = iter_unpack(f"<{self.vocab_size}{self.form}", data)
        return row


# ----------------------------------------------------------------------------
# Measuring and printing


@dataclass
class Difference:
    """How far another program's logits of one step are from this one's."""
    largest: float  # of all elements, absolute; inf if the other's are not all finite
    ulps: int       # the largest in units in the last place
    mine: int       # the token with the largest logit here
    others: int     # and there


def measure(logits: Sequence[float], other: Sequence[float]) -> Difference:
    """logits, other (vocab): this program's and the other's."""
    largest = max(map(abs, map(sub, logits, other))) if isfinite(sum(other)) else inf
    ulps = max(map(abs, map(sub, ordered(logits), ordered(other))))
    return Difference(largest, ulps, logits.index(max(logits)), other.index(max(other)))


def ordered(values: Sequence[float]) -> list[int]:
    """values (n), binary32 -> integers in the order of the numbers: neighbours are 1 apart."""
    form = len(values)
    return [i if i >= 0 else -(i & 0x7FFFFFFF) for i in unpack(f"<{form}i", pack(f"<{form}f", *values))]


class Comparison:
    """Prints a table of differences, step by step, and a summary."""

    def __init__(self, numbers: Numbers, tolerance: float, out: BinaryIO):
        self.numbers, self.tolerance, self.out = numbers, tolerance, out
        self.pos, self.agree, self.compared, self.ulps = 0, 0, 0, 0
        self.largest = 0.0, None            # with its step
        self.started = self.parted = None   # the first step that differs at all, and beyond the tolerance
        self.operations, self.wrong = 0, None  # compared; the first beyond the tolerance

    def operation(self, layer: int | None, op: str, values: Sequence[float]) -> None:
        """Compare an operation of the current step."""
        others = self.numbers.values(self.pos, layer, op, len(values))
        if others is None:
            return
        self.operations += 1
        if self.wrong is None:
            distances = [abs(a - b) if isfinite(b) else inf for a, b in zip(values, others, strict=True)]
            at = distances.index(max(distances))
            if distances[at] > self.tolerance:
                place = "" if layer is None else f"layer {layer}, "
                self.wrong = (f"position {self.pos}, {place}{op}: element {at} of {len(values)} is {others[at]:.9g} "
                              f"there, {values[at]:.9g} here")

    def step(self, step: Any) -> None:
        """Compare the logits of a step, and print a line about them."""
        pos, self.pos = self.pos, self.pos + 1
        others = self.numbers.values(pos, None, "logits", len(step.logits))
        if others is None:
            return
        d = measure(step.logits, others)
        title = "" if self.compared else f"{'step':>5}  {'largest difference':>18}  {'in ulps':>10}  arg max\n"
        self.compared, self.agree = self.compared + 1, self.agree + (d.mine == d.others)
        self.ulps = max(self.ulps, d.ulps)
        if d.largest > self.largest[0]:
            self.largest = d.largest, pos
        if d.ulps and self.started is None:
            self.started = pos
        if d.largest > self.tolerance and self.parted is None:
            self.parted = pos
        agreement = f"{d.mine}" if d.mine == d.others else f"{d.mine} here, {d.others} there"
        beyond = " beyond the tolerance" if d.largest > self.tolerance else ""
        self.out.write(f"{title}{pos:5}  {d.largest:18.3g}  {d.ulps:10}  {agreement}{beyond}\n".encode())

    def finish(self) -> None:
        """Print the summary."""
        if self.pos < self.numbers.steps:
            self.out.write(f"this run ended after {self.pos} of the file's {self.numbers.steps} steps\n".encode())
        if self.operations:
            first = self.wrong or "none"
            self.out.write(f"operations: {self.operations} compared; first beyond the tolerance: {first}\n".encode())
        if self.compared:
            size, step = self.largest
            where = "" if step is None else f" at step {step}"
            self.out.write(f"largest difference: {size:.3g}{where}; in ulps: {self.ulps}\n"
                           f"arg max agrees at {self.agree} of {self.compared} steps\n"
                           f"first step that differs: {self.started}; first beyond the tolerance: {self.parted}\n"
                           .encode())

    def differs(self) -> bool:
        """Whether anything was beyond the tolerance, or the numbers went on where this run ended."""
        return self.parted is not None or self.wrong is not None or self.pos < self.numbers.steps
