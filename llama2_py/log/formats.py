"""The two formats of a trace, this program's and llama2-rs's, told apart by how a file begins.

    trace = read("tale.trace")    # or its bytes
"""
import io
import os
from typing import BinaryIO

from llama2_py import console
from llama2_py.log import llama2rs
from llama2_py.log.checker import Checker
from llama2_py.log.reading import Trace, read_trace
from llama2_py.log.writing import Writer

IN_MEMORY = 2**26  # bytes: a larger log is read from its file, line by line


def read(source: str | os.PathLike | bytes) -> Trace:
    """A file, or its bytes -> the Trace. Raises ValueError, naming the line, if it is not a trace, and
    VerificationError if a line does not stand where its header says, or the root is not that of the lines."""
    path, file = opened(source)
    beginning = file.read(8)
    file.seek(0)
    if beginning[4:8] == bytes(4):  # llama2-rs begins with a length in 8 bytes; JSON has no zero bytes
        with file:
            return llama2rs.read_rust(path, file.read(console.MAX_FILE))
    return read_trace(path, file)


def opened(source: str | os.PathLike | bytes) -> tuple[str, BinaryIO]:
    """A file or bytes -> a name for messages, and what can be read and sought in."""
    if isinstance(source, bytes):
        return "the bytes", io.BytesIO(source)
    path = os.fspath(source)
    file = open(path, "rb")
    if os.path.isfile(path) and os.path.getsize(path) > IN_MEMORY:
        return path, file
    with file:
        return path, io.BytesIO(console.read_open(path, file))


def writer(path: str, header: dict, like: str | None) -> Writer | llama2rs.RustWriter:
    """What writes the trace of a run to a file; like: the program whose format it has, or None."""
    return llama2rs.RustWriter(path, header) if like == "llama2-rs" else Writer(path, header)


def checker_of(trace: Trace, header: dict) -> Checker:
    """What compares a run that has a header with a trace."""
    return (llama2rs.RustChecker if isinstance(trace, llama2rs.RustTrace) else Checker)(trace, header)
