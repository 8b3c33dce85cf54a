"""A log comes about event by event. Here each is written down, as a line, as soon as it happens."""
import contextlib
import os
from collections.abc import Sequence
from typing import Any

import merkle
from llama2_py.log.events import FORMAT, encode, hash_values


def head(size: int, root: bytes) -> str:
    """The head of a log, SIZE:HEX: what one publishes."""
    return f"{size}:{root.hex()}"


class Log:
    """The events of a run, in their order. A subclass says what becomes of one: put(event)."""

    errors = "backslashreplace"  # what bytes of a text become that are not UTF-8: \\xHH

    def __init__(self, header: dict):
        """header: the fields of the first event, in order"""
        self.level, self.pos = header.get("level", "step"), 0
        self.put(self.first(header))

    def put(self, event: dict) -> None:
        """Take an event."""
        raise NotImplementedError

    def finish(self) -> None:
        """The run is whole."""

    def close(self) -> None:
        """No more events come."""

    def first(self, header: dict) -> dict:
        """The event that a header makes."""
        return {"format": FORMAT, **header}

    def operation(self, layer: int | None, op: str, values: Sequence[float]) -> None:
        """A result within the current step: what Transformer.forward calls `observe` with."""
        if self.level == "op" or self.level == "layer" and op == "ffn_residual":
            place = {} if layer is None else {"layer": layer}
            self.put({"pos": self.pos, **place, "op": op, "sha256": hash_values(values)})

    def step(self, step: Any) -> None:
        """The end of a step (llama2.Step)."""
        self.put({"pos": self.pos, "token": step.token, "next": step.next,
                  "text": step.piece.decode("utf-8", self.errors), "logits": hash_values(step.logits)})
        self.pos += 1


class Writer(Log):
    """Writes a log to a file, each line as it comes: a run that dies leaves all the lines that it had made.

    Raises ValueError if another run is writing to the file.
    """

    def __init__(self, path: str, header: dict):
        self.path, self.tree, self.written = path, merkle.MerkleTree(), 0
        self.file = open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb", buffering=0)
        self.is_file = os.path.isfile(path)  # not a device or a pipe
        try:
            self._claim()
            super().__init__(header)
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        with contextlib.suppress(ImportError):
            import fcntl  # not on Windows
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path}: another run is writing this trace") from None
            except OSError:
                pass  # a file system without locks
        if self.is_file:
            self.file.truncate()

    def put(self, event: dict) -> None:
        """Write an event's line."""
        line = encode(event)
        self._write(line)
        self.tree.append(merkle.leaf_hash(line))

    def _write(self, line: bytes) -> None:
        line += b"\n"
        try:
            if self.file.write(line) != len(line):
                raise OSError
        except OSError as error:
            if self.is_file:
                self.file.truncate(self.written)  # a part of a line would not be a log
            raise OSError(f"{self.path}: {error.strerror or 'the disk is full'}") from None
        self.written += len(line)

    def head(self) -> str:
        """Size and root of what has been written."""
        return head(len(self.tree), self.tree.root())

    def finish(self) -> None:
        """Write the line that says that the run is whole."""
        self._write(encode({"size": len(self.tree), "root": self.tree.root().hex()}))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class KeptLog(Log):
    """A log whose lines are kept in memory."""

    def __init__(self, header: dict):
        self.lines: list[bytes] = []
        super().__init__(header)

    def put(self, event: dict) -> None:
        """Keep an event's line."""
        self.lines.append(encode(event))
