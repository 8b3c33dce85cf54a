"""Files of numbers, ours and another program's: logits, or every operation, by position.

Three kinds are read, and told apart by how they begin:

    numpy's .npy, format 1.0: float16, 32 or 64, little endian, of shape (steps, vocab) or (1, steps, vocab)
    records: a line of ASCII, `POS LAYER OP N`, then N little-endian float32; LAYER is -1 outside the layers, OP a name
        of graph.OPERATIONS or graph.OUTSIDE. They come in any order; the same line again appends, as run.c's att does,
        head by head.
    anything else: bare little-endian float32, in rows of the vocabulary
"""
import mmap
import os
import re
from array import array
from collections.abc import Sequence
from struct import iter_unpack, pack, unpack
from typing import Any

from llama2_py.console import printable, write_whole
from llama2_py.engine.arithmetic import from_bytes, to_bytes
from llama2_py.engine.graph import OPERATIONS, OUTSIDE, inputs, place, size

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
        write_whole(self.path, head + to_bytes(self.numbers))


class DumpFile:
    """Collects a run's operations and logits, and writes them as records once the run is complete."""

    def __init__(self, path: str):
        self.path, self.pos, self.records = path, 0, bytearray()

    def operation(self, layer: int | None, op: str, values: Sequence[float]) -> None:
        """Take an operation of the current step."""
        self.records += f"{self.pos} {-1 if layer is None else layer} {op} {len(values)}\n".encode()
        self.records += to_bytes(values)

    def step(self, step: Any) -> None:
        """Take a step's logits."""
        self.operation(None, "logits", step.logits)
        self.pos += 1

    def finish(self) -> None:
        """Write the file."""
        write_whole(self.path, self.records)


# ----------------------------------------------------------------------------
# Reading: the file is mapped, and read step by step


class Numbers:
    """Another program's numbers: operations and logits by position.

    Raises ValueError, naming what is wrong, for a file that is none of the three kinds, of another vocabulary, or with
    more positions than the context has.
    """

    def __init__(self, path: str, config):
        self.path, self.config, self.vocab_size = path, config, config.vocab_size
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
            self.steps, rest = divmod(len(self.data), 4 * self.vocab_size)
            if rest:
                raise ValueError(f"{path}: size is {len(self.data)} bytes: neither an array of numpy's, nor records, "
                                 f"nor rows of {self.vocab_size} float32, {4 * self.vocab_size} bytes each")
        if self.steps > config.seq_len:
            raise ValueError(f"{path}: has {self.steps} steps, more than the context of {config.seq_len}")

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
        self.records, at, steps, line = {}, 0, 0, None
        while at < len(self.data):
            where = f"{self.path}, record at byte {at}" + (f", after {line}" if line else "")
            end = self.data.find(b"\n", at, at + 100)
            line = self.data[at:end if end >= 0 else at + 100].decode("latin-1")
            match = re.fullmatch(r"(\d{1,9}) (-?\d{1,9}) ([a-z_]{1,30}) (\d{1,12})", line)
            if end < 0 or not match:
                raise ValueError(f"{where}: not a line `POS LAYER OP N`: {printable(line, 60)}")
            if int(match[1]) >= self.config.seq_len:
                raise ValueError(f"{where}: position {match[1]} is beyond the context of {self.config.seq_len}")
            pos, layer, op, n = int(match[1]), int(match[2]), match[3], int(match[4])
            if op not in (OUTSIDE if layer == -1 else OPERATIONS) or not -1 <= layer < self.config.n_layers:
                raise ValueError(f"{where}: no operation is called {op} in layer {layer}, of {self.config.n_layers}")
            if n == 0 or end + 1 + 4 * n > len(self.data):
                raise ValueError(f"{where}: {op} has {n} numbers, but {(len(self.data) - end - 1) // 4} are left")
            key = pos, None if layer == -1 else layer, op
            parts = self.records.setdefault(key, [])
            parts.append((end + 1, n))
            most = size(self.config, op, pos)
            if len(parts) > 1 and sum(count for _, count in parts) > most:
                raise ValueError(f"{where}: more than the {most} numbers of {place(op, key[1], pos)}")
            at, steps = end + 1 + 4 * n, max(steps, pos + 1)
        return steps

    def values(self, op: str, layer: int | None, pos: int) -> Sequence[float] | None:
        """The results of an operation; None if the file does not have them."""
        if self.records is None:
            return self._row(pos) if op == "logits" and pos < self.steps else None
        parts = self.records.get((pos, layer, op))
        if parts is None:
            return None
        found, n = sum(count for _, count in parts), size(self.config, op, pos)
        if found != n:
            raise ValueError(f"{self.path}: {place(op, layer, pos)}: has {found} numbers, must have {n}")
        return from_bytes(b"".join(self.data[offset:offset + 4 * count] for offset, count in parts))

    def lacks_inputs(self) -> bool:
        """Is there an operation in the file whose inputs are not all there?"""
        for pos, layer, op in self.records:
            for name, l, positions in inputs(op, layer, pos, self.config.n_layers):
                if not all((t, l, name) in self.records for t in positions):
                    return True
        return False

    def _row(self, pos):
        size = {"e": 2, "f": 4, "d": 8}[self.form] * self.vocab_size
        data = self.data[self.begin + pos * size:self.begin + (pos + 1) * size]
        (row,) = iter_unpack(f"<{self.vocab_size}{self.form}", data)
        return row
