"""The numbers of a run, as its author gives them (llama2.py --dump), by the events of its log.

    dump = Dump("tale.dump", layout, config, steps)
    dump.read(15)    # the numbers of the event whose line has this index, as bytes; None if the file lacks them

The file is mapped, and its records are found once, in any order (log/records.py). What is kept of one is 24 bytes,
so that neither a long run nor a file of many small records takes much memory.
"""
import mmap
import os
from array import array

from llama2_py.engine.checkpoint import Config
from llama2_py.engine.graph import place, size
from llama2_py.engine.mapped import PIECE
from llama2_py.log.events import Layout
from llama2_py.log.records import RecordScanner

NONE = -1


class Dump:
    """The records of a file. Raises ValueError, naming record and fault, for what is no record of this run's."""

    def __init__(self, path: str, layout: Layout, config: Config, steps: int):
        self.path = path
        self.layout = layout
        self.config = config
        self.steps = steps
        self.seen = 0                                        # bytes that were read since the pages were released
        self.first = array("q", [NONE]) * (steps * layout.lines + 1)  # event -> its first part
        self.last = array("q", self.first)
        self.found = array("q", [0]) * len(self.first)       # event -> how many numbers it has so far
        self.begins = array("q")                             # part -> where its numbers begin,
        self.counts = array("q")                             # how many they are,
        self.following = array("q")                          # and the next part of the same event
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError(f"{path}: the file is empty")
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._scan()

    def _scan(self) -> None:
        for where, (pos, layer, op), begin, n in RecordScanner(self.path, self.data, self.config).scan():
            if pos >= self.steps:
                raise ValueError(f"{where}: position {pos}, but the log has {self.steps} steps")
            event = self.layout.operation(pos, op, layer)
            self.found[event] += n
            wanted = size(self.config, op, pos)
            if self.found[event] > wanted:
                raise ValueError(f"{where}: {place(op, layer, pos)}: has {self.found[event]} numbers or more, must "
                                 f"have {wanted}")
            self._add(event, begin, n)
            self._passed(4 * n)

    def _add(self, event: int, begin: int, n: int) -> None:
        part = len(self.begins)
        self.begins.append(begin)
        self.counts.append(n)
        self.following.append(NONE)
        if self.first[event] == NONE:
            self.first[event] = part
        else:
            self.following[self.last[event]] = part
        self.last[event] = part

    def _passed(self, n: int) -> None:
        """So many bytes were read: drop the pages, if they are many."""
        self.seen += n
        if self.seen > PIECE:
            self.seen = 0
            if hasattr(mmap, "MADV_DONTNEED"):
                self.data.madvise(mmap.MADV_DONTNEED)

    def read(self, event: int) -> bytes | None:
        """The numbers of an event as little-endian float32; None if the file has none. Raises ValueError if they are
        not as many as they must be."""
        part = self.first[event]
        if part == NONE:
            return None
        pieces = []
        where = self.layout.place(event)
        op, layer, pos = where.get("op", "logits"), where.get("layer"), where["pos"]
        wanted, found = size(self.config, op, pos), self.found[event]
        if found != wanted:
            raise ValueError(f"{self.path}: {place(op, layer, pos)}: has {found} numbers, must have {wanted}")
        while part != NONE:
            begin, n = self.begins[part], self.counts[part]
            pieces.append(self.data[begin:begin + 4 * n])
            part = self.following[part]
        self._passed(4 * found)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Let go of the file."""
        self.data.close()
