"""Files of numbers, ours and another program's: logits, or every operation, by position.

    numbers = Numbers("theirs", config)
    numbers.values("q", 2, 7)              # q of layer 2 at position 7; None if the file does not have it
    numbers.values("logits", None, 7)

Three kinds are read, and told apart by how they begin:

    numpy's .npy, formats 1 to 3: float16, 32 or 64, either byte order, C or Fortran order, of shape (steps, vocab),
        (1, steps, vocab) or (steps, 1, vocab)
    records: a line of ASCII, `POS LAYER OP N`, then N little-endian float32 (records.py)
    anything else: bare little-endian float32, in rows of the vocabulary
"""
import mmap
import os
from array import array
from collections.abc import Sequence
from struct import pack
from typing import Any

from llama2_py.console import write_whole
from llama2_py.doctor.arrays import MAGIC, Array, read_bare, read_npy
from llama2_py.log.records import Records, are_records, record_of
from llama2_py.engine.arithmetic import to_bytes

# ----------------------------------------------------------------------------
# Writing


class LogitsFile:
    """Collects a run's logits and writes them, once the run is complete, as an array of shape (steps, vocabulary)."""

    def __init__(self, path: str, vocab_size: int):
        self.path = path
        self.vocab_size = vocab_size
        self.numbers = array("f")

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
        self.path = path
        self.pos = 0
        self.records = bytearray()

    def operation(self, layer: int | None, op: str, values: Sequence[float]) -> None:
        """Take an operation of the current step."""
        self.records += record_of(self.pos, layer, op, values)

    def step(self, step: Any) -> None:
        """Take a step's logits."""
        self.operation(None, "logits", step.logits)
        self.pos += 1

    def finish(self) -> None:
        """Write the file."""
        write_whole(self.path, bytes(self.records))


# ----------------------------------------------------------------------------
# Reading: the file is mapped, and read step by step


class Numbers:
    """Another program's numbers: operations and logits by position.

    Raises ValueError, naming what is wrong, for a file that is none of the three kinds, of another vocabulary, or with
    more positions than the context has.
    """

    def __init__(self, path: str, config):
        self.path = path
        self.config = config
        self.records: Records | None = None
        self.array: Array | None = None
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError(f"{path}: the file is empty")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[:6] == MAGIC:
            self.array = read_npy(path, data, config.vocab_size)
        elif are_records(data):
            self.records = Records(path, data, config)
        else:
            self.array = read_bare(path, data, config.vocab_size)
        self.steps = (self.records or self.array).steps  # type: ignore[union-attr]  # one of them is there
        if self.steps > config.seq_len:
            raise ValueError(f"{path}: has {self.steps} steps, more than the context of {config.seq_len}")

    @property
    def are_float16(self) -> bool:
        """Are the numbers of the file float16?"""
        return self.array is not None and self.array.form.endswith("e")

    def values(self, op: str, layer: int | None, pos: int) -> Sequence[float] | None:
        """The results of an operation; None if the file does not have them."""
        if self.records is not None:
            return self.records.values((pos, layer, op))
        assert self.array is not None
        return self.array.row(pos) if op == "logits" and pos < self.steps else None

    def lacks_inputs(self) -> bool:
        """Is there an operation in the file whose inputs are not all there?"""
        return self.records is not None and self.records.lacks_inputs()

    def positions(self) -> set[int]:
        """The positions of which there is anything."""
        return set(range(self.steps)) if self.records is None else self.records.positions()
