"""A model's matrices, in much memory or in little: rows that are unpacked once, or read from the mapped file whenever
they are used. Both give the same bits.

    rows = Rows(read, release, A, range(288), 288, unpacked=True)
    ys = rows.times([x])    # [the product of the matrix and x]
"""
import contextlib
import copy
import os
import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from llama2_py.engine.arithmetic import Arithmetic
from llama2_py.engine.checkpoint import MATRICES
from llama2_py.engine.models import AnyCheckpoint

# Weights in a block, few enough to stay in the processor's cache once unpacked: larger ones make dialect c a tenth
# slower on Python 3.13, smaller ones cost calls. The bits are the same, since each row is computed by itself.
BLOCK = 2**15


def free_memory() -> int:
    """Bytes that this process may use, roughly: what the system has available, or the limit of the cgroup (version 2)
    or of the process's address space if that is lower."""
    limits = []
    for path, pattern, unit in [("/proc/meminfo", "MemAvailable: +([0-9]+)", 1024),
                                ("/sys/fs/cgroup/memory.max", "([0-9]+)", 1)]:
        with contextlib.suppress(OSError), open(path) as file:
            if found := re.search(pattern, file.read()):
                limits.append(int(found[1]) * unit)
    with contextlib.suppress(ImportError):
        import resource
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    if not limits:  # not on Linux: half of the memory there is, or of 8 GiB
        with contextlib.suppress(AttributeError, ValueError, OSError):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return min(limits, default=2**32)


def unpacked_size(arithmetic: Arithmetic, checkpoint: AnyCheckpoint) -> int:
    """Bytes that the matrices of a model take in memory, in blocks as Rows has them."""
    size = 0
    for name in (*MATRICES, "classifier"):
        _, rows, columns = checkpoint.tensors[name]
        one = matrix_size(arithmetic, rows, columns, checkpoint.is_shared(name), checkpoint.group)
        size += one * (1 if name == "classifier" else checkpoint.config.n_layers)
    return size


def matrix_size(arithmetic: Arithmetic, rows: int, columns: int, shared: bool = False, group: int = 0) -> int:
    """Bytes that a matrix takes in memory; shared, group: as Matrix.memory has them."""
    step = max(1, BLOCK // columns)
    full, rest = divmod(rows, step)
    memory = (arithmetic.weights or arithmetic).Matrix.memory
    return full * memory(step, columns, shared, group) + (memory(rest, columns, shared, group) if rest else 0)


def partition(n: int, index: int, count: int) -> range:
    """The part of range(n) that falls to the process `index` of `count`."""
    return range(n * index // count, n * (index + 1) // count)


class Rows:
    """One process's rows of a matrix of the model, in blocks: unpacked in memory, or read anew for each product."""

    def __init__(self, read: Callable, release: Callable[[], None], arithmetic: Arithmetic, rows: range, columns: int,
                 unpacked: bool):
        """read(first, last, check) -> rows first .. last - 1, a list of tuples; release() lets go of what was read."""
        step = max(1, BLOCK // columns)
        self.arithmetic, self.release, self.unpacked = arithmetic.weights or arithmetic, release, unpacked
        # MappedBlocks, or, if unpacked, their matrices
        self.blocks = [MappedBlock(read, arithmetic, first, min(first + step, rows.stop)) for first in rows[::step]]
        if unpacked:
            self.blocks = [block.matrix() for block in self.blocks]
            release()

    def with_arithmetic(self, arithmetic: Arithmetic) -> "Rows":
        """The same rows for another arithmetic, whose matrices are of the same class."""
        other = copy.copy(self)
        other.arithmetic = arithmetic
        return other

    def times(self, xs: Sequence[Sequence[float]]) -> list[list[float]]:
        """xs (positions, columns) -> (positions, rows): the product of these rows with each vector."""
        dots, operands = self.arithmetic.dots, [self.arithmetic.operand(x) for x in xs]
        results: list[list[float]] = [[] for _ in xs]
        for block in self.blocks:
            matrix = block if self.unpacked else block.matrix()
            for result, operand in zip(results, operands, strict=True):
                result += dots(matrix, operand)
        if not self.unpacked:
            self.release()
        return results


class MappedBlock:
    """Some rows of a matrix in the mapped file, unpacked whenever their matrix is asked for."""

    def __init__(self, read: Callable, arithmetic: Arithmetic, first: int, last: int):
        self.read, self.arithmetic, self.first, self.last = read, arithmetic.weights or arithmetic, first, last
        self.squares: array | None = None  # of the rows
        self.checked = False               # have all weights been seen to be finite?

    def matrix(self) -> Any:
        """The rows as arithmetic.Matrix."""
        rows = self.read(self.first, self.last, check=not self.checked)
        matrix = self.arithmetic.Matrix(rows, self.squares)
        if not self.checked:
            self.squares = array("d", matrix.squares)
            self.checked = True
        return matrix


def split(x: Sequence[float], n: int) -> list[Sequence[float]]:
    """x (rows * n) -> (rows, n)"""
    return [x[i:i + n] for i in range(0, len(x), n)]
