"""Another program's logits beside this one's, as numpy's arrays (format 1.0): written, read, measured, shown.

    python3 llama2.py -t 0 -n 50 --logits ours.npy       # write
    python3 llama2.py -t 0 -n 50 --compare theirs.npy    # compare
"""
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from operator import sub
from struct import pack, unpack
from typing import Any, BinaryIO

from arithmetic import NATIVE
from console import read_file, write_whole

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
        if NATIVE:
            self.numbers.byteswap()
        head = b"\x93NUMPY\x01\x00" + pack("<H", 118) + head.ljust(117) + b"\n"  # 128 bytes, a multiple of 64
        write_whole(self.path, head + self.numbers.tobytes())


# ----------------------------------------------------------------------------
# Reading


class LogitsArray:
    """A .npy file of float32 (steps, vocabulary), C order, little endian.

    Raises ValueError for another type, byte order, shape or order of dimensions, naming both.
    """

    def __init__(self, path: str, steps: int, vocab_size: int):
        """steps: the most that it may have"""
        self.path, self.vocab_size = path, vocab_size
        self.data = read_file(path, 2**30)
        header = re.match(rb"\x93NUMPY\x01\x00(..)\{'descr': ('.*?'|\[.*?\]), 'fortran_order': (True|False), "
                          rb"'shape': (\([0-9, ]*\)),? ?\} *\n", self.data[:2**16 + 10], re.S)
        if not header or unpack("<H", header[1])[0] != header.end() - 10:
            raise ValueError(f"{path}: not an array of numpy's format 1.0")
        kind, fortran, self.shape = (value.decode("latin-1") for value in header.groups()[1:])
        if kind != "'<f4'":
            raise ValueError(f"{path}: holds {kind}, must be '<f4', float32 in little-endian order")
        if fortran != "False":
            raise ValueError(f"{path}: fortran_order is {fortran}, must be False")
        rows = re.fullmatch(rf"\(([1-9][0-9]{{0,8}}), {vocab_size}\)", self.shape)
        if not rows or int(rows[1]) > steps:
            raise ValueError(f"{path}: shape is {self.shape}, this run's is ({steps}, {vocab_size}), or fewer steps if "
                             "it ends by itself")
        self.rows, self.begin = int(rows[1]), header.end()
        size = self.begin + 4 * self.rows * vocab_size
        if len(self.data) != size:
            raise ValueError(f"{path}: size is {len(self.data)} bytes, must be {size} for shape {self.shape}")

    def row(self, step: int) -> tuple[float, ...]:
        """The logits of a step, (vocab)."""
        start = self.begin + 4 * self.vocab_size * step
        return unpack(f"<{self.vocab_size}f", self.data[start:start + 4 * self.vocab_size])


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

    def __init__(self, path: str, steps: int, vocab_size: int, tolerance: float, out: BinaryIO):
        self.array, self.tolerance, self.out = LogitsArray(path, steps, vocab_size), tolerance, out
        self.count, self.agree, self.ulps, self.largest = 0, 0, 0, (0.0, None)  # the last: with its step
        self.started = self.parted = None  # the first step that differs at all, and beyond the tolerance

    def step(self, step: Any) -> None:
        """Compare a step of this run, and print a line about it."""
        if self.count == self.array.rows:
            raise ValueError(f"{self.array.path}: shape is {self.array.shape}, but this run has more steps")
        pos, d = self.count, measure(step.logits, self.array.row(self.count))
        self.count, self.agree, self.ulps = pos + 1, self.agree + (d.mine == d.others), max(self.ulps, d.ulps)
        if d.largest > self.largest[0]:
            self.largest = d.largest, pos
        if d.ulps and self.started is None:
            self.started = pos
        if d.largest > self.tolerance and self.parted is None:
            self.parted = pos
        title = "" if pos else f"{'step':>5}  {'largest difference':>18}  {'in ulps':>10}  arg max\n"
        agreement = f"{d.mine}" if d.mine == d.others else f"{d.mine} here, {d.others} there"
        beyond = " beyond the tolerance" if d.largest > self.tolerance else ""
        self.out.write(f"{title}{pos:5}  {d.largest:18.3g}  {d.ulps:10}  {agreement}{beyond}\n".encode())

    def finish(self) -> None:
        """Print the summary. Raises ValueError if the array has more steps than the run had."""
        if self.count != self.array.rows:
            raise ValueError(f"{self.array.path}: shape is {self.array.shape}, but this run's is "
                             f"({self.count}, {self.array.vocab_size})")
        size, step = self.largest
        where = "" if step is None else f" at step {step}"
        self.out.write(f"largest difference: {size:.3g}{where}; in ulps: {self.ulps}\n"
                       f"arg max agrees at {self.agree} of {self.count} steps\n"
                       f"first step that differs: {self.started}; first beyond the tolerance: {self.parted}\n".encode())
